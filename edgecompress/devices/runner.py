"""Run artifacts on any device with the runner program: measure their latency, or compute their outputs.

A run counts only when the runner exited with 0 AND its reply carries this run's nonce AND the hashes of everything sent were confirmed on
the device. Each run has a private work folder there, removed afterwards whatever happened.
"""

import hashlib
import logging
import math
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from msgspec import structs

from edgecompress import programs
from edgecompress.devices import foreign, masks
from edgecompress.devices.again import info_if_there, twice
from edgecompress.devices.base import Device, Late, LinkLost, last_lines
from edgecompress.devices.exit_status import explain, machine_of
from edgecompress.devices.leases import hold, name_of
from edgecompress.devices.protocol import MAX_REPLY_BYTES, FileRequest, RunnerReply, RunnerRequest, parse_reply
from edgecompress.devices.results import benchmark_result, doubts, read_outputs
from edgecompress.devices.store import send
from edgecompress.errors import ConfigError, DeviceError, EdgeCompressError
from edgecompress.files import explain as explain_write
from edgecompress.files import sha256
from edgecompress.records import Artifact, BenchmarkResult, DeviceInfo, Measuring, read, to_json
from edgecompress.targets import SUFFIXES

log = logging.getLogger(__name__)

SHORT_S = 20.0
MAX_OUTPUTS_BYTES = 1 << 30

Values = npt.NDArray[np.float32] | npt.NDArray[np.int32] | npt.NDArray[np.int64]


def measure(
    device: Device,
    files: Sequence[Path],
    how: Measuring = Measuring(),
    *,
    loads: int = 1,
    wait_s: float = 600.0,
) -> tuple[BenchmarkResult, ...]:
    """Return the latencies of `files`, interleaved A B A B in one process on `device`, in the order given.

    Args:
        how: Without the device's entry in the inventory, without waiting for it to cool down.
        loads: How often each file is loaded anew; the repetitions are shared among the loadings.
        wait_s: How long to wait for another process that measures on the same device.

    Raises:
        ConfigError: A file that is missing, of an unknown format, or refused by the runtime.
        DeviceError: The device or the runner failed, or the reply cannot be trusted.
    """
    if how.threads < 1 or how.repetitions < 1 or how.timeout_s <= 0:
        said = f"threads {how.threads}, repetitions {how.repetitions}, timeout {how.timeout_s:g} s"
        raise ConfigError(f"{said}: each must be positive; give larger ones")
    if not 0 <= how.warmup_s < math.inf or loads < 1:
        raise ConfigError(f"warm-up {how.warmup_s:g} s, {loads} loadings: must be at least 0 s and at least one loading; give larger ones")
    mask, runner = masks.plain(how.cpu_mask), Path(how.runner) if how.runner else None
    requested = tuple(_file_request(path, i) for i, path in enumerate(files))
    request = RunnerRequest(
        nonce="",  # each attempt has its own
        mode="measure",
        artifacts=requested,
        threads=how.threads,
        reply="reply.json",
        warmup_s=how.warmup_s,
        repetitions=how.repetitions,
        time_limit_s=min(how.time_limit_s, how.timeout_s / 2),
        loads=loads,
        cpu_mask=mask,
        profile=how.profile,
    )
    with hold(name_of(device), wait_s=wait_s):
        info = twice(device, device.info)
        masks.check(device, mask)
        run = _Run(device, info, how.python or device.python, runner, how.timeout_s)
        reply = _execute(run, request, files, {}, None)
        after = info_if_there(device) if runner else info
    ran = _hash_of(runner)
    results = (benchmark_result(path, i, reply, info, after, runner_sha256=ran, cpu_mask=mask) for i, path in enumerate(files))
    return tuple(
        structs.replace(r, notes=(*r.notes, *doubts(r.backend, manifest_of(path)))) for r, path in zip(results, files, strict=True)
    )


def infer(
    device: Device,
    file: Path,
    inputs: Sequence[Values],
    *,
    threads: int = 1,
    timeout_s: float = 600.0,
    python: str | None = None,
    runner: Path | None = None,
    wait_s: float = 600.0,
    on_reply: Callable[[RunnerReply], None] | None = None,
) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the outputs of `file` for each sample, computed on `device` with batch 1.

    Args:
        inputs: One array per model input, `(n, …)` in the artifact's layout; floats are quantized there where the artifact takes integers,
            integers go in as they are; outputs are dequantized.
        on_reply: Told what the runner said of itself and the machine, once it is checked.

    Returns:
        One array per output, `(n, …)`, float32.

    Raises:
        ConfigError: The file is unusable or the inputs do not fit it.
        DeviceError: The device or the runner failed, or the reply cannot be trusted.
    """
    if not inputs or not len(inputs[0]) or any(len(array) != len(inputs[0]) for array in inputs):
        raise ConfigError(f"{file}: inputs of {[len(array) for array in inputs]} samples; give every input the same number, at least one")
    values = [array if array.dtype.kind == "i" else array.astype(np.float32, copy=False) for array in inputs]
    shapes, dtypes = tuple((1, *array.shape[1:]) for array in values), tuple(array.dtype.name for array in values)
    request = RunnerRequest(
        nonce="",  # each attempt has its own
        mode="infer",
        artifacts=(_file_request(file, 0, shapes, dtypes),),
        threads=threads,
        reply="reply.json",
        inputs="inputs.npz",
        outputs="outputs.npz",
    )
    # On this machine nothing is timed here, so nobody needs to wait.
    lock = nullcontext() if device.url == "local://" else hold(name_of(device), wait_s=wait_s)
    with lock, tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        sent, received = Path(name) / "inputs.npz", Path(name) / "outputs.npz"
        arrays = {f"input_{i}": np.ascontiguousarray(array) for i, array in enumerate(values)}
        try:
            np.savez(sent, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its options
        except OSError as error:
            raise explain_write(error, sent) from error
        run = _Run(device, DeviceInfo(url=device.url, serial=device.serial), python or device.python, runner, timeout_s)
        reply = _execute(run, request, (file,), {"inputs.npz": sent}, received)
        if on_reply is not None:
            on_reply(reply)
        return read_outputs(received, reply, samples=len(inputs[0]), subject=f"{device.url}: {file.name}")


def check_runner(runner: str) -> None:
    """Refuse a runner that is not there; "" is none.

    Raises:
        ConfigError: It is no file.
    """
    if runner and not Path(runner).is_file():
        raise ConfigError(f"{runner}: no such runner; give an executable for the device that obeys the runner's protocol")


def manifest_of(path: Path) -> Artifact | None:
    """Return the manifest beside an artifact, None when there is none.

    Raises:
        ConfigError: There is one and it belongs to other bytes.
    """
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        return None
    manifest = read(beside, Artifact)
    if manifest.sha256 != sha256(path):
        raise ConfigError(f"{path}: its SHA-256 is not the one in {beside.name}; it was changed after export, export it again")
    return manifest


def _hash_of(runner: Path | None) -> str:
    """Return the hash of the program that ran: of the given file, or of the hashes of our parts."""
    if runner is not None:
        return sha256(runner)
    return hashlib.sha256("".join(sha256(part) for part in programs.runner_parts()).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Run:
    """Where and with what."""

    device: Device
    info: DeviceInfo
    python: str
    runner: Path | None
    timeout_s: float


def _file_request(path: Path, index: int, shapes: tuple[tuple[int, ...], ...] | None = None, dtypes: tuple[str, ...] = ()) -> FileRequest:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: not an artifact that can be run; its name must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run `edgecompress export` first")
    manifest = manifest_of(path)
    if manifest is None and shapes is None and path.suffix == ".ptl":
        raise ConfigError(f"{path}: a .ptl file does not tell its input shapes and {path.name}.json is not beside it; export it again")
    if shapes is None:
        shapes = tuple(tensor.shape for tensor in manifest.inputs) if manifest else ()
        dtypes = tuple(tensor.dtype for tensor in manifest.inputs) if manifest else ()
    name = f"artifact_{index}{path.suffix}"
    return FileRequest(path=name, sha256=sha256(path), format=SUFFIXES[path.suffix], input_shapes=shapes, input_dtypes=dtypes)


def _execute(run: _Run, request: RunnerRequest, files: Sequence[Path], extra: dict[str, Path], outputs: Path | None) -> RunnerReply:
    """Send, run, and fetch the reply, and what mode infer computed to `outputs`; once more as another run when the link was lost."""
    return twice(run.device, lambda: _attempt(run, structs.replace(request, nonce=secrets.token_hex(16)), files, extra, outputs))


def _attempt(run: _Run, request: RunnerRequest, files: Sequence[Path], extra: dict[str, Path], outputs: Path | None) -> RunnerReply:
    subject = f"{run.device.url}: {', '.join(path.name for path in files)}"
    stranger = foreign.recognise(run.runner) if run.runner else ""
    if stranger:
        foreign.refuse(stranger, request)
    with _work_folder(run.device, request.nonce) as work, tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        here = Path(name)
        (here / "request.json").write_bytes(to_json(request))
        kept = {"runner": run.runner} if run.runner else {part.name: part for part in programs.runner_parts()}
        kept |= {asked.path: path for asked, path in zip(request.artifacts, files, strict=True)}
        if stranger:
            extra = {"run.sh": here / "run.sh", **extra}
            extra["run.sh"].write_text(foreign.script(stranger, request), encoding="utf-8", newline="\n")
        send(run.device, work, {**kept, "request.json": here / "request.json", **extra}, keep=kept)
        done = run.device.run(_command(run, request, work, stranger), timeout_s=run.timeout_s)
        reply_file = here / request.reply
        if done.returncode != 0:
            # A runner that failed in an orderly way says why; one that died left no reply.
            if not stranger and _exists(run.device, work / request.reply):
                run.device.pull(work / request.reply, reply_file, max_bytes=MAX_REPLY_BYTES)
                parse_reply(reply_file.read_bytes(), request, subject=subject)
            info = run.info if run.info.abi else info_if_there(run.device)
            said = last_lines(done.stderr or done.stdout)
            built_for = machine_of(run.runner) if run.runner else ""
            why = explain(done.returncode, info, built_for=built_for)
            raise DeviceError(f"{subject}: {why}{f'; it said: {said}' if said else ''}")
        if not _exists(run.device, work / request.reply):
            raise DeviceError(f"{subject}: the runner ended without a reply; is it a runner that obeys the protocol?")
        run.device.pull(work / request.reply, reply_file, max_bytes=MAX_REPLY_BYTES)
        data = reply_file.read_bytes()
        reply = foreign.read_log(stranger, data, request, subject=subject) if stranger else parse_reply(data, request, subject=subject)
        if outputs is not None:
            run.device.pull(work / request.outputs, outputs, max_bytes=MAX_OUTPUTS_BYTES)
        return reply


def _command(run: _Run, request: RunnerRequest, work: PurePosixPath, stranger: str) -> list[str]:
    """Return what is run there: our runner in Python, a program that obeys the protocol, or the script for a stranger."""
    start = ["sh", str(work / "run.sh")] if stranger else [str(work / "runner")] if run.runner else [run.python, str(work / "runner.py")]
    if run.runner and request.cpu_mask:
        start = ["taskset", request.cpu_mask, *start]
    # The shell leaves its process id behind and becomes the runner, so that an interrupted run can be ended.
    return ["sh", "-c", 'echo $$ >"$0/pid"; exec "$@"', str(work), *start, str(work / "request.json")]


@contextmanager
def _work_folder(device: Device, nonce: str) -> Iterator[PurePosixPath]:
    """Name a private folder on the device, which `send` makes; on the way out end what still runs in it and remove it."""
    work = device.base / f"edgecompress-{nonce}"
    try:
        yield work
    except (LinkLost, Late) as error:
        _reconnect_and_remove(device, work, error)
        raise
    except BaseException:
        _remove(device, work, kill=True)
        raise
    else:
        _remove(device, work, kill=False)


def _reconnect_and_remove(device: Device, work: PurePosixPath, error: EdgeCompressError) -> None:
    """Clean up over a new connection: what broke or silenced the old one would make the cleaning fail or wait too."""
    try:
        device.reconnect()
    except EdgeCompressError as gone:
        log.warning("%s: %s may be left behind after %s: %s", device.url, work, type(error).__name__, gone)
        return
    _remove(device, work, kill=True)


def _remove(device: Device, work: PurePosixPath, *, kill: bool) -> None:
    script = '[ ! -s "$0/pid" ] || kill -9 "$(cat "$0/pid")" 2>/dev/null; rm -rf "$0"' if kill else 'rm -rf "$0"'
    try:
        done = device.run(["sh", "-c", script, str(work)], timeout_s=SHORT_S)
    except EdgeCompressError as error:  # the first failure is the one to report; what stays is named for those who look
        log.warning("%s: %s may be left behind: %s", device.url, work, error)
        return
    if done.returncode != 0:
        log.warning("%s: %s may be left behind: %s", device.url, work, last_lines(done.stderr))


def _exists(device: Device, path: PurePosixPath) -> bool:
    return device.run(["test", "-f", str(path)], timeout_s=SHORT_S).returncode == 0
