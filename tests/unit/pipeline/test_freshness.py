"""Nothing stale passes as fresh: the key of a step changes with the code and the data that it is made from, and with nothing else."""

import dataclasses

import pytest
import torch
from torch import nn

from edgecompress.data import Samples
from edgecompress.data.recipe import load_recipe, recipe_from_model
from edgecompress.options import Options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.pipeline.steps import STEPS
from edgecompress.runs import open_run

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from .network import width

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))

def example_inputs():
    return (torch.zeros(1, 8),)

def train_data():
    from .data import labels
    return TensorDataset(torch.rand(40, 8), labels())

def eval_data():
    from .data import labels
    return TensorDataset(torch.rand(30, 8), labels()[:30])
"""
LABELS = "import torch\n\ndef labels():\n    return torch.arange(40) % 4\n"
ALL = {"analyze", "plan", "decompose", "finetune"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net").mkdir()
    for name, text in {"recipe": RECIPE, "network": "width = 32\n", "data": LABELS, "unrelated": "x = 1\n"}.items():
        (tmp_path / "net" / f"{name}.py").write_text(text)
    return tmp_path


def redone(folder, recipe, last="finetune"):
    """Return the steps that a run of a recipe makes anew."""
    made = set()
    with open_run(folder / "run", name=recipe.name, recipe=recipe.source) as run:
        run.set_options(Options(epochs=1, batch_size=16))
        context = open_context(run, recipe, on_step=lambda name, _record, _seconds, reused: None if reused else made.add(name))
        run_steps(context, last)
    return made - {"check"}


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_each_data_function_is_called_once(folder):
    recipe, called = load_recipe(str(folder / "net")), []

    def count(name):
        make = getattr(recipe, name)
        return lambda: called.append(name) or make()

    redone(folder, dataclasses.replace(recipe, train_data=count("train_data"), eval_data=count("eval_data")))
    assert sorted(called) == ["eval_data", "train_data"]


def test_files_that_a_recipe_imports_count_and_files_beside_it_do_not(folder):
    again = lambda: redone(folder, load_recipe(str(folder / "net")), "plan")  # noqa: E731
    assert again() == {"analyze", "plan"}
    assert again() == set()
    edit(folder / "net/unrelated.py", "x = 1", "x = 2")
    assert again() == set()
    edit(folder / "net/data.py", "import torch", "import torch  # imported in a function")
    assert again() == {"analyze", "plan"}
    edit(folder / "net/network.py", "32", "24")
    assert again() == {"analyze", "plan"}
    assert again() == set()


def test_data_that_a_recipe_reads_from_elsewhere_count(folder):
    """Labels rotated by one: only a digest of the data themselves can tell."""
    edit(folder / "net/data.py", "torch.arange(40) % 4", f"torch.load({str(folder / 'labels.pt')!r})")
    again = lambda: redone(folder, load_recipe(str(folder / "net")))  # noqa: E731
    torch.save(torch.arange(40) % 4, folder / "labels.pt")
    assert again() == ALL
    assert again() == set()
    torch.save((torch.arange(40) % 4).roll(1), folder / "labels.pt")
    assert "finetune" in again()
    assert again() == set()


def from_python(eval_labels=None, train_pixel=0.0, model=None):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(64, 8, generator=generator), torch.arange(64) % 4
    other = x.clone()
    other[63, 7] += train_pixel
    torch.manual_seed(0)
    net = model or nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    return recipe_from_model(
        net,
        (torch.zeros(1, 8),),
        name="net",
        train_data=Samples(other, y, source="train"),
        eval_data=Samples(x, y if eval_labels is None else eval_labels, source="eval"),
    )


class Scaled(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


class Shifted(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 2


def test_the_data_of_a_model_in_memory_count(tmp_path):
    assert redone(tmp_path, from_python()) == ALL
    assert redone(tmp_path, from_python()) == set()
    rotated = (torch.arange(64) % 4).roll(1)
    assert redone(tmp_path, from_python(rotated)) == {"finetune"}  # what it trains is told by evaluation data
    assert {"plan", "finetune"} <= redone(tmp_path, from_python(rotated, train_pixel=0.5))
    assert redone(tmp_path, from_python(rotated, train_pixel=0.5)) == set()


def test_the_forward_of_a_model_in_memory_counts(tmp_path):
    def recipe(kind):
        torch.manual_seed(0)
        return from_python(model=kind(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)))

    assert redone(tmp_path, recipe(Scaled), "analyze") == {"analyze"}
    assert redone(tmp_path, recipe(Scaled), "analyze") == set()
    Shifted.__name__ = Shifted.__qualname__ = "Scaled"
    assert redone(tmp_path, recipe(Shifted), "analyze") == {"analyze"}


def test_every_step_that_reads_data_says_so():
    assert {name for name, step in STEPS.items() if step.data} == set(STEPS) - {"analyze"}
