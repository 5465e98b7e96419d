"""Build the read-only system of the phone: Debian's arm64 mksh and toybox in the folders of Android."""

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from processors import Processor
from rootfs_cache import DEBIAN_SUITE, EmulationError, extract_packages, find_missing, hold_rootfs, run_step

UID: Final = 2000  # the user `shell` of Android
PHONE: Final = Processor(
    machine="aarch64",
    handler="qemu-aarch64",
    qemu_cpu="cortex-a76",
    model="Emulated end",
    hardware="qemu",
    features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    part="0xd0b",
    max_khz=2_400_000,
    governor="schedutil",
)
PROPERTIES: Final = {
    "ro.product.model": PHONE.model,
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "13",
    "ro.build.version.sdk": "33",
    "ro.soc.model": PHONE.hardware,
    "ro.kernel.qemu": "1",
}
PACKAGES: Final = ("mksh", "toybox", "coreutils")
# Debian's program → its name on the phone. Android's toybox has tr, dd and expr, Debian's does not.
PROGRAMS: Final = {"mksh": "sh", "toybox": "toybox", "tr": "tr", "dd": "dd", "expr": "expr"}
LIBRARIES: Final = ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libcrypt.so.1", "libgmp.so.10")
# Programs of Android that Debian's toybox lacks, as shell scripts.
SCRIPTS: Final = {
    "getprop": """
if [ $# -eq 0 ]; then while IFS== read -r key value; do echo "[$key]: [$value]"; done </system/build.prop; exit; fi
while IFS== read -r key value; do [ "$key" = "$1" ] && { echo "$value"; exit; }; done </system/build.prop
echo "$2"
""",
    "dumpsys": """
case $1 in
  battery) echo 'Current Battery Service state:\n  level: 80\n  temperature: 300\n  powered: true';;
  thermalservice) echo 'Thermal Status: 0';;
  *) echo "Can't find service: $1"; exit 1;;
esac
""",
}
FILES: Final = {
    "system/build.prop": "".join(f"{key}={value}\n" for key, value in PROPERTIES.items()),
    "system/etc/passwd": f"root:x:0:0::/:/system/bin/sh\nshell:x:{UID}:{UID}::/:/system/bin/sh\n",
    "system/etc/group": f"root:x:0:\nshell:x:{UID}:\n",
    "system/etc/nsswitch.conf": "passwd: files\ngroup: files\n",
}


def find_missing_tools() -> list[str]:
    """Return what this machine lacks to build and run the phone, each lack with its remedy."""
    return find_missing(PHONE.handler, {"patchelf": "patchelf", "qemu-aarch64-static": "qemu-user-static"})


def hold_phone_rootfs(*, cache: Path, mirror: str) -> AbstractContextManager[Path]:
    """Yield the root file system of the phone, built first when it does not exist.

    Raises:
        EmulationError: This machine lacks something, or a download failed.
    """
    if missed := find_missing_tools():
        raise EmulationError("arm64 userland: " + "; ".join(missed))
    ingredients = json.dumps([asdict(PHONE), PACKAGES, DEBIAN_SUITE, mirror]) + Path(__file__).read_text()
    return hold_rootfs("android", ingredients, lambda root: build_rootfs(root, mirror), cache=cache)


def build_rootfs(root: Path, mirror: str) -> None:
    """Fill `root`. No glibc lies where a program looks for one, since a runner that brings no libraries must not start, as on a phone."""
    debian = root.with_name(f"{root.name}.debian")
    shutil.rmtree(debian, ignore_errors=True)
    try:
        extract_packages(debian, architecture="arm64", packages=PACKAGES, mirror=mirror)
        for name in ("system/bin", "system/lib64", "system/etc", "data", "sdcard", "dev", "proc", "sys"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in LIBRARIES:
            shutil.copy(debian / "usr/lib/aarch64-linux-gnu" / name, root / "system/lib64" / name)
        for source, name in PROGRAMS.items():
            program = shutil.copy(debian / "usr/bin" / source, root / "system/bin" / name)
            run_step(
                "patchelf", "--set-interpreter", f"/system/lib64/{LIBRARIES[0]}", "--force-rpath", "--set-rpath", "/system/lib64", program
            )  # fmt: skip
        commands = run_step("qemu-aarch64-static", "-L", str(debian), str(debian / "usr/bin/toybox")).split()
    finally:
        shutil.rmtree(debian, ignore_errors=True)
    for name in commands:
        (root / "system/bin" / name).symlink_to("toybox")
    for name, body in SCRIPTS.items():
        (root / "system/bin" / name).write_text(f"#!/system/bin/sh\n{body}")
        (root / "system/bin" / name).chmod(0o755)
    for name, text in FILES.items():
        (root / name).write_text(text)
    for name in ("bin", "etc"):
        (root / name).symlink_to(f"system/{name}")
