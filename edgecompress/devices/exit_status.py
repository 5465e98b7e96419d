"""What a runner's exit status means, and what to do about it."""

import signal

from edgecompress.records import DeviceInfo

REASONS = {
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


def explain(returncode: int, device: DeviceInfo) -> str:
    """Return `runner …: exit status …` with the ABI and CPU features that matter for the ones a wrong build causes."""
    status = 128 - returncode if returncode < 0 else returncode
    reason = REASONS.get(status)
    if reason is None and status > 128:
        reason = f"died by signal {status - 128}"
    text = f"the runner {reason or 'failed'} (exit status {returncode})"
    if status in {126, 127, 128 + signal.SIGILL, 128 + signal.SIGSEGV} and device.abi:
        notable = [name for name in ("atomics", "asimddp", "fphp", "avx2", "avx512f") if name in device.cpu_features]
        text += f"; the device is {device.abi} with {', '.join(notable) or 'none of the newer CPU features'}"
    return text
