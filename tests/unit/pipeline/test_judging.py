"""A faulty metric or loss is refused before anything long runs; targets that nothing reads may be anything."""

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from edgecompress.data.recipe import recipe_from_model
from edgecompress.errors import ConfigError
from edgecompress.options import Options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.runs import open_run


def items(target, n=20):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(8, generator=generator), target(i)) for i in range(n)]


def plan(tmp_path, **given):
    """Return the steps that were made, the probe left out, and the plan."""
    torch.manual_seed(0)
    recipe = recipe_from_model(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), (torch.zeros(1, 8),), name="net", **given)
    made = []
    with open_run(tmp_path / "run", name="net", recipe="python") as run:
        run.set_options(Options(epochs=1))
        context = open_context(run, recipe, on_step=lambda name, *_: name == "check" or made.append(name))
        try:
            return made, run_steps(context, "plan")
        except ConfigError as error:
            return made, error


def mean_error(outputs, targets):
    return {"mae": (outputs - targets).abs().mean(), "agree": 0.5}


FLOATS = items(lambda i: torch.full((3,), float(i)))
MIXED = items(lambda i: torch.zeros(3) if i % 2 else {"a": 1})
FAULTY = {
    "nan": ({"metric": lambda y, t: {"f1": float("nan")}, "eval_data": FLOATS}, r"test_judging\.py:\d+: metric\(\): f1 is nan"),
    "raises": ({"metric": lambda y, t: t["boxes"], "eval_data": FLOATS}, r"test_judging\.py:\d+: metric\(\) fails with"),
    "train data only": ({"metric": lambda y, t: 1.0, "train_data": FLOATS}, r"metric\(\): returns float"),
    "no targets": ({"metric": mean_error, "eval_data": [torch.rand(8)] * 9}, r"list: yields no targets, .*metric\(\) needs them"),
    "targets do not batch": ({"metric": mean_error, "eval_data": MIXED}, "list: targets do not batch: "),
    "loss": ({"loss": lambda y, t: y.argmax(1).float().mean(), "train_data": FLOATS}, r"test_judging\.py:\d+: loss\(\): has no gradient"),
    "direction": (
        {"metric": mean_error, "higher_is_better": {"iou": True}, "eval_data": FLOATS},
        "higher_is_better names iou, the metric returns mae, agree",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_metric_or_loss_is_refused_before_the_plan(tmp_path, case):
    given, fact = FAULTY[case]
    made, error = plan(tmp_path, **given)
    assert made == []
    assert isinstance(error, ConfigError)
    assert "\n" not in str(error)
    with pytest.raises(ConfigError, match=fact):
        raise error


def test_a_direction_that_was_read_from_a_name_is_told(tmp_path):
    _, made = plan(tmp_path, metric=mean_error, eval_data=FLOATS)
    assert any("a lower mae and a higher agree is taken to be better, by the name" in note for note in made.notes)
    _, made = plan(tmp_path, metric=mean_error, eval_data=FLOATS, higher_is_better={"mae": False, "agree": True})
    assert not [note for note in made.notes if "higher_is_better" in note]


@pytest.mark.parametrize("target", [lambda i: object(), lambda i: "text", lambda i: {"a": 1} if i else 2, lambda i: None])
def test_targets_that_nothing_reads_may_be_anything(tmp_path, target):
    made, result = plan(tmp_path, train_data=items(target), eval_data=items(target))
    assert made == ["analyze", "plan"], result


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def test_a_dataset_without_a_length_is_refused_in_one_line(tmp_path):
    made, error = plan(tmp_path, train_data=Stream())
    assert made == []
    with pytest.raises(ConfigError, match="Stream: has no length"):
        raise error


def test_data_that_are_not_there_are_refused_before_anything_is_made(tmp_path):
    class Missing:
        def __len__(self):
            raise ConfigError("images: no such folder; fetch them")

        def __getitem__(self, index):
            raise IndexError(index)

    made, error = plan(tmp_path, train_data=Missing())
    assert made == []
    assert "images: no such folder" in str(error)
