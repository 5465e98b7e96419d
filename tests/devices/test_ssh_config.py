"""What ~/.ssh/config says of a host is followed, with a real sshd, agent and jump host; the host key of each host stays checked."""

import asyncio
import os
import subprocess
from contextlib import contextmanager

import pytest
from support.require import require
from support.ssh_server import make_key

from edgecompress.devices import open_device
from edgecompress.devices.leases.lease import lease_name
from edgecompress.devices.listing import describe_device
from edgecompress.devices.transports.ssh_address import SshAddress
from edgecompress.devices.transports.ssh_config import is_encrypted, is_private_key, read_ssh_settings
from edgecompress.errors import ConfigError, DeviceError


@pytest.fixture
def configure(ssh_server):
    """A function that writes ~/.ssh/config, in which {port} and {home} stand for the server's port and the home folder."""
    path = ssh_server.home / ".ssh" / "config"
    yield lambda text: path.write_text(text.format(port=ssh_server.port, home=ssh_server.home))
    path.unlink(missing_ok=True)


@pytest.fixture
def key(ssh_server):
    """The user's only key, as it was before and will be afterwards."""
    path = ssh_server.home / ".ssh" / "id_ed25519"
    public = path.with_suffix(".pub")
    contents = path.read_bytes(), public.read_bytes()
    yield path
    path.write_bytes(contents[0])
    public.write_bytes(contents[1])
    path.chmod(0o600)


@contextmanager
def running_agent(socket, key):
    """Run a real ssh-agent that holds a key."""
    process = subprocess.Popen([require("ssh-agent", "openssh-client"), "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            added = subprocess.run(
                [require("ssh-add", "openssh-client"), "-q", key], env={**os.environ, "SSH_AUTH_SOCK": str(socket)}, check=False, timeout=60
            )
            if added.returncode == 0:
                break
        assert added.returncode == 0
        yield
    finally:
        process.kill()
        process.wait()


def encrypt(key):
    program = require("ssh-keygen", "openssh-client")
    subprocess.run([program, "-q", "-p", "-P", "", "-N", "passphrase", "-a", "1", "-f", key], check=True, timeout=60, capture_output=True)


def works(url):
    with open_device(url) as device:
        return device.run(["echo", "there"], timeout_s=10).stdout == "there\n"


JUMP = "Host board Other\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias shelf\n  ProxyJump gate\n"
GATE = "Host gate\n  HostName 127.0.0.1\n  Port {port}\n"


def test_a_board_behind_a_jump_host_has_its_own_name(ssh_server, configure):
    configure(JUMP + GATE)
    ssh_server.known_hosts.write_text(f"{ssh_server.known_line()}shelf {ssh_server.host_key}\n")
    with open_device("ssh://board") as board, open_device("ssh://Other") as other, open_device("ssh://gate") as gate:
        names = [board.serial, other.serial, gate.serial]
        assert names == [f"{name}:{ssh_server.port}" for name in ("board", "other", "gate")]
        assert len({lease_name(device) for device in (board, other, gate)}) == 3
        assert board.run(["echo", "there"], timeout_s=10).stdout == "there\n"
        board.reconnect()
        info = board.info()
    assert (info.url, info.serial) == ("ssh://board", names[0])


def test_the_address_of_a_jump_host_vouches_for_no_board_behind_it(ssh_server, configure):
    configure(JUMP + GATE)
    with pytest.raises(DeviceError, match=r"^ssh://board: unknown host key .*the line: shelf ssh-ed25519"):
        open_device("ssh://board")


def test_the_key_of_a_jump_host_is_checked_whatever_its_settings(ssh_server, configure):
    configure(f"{JUMP}{GATE}  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    ssh_server.known_hosts.write_text(f"shelf {ssh_server.host_key}\n")
    with pytest.raises(DeviceError, match=r"^ssh://board: jump host gate: unknown host key .*UserKnownHostsFile"):
        open_device("ssh://board")


def test_a_jump_host_that_cannot_reach_the_board_says_so(configure):
    configure("Host board\n  HostName 127.0.0.1\n  Port 1\n  ProxyJump gate\n" + GATE)
    with pytest.raises(DeviceError, match=r"^ssh://board: cannot be reached from the jump host gate: .*switched on"):
        open_device("ssh://board")


def test_jumps_in_a_circle_are_refused(configure):
    configure("Host *\n  HostName 127.0.0.1\n  Port {port}\n  ProxyJump gate\n")
    with pytest.raises(ConfigError, match=r"ProxyJump leads in a circle at gate; .*Host \* !gate"):
        open_device("ssh://board")


@pytest.mark.slow
def test_several_jumps_go_one_through_the_other(ssh_server, configure):
    configure(f"{GATE.replace('gate', 'gate second board')}Host board\n  ProxyJump gate,ssh://second:{{port}}\n")
    assert works("ssh://board")


@pytest.mark.parametrize(
    ("options", "file", "name"),
    [
        ("  HostKeyAlias shelf\n", "known_hosts", "shelf"),  # looked up without the port, as ssh does
        pytest.param("  UserKnownHostsFile ~/.ssh/boards ~/.ssh/other\n", "other", "[127.0.0.1]:{port}", marks=pytest.mark.slow),
        ("  UserKnownHostsFile {home}/.ssh/of-%n-%k\n", "of-board-board", "[127.0.0.1]:{port}"),
        pytest.param("  GlobalKnownHostsFile {home}/.ssh/everybody\n", "everybody", "[127.0.0.1]:{port}", marks=pytest.mark.slow),
        ("  GlobalKnownHostsFile {home}/.ssh/everybody\n", "known_hosts", "[127.0.0.1]:{port}"),
    ],
)
def test_host_keys_are_looked_up_where_the_configuration_says(ssh_server, configure, options, file, name):
    configure("Host board\n  HostName 127.0.0.1\n  Port {port}\n" + options)
    ssh_server.known_hosts.write_text("")
    with pytest.raises(DeviceError, match="unknown host key"):
        open_device("ssh://board")
    known = ssh_server.home / ".ssh" / file
    known.write_text(f"{name.format(port=ssh_server.port)} {ssh_server.host_key}\n")
    try:
        assert works("ssh://board")
    finally:
        known.unlink()


def test_known_hosts_that_go_nowhere_are_named(ssh_server, configure):
    configure("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
    with pytest.raises(DeviceError, match=r"unknown host key .*add to ~/.ssh/known_hosts, and let UserKnownHostsFile name that file"):
        open_device(ssh_server.url)


def test_an_encrypted_key_without_an_agent_is_the_cause(ssh_server, key, configure, tmp_path):
    encrypt(key)
    assert is_encrypted(key)
    with pytest.raises(DeviceError, match=rf"{key} is encrypted and no agent holds it; run `ssh-add {key}`"):
        open_device(ssh_server.url)
    configure(f"IdentityAgent {tmp_path / 'nobody'}\n")  # a socket on which nobody answers
    with pytest.raises(DeviceError, match="is encrypted and no agent holds it"):
        open_device(ssh_server.url)


@pytest.mark.parametrize(
    "named",
    [
        "IdentityAgent {socket}",
        pytest.param("IdentityAgent $BOARDS_AGENT", marks=pytest.mark.slow),
        "IdentitiesOnly yes\nIdentityAgent {socket}\nIdentityFile {home}/.ssh/id_ed25519.pub",
    ],
)
def test_the_agent_of_the_configuration_is_asked(ssh_server, key, configure, monkeypatch, tmp_path, named):
    socket = tmp_path / "agent"
    monkeypatch.setenv("BOARDS_AGENT", str(socket))
    with running_agent(socket, key):
        if "IdentityFile" in named:
            key.unlink()  # a public key alone says which one of the agent's is meant
        else:
            encrypt(key)
        configure(named.replace("{socket}", str(socket)) + "\n")
        assert works(ssh_server.url)


def test_an_agent_is_not_asked_where_the_configuration_says_none(ssh_server, key, configure, monkeypatch, tmp_path):
    with running_agent(tmp_path / "agent", key):
        encrypt(key)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        assert works(ssh_server.url)
        configure("IdentityAgent none\n")
        with pytest.raises(DeviceError, match="is encrypted and no agent holds it"):
            open_device(ssh_server.url)


def test_a_key_that_does_not_exist_is_passed_over_and_named_where_none_fits(ssh_server, key, configure):
    configure("IdentityFile ~/.ssh/of-long-ago\nIdentityFile ~/.ssh/id_ed25519\n")
    assert works(ssh_server.url)
    key.unlink()
    with pytest.raises(DeviceError, match=r"~/.ssh/of-long-ago, which ~/.ssh/config names, does not exist"):
        open_device(ssh_server.url)


def test_a_key_that_others_may_read_is_refused_also_where_the_configuration_names_it(ssh_server, configure, tmp_path):
    make_key(tmp_path / "shared")
    (tmp_path / "shared").chmod(0o640)
    configure(f"Match host 127.0.0.1\n  IdentityFile {tmp_path}/shared\n")
    with pytest.raises(ConfigError, match=r"shared: this private key has mode 0640, .*chmod 600"):
        open_device(ssh_server.url)


def test_what_people_set_for_their_own_sessions_changes_nothing(ssh_server, configure):
    configure("Host Board\n  HostName 127.0.0.1\n  Port {port}\n  RequestTTY force\n  RemoteCommand cat /etc/passwd\n  ForwardAgent yes\n")
    assert works("ssh://Board")  # with its capital, by which the configuration knows the host


def test_a_malformed_configuration_is_the_users_to_mend(ssh_server, configure):
    configure("Port many\n")
    info = describe_device(ssh_server.url)
    assert info.state == "unreachable"
    assert "~/.ssh/config cannot be used: " in info.problem
    assert "line 1" in info.problem


def test_settings_are_read_in_one_place(ssh_server, configure):
    configure(
        "Match final\n  Port 2222\nHost shelf\n  HostName %h.example.org\n  User pi\n  ProxyJump admin@gate:22,[::1]:2200\n"
        "  IdentityFile ~/.ssh/id_ed25519\n"
    )
    found = asyncio.run(read_ssh_settings("ssh://shelf", SshAddress(None, "shelf", None)))
    assert found.known_name == "[shelf.example.org]:2222"
    assert found.jumps == (SshAddress("admin", "gate", 22), SshAddress(None, "::1", 2200))
    assert found.keys == (ssh_server.home / ".ssh" / "id_ed25519",)
    assert is_private_key(found.keys[0])
    assert not is_encrypted(found.keys[0])
