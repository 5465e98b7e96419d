"""Send files into a run's private folder on a device; files that the device's store has already are not sent again.

The store is one folder beside the work folders, `.edgecompress-UID`, with mode 700, of the user who measures; it is not used when somebody
else owns it or when it is a link. It keeps artifacts and runners, never inputs, each under its SHA-256, which the device computes again
each time before the file is used. It holds at most 512 MiB and at most a quarter of the free space; the files used last stay, and all are
removed when the disk has no room for the files to send. `rm -rf` on it is always safe.
"""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from edgecompress.devices.device import Device
from edgecompress.devices.text import join_last_lines
from edgecompress.errors import DeviceError
from edgecompress.files import hash_file

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S: Final = 20.0
MIN_HASH_BYTES_PER_S: Final = 5_000_000  # a slow board with a slow card computes SHA-256 this fast
MAX_STORE_KIB: Final = 512 << 10

SHELL_FUNCTIONS = r"""
work=$1 store=$2 number=$3; shift 3
digest() { h=$(sha256sum <"$1" 2>/dev/null); printf %s "${h%% *}"; }
free() { df -k "$1" 2>/dev/null | tail -n 1 | { read -r a b c d e; case $d in *[!0-9]*|'') echo 0;; *) echo "$d";; esac; }; }
mine() {
  [ -n "$store" ] || return 1
  store=$store-$(id -u)
  mkdir -m 700 "$store" 2>/dev/null
  [ -d "$store" ] && [ ! -L "$store" ] && [ -O "$store" ] && chmod 700 "$store"
}
"""
# Makes the work folder and fills it from the store. `number` is the size in KiB of all files.
PREPARE_SCRIPT = rf"""{SHELL_FUNCTIONS}
umask 077
mkdir -m 700 "$work" || exit 1
command -v sha256sum >/dev/null || exit 0
mine || exit 0
while [ $# -ge 2 ]; do
  if [ -f "$store/$1" ] && [ "$(digest "$store/$1")" = "$1" ]; then
    {{ ln "$store/$1" "$work/$2" || cp "$store/$1" "$work/$2"; }} 2>/dev/null && chmod 755 "$work/$2" && touch "$store/$1" && echo "have $2"
  else rm -f "$store/$1"; fi
  shift 2
done
[ "$(free "$store")" -ge "$number" ] || rm -f "$store"/*
exit 0
"""
# Prints the hashes of the files that were sent, keeps them in the store and shrinks it. `number` is the largest size of the store in KiB.
CONFIRM_SCRIPT = rf"""{SHELL_FUNCTIONS}
command -v sha256sum >/dev/null || {{ echo none; exit 0; }}
mine || store=
while [ $# -ge 3 ]; do
  found=$(digest "$work/$2")
  echo "hash $found $2"
  if [ -n "$store" ] && [ "$3" = keep ] && [ "$found" = "$1" ]; then
    {{ ln "$work/$2" "$store/$1" || cp "$work/$2" "$store/$1"; }} 2>/dev/null
  fi
  shift 3
done
[ -n "$store" ] || exit 0
most=$(($(free "$store") / 4)); [ "$most" -le "$number" ] || most=$number
total=0
for f in $(ls -t "$store"); do
  total=$((total + $(stat -c %s "$store/$f") / 1024 + 1))
  [ "$total" -le "$most" ] || rm -f "$store/$f"
done
exit 0
"""


@dataclass(frozen=True, slots=True)
class SentBytes:
    """How many bytes went over the connection, and how many the device had already."""

    pushed_bytes: int
    kept_bytes: int


def send_files(device: Device, work: PurePosixPath, files: Mapping[str, Path], *, keep: Collection[str]) -> SentBytes:
    """Make the private folder `work` on the device and put `files` (name → local file) into it; the device confirms each hash.

    Args:
        keep: Names of the files that stay on the device for the next run.

    Raises:
        DeviceError: The folder cannot be made, a file cannot be sent, or arrived damaged.
    """
    digests = {name: hash_file(path) for name, path in files.items()}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    store = "" if device.url == "local://" else str(device.base / ".edgecompress")
    wait_s = COMMAND_TIMEOUT_S + sum(sizes.values()) / MIN_HASH_BYTES_PER_S
    pairs = [word for name in files if name in keep for word in (digests[name], name)]
    needed = str(sum(sizes.values()) // 1024 + 1)
    made = device.run(["sh", "-c", PREPARE_SCRIPT, "sh", str(work), store, needed, *pairs], timeout_s=wait_s)
    if made.returncode != 0:
        raise DeviceError(f"{device.url}: cannot make {work}: {join_last_lines(made.stderr or made.stdout)}; check the disk there")
    stored = {line.removeprefix("have ") for line in made.stdout.splitlines()}
    missing = [name for name in files if name not in stored]
    for name in missing:
        device.push(files[name], work / name)
    triples = [word for name in missing for word in (digests[name], name, "keep" if name in keep else "once")]
    done = device.run(["sh", "-c", CONFIRM_SCRIPT, "sh", str(work), store, str(MAX_STORE_KIB), *triples], timeout_s=wait_s)
    if done.stdout.strip() == "none":
        log.info("%s: no sha256sum there; the runner checks the artifacts", device.url)
    else:
        found = {match[2]: match[1] for match in re.finditer(r"^hash ([0-9a-f]*) (\S+)$", done.stdout, re.MULTILINE)}
        for name in missing:
            if found.get(name) != digests[name]:
                raise DeviceError(
                    f"{device.url}: {files[name].name} arrived damaged; check the connection and the disk there, then run it again"
                )
    pushed = sum(sizes[name] for name in missing)
    return SentBytes(pushed, sum(sizes.values()) - pushed)
