"""The report shows every number of mixed precision and of quantization-aware training, where these were asked for."""

from pathlib import Path

import msgspec
import pytest
from support import report_records as run
from support.report_records import report_of
from support.runs import FILES

from edgecompress.options import Options
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.records import LayerPrecision, to_json
from edgecompress.reporting.render import render_report
from edgecompress.runs import open_run

PLAN = msgspec.structs.replace(
    run.precision(),
    layers=(
        LayerPrecision(
            layer="conv1<i>", scheme="fp32", alone_sqnr_db=12.3, alone_agreement=0.875, why="sensitivity 1 of 2, one of the 1 kept"
        ),
        LayerPrecision(layer="layer1.0.conv1", scheme="int8-static", alone_sqnr_db=45.6, why="not needed"),
    ),
    note="float layers alone do not mend it",
)
QAT = msgspec.structs.replace(run.trained(), data="Fashion-MNIST <i>")
QUANTIZED = msgspec.structs.replace(run.quantized(), precision=PLAN)


def section(page: str) -> str:
    page = page[page.index('id="quantization"') :]
    return page[: page.index("</section>")]


def test_a_precision_plan_stands_in_the_report_with_each_layers_sensitivity() -> None:
    found = report_of(quantized=QUANTIZED)
    assert found.quantization
    assert found.quantization.precision == PLAN
    text = section(render_report(found))
    assert "2 of 3 layers are in another scheme than int8-static, 1 of them by hand" in text
    for said in (
        "12.3 dB",
        "87.50%",
        "45.6 dB",
        "one of the 1 kept",
        "as asked",
        "10.1 dB",
        "30.2 dB",
        "90.00%",
        "99.50%",
        "99.00%",
        PLAN.note,
    ):
        assert said in text, said
    assert "conv1&lt;i&gt;" in text
    assert "<i>" not in text


def test_training_under_int8_stands_in_the_report_epoch_by_epoch() -> None:
    found = report_of(quantized=QUANTIZED, qat=QAT)
    assert found.qat == QAT
    text = section(render_report(found))
    for said in (
        "only rounded",
        "epoch 1",
        "0.123",
        "4.5",
        "90.50%",
        "91.70%",
        "95.40%",
        "99.10%",
        "18.2 dB",
        "27.9 dB",
        "10,000",
        "a note",
    ):
        assert said in text, said
    assert "<i>" not in text


def test_a_report_mentions_neither_mixed_precision_nor_int8_training_unless_asked_for() -> None:
    text = section(render_report(report_of(quantized=msgspec.structs.replace(QUANTIZED, precision=None))))
    assert "Mixed precision" not in text
    assert "Training under" not in text


@pytest.mark.parametrize("epochs", [0, 2])
def test_training_of_an_earlier_export_is_not_told_of_a_later_one(tmp_path: Path, epochs: int) -> None:
    with open_run(tmp_path / "run", name="net", recipe="net.py") as opened:
        opened.set_options(Options(qat_epochs=epochs))
    (tmp_path / "run" / FILES["qat"]).write_bytes(to_json(QAT))
    assert read_run_records(tmp_path / "run").qat == (QAT if epochs else None)
