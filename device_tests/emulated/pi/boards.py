"""The boards there are: which packages and wheels make their root file system, and what their kernel tells programs."""

from dataclasses import dataclass, field
from typing import Final

SUITE: Final = "bookworm"  # what Raspberry Pi OS 12 is made of, with the Python the wheels are for
PYTHON: Final = "3.11"
COMMON: Final = (
    "base-files", "dash", "debianutils", "coreutils", "grep", "sed", "tar", "util-linux", "procps", "libc-bin", "libstdc++6",
    "openssh-server", "openssh-sftp-server", "python3",
)  # fmt: skip
GLIBC_MINORS: Final = (17, 24, 26, 27, 28, 31, 34, 35, 36)  # of the manylinux tags that bookworm's glibc 2.36 satisfies


@dataclass(frozen=True)
class Board:
    """One board. `features` and `part` are /proc/cpuinfo's; `qemu_cpu` is the same core to qemu, whose default hides what a Pi lacks."""

    architecture: str  # Debian's name
    machine: str  # the kernel's name, as in wheels
    handler: str  # the file of /usr/lib/binfmt.d that registers qemu for it
    qemu_cpu: str
    model: str
    hardware: str
    features: str
    part: str
    max_khz: int
    wheels: tuple[str, ...]  # names; constraints.txt has the versions unless one stands here
    pip_options: tuple[str, ...] = ()
    packages: tuple[str, ...] = COMMON
    links: dict[str, str] = field(default_factory=dict)  # what the packages' scripts would have linked


BOARDS: Final = {
    "arm64": Board(
        architecture="arm64",
        machine="aarch64",
        handler="qemu-aarch64",
        qemu_cpu="cortex-a72",
        model="Raspberry Pi 4 Model B Rev 1.4",
        hardware="BCM2835",
        features="fp asimd evtstrm crc32 cpuid",
        part="0xd08",
        max_khz=1_800_000,
        wheels=("ai-edge-litert", "numpy"),
    ),
    "armhf": Board(
        architecture="armhf",
        machine="armv7l",
        handler="qemu-arm",
        qemu_cpu="cortex-a7",
        model="Raspberry Pi 2 Model B Rev 1.1",
        hardware="BCM2835",
        features="half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm",
        part="0xc07",
        max_khz=900_000,
        wheels=("tflite-runtime==2.14.0",),
        pip_options=("--no-deps",),  # no numpy wheel is published for armv7l; Debian's stands in
        packages=(*COMMON, "python3-numpy"),
        links={
            "usr/lib/arm-linux-gnueabihf/libblas.so.3": "blas/libblas.so.3",
            "usr/lib/arm-linux-gnueabihf/liblapack.so.3": "lapack/liblapack.so.3",
        },
    ),
}


def cpuinfo(board: Board, cores: int) -> str:
    """Return the board's /proc/cpuinfo: ai-edge-litert reads it, and dies of an x86 one."""
    version = 8 if board.machine == "aarch64" else 7
    core = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\nCPU architecture: {version}\n"
        f"CPU variant\t: 0x0\nCPU part\t: {board.part}\nCPU revision\t: 3\n\n"
    )
    return "".join(f"processor\t: {i}\n{core}" for i in range(cores)) + f"Hardware\t: {board.hardware}\nModel\t\t: {board.model}\n"


def sysfs(board: Board, cores: int) -> dict[str, str]:
    """Return the files of the board's /sys that programs ask: processors, frequencies, temperature, model."""
    cpu = "devices/system/cpu"
    listed = f"0-{cores - 1}\n" if cores > 1 else "0\n"
    files = {f"{cpu}/{name}": listed for name in ("online", "possible", "present")}
    for i in range(cores):
        frequency, topology = f"{cpu}/cpu{i}/cpufreq", f"{cpu}/cpu{i}/topology"
        files |= {
            f"{frequency}/scaling_governor": "ondemand\n",
            f"{frequency}/scaling_cur_freq": f"{board.max_khz}\n",
            f"{frequency}/cpuinfo_cur_freq": f"{board.max_khz}\n",
            f"{frequency}/cpuinfo_max_freq": f"{board.max_khz}\n",
            f"{frequency}/cpuinfo_min_freq": "600000\n",
            f"{topology}/core_id": f"{i}\n",
            f"{topology}/physical_package_id": "0\n",
        }
    files["class/thermal/thermal_zone0/type"] = "cpu-thermal\n"
    files["class/thermal/thermal_zone0/temp"] = "42000\n"
    files["firmware/devicetree/base/model"] = f"{board.model}\0"
    return files
