"""Facts and conditions of the machine that the runner runs on. A fact that the system does not tell is "", [] or None."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from pathlib import Path

PI_THROTTLED_NOW = 0xF  # under-voltage, frequency capped, throttled, soft temperature limit
PI_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
# An ONNX file with one node: y = MatMulInteger(a, b) for a uint8 (1, 64), b int8 (64, 64) and y int32 (1, 64).
INT8_PRODUCTS = (
    b'\x08\x08B\x04\n\x00\x10\x11:\\\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\x13\n\x01a\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02'
    b"\x08@Z\x13\n\x01b\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08@\n\x02\x08@b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08@"
)


def read_text(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def describe_machine():
    """Return abi, os, python, CPU model, CPU features and governor."""
    cpu = dict(re.findall(r"^([A-Za-z_ ]+?)\s*:\s*(.*)$", read_text("/proc/cpuinfo"), re.MULTILINE))
    return {
        "abi": platform.machine(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": read_text("/proc/device-tree/model") or cpu.get("model name", "") or cpu.get("Hardware", "") or platform.processor(),
        "cpu_features": (cpu.get("Features") or cpu.get("flags") or "").split(),
        "governor": read_governor(Path("/")),
    }


def take_snapshot(root=Path("/")):
    """Return the conditions that may change during a measurement, and the clocks that tell who used the processors meanwhile."""
    return {
        "load_average": read_load_average(),
        "temperature_c": read_temperature(root),
        "frequencies_mhz": [number / 1e3 for number in read_numbers(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")],
        "governor": read_governor(root),
        "limits_khz": read_numbers(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq"),
        "throttle_counts": read_numbers(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"),
        "firmware": read_text(root / PI_FIRMWARE),
        "busy_s": read_busy_seconds(root),
        "own_s": sum(os.times()[:2]),
        "clock_s": time.perf_counter(),
    }


def compare_snapshots(before, after):
    """Return the keys of a reply that follow from the snapshots before and after."""
    both = ("load_average", "temperature_c", "frequencies_mhz")
    made = {name: [before[name], after[name]] for name in both}
    made["governors"] = [before["governor"], after["governor"]]
    made["throttled"] = was_throttled(before, after)
    made["busy_elsewhere"] = None
    if before["busy_s"] is not None and after["busy_s"] is not None:
        busy, own = after["busy_s"] - before["busy_s"], after["own_s"] - before["own_s"]
        made["busy_elsewhere"] = max(0.0, busy - own) / max(after["clock_s"] - before["clock_s"], 1e-3)
    return made


def was_throttled(before, after):
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


def read_temperature(root=Path("/")):
    """Return the hottest thermal zone in °C; zones are in millidegrees and some report nonsense."""
    degrees = [number / 1e3 for number in read_numbers(root, "sys/class/thermal/thermal_zone*/temp")]
    return max((value for value in degrees if 0 < value < 150), default=None)


def read_governor(root):
    return read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def read_numbers(root, pattern):
    """Return the integers in the files that match a pattern, in the order of the processors."""
    texts = [read_text(path) for path in sorted(root.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])]
    return [int(text) for text in texts if re.fullmatch(r"-?\d{1,15}", text)]


def read_busy_seconds(root=Path("/")):
    """Return the busy time in seconds of all processors together since the system started."""
    fields = read_text(root / "proc/stat").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu" or not hasattr(os, "sysconf"):
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def int8_sums_overflow(onnxruntime):
    """Tell whether this onnxruntime adds products of uint8 and int8 in int16 on this processor, as its kernel for x86 without VNNI does.

    /proc/cpuinfo does not decide: a virtual machine may hide a feature there that the processor has, and only the runtime knows its kernel.
    """
    import numpy as np

    largest = {"a": np.full((1, 64), 255, np.uint8), "b": np.full((64, 64), 127, np.int8)}
    session = onnxruntime.InferenceSession(INT8_PRODUCTS, providers=["CPUExecutionProvider"])
    return bool((session.run(None, largest)[0] != 64 * 255 * 127).any())


def read_load_average():
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def read_peak_rss_bytes():
    """Return the peak resident set of this process, which all artifacts of one run share."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def set_thread_variables(threads):
    """Set the variables that runtimes read at import; GOMP_SPINCOUNT too, since spinning threads slow two busy processes down."""
    os.environ["GOMP_SPINCOUNT"] = "0"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def pin_to_processors(mask):
    """Keep this process on the processors of a hexadecimal mask; return the reason where that fails, "" otherwise."""
    if not hasattr(os, "sched_setaffinity"):
        return "this system cannot keep a process on some processors"
    asked = {i for i in range(int(mask, 16).bit_length()) if int(mask, 16) >> i & 1}
    try:
        os.sched_setaffinity(0, asked)
    except OSError as error:
        return f"none of the processors of mask {mask} may be used here: {error.strerror}"
    missing = asked - os.sched_getaffinity(0)
    return f"processors {sorted(missing)} of mask {mask} are not there or not allowed" if missing else ""
