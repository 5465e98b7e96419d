"""A quantization scheme is one record: adding one to `SCHEMES` makes it known to every room."""

import msgspec
import pytest
import torch
from support import report_records
from torch import nn

from edgecompress.artifacts.gate import require_parity
from edgecompress.errors import ParityError
from edgecompress.network.analyze import analyze
from edgecompress.network.exported import to_program
from edgecompress.network.parity import measure_parity, sqnr_db
from edgecompress.network.subgraph import graph_of
from edgecompress.options import Options, cost_scheme_of, gate_of, parse_layer_schemes, select_outputs, update_options
from edgecompress.planning.constraints import LAYER_OVERHEAD_BYTES, make_constraints
from edgecompress.quantization.quantize import quant_spec
from edgecompress.quantization.simulation import Simulation, can_simulate, run_graph
from edgecompress.records import Budget, QuantizeResult
from edgecompress.reporting.render import render_report
from edgecompress.targets import FORMATS, SCHEMES, Gate, Scheme

NAME = "int6-weights"


@pytest.fixture(autouse=True)
def _made_up_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = Scheme(
        name=NAME,
        gate=Gate(min_agreement=0.9, min_sqnr_db=12.0),
        formats=("tflite", "onnx"),
        weight_bits=6,
        per_channel=True,
        calibrated=True,
    )
    monkeypatch.setitem(SCHEMES, NAME, scheme)


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5)).eval(), torch.randn(64, 12)


def test_options_take_it_for_its_formats() -> None:
    asked = update_options(Options(), {"scheme": (NAME,), "format": ("tflite", "onnx"), "layer_scheme": (f"stem={NAME}",)})
    assert select_outputs(asked) == (("tflite", NAME), ("onnx", NAME))
    assert cost_scheme_of(asked) == NAME
    assert parse_layer_schemes(asked) == {"stem": NAME}
    assert [name for name, form in FORMATS.items() if NAME in form.schemes] == ["tflite", "onnx"]


def test_planning_counts_its_bytes() -> None:
    model, x = network()
    stats = analyze(model, (x[:1],), measure=False)
    (limit,) = make_constraints(Budget(size_mb=1.0), stats, {}, latencies=None, scheme=NAME)
    assert limit.dense == 6 / 8 * stats.params + 2 * LAYER_OVERHEAD_BYTES


def test_a_simulation_has_its_bits() -> None:
    model, x = network()
    program = to_program(model, (x[:1],))
    (exact,) = run_graph(graph_of(program), (x,))
    spec = quant_spec(NAME, len(x))
    assert can_simulate(spec)
    assert (spec.per_channel, spec.calibration_samples) == (True, 64)
    simulations = [Simulation(program, quant_spec(name, 64), (x,), format="tflite") for name in ("int4-weights", NAME, "int8-dynamic")]
    weights = [value for value in simulations[1].graph.state_dict().values() if value.ndim == 2]
    assert all(len(row.unique()) <= 2**6 - 1 for weight in weights for row in weight)
    sqnrs = [sqnr_db(one.run((x,))[0], exact) for one in simulations]
    assert sqnrs == sorted(sqnrs)


def test_a_scheme_per_tensor_has_one_scale_for_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, NAME, msgspec.structs.replace(SCHEMES[NAME], per_channel=False))
    model, x = network()
    simulation = Simulation(to_program(model, (x[:1],)), quant_spec(NAME, len(x)), (x,), format="tflite")
    (weight,) = (value for value in simulation.graph.state_dict().values() if value.shape == (24, 12))
    steps = 31 * weight / weight.abs().amax()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


def test_its_gate_decides() -> None:
    assert gate_of(NAME, Options()) == SCHEMES[NAME].gate
    scores = torch.eye(10)
    wrong = scores.roll(1, 0)
    require_parity(measure_parity((scores,), (scores,)), gate_of(NAME, Options()), subject="net.tflite")
    with pytest.raises(ParityError, match=r"top-1 agreement 0.00% on 10 samples, 90% required"):
        require_parity(measure_parity((wrong,), (scores,)), gate_of(NAME, Options()), subject="net.tflite")


def test_the_report_names_it() -> None:
    quantized = QuantizeResult(specs=(quant_spec(NAME, 32),), calibration_data="digits", input_range=(0.0, 1.0), layers=())
    assert f"{NAME}, per channel, 32 calibration samples" in render_report(report_records.report_of(quantized=quantized))
