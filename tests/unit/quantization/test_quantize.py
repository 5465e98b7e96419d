"""Calibration inputs and the int8 preview."""

import math

import pytest
import torch
from support.networks import Net, digits
from torch import nn

from edgecompress.data import Samples
from edgecompress.errors import ConfigError
from edgecompress.quantization.quantize import quantize, weight_sqnr_db
from edgecompress.records import QuantSpec
from edgecompress.targets import SCHEMES


def test_calibration_is_a_seeded_draw_of_the_data():
    train, _ = digits()
    (inputs,), result = quantize(Net(), train, schemes=("int8-static",), samples=50, seed=3)
    (again,), _ = quantize(Net(), train, schemes=("int8-static",), samples=50, seed=3)
    (other,), _ = quantize(Net(), train, schemes=("int8-static",), samples=50, seed=4)
    assert inputs.shape == (50, 1, 8, 8)
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, other)
    rows = {x.numpy().tobytes() for x in train.inputs}
    assert all(x.numpy().tobytes() in rows for x in inputs)
    assert (result.calibration_data, result.input_range) == ("digits, train", (float(inputs.min()), float(inputs.max())))


def test_asking_for_more_samples_than_the_data_have_takes_all():
    _, result = quantize(Net(), digits()[1], schemes=("int8-static",), samples=10_000)
    assert result.specs == (QuantSpec(scheme="int8-static", per_channel=True, calibration_samples=397),)


def test_only_calibrated_schemes_count_samples():
    _, result = quantize(Net(), digits()[0], schemes=tuple(SCHEMES), samples=20)
    assert {s.scheme: (s.per_channel, s.calibration_samples) for s in result.specs} == {
        "fp32": (False, 0),
        "fp16": (False, 0),
        "int8-dynamic": (True, 20),
        "int8-static": (True, 20),
        "int16x8": (True, 20),
        "int4-weights": (True, 20),
    }


def test_every_layer_is_previewed_and_per_channel_scales_never_hurt():
    _, result = quantize(Net(), digits()[0], schemes=("int8-static",), samples=8)
    assert [q.layer for q in result.layers] == ["stem", "body", "mix", "head"]
    assert all(q.per_channel_sqnr_db >= q.per_tensor_sqnr_db - 0.5 for q in result.layers)
    assert all(30 < q.per_tensor_sqnr_db < 60 for q in result.layers)  # 8 bits are worth 6 dB each, less the peak


def test_channels_of_different_size_gain_from_per_channel_scales():
    torch.manual_seed(0)
    w = torch.randn(8, 16) * torch.logspace(-3, 0, 8)[:, None]
    assert weight_sqnr_db(w, per_channel=True) > weight_sqnr_db(w, per_channel=False)
    small = weight_sqnr_db(w[:1], per_channel=True)
    assert small > 35


def test_weight_sqnr_equals_the_one_by_hand():
    w = torch.tensor([[127.0, 0.5], [127.0, 0.0]])  # at scale 1, 0.5 rounds to 0
    assert weight_sqnr_db(w, per_channel=False) == pytest.approx(20 * math.log10(float(w.norm()) / 0.5))
    assert weight_sqnr_db(torch.tensor([[127.0, 3.0]]), per_channel=False) == 200
    assert weight_sqnr_db(torch.zeros(3, 3), per_channel=True) == 200


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (digits()[0], {"schemes": ("int4",)}, "unknown scheme 'int4'; choose from int8-static"),
        (digits()[0], {"samples": 0}, "calibration: no samples"),
        (Samples(torch.empty(0, 1, 8, 8), None, source="empty"), {}, "calibration: no samples"),
        (Samples(torch.full((3, 1, 8, 8), math.nan), None, source="bad"), {}, "bad: 3 samples hold NaN or infinity"),
    ],
)
def test_bad_calibration_is_refused(data, options, message):
    with pytest.raises(ConfigError, match=message):
        quantize(nn.Flatten(), data, **{"schemes": ("int8-static",), **options})
