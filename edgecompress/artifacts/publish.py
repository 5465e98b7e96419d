"""Convert a model to one artifact, check it against the model, and publish it with its manifest only if it passes the gate."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgecompress.artifacts.execution import require_interpreter
from edgecompress.artifacts.format_session import FormatSession
from edgecompress.artifacts.gate import CALIBRATION_SAMPLES, ArtifactCheck, ConversionSetup, check_artifact
from edgecompress.artifacts.judge import DenseComparison, Judge
from edgecompress.data.targets import Targets
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import EdgeCompressError, FidelityError
from edgecompress.files import hash_file, replace_atomically, write_atomically
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import to_program, write_program
from edgecompress.network.outputs import scores_of, top1
from edgecompress.network.surgery import forward
from edgecompress.options import DEFAULTS
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.calibration import save_calibration
from edgecompress.quantization.float_tail import keep_tail_float
from edgecompress.records import Artifact, ConversionReply, ConversionRequest, Preprocessing, QuantSpec, Record, to_json
from edgecompress.targets import FORMATS, Gate


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The data that artifacts are checked on.

    Attributes:
        inputs: Real inputs, each `(n, …)`.
        labels: Class indices `(n,)`; None where the network has no class scores, or nobody knows them.
        data: Name of the source.
        targets: Targets of the inputs as the metric takes them; None without a metric.
    """

    inputs: Batch
    labels: Tensor | None = None
    data: str = ""
    targets: Targets | None = None


class Description(Record, frozen=True, kw_only=True):
    """The description of the model in an artifact and its manifest. `variant` is "dense" or "compressed"."""

    name: str
    variant: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    plan_sha256: str = ""
    weights_sha256: str = ""


class ConversionOptions(Record, frozen=True, kw_only=True):
    """Options of one conversion.

    Attributes:
        route, layout, io, bytecode_version: See `ConversionRequest`.
        timeout_s, memory_gb: Limits of the converter's process.
        python: Interpreter that has the toolchain.
        also_python: Interpreter, e.g. of an environment with tflite-runtime, whose runtime must agree on a TFLite file too.
    """

    route: str = ""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    io: Literal["float32", "int8"] = "float32"
    bytecode_version: int | None = None
    timeout_s: float = DEFAULTS.convert_timeout_s
    memory_gb: float = DEFAULTS.convert_memory_gb
    python: str = sys.executable
    also_python: str = ""


def export_artifact(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    folder: Path,
    about: Description,
    format: str,  # noqa: A002 - the field's word
    quant: QuantSpec,
    limits: Gate,
    evidence: Evidence,
    judge: Judge | None = None,
    program: ExportedProgram | None = None,
    reference: Batch | None = None,
    calibration: Batch | None = None,
    options: ConversionOptions | None = None,
    remedy: str = "keep layers in float with --mixed-precision",
    session: FormatSession | None = None,
    track: Track = track_silently,
) -> Artifact:
    """Write `folder/NAME-SCHEME.SUFFIX` and its manifest; return the manifest.

    Args:
        limits: The gate. A file that does not pass is kept as `….rejected`, and nothing is published.
        judge: Holds the file to the dense network as well, on the evidence; what loses too much is kept aside in the same way.
        program: The result of `to_program` for `model`; computed where it is None.
        reference: The outputs of `model` on the evidence; computed where it is None.
        calibration: Calibration inputs, each `(samples, …)` in the model's layout.
        remedy: What to ask for instead of a file that loses too much.
        session: Processes of the format that run already, with limits of their own; None starts some for this file.

    Raises:
        UnsupportedError: The format lacks an op of the model, or the scheme.
        ToolchainError: The converter is missing or failed; its log stays in `folder/logs`.
        Divergence: The artifact does not pass; the message tells whether the scheme or the converter is at fault, and in which layer.
        FidelityError: The artifact is what the model is, and the model keeps too little of the dense network.
    """
    options = options or ConversionOptions()
    if options.also_python:
        require_interpreter(options.also_python)
    path = folder / artifact_name(about.name, about.variant, format, quant.scheme)
    rejected = path.with_name(f"{path.name}.rejected")
    log_name = f"{path.name}{'.' if options.route else ''}{options.route}.log"  # a second route leaves the log of the first
    with ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecompress-"))
        made = stack.enter_context(replace_atomically(path))
        session = session or stack.enter_context(closing(open_session(format, options)))
        session.start(options.route)
        request = _make_request(Path(work), made, quant, about, options, calibrated=calibration is not None)
        if program is None:
            program = to_program(model, example_inputs, name=about.name)
        program, quant, tail = keep_tail_float(program, quant, calibration or ())
        request = msgspec.structs.replace(request, layers=quant.layers)
        write_program(program, Path(request.program))
        if calibration is not None:
            save_calibration(calibration, Path(request.calibration))
        reply = session.convert(request, log=folder / "logs" / log_name)
        reply = msgspec.structs.replace(reply, notes=(*filter(None, (tail,)), *reply.notes))
        checked = check_artifact(
            made,
            ConversionSetup(program=program, session=session, request=request, calibration=calibration),
            reply,
            subject=path.name,
            limits=limits,
            inputs=evidence.inputs,
            reference=forward(model, evidence.inputs) if reference is None else reference,
            calibration_reference=forward(model, batches.take_samples(calibration, slice(CALIBRATION_SAMPLES))) if calibration else None,
            also_python=options.also_python if format == "tflite" else "",
            specs=judge.specs if judge else None,
            allows_noise=judge.allows_noise if judge else None,
            track=track,
        )
        compared = judge.judge(checked.outputs) if judge and checked.parity is not None else None
        manifest = _make_manifest(
            path, made, reply, checked, compared, judge, format=format, quant=quant, about=about, options=options, evidence=evidence
        )
        error: EdgeCompressError | None = checked.error
        if error is None and judge and compared and (lost := judge.describe_shortfall(compared)):
            bound = judge.name_bound(compared)
            error = FidelityError(f"{path.name}: too little is left of the dense network: {lost}; {remedy}, or allow more with {bound}")
        if error is not None:
            made.replace(rejected)
            write_atomically(manifest_path(rejected), to_json(manifest))
            remove_artifact(path)
            raise error
    write_atomically(manifest_path(path), to_json(manifest))
    remove_artifact(rejected)
    return manifest


def open_session(
    format: str,  # noqa: A002
    options: ConversionOptions,
    *,
    while_waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> FormatSession:
    """Return a session of a format with the limits and the interpreter of some options."""
    return FormatSession(
        format, timeout_s=options.timeout_s, memory_gb=options.memory_gb, python=options.python, while_waiting=while_waiting
    )


def _make_request(
    work: Path, output: Path, quant: QuantSpec, about: Description, options: ConversionOptions, *, calibrated: bool
) -> ConversionRequest:
    return ConversionRequest(
        program=str(work / "program.pt2"),
        output=str(output),
        scheme=quant.scheme,
        route=options.route,
        calibration=str(work / "calibration.safetensors") if calibrated else "",
        layers=quant.layers,
        io=options.io,
        layout=options.layout,
        name=about.name,
        preprocessing=about.preprocessing,
        labels=about.labels,
        bytecode_version=options.bytecode_version,
    )


def _make_manifest(
    path: Path,
    made: Path,
    reply: ConversionReply,
    checked: ArtifactCheck,
    compared: DenseComparison | None,
    judge: Judge | None,
    *,
    format: str,  # noqa: A002
    quant: QuantSpec,
    about: Description,
    options: ConversionOptions,
    evidence: Evidence,
) -> Artifact:
    """Return the manifest of the file `made`, which will be published as `path`."""
    scores = scores_of(checked.outputs, judge.specs if judge else None)
    return Artifact(
        path=path.name,
        name=path.stem,
        model=about.variant,
        format=format,
        route=options.route,
        sha256=hash_file(made),
        size_bytes=made.stat().st_size,
        quant=quant,
        inputs=reply.inputs,
        outputs=reply.outputs,
        preprocessing=about.preprocessing,
        labels=about.labels,
        plan_sha256=about.plan_sha256,
        weights_sha256=about.weights_sha256,
        toolchain=reply.toolchain,
        notes=(*reply.notes, *checked.notes),
        ops=reply.ops,
        undelegated=reply.undelegated,
        bytecode_version=reply.bytecode_version,
        parity=checked.parity,
        simulated=checked.simulated,
        departure=checked.error.departure if checked.error else None,
        top1=top1(scores, evidence.labels) if evidence.labels is not None and scores is not None else None,
        data=evidence.data,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kinds=judge.specs if judge else (),
        fidelity=compared.fidelity if compared else None,
        metric=judge.headline if judge and compared else None,
        metrics=compared.metrics if compared else {},
    )


def remove_artifact(path: Path) -> None:
    """Remove an artifact of an earlier export, which the new one has made out of date, with its manifest."""
    path.unlink(missing_ok=True)
    manifest_path(path).unlink(missing_ok=True)


def artifact_name(name: str, variant: str, format_name: str, scheme: str) -> str:
    """Return the file name of an artifact, e.g. `resnet20-int8-static.tflite` or `resnet20-dense-fp32.ptl`."""
    return f"{name}{'-dense' if variant == 'dense' else ''}-{scheme}{FORMATS[format_name].suffix}"
