"""Hosts, keys and links that the ssh transport refuses or reports, with a real sshd."""

import asyncio
import os
import signal
import socket
import threading
from pathlib import PurePosixPath

import pytest
from support.ssh_server import make_key

from edgecompress.devices import open_device
from edgecompress.errors import DeviceError


def test_an_unknown_host_key_is_refused_with_the_line_to_add(ssh_server):
    ssh_server.known_hosts.write_text("")
    with pytest.raises(DeviceError, match="unknown host key SHA256:") as caught:
        open_device(ssh_server.url)
    line = str(caught.value).rpartition("the line: ")[2]
    assert line == ssh_server.known_line().strip()
    ssh_server.known_hosts.write_text(f"{line}\n")
    with open_device(ssh_server.url) as device:
        assert device.run(["true"], timeout_s=10).returncode == 0


def test_a_missing_known_hosts_trusts_nobody(ssh_server):
    ssh_server.known_hosts.unlink()
    with pytest.raises(DeviceError, match="unknown host key"):
        open_device(ssh_server.url)


def test_a_changed_host_key_is_refused_and_says_so(ssh_server, tmp_path):
    ssh_server.known_hosts.write_text(ssh_server.known_line(make_key(tmp_path / "another")))
    with pytest.raises(DeviceError, match=r"host key has CHANGED.*ssh-keygen -R"):
        open_device(ssh_server.url)


def test_a_revoked_host_key_is_refused(ssh_server):
    ssh_server.known_hosts.write_text(f"@revoked {ssh_server.known_line()}")
    with pytest.raises(DeviceError, match="is revoked"):
        open_device(ssh_server.url)


@pytest.fixture
def ssh_config(ssh_server):
    path = ssh_server.home / ".ssh" / "config"
    yield path
    path.unlink(missing_ok=True)


def test_the_users_configuration_is_respected(ssh_server, ssh_config):
    ssh_config.write_text(f"Host board\n  HostName 127.0.0.1\n  Port {ssh_server.port}\n")
    with open_device("ssh://board") as device:
        assert device.serial == f"board:{ssh_server.port}"
        assert device.run(["true"], timeout_s=10).returncode == 0


def test_a_configuration_that_trusts_everybody_is_not_followed(ssh_server, ssh_config):
    ssh_config.write_text("UserKnownHostsFile none\nStrictHostKeyChecking no\n")
    ssh_server.known_hosts.write_text("")
    with pytest.raises(DeviceError, match="unknown host key"):
        open_device(ssh_server.url)


def test_a_refused_key_asks_for_no_password(ssh_server, ssh_config, tmp_path):
    make_key(tmp_path / "unknown")
    ssh_config.write_text(f"IdentityFile {tmp_path / 'unknown'}\nIdentitiesOnly yes\n")
    with pytest.raises(DeviceError, match=r"refused our keys.*ssh-copy-id"):
        open_device(ssh_server.url)


def test_a_port_where_nobody_listens_is_named(ssh_server):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: refused
        with pytest.raises(DeviceError, match=r"cannot be reached.*sshd"):
            open_device(f"ssh://127.0.0.1:{held.getsockname()[1]}")


def test_a_server_that_speaks_no_ssh_is_named(ssh_server, monkeypatch):
    for module in ("ssh", "ssh_connection"):
        monkeypatch.setattr(f"edgecompress.devices.transports.{module}.CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeviceError, match=r"(failed|no answer|took more).*;"):
        open_device(f"ssh://127.0.0.1:{silent.getsockname()[1]}")


def test_a_lost_connection_is_no_result(ssh_server, tmp_path):
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    def pull_the_cable():
        fifo.read_bytes()
        ssh_server.drop_connections()

    with open_device(ssh_server.url) as device:
        thread = threading.Thread(target=pull_the_cable, daemon=True)  # it waits for ever where the command does not start
        thread.start()
        with pytest.raises(DeviceError, match="connection was lost"):
            device.run(["sh", "-c", f"echo >'{fifo}'; exec sleep 20"], timeout_s=20)
        thread.join(60)
        with pytest.raises(DeviceError, match="connection was lost"):
            device.run(["true"], timeout_s=5)


def test_a_full_disk_there_is_said(ssh_server, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 10_000)
    with (
        open_device(ssh_server.url) as device,
        pytest.raises(DeviceError, match=r"/dev/full: .*No space left on device; free some"),
    ):
        device.push(source, PurePosixPath("/dev/full"))


def test_death_by_signal_is_a_negative_status(ssh_server):
    with open_device(ssh_server.url) as device:
        done = device.run(["sh", "-c", "kill -SEGV $$"], timeout_s=10)
    assert done.returncode in {-signal.SIGSEGV, 128 + signal.SIGSEGV}


def test_ssh_works_where_an_event_loop_already_runs(ssh_server):
    async def notebook():
        with open_device(ssh_server.url) as device:
            return device.run(["echo", "hello"], timeout_s=10).stdout

    assert asyncio.run(notebook()) == "hello\n"


def test_closing_twice_is_harmless(ssh_server):
    device = open_device(ssh_server.url)
    device.close()
    device.close()
