"""Both proofs stand in table, page and verdict with different words, and what factorizing adds to quantization is told."""

import html
import io
import re
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console
from support import report_records as run
from support.report_records import report_of

from edgecompress.cli.views.artifacts import tabulate_artifacts
from edgecompress.cli.views.steps import STEP_VIEWS
from edgecompress.records import Artifact, ExportResult, MetricSpec, OutputSpec, RefusedArtifact
from edgecompress.reporting.document import Report
from edgecompress.reporting.render import render_report

DENSE, FP32, _, INT8, *_, DENSE_INT8 = run.artifacts()


def text_of(found: Report) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", render_report(found))).split())


def measured(*pairs: tuple[Artifact, float], **parts: Any) -> Report:
    return report_of(artifacts=tuple(a for a, _ in pairs), results=tuple(run.result(a, ms) for a, ms in pairs), **parts)


def test_the_headline_says_what_factorizing_adds_to_quantization() -> None:
    verdict = measured((DENSE, 4.0), (DENSE_INT8, 2.0), (INT8, 1.0)).verdict
    assert verdict.artifact == INT8.path
    assert "4.0× faster than the dense fp32 file, and 2.0× faster than the dense int8-static file" in verdict.sentence


def test_a_factor_of_noisy_times_says_so() -> None:
    noisy = replace(run.result(DENSE, 4.0), noisy=("times spread by 57% (MAD over median)",))
    found = report_of(artifacts=(DENSE, INT8), results=(noisy, run.result(INT8, 1.0)))
    assert "4.0× faster than the dense fp32 file on " in found.verdict.sentence
    assert ", by noisy times; " in found.verdict.sentence
    assert any(figure.kind == "speed" and figure.reason.endswith(", by noisy times") for figure in found.verdict.figures)
    assert "noisy" not in measured((DENSE, 4.0), (INT8, 1.0)).verdict.sentence


@pytest.mark.parametrize("compressed_ms", [1.01, 1.0, 2.0])
def test_the_dense_int8_file_is_recommended_by_name_where_the_compressed_one_is_not_faster(compressed_ms: float) -> None:
    found = measured((DENSE, 4.0), (DENSE_INT8, 1.0), (INT8, compressed_ms))
    assert found.verdict.artifact == DENSE_INT8.path
    assert found.verdict.sentence.startswith(f"{DENSE_INT8.path} is ")
    how = "2.0× slower" if compressed_ms == 2 else "no faster"
    assert (
        f"Take this file, the network as given in int8-static: {INT8.path} is {how} than it, though 2.6× smaller." in found.verdict.sentence
    )
    chosen = re.findall(r'class="chosen">\s*<th[^>]*><bdi>([^<]*)', render_report(found))
    assert set(chosen) == {DENSE_INT8.path}, "the bold row is the file of the headline"


def test_a_file_slower_than_its_dense_parent_says_so_beside_its_name() -> None:
    found = measured((DENSE, 4.0), (DENSE_INT8, 1.0), (INT8, 2.0), (FP32, 3.9))
    rows = {row.artifact: row.slower_than for group in found.groups for row in group.rows}
    assert rows == {DENSE.path: "", DENSE_INT8.path: "", INT8.path: DENSE_INT8.path, FP32.path: ""}
    assert f"slower than {DENSE_INT8.path}" in text_of(found)
    table = tabulate_artifacts((DENSE, DENSE_INT8, INT8), [run.result(a, ms) for a, ms in ((DENSE, 4.0), (DENSE_INT8, 1.0), (INT8, 2.0))])
    assert [cell.plain for cell in table.columns[0].cells] == [DENSE.path, DENSE_INT8.path, f"{INT8.path} (slower than dense)"]  # type: ignore[union-attr]


def test_a_dense_int8_file_that_was_refused_or_not_made_or_not_measured_is_told_and_is_no_failure() -> None:
    refused = RefusedArtifact(path=DENSE_INT8.path, error="ParityError", reason=f"{DENSE_INT8.path}: SQNR 3 dB", for_comparison=True)
    for found, said in (
        (measured((DENSE, 4.0), (INT8, 1.0), refused=(refused,)), "made only to compare with, was refused"),
        (measured((DENSE, 4.0), (INT8, 1.0)), "was not exported in int8, so what quantization alone gives is not known"),
        (report_of(artifacts=(DENSE, INT8, DENSE_INT8), results=run.dense_and_int8_results()), "was not measured beside"),
    ):
        assert sum(said in text for text in found.verdict.shortfalls) == 1
        assert not any(text.startswith(f"{DENSE_INT8.path} was refused") for text in found.verdict.shortfalls)


def test_both_proofs_stand_in_verdict_page_and_terminal_with_different_words() -> None:
    found = report_of(**run.all_records())
    conversion, compression = found.verdict.proofs
    assert conversion == "Conversion: the file is what was compressed, 99.22% of the answers are the same on 256 inputs."
    assert compression.startswith("Compression: of the network as given it keeps 97.2% of the answers of output_0 (logits)")
    page = text_of(found)
    for said in (conversion, compression, "What is left of the network as given", "· logits ( integer labels below 10 )"):
        assert said in page
    assert "agree with the model" not in page
    lines = list(STEP_VIEWS["export"].explain(ExportResult(artifacts=run.artifacts(), compression=run.compression())))
    assert lines[0] == "of the network as given the compressed one keeps: top-1 91.94% → 91.58% (−0.36 points)"
    assert lines[1].startswith("of the network as given the compressed one keeps 98.5% of the answers of output_0")


def test_without_a_metric_the_headline_is_what_the_worst_output_keeps_and_names_its_channel() -> None:
    kept = run.fidelity(0.931, kind="values", min_kept=0.9, agreement=None, sqnr_db=23.2, channel=3, channel_axis=1)
    files = [run.without_metric(a, f) for a, f in ((DENSE, run.fidelity(1.0)), (DENSE_INT8, kept), (INT8, kept))]
    found = measured(*zip(files, (4.0, 2.0, 1.0), strict=True))
    assert "; of the network as given it keeps 93.1% of output_0, and no metric has judged it" in found.verdict.sentence
    assert "(values, 23.2 dB in channel 3 of axis 1)" in found.verdict.proofs[1]
    page = text_of(found)
    assert "23.2 dB in channel 3 of axis 1" in page
    assert "top-1" not in page.replace("Top-1", "top-1")
    assert "top-1" not in [column.header for column in tabulate_artifacts(files).columns]


def test_another_metric_is_told_by_its_name_in_its_unit_and_a_loss_is_negative() -> None:
    mae = MetricSpec(name="mae", higher_is_better=False, is_accuracy=False)
    files = [replace(a, top1=None, metric=mae, metrics={"mae": v}) for a, v in ((DENSE, 2.0), (INT8, 2.5))]
    found = measured(*zip(files, (4.0, 1.0), strict=True))
    assert "mae went from 2.000 to 2.500, where lower is better (−25.00%)" in found.verdict.sentence
    assert "mae is 25.00% worse than before." in found.verdict.shortfalls
    table = tabulate_artifacts(files)
    shown = {column.header: [cell.plain for cell in column.cells] for column in table.columns}  # type: ignore[union-attr]
    assert (shown["mae"], shown["change"]) == (["2.000", "2.500"], ["–", "−25.00%"])


def test_a_manifest_of_before_still_has_its_top1_and_its_page_says_what_is_not_known() -> None:
    old = [replace(a, metric=None, metrics={}, fidelity=None, kinds=()) for a in (DENSE, INT8)]
    found = measured(*zip(old, (4.0, 1.0), strict=True))
    assert "top-1 went from 91.94% to 91.46% (−0.48 points)" in found.verdict.sentence
    assert found.compression is None
    assert "was not measured; export it again" in text_of(found)


def test_the_terminal_tells_each_outputs_kind_on_its_own_line() -> None:
    outputs = (OutputSpec(kind="probabilities", name="p", source="softmax at its end"), OutputSpec(kind="values", name="box"))
    lines = list(STEP_VIEWS["analyze"].explain(replace(run.stats(), outputs=outputs)))
    assert lines == ["output p: probabilities (softmax at its end)", "output box: values"]


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_of_artifacts_fits_a_terminal_and_loses_no_text(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tabulate_artifacts(run.artifacts(), run.results()[5:]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert "".join(line[:30].split()[0] for line in lines if line.strip()).count("resnet20") == len(run.artifacts())
