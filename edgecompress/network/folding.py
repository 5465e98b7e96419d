"""Fold BatchNorms into the layers before them, on an exported graph, whose edges show which layer feeds which.

References:
    B. Jacob et al. Quantization and training of neural networks for efficient integer-arithmetic-only inference. CVPR 2018, section 3.2.
"""

import itertools
from typing import Any, cast

import torch
from torch import Tensor, fx

from edgecompress.network.constants import get_constant
from edgecompress.network.layer_kinds import CONVOLUTION_OPS, LINEAR_OPS, TRANSPOSED_OPS, groups_of

aten = torch.ops.aten


def fold_batch_norm(graph: fx.GraphModule) -> None:
    """Multiply each BatchNorm into the convolution or linear layer before it, if nothing else reads that layer's output.

    The products are computed in float64, because (x − mean) / sqrt(var + eps) loses digits where the variance is small.
    """
    folded: dict[tuple[Any, ...], tuple[str, str]] = {}
    for node in list(graph.graph.nodes):
        layer = node.args[0] if node.target is aten.batch_norm.default else None
        if layer is None or not _can_fold(node, layer):
            continue
        key = (*(_argument_name(layer, i) for i in (1, 2)), *(_argument_name(node, i) for i in range(1, 5)), layer.target, node.args[7])
        if key not in folded:  # a layer that is called twice stays one layer
            folded[key] = _register_folded_constants(graph, layer, node)
        weight, bias = folded[key]
        with graph.graph.inserting_before(layer):
            args = list(layer.args) + [None] * (3 - len(layer.args))
            args[1:3] = graph.graph.get_attr(weight), graph.graph.get_attr(bias)
        layer.args, layer.kwargs = tuple(args), {}
        node.replace_all_uses_with(layer)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    remove_unused_constants(graph)


def _can_fold(norm: fx.Node, layer: fx.Node) -> bool:
    if norm.args[5] or norm.args[3] is None or len(layer.users) != 1 or layer.kwargs:
        return False  # the BatchNorm normalises by the batch, or something else reads the layer's output
    if any(isinstance(a, fx.Node) and a.op != "get_attr" for a in layer.args[1:3]):
        return False  # a computed weight
    if layer.target in LINEAR_OPS:
        return bool(layer.meta["val"].ndim == 2)  # in 3-D, BatchNorm's channel axis is not the layer's
    return bool(layer.target in CONVOLUTION_OPS | TRANSPOSED_OPS)


def _register_folded_constants(graph: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> tuple[str, str]:
    """Register the folded weight and bias beside the layer's own, so that their names still show the layer; return the names."""
    weight, bias = _argument_value(graph, layer, 1), _argument_value(graph, layer, 2)
    assert weight is not None
    scale, shift = scale_and_shift(graph, norm)
    if bias is not None:
        shift = shift + bias.double() * scale
    path = str(_argument_name(layer, 1)).rpartition(".")[0]
    owner = graph.get_submodule(path)
    number = next(n for n in itertools.count() if not hasattr(owner, f"folded_{n}_weight"))  # one layer may stand before several norms
    values = {"weight": _scale_outputs(layer, weight.double(), scale), "bias": shift}
    for kind, value in values.items():
        owner.register_buffer(f"folded_{number}_{kind}", value.to(weight.dtype))
    prefix = f"{path}." if path else ""
    return f"{prefix}folded_{number}_weight", f"{prefix}folded_{number}_bias"


def scale_and_shift(graph: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset that a BatchNorm in eval mode applies to its input, in float64, each `(channels,)`."""
    gamma, beta, mean, var = (_argument_value(graph, norm, i) for i in range(1, 5))
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var.double() + cast("float", norm.args[7]))
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    return scale, shift if beta is None else shift + beta.double()


def _scale_outputs(layer: fx.Node, weight: Tensor, scale: Tensor) -> Tensor:
    if layer.target not in TRANSPOSED_OPS:
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = groups_of(layer)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, in / groups, out / groups, kh, kw)
    return (grouped * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _argument_name(node: fx.Node, index: int) -> str | None:
    argument = node.args[index] if len(node.args) > index else None
    return str(argument.target) if isinstance(argument, fx.Node) else None


def _argument_value(graph: fx.GraphModule, node: fx.Node, index: int) -> Tensor | None:
    target = _argument_name(node, index)
    return None if target is None else get_constant(graph, target)


def remove_unused_constants(graph: fx.GraphModule) -> None:
    """Remove parameters and buffers that no node reads; an export would keep them."""
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for key in [key for key, _ in itertools.chain(graph.named_parameters(), graph.named_buffers()) if key not in used]:
        owner, _, leaf = key.rpartition(".")
        delattr(graph.get_submodule(owner), leaf)
