"""A dataset that `save_to_disk` of Hugging Face's library wrote: Arrow files, which pyarrow reads, and JSON that names their columns."""

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from edgecompress.data.images import check_preprocessing, open_image, preprocess_image
from edgecompress.data.samples import TARGET_KEYS, Column, Samples
from edgecompress.data.split import HELD_OUT, read_split_name, select_split
from edgecompress.errors import ConfigError, first_line
from edgecompress.network.batches import Batch
from edgecompress.records import Preprocessing

DICT, INFO, STATE = "dataset_dict.json", "dataset_info.json", "state.json"  # the last two lie in the folder of each split
REWRITE: Final = "write it again by save_to_disk"


class ArrowImages:
    """A column of encoded images as inputs; each is decoded when its sample is read."""

    def __init__(
        self, cells: Any, rows: Sequence[int], preprocessing: Preprocessing | None, input_shape: tuple[int, ...], *, subject: str
    ) -> None:
        check_preprocessing(preprocessing, input_shape)
        self.cells = cells
        self.rows = rows
        self.preprocessing = preprocessing
        self.input_shape = input_shape
        self.subject = subject

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        subject = f"{self.subject}: row {self.rows[index]}"
        cell = self.cells[self.rows[index]].as_py() or {}
        if cell.get("bytes") is None and not cell.get("path"):
            raise ConfigError(f"{subject}: no image; filter such rows out and {REWRITE}")
        file = Path(cell["path"]) if cell.get("bytes") is None else io.BytesIO(cell["bytes"])
        return preprocess_image(open_image(file, subject=subject), self.preprocessing, self.input_shape, subject=subject)


class ArrowNumbers:
    """A column of numbers, or of lists of them in any depth, as inputs."""

    def __init__(self, cells: Any, rows: Sequence[int], *, subject: str) -> None:
        self.cells = cells
        self.rows = rows
        self.subject = subject

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        try:
            numbers = np.asarray(self.cells[self.rows[index]].as_py())
        except ValueError:  # lists of several lengths
            numbers = np.asarray(None)
        if numbers.dtype.kind not in "fiub":
            raise ConfigError(
                f"{self.subject}: row {self.rows[index]} is no array of numbers; tokenize or convert the column and {REWRITE}"
            )
        return torch.from_numpy(numbers.astype(np.float32 if numbers.dtype.kind == "f" else np.int64))


def can_load(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in (DICT, INFO))


def load_split(path: Path, split: str, *, preprocessing: Preprocessing | None, example: Batch) -> Samples:
    """Return a split: its images or numbers as inputs, and its class labels, or the column `label`, as labels.

    Raises:
        ConfigError: pyarrow is not installed, a file is missing or damaged, or the columns do not tell the inputs of the model.
    """
    pyarrow = _import_pyarrow(path)
    folder, is_divided = _choose_folder(path, split)
    try:
        features = json.loads((folder / INFO).read_bytes())["features"]
        kinds = {str(name): str(feature.get("_type")) if isinstance(feature, dict) else "List" for name, feature in features.items()}
        files = [folder / Path(each["filename"]).name for each in json.loads((folder / STATE).read_bytes())["_data_files"]]
        table = pyarrow.concat_tables([pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all() for file in files])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # pyarrow's own errors are ValueErrors
        raise _describe_damage(folder, error) from error
    label = _choose_label(kinds, folder)
    rows: Sequence[int] = select_split(range(len(table)), split, str(folder)) if is_divided else range(len(table))
    inputs: list[Column] = []
    for name, wanted in zip(_choose_inputs(kinds, label, len(example), folder), example, strict=True):
        subject, cells = f"{folder}: column {name}", table.column(name)
        if kinds[name] == "Image":
            inputs.append(ArrowImages(cells, rows, preprocessing, tuple(wanted.shape[1:]), subject=subject))
        else:
            inputs.append(ArrowNumbers(cells, rows, subject=subject))
    return Samples(
        inputs[0] if len(inputs) == 1 else tuple(inputs),
        _convert_labels(table.column(label), rows, f"{folder}: column {label}") if label else None,
        source=f"{folder}: {len(rows)} rows{f', {HELD_OUT[split]}' if is_divided else ''}",
        class_names=tuple(features[label].get("names") or ()) if label and kinds[label] == "ClassLabel" else (),
    )


def _import_pyarrow(path: Path) -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: a dataset of Hugging Face's library, which pyarrow reads; pip install pyarrow") from error


def _describe_damage(folder: Path, error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return ConfigError(f"{folder}: a dataset of Hugging Face's library that cannot be read ({reason}); {REWRITE}")


def _choose_folder(path: Path, split: str) -> tuple[Path, bool]:
    """Return the folder of a split, and whether its rows are divided because there is no held-out set."""
    if not (path / DICT).is_file():
        return path, True
    try:
        names = [Path(str(name)).name for name in json.loads((path / DICT).read_bytes())["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _describe_damage(path, error) from error
    known = sorted((rank, found, name) for name in names for found, rank in filter(None, [read_split_name(name)]))
    folders = {each: [path / name for _, found, name in known if found == each] for each in HELD_OUT}
    if not folders["train"]:
        if len(names) != 1:
            raise ConfigError(f"{path}: its splits are {', '.join(names) or 'none'}; name one of them train and {REWRITE}")
        return path / names[0], True
    return (folders[split] or folders["train"])[0], not folders["eval"]


def _choose_label(kinds: dict[str, str], folder: Path) -> str:
    """Return the column of labels; "" for none."""
    usual = [name for name in TARGET_KEYS if name in kinds]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(classes) > 1 and not usual:
        raise ConfigError(f"{folder}: the columns {', '.join(classes)} are classes; rename one of them to label and {REWRITE}")
    return next(iter((*usual, *classes)), "")


def _choose_inputs(kinds: dict[str, str], label: str, count: int, folder: Path) -> list[str]:
    """Return the columns of inputs: the images where they are as many as the inputs of the model, else all columns but the label."""
    others = [name for name in kinds if name != label and kinds[name] != "ClassLabel"]
    images = [name for name in others if kinds[name] == "Image"]
    chosen = images if len(images) == count else others
    if len(chosen) != count:
        found = ", ".join(kinds) or "none"
        raise ConfigError(f"{folder}: its columns are {found}, the model takes {count} inputs; keep these and label and {REWRITE}")
    return chosen


def _convert_labels(cells: Any, rows: Sequence[int], subject: str) -> Tensor | None:
    """Return the labels of some rows; None where no row has one."""
    values = [cells[row].as_py() for row in rows]
    if all(value is None for value in values):
        return None
    try:
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{subject}: no numbers of one shape; make it one of classes by class_encode_column and {REWRITE}") from error
