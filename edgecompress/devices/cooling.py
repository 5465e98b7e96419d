"""Wait until a device has cooled down, so that every run starts at the same temperature."""

import math
import time
from itertools import count, takewhile
from typing import Final

from edgecompress.devices.device import Device
from edgecompress.errors import ConfigError, DeviceError
from edgecompress.progress import Track, track_silently

MAX_TEMPERATURE_C: Final = 150.0  # no device works at this temperature, so a higher number is a mistake
MAX_COOLING_S: Final = 600.0
POLL_S: Final = 2.0


def is_temperature(degrees_c: float) -> bool:
    """Tell whether a device can be asked to cool down to this temperature."""
    return math.isfinite(degrees_c) and 0 < degrees_c < MAX_TEMPERATURE_C


def cool_down(
    device: Device, at_most_c: float, *, limit_s: float = MAX_COOLING_S, step_s: float = POLL_S, track: Track = track_silently
) -> str:
    """Wait until the hottest sensor is at or below `at_most_c`; return a note where the device has no sensor, "" otherwise.

    Raises:
        ConfigError: `at_most_c` is no temperature that a device can have.
        DeviceError: The device is still hotter after `limit_s`.
    """
    if not is_temperature(at_most_c):
        raise ConfigError(f"cool-down to {at_most_c:g} °C: must be above 0 and below {MAX_TEMPERATURE_C:g}; 37 is usual")
    hottest = device.info().temperature_c
    if hottest is None:
        return f"not cooled down to {at_most_c:g} °C: the device tells no temperature"
    if hottest <= at_most_c:
        return ""
    end = time.monotonic() + limit_s
    waiting = takewhile(lambda _: time.monotonic() < end, count())
    for _ in track(waiting, f"cooling {device.url} from {hottest:.0f} to {at_most_c:g} °C", total=max(1, round(limit_s / step_s))):
        time.sleep(step_s)
        hottest = device.info().temperature_c
        if hottest is not None and hottest <= at_most_c:
            return ""
    now = "unknown" if hottest is None else f"{hottest:.0f} °C"
    raise DeviceError(
        f"{device.url}: still at {now} after {limit_s:g} s, not at {at_most_c:g} °C; cool it, or allow more with --cooldown-c"
    )
