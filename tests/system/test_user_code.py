"""Whatever a recipe's code raises, in whatever command: one line with the file, the line and what was called, and no traceback."""

import shutil

import pytest
from support.runs import complaint

RECIPE = """
import torch
from torch import nn
from torch.utils.data import Dataset

import edgecompress

RAISES = "{raises}"


def fail(name):
    if name == RAISES:
        raise {error}  # raised


fail("import")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        fail("forward")
        if self.training:
            fail("forward in training")
        return self.b(self.a(x).relu())


class Rows(Dataset):
    def __init__(self, name):
        self.name, self.x = name, torch.randn(24, 12, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        fail(f"{{self.name}} length")
        return 24

    def __getitem__(self, i):
        if i == 7:
            fail(f"{{self.name}} sample")
        return self.x[i], i % 3


def model():
    fail("model")
    torch.manual_seed(0)
    return Net()


def example_inputs():
    fail("example_inputs")
    return (torch.zeros(1, 12),)


def train_data():
    fail("train_data")
    return Rows("train")


def eval_data():
    fail("eval_data")
    return Rows("eval")


def calibration_data():
    fail("calibration_data")
    return Rows("calibration")


def preprocessing():
    fail("preprocessing")
    return None


def labels():
    fail("labels")
    return ["a", "b", "c"]


def outputs():
    fail("outputs")
    return "logits"


def metric(outputs, targets):
    fail("metric")
    return {{"right": float((outputs.argmax(1) == targets).float().mean())}}


def loss(outputs, targets):
    fail("loss")
    return nn.functional.cross_entropy(outputs, targets)


def higher_is_better():
    fail("higher_is_better")
    return True
"""
SMALL = ("--format", "torchscript", "--scheme", "fp32", "--epochs", "1", "--epoch-samples", "8", "--macs-ratio", "0.7", "--max-loss", "100")
COMMANDS = {
    "analyze": (),
    "plan": ("--macs-ratio", "0.7"),
    "decompose": (),
    "finetune": ("--epochs", "1", "--epoch-samples", "8"),
    "quantize": ("--scheme", "int8-static"),
    "qat": ("--qat-epochs", "1"),
    "export": SMALL,
    "profile": (),
    "search": ("--trials", "3", *SMALL),
}
# Function that raises → what the line calls it; these are called in every command.
LOADED = {
    "import": "the import",
    "model": "model()",
    "example_inputs": "example_inputs()",
    "forward": "forward() of Net for an input of shape (1, 12)",
    "preprocessing": "preprocessing()",
    "labels": "labels()",
    "outputs": "outputs()",
    "higher_is_better": "higher_is_better()",
}
READ = {  # in every command that plans
    **{f"{name}_data": f"{name}_data()" for name in ("train", "eval", "calibration")},
    **{f"{name} length": f"the length of {name}_data()" for name in ("train", "eval", "calibration")},
    **{f"{name} sample": f"sample 7 of {name}_data()" for name in ("train", "eval", "calibration")},
    "metric": "metric()",
    "loss": "loss()",
}
PROBED = {name: called for name, called in READ.items() if not name.endswith("sample")}  # by the probe, which reads few samples
TRAINED = {"forward in training": "forward() of Net in training mode for an input of shape (2, 12)"}  # in every command that trains
QUICK = {(command, "model") for command in COMMANDS} | {("export", name) for name in ("forward", "train sample", "metric")}


def rows():
    for command in COMMANDS:
        needed = LOADED | {"analyze": {}, "profile": PROBED}.get(command, READ)
        needed |= TRAINED if command in ("finetune", "qat", "export") else {}
        for function, called in needed.items():
            quick = command == "plan" or (command, function) in QUICK
            yield pytest.param(command, function, called, id=f"{command} {function}", marks=() if quick else pytest.mark.slow)


def write(folder, raises, error="RuntimeError('planted')"):
    """Write a recipe; return its path and the line that raises."""
    path = folder / "recipe.py"
    text = RECIPE.format(raises=raises, error=error)
    path.write_text(text)
    return path, text[: text.index("# raised")].count("\n") + 1


@pytest.mark.parametrize(("command", "function", "called"), list(rows()))
def test_an_error_of_a_recipe_is_one_line_with_its_place(edgecompress, tmp_path, command, function, called):
    path, line = write(tmp_path, function)
    answer = edgecompress(command, path, "--run", "r", *COMMANDS[command])
    assert answer.code == 2
    assert f"recipe.py:{line}: {called} fails with RuntimeError: planted; mend it" in complaint(answer)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("ValueError('\\n first\\nsecond')", 2, "fails with ValueError: first; mend it"),
        ("KeyError()", 2, "fails with KeyError: KeyError; mend it"),
        ("StopIteration()", 2, "fails with StopIteration: StopIteration; mend it"),
        ("SystemExit(0)", 2, "fails with SystemExit: 0; mend it"),
        ("FileNotFoundError(2, 'No such file', 'a.png')", 2, "check the path; a relative one begins in the folder where the command runs"),
        ("MemoryError()", 1, "out of memory; every finished step is kept"),
        ("KeyboardInterrupt()", 130, "interrupted; every finished step is kept"),
    ],
)
@pytest.mark.parametrize("function", ["model", "forward", "train sample"])
def test_what_is_raised_keeps_its_meaning(edgecompress, tmp_path, function, error, code, message):
    path, _ = write(tmp_path, function, error)
    answer = edgecompress("plan", path, "--run", "r")
    assert answer.code == code
    assert message in complaint(answer)


def test_code_that_no_fence_surrounds_is_told_in_one_line_too(edgecompress, tmp_path):
    path, _ = write(tmp_path, "nothing")
    method = "    def eval(self):\n        return {}['mode']\n\n"
    path.write_text(path.read_text().replace("    def forward(", f"{method}    def forward("))
    answer = edgecompress("analyze", path, "--run", "r")
    assert answer.code == 2
    assert complaint(answer) == "recipe.py:25: code of the recipe fails with KeyError: 'mode'; mend it"


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run folder with one small file, beside the recipe."""
    from edgecompress.api import export
    from edgecompress.data.recipe import load_recipe

    folder = tmp_path_factory.mktemp("small")
    recipe = load_recipe(str(write(folder, "nothing")[0]))
    export(
        recipe.model(), recipe.example_inputs, run=folder / "r", eval_data=recipe.eval_data(), metric=recipe.metric.given,
        format=("torchscript",), scheme=("fp32",), epochs=0, macs_ratio=1.0,
    )  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("function", ["import", "model", "forward", "eval_data", "eval length", "eval sample", "metric"])
def test_evaluate_tells_errors_of_the_recipe_that_is_its_data(edgecompress, tmp_path, small_run, function):
    shutil.copytree(small_run, tmp_path / "copy")
    path, line = write(tmp_path / "copy", function)
    answer = edgecompress("evaluate", tmp_path / "copy" / "r", "--data", path)
    assert answer.code == 2
    assert f"copy/recipe.py:{line}: {(LOADED | READ)[function]} fails with RuntimeError: planted; mend it" in complaint(answer)


def test_a_run_of_a_function_of_a_file_is_gone_on_with(edgecompress, tmp_path):
    (tmp_path / "nets.py").write_text("from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))\n")
    answer = edgecompress("analyze", "nets.py:make@1x8")
    assert answer.code == 0, answer.err
    again = edgecompress("analyze", "runs/make")
    assert again.code == 0, again.err
    assert "99 params" in again.err
