"""Mixed precision keeps as few layers in float as the gate needs, and a real converter's file then passes that gate."""

import msgspec
import pytest
import torch
from support.converter_models import Residual, settled
from support.networks import Net, Uneven, digits, trained

from edgecompress.artifacts.publish import Description, Evidence, export_artifact
from edgecompress.errors import ConfigError
from edgecompress.network.exported import to_program
from edgecompress.network.parity import describe_shortfalls, sqnr_db
from edgecompress.network.subgraph import graph_of
from edgecompress.options import Options, parse_layer_schemes, update_options
from edgecompress.quantization.mixed_precision import LayerwiseSimulation, plan_precision, tighten_gate
from edgecompress.quantization.simulation import Simulation, run_graph
from edgecompress.records import ExportResult, QatResult, QuantizeResult, QuantSpec, read_record
from edgecompress.targets import SCHEMES

IMAGE = (torch.zeros(1, 1, 8, 8),)
LIMITS = SCHEMES["int8-static"].gate


@pytest.fixture(scope="module")
def uneven():
    return trained(Uneven(octaves=9), epochs=6).spread()


@pytest.fixture(scope="module")
def calibration():
    return (digits()[0].inputs[:256],)


@pytest.fixture(scope="module")
def precision_plan(uneven, calibration):
    return plan_precision(to_program(uneven, IMAGE), calibration, scheme="int8-static", limits=LIMITS)


def test_a_layerwise_simulation_equals_a_simulation_for_any_choice_of_layers(uneven, calibration):
    program = to_program(uneven, IMAGE)
    simulation = LayerwiseSimulation(program, "int8-static", calibration)
    assert simulation.layers == ("stem", "dw1", "project", "expand", "dw2", "head")
    for layers in ({}, {"project": "fp32", "expand": "fp32"}, dict.fromkeys(simulation.layers, "fp32")):
        spec = QuantSpec(scheme="int8-static", layers=layers)
        (wanted,) = Simulation(program, spec, calibration, format="onnx").run(calibration)
        # Its ranges were found with all weights rounded, and are a little off where some are not.
        assert sqnr_db(simulation.run(calibration, spec)[0], wanted) > 40, layers


def test_a_layerwise_simulation_without_integers_equals_the_network(uneven, calibration):
    program = to_program(uneven, IMAGE)
    (exact,) = run_graph(graph_of(program), calibration)
    (found,) = LayerwiseSimulation(program, "int8-static", calibration).run(calibration, QuantSpec(scheme="fp32"))
    assert torch.allclose(found, exact, atol=1e-5)


def test_as_few_of_the_most_sensitive_layers_as_pass_the_gate_stay_in_float(uneven, calibration, precision_plan):
    kept = [layer for layer in precision_plan.layers if layer.scheme == "fp32"]
    assert 0 < len(kept) < len(precision_plan.layers)
    assert max(k.alone_sqnr_db for k in kept) < min(layer.alone_sqnr_db for layer in precision_plan.layers if layer not in kept)
    assert all(1 >= layer.alone_agreement > precision_plan.before.top1_agreement for layer in precision_plan.layers)
    assert precision_plan.before.top1_agreement < 0.98 < precision_plan.wanted_agreement <= precision_plan.reached.top1_agreement
    assert precision_plan.note == ""
    assert precision_plan.schemes == {layer.layer: "fp32" for layer in kept}
    by_hand = dict.fromkeys([k.layer for k in sorted(kept, key=lambda k: k.alone_sqnr_db)][:-1], "fp32")
    fewer = plan_precision(to_program(uneven, IMAGE), calibration, scheme="int8-static", limits=LIMITS, fixed=by_hand)
    assert describe_shortfalls(fewer.before, tighten_gate(LIMITS, 128))
    assert fewer.schemes == precision_plan.schemes


def test_a_network_that_passes_in_int8_keeps_no_float_layer(calibration):
    limits = msgspec.structs.replace(LIMITS, min_agreement=0.9)
    found = plan_precision(to_program(trained(Net()), IMAGE), calibration, scheme="int8-static", limits=limits)
    assert (found.schemes, found.reached, found.note) == ({}, found.before, "")


def test_a_gate_that_float_layers_cannot_reach_is_noted_and_approached(uneven, calibration):
    fixed = {"expand": "int8-static"}  # which reads the uneven channels as integers, whatever else is float
    limits = msgspec.structs.replace(LIMITS, min_agreement=1.0)
    found = plan_precision(to_program(uneven, IMAGE), calibration, scheme="int8-static", limits=limits, fixed=fixed)
    assert found.note.startswith("float layers alone do not mend it: top-1 agreement")
    assert found.reached.top1_agreement >= found.before.top1_agreement
    assert "expand" not in {layer.layer for layer in found.layers}


@pytest.mark.slow
def test_the_file_fails_the_gate_in_int8_and_passes_it_in_mixed_precision(uneven, calibration, precision_plan, tmp_path):
    held_out = digits()[1]
    for layers in ({}, precision_plan.schemes):
        artifact = export_artifact(
            uneven,
            IMAGE,
            folder=tmp_path,
            about=Description(name="net", variant="compressed"),
            format="tflite",
            quant=QuantSpec(scheme="int8-static", layers=layers),
            limits=msgspec.structs.replace(LIMITS, min_agreement=0.0),
            evidence=Evidence(inputs=(held_out.inputs,)),
            calibration=calibration,
        )
        assert bool(describe_shortfalls(artifact.parity, LIMITS)) == (not layers)
        assert artifact.parity.top1_agreement == pytest.approx(artifact.simulated.top1_agreement, abs=0.1)


def test_layers_of_a_block_given_by_hand_are_not_planned():
    x = torch.randn(16, 1, 28, 28)
    program = to_program(settled(Residual(), (x,)), (x[:1],))
    found = plan_precision(program, (x,), scheme="int8-static", limits=LIMITS, fixed={"blocks.0": "fp32"})
    assert found.schemes["blocks.0"] == "fp32"
    assert {layer.layer.rpartition(".")[0] for layer in found.layers} >= {"stem", "blocks.1.main"}
    assert not [layer for layer in found.layers if layer.layer.startswith("blocks.0")]


@pytest.mark.parametrize("n", [1, 3])
def test_too_few_calibration_inputs_are_refused(uneven, n):
    with pytest.raises(
        ConfigError, match=rf"mixed precision: {n} calibration inputs, at least 4 are needed; give more with --calibration-samples"
    ):
        plan_precision(to_program(uneven, IMAGE), (torch.zeros(n, 1, 8, 8),), scheme="int8-static", limits=LIMITS)


def test_layer_schemes_given_by_hand_are_parsed():
    assert parse_layer_schemes(Options(layer_scheme=("a.b=fp32", "c=int8-dynamic"))) == {"a.b": "fp32", "c": "int8-dynamic"}
    for text, message in (
        ("stem", "write NAME=SCHEME, e.g. stem=fp32"),
        ("=fp32", "write NAME=SCHEME"),
        ("a=int3", "unknown scheme 'int3'"),
    ):
        with pytest.raises(ConfigError, match=message):
            update_options(Options(), {"layer_scheme": (text,)})
    with pytest.raises(ConfigError, match="qat_epochs -1: must be at least 0"):
        update_options(Options(), {"qat_epochs": -1})


@pytest.mark.slow
def test_an_export_takes_the_schemes_and_the_trained_weights(edgecompress, digits_recipe, tmp_path):
    few = ("--epochs", "0", "--epoch-samples", "128", "--calibration-samples", "32", "--verify-samples", "64", "--macs-ratio", "1")
    asked = ("--format", "tflite", "--scheme", "int8-static", "--qat-epochs", "1", "--layer-scheme", "stem=fp32", "--mixed-precision")
    answer = edgecompress("export", digits_recipe, "--run", "run", *asked, *few, "--min-int8-agreement", "0.9")
    assert answer.code == 0, answer.err
    (artifact,) = (a for a in read_record(tmp_path / "run/export.json", ExportResult).artifacts if a.model == "compressed")
    assert artifact.quant.layers["stem"] == "fp32"
    assert read_record(tmp_path / "run/qat.json", QatResult).scheme == "int8-static"
    assert read_record(tmp_path / "run/quantize.json", QuantizeResult).precision.by_hand == {"stem": "fp32"}
    assert (tmp_path / "run/qat.safetensors").is_file()
    again = edgecompress("qat", "run")
    assert again.code == 0, again.err
    assert "trained" in again.out
    shown = edgecompress("quantize", "run")
    assert "alone in int8, dB" in shown.out
    assert "as asked" in shown.out
    refused = edgecompress("quantize", "run", "--layer-scheme", "stemm=fp32")
    assert (refused.code, "did you mean stem" in refused.err) == (2, True)
