"""The same from Python: the ten lines that the guide to Python shows, one call with its options and refusals, and the verbs one by one."""

import copy
import re

import msgspec
import pytest
import torch
from support.networks import Net, digits, trained
from support.paths import REPOSITORY
from support.runs import contents
from torch import nn
from torch.nn import functional as F

import edgecompress
from edgecompress import records
from edgecompress.artifacts.publish import Description, Evidence
from edgecompress.artifacts.publish import export_artifact as export_one
from edgecompress.data import Samples
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.surgery import forward
from edgecompress.quantization.quantize import quant_spec
from edgecompress.records.run_records import RunRecords
from edgecompress.runs import read_run
from edgecompress.targets import SCHEMES

GUIDE = REPOSITORY / "docs" / "guide" / "python.md"
MARK = "# the whole job from Python"
X = (torch.zeros(1, 1, 8, 8),)
# One short epoch does not bring a network back, so no loss is too large here.
ONE = {
    "target": "android",
    "format": ("torchscript",),
    "scheme": ("fp32",),
    "epochs": 1,
    "epoch_samples": 400,
    "verify_samples": 100,
    "max_loss": 100.0,
}


class Framed(nn.Module):
    """The network for digits that stand in the middle of 28×28 pixels, three a side for each of their own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(F.avg_pool2d(x[:, :, 2:26, 2:26], 3))


def framed(samples):
    x = F.pad(samples.inputs.repeat_interleave(3, 2).repeat_interleave(3, 3), (2, 2, 2, 2))
    return Samples(x, samples.labels, source=f"framed {samples.source}")


@pytest.mark.slow
def test_what_the_guide_to_python_shows_runs(net, tmp_path, monkeypatch, capsys):
    blocks = [b for b in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if b.startswith(MARK)]
    assert len(blocks) == 1, f"{GUIDE} has {len(blocks)} blocks that start with {MARK!r}"
    lines = [line for line in blocks[0].splitlines() if line.strip() and not line.startswith(("#", "import"))]
    assert len(lines) <= 10
    monkeypatch.chdir(tmp_path)
    train, test = map(framed, digits())
    model = Framed(net)
    scores = forward(model, (test.inputs,))[0].topk(2).values
    sure = (scores[:, 0] - scores[:, 1]).argsort()[-150:]  # int8 must agree on 98 of 100, and a network this small has many near ties
    names = {"model": model, "train": train, "test": Samples(test.inputs[sure], test.labels[sure], source="clear digits")}
    exec(compile(blocks[0], GUIDE.name, "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == len(names["result"].artifacts) == 6
    assert (tmp_path / "runs" / "framed" / "report.html").exists()


def test_the_steps_that_the_guide_to_python_shows_run(net, capsys):
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if b.startswith("# step by step")]
    train, test = digits()
    names = {"model": net, "train": train, "test": test}
    exec(compile(block, GUIDE.name, "exec"), names)
    ratio, before, after = map(float, capsys.readouterr().out.split())
    assert ratio <= 0.4
    assert after > before


def test_one_call_leaves_the_model_alone_and_continues_where_it_was(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, test = digits()
    before = copy.deepcopy(net.state_dict())
    net.train()
    made = edgecompress.export(net, X, train_data=train, eval_data=test, labels=tuple("0123456789"), **ONE)
    assert net.training
    net.eval()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [a.path for a in made.artifacts] == ["net-dense-fp32.ptl", "net-fp32.ptl"]
    run = tmp_path / "runs" / "net"
    assert read_run(run).recipe == "python"
    files = contents(run / "artifacts")
    assert edgecompress.export(net, X, train_data=train, eval_data=test, labels=tuple("0123456789"), **ONE) == made
    assert contents(run / "artifacts") == files
    _refusals_leave_it_usable(net, run)
    _other_data_are_seen(net, run)


def _refusals_leave_it_usable(net, run):
    train, test = digits()
    before = contents(run)
    for given, message in (
        ({"colour": 1}, "unknown option 'colour'"),
        ({"epoch": 1}, "did you mean epochs?"),
        ({"epochs": "many"}, "options: "),
        ({"method": "cp"}, "unknown method 'cp'"),
        ({"target": "iphone"}, "unknown target 'iphone'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            edgecompress.export(net, X, run=run, train_data=train, eval_data=test, labels=tuple("0123456789"), **ONE | given)
    assert contents(run) == before


def _other_data_are_seen(net, run):
    """A set of another name or length is another set."""
    train, test = digits()
    fewer = Samples(train.inputs[:300], train.labels[:300], source="the first 300")
    steps = read_run(run).steps
    with pytest.raises(ConfigError, match="lower --learning-rate"):
        edgecompress.export(net, X, run=run, train_data=fewer, eval_data=test, **ONE | {"learning_rate": 1e30})
    assert read_run(run).steps["plan"].made_from != steps["plan"].made_from


def test_a_model_torch_export_cannot_take_is_refused(tmp_path):
    class Moody(Net):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) < 1e9 else super().forward(-x)

    train, test = digits()
    with pytest.raises(UnsupportedError, match=r"torch\.export cannot take it: .*; "):
        edgecompress.export(trained(Moody(), 1), X, run=tmp_path / "r", train_data=train, eval_data=test, **ONE)
    assert not (tmp_path / "r" / "plan.json").exists()  # before anything long has run
    assert not (tmp_path / "r" / "artifacts").exists()


def test_the_verbs_one_by_one(net, tmp_path):
    """Records in, records out, no run folder."""
    train, test = digits()
    stats = edgecompress.analyze(net, X, measure=False)
    plan = edgecompress.plan(net, stats, macs_ratio=0.4, inputs=(train.inputs[:64],))
    assert plan.macs <= 0.4 * stats.macs
    compact, decomposed = edgecompress.decompose(net, plan)
    assert set(decomposed.relative_errors) == {layer.layer for layer in plan.layers}
    tuned, result = edgecompress.finetune(compact, train, teacher=net, eval_data=test)
    assert result.top1 > result.before_top1
    (calibration,), quantized = edgecompress.quantize(tuned, train, schemes=("int8-static",), samples=50)
    assert calibration.shape == (50, 1, 8, 8)
    assert len(quantized.layers) >= len(stats.layers) + len(plan.layers)
    (tmp_path / "net-fp32.ptl.rejected").touch()  # of an earlier try
    artifact = export_one(
        tuned,
        X,
        folder=tmp_path,
        about=Description(name="net", variant="compressed"),
        format="torchscript",
        quant=quant_spec("fp32", 0),
        limits=SCHEMES["fp32"].gate,
        evidence=Evidence(inputs=(test.inputs[:50],)),
    )
    assert isinstance(artifact, records.Artifact)
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"net-fp32.ptl", "net-fp32.ptl.json"}
    (measured,) = edgecompress.bench([tmp_path / artifact.path], repetitions=3)
    assert len(measured.latency_ms) == 3
    made = edgecompress.report(tmp_path, RunRecords(stats=stats, plan=plan, decomposed=decomposed, finetuned=result, artifacts=(artifact,)))
    assert made.verdict.sentence
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_layers_are_measured_into_a_table_once(net, tmp_path):
    before = copy.deepcopy(net.state_dict())
    table = tmp_path / "costs.json"
    given = {"schemes": ("fp32",), "run": tmp_path / "r", "table": str(table), "method": "svd"}
    found = edgecompress.profile(net, X, noisy=True, **given)
    assert {geometry.split()[0] for geometry in found.layers} == {"Conv2d", "Linear"}
    assert any(name.startswith("svd ") for forms in found.layers.values() for name in forms)
    (whole,) = found.networks.values()
    assert whole["fp32"].ms > 0
    assert records.read_record(table, records.CostTable) == found
    assert edgecompress.profile(net, X, **given) == found
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_run_from_python_is_not_gone_on_with_from_the_command_line(edgecompress_run):
    run, call = edgecompress_run
    answer = call("plan", run)
    assert answer.code == 2
    assert "was made from Python; go on there" in answer.err


@pytest.fixture
def edgecompress_run(exported, edgecompress, tmp_path):
    run = tmp_path / "python"
    run.mkdir()
    record = msgspec.structs.replace(read_run(exported[0]), recipe="python")
    (run / "run.json").write_bytes(records.to_json(record))
    return run, edgecompress
