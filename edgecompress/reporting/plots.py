"""Pictures as inline SVG: numbers in, markup out, without scripts or style attributes, which the page forbids.

Bars, meters, strips, dumbbells and axes are as wide as their cell: positions are percentages, so nothing is stretched. A curve has text of
its own and a fixed shape, drawn for a phone's width. Each picture has a title and a description; the same numbers stand in a table too.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

from edgecompress.reporting.numbers import format_significant, use_minus_sign

MAX_DOTS = 300  # More dots of a strip cannot be told apart and make the page heavy.
WIDTH, HEIGHT = 340, 190  # Size of a curve in px: at this width its text is readable on a phone.
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 14, 26  # Margins of a curve in px, with room for the labels of its axes.


def wrap_picture(body: Markup, *, title: str, kind: str, height: float, desc: str = "") -> Markup:
    """Wrap shapes as one picture of the width of its cell, which screen readers announce by its title."""
    described = Markup("<desc>{}</desc>").format(desc) if desc else Markup()
    return Markup('<svg class="plot {}" role="img" width="100%" height="{}"><title>{}</title>{}{}</svg>').format(
        kind, f"{height:g}", title, described, body
    )


def format_position(value: float, limit: float, start: float = 0.0) -> str:
    """Return where `value` lies on an axis from `start` to `limit`, as a percentage within the picture."""
    share = (value - start) / (limit - start) if limit > start and math.isfinite(value) else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def draw_bar(before: float, after: float, limit: float, *, title: str) -> Markup:
    """Draw a pale bar (before) with a full one (after) inside, on an axis from 0 to `limit`."""
    body = Markup(
        '<rect class="before" x="0" y="1" width="{}" height="12"/><rect class="after" x="0" y="4" width="{}" height="6"/>'
    ).format(format_position(before, limit), format_position(after, limit))
    return wrap_picture(body, title=title, kind="bar", height=14)


def draw_meter(value: float, limit: float, *, title: str, height: float = 3) -> Markup:
    """Draw one bar on an axis from 0 to `limit`."""
    body = Markup('<rect class="value" x="0" y="0" width="{}" height="{}"/>').format(format_position(value, limit), f"{height:g}")
    return wrap_picture(body, title=title, kind="meter", height=height)


def draw_strip(
    samples: Sequence[float], start: float, end: float, *, median: float, low: float, high: float, title: str, desc: str = ""
) -> Markup:
    """Draw each sample as a dot, across by value and downwards by time, so that a drift shows as a slant.

    A band shows `low` to `high`, a line the median. Samples beyond `start` or `end` stand as open dots at the edge.
    """
    step = max(1, math.ceil(len(samples) / MAX_DOTS))
    dots = Markup("").join(
        Markup('<circle class="{}" cx="{}" cy="{}" r="1.6"/>').format(
            "dot" if start <= value <= end else "beyond",
            format_position(value, end, start),
            f"{4 + 28 * index / max(len(samples) - 1, 1):.1f}",
        )
        for index, value in list(enumerate(samples))[::step]
    )
    left, right = format_position(low, end, start), format_position(high, end, start)
    width = f"{float(right[:-1]) - float(left[:-1]):.2f}%"
    band = Markup('<rect class="band" x="{}" y="0" width="{}" height="36"/>').format(left, width)
    middle = Markup('<line class="median" x1="{0}" x2="{0}" y1="0" y2="36"/>').format(format_position(median, end, start))
    return wrap_picture(band + dots + middle, title=title, kind="strip", height=36, desc=desc)


def draw_dumbbell(low: float, high: float, limit: float, *, title: str) -> Markup:
    """Draw an open dot (before) and a full one (after) joined by a line, on an axis from 0 to `limit`."""
    body = Markup(
        '<line class="track" x1="0" x2="100%" y1="7" y2="7"/><line class="join" x1="{0}" x2="{1}" y1="7" y2="7"/>'
        '<circle class="open" cx="{0}" cy="7" r="3.5"/><circle class="full" cx="{1}" cy="7" r="4"/>'
    ).format(format_position(low, limit), format_position(high, limit))
    return wrap_picture(body, title=title, kind="dumbbell", height=14)


def choose_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` + 1 round numbers (1, 2 or 5 times a power of ten apart) within `low` … `high`."""
    span = high - low
    if not 1e-12 * max(abs(low), abs(high), 1e-100) < span < math.inf:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next((factor for factor in (1, 2, 5) if span / (step * factor) <= most), 10)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, math.floor(high / step + 1e-9) + 1)]


def label_ticks(marks: Sequence[float]) -> list[str]:
    """Return the marks with as many decimals as the distance between them needs."""
    apart = marks[1] - marks[0] if len(marks) > 1 else abs(marks[0]) or 1.0
    if apart < 1e-6:
        return [format_significant(value) for value in marks]
    decimals = max(0, -math.floor(math.log10(apart) + 1e-9))
    return [use_minus_sign(f"{value:.{decimals}f}") for value in marks]


def draw_axis(start: float, end: float, *, unit: str, signed: bool = False, most: int = 5) -> Markup:
    """Draw the scale under bars or strips; the last label has the unit, and `signed` puts a plus before values above 0."""
    marks = choose_ticks(start, end, most)
    parts = []
    for value, text in zip(marks, label_ticks(marks), strict=True):
        share = (value - start) / (end - start) if end > start else 0.0
        anchor = "start" if share < 0.06 else "end" if share > 0.94 else "middle"
        label = ("+" if signed and value > 0 else "") + text + (unit if value == marks[-1] else "")
        parts.append(
            Markup('<line x1="{0}" x2="{0}" y1="0" y2="4"/><text x="{0}" y="16" text-anchor="{1}">{2}</text>').format(
                format_position(value, end, start), anchor, label
            )
        )
    return Markup(
        '<svg class="plot axis" width="100%" height="20" aria-hidden="true"><line x1="0" x2="100%" y1="0" y2="0"/>{}</svg>'
    ).format(Markup("").join(parts))


def draw_curve(
    values: Sequence[tuple[float, float | None]], *, title: str, desc: str, reference: float | None = None, label: str = ""
) -> Markup:
    """Draw y over x as a line with dots; an unknown y leaves a gap, and `reference` is a dashed line with a label.

    Args:
        values: `(x, y)` in the order of x.
    """
    known = [(x, y) for x, y in values if y is not None]
    every = [y for _, y in known] + ([reference] if reference is not None else [])
    if not known:
        return Markup("")
    low, high = min(every), max(every)
    room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room
    first, last = values[0][0], values[-1][0]

    def to_x(x: float) -> str:
        share = (x - first) / (last - first) if last > first else 0.5
        return f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"

    def to_y(y: float) -> str:
        return f"{HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"

    marks = choose_ticks(low, high, 4)
    parts = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{y}" dy="4" text-anchor="end">{}</text>').format(
            LEFT, WIDTH - RIGHT, LEFT - 6, text, y=to_y(y)
        )
        for y, text in zip(marks, label_ticks(marks), strict=True)
    ]
    whole = [x for x in choose_ticks(first, last, 7) if x == int(x)]
    parts += [Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(to_x(x), HEIGHT - 8, f"{x:g}") for x in whole]
    if reference is not None:
        parts.append(
            Markup(
                '<line class="reference" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
                '<text class="label" x="{}" y="{y}" dy="-5" text-anchor="end">{}</text>'
            ).format(LEFT, WIDTH - RIGHT, WIDTH - RIGHT, label, y=to_y(reference))
        )
    parts += [
        Markup('<polyline class="line" points="{}"/>').format(" ".join(f"{to_x(x)},{to_y(y)}" for x, y in run))
        for run in split_at_gaps(values)
    ]
    parts += [Markup('<circle class="full" cx="{}" cy="{}" r="3"/>').format(to_x(x), to_y(y)) for x, y in known]
    return Markup('<svg class="plot curve" role="img" viewBox="0 0 {} {}"><title>{}</title><desc>{}</desc>{}</svg>').format(
        WIDTH, HEIGHT, title, desc, Markup("").join(parts)
    )


def split_at_gaps(values: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Return the stretches between unknown values, each of at least two points, which a line may join."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in values:
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [run for run in found if len(run) > 1]
