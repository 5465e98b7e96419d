"""A recipe's own DataLoader stands for its dataset: the same samples, in an order and in batches of the command's own."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from edgecompress.data import fetch_pairs
from edgecompress.data.dataloaders import take_dataset
from edgecompress.errors import ConfigError

X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
PAIRS = TensorDataset(X, Y)


class Named(Dataset[Any]):
    """Items of another form, which only the loader's `collate_fn` turns into samples."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return {"x": X[index].tolist(), "y": int(Y[index])}


def gather(items: list[Any]) -> Any:
    return torch.tensor([item["x"] for item in items]), torch.tensor([item["y"] for item in items])


def gather_lists(items: list[Any]) -> Any:
    return tuple(zip(*((torch.tensor(item["x"]), item["y"]) for item in items), strict=True))


def gather_dict(items: list[Any]) -> Any:
    return dict(zip(("pixel_values", "labels"), gather(items), strict=True))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(PAIRS, batch_size=4, shuffle=True, drop_last=True),
        DataLoader(PAIRS, batch_size=None),
        DataLoader(Named(), batch_size=4, collate_fn=gather),
        DataLoader(Named(), batch_size=4, collate_fn=gather_lists),
        DataLoader(Named(), batch_size=4, collate_fn=gather_dict),
    ],
    ids=["pairs", "unbatched", "collated", "collated into lists", "collated into a dict"],
)
def test_the_samples_of_a_loader_are_those_of_its_dataset(loader: Any) -> None:
    (inputs,), targets = fetch_pairs(take_dataset(loader, "recipe.py: train_data()"), example=(torch.zeros(1, 2),))
    torch.testing.assert_close(inputs, X)
    assert targets.tolist() == Y.tolist()


def test_two_inputs_of_a_collated_sample_stay_two() -> None:
    loader = DataLoader(PAIRS, collate_fn=lambda items: ((torch.stack([x for x, _ in items]),) * 2, torch.tensor([y for _, y in items])))
    inputs, targets = fetch_pairs(take_dataset(loader, "recipe.py"), example=(torch.zeros(1, 2),) * 2)
    assert [x.tolist() for x in inputs] == [X.tolist()] * 2
    assert targets.tolist() == Y.tolist()


def test_a_sampler_of_some_samples_limits_them() -> None:
    loader = DataLoader(PAIRS, sampler=SubsetRandomSampler([4, 1]))
    assert fetch_pairs(take_dataset(loader, "recipe.py"))[1].tolist() == [4, 1]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(PAIRS)


def test_a_loader_of_a_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.py: train_data\(\): a DataLoader of a stream, .*; give a map-style torch Dataset"):
        take_dataset(DataLoader(Stream()), "recipe.py: train_data()")


def test_a_dict_of_one_input_and_a_label_is_a_sample() -> None:
    items: Any = [{"label": int(y), "pixel_values": x} for x, y in zip(X, Y, strict=True)]
    (inputs,), targets = fetch_pairs(items)
    torch.testing.assert_close(inputs, X)
    assert targets.tolist() == Y.tolist()
    with pytest.raises(ConfigError, match="list: yields a dict of input_ids, mask, label, whose order tells no inputs; yield"):
        fetch_pairs([{"input_ids": Y, "mask": Y, "label": 1}])  # type: ignore[arg-type]
