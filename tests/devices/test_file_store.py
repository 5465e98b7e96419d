"""The store of files on a device: what was sent is not sent again, and nobody else reads it."""

import pytest

from edgecompress.devices import open_device
from edgecompress.devices.runners.file_store import send_files


@pytest.fixture(
    params=[pytest.param("adb", marks=pytest.mark.xdist_group("adb")), pytest.param("ssh", marks=pytest.mark.xdist_group("ssh"))]
)
def remote(request, tmp_path):
    url = request.getfixturevalue("adb_end")().url if request.param == "adb" else request.getfixturevalue("ssh_server").url
    with open_device(url) as device:
        if request.param == "ssh":
            (tmp_path / "base").mkdir()
            device.base = type(device.base)(tmp_path / "base")
        yield device


def store_of(device):
    return str(device.base / f".edgecompress-{device.run(['id', '-u'], timeout_s=10).stdout.strip()}")


def send_to(device, path, n, keep=("file",)):
    work = device.base / f"edgecompress-test{n}"
    found = send_files(device, work, {"file": path}, keep=keep)
    assert device.run(["cmp", str(work / "file"), str(path)], timeout_s=10).returncode == 0
    device.run(["rm", "-rf", str(work)], timeout_s=10)
    return found


def test_an_unchanged_file_is_sent_once_a_changed_or_damaged_one_again(remote, tmp_path):
    path = tmp_path / "sent"
    path.write_bytes(b"a" * 1000)
    assert send_to(remote, path, 1).pushed_bytes == 1000
    assert send_to(remote, path, 2).pushed_bytes == 0
    path.write_bytes(b"b" * 1000)
    assert send_to(remote, path, 3).pushed_bytes == 1000
    (name, *_) = remote.run(["ls", "-t", store_of(remote)], timeout_s=10).stdout.split()
    remote.run(["sh", "-c", 'echo damaged >"$0"', f"{store_of(remote)}/{name}"], timeout_s=10)
    assert send_to(remote, path, 4).pushed_bytes == 1000


def test_files_that_are_not_to_be_kept_are_not_in_the_store(remote, tmp_path):
    path = tmp_path / "inputs"
    path.write_bytes(b"private")
    for n in range(2):
        assert send_to(remote, path, n, keep=()).pushed_bytes == 7
    assert remote.run(["ls", store_of(remote)], timeout_s=10).stdout == ""


def test_the_store_is_private_and_a_link_in_its_place_is_not_followed(remote, tmp_path):
    path = tmp_path / "sent"
    path.write_bytes(b"a" * 10)
    send_to(remote, path, 1)
    assert remote.run(["stat", "-c", "%a", store_of(remote)], timeout_s=10).stdout.strip() == "700"
    elsewhere = str(remote.base / "elsewhere")
    script = 'rm -rf "$0" && mkdir "$1" && ln -s "$1" "$0"'
    assert remote.run(["sh", "-c", script, store_of(remote), elsewhere], timeout_s=10).returncode == 0
    for n in (2, 3):
        assert send_to(remote, path, n).pushed_bytes == 10
    assert remote.run(["ls", elsewhere], timeout_s=10).stdout == ""
