"""What a lease store remembers of every turn on a device."""


def turns(store):
    """Every turn ever, as (device, pid, from, to), in the order they were taken."""
    with store.transaction() as execute:
        return execute("SELECT device, pid, taken_at, ended_at FROM edgecompress_turns ORDER BY taken_at, ended_at")


def overlaps(rows):
    """Pairs of turns on one device that overlap by more than the clock's own steps."""
    by_device = {}
    for device, pid, start, end in rows:
        by_device.setdefault(device, []).append((start, end, pid))
    return [(a, b) for found in by_device.values() for a, b in zip(sorted(found), sorted(found)[1:], strict=False) if b[0] < a[1] - 2e-3]
