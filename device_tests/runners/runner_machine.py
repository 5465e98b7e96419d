"""What a runner tells about the machine it runs on. What the system does not tell is "", [] or None; nothing here raises."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from pathlib import Path

PI_THROTTLED_NOW = 0xF  # under-voltage, frequency capped, throttled, soft temperature limit
PI_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def read_text(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def machine():
    """Return abi, os, python, CPU model, CPU features and governor."""
    cpu = dict(re.findall(r"^([A-Za-z_ ]+?)\s*:\s*(.*)$", read_text("/proc/cpuinfo"), re.MULTILINE))
    return {
        "abi": platform.machine(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": read_text("/proc/device-tree/model") or cpu.get("model name", "") or cpu.get("Hardware", "") or platform.processor(),
        "cpu_features": (cpu.get("Features") or cpu.get("flags") or "").split(),
        "governor": governor(Path("/")),
    }


def snapshot(root=Path("/")):
    """Return what may change during a measurement, with the clocks that tell who used the processors meanwhile."""
    return {
        "load_average": load_average(),
        "temperature_c": temperature(root),
        "frequencies_mhz": [number / 1e3 for number in numbers(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")],
        "governor": governor(root),
        "limits_khz": numbers(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq"),
        "throttle_counts": numbers(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"),
        "firmware": read_text(root / PI_FIRMWARE),
        "busy_s": busy_seconds(root),
        "own_s": sum(os.times()[:2]),
        "clock_s": time.perf_counter(),
    }


def changes(before, after):
    """Return the part of a reply that two snapshots give."""
    both = ("load_average", "temperature_c", "frequencies_mhz")
    made = {name: [before[name], after[name]] for name in both}
    made["governors"] = [before["governor"], after["governor"]]
    made["throttled"] = throttled(before, after)
    made["busy_elsewhere"] = None
    if before["busy_s"] is not None and after["busy_s"] is not None:
        busy, own = after["busy_s"] - before["busy_s"], after["own_s"] - before["own_s"]
        made["busy_elsewhere"] = max(0.0, busy - own) / max(after["clock_s"] - before["clock_s"], 1e-3)
    return made


def throttled(before, after):
    """Tell whether the firmware or the kernel slowed the processors down; None where neither can tell."""
    known = [
        any(now > then for then, now in zip(before["throttle_counts"], after["throttle_counts"])) if after["throttle_counts"] else None,
        any(now < then for then, now in zip(before["limits_khz"], after["limits_khz"])) if after["limits_khz"] else None,
        *(
            bool(int(text, 16) & PI_THROTTLED_NOW)
            for text in (before["firmware"], after["firmware"])
            if re.fullmatch(r"(0x)?[0-9a-fA-F]+", text)
        ),
    ]
    told = [answer for answer in known if answer is not None]
    return any(told) if told else None


def temperature(root=Path("/")):
    """Return the hottest thermal zone in °C; zones are in millidegrees and some report nonsense."""
    degrees = [number / 1e3 for number in numbers(root, "sys/class/thermal/thermal_zone*/temp")]
    return max((value for value in degrees if 0 < value < 150), default=None)


def governor(root):
    return read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def numbers(root, pattern):
    """Return the integers in the files that match, in the order of the processors."""
    texts = [read_text(path) for path in sorted(root.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])]
    return [int(text) for text in texts if re.fullmatch(r"-?\d{1,15}", text)]


def busy_seconds(root=Path("/")):
    """Return the processor time that was not idle since the start, of all processors together."""
    fields = read_text(root / "proc/stat").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu" or not hasattr(os, "sysconf"):
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def load_average():
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def peak_rss_bytes():
    """Return this process's peak resident set: all artifacts of one run share it."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fix_threads(threads):
    """Set what the runtimes read at import: libgomp's spinning makes two busy processes crawl."""
    os.environ["GOMP_SPINCOUNT"] = "0"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def pin(mask):
    """Run on the processors of a hexadecimal mask only; return why not, "" when it is so."""
    if not hasattr(os, "sched_setaffinity"):
        return "this system cannot keep a process on some processors"
    asked = {i for i in range(int(mask, 16).bit_length()) if int(mask, 16) >> i & 1}
    try:
        os.sched_setaffinity(0, asked)
    except OSError as error:
        return f"none of the processors of mask {mask} may be used here: {error.strerror}"
    missing = asked - os.sched_getaffinity(0)
    return f"processors {sorted(missing)} of mask {mask} are not there or not allowed" if missing else ""
