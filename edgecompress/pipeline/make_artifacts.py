"""The step `export`: every artifact of the target, converted, checked against the network and published with its manifest."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Final

import joblib
import msgspec
from torch.export import ExportedProgram

from edgecompress.artifacts.format_session import FormatSession
from edgecompress.artifacts.gate import Divergence
from edgecompress.artifacts.publish import (
    ConversionOptions,
    Description,
    artifact_name,
    export_artifact,
    open_session,
    remove_artifact,
)
from edgecompress.artifacts.routes import export_by_route, first_route
from edgecompress.artifacts.sandbox import available_memory_bytes
from edgecompress.devices.bench import bench
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import EdgeCompressError, FidelityError, ParityError, ToolchainError, UnsupportedError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.reference import write_reference
from edgecompress.network.surgery import forward
from edgecompress.network.weights import fingerprint
from edgecompress.options import gate_of, select_outputs
from edgecompress.pipeline.context import RunContext
from edgecompress.pipeline.lanes import Lane, Turn, run_lanes
from edgecompress.pipeline.latencies import LOCAL
from edgecompress.pipeline.make_calibration import CALIBRATION, schemes_of_layers
from edgecompress.pipeline.networks import export_compressed, export_trained, load_compressed, trains
from edgecompress.pipeline.steps import STEPS
from edgecompress.quantization.calibration import load_calibration
from edgecompress.quantization.quantize import quant_spec
from edgecompress.records import Artifact, CompressionPlan, ExportResult, RefusedArtifact, read_record
from edgecompress.records.artifact import CompressionCost
from edgecompress.runs import hash_values, stopwatch
from edgecompress.targets import FLOAT32, SCHEMES

Job = tuple[str, str, str]  # the variant of the network, the format and the scheme of one artifact
TOOLCHAIN_BYTES: Final = 2_000_000_000  # a toolchain and a runtime, loaded
COPIES_OF_WEIGHTS: Final = 40  # converting a ResNet-18 of 47 MB takes 2 to 4 GB
COPIES_OF_EVIDENCE: Final = 4  # in the file's layout, on disk and in the runner too


def make_artifacts(context: RunContext) -> ExportResult:
    """Publish every artifact of the target, and the dense network to compare with: in fp32 in each format, and in the preferred scheme.

    The latter shows how much of the gain quantization alone would have given. An artifact that is refused does not keep the others back:
    its error is in the result. Where the compressed network itself loses too much, one file of it is made, to be kept aside, and no other.
    Artifacts are reused one by one.
    """
    jobs = list_jobs(context)
    due = dict.fromkeys(job[1] for job in jobs if not _is_made(context, *job))
    turn, at_once = Turn(), _choose_lanes(context)
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(closing(_open_session(context, name, turn))) for name in dict.fromkeys(job[1] for job in jobs)
        }
        for name in list(due)[:at_once]:
            sessions[name].start(first_route(_choose_conversion(context, name, FLOAT32).route))  # loads while the lines below compute
        lost, aside = _find_loss(context), _choose_file_to_keep_aside(select_outputs(context.options))

        def export_format(name: str) -> Iterator[tuple[int, Artifact | RefusedArtifact]]:
            with closing(sessions[name]) as session:
                for i, job in enumerate(jobs):
                    if job[1] == name:
                        yield i, _export_job(context, session, job, lost if job[0] == "compressed" and job[1:] != aside else "")

        lanes = [Lane(partial(export_format, name), session.interrupt) for name, session in sessions.items()]
        results = stack.enter_context(run_lanes(lanes, turn, at_once=at_once))
        made = [result for _, result in sorted(context.track(results, "exporting", len(jobs)), key=itemgetter(0))]
    models = {"dense": context.dense, "compressed": load_compressed(context)}
    write_reference(context.run.path("artifacts"), context.evidence.inputs, models)
    return ExportResult(
        artifacts=tuple(result for result in made if isinstance(result, Artifact)),
        refused=tuple(result for result in made if isinstance(result, RefusedArtifact)),
        compression=_measure_compression(context),
    )


def _choose_lanes(context: RunContext) -> int:
    """Return how many formats are exported at the same time: as many as were asked for, or cores, and as memory holds."""
    o = context.options
    if o.tflite_route == "fastest":  # measures latencies
        return 1
    weights_bytes = sum(4 * p.numel() for p in context.dense.parameters())
    evidence_bytes = sum(x.numel() * x.element_size() for x in context.evidence.inputs)
    lane_bytes = TOOLCHAIN_BYTES + COPIES_OF_WEIGHTS * weights_bytes + COPIES_OF_EVIDENCE * evidence_bytes
    return max(1, min(o.jobs or joblib.cpu_count(), available_memory_bytes() // lane_bytes))


def _open_session(context: RunContext, format_name: str, turn: Turn) -> FormatSession:
    return open_session(format_name, _choose_conversion(context, format_name, FLOAT32), while_waiting=turn.pass_on)


def _export_job(context: RunContext, session: FormatSession, job: Job, lost: str) -> Artifact | RefusedArtifact:
    """Publish one artifact, or return why it is refused.

    Args:
        lost: Why the file is not made; "" where it is.
    """
    path = context.run.path("artifacts") / artifact_name(context.recipe.name, *job)
    try:
        if lost:
            remove_artifact(path)
            raise FidelityError(f"not made, since the compressed network itself loses too much: {lost}")
        return _make_artifact(context, session, *job)
    except (ParityError, FidelityError, UnsupportedError, ToolchainError) as error:
        return _describe_refusal(path.name, error, for_comparison=job[0] == "dense" and job[2] != FLOAT32)


def list_jobs(context: RunContext) -> list[Job]:
    """Return the dense files, fp32 in each format and the first integer scheme of the first format, and those of the compressed network."""
    outputs = select_outputs(context.options)
    floats = [("dense", name, FLOAT32) for name in dict.fromkeys(name for name, _ in outputs)]
    integers = [("dense", name, scheme) for name, scheme in outputs if SCHEMES[scheme].is_int8][:1]
    return [*floats, *integers, *(("compressed", *output) for output in outputs)]


def _find_loss(context: RunContext) -> str:
    """Return why no file of the compressed network can be published, with the remedy; "" where it keeps enough of the dense one."""
    judge = context.judge
    found = judge.judge(_reference_outputs(context, "compressed"))
    lost = judge.describe_shortfall(found)
    return lost and f"{lost}; {_suggest_remedy(context, 'compressed')}, or allow more with {judge.name_bound(found)}"


def _choose_file_to_keep_aside(outputs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the format and scheme that change a network least."""
    return next((output for output in outputs if output[1] == FLOAT32), outputs[0])


def _suggest_remedy(context: RunContext, variant: str) -> str:
    """Return what to ask for instead of a file that loses too much, or of all files."""
    judge = context.judge
    if variant == "dense" or not judge.describe_shortfall(judge.judge(_reference_outputs(context, "compressed"))):
        return "keep layers in float with --mixed-precision"
    plan = context.read(CompressionPlan)
    milder = (1 + plan.macs / max(1, plan.macs_before)) / 2
    longer = " or train longer (--epochs)" if context.repairs else ""
    return f"compress less, e.g. --macs-ratio {milder:.2f},{longer}".rstrip(",")


def _measure_compression(context: RunContext) -> CompressionCost:
    """Compare the compressed network itself with the dense one, on the inputs that artifacts are checked on."""
    judge = context.judge
    found = judge.judge(_reference_outputs(context, "compressed"))
    return CompressionCost(
        fidelity=found.fidelity,
        metric=judge.headline,
        dense_metrics=judge.dense_metrics,
        metrics=found.metrics,
        max_loss=None if judge.headline is None else judge.loss_limit,
        data=context.evidence.data,
    )


def _make_artifact(context: RunContext, session: FormatSession, variant: str, format_name: str, scheme: str) -> Artifact:
    """Publish one artifact, unless its key and its files are unchanged; return its manifest.

    Raises:
        ParityError, FidelityError, UnsupportedError, ToolchainError: The artifact is refused.
    """
    folder = context.run.path("artifacts")
    path = folder / artifact_name(context.recipe.name, variant, format_name, scheme)
    if _is_made(context, variant, format_name, scheme):
        return read_record(manifest_path(path), Artifact)
    layers = {} if variant == "dense" else schemes_of_layers(context, scheme)
    how = _choose_conversion(context, format_name, scheme)
    with stopwatch() as spent:
        calibration = load_calibration(context.run.path(CALIBRATION)) if SCHEMES[scheme].calibrated else None
        model = context.dense if variant == "dense" else load_compressed(context)
        make = partial(
            export_artifact,
            model,
            context.recipe.example_inputs,
            about=_describe_model(context, variant, scheme),
            format=format_name,
            quant=quant_spec(scheme, 0 if calibration is None else batches.count_samples(calibration), layers),
            limits=gate_of(scheme, context.options),
            evidence=context.evidence,
            judge=context.judge,
            program=_export_program(context, variant, scheme),
            reference=_reference_outputs(context, variant),
            calibration=calibration,
            remedy=_suggest_remedy(context, variant),
            session=session,
            track=context.track,
        )
        made = export_by_route(
            how.route,
            lambda route, inside: make(options=msgspec.structs.replace(how, route=route), folder=inside),
            folder=folder,
            medians=partial(_measure_medians, context),
        )
    step = f"artifacts/{path.name}"
    context.run.finish(step, _hash_artifact(context, variant, format_name, scheme), (step, f"{step}.json"), spent[0])
    return made


def _is_made(context: RunContext, variant: str, format_name: str, scheme: str) -> bool:
    """Whether an artifact is there, with an unchanged key and unchanged files."""
    name = artifact_name(context.recipe.name, variant, format_name, scheme)
    return context.run.is_done(f"artifacts/{name}", _hash_artifact(context, variant, format_name, scheme))


def _hash_artifact(context: RunContext, variant: str, format_name: str, scheme: str) -> str:
    """Return the key of an artifact. The toolchain's place and its limits are left out, since they change no file."""
    layers = {} if variant == "dense" else schemes_of_layers(context, scheme)
    how = _choose_conversion(context, format_name, scheme)
    lasting = msgspec.structs.replace(how, python="", timeout_s=0.0, memory_gb=0.0)
    told = (context.recipe.preprocessing, context.recipe.labels)
    o = context.options
    judged = (context.output_specs, o.max_loss, o.min_fidelity)
    asked = (variant, format_name, scheme, layers, gate_of(scheme, o), o.verify_samples, judged, told, lasting)
    calibration = context.digest("quantize") if SCHEMES[scheme].calibrated else ""
    data = context.hash_data(STEPS["export"].data)
    return hash_values(context.source, data, _digest_weights(context, variant, scheme), calibration, asked)


def _digest_weights(context: RunContext, variant: str, scheme: str) -> str:
    """Return the hash of the weights that a file is made from; "" for the dense ones, which are hashed with the source."""
    if variant == "dense":
        return ""
    return context.digest("qat" if trains(context, variant, scheme) else "finetune")


def _describe_model(context: RunContext, variant: str, scheme: str) -> Description:
    weights = _digest_weights(context, variant, scheme) if trains(context, variant, scheme) else ""
    return Description(
        name=context.recipe.name,
        variant=variant,
        preprocessing=context.recipe.preprocessing,
        labels=context.recipe.labels,
        plan_sha256="" if variant == "dense" else context.digest("plan"),
        weights_sha256=weights or (context.network.fingerprint if variant == "dense" else fingerprint(load_compressed(context))),
    )


def _export_program(context: RunContext, variant: str, scheme: str) -> ExportedProgram:
    if variant == "dense":
        return context.network.program
    return export_trained(context) if trains(context, variant, scheme) else export_compressed(context)


def _reference_outputs(context: RunContext, variant: str) -> Batch:
    """Return what an artifact is held to: the eager outputs of its network for the evidence, also where weights were trained for int8."""
    if variant == "dense":
        return context.dense_outputs
    made_from = hash_values(context.source, context.digest("finetune"), context.options.verify_samples)
    return context.remember("compressed outputs", made_from, lambda: forward(load_compressed(context), context.evidence.inputs))


def _choose_conversion(context: RunContext, format_name: str, scheme: str) -> ConversionOptions:
    """Return how a file is converted: of the run's options those that its format and scheme have a use for."""
    o, tflite = context.options, format_name == "tflite"
    return ConversionOptions(
        route=o.tflite_route if tflite else "",
        layout="NCHW" if tflite and o.layout == "NCHW" else "NHWC",
        io="int8" if tflite and o.io == "int8" and SCHEMES[scheme].can_have_int8_io else "float32",
        bytecode_version=(o.bytecode_version or None) if format_name == "torchscript" else None,
        timeout_s=o.convert_timeout_s,
        memory_gb=o.convert_memory_gb,
        also_python=o.also_python if tflite else "",
    )


def _measure_medians(context: RunContext, paths: Sequence[Path]) -> list[float]:
    results = bench(paths, device=LOCAL, threads=context.options.threads, repetitions=context.options.repetitions)
    return [median(result.latency_ms) for result in results]


def _describe_refusal(path: str, error: EdgeCompressError, *, for_comparison: bool) -> RefusedArtifact:
    kind = ParityError if isinstance(error, Divergence) else type(error)
    departure = error.departure if isinstance(error, Divergence) else None
    return RefusedArtifact(path=path, error=kind.__name__, reason=str(error), departure=departure, for_comparison=for_comparison)
