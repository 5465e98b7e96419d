"""Laws of accuracies in the report: differences of comparable evaluations only, and no text of a device becomes markup."""

import msgspec
import pytest
from support import report_records as run
from support.report_records import report_of

from edgecompress.devices.statistics import comparable
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.records import DeviceInfo, Parity
from edgecompress.records.evaluation import Evaluation
from edgecompress.records.metrics import MetricSpec
from edgecompress.reporting.render import render_report
from edgecompress.runs import store_result

DENSE, _, _, INT8, *_ = run.artifacts()
PHONE = DeviceInfo(url="adb://x", serial="x", model="Phone")


def evaluated(artifact, top1, **changes):
    found = Evaluation(
        session="s",
        artifact=artifact.name,
        artifact_sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        scheme=artifact.quant.scheme,
        device=PHONE,
        runner="r",
        backend="b 1",
        host_backend="b 1",
        threads=1,
        data="images",
        data_sha256="d",
        samples=100,
        classes=10,
        top1=top1,
        top5=1.0,
        host_top1=top1,
        host=Parity(max_abs=0.0, max_rel=0.0, sqnr_db=99.0, top1_agreement=1.0, samples=100),
        quantization_step=None,
        beyond_step=None,
        reference=None,
        published_top1=None,
        started_at="2026-03-02T10:00:00+00:00",
    )
    return msgspec.structs.replace(found, **changes)


def report(*evaluations):
    return report_of(artifacts=run.artifacts(), evaluations=evaluations)


def test_top1_of_the_same_samples_on_the_same_device_has_a_difference_in_points():
    (table,) = report(evaluated(DENSE, 0.93), evaluated(INT8, 0.90)).accuracies
    assert [row.change for row in table.rows] == pytest.approx([0.0, -3.0])
    assert table.reason == ""


def test_accuracies_may_be_compared_across_sessions_and_governors_but_not_across_samples():
    found = evaluated(DENSE, 0.93)
    other = msgspec.structs.replace(found.device, governor="powersave")
    assert comparable(found, msgspec.structs.replace(found, session="t", device=other)) is None
    assert comparable(found, msgspec.structs.replace(found, data_sha256="e")) == "on other samples"
    assert comparable(found, msgspec.structs.replace(found, threads=4, backend="b 2")) == (
        "with another runtime, with another number of threads"
    )


def test_another_metric_is_shown_in_its_own_unit_and_a_loss_of_it_is_negative():
    mae = MetricSpec(name="mae", higher_is_better=False, is_accuracy=False)
    other = {"metric": mae, "classes": 0, "host_top1": None, "top5": None}
    files = [evaluated(f, None, metrics={"mae": v}, host_metrics={"mae": v}, **other) for f, v in ((DENSE, 2.0), (INT8, 2.5))]
    found = report(*files, evaluated(INT8, 0.9))
    tables = {table.metric.name: table for table in found.accuracies}
    assert [(row.value, row.change) for row in tables["mae"].rows] == [(2.0, 0.0), (2.5, pytest.approx(-25.0))]
    assert [row.change for row in tables["top-1"].rows] == [None]
    page = render_report(found)
    assert "<bdi>mae</bdi> on the device" in page
    assert ">2.500<" in page


UNLIKE = (
    {"data_sha256": "e"},
    {"device": DeviceInfo(url="adb://y", serial="y")},
    {"backend": "b 2"},
    {"threads": 4},
    {"runner": "q"},
)


@pytest.mark.parametrize("change", UNLIKE, ids=lambda change: next(iter(change)))
def test_evaluations_that_are_not_comparable_have_no_difference_and_say_why(change):
    tables = report(evaluated(DENSE, 0.93), evaluated(INT8, 0.90, **change)).accuracies
    assert [row.change for table in tables for row in table.rows] == [0.0, None]
    assert "dense fp32 file was not evaluated here on these samples" in tables[1].reason


def test_a_newer_evaluation_of_a_file_takes_the_place_of_the_older():
    newer = evaluated(INT8, 0.91, started_at="2026-03-03T10:00:00+00:00")
    (table,) = report(newer, evaluated(INT8, 0.90)).accuracies
    assert [row.value for row in table.rows] == [0.91]


def test_a_file_that_is_gone_and_a_device_that_computes_something_else_are_told_first():
    gone = evaluated(INT8, 0.9, artifact_sha256="0" * 64)
    found = report(gone, evaluated(DENSE, 0.1, problem="dense on adb://x: departs from this machine"))
    assert any("a file this run no longer has; evaluate it again" in text for text in found.verdict.shortfalls)
    assert "dense on adb://x: departs from this machine" in found.verdict.shortfalls
    assert len(found.accuracies) == 1


def test_nothing_of_an_evaluation_becomes_markup():
    attack = "<script>alert(1)</script>"
    device = DeviceInfo(url=attack, serial=attack, model=attack)
    bad = msgspec.structs.replace(evaluated(INT8, 0.9, device=device, backend=attack, data=attack, problem=attack), artifact=attack)
    page = render_report(report(bad))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_evaluations_kept_in_a_run_are_read_for_its_report(tmp_path):
    record = evaluated(INT8, 0.9)
    store_result(tmp_path, record)
    assert read_run_records(tmp_path).evaluations == (record,)
    assert read_run_records(tmp_path).results == ()
