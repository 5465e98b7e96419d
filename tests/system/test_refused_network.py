"""A network that compression has spoiled: one file is kept aside, no other is made, and the message says what to ask for instead."""

import re

import pytest
from support.runs import complaint

from edgecompress.records import CompressionPlan, ExportResult, read_record

FILES = ("--format", "torchscript", "--scheme", "int8-dynamic", "--scheme", "fp32")
DENSE = ("digits-dense-fp32.ptl", "digits-dense-int8-dynamic.ptl")
TRAINING = ("--epochs", "1", "--epoch-samples", "64")
SPOILED = ("--macs-ratio", "0.25", *TRAINING, "--calibration-samples", "64", "--verify-samples", "200", "--max-loss", "2")


@pytest.fixture
def refused(edgecompress, digits_recipe, tmp_path):
    """(answer, run folder) of an export that loses more than it may."""
    return edgecompress("export", digits_recipe, "--run", "r", *FILES, *SPOILED), tmp_path / "r"


def test_one_file_is_kept_aside_and_the_message_says_what_to_ask_for(refused, edgecompress):
    answer, run = refused
    assert answer.code == 5
    result = read_record(run / "export.json", ExportResult)
    assert {artifact.model for artifact in result.artifacts} == {"dense"}
    assert {path.name for path in (run / "artifacts").glob("*.rejected")} == {"digits-fp32.ptl.rejected"}
    told = {file.path: file.reason for file in result.refused}
    assert "too little is left of the dense network: top-1 went from" in told["digits-fp32.ptl"]
    assert "not made, since the compressed network itself loses too much: top-1 went from" in told["digits-int8-dynamic.ptl"]
    plan = read_record(run / "plan.json", CompressionPlan)
    (asked,) = set(re.findall(r"compress less, e\.g\. --macs-ratio ([\d.]+)", answer.err))
    assert plan.macs / plan.macs_before < float(asked) < 1
    assert complaint(answer).count("digits-") == 1
    assert "export      no compressed file; 2 of the network as given; 2 refused" in answer.err
    assert "edgecompress bench" not in answer.err


@pytest.mark.slow
def test_what_an_earlier_export_made_does_not_stay(refused, edgecompress):
    _, run = refused
    assert edgecompress("export", "r", "--max-loss", "100").code == 0
    assert (run / "artifacts" / "digits-int8-dynamic.ptl").exists()
    assert edgecompress("export", "r", "--max-loss", "2").code == 5
    assert {path.name for path in (run / "artifacts").glob("digits-*.ptl")} == set(DENSE)
