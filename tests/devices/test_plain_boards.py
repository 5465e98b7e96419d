"""Boards that lack what others have: SFTP, `timeout`, quiet start-up files, a shell for this user; with a real sshd."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from support.require import require

from edgecompress.devices import open_device
from edgecompress.devices.device import limit_command, parse_timeout_form
from edgecompress.devices.listing import describe_device
from edgecompress.devices.runners.file_store import send_files
from edgecompress.errors import DeviceError

NOISE = "echo 'Welcome to the board!'\necho 'hash 0 file' >&2\nprintf 'timeout none'\n"
# BusyBox has taken the time as an option, and passed on the signal that ended the command; then it took it so, without `-k`.
OLD_TIMEOUT = """#!/bin/sh
[ "$1" = -t ] || { echo "BusyBox v1.22.1 multi-call binary. Usage: timeout [-t SECS] [-s SIG] PROG ARGS" >&2; exit 1; }
case $2 in *[!0-9]*) echo "timeout: invalid number '$2'" >&2; exit 1;; esac
limit=$2; shift 2
(sleep "$limit"; kill $$) >/dev/null 2>&1 </dev/null &
exec "$@"
"""
NEWER_TIMEOUT = """#!/bin/sh
case $1 in -*) echo "timeout: invalid option -- 'k'" >&2; exit 1;; *[!0-9]*) exit 1;; esac
exec TIMEOUT "$@"
"""


@pytest.fixture
def start_up(ssh_server):
    """A function that writes what the login shell reads first; it is bash's own file, since bash reads it for commands over ssh."""
    path = ssh_server.home.parent / ".bashrc"

    def write(text):
        path.write_text(text)
        program = [
            require("ssh", "openssh-client"),
            "-F",
            "none",
            "-i",
            ssh_server.home / ".ssh" / "id_ed25519",
            "-p",
            str(ssh_server.port),
        ]
        known = [f"-oUserKnownHostsFile={ssh_server.known_hosts}", "127.0.0.1", 'echo "$PATH"']
        return subprocess.run([*program, *known], capture_output=True, text=True, timeout=60, check=True).stdout

    yield write
    path.unlink(missing_ok=True)


@pytest.fixture
def board_without(start_up, tmp_path):
    """A function that gives the board a PATH without `timeout`, or with another one."""

    def make(script):
        programs = tmp_path / "programs"
        programs.mkdir()
        for folder in ("/usr/bin", "/bin"):
            for entry in os.scandir(folder):
                if entry.name != "timeout" and not (programs / entry.name).is_symlink():
                    (programs / entry.name).symlink_to(entry.path)
        if script:
            (programs / "timeout").write_text(script.replace("TIMEOUT", require("timeout", "coreutils")))
            (programs / "timeout").chmod(0o755)
        if start_up(f"PATH={programs}\n").strip() != str(programs):
            pytest.skip("the login shell of this user is not bash")

    return make


def test_files_go_over_without_sftp_whatever_their_names_and_bytes(ssh_server, tmp_path):
    assert "sftp" not in (ssh_server.home.parent / "config").read_text()
    target = tmp_path / "o'clock $(id) é"
    target.mkdir()
    with open_device(ssh_server.url) as device:
        for size in (0, 1, 300_000):
            sent, got = tmp_path / "sent", tmp_path / "got"
            sent.write_bytes(random.Random(size).randbytes(size))
            device.push(sent, target / "a file")
            assert (target / "a file").stat().st_mode & 0o777 == 0o755
            device.pull(target / "a file", got, max_bytes=300_000)
            assert got.read_bytes() == sent.read_bytes()


def test_what_cannot_be_fetched_or_written_says_why(ssh_server, tmp_path):
    (tmp_path / "large").write_bytes(bytes(1001))
    with open_device(ssh_server.url) as device:
        with pytest.raises(DeviceError, match=r"large has 1001 bytes, more than the 1000 allowed"):
            device.pull(tmp_path / "large", tmp_path / "got", max_bytes=1000)
        with pytest.raises(DeviceError, match=r"cannot read .*nothing: .*No such file"):
            device.pull(tmp_path / "nothing", tmp_path / "got", max_bytes=1000)
        with pytest.raises(DeviceError, match=r"cannot write .*nowhere/x: .*(No such file|nonexistent)"):
            device.push(tmp_path / "large", tmp_path / "nowhere" / "x")
    assert not (tmp_path / "got").exists()


def test_start_up_files_that_print_change_no_result(ssh_server, start_up, tmp_path):
    if "Welcome" not in start_up(NOISE):
        pytest.skip("the login shell of this user is not bash")
    (tmp_path / "sent").write_bytes(b"Welcome\r\n\x00\xff")
    with open_device(ssh_server.url) as device:
        done = device.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=10)
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
        work = tmp_path / "work"
        assert send_files(device, work, {"file": tmp_path / "sent"}, keep=()).pushed_bytes == 11
        device.pull(work / "file", tmp_path / "got", max_bytes=100)
        assert device.info().abi == os.uname().machine
    assert (tmp_path / "got").read_bytes() == (tmp_path / "sent").read_bytes()


def test_a_board_that_sends_more_than_it_told_is_not_believed(ssh_server, start_up, tmp_path):
    (tmp_path / "wc").write_text("#!/bin/sh\necho 5\n")
    (tmp_path / "wc").chmod(0o755)
    if str(tmp_path) not in start_up(f"PATH={tmp_path}:$PATH\n"):
        pytest.skip("the login shell of this user is not bash")
    for size in (4, 10):
        (tmp_path / "sent").write_bytes(bytes(size))
        with open_device(ssh_server.url) as device, pytest.raises(DeviceError, match=rf"sent: {size} bytes came, 5 were told"):
            device.pull(tmp_path / "sent", tmp_path / "got", max_bytes=1000)
    assert not (tmp_path / "got").exists()


def test_an_account_without_a_shell_is_the_cause(ssh_server):
    keys = ssh_server.home.parent / "authorized_keys"
    before = keys.read_text()
    keys.write_text(f'command="echo This account is for backups only.; exit 1" {before}')
    try:
        info = describe_device(ssh_server.url)
    finally:
        keys.write_text(before)
    assert info.state == "failed"
    assert (
        "the login shell there did not run the command (exit status 1), it said: This account is for backups only.; log in" in info.problem
    )


BOARDS = {"none": "", "old BusyBox": OLD_TIMEOUT, "newer BusyBox": NEWER_TIMEOUT}


@pytest.mark.parametrize("board", ["none", "old BusyBox", pytest.param("newer BusyBox", marks=pytest.mark.slow)])
def test_commands_run_and_files_go_over_whatever_timeout_the_board_has(ssh_server, board_without, board, tmp_path):
    board_without(BOARDS[board])
    (tmp_path / "sent").write_bytes(b"sent")
    with open_device(ssh_server.url) as device:
        done = device.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=5)
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
        device.push(tmp_path / "sent", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"sent"


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_a_command_is_ended_in_time_whatever_timeout_the_board_has(ssh_server, board_without, board, tmp_path):
    board_without(BOARDS[board])
    pid = tmp_path / "pid"
    with open_device(ssh_server.url) as device:
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"sleep 60' did not finish within 0.3 s and was stopped"):
            device.run(["sh", "-c", f"echo $$ >'{pid}'; exec sleep 60"], timeout_s=0.3)
        assert time.monotonic() - began < 20
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_a_time_limit_is_put_in_the_form_that_the_board_takes():
    limited = [
        limit_command(["true"], timeout_s=0.5, form=parse_timeout_form(text)) for text in ("timeout -k 5\n", "timeout 9\n", "timeout -t\n")
    ]
    assert limited == [["timeout", "-k", "5", "0.5", "true"], ["timeout", "1", "true"], ["timeout", "-t", "1", "true"]]
    for text in ("timeout none\n", "", "timeout rm -rf\n"):  # what a board prints never becomes a command
        assert limit_command(["true"], timeout_s=0.5, form=parse_timeout_form(text))[0] == "sh"
