"""The kind of an output is read from the recipe, the graph and the data."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgecompress.errors import ConfigError
from edgecompress.network.exported import to_program
from edgecompress.network.output_reading import read_specs
from edgecompress.records.outputs import OutputSpec


class Head(nn.Module):
    """A layer with any ending."""

    def __init__(self, ending, outputs=6):
        super().__init__()
        self.layer, self.ending = nn.Linear(4, outputs), ending

    def forward(self, x):
        return self.ending(self.layer(x))


def read(ending, **given):
    return read_specs(to_program(Head(ending), (torch.zeros(1, 4),)), **given)


def kinds(ending, **given):
    return [each.kind for each in read(ending, **given)]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (lambda y: y, "values"),
        (lambda y: y.softmax(-1), "probabilities"),
        (lambda y: y.softmax(1).clone(), "probabilities"),
        (lambda y: y.log_softmax(1), "logits"),
        (lambda y: y.view(-1, 2, 3).log_softmax(1), "class_map"),
        (lambda y: y.sigmoid().view(-1, 2, 3), "independent"),
        (lambda y: F.normalize(y, dim=1), "embedding"),
        (lambda y: y / y.norm(dim=1, keepdim=True), "embedding"),
        (lambda y: y.argmax(1), "classes"),
        (lambda y: torch.cat([y, y.sigmoid()], 1), "values"),
        (lambda y: y * y.softmax(1), "values"),
    ],
)
def test_the_end_of_the_graph_tells_the_kind(ending, kind):
    (found,) = read(ending)
    assert found.kind == kind
    assert found.source


def test_integer_labels_in_range_tell_logits():
    labels = torch.tensor([0, 5, 2])
    assert kinds(lambda y: y, targets=labels) == ["logits"]
    assert kinds(lambda y: y, targets=labels[:, None]) == ["logits"]
    assert kinds(lambda y: y, targets=labels + 1) == ["values"]  # 6 is no class of 6
    assert kinds(lambda y: y, targets=labels.float()) == ["values"]  # a regression
    assert kinds(lambda y: y, targets={"labels": labels}) == ["values"]


def test_labels_of_positions_tell_a_map_and_its_axis():
    labels = torch.tensor([[0, 1, 255], [2, -100, 0]])
    (found,) = read(lambda y: torch.stack([y[:, :3], y[:, 3:], y[:, :3], y[:, :3]], 2), targets=labels.new_tensor([[0, 2, 3], [1, 1, 0]]))
    assert (found.kind, found.axis) == ("class_map", 2)
    assert kinds(lambda y: torch.stack([y[:, :3], y[:, 3:], y[:, :3]], 1), targets=labels) == ["class_map"]


def test_targets_of_zeros_and_ones_tell_independent_events():
    assert kinds(lambda y: y, targets=torch.eye(6)) == ["independent"]
    assert kinds(lambda y: y, targets=torch.rand(4, 6)) == ["values"]


def test_two_outputs_that_fit_the_labels_are_not_guessed():
    assert kinds(lambda y: (y, 2 * y), targets=torch.tensor([0, 5])) == ["values", "values"]
    assert kinds(lambda y: (y, y[:, :2]), targets=torch.tensor([0, 5])) == ["logits", "values"]


def test_the_recipe_decides_by_position_or_name():
    two = {"names": ("boxes", "scores")}
    assert kinds(lambda y: (y, y.sigmoid()), declared=["values", "independent"], **two) == ["values", "independent"]
    assert kinds(lambda y: (y, y.sigmoid()), declared={"boxes": "embedding"}, **two) == ["embedding", "independent"]
    (spec, _) = read(lambda y: (y, y), declared={"boxes": OutputSpec(kind="values", tolerance=2.0)}, **two)
    assert (spec.name, spec.tolerance, spec.source) == ("boxes", 2.0, "outputs()")


@pytest.mark.parametrize(
    ("ending", "declared", "message"),
    [
        (lambda y: y, {"box": "values"}, "no output is named 'box'; the network returns output_0"),
        (lambda y: y, ["values", "values"], "2 kinds for 1 outputs"),
        (lambda y: y, "vector", "choose from logits"),
        (lambda y: y.softmax(1), "logits", "comes out of a softmax; say probabilities"),
        (lambda y: y.sigmoid(), "probabilities", "comes out of a sigmoid; say independent"),
        (lambda y: y.argmax(1), "logits", "of type int64; say classes"),
        (lambda y: y, "classes", "floating point"),
        (lambda y: y.view(-1, 2, 3), "logits", "say class_map"),
        (lambda y: y, OutputSpec(kind="logits", axis=2), "no axis 2"),
        (lambda y: y, OutputSpec(kind="values", channels=("left", "top")), "2 channels are named; say one name a channel"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(ending, declared, message):
    with pytest.raises(ConfigError, match=message):
        read(ending, declared=declared)
