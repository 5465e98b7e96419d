"""Render a `Report` as one HTML page with style and pictures inside and without scripts.

Names and texts come from model files and devices and are not trusted: Jinja2 escapes all of them, control characters and those that change
the direction of text become U+FFFD, and the page's own policy forbids scripts, requests and any style but its own.
"""

import base64
import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgecompress.records import Fidelity
from edgecompress.reporting import numbers, plots, quality
from edgecompress.reporting.document import Group, Report

# C0 and C1 controls but tab and newline, surrogates, and the controls of text direction (Unicode TR 36, 3.1).
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
FILTERS = (
    "size", "count", "whole", "ms", "seconds", "factor", "ratio", "percent", "points", "share", "metric", "metric_change", "db", "error",
    "loss_change", "significant",
    "shape",
)  # fmt: skip


def render_report(report: Report) -> str:
    """Return the page of a report; equal reports give equal pages."""
    return render_page("report.html", report=report, plots=plots)


def render_page(template: str, **names: Any) -> str:
    """Fill a template with `names`, and with the style and its hash, which the page's policy needs."""
    templates = make_environment()
    style = templates.get_template("report.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return templates.get_template(template).render(style=Markup(style), style_hash=digest, **names)  # noqa: S704 (our own file)


def make_environment() -> Environment:
    """Return the templates with escaping on, an unknown name an error, and the number formats as filters."""
    found = Environment(
        loader=PackageLoader("edgecompress.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=replace_unsafe_characters,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update({name: getattr(numbers, f"format_{name}") for name in FILTERS})
    found.filters.update({"time_axis_end": find_time_axis_end, "deviation_axis": find_deviation_axis})
    found.filters.update({"kept": quality.format_kept, "kept_details": summarize_kept})
    found.filters.update({"conversion": quality.describe_conversion})
    found.globals.update({"describe_change": numbers.describe_change, "factors": numbers.format_factors})
    return found


def replace_unsafe_characters(value: Any) -> Any:
    """Replace characters that would hide or reorder text by U+FFFD, in strings and in our own markup; other values stay."""
    if isinstance(value, str):
        cleaned = UNSAFE.sub("\ufffd", value)
        return type(value)(cleaned) if isinstance(value, Markup) else cleaned
    return value


def summarize_kept(fidelity: Fidelity | None) -> str:
    """Return which output of several is kept least, its kind and the numbers beside it, for the line below the kept fraction."""
    worst = fidelity.worst if fidelity else None
    if fidelity is None or worst is None:
        return "not measured" if fidelity is None else "no output is judged"
    name = (worst.name,) if len(fidelity.outputs) > 1 else ()
    return ", ".join((*name, worst.kind, *worst.details))


def find_time_axis_end(group: Group) -> float:
    """Return the end, in ms, of the axis that the bars of a group share: its longest median."""
    return max((row.latency.median_ms for row in group.rows if row.latency), default=0.0) or 1.0


def find_deviation_axis(group: Group) -> tuple[float, float]:
    """Return the axis that the strips of a group share, as fractions of each median: every band of p10 to p90 fits, outliers may not."""
    bands = [(row.latency.p10_ms / row.latency.median_ms - 1, row.latency.p90_ms / row.latency.median_ms - 1)
             for row in group.rows if row.latency and row.latency.median_ms > 0]  # fmt: skip
    return 2 * min((low for low, _ in bands), default=0.0) - 0.01, 2.5 * max((high for _, high in bands), default=0.0) + 0.01
