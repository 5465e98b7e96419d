"""Prove a converted file against the model it was made from, and when that fails say who is at fault and where.

A quantized file is also held against a simulation of its scheme, so that a scheme that hurts and a converter that is wrong are told apart;
the first layer that departs is found by bisection. Nothing here decides what becomes of the file.
"""

import tempfile
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch.export import ExportedProgram

from edgecompress.artifacts.bisection import GAP_DB, Blame, ConvertCut, find_first_departure, largest_layer_size, worst_samples
from edgecompress.artifacts.converter_process import run_converter
from edgecompress.artifacts.execution import check_other_runtime, run_artifact
from edgecompress.errors import ParityError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import write_program
from edgecompress.network.parity import describe_shortfalls, measure_parity, relax_gate, worst_sqnr_db
from edgecompress.network.subgraph import enclosing_modules
from edgecompress.options import DEFAULTS
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.calibration import save_calibration
from edgecompress.quantization.simulation import Simulation, can_simulate
from edgecompress.records import ConversionReply, ConversionRequest, Departure, Parity, QuantSpec
from edgecompress.targets import FORMATS, Gate

SIMULATED_SAMPLES: Final = 64
NOISE_DB: Final = 10.0  # of what remains a third is noise
CALIBRATION_SAMPLES: Final = 64  # of the calibration data an artifact is held to as well


class Divergence(ParityError):
    """A file disagrees with its model. `departure` is the first layer that does, where one could be found."""

    departure: Departure | None = None


class ConversionSetup(msgspec.Struct, frozen=True, kw_only=True):
    """How a file was made, so that parts of its program can be converted alike. `calibration` is `(samples, …)` for each input."""

    program: ExportedProgram
    format: str
    request: ConversionRequest
    calibration: Batch | None
    python: str
    timeout_s: float = DEFAULTS.convert_timeout_s
    memory_gb: float = DEFAULTS.convert_memory_gb


class ArtifactCheck(msgspec.Struct, kw_only=True):
    """What running a file showed. `error` is set when it does not pass; `outputs` are those for the evidence."""

    outputs: Batch
    parity: Parity | None = None
    simulated: Parity | None = None
    error: Divergence | None = None
    notes: tuple[str, ...] = ()


def check_artifact(
    path: Path,
    made: ConversionSetup,
    reply: ConversionReply,
    *,
    subject: str,
    limits: Gate,
    inputs: Batch,
    reference: Batch,
    calibration_reference: Batch | None = None,
    also_python: str = "",
    track: Track = track_silently,
) -> ArtifactCheck:
    """Run a file on the evidence, and on some of its calibration data, and compare with the model.

    Args:
        reference: What the model gives for `inputs`.
        calibration_reference: What it gives for the first `CALIBRATION_SAMPLES` of the calibration data.
        also_python: An interpreter whose runtime must agree too; "" for none.

    Raises:
        ToolchainError: The file's runtime died of it.
    """
    n, every, wanted = batches.count_samples(inputs), inputs, reference
    if made.calibration is not None and calibration_reference is not None:
        every = _joined(inputs, batches.take_samples(made.calibration, slice(batches.count_samples(calibration_reference))))
        wanted = _joined(reference, calibration_reference)
    outputs, _ = run_artifact(path, reply.inputs, reply.outputs, every)
    proof = ArtifactCheck(outputs=batches.take_samples(outputs, slice(n)))
    simulation = _simulation(made)
    failed = ""
    try:
        proof.parity = measure_parity(proof.outputs, reference)
        failed = describe_shortfalls(proof.parity, limits)
        if not failed and batches.count_samples(outputs) > n:
            seen = measure_parity(batches.take_samples(outputs, slice(n, None)), batches.take_samples(wanted, slice(n, None)))
            on_calibration = describe_shortfalls(seen, relax_gate(limits, seen.samples))
            failed = f"on calibration data: {on_calibration}" if on_calibration else ""
        if simulation is not None:
            few = slice(SIMULATED_SAMPLES)
            outputs_few, simulated = batches.take_samples(proof.outputs, few), simulation.run(batches.take_samples(inputs, few))
            proof.simulated = measure_parity(outputs_few, simulated)
            left_db = [worst_sqnr_db(ys, batches.take_samples(reference, few)) for ys in (outputs_few, simulated)]
            failed = failed or noise_failure(*left_db)
    except ParityError as error:
        failed = str(error)
        if not batches.has_same_shapes(outputs, wanted) or not batches.is_finite(wanted):
            proof.error = Divergence(f"{subject}: {failed}")
            return proof
    if failed:
        proof.error = _explained(failed, made, simulation, every, outputs, wanted, subject=subject, track=track)
    elif also_python:
        try:
            proof.notes = (check_other_runtime(path, reply, also_python, inputs, reference, limits, subject=subject),)
        except ParityError as error:
            proof.error = Divergence(str(error))
    return proof


def _explained(
    failed: str,
    made: ConversionSetup,
    simulation: Simulation | None,
    inputs: Batch,
    outputs: Batch,
    reference: Batch,
    *,
    subject: str,
    track: Track,
) -> Divergence:
    """Return the error that says what failed, who is at fault, and which layer departs first."""
    chosen = worst_samples(outputs, reference, largest_layer_size(made.program))
    batch, expected = (tuple(x[chosen] for x in xs) for xs in (inputs, reference))
    artifact_db = worst_sqnr_db(tuple(y[chosen] for y in outputs), expected)
    blame = Blame(artifact_db, None if simulation is None else worst_sqnr_db(simulation.run(batch), expected))
    departure = find_first_departure(
        made.program,
        _attempt(made, batch),
        batch,
        blame=blame,
        simulation=simulation,
        samples=chosen,
        track=track,
    )
    found = f"; {describe_departure(departure)}" if departure else ""
    error = Divergence(
        f"{subject}: departs from the model: {failed}{found}; {_verdict(blame, made.request.scheme, made.format, len(chosen))}"
    )
    error.departure = departure
    return error


def noise_failure(artifact_db: float, simulated_db: float) -> str:
    """Return what is wrong with a file that is mostly noise where its scheme is not, though top-1 may agree; "" when nothing is."""
    if artifact_db >= NOISE_DB or artifact_db >= simulated_db - GAP_DB:
        return ""
    return f"SQNR {artifact_db:.1f} dB, its scheme simulated in PyTorch leaves {simulated_db:.1f} dB"


def describe_departure(departure: Departure) -> str:
    """Return a departure in words."""
    found = "NaN or infinity" if departure.found is None else f"{departure.found:.4g}"
    first = "the first layer that departs is" if departure.exact else "in the time there was, the first layer found to depart is"
    return (
        f"{first} {departure.layer} ({departure.op}): the model gives {departure.expected:.4g}, the artifact {found} "
        f"at {list(departure.index)} of sample {departure.sample} (SQNR {departure.sqnr_db:.1f} dB there)"
    )


def _verdict(blame: Blame, scheme: str, format_name: str, samples: int) -> str:
    other = "another --tflite-route" if format_name == "tflite" else "another format"
    if blame.rounding_alone:
        return "that is the rounding of float32 and no layer is at fault: allow more with --max-rel"
    if blame.simulated_db is None:
        return f"nothing is quantized, so the converter or its runtime is wrong: try {other}"
    told = f"of {scheme} simulated in PyTorch leave {blame.simulated_db:.1f} dB where the artifact leaves {blame.artifact_db:.1f} dB"
    if blame.scheme_alone:
        return f"the weights and activations {told}, so the scheme hurts: try more calibration samples or another scheme"
    return f"the weights and activations {told} on the {samples} worst samples, so the converter is wrong: try {other}"


def _simulation(made: ConversionSetup) -> Simulation | None:
    request = made.request
    quant = QuantSpec(scheme=request.scheme, layers=request.layers)
    return Simulation(made.program, quant, made.calibration or (), format=made.format) if can_simulate(quant) else None


def _attempt(made: ConversionSetup, batch: Batch) -> ConvertCut:
    """Return what converts a part of the program as the whole was and runs it on `batch`, the whole program's inputs."""

    def attempt(program: ExportedProgram, taken: tuple[int, ...], *, timeout_s: float) -> Batch:
        with tempfile.TemporaryDirectory(prefix="edgecompress-") as name:
            work = Path(name)
            write_program(program, work / "program.pt2")
            if made.calibration is not None:
                save_calibration(tuple(made.calibration[i] for i in taken), work / "calibration.safetensors")
            known = {scope for node in program.graph.nodes for scope in enclosing_modules(node)}
            request = msgspec.structs.replace(
                made.request,
                program=str(work / "program.pt2"),
                output=str(work / f"part{FORMATS[made.format].suffix}"),
                calibration=str(work / "calibration.safetensors") if made.calibration is not None else "",
                layers={layer: scheme for layer, scheme in made.request.layers.items() if layer in known},
                preprocessing=None,
                labels=(),
            )
            limit_s = min(timeout_s, made.timeout_s)
            reply = run_converter(made.format, request, timeout_s=limit_s, memory_gb=made.memory_gb, python=made.python)
            part = tuple(batch[i] for i in taken)
            return run_artifact(Path(request.output), reply.inputs, reply.outputs, part, timeout_s=timeout_s)[0]

    return attempt


def _joined(first: Batch, second: Batch) -> Batch:
    return tuple(torch.cat([x, y]) for x, y in zip(first, second, strict=True))
