"""Limit the memory of an emulated device; beyond the limit the kernel kills the largest program on it, as it does on a board."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rootfs_cache import EmulationError

CGROUP = Path("/sys/fs/cgroup")
EXIT_TIMEOUT_S = 10.0
# For each version of control groups: the folder in which a group is made, and the value that each of its files gets.
VERSIONS = (
    (CGROUP / "memory", {"memory.limit_in_bytes": "{size}", "memory.memsw.limit_in_bytes": "{size}"}),
    (CGROUP, {"memory.max": "{size}", "memory.swap.max": "0"}),
)


@contextmanager
def limit_memory(name: str, mib: int) -> Iterator[Path | None]:
    """Yield a file; a process that writes "0" to it is limited to `mib` MiB with everything it starts. 0 MiB is no limit and yields None.

    Raises:
        EmulationError: This machine does not allow control groups to be made.
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
            if (group / file).exists():  # the limit of swap exists only where the kernel counts swap
                (group / file).write_text(value.format(size=mib << 20))
        if not any((group / file).exists() for file in settings):
            raise EmulationError(f"{group}: no memory controller; leave out the limit of memory")
        yield group / "cgroup.procs"
    finally:
        _remove_group(group)


def _remove_group(group: Path) -> None:
    """Remove a control group as soon as the kernel has removed the last process in it."""
    until = time.monotonic() + EXIT_TIMEOUT_S
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
