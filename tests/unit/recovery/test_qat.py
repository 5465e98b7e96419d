"""Quantization-aware training starts from rounded weights, helps where rounding loses accuracy, and resumes a killed run."""

import msgspec
import pytest
import torch
from support.networks import Net, Uneven, digits, trained
from torch import nn

import edgecompress
from edgecompress.artifacts.publish import Description, Evidence, export_artifact
from edgecompress.data import Samples
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.constants import get_constant
from edgecompress.network.exported import to_program
from edgecompress.network.subgraph import graph_of
from edgecompress.quantization.qat_module import FakeQuantizedModule, replace_constants
from edgecompress.quantization.simulation import Simulation, round_integer_weights
from edgecompress.records import QuantSpec
from edgecompress.recovery.qat import QatOptions, qat
from edgecompress.targets import SCHEMES

IMAGE = (torch.zeros(1, 1, 8, 8),)
INT8 = QuantSpec(scheme="int8-static")
QUICK = QatOptions(epochs=2, samples=256, threads=1)
LOOSE = msgspec.structs.replace(SCHEMES["int8-static"].gate, min_agreement=0.5)


@pytest.fixture(scope="module")
def uneven():
    """Return a network that loses accuracy when its weights and activations are only rounded."""
    return trained(Uneven(octaves=8), epochs=10).spread()


@pytest.fixture(scope="module")
def calibration():
    return (digits()[0].inputs[:128],)


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_before_training_the_module_equals_the_simulation_with_and_without_gradients(uneven, calibration):
    program = round_integer_weights(to_program(uneven, IMAGE), INT8, calibration)
    student = FakeQuantizedModule(program, INT8, calibration)
    (wanted,) = Simulation(program, INT8, calibration, format="onnx").run(calibration)
    (found,) = student(*calibration)
    assert found.requires_grad
    assert torch.equal(found, wanted)


def test_gradients_reach_every_weight_and_bias(uneven, calibration):
    student = FakeQuantizedModule(to_program(uneven, IMAGE), INT8, calibration)
    student(*calibration)[0].square().sum().backward()
    layers = [m for m in uneven.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(student.targets) == 2 * len(layers)
    for name, change in zip(student.targets, student.changes, strict=True):
        assert bool(change.grad.isfinite().all()), name
        assert bool(change.grad.any()), name


def test_a_vanishing_learning_rate_changes_nothing(uneven, calibration):
    train, held_out = digits()
    few = Samples(train.inputs[:306], train.labels[:306], source="few digits")  # 50 are held out, 256 in each epoch, in another order
    options = msgspec.structs.replace(QUICK, learning_rate=1e-12)
    _, result = qat(uneven, few, example_inputs=IMAGE, calibration=calibration, eval_data=held_out, options=options)
    assert (result.top1, result.agreement) == (result.before_top1, result.before_agreement)
    assert result.epochs[2].loss == pytest.approx(result.epochs[1].loss, rel=1e-4)


def test_trained_weights_are_on_the_grid_of_the_converters(uneven, calibration):
    constants, _ = qat(uneven, digits()[0], example_inputs=IMAGE, calibration=calibration, options=msgspec.structs.replace(QUICK, epochs=1))
    for name in ("stem.weight", "dw1.weight", "project.weight", "expand.weight", "dw2.weight", "head.weight"):
        weight = constants[name].flatten(1)
        steps = 127 * weight / weight.abs().amax(1, keepdim=True)
        assert float((steps - steps.round()).abs().max()) < 1e-3, name
    program = replace_constants(to_program(uneven, IMAGE), constants)
    again = graph_of(round_integer_weights(program, INT8, calibration))
    assert torch.allclose(get_constant(again, "project.weight"), constants["project.weight"], rtol=1e-5)


def test_a_layer_without_bias_gets_one_and_a_float_layer_is_not_quantized(calibration):
    model = trained(Net(8), epochs=1)
    model.mix.bias = None
    kept = QuantSpec(scheme="int8-static", layers={"stem": "fp32"})
    constants, _ = qat(model, digits()[0], example_inputs=IMAGE, calibration=calibration, quant=kept, options=QUICK)
    assert "mix_weight_rounding_bias" in constants
    program = replace_constants(to_program(model, IMAGE), constants)
    graph = graph_of(program)
    assert torch.equal(get_constant(graph, "mix_weight_rounding_bias"), constants["mix_weight_rounding_bias"])
    (name,) = (name for name in constants if name.startswith("stem") and name.endswith("weight"))
    steps = 127 * constants[name].flatten(1) / constants[name].abs().amax((1, 2, 3))[:, None]
    assert float((steps - steps.round()).abs().max()) > 0.1


@pytest.mark.slow
def test_the_file_agrees_better_than_one_with_rounded_weights(uneven, calibration, tmp_path):
    train, held_out = digits()
    options = QatOptions(epochs=4, samples=1400, threads=1)
    constants, result = qat(uneven, train, example_inputs=IMAGE, calibration=calibration, eval_data=held_out, options=options)
    program = to_program(uneven, IMAGE)
    made = [
        export_artifact(
            uneven,
            IMAGE,
            folder=tmp_path / name,
            about=Description(name="net", variant="compressed"),
            format="tflite",
            quant=INT8,
            limits=LOOSE,
            evidence=Evidence(inputs=(held_out.inputs,), labels=held_out.labels),
            program=chosen,
            calibration=calibration,
        )
        for name, chosen in (("rounded", program), ("trained", replace_constants(program, constants)))
    ]
    before, after = (artifact.parity for artifact in made)
    assert before.top1_agreement < 0.96
    assert after.top1_agreement > before.top1_agreement + 0.01
    assert after.sqnr_db > before.sqnr_db + 2
    # What was promised of the simulation is what the runtime gives.
    assert before.top1_agreement == pytest.approx(result.before_agreement, abs=0.015)
    assert after.top1_agreement == pytest.approx(result.agreement, abs=0.015)


class KilledError(Exception):
    """Stands for a kill in the middle of an epoch."""


def test_a_killed_run_resumes_bit_for_bit(uneven, calibration, tmp_path):
    def kill_in_epoch_2(iterable, description, total=None):
        for i, item in enumerate(iterable):
            if description == "int8 epoch 2/2" and i == 2:
                raise KilledError
            yield item

    call = {"example_inputs": IMAGE, "calibration": calibration, "options": QUICK}
    train, _ = digits()
    whole, expected = qat(uneven, train, **call)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        qat(uneven, train, **call, checkpoint_path=path, track=kill_in_epoch_2)
    resumed, result = qat(uneven, train, **call, checkpoint_path=path)
    assert same_tensors(whole, resumed)
    assert [e.loss for e in result.epochs] == [e.loss for e in expected.epochs]


def test_training_that_does_not_help_is_discarded(uneven, calibration):
    options = msgspec.structs.replace(QUICK, epochs=1, learning_rate=30.0)
    constants, result = qat(uneven, digits()[0], example_inputs=IMAGE, calibration=calibration, options=options)
    program = round_integer_weights(to_program(uneven, IMAGE), INT8, calibration)
    assert same_tensors(constants, FakeQuantizedModule(program, INT8, calibration).quantized_constants())
    assert "no closer" in result.note
    assert result.agreement == result.before_agreement


def test_the_callers_model_stays_unchanged(uneven, calibration):
    before = {name: value.clone() for name, value in uneven.state_dict().items()}
    qat(uneven, digits()[0], example_inputs=IMAGE, calibration=calibration, options=msgspec.structs.replace(QUICK, epochs=1))
    assert same_tensors(before, uneven.state_dict())
    assert all(p.grad is None for p in uneven.parameters())


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (None, {}, r"fewer than two training samples; give train_data\(\) or --data"),
        (Samples(torch.zeros(1, 1, 8, 8), None, source="one"), {}, "fewer than two training samples"),
        (digits()[0], {"epochs": -1}, "epochs must be ≥ 1"),
        (digits()[0], {"learning_rate": 0.0}, "learning rate > 0"),
        (digits()[0], {"batch_size": 1}, "batch size ≥ 2"),
    ],
)
def test_too_little_data_and_options_out_of_range_are_refused(uneven, calibration, data, change, message):
    with pytest.raises(ConfigError, match=message):
        qat(uneven, data, example_inputs=IMAGE, calibration=calibration, options=msgspec.structs.replace(QUICK, **change))


def test_a_run_without_training_data_says_what_is_missing(tmp_path):
    few = {"format": ("torchscript",), "scheme": ("int8-static",), "calibration_samples": 16, "verify_samples": 16}
    data = {"calibration_data": digits()[0], "eval_data": digits()[1]}
    with pytest.raises(ConfigError, match=r"no training data for --qat-epochs; add train_data\(\) or give --data"):
        edgecompress.export(trained(Net()), IMAGE, run=tmp_path / "r", qat_epochs=1, **data, **few)


def test_a_network_without_integer_layers_is_refused(calibration):
    with pytest.raises(UnsupportedError, match="no layer has int8 weights to train"):
        qat(nn.Flatten(), digits()[0], example_inputs=IMAGE, calibration=calibration)
