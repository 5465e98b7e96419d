"""One number has one text, in the terminal and in the report."""

import html
import re
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import report_records as run

from edgecompress.cli.views.artifacts import tabulate_artifacts, tabulate_results
from edgecompress.cli.views.steps import STEP_VIEWS
from edgecompress.reporting import numbers
from edgecompress.reporting.render import render_report

WRITTEN = [
    (numbers.format_size, 131_704, "132 kB"),
    (numbers.format_size, 1_098_240, "1.10 MB"),
    (numbers.format_size, 999_999, "1.00 MB"),
    (numbers.format_size, 1000, "1.00 kB"),
    (numbers.format_size, 850, "850 B"),
    (numbers.format_size, 5, "5 B"),
    (numbers.format_size, 0, "0 B"),
    (numbers.format_count, 31_010_000, "31.0 M"),
    (numbers.format_count, 272_474, "272 k"),
    (numbers.format_count, 999_600, "1.00 M"),
    (numbers.format_count, 2500, "2.50 k"),
    (numbers.format_count, 640, "640"),
    (numbers.format_count, 5, "5"),
    (numbers.format_whole, 10_000, "10,000"),
    (numbers.format_ms, 0.04123, "0.0412"),
    (numbers.format_ms, 0.5, "0.500"),
    (numbers.format_ms, 12.345, "12.3"),
    (numbers.format_ms, 1234.5, "1,234"),
    (numbers.format_ms, 0, "0"),
    (numbers.format_seconds, 12.34, "12.3"),
    (numbers.format_factor, 0.8, "0.80×"),
    (numbers.format_factor, 4.24, "4.2×"),
    (numbers.format_factor, 42.4, "42×"),
    (numbers.format_ratio, 0.3, "0.30"),
    (numbers.format_ratio, 0.3333, "0.333"),
    (numbers.format_ratio, 1, "1.00"),
    (numbers.format_percent, 0.91943, "91.94%"),
    (numbers.format_percent, 1, "100%"),
    (numbers.format_percent, 0.99999, "100.00%"),
    (numbers.format_share, 0.1249, "12.5%"),
    (numbers.format_points, -0.42, "−0.42"),
    (numbers.format_points, 0.42, "+0.42"),
    (numbers.format_points, 0.001, "±0.00"),
    (partial(numbers.format_metric_change, is_accuracy=True), -0.48, "−0.48"),
    (partial(numbers.format_metric_change, is_accuracy=False), -23.8, "−23.80%"),
    (numbers.format_db, -3.14, "−3.1"),
    (numbers.format_error, 1.4e-7, "1.4e−7"),
    (numbers.format_error, 0.0279, "0.028"),
    (numbers.format_loss_change, 0.0123, "+0.012"),
    (numbers.format_loss_change, -3.1e-5, "−3.1e−5"),
    (numbers.format_significant, 1.23456e-5, "1.2e−5"),
    (numbers.format_significant, 0.9999, "1.00"),
    (numbers.format_celsius, 41.52, "41.5"),
    (numbers.format_exact, -0.2860, "−0.286"),
    (numbers.format_shape, (64, 3, 7, 7), "64×3×7×7"),
    (numbers.format_shape, (), "–"),
]
OF_A_NUMBER = sorted({write for write, *_ in WRITTEN} - {numbers.format_shape, numbers.format_exact, numbers.format_whole}, key=repr)


@pytest.mark.parametrize(("write", "value", "expected"), WRITTEN)
def test_numbers_are_written_for_people(write, value, expected):
    assert write(value) == expected


@pytest.mark.parametrize("write", OF_A_NUMBER, ids=lambda write: getattr(write, "func", write).__name__)
def test_an_unknown_number_is_a_dash_and_one_that_is_not_finite_is_named(write):
    assert write(None) == "–"
    assert {write(value) for value in (float("nan"), float("inf"), -float("inf"))} == {"not finite"}


@given(st.floats(-1e12, 1e12))
def test_a_value_with_three_significant_digits_is_the_value(value):
    text = numbers.format_significant(value)
    assert float(text.replace("−", "-").replace(",", "")) == pytest.approx(value, rel=5.1e-3 if abs(value) >= 1e-4 else 0.051)


@pytest.mark.parametrize(("factor", "words"), [(4.2, ("4.2×", "faster")), (0.5, ("2.0×", "slower")), (1.02, ("", "no faster"))])
def test_a_change_is_described_by_a_factor_above_one(factor, words):
    assert numbers.describe_change(factor, "faster", "slower") == words


def test_the_command_line_may_import_the_formatter_before_anything_heavy():
    code = "import sys, edgecompress.reporting.numbers; print(*{'torch', 'numpy', 'jinja2', 'msgspec'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


LOCAL_RESULTS = [result for result in run.results() if result.device == run.LOCAL]
SHOWN_BY_BOTH = {
    "analyze": (run.stats, ("weight", "MACs", "ms")),
    "plan": (run.plan, ("rank", "MACs", "ratio", "error", "loss")),
    "decompose": (run.decomposed, ("relative error",)),
    "finetune": (run.finetuned, ("loss", "top-1", "s")),
    "quantize": (run.quantized, ("int8 per channel, dB", "per tensor, dB", "alone in int8, dB", "agrees")),
    "qat": (run.trained, ("loss", "top-1", "agrees", "SQNR, dB")),
    "export": (None, ("size", "top-1", "change", "keeps", "median ms", "speed-up", "conversion")),
    "bench": (None, ("median ms", "min–max", "peak memory")),
}


@pytest.mark.parametrize("step", SHOWN_BY_BOTH)
def test_the_terminal_writes_each_number_as_the_report_does(step):
    make, headings = SHOWN_BY_BOTH[step]
    if step == "export":
        table = tabulate_artifacts(run.artifacts(), LOCAL_RESULTS)
    else:
        table = tabulate_results(LOCAL_RESULTS) if make is None else STEP_VIEWS[step].tabulate(make())
    page = html.unescape(re.sub(r"<[^>]*>", " ", render_report(run.report_of(**run.all_records()))))
    columns = {column.header: [cell.plain for cell in column.cells] for column in table.columns}
    rows = (
        slice(len(run.stats().layers)) if step == "analyze" else slice(None)
    )  # the page does not show the total of layers timed in PyTorch
    cells = [cell for heading in headings for cell in columns[heading][rows] if cell not in {"", "–", "1.00"}]
    assert cells
    assert [cell for cell in cells if not re.search(rf"(?<![\w.,]){re.escape(cell)}(?![\w.,]\w)", page)] == []
