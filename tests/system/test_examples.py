"""The examples hold: the prebuilt files are what their manifests say, and each recipe loads, runs and is counted."""

import json

import pytest
import torch
from support.paths import REPOSITORY
from support.runs import complaint

from edgecompress.artifacts.publish import artifact_name
from edgecompress.data.recipe import load_recipe
from edgecompress.network.analyze import analyze
from edgecompress.records import Artifact, CompressionPlan, read_record
from edgecompress.targets import TARGETS

EXAMPLES = REPOSITORY / "examples"
PREBUILT = EXAMPLES / "prebuilt"
NAME = "resnet20_fashion_mnist"
VARIANTS = [("compressed", f, s) for f, s in TARGETS["android"].outputs] + [
    ("dense", f, "fp32") for f in dict.fromkeys(f for f, _ in TARGETS["android"].outputs)
]
EXPECTED = sorted(artifact_name(NAME, *variant) for variant in VARIANTS)


def test_the_prebuilt_artifacts_verify(edgecompress):
    answer = edgecompress("verify", PREBUILT, "--json")
    assert answer.code == 0, complaint(answer)
    manifests = json.loads(answer.out)
    assert sorted(m["path"] for m in manifests) == EXPECTED
    assert all(m["parity"]["samples"] >= 50 for m in manifests)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_prebuilt_manifest_is_of_the_whole_test_set_and_of_the_plan_beside_it(name):
    manifest = read_record(PREBUILT / f"{name}.json", Artifact)
    assert manifest.parity.samples == 5000
    assert manifest.top1 > 0.9
    assert manifest.labels[-1] == "Ankle boot"
    assert manifest.size_bytes == (PREBUILT / name).stat().st_size < 1_500_000
    plan = read_record(PREBUILT / "plan.json", CompressionPlan)
    assert plan.macs <= 0.35 * plan.macs_before
    assert bool(manifest.plan_sha256) == (manifest.model == "compressed")


@pytest.mark.parametrize(
    ("example", "macs", "classes"), [(NAME, 31.0e6, 10), ("efficientnet_lite0", 385e6, 1000)], ids=["resnet20", "efficientnet-lite0"]
)
def test_an_example_loads_is_counted_and_runs_on_its_own_data(example, macs, classes):
    recipe = load_recipe(str(EXAMPLES / example))
    model = recipe.model()
    stats = analyze(model, recipe.example_inputs, name=recipe.name, measure=False)
    assert stats.macs == pytest.approx(macs, rel=0.02)
    item = recipe.eval_data()[0]
    x = item[0] if isinstance(item, tuple) else item
    with torch.inference_mode():
        scores = model(x[None])
    assert scores.shape == (1, classes)
    assert bool(scores.isfinite().all())
    if recipe.labels:
        assert int(scores.argmax()) == int(item[1])
