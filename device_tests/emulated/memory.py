"""A limit to the memory of an emulated device, beyond which the kernel kills the largest program there, as it does on a board."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roots import EmulationError

CGROUP = Path("/sys/fs/cgroup")
BURIED_S = 10.0
# Of the two versions: where a group is made, and what is written into which of its files.
VERSIONS = (
    (CGROUP / "memory", {"memory.limit_in_bytes": "{size}", "memory.memsw.limit_in_bytes": "{size}"}),
    (CGROUP, {"memory.max": "{size}", "memory.swap.max": "0"}),
)


@contextmanager
def limited(name: str, mib: int) -> Iterator[Path | None]:
    """Yield the file that a process writes "0" to in order to be limited, with everything it starts; None for 0 MiB, which is no limit.

    Raises:
        EmulationError: This machine lets nobody make control groups.
    """
    if not mib:
        yield None
        return
    parent, settings = next((version for version in VERSIONS if (version[0] / "cgroup.procs").exists()), VERSIONS[-1])
    group = parent / name
    try:
        group.mkdir()
    except OSError as error:
        raise EmulationError(f"{group}: {error.strerror}; a limit of memory needs root and a writable {CGROUP}") from error
    try:
        for file, value in settings.items():
            if (group / file).exists():  # the second is there where the kernel counts swap
                (group / file).write_text(value.format(size=mib << 20))
        if not any((group / file).exists() for file in settings):
            raise EmulationError(f"{group}: no memory controller; leave out the limit of memory")
        yield group / "cgroup.procs"
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Remove it once the kernel has buried the last of those in it."""
    until = time.monotonic() + BURIED_S
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
