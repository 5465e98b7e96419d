"""Laws of the report: arithmetic on the records, ratios of comparable results only, every part optional."""

import itertools
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import report_records as run
from support.report_records import dense_and_int8_results, report_of

from edgecompress.devices.statistics import comparable
from edgecompress.errors import ConfigError
from edgecompress.records import Budget, Departure, RefusedArtifact, from_json
from edgecompress.records.artifact import group_refusals
from edgecompress.records.metrics import MetricSpec
from edgecompress.records.run_records import RunRecords
from edgecompress.reporting import numbers
from edgecompress.reporting.comparison import percentile
from edgecompress.reporting.document import Report
from edgecompress.reporting.make_report import make_report
from edgecompress.reporting.render import render_report
from edgecompress.reporting.report import report

replace = msgspec.structs.replace
PARTS = tuple(run.main_records())
STEPS = dict(zip(PARTS, ("analyze", "plan", "decompose", "finetune", "quantize", "export", "bench"), strict=True))


def rows(found: Report) -> dict[str, Any]:
    return {row.artifact: row for group in reversed(found.groups) for row in group.rows} | {row.artifact: row for row in found.unmeasured}


# --- the verdict ---


def test_files_of_two_formats_with_one_name_are_told_apart_and_the_fastest_of_all_is_the_headline() -> None:
    """The file that the verdict names is the one that the table marks, whichever format was measured first."""
    stems = ("net-dense-fp32", "net-int8-static")
    made = [replace(run.artifact(f"{stem}.{suffix}"), name=stem) for suffix in ("ptl", "tflite") for stem in stems]
    measured = [run.result(a, ms, session=f"session of {a.format}") for a, ms in zip(made, (4.0, 2.0, 3.0, 0.5), strict=True)]
    found = report_of(artifacts=tuple(made), results=tuple(measured))
    assert found.verdict.artifact == "net-int8-static.tflite"
    assert found.verdict.sentence.startswith("net-int8-static.tflite is ")
    assert sorted(rows(found)) == sorted(a.path for a in made)
    chosen = re.findall(r'class="chosen">\s*<th[^>]*><bdi>([^<]*)', render_report(found))
    assert set(chosen) == {"net-int8-static.tflite"}


def test_the_network_before_training_has_no_loss() -> None:
    trained = run.finetuned()
    found = report_of(finetuned=replace(trained, epochs=(replace(trained.epochs[0], epoch=0, loss=0.0), *trained.epochs[1:])))
    assert found.training is not None
    assert found.training.epochs[0].loss is None
    assert found.training.epochs[1].loss is not None
    assert "not finite" not in render_report(found)


def test_the_verdict_is_arithmetic_on_the_records() -> None:
    parts = run.main_records()
    found = report_of(**parts)
    size, speed, int8_speed, top1, macs = found.verdict.figures
    dense, _, _, int8, *_, dense_int8 = parts["artifacts"]
    on_phone = {r.artifact: np.median(r.latency_ms) for r in parts["results"] if r.device == run.PHONE}
    assert found.verdict.artifact == int8.name
    assert size.change == dense.size_bytes / int8.size_bytes
    assert speed.change == pytest.approx(on_phone[dense.name] / on_phone[int8.name])
    assert int8_speed.change == pytest.approx(on_phone[dense_int8.name] / on_phone[int8.name])
    assert top1.change == pytest.approx(100 * (int8.top1 - dense.top1))
    assert (top1.before, top1.after) == (pytest.approx(dense.top1), int8.top1)
    assert macs.change == parts["plan"].macs / parts["plan"].macs_before
    for said in (
        numbers.format_factor(size.change),
        numbers.format_factor(speed.change),
        f"{numbers.format_factor(int8_speed.change)} faster than the dense int8-static file",
        "91.94%",
        "91.46%",
        "(−0.48 points)",
        numbers.format_ratio(macs.change),
    ):
        assert said in found.verdict.sentence
    assert found.verdict.shortfalls == ()


WORSE = {
    "larger": ({"size_bytes": 9_000_000}, "8.2× larger", "is larger than the dense fp32 file"),
    "as large": ({"size_bytes": 1_098_240}, "no smaller", ""),
    "less accurate": ({"top1": 0.85}, "(−6.94 points)", "top-1 fell by 6.94 points."),
    "more accurate": ({"top1": 0.93}, "(+1.06 points)", ""),
    "not evaluated": (
        {"top1": None, "metrics": {}, "fidelity": None},
        "what it keeps of the network as given is not known",
        "The change of top-1 is not known: top-1 of this file was not measured.",
    ),
    "on other data": ({"data": "100 holiday pictures"}, "it keeps 97.2% of output_0", "other data than resnet20-dense-fp32.tflite"),
    "not verified": ({"parity": None}, "", "was not verified against the model"),
}


@pytest.mark.parametrize(("changes", "said", "warned"), WORSE.values(), ids=WORSE)
def test_the_verdict_names_every_shortfall(changes: dict[str, Any], said: str, warned: str) -> None:
    dense, _, _, int8, *_ = run.artifacts()
    if changes.get("top1") is not None:
        changes = {**changes, "metrics": {"top-1": changes["top1"]}}
    found = report_of(artifacts=(dense, replace(int8, **changes)), results=dense_and_int8_results())
    assert said in found.verdict.sentence
    assert any(warned in text for text in found.verdict.shortfalls)
    assert "faster" in found.verdict.sentence


def test_a_report_says_which_file_is_faster_or_smaller_than_the_int8_static_one_and_why() -> None:
    dense, _, other, int8, *_ = run.artifacts()
    other = replace(other, quant=replace(other.quant, scheme="int8-dynamic"), size_bytes=int8.size_bytes - 1000)
    found = report_of(artifacts=(dense, other, int8), results=(run.result(dense, 4.0), run.result(other, 1.0), run.result(int8, 2.0)))
    said = " ".join(found.verdict.shortfalls)
    assert f"{other.path} is faster than {int8.path}, 1.0" in said
    assert f"{other.path} is smaller than {int8.path}" in said
    assert "it needs no scales of activations" in said


def test_a_slower_file_is_called_slower() -> None:
    dense, _, _, int8, *_ = run.artifacts()
    found = report_of(artifacts=(dense, int8), results=(run.result(dense, 1.0), run.result(int8, 2.0)))
    assert "2.0× slower" in found.verdict.sentence
    assert "faster" not in render_report(found)
    assert any("resnet20-int8-static.tflite is 2.0× slower than resnet20-dense-fp32.tflite on" in t for t in found.verdict.shortfalls)


def test_the_curve_of_training_is_that_of_the_metric() -> None:
    error = MetricSpec(name="px", higher_is_better=False, is_accuracy=False)
    trained = run.finetuned()
    epochs = tuple(replace(e, top1=None, metrics={"px": 9.0 - e.epoch}, divergence=0.1 / (1 + e.epoch)) for e in trained.epochs)
    scored = {"dense_metrics": {"px": 3.5}, "before_metrics": {"px": 9.0}, "metrics": {"px": 4.0}, "metric": error}
    unscored = replace(trained, epochs=epochs, dense_top1=None, before_top1=None, top1=None)
    page = render_report(report_of(finetuned=replace(unscored, **scored)))
    assert "<figcaption><bdi>px</bdi> by epoch, lower is better" in page
    assert "From 9.000 to 4.000; dense 3.500" in page
    without = render_report(report_of(finetuned=unscored))
    assert "validation divergence by epoch, lower is better" in without
    assert "<bdi>px</bdi>" not in without
    before = render_report(report_of(finetuned=trained))  # records of older versions have top-1 alone
    assert "<figcaption><bdi>top-1</bdi>, % by epoch" in before


def test_what_the_plan_refused_stands_in_the_report() -> None:
    plan = replace(run.plan(), layers=(), macs=run.plan().macs_before, notes=("A decomposition that would hurt was refused.",))
    found = report_of(stats=run.stats(), plan=plan)
    assert "leaves every layer as it is" in found.verdict.sentence
    assert any("No layer was decomposed" in text for text in found.verdict.shortfalls)
    assert "A decomposition that would hurt was refused." in render_report(found)
    why = "MACs ratio 0.1 was refused: without fine-tuning y (values) keeps 34.5% (3.7 dB); ratio 0.30 keeps 92.0% and was taken"
    taken_back = report_of(plan=replace(run.plan(), budget=Budget(macs_ratio=0.1), notes=(why,), refusal=why))
    assert taken_back.verdict.shortfalls == (f"The network would not survive the whole budget: {why}.",)
    assert why not in {note.text for note in taken_back.notes}
    half = report_of(plan=replace(run.plan(), budget=Budget(macs_ratio=0.1)))
    assert "A MACs ratio of 0.10 was asked for; the plan stops at 0.30." in half.verdict.shortfalls


def test_a_loss_that_is_not_finite_is_told_and_survives_the_file(tmp_path: Path) -> None:
    first, second, *rest = run.finetuned().epochs
    diverged = replace(run.finetuned(), epochs=(first, replace(second, loss=float("nan")), *rest))
    found = report(tmp_path, RunRecords(finetuned=diverged))
    assert found.training
    assert found.training.epochs[1].loss is None
    assert any("not finite" in text for text in found.verdict.shortfalls)
    assert "not finite" in (tmp_path / "report.html").read_text()
    assert from_json((tmp_path / "report.json").read_bytes(), Report, source="report.json") == found


# --- comparisons ---

UNLIKE = {
    "session": ({"session": "another"}, "in another session"),
    "device": ({"device": replace(run.LOCAL, url="ssh://pi@board", serial="10000000abcd")}, "on another device"),
    "emulation": ({"device": replace(run.LOCAL, emulated=True)}, "on another device"),
    "governor": ({"device": replace(run.LOCAL, governor="powersave")}, "under another governor"),
    "runtime": ({"backend": "ai-edge-litert 2.4.0"}, "with another runtime"),
    "runner": ({"runner": "benchmark_model"}, "by another runner"),
    "threads": ({"threads": 4}, "with another number of threads"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_results_that_are_not_comparable_have_no_ratio(name: str) -> None:
    changes, reason = UNLIKE[name]
    dense, _, _, int8, *_ = run.artifacts()
    found = report_of(artifacts=(dense, int8), results=dense_and_int8_results(**changes))
    row = rows(found)[int8.name]
    assert row.latency is not None
    assert row.speed_up is None
    assert comparable(*dense_and_int8_results(**changes)) == reason
    assert row.speed_reason == f"no ratio: the dense fp32 file was measured {reason}"
    assert found.verdict.figures[1].change is None
    assert "faster" not in found.verdict.sentence
    assert row.speed_reason in render_report(found)


def test_comparable_results_have_a_ratio() -> None:
    dense, _, _, int8, *_ = run.artifacts()
    a, b = dense_and_int8_results(
        device=replace(run.LOCAL, temperature_c=60.0, free_bytes=1)
    )  # what changes while measuring does not forbid it
    found = report_of(artifacts=(dense, int8), results=(a, b))
    assert len(found.groups) == 1
    assert rows(found)[int8.name].speed_up == pytest.approx(np.median(a.latency_ms) / np.median(b.latency_ms))
    assert rows(found)[dense.name].speed_up == 1


def test_without_the_dense_file_there_is_no_ratio_at_all() -> None:
    int8 = run.artifacts()[3]
    row = rows(report_of(artifacts=(int8,), results=(run.result(int8, 1.0),)))[int8.name]
    assert (row.times_smaller, row.change, row.speed_up) == (None, None, None)
    assert "no dense fp32 tflite file" in row.size_reason
    assert row.speed_reason == "no ratio: the dense fp32 file was not measured"


def test_a_result_of_replaced_bytes_is_left_out_and_told() -> None:
    dense, _, _, int8, *_ = run.artifacts()
    found = report_of(artifacts=(dense, replace(int8, sha256="f" * 64)), results=dense_and_int8_results())
    assert rows(found)[int8.name].latency is None
    assert any("a file this run no longer has" in text for text in found.verdict.shortfalls)


def test_top1_on_other_samples_is_no_difference() -> None:
    dense, _, _, int8, *_ = run.artifacts()
    assert int8.parity
    fewer = replace(int8, parity=replace(int8.parity, samples=64))
    row = rows(report_of(artifacts=(dense, fewer)))[int8.name]
    assert (row.value, row.change) == (int8.top1, None)
    assert row.metric_reason == "on 64 samples, resnet20-dense-fp32.tflite on 256"


def test_a_newer_session_of_the_same_files_replaces_the_earlier_one_and_says_so() -> None:
    dense, _, _, int8, *_ = run.artifacts()
    later = {"session": "later", "started_at": "2026-03-03T09:00:00+00:00"}
    again = (run.result(dense, 4.0, **later), run.result(int8, 0.5, **later))
    found = report_of(artifacts=(dense, int8), results=(*dense_and_int8_results(), *again))
    assert [group.session for group in found.groups] == ["later"]
    assert any("An earlier session on AMD EPYC 9B14" in note.text for note in found.notes)
    partly = report_of(artifacts=(dense, int8), results=(*dense_and_int8_results(), again[1]))
    assert len(partly.groups) == 2


def test_refused_files_are_told_first() -> None:
    refused = (RefusedArtifact(path="resnet20-int8.ptl", error="ParityError", reason="resnet20-int8.ptl: top-1 agreement\n 91.0%"),)
    found = report_of(stats=run.stats(), refused=refused)
    assert found.verdict.shortfalls[0] == "resnet20-int8.ptl was refused: top-1 agreement 91.0%"


def test_files_refused_for_one_cause_are_told_together() -> None:
    causes = {"net-fp32.ptl": "too little", "net-int8.ptl": "not made", "net-fp16.tflite": "not made"}
    refused = tuple(RefusedArtifact(path=path, error="FidelityError", reason=f"{path}: {cause}") for path, cause in causes.items())
    assert [(group.paths, group.cause) for group in group_refusals(refused)] == [
        (("net-fp32.ptl",), "too little"),
        (("net-int8.ptl", "net-fp16.tflite"), "not made"),
    ]
    found = report_of(stats=run.stats(), refused=refused)
    assert found.verdict.shortfalls[:2] == (
        "net-fp32.ptl was refused: too little",
        "net-int8.ptl, net-fp16.tflite were refused: not made",
    )
    assert {figure.reason for figure in found.verdict.figures if figure.kind in {"size", "speed"}} == {"every compressed file was refused"}


def test_the_layer_where_a_refused_file_departs_stands_in_the_page_escaped() -> None:
    departure = Departure(
        layer="<b>layer1.0.conv1</b>", op="conv2d + relu", expected=1.2345678, found=None, index=(3, 4, 5), sample=12, max_rel=None,
        sqnr_db=-200.0, simulated_db=41.25, scheme_alone=False, exact=False,
    )  # fmt: skip
    file = RefusedArtifact(path="net.tflite", error="ParityError", reason="net.tflite: departs", departure=departure)
    page = render_report(report_of(stats=run.stats(), refused=(file,)))
    table = page[page.index("Where refused files depart") :]
    table = table[: table.index("</table>")]
    assert "<b>" not in table
    for text in (
        "&lt;b&gt;layer1.0.conv1",
        "perhaps one before it",
        "1.235",
        "sample 12, 3, 4, 5",
        "NaN or infinity",
        "41.2",
        "the converter",
    ):
        assert text in table, text
    assert "Where refused files depart" not in render_report(report_of(stats=run.stats(), refused=(replace(file, departure=None),)))


def test_a_result_without_times_is_left_out_and_told() -> None:
    dense, _, _, int8, *_ = run.artifacts()
    found = report_of(artifacts=(dense, int8), results=dense_and_int8_results(latency_ms=()))
    assert rows(found)[int8.name].latency is None
    assert any("holds no time" in text for text in found.verdict.shortfalls)


def test_a_real_device_decides_before_an_emulated_one_and_this_machine() -> None:
    dense, _, _, int8, *_ = run.artifacts()
    emulated = replace(run.PHONE, url="adb://emulator-5554", serial="emulator-5554", model="sdk_gphone64", emulated=True)
    results = [run.result(a, m, device=d) for d in (emulated, run.LOCAL, run.PHONE) for a, m in ((dense, 4.0), (int8, 1.0))]
    found = report_of(artifacts=(dense, int8), results=tuple(results))
    assert [group.device.model for group in found.groups] == ["Pixel 7", "AMD EPYC 9B14", "sdk_gphone64"]
    assert "on Pixel 7" in found.verdict.sentence
    assert any("sdk_gphone64 (emulated)" in text for text in found.verdict.shortfalls)
    assert '<span class="tag">emulated</span>' in render_report(found)


BUSY = {
    "load": ({"load_average": (16.5, 17.0)}, "busy while measuring (load 16.5 on 16 cores)"),
    "unsteady": ({"latency_ms": (1.0, 2.0) * 50}, "unsteady times"),
    "this machine": ({}, "Not measured on a real phone or board"),
}


@pytest.mark.parametrize(("changes", "warned"), BUSY.values(), ids=BUSY)
def test_bad_conditions_are_told(changes: dict[str, Any], warned: str) -> None:
    dense, _, _, int8, *_ = run.artifacts()
    found = report_of(artifacts=(dense, int8), results=dense_and_int8_results(**changes))
    assert any(warned in text for text in found.verdict.shortfalls)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=40), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], p: float) -> None:
    assert percentile(values, p) == pytest.approx(np.percentile(values, p))


# --- the parts ---


@pytest.mark.parametrize("present", [set(c) for n in (0, 1, 2, 6, 7) for c in itertools.combinations(PARTS, n)], ids=lambda c: f"{len(c)}")
def test_any_part_may_be_missing_and_names_its_step(present: set[str]) -> None:
    found = report_of(**{name: value for name, value in run.main_records().items() if name in present})
    assert {gap.section for gap in found.missing} == {STEPS[name] for name in PARTS if name not in present}
    page = render_report(found)
    for gap in found.missing:
        if gap.section != "decompose" or "plan" in present:
            assert f"<code>edgecompress {gap.section} runs/resnet20</code>" in page


DEGENERATE = {
    "no layers": lambda: {"stats": replace(run.stats(), layers=(), macs=0, params=0)},
    "an empty plan": lambda: {"plan": replace(run.plan(), layers=(), skipped=(), macs_before=0, macs=0)},
    "no epochs": lambda: {"finetuned": replace(run.finetuned(), epochs=(), dense_top1=None, before_top1=None, top1=None, eval_samples=0)},
    "one epoch": lambda: {"finetuned": replace(run.finetuned(), epochs=run.finetuned().epochs[:1])},
    "no quantized layers": lambda: {"quantized": replace(run.quantized(), layers=(), specs=())},
    "exact quantization": lambda: {
        "quantized": replace(run.quantized(), layers=(replace(run.quantized().layers[0], per_channel_sqnr_db=float("inf")),))
    },
    "a clock that stands": lambda: {"artifacts": run.artifacts(), "results": dense_and_int8_results(latency_ms=(0.0, 0.0))},
    "one sample": lambda: {"artifacts": run.artifacts(), "results": dense_and_int8_results(latency_ms=(1.0,))},
    "an empty file": lambda: {"artifacts": (run.artifacts()[0], replace(run.artifacts()[3], size_bytes=0))},
    "only the baseline": lambda: {"artifacts": run.artifacts()[:1]},
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_records_at_the_edge_still_make_a_report(name: str) -> None:
    found = report_of(**DEGENERATE[name]())
    assert found.verdict.sentence.endswith(".")
    assert render_report(found) == render_report(found)


def test_every_layer_stands_once_in_the_networks_order() -> None:
    found = report_of(**run.main_records()).layers
    assert found
    assert [layer.name for layer in found.layers] == [layer.name for layer in run.stats().layers]
    assert sum(layer.macs_before for layer in found.layers) == found.macs_before
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert {layer.name: layer.why for layer in found.layers if layer.skipped} == {s.layer: s.reason for s in run.plan().skipped}


def test_the_json_is_exactly_the_report(tmp_path: Path) -> None:
    found = report(tmp_path, RunRecords(**run.main_records()))
    assert from_json((tmp_path / "report.json").read_bytes(), Report, source="report.json") == found
    assert (tmp_path / "report.html").read_text() == render_report(found)
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"report\.json: cannot be written"):
        report(tmp_path / "file", RunRecords(stats=run.stats()))


def test_commands_quote_the_folder() -> None:
    found = make_report(RunRecords(), run="my runs; rm -rf ~", created_at="2026-03-02", version="0.1.0")
    assert found.missing[0].command == "edgecompress analyze 'my runs; rm -rf ~'"
