"""Files are written whole or not at all, also on a full disk."""

import hashlib
import os
import subprocess

import pytest
import torch

from edgecompress.errors import ConfigError, EdgeCompressError
from edgecompress.files import hash_file, replace_atomically, write_atomically
from edgecompress.network.weights import save_state
from edgecompress.options import Options, update_options
from edgecompress.runs import open_run


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine lets nobody mount a tmpfs: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True, timeout=300)


def fill(path):
    """Write to `path` until nothing more fits."""
    with path.open("wb") as file:
        while True:
            file.write(bytes(4096))


FULL = r"no space left on the device; free some and run the same command again, finished steps are kept"


def test_a_written_file_reads_back(tmp_path):
    path = tmp_path / "deep" / "er" / "x.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert hash_file(path) == hashlib.sha256(b"two").hexdigest()
    assert oct(path.stat().st_mode & 0o777) == "0o644"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.bin"
    write_atomically(path, b"old")
    with pytest.raises(error), replace_atomically(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_the_temporary_file_is_on_the_same_disk_with_the_same_suffix(tmp_path):
    with replace_atomically(tmp_path / "net.tflite") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".tflite")


@pytest.mark.parametrize("where", ["under-a-file", "a-folder"])
def test_a_path_that_cannot_be_written_is_refused(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "x").mkdir(parents=True)
    path = tmp_path / "file" / "x" if where == "under-a-file" else tmp_path / "folder" / "x"
    with pytest.raises(ConfigError, match=r"cannot be written \(.*\); choose another folder or mend its permissions"):
        write_atomically(path, b"x")


def test_a_full_disk_is_told_and_the_old_file_stays(small_disk):
    path = small_disk / "x.bin"
    write_atomically(path, b"old")
    with pytest.raises(EdgeCompressError, match=FULL) as told:
        write_atomically(path, bytes(2_000_000))
    assert told.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert [p.name for p in small_disk.iterdir()] == ["x.bin"]


def test_a_full_disk_while_tensors_are_saved(small_disk):
    path = small_disk / "w.safetensors"
    save_state({"a": torch.ones(8)}, path)
    before = path.read_bytes()
    with pytest.raises(EdgeCompressError, match=FULL):
        save_state({"a": torch.ones(1_000_000)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in small_disk.iterdir()] == ["w.safetensors"]


def test_a_run_on_a_full_disk_keeps_its_finished_steps(small_disk):
    folder = small_disk / "run"
    with open_run(folder, name="n", recipe="r") as run:
        run.set_options(Options())
        write_atomically(run.path("plan.json"), b"{}")
        run.finish("plan", "made-from", ("plan.json",), 1.0)
    with pytest.raises(EdgeCompressError, match=FULL), open_run(folder, name="n", recipe="r"):
        fill(small_disk / "filler")
    with pytest.raises(EdgeCompressError, match=FULL), open_run(folder, name="n", recipe="r") as run:
        run.set_options(update_options(Options(), {"layer": tuple(f"layer{i}=dense" for i in range(5000))}))
    (small_disk / "filler").unlink()
    with open_run(folder, name="n", recipe="r") as run:
        assert run.is_done("plan", "made-from")
        assert run.record.options == Options()
