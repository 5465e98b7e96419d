"""The history of a lease store: who had which device when."""


def read_turns(store):
    """Return all turns as (device, pid, start, end) in the order in which they began."""
    with store.transaction() as execute:
        return execute("SELECT device, pid, taken_at, ended_at FROM edgecompress_turns ORDER BY taken_at, ended_at")


def find_overlaps(rows):
    """Return the pairs of turns on one device that overlap by more than the resolution of the clock."""
    by_device = {}
    for device, pid, start, end in rows:
        by_device.setdefault(device, []).append((start, end, pid))
    return [(a, b) for found in by_device.values() for a, b in zip(sorted(found), sorted(found)[1:], strict=False) if b[0] < a[1] - 2e-3]
