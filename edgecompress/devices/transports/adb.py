"""Android by adb, `adb://SERIAL`: the `adb` program, always with a serial and a hard timeout.

adb's own exit status is not trusted: adb 29 exits with 0 and without a message when the link drops in the middle of a command. Each command
prints a random mark with its status at its end, and a command without the mark was cut off. Android 6 and older tell no status at all, end
lines with CR LF, mix error output into the output, and take commands of less than 4 KB only; longer ones are sent as a file.
"""

import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from edgecompress.devices.device import (
    FIND_TIMEOUT_SCRIPT,
    LINK_MARGIN_S,
    CommandTimeout,
    CompletedCommand,
    DeviceBase,
    LinkLost,
    find_refusal_remedy,
    is_late,
    limit_command,
    oversize_error,
    parse_timeout_form,
    timeout_error,
    transfer_timeout_s,
)
from edgecompress.devices.probe import probe_device
from edgecompress.devices.text import join_last_lines, sanitize
from edgecompress.devices.transports import process
from edgecompress.errors import DeviceError
from edgecompress.records import DeviceInfo

COMMAND_TIMEOUT_S = 15.0
RECONNECT_TIMEOUT_S = 15.0  # a device that went away may take this long to come back
RECONNECT_PAUSES_S = (0.0, 0.2, 0.5)  # adb reconnects by itself too, and its attempt and ours can break each other
ADDRESS = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
MIN_BYTES_PER_S = 500_000  # even a bad USB cable carries this much
MAX_OLD_COMMAND = 3800  # The first version of the protocol has messages of 4096 bytes.

STATE_REMEDIES = {
    "unauthorized": "is unauthorized; unlock it and accept this computer's key, or run `adb kill-server` and plug it in again",
    "authorizing": "is authorizing; wait a moment, unlock it and accept this computer's key",
    "offline": "is offline; unplug and plug it, switch USB debugging off and on, or run `adb reconnect offline`",
    "connecting": "is still connecting; wait a moment and run it again",
    "no permissions": "may not be opened by you; install android-sdk-platform-tools-common and join the group plugdev",
    "recovery": "is in recovery; start Android on it",
    "sideload": "is in sideload mode; start Android on it",
    "bootloader": "is in its bootloader; start Android on it",
    "host": "is not ready; start Android on it",
}


def find_adb() -> str:
    """Return the adb program: the variable ADB, else the one on PATH, else the one that the package adbutils bundles.

    Raises:
        DeviceError: None of them exists.
    """
    if named := os.environ.get("ADB"):
        if found := shutil.which(named):
            return found
        raise DeviceError(f"ADB={named}: no such program; set ADB to the adb of the Android platform-tools, or unset it")
    if found := shutil.which("adb"):
        return found
    try:
        import adbutils
    except ImportError as error:
        raise DeviceError("adb: not found; install platform-tools, pip install 'edgecompress[devices]', or set ADB") from error
    return str(adbutils.adb_path())


def list_attached() -> tuple[DeviceInfo, ...]:
    """Return every device that adb sees; an unusable one has its state and a remedy. Without adb: one entry that says so."""
    try:
        states = _read_states(find_adb())
    except DeviceError as error:
        return (DeviceInfo(url="adb://", serial="", state="failed", problem=str(error)),)
    return tuple(
        DeviceInfo(
            url=_serial_url(serial), serial=serial, state="ready" if state == "device" else state, problem=_describe_state(serial, state)
        )
        for serial, state in states.items()
    )


class AdbDevice(DeviceBase):
    """A device attached by adb. Use `open_adb`."""

    def __init__(self, serial: str, adb: str) -> None:
        self.url = _serial_url(serial)
        self.serial = serial
        self.python = "python3"
        self.base = PurePosixPath("/data/local/tmp")  # /sdcard is mounted noexec
        self._adb = adb
        self._timeout_form: tuple[str, ...] | None = None  # found out at the first command
        self._is_old: bool | None = None

    def info(self) -> DeviceInfo:
        return probe_device(self)

    def push(self, local: Path, remote: PurePosixPath) -> None:
        done = self._run_adb(["push", str(local), str(remote)], timeout_s=transfer_timeout_s(local.stat().st_size, MIN_BYTES_PER_S))
        if done.returncode != 0:
            raise self._explain_failure(f"cannot write {remote}", done)
        changed = self.run(["chmod", "755", str(remote)], timeout_s=COMMAND_TIMEOUT_S)
        if changed.returncode != 0:
            raise self._explain_failure(f"cannot write {remote}", changed)

    def pull(self, remote: PurePosixPath, local: Path, *, max_bytes: int) -> None:
        sized = self.run(["stat", "-c", "%s", str(remote)], timeout_s=COMMAND_TIMEOUT_S)
        text = sized.stdout.strip()
        if sized.returncode != 0 or not re.fullmatch(r"\d{1,15}", text):
            raise self._explain_failure(f"cannot read {remote}", sized)
        if int(text) > max_bytes:
            raise oversize_error(self.url, remote, int(text), max_bytes)
        # The device may send more than it said, so adb may write no more than the caller allows.
        done = self._run_adb(
            ["pull", str(remote), str(local)], timeout_s=transfer_timeout_s(max_bytes, MIN_BYTES_PER_S), max_file_bytes=max_bytes
        )
        if done.returncode != 0 or not local.is_file():
            raise self._explain_failure(f"cannot read {remote}", done)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> CompletedCommand:
        if self._timeout_form is None:
            self._timeout_form = parse_timeout_form(
                self._run_marked(shlex.join(["sh", "-c", FIND_TIMEOUT_SCRIPT]), COMMAND_TIMEOUT_S).stdout
            )
        mark = _make_mark()
        # The mark is also printed inside of `timeout`: that of toybox 0.8.9 exits with 127 when the command ends very soon.
        limited = limit_command(["sh", "-c", f'"$@"; {_print_status(mark)}', "sh", *argv], timeout_s=timeout_s, form=self._timeout_form)
        began = time.monotonic()
        done = self._run_marked(shlex.join(limited), timeout_s, argv[0])
        returncode, stdout = done.returncode, done.stdout
        if (inside := _split_status(stdout, mark)) is not None:
            stdout, returncode = inside
        if is_late(returncode, time.monotonic() - began, timeout_s):
            raise timeout_error(self.url, argv, timeout_s)
        return CompletedCommand(tuple(argv), returncode, stdout, done.stderr)

    def _run_marked(self, command: str, timeout_s: float, name: str = "sh") -> CompletedCommand:
        """Run a line of shell; its status is the one that the line's own shell printed behind it."""
        mark = _make_mark()
        line = f"{command} </dev/null; {_print_status(mark)}"
        if len(line) > MAX_OLD_COMMAND and self._has_old_protocol():
            line = self._push_line(line)
        done = self._run_adb(["shell", line], timeout_s=timeout_s + LINK_MARGIN_S)
        found = _split_status(done.stdout, mark)
        if found is None:
            raise LinkLost(str(self._explain_failure(f"the connection was lost while running {name}", done)))
        return CompletedCommand((name,), found[1], found[0], done.stderr)

    def _has_old_protocol(self) -> bool:
        if self._is_old is None:
            told = self._run_adb(["features"], timeout_s=COMMAND_TIMEOUT_S)
            self._is_old = told.returncode == 0 and "shell_v2" not in told.stdout
        return self._is_old

    def _push_line(self, line: str) -> str:
        """Send a line of shell as a file; return a short line that runs the file and removes it."""
        remote = self.base / f"edgecompress-{secrets.token_hex(8)}.sh"
        with tempfile.TemporaryDirectory(prefix="edgecompress-") as folder:
            script = Path(folder) / "line"
            script.write_text(f"rm -f {remote}\n{line}\n", encoding="utf-8", newline="\n")
            done = self._run_adb(["push", str(script), str(remote)], timeout_s=transfer_timeout_s(len(line), MIN_BYTES_PER_S))
        if done.returncode != 0:
            raise self._explain_failure(f"cannot write {remote}", done)
        return f"sh {remote}"

    def reconnect(self) -> None:
        """Connect anew; where the device does not come back, raise an error with its state."""
        for pause_s in RECONNECT_PAUSES_S:
            time.sleep(pause_s)
            self._connect_anew()
            state = _read_states(self._adb).get(self.serial, "gone")
            if state == "device":
                return
        raise LinkLost(f"{self.url}: did not come back: {_describe_state(self.serial, state)}")

    def _connect_anew(self) -> None:
        if ADDRESS.fullmatch(self.serial):
            # adb keeps an address that fell silent in its list as connected, and would go on using it.
            process.run_program([self._adb, "disconnect", self.serial], timeout_s=COMMAND_TIMEOUT_S, subject=self.url)
            process.run_program([self._adb, "connect", self.serial], timeout_s=RECONNECT_TIMEOUT_S, subject=self.url)
        else:
            process.run_program([self._adb, "-s", self.serial, "wait-for-device"], timeout_s=RECONNECT_TIMEOUT_S, subject=self.url)

    def _run_adb(self, arguments: Sequence[str], *, timeout_s: float, max_file_bytes: int | None = None) -> CompletedCommand:
        argv = [self._adb, "-s", self.serial, *arguments]
        try:
            return process.run_program(argv, timeout_s=timeout_s, subject=self.url, max_file_bytes=max_file_bytes)
        except CommandTimeout as error:
            why = f"adb {arguments[0]} did not finish within {timeout_s:g} s and was stopped"
            raise CommandTimeout(f"{self.url}: {why}; the device may have fallen silent; check the cable, then run it again") from error

    def _explain_failure(self, what: str, done: CompletedCommand) -> DeviceError:
        """Return an error with the state of the device where that explains the failure, else with the message of adb or the device."""
        state = _read_states(self._adb).get(self.serial, "gone")
        if state != "device":
            return LinkLost(f"{self.url}: {what}: {_describe_state(self.serial, state)}")
        said = join_last_lines(done.stderr or done.stdout) or "adb said nothing"
        if remedy := find_refusal_remedy(said):
            return DeviceError(f"{self.url}: {what}: {said}; {remedy}")
        # The status of a command came from the device, and adb writes "remote …" before a refusal of it. All else is the link's.
        kind = DeviceError if done.argv[0] != self._adb or "remote " in said else LinkLost
        return kind(f"{self.url}: {what}: {said}; check the cable, then run it again")


def _make_mark() -> str:
    return f"edgecompress:{secrets.token_hex(8)}:"


def _print_status(mark: str) -> str:
    """Return the shell commands that print a mark and the status of the command before, on a line of their own."""
    return f"status=$?; echo; echo {mark}$status"


def _split_status(stdout: str, mark: str) -> tuple[str, int] | None:
    """Return (output, status) of a command that printed the mark behind its output; None where the mark or the status is not there."""
    output, found, status = stdout.rpartition(f"\n{mark}")
    return (output, int(status)) if found and re.fullmatch(r"\d{1,3}", status := status.strip()) else None


def _read_states(adb: str) -> dict[str, str]:
    """Return {serial: state} from `adb devices -l`; adb's server is started where none runs."""
    subject = "adb"
    started = process.run_program([adb, "start-server"], timeout_s=COMMAND_TIMEOUT_S, subject=subject)
    listed = process.run_program([adb, "devices", "-l"], timeout_s=COMMAND_TIMEOUT_S, subject=subject)
    if started.returncode != 0 or listed.returncode != 0:
        said = join_last_lines(listed.stderr or started.stderr)
        raise DeviceError(f"adb: its server does not answer: {said}; run `adb kill-server` and try again")
    states = {}
    for line in listed.stdout.splitlines():
        if line.startswith(("List of devices", "*")):
            continue
        # "SERIAL       device product:… model:…", and wireless serials may contain " (2)"
        if match := re.match(r"(\S.*?)(?:\t+| {2,}|\s+)(no permissions|[a-z]+)(?=$|\s|;)", line):
            states[match[1].strip()] = match[2]
    return states


def _describe_state(serial: str, state: str) -> str:
    if state == "device":
        return ""
    if state == "gone":
        return f"adb://{serial} is no longer attached; check the cable and run it again"
    return f"adb://{serial} {STATE_REMEDIES.get(state, f'is in state {sanitize(state)}; start Android on it and switch USB debugging on')}"


def _serial_url(serial: str) -> str:
    """Return the URL that `open_adb` reads as this serial; a blank needs no escape, but `%41` would be read as A."""
    return f"adb://{serial.replace('%', '%25')}"


def open_adb(rest: str) -> AdbDevice:
    """Return the device with that serial; "" takes the only one attached; an address `host:port` is connected first where needed.

    Raises:
        DeviceError: The device is not attached, unauthorized, offline or refuses, or several are attached; says what to do.
    """
    adb = find_adb()
    serial = unquote(rest)
    states = _read_states(adb)
    if not serial:
        serial = _only_serial(states)
    if serial not in states and ADDRESS.fullmatch(serial):
        said = process.run_program([adb, "connect", serial], timeout_s=COMMAND_TIMEOUT_S, subject=f"adb://{serial}")
        states = _read_states(adb)
        if serial not in states:  # adb 36 exits 0 also when it was refused
            why = join_last_lines(said.stdout or said.stderr)
            raise DeviceError(f"adb://{serial}: cannot connect: {why}; check the address, and run `adb tcpip 5555` or pair the device")
    if serial not in states:
        there = ", ".join(states) or "none (plug it in and switch USB debugging on)"
        raise DeviceError(f"adb://{serial}: no such device; attached: {there}; see `edgecompress devices`")
    if problem := _describe_state(serial, states[serial]):
        raise DeviceError(problem.replace(f"adb://{serial} ", f"adb://{serial}: ", 1))
    return AdbDevice(serial, adb)


def _only_serial(states: dict[str, str]) -> str:
    if len(states) == 1:
        return next(iter(states))
    if not states:
        raise DeviceError("adb://: no device attached; plug one in and switch USB debugging on")
    raise DeviceError(f"adb://: {len(states)} devices attached: {', '.join(states)}; name one, adb://SERIAL")
