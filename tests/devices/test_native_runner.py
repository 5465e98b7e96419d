"""The runner for devices without Python, as ARM code on the emulated Raspberry Pi: its protocol, and its outputs against the host's."""

import hashlib
import json
import shutil
import subprocess
from pathlib import PurePosixPath

import numpy as np
import pytest
from support.emulated_pi import trust_device
from support.native_runner import build_native_runner
from support.paths import REPOSITORY
from support.tiny_models import GOLDEN

from edgecompress.devices import open_device
from edgecompress.devices.manifests import read_manifest
from edgecompress.devices.runners.execute import compute_outputs, measure_latencies
from edgecompress.devices.runners.exit_status import read_elf_machine
from edgecompress.errors import ConfigError
from edgecompress.records import BenchmarkOptions

PREBUILT = REPOSITORY / "examples" / "prebuilt"
TINY = GOLDEN / "tiny.tflite"


@pytest.fixture
def device(pi):
    with open_device(pi) as opened:
        yield opened


def request_for(data, **changes):
    artifact = {"path": "a.tflite", "sha256": hashlib.sha256(data).hexdigest(), "format": "tflite", "input_shapes": []}
    fields = {"schema": 1, "nonce": 'n\u00f6nce "1"', "mode": "measure", "artifacts": [artifact], "threads": 1, "reply": "reply.json"}
    return {**fields, "warmup_s": 0, "repetitions": 2, **changes}


def output_step(path):
    """Return the quantization step of the file's output."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path)).get_output_details()[0]["quantization"][0]


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8-static", "int8-dynamic"])
def test_outputs_are_the_hosts(scheme, device):
    path = PREBUILT / f"resnet20_fashion_mnist-{scheme}.tflite"
    shape = read_manifest(path).inputs[0].shape[1:]
    samples = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
    (there,) = compute_outputs(device, path, [samples], runner=build_native_runner())
    with open_device("local://") as here:
        (expected,) = compute_outputs(here, path, [samples])
    assert there.shape == expected.shape
    off = np.abs(there - expected).max()
    quantized = scheme == "int8-static" and output_step(path)
    assert off <= (1.001 * quantized if quantized else 1e-5 * np.ptp(expected))


def test_measures_interleaved_with_every_raw_value_and_its_conditions(device):
    files = [GOLDEN / "tiny.tflite", GOLDEN / "tiny-int8.tflite"]
    how = BenchmarkOptions(repetitions=7, warmup_s=0, threads=2, cpu_mask="1", profile=True, runner=str(build_native_runner()))
    results = measure_latencies(device, files, how, loads=3)
    assert [result.artifact_sha256 for result in results] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    for result in results:
        assert len(result.latency_ms) == 7
        assert result.rounds == (2, 2, 3)
        assert len(result.warmup_ms) == 1 + 2 * 2  # two more after each further loading
        assert min(*result.latency_ms, *result.warmup_ms, result.first_ms, result.load_ms) > 0
        assert "generic-linux-arm64" in result.runner
        assert result.backend == "LiteRT 2.3.0 CompiledModel"
        assert result.threads == 2
        assert result.device.emulated
        assert result.temperature_c == (42.0, 42.0)
        assert set(result.frequencies_mhz[0]) == {1800.0}
        assert result.governors == ("ondemand", "ondemand")
        assert 5e6 < result.peak_rss_bytes < 60e6
        assert any("no delegates" in note for note in result.notes)
        assert {"Convolution (NHWC, F32) IGEMM", "Convolution (NHWC, QC8) IGEMM"} & {op.name for op in result.profile}
        assert [op.ms for op in result.profile] == sorted((op.ms for op in result.profile), reverse=True)
        assert all(op.calls == int(op.calls) for op in result.profile)  # per inference, not of all of them


def test_it_is_known_as_a_program_for_arm():
    assert read_elf_machine(build_native_runner()) == "aarch64"


# --- requests as edgecompress does not write them ---

DATA = TINY.read_bytes()
CUT_OFF = {size: DATA[:size] for size in (0, 4, 100, len(DATA) // 2, len(DATA) - 100)}
CHANGED_ARTIFACT = {"onnx": {"format": "onnx"}, "other bytes": {"sha256": "0" * 64}, "no such file": {"path": "b.tflite"}}
NO_REQUEST = [b"", b"[]", b'{"reply": "reply.json"', b"[" * 100_000, b'{"reply": 3}', b"\xff\xfe{"]
BAD = {
    "another schema": ({"schema": 2}, "request", "schema 1"),
    "an unknown mode": ({"mode": "train"}, "request", "measure, infer"),
    "no threads": ({"threads": 0}, "request", "threads"),
    "half a thread": ({"threads": 1.5}, "request", "threads"),
    "no artifacts": ({"artifacts": []}, "request", "missing"),
    "a processor that is not there": ({"cpu_mask": "8000000000000000"}, "request", "processors"),
    "a mask of letters": ({"cpu_mask": "zz"}, "request", "hexadecimal"),
    "inputs that are no archive": ({"mode": "infer", "inputs": "a.tflite", "outputs": "o.npz"}, "inputs", "zip"),
    "two artifacts to infer": ({"mode": "infer", "artifacts": request_for(DATA)["artifacts"] * 2}, "request", "one artifact"),
}


def cases():
    """Return {name: (request, artifact)}."""
    found = {f"bad {name}": (request_for(DATA, **changes), DATA) for name, (changes, _, _) in BAD.items()}
    found |= {f"cut off {size}": (request_for(data), data) for size, data in CUT_OFF.items()}
    found |= {f"no request {i}": (text, DATA) for i, text in enumerate(NO_REQUEST)}
    for name, changes in CHANGED_ARTIFACT.items():
        found[name] = (request_for(DATA), DATA)
        found[name][0]["artifacts"][0] |= changes
    found["time limit"] = (request_for(DATA, repetitions=1_000_000, warmup_s=0.5, time_limit_s=0.3), DATA)
    return found


@pytest.fixture(scope="module")
def answers(pi_device, tmp_path_factory):
    """Run every case on the device in one session; return {name: (exit status, reply or None, stderr)}."""
    folder, there = tmp_path_factory.mktemp("cases"), PurePosixPath("/home/pi")
    asked = cases()
    for i, (request, data) in enumerate(asked.values()):
        case = folder / "cases" / str(i)
        case.mkdir(parents=True)
        (case / "request.json").write_bytes(request if isinstance(request, bytes) else json.dumps(request).encode())
        (case / "a.tflite").write_bytes(data)
    shutil.make_archive(str(folder / "cases"), "tar", folder, "cases")
    run_all = (
        'tar xf cases.tar; for case in cases/*; do ./native-runner "$PWD/$case/request.json" 2>"$case/said"; echo $? >"$case/status"; '
        'rm -r "$case/native-runner"; done; tar cf answers.tar cases; rm -r cases cases.tar'
    )
    with pytest.MonkeyPatch.context() as patch, open_device(trust_device(pi_device, patch)) as device:
        device.push(build_native_runner(), there / "native-runner")
        device.push(folder / "cases.tar", there / "cases.tar")
        done = device.run(["sh", "-c", f"cd {there} && {run_all}"], timeout_s=200)
        assert done.returncode == 0, done.stderr
        device.pull(there / "answers.tar", folder / "answers.tar", max_bytes=8 << 20)
    (folder / "answers").mkdir()  # by tar: Debian's Python 3.11.2 unpacks archives without a filter alone
    subprocess.run(["tar", "xf", folder / "answers.tar", "-C", folder / "answers"], check=True)
    return {name: answer_in(folder / "answers" / "cases" / str(i)) for i, name in enumerate(asked)}


def answer_in(case):
    assert not (case / "reply.json.tmp").exists()
    reply = case / "reply.json"
    return int((case / "status").read_text()), json.loads(reply.read_text()) if reply.exists() else None, (case / "said").read_text()


def test_the_time_limit_ends_it_after_whole_rounds(answers):
    status, reply, _ = answers["time limit"]
    assert status == 0
    (result,) = reply["results"]
    assert 1 <= len(result["latency_ms"]) < 1_000_000
    assert sum(result["rounds"]) == len(result["latency_ms"]) <= result["latency_count"]
    assert len(result["warmup_ms"]) <= 100 <= result["warmup_count"]


def test_a_nonce_of_any_text_comes_back(answers):
    assert answers["time limit"][1]["nonce"] == request_for(DATA)["nonce"]


@pytest.mark.parametrize("size", CUT_OFF)
def test_a_file_that_was_cut_off_is_refused(size, answers):
    status, reply, _ = answers[f"cut off {size}"]
    assert (status, reply["error"]["kind"]) == (10, "artifact")
    assert "a.tflite" in reply["error"]["message"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_an_error_by_kind(name, answers):
    _, kind, said = BAD[name]
    status, reply, _ = answers[f"bad {name}"]
    assert status == 10
    assert reply["nonce"] == request_for(DATA)["nonce"]
    assert reply["error"]["kind"] == kind
    assert said in reply["error"]["message"]


@pytest.mark.parametrize(("name", "kind"), list(zip(CHANGED_ARTIFACT, ("request", "hash", "request"), strict=True)))
def test_another_format_and_other_bytes_are_refused(name, kind, answers):
    status, reply, _ = answers[name]
    assert (status, reply["error"]["kind"]) == (10, kind)


@pytest.mark.parametrize("i", range(len(NO_REQUEST)))
def test_what_is_no_request_leaves_no_reply(i, answers):
    status, reply, said = answers[f"no request {i}"]
    assert status == 2
    assert reply is None
    assert said


def test_inputs_of_another_shape_are_the_users_mistake(device):
    samples = np.zeros((2, 1, 9, 8), np.float32)
    with pytest.raises(ConfigError, match="give inputs in the artifact's own shape"):
        compute_outputs(device, TINY, [samples], runner=build_native_runner())
    with pytest.raises(ConfigError, match="2 inputs given"):
        compute_outputs(device, TINY, [np.zeros((1, 1, 8, 8), np.float32)] * 2, runner=build_native_runner())
