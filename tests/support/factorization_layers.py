"""The layers on which every factorization must obey every law, among them all awkward ones."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS, Factors, factorize, parse_options


class LayerCase(NamedTuple):
    layer: nn.Module
    x: Tensor
    shape: tuple[int, ...]  # of one input


def zero_first_group(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.weight[: len(layer.weight) // layer.groups] = 0
    return layer


def zero_some_outputs(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.weight[1:3] = 0
    return layer


def set_rank(r: int, layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.out_features, r) @ torch.randn(r, layer.in_features))
    return layer


# Each: a layer and the shape of one input of it.
LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": lambda: (nn.Linear(12, 7), (12,)),
    "linear-no-bias-wide": lambda: (nn.Linear(5, 11, bias=False), (5,)),
    "linear-tokens": lambda: (nn.Linear(8, 6), (3, 8)),
    "linear-one-output": lambda: (nn.Linear(6, 1), (6,)),
    "linear-one-input": lambda: (nn.Linear(1, 6), (1,)),
    "linear-of-rank-2": lambda: (set_rank(2, nn.Linear(8, 6)), (8,)),
    "linear-float64": lambda: (nn.Linear(6, 5, dtype=torch.float64), (6,)),
    "linear-bfloat16": lambda: (nn.Linear(6, 5, dtype=torch.bfloat16), (6,)),
    "1x1": lambda: (nn.Conv2d(4, 10, 1), (4, 5, 5)),
    "1x1-no-bias-stride-2": lambda: (nn.Conv2d(8, 6, 1, stride=2, bias=False), (8, 7, 6)),
    "1x1-padded": lambda: (nn.Conv2d(6, 5, 1, padding=1), (6, 4, 4)),
    "1x1-padded-reflect-stride": lambda: (nn.Conv2d(6, 5, 1, stride=(1, 2), padding=(1, 2), padding_mode="reflect"), (6, 4, 5)),
    "1x1-grouped-stride-2": lambda: (nn.Conv2d(8, 6, 1, groups=2, stride=2), (8, 5, 5)),
    "3x3": lambda: (nn.Conv2d(6, 8, 3, padding=1), (6, 7, 7)),
    "3x3-no-bias-stride-2": lambda: (nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False), (8, 9, 8)),
    "3x3-dilation": lambda: (nn.Conv2d(6, 7, 3, dilation=2, padding=2), (6, 9, 9)),
    "3x3-same-dilation": lambda: (nn.Conv2d(5, 7, 3, padding="same", dilation=(1, 2)), (5, 8, 8)),
    "2x2-same": lambda: (nn.Conv2d(5, 4, 2, padding="same", bias=False), (5, 6, 6)),
    "3x3-valid": lambda: (nn.Conv2d(5, 4, 3, padding="valid"), (5, 6, 6)),
    "3x3-reflect": lambda: (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (6, 7, 7)),
    "3x3-circular": lambda: (nn.Conv2d(6, 8, 3, padding=(2, 1), padding_mode="circular", bias=False), (6, 7, 7)),
    "3x5-stride-dilation-replicate": lambda: (
        nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(2, 3), dilation=(2, 1), padding_mode="replicate", bias=False),
        (6, 11, 12),
    ),
    "1x3-stride": lambda: (nn.Conv2d(6, 8, (1, 3), stride=(2, 3), padding=(0, 1)), (6, 5, 7)),
    "3x3-one-input": lambda: (nn.Conv2d(1, 12, 3), (1, 8, 8)),
    "3x3-one-output": lambda: (nn.Conv2d(7, 1, 3), (7, 6, 6)),
    "2x2-in-above-out-times-area": lambda: (nn.Conv2d(12, 2, 2), (12, 5, 5)),
    "3x3-float64": lambda: (nn.Conv2d(5, 6, 3, dtype=torch.float64), (5, 6, 6)),
    "3x3-bfloat16": lambda: (nn.Conv2d(5, 6, 3, dtype=torch.bfloat16), (5, 6, 6)),
    "3x3-dead-outputs": lambda: (zero_some_outputs(nn.Conv2d(6, 8, 3)), (6, 6, 6)),
    "3x3-channels-last": lambda: (nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last), (6, 6, 6)),
    "depthwise": lambda: (nn.Conv2d(6, 6, 3, groups=6, stride=2, padding=1), (6, 7, 7)),
    "depthwise-multiplied": lambda: (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 6, 6)),
    "grouped": lambda: (nn.Conv2d(6, 8, 3, groups=2, dilation=(1, 2), padding=(1, 2)), (6, 7, 7)),
    "grouped-dead": lambda: (zero_first_group(nn.Conv2d(6, 8, (3, 2), groups=2, stride=2)), (6, 7, 7)),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, stride=2, padding=2), (4, 9)),
    "conv1d-grouped-circular": lambda: (nn.Conv1d(6, 4, 5, groups=2, padding=2, padding_mode="circular", bias=False), (6, 9)),
    "conv1d-of-1": lambda: (nn.Conv1d(6, 5, 1, stride=3), (6, 8)),
    "conv3d": lambda: (nn.Conv3d(3, 4, (2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)), (3, 4, 7, 5)),
    "conv3d-grouped": lambda: (nn.Conv3d(4, 6, (1, 2, 2), groups=2, bias=False), (4, 3, 4, 4)),
    "conv3d-of-1": lambda: (nn.Conv3d(4, 5, 1, stride=2), (4, 4, 4, 4)),
    "transposed1d": lambda: (nn.ConvTranspose1d(4, 6, 3, stride=3, output_padding=2, padding=1), (4, 6)),
    "transposed2d": lambda: (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2, bias=False),
        (4, 5, 6),
    ),
    "transposed2d-asymmetric": lambda: (nn.ConvTranspose2d(5, 4, (2, 3), stride=(2, 1), output_padding=(1, 0)), (5, 4, 4)),
    "transposed2d-of-1": lambda: (nn.ConvTranspose2d(6, 8, 1, stride=2, output_padding=1, groups=2), (6, 3, 4)),
    "transposed3d": lambda: (nn.ConvTranspose3d(3, 4, 2, stride=(2, 1, 1), output_padding=(1, 0, 0)), (3, 3, 3, 3)),
}

# Most laws hold after any number of sweeps, so iterative methods stop early; error bounds are tested with the default options.
FEW_SWEEPS = {"starts": 1, "sweeps": 10}

ONE_OF_EACH_KIND = ("linear-tokens", "1x1-no-bias-stride-2", "3x3-no-bias-stride-2", "grouped", "conv1d", "conv3d", "transposed2d")


def build_case(name: str) -> LayerCase:
    """Return the layer of that name in evaluation mode, and inputs for it; the same values in every call."""
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    return LayerCase(layer.eval(), torch.randn(3, *shape, dtype=layer.weight.dtype), shape)


def max_rank_of(method: str, layer: nn.Module, **options: object) -> tuple[int, ...]:
    """Return the maximal rank of a method for a layer."""
    return METHODS[method].max_rank(layer, parse_options(method, options))


def half_rank(limit: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(1, n // 2) for n in limit)


@functools.cache
def accepts(method: str, name: str) -> bool:
    """Return whether the method accepts the layer with its default options."""
    layer = build_case(name).layer
    try:
        return METHODS[method].reject(layer) is None and bool(max_rank_of(method, layer))
    except ConfigError:  # a default option does not fit it, e.g. two slices of five channels
        return False


def is_quick(method: str, name: str) -> bool:
    """Return whether the quick tests include this pair: a layer of each kind under every method, each other layer under one."""
    takers = [m for m in METHODS if accepts(m, name)]
    return name in ONE_OF_EACH_KIND or method == takers[list(LAYERS).index(name) % len(takers)]


def factorize_anew(method: str, layer: nn.Module, *, full: bool = False, fit: bool = True) -> Factors:
    """Return the factors at half of the maximal rank, or at that rank if `full`; iterative methods make a few sweeps."""
    options = {key: value for key, value in FEW_SWEEPS.items() if key in METHODS[method].Options.__struct_fields__}
    limit = max_rank_of(method, layer)
    return factorize(layer, method, limit if full else half_rank(limit), options=options, fit=fit)


@functools.cache
def factorize_case(method: str, name: str, *, full: bool = False) -> Factors:
    """Return the factors at half of the maximal rank, or at that rank if `full`; tests share them and must not change them."""
    return factorize_anew(method, build_case(name).layer, full=full)


def error_of(method: str, weight: Tensor, compact: Factors) -> float:
    """Return ‖W − Ŵ‖ / ‖W‖."""
    w = weight.detach().double()
    return float((METHODS[method].reconstruct(compact).detach() - w).norm() / w.norm())
