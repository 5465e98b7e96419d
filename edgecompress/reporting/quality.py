"""The two proofs of a file in words: that it is what was compressed, and how much of the network as given it keeps.

Terminal and report write both with these functions. Neither torch nor numpy is imported here.
"""

from collections.abc import Iterable

from edgecompress.records import Artifact, MetricSpec, Parity
from edgecompress.records.metrics import TOP1
from edgecompress.records.outputs import Fidelity, OutputFidelity
from edgecompress.reporting.numbers import UNKNOWN, format_db, format_error, format_percent, format_share, format_whole
from edgecompress.targets import SCHEMES


def metric_of(artifact: Artifact) -> MetricSpec | None:
    """Return the metric that an artifact is judged by; top-1 where a manifest of before has no metric but that."""
    return artifact.metric or (TOP1 if artifact.top1 is not None else None)


def metric_values(artifact: Artifact) -> dict[str, float]:
    """Return the values of all metrics of an artifact by name."""
    return artifact.metrics or ({} if artifact.top1 is None else {TOP1.name: artifact.top1})


def find_metric(artifacts: Iterable[Artifact]) -> MetricSpec | None:
    """Return the metric that the artifacts of a run are judged by; None where fidelity decides."""
    return next((spec for spec in map(metric_of, artifacts) if spec), None)


def describe_conversion(parity: Parity | None, scheme: str) -> str:
    """Return the number that the gate of a scheme decided by, the worst of several: `max 1.4e−7`, `99.22% same`, `31.4 dB`."""
    if parity is None:
        return UNKNOWN
    if SCHEMES[scheme].gate.max_rel is not None:
        return f"max {format_error(parity.max_rel)}"
    same = [each for each in (parity.top1_agreement, parity.integer_agreement) if each is not None]
    parts = [f"{format_percent(min(same))} same"] if same else []
    if parity.values_sqnr_db is not None or not same:
        parts.append(f"{format_db(parity.sqnr_db if parity.values_sqnr_db is None else parity.values_sqnr_db)} dB")
    return ", ".join(parts)


def explain_conversion(parity: Parity | None, scheme: str) -> str:
    """Return the proof of conversion as a sentence."""
    if parity is None:
        return "Conversion: that the file is what was compressed was not checked."
    told = []
    if SCHEMES[scheme].gate.max_rel is not None:
        told.append(f"the largest difference is {format_error(parity.max_rel)} of the range")
    else:
        if parity.top1_agreement is not None:
            told.append(f"{format_percent(parity.top1_agreement)} of the answers are the same")
        if parity.values_sqnr_db is not None or not told:
            where = f" in {parity.worst_channel}" if parity.worst_channel else ""
            told.append(f"SQNR {format_db(parity.sqnr_db if parity.values_sqnr_db is None else parity.values_sqnr_db)} dB{where}")
    if parity.integer_agreement is not None:
        told.append(f"{format_percent(parity.integer_agreement)} of the integers are the same")
    return f"Conversion: the file is what was compressed, {', '.join(told)} on {format_whole(parity.samples)} inputs."


def explain_compression(fidelity: Fidelity | None, *, bounded: bool) -> str:
    """Return the proof of compression as a sentence, of the worst output where there are several.

    Args:
        bounded: Tell the bound, which decides where there is no metric.
    """
    if fidelity is None:
        return "Compression: how much of the network as given the file keeps was not measured; export it again."
    if (worst := fidelity.worst) is None:
        return "Compression: no output is judged, all of them are to be ignored."
    others = f", the output nearest to its bound of {len(fidelity.outputs)}" if len(fidelity.outputs) > 1 else ""
    least = f"; {format_share(worst.min_kept)} must be kept" if bounded and worst.min_kept else ""
    return (
        f"Compression: of the network as given it keeps {describe_kept(worst)}{others}, on {format_whole(fidelity.samples)} held-out inputs"
        f"{least}."
    )


def describe_kept(each: OutputFidelity) -> str:
    """Return e.g. `97.4% of output_0 (values, 31.2 dB in channel 3 of axis 1)` or `96.1% of the answers of output_0 (logits)`."""
    answers = "the answers of " if each.has_answers else ""
    return f"{format_share(each.kept)} of {answers}{each.name} ({', '.join((each.kind, *each.details))})"


def format_kept(fidelity: Fidelity | None) -> str:
    """Return how much of the network as given is kept, that of the worst output: `97.4%`."""
    worst = fidelity.worst if fidelity else None
    return UNKNOWN if worst is None else format_share(worst.kept)
