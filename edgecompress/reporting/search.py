"""The page of a search: the Pareto front as a table and in pictures, every trial below it, and what was searched."""

from collections.abc import Callable

from markupsafe import Markup

from edgecompress.records import Axis, FailedTrial, SearchPoint, SearchResult
from edgecompress.reporting.numbers import format_exact, format_percent, format_ratio
from edgecompress.reporting.render import render_page
from edgecompress.reporting.scatter import Dot, draw_scatter


def render_search(result: SearchResult) -> str:
    """Return the page of a search; equal results give equal pages."""
    axes = tuple(name for name, axis in result.spec.space.items() if len(axis.values) != 1)
    return render_page(
        "search.html",
        result=result,
        axes=axes,
        format_choice=format_choice,
        references=result.references,
        ranges={name: describe_axis(axis) for name, axis in result.spec.space.items()},
        pictures=draw_pictures(result),
        changed={name: value for name, value in result.spec.options.items() if value not in ("", 0, None, [])},
    )


def format_choice(point: SearchPoint | FailedTrial, axis: str) -> str:
    """Return the value that a trial had for an option of the search space, as text."""
    value = point.choice.get(axis, "")
    return format_ratio(value) if isinstance(value, float) else str(value)


def describe_axis(axis: Axis) -> str:
    return ", ".join(map(str, axis.values)) if axis.values else f"{format_exact(axis.low)} to {format_exact(axis.high)}"


def draw_pictures(result: SearchResult) -> tuple[tuple[str, Markup], ...]:
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
        picture = draw_scatter(
            dots,
            title=f"Accuracy over {what}",
            desc=f"{len(dots)} trials, {len(result.front)} on the front",
            reference=None if dense is None else 100 * dense,
            label=f"dense {format_percent(dense)}",
        )
        made.append((f"{of}, %, over {what}, {unit}", picture))
    return tuple(made)
