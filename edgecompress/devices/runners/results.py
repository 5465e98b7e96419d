"""Make benchmark results and output arrays from a runner's reply: strings are sanitized, arrays are checked before they are used."""

import zipfile
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgecompress.devices.runners.protocol import RunnerReply
from edgecompress.devices.text import sanitize
from edgecompress.errors import DeviceError
from edgecompress.files import hash_file
from edgecompress.records import Artifact, BenchmarkResult, DeviceInfo, OpTime


def make_benchmark_result(
    path: Path, index: int, reply: RunnerReply, info: DeviceInfo, after: DeviceInfo, *, runner_sha256: str, cpu_mask: str
) -> BenchmarkResult:
    """Return the benchmark result of `path`, the `index`-th artifact of a reply.

    Facts that the device did not tell are taken from the runner, conditions that the runner did not tell from the device `after` the run.
    """
    result, machine = reply.results[index], reply.machine
    known = msgspec.structs.replace(
        info,
        abi=info.abi or sanitize(machine.abi, limit=40),
        os=info.os or sanitize(machine.os, limit=120),
        model=info.model or sanitize(machine.cpu, limit=120),
        governor=info.governor or sanitize(machine.governor, limit=40),
        cpu_features=info.cpu_features or tuple(sanitize(feature, limit=40) for feature in machine.cpu_features[:400]),
    )
    return BenchmarkResult(
        session=reply.nonce,
        artifact=path.name,
        artifact_sha256=result.sha256,
        size_bytes=path.stat().st_size,
        device=known,
        runner=sanitize(reply.runner, limit=80),
        backend=sanitize(result.backend, limit=80),
        threads=reply.threads,
        load_ms=result.load_ms,
        first_ms=result.first_ms,
        warmup_ms=result.warmup_ms,
        latency_ms=result.latency_ms,
        peak_rss_bytes=reply.peak_rss_bytes,
        started_at=sanitize(reply.started_at, limit=40),
        temperature_c=reply.temperature_c if reply.temperature_c != (None, None) else (info.temperature_c, after.temperature_c),
        rounds=result.rounds or (len(result.latency_ms),),
        warmup_count=result.warmup_count or len(result.warmup_ms),
        latency_count=result.latency_count or len(result.latency_ms),
        runner_sha256=runner_sha256,
        cpu_mask=cpu_mask,
        frequencies_mhz=(reply.frequencies_mhz[0][:1024], reply.frequencies_mhz[1][:1024]),
        governors=_governors_before_and_after(reply, known, after),
        throttled=reply.throttled,
        busy_elsewhere=reply.busy_elsewhere,
        profile=tuple(OpTime(name=sanitize(op.name, limit=200), calls=op.calls, ms=op.ms) for op in result.profile[:200]),
        load_average=reply.load_average,
        notes=tuple(sanitize(note, limit=300) for note in result.notes[:20]),
    )


def _governors_before_and_after(reply: RunnerReply, before: DeviceInfo, after: DeviceInfo) -> tuple[str, str]:
    then, now = (sanitize(name, limit=40) for name in reply.governors)
    return (then, now) if then or now else (before.governor, after.governor)


def list_known_defects(backend: str, manifest: Artifact | None) -> tuple[str, ...]:
    """Return notes on errors that this runtime is known to make with this artifact without reporting them."""
    if backend.startswith("tflite-runtime") and manifest and manifest.quant.scheme == "int8-dynamic":
        return (f"{backend} computes int8-dynamic files wrongly: install ai-edge-litert there, and see `edgecompress evaluate`",)
    return ()


def read_outputs(path: Path, reply: RunnerReply, *, samples: int, subject: str) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the arrays that the runner computed; only uncompressed float32 arrays of the right length are accepted."""
    if hash_file(path) != reply.outputs_sha256:
        raise DeviceError(f"{subject}: the outputs arrived damaged; check the connection, then run it again")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("compressed")
        with np.load(path, allow_pickle=False) as arrays:
            outputs = tuple(arrays[f"output_{i}"] for i in range(len(arrays.files)))
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DeviceError(
            f"{subject}: the outputs cannot be read: {sanitize(str(error), limit=200)}; is the right runner there?"
        ) from error
    if not outputs or any(output.dtype != np.float32 or output.shape[:1] != (samples,) for output in outputs):
        raise DeviceError(f"{subject}: outputs are not float32 for {samples} samples; mend the runner")
    return outputs
