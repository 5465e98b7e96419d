"""Wait until a device has cooled down, so that each run starts equally warm."""

import math
import time
from itertools import count, takewhile

from edgecompress.devices.device import Device
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.progress import Track, track_silently

COOLING_LIMIT_S = 600.0
POLL_S = 2.0


def cool_down(
    device: Device, at_most_c: float, *, limit_s: float = COOLING_LIMIT_S, step_s: float = POLL_S, track: Track = track_silently
) -> str:
    """Wait until the hottest zone is at or below `at_most_c`; return a note where there is no sensor, "" otherwise.

    Raises:
        ConfigError: No temperature a device can have.
        DeviceError: Still hotter after `limit_s`.
    """
    if not 0 < at_most_c < 150 or not math.isfinite(at_most_c):
        raise ConfigError(f"cool-down to {at_most_c:g} °C: must be above 0 and below 150; 37 is usual")
    hottest = device.info().temperature_c
    if hottest is None:
        return f"not cooled down to {at_most_c:g} °C: the device tells no temperature"
    end = time.monotonic() + limit_s
    waiting = takewhile(lambda _: time.monotonic() < end, count())
    if hottest <= at_most_c:
        return ""
    for _ in track(waiting, f"cooling {device.url} from {hottest:.0f} to {at_most_c:g} °C", total=max(1, round(limit_s / step_s))):
        time.sleep(step_s)
        hottest = device.info().temperature_c
        if hottest is not None and hottest <= at_most_c:
            return ""
    now = "unknown" if hottest is None else f"{hottest:.0f} °C"
    raise DeviceError(
        f"{device.url}: still at {now} after {limit_s:g} s, not at {at_most_c:g} °C; cool it, or allow more with --cooldown-c"
    )
