"""What people bring, a row each: a network, checkpoint, folder or source is right or refused within ten seconds, with the right words."""

import re
import time
from contextlib import contextmanager

import pytest
from support.brought_files import CHECKPOINTS, FOLDERS
from support.brought_networks import LABELLED, NETWORKS
from support.other_recipes import write_recipe
from support.runs import complaint

from edgecompress.errors import EdgeCompressError
from edgecompress.records import CheckResult, from_json

LIMIT_S = 10
FORM = re.compile(r"[^\n]+: [^\n]+; [^\n]+")  # subject: fact; remedy


@contextmanager
def in_time():
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < LIMIT_S


# Much like another row, so that the quick tests need not take their seconds.
SIBLINGS = {
    "parametrized", "an optional input", "an example that is no tuple", "a dropout that is never trained", "losses in training",
    "a DataLoader", "answers, and nothing to train on", "samples of NaN", "a metric that raises", "bfloat16", "frozen", "recurrent",
    "time in the place of the batch", "an example of five", "a metric without targets", "a loss of many numbers",
}  # fmt: skip


def mark_slow(names, slow):
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", mark_slow(NETWORKS, SIBLINGS))
def test_a_network_passes_or_is_refused_with_its_cause_and_a_remedy(edgecompress, tmp_path, name):
    network = NETWORKS[name]
    recipe = write_recipe(tmp_path / "net", network.text)
    with in_time():
        answer = edgecompress("check", recipe, "--run", "run", "--json")
    found = from_json(answer.out.encode(), CheckResult, source="check")
    lines = [f"{each.severity}: {each.text}; {each.remedy}" for each in found.findings]
    assert answer.code == (2 if network.is_refused else 0), lines
    assert "Traceback" not in answer.err
    others = [line for line in lines if not network.says or not re.search(network.says, line)]
    assert len(lines) - len(others) == bool(network.says), lines
    assert all(network.is_refused and line.startswith("note") for line in others), lines
    assert all(re.fullmatch(FORM, line) for line in lines if line.startswith("error"))
    assert network.is_refused or found.macs


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("brought", [*CHECKPOINTS.values(), *FOLDERS.values()], ids=[*CHECKPOINTS, *FOLDERS])
def test_a_file_or_a_folder_is_read_or_refused_with_its_cause_and_a_remedy(tmp_path, brought):
    with in_time():
        if not brought.is_refused:
            assert re.search(brought.says, brought.use(tmp_path))
            return
        with pytest.raises(EdgeCompressError) as refusal:
            brought.use(tmp_path)
    assert re.search(brought.says, str(refusal.value))
    assert re.fullmatch(FORM, str(refusal.value))


SOURCES = {
    "net.py:Net@1x3x8x8": "",
    "net.py:Nat@1x3x8x8": "net.py has no function Nat; did you mean Net",
    "net.py:Net": "the shape of the input is not known; add it, e.g. net.py:Net@1x3x224x224",
    "net.pt2": "net.pt2 is no file; give",
    "gone.onnx": "gone.onnx is no file; give",
    "gone.py": "gone.py: no such recipe; give",
    "recipe.py": "",
}


@pytest.mark.parametrize("target", SOURCES)
def test_a_source_is_a_network_or_refused(edgecompress, tmp_path, target):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 4, 3)\n"
    )
    example = "def example_inputs():\n    return torch.zeros(1, 3, 8, 8)\n"
    (tmp_path / "recipe.py").write_text(f"import torch\nfrom net import Net\n\n\ndef model():\n    return Net()\n\n\n{example}")
    with in_time():
        answer = edgecompress("check", target, "--json")
    found = from_json(answer.out.encode(), CheckResult, source="check")
    lines = [f"{each.text}; {each.remedy}" for each in found.errors]
    assert answer.code == (2 if SOURCES[target] else 0), lines
    assert [bool(re.search(SOURCES[target], line)) for line in lines] == ([True] if SOURCES[target] else []), lines


def test_there_are_rows_enough():
    assert len({*NETWORKS, *CHECKPOINTS, *FOLDERS, *SOURCES}) >= 60


# Commands that take a network, with an error that each would meet only after long work.
BROKEN = {
    "plan": "a branch on values",
    "decompose": "statistics of the batch",
    "finetune": "no gradients",
    "quantize": "a metric that is NaN",
    "export": "a fault of training mode",
    "profile": "a branch on values",
    "search": "statistics of the batch",
}
MORE = {"finetune": ("--epochs", "1"), "export": ("--epochs", "1"), "search": ("--trials", "1")}


@pytest.mark.parametrize("command", mark_slow(BROKEN, {"decompose", "finetune", "quantize"}))
def test_every_command_that_takes_a_network_begins_with_the_probe(edgecompress, tmp_path, command):
    network = NETWORKS[BROKEN[command]]
    text = network.text if "train_data" in network.text else network.text + LABELLED
    recipe = write_recipe(tmp_path / "net", text)
    with in_time():
        answer = edgecompress(command, recipe, "--run", "run", *MORE.get(command, ()))
    assert answer.code in (2, 3)
    line = complaint(answer)
    assert re.search(network.says.removeprefix("error: "), line), line
    assert not {path.name for path in (tmp_path / "run").rglob("*.json")} - {"run.json", "check.json"}


def test_analyze_goes_on_and_tells_what_later_commands_would_refuse(edgecompress, tmp_path):
    network = NETWORKS["a metric that is NaN"]
    answer = edgecompress("analyze", write_recipe(tmp_path / "net", network.text), "--run", "run")
    assert answer.code == 0
    assert re.search(network.says, answer.err)


@pytest.mark.parametrize(
    "name", mark_slow(["a state dict", "half precision", "time first", "too few inputs"], {"half precision", "too few inputs"})
)
def test_evaluate_begins_with_the_probe_of_the_recipe_that_is_its_data(edgecompress, tmp_path, tiny, name):
    metric = "\n\ndef metric(outputs, targets):\n    return {'right': 1.0}\n"
    data = LABELLED.replace("3, 8, 8", "1, 8, 8")
    recipe = write_recipe(tmp_path / "net", NETWORKS[name].text + data + metric)
    with in_time():
        answer = edgecompress("evaluate", tiny / "tiny.tflite", "--data", recipe)
    assert answer.code == 2
    line = complaint(answer)
    assert re.search(NETWORKS[name].says.removeprefix("error: "), line), line
