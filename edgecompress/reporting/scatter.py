"""A picture of points on two axes, as inline SVG like those of `plots`."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from edgecompress.reporting.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, labels, ticks


class Dot(NamedTuple):
    """A point; those with `full` are the ones to look at, `name` is what they are called in the table."""

    x: float
    y: float
    full: bool
    name: str


def scatter(dots: Sequence[Dot], *, title: str, desc: str, reference: float | None = None, label: str = "") -> Markup:
    """Draw dots over x and y; `reference` is a dashed line across at that y, with a label."""
    if not dots:
        return Markup("")
    across = _padded([dot.x for dot in dots])
    upwards = _padded([dot.y for dot in dots] + ([] if reference is None else [reference]))

    def at(x: float) -> str:
        return f"{LEFT + _share(x, across) * (WIDTH - LEFT - RIGHT):.1f}"

    def up(y: float) -> str:
        return f"{HEIGHT - BOTTOM - _share(y, upwards) * (HEIGHT - TOP - BOTTOM):.1f}"

    high, wide = ticks(*upwards, 4), ticks(*across, 5)
    parts = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{y}" dy="4" text-anchor="end">{}</text>').format(
            LEFT, WIDTH - RIGHT, LEFT - 6, text, y=up(y)
        )
        for y, text in zip(high, labels(high), strict=True)
    ]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(at(x), HEIGHT - 8, text)
        for x, text in zip(wide, labels(wide), strict=True)
    ]
    if reference is not None:
        parts.append(
            Markup(
                '<line class="reference" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="label" x="{}" y="{y}" dy="-5">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, LEFT, label, y=up(reference))
        )
    for dot in sorted(dots, key=lambda dot: dot.full):  # the full ones on top
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                "full" if dot.full else "open", at(dot.x), up(dot.y), 4 if dot.full else 3, dot.name
            )
        )
    return Markup('<svg class="plot curve" role="img" viewBox="0 0 {} {}"><title>{}</title><desc>{}</desc>{}</svg>').format(
        WIDTH, HEIGHT, title, desc, Markup("").join(parts)
    )


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Return an axis that holds all values with some room around them."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _share(value: float, axis: tuple[float, float]) -> float:
    low, high = axis
    return (value - low) / (high - low)
