"""The cache of root file systems: several processes share one build, and nobody waits for a device that runs."""

import subprocess
import sys

from support.paths import REPOSITORY

EMULATED = REPOSITORY / "device_tests" / "emulated"
HOLDER = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from rootfs_cache import hold_rootfs

def build(root):
    root.mkdir()
    with (root.parent / "builds").open("a") as builds:
        builds.write("x")
    (root / "file").write_text("half")
    time.sleep(0.3)
    (root / "file").write_text("whole")

with hold_rootfs("board", sys.argv[3], build, cache=Path(sys.argv[2])) as root:
    print((root / "file").read_text(), root.name, flush=True)
    sys.stdin.read()
"""


def start_holder(cache, ingredients="same"):
    argv = [sys.executable, "-c", HOLDER, EMULATED, cache, ingredients]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(*holders):
    for holder in holders:
        holder.communicate(timeout=60)
        assert holder.returncode == 0


def test_processes_that_start_at_once_share_one_whole_build_and_run_at_the_same_time(tmp_path):
    holders = [start_holder(tmp_path) for _ in range(4)]
    assert {holder.stdout.readline().split()[0] for holder in holders} == {"whole"}  # each answers while the others still hold it
    assert (tmp_path / "builds").read_text() == "x"
    end(*holders)


def test_a_root_that_is_in_use_outlives_a_build_of_other_ingredients(tmp_path):
    first = start_holder(tmp_path, "old")
    old = first.stdout.readline().split()[1]
    second = start_holder(tmp_path, "new")
    new = second.stdout.readline().split()[1]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {old, new}
    end(first, second)
    third = start_holder(tmp_path, "newest")
    newest = third.stdout.readline().split()[1]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {newest}
    end(third)
