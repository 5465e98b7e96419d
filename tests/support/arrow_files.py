"""Folders as `save_to_disk` of Hugging Face's library writes them, and a stand-in for pyarrow, which edgecompress does not require."""

import base64
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

IMAGE, CLASSES, NUMBER = {"_type": "Image"}, {"_type": "ClassLabel", "names": ["cat", "dog"]}, {"_type": "Value", "dtype": "float32"}
LISTS = {"_type": "Array2D", "shape": [2, 2], "dtype": "float32"}


def write_dataset(folder, features, columns):
    """Write one split in two files; the stand-in reads JSON where the library writes Arrow."""
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    half = len(next(iter(columns.values()))) // 2
    files = {"data-00000-of-00002.arrow": slice(half), "data-00001-of-00002.arrow": slice(half, None)}
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    for name, rows in files.items():
        (folder / name).write_text(json.dumps({key: values[rows] for key, values in columns.items()}, default=_encode))
    return folder


def write_splits(folder, splits, features, columns):
    for name in splits:
        write_dataset(folder / name, features, columns)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def _encode(value):
    return {"base64": base64.b64encode(value).decode()}


def _decode(value):
    return base64.b64decode(value["base64"]) if set(value) == {"base64"} else value


class _Table(dict):
    def column(self, name):
        return [SimpleNamespace(as_py=lambda value=value: value) for value in self[name]]

    def __len__(self):
        return len(next(iter(self.values())))


def _concatenate(tables):
    return _Table({name: [value for table in tables for value in table[name]] for name in tables[0]})


@contextmanager
def pyarrow_stand_in():
    """Put a module in the place of pyarrow that has what of it is called."""
    module = ModuleType("pyarrow")
    read = lambda path: SimpleNamespace(read_all=lambda: _Table(json.loads(Path(path).read_text(), object_hook=_decode)))  # noqa: E731
    vars(module).update(memory_map=str, ipc=SimpleNamespace(open_stream=read), concat_tables=_concatenate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", module)
        yield
