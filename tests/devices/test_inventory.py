"""The inventory file, the message for each mistake in it, and the list that `edgecompress devices` makes from it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import pytest
from support.paths import REPOSITORY
from support.runs import COMMAND

from edgecompress.cli import main
from edgecompress.devices import list_devices, open_device
from edgecompress.devices.bench import bench
from edgecompress.devices.inventory import InventoryEntry, default_inventory_path, find_entry, load_inventory, select_by_label
from edgecompress.errors import ConfigError

EXAMPLE = REPOSITORY / "device_tests" / "suite" / "inventory.example.toml"
HOSTILE = "\x1b]0;title\x07\x1b[2J[red]x[/red]\u202e\x9b31m"


@pytest.fixture(autouse=True)
def _no_inventory(monkeypatch, tmp_path):
    """Keep the user's own inventory out of the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EDGECOMPRESS_INVENTORY", raising=False)


@pytest.fixture
def write(tmp_path):
    def write(text, name="devices.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def silent_host():
    """A host that accepts connections and never sends anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server


def device(**values):
    return "[[device]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


# --- the file


def test_every_key_is_read(write):
    runner = write("#!/bin/sh\n", "bin/runner")
    as_they_are = {"url": "ssh://pi@h:2222", "name": "pi 5", "python": "/opt/p y", "cooldown_c": 37.0, "notes": "n"}
    path = write(device(**as_they_are, labels=["a", "b c"], runner="bin/runner", cpu_mask="0xF0"))
    assert load_inventory(path) == (InventoryEntry(**as_they_are, labels=("a", "b c"), runner=str(runner), cpu_mask="f0"),)
    assert as_they_are.keys() | {"labels", "runner", "cpu_mask"} == set(InventoryEntry.__struct_fields__)


def test_the_example_is_valid_and_shows_every_key():
    entries = load_inventory(EXAMPLE)
    assert {entry.url.partition("://")[0] for entry in entries} == {"local", "ssh", "adb"}
    assert all(f"{key} = " in EXAMPLE.read_text() for key in InventoryEntry.__struct_fields__)


@pytest.mark.parametrize("mask", ['"f0"', '"F0"', '"0xf0"', '"00f0"', "0xf0", "240", "0b1111_0000"])
def test_a_mask_has_one_form_however_it_is_written(write, mask):
    (entry,) = load_inventory(write(f'[[device]]\nurl = "local://"\ncpu_mask = {mask}\n'))
    assert entry.cpu_mask == "f0"


def test_an_argument_goes_before_the_setting_and_that_before_the_default(write, monkeypatch):
    assert load_inventory() == ()
    default_inventory_path().parent.mkdir(parents=True)
    default_inventory_path().write_text(device(url="adb://default"))
    assert [entry.url for entry in load_inventory()] == ["adb://default"]
    monkeypatch.setenv("EDGECOMPRESS_INVENTORY", str(write(device(url="adb://setting"))))
    assert [entry.url for entry in load_inventory()] == ["adb://setting"]
    assert [entry.url for entry in load_inventory(write(device(url="adb://argument"), "other.toml"))] == ["adb://argument"]


def test_an_empty_file_names_nothing(write):
    assert load_inventory(write("# nothing yet\n")) == ()


def test_entries_are_found_by_label_name_and_url(write):
    pi, phone, desk = load_inventory(
        write(device(url="ssh://h", name="pi", labels=["arm"]) + device(url="adb://a b", labels=["arm"]) + device(url="local://"))
    )
    entries = (pi, phone, desk)
    assert select_by_label(entries, "arm") == (pi, phone)
    assert select_by_label(entries, "ar") == select_by_label(entries, "") == ()
    assert find_entry(entries, "pi") == find_entry(entries, "ssh://h") == pi
    assert find_entry(entries, "adb://a b") == find_entry(entries, "adb://a%20b") == phone
    assert find_entry(entries, "") is find_entry(entries, "adb://a") is None


WRONG = {
    "malformed": ("[[device]]\nurl = \n", r"malformed TOML: .*line 2.*; mend that line"),
    "not text": (b"\xff\xfe[[device]]", r"not UTF-8 text \(byte 0\)"),
    "unknown table": (device(url="local://") + "[farm]\n", r"unknown key 'farm'; an inventory consists of \[\[device\]\]"),
    "one table": ('[device]\nurl = "local://"\n', r"no array of tables; begin each device with the line \[\[device\]\]"),
    "no tables": ("device = [1]\n", r"no array of tables"),
    "unknown key": (
        device(url="local://", name="desk", lable="x"),
        r"device 1 \(desk\): unknown key 'lable'; choose from url, name, labels",
    ),
    "second entry": (device(url="local://") + device(url="adb://x", serial="x"), r"device 2: unknown key 'serial'"),
    "no url": (device(name="x"), r"device 1 \(x\): .*missing required field `url`"),
    "wrong type": (device(url="local://", labels="arm"), r"device 1: Expected `array`, got `str` - at `\$\.labels`"),
    "number as name": (device(url="local://", name=5), r"device 1: Expected `str`, got `int` - at `\$\.name`"),
    "unknown kind": (device(url="serial://ttyUSB0"), r"'serial://ttyUSB0' is of unknown kind; choose from local://, ssh://, adb://"),
    "no kind": (device(url="raspberrypi"), r"'raspberrypi' is of unknown kind"),
    "password": (device(url="ssh://pi:secret@h"), r"url: a password stands in the address; use a key"),
    "password and port": (device(url="ssh://pi:secret@h:99999"), r"url: a password stands in the address"),
    "impossible port": (device(url="ssh://pi@h:99999"), r"url: .*; write ssh://user@host:port"),
    "path": (device(url="ssh://pi@h/path"), r"url: no host, or something behind it"),
    "no host": (device(url="ssh://"), r"url: no host, .*; write ssh://user@host:port"),
    "option as host": (device(url="ssh://-oProxyCommand=x"), r"url: no host"),
    "no serial": (device(url="adb://"), r"no serial in the url; write adb://SERIAL"),
    "behind local": (device(url="local://x"), r"local:// takes nothing behind it"),
    "escape in url": (device(url="adb://a\x1b[2Jb"), r"control characters, or blanks around it, in url; remove them"),
    "escape in key": ('[[device]]\nurl = "local://"\n"\\u001b[2J" = 1\n', r"unknown key '\?\[2J'"),
    "escape in name": (device(url="local://", name="a\x1b[2J"), r"device 1 \(a\?\[2J\): control characters.* in name"),
    "blank label": (device(url="local://", labels=[" a"]), r"control characters, or blanks around it, in labels"),
    "empty label": (device(url="local://", labels=["a", ""]), r"an empty label; remove it"),
    "name like a pool": (device(url="local://", name="pool:arm"), r"a colon in the name.*; choose another name"),
    "mask of nothing": (device(url="local://", cpu_mask="0"), r"cpu_mask = '0' is no CPU mask; write hexadecimal digits"),
    "mask in words": (device(url="local://", cpu_mask="big cores"), r"cpu_mask = 'big cores' is no CPU mask"),
    "negative mask": (device(url="local://", cpu_mask=-1), r"cpu_mask = -1 is no CPU mask"),
    "signed mask": (device(url="local://", cpu_mask="+f"), r"cpu_mask = '\+f' is no CPU mask"),
    "mask as truth": (device(url="local://", cpu_mask=True), r"cpu_mask = True is no CPU mask"),
    "endless mask": (device(url="local://", cpu_mask="f" * 400), r"is no CPU mask"),
    "hot": (device(url="local://", cooldown_c=370), r"cooldown_c = 370 is no temperature to cool down to; give °C, e\.g\. 37"),
    "no number": ('[[device]]\nurl = "local://"\ncooldown_c = nan\n', r"cooldown_c = nan is no temperature"),
    "no runner": (
        device(url="local://", runner="bin/none"),
        r"runner /.*/bin/none: no such file; a relative path starts at the inventory's",
    ),
    "folder as runner": (device(url="local://", runner="."), r"runner /.*: no such file"),
    "same name": (
        device(url="local://", name="a") + device(url="adb://x", name="a"),
        r"device 2: the name 'a' is that of device 1 too; rename",
    ),
    "same url": (device(url="adb://a b") + device(url="adb://a%20b"), r"device 2: the url adb://a%20b is that of device 1 too; remove one"),
}


@pytest.mark.parametrize("text, message", WRONG.values(), ids=WRONG)  # noqa: PT006
def test_a_wrong_inventory_is_refused_whole(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_inventory(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "; " in said
    assert said.isprintable()
    assert "secret" not in said


def test_a_named_inventory_must_be_there(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"none\.toml: no such inventory; write it"):
        load_inventory(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory; check"):
        load_inventory(tmp_path)
    monkeypatch.setenv("EDGECOMPRESS_INVENTORY", str(tmp_path / "gone.toml"))
    with pytest.raises(ConfigError, match=r"gone\.toml: no such inventory"):
        load_inventory()


@pytest.mark.parametrize("verb", [["devices", "--inventory", "{}"], ["bench", "x.tflite", "--device", "nobody"]])
def test_the_command_line_says_what_is_wrong_and_ends_with_2(write, tiny, verb, monkeypatch, capsys):
    path = write(device(url="local://", lable="x"))
    monkeypatch.setenv("EDGECOMPRESS_INVENTORY", str(path))
    arguments = [str(tiny / "tiny.tflite") if word == "x.tflite" else word.format(path) for word in verb]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"edgecompress: {path}: device 1: unknown key 'lable'")


# --- devices by name


def test_a_name_stands_for_its_url_and_interpreter(ssh_server, write, monkeypatch):
    monkeypatch.setenv("EDGECOMPRESS_INVENTORY", str(write(device(url=ssh_server.url, name="kitchen pi", python=sys.executable))))
    with open_device("kitchen pi") as opened:
        assert (opened.url, opened.python) == (ssh_server.url, sys.executable)
    with pytest.raises(ConfigError, match=r"'pi': unknown kind of device; choose from local://.* or a name of the inventory: 'kitchen pi'"):
        open_device("pi")


RUNNER = """#!/bin/sh
taskset -p $$ | sed 's/.*: //' >{said}
exec {python} {runner} "$@"
"""


def test_a_bench_by_name_uses_runner_mask_and_temperature_unless_told_others(tiny, write, tmp_path, monkeypatch):
    said = {name: tmp_path / f"{name}.mask" for name in ("listed", "given")}
    real = {"python": sys.executable, "runner": REPOSITORY / "device_tests" / "runners" / "runner.py"}
    _, given = (write(RUNNER.format(said=said[name], **real), name) for name in said)
    inventory = write(device(url="local://", name="desk", runner="listed", cpu_mask="1", cooldown_c=140))
    monkeypatch.setenv("EDGECOMPRESS_INVENTORY", str(inventory))
    waited = []
    monkeypatch.setattr("edgecompress.devices.bench.cool_down", lambda _, degrees, **__: waited.append(degrees) or "")
    run = partial(bench, [tiny / "tiny.tflite"], repetitions=3, warmup_s=0.0)

    run(device="desk")
    assert (said["listed"].read_text(), waited) == ("1\n", [140.0])
    said["listed"].unlink()
    run(device="desk", runner=given, cooldown_c=99.0)
    assert (said["given"].read_text(), waited) == ("1\n", [140.0, 99.0])
    run(device="local://")
    assert len(waited) == 2
    assert not said["listed"].exists()


# --- the listing


def test_what_is_attached_and_what_is_named_stand_in_one_list(adb_end, ssh_server, write):
    attached, locked = adb_end(), adb_end("unauthorized")
    entries = load_inventory(
        write(
            device(url="adb://R5 $(touch INJECTED)", name="drawer")
            + device(url=ssh_server.url, name="board", labels=["arm", "b c"])
            + device(url=locked.url, name="locked")
            + device(url="local://", name="desk")
        )
    )
    found = {info.url: info for info in list_devices(entries)}
    assert list(found) == [
        "local://",
        *sorted([attached.url, locked.url], key=list(found).index),
        "adb://R5 $(touch INJECTED)",
        ssh_server.url,
    ]
    assert [found[url].name for url in ("local://", attached.url)] == ["desk", ""]
    board = found[ssh_server.url]
    assert (board.name, board.labels, board.state, board.problem, board.abi) == ("board", ("arm", "b c"), "ready", "", os.uname().machine)
    assert found[attached.url].state == "ready"
    assert found[locked.url].name == "locked"
    assert "accept this computer's key" in found[locked.url].problem
    drawer = found["adb://R5 $(touch INJECTED)"]
    assert (drawer.name, drawer.state) == ("drawer", "unreachable")
    assert "no such device" in drawer.problem


def test_an_address_of_the_inventory_is_connected_to(adb_end):
    end = adb_end(attach=False)
    *_, info = list_devices((InventoryEntry(url=end.url, name="wireless"),))
    assert (info.name, info.state, info.model) == ("wireless", "ready", "Emulated end")


@pytest.mark.parametrize(("python", "state"), [("", "ready"), ("/no/such/python", "no python"), ("$(touch INJECTED)", "no python")])
def test_a_host_without_the_interpreter_says_so(ssh_server, python, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, info = list_devices((InventoryEntry(url=ssh_server.url, python=python),))
    assert info.state == state
    assert info.problem == (
        f"{ssh_server.url}: {python} is not there; install it, or name python or a runner in the inventory" if python else ""
    )
    assert not list(tmp_path.glob("INJECTED"))
    assert not list(ssh_server.home.parent.rglob("INJECTED"))


def test_a_runner_needs_no_interpreter(ssh_server):
    *_, info = list_devices((InventoryEntry(url=ssh_server.url, python="/no/such/python", runner="/bin/true"),))
    assert (info.state, info.problem) == ("ready", "")


def test_silent_hosts_are_asked_at_once_and_given_up(silent_host, monkeypatch):
    for module in ("ssh", "ssh_connection"):
        monkeypatch.setattr(f"edgecompress.devices.transports.{module}.CONNECT_TIMEOUT_S", 4.0)
    port = silent_host.getsockname()[1]
    entries = [InventoryEntry(url=f"ssh://user{i}@127.0.0.1:{port}") for i in range(8)]
    started = time.monotonic()
    found = list_devices(entries)[-8:]
    assert time.monotonic() - started < 8 * 4.0  # one after the other takes that long at least
    assert [info.url for info in found] == [entry.url for entry in entries]
    assert all(info.state == "unreachable" and "; " in info.problem for info in found)


def test_an_interrupted_listing_does_not_wait_for_a_silent_host(silent_host, write):
    path = write(device(url=f"ssh://pi@127.0.0.1:{silent_host.getsockname()[1]}"))
    process = subprocess.Popen([COMMAND, "devices", "--inventory", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with silent_host.accept()[0]:
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert time.monotonic() - started < 15.0  # when the host would be given up
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err


def hostile_end(adb_end):
    """A device whose every property tries to draw on the terminal."""
    end = adb_end()
    program = end.storage.parents[2] / "bin" / "getprop"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{HOSTILE}'\n")
    return end


def through_a_terminal(argv):
    """Return what a command writes to its terminal."""
    terminal, inside = os.openpty()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=inside, stderr=inside, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(inside)
        written = b""
        with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as file:  # Linux ends a terminal that nobody holds any more with EIO
            while chunk := file.read(65536):
                written += chunk
    return process.returncode, written.decode(errors="replace")


@pytest.mark.parametrize("json_flag", [[], ["--json"]], ids=["table", "json"])
def test_text_of_a_device_never_draws_on_the_terminal(adb_end, write, json_flag):
    end = hostile_end(adb_end)
    inventory = write(device(url=end.url, name="[red]name", labels=["[bold]"]))
    argv = [str(COMMAND), "devices", "--inventory", str(inventory), *json_flag]
    piped = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    assert "[red]x[/red]" in piped.stdout
    assert "[red]name" in piped.stdout
    assert "[bold]" in piped.stdout
    assert all(char.isprintable() or char == "\n" for char in piped.stdout)
    code, shown = through_a_terminal(argv)
    assert code == 0
    assert "[red]" in shown
    for sequence in ("\x1b]", "\x1b[2J", "\x07", "\u202e", "\x9b", "\x1b[31m"):
        assert sequence not in shown


@pytest.mark.parametrize(
    "inject", ["$(touch INJECTED)", "`touch INJECTED`", "; touch INJECTED", "a b|touch INJECTED", "--help", "'\"&& touch INJECTED"]
)
def test_text_of_the_inventory_is_never_run_as_a_command(adb_end, ssh_server, write, tmp_path, monkeypatch, inject):
    end = adb_end()
    monkeypatch.setenv("HOME", str(ssh_server.home))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    text = (
        device(url=f"adb://{inject}", name=f"n {inject}", labels=[inject])
        + device(url=ssh_server.url, python=inject)
        + device(url=end.url, python=inject)
    )
    found = {info.url: info for info in list_devices(load_inventory(write(text)))}
    assert found[f"adb://{inject}"].state == "unreachable"
    assert found[ssh_server.url].state == "no python"
    assert found[end.url].state == "no python"
    assert list(here.iterdir()) == []
    assert not [path for root in (tmp_path, ssh_server.home.parent) for path in root.rglob("INJECTED")]
