"""A faulty metric, loss, outputs() or targets of a recipe: one line with its place, before anything long, nothing half-written."""

import re

import pytest
from support.other_recipes import data, sequential, write_recipe
from support.runs import complaint, contents

NET = sequential("nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 4)", "1, 8")
SOFTMAX = sequential("nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 4), nn.Softmax(1)", "1, 8")
FLOATS = data("train_data", "eval_data", inputs="8", targets="x[:, :4]")
CLASSES = data("train_data", "eval_data", inputs="8", targets="x.argmax(1) % 4")
UNEVEN = """

def eval_data():
    return [(draw(8, seed=i), torch.zeros(4) if i % 2 else {"a": 1}) for i in range(40)]
"""


def metric(body):
    return f"\n\ndef metric(outputs, targets):\n    {body}\n"


def loss(body):
    return f"\n\ndef loss(outputs, targets):\n    {body}\n"


def outputs(value):
    return f"\n\ndef outputs():\n    return {value}\n"


AT = r"recipe\.py:\d+:"  # the place of a function
BAD = {
    "metric nan": (NET + FLOATS + metric("return {'error': float('nan')}"), r"AT metric\(\): error is nan"),
    "metric raises": (NET + FLOATS + metric("return {'iou': outputs.boxes.mean()}"), r"AT metric\(\) fails with AttributeError"),
    "metric random": (NET + FLOATS + metric("return {'noise': torch.rand(()).item()}"), r"AT metric\(\): noise is .*, then .* for the"),
    "metric no dict": (NET + FLOATS + metric("return 0.5"), r"AT metric\(\): returns float"),
    "no targets": (NET + data("eval_data", inputs="8") + metric("return {'a': 1.0}"), r"targets, .*AT metric\(\) needs"),
    "targets do not batch": (NET + UNEVEN + metric("return {'a': 1.0}"), "targets do not batch: "),
    "answers": (NET + CLASSES + loss("return (outputs.argmax(1) != targets).float().mean()"), r"AT loss\(\): has no gradient"),
    "loss detached": (NET + FLOATS + loss("return (outputs.detach() - targets).square().mean()"), r"AT loss\(\): has no gradient"),
    "loss nan": (NET + FLOATS + loss("return (outputs - targets).mean() * float('nan')"), r"AT loss\(\): is nan"),
    "loss a vector": (NET + FLOATS + loss("return (outputs - targets).square()"), r"AT loss\(\): returns a tensor of shape"),
    "loss raises": (NET + FLOATS + loss("return F.cross_entropy(outputs['scores'], targets)"), r"AT loss\(\) fails with"),
    "outputs unknown": (NET + CLASSES + outputs("{'boxes': 'values'}"), r"AT outputs\(\): no output is named 'boxes'"),
    "outputs too many": (NET + CLASSES + outputs("['logits', 'values']"), r"AT outputs\(\): 2 kinds for 1 outputs"),
    "outputs no kind": (NET + CLASSES + outputs("'scores'"), r"AT outputs\(\): a kind is 'scores'; give one of"),
    "logits behind softmax": (SOFTMAX + CLASSES + outputs("'logits'"), r"AT outputs\(\): .*given as logits and comes out of a softmax"),
    "classes of floats": (NET + CLASSES + outputs("'classes'"), r"AT outputs\(\): .*is of floating point"),
    "outputs raises": (NET + CLASSES + outputs("1 / 0"), r"recipe\.py(:\d+)?: outputs\(\):? fails"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_fault_in_judging_is_one_line_before_anything_long(edgecompress, tmp_path, case):
    text, fact = BAD[case]
    fact = fact.replace("AT", AT)
    recipe = write_recipe(tmp_path / "net", text)
    answer = edgecompress("export", recipe, "--run", "run", "--format", "tflite", "--epochs", "3")
    assert answer.code == 2, answer.err
    line = complaint(answer)
    assert re.search(fact, line), line
    assert re.search(r"; .+", line), line
    assert answer.out == ""
    assert set(contents(tmp_path / "run")) <= {"run.json", "check.json", "stats.json"}


def test_a_sound_metric_loss_and_outputs_are_used(edgecompress, tmp_path):
    text = NET + FLOATS + metric("return {'mae': (outputs - targets).abs().mean()}") + loss("return (outputs - targets).square().mean()")
    recipe = write_recipe(tmp_path / "net", text + outputs("'values'"))
    answer = edgecompress("finetune", recipe, "--run", "run", "--epochs", "1")
    assert answer.code == 0, answer.err
    assert "mae" in answer.err
