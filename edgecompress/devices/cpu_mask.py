"""Which processors a run is kept on: hexadecimal masks as `taskset` takes them."""

import re

from edgecompress.devices.device import Device
from edgecompress.errors import ConfigError

COMMAND_TIMEOUT_S = 20.0
CPU_RANGES = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")


def normalize_mask(text: str) -> str:
    """Return a mask in its plainest form, "" for "".

    Raises:
        ConfigError: Not one, or of no processor.
    """
    if not text:
        return ""
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,256}", text) or not int(text, 16):
        raise ConfigError(f"CPU mask {text!r}: not a hexadecimal number above 0; write f0 for processors 4 to 7")
    return f"{int(text, 16):x}"


def check_mask_online(device: Device, mask: str) -> None:
    """Refuse processors that are not there: `taskset` would run on the others without a word.

    Raises:
        ConfigError: One of them is not online.
    """
    if not mask:
        return
    text = device.run(["cat", "/sys/devices/system/cpu/online"], timeout_s=COMMAND_TIMEOUT_S).stdout.strip()
    if not CPU_RANGES.fullmatch(text):
        return  # not told; the runner finds out
    spans = [[int(number) for number in span.split("-")] for span in text.split(",")]
    online = {i for span in spans for i in range(span[0], span[-1] + 1)}
    missing = [i for i in range(int(mask, 16).bit_length()) if int(mask, 16) >> i & 1 and i not in online]
    if missing:
        raise ConfigError(f"{device.url}: CPU mask {mask}: processors {missing} are not there, only {text}; leave them out")
