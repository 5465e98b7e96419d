"""The boards that can be emulated: the packages and wheels of their root file systems, and their processors."""

from dataclasses import dataclass, field
from typing import Final

from processors import Processor

PYTHON: Final = "3.11"  # Raspberry Pi OS 12 and the Debian below it have this one, and the wheels are chosen for it
COMMON_PACKAGES: Final = (
    "base-files", "dash", "debianutils", "coreutils", "grep", "sed", "tar", "util-linux", "procps", "libc-bin", "libstdc++6",
    "openssh-server", "openssh-sftp-server", "python3",
)  # fmt: skip
GLIBC_MINORS: Final = (17, 24, 26, 27, 28, 31, 34, 35, 36)  # bookworm has glibc 2.36 and satisfies the manylinux tags of these


@dataclass(frozen=True, kw_only=True)
class Board(Processor):
    """A board that can be emulated."""

    architecture: str  # Debian's name
    wheels: tuple[str, ...]  # names with or without a version; constraints.txt has the versions of the others
    pip_options: tuple[str, ...] = ()
    packages: tuple[str, ...] = COMMON_PACKAGES
    links: dict[str, str] = field(default_factory=dict)  # path → target of the links that the packages' scripts would have made


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
        packages=(*COMMON_PACKAGES, "python3-numpy"),
        links={
            "usr/lib/arm-linux-gnueabihf/libblas.so.3": "blas/libblas.so.3",
            "usr/lib/arm-linux-gnueabihf/liblapack.so.3": "lapack/liblapack.so.3",
        },
    ),
}
