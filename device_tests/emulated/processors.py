"""The /proc/cpuinfo and /sys of an emulated device; libraries choose their kernels by them, and crash where they describe an x86 CPU."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processor and its board. `features` and `part` are those of /proc/cpuinfo; `qemu_cpu` is qemu's name of the same core.

    The core is always named, since qemu's default processor has instructions that a real core lacks.
    """

    machine: str  # the kernel's name, as in wheels
    handler: str  # the file of /usr/lib/binfmt.d that registers qemu for it
    qemu_cpu: str
    model: str
    hardware: str
    features: str
    part: str
    max_khz: int
    governor: str = "ondemand"


def cpuinfo_text(processor: Processor, cores: int) -> str:
    """Return the text of /proc/cpuinfo for that many cores."""
    version = 8 if processor.machine == "aarch64" else 7
    core = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {processor.features}\nCPU implementer\t: 0x41\nCPU architecture: {version}\n"
        f"CPU variant\t: 0x0\nCPU part\t: {processor.part}\nCPU revision\t: 3\n\n"
    )
    listed = "".join(f"processor\t: {i}\n{core}" for i in range(cores))
    return f"{listed}Hardware\t: {processor.hardware}\nModel\t\t: {processor.model}\n"


def sysfs_files(processor: Processor, cores: int) -> dict[str, str]:
    """Return {path below /sys: text} of the files that programs read: processors, frequencies, temperature, model."""
    cpu = "devices/system/cpu"
    listed = f"0-{cores - 1}\n" if cores > 1 else "0\n"
    files = {f"{cpu}/{name}": listed for name in ("online", "possible", "present")}
    for i in range(cores):
        frequency, topology = f"{cpu}/cpu{i}/cpufreq", f"{cpu}/cpu{i}/topology"
        files |= {
            f"{frequency}/scaling_governor": f"{processor.governor}\n",
            f"{frequency}/scaling_cur_freq": f"{processor.max_khz}\n",
            f"{frequency}/cpuinfo_cur_freq": f"{processor.max_khz}\n",
            f"{frequency}/cpuinfo_max_freq": f"{processor.max_khz}\n",
            f"{frequency}/cpuinfo_min_freq": "600000\n",
            f"{topology}/core_id": f"{i}\n",
            f"{topology}/physical_package_id": "0\n",
        }
    files["class/thermal/thermal_zone0/type"] = "cpu-thermal\n"
    files["class/thermal/thermal_zone0/temp"] = "42000\n"
    files["firmware/devicetree/base/model"] = f"{processor.model}\0"
    return files
