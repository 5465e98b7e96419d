"""Simulate a quantization scheme in PyTorch: run an exported program with its weights and activations fake-quantized.

An artifact that departs from the model as far as this simulation does suffers from its scheme; one that departs from the simulation suffers
from its converter. Activation ranges are the least and greatest value seen on calibration data. Formats differ in details (how integers are
rounded in between, histograms in place of extremes), which leave a difference far below that of the scheme itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree

from edgecompress.network.constants import get_constant, set_constant
from edgecompress.network.layer_kinds import WEIGHTED_OPS, weight_name
from edgecompress.network.subgraph import enclosing_modules, graph_of, is_float_tensor, is_fused
from edgecompress.quantization.fake_quantize import (
    fake_quantize_asymmetric,
    fake_quantize_weight,
    gptq_bits,
    masked_positions,
    supported_scheme,
)
from edgecompress.quantization.gptq import round_weights
from edgecompress.records import QuantSpec
from edgecompress.targets import FLOAT32, SCHEMES, Scheme

aten = torch.ops.aten
NodeSchemes = Mapping[fx.Node, Scheme]
Ranges = dict[str, tuple[Tensor, Tensor]]

SAMPLES_AT_ONCE: Final = 16  # memory grows with the number of samples that run together
RANGE_SAMPLES: Final = 256  # activation ranges of a simulation need not include the last outlier
ROUNDING_SAMPLES: Final = 192  # converters round weights on as many
# These operators move values and compute none, so that the output keeps the input's scale.
MOVING_OPS: Final = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.squeeze.dim,
    aten.unsqueeze.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.slice.Tensor, aten.select.int, aten.expand.default,
    aten.contiguous.default, aten.clone.default,
}  # fmt: skip


def can_simulate(quant: QuantSpec) -> bool:
    """Whether all schemes of `quant` are known, and one of them changes the network."""
    schemes = {quant.scheme, *quant.layers.values()}
    return schemes <= SCHEMES.keys() and schemes != {FLOAT32}


class Simulation:
    """A program under a quantization scheme; given calibration inputs, its weights are rounded by GPTQ, as converters do.

    Args:
        program: Static, batch 1, as `to_program` makes it; stays unchanged.
        quant: The scheme, and other schemes of some layers by qualified name of their modules.
        calibration: `(n, …)` of each input; () where no scheme needs it.
        format: The file format whose kernels are simulated.
    """

    def __init__(self, program: ExportedProgram, quant: QuantSpec, calibration: Sequence[Tensor] = (), *, format: str) -> None:  # noqa: A002
        if calibration:
            program = round_integer_weights(program, quant, calibration, format=format)
        self.graph = graph_of(program)
        self.schemes = node_schemes(self.graph, quant, format)
        self.ranges: Ranges = {}
        with torch.no_grad():
            if calibration:
                nodes = static_activations(self.graph, self.schemes)
                self.ranges = observe_ranges(self.graph, nodes, [x[:RANGE_SAMPLES] for x in calibration])
            for name, value in fake_quantize_constants(self.graph, self.schemes).items():
                set_constant(self.graph, name, value)

    def run(self, batch: Sequence[Tensor], nodes: Sequence[str] = ()) -> tuple[Tensor, ...]:
        """Return the program's outputs for each sample, `(n, …)` each, or the values of `nodes` where some are given."""
        return run_graph(self.graph, batch, nodes, lambda: QuantizingInterpreter(self.graph, self.schemes, self.ranges))


def round_integer_weights(
    program: ExportedProgram,
    quant: QuantSpec,
    calibration: Sequence[Tensor],
    *,
    format: str = "",  # noqa: A002
) -> ExportedProgram:
    """Return the program with its integer weights rounded by GPTQ, as files of `format` have them; "" stands for no particular format."""
    if not any(SCHEMES[scheme].has_integer_weights for scheme in (quant.scheme, *quant.layers.values())):
        return program
    samples = [tuple(x[i : i + 1] for x in calibration) for i in range(min(len(calibration[0]), ROUNDING_SAMPLES))]
    return round_weights(program, samples, bits_of=lambda node: gptq_bits(node, _scheme_name(node, quant), format))


def node_schemes(graph: fx.GraphModule, quant: QuantSpec, format: str = "") -> dict[fx.Node, Scheme]:  # noqa: A002
    """Return the scheme of each computed node."""
    return {node: supported_scheme(node, _scheme_name(node, quant), format) for node in graph.graph.nodes if node.op == "call_function"}


def fake_quantize_constants(graph: fx.GraphModule, schemes: NodeSchemes, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the fake-quantized values of those constants that the layers reading them quantize.

    Args:
        values: Replace the graph's own constants.
    """
    values = values or {}
    readers = {name: (node, scheme) for node, scheme in reversed(list(schemes.items())) if (name := weight_name(node))}
    found = {}
    for node in (n for n in graph.graph.nodes if n.op == "get_attr"):
        name = str(node.target)
        value = values[name] if name in values else get_constant(graph, name)
        bits = [schemes[user].weight_bits for user in node.users if user in schemes]
        if not value.is_floating_point():
            continue
        if 16 in bits and min(bits) == 16:
            found[name] = value.half().float()
        elif name in readers and (reader := readers[name])[1].has_integer_weights:
            found[name] = fake_quantize_weight(value, *reader)
    return found


def static_activations(graph: fx.GraphModule, schemes: NodeSchemes) -> set[str]:
    """Return the names of nodes that are quantized by ranges from calibration data, where they are computed or where they are read."""
    found = set()
    for node in graph.graph.nodes:
        read = any(_is_static(user, schemes) for user in node.users)
        made = _is_static(node, schemes) and node.target not in MOVING_OPS and not any(is_fused(user) for user in node.users)
        enters = read and node.op != "get_attr" and not _is_static(node, schemes)
        if (made or enters) and is_float_tensor(node):
            found.add(node.name)
    return found


def run_graph(graph: fx.GraphModule, batch: Sequence[Tensor], nodes: Sequence[str] = (), make: Any = None) -> tuple[Tensor, ...]:
    """Return a graph's outputs for each sample of `batch`, or the values of `nodes`, `(n, …)` each, many samples at once.

    A node whose first axis is not the batch gives one row a sample, as `extract_subgraph` makes it.

    Args:
        make: Returns the interpreter that runs the graph; by default a `RecordingInterpreter`.
    """
    names = {node.name: node for node in graph.graph.nodes}

    def run_sample(*inputs: Tensor) -> tuple[Tensor, ...]:
        interpreter = RecordingInterpreter(graph, set(nodes)) if make is None else make()
        interpreter.wanted = set(nodes)
        given = interpreter.run(*inputs)
        found = [interpreter.values[name] for name in nodes] if nodes else list(given) if isinstance(given, tuple | list) else [given]
        return tuple(y[0] if y.ndim and len(y) == 1 else y.reshape(-1) for y in found)

    assert all(name in names for name in nodes)
    with torch.no_grad():
        found: tuple[Tensor, ...] = map_samples(run_sample, batch)
    return found


def map_samples(function: Callable[..., Any], batch: Sequence[Tensor]) -> Any:
    """Return the stacked results of `function` for each sample: many samples at once, or one by one where an op cannot be batched."""
    try:
        with _silence_vmap_fallback():
            return torch.func.vmap(function, chunk_size=SAMPLES_AT_ONCE)(*(x[:, None] for x in batch))
    except RuntimeError:
        rows = [function(*(x[i : i + 1] for x in batch)) for i in range(len(batch[0]))]
        return _pytree.tree_map(lambda *values: torch.stack(values), *rows)


@contextmanager
def _silence_vmap_fallback() -> Iterator[None]:
    """Keep torch from warning, from C++ and for every node, that an op has no batching rule and is slow."""
    show: Callable[[bool], None] = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]  # no public one
    show(False)
    try:
        yield
    finally:
        show(True)  # as torch starts


class RecordingInterpreter(fx.Interpreter):
    """Runs a graph and records the values of some nodes.

    Args:
        wanted: Names of the nodes.
        constants: Replace the graph's own.
    """

    def __init__(self, graph: fx.GraphModule, wanted: set[str], constants: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(graph)
        self.wanted, self.constants = wanted, constants or {}
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr":
            value = self.constants.get(str(n.target), value)
        value = self.transform(n, value)
        if n.name in self.wanted:
            self.values[n.name] = self.record(n, value)
        return value

    def transform(self, n: fx.Node, value: Any) -> Any:
        """Return the value that the nodes after `n` read."""
        return value

    def record(self, n: fx.Node, value: Any) -> Any:
        """Return what is kept of the value of a wanted node."""
        return value


class QuantizingInterpreter(RecordingInterpreter):
    """Runs a graph and fake-quantizes its activations.

    Args:
        constants: Replace the graph's own, which by default are fake-quantized already.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        schemes: NodeSchemes,
        ranges: Mapping[str, tuple[Tensor, Tensor]],
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(graph, set(), constants)
        self.schemes, self.ranges = schemes, ranges

    def transform(self, n: fx.Node, value: Any) -> Any:
        return self._fake_quantize(n, value) if _is_static(n, self.schemes) else value

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        scheme = self.schemes.get(n)
        if scheme is not None and scheme.has_static_activations:  # float values and inputs become integers where integers are computed with
            given = {m: self._fake_quantize(m, self.env[m]) for m in n.all_input_nodes if not _is_static(m, self.schemes)}
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda m: given.get(m, self.env[m]))
            return args, kwargs
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if scheme is not None and scheme.dynamic and n.target in WEIGHTED_OPS:
            x = cast("Tensor", args[0])
            args = (fake_quantize_asymmetric(x, x.amin(), x.amax(), scheme.activation_bits), *args[1:])
        return args, kwargs

    def _fake_quantize(self, n: fx.Node, value: Any) -> Any:
        if n.name not in self.ranges:
            return value
        bits = max(self.schemes[m].activation_bits for m in (n, *n.users) if _is_static(m, self.schemes))
        quantized = fake_quantize_asymmetric(value, *self.ranges[n.name], bits)
        masked = masked_positions(n, value)
        return quantized if masked is None else torch.where(masked, value, quantized)


class RangeObserver(RecordingInterpreter):
    """Runs a graph and records the least and greatest value of some nodes."""

    def record(self, n: fx.Node, value: Any) -> Any:
        if not value.numel():  # e.g. a slice of no channels, which is joined to others
            return value.new_zeros(()), value.new_zeros(())
        masked = masked_positions(n, value)
        value = value if masked is None else value.masked_fill(masked, 0.0)  # every range includes 0
        return value.amin(), value.amax()


def observe_ranges(
    graph: fx.GraphModule, nodes: set[str], batch: Sequence[Tensor], constants: Mapping[str, Tensor] | None = None
) -> Ranges:
    """Return the least and greatest value of each node over all samples, without quantization of activations.

    Args:
        constants: Replace the graph's own.
    """

    def observe_sample(*inputs: Tensor) -> Ranges:
        observer = RangeObserver(graph, nodes, constants)
        observer.run(*inputs)
        return observer.values

    found = map_samples(observe_sample, batch) if nodes else {}
    return {name: (low.min(), high.max()) for name, (low, high) in found.items()}


def _is_static(node: fx.Node, schemes: NodeSchemes) -> bool:
    return node in schemes and schemes[node].has_static_activations


def _scheme_name(node: fx.Node, quant: QuantSpec) -> str:
    layer = cast("fx.Node", node.args[0]) if is_fused(node) else node
    return next(
        (quant.layers[name] for name in reversed(enclosing_modules(layer)) if name in quant.layers), quant.scheme
    )  # the innermost decides
