"""A program under a scheme whose weights can be trained: what `simulation` computes, with gradients.

The program is that of the artifact, static and with BatchNorm folded, so training sees the weights and the places of rounding that the file
will have; running statistics have no part in it, and many samples run at once as in a simulation. Each weight is trained in units of its
channel's largest one, and each bias in units of its layer's output range: one learning rate then suits channels of any size.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgecompress.errors import UnsupportedError
from edgecompress.network.batches import Batch
from edgecompress.network.constants import get_constant, set_constant
from edgecompress.network.exported import example_inputs, quiet_export
from edgecompress.network.subgraph import graph_of, is_fused
from edgecompress.quantization.fake_quantize import channel_peak, weight_of
from edgecompress.quantization.gptq import bias_name, bias_of
from edgecompress.quantization.simulation import RANGE_SAMPLES, Quantizing, Ranges, for_each, observed, on_grids, ranges_of, rules_of
from edgecompress.records import QuantSpec

BIAS_UNIT: Final = 0.1  # of the output range; a bias moves all outputs of its channel at once
SMALLEST: Final = 1e-12


class FakeQuantized(nn.Module):
    """Takes `(n, …)` of each input and gives `(n, …)` of each output, as the simulated scheme does.

    Its parameters are what is added to the constants, in their units; they start at 0, and then it computes what the simulation does.

    Args:
        program: Stays as it is.
        calibration: `(n, …)` of each input.

    Raises:
        UnsupportedError: No layer has weights that the scheme puts on a grid.
    """

    def __init__(self, program: ExportedProgram, quant: QuantSpec, calibration: Batch) -> None:
        super().__init__()
        graph = graph_of(program)
        self._graph = (graph,)  # no submodule: its constants are buffers here
        self.rules = rules_of(graph, quant)
        self.observed = observed(graph, self.rules)
        self.calibration = tuple(x[:RANGE_SAMPLES] for x in calibration)
        with torch.no_grad():
            self.ranges: Ranges = ranges_of(graph, self.observed, self.calibration)
            units = _units(graph, {node for node, rule in self.rules.items() if rule.weight_bits}, self.ranges)
        if not units:
            raise UnsupportedError("quantization-aware training: no layer has int8 weights to train; leave --qat-epochs out")
        self.targets = tuple(units)
        self.changes = nn.ParameterList(torch.zeros_like(get_constant(graph, name)) for name in units)
        for i, (name, unit) in enumerate(units.items()):
            self.register_buffer(f"start_{i}", get_constant(graph, name).detach().clone())
            self.register_buffer(f"unit_{i}", unit)

    @torch.no_grad()
    def observe(self) -> None:
        """Take activation ranges anew, from what the weights are now."""
        self.ranges = ranges_of(self._graph[0], self.observed, self.calibration, self.constants())

    def constants(self) -> dict[str, Tensor]:
        """Return all constants by their names in the program, those of integer layers on their grids."""
        graph = self._graph[0]
        values = {str(node.target): get_constant(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"}
        values |= {
            name: self.get_buffer(f"start_{i}") + self.get_buffer(f"unit_{i}") * change
            for i, (name, change) in enumerate(zip(self.targets, self.changes, strict=True))
        }
        return values | on_grids(graph, self.rules, values)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        graph, constants = self._graph[0], self.constants()

        def one(*sample: Tensor) -> tuple[Tensor, ...]:
            given = Quantizing(graph, self.rules, self.ranges, constants).run(*sample)
            return tuple(y[0] for y in (given if isinstance(given, tuple | list) else (given,)))

        found: tuple[Tensor, ...] = for_each(one, inputs)
        return found


def with_constants(program: ExportedProgram, values: Mapping[str, Tensor]) -> ExportedProgram:
    """Return the program with these constants in place of its own, biases that rounding made among them; it stays as it is."""
    graph = graph_of(program)
    for node in list(graph.graph.nodes):
        if (weight := weight_of(node)) and bias_name(weight) in values:
            bias_of(graph, node)
    for name in graph.state_dict():  # shared with the program
        set_constant(graph, name, values.get(name, get_constant(graph, name)).detach().clone())
    graph.recompile()
    with torch.no_grad(), quiet_export():
        return torch.export.export(graph, example_inputs(program), strict=False)


def _units(graph: fx.GraphModule, layers: set[fx.Node], ranges: Ranges) -> dict[str, Tensor]:
    """Return the unit that each weight and bias of `layers` is trained in."""
    units: dict[str, Tensor] = {}
    for layer in (node for node in graph.graph.nodes if node in layers):
        name = weight_of(layer)
        if name is None or name in units:
            continue
        weight = get_constant(graph, name)
        units[name] = channel_peak(weight, layer).clamp_min(SMALLEST)
        bias = layer.args[2] if len(layer.args) > 2 else None
        end = next((user.name for user in layer.users if is_fused(user)), layer.name)
        if isinstance(bias, fx.Node) and bias.op == "get_attr" and end in ranges:
            low, high = ranges[end]
            units[str(bias.target)] = (BIAS_UNIT * (high - low)).clamp_min(SMALLEST)
    return units
