"""The digest of a dataset changes with what it holds, and with nothing else."""

import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from edgecompress.data import Samples
from edgecompress.data.content import SAMPLED_ITEMS, _sample_indices, digest_dataset

N = 300
X, Y = torch.rand(N, 3, 4), torch.arange(N) % 7


class Items(Dataset[Any]):
    """A dataset that computes its items, and draws random numbers from a generator where one is given."""

    def __init__(self, change: Any = None, n: int = N) -> None:
        self.change = change
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        item = X[index].clone(), {"class": int(Y[index]), "box": [0.5, float(index)], "text": "a"}
        return item if self.change is None else self.change(index, *item)


def own_noise(index: int, x: torch.Tensor, target: Any) -> Any:
    return x + torch.from_numpy(np.random.default_rng().random(x.shape)), target


def shared_noise(index: int, x: torch.Tensor, target: Any) -> Any:
    return x + torch.rand(x.shape) + random.random() + np.random.rand(), target


def one_pixel(index: int, x: torch.Tensor, target: Any) -> Any:
    x[0, 0] += 1e-6 if index == N - 1 else 0
    return x, target


def one_target(index: int, x: torch.Tensor, target: Any) -> Any:
    return x, {**target, "class": target["class"] + (index == 0)}


CHANGES = {
    "a pixel of the last item": Items(one_pixel),
    "a target of the first item": Items(one_target),
    "a type": Items(lambda i, x, t: (x.double(), t)),
    "a shape": Items(lambda i, x, t: (x.reshape(4, 3), t)),
    "no target": Items(lambda i, x, t: x),
    "length": Items(n=N - 1),
    "noise": Items(own_noise),
    "seeded noise": Items(shared_noise),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_content_has_another_digest(case: str) -> None:
    assert digest_dataset(CHANGES[case]) != digest_dataset(Items())
    assert digest_dataset(CHANGES[case]) == digest_dataset(CHANGES[case])


@pytest.mark.parametrize("noise", [own_noise, shared_noise])
def test_of_a_random_augmentation_the_targets_count(noise: Any) -> None:
    def noise_and_target(index: int, x: torch.Tensor, target: Any) -> Any:
        return noise(*(index, *one_target(index, x, target)))

    assert digest_dataset(Items(noise)) != digest_dataset(Items(noise_and_target))


def test_items_of_one_augmentation_with_shared_random_numbers_count_whole() -> None:
    def noise_and_pixel(index: int, x: torch.Tensor, target: Any) -> Any:
        return shared_noise(index, *one_pixel(index, x + 1, target))

    assert digest_dataset(Items(shared_noise)) != digest_dataset(Items(noise_and_pixel))


def test_all_labels_in_memory_count_and_a_sample_of_the_inputs() -> None:
    n = 10_000
    x, y = torch.rand(n, 2), torch.arange(n) % 10
    before = digest_dataset(Samples(x, y, source="s"))
    unsampled = next(i for i in range(n) if i not in _sample_indices(n))
    assert len(_sample_indices(n)) == SAMPLED_ITEMS
    other = y.clone()
    other[unsampled] += 1
    assert digest_dataset(Samples(x, other, source="s")) != before
    assert digest_dataset(Samples(x, y.roll(1), source="another name")) != before
    assert digest_dataset(Samples(x, y, source="another name")) == before
    assert digest_dataset(TensorDataset(x, y.roll(1))) != digest_dataset(TensorDataset(x, y))
    assert digest_dataset(Samples(x + 1, y, source="s"), with_inputs=False) == digest_dataset(Samples(x, y, source="s"), with_inputs=False)


def test_the_random_generators_stay_as_they_were() -> None:
    draw = lambda: (torch.rand(()).item(), random.random(), np.random.rand())  # noqa: E731
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    wanted = draw()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    digest_dataset(Items(shared_noise))
    assert draw() == wanted


class Folder(Dataset[Any]):
    """A dataset that lists its files, in the manner of torchvision."""

    def __init__(self, samples: list[tuple[str, int]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(1), 0


def test_files_count_by_size_and_time(tmp_path: Any) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(200)]
    for path in paths:
        path.write_bytes(b"1")
    data = Folder([(str(path), 0) for path in paths])
    forms = (data, Subset(data, range(100)), ConcatDataset([data, data]))
    before = [digest_dataset(form) for form in forms]
    assert [digest_dataset(form) for form in forms] == before
    paths[137].write_bytes(b"22")
    assert not {digest_dataset(form) for form in forms} & set(before)


@pytest.mark.parametrize(
    "odd", [None, iter([]), Items(n=0), Items(lambda i, x, t: 1 / 0), Items(lambda i, x, t: [object(), {1, 2}]), [], [1, 2]]
)
def test_odd_data_have_a_digest_since_their_step_explains_them(odd: Any) -> None:
    assert digest_dataset(odd) == digest_dataset(odd)


def test_a_digest_takes_no_time() -> None:
    images = Samples(torch.rand(70, 3, 224, 224), torch.zeros(70).long(), source="photographs")
    started = time.process_time()
    digest_dataset(images)
    assert time.process_time() - started < 2  # 0.1 s on an idle machine
