"""Targets of any structure are gathered into batches, and taken apart again."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from edgecompress.data import Samples, check_labels, collate_targets, fetch_pairs, is_class_index, take_targets
from edgecompress.errors import ConfigError

Pose = namedtuple("Pose", "points visible")


def as_lists(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, value.tolist())
    if isinstance(value, dict):
        return {key: as_lists(each) for key, each in value.items()}
    return type(value)(map(as_lists, value)) if type(value) in (tuple, list) else value


F, I = torch.float32, torch.int64  # noqa: E741
COLLATED = {
    "class indices": ([1, np.int64(2), torch.tensor(3)], ("tensor", I, [1, 2, 3])),
    "floats": ([0.5, 1.0], ("tensor", F, [0.5, 1.0])),
    "vectors": ([torch.tensor([0.5, 1.0]), torch.tensor([2.0, 3.0])], ("tensor", F, [[0.5, 1.0], [2.0, 3.0]])),
    "arrays": ([np.ones((1, 2), "f4"), np.zeros((1, 2), "f4")], ("tensor", F, [[[1, 1]], [[0, 0]]])),
    "lists of one length": ([[1, 2], [3, 4]], ("tensor", I, [[1, 2], [3, 4]])),
    "lists of several lengths": ([[1, 2], [3]], [("tensor", I, [1, 2]), ("tensor", I, [3])]),
    "lists of boxes": ([[[0.0, 1.0]], []], [("tensor", F, [[0.0, 1.0]]), ("tensor", F, [])]),
    "polygons": ([[[1, 2], [3]], [[4]]], [[[1, 2], [3]], [[4]]]),
    "boxes": ([torch.ones(1, 2), torch.ones(2, 2)], [("tensor", F, [[1, 1]]), ("tensor", F, [[1, 1], [1, 1]])]),
    "text": (["a", "b"], ["a", "b"]),
    "dicts": (
        [{"mask": torch.ones(1), "ids": [1]}, {"mask": torch.zeros(1), "ids": [2, 3]}],
        {"mask": ("tensor", F, [[1], [0]]), "ids": [("tensor", I, [1]), ("tensor", I, [2, 3])]},
    ),
    "tuples": ([(1, 0.5), (2, 1.5)], (("tensor", I, [1, 2]), ("tensor", F, [0.5, 1.5]))),
}


@pytest.mark.parametrize("case", COLLATED)
def test_targets_are_gathered_in_their_structure_and_a_slice_is_that_of_its_samples(case: str) -> None:
    items, wanted = COLLATED[case]
    collated = collate_targets(items, "set")
    assert as_lists(collated) == wanted
    first = as_lists(take_targets(collated, slice(1)))
    alone = as_lists(collate_targets(items[:1], "set"))
    if case not in ("lists of several lengths", "lists of boxes", "polygons", "boxes", "dicts"):  # one alone has one size
        assert first == alone


def test_named_tuples_stay_named() -> None:
    collated = collate_targets([Pose(torch.ones(2), True), Pose(torch.zeros(2), False)], "set")
    assert collated.points.shape == (2, 2)
    assert collated.visible.tolist() == [True, False]
    assert take_targets(collated, slice(1, 2)).visible.tolist() == [False]


UNGATHERED: dict[str, tuple[list[Any], str]] = {
    "a number and a dict": ([1, {"a": 1}], r"targets do not batch: a tensor of shape \(\), a dict of a"),
    "other keys": ([{"a": 1}, {"b": 1}], "a dict of a, a dict of b"),
    "other keys inside": ([{"a": {"b": 1}}, {"a": {"c": 1}}], "'a': targets do not batch"),
    "tuples of other lengths": ([(1, 2), (1,)], "a tuple of 2, a tuple of 1"),
    "other axes": ([torch.ones(2), torch.ones(2, 2)], r"shape \(2,\), a tensor of shape \(2, 2\)"),
    "an object": ([object()], "type object"),
    "none": ([(1, None), (1, 2)], "entry 1: some of its targets are None"),
    "arrays of objects": ([np.array([None])], "arrays of object"),
}


@pytest.mark.parametrize("case", UNGATHERED)
def test_targets_that_do_not_batch_are_refused(case: str) -> None:
    items, fact = UNGATHERED[case]
    with pytest.raises(ConfigError, match=f"set: .*{fact}") as caught:
        collate_targets(items, "set")
    assert "\n" not in str(caught.value)


class Pairs(Dataset[Any]):
    source = "pairs"

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_pairs_are_inputs_checked_against_the_example_and_their_targets() -> None:
    x = torch.ones(3)
    data = Pairs((x, {"ids": [1], "at": 0.5}), (2 * x, {"ids": [1, 2], "at": 0.25}))
    (inputs,), targets = fetch_pairs(data, example=(torch.zeros(1, 3),))
    assert inputs[:, 0].tolist() == [1, 2]
    assert targets["at"].tolist() == [0.5, 0.25]
    assert [len(ids) for ids in targets["ids"]] == [1, 2]
    assert fetch_pairs(data, with_targets=False)[1] is None
    assert fetch_pairs(Pairs(x))[1] is None
    with pytest.raises(ConfigError, match=r"sample 0: its shape is \(3,\), the model's input is \(4,\)"):
        fetch_pairs(data, example=(torch.zeros(1, 4),))


def test_samples_give_float_targets_and_maps_as_tensors_and_class_indices_as_numbers() -> None:
    x = torch.ones(4, 2)
    assert type(Samples(x, torch.arange(4), source="s")[1][1]) is int  # type: ignore[misc]
    assert fetch_pairs(Samples(x, torch.rand(4, 10), source="s"))[1].shape == (4, 10)
    assert fetch_pairs(Samples(x, torch.rand(4), source="s"))[1].dtype == torch.float32
    assert fetch_pairs(Samples(x, torch.ones(4, 5, 5).long(), source="s"))[1].shape == (4, 5, 5)


@pytest.mark.parametrize(
    ("targets", "answer"),
    [
        (torch.arange(3), True),
        (torch.arange(3)[:, None], True),
        (torch.rand(3, 10), False),
        (torch.rand(3), False),
        (torch.ones(3, 4, 4).long(), False),
        (torch.ones(3).bool(), False),
        ({"a": torch.arange(3)}, False),
        (["a"], False),
    ],
)
def test_class_indices_are_one_integer_a_sample(targets: Any, answer: bool) -> None:
    assert is_class_index(targets) == answer
    if answer:
        assert check_labels(targets, "set").shape == (3,)
    elif not isinstance(targets, dict):
        with pytest.raises(ConfigError, match="set: labels"):
            check_labels(targets, "set")


def test_targets_of_an_archive_may_be_floats(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from edgecompress.data import load_data

    np.savez(tmp_path / "points.npz", inputs=np.ones((10, 3), "f4"), labels=np.arange(20.0).reshape(10, 2))
    held_out = load_data(tmp_path / "points.npz", "eval", preprocessing=None, example=(torch.zeros(1, 3),))
    assert fetch_pairs(held_out)[1].tolist() == [[8, 9], [18, 19]]
