"""The runner protocol: the request, the reply, and the checks of a reply. `device_tests/runners/README.md` documents it for authors."""

import msgspec

from edgecompress.devices.text import sanitize
from edgecompress.errors import ConfigError, DeviceError, EdgeCompressError
from edgecompress.records import SCHEMA, OpTime, Record
from edgecompress.records.measurement import BENCHMARK_DEFAULTS

MAX_REPLY_BYTES = 16 << 20


class FileRequest(Record, frozen=True, kw_only=True):
    """One artifact of a request; shapes and dtypes may be empty where the file tells them."""

    path: str
    sha256: str
    format: str
    input_shapes: tuple[tuple[int, ...], ...] = ()
    input_dtypes: tuple[str, ...] = ()


class RunnerRequest(Record, frozen=True, kw_only=True):
    """One run. Paths are relative to the request's own folder. `inputs` and `outputs` are for mode infer."""

    schema: int = SCHEMA
    nonce: str
    mode: str
    artifacts: tuple[FileRequest, ...]
    threads: int
    reply: str
    warmup_s: float = BENCHMARK_DEFAULTS.warmup_s
    repetitions: int = BENCHMARK_DEFAULTS.repetitions
    time_limit_s: float = BENCHMARK_DEFAULTS.time_limit_s
    loads: int = 1
    cpu_mask: str = ""
    profile: bool = False
    inputs: str = ""
    outputs: str = ""


class FileResult(Record, frozen=True, kw_only=True):
    """The result of one artifact; `sha256` is computed on the device from the bytes that were run.

    `latency_ms` and `warmup_ms` are all times, or a sample of them where `latency_count` or `warmup_count` is larger.
    """

    sha256: str
    backend: str
    load_ms: float
    first_ms: float = 0.0
    warmup_ms: tuple[float, ...] = ()
    latency_ms: tuple[float, ...] = ()
    rounds: tuple[int, ...] = ()
    warmup_count: int = 0
    latency_count: int = 0
    profile: tuple[OpTime, ...] = ()
    notes: tuple[str, ...] = ()


class RunnerMachine(Record, frozen=True, kw_only=True):
    """The machine as the runner sees it."""

    abi: str = ""
    os: str = ""
    python: str = ""
    cpu: str = ""
    cpu_features: tuple[str, ...] = ()
    governor: str = ""


class RunnerProblem(Record, frozen=True, kw_only=True):
    """The reason of a failed run; `kind` is a key of `ERROR_KINDS`."""

    kind: str
    message: str


class RunnerReply(Record, frozen=True, kw_only=True):
    """The reply of a run that succeeded; `outputs_sha256` is set after mode infer only."""

    schema: int
    nonce: str
    runner: str
    threads: int
    started_at: str
    peak_rss_bytes: int
    results: tuple[FileResult, ...]
    machine: RunnerMachine = RunnerMachine()
    load_average: tuple[float | None, float | None] = (None, None)
    temperature_c: tuple[float | None, float | None] = (None, None)
    frequencies_mhz: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    governors: tuple[str, str] = ("", "")
    throttled: bool | None = None
    busy_elsewhere: float | None = None
    cpu_mask: str = ""
    outputs_sha256: str = ""


class RunnerFailure(Record, frozen=True, kw_only=True):
    """The reply of a run that failed."""

    nonce: str | None
    error: RunnerProblem


ERROR_KINDS: dict[str, tuple[type[EdgeCompressError], str]] = {
    "request": (ConfigError, "change what was asked for"),
    "inputs": (ConfigError, "give inputs in the artifact's own shape"),
    "artifact": (ConfigError, "export it again, or update the runtime there"),
    "hash": (DeviceError, "check the connection and the disk there, then run it again"),
    "runtime": (DeviceError, "install the runtime there, or name the interpreter that has it"),
    "memory": (DeviceError, "close other programs there or use a smaller artifact"),
    "internal": (DeviceError, "run it again with --debug; update the runtime there"),
}


def parse_reply(data: bytes, request: RunnerRequest, *, subject: str) -> RunnerReply:
    """Return the reply to exactly this request.

    Raises:
        DeviceError: The reply is malformed or of another run, has other hashes or impossible numbers, or says that the runner failed.
        ConfigError: The runner refused the file, its inputs or the request.
    """
    try:
        failure = _decode_failure(data)
        reply = None if failure else msgspec.json.decode(data, type=RunnerReply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = sanitize(str(error), limit=200)
        raise DeviceError(f"{subject}: the runner's reply cannot be used: {reason}; is the right runner there?") from error
    nonce = failure.nonce if failure else reply.nonce if reply else None
    if nonce != request.nonce:
        raise DeviceError(f"{subject}: the reply belongs to another run; run it again, and look for a second process on the device")
    if failure:
        kind, remedy = ERROR_KINDS.get(failure.error.kind, ERROR_KINDS["internal"])
        raise kind(f"{subject}: {sanitize(failure.error.message, limit=500)}; {remedy}")
    assert reply is not None
    _check_reply(reply, request, subject)
    return reply


def _decode_failure(data: bytes) -> RunnerFailure | None:
    return msgspec.json.decode(data, type=RunnerFailure) if b'"error"' in data[:4096] else None


def _check_reply(reply: RunnerReply, request: RunnerRequest, subject: str) -> None:
    if reply.schema != SCHEMA:
        raise DeviceError(f"{subject}: the runner there speaks schema {reply.schema}, this edgecompress {SCHEMA}; update the runner")
    if [result.sha256 for result in reply.results] != [file.sha256 for file in request.artifacts]:
        raise DeviceError(f"{subject}: the runner did not confirm the hashes of what was sent; check the connection, then run it again")
    if reply.threads != request.threads:
        raise DeviceError(f"{subject}: the runner used {reply.threads} threads, {request.threads} were asked for; mend the runner")
    times = [time for result in reply.results for time in (result.load_ms, result.first_ms, *result.warmup_ms, *result.latency_ms)]
    if any(not 0 <= time < 1e9 for time in times) or reply.peak_rss_bytes < 0:
        raise DeviceError(f"{subject}: the runner reports impossible times or memory; mend the runner")
    if any(
        result.rounds and (sum(result.rounds) != len(result.latency_ms) or min(result.rounds) < 0 or len(result.rounds) > request.loads)
        for result in reply.results
    ):
        raise DeviceError(f"{subject}: the runner's rounds are not those of its times; mend the runner")
    counts = [(r.warmup_count, r.warmup_ms) for r in reply.results] + [(r.latency_count, r.latency_ms) for r in reply.results]
    if any(count and not len(times) <= count < 1e12 for count, times in counts):
        raise DeviceError(f"{subject}: the runner counts fewer inferences than it tells times of; mend the runner")
    told = [op.ms for result in reply.results for op in result.profile]
    told += [value for value in (*reply.temperature_c, *reply.load_average, reply.busy_elsewhere) if value is not None]
    if any(not -300 < value < 1e9 for value in (*told, *reply.frequencies_mhz[0], *reply.frequencies_mhz[1])):
        raise DeviceError(f"{subject}: the runner reports impossible conditions; mend the runner")
    if request.mode == "measure" and any(not result.latency_ms for result in reply.results):
        raise DeviceError(f"{subject}: the runner measured nothing; allow more time")
