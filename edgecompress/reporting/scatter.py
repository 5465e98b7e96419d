"""Scatter plots as inline SVG, like the pictures of `plots`."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from edgecompress.reporting.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, choose_ticks, label_ticks


class Dot(NamedTuple):
    """A point of a scatter plot; `full` ones stand out, `name` is the point's name in the table."""

    x: float
    y: float
    full: bool
    name: str


def draw_scatter(dots: Sequence[Dot], *, title: str, desc: str, reference: float | None = None, label: str = "") -> Markup:
    """Draw dots over x and y; `reference` is the y of a dashed line with a label."""
    if not dots:
        return Markup("")
    across = _pad_axis([dot.x for dot in dots])
    upwards = _pad_axis([dot.y for dot in dots] + ([] if reference is None else [reference]))

    def to_x(x: float) -> str:
        return f"{LEFT + _share_of_axis(x, across) * (WIDTH - LEFT - RIGHT):.1f}"

    def to_y(y: float) -> str:
        return f"{HEIGHT - BOTTOM - _share_of_axis(y, upwards) * (HEIGHT - TOP - BOTTOM):.1f}"

    high, wide = choose_ticks(*upwards, 4), choose_ticks(*across, 5)
    parts = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{y}" dy="4" text-anchor="end">{}</text>').format(
            LEFT, WIDTH - RIGHT, LEFT - 6, text, y=to_y(y)
        )
        for y, text in zip(high, label_ticks(high), strict=True)
    ]
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(to_x(x), HEIGHT - 8, text)
        for x, text in zip(wide, label_ticks(wide), strict=True)
    ]
    if reference is not None:
        parts.append(
            Markup(
                '<line class="reference" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="label" x="{}" y="{y}" dy="-5">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, LEFT, label, y=to_y(reference))
        )
    for dot in sorted(dots, key=lambda dot: dot.full):  # the full ones on top
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                "full" if dot.full else "open", to_x(dot.x), to_y(dot.y), 4 if dot.full else 3, dot.name
            )
        )
    return Markup('<svg class="plot curve" role="img" viewBox="0 0 {} {}"><title>{}</title><desc>{}</desc>{}</svg>').format(
        WIDTH, HEIGHT, title, desc, Markup("").join(parts)
    )


def _pad_axis(values: Sequence[float]) -> tuple[float, float]:
    """Return an axis that holds all values with some room around them."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _share_of_axis(value: float, axis: tuple[float, float]) -> float:
    low, high = axis
    return (value - low) / (high - low)
