"""The runner program, run as a device runs it, and what is believed of a runner's words."""

import json
import resource
import subprocess
import sys
import tempfile

import msgspec
import numpy as np
import pytest

from edgecompress import programs
from edgecompress.devices import open_device
from edgecompress.devices.protocol import FileRequest, RunnerReply, RunnerRequest, parse_reply
from edgecompress.devices.runner import infer, measure
from edgecompress.errors import ConfigError, DeviceError, EdgeCompressError
from edgecompress.files import sha256
from edgecompress.records import to_json


@pytest.fixture
def local():
    with open_device("local://") as device:
        yield device


def run(folder, request):
    (folder / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, programs.runner(), folder / "request.json"], capture_output=True, timeout=60, check=False, cwd=folder.parent
    )
    return done.returncode, json.loads((folder / "reply.json").read_bytes())


def request_for(*paths, **changes):
    formats = {".tflite": "tflite", ".ptl": "torchscript"}
    artifacts = [
        {"path": path.name, "sha256": sha256(path), "format": formats[path.suffix], "input_shapes": [[1, 1, 8, 8]]} for path in paths
    ]
    asked = {"schema": 1, "nonce": "n1", "mode": "measure", "reply": "reply.json", "artifacts": artifacts, "threads": 1}
    return asked | {"warmup_s": 0.0, "repetitions": 3, "time_limit_s": 30, "inputs": "inputs.npz", "outputs": "outputs.npz"} | changes


def test_the_reply_is_what_the_protocol_says(tiny):
    status, reply = run(tiny, request_for(tiny / "tiny.tflite", tiny / "tiny.ptl"))
    assert status == 0
    parsed = msgspec.convert(reply, RunnerReply)
    assert parsed.nonce == "n1"
    assert [len(result.latency_ms) for result in parsed.results] == [3, 3]
    assert parsed.machine.abi
    assert not list(tiny.glob("*.tmp"))


def test_a_time_limit_ends_the_measurement(tiny):
    _, reply = run(tiny, request_for(tiny / "tiny.tflite", repetitions=10**9, time_limit_s=0.05))
    assert 1 <= len(reply["results"][0]["latency_ms"]) < 10**6


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"mode": "explode"}, "request"),
        ({"schema": 2}, "request"),
        ({"artifacts": [{"path": "tiny.tflite", "sha256": "0" * 64, "format": "tflite"}]}, "hash"),
        ({"artifacts": [{"path": "none.tflite", "sha256": "0" * 64, "format": "tflite"}]}, "request"),
        ({"mode": "infer", "inputs": "tiny.tflite"}, "inputs"),
        ({"threads": "many"}, "request"),
        ({"threads": 0}, "request"),
        ({"repetitions": "many"}, "internal"),
    ],
)
def test_a_request_that_cannot_be_done_is_answered_with_its_kind(tiny, change, kind):
    status, reply = run(tiny, request_for(tiny / "tiny.tflite", **change))
    assert status != 0
    assert (reply["nonce"], reply["error"]["kind"]) == ("n1", kind)


def test_the_runner_starts_in_an_old_python_too():
    """Python 3.9 is what older boards have; nothing newer may stand in the file."""
    import ast

    ast.parse(programs.runner().read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("name", ["tiny.tflite", "tiny.ptl"])
def test_outputs_equal_eager_torch(local, tiny, tiny_samples, name):
    inputs, expected = tiny_samples
    (outputs,) = infer(local, tiny / name, [inputs])
    assert outputs.shape == expected.shape
    assert outputs.dtype == np.float32
    assert np.abs(outputs - expected).max() <= 1e-5 * np.ptp(expected)


def test_integer_artifacts_take_and_give_real_values(local, tiny, tiny_samples):
    inputs, _ = tiny_samples
    (outputs,) = infer(local, tiny / "tiny-int8.tflite", [inputs])
    assert 1 < len(np.unique(outputs)) <= 256  # dequantized int8
    assert np.abs(outputs).max() < 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 8, 8, 1)], "shape"),
        ([(4, 1, 8, 8), (4, 1, 8, 8)], "2 inputs given"),
        ([(4, 1, 8, 8), (3, 1, 8, 8)], "same number"),
        ([(0, 1, 8, 8)], "at least one"),
        ([], "at least one"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(local, tiny, shapes, message):
    with pytest.raises(ConfigError, match=message):
        infer(local, tiny / "tiny.tflite", [np.zeros(shape, np.float32) for shape in shapes])


def test_a_full_disk_here_is_said(local, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(EdgeCompressError, match="no space left"):
            infer(local, tiny / "tiny.tflite", [np.zeros((1000, 1, 8, 8), np.float32)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("edgecompress-*"))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x1c\x00\x00\x00TFL3" + b"\xff" * 100], ids=["empty", "text", "damaged"])
def test_a_corrupt_artifact_is_refused_and_not_believed(local, tmp_path, content):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(EdgeCompressError, match=r"refused it|SIGSEGV|SIGABRT") as caught:
        infer(local, path, [np.zeros((1, 1, 8, 8), np.float32)])
    assert caught.value.exit_code in {2, 6}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo '{\"nonce\": \"stale\"}' > \"$d/reply.json\"", "cannot be used"),
        ("echo garbage > \"$d/reply.json\"", "cannot be used"),
        ("printf '\\377\\376' > \"$d/reply.json\"", "cannot be used"),
        ("head -c 100000 /dev/zero | tr '\\0' '[' > \"$d/reply.json\"", "cannot be used"),
        ("head -c 20000000 /dev/zero > \"$d/reply.json\"", r"more than the \d+ allowed"),
        ('echo \'{"nonce": "other", "error": {"kind": "internal", "message": "x"}}\' > "$d/reply.json"', "another run"),
        ("mkdir \"$d/reply.json\"", "without a reply"),
        ("ln -s /etc/passwd \"$d/reply.json\"", "cannot be used"),
    ],
)  # fmt: skip
def test_a_runner_that_lies_is_not_believed(local, tiny, tmp_path, body, message):
    runner = tmp_path / "runner"
    runner.write_text(f'#!/bin/sh\nd=$(dirname "$1")\n{body}\n')
    with pytest.raises(DeviceError, match=message):
        measure(local, [tiny / "tiny.tflite"], runner=runner)


REQUEST = RunnerRequest(
    nonce="n1", mode="measure", artifacts=(FileRequest(path="a.tflite", sha256="aa", format="tflite"),), threads=1, reply="reply.json"
)
REPLY = {"schema": 1, "nonce": "n1", "runner": "r", "threads": 1, "started_at": "", "peak_rss_bytes": 1}
RESULT = {"sha256": "aa", "backend": "b", "load_ms": 1.0, "first_ms": 1.0, "latency_ms": [1.0]}


def test_an_honest_reply_is_accepted():
    assert parse_reply(msgspec.json.encode({**REPLY, "results": [RESULT]}), REQUEST, subject="x").results[0].latency_ms == (1.0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonce": "n2"}, "another run"),
        ({"schema": 2}, "schema 2"),
        ({"threads": 4}, "4 threads"),
        ({"extra": 1}, "cannot be used"),
        ({"peak_rss_bytes": -1}, "impossible"),
        ({"results": []}, "hashes"),
        ({"results": [{**RESULT, "sha256": "bb"}]}, "hashes"),
        ({"results": [{**RESULT, "latency_ms": []}]}, "measured nothing"),
        ({"results": [{**RESULT, "latency_ms": [-1.0]}]}, "impossible"),
        ({"results": [{**RESULT, "latency_ms": ["fast"]}]}, "cannot be used"),
        ({"results": [{**RESULT, "load_ms": 1e12}]}, "impossible"),
    ],
)
def test_a_reply_that_cannot_be_is_refused(change, message):
    with pytest.raises(DeviceError, match=message):
        parse_reply(msgspec.json.encode({**REPLY, "results": [RESULT], **change}), REQUEST, subject="x")


def test_a_message_from_a_device_cannot_draw():
    data = msgspec.json.encode({"nonce": "n1", "error": {"kind": "internal", "message": "\x1b[2J" + "x" * 9999}})
    with pytest.raises(DeviceError) as caught:
        parse_reply(data, REQUEST, subject="x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_a_user_supplied_runner_obeys_the_same_protocol(local, tiny, tmp_path):
    """Any executable will do; here ours, behind a shell script."""
    runner = tmp_path / "benchmark"
    runner.write_text(f'#!/bin/sh\nexec {sys.executable} {programs.runner()} "$1"\n')
    (result,) = measure(local, [tiny / "tiny.tflite"], runner=runner, repetitions=3)
    assert len(result.latency_ms) == 3


def test_requests_are_plain_json():
    assert json.loads(to_json(REQUEST))["artifacts"][0]["format"] == "tflite"
