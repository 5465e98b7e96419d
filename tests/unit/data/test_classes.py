"""Labels mean the network's classes: found by name where names are known, in the order of the folders otherwise, and then said."""

from typing import Any

import pytest
import torch

from edgecompress.data import Samples
from edgecompress.data.classes import map_classes, number_classes
from edgecompress.errors import ConfigError


def named(*names: str) -> Samples:
    return Samples(torch.zeros(len(names), 1), torch.arange(len(names)), source="folder", class_names=names)


NUMBERS = tuple(sorted(map(str, range(12))))


@pytest.mark.parametrize(
    ("folders", "labels", "expected", "note"),
    [
        (("cat", "dog"), ("dog", "cat"), [1, 0], ""),
        (("cat", "dog"), ("cat", "dog", "fish"), [0, 1], ""),
        (("cat", "dog"), (), [0, 1], ""),
        (("Cat", "sea_lion"), ("sea lion", "cat"), [1, 0], ""),
        (("01", "02", "10"), ("10", "2", "1"), [2, 1, 0], ""),
        (NUMBERS, tuple(map(str, range(12))), [int(name) for name in NUMBERS], ""),
        (NUMBERS, (), list(range(12)), "in the order of their names as text (0, 1, 10, 11, 2, …); labels() gives another order"),
        (("0", "1", "2"), (), [0, 1, 2], ""),
        (("a", "b"), ("cat", "dog"), [0, 1], "the class folders (a, b, …) have other names than the labels"),
        (("Cat", "cat"), ("cat", "Cat"), [1, 0], ""),
    ],
)
def test_labels_are_numbered_as_the_network_numbers_its_classes(folders: Any, labels: Any, expected: list[int], note: str) -> None:
    found = number_classes(named(*folders), labels, "recipe.py")
    assert isinstance(found, Samples)
    assert found.labels is not None
    assert found.labels.tolist() == expected
    assert note in " ".join(found.notes)
    assert len(found.notes) == bool(note)


def test_a_class_that_the_network_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.py: class 'Hat' of the data is not among its labels \(cat, dog\); name it as they do"):
        number_classes(named("cat", "Hat"), ("cat", "dog"), "recipe.py")


def test_a_dataset_without_names_has_the_labels_of_the_network() -> None:
    dataset = [(torch.zeros(1), 1)]
    assert number_classes(dataset, ("cat", "dog"), "recipe.py") is dataset
    assert map_classes((), ("cat", "dog"), "recipe.py") == ()
