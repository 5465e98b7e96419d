"""Explain the exit status of a runner and what to do about it."""

import signal
from pathlib import Path

from edgecompress.devices.probe import NOTABLE_CPU_FEATURES
from edgecompress.records import DeviceInfo

EXIT_REASONS = {
    126: "may not be executed there: the folder is mounted noexec or the file is no program for it",
    127: "was not found there, or misses a library or is built for another ABI",
    128 + signal.SIGILL: "used an instruction this CPU does not have (SIGILL); use a runtime built for it",
    128 + signal.SIGABRT: "aborted (SIGABRT): the runtime gave up on this file; try another scheme or runtime version",
    128 + signal.SIGBUS: "died of a bus error (SIGBUS): the file is damaged or the disk is full",
    128 + signal.SIGFPE: "died of an arithmetic error (SIGFPE); the file is likely damaged",
    128 + signal.SIGKILL: "was killed (SIGKILL), most likely because the memory ran out; close other programs or use a smaller artifact",
    128 + signal.SIGSEGV: "crashed (SIGSEGV): the file is damaged or the runtime does not suit this CPU; export again or update it",
    128 + signal.SIGXCPU: "exceeded its CPU time limit; raise the limit",
    128 + signal.SIGTERM: "was terminated (SIGTERM) by something on the device; run it again",
}


# e_machine of an ELF file (System V ABI and its processor supplements) → the names of `uname -m` and Android.
ELF_MACHINES = {
    3: ("i386", "i686", "x86"),
    22: ("s390x",),
    40: ("arm", "armv7l", "armv8l", "armeabi-v7a", "armeabi"),
    62: ("x86_64",),
    183: ("aarch64", "arm64", "arm64-v8a"),
    243: ("riscv64",),
}


def read_elf_machine(program: Path) -> str:
    """Return the machine that an ELF file is built for, as `uname -m` calls it; "" for a script or an unknown machine."""
    with program.open("rb") as file:
        head = file.read(20)
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return ""
    return ELF_MACHINES.get(int.from_bytes(head[18:20], "little" if head[5] == 1 else "big"), ("",))[0]


def explain_exit(returncode: int, device: DeviceInfo, *, built_for: str = "") -> str:
    """Return a sentence about how the runner ended, with the device's ABI and CPU features where a wrong build may be the cause.

    Args:
        built_for: The result of `read_elf_machine` for the runner.
    """
    names = next((names for names in ELF_MACHINES.values() if built_for in names), ())
    if names and device.abi and device.abi not in names:
        return f"the runner is built for {built_for} and the device is {device.abi}; give one built for it (exit status {returncode})"
    status = 128 - returncode if returncode < 0 else returncode
    reason = EXIT_REASONS.get(status)
    if reason is None and 128 < status <= 128 + 64:  # there are 64 signals
        reason = f"died by signal {status - 128}"
    text = f"the runner {reason or 'failed'} (exit status {returncode})"
    if status in {126, 127, 128 + signal.SIGILL, 128 + signal.SIGSEGV} and device.abi:
        notable = [name for name in NOTABLE_CPU_FEATURES if name in device.cpu_features]
        text += f"; the device is {device.abi} with {', '.join(notable) or 'none of the newer CPU features'}"
    return text
