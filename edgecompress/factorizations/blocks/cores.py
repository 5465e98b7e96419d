"""The small layer inside an already decomposed one: a core between factors that only mix channels.

With those made orthonormal the error of the core is the error of the whole, so re-decomposing the core re-decomposes the layer, and the
dense kernel is never built. Fine-tuning leaves them far from orthonormal: cutting the core down as it is would not be the best one can do.
"""

from collections import OrderedDict
from typing import NamedTuple, cast

import torch

from edgecompress.factorizations.blocks.chain import dense
from edgecompress.factorizations.blocks.layers import Layer, channels, fill, groups_of, kernel, only_mixes
from edgecompress.network.factors import Factors


class Cored(NamedTuple):
    """Layers in float64 that equal a chain; `squeeze` and `expand` are orthonormal, None where the chain has none."""

    squeeze: Layer | None
    core: Layer
    expand: Layer | None


@torch.no_grad()
def cored(compact: Factors) -> Cored | None:
    """Split a chain at its core, the layer with the geometry; None if it has another form, e.g. two spatial factors."""
    layers = cast("list[Layer]", list(compact))
    at = next((i for i, layer in enumerate(layers) if not only_mixes(layer)), 0)
    before, after = layers[:at], layers[at + 1 :]
    if len(before) > 1 or len(after) > 1 or len({groups_of(layer) for layer in layers}) > 1:
        return None
    if any(_rise(layer) > 0 for layer in before) or any(_rise(layer) < 0 or not only_mixes(layer) for layer in after):
        return None
    core, squeeze, expand = _copy(layers[at]), *(_copy(side[0]) if side else None for side in (before, after))
    if squeeze is not None:
        q, r = torch.linalg.qr(kernel(squeeze).flatten(2).mT)  # (groups, in, r_in), (groups, r_in, r_in)
        fill(squeeze, q.mT)
        fill(core, torch.einsum("gts...,gus->gtu...", kernel(core), r))
    if expand is not None:
        q, r = torch.linalg.qr(kernel(expand).flatten(2))  # (groups, out, r_out), (groups, r_out, r_out)
        fill(expand, q)
        fill(core, torch.einsum("gut,gts...->gus...", r, kernel(core)))
    return Cored(squeeze, core, expand)


def around(outer: Cored, inner: Factors) -> Factors:
    """Put the factors of a core between the outer ones; neighbours that only mix channels become one."""
    layers = cast("dict[str, Layer]", dict(inner.named_children()))
    first, last = next(iter(layers)), next(reversed(layers))
    if outer.squeeze is not None:
        if only_mixes(layers[first]):
            layers[first] = dense(Factors(outer.squeeze, layers[first]))
        else:
            layers = {"squeeze": outer.squeeze, **layers}
    if outer.expand is not None:
        if only_mixes(layers[last]):
            layers[last] = dense(Factors(layers[last], outer.expand))
        else:
            layers["expand"] = outer.expand
    return Factors(OrderedDict(layers))


def _rise(layer: Layer) -> int:
    """How many more channels a group has after `layer` than before."""
    out, inside = channels(layer)
    return out - inside


def _copy(layer: Layer) -> Layer:
    return dense(Factors(layer)).double()
