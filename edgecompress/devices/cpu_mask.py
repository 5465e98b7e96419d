"""Hexadecimal masks of the processors that a run is kept on, as `taskset` takes them."""

import re
from typing import Final

from edgecompress.devices.device import Device
from edgecompress.errors import ConfigError

COMMAND_TIMEOUT_S: Final = 20.0
HEXADECIMAL: Final = re.compile(r"(0[xX])?[0-9a-fA-F]{1,256}")
CPU_RANGES: Final = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")


def parse_mask(text: str) -> int | None:
    """Return a mask as a number with a bit for each processor, None for text that is no mask or a mask without processors."""
    return int(text, 16) or None if HEXADECIMAL.fullmatch(text) else None


def normalize_mask(text: str) -> str:
    """Return a mask as lower-case digits without leading zeros; "", which stands for every processor, is returned as it is.

    Raises:
        ConfigError: The text is no mask, or one without processors.
    """
    if not text:
        return ""
    number = parse_mask(text)
    if number is None:
        raise ConfigError(f"CPU mask {text!r}: not a hexadecimal number above 0; write f0 for processors 4 to 7")
    return f"{number:x}"


def check_mask_online(device: Device, mask: str) -> None:
    """Refuse a mask with processors that the device lacks, since `taskset` would run on the other ones without a warning.

    Raises:
        ConfigError: A processor of the mask is not online.
    """
    if not mask:
        return
    text = device.run(["cat", "/sys/devices/system/cpu/online"], timeout_s=COMMAND_TIMEOUT_S).stdout.strip()
    if not CPU_RANGES.fullmatch(text):
        return  # the device does not tell; the runner will find out
    spans = [[int(number) for number in span.split("-")] for span in text.split(",")]
    online = {i for span in spans for i in range(span[0], span[-1] + 1)}
    missing = [i for i in range(int(mask, 16).bit_length()) if int(mask, 16) >> i & 1 and i not in online]
    if missing:
        raise ConfigError(f"{device.url}: CPU mask {mask}: processors {missing} are not there, only {text}; leave them out")
