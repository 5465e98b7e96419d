"""Replace the padding of max-pooling by an explicit padding with a finite number.

Max-pooling pads with −∞. In TFLite that is an op of its own. XNNPACK takes paddings with zeros only, so the op splits the delegated graph.
TensorFlow's converter makes a scale of 10³⁶ for it, which the runtime refuses.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx

aten = torch.ops.aten

CLAMPS: Final = {aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default}
NEVER_NEGATIVE: Final = {aten.relu.default, aten.relu_.default, aten.relu6.default, aten.hardsigmoid.default, aten.sigmoid.default}


def pad_explicitly(graph: fx.GraphModule, samples: Sequence[tuple[Tensor, ...]]) -> None:
    """Pad before each padded max-pooling, in place, without changing the outputs.

    The number is 0 where no value is negative, and else the smallest value on the samples, below which integers hold none. Without samples
    such a pooling stays unchanged.

    Args:
        samples: Calibration inputs where activations are integers; () where they are floats.
    """
    pools = {node: _arguments_of(node) for node in graph.graph.find_nodes(op="call_function", target=aten.max_pool2d.default)}
    pools = {node: given for node, given in pools.items() if any(given["padding"]) and not given["ceil_mode"]}
    numbers = {node: 0.0 for node, given in pools.items() if _is_never_negative(given["self"])}
    if samples and len(numbers) < len(pools):
        numbers = _observe_minima(graph, [node for node in pools if node not in numbers], samples) | numbers
    for node, number in numbers.items():
        given = pools[node]
        rows, columns = _as_pair(given["padding"])
        with graph.graph.inserting_before(node):
            padded = graph.graph.call_function(aten.pad.default, (given["self"], [columns, columns, rows, rows], "constant", number))
        # In torch an empty list means "stride = kernel size".
        node.args = (padded, given["kernel_size"], given["stride"] or given["kernel_size"], [0, 0], given["dilation"])
        node.kwargs = {}


def _arguments_of(node: fx.Node) -> dict[str, Any]:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | given | dict(node.kwargs)


def _as_pair(sizes: Sequence[int]) -> tuple[int, int]:
    return (sizes[0], sizes[-1])


def _is_never_negative(x: fx.Node) -> bool:
    if x.target in CLAMPS:
        return len(x.args) > 1 and x.args[1] is not None and x.args[1] >= 0  # type: ignore[operator]
    return x.target in NEVER_NEGATIVE


def _observe_minima(graph: fx.GraphModule, pools: Sequence[fx.Node], samples: Sequence[tuple[Tensor, ...]]) -> dict[fx.Node, float]:
    """Return the smallest value that each pooling reads, over all samples."""
    found = dict.fromkeys(pools, torch.inf)

    class Reads(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in found:
                (x, *_), _ = self.fetch_args_kwargs_from_env(n)
                found[n] = min(found[n], float(x.min()))
            return super().run_node(n)

    observer = Reads(graph)
    with torch.no_grad():
        for sample in samples:
            observer.run(*sample)
    return found
