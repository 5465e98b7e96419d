"""Run the runner on a device once: send the files, start it, fetch its reply, and do all that a second time when the link was lost.

A run counts only when the runner exited with 0 AND its reply carries this run's nonce AND the hashes of everything sent were confirmed on
the device. Each run has a work folder of its own, which is removed afterwards whatever happened.
"""

import logging
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from msgspec import structs

from edgecompress import toolchains
from edgecompress.devices.device import CommandTimeout, CompletedCommand, Device, LinkLost
from edgecompress.devices.retry import probe_if_reachable, retry_once
from edgecompress.devices.runners import third_party
from edgecompress.devices.runners.exit_status import explain_exit, read_elf_machine
from edgecompress.devices.runners.file_store import send_files
from edgecompress.devices.runners.protocol import MAX_REPLY_BYTES, RunnerReply, RunnerRequest, parse_reply
from edgecompress.devices.runners.runner_process import RunnerProcess
from edgecompress.devices.text import join_last_lines
from edgecompress.errors import DeviceError, EdgeCompressError
from edgecompress.records import DeviceInfo, to_json

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S: Final = 20.0
MAX_OUTPUTS_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class RunnerInvocation:
    """The device, the program and the time limit of one run.

    Attributes:
        runner: None for our runner in Python.
        process: A runner that runs already on this machine; None starts one.
    """

    device: Device
    info: DeviceInfo
    python: str
    runner: Path | None
    timeout_s: float
    process: RunnerProcess | None = None


def invoke_runner(
    run: RunnerInvocation, request: RunnerRequest, files: Sequence[Path], extra: dict[str, Path], outputs: Path | None
) -> RunnerReply:
    """Run a request and return the reply; mode infer writes its outputs to `outputs`. A lost link is followed by one more run."""
    return retry_once(run.device, lambda: _invoke_once(run, structs.replace(request, nonce=secrets.token_hex(16)), files, extra, outputs))


def _invoke_once(
    run: RunnerInvocation, request: RunnerRequest, files: Sequence[Path], extra: dict[str, Path], outputs: Path | None
) -> RunnerReply:
    subject = f"{run.device.url}: {', '.join(path.name for path in files)}"
    program = third_party.recognize_runner(run.runner) if run.runner else ""
    if program:
        third_party.check_supported(program, request)
    with _work_folder(run.device, request.nonce) as work, tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        here = Path(name)
        (here / "request.json").write_bytes(to_json(request))
        kept = {"runner": run.runner} if run.runner else {part.name: part for part in toolchains.runner_parts()}
        kept |= {asked.path: path for asked, path in zip(request.artifacts, files, strict=True)}
        if program:
            extra = {"run.sh": here / "run.sh", **extra}
            extra["run.sh"].write_text(third_party.build_script(program, request), encoding="utf-8", newline="\n")
        send_files(run.device, work, {**kept, "request.json": here / "request.json", **extra}, keep=kept)
        if run.process is not None:
            done = run.process.run(Path(work) / "request.json", timeout_s=run.timeout_s)
        else:
            done = run.device.run(_build_command(run, request, work, program), timeout_s=run.timeout_s)
        has_reply = _file_exists(run.device, work / request.reply)
        data = b""
        if has_reply:
            run.device.pull(work / request.reply, here / request.reply, max_bytes=MAX_REPLY_BYTES)
            data = (here / request.reply).read_bytes()
        if done.returncode != 0:
            if has_reply and not program:
                parse_reply(data, request, subject=subject)  # raises the reason that a runner gave which failed in an orderly way
            raise DeviceError(f"{subject}: {_explain_failure(run, done)}")
        if not has_reply:
            raise DeviceError(f"{subject}: the runner ended without a reply; is it a runner that obeys the protocol?")
        reply = third_party.parse_log(program, data, request, subject=subject) if program else parse_reply(data, request, subject=subject)
        if outputs is not None:
            run.device.pull(work / request.outputs, outputs, max_bytes=MAX_OUTPUTS_BYTES)
        return reply


def _explain_failure(run: RunnerInvocation, done: CompletedCommand) -> str:
    """Return a sentence about a runner that ended with another status than 0."""
    info = run.info if run.info.abi else probe_if_reachable(run.device)
    said = join_last_lines(done.stderr or done.stdout)
    built_for = read_elf_machine(run.runner) if run.runner else ""
    return f"{explain_exit(done.returncode, info, built_for=built_for)}{f'; it said: {said}' if said else ''}"


def _build_command(run: RunnerInvocation, request: RunnerRequest, work: PurePosixPath, program: str) -> list[str]:
    """Return the command that starts our runner in Python, a program that obeys the protocol, or the script for a third-party one."""
    start = ["sh", str(work / "run.sh")] if program else [str(work / "runner")] if run.runner else [run.python, str(work / "runner.py")]
    if run.runner and request.cpu_mask:
        start = ["taskset", request.cpu_mask, *start]
    # The shell writes its process id to a file and becomes the runner, so that an interrupted run can be ended.
    return ["sh", "-c", 'echo $$ >"$0/pid"; exec "$@"', str(work), *start, str(work / "request.json")]


@contextmanager
def _work_folder(device: Device, nonce: str) -> Iterator[PurePosixPath]:
    """Yield the name of a private folder, which `send_files` makes; afterwards end the processes that still run in it and remove it."""
    work = device.base / f"edgecompress-{nonce}"
    try:
        yield work
    except (LinkLost, CommandTimeout) as error:
        _reconnect_and_remove(device, work, error)
        raise
    except BaseException:
        _remove_work_folder(device, work, kill=True)
        raise
    else:
        _remove_work_folder(device, work, kill=False)


def _reconnect_and_remove(device: Device, work: PurePosixPath, error: EdgeCompressError) -> None:
    """Remove the work folder over a new connection, since the old one is broken or silent."""
    try:
        device.reconnect()
    except EdgeCompressError as gone:
        log.warning("%s: %s may be left behind after %s: %s", device.url, work, type(error).__name__, gone)
        return
    _remove_work_folder(device, work, kill=True)


def _remove_work_folder(device: Device, work: PurePosixPath, *, kill: bool) -> None:
    script = '[ ! -s "$0/pid" ] || kill -9 "$(cat "$0/pid")" 2>/dev/null; rm -rf "$0"' if kill else 'rm -rf "$0"'
    try:
        done = device.run(["sh", "-c", script, str(work)], timeout_s=COMMAND_TIMEOUT_S)
    except EdgeCompressError as error:  # the first failure is the one to report; the log names the folder
        log.warning("%s: %s may be left behind: %s", device.url, work, error)
        return
    if done.returncode != 0:
        log.warning("%s: %s may be left behind: %s", device.url, work, join_last_lines(done.stderr))


def _file_exists(device: Device, path: PurePosixPath) -> bool:
    return device.run(["test", "-f", str(path)], timeout_s=COMMAND_TIMEOUT_S).returncode == 0
