"""Run artifacts on a device with a runner program: measure their latencies, or compute their outputs."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import structs

from edgecompress import toolchains
from edgecompress.devices import cpu_mask
from edgecompress.devices.device import Device
from edgecompress.devices.leases.lease import hold_lease, lease_name
from edgecompress.devices.manifests import read_manifest
from edgecompress.devices.retry import probe_if_reachable, retry_once
from edgecompress.devices.runners.attempt import RunnerInvocation, invoke_runner
from edgecompress.devices.runners.protocol import FileRequest, RunnerReply, RunnerRequest
from edgecompress.devices.runners.results import list_known_defects, make_benchmark_result, read_outputs
from edgecompress.devices.runners.runner_process import RunnerProcess
from edgecompress.errors import ConfigError
from edgecompress.files import explain_write_error as explain_write
from edgecompress.files import hash_file
from edgecompress.records import BenchmarkOptions, BenchmarkResult, DeviceInfo
from edgecompress.records.fields import check_values
from edgecompress.targets import SUFFIXES

InputArray = npt.NDArray[np.float32] | npt.NDArray[np.int32] | npt.NDArray[np.int64]


def measure_latencies(
    device: Device,
    files: Sequence[Path],
    options: BenchmarkOptions = BenchmarkOptions(),
    *,
    loads: int = 1,
    wait_s: float = 600.0,
) -> tuple[BenchmarkResult, ...]:
    """Measure `files` interleaved A B A B in one process on `device` and return one result for each, in the order given.

    Args:
        options: The inventory is not consulted for them, and `cooldown_c` is ignored.
        loads: How often each file is loaded; the repetitions are shared among the loadings.
        wait_s: How long to wait for another process that measures on the same device.

    Raises:
        ConfigError: A value out of its range, or a file that is missing, of an unknown format, or refused by the runtime.
        DeviceError: The device or the runner failed, or the reply cannot be trusted.
    """
    check_values(options)
    if loads < 1:
        raise ConfigError(f"loads {loads}: must be at least 1; each file is loaded once at least")
    mask, runner = cpu_mask.normalize_mask(options.cpu_mask), Path(options.runner) if options.runner else None
    requested = tuple(_make_file_request(path, i) for i, path in enumerate(files))
    request = RunnerRequest(
        nonce="",  # each attempt has its own
        mode="measure",
        artifacts=requested,
        threads=options.threads,
        reply="reply.json",
        warmup_s=options.warmup_s,
        repetitions=options.repetitions,
        time_limit_s=min(options.time_limit_s, options.timeout_s / 2),
        loads=loads,
        cpu_mask=mask,
        profile=options.profile,
    )
    with hold_lease(lease_name(device), wait_s=wait_s):
        info = retry_once(device, device.info)
        cpu_mask.check_mask_online(device, mask)
        run = RunnerInvocation(device, info, options.python or device.python, runner, options.timeout_s * len(files))
        reply = invoke_runner(run, request, files, {}, None)
        after = probe_if_reachable(device) if runner else info
    ran = _hash_runner(runner)
    results = (make_benchmark_result(path, i, reply, info, after, runner_sha256=ran, cpu_mask=mask) for i, path in enumerate(files))
    return tuple(
        structs.replace(r, notes=(*r.notes, *list_known_defects(r.backend, read_manifest(path))))
        for r, path in zip(results, files, strict=True)
    )


def compute_outputs(
    device: Device,
    file: Path,
    inputs: Sequence[InputArray],
    *,
    threads: int = 1,
    timeout_s: float = 600.0,
    python: str | None = None,
    runner: Path | None = None,
    wait_s: float = 600.0,
    on_reply: Callable[[RunnerReply], None] | None = None,
    process: RunnerProcess | None = None,
) -> tuple[npt.NDArray[np.float32], ...]:
    """Compute the outputs of `file` on `device`, sample by sample with batch 1.

    Args:
        inputs: One array per model input, `(n, …)` in the artifact's layout; floats are quantized there where the artifact takes integers,
            integers go in as they are; outputs are dequantized.
        on_reply: Called with the runner's reply once it is checked.
        process: A runner that runs already, for `local://`; None starts one.

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
        artifacts=(_make_file_request(file, 0, shapes, dtypes),),
        threads=threads,
        reply="reply.json",
        inputs="inputs.npz",
        outputs="outputs.npz",
    )
    # Outputs computed on this machine are not timed, so they need no lease.
    lock = nullcontext() if device.url == "local://" else hold_lease(lease_name(device), wait_s=wait_s)
    with lock, tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
        sent, received = Path(name) / "inputs.npz", Path(name) / "outputs.npz"
        arrays = {f"input_{i}": np.ascontiguousarray(array) for i, array in enumerate(values)}
        try:
            np.savez(sent, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its options
        except OSError as error:
            raise explain_write(error, sent) from error
        run = RunnerInvocation(
            device, DeviceInfo(url=device.url, serial=device.serial), python or device.python, runner, timeout_s, process
        )
        reply = invoke_runner(run, request, (file,), {"inputs.npz": sent}, received)
        if on_reply is not None:
            on_reply(reply)
        return read_outputs(received, reply, samples=len(inputs[0]), subject=f"{device.url}: {file.name}")


def check_runner_file(runner: str) -> None:
    """Refuse the path of a runner that does not exist; "" stands for no runner.

    Raises:
        ConfigError: The path is no file.
    """
    if runner and not Path(runner).is_file():
        raise ConfigError(f"{runner}: no such runner; give an executable for the device that obeys the runner's protocol")


def _hash_runner(runner: Path | None) -> str:
    """Return the SHA-256 of a runner program, or of the hashes of our own runner's parts."""
    if runner is not None:
        return hash_file(runner)
    return hashlib.sha256("".join(hash_file(part) for part in toolchains.runner_parts()).encode()).hexdigest()


def _make_file_request(
    path: Path, index: int, shapes: tuple[tuple[int, ...], ...] | None = None, dtypes: tuple[str, ...] = ()
) -> FileRequest:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: not an artifact that can be run; its name must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run `edgecompress export` first")
    manifest = read_manifest(path)
    if manifest is None and shapes is None and path.suffix == ".ptl":
        raise ConfigError(f"{path}: a .ptl file does not tell its input shapes and {path.name}.json is not beside it; export it again")
    if shapes is None:
        shapes = tuple(tensor.shape for tensor in manifest.inputs) if manifest else ()
        dtypes = tuple(tensor.dtype for tensor in manifest.inputs) if manifest else ()
    name = f"artifact_{index}{path.suffix}"
    return FileRequest(path=name, sha256=hash_file(path), format=SUFFIXES[path.suffix], input_shapes=shapes, input_dtypes=dtypes)
