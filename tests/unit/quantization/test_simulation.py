"""The simulation of a scheme: its grids, layers that stay float, and equal results for batches and single samples."""

import pytest
import torch
from support.converter_models import Attention, Clamped, Heads, Residual, settled
from torch import nn

from edgecompress.network.exported import to_program
from edgecompress.network.layer_kinds import weight_name
from edgecompress.network.parity import sqnr_db
from edgecompress.network.subgraph import graph_of, layers_of
from edgecompress.quantization.fake_quantize import fake_quantize_asymmetric, fake_quantize_symmetric
from edgecompress.quantization.simulation import Simulation, can_simulate, node_schemes, round_integer_weights, run_graph
from edgecompress.records import QuantSpec
from edgecompress.targets import SCHEMES


def program_of(model, *shapes, samples=16):
    torch.manual_seed(0)
    data = tuple(torch.randn(samples, *shape) for shape in shapes)
    return to_program(settled(model, data), tuple(x[:1] for x in data)), data


def test_every_scheme_of_the_targets_can_be_simulated():
    assert all(can_simulate(QuantSpec(scheme=scheme)) for scheme in SCHEMES if scheme != "fp32")
    assert [can_simulate(QuantSpec(scheme=scheme)) for scheme in ("fp32", "int8-static")] == [False, True]
    assert can_simulate(QuantSpec(scheme="fp32", layers={"fc": "fp16"}))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_symmetric_grid_has_zero_and_both_peaks_and_its_error_is_half_a_step(bits):
    peak = torch.tensor(3.0)
    x = torch.linspace(-3, 3, 4001)
    y = fake_quantize_symmetric(x, peak, bits)
    assert len(y.unique()) == min(2**bits - 1, 4001)
    assert y.min() == -3
    assert y.max() == 3
    assert float((x - y).abs().max()) <= 3 / (2 ** (bits - 1) - 1) / 2 + 1e-6


def test_an_asymmetric_grid_has_256_steps_includes_zero_and_clips():
    low, high = torch.tensor(-1.0), torch.tensor(3.0)
    y = fake_quantize_asymmetric(torch.linspace(-2, 5, 5001), low, high, 8)
    assert len(y.unique()) == 256
    assert 0.0 in y.unique()
    step = 4 / 255
    assert float(y.min()) == pytest.approx(-1, abs=step / 2)
    assert float(y.max()) == pytest.approx(3, abs=step / 2)
    stretched = fake_quantize_asymmetric(torch.tensor([1.0, 0.2]), torch.tensor(1.0), torch.tensor(2.0), 8)
    assert torch.equal(stretched[1:].ceil(), torch.tensor([1.0]))


def test_a_linear_layer_under_int8_static_equals_arithmetic_by_hand():
    program, (x,) = program_of(nn.Linear(6, 5), (6,))
    # as the simulation itself does, which then changes nothing
    program = round_integer_weights(program, QuantSpec(scheme="int8-static"), (x,))
    layer = nn.Linear(6, 5)
    layer.load_state_dict({"weight": program.state_dict["weight"], "bias": program.state_dict["bias"]})
    (found,) = Simulation(program, QuantSpec(scheme="int8-static"), (x,), format="onnx").run((x,))
    with torch.no_grad():
        weight = fake_quantize_symmetric(layer.weight, layer.weight.abs().amax(1, keepdim=True), 8)
        exact = layer(x)
        y = nn.functional.linear(fake_quantize_asymmetric(x, x.min(), x.max(), 8), weight, layer.bias)
    assert torch.allclose(found, fake_quantize_asymmetric(y, exact.min(), exact.max(), 8), atol=1e-5)


def test_fp16_rounds_only_constants():
    program, (x,) = program_of(nn.Linear(6, 5), (6,))
    (found,) = Simulation(program, QuantSpec(scheme="fp16"), format="tflite").run((x,))
    weight, bias = (program.state_dict[name].half().float() for name in ("weight", "bias"))
    assert torch.allclose(found, nn.functional.linear(x, weight, bias), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_transposed_convolution_has_one_scale_per_output_channel(groups):
    model = nn.ConvTranspose2d(6, 9, 3, groups=groups, bias=False)
    with torch.no_grad():
        model.weight[:, 0] *= 1000
    program, _ = program_of(model, (6, 4, 4))
    simulation = Simulation(program, QuantSpec(scheme="int8-static"), format="onnx")
    exact, found = model.weight.detach(), simulation.graph.state_dict()["weight"]
    out = exact.reshape(groups, 6 // groups, 9 // groups, 9).transpose(1, 2).flatten(0, 1).flatten(1)  # (9, …)
    rounded = found.reshape(groups, 6 // groups, 9 // groups, 9).transpose(1, 2).flatten(0, 1).flatten(1)
    steps = out.abs().amax(1, keepdim=True) / 127
    assert bool(((out - rounded).abs() <= steps / 2 + 1e-6).all())


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "fp32"])
def test_layers_kept_in_fp32_are_not_quantized(scheme):
    program, data = program_of(Residual(), (1, 28, 28))
    (exact,) = run_graph(graph_of(program), data)
    scopes = ("stem", "blocks", "pool", "fc", "")
    kept = QuantSpec(scheme=scheme, layers=dict.fromkeys(scopes, "fp32"))
    (found,) = Simulation(program, kept, data, format="onnx").run(data)
    assert torch.allclose(found, exact, atol=1e-5)
    (quantized,) = Simulation(program, QuantSpec(scheme=scheme), data, format="onnx").run(data)
    assert 10 < sqnr_db(quantized, exact) < 100
    half = QuantSpec(scheme=scheme, layers={"blocks": "fp32"})
    (between,) = Simulation(program, half, data, format="onnx").run(data)
    assert sqnr_db(quantized, exact) < sqnr_db(between, exact)


def test_more_bits_give_a_higher_sqnr():
    program, data = program_of(Residual(), (1, 28, 28))
    (exact,) = run_graph(graph_of(program), data)
    left = [
        sqnr_db(Simulation(program, QuantSpec(scheme=scheme), data, format="onnx").run(data)[0], exact)
        for scheme in ("int4-weights", "int8-static", "int16x8", "fp16")
    ]
    assert left == sorted(left)


def test_torchscript_quantizes_dynamically_only_linear_layers():
    program, data = program_of(nn.Conv2d(3, 4, 3), (3, 9, 9))
    (exact,) = run_graph(graph_of(program), data)
    spec = QuantSpec(scheme="int8-dynamic")
    assert torch.equal(Simulation(program, spec, data, format="torchscript").run(data)[0], exact)
    assert not torch.equal(Simulation(program, spec, data, format="onnx").run(data)[0], exact)


@pytest.mark.parametrize("format_name", ["tflite", "torchscript", "onnx", "executorch"])
def test_weights_are_rounded_by_gptq_for_every_format(format_name):
    program, data = program_of(Clamped(), (3, 12, 12), samples=64)
    (exact,) = run_graph(graph_of(program), data)
    spec = QuantSpec(scheme="int8-static")
    with_care = Simulation(round_integer_weights(program, spec, data), spec, data, format=format_name).run(data)[0]
    (found,) = Simulation(program, spec, data, format=format_name).run(data)
    assert torch.allclose(found, with_care, atol=1e-5)
    assert sqnr_db(found, exact) > 28


def test_layers_without_4_bit_kernels_get_8_bits():
    program, _ = program_of(Clamped(), (3, 12, 12))
    schemes = node_schemes(graph_of(program), QuantSpec(scheme="int4-weights"), "tflite")
    bits = [scheme.weight_bits for node, scheme in schemes.items() if weight_name(node)]
    assert bits == [4, 8, 4]  # the second is depthwise


def test_samples_in_batches_and_one_by_one_give_the_same_values_at_every_layer():
    program, data = program_of(Heads(), (3, 10, 14), (5,))
    graph = graph_of(program)
    names = [layer.node for layer in layers_of(graph)]
    together = run_graph(graph, data, names)
    single = [run_graph(graph, tuple(x[i : i + 1] for x in data), names) for i in range(3)]
    for k, name in enumerate(names):
        assert torch.allclose(together[k][:3], torch.cat([row[k] for row in single]), atol=1e-6), name


def test_an_op_without_batching_rule_prints_no_warning(capfd):
    program, data = program_of(Attention("causal"), (12, 8))
    run_graph(graph_of(program), data)
    assert capfd.readouterr() == ("", "")


def test_the_original_program_stays_unchanged():
    program, data = program_of(Residual(), (1, 28, 28))
    before = {name: value.clone() for name, value in program.state_dict.items()}
    Simulation(program, QuantSpec(scheme="int8-static"), data, format="tflite").run(data)
    assert all(torch.equal(value, program.state_dict[name]) for name, value in before.items())


def test_an_op_that_cannot_be_batched_is_run_one_by_one():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    model = Recurrent().eval()
    x = torch.randn(5, 7, 4)
    (found,) = run_graph(graph_of(to_program(model, (x[:1],))), (x,))
    with torch.no_grad():
        assert torch.allclose(found, model(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["added", "buffer", "filled", "lowest"])
def test_masked_scores_do_not_widen_the_range_of_the_others(kind):
    program, data = program_of(Attention(kind), (12, 8))
    (reference,) = run_graph(graph_of(program), data)
    (found,) = Simulation(program, QuantSpec(scheme="int8-static"), data, format="tflite").run(data)
    assert sqnr_db(found, reference) > 22


class Joined(nn.Module):
    """Joins a slice without channels to others, as networks do whose width is divided into parts of which some are empty."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        y = torch.cat([y[:, :0] * 2.0, y + 1.0], 1)
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
def test_a_tensor_without_elements_has_no_range(scheme):
    program, data = program_of(Joined(), (3, 6, 6))
    (reference,) = run_graph(graph_of(program), data)
    (found,) = Simulation(program, QuantSpec(scheme=scheme), data, format="tflite").run(data)
    assert sqnr_db(found, reference) > 25
