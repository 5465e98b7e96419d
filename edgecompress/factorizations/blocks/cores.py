"""Split a factorized layer into its core and the outer factors that only mix channels, to factorize the core alone.

If the outer factors are orthonormal, the error of the core is the error of the whole layer, so factorizing the core further factorizes the
layer further, and the dense kernel is never built. After fine-tuning the outer factors are far from orthonormal; without making them so, a
truncated core would not be the best one.
"""

from collections import OrderedDict
from typing import NamedTuple, cast

import torch

from edgecompress.factorizations.blocks.chain import to_dense_layer
from edgecompress.factorizations.blocks.layers import (
    DenseLayer,
    channels_per_group,
    group_count,
    grouped_kernel,
    is_channel_mixing,
    write_kernel,
)
from edgecompress.network.factors import Factors


class CoreSplit(NamedTuple):
    """The layers of a chain in float64, with orthonormal `squeeze` and `expand`; None for one that the chain lacks."""

    squeeze: DenseLayer | None
    core: DenseLayer
    expand: DenseLayer | None


@torch.no_grad()
def split_core(compact: Factors) -> CoreSplit | None:
    """Split a chain at its core, the layer with the geometry; return None for another form, e.g. with two spatial factors."""
    layers = cast("list[DenseLayer]", list(compact))
    at = next((i for i, layer in enumerate(layers) if not is_channel_mixing(layer)), 0)
    before, after = layers[:at], layers[at + 1 :]
    if len(before) > 1 or len(after) > 1 or len({group_count(layer) for layer in layers}) > 1:
        return None
    if any(_added_channels(layer) > 0 for layer in before) or any(
        _added_channels(layer) < 0 or not is_channel_mixing(layer) for layer in after
    ):
        return None
    core, squeeze, expand = _copy_double(layers[at]), *(_copy_double(side[0]) if side else None for side in (before, after))
    if squeeze is not None:
        q, r = torch.linalg.qr(grouped_kernel(squeeze).flatten(2).mT)  # (groups, in, r_in), (groups, r_in, r_in)
        write_kernel(squeeze, q.mT)
        write_kernel(core, torch.einsum("gts...,gus->gtu...", grouped_kernel(core), r))
    if expand is not None:
        q, r = torch.linalg.qr(grouped_kernel(expand).flatten(2))  # (groups, out, r_out), (groups, r_out, r_out)
        write_kernel(expand, q)
        write_kernel(core, torch.einsum("gut,gts...->gus...", r, grouped_kernel(core)))
    return CoreSplit(squeeze, core, expand)


def join_core(outer: CoreSplit, inner: Factors) -> Factors:
    """Return the factors of a core between the outer factors; neighbours that only mix channels are merged."""
    layers = cast("dict[str, DenseLayer]", dict(inner.named_children()))
    first, last = next(iter(layers)), next(reversed(layers))
    if outer.squeeze is not None:
        if is_channel_mixing(layers[first]):
            layers[first] = to_dense_layer(Factors(outer.squeeze, layers[first]))
        else:
            layers = {"squeeze": outer.squeeze, **layers}
    if outer.expand is not None:
        if is_channel_mixing(layers[last]):
            layers[last] = to_dense_layer(Factors(layers[last], outer.expand))
        else:
            layers["expand"] = outer.expand
    return Factors(OrderedDict(layers))


def _added_channels(layer: DenseLayer) -> int:
    """Return by how many channels the output of a group exceeds its input."""
    out, inside = channels_per_group(layer)
    return out - inside


def _copy_double(layer: DenseLayer) -> DenseLayer:
    return to_dense_layer(Factors(layer)).double()
