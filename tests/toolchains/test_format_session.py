"""A converter process lives through several files: each has its own folder, limits and log, and no failure outlives its process."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.paths import REPOSITORY

from edgecompress import toolchains
from edgecompress.artifacts.format_session import FormatSession
from edgecompress.errors import ToolchainError, UnsupportedError
from edgecompress.records import ConversionReply, ConversionRequest

# A converter whose requests say in `name` what it does; its reply has the process and the number of the request.
PROGRAM = """
import os, sys, time
from pathlib import Path
from edgecompress.artifacts.serving import serve_conversion
from edgecompress.errors import UnsupportedError
from edgecompress.records import ConversionReply
served = []
hoard = []
def handle(request):
    served.append(request)
    print("noise of", request.name)
    found = sorted(os.listdir())
    Path("left behind").write_text("x")
    Path("folder").mkdir()
    if request.name == "refuse":
        raise UnsupportedError("aten.foo: no kernel; leave it out")
    if request.name == "die" or (request.name == "die late" and len(served) > 1):
        os.abort()
    if request.name == "hoard":
        hoard.append(b"x" * 150_000_000)
        time.sleep(0.5)
    if request.name == "sleep":
        time.sleep(600)
    told = {"pid": str(os.getpid()), "served": str(len(served)), "files": str(found)}
    return b"model", ConversionReply(inputs=(), outputs=(), toolchain=told)
sys.exit(serve_conversion("to_fake.py", handle, extra=lambda request: "tflite", ahead=lambda route: route))
"""
Ask = Callable[..., dict[str, str]]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FormatSession]:
    (tmp_path / "to_fake.py").write_text(PROGRAM)
    monkeypatch.setattr(toolchains, "converter", lambda _: tmp_path / "to_fake.py")
    with closing(FormatSession("fake", timeout_s=100, memory_gb=0.4)) as session:
        yield session


@pytest.fixture
def ask(session: FormatSession, tmp_path: Path) -> Ask:
    def convert(name: str, **options: object) -> dict[str, str]:
        output = tmp_path / "out" / f"{name}.file"
        reply = session.convert(ConversionRequest(program="", output=str(output), scheme="fp32", name=name), **options)  # type: ignore[arg-type]
        assert isinstance(reply, ConversionReply)
        assert output.read_bytes() == b"model"
        return reply.toolchain

    return convert


def wait_until_gone(pid: int) -> bool:
    for _ in range(2000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_one_process_converts_several_files_each_in_an_empty_folder_with_a_log_of_its_own(ask: Ask, tmp_path: Path) -> None:
    replies = [ask(name, log=tmp_path / f"{name}.log") for name in ("a", "b", "c")]
    assert [reply["served"] for reply in replies] == ["1", "2", "3"]
    assert len({reply["pid"] for reply in replies}) == 1
    assert {reply["files"] for reply in replies} == {"[]"}
    for name in ("a", "b", "c"):
        told = (tmp_path / f"{name}.log").read_text()
        assert told.count("noise of") == 1
        assert f"noise of {name}" in told


def test_a_refusal_ends_the_process_and_the_next_file_has_a_new_one(ask: Ask, session: FormatSession, tmp_path: Path) -> None:
    first = ask("a")
    with pytest.raises(UnsupportedError, match=r"^aten\.foo: no kernel; leave it out$"):
        ask("refuse", log=tmp_path / "log")
    assert wait_until_gone(int(first["pid"]))
    assert "noise of refuse" in (tmp_path / "log").read_text()
    assert not list((tmp_path / "out").glob("*refuse*"))
    assert ask("b")["served"] == "1"


def test_a_crash_counts_only_where_the_process_has_converted_nothing_before(ask: Ask, tmp_path: Path) -> None:
    first = ask("a")
    again = ask("die late")
    assert again["served"] == "1"
    assert again["pid"] != first["pid"]
    with pytest.raises(ToolchainError, match=rf"^to_fake\.py: died by SIGABRT; its log is {tmp_path / 'log'}\n"):
        ask("die", log=tmp_path / "log")


def test_what_earlier_files_left_in_memory_is_not_counted_against_a_file(ask: Ask) -> None:
    replies = [ask("hoard") for _ in range(3)]
    assert [reply["served"] for reply in replies] == ["1", "2", "1"]


def test_each_file_has_the_whole_time_and_a_file_beyond_it_is_not_tried_again(ask: Ask) -> None:
    first = ask("a")
    started = time.monotonic()
    with pytest.raises(ToolchainError, match=r"not finished after 1 s and was stopped; allow more with --convert-timeout-s"):
        ask("sleep", timeout_s=1.0)
    assert time.monotonic() - started < 30
    assert wait_until_gone(int(first["pid"]))
    assert ask("b")["served"] == "1"


def test_an_interrupt_from_another_thread_ends_the_wait_and_later_ones(ask: Ask, session: FormatSession) -> None:
    pid = int(ask("a")["pid"])
    threading.Timer(0.3, session.interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        ask("sleep")
    assert wait_until_gone(pid)
    with pytest.raises(KeyboardInterrupt):
        ask("b")


CALLER = """
import sys, time
from pathlib import Path
from edgecompress.artifacts.converter_process import RunningProgram
from edgecompress.records import ConversionReply, ConversionRequest
program = RunningProgram(Path(sys.argv[1]), memory_gb=4)
program.ask(ConversionRequest(program="", output=sys.argv[2], scheme="fp32", name=sys.argv[3]), ConversionReply, timeout_s=100)
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["a", "sleep"], ids=["waiting", "converting"])
def test_no_converter_outlives_a_caller_that_was_killed(tmp_path: Path, state: str) -> None:
    program, pid = tmp_path / "to_fake.py", tmp_path / "pid"
    program.write_text(PROGRAM.replace("served.append(request)", f"Path({str(pid)!r}).write_text(str(os.getpid()))"))
    with subprocess.Popen([sys.executable, "-c", CALLER, program, tmp_path / "file", state], cwd=REPOSITORY) as process:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert wait_until_gone(int(pid.read_text()))
