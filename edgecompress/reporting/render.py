"""Turn a `Report` into one HTML page that needs nothing else: style and pictures are inside, there is no script.

Names and texts come from model files and devices and are not trusted: Jinja2 escapes all of them, characters that steer a terminal or the
direction of text are made visible, and the page's own policy forbids scripts, requests and any style but its own.
"""

import base64
import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgecompress.reporting import numbers, plots
from edgecompress.reporting.document import Group, Report

# C0 and C1 controls but tab and newline, surrogates, and the controls of text direction (Unicode TR 36, 3.1).
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
FILTERS = (
    "size", "count", "whole", "ms", "seconds", "factor", "ratio", "percent", "points", "db", "error", "loss_change", "significant", "shape",
)  # fmt: skip


def render(report: Report) -> str:
    """Return the page. Equal reports give equal pages."""
    return page("report.html", report=report, plots=plots)


def page(template: str, **names: Any) -> str:
    """Fill a template with `names`, and with the style and its hash, which the page's policy needs."""
    templates = environment()
    style = templates.get_template("report.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return templates.get_template(template).render(style=Markup(style), style_hash=digest, **names)  # noqa: S704 (our own file)


def environment() -> Environment:
    """Return the templates with escaping on, an unknown name an error, and the number formats as filters."""
    found = Environment(
        loader=PackageLoader("edgecompress.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update({name: getattr(numbers, f"format_{name}") for name in FILTERS})
    found.filters.update({"slowest": slowest, "deviation": deviation})
    found.globals.update({"describe_change": numbers.describe_change, "factors": numbers.format_factors})
    return found


def visible(value: Any) -> Any:
    """Replace characters that would hide or reorder what is written by U+FFFD; leave markup of ours alone."""
    if isinstance(value, str):
        cleaned = UNSAFE.sub("\ufffd", value)
        return type(value)(cleaned) if isinstance(value, Markup) else cleaned
    return value


def slowest(group: Group) -> float:
    """Return the longest median of the group in ms, the end of the axis its bars share."""
    return max((row.latency.median_ms for row in group.rows if row.latency), default=0.0) or 1.0


def deviation(group: Group) -> tuple[float, float]:
    """Return the axis that the group's strips share, as fractions around each median: all bands fit, a few outliers do not stretch it."""
    bands = [(row.latency.p10_ms / row.latency.median_ms - 1, row.latency.p90_ms / row.latency.median_ms - 1)
             for row in group.rows if row.latency and row.latency.median_ms > 0]  # fmt: skip
    return 2 * min((low for low, _ in bands), default=0.0) - 0.01, 2.5 * max((high for _, high in bands), default=0.0) + 0.01
