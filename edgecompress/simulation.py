"""What a quantization scheme alone does to a network: the exported program in PyTorch with its weights and activations on their grids.

An artifact that departs from the model as far as this simulation does suffers from its scheme; one that departs from the simulation suffers
from its converter. The grids are those of TFLite's int8 specification [JACO18], which ONNX, FX and PT2E share but for details: weights
symmetric, one scale for each output channel; activations asymmetric, one scale for a tensor, from the least and greatest value seen on
calibration data. What the formats do differently (how integers are rounded in between, histograms in place of extremes) leaves a
difference far below that of the scheme itself.

References:
    [JACO18] B. Jacob et al. Quantization and training of neural networks for efficient integer-arithmetic-only inference. CVPR 2018.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree

from edgecompress.cutting import graph_of, is_fused, is_values, scopes
from edgecompress.graphs import get_constant, set_constant
from edgecompress.records import QuantSpec
from edgecompress.rounding import round_weights

aten = torch.ops.aten

CHUNK: Final = 16  # samples that are run at once
RANGE_SAMPLES: Final = 256  # from which activation ranges are taken; a simulation need not see the last outlier
ROUNDING_SAMPLES: Final = 192  # as to_tflite.py
ROUNDED: Final = {"tflite"}  # formats whose int8 weights edgecompress.rounding has put on the grid


class Rule(NamedTuple):
    """What a scheme does. 0 bits: nothing."""

    weight_bits: int = 0
    activations: Literal["", "dynamic", "static"] = ""
    activation_bits: int = 8
    half: bool = False


RULES: Final[dict[str, Rule]] = {
    "fp32": Rule(),
    "fp16": Rule(half=True),
    "int8-dynamic": Rule(8, "dynamic"),
    "int8-static": Rule(8, "static"),
    "int16x8": Rule(8, "static", 16),
    "int4-weights": Rule(4),
}
FORWARD: Final = {
    aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED: Final = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
GROUPS: Final = 6  # place of `groups` among the arguments of a transposed convolution
# They move values and make none: the output has the input's scale.
MOVES: Final = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.squeeze.dim,
    aten.unsqueeze.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.slice.Tensor, aten.select.int, aten.expand.default,
    aten.contiguous.default, aten.clone.default,
}  # fmt: skip
# Formats that have dynamic kernels for some layers alone.
DYNAMIC: Final = {"torchscript": {aten.linear.default}}


def can_simulate(quant: QuantSpec) -> bool:
    """Whether there is something to simulate, and a rule for all of it."""
    schemes = {quant.scheme, *quant.layers.values()}
    return schemes <= RULES.keys() and schemes != {"fp32"}


class Simulation:
    """A program under a scheme.

    Args:
        program: Static, batch 1, as `to_program` makes it; stays as it is.
        quant: The scheme, and other schemes of some layers by qualified name of their modules.
        calibration: `(n, …)` of each input; () where no scheme needs it.
        format: What artifacts do differently.
    """

    def __init__(self, program: ExportedProgram, quant: QuantSpec, calibration: Sequence[Tensor] = (), *, format: str) -> None:  # noqa: A002
        n = len(calibration[0]) if calibration else 0
        if format in ROUNDED and n and RULES[quant.scheme].weight_bits == 8:
            samples = [tuple(x[i : i + 1] for x in calibration) for i in range(min(n, ROUNDING_SAMPLES))]
            program = round_weights(program, samples)
        self.graph = graph_of(program)
        self.float_graph = graph_of(program)
        dynamic = DYNAMIC.get(format, FORWARD | TRANSPOSED)
        self.rules = {node: _rule_of(node, quant, dynamic) for node in self.graph.graph.nodes if node.op == "call_function"}
        self.ranges: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            self._quantize_constants()
            observed = self._observed()
            if observed and n:
                self.ranges = _ranges(self.float_graph, observed, [x[:RANGE_SAMPLES] for x in calibration])

    def run(self, batch: Sequence[Tensor], nodes: Sequence[str] = ()) -> tuple[Tensor, ...]:
        """Return what the program gives for each sample, `(n, …)` each, or with `nodes` what these nodes do."""
        return run_at(self.graph, batch, nodes, lambda: _Quantizing(self.graph, self.rules, self.ranges))

    def _quantize_constants(self) -> None:
        """Put the constants on the grids of the layers that read them, in place."""
        weights: dict[str, tuple[fx.Node, Rule]] = {}
        for node, rule in self.rules.items():
            if node.target in FORWARD | TRANSPOSED and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
                weights.setdefault(str(node.args[1].target), (node, rule))
        for node in [n for n in self.graph.graph.nodes if n.op == "get_attr"]:
            value = get_constant(self.graph, str(node.target))
            rule = max((self.rules[user] for user in node.users if user in self.rules), default=Rule())
            if not value.is_floating_point():
                continue
            if rule.half:
                set_constant(self.graph, str(node.target), value.half().float())
            elif str(node.target) in weights and (layer := weights[str(node.target)])[1].weight_bits:
                set_constant(self.graph, str(node.target), symmetric(value, _channel_peak(value, layer[0]), layer[1].weight_bits))

    def _observed(self) -> set[str]:
        """Return the nodes whose values are put on a grid that calibration data gives."""
        found = set()
        for node in self.graph.graph.nodes:
            readers = [self.rules[user] for user in node.users if user in self.rules]
            if node.op == "placeholder":
                wanted = any(rule.activations == "static" for rule in readers)
            else:
                rule = self.rules.get(node, Rule())
                wanted = rule.activations == "static" and node.target not in MOVES and not any(is_fused(user) for user in node.users)
            if wanted and is_values(node):
                found.add(node.name)
        return found


def run_at(graph: fx.GraphModule, batch: Sequence[Tensor], nodes: Sequence[str] = (), make: Any = None) -> tuple[Tensor, ...]:
    """Return for each sample of `batch` what the graph gives, or what `nodes` of it do, `(n, …)` each, many samples at once.

    A node whose first axis is not the batch gives one row a sample, as `cutting.cut` makes it.
    """
    names = {node.name: node for node in graph.graph.nodes}

    def one(*inputs: Tensor) -> tuple[Tensor, ...]:
        interpreter = _Keeping(graph, set(nodes)) if make is None else make()
        interpreter.wanted = set(nodes)
        given = interpreter.run(*inputs)
        found = [interpreter.kept[name] for name in nodes] if nodes else list(given) if isinstance(given, tuple | list) else [given]
        return tuple(y[0] if y.ndim and len(y) == 1 else y.reshape(-1) for y in found)

    assert all(name in names for name in nodes)
    with torch.no_grad():
        found: tuple[Tensor, ...] = _for_each(one, batch)
    return found


def _for_each(function: Callable[..., Any], batch: Sequence[Tensor]) -> Any:
    """Return what `function` gives for each sample, stacked: many samples at once, or one by one where an op cannot be batched."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that an op has no batching rule and is slow
            return torch.func.vmap(function, chunk_size=CHUNK)(*(x[:, None] for x in batch))
    except RuntimeError:
        rows = [function(*(x[i : i + 1] for x in batch)) for i in range(len(batch[0]))]
        return _pytree.tree_map(lambda *values: torch.stack(values), *rows)


def symmetric(x: Tensor, peak: Tensor, bits: int) -> Tensor:
    """Return `x` rounded to multiples of `peak` / (2^(bits − 1) − 1), which broadcasts against it."""
    levels = 2 ** (bits - 1) - 1
    scale = (peak / levels).clamp_min(torch.finfo(x.dtype).tiny)
    rounded: Tensor = (x / scale).round().clamp(-levels, levels) * scale
    return rounded


def asymmetric(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return `x` on the grid of 2^bits steps from `low` to `high`, stretched so that 0 lies on it; int16 is symmetric."""
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    if bits == 16:
        return symmetric(x, torch.maximum(-low, high), bits)
    steps = 2**bits - 1
    scale = ((high - low) / steps).clamp_min(torch.finfo(x.dtype).tiny)
    zero = (-low / scale).round().clamp(0, steps)
    rounded: Tensor = ((x / scale).round() + zero).clamp(0, steps).sub(zero) * scale
    return rounded


class _Keeping(fx.Interpreter):
    """Runs a graph and keeps what some nodes gave."""

    def __init__(self, graph: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(graph)
        self.wanted = wanted
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = value
        return value


class _Quantizing(_Keeping):
    """Runs a graph whose constants are on their grids, and puts activations on theirs."""

    def __init__(self, graph: fx.GraphModule, rules: Mapping[fx.Node, Rule], ranges: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(graph, set())
        self.rules, self.ranges = rules, ranges

    def run_node(self, n: fx.Node) -> Any:
        value = fx.Interpreter.run_node(self, n)
        if n.name in self.ranges:
            value = asymmetric(value, *self.ranges[n.name], self._bits(n))
        if n.name in self.wanted:
            self.kept[n.name] = value
        return value

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        rule = self.rules.get(n, Rule())
        if rule.activations == "dynamic" and n.target in FORWARD | TRANSPOSED:
            x = cast("Tensor", args[0])
            args = (asymmetric(x, x.amin(), x.amax(), rule.activation_bits), *args[1:])
        return args, kwargs

    def _bits(self, n: fx.Node) -> int:
        return max((self.rules[m].activation_bits for m in (n, *n.users) if m in self.rules and self.rules[m].activations), default=8)


def _rule_of(node: fx.Node, quant: QuantSpec, dynamic: set[Any]) -> Rule:
    layer = cast("fx.Node", node.args[0]) if is_fused(node) else node
    named = next((quant.layers[name] for name in reversed(scopes(layer)) if name in quant.layers), quant.scheme)  # the innermost decides
    rule = RULES[named]
    return Rule() if rule.activations == "dynamic" and node.target not in dynamic else rule


def _ranges(graph: fx.GraphModule, observed: set[str], batch: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the least and greatest value of each node over all samples."""

    def one(*inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        interpreter = _Extremes(graph, observed)
        interpreter.run(*inputs)
        return interpreter.extremes

    found = _for_each(one, batch)
    return {name: (low.min(), high.max()) for name, (low, high) in found.items()}


class _Extremes(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, observed: set[str]) -> None:
        super().__init__(graph)
        self.observed = observed
        self.extremes: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.observed:
            self.extremes[n.name] = (value.amin(), value.amax())
        return value


def _channel_peak(weight: Tensor, layer: fx.Node) -> Tensor:
    """Return the largest weight of each output channel, to be broadcast against `weight`."""
    if layer.target not in TRANSPOSED:
        return weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1))
    groups = cast("int", layer.args[GROUPS]) if len(layer.args) > GROUPS else 1
    grouped = weight.abs().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())  # (groups, in / groups, out / groups, taps)
    peak = grouped.amax((1, 3), keepdim=True).expand(-1, grouped.shape[1], -1, 1)
    return peak.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
