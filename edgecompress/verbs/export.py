"""Convert a model to one artifact, prove it against the model, and only then publish it with its manifest."""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from edgecompress.conversion import convert
from edgecompress.distillation import is_scores, top1
from edgecompress.errors import ParityError
from edgecompress.files import replacing, sha256, write_atomic
from edgecompress.models import forward
from edgecompress.program import to_program
from edgecompress.records import Artifact, ConversionRequest, Preprocessing, QuantSpec, to_json
from edgecompress.targets import FORMATS, Scheme
from edgecompress.verification import compare, gate, manifest_path, run
from edgecompress.weights import save_state


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact is proved on: real inputs `(n, …)`, their labels if there are any, and where they came from."""

    inputs: Tensor
    labels: Tensor | None = None
    data: str = ""


def export(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    folder: Path,
    name: str,
    variant: str,
    format: str,  # noqa: A002 - the field's word
    quant: QuantSpec,
    limits: Scheme,
    evidence: Evidence,
    reference: Tensor | None = None,
    calibration: Tensor | None = None,
    route: str = "",
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = (),
    plan_sha256: str = "",
    weights_sha256: str = "",
    python: str = sys.executable,
) -> Artifact:
    """Write `folder/NAME-SCHEME.SUFFIX` and its manifest; return the manifest.

    Args:
        variant: "dense" or "compressed": which of the run's models this is.
        limits: The gate. A file that fails it is kept aside as `….rejected`, and nothing is published.
        reference: What `model` gives for the evidence, where that is known already.
        calibration: `(samples, …)` in the model's layout.

    Raises:
        UnsupportedError: The model or the scheme cannot be expressed in the format.
        ToolchainError: The converter is missing or failed; its log stays in `folder/logs`.
        ParityError: The artifact disagrees with the model.
    """
    path = folder / artifact_name(name, variant, format, quant.scheme)
    rejected = path.with_name(f"{path.name}.rejected")
    with tempfile.TemporaryDirectory(prefix="edgecompress-") as work_dir, replacing(path) as made:
        work = Path(work_dir)
        program = work / "program.pt2"
        torch.export.save(to_program(model, example_inputs, name=name), program)
        if calibration is not None:
            save_state({"input_0": calibration}, work / "calibration.safetensors")
        reply = convert(
            format,
            ConversionRequest(
                program=str(program),
                output=str(made),
                scheme=quant.scheme,
                route=route,
                calibration=str(work / "calibration.safetensors") if calibration is not None else "",
            ),
            python=python,
            log=folder / "logs" / f"{path.name}.log",
        )
        outputs = run(made, reply.inputs, evidence.inputs)
        parity = compare(outputs, forward(model, evidence.inputs) if reference is None else reference)
        manifest = Artifact(
            path=path.name,
            name=path.stem,
            model=variant,
            format=format,
            route=route,
            sha256=sha256(made),
            size_bytes=made.stat().st_size,
            quant=quant,
            inputs=reply.inputs,
            outputs=reply.outputs,
            preprocessing=preprocessing,
            labels=labels,
            plan_sha256=plan_sha256,
            weights_sha256=weights_sha256,
            toolchain=reply.toolchain,
            notes=reply.notes,
            parity=parity,
            top1=top1(outputs, evidence.labels) if evidence.labels is not None and is_scores(outputs) else None,
            data=evidence.data,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        try:
            gate(parity, limits, subject=path.name)
        except ParityError:
            made.replace(rejected)
            write_atomic(manifest_path(rejected), to_json(manifest))
            _withdraw(path)
            raise
    write_atomic(manifest_path(path), to_json(manifest))
    _withdraw(rejected)
    return manifest


def _withdraw(path: Path) -> None:
    """Remove a file of an earlier export that the one just made has made out of date."""
    path.unlink(missing_ok=True)
    manifest_path(path).unlink(missing_ok=True)


def artifact_name(name: str, variant: str, format_name: str, scheme: str) -> str:
    """Return the file name of an artifact, e.g. `resnet20-int8-static.tflite` or `resnet20-dense-fp32.ptl`."""
    return f"{name}{'-dense' if variant == 'dense' else ''}-{scheme}{FORMATS[format_name].suffix}"
