"""The page of a search: the Pareto front as a table and in pictures, every trial below it, and what was searched."""

from collections.abc import Callable

from markupsafe import Markup

from edgecompress.records import Axis, FailedTrial, SearchPoint, SearchResult
from edgecompress.reporting.numbers import format_exact, format_percent, format_ratio
from edgecompress.reporting.render import page
from edgecompress.reporting.scatter import Dot, scatter


def render(result: SearchResult) -> str:
    """Return the page. Equal results give equal pages."""
    axes = tuple(name for name, axis in result.spec.space.items() if len(axis.values) != 1)
    return page(
        "search.html",
        result=result,
        axes=axes,
        chosen=chosen,
        references=result.references,
        ranges={name: described(axis) for name, axis in result.spec.space.items()},
        pictures=pictures(result),
        changed={name: value for name, value in result.spec.options.items() if value not in ("", 0, None, [])},
    )


def chosen(point: SearchPoint | FailedTrial, axis: str) -> str:
    """Return what a trial took on an axis, as text."""
    value = point.choice.get(axis, "")
    return format_ratio(value) if isinstance(value, float) else str(value)


def described(axis: Axis) -> str:
    return ", ".join(map(str, axis.values)) if axis.values else f"{format_exact(axis.low)} to {format_exact(axis.high)}"


def pictures(result: SearchResult) -> tuple[tuple[str, Markup], ...]:
    """Return (caption, picture) of accuracy over latency and over size."""
    dense = max((point.dense.accuracy for point in result.points if point.dense), default=None)
    of = result.points[0].accuracy_of if result.points else ""
    made = []
    places: tuple[tuple[str, str, Callable[[SearchPoint], float]], ...] = (
        ("latency", "ms", lambda point: point.score.latency_ms),
        ("size", "kB", lambda point: point.score.size_bytes / 1e3),
    )
    for what, unit, place in places:
        dots = [Dot(place(p), 100 * p.score.accuracy, p.on_front, f"trial {p.trial}") for p in result.points]
        picture = scatter(
            dots,
            title=f"Accuracy over {what}",
            desc=f"{len(dots)} trials, {len(result.front)} on the front",
            reference=None if dense is None else 100 * dense,
            label=f"dense {format_percent(dense)}",
        )
        made.append((f"{of}, %, over {what}, {unit}", picture))
    return tuple(made)
