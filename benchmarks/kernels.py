"""Generate kernels with the spectra of trained layers, and the layers of ResNet-18 that they belong to.

In every mode of a generated kernel the singular values fall as i^-0.4, which leaves Tucker-2 at a quarter of the ranks, and CP at half the
parameters, with errors like those on the last layers of this repository's ResNet-20. Its mean square is 1: musco searches the variance
of the noise with an absolute tolerance and misses it on the scale of ordinary weights. Kernels of a checkpoint are scaled alike.
"""

import zlib
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

DECAY: Final = 0.4  # the exponent by which singular values fall; see above


def trained_like(*shape: int) -> Tensor:
    """Return a float32 kernel of a shape, the same in every process."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(shape).encode()))
    k = torch.randn(shape, generator=generator)
    for axis, n in enumerate(shape):
        rotation = torch.linalg.qr(torch.randn(n, n, generator=generator))[0]
        k = torch.tensordot(rotation * torch.arange(1, n + 1) ** -DECAY, k, ([1], [axis])).movedim(0, axis)
    return scale_to_unit_variance(k)


def scale_to_unit_variance(k: Tensor) -> Tensor:
    return (k / k.square().mean().sqrt()).contiguous()


class Kernels:
    """Kernels by shape: the first one of a checkpoint with that shape, or a generated one."""

    def __init__(self, weights: Path | None = None) -> None:
        self._known: dict[tuple[int, ...], Tensor] = {}
        for value in load_file(weights).values() if weights else ():
            if value.ndim > 1:
                self._known.setdefault(tuple(value.shape), scale_to_unit_variance(value.float()))

    def __call__(self, *shape: int) -> Tensor:
        if shape not in self._known:
            self._known[shape] = trained_like(*shape)
        return self._known[shape]


def resnet18(width: int = 64) -> list[nn.Module]:
    """Return the layers of ResNet-18 that have weights, on the meta device; the first layer has `width` output channels."""
    w = [width * 2**stage for stage in range(4)]
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)]
        for before, n in zip([width, *w], w, strict=False):
            stride = 1 if before == n else 2
            layers += [nn.Conv2d(before, n, 3, stride=stride, padding=1, bias=False)]
            layers += [nn.Conv2d(n, n, 3, padding=1, bias=False) for _ in range(3)]
            if stride == 2:
                layers += [nn.Conv2d(before, n, 1, stride=2, bias=False)]
        return [*layers, nn.Linear(w[-1], 1000)]


def shapes_3x3(width: int = 64) -> list[tuple[int, ...]]:
    """Return the distinct shapes of the 3×3 kernels of ResNet-18."""
    return list(dict.fromkeys(tuple(layer.weight.shape) for layer in resnet18(width) if layer.weight.shape[2:] == (3, 3)))
