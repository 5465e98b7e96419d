"""Small networks for the tests of converters, each with a construct that a converter once got wrong."""

import torch
from torch import Tensor, nn

from edgecompress.network.attention import unfuse_attention


class Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, 10, 1, bias=False),  # Tucker-2: 1×1 → 3×3 → 1×1
            nn.Conv2d(10, 12, 3, 1, 1, bias=False),
            nn.Conv2d(12, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.side = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.side(x))


class Residual(nn.Module):
    """Two residual blocks with a Tucker-2 chain, strided factors, BatchNorm and dropout: `(1, 1, 28, 28)` → `(1, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2))
        self.pool, self.dropout, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Linear(32, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):  # as einsum and SVD leave their results: not contiguous
                layer.weight = nn.Parameter(layer.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(torch.flatten(self.pool(self.blocks(self.stem(x))), 1)))


class Heads(nn.Module):
    """Two inputs and two outputs, nothing square, a factor for each pixel: a wrong layout or order cannot give the right numbers.

    `(1, 3, 10, 14)`, `(1, 5)` → map `(1, 4, 5, 7)`, scores `(1, 6)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("where", torch.rand(1, 3, 10, 14))
        self.conv = nn.Conv2d(3, 4, (3, 1), stride=2, padding=(1, 0), dilation=1)
        self.fc = nn.Linear(4 * 5 * 7 + 5, 6)

    def forward(self, image: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        y = nn.functional.hardswish(self.conv(image * self.where))  # (1, 4, 5, 7)
        return torch.sigmoid(y), self.fc(torch.cat([y.flatten(1), extra], 1))


class Pooled(nn.Module):
    """Max-pooling with padding, of values below zero and of none below, over windows that are not square: `(1, 3, 13, 18)` → `(1, 4)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.below, self.above = nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 5), stride=(2, 3), padding=(1, 2))
        self.fc = nn.Linear(6 * 4 * 3, 4)
        nn.init.constant_(self.conv.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.below(self.conv(x))
        return self.fc(self.above(torch.relu(x + 3.0)).flatten(1))


class Alike(nn.Module):
    """A depthwise and an ordinary convolution with the same numbers, as factors of a symmetric kernel: `(1, 1, 8, 8)` → `(1, 16)`."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        self.core = nn.Conv2d(2, 2, 3, groups=2)
        with torch.no_grad():
            self.before.weight.copy_(torch.tensor([0.8, 0.0]).reshape(2, 1, 1, 1))  # which no rounding of weights tells apart
            self.after.weight.copy_(self.before.weight.transpose(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.core(self.before(x))).flatten(1)[:, :16]


class Clamped(nn.Module):
    """ReLU6 over values far beyond 6: a scale that covers them leaves nothing of what passes. `(1, 3, 12, 12)` → `(1, 7)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 7, 1)
        self.relu6 = nn.ReLU6()
        nn.init.normal_(self.first.weight, std=40)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu6(self.depthwise(self.relu6(self.first(x))))).mean((2, 3))


class Sound(nn.Module):
    """A 1-D net: its input has three axes and no image layout. `(1, 3, 40)` → `(1, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 5, stride=2, padding=2)
        self.fc = nn.Linear(6 * 20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Meaned(nn.Module):
    """A mean over rows and columns in place of pooling. `(1, 3, 12, 16)` → `(1, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class Averaged(nn.Module):
    """A quotient whose divisor is 0 for an input of zeros, as in the mean over the words of a sentence. `(1, 12)` → `(1, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / x.abs().sum(1, keepdim=True)


class Flattened(nn.Module):
    """A map that is not square, flattened before a Linear, with an activation between them. `(1, 3, 12, 16)` → `(1, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 10 * 14, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(torch.flatten(self.conv(x), 1)))


class Patches(nn.Module):
    """Patches made into tokens, as vision transformers do. `(1, 3, 12, 16)` → `(1, 12, 6)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(2).transpose(1, 2))


class Attention(nn.Module):
    """Attention under a causal mask, written in one of the ways people write it. `(1, 12, 8)` → `(1, 12, 6)`.

    The mask of "buffer" is a registered one, the others are plain attributes; each reaches a converter as a constant of −∞.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.out = nn.Linear(8, 3 * 16), nn.Linear(16, 6)
        nn.init.normal_(self.qkv.weight, std=0.7)  # scores that matter
        barred = torch.ones(12, 12, dtype=torch.bool).triu(1)
        lowest = torch.finfo(torch.float32).min if kind == "lowest" else -torch.inf
        added = torch.zeros(12, 12).masked_fill(barred, lowest)
        if kind == "buffer":
            self.register_buffer("added", added)
        else:
            self.added = added
        self.barred = barred

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 12, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)  # (n, heads, tokens, 8) each
        if self.kind == "causal":
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.kind == "boolean":
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=~self.barred)
        else:
            scores = q @ k.transpose(-1, -2) / 8**0.5
            scores = scores.masked_fill(self.barred, -torch.inf) if self.kind == "filled" else scores + self.added
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(-1, 12, 16))


class CausalBlock(nn.Module):
    """A pre-norm block of a causal transformer that makes its mask of −∞ as it goes, as most do. `(1, 12, 16)` → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        nn.init.normal_(self.attention.in_proj_weight, std=0.7)  # scores that matter

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=nn.Transformer.generate_square_subsequent_mask(12))[0]
        return x + self.mlp(self.norm2(x))


def causal() -> nn.Module:
    """Return two such blocks: the attention of one as PyTorch computes it, that of the other as it is written to be factorized."""
    return nn.Sequential(CausalBlock(), unfuse_attention(CausalBlock()))


class Branching(nn.Module):
    """A BatchNorm behind a convolution that something else reads too, as in a DenseNet. `(1, 3, 10, 10)` → `(1, 8, 8, 8)`."""

    def __init__(self, *, affine: bool = True) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=affine), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.last(torch.relu(self.norm(x)))


class Forked(nn.Module):
    """A pointwise convolution and a strided one that read the same, as a ResNet's shortcut may. `(1, 8, 12, 12)` → `(1, 9, 6, 6)`."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.core, self.shortcut = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 9, 3, 2, 1), nn.Conv2d(8, 9, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(self.squeeze(x)) + self.shortcut(x)


class Upsampled(nn.Module):
    """Transposed convolutions in groups, one of them depthwise, as bilinear upsampling is written. `(1, 6, 5, 7)` → `(1, 9, 20, 28)`."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1, output_padding=1, groups=3)
        self.last = nn.ConvTranspose2d(9, 9, 2, stride=2, groups=9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.up(x)))


class Median(nn.Module):
    """An op that neither TFLite route has."""

    def forward(self, x: Tensor) -> Tensor:
        return x.median(-1).values


class Spectrum(nn.Module):
    """An op that ONNX has and onnx2tf has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.rfft(x)).flatten(1)


class Placed(nn.Module):
    """An op inside a layer with a name."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.conv, self.middle = nn.Conv2d(3, 4, 3), op

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self.conv(x))


def settled(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Give BatchNorm the statistics of `inputs`."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.3)
    with torch.no_grad():
        model.train()(*inputs)
    return model.eval()
