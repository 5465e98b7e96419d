"""Laws of the report's pictures: round ticks, well-formed SVG, every mark inside its picture."""

from xml.etree import ElementTree as ET

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.reporting import plots

finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(finite, finite)
def test_ticks_are_round_few_and_within(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    marks = plots.choose_ticks(low, high)
    assert len(marks) <= 7
    assert len(plots.label_ticks(marks)) == len(marks) if marks else True
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert all(low - slack <= mark <= high + slack for mark in marks)


@settings(max_examples=50, deadline=None)  # the first call loads the templates
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=500), st.text(max_size=20))
def test_plots_are_well_formed_and_stay_inside(samples: list[float], name: str) -> None:
    title = "".join(c for c in name if c.isprintable())
    middle = float(np.median(samples))
    drawn = [
        plots.draw_strip(samples, 0.5 * middle, 1.5 * middle, median=middle, low=min(samples), high=max(samples), title=title),
        plots.draw_bar(max(samples), middle, max(samples), title=title),
        plots.draw_dumbbell(min(samples), max(samples), middle, title=title),
        plots.draw_curve([*enumerate(samples), (len(samples), None)], title=title, desc=title, reference=middle, label=title),
        plots.draw_axis(0, middle, unit=" ms"),
    ]
    for picture in drawn:
        root = ET.fromstring(picture)
        shares = [float(v[:-1]) for e in root.iter() for v in e.attrib.values() if v.endswith("%")]
        assert all(0 <= share <= 100 for share in shares)
        assert root.get("aria-hidden") or root.findtext("title") == title
        assert len(root.findall("circle[@r='1.6']")) <= plots.MAX_DOTS


def test_a_curve_leaves_a_gap_where_nothing_is_known() -> None:
    drawn = plots.draw_curve([(0, 1.0), (1, 2.0), (2, None), (3, 1.5), (4, 1.0)], title="t", desc="d")
    assert drawn.count("<polyline") == 2
    assert plots.draw_curve([(0, None)], title="t", desc="d") == ""
