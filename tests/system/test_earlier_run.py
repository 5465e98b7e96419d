"""A run folder that an earlier version left: its options and records are read, and steps with other keys are made anew."""

import re
import shutil

import pytest
from support.paths import REPOSITORY, TESTS

from edgecompress.pipeline.run_records import read_run_records
from edgecompress.runs import read_run

RECIPE = REPOSITORY / "examples/resnet20_fashion_mnist/recipe.py"


@pytest.fixture
def earlier(tmp_path):
    """A run that was planned before steps were a table."""
    folder = tmp_path / "earlier"
    shutil.copytree(TESTS / "golden/run-before-steps", folder)
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("RECIPE", str(RECIPE)))
    return folder


def test_its_options_and_records_are_read(earlier, edgecompress):
    assert read_run(earlier).options.layer == ("conv1=dense",)
    records = read_run_records(earlier)
    assert len(records.stats.layers) == 22
    assert records.plan.macs < 0.35 * records.plan.macs_before
    answer = edgecompress("report", earlier)
    assert answer.code == 0, answer.err
    assert "layer3.2.conv1" in (earlier / "report.html").read_text()


def test_its_steps_are_made_anew_with_its_options(earlier, edgecompress):
    answer = edgecompress("analyze", earlier)
    assert answer.code == 0, answer.err
    assert re.search(r"^  analyze .* [\d.]+ s$", answer.err, re.MULTILINE)
    assert read_run(earlier).options.layer == ("conv1=dense",)
    assert re.search(r"^  analyze .* reused$", edgecompress("analyze", earlier).err, re.MULTILINE)
