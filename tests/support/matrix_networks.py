"""The networks of the conversion matrix: the shapes people deploy, so narrow that each converts in seconds.

ResNet-20 is the trained example on its images. The others have weights drawn from a seed, with the spectra and the activations that trained
ones have, and answer decidedly: their last layer is fitted to tell ten kinds of made-up images apart. So top-1 agreement means something.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecompress import toolchains
from edgecompress.data import fetch_samples
from edgecompress.data.recipe import load_recipe
from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS
from edgecompress.factorizations.fitting import fit_layers
from edgecompress.factorizations.parallel import FactorizationJob
from edgecompress.factorizations.ranks import rank_by_parameter_rate
from edgecompress.network.attention import unfuse_attention
from edgecompress.network.batches import Batch
from edgecompress.network.batchnorm import reestimate_batchnorm
from edgecompress.network.surgery import replace_module
from support import odd_networks
from support.converter_models import settled

CLASSES: Final = 10
FITTED, HELD_OUT = 256, 100  # samples
RATE: Final = 2.0  # parameters of a factorized layer before, over after
DENSE: Final = "dense"


class ResNet18(nn.Module):
    """Basic blocks in four stages behind a 7×7 stem and max-pooling, an eighth as wide as the original."""

    def __init__(self) -> None:
        super().__init__()
        block, widths = type(_resnet20().layer1[0]), (8, 16, 32, 64)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages = zip((8, *widths), widths, (1, 2, 2, 2), strict=False)
        self.blocks = nn.Sequential(*(nn.Sequential(block(i, o, stride), block(o, o, 1)) for i, o, stride in stages))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """An inverted residual: expand, depthwise, in some nets squeeze and excite, project."""

    def __init__(
        self, i: int, o: int, *, kernel: int, stride: int, expand: int, act: type[nn.Module] = nn.ReLU6, excite: bool = False
    ) -> None:
        super().__init__()
        w = i * expand
        self.layers = nn.Sequential(
            nn.Conv2d(i, w, 1, bias=False), nn.BatchNorm2d(w), act(),
            nn.Conv2d(w, w, kernel, stride, kernel // 2, groups=w, bias=False), nn.BatchNorm2d(w), act(),
            SqueezeExcite(w) if excite else nn.Identity(),
            nn.Conv2d(w, o, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        self.skips = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skips else self.layers(x)


class Mobile(nn.Module):
    """A stem, inverted residuals of (out, kernel, stride, expand), a wide 1×1 layer and dropout, as MobileNets and EfficientNets have."""

    def __init__(self, *blocks: tuple[int, int, int, int], act: type[nn.Module] = nn.ReLU6, excite: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act())
        made, i = [], 8
        for o, kernel, stride, expand in blocks:
            made.append(Inverted(i, o, kernel=kernel, stride=stride, expand=expand, act=act, excite=excite))
            i = o
        self.blocks = nn.Sequential(*made)
        self.top = nn.Sequential(nn.Conv2d(i, 96, 1, bias=False), nn.BatchNorm2d(96), act(), nn.AdaptiveAvgPool2d(1))
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.flatten(self.top(self.blocks(self.stem(x))), 1)))


def mobilenet_v2() -> nn.Module:
    return Mobile((8, 3, 1, 1), (16, 3, 2, 6), (16, 3, 1, 6), (24, 3, 2, 6), (24, 3, 1, 6), (32, 3, 1, 6))


def efficientnet_lite0() -> nn.Module:
    return Mobile((8, 3, 1, 1), (16, 3, 2, 6), (16, 3, 1, 6), (24, 5, 2, 6), (24, 5, 1, 6), (32, 3, 1, 6), (32, 5, 1, 6))


def se_hardswish() -> nn.Module:
    return Mobile((8, 3, 1, 1), (16, 3, 2, 4), (16, 3, 1, 4), (24, 5, 2, 4), (24, 5, 1, 4), act=nn.Hardswish, excite=True)


class VGG(nn.Module):
    """Plain 3×3 convolutions with biases, max-pooling, and two linear layers over what is flattened."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 16, 32, 32, 48)
        convolutions = [nn.Conv2d(i, o, 3, padding=1) for i, o in itertools.pairwise(widths)]
        pooled = {1, 3, 4}
        self.features = nn.Sequential(
            *(part for k, conv in enumerate(convolutions) for part in (conv, nn.ReLU(), *([nn.MaxPool2d(2)] if k in pooled else [])))
        )
        self.wide, self.head = nn.Linear(48 * 16, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.wide(self.features(x).flatten(1))))


class Dense(nn.Module):
    """Layers that read all maps before them, with BatchNorm in front, where no convolution can take it up."""

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        self.stem, width, stages = nn.Conv2d(3, 16, 3, padding=1, bias=False), 16, []
        for _ in range(2):
            layers = []
            for _ in range(3):
                layers.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1, bias=False)))
                width += growth
            shrink = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2))
            stages.append(nn.ModuleDict({"layers": nn.ModuleList(layers), "shrink": shrink}))
            width //= 2
        self.stages, self.norm, self.head = nn.ModuleList(stages), nn.BatchNorm2d(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            for layer in stage["layers"]:
                x = torch.cat([x, layer(x)], 1)
            x = stage["shrink"](x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 4×4, a class token, learned positions, pre-norm encoders."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.5 * torch.randn(1, 65, width))
        self.encoders, self.norm = nn.Sequential(*(Encoder(width) for _ in range(3))), nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # (n, 64, width)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.encoders(x))[:, 0])


def _unit(i: int, o: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class UNet(nn.Module):
    """Two levels down and up again by transposed convolutions of both common shapes; a map of scores for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.middle, self.low = _unit(3, 16), _unit(16, 24, 2), _unit(24, 32, 2)
        self.up1 = nn.ConvTranspose2d(32, 24, 2, stride=2)
        self.join1 = _unit(48, 24)
        self.up2 = nn.ConvTranspose2d(24, 16, 4, stride=2, padding=1)
        self.join2, self.last = _unit(32, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(x)
        middle = self.middle(high)
        y = self.join1(torch.cat([self.up1(self.low(middle)), middle], 1))
        return self.last(self.join2(torch.cat([self.up2(y), high], 1)))


class Detector(nn.Module):
    """Boxes and scores of three anchors at each place of two maps, as single-shot detectors give them."""

    def __init__(self, anchors: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(_unit(3, 16, 2), _unit(16, 24, 2), _unit(24, 32))
        self.second = _unit(32, 48, 2)
        self.boxes = nn.ModuleList(nn.Conv2d(i, anchors * 4, 3, padding=1) for i in (32, 48))
        self.scores = nn.ModuleList(nn.Conv2d(i, anchors * 5, 3, padding=1) for i in (32, 48))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        maps = first, self.second(first)
        boxes = [_rows(head(y), 4) for head, y in zip(self.boxes, maps, strict=True)]
        scores = [_rows(head(y), 5) for head, y in zip(self.scores, maps, strict=True)]
        return torch.cat(boxes, 1), torch.cat(scores, 1).sigmoid()  # (n, 240, 4), (n, 240, 5)


def _rows(y: Tensor, values: int) -> Tensor:
    return y.permute(0, 2, 3, 1).reshape(len(y), -1, values)


class Network(NamedTuple):
    """`head` is the layer that is fitted to the labels and stays as it is; "" where no output is a vector of scores."""

    build: Callable[[], nn.Module]
    head: str = "head"
    trained: bool = False
    size: int = 32


NETWORKS: Final = {
    "resnet20": Network(lambda: _resnet20(), "fc", trained=True),
    "resnet18": Network(ResNet18, size=64),
    "mobilenet_v2": Network(mobilenet_v2, size=64),
    "efficientnet_lite0": Network(efficientnet_lite0, size=64),
    "vgg": Network(VGG),
    "densenet": Network(Dense),
    "vit": Network(ViT),
    "audio": Network(lambda: odd_networks.trained("audio"), trained=True),
    "se_hardswish": Network(se_hardswish, size=64),
    "unet": Network(UNet, ""),
    "detector": Network(Detector, ""),
}


class Made(NamedTuple):
    """A network ready to be exported, its calibration data and the inputs it is judged on, and how many layers are factorized."""

    model: nn.Module
    calibration: Batch
    inputs: Batch
    layers: int


@cache
def data(name: str) -> tuple[Tensor, Tensor]:
    """Return FITTED + HELD_OUT inputs `(n, …)` and their classes."""
    if name == "resnet20":
        (images,), classes = fetch_samples(_recipe().eval_data(), FITTED + HELD_OUT)
        return images, classes
    if name == "audio":
        case = odd_networks.case("audio")
        return case.inputs[0][: FITTED + HELD_OUT], case.labels[: FITTED + HELD_OUT]
    draw = torch.Generator().manual_seed(0)

    def smooth(n: int, cells: int) -> Tensor:
        return F.interpolate(torch.randn(n, 3, cells, cells, generator=draw), size=NETWORKS[name].size, mode="bicubic")

    kinds, classes = smooth(CLASSES, 5), torch.randint(CLASSES, (FITTED + HELD_OUT,), generator=draw)
    return kinds[classes] + 0.15 * smooth(len(classes), 9), classes


@cache
def dense(name: str) -> nn.Module:
    """Return the network as it was before any factorization."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build()
    if not network.trained:
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.weight.shape[1] > 1:
                _give_spectrum(layer)
        settled(model, (data(name)[0][:FITTED],))
        _fit_head(model, name)
    return unfuse_attention(model.eval())


def takers(name: str, method: str) -> dict[str, tuple[int, ...]]:
    """Return the layers of a network that a method takes at half of their parameters, each with the rank."""
    found = {}
    for layer_name, layer in dense(name).named_modules():
        if layer_name == NETWORKS[name].head or not isinstance(getattr(layer, "weight", None), Tensor):
            continue
        try:
            if METHODS[method].reject(layer) is None:
                found[layer_name] = rank_by_parameter_rate(layer, method, RATE)
        except ConfigError:  # no rank is so small
            continue
    return found


def made(name: str, method: str) -> Made | None:
    """Return a network with every layer factorized that the method takes; None where it takes none."""
    model = dense(name)
    jobs = (
        [] if method == DENSE else [FactorizationJob(n, model.get_submodule(n), method, rank) for n, rank in takers(name, method).items()]
    )
    if method != DENSE:
        if not jobs:
            return None
        factors = fit_layers(model, jobs)
        model = unfuse_attention(model)
        for job, one in zip(jobs, factors, strict=True):
            replace_module(model, job.name, one.compact)
        reestimate_batchnorm(model, [(data(name)[0][:FITTED],)])
        _fit_head(model, name)
    inputs, _ = data(name)
    return Made(model.eval(), (inputs[:FITTED],), (inputs[FITTED:],), len(jobs))


def _fit_head(model: nn.Module, name: str) -> None:
    """Fit the last layer to the classes by ridge regression, in place, as a short training would."""
    inputs, classes = (x[:FITTED] for x in data(name))
    head = NETWORKS[name].head
    if not head:
        return
    layer, read = model.get_submodule(head), []
    hook = layer.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        model.eval()(inputs)
        hook.remove()
        x = torch.cat(read).double()  # (n, features)
        mean = x.mean(0)
        wanted = F.one_hot(classes, layer.out_features).double() * 10
        gram = (x - mean).T @ (x - mean)
        ridge = 1e-2 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
        weight = torch.linalg.solve(gram + ridge, (x - mean).T @ (wanted - wanted.mean(0))).T  # (classes, features)
        layer.weight.copy_(weight)
        layer.bias.copy_(wanted.mean(0) - weight @ mean)


@torch.no_grad()
def _give_spectrum(layer: nn.Module) -> None:
    """Let both channel axes of a weight have falling spectra, as trained ones do: a random one has no low rank worth keeping."""
    w = layer.weight
    size = w.norm()
    for axis in (0, 1):
        n = w.shape[axis]
        basis = torch.linalg.qr(torch.randn(n, n))[0]
        mix = basis * torch.linspace(0, 2, n).neg().exp() @ basis.T
        w = torch.tensordot(mix, w, ([1], [axis])).movedim(0, axis)
    layer.weight.copy_(w * size / w.norm())


@cache
def _recipe():
    return load_recipe(str(toolchains.example()))


def _resnet20() -> nn.Module:
    return _recipe().model()
