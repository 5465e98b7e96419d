"""The golden file: outputs and latencies of a device that were found good, to compare later runs of the suite with."""

from pathlib import Path

import msgspec
import numpy as np

from edgecompress.devices.statistics import comparable, median
from edgecompress.errors import ConfigError
from edgecompress.files import hash_file, write_atomically
from edgecompress.records import SCHEMA, BenchmarkResult, Record, read_record, to_json

MAX_VALUES = 4096  # of an output with more values every k-th is kept


class GoldenArtifact(Record, frozen=True, kw_only=True):
    """One artifact: its flattened `outputs` on the suite's own inputs, and its latencies."""

    artifact: str
    sha256: str
    outputs: tuple[tuple[float, ...], ...] = ()
    latency: BenchmarkResult | None = None


class Golden(Record, frozen=True, kw_only=True):
    schema: int = SCHEMA
    artifacts: tuple[GoldenArtifact, ...]


class GoldenFile:
    """Compares with the file where it exists and collects its content where it does not; without a path it does neither."""

    def __init__(self, path: Path | None, max_slowdown: float | None) -> None:
        self.path = path
        self.max_slowdown = max_slowdown
        self.collecting = path is not None and not path.exists()
        known = read_record(path, Golden).artifacts if path is not None and path.exists() else ()
        self.artifacts = {found.sha256: found for found in known}

    def check_outputs(self, artifact: Path, outputs, *, tolerance: float) -> None:
        """Assert that `outputs` are the golden ones, within `tolerance` of their range."""
        kept = tuple(tuple(thin_output(output).tolist()) for output in outputs)
        if self.collecting:
            self._add(artifact.name, hash_file(artifact), outputs=kept)
        elif self.path is not None:
            found = self._find(artifact.name, hash_file(artifact)).outputs
            assert [len(values) for values in found] == [len(values) for values in kept], f"{self.path}: outputs of another size"
            for golden, now in zip(found, kept, strict=True):
                limit = tolerance * np.ptp(golden)
                assert np.abs(np.subtract(golden, now)).max() <= limit, f"{artifact.name}: not the outputs of {self.path}"

    def check_latency(self, result: BenchmarkResult) -> str:
        """Return a sentence that compares `result` with the golden one; assert that it is not slower than allowed.

        Results under other conditions, and those of emulated devices, are not compared.
        """
        if self.collecting:
            self._add(result.artifact, result.artifact_sha256, latency=result)
            return ""
        golden = self._find(result.artifact, result.artifact_sha256).latency if self.path is not None else None
        if golden is None:
            return ""
        if reason := comparable(golden, result, any_session=True):
            return f"not compared with {self.path}: {reason}"
        if result.device.emulated:
            return f"not compared with {self.path}: emulated"
        ratio = median(result.latency_ms) / median(golden.latency_ms)
        limit = self.max_slowdown
        assert limit is None or ratio <= limit, f"{result.artifact}: {ratio:.2f} times as long as in {self.path}, {limit:g} allowed"
        return f"{ratio:.2f} times as long as in {self.path}"

    def write(self) -> None:
        """Write the content that was collected, if any."""
        if self.collecting and self.artifacts:
            write_atomically(self.path, to_json(Golden(artifacts=tuple(self.artifacts.values()))))

    def _add(self, name: str, digest: str, **found) -> None:
        before = self.artifacts.get(digest, GoldenArtifact(artifact=name, sha256=digest))
        self.artifacts[digest] = msgspec.structs.replace(before, **found)

    def _find(self, name: str, digest: str) -> GoldenArtifact:
        if digest not in self.artifacts:
            raise ConfigError(f"{self.path}: does not know {name} with SHA-256 {digest[:12]}…; name another file to write a new one")
        return self.artifacts[digest]


def thin_output(output):
    """Return at most MAX_VALUES values of an output, evenly spread."""
    flat = np.asarray(output, np.float64).ravel()
    return flat[:: -(-flat.size // MAX_VALUES)]
