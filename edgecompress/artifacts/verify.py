"""Check a published artifact again: its hash against the manifest, its outputs against the model's."""

from pathlib import Path

import msgspec

from edgecompress.artifacts.execution import run_artifact
from edgecompress.artifacts.gate import check_other_runtime, relax_to_parity, require_parity
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import ConfigError, ParityError
from edgecompress.files import hash_file
from edgecompress.network.parity import measure_parity, relax_gate
from edgecompress.network.reference import read_reference
from edgecompress.records import Artifact, read_record
from edgecompress.targets import SCHEMES, Gate


def verify(path: Path, *, limits: Gate | None = None, also_python: str = "") -> Artifact:
    """Check a published artifact: its hash against the manifest, its outputs against the eager outputs kept beside it.

    Args:
        path: The artifact; `PATH.json` is its manifest, `reference.safetensors` in its folder the inputs and eager outputs.
        limits: The gate; the default is that of the scheme, or the numbers that the file was published with where these are worse.
        also_python: Interpreter, e.g. of an environment with tflite-runtime, whose runtime must agree on a TFLite file too.

    Returns:
        The manifest with the parity measured now.

    Raises:
        ConfigError: The artifact, its manifest or the reference is missing.
        ParityError: The manifest describes another file, or the outputs depart from the model's.
        ToolchainError: The runtime died of the file.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such artifact; name a file that was exported, or its run folder")
    if not manifest_path(path).is_file():
        raise ConfigError(f"{path}: its manifest {manifest_path(path).name} is not beside it; copy both, or export again")
    manifest = read_record(manifest_path(path), Artifact)
    if (found := hash_file(path)) != manifest.sha256:
        raise ParityError(f"{path}: its SHA-256 is {found[:12]}…, the manifest says {manifest.sha256[:12]}…; export or copy it again")
    inputs, reference = read_reference(path.parent, manifest.model)
    outputs, _ = run_artifact(path, manifest.inputs, manifest.outputs, inputs)
    try:
        parity = measure_parity(outputs, reference, manifest.kinds or None)
    except ParityError as error:
        raise ParityError(f"{path}: {error}") from error
    limits = limits or _limits_of(manifest, parity.samples)
    require_parity(parity, limits, subject=str(path))
    notes = manifest.notes
    if also_python and manifest.format == "tflite":
        notes = (
            *notes,
            check_other_runtime(path, manifest, also_python, inputs, reference, limits, subject=str(path), specs=manifest.kinds or None),
        )
    return msgspec.structs.replace(manifest, parity=parity, notes=notes)


def _limits_of(manifest: Artifact, samples: int) -> Gate:
    """Return the gate of a published artifact on `samples` samples, relaxed to the numbers that it was published with."""
    limits, published = SCHEMES[manifest.quant.scheme].gate, manifest.parity
    return relax_gate(limits if published is None else relax_to_parity(limits, published), samples)
