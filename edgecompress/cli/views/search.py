"""Views of a search: a line for each trial, and the table of the Pareto front."""

from rich.table import Table

from edgecompress.cli.numbers import ms, percent, size
from edgecompress.cli.views.tables import make_table
from edgecompress.records import FailedTrial, SearchPoint, SearchResult
from edgecompress.records.search import Value


def describe_trial(number: int, outcome: SearchPoint | FailedTrial) -> str:
    """Return the choice and the outcome of a trial on one line."""
    choice = ", ".join(map(describe_value, outcome.choice.values()))
    if isinstance(outcome, FailedTrial):
        return f"  trial {number:<4} {choice}: failed: {' '.join(outcome.reason.split())}"
    s = outcome.score
    noisy = ", noisy" if outcome.noisy else ""
    spent = f"{outcome.seconds:.1f} s" if outcome.trial == number else f"as trial {outcome.trial}"
    return f"  trial {number:<4} {choice}: {percent(s.accuracy)}, {ms(s.latency_ms)} ms, {size(s.size_bytes)}{noisy}   {spent}"


def tabulate_front(found: SearchResult) -> Table:
    """Return the Pareto front, the fastest first, below the dense network."""
    axes = [name for name, axis in found.spec.space.items() if len(axis.values) != 1]
    rows = [
        (f"dense .{format_name}", percent(d.accuracy), ms(d.latency_ms), size(d.size_bytes), *("–" for _ in axes), "–", "")
        for format_name, d in found.references.items()
    ]
    rows += [
        (
            str(p.trial),
            percent(p.score.accuracy),
            ms(p.score.latency_ms),
            size(p.score.size_bytes),
            *(describe_value(p.choice[name]) for name in axes),
            p.run,
            "noisy" if p.noisy else "",
        )
        for p in found.front
    ]
    accuracy = found.points[0].accuracy_of if found.points else "accuracy"
    return make_table(("trial", accuracy, "median ms", "size", *(name.replace("_", " ") for name in axes), "run", "state"), rows)


def describe_value(value: Value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
