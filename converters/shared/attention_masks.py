"""Replace −∞ in attention masks by a finite number that gives the same result after softmax.

Quantizers take a tensor's scale from its smallest and largest value. An infinite value makes the scale infinite: the file then computes
noise, or its runtime dies by a signal when it loads the file. A value of −3·10³⁸ leaves nothing of the scores that it is added to. A finite
number suffices, because in float32 e^−104 is 0, and an integer softmax rounds values below half its step to 0.
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
FLOAT_MASK: Final = 3e4  # −30000 fits a float16, and e^−30000 is 0 beside any scores of a network
INTEGER_MARGIN: Final = 12.0  # e^−12 is less than half a step of an int16 softmax, 2^−16


class _Mask(NamedTuple):
    """A mask on the scores of `node` before a softmax over the last axis: the masked positions, and the values added to all others."""

    node: fx.Node
    masked: Tensor
    added: Tensor


def export_with_finite_masks(program: ExportedProgram, samples: Sequence[tuple[Tensor, ...]]) -> ExportedProgram:
    """Return the program with its constant masks finite, or the program itself where it has none; see `make_masks_finite`."""
    graph = graph_of(program)
    fold_constants(graph)
    if not make_masks_finite(graph, samples):
        return program
    with torch.no_grad():
        return torch.export.export(graph, example_inputs(program), strict=False)


def make_masks_finite(graph: fx.GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> int:
    """Make constant masks before a softmax finite, in place, without changing the outputs; return the number of masks.

    Args:
        samples: Calibration inputs where scores are integers: masked scores then lie only as low as these inputs need, so that the step of
            the integers stays small. () where scores are floats.
    """
    masks = [mask for node in graph.graph.nodes if (mask := _find_mask(graph, node)) is not None and not bool(mask.masked.all(-1).any())]
    if not masks:
        return 0
    mask_values = {mask.node: FLOAT_MASK for mask in masks}
    if samples:
        observer = _ScoreObserver(graph, masks)
        with torch.no_grad():
            for sample in samples:
                observer.run(*sample)
        mask_values = {node: excess + INTEGER_MARGIN for node, excess in observer.excess.items()}
    for number, mask in enumerate(masks):
        _replace_mask(graph, mask, torch.where(mask.masked, -mask_values[mask.node], mask.added), f"mask_{number}")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return len(masks)


def _find_mask(graph: fx.GraphModule, node: fx.Node) -> _Mask | None:
    """Return the constant mask of `node`, an attention or the input of a softmax; None without one."""
    if node.target is ATTENTION:
        return _find_attention_mask(graph, node)
    reader = next(iter(node.users), None)
    if reader is None or len(node.users) != 1 or reader.target not in SOFTMAX_OPS or node.kwargs:
        return None
    last = node.meta["val"].ndim - 1
    if reader.args[1] % (last + 1) != last:
        return None
    if node.target in (aten.add.Tensor, PRODUCT):
        terms = node.args[:1] if node.target is PRODUCT else node.args
        return _make_additive_mask(node, next((v for v in (_constant_value(graph, a) for a in terms) if v is not None), None))
    if node.target is aten.masked_fill.Scalar and node.args[2] <= MASKED_SCORE:
        return _make_boolean_mask(node, _constant_value(graph, node.args[1]))
    return None


def _find_attention_mask(graph: fx.GraphModule, node: fx.Node) -> _Mask | None:
    queries, keys = node.args[:2]
    if _argument_of(node, 5, False):  # is_causal
        return _make_boolean_mask(node, torch.ones(queries.meta["val"].shape[-2], keys.meta["val"].shape[-2], dtype=torch.bool).triu(1))
    value = _constant_value(graph, _argument_of(node, 3, None))
    return _make_boolean_mask(node, ~value) if value is not None and value.dtype is torch.bool else _make_additive_mask(node, value)


def _argument_of(node: fx.Node, index: int, default: Any) -> Any:
    name = node.target._schema.arguments[index].name
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _constant_value(graph: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return get_constant(graph, str(node.target))


def _make_boolean_mask(node: fx.Node, masked: Tensor | None) -> _Mask | None:
    return None if masked is None else _Mask(node, masked, torch.zeros(()))


def _make_additive_mask(node: fx.Node, added: Tensor | None) -> _Mask | None:
    if added is None or not bool((added <= MASKED_SCORE).any()):
        return None
    return _Mask(node, added <= MASKED_SCORE, added.masked_fill(added <= MASKED_SCORE, 0.0))


def _replace_mask(graph: fx.GraphModule, mask: _Mask, value: Tensor, name: str) -> None:
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


class _ScoreObserver(fx.Interpreter):
    """Runs the graph, and records for each mask by how much a masked score exceeds the largest unmasked one, at least 0."""

    def __init__(self, graph: fx.GraphModule, masks: list[_Mask]) -> None:
        super().__init__(graph)
        self.masks = {mask.node: mask for mask in masks}
        self.excess = dict.fromkeys(self.masks, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        if mask := self.masks.get(n):
            scores = self._compute_scores(n) + mask.added
            masked = mask.masked.expand_as(scores)
            greatest = scores.masked_fill(masked, -math.inf).amax(-1, keepdim=True)
            excess = (scores - greatest)[masked]
            self.excess[n] = max(self.excess[n], float(excess.max()))
        return super().run_node(n)

    def _compute_scores(self, node: fx.Node) -> Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.target is ATTENTION:
            queries, keys = args[:2]
            scores: Tensor = queries @ keys.transpose(-2, -1) * (kwargs.get("scale") or queries.shape[-1] ** -0.5)
        elif node.target is PRODUCT:
            scores = args[1] @ args[2]
        else:
            scores = next(value for a, value in zip(node.args, args, strict=True) if isinstance(a, fx.Node) and a.op != "get_attr")
        return scores
