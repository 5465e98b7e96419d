"""A fake-quantized program with trainable weights: it computes what `simulation` computes, with gradients.

The program is that of the artifact, static and with BatchNorm folded, so training sees the weights and the places of rounding that the file
will have. Running statistics play no part, and many samples run at once as in a simulation. Each weight is trained in units of its
channel's largest one, and each bias in units of its layer's output range, so that one learning rate suits channels of any size.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgecompress.errors import UnsupportedError
from edgecompress.network.batches import Batch
from edgecompress.network.constants import get_constant, set_constant
from edgecompress.network.exported import example_inputs, silence_export
from edgecompress.network.layer_kinds import weight_name
from edgecompress.network.subgraph import graph_of, is_fused
from edgecompress.quantization.fake_quantize import channel_peaks
from edgecompress.quantization.gptq import ensure_bias, new_bias_name
from edgecompress.quantization.simulation import (
    RANGE_SAMPLES,
    QuantizingInterpreter,
    Ranges,
    fake_quantize_constants,
    map_samples,
    node_schemes,
    observe_ranges,
    static_activations,
)
from edgecompress.records import QuantSpec

BIAS_UNIT: Final = 0.1  # of the output range: a bias moves all outputs of its channel at once, so its steps are smaller
MIN_UNIT: Final = 1e-12  # keeps a channel of zeros from a unit of zero


class FakeQuantizedModule(nn.Module):
    """Maps `(n, …)` of each input to `(n, …)` of each output, as the simulated scheme does, with weights that can be trained.

    Its parameters are changes of the program's constants, in units of their own; at 0, where they start, the module computes what the
    simulation does.

    Args:
        program: Stays unchanged.
        calibration: `(n, …)` of each input.

    Raises:
        UnsupportedError: No layer has integer weights under the scheme.
    """

    def __init__(self, program: ExportedProgram, quant: QuantSpec, calibration: Batch) -> None:
        super().__init__()
        graph = graph_of(program)
        self._graph = (graph,)  # no submodule: its constants are buffers here
        self.schemes = node_schemes(graph, quant)
        self.observed = static_activations(graph, self.schemes)
        self.calibration = tuple(x[:RANGE_SAMPLES] for x in calibration)
        with torch.no_grad():
            self.ranges: Ranges = observe_ranges(graph, self.observed, self.calibration)
            units = _training_units(graph, {node for node, scheme in self.schemes.items() if scheme.has_integer_weights}, self.ranges)
        if not units:
            raise UnsupportedError("quantization-aware training: no layer has int8 weights to train; leave --qat-epochs out")
        self.targets = tuple(units)
        self.changes = nn.ParameterList(torch.zeros_like(get_constant(graph, name)) for name in units)
        for i, (name, unit) in enumerate(units.items()):
            self.register_buffer(f"start_{i}", get_constant(graph, name).detach().clone())
            self.register_buffer(f"unit_{i}", unit)

    @torch.no_grad()
    def observe_ranges(self) -> None:
        """Replace the activation ranges by those that the present weights give on the calibration inputs."""
        self.ranges = observe_ranges(self._graph[0], self.observed, self.calibration, self.quantized_constants())

    def quantized_constants(self) -> dict[str, Tensor]:
        """Return all constants by their names in the program, those of integer layers fake-quantized."""
        graph = self._graph[0]
        values = {str(node.target): get_constant(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"}
        values |= {
            name: self.get_buffer(f"start_{i}") + self.get_buffer(f"unit_{i}") * change
            for i, (name, change) in enumerate(zip(self.targets, self.changes, strict=True))
        }
        return values | fake_quantize_constants(graph, self.schemes, values)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        graph, constants = self._graph[0], self.quantized_constants()

        def run_sample(*sample: Tensor) -> tuple[Tensor, ...]:
            given = QuantizingInterpreter(graph, self.schemes, self.ranges, constants).run(*sample)
            return tuple(y[0] for y in (given if isinstance(given, tuple | list) else (given,)))

        found: tuple[Tensor, ...] = map_samples(run_sample, inputs)
        return found


def replace_constants(program: ExportedProgram, values: Mapping[str, Tensor]) -> ExportedProgram:
    """Return a copy of the program with constants replaced by name, biases that GPTQ added among them."""
    graph = graph_of(program)
    for node in list(graph.graph.nodes):
        if (weight := weight_name(node)) and new_bias_name(weight) in values:
            ensure_bias(graph, node)
    for name in graph.state_dict():  # shared with the program
        set_constant(graph, name, values.get(name, get_constant(graph, name)).detach().clone())
    graph.recompile()
    with torch.no_grad(), silence_export():
        return torch.export.export(graph, example_inputs(program), strict=False)


def _training_units(graph: fx.GraphModule, layers: set[fx.Node], ranges: Ranges) -> dict[str, Tensor]:
    """Return the unit in which each weight and bias of `layers` is trained."""
    units: dict[str, Tensor] = {}
    for layer in (node for node in graph.graph.nodes if node in layers):
        name = weight_name(layer)
        if name is None or name in units:
            continue
        weight = get_constant(graph, name)
        units[name] = channel_peaks(weight, layer).clamp_min(MIN_UNIT)
        bias = layer.args[2] if len(layer.args) > 2 else None
        end = next((user.name for user in layer.users if is_fused(user)), layer.name)
        if isinstance(bias, fx.Node) and bias.op == "get_attr" and end in ranges:
            low, high = ranges[end]
            units[str(bias.target)] = (BIAS_UNIT * (high - low)).clamp_min(MIN_UNIT)
    return units
