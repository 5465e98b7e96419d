"""The detector of the examples: its loss teaches, its metric counts what is found, and int8 keeps what it finds."""

import sys

import pytest
import torch
from support.paths import REPOSITORY

from edgecompress.data import collate_targets
from edgecompress.data.recipe import load_recipe
from edgecompress.network.analyze import analyze
from edgecompress.network.exported import to_program
from edgecompress.network.output_reading import read_specs
from edgecompress.quantization.float_tail import keep_tail_float
from edgecompress.quantization.simulation import Simulation
from edgecompress.records import QuantSpec

FOLDER = REPOSITORY / "examples" / "detector"
IMAGES = 40


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(str(FOLDER))


@pytest.fixture(scope="module")
def scenes(recipe):
    data = recipe.eval_data()
    items = [data[i] for i in range(IMAGES)]
    return torch.stack([x for x, _ in items]), collate_targets([target for _, target in items], "scenes")


@pytest.fixture(scope="module")
def detection(recipe):
    """The example's module of that name, as its recipe imports it."""
    return sys.modules[recipe.metric.given.__globals__["detection"].__name__]


def found_boxes(targets):
    """Return outputs that hold exactly the objects of `targets`."""
    n, objects = targets["classes"].shape
    scores = torch.nn.functional.one_hot(targets["classes"].clamp_min(0), 3) * (targets["classes"] >= 0)[..., None] * 0.9
    outputs = torch.zeros(n, 7, 180)
    outputs[:, :4, :objects], outputs[:, 4:, :objects] = targets["boxes"].transpose(1, 2), scores.transpose(1, 2)
    return outputs


def mean_average_precision(recipe, outputs, targets):
    metric = recipe.metric.start()
    metric.update(outputs, targets)
    return metric.compute()["mAP50"]


def test_the_network_is_small_finds_objects_and_its_output_is_described(recipe, scenes):
    model = recipe.model()
    x, targets = scenes
    assert analyze(model, recipe.example_inputs, name=recipe.name, measure=False).macs == pytest.approx(9.2e6, rel=0.1)
    assert (FOLDER / "weights.safetensors").stat().st_size < 300_000
    (spec,) = read_specs(to_program(model, recipe.example_inputs), declared=recipe.outputs)
    assert spec.channels == tuple(f"{side} in pixels" for side in ("left", "top", "right", "bottom")) + tuple(
        f"score of {name}" for name in recipe.labels
    )
    with torch.no_grad():
        assert mean_average_precision(recipe, model(x), targets) > 0.9


def test_int8_finds_as_much(recipe, scenes):
    model = recipe.model()
    x, targets = scenes
    data = recipe.calibration_data()
    calibration = (torch.stack([data[i][0] for i in range(IMAGES)]),)
    program, quant, said = keep_tail_float(to_program(model, recipe.example_inputs), QuantSpec(scheme="int8-static"), calibration)
    assert "float32" in said
    (outputs,) = Simulation(program, quant, calibration, format="tflite").run((x,))
    with torch.no_grad():
        dense = mean_average_precision(recipe, model(x), targets)
    assert mean_average_precision(recipe, outputs, targets) >= dense - 0.02


def test_scenes_are_the_same_each_time_and_their_boxes_hold_the_objects(recipe):
    (x, target), (again, _) = recipe.eval_data()[3], recipe.eval_data()[3]
    other, _ = recipe.train_data()[3]
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    real = target["classes"] >= 0
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    assert bool(((sides >= 9) & (sides <= 46))[real].all())
    assert not bool(target["boxes"][~real].any())


def test_the_loss_is_least_where_every_object_is_found(recipe, scenes, detection):
    _, targets = scenes
    outputs = torch.zeros(IMAGES, 7, 180)
    which = detection.assign(targets)
    assert bool(((which[:, None] == torch.arange(4)[:, None]).any(2) == (targets["classes"] >= 0)).float().mean() > 0.95)
    boxes = targets["boxes"].gather(1, which.clamp_min(0)[..., None].expand(-1, -1, 4))
    outputs[:, :4] = boxes.transpose(1, 2)
    right = torch.nn.functional.one_hot(targets["classes"].gather(1, which.clamp_min(0)).clamp_min(0), 3) * (which >= 0)[..., None]
    outputs[:, 4:] = right.transpose(1, 2).float()
    good = float(detection.loss(outputs, targets))
    moved = outputs.clone()
    moved[:, :4] += 5
    blind = outputs.clone().requires_grad_()
    worse = detection.loss(blind * torch.cat([torch.ones(4), torch.full((3,), 0.5)])[:, None], targets)
    worse.backward()
    assert good < 1e-3 < float(detection.loss(moved, targets))
    assert float(worse.detach()) > 0.05
    assert bool(blind.grad.isfinite().all())


def test_the_metric_counts_misses_doubles_and_wrong_classes(recipe, scenes):
    _, targets = scenes
    outputs = found_boxes(targets)
    assert mean_average_precision(recipe, outputs, targets) == pytest.approx(1.0)
    missed = outputs.clone()
    missed[: IMAGES // 2, 4:] = 0
    objects = targets["classes"] >= 0
    share = float(objects[IMAGES // 2 :].sum() / objects.sum())
    assert mean_average_precision(recipe, missed, targets) == pytest.approx(share, abs=0.1)
    wrong = outputs.clone()
    wrong[:, 4:] = outputs[:, [5, 6, 4]]
    assert mean_average_precision(recipe, wrong, targets) < 0.2
    doubled = outputs.clone()
    doubled[:, :4, 4:8], doubled[:, 4:, 4:8] = outputs[:, :4, :4] + 1, outputs[:, 4:, :4] * 0.9
    assert mean_average_precision(recipe, doubled, targets) == pytest.approx(1.0)
    beside = outputs.clone()
    beside[:, :4, 4:8], beside[:, 4:, 4:8] = (outputs[:, :4, :4] + 48) % 96, outputs[:, 4:, :4] / 0.9
    assert mean_average_precision(recipe, beside, targets) < 0.7


def test_the_area_under_precision_over_recall_is_that_of_a_hand_made_curve(detection):
    scores, found = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, False])
    assert detection.average_precision(scores, found, 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert detection.average_precision(scores[:0], found[:0], 3) == 0.0
