"""What a quantization scheme alone does to a network: the exported program in PyTorch with its weights and activations on their grids.

An artifact that departs from the model as far as this simulation does suffers from its scheme; one that departs from the simulation suffers
from its converter. Activation ranges are the least and greatest value seen on calibration data. What the formats do differently (how
integers are rounded in between, histograms in place of extremes) leaves a difference far below that of the scheme itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree

from edgecompress.network.constants import get_constant, set_constant
from edgecompress.network.subgraph import graph_of, is_fused, is_values, scopes
from edgecompress.quantization.fake_quantize import (
    FORWARD,
    RULES,
    TRANSPOSED,
    Rule,
    asymmetric,
    barred,
    channel_peak,
    rule_of,
    symmetric,
    weight_of,
)
from edgecompress.quantization.gptq import LARGEST, round_weights
from edgecompress.records import QuantSpec

aten = torch.ops.aten
Ranges = dict[str, tuple[Tensor, Tensor]]

CHUNK: Final = 16  # samples that are run at once
RANGE_SAMPLES: Final = 256  # from which activation ranges are taken; a simulation need not see the last outlier
ROUNDING_SAMPLES: Final = 192  # as the converters
# They move values and make none: the output has the input's scale.
MOVES: Final = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.squeeze.dim,
    aten.unsqueeze.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.slice.Tensor, aten.select.int, aten.expand.default,
    aten.contiguous.default, aten.clone.default,
}  # fmt: skip


def can_simulate(quant: QuantSpec) -> bool:
    """Whether there is something to simulate, and a rule for all of it."""
    schemes = {quant.scheme, *quant.layers.values()}
    return schemes <= RULES.keys() and schemes != {"fp32"}


class Simulation:
    """A program under a scheme, its weights rounded with care where there are calibration inputs, as converters do.

    Args:
        program: Static, batch 1, as `to_program` makes it; stays as it is.
        quant: The scheme, and other schemes of some layers by qualified name of their modules.
        calibration: `(n, …)` of each input; () where no scheme needs it.
        format: What artifacts do differently.
    """

    def __init__(self, program: ExportedProgram, quant: QuantSpec, calibration: Sequence[Tensor] = (), *, format: str) -> None:  # noqa: A002
        if calibration:
            program = rounded(program, quant, calibration, format=format)
        self.graph = graph_of(program)
        self.rules = rules_of(self.graph, quant, format)
        self.ranges: Ranges = {}
        with torch.no_grad():
            if calibration:
                self.ranges = ranges_of(self.graph, observed(self.graph, self.rules), [x[:RANGE_SAMPLES] for x in calibration])
            for name, value in on_grids(self.graph, self.rules).items():
                set_constant(self.graph, name, value)

    def run(self, batch: Sequence[Tensor], nodes: Sequence[str] = ()) -> tuple[Tensor, ...]:
        """Return what the program gives for each sample, `(n, …)` each, or with `nodes` what these nodes do."""
        return run_at(self.graph, batch, nodes, lambda: Quantizing(self.graph, self.rules, self.ranges))


def rounded(program: ExportedProgram, quant: QuantSpec, calibration: Sequence[Tensor], *, format: str = "") -> ExportedProgram:  # noqa: A002
    """Return the program with its integer weights rounded with care, as files have them; `format` is "" where none is meant."""
    if not any(RULES[scheme].weight_bits for scheme in (quant.scheme, *quant.layers.values())):
        return program
    samples = [tuple(x[i : i + 1] for x in calibration) for i in range(min(len(calibration[0]), ROUNDING_SAMPLES))]
    return round_weights(program, samples, levels=lambda node: LARGEST.get(rule_of(node, _scheme_of(node, quant), format).weight_bits))


def rules_of(graph: fx.GraphModule, quant: QuantSpec, format: str = "") -> dict[fx.Node, Rule]:  # noqa: A002
    """Return what happens to each computed node."""
    return {node: rule_of(node, _scheme_of(node, quant), format) for node in graph.graph.nodes if node.op == "call_function"}


def on_grids(graph: fx.GraphModule, rules: Mapping[fx.Node, Rule], values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return those constants that lie on a grid, there: of the layers that read them.

    Args:
        values: In place of the graph's own.
    """
    values = values or {}
    weights = {name: (node, rule) for node, rule in reversed(list(rules.items())) if (name := weight_of(node))}
    found = {}
    for node in (n for n in graph.graph.nodes if n.op == "get_attr"):
        name = str(node.target)
        value = values[name] if name in values else get_constant(graph, name)
        rule = max((rules[user] for user in node.users if user in rules), default=Rule())
        if not value.is_floating_point():
            continue
        if rule.half:
            found[name] = value.half().float()
        elif name in weights and (layer := weights[name])[1].weight_bits:
            found[name] = symmetric(value, channel_peak(value, layer[0]), layer[1].weight_bits)
    return found


def observed(graph: fx.GraphModule, rules: Mapping[fx.Node, Rule]) -> set[str]:
    """Return the nodes whose values are put on a grid that calibration data gives, where they are made or where they are read."""
    found = set()
    for node in graph.graph.nodes:
        read = any(_is_static(user, rules) for user in node.users)
        made = _is_static(node, rules) and node.target not in MOVES and not any(is_fused(user) for user in node.users)
        enters = read and node.op != "get_attr" and not _is_static(node, rules)
        if (made or enters) and is_values(node):
            found.add(node.name)
    return found


def run_at(graph: fx.GraphModule, batch: Sequence[Tensor], nodes: Sequence[str] = (), make: Any = None) -> tuple[Tensor, ...]:
    """Return for each sample of `batch` what the graph gives, or what `nodes` of it do, `(n, …)` each, many samples at once.

    A node whose first axis is not the batch gives one row a sample, as `cutting.cut` makes it.
    """
    names = {node.name: node for node in graph.graph.nodes}

    def one(*inputs: Tensor) -> tuple[Tensor, ...]:
        interpreter = Keeping(graph, set(nodes)) if make is None else make()
        interpreter.wanted = set(nodes)
        given = interpreter.run(*inputs)
        found = [interpreter.kept[name] for name in nodes] if nodes else list(given) if isinstance(given, tuple | list) else [given]
        return tuple(y[0] if y.ndim and len(y) == 1 else y.reshape(-1) for y in found)

    assert all(name in names for name in nodes)
    with torch.no_grad():
        found: tuple[Tensor, ...] = for_each(one, batch)
    return found


def for_each(function: Callable[..., Any], batch: Sequence[Tensor]) -> Any:
    """Return what `function` gives for each sample, stacked: many samples at once, or one by one where an op cannot be batched."""
    try:
        with _quiet_fallback():
            return torch.func.vmap(function, chunk_size=CHUNK)(*(x[:, None] for x in batch))
    except RuntimeError:
        rows = [function(*(x[i : i + 1] for x in batch)) for i in range(len(batch[0]))]
        return _pytree.tree_map(lambda *values: torch.stack(values), *rows)


@contextmanager
def _quiet_fallback() -> Iterator[None]:
    """Keep torch from saying, from C++ and of every node, that an op has no batching rule and is slow."""
    show: Callable[[bool], None] = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]  # no public one
    show(False)
    try:
        yield
    finally:
        show(True)  # as torch starts


class Keeping(fx.Interpreter):
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


class Quantizing(Keeping):
    """Runs a graph and puts activations on their grids.

    Args:
        constants: In place of the graph's own, which by default are on their grids already.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        rules: Mapping[fx.Node, Rule],
        ranges: Mapping[str, tuple[Tensor, Tensor]],
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(graph, set())
        self.rules, self.ranges, self.constants = rules, ranges, constants or {}

    def run_node(self, n: fx.Node) -> Any:
        value = fx.Interpreter.run_node(self, n)
        if n.op == "get_attr":
            value = self.constants.get(str(n.target), value)
        if _is_static(n, self.rules):
            value = self._on_grid(n, value)
        if n.name in self.wanted:
            self.kept[n.name] = value
        return value

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rule = self.rules.get(n, Rule())
        if rule.activations == "static":  # what a float node gave, or an input, becomes an integer where integers are computed with
            given = {m: self._on_grid(m, self.env[m]) for m in n.all_input_nodes if not _is_static(m, self.rules)}
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda m: given.get(m, self.env[m]))
            return args, kwargs
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if rule.activations == "dynamic" and n.target in FORWARD | TRANSPOSED:
            x = cast("Tensor", args[0])
            args = (asymmetric(x, x.amin(), x.amax(), rule.activation_bits), *args[1:])
        return args, kwargs

    def _on_grid(self, n: fx.Node, value: Any) -> Any:
        if n.name not in self.ranges:
            return value
        bits = max(self.rules[m].activation_bits for m in (n, *n.users) if _is_static(m, self.rules))
        on_grid = asymmetric(value, *self.ranges[n.name], bits)
        never = barred(n, value)
        return on_grid if never is None else torch.where(never, value, on_grid)


class Extremes(Keeping):
    """Runs a graph and keeps the least and greatest value of some nodes."""

    def __init__(self, graph: fx.GraphModule, observed: set[str], constants: Mapping[str, Tensor]) -> None:
        super().__init__(graph, set())
        self.observed, self.constants = observed, constants
        self.extremes: Ranges = {}

    def run_node(self, n: fx.Node) -> Any:
        value = fx.Interpreter.run_node(self, n)
        if n.op == "get_attr":
            value = self.constants.get(str(n.target), value)
        if n.name in self.observed:
            never = barred(n, value)
            seen = value if never is None else value.masked_fill(never, 0.0)  # which every range holds
            self.extremes[n.name] = (seen.amin(), seen.amax())
        return value


def ranges_of(graph: fx.GraphModule, nodes: set[str], batch: Sequence[Tensor], constants: Mapping[str, Tensor] | None = None) -> Ranges:
    """Return the least and greatest value of each node over all samples, activations not on grids; `constants` replace the graph's own."""

    def one(*inputs: Tensor) -> Ranges:
        interpreter = Extremes(graph, nodes, constants or {})
        interpreter.run(*inputs)
        return interpreter.extremes

    found = for_each(one, batch) if nodes else {}
    return {name: (low.min(), high.max()) for name, (low, high) in found.items()}


def _is_static(node: fx.Node, rules: Mapping[fx.Node, Rule]) -> bool:
    return node in rules and rules[node].activations == "static"


def _scheme_of(node: fx.Node, quant: QuantSpec) -> str:
    layer = cast("fx.Node", node.args[0]) if is_fused(node) else node
    return next((quant.layers[name] for name in reversed(scopes(layer)) if name in quant.layers), quant.scheme)  # the innermost decides
