"""Accuracy on a pool, and devices named in an inventory that is passed as an argument."""

import json
import sys

import pytest
from support.paths import REPOSITORY

from edgecompress.devices.evaluate import evaluate
from edgecompress.devices.farm import evaluate_pool
from edgecompress.errors import ConfigError

ROOT = REPOSITORY
RECIPE = ROOT / "examples" / "resnet20_fashion_mnist"
ARTIFACTS = [ROOT / "examples" / "prebuilt" / f"resnet20_fashion_mnist-{scheme}.tflite" for scheme in ("int8-static", "fp32")]


@pytest.fixture
def shelf(tmp_path, ssh_server):
    """An inventory that no variable names, with this machine and a board that has an interpreter of its own."""
    path = tmp_path / "shelf.toml"
    board = f'[[device]]\nurl = "{ssh_server.url}"\nname = "board"\nlabels = ["shelf"]\npython = "{sys.executable}"\n'
    path.write_text(f'[[device]]\nurl = "local://"\nname = "desk"\nlabels = ["shelf"]\n{board}')
    return path


def test_a_pool_finds_what_one_device_finds_each_artifact_once_on_some_device(shelf, ssh_server, edgecompress, tmp_path):
    answer = edgecompress(
        "evaluate", *ARTIFACTS, "--device", "pool:shelf", "--inventory", shelf, "--data", RECIPE, "--samples", 64, "--json"
    )
    assert answer.code == 0, answer.err
    assert "2 of 2 jobs done" in answer.err
    found = json.loads(answer.out)
    assert sorted(record["artifact"] for record in found) == sorted(path.name for path in ARTIFACTS)
    assert {record["device"]["url"] for record in found} <= {"local://", ssh_server.url}
    alone = {record.artifact: record for record in evaluate(ARTIFACTS, data=RECIPE, samples=64)}
    for record in found:
        assert (record["top1"], record["data_sha256"]) == (alone[record["artifact"]].top1, alone[record["artifact"]].data_sha256)
        assert record["problem"] == ""
    assert len(list(tmp_path.glob("results/*/accuracy/*.json"))) == 2


def test_what_does_not_fit_is_refused_before_a_pool_is_asked(shelf, tmp_path):
    with pytest.raises(ConfigError, match="no such artifact"):
        evaluate_pool([tmp_path / "gone.tflite"], device="pool:shelf", inventory=shelf)
    with pytest.raises(ConfigError, match="labels there: shelf"):
        evaluate_pool(ARTIFACTS, device="pool:attic", inventory=shelf)


@pytest.mark.parametrize("verb", [["bench", "--repetitions", "3", "--warmup", "0"], ["evaluate", "--samples", "4", "--data", RECIPE]])
def test_a_name_of_an_inventory_that_is_given_is_found_and_no_other_inventory_is_asked(shelf, ssh_server, edgecompress, verb):
    answer = edgecompress(*verb, ARTIFACTS[0], "--device", "board", "--inventory", shelf, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)[0]["device"]["url"] == ssh_server.url
    assert edgecompress(*verb, ARTIFACTS[0], "--device", "board", "--json").code == 2
