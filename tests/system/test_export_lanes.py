"""Formats are exported beside each other: files, manifests and refusals are those of one job at a time, and an interrupt ends all of it."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.runs import start

FORMATS = ("--format", "torchscript", "--format", "onnx", "--format", "tflite", "--scheme", "int8-static", "--scheme", "fp32")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def export(run, edgecompress, jobs):
    shutil.rmtree(run / "artifacts")  # of another export
    answer = edgecompress("export", run, *FORMATS, "--jobs", jobs)
    assert answer.code == 0, answer.err
    files = {path.name: path.read_bytes() for path in (run / "artifacts").glob("digits*") if path.suffix != ".json"}
    manifests = {path.name: json.loads(path.read_bytes()) for path in (run / "artifacts").glob("digits*.json")}
    result = json.loads((run / "export.json").read_bytes())
    for manifest in (*manifests.values(), *result["artifacts"]):
        del manifest["created_at"]
    return files, manifests, result


def test_the_files_and_records_are_the_same_for_any_number_of_jobs(run, edgecompress, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    one, three = export(run, edgecompress, 1), export(other, edgecompress, 3)
    assert len(one[0]) == 10
    assert one == three


def children_of(pid):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_text()
            except (OSError, IndexError):
                continue
            if parent == pid and "converters/to_" in command:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda by: by.name)
def test_no_converter_goes_on_when_an_export_of_two_formats_is_stopped(run, tmp_path, by):
    before = sorted(path.name for path in (run / "artifacts").iterdir())
    with start("export", run, "--format", "torchscript", "--format", "onnx", "--scheme", "fp32", "--jobs", "2", cwd=tmp_path) as process:
        end = time.monotonic() + 300
        while len(converters := children_of(process.pid)) < 2:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, by)
        process.communicate(timeout=120)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in converters):
        assert time.monotonic() < end
        time.sleep(0.05)
    if by != signal.SIGKILL:
        after = {path.name for path in (run / "artifacts").iterdir()} - set(before)
        assert {name for name in after if name.startswith(".")} == set()
