"""Metrics of the user and built-in ones are computed on any structure of outputs; faulty ones are refused in one line with their place."""

import re
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgecompress.data import Samples
from edgecompress.data.losses import check_loss, make_loss
from edgecompress.data.metrics import (
    METRIC_BATCH,
    check_metric,
    describe_metric,
    evaluate_metric,
    make_builtin,
    make_metric,
    measure_metric,
)
from edgecompress.errors import ConfigError
from edgecompress.network.batches import output_names, restore_structure, structure_of

Heads = namedtuple("Heads", "boxes scores")


class Network(nn.Module):
    """Returns its input and twice its input in some structure."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        y = 2 * x
        nested = {"heads": {"a": x, "b": (x, y)}, "last": y}
        return {"one": x, "tuple": (x, y), "dict": {"once": x, "twice": y}, "named": Heads(x, y), "nested": nested, "mixed": (x, {"b": y})}[
            self.form
        ]


NAMES = {
    "one": ("output_0",),
    "tuple": ("output_0", "output_1"),
    "dict": ("once", "twice"),
    "named": ("boxes", "scores"),
    "nested": ("heads.a", "heads.b.0", "heads.b.1", "last"),
    "mixed": ("output_0", "1.b"),
}
ONE = structure_of(Network("one"), (torch.zeros(1, 2),))


@pytest.mark.parametrize("form", NAMES)
def test_outputs_have_the_names_and_the_structure_that_the_network_gives_them(form: str) -> None:
    network, x = Network(form), torch.rand(1, 3)
    assert output_names(network, (x,)) == NAMES[form]
    structure = structure_of(network, (x,))
    outputs = tuple(torch.full((2, 1), i) for i in range(len(NAMES[form])))
    restored = restore_structure(outputs, structure)
    assert type(restored) is type(network(x))
    if form == "nested":
        assert restored["heads"]["b"][1] is outputs[2]


def accuracy(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {"accuracy": (outputs.argmax(1) == targets).float().mean(), "count": float(len(targets))}  # type: ignore[dict-item]


def test_a_function_is_averaged_over_batches_by_their_samples() -> None:
    outputs, targets = torch.eye(2)[torch.arange(150) % 2], torch.zeros(150, dtype=torch.int64)
    metric = make_metric(accuracy)
    values = measure_metric(metric, (outputs,), targets, ONE)
    assert values == {"accuracy": pytest.approx(0.5), "count": pytest.approx(50)}  # three batches of one size
    data = Samples(outputs, targets, source="s")
    assert evaluate_metric(metric, lambda x: x, data, structure=ONE) == pytest.approx(values)
    assert evaluate_metric(metric, lambda x: x, data, structure=ONE, which=1) == {"accuracy": 1.0, "count": 1.0}


def test_a_metric_gets_the_network_s_structure_and_may_change_it() -> None:
    network = Network("named")
    x = torch.rand(5, 2)
    with torch.inference_mode():
        outputs = tuple(network(x))

    def error(outputs: Heads, targets: dict[str, Tensor]) -> dict[str, float]:
        outputs.scores.sub_(targets["twice"])
        return {"mae": float(outputs.scores.abs().mean())}

    before = outputs[1].clone()
    assert measure_metric(make_metric(error), outputs, {"twice": 2 * x}, structure_of(network, (x,))) == {"mae": 0}
    assert outputs[1].equal(before)


class Recall:
    """A metric in the manner of torchmetrics, which is no average over batches."""

    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.found = self.all = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.found += int(((outputs > 0.5) & targets).sum())
        self.all += int(targets.sum())

    def compute(self) -> Tensor:
        return torch.tensor(self.found / self.all)


class RecallByClass(Recall):
    def compute(self) -> Any:
        return {"recall": super().compute(), "by_class": torch.ones(3)}


@pytest.mark.parametrize(
    ("given", "name"),
    [(Recall(), "Recall"), (Recall, "Recall"), (lambda: Recall(), "Recall"), (RecallByClass(), "recall")],
    ids=["object", "class", "factory", "dict"],
)
def test_an_object_gathers_all_batches_and_starts_empty(given: Any, name: str) -> None:
    outputs = torch.zeros(130, 2)
    outputs[:10] = 1
    targets = torch.zeros(130, 2).bool()
    targets[:20] = True
    metric = make_metric(given)
    assert [measure_metric(metric, (outputs,), targets, ONE) for _ in range(2)] == [{name: pytest.approx(0.5)}] * 2
    (spec,) = check_metric(metric, (outputs,), targets, ONE)
    assert (spec.name, spec.higher_is_better, spec.is_accuracy) == (name, True, True)


def test_top_1_is_the_fraction_of_right_answers() -> None:
    scores, labels = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 0])
    assert measure_metric(make_builtin("top-1"), (scores,), labels, ONE) == {"top-1": 0.75}
    heads = structure_of(Network("named"), (scores,))
    assert measure_metric(make_builtin("top-1", output=1), (torch.zeros(4, 1), scores), labels, heads) == {"top-1": 0.75}
    with pytest.raises(ConfigError, match="labels are float32"):
        measure_metric(make_builtin("top-1"), (scores,), torch.rand(4, 3), ONE)


@pytest.mark.parametrize("classes_last", [False, True])
@pytest.mark.parametrize("integers", [False, True])
def test_mean_iou_is_that_of_a_confusion_matrix_over_all_pixels(integers: bool, classes_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(0, 4, (100, 5, 6), generator=generator)
    labels = torch.where(torch.rand(100, 5, 6, generator=generator) < 0.6, answers, torch.randint(-1, 3, (100, 5, 6), generator=generator))
    labels[:, 0, 0] = 255
    scores = nn.functional.one_hot(answers, 4).float()
    scores = scores if classes_last else scores.permute(0, 3, 1, 2)
    metric = make_builtin("mIoU", axis=3 if classes_last else 1)
    values = measure_metric(metric, (answers.int() if integers else scores,), labels[:, None] if integers else labels, ONE)
    kept = (labels >= 0) & (labels < 255)
    union = [int(((answers == k) | (labels == k))[kept].sum()) for k in range(4) if (labels == k).any()]
    both = [int(((answers == k) & (labels == k))[kept].sum()) for k in range(4) if (labels == k).any()]
    assert values == {"mIoU": pytest.approx(sum(b / u for b, u in zip(both, union, strict=True)) / len(union))}


@pytest.mark.parametrize(
    ("labels", "fact"),
    [
        (torch.zeros(2, 4, 4), "float32, the output is a class map"),
        ([torch.zeros(3, 3).long()] * 2, "a list"),
        (torch.zeros(2, 8, 8).long(), r"shape of a map is \(8, 8\), the output's \(4, 4\)"),
        (torch.full((2, 4, 4), 7), "label 7 in a map of 3 classes"),
        (torch.full((2, 4, 4), -1), "no pixel has a label"),
    ],
)
def test_labels_that_are_no_map_of_the_classes_are_refused(labels: Any, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        measure_metric(make_builtin("mIoU"), (torch.rand(2, 3, 4, 4),), labels, ONE)


# --- which direction is better ---


@pytest.mark.parametrize(
    ("name", "given", "higher", "assumed"),
    [
        ("accuracy", None, True, True),
        ("mae", None, False, True),
        ("val_loss", None, False, True),
        ("MeanSquaredError", None, False, True),
        ("lossless_ratio", None, True, True),
        ("mae", True, True, False),
        ("mae", {"mae": True}, True, False),
        ("accuracy", {}, True, True),
        ("distance", False, False, False),
    ],
)
def test_the_better_direction_is_told_or_read_from_the_name(name: str, given: Any, higher: bool, assumed: bool) -> None:
    metric = make_metric(accuracy, higher_is_better=given)
    (spec,) = describe_metric(metric, {name: 0.5})
    assert (spec.higher_is_better, spec.assumed, spec.is_accuracy) == (higher, assumed, higher)


def test_only_fractions_that_are_better_when_high_are_shown_in_points() -> None:
    specs = describe_metric(make_metric(accuracy), {"f1": 0.8, "psnr": 31.0, "mse": 0.1})
    assert [spec.is_accuracy for spec in specs] == [True, False, False]
    assert [spec.name for spec in specs] == ["f1", "psnr", "mse"]


def test_a_direction_of_a_value_that_is_not_returned_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"test_metrics\.py:\d+: accuracy\(\)|higher_is_better names f1, the metric returns mae"):
        describe_metric(make_metric(accuracy, higher_is_better={"f1": True}), {"mae": 1.0})


# --- faulty metrics and losses ---

X, Y = torch.rand(10, 4), torch.arange(10) % 4
FAULTY: dict[str, tuple[str, str]] = {
    "nan": ("return {'f1': float('nan')}", "f1 is nan"),
    "infinite": ("return {'f1': 1e400}", "f1 is inf"),
    "raises": ("x = 1\n    return {'f1': targets['boxes']}", r"fails with IndexError: too many indices|fails with \w+: .+; mend it"),
    "raises lines": ("raise ValueError('first\\nsecond')", "fails with ValueError: first; mend it"),
    "a number": ("return 0.5", "returns float 0.5; return a dict"),
    "nothing": ("pass", "returns NoneType"),
    "empty": ("return {}", "returns dict {}"),
    "text": ("return {'f1': 'good'}", "f1 is of type str; return one number a name"),
    "several": ("return {'f1': outputs.mean(0)}", "f1 is of type Tensor"),
    "random": ("return {'f1': float(torch.rand(()))}", r"f1 is 0\.\d+, then 0\.\d+ for the same input"),
    "counts": ("calls.append(1)\n    return {f'f{len(calls)}': 1}", "f1 is 1, then nothing"),
}


def define(tmp_path: Any, name: str, body: str, arguments: str = "outputs, targets") -> Any:
    """Return a function that a file of the user's defines from line 4 on."""
    path = tmp_path / "recipe.py"
    path.write_text(f"import torch\ncalls = []\n\ndef {name}({arguments}):\n    {body}\n")
    space: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space[name]


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_metric_is_refused_in_one_line_with_its_place(tmp_path: Any, monkeypatch: Any, case: str) -> None:
    body, fact = FAULTY[case]
    monkeypatch.chdir(tmp_path)
    metric = make_metric(define(tmp_path, "metric", body))
    with pytest.raises(ConfigError, match=rf"^recipe\.py:\d: metric\(\):? .*({fact})") as caught:
        check_metric(metric, (X,), Y, ONE)
    assert "\n" not in str(caught.value)
    if case == "raises":
        assert str(caught.value).startswith("recipe.py:6: ")  # the line that failed, not that of the function


def test_a_metric_of_other_arguments_is_refused(tmp_path: Any) -> None:
    for given in (define(tmp_path, "metric", "pass", "outputs"), 3, "accuracy"):
        with pytest.raises(ConfigError, match=r"metric.* is no function of two arguments; define metric\(outputs, targets\)"):
            make_metric(given, source="recipe.py")
    factory = make_metric(define(tmp_path, "metric", "return 3", ""))
    with pytest.raises(ConfigError, match=r"metric\(\): returns int; return an object with update\(\) and compute\(\)"):
        check_metric(factory, (X,), Y, ONE)


def test_other_names_in_a_later_batch_are_refused() -> None:
    def metric(outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"first" if int(targets[0]) == 0 else "later": 1.0}

    n = METRIC_BATCH + 1
    with pytest.raises(ConfigError, match="returns later, before first"):
        measure_metric(make_metric(metric), (torch.ones(n, 1),), torch.arange(n), ONE)


def test_a_dataset_without_targets_is_refused_for_a_metric() -> None:
    with pytest.raises(ConfigError, match=r"numbers: holds no targets, .*accuracy|holds no targets, .*metric\(\) needs them"):
        evaluate_metric(make_metric(accuracy), lambda x: x, Samples(X, None, source="numbers"), structure=ONE)


LOSSES: dict[str, tuple[str, str]] = {
    "nan": ("return outputs.sum() * float('nan')", "is nan for 10 samples"),
    "no gradient": ("return torch.tensor(1.0)", "has no gradient"),
    "a number": ("return outputs.sum().item()", "returns float; return a scalar tensor"),
    "a dict": ("return {'loss': outputs.sum()}", "returns dict"),
    "detached": ("return outputs.detach().sum()", "has no gradient"),
    "rounded": ("return (outputs + 1).round().sum()", "has no gradient"),
    "a vector": ("return outputs.sum(1)", r"returns a tensor of shape \(10,\); return a scalar"),
    "raises": ("return torch.nn.functional.cross_entropy(outputs, targets[:3])", r"fails with \w+: .+; mend it"),
    "no finite gradient": ("return (outputs * 0).abs().sqrt().sum()", "its gradient holds NaN"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_faulty_loss_is_refused_in_one_line_with_its_place(tmp_path: Any, monkeypatch: Any, case: str) -> None:
    body, fact = LOSSES[case]
    monkeypatch.chdir(tmp_path)
    loss = make_loss(define(tmp_path, "loss", body))
    with pytest.raises(ConfigError, match=rf"^recipe\.py:\d: loss\(\):? .*{fact}") as caught:
        check_loss(loss, (X,), Y, ONE)
    assert "\n" not in str(caught.value)


def test_a_loss_gets_the_network_s_structure_and_keeps_its_gradient() -> None:
    structure = structure_of(Network("dict"), (X,))
    loss = make_loss(lambda outputs, targets: nn.functional.cross_entropy(outputs["twice"], targets))
    x = X.clone().requires_grad_()
    value = loss((x, 2 * x), Y, structure)
    value.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert bool(x.grad.any())
    with torch.inference_mode():
        outputs = (X * 1, X * 2)
    assert check_loss(loss, outputs, Y, structure) == pytest.approx(float(value.detach()))
    in_place = make_loss(lambda outputs, targets: outputs.sigmoid_().sum())
    assert check_loss(in_place, (X,), Y, ONE) == pytest.approx(float(X.sigmoid().sum()))


@pytest.mark.parametrize("given", [3, nn.MSELoss, lambda outputs: outputs], ids=["number", "class", "one argument"])
def test_what_is_no_loss_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"loss.*: is no function of two arguments; define loss\(outputs, targets\)"):
        make_loss(given, source="recipe.py")


def test_a_module_is_a_loss() -> None:
    loss = make_loss(nn.CrossEntropyLoss(), source="recipe.py")
    assert re.search("loss$", loss.place)
    assert check_loss(loss, (X,), Y, ONE) > 0
