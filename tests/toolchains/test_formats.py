"""ONNX and ExecuTorch files from export to accuracy: converted, checked, measured and scored as the formats of the targets are."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from support.networks import Net, digits, trained

from edgecompress.artifacts.format_session import FormatSession
from edgecompress.artifacts.publish import Description, Evidence, export_artifact
from edgecompress.devices.bench import bench
from edgecompress.devices.evaluate import evaluate
from edgecompress.errors import ToolchainError
from edgecompress.records import QuantSpec
from edgecompress.targets import FORMATS, SCHEMES


def test_a_missing_toolchain_leaves_only_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxslim.py").write_text("raise ModuleNotFoundError(\"No module named 'onnxslim'\", name='onnxslim')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"onnxslim is not installed for .*; pip install 'edgecompress\[onnx\]'"):
        export_artifact(
            trained(Net()),
            (torch.zeros(1, 1, 8, 8),),
            folder=tmp_path / "artifacts",
            about=Description(name="net", variant="dense"),
            format="onnx",
            quant=QuantSpec(scheme="fp32"),
            limits=SCHEMES["fp32"].gate,
            evidence=Evidence(inputs=(digits()[1].inputs[:8],)),
        )
    assert [path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == ["net-dense-fp32.onnx.log"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("form", ["onnx", "executorch"])
def test_every_scheme_is_checked_measured_and_scored(form: str, tmp_path: Path) -> None:
    net, (train, test) = trained(Net()), digits()
    evidence = Evidence(inputs=(test.inputs,), labels=test.labels, data="digits")
    with closing(FormatSession(form)) as session:
        manifests = [
            export_artifact(
                net,
                (torch.zeros(1, 1, 8, 8),),
                folder=tmp_path,
                about=Description(name="net", variant="compressed", labels=tuple("0123456789")),
                format=form,
                quant=QuantSpec(scheme=scheme, calibration_samples=100),
                limits=SCHEMES[scheme].gate,
                evidence=evidence,
                calibration=(train.inputs[:100],),
                session=session,
            )
            for scheme in FORMATS[form].schemes
        ]
    files = [tmp_path / manifest.path for manifest in manifests]
    assert [path.name for path in files] == [f"net-{scheme}{FORMATS[form].suffix}" for scheme in FORMATS[form].schemes]
    assert all(manifest.inputs[0].layout == "NCHW" and manifest.parity is not None for manifest in manifests)
    measured = bench(files, repetitions=5, warmup_s=0)
    assert all(len(result.latency_ms) == 5 and result.threads == 1 for result in measured)
    scored = evaluate(files, data=test, samples=100)
    assert all(result.top1 >= 0.8 for result in scored)
