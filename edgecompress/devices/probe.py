"""Read the facts of a device with one POSIX shell script, which is the same for this machine, a Raspberry Pi and Android.

Nothing here decides success; an answer that is missing or odd becomes "" or None.
"""

import re
from collections.abc import Sequence
from typing import Final

from edgecompress.devices.device import CompletedCommand, Device
from edgecompress.devices.text import sanitize
from edgecompress.records import DeviceInfo

PROBE_TIMEOUT_S = 15.0
# The CPU features that kernels of inference runtimes look for, as /proc/cpuinfo spells them, without those that every CPU has.
NOTABLE_CPU_FEATURES: Final = (
    "neon",
    "atomics",
    "asimdhp",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
)

SCRIPT = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
prop() { command -v getprop >/dev/null 2>&1 && getprop "$1" 2>/dev/null; }
file() { [ -r "$1" ] && tr -d '\000' <"$1" 2>/dev/null | head -n 1; }
cpu() { grep -i -m 1 "^$1[[:space:]]*:" /proc/cpuinfo 2>/dev/null | cut -d: -f2-; }
abi="$(prop ro.product.cpu.abi)"
say abi "${abi:-$(uname -m)}"
say android "$(prop ro.build.version.release)"
say os "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null | tr -d '\042')"
say kernel "$(uname -sr)"
say product "$(prop ro.product.model)"
say board "$(file /proc/device-tree/model)"
say board "$(file /sys/firmware/devicetree/base/model)"
say machine "$(file /sys/class/dmi/id/product_name)"
say soc "$(prop ro.soc.model)"
say soc "$(prop ro.board.platform)"
say hardware "$(cpu Hardware)"
say cpu "$(cpu 'model name')"
say features "$(cpu Features)"
say flags "$(cpu flags)"
say cores "$(getconf _NPROCESSORS_ONLN 2>/dev/null || nproc 2>/dev/null)"
say governor "$(file /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor)"
say emulated "${EDGECOMPRESS_EMULATED:-$(prop ro.kernel.qemu)$(prop ro.boot.qemu)}"
for zone in /sys/class/thermal/thermal_zone*/temp; do say zone "$(file "$zone")"; done
say free "$(df -k "$1" 2>/dev/null | tail -n 1)"
"""


def probe_device(device: Device) -> DeviceInfo:
    """Return the facts of a device.

    Raises:
        DeviceError: The device cannot be reached.
    """
    done = device.run(["sh", "-c", SCRIPT, "sh", str(device.base)], timeout_s=PROBE_TIMEOUT_S)
    return parse_probe(done, url=device.url, serial=device.serial)


def parse_probe(done: CompletedCommand, *, url: str, serial: str) -> DeviceInfo:
    """Return the facts in the script's `key=value` lines; values are shortened and sanitized, and malformed numbers are left out."""
    values: dict[str, str] = {}
    degrees = []
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        value = sanitize(value.strip(), limit=4000)
        if key == "zone" and re.fullmatch(r"\d{1,6}", value):
            degrees.append(int(value) / 1e3)
        elif value:
            values.setdefault(key, value)
    android = values.get("android")
    return DeviceInfo(
        url=url,
        serial=serial,
        model=_first_known(values, ("product", "board", "machine", "cpu"))[:120],
        soc=_first_known(values, ("soc", "hardware", "cpu"))[:120],
        abi=values.get("abi", "")[:40],
        os=(f"Android {android}" if android else _first_known(values, ("os", "kernel")))[:120],
        governor=values.get("governor", "")[:40],
        cpu_features=tuple(_first_known(values, ("features", "flags")).split()[:400]),
        cores=_parse_integer(values.get("cores", "")),
        temperature_c=max((value for value in degrees if 0 < value < 150), default=None),
        free_bytes=_parse_free_bytes(values.get("free", "").split()),
        emulated=values.get("emulated", "").startswith("1"),
    )


def _first_known(values: dict[str, str], keys: Sequence[str]) -> str:
    return next((values[key] for key in keys if key in values), "")


def _parse_integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _parse_free_bytes(columns: Sequence[str]) -> int | None:
    """Return the free bytes in the last line of `df -k`: filesystem, 1K-blocks, used, available and further columns."""
    kibibytes = _parse_integer(columns[3]) if len(columns) > 3 else None
    return None if kibibytes is None else kibibytes * 1024
