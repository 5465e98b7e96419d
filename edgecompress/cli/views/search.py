"""Views of a search: a line for each trial, and the table of the Pareto front."""

from rich.table import Table

from edgecompress.cli.views.tables import make_table
from edgecompress.records import FailedTrial, SearchPoint, SearchResult
from edgecompress.records.search import Value
from edgecompress.reporting.numbers import UNKNOWN, format_ms, format_percent, format_ratio, format_seconds, format_size


def describe_trial(number: int, outcome: SearchPoint | FailedTrial) -> str:
    """Return the choice and the outcome of a trial on one line."""
    choice = ", ".join(map(describe_value, outcome.choice.values()))
    if isinstance(outcome, FailedTrial):
        return f"  trial {number:<4} {choice}: failed: {' '.join(outcome.reason.split())}"
    s = outcome.score
    noisy = ", noisy" if outcome.noisy else ""
    spent = f"{format_seconds(outcome.seconds)} s" if outcome.trial == number else f"as trial {outcome.trial}"
    reached = f"{format_percent(s.accuracy)}, {format_ms(s.latency_ms)} ms, {format_size(s.size_bytes)}"
    return f"  trial {number:<4} {choice}: {reached}{noisy}   {spent}"


def tabulate_front(found: SearchResult) -> Table:
    """Return the Pareto front, the fastest first, below the dense network."""
    axes = [name for name, axis in found.spec.space.items() if len(axis.values) != 1]
    rows = [
        (
            f"dense .{format_name}",
            format_percent(d.accuracy),
            format_ms(d.latency_ms),
            format_size(d.size_bytes),
            *(UNKNOWN for _ in axes),
            UNKNOWN,
            "",
        )
        for format_name, d in found.references.items()
    ]
    rows += [
        (
            str(p.trial),
            format_percent(p.score.accuracy),
            format_ms(p.score.latency_ms),
            format_size(p.score.size_bytes),
            *(describe_value(p.choice[name]) for name in axes),
            p.run,
            "noisy" if p.noisy else "",
        )
        for p in found.front
    ]
    accuracy = found.points[0].accuracy_of if found.points else "accuracy"
    return make_table(("trial", accuracy, "median ms", "size", *(name.replace("_", " ") for name in axes), "run", "state"), rows)


def describe_value(value: Value) -> str:
    """Return a value of a choice; numbers have three decimals at most."""
    return format_ratio(value) if isinstance(value, float) else str(value)
