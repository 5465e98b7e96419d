"""The manifest that lies beside each artifact."""

from pathlib import Path

from edgecompress.errors import ConfigError
from edgecompress.files import hash_file
from edgecompress.records import Artifact, read_record


def manifest_path(path: Path) -> Path:
    """Return the path of an artifact's manifest."""
    return path.with_name(f"{path.name}.json")


def read_manifest(path: Path) -> Artifact | None:
    """Return the manifest beside an artifact, None where no manifest exists.

    Raises:
        ConfigError: The manifest belongs to other bytes.
    """
    beside = manifest_path(path)
    if not beside.is_file():
        return None
    manifest = read_record(beside, Artifact)
    if manifest.sha256 != hash_file(path):
        raise ConfigError(f"{path}: its SHA-256 is not the one in {beside.name}; it was changed after export, export it again")
    return manifest
