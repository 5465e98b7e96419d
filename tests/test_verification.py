"""The arithmetic of proof: what compare says, and what the gate lets pass."""

import math
import re

import pytest
import torch
from torch import nn

from edgecompress.errors import ParityError
from edgecompress.records import Parity
from edgecompress.targets import SCHEMES, Scheme
from edgecompress.verification import compare, gate, keep_reference
from edgecompress.weights import read_state

REFERENCE = torch.tensor([[0.0, 1.0, 3.0], [2.0, -1.0, 0.0]])


def test_equal_outputs_are_perfect():
    parity = compare((REFERENCE.clone(),), (REFERENCE,))
    assert parity == Parity(max_abs=0.0, max_rel=0.0, sqnr_db=200.0, top1_agreement=1.0, samples=2)


def test_numbers_by_hand():
    outputs = REFERENCE.clone()
    outputs[1, 0] = -2.0  # differs by 4, and changes the arg-max of the second sample
    parity = compare((outputs,), (REFERENCE,))
    assert parity.max_abs == 4
    assert parity.max_rel == 4 / (3 - -1)
    assert parity.sqnr_db == pytest.approx(10 * math.log10((0 + 1 + 9 + 4 + 1 + 0) / 16))
    assert parity.top1_agreement == 0.5


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 2, 2)])
def test_outputs_that_are_no_scores_have_no_agreement(shape):
    assert compare((torch.ones(shape),), (torch.ones(shape),)).top1_agreement is None


def test_noise_without_signal_is_no_perfect_ratio():
    assert compare((torch.ones(2, 3),), (torch.zeros(2, 3),)).sqnr_db == -200
    assert compare((torch.zeros(2, 3),), (torch.zeros(2, 3),)).sqnr_db == 200


def test_constant_outputs_are_compared_absolutely():
    assert compare((torch.full((2, 3), 1.5),), (torch.ones(2, 3),)).max_rel == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
def test_other_dtypes_are_compared_in_double(dtype):
    assert compare((REFERENCE.to(dtype),), (REFERENCE.double(),)).max_abs == 0


@pytest.mark.parametrize(
    ("outputs", "reference", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"outputs have shape \(2, 3\), the model's \(3, 2\)"),
        (torch.full((2, 3), math.nan), torch.zeros(2, 3), "outputs hold NaN or infinity where the model's are finite"),
        (torch.full((2, 3), math.inf), torch.zeros(2, 3), "outputs hold NaN or infinity where the model's are finite"),
        (torch.zeros(2, 3), torch.full((2, 3), math.nan), "the model's own outputs hold NaN"),
        (torch.full((2, 3), math.nan), torch.full((2, 3), math.nan), "the model's own outputs hold NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(outputs, reference, message):
    with pytest.raises(ParityError, match=message):
        compare((outputs,), (reference,))


def parity(**numbers):
    return Parity(**{"max_abs": 0.0, "max_rel": 0.0, "sqnr_db": 60.0, "top1_agreement": 1.0, "samples": 100} | numbers)


@pytest.mark.parametrize(
    ("scheme", "numbers"),
    [
        ("fp32", {"max_rel": 1e-4, "top1_agreement": 0.5}),
        ("fp16", {"max_rel": 1e-2, "top1_agreement": 0.99}),
        ("int8-static", {"max_rel": 0.5, "top1_agreement": 0.98}),
        ("int8-dynamic", {"top1_agreement": None, "sqnr_db": 20.0}),
    ],
)
def test_the_limit_itself_passes(scheme, numbers):
    gate(parity(**numbers), SCHEMES[scheme], subject="net.tflite")


@pytest.mark.parametrize(
    ("scheme", "numbers", "message"),
    [
        ("fp32", {"max_rel": 1.1e-4}, "largest difference 0.00011 of the output range, 0.0001 allowed"),
        ("fp16", {"max_rel": 0.02, "top1_agreement": 0.9}, "0.02 of the output range, 0.01 allowed; top-1 agreement 90.00%"),
        ("int8-static", {"top1_agreement": 0.9799}, "top-1 agreement 97.99% on 100 samples, 98% required"),
        ("int8-dynamic", {"top1_agreement": None, "sqnr_db": 19.9}, "SQNR 19.9 dB, 20 dB required"),
    ],
)
def test_beyond_the_limit_is_refused_with_both_numbers(scheme, numbers, message):
    with pytest.raises(ParityError, match=rf"net\.tflite: departs from the model: .*{re.escape(message)}.*; export it again"):
        gate(parity(**numbers), SCHEMES[scheme], subject="net.tflite")


def test_every_scheme_has_a_gate():
    for scheme in SCHEMES.values():
        assert scheme.max_rel is not None or scheme.min_agreement is not None
    gate(parity(max_rel=9.0), Scheme(), subject="no limits")


def test_the_reference_holds_inputs_and_each_models_outputs(tmp_path):
    torch.manual_seed(0)
    models = {"dense": nn.Linear(3, 2).eval(), "compressed": nn.Linear(3, 2).eval()}
    inputs = torch.randn(100, 3)
    keep_reference(tmp_path, (inputs,), models)
    state = read_state(tmp_path / "reference.safetensors")
    assert torch.equal(state["input_0"], inputs[:64])
    assert all(torch.equal(state[f"{name}_output_0"], model(inputs[:64])) for name, model in models.items())


def test_the_reference_of_large_inputs_stays_small(tmp_path):
    keep_reference(tmp_path, (torch.zeros(40, 3, 224, 224),), {"dense": nn.Flatten()})
    assert len(read_state(tmp_path / "reference.safetensors")["input_0"]) == 6
    keep_reference(tmp_path, (torch.zeros(1, 3, 700, 700),), {"dense": nn.Flatten()})
    assert len(read_state(tmp_path / "reference.safetensors")["input_0"]) == 1
