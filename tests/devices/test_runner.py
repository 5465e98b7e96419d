"""The runner program, run as on a device, and the checks of a runner's reply."""

import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from contextlib import closing

import msgspec
import numpy as np
import pytest
from support.require import require

from edgecompress import toolchains
from edgecompress.devices import open_device
from edgecompress.devices.device import CommandTimeout
from edgecompress.devices.runners.execute import compute_outputs, measure_latencies
from edgecompress.devices.runners.protocol import FileRequest, RunnerReply, RunnerRequest, parse_reply
from edgecompress.devices.runners.runner_process import RunnerProcess
from edgecompress.errors import ConfigError, DeviceError, EdgeCompressError
from edgecompress.files import hash_file
from edgecompress.records import BenchmarkOptions, to_json

REQUEST = RunnerRequest(
    nonce="n1", mode="measure", artifacts=(FileRequest(path="a.tflite", sha256="aa", format="tflite"),), threads=1, reply="reply.json"
)
REPLY = {"schema": 1, "nonce": "n1", "runner": "r", "threads": 1, "started_at": "", "peak_rss_bytes": 1}
SIGNS = np.tile([1, 1, -1, -1], 16)
RESULT = {"sha256": "aa", "backend": "b", "load_ms": 1.0, "first_ms": 1.0, "latency_ms": [1.0]}


@pytest.fixture
def local():
    with open_device("local://") as device:
        yield device


def run(folder, request):
    (folder / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, toolchains.runner(), folder / "request.json"], capture_output=True, timeout=300, check=False, cwd=folder.parent
    )
    return done.returncode, json.loads((folder / "reply.json").read_bytes())


def request_for(*paths, **changes):
    formats = {".tflite": "tflite", ".ptl": "torchscript"}
    artifacts = [
        {"path": path.name, "sha256": hash_file(path), "format": formats[path.suffix], "input_shapes": [[1, 1, 8, 8]]} for path in paths
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
    """Older boards have Python 3.9, so the runner uses no newer syntax."""
    import ast

    assert len(toolchains.runner_parts()) == 3
    for part in toolchains.runner_parts():
        ast.parse(part.read_text(), feature_version=(3, 9))


def test_onnx_files_run_where_onnxruntime_is(local, tmp_path, tiny_samples):
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 1, 8, 8]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", shape[:1], shape[1:])
    path = tmp_path / "relu.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    inputs, _ = tiny_samples
    (outputs,) = compute_outputs(local, path, [inputs])
    assert np.array_equal(outputs, np.maximum(inputs, 0))
    with pytest.raises(ConfigError, match="input shapes"):
        compute_outputs(local, path, [inputs, inputs])
    path.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="refused it"):
        compute_outputs(local, path, [inputs])


def int8_products(path, names):
    """Write an ONNX file that multiplies by the int8 weights `names` one after the other, with the largest possible products."""
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    tensor, node = onnx.numpy_helper.from_array, onnx.helper.make_node
    constants = [tensor(np.float32(0.01), "scale"), tensor(np.int8(-128), "zero"), tensor(np.int8(0), "middle")]
    constants += [tensor(np.repeat(127 * SIGNS[:, None], 64, axis=1).astype(np.int8), name) for name in sorted(set(names))]
    nodes = [node("DequantizeLinear", [name, "scale", "middle"], [f"{name}_f"], name=name) for name in sorted(set(names))]
    last = "x"
    for i, name in enumerate(names):
        nodes.append(node("QuantizeLinear", [last, "scale", "zero"], [f"q{i}"]))
        nodes.append(node("DequantizeLinear", [f"q{i}", "scale", "zero"], [f"d{i}"]))
        nodes.append(node("MatMul", [f"d{i}", f"{name}_f"], [f"m{i}"]))
        last = f"m{i}"
    nodes += [node("QuantizeLinear", [last, "scale", "zero"], ["q"]), node("DequantizeLinear", ["q", "scale", "zero"], ["y"])]
    ends = [[onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 64])] for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "products", *ends, constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_int8_sums_of_onnxruntime_do_not_overflow(local, tmp_path):
    path = int8_products(tmp_path / "one.onnx", ["w"])
    x = np.where(SIGNS > 0, 2.55, 2.52).astype(np.float32)
    (y,) = compute_outputs(local, path, [x[None]])
    assert np.abs(y - (x * 1.27 * SIGNS).sum()).max() < 0.01  # 255 · 127, twice at once, is more than an int16 holds
    (result,) = measure_latencies(local, [path], BenchmarkOptions(repetitions=2))
    assert not any("overflow" in note for note in result.notes)


def test_int8_sums_that_overflow_are_told(local, tmp_path):
    """Whether they do is seen in the sums: /proc/cpuinfo of a virtual machine need not tell what the processor can."""
    import onnxruntime

    x = np.where(SIGNS > 0, 2.55, 2.52).astype(np.float32)
    session = onnxruntime.InferenceSession(str(int8_products(tmp_path / "one.onnx", ["w"])), providers=["CPUExecutionProvider"])
    overflowed = np.abs(session.run(None, {"x": x[None]})[0] - (x * 1.27 * SIGNS).sum()).max() > 0.01
    path = int8_products(tmp_path / "shared.onnx", ["w", "w"])  # onnxruntime does not make shared weights precise
    (result,) = measure_latencies(local, [path], BenchmarkOptions(repetitions=2))
    assert any("int8 sums may overflow" in note for note in result.notes) == overflowed


@pytest.mark.slow
def test_the_kernel_in_use_is_asked_and_not_the_name_of_the_processor():
    """To a program under qemu the processor is a Haswell, whatever /proc/cpuinfo says of the one here."""
    if platform.machine() != "x86_64":
        pytest.skip("x86 alone adds int8 products in 16 bits")
    pytest.importorskip("onnxruntime")
    folder = str(toolchains.runner().parent)
    ask = f"import sys; sys.path.insert(0, {folder!r}); import onnxruntime, runner_machine as r; print(r.int8_sums_overflow(onnxruntime))"
    emulator = [require("qemu-x86_64-static", "qemu-user-static"), "-cpu", "Haswell"]
    done = subprocess.run([*emulator, sys.executable, "-c", ask], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "True"


def test_a_runtime_that_is_not_there_is_said(local, tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(b"x")
    runner = tmp_path / "runner"  # a Python without site-packages has no runtime at all
    runner.write_text(f'#!/bin/sh\nexec {sys.executable} -S {toolchains.runner()} "$1"\n')
    with pytest.raises(DeviceError, match=r"executorch does not import .*; pip install executorch"):
        compute_outputs(local, path, [np.zeros((1, 1), np.float32)], runner=runner)


def machine_module():
    spec = importlib.util.spec_from_file_location("runner_machine", toolchains.runner().with_name("runner_machine.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": ("0", "50000")}, False),  # it happened once, not now
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": ("0", "50005")}, True),
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": ("1800000", "1800000")}, False),
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": ("1800000", "1200000")}, True),
        ({"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": ("7", "7")}, False),
        ({"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": ("7", "8")}, True),
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": ("nonsense", "1")}, False),
    ],
)
def test_throttling_is_what_the_firmware_or_the_kernel_says(tmp_path, files, expected):
    taken = []
    for i in (0, 1):
        for name, texts in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{texts[i]}\n")
        taken.append(machine_module().take_snapshot(tmp_path))
    assert machine_module().compare_snapshots(*taken)["throttled"] is expected


def test_conditions_are_before_and_after_and_processors_in_order(tmp_path):
    for i, khz in enumerate([600_000, *[1_000_000] * 9, 1_800_000]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{i}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    (tmp_path / "proc").mkdir()
    found = []
    for busy in (0, 100):
        (tmp_path / "proc/stat").write_text(f"cpu {busy} 0 0 50 0 0 0 0 0 0\n")
        found.append(machine_module().take_snapshot(tmp_path) | {"clock_s": busy / 100, "own_s": busy / 400})
    made = machine_module().compare_snapshots(*found)
    assert made["frequencies_mhz"] == [[600.0, *[1000.0] * 9, 1800.0]] * 2
    assert made["busy_elsewhere"] == pytest.approx(100 / os.sysconf("SC_CLK_TCK") - 0.25)
    assert made["governors"] == ["", ""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results": [{**RESULT, "rounds": [2]}]}, "rounds are not those"),
        ({"results": [{**RESULT, "rounds": [2, -1]}]}, "rounds are not those"),
        ({"results": [{**RESULT, "latency_ms": [1.0, 1.0], "latency_count": 1}]}, "counts fewer inferences"),
        ({"results": [{**RESULT, "warmup_count": -1}]}, "counts fewer inferences"),
        ({"results": [{**RESULT, "profile": [{"name": "x", "calls": 1, "ms": 1e12}]}]}, "impossible conditions"),
        ({"temperature_c": [1e12, None]}, "impossible conditions"),
        ({"frequencies_mhz": [[-1e9], []]}, "impossible conditions"),
        ({"busy_elsewhere": "much"}, "cannot be used"),
    ],
)
def test_conditions_that_cannot_be_are_refused(change, message):
    with pytest.raises(DeviceError, match=message):
        parse_reply(msgspec.json.encode({**REPLY, "results": [RESULT], **change}), REQUEST, subject="x")


@pytest.mark.parametrize("name", ["tiny.tflite", "tiny.ptl"])
def test_outputs_equal_eager_torch(local, tiny, tiny_samples, name):
    inputs, expected = tiny_samples
    (outputs,) = compute_outputs(local, tiny / name, [inputs])
    assert outputs.shape == expected.shape
    assert outputs.dtype == np.float32
    assert np.abs(outputs - expected).max() <= 1e-5 * np.ptp(expected)


def test_integer_artifacts_take_and_give_real_values(local, tiny, tiny_samples):
    inputs, _ = tiny_samples
    (outputs,) = compute_outputs(local, tiny / "tiny-int8.tflite", [inputs])
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
        compute_outputs(local, tiny / "tiny.tflite", [np.zeros(shape, np.float32) for shape in shapes])


def test_a_full_disk_here_is_said(local, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(EdgeCompressError, match="no space left"):
            compute_outputs(local, tiny / "tiny.tflite", [np.zeros((1000, 1, 8, 8), np.float32)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("edgecompress-*"))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x1c\x00\x00\x00TFL3" + b"\xff" * 100], ids=["empty", "text", "damaged"])
def test_a_corrupt_artifact_is_refused_and_not_believed(local, tmp_path, content):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(EdgeCompressError, match=r"refused it|SIGSEGV|SIGABRT") as caught:
        compute_outputs(local, path, [np.zeros((1, 1, 8, 8), np.float32)])
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
        measure_latencies(local, [tiny / "tiny.tflite"], BenchmarkOptions(runner=str(runner)))


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
    """Any executable will do; this one starts our runner from a shell script."""
    runner = tmp_path / "benchmark"
    runner.write_text(f'#!/bin/sh\nexec {sys.executable} {toolchains.runner()} "$1"\n')
    (result,) = measure_latencies(local, [tiny / "tiny.tflite"], BenchmarkOptions(runner=str(runner), repetitions=3))
    assert len(result.latency_ms) == 3


def test_requests_are_plain_json():
    assert json.loads(to_json(REQUEST))["artifacts"][0]["format"] == "tflite"


def test_a_runner_that_stays_gives_the_outputs_of_one_that_does_not(local, tiny, tiny_samples):
    inputs, _ = tiny_samples
    with closing(RunnerProcess()) as process:
        for name in ("tiny.tflite", "tiny-int8.tflite", "tiny.tflite"):
            (found,), (expected,) = (compute_outputs(local, tiny / name, [inputs], process=each) for each in (process, None))
            assert np.array_equal(found, expected)
            assert process.is_alive


@pytest.mark.parametrize("content", [b"not a model", None], ids=["refused", "killed"])
def test_a_runner_that_stays_ends_with_the_first_failure(local, tiny, tiny_samples, tmp_path, content):
    inputs, _ = tiny_samples
    path = tmp_path / "file.tflite"
    path.write_bytes(content or (tiny / "tiny.tflite").read_bytes())
    with closing(RunnerProcess()) as process:
        if content is None:
            process.kill()
        with pytest.raises(EdgeCompressError, match=r"refused it|was killed \(SIGKILL\)") as caught:
            compute_outputs(local, path, [inputs], process=process)
        assert isinstance(caught.value, DeviceError if content is None else ConfigError)
        assert not process.is_alive


def test_a_runner_that_stays_is_stopped_when_its_time_is_up(local, tiny, tiny_samples):
    with closing(RunnerProcess()) as process:
        with pytest.raises(CommandTimeout, match=r"did not finish within 0\.01 s"):
            compute_outputs(local, tiny / "tiny.tflite", [tiny_samples[0]], process=process, timeout_s=0.01)
        assert not process.is_alive
