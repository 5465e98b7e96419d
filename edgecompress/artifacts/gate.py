"""Decide whether a converted file passes its gate, and where it does not, find the cause and the first layer that departs.

A quantized file is also compared with a simulation of its scheme in PyTorch, which tells a harmful scheme from a wrong converter. Bisection
finds the first layer that departs. This module does not publish or remove files.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch.export import ExportedProgram

from edgecompress.artifacts.bisection import (
    GAP_DB,
    ConvertCut,
    SignalLoss,
    find_first_departure,
    largest_layer_size,
    worst_samples,
)
from edgecompress.artifacts.execution import require_interpreter, run_artifact
from edgecompress.artifacts.format_session import FormatSession
from edgecompress.errors import ConfigError, ParityError, ToolchainError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.exported import write_program
from edgecompress.network.outputs import Specs
from edgecompress.network.parity import describe_shortfalls, measure_parity, relax_gate, worst_sqnr_db
from edgecompress.network.subgraph import enclosing_modules
from edgecompress.progress import Track, track_silently
from edgecompress.quantization.calibration import save_calibration
from edgecompress.quantization.simulation import Simulation, can_simulate
from edgecompress.records import Artifact, ConversionReply, ConversionRequest, Departure, Parity, QuantSpec
from edgecompress.targets import FORMATS, Gate

SIMULATED_SAMPLES: Final = 64  # a simulation in PyTorch is slow, and the SQNR of 64 samples varies by less than 1 dB
NOISE_DB: Final = 10.0  # below 10 dB, a third of the output's amplitude is noise
CALIBRATION_SAMPLES: Final = 64  # enough to find a converter that fails on its own calibration data


class Divergence(ParityError):
    """The outputs of a file differ too much from the model's.

    Attributes:
        departure: The first layer whose output departs, where bisection found one.
    """

    def __init__(self, message: str, departure: Departure | None = None) -> None:
        super().__init__(message)
        self.departure = departure


class ConversionSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The conversion that made a file, with all that is needed to convert parts of its program in the same way.

    Attributes:
        session: The processes that convert and run files.
        calibration: `(samples, …)` for each input, in the model's layout; None without calibration.
    """

    program: ExportedProgram
    session: FormatSession
    request: ConversionRequest
    calibration: Batch | None

    @property
    def format(self) -> str:
        return self.session.format


class ArtifactCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The result of checking a file.

    Attributes:
        outputs: The file's outputs on the evidence.
        parity: The file against the model; None where they cannot be compared.
        simulated: The file against the simulation of its scheme.
        error: The reason why the file does not pass; None where it passes.
    """

    outputs: Batch
    parity: Parity | None = None
    simulated: Parity | None = None
    error: Divergence | None = None
    notes: tuple[str, ...] = ()


def gate_failure(parity: Parity, limits: Gate, loss: SignalLoss | None = None) -> str:
    """Return why a file does not pass the gate, "" when it passes.

    Args:
        parity: The file's outputs against the model's.
        loss: Of the file and of its simulated scheme; None where the scheme was not simulated.
    """
    return describe_shortfalls(parity, limits) or (noise_failure(loss) if loss is not None else "")


def noise_failure(loss: SignalLoss) -> str:
    """Return the failure of a file that is mostly noise though its scheme is not, even where top-1 agrees; "" for any other file."""
    if loss.simulated_db is None or loss.artifact_db >= NOISE_DB or loss.artifact_db >= loss.simulated_db - GAP_DB:
        return ""
    return f"SQNR {loss.artifact_db:.1f} dB, its scheme simulated in PyTorch leaves {loss.simulated_db:.1f} dB"


def require_parity(parity: Parity, limits: Gate, *, subject: str, remedy: str = "export it again") -> None:
    """Raise an error unless an artifact passes the gate.

    Raises:
        ParityError: A number is beyond its limit; the message has both.
    """
    if failed := gate_failure(parity, limits):
        raise ParityError(f"{subject}: departs from the model: {failed}; {remedy}")


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
    specs: Specs | None = None,
    allows_noise: Callable[[Batch], bool] | None = None,
    track: Track = track_silently,
) -> ArtifactCheck:
    """Run a file on the evidence and on part of its calibration data, and compare the outputs with the model's.

    Args:
        subject: Name of the file in messages.
        inputs: The evidence.
        reference: The model's outputs on the evidence.
        calibration_reference: The model's outputs on the first `CALIBRATION_SAMPLES` of the calibration data.
        also_python: Interpreter whose runtime must agree too; "" for none.
        specs: The kinds of the outputs; None guesses them from the shapes.
        allows_noise: Whether outputs on the evidence are good in spite of noise that the scheme alone explains; None: noise is limited.

    Raises:
        ToolchainError: The runtime died of the file.
    """
    n, every, wanted = batches.count_samples(inputs), inputs, reference
    if made.calibration is not None and calibration_reference is not None:
        every = _concatenate(inputs, batches.take_samples(made.calibration, slice(batches.count_samples(calibration_reference))))
        wanted = _concatenate(reference, calibration_reference)
    outputs = made.session.run_artifact(path, reply.inputs, reply.outputs, every)
    simulation = _make_simulation(made)
    parity = simulated = None
    notes: tuple[str, ...] = ()
    try:
        parity = measure_parity(batches.take_samples(outputs, slice(n)), reference, specs)
        loss = None
        if simulation is not None:
            given, few, expected = (batches.take_samples(xs, slice(min(n, SIMULATED_SAMPLES))) for xs in (inputs, outputs, reference))
            ideal = simulation.run(given)
            simulated = measure_parity(few, ideal, specs)
            if any(y.is_floating_point() for y in expected):  # integers have no noise, only other answers
                loss = SignalLoss(worst_sqnr_db(few, expected), worst_sqnr_db(ideal, expected))
        failed = gate_failure(parity, limits, loss) or _calibration_failure(outputs, wanted, n, limits, specs)
        if failed and _is_noise_of_scheme(parity, loss) and allows_noise and allows_noise(batches.take_samples(outputs, slice(n))):
            notes = (f"{failed}; {made.request.scheme} itself costs this, and the metric allows it",)
            failed, limits = "", relax_to_parity(limits, parity)
    except ParityError as error:
        failed = str(error)
    checked = ArtifactCheck(outputs=batches.take_samples(outputs, slice(n)), parity=parity, simulated=simulated)
    if failed and (not batches.has_same_shapes(outputs, wanted) or not batches.is_finite(wanted)):
        return msgspec.structs.replace(checked, error=Divergence(f"{subject}: {failed}"))
    if failed:
        divergence = _explain_failure(failed, made, simulation, every, outputs, wanted, subject=subject, track=track)
        return msgspec.structs.replace(checked, error=divergence)
    if also_python:
        try:
            other = check_other_runtime(path, reply, also_python, inputs, reference, limits, subject=subject, specs=specs)
        except ParityError as error:
            return msgspec.structs.replace(checked, error=Divergence(str(error)))
        notes = (*notes, other)
    return msgspec.structs.replace(checked, notes=notes)


def _is_noise_of_scheme(parity: Parity, loss: SignalLoss | None) -> bool:
    """Whether a file differs from the model by noise alone, which its scheme explains, and no output or channel is mostly noise."""
    worst = parity.sqnr_db if parity.values_sqnr_db is None else parity.values_sqnr_db
    return loss is not None and loss.is_scheme_at_fault is True and worst >= NOISE_DB


def relax_to_parity(limits: Gate, parity: Parity) -> Gate:
    """Return the gate relaxed to the numbers that a file was published with, where these are worse."""
    share = limits.min_agreement
    if share is not None and parity.top1_agreement is not None:
        share = min(share, parity.top1_agreement)
    sqnr_db = min(limits.min_sqnr_db, (parity.sqnr_db if parity.values_sqnr_db is None else parity.values_sqnr_db) - 3)
    max_rel = None if limits.max_rel is None else max(limits.max_rel, 2 * parity.max_rel)
    return msgspec.structs.replace(limits, max_rel=max_rel, min_agreement=share, min_sqnr_db=sqnr_db)


def _calibration_failure(outputs: Batch, wanted: Batch, start: int, limits: Gate, specs: Specs | None) -> str:
    """Return why the samples from `start` on, which are calibration data, do not pass; "" when they pass or there are none."""
    if batches.count_samples(outputs) <= start:
        return ""
    parity = measure_parity(batches.take_samples(outputs, slice(start, None)), batches.take_samples(wanted, slice(start, None)), specs)
    failed = gate_failure(parity, relax_gate(limits, parity.samples))
    return f"on calibration data: {failed}" if failed else ""


def check_other_runtime(
    path: Path,
    manifest: Artifact | ConversionReply,
    python: str,
    inputs: Batch,
    reference: Batch,
    limits: Gate,
    *,
    subject: str,
    specs: Specs | None = None,
) -> str:
    """Check an artifact, which passes here, in another interpreter's runtime by the same limits; return a note on the result.

    Raises:
        ConfigError: There is no such interpreter.
        ParityError: That runtime computes wrong outputs.
        ToolchainError: The interpreter has no runtime for the file, or its runtime refused the file or died of it.
    """
    require_interpreter(python)
    try:
        outputs, runtime = run_artifact(path, manifest.inputs, manifest.outputs, inputs, python=str(Path(python).absolute()))
    except ConfigError as error:  # the file runs here, so the user's input is right
        raise ToolchainError(f"{subject} in {python}: {error}, or take another scheme") from error
    named = f"{subject} in {runtime}"
    try:
        parity = measure_parity(outputs, reference, specs)
    except ParityError as error:
        raise ParityError(f"{named}: {error}") from error
    remedy = "here it agrees, so that runtime computes it wrongly: update the runtime there or take another scheme"
    require_parity(parity, limits, subject=named, remedy=remedy)
    told = f"top-1 agreement {parity.top1_agreement:.2%}" if parity.top1_agreement is not None else f"SQNR {parity.sqnr_db:.1f} dB"
    return f"also verified in {runtime}: {told} on {parity.samples} samples"


def _explain_failure(
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
    """Return the error with the failure, its cause, and the first layer that departs."""
    chosen = worst_samples(outputs, reference, largest_layer_size(made.program))
    batch, expected = (tuple(x[chosen] for x in xs) for xs in (inputs, reference))
    artifact_db = worst_sqnr_db(tuple(y[chosen] for y in outputs), expected)
    loss = SignalLoss(artifact_db, None if simulation is None else worst_sqnr_db(simulation.run(batch), expected))
    departure = find_first_departure(
        made.program,
        _make_cut_converter(made, batch),
        batch,
        loss=loss,
        simulation=simulation,
        samples=chosen,
        track=track,
    )
    found = f"; {describe_departure(departure)}" if departure else ""
    verdict = _describe_cause(loss, made.request.scheme, made.format, len(chosen))
    return Divergence(f"{subject}: departs from the model: {failed}{found}; {verdict}", departure)


def describe_departure(departure: Departure) -> str:
    """Return a sentence about a departure for an error message."""
    found = "NaN or infinity" if departure.found is None else f"{departure.found:.4g}"
    first = "the first layer that departs is" if departure.exact else "in the time there was, the first layer found to depart is"
    return (
        f"{first} {departure.layer} ({departure.op}): the model gives {departure.expected:.4g}, the artifact {found} "
        f"at {list(departure.index)} of sample {departure.sample} (SQNR {departure.sqnr_db:.1f} dB there)"
    )


def _describe_cause(loss: SignalLoss, scheme: str, format_name: str, samples: int) -> str:
    other = "another --tflite-route" if format_name == "tflite" else "another format"
    if loss.is_only_rounding:
        return "that is the rounding of float32 and no layer is at fault: allow more with --max-rel"
    if loss.simulated_db is None:
        return f"nothing is quantized, so the converter or its runtime is wrong: try {other}"
    told = f"of {scheme} simulated in PyTorch leave {loss.simulated_db:.1f} dB where the artifact leaves {loss.artifact_db:.1f} dB"
    if loss.is_scheme_at_fault:
        return f"the weights and activations {told}, so the scheme hurts: try more calibration samples or another scheme"
    return f"the weights and activations {told} on the {samples} worst samples, so the converter is wrong: try {other}"


def _make_simulation(made: ConversionSetup) -> Simulation | None:
    request = made.request
    quant = QuantSpec(scheme=request.scheme, layers=request.layers)
    return Simulation(made.program, quant, made.calibration or (), format=made.format) if can_simulate(quant) else None


def _make_cut_converter(made: ConversionSetup, batch: Batch) -> ConvertCut:
    """Return the function that converts a part of the program like the whole one and runs it on `batch`, the whole program's inputs."""

    def convert_cut(program: ExportedProgram, taken: tuple[int, ...], *, timeout_s: float) -> Batch:
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
            reply = made.session.convert(request, timeout_s=min(timeout_s, made.session.timeout_s))
            part = tuple(batch[i] for i in taken)
            return made.session.run_artifact(Path(request.output), reply.inputs, reply.outputs, part, timeout_s=timeout_s)

    return convert_cut


def _concatenate(first: Batch, second: Batch) -> Batch:
    return tuple(torch.cat([x, y]) for x, y in zip(first, second, strict=True))
