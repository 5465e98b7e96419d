"""Attention masks of −∞ as masks of a finite number that softmax cannot tell from it.

Quantizers take a tensor's scale from its least and greatest value. An infinite one makes a scale of infinity: the file computes noise, or
its runtime dies by a signal when it loads it; one of −3·10³⁸ leaves nothing of the scores it is added to. How far below the others a barred
score must lie is known: in float32 e^−104 is 0, and an integer softmax rounds to 0 what is below half its step.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from converters.shared.constant_folding import add_constant, fold_constants
from edgecompress.network.constants import get_constant
from edgecompress.network.exported import example_inputs
from edgecompress.network.subgraph import SOFTMAX_OPS, graph_of
from edgecompress.quantization.fake_quantize import MASKED_SCORE

aten = torch.ops.aten

ATTENTION: Final = aten.scaled_dot_product_attention.default
PRODUCT: Final = aten.baddbmm.default  # mask + queries · keys, as nn.MultiheadAttention computes scores
FLOAT_BAR: Final = 3e4  # fits a float16, and e^−30000 is 0 for any scores a network has
INTEGER_MARGIN: Final = 12.0  # e^−12 is less than half a step of an int16 softmax, 2^−16


class _Mask(NamedTuple):
    """Scores that `node` bars from a softmax over the last axis: where, and what the mask adds to the others."""

    node: fx.Node
    barred: Tensor
    added: Tensor


def with_finite_masks(program: ExportedProgram, samples: Sequence[tuple[Tensor, ...]]) -> ExportedProgram:
    """Return the program with its constant masks finite, itself where it has none; see `make_masks_finite`."""
    graph = graph_of(program)
    fold_constants(graph)
    if not make_masks_finite(graph, samples):
        return program
    with torch.no_grad():
        return torch.export.export(graph, example_inputs(program), strict=False)


def make_masks_finite(graph: fx.GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> int:
    """Make constant masks that end in a softmax finite, in place, and return how many; the outputs stay what they are.

    Args:
        samples: Calibration inputs where scores are stored as integers: the bar is as low as the scores on them need and no lower, so that
            the step of the integers stays small. () where they are floats.
    """
    masks = [mask for node in graph.graph.nodes if (mask := _mask(graph, node)) is not None and not bool(mask.barred.all(-1).any())]
    if not masks:
        return 0
    bars = {mask.node: FLOAT_BAR for mask in masks}
    if samples:
        observer = _Scores(graph, masks)
        with torch.no_grad():
            for sample in samples:
                observer.run(*sample)
        bars = {node: excess + INTEGER_MARGIN for node, excess in observer.excess.items()}
    for number, mask in enumerate(masks):
        _apply(graph, mask, torch.where(mask.barred, -bars[mask.node], mask.added), f"mask_{number}")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return len(masks)


def _mask(graph: fx.GraphModule, node: fx.Node) -> _Mask | None:
    """Return the constant mask that `node`, an attention or a softmax's argument, applies; None where there is none."""
    if node.target is ATTENTION:
        return _attention_mask(graph, node)
    reader = next(iter(node.users), None)
    if reader is None or len(node.users) != 1 or reader.target not in SOFTMAX_OPS or node.kwargs:
        return None
    last = node.meta["val"].ndim - 1
    if reader.args[1] % (last + 1) != last:
        return None
    if node.target in (aten.add.Tensor, PRODUCT):
        terms = node.args[:1] if node.target is PRODUCT else node.args
        return _added(node, next((v for v in (_value(graph, a) for a in terms) if v is not None), None))
    if node.target is aten.masked_fill.Scalar and node.args[2] <= MASKED_SCORE:
        return _barred(node, _value(graph, node.args[1]))
    return None


def _attention_mask(graph: fx.GraphModule, node: fx.Node) -> _Mask | None:
    queries, keys = node.args[:2]
    if _argument(node, 5, False):  # is_causal
        return _barred(node, torch.ones(queries.meta["val"].shape[-2], keys.meta["val"].shape[-2], dtype=torch.bool).triu(1))
    value = _value(graph, _argument(node, 3, None))
    return _barred(node, ~value) if value is not None and value.dtype is torch.bool else _added(node, value)


def _argument(node: fx.Node, index: int, default: Any) -> Any:
    name = node.target._schema.arguments[index].name
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _value(graph: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return get_constant(graph, str(node.target))


def _barred(node: fx.Node, barred: Tensor | None) -> _Mask | None:
    return None if barred is None else _Mask(node, barred, torch.zeros(()))


def _added(node: fx.Node, added: Tensor | None) -> _Mask | None:
    if added is None or not bool((added <= MASKED_SCORE).any()):
        return None
    return _Mask(node, added <= MASKED_SCORE, added.masked_fill(added <= MASKED_SCORE, 0.0))


def _apply(graph: fx.GraphModule, mask: _Mask, value: Tensor, name: str) -> None:
    node = mask.node
    with graph.graph.inserting_before(node):
        constant = add_constant(graph, name, value)
    if node.target is ATTENTION:
        node.args = (*node.args[:3], constant)
        node.kwargs = {key: v for key, v in node.kwargs.items() if key in ("scale", "enable_gqa")}
        return
    if node.target is PRODUCT:
        node.args = (constant, *node.args[1:])
        return
    scores = next(a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr")
    node.target, node.args = aten.add.Tensor, (scores, constant)


class _Scores(fx.Interpreter):
    """Runs the graph and keeps, for each mask, by how much a barred score exceeds the greatest that is not, at most and at least 0."""

    def __init__(self, graph: fx.GraphModule, masks: list[_Mask]) -> None:
        super().__init__(graph)
        self.masks = {mask.node: mask for mask in masks}
        self.excess = dict.fromkeys(self.masks, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        if mask := self.masks.get(n):
            scores = self._scores(n) + mask.added
            barred = mask.barred.expand_as(scores)
            greatest = scores.masked_fill(barred, -math.inf).amax(-1, keepdim=True)
            excess = (scores - greatest)[barred]
            self.excess[n] = max(self.excess[n], float(excess.max()))
        return super().run_node(n)

    def _scores(self, node: fx.Node) -> Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.target is ATTENTION:
            queries, keys = args[:2]
            scores: Tensor = queries @ keys.transpose(-2, -1) * (kwargs.get("scale") or queries.shape[-1] ** -0.5)
        elif node.target is PRODUCT:
            scores = args[1] @ args[2]
        else:
            scores = next(value for a, value in zip(node.args, args, strict=True) if isinstance(a, fx.Node) and a.op != "get_attr")
        return scores
