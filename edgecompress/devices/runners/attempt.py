"""One run of the runner on a device: sent, started and fetched in a work folder of its own, once more when the link was lost.

A run counts only when the runner exited with 0 AND its reply carries this run's nonce AND the hashes of everything sent were confirmed on
the device. The work folder is removed afterwards whatever happened.
"""

import logging
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from msgspec import structs

from edgecompress import toolchains
from edgecompress.devices.device import CommandTimeout, Device, LinkLost
from edgecompress.devices.retry import probe_if_reachable, retry_once
from edgecompress.devices.runners import third_party
from edgecompress.devices.runners.exit_status import explain_exit, read_elf_machine
from edgecompress.devices.runners.file_store import send_files
from edgecompress.devices.runners.protocol import MAX_REPLY_BYTES, RunnerReply, RunnerRequest, parse_reply
from edgecompress.devices.text import join_last_lines
from edgecompress.errors import DeviceError, EdgeCompressError
from edgecompress.records import DeviceInfo, to_json

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 20.0
MAX_OUTPUTS_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class RunnerInvocation:
    """Where and with what."""

    device: Device
    info: DeviceInfo
    python: str
    runner: Path | None
    timeout_s: float


def invoke_runner(
    run: RunnerInvocation, request: RunnerRequest, files: Sequence[Path], extra: dict[str, Path], outputs: Path | None
) -> RunnerReply:
    """Send, run, and fetch the reply, and what mode infer computed to `outputs`; once more as another run when the link was lost."""
    return retry_once(run.device, lambda: _invoke_once(run, structs.replace(request, nonce=secrets.token_hex(16)), files, extra, outputs))


def _invoke_once(
    run: RunnerInvocation, request: RunnerRequest, files: Sequence[Path], extra: dict[str, Path], outputs: Path | None
) -> RunnerReply:
    subject = f"{run.device.url}: {', '.join(path.name for path in files)}"
    third_party_name = third_party.recognize_runner(run.runner) if run.runner else ""
    if third_party_name:
        third_party.check_supported(third_party_name, request)
    with _work_folder(run.device, request.nonce) as work, tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        here = Path(name)
        (here / "request.json").write_bytes(to_json(request))
        kept = {"runner": run.runner} if run.runner else {part.name: part for part in toolchains.runner_parts()}
        kept |= {asked.path: path for asked, path in zip(request.artifacts, files, strict=True)}
        if third_party_name:
            extra = {"run.sh": here / "run.sh", **extra}
            extra["run.sh"].write_text(third_party.build_script(third_party_name, request), encoding="utf-8", newline="\n")
        send_files(run.device, work, {**kept, "request.json": here / "request.json", **extra}, keep=kept)
        done = run.device.run(_build_command(run, request, work, third_party_name), timeout_s=run.timeout_s)
        reply_file = here / request.reply
        if done.returncode != 0:
            # A runner that failed in an orderly way says why; one that died left no reply.
            if not third_party_name and _file_exists(run.device, work / request.reply):
                run.device.pull(work / request.reply, reply_file, max_bytes=MAX_REPLY_BYTES)
                parse_reply(reply_file.read_bytes(), request, subject=subject)
            info = run.info if run.info.abi else probe_if_reachable(run.device)
            said = join_last_lines(done.stderr or done.stdout)
            built_for = read_elf_machine(run.runner) if run.runner else ""
            why = explain_exit(done.returncode, info, built_for=built_for)
            raise DeviceError(f"{subject}: {why}{f'; it said: {said}' if said else ''}")
        if not _file_exists(run.device, work / request.reply):
            raise DeviceError(f"{subject}: the runner ended without a reply; is it a runner that obeys the protocol?")
        run.device.pull(work / request.reply, reply_file, max_bytes=MAX_REPLY_BYTES)
        data = reply_file.read_bytes()
        reply = (
            third_party.parse_log(third_party_name, data, request, subject=subject)
            if third_party_name
            else parse_reply(data, request, subject=subject)
        )
        if outputs is not None:
            run.device.pull(work / request.outputs, outputs, max_bytes=MAX_OUTPUTS_BYTES)
        return reply


def _build_command(run: RunnerInvocation, request: RunnerRequest, work: PurePosixPath, third_party_name: str) -> list[str]:
    """Return what is run there: our runner in Python, a program that obeys the protocol, or the script for a third_party_name."""
    start = (
        ["sh", str(work / "run.sh")]
        if third_party_name
        else [str(work / "runner")]
        if run.runner
        else [run.python, str(work / "runner.py")]
    )
    if run.runner and request.cpu_mask:
        start = ["taskset", request.cpu_mask, *start]
    # The shell leaves its process id behind and becomes the runner, so that an interrupted run can be ended.
    return ["sh", "-c", 'echo $$ >"$0/pid"; exec "$@"', str(work), *start, str(work / "request.json")]


@contextmanager
def _work_folder(device: Device, nonce: str) -> Iterator[PurePosixPath]:
    """Name a private folder on the device, which `send` makes; on the way out end what still runs in it and remove it."""
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
    """Clean up over a new connection: what broke or silenced the old one would make the cleaning fail or wait too."""
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
    except EdgeCompressError as error:  # the first failure is the one to report; what stays is named for those who look
        log.warning("%s: %s may be left behind: %s", device.url, work, error)
        return
    if done.returncode != 0:
        log.warning("%s: %s may be left behind: %s", device.url, work, join_last_lines(done.stderr))


def _file_exists(device: Device, path: PurePosixPath) -> bool:
    return device.run(["test", "-f", str(path)], timeout_s=COMMAND_TIMEOUT_S).returncode == 0
