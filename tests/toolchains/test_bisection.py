"""Bisection names the layer at fault: a fault in each layer, a faulty converter program, a scheme that destroys one value."""

import sys
from collections import OrderedDict

import msgspec
import pytest
import torch
from support.converter_models import CausalBlock, Heads, Residual, settled
from support.paths import TESTS
from torch import nn

from edgecompress.artifacts.bisection import SignalLoss, find_first_departure
from edgecompress.artifacts.gate import Divergence, noise_failure
from edgecompress.artifacts.publish import ConversionOptions, Description, Evidence, export_artifact
from edgecompress.errors import ParityError, ToolchainError
from edgecompress.network.attention import unfuse_attention
from edgecompress.network.constants import get_constant, set_constant
from edgecompress.network.exported import example_outputs, to_program
from edgecompress.network.subgraph import extract_subgraph, graph_of, layers_of
from edgecompress.quantization.simulation import run_graph
from edgecompress.records import Artifact, QuantSpec, read_record
from edgecompress.targets import SCHEMES

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning"),
]
FAULTY = TESTS / "support" / "faulty_converter.py"


@pytest.fixture(scope="module")
def residual():
    """(model, inputs (64, 1, 28, 28), program)."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 28, 28)
    model = settled(Residual(), (x,))
    return model, x, to_program(model, (x[:1],))


def chain():
    """(model, inputs (64, 1, 12, 12)): the fewest layers of which one can be at fault."""
    torch.manual_seed(0)
    layers = {
        "first": nn.Conv2d(1, 8, 3),
        "relu": nn.ReLU(),
        "middle": nn.Conv2d(8, 8, 3),
        "flat": nn.Flatten(),
        "last": nn.Linear(512, 10),
    }
    return nn.Sequential(OrderedDict(layers)).eval(), torch.randn(64, 1, 12, 12)


def weighted(graph):
    """Name of a layer → its constant weight."""
    names = {}
    for layer in layers_of(graph):
        node = next(n for n in graph.graph.nodes if n.name == layer.node)
        node = node.args[0] if "+ relu" in layer.op else node
        if len(node.args) > 1 and getattr(node.args[1], "op", "") == "get_attr":
            names[layer.name] = node.args[1].target
    return names


class Spoiled:
    """Cuts of a program computed by PyTorch with one layer's weight spoiled: what a converter with one fault would give."""

    def __init__(self, batch, target, *, refused=()):
        self.batch, self.target, self.refused, self.cuts = batch, target, set(refused), []

    def __call__(self, program, taken, *, timeout_s):
        names = program.graph_signature.user_outputs
        self.cuts.append(len(names))
        if len(names) > 1 and self.refused:
            raise ToolchainError("no more than one output")
        graph = graph_of(program)
        if self.target in graph.state_dict():
            set_constant(graph, self.target, -get_constant(graph, self.target))
        return run_graph(graph, tuple(self.batch[i] for i in taken))


def test_a_part_of_a_program_computes_the_same_values_and_takes_only_the_inputs_it_needs():
    torch.manual_seed(0)
    inputs = torch.randn(1, 3, 10, 14), torch.randn(1, 5)
    program = to_program(Heads().eval(), inputs)
    graph = graph_of(program)
    for layer in layers_of(graph):
        part, taken = extract_subgraph(program, [layer.node])
        assert taken == ((0, 1) if layer.node in {"cat", "linear"} else (0,)), layer
        (found,), (expected,) = run_graph(graph_of(part), [inputs[i] for i in taken]), run_graph(graph, inputs, [layer.node])
        assert torch.equal(found, expected), layer
    two, _ = extract_subgraph(program, ["conv2d", "sigmoid"])
    assert [tuple(y.shape) for y in example_outputs(two)] == [(1, 4, 5, 7)] * 2


def test_layers_have_the_names_of_modules_and_include_their_activation(residual):
    found = [(layer.name, layer.op) for layer in layers_of(graph_of(residual[2]))]
    assert found[:2] == [("stem.0", "conv2d + relu"), ("blocks.0.main.0", "conv2d + relu")]
    assert ("blocks.0", "add + relu") in found
    assert found[-1] == ("fc", "linear")
    assert len({name for name, _ in found}) == len(found)


def test_masked_scores_are_never_the_end_of_a_part():
    x = (torch.randn(1, 12, 16),)
    for block, op in ((CausalBlock(), "baddbmm"), (unfuse_attention(CausalBlock()), "add")):
        graph = graph_of(to_program(block.eval(), x))
        (softmax,) = (node for node in graph.graph.nodes if "softmax" in node.name)
        assert softmax.args[0].name.startswith(op)
        found = [layer.node for layer in layers_of(graph)]
        assert softmax.name in found
        assert softmax.args[0].name not in found


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fault_in_any_layer_is_found_with_few_conversions(residual, every):
    _, x, program = residual
    graph, batch = graph_of(program), (x[:4],)
    layers = [layer.name for layer in layers_of(graph)]
    for layer, target in list(weighted(graph).items())[::every]:
        attempt = Spoiled(batch, target)
        departure = find_first_departure(program, attempt, batch, loss=SignalLoss(0.0), samples=[7, 5, 3, 1])
        assert departure.layer == layer
        assert departure.exact
        assert len(attempt.cuts) <= 4
        node = next(known.node for known in layers_of(graph) if known.name == layer)
        (expected,) = run_graph(graph, batch, [node])
        row = [7, 5, 3, 1].index(departure.sample)
        assert departure.expected == pytest.approx(float(expected[(row, *departure.index)]))
        assert departure.found != pytest.approx(departure.expected)
        assert departure.sqnr_db < 20
    assert len(layers) == 16


def test_bisection_falls_back_to_one_output_where_several_cannot_be_converted(residual):
    _, x, program = residual
    batch = (x[:2],)
    layer, target = next(item for item in weighted(graph_of(program)).items() if item[0] == "blocks.0.side.0")
    attempt = Spoiled(batch, target, refused=("several",))
    assert find_first_departure(program, attempt, batch, loss=SignalLoss(0.0)).layer == layer
    assert attempt.cuts.count(1) >= 4


def test_bisection_out_of_time_returns_a_result_marked_inexact(residual):
    _, x, program = residual
    batch = (x[:2],)
    target = weighted(graph_of(program))["stem.0"]
    departure = find_first_departure(program, Spoiled(batch, target), batch, loss=SignalLoss(0.0), timeout_s=0)
    assert (departure.layer, departure.exact) == ("fc", False)


def test_a_program_without_a_fault_has_no_layer_that_departs():
    heads = to_program(Heads().eval(), (torch.randn(1, 3, 10, 14), torch.randn(1, 5)))
    batch = torch.randn(2, 3, 10, 14), torch.randn(2, 5)
    assert find_first_departure(heads, Spoiled(batch, "none"), batch, loss=SignalLoss(0.0)) is None


def test_no_layer_is_at_fault_for_float32_rounding_and_nothing_is_converted(residual):
    _, x, program = residual
    batch = (x[:2],)
    attempt = Spoiled(batch, weighted(graph_of(program))["stem.0"])
    assert find_first_departure(program, attempt, batch, loss=SignalLoss(100.0)) is None
    assert attempt.cuts == []
    assert find_first_departure(program, attempt, batch, loss=SignalLoss(99.0)) is not None


def test_nan_is_a_departure_without_a_value(residual):
    _, x, program = residual
    batch = (x[:2],)
    target = weighted(graph_of(program))["blocks.1.main.0"]

    class Nan(Spoiled):
        def __call__(self, program, taken, *, timeout_s):
            found = super().__call__(program, taken, timeout_s=timeout_s)
            spoiled = self.target in graph_of(program).state_dict()
            return tuple(torch.full_like(y, torch.nan) for y in found) if spoiled and len(found) == 1 else found

    departure = find_first_departure(program, Nan(batch, target), batch, loss=SignalLoss(-200.0))
    assert departure.layer == "blocks.1.main.0"
    assert departure.found is None
    assert departure.max_rel is None


@pytest.mark.parametrize(("artifact_db", "simulated_db", "wrong"), [(9.0, 25.0, True), (9.0, 15.0, False), (12.0, 40.0, False)])
def test_a_noisy_file_of_an_accurate_scheme_fails_even_where_top_1_agrees(artifact_db, simulated_db, wrong):
    assert bool(noise_failure(SignalLoss(artifact_db, simulated_db))) == wrong


# Real converters


def refusal(folder, model, x, form, scheme, *, layer="", route=""):
    """(the error, the manifest of the rejected file) of an export; with `layer` by a converter that spoils it."""
    python = sys.executable
    if layer:
        script = folder / "python"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAULTY}" "{layer}" "$@"\n')
        script.chmod(0o755)
        python = str(script)
    quantized = scheme != "fp32"
    with pytest.raises(ParityError) as caught:
        export_artifact(
            model,
            (x[:1],),
            folder=folder,
            about=Description(name="net", variant="dense"),
            format=form,
            quant=QuantSpec(scheme=scheme),
            limits=msgspec.structs.replace(SCHEMES[scheme].gate, max_rel=SCHEMES[scheme].gate.max_rel or 0.1),
            evidence=Evidence(inputs=(x,)),
            calibration=(x[:32],) if quantized else None,
            options=ConversionOptions(route=route, python=python),
        )
    left = {path.name for path in folder.iterdir() if path.is_file()} - {"python"}
    (file,) = (name for name in left if name.endswith(".rejected"))
    assert left == {file, f"{file}.json"}
    assert isinstance(caught.value, Divergence)
    manifest = read_record(folder / f"{file}.json", Artifact)
    assert manifest.departure == caught.value.departure
    return str(caught.value), manifest


@pytest.mark.parametrize(
    ("form", "scheme", "layer"),
    [
        ("torchscript", "fp32", "middle"),
        pytest.param("torchscript", "int8-static", "middle", marks=pytest.mark.slow),
        pytest.param("torchscript", "fp32", "blocks.1.main.3", marks=pytest.mark.slow),
        pytest.param("torchscript", "int8-static", "blocks.0.main.4", marks=pytest.mark.slow),
        pytest.param("tflite", "fp32", "middle", marks=pytest.mark.slow),
        pytest.param("tflite", "int8-static", "middle", marks=pytest.mark.slow),
    ],
)
def test_the_layer_that_a_faulty_converter_spoils_is_named(residual, tmp_path, form, scheme, layer):
    model, x = chain() if layer == "middle" else residual[:2]
    message, manifest = refusal(tmp_path, model, x, form, scheme, layer=layer)
    departure = manifest.departure
    assert departure.layer == layer
    assert f"the first layer that departs is {layer} (conv2d" in message
    assert "so the converter" in message
    if scheme == "fp32":
        assert departure.scheme_alone is None
        assert manifest.simulated is None
    else:
        assert departure.scheme_alone is False
        assert departure.simulated_db > departure.sqnr_db + 10
        assert manifest.simulated.sqnr_db < 15


@pytest.mark.parametrize("form", ["torchscript", pytest.param("tflite", marks=pytest.mark.slow)])
def test_a_harmful_scheme_is_distinguished_from_a_wrong_converter_where_top_1_agrees(tmp_path, form):
    """The value is the small difference of two large ones, of which 8 bits leave nothing."""

    class Valued(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores, self.more, self.less = nn.Linear(16, 2), nn.Linear(16, 1, bias=False), nn.Linear(16, 1, bias=False)
            self.less.weight.data = 0.01 * self.less.weight.data - self.more.weight.data

        def forward(self, x):
            return self.scores(x), self.more(x) + self.less(x)

    torch.manual_seed(0)
    model, x = Valued().eval(), torch.randn(256, 16)
    with torch.no_grad():
        x = x[model.scores(x).softmax(1).amax(1) > 0.6][:64]  # clear classes
    message, manifest = refusal(tmp_path, model, x, form, "int8-static")
    assert manifest.parity.top1_agreement == 1
    assert "dB of output_1, 20 dB required" in message
    assert manifest.departure.op == "add"
    assert manifest.departure.scheme_alone
    assert "so the scheme hurts" in message
    assert manifest.departure.simulated_db < 20


@pytest.mark.parametrize(
    ("artifact_db", "simulated_db", "alone"),
    [(12.0, 14.0, True), (2.0, 14.0, False), (-37.0, -25.0, True), (-20.0, 5.0, False), (-2.6, 15.2, False)],
)
def test_a_scheme_is_at_fault_that_loses_as_much_as_the_artifact_or_leaves_mostly_noise(
    artifact_db: float, simulated_db: float, alone: bool
) -> None:
    assert SignalLoss(artifact_db, simulated_db).is_scheme_at_fault is alone
