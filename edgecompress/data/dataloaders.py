"""Take the dataset out of a `DataLoader`: commands draw, batch and order samples themselves."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, default_collate

from edgecompress.errors import ConfigError


class Collated(Dataset[Any]):
    """The items of a dataset as a loader's `collate_fn` makes them, one at a time and without the batch axis."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return _take_only(self.collate([self.dataset[index]]))


def take_dataset(given: Any, subject: str) -> Any:
    """Return the dataset of a `DataLoader`, with the samples that its sampler is limited to; anything else as it is.

    Args:
        subject: Names the data in the message.

    Raises:
        ConfigError: The loader reads a stream, which has no length and no index.
    """
    if not isinstance(given, DataLoader):
        return given
    dataset: Any = given.dataset
    if isinstance(dataset, IterableDataset):
        raise ConfigError(f"{subject}: a DataLoader of a stream, whose samples have no numbers; give a map-style torch Dataset")
    if isinstance(given.sampler, SubsetRandomSampler):
        dataset = Subset(dataset, list(given.sampler.indices))
    return dataset if given.collate_fn is default_collate or given.batch_size is None else Collated(dataset, given.collate_fn)


def _take_only(batch: Any) -> Any:
    """Return the one sample of a batch: of tensors and of lists with an entry a sample the first, in dicts and tuples of any depth."""
    if isinstance(batch, Mapping):
        return {key: _take_only(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list) and len(batch) != 1:
        return tuple(_take_only(value) for value in batch)
    return batch[0]
