"""A converter program runs within its limits, must keep the contract, and leaves no files or processes behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgecompress import toolchains
from edgecompress.artifacts import converter_process, sandbox, serving
from edgecompress.artifacts.converter_process import run_converter, run_program, start_converter
from edgecompress.errors import ConfigError, EdgeCompressError, ToolchainError, UnsupportedError
from edgecompress.records import (
    ConversionReply,
    ConversionRequest,
    LayerFile,
    LayerForm,
    LayersReply,
    LayersRequest,
    TensorSpec,
    to_json,
)

REPLY = 'print(\'{"inputs": [], "outputs": [], "toolchain": {}}\')'
START = "import json, os, signal, subprocess, sys, time\nrequest = json.load(sys.stdin)\n"
WRITE = START + "open(request['output'], 'wb').write(b'model')\n"

Start = Callable[..., ConversionReply]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Run a converter whose program is the given source."""

    def run(source: str, **options: object) -> ConversionReply:
        folder = tmp_path / "converters"
        folder.mkdir(exist_ok=True)
        (folder / "to_fake.py").write_text(source)
        monkeypatch.setattr(toolchains, "converter", lambda _: folder / "to_fake.py")
        request = ConversionRequest(program="/nowhere.pt2", output=str(tmp_path / "out" / "model.fake"), scheme="fp32")
        return run_converter("fake", request, **options)  # type: ignore[arg-type]

    return run


def list_outputs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").glob("*")) + sorted(path.name for path in (tmp_path / "out").glob(".*"))


def test_a_successful_program_leaves_its_file_and_reply(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    reply = start(WRITE + "print('chatter')\nprint('noise', file=sys.stderr)\n" + REPLY, log=log)
    assert reply == ConversionReply(inputs=(), outputs=(), toolchain={})
    assert (tmp_path / "out" / "model.fake").read_bytes() == b"model"
    assert list_outputs(tmp_path) == ["model.fake"]
    assert "noise" in log.read_text()


def test_a_program_works_in_an_empty_folder_of_its_own(start: Start) -> None:
    reply = start(WRITE + 'print(json.dumps({"inputs": [], "outputs": [], "toolchain": {"cwd": os.getcwd(), "files": str(os.listdir())}}))')
    assert reply.toolchain["files"] == "[]"
    assert not Path(reply.toolchain["cwd"]).exists()


def test_a_request_longer_than_a_pipe_reaches_a_program_that_starts_slowly(tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text("import time\ntime.sleep(1)\n" + START + "print(json.dumps({'toolchain': {'files': str(len(request['files']))}}))")
    layer = LayerForm(kind="Linear", arguments={"in_features": 4, "out_features": 4, "bias": True}, input_shape=(4,))
    request = LayersRequest(files=tuple(LayerFile(layer=layer, scheme="fp32", output=f"/nowhere/{i}.tflite") for i in range(2000)))
    assert run_program(program, request, LayersReply, timeout_s=200, memory_gb=4).toolchain == {"files": "2000"}


def test_a_toolchain_is_loaded_before_the_request_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "to_fake.py").write_text(SERVE)
    (tmp_path / "toolchain.py").write_text("open('loaded', 'w').close()\n")
    monkeypatch.setattr(toolchains, "converter", lambda _: tmp_path / "to_fake.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(converter_process.tempfile, "tempdir", str(tmp_path))
    with start_converter("fake", ahead="toolchain") as converted:
        end = time.monotonic() + 200
        while not list(tmp_path.glob("*/work/loaded")):
            assert time.monotonic() < end
            time.sleep(0.01)
        converted(ConversionRequest(program="", output=str(tmp_path / "out" / "a"), scheme="fp32"))
    assert list_outputs(tmp_path) == ["a"]


def test_a_missing_package_is_reported_for_the_request_where_the_toolchain_was_loaded_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "to_fake.py").write_text(SERVE)
    monkeypatch.setattr(toolchains, "converter", lambda _: tmp_path / "to_fake.py")
    with (
        start_converter("fake", ahead="package_that_is_not_there") as converted,
        pytest.raises(ToolchainError, match=r"package_that_is_not_there is not installed for .*edgecompress\[tflite\]"),
    ):
        converted(ConversionRequest(program="", output=str(tmp_path / "out" / "a"), scheme="missing"))


def test_a_program_without_a_request_is_killed_and_leaves_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "to_fake.py").write_text(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    monkeypatch.setattr(toolchains, "converter", lambda _: tmp_path / "to_fake.py")
    with start_converter("fake", log=tmp_path / "log"):
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            time.sleep(0.01)
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert not (tmp_path / "log").exists()


FAILURES: dict[str, tuple[str, type[EdgeCompressError], str]] = {
    "traceback": (
        WRITE + "raise ValueError('odd weights')",
        ToolchainError,
        r"^to_fake\.py: exit status 1: ValueError: odd weights\ncommand: .*to_fake\.py\nits log ends:\nTraceback",
    ),
    "no-program": ("import sys; sys.exit(2)", ToolchainError, "exit status 2"),
    "segfault": (WRITE + "os.kill(os.getpid(), signal.SIGSEGV)", ToolchainError, r"^to_fake\.py: died by SIGSEGV\ncommand: "),
    "killed": (WRITE + "os.kill(os.getpid(), signal.SIGKILL)", ToolchainError, "died by SIGKILL; the machine may be out of memory"),
    "abort": (WRITE + "os.abort()", ToolchainError, "died by SIGABRT"),
    "config": (WRITE + 'print(\'{"error": "x: bad; mend"}\'); sys.exit(2)', ConfigError, "^x: bad; mend$"),
    "unsupported": (WRITE + 'print(\'{"error": "aten.foo: no; leave"}\'); sys.exit(3)', UnsupportedError, "^aten.foo: no; leave$"),
    "toolchain": (
        WRITE + "print('deep', file=sys.stderr); print('{\"error\": \"it: broke; wait\"}'); sys.exit(4)",
        ToolchainError,
        r"^it: broke; wait\ncommand: .*\nits log ends:\ndeep$",
    ),
    "missing": (
        WRITE + 'print(json.dumps({"error": "", "package": "litert_torch", "extra": "tflite"})); sys.exit(20)',
        ToolchainError,
        r"litert_torch is not installed for .*; pip install 'edgecompress\[tflite\]'\ncommand: ",
    ),
    "silent": (WRITE, ToolchainError, r"no reply \(b''\)"),
    "garbage": (WRITE + "print('done!')", ToolchainError, r"its last line is no reply \(b'done!'\)"),
    "colours": (
        WRITE + r"print('\x1b[31mred\x1b[0m \x1b[2Kline', file=sys.stderr)",
        ToolchainError,
        r"no reply \(b''\)\ncommand: .*\nits log ends:\nred line$",
    ),
    "half-json": (WRITE + "print('{\"inputs\": [')", ToolchainError, "no reply"),
    "unknown-key": (WRITE + 'print(\'{"inputs": [], "outputs": [], "toolchain": {}, "x": 1}\')', ToolchainError, "no reply"),
    "flood": (WRITE + "print('x' * (3 << 20))", ToolchainError, "no reply"),
    "no-file": (START + REPLY, ToolchainError, "reported success and wrote an empty file"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_reported_in_one_line_and_leaves_no_file(start: Start, tmp_path: Path, name: str) -> None:
    source, kind, message = FAILURES[name]
    with pytest.raises(kind, match=message) as caught:
        start(source)
    assert "\n" not in str(caught.value)
    assert list_outputs(tmp_path) == []


def test_a_failure_whose_log_is_kept_says_where_and_shows_none_of_it(start: Start, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError) as caught:
        start(WRITE + "print('noise', file=sys.stderr); print('{\"error\": \"it: broke; wait\"}'); sys.exit(4)", log=tmp_path / "log")
    assert str(caught.value) == f"it: broke; wait; its log is {tmp_path / 'log'}"
    assert "noise" in (tmp_path / "log").read_text()


def test_a_failure_keeps_the_earlier_file(start: Start, tmp_path: Path) -> None:
    start(WRITE + REPLY)
    with pytest.raises(ToolchainError):
        start(WRITE.replace("model", "worse") + "os.abort()")
    assert (tmp_path / "out" / "model.fake").read_bytes() == b"model"


SLEEP = "import time; time.sleep(600)"
HOARD = "import time; held = b'x' * {size}; time.sleep(600)"
CHILD = "child = subprocess.Popen([sys.executable, '-c', {work!r}])\nopen({pid!r}, 'w').write(str(child.pid))\n"


def is_gone(pid: int) -> bool:
    """Wait until a process has ended; a zombie that init has yet to reap has."""
    for _ in range(2000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):  # the latter where it ends while it is read
            return True
        time.sleep(0.01)
    return False


def test_after_the_timeout_program_and_children_are_dead(start: Start, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(ToolchainError, match=r"to_fake\.py: not finished after 5 s and was stopped; allow more with --convert-timeout-s"):
        start(WRITE + CHILD.format(pid=str(pid), work=SLEEP) + SLEEP, timeout_s=5.0)
    assert is_gone(int(pid.read_text()))
    assert list_outputs(tmp_path) == []


@pytest.mark.parametrize("holder", ["program", "child"])
def test_beyond_the_memory_limit_program_and_children_are_dead(start: Start, tmp_path: Path, holder: str) -> None:
    pid = tmp_path / "pid"
    hoard = HOARD.format(size=400_000_000)
    child = CHILD.format(pid=str(pid), work=hoard if holder == "child" else SLEEP)
    with pytest.raises(ToolchainError, match=r"to_fake\.py: held 0\.\d+ GB of memory, 0.2 GB allowed, and was stopped; allow more with"):
        start(WRITE + child + (hoard if holder == "program" else SLEEP), memory_gb=0.2)
    assert is_gone(int(pid.read_text()))
    assert list_outputs(tmp_path) == []


def test_reserved_addresses_do_not_count_as_memory(start: Start) -> None:
    """XLA reserves far more than it uses."""
    start(WRITE + "import mmap\nmap = mmap.mmap(-1, 8 << 30)\ntime.sleep(0.5)\n" + REPLY, memory_gb=0.5)


def test_no_program_may_hold_more_than_the_machine_has(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "physical_memory_bytes", lambda: 100_000_000)
    with pytest.raises(ToolchainError, match=r"held 0\.\d+ GB of memory, 0.09 GB allowed on this machine"):
        start(WRITE + HOARD.format(size=400_000_000))


def test_memory_by_proc_and_by_ps_agree() -> None:
    """A group's resident memory by `ps`, as on macOS, is what /proc says and the pages of program files."""
    with subprocess.Popen([sys.executable, "-c", "held = b'x' * 200_000_000; print(flush=True); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        assert 200e6 <= sandbox.group_memory_bytes(process.pid) <= sandbox._resident_bytes(process.pid) < 260e6
        process.kill()


def test_children_of_a_successful_program_are_killed(start: Start, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    start(WRITE + CHILD.format(pid=str(pid), work=SLEEP) + REPLY)
    assert is_gone(int(pid.read_text()))


def test_ctrl_c_stops_the_program(start: Start, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupt() -> None:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        start(WRITE + CHILD.format(pid=str(pid), work=SLEEP) + SLEEP)
    thread.join()
    assert is_gone(int(pid.read_text()))
    assert list_outputs(tmp_path) == []


def test_an_unknown_format_lists_the_known(tmp_path: Path) -> None:
    request = ConversionRequest(program="/nowhere.pt2", output=str(tmp_path / "a"), scheme="fp32")
    with pytest.raises(ConfigError, match=r"unknown format 'coreml'; choose from .*tflite.*torchscript"):
        run_converter("coreml", request)


def test_a_missing_interpreter_is_named(start: Start) -> None:
    with pytest.raises(ToolchainError, match="/no/python: cannot be started"):
        start(WRITE + REPLY, python="/no/python")


SERVE = """
import os, sys
from edgecompress.artifacts.serving import serve_conversion
from edgecompress.errors import UnsupportedError
from edgecompress.records import ConversionReply
def handle(request):
    print("from python"); os.system("echo from a child")
    if request.scheme == "missing":
        import package_that_is_not_there
    if request.scheme == "unsupported":
        raise UnsupportedError("aten.foo: no kernel; leave it out")
    return b"model", ConversionReply(inputs=(), outputs=(), toolchain={})
sys.exit(serve_conversion("to_fake.py", handle, extra=lambda request: "tflite", ahead=lambda route: route))
"""


def served(scheme: str, output: Path, message: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    request = message or msgspec.json.encode(ConversionRequest(program="", output=str(output), scheme=scheme))
    return subprocess.run([sys.executable, "-c", SERVE], input=request, capture_output=True, check=False, timeout=300)


def test_a_program_keeps_standard_output_for_the_reply(tmp_path: Path) -> None:
    done = served("fp32", tmp_path / "a")
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 1
    assert b"from python" in done.stderr
    assert b"from a child" in done.stderr
    assert (tmp_path / "a").read_bytes() == b"model"


@pytest.mark.parametrize(
    ("scheme", "message", "code", "said"),
    [
        ("missing", None, serving.MISSING_PACKAGE, b"package_that_is_not_there"),
        ("unsupported", None, UnsupportedError.exit_code, b"aten.foo: no kernel"),
        ("fp32", b"not json", ConfigError.exit_code, b"to_fake.py: standard input: not a ConversionRequest"),
        ("fp32", b'{"program": "", "output": "", "scheme": "", "sudo": true}', ConfigError.exit_code, b"sudo"),
        ("fp32", b"\n", ConfigError.exit_code, b"not a ConversionRequest"),
    ],
)
def test_a_program_reports_errors_by_its_exit_status(tmp_path: Path, scheme: str, message: bytes | None, code: int, said: bytes) -> None:
    done = served(scheme, tmp_path / "a", message)
    assert done.returncode == code
    assert said in done.stdout
    assert not (tmp_path / "a").exists()


def test_a_program_reports_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    done = served("fp32", tmp_path / "no" / "such" / "a")
    assert done.returncode == ConfigError.exit_code
    assert b"cannot be written" in done.stdout


def test_converter_process_does_not_import_torch() -> None:
    code = "import sys, edgecompress.artifacts.converter_process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0


def test_a_reply_is_read_back_unchanged() -> None:
    spec = TensorSpec(name="x", shape=(1, 2), dtype="int8", layout="", scale=0.5, zero_point=-3)
    reply = ConversionReply(inputs=(spec,), outputs=(), toolchain={"a": "1"})
    assert converter_process._parse_reply(to_json(reply), ConversionReply, ["python", "-P", "to_fake.py"]) == reply
