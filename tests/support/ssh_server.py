"""A real sshd on loopback with its own keys and configuration, and a HOME whose ~/.ssh knows it."""

import getpass
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.require import require


@dataclass(frozen=True)
class SshServer:
    port: int
    home: Path  # with .ssh/config, the client key and known_hosts
    host_key: str  # "ssh-ed25519 AAAA…"
    process: subprocess.Popen

    @property
    def url(self):
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def known_hosts(self):
        return self.home / ".ssh" / "known_hosts"

    def drop_connections(self):
        """Kill the server's end of every connection, as a pulled cable does."""
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)

    def known_line(self, key=None):
        return f"[127.0.0.1]:{self.port} {key or self.host_key}\n"


def make_key(path):
    subprocess.run(
        [require("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True, timeout=300
    )
    return path.with_suffix(".pub").read_text().strip()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """The server, started once a session."""
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@contextmanager
def running_sshd(folder, *more):
    """Run a server with `more` lines of configuration, without SFTP unless they say so.

    python3 in its sessions is the one that runs the tests, whatever ~/.bashrc says.
    """
    program = require("sshd", "openssh-server")
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    host_key = make_key(folder / "host_key")
    client_key = make_key(home / ".ssh" / "id_ed25519")
    (folder / "authorized_keys").write_text(f"{client_key}\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own privilege separation folder, made by its init script elsewhere
    port = free_port()
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host_key'}\nAuthorizedKeysFile {folder / 'authorized_keys'}\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        f"SetEnv PATH={path} HOME={folder}\n{chr(10).join(more)}\n"
    )
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([program, "-D", "-e", "-f", folder / "config"], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    server = SshServer(port, home, host_key, process)
    try:
        wait_for_port(port, process, log)
        yield server
    finally:
        process.terminate()
        process.wait(300)


def wait_for_port(port, process, log):
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(f"sshd did not start: {log.read_text()}")


@pytest.fixture
def ssh_server(sshd, monkeypatch):
    """The server, with a HOME whose known_hosts trusts it, and without an agent."""
    sshd.known_hosts.write_text(sshd.known_line())
    monkeypatch.setenv("HOME", str(sshd.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return sshd
