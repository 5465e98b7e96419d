"""What Hugging Face's `save_to_disk` wrote gives its images, numbers and labels, or is refused by its columns."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.arrow_files import CLASSES, IMAGE, LISTS, NUMBER, pyarrow_stand_in, write_dataset, write_splits

from edgecompress.data import fetch_pairs, load_data
from edgecompress.errors import ConfigError

ROWS = 10
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4, 3), np.uint8)
LABELS = [i % 2 for i in range(ROWS)]
EXAMPLE = (torch.zeros(1, 3, 4, 4),)


def encode(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


IMAGES = [{"bytes": encode(pixels), "path": None} for pixels in PIXELS]
PICTURES = {
    "features": {"image": IMAGE, "label": CLASSES, "width": NUMBER},
    "columns": {"image": IMAGES, "label": LABELS, "width": [4] * ROWS},
}


@pytest.fixture(autouse=True)
def pyarrow():
    with pyarrow_stand_in():
        yield


def load(folder, split="train", example=EXAMPLE):
    return load_data(folder, split, preprocessing=None, example=example)


@pytest.mark.parametrize("splits", [("train", "test"), ("Train", "validation"), ("train", "val", "test")])
def test_images_and_labels_of_the_splits_are_read(tmp_path, splits):
    folder = write_splits(tmp_path / "d", splits, **PICTURES)
    for split, name in (("train", splits[0]), ("eval", splits[-1])):
        found = load(folder, split)
        (inputs,), labels = fetch_pairs(found)
        torch.testing.assert_close(inputs, torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255)
        assert labels.tolist() == LABELS
        assert found.class_names == ("cat", "dog")
        assert found.source == f"{folder / name}: {ROWS} rows"


@pytest.mark.parametrize("splits", [(), ("train",), ("all",)])
def test_one_split_alone_is_divided(tmp_path, splits):
    folder = write_splits(tmp_path / "d", splits, **PICTURES) if splits else write_dataset(tmp_path / "d", **PICTURES)
    train, held_out = load(folder), load(folder, "eval")
    assert (len(train), len(held_out)) == (8, 2)
    torch.testing.assert_close(held_out[0][0], torch.from_numpy(PIXELS[4]).permute(2, 0, 1) / 255)
    assert "held out of training" in held_out.source


def test_an_image_may_lie_in_a_file_of_its_own(tmp_path):
    (tmp_path / "0.png").write_bytes(encode(PIXELS[0]))
    cells = [{"bytes": None, "path": str(tmp_path / "0.png")}] * ROWS
    folder = write_dataset(tmp_path / "d", {"img": IMAGE}, {"img": cells})
    (inputs,), labels = fetch_pairs(load(folder))
    torch.testing.assert_close(inputs[0], torch.from_numpy(PIXELS[0]).permute(2, 0, 1) / 255)
    assert labels is None


def test_columns_of_numbers_are_the_inputs_of_a_model_without_images(tmp_path):
    tables = np.arange(ROWS * 4.0).reshape(ROWS, 2, 2)
    columns = {"table": tables.tolist(), "age": [float(i) for i in range(ROWS)], "target": [i / 2 for i in range(ROWS)]}
    folder = write_dataset(tmp_path / "d", {"table": LISTS, "age": NUMBER, "target": NUMBER}, columns)
    (table, age), targets = fetch_pairs(load(folder, example=(torch.zeros(1, 2, 2), torch.zeros(1))))
    kept = [i for i in range(ROWS) if i % 5 != 4]
    assert table.tolist() == tables[kept].tolist()
    assert age.tolist() == kept
    assert targets.tolist() == [i / 2 for i in kept]


REFUSED = {
    "text": ({"text": NUMBER, "label": CLASSES}, {"text": ["a"] * ROWS, "label": LABELS}, "row 0 is no array of numbers; tokenize"),
    "lists of several lengths": ({"x": LISTS}, {"x": [[[1, 2], [3]]] * ROWS}, "row 0 is no array of numbers; "),
    "too many columns": (
        {"x": NUMBER, "y": NUMBER},
        {"x": [1.0] * ROWS, "y": [1.0] * ROWS},
        "columns are x, y, the model takes 1 inputs; keep",
    ),
    "two columns of classes": (
        {"x": IMAGE, "fine": CLASSES, "coarse": CLASSES},
        {"x": IMAGES, "fine": LABELS, "coarse": LABELS},
        "the columns fine, coarse are classes; rename one of them to label",
    ),
    "labels in words": (
        {"x": IMAGE, "label": NUMBER},
        {"x": IMAGES, "label": ["cat"] * ROWS},
        "column label: no numbers of one shape; make",
    ),
    "no image in a row": ({"x": IMAGE}, {"x": [None] * ROWS}, "column x: row 0: no image; filter such rows out"),
    "no image but noise": ({"x": IMAGE}, {"x": [{"bytes": b"noise"}] * ROWS}, "column x: row 0: unreadable image: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_columns_that_tell_no_samples_are_refused(tmp_path, name):
    features, columns, message = REFUSED[name]
    folder = write_dataset(tmp_path / "d", features, columns)
    with pytest.raises(ConfigError) as refusal:
        fetch_pairs(load(folder), [0])
    assert str(refusal.value).startswith(str(folder))
    assert message in str(refusal.value)


def test_damaged_and_nameless_folders_are_refused(tmp_path):
    folder = write_splits(tmp_path / "d", ("one", "two"), **PICTURES)
    with pytest.raises(ConfigError, match="its splits are one, two; name one of them train and write it again"):
        load(folder)
    (folder / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    with pytest.raises(ConfigError, match=r"d/train: a dataset of Hugging Face's library that cannot be read \(FileNotFoundError"):
        load(folder)
    (folder / "dataset_dict.json").write_text("[")
    with pytest.raises(ConfigError, match=r"that cannot be read .*; write it again by save_to_disk"):
        load(folder)


def test_files_of_the_library_itself_are_read(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "pyarrow")  # the stand-in
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    made = datasets.Dataset.from_dict({"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": LABELS}, features=features)
    datasets.DatasetDict(train=made, test=made).save_to_disk(tmp_path / "d")
    (inputs,), labels = fetch_pairs(load(tmp_path / "d", "eval"))
    torch.testing.assert_close(inputs, torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255)
    assert labels.tolist() == LABELS
