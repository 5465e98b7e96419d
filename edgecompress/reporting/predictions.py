"""The latency that a plan predicted against that of the exported file."""

from collections.abc import Sequence

from edgecompress.devices.statistics import median
from edgecompress.planning.latency_tables.table import conditions_of, describe_conditions
from edgecompress.records import Artifact, BenchmarkResult, CompressionPlan


def find_measured_ms(plan: CompressionPlan | None, artifacts: Sequence[Artifact], results: Sequence[BenchmarkResult]) -> float | None:
    """Return the newest median, in ms, of the compressed TFLite file in the plan's scheme, measured where the plan's latencies were."""
    if plan is None or plan.latency_ms is None:
        return None
    files = {a.sha256 for a in artifacts if (a.model, a.format, a.quant.scheme) == ("compressed", "tflite", plan.scheme)}
    comparable = [r for r in results if r.artifact_sha256 in files and describe_conditions(conditions_of(r)) == plan.measured_on]
    return median(max(comparable, key=lambda r: r.started_at).latency_ms) if comparable else None
