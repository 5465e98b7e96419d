"""Every data format reads back the samples that were written, and refuses data that do not fit in one line."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from edgecompress import data
from edgecompress.data import Samples, fetch_samples, idx, preprocess_image
from edgecompress.errors import ConfigError
from edgecompress.records import Preprocessing

GREY, COLOUR = (1, 8, 6), (3, 8, 6)
HALF = Preprocessing(mean=(0.5,), std=(0.25,))
RNG = np.random.default_rng(0)
IMAGES = {GREY: RNG.integers(0, 256, (10, 8, 6), np.uint8), COLOUR: RNG.integers(0, 256, (10, 8, 6, 3), np.uint8)}
LABELS = np.arange(10) % 2


def expected(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> torch.Tensor:
    x = torch.from_numpy(IMAGES[shape].reshape(10, 8, 6, shape[0])).permute(0, 3, 1, 2).float() / 255
    return x if preprocessing is None else (x - preprocessing.mean[0]) / preprocessing.std[0]


def example(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(1, *shape) for shape in shapes)


def write_folder(root: Path, shape: tuple[int, ...]) -> Path:
    for split in ("train", "test"):
        for index, image in enumerate(IMAGES[shape]):
            folder = root / split / ("ant", "bee")[LABELS[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.png")
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    return root


def write_npz(root: Path, x: np.ndarray) -> Path:
    np.savez(root / "set.npz", x_train=x, y_train=LABELS, x_test=x, y_test=LABELS)
    return root / "set.npz"


def write_idx(root: Path, shape: tuple[int, ...]) -> Path:
    for stem in idx.SPLITS.values():
        idx.write_idx(root / f"{stem}-images-idx3-ubyte.gz", IMAGES[shape])
        idx.write_idx(root / f"{stem}-labels-idx1-ubyte", LABELS)
    return root


FORMS: dict[str, tuple[tuple[int, ...], Callable[[Path], Path]]] = {
    "imagefolder grey": (GREY, lambda root: write_folder(root, GREY)),
    "imagefolder colour": (COLOUR, lambda root: write_folder(root, COLOUR)),
    "npz grey": (GREY, lambda root: write_npz(root, IMAGES[GREY])),
    "npz channels last": (COLOUR, lambda root: write_npz(root, IMAGES[COLOUR])),
    "npz channels first": (COLOUR, lambda root: write_npz(root, IMAGES[COLOUR].transpose(0, 3, 1, 2))),
    "idx": (GREY, lambda root: write_idx(root, GREY)),
}


@pytest.mark.parametrize("preprocessing", [None, HALF], ids=["plain", "normalised"])
@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_inputs_and_labels(tmp_path: Path, form: str, split: Any, preprocessing: Preprocessing | None) -> None:
    shape, write = FORMS[form]
    samples = data.load_data(write(tmp_path), split, preprocessing=preprocessing, example=example(shape))
    (inputs,), labels = fetch_samples(samples, example=example(shape), classes=2)
    order = np.argsort(LABELS, kind="stable") if "folder" in form else np.arange(10)
    torch.testing.assert_close(inputs, expected(shape, preprocessing)[order], rtol=0, atol=0)
    assert labels is not None
    assert labels.tolist() == LABELS[order].tolist()
    assert "10" in samples.source
    assert str(tmp_path) in samples.source


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2"])
def test_float_arrays_are_taken_as_they_are(tmp_path: Path, layout: tuple[int, ...], dtype: str) -> None:
    x = expected(COLOUR, HALF).numpy().astype(dtype)
    samples = data.load_data(write_npz(tmp_path, x.transpose(layout)), "eval", preprocessing=HALF, example=example(COLOUR))
    torch.testing.assert_close(fetch_samples(samples)[0][0], torch.from_numpy(x.astype("f4")), rtol=0, atol=0)


def test_float_arrays_may_have_any_shape(tmp_path: Path) -> None:
    x = RNG.normal(size=(10, 7))
    samples = data.load_data(write_npz(tmp_path, x), "train", preprocessing=None, example=example((7,)))
    torch.testing.assert_close(fetch_samples(samples)[0][0], torch.from_numpy(x).float())


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_data_without_splits_are_divided_without_overlap(tmp_path: Path, kind: str) -> None:
    if kind == "npz":
        np.savez(tmp_path / "one.npz", inputs=IMAGES[GREY], labels=LABELS)
        path = tmp_path / "one.npz"
    else:
        path = write_folder(tmp_path, GREY) / "train"
    train, held_out = (data.load_data(path, split, preprocessing=None, example=example(GREY)) for split in ("train", "eval"))  # type: ignore[arg-type]
    assert (len(train), len(held_out)) == (8, 2)
    rows = {tuple(x.flatten().tolist()) for x in torch.cat([fetch_samples(train)[0][0], fetch_samples(held_out)[0][0]])}
    assert len(rows) == 10
    assert "held out" in train.source
    assert "held out" in held_out.source


def test_inputs_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", inputs=IMAGES[GREY])
    (inputs,), labels = fetch_samples(data.load_data(tmp_path / "x.npz", "train", preprocessing=None, example=example(GREY)))
    assert inputs.shape == (8, *GREY)
    assert labels is None


def test_class_names_are_the_folders_in_alphabetical_order(tmp_path: Path) -> None:
    samples = data.load_data(write_folder(tmp_path, GREY), "train", preprocessing=None, example=example(GREY))
    assert samples.class_names == ("ant", "bee")


def test_grey_and_colour_are_converted_to_what_the_model_takes(tmp_path: Path) -> None:
    assert preprocess_image(IMAGES[GREY][0], None, COLOUR).unique(dim=0).shape[0] == 1  # three equal channels
    luma = preprocess_image(IMAGES[COLOUR][0], None, GREY)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close(luma[0], (expected(COLOUR, None)[0] * weights).sum(0), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(("width", "height"), [(300, 260), (256, 400), (1000, 257)])
def test_resize_and_crop_keep_the_centre(width: int, height: int) -> None:
    ramp = np.linspace(0, 255, width, dtype=np.float32)[None].repeat(height, 0).astype(np.uint8)
    x = preprocess_image(Image.fromarray(ramp), Preprocessing(mean=(0,), std=(1,), resize=256, crop=224), (1, 224, 224))
    assert x.shape == (1, 224, 224)
    assert abs(float(x.mean()) - 0.5) < 0.01
    torch.testing.assert_close(x[0, :, :], x[0, :1, :].expand(224, 224), rtol=0, atol=0)


def test_photographs_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGES[GREY][0]).save(tmp_path / "turned.png", exif=exif)
    turned = preprocess_image(data.open_image(tmp_path / "turned.png"), None, (1, 6, 8))
    torch.testing.assert_close(turned[0], expected(GREY, None)[0, 0].rot90(-1), rtol=0, atol=0)


def test_fetch_draws_the_same_for_the_same_seed_and_never_twice() -> None:
    samples = Samples(torch.arange(50.0)[:, None], torch.arange(50), source="numbers")
    first, again, other = (fetch_samples(samples, 20, seed=seed)[1] for seed in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first.tolist())) == 20
    assert fetch_samples(samples, 3)[0][0].flatten().tolist() == [0, 1, 2]
    assert fetch_samples(samples, [4, -1])[0][0].flatten().tolist() == [4, 49]
    every = fetch_samples(samples, 1000, seed=0)[0][0].flatten().tolist()
    assert sorted(every) == list(range(50))
    assert sorted(every[:25]) != list(range(25))  # the first of them stand for all


def test_samples_can_be_fetched_from_any_torch_dataset() -> None:
    x, y = torch.randn(5, 3), torch.arange(5)
    for dataset, labelled in ((TensorDataset(x, y), True), (TensorDataset(x), False), (Samples(x, None, source="x"), False)):
        (inputs,), labels = fetch_samples(dataset)
        torch.testing.assert_close(inputs, x)
        assert (labels is not None) == labelled


def test_transform_sees_each_input_and_leaves_the_set_alone() -> None:
    x = torch.ones(4, 2)
    torch.testing.assert_close(fetch_samples(Samples(x, None, source="ones", transform=lambda v: v * 2))[0][0], x * 2)
    assert x.eq(1).all()


def test_samples_end_like_a_sequence() -> None:
    assert len(list(Samples(torch.ones(4, 2), None, source="ones"))) == 4  # type: ignore[call-overload]


class Fixed(Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


ONE = torch.ones(2)
BAD_SETS: dict[str, tuple[Callable[[], Dataset[Any]], str]] = {
    "empty": (lambda: Samples(torch.ones(0, 2), None, source="s"), "no samples"),
    "stream": (Stream, "map-style"),
    "not a tensor": (lambda: Fixed([1.0]), "of type float"),
    "three values": (lambda: Fixed((ONE, 1, 2)), "3 values"),
    "two shapes": (lambda: Fixed(ONE, torch.ones(3)), "shape"),
    "some labelled": (lambda: Fixed(ONE, (ONE, 1)), "label every sample or none"),
    "nan": (lambda: Fixed(ONE, ONE * float("nan")), "first 1"),
    "infinity": (lambda: Fixed(ONE * float("inf")), "infinity"),
    "label too high": (lambda: Fixed((ONE, 9)), "0 … 8"),
    "label negative": (lambda: Fixed((ONE, -1)), "0 … 8"),
    "label not integer": (lambda: Fixed((ONE, 0.5)), "integer"),
    "label of text": (lambda: Fixed((ONE, "cat")), "type str"),
    "one-hot": (lambda: Fixed((ONE, torch.eye(9).long()[0])), "argmax"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_sets_are_refused(case: str) -> None:
    make, fact = BAD_SETS[case]
    with pytest.raises(ConfigError, match=fact) as caught:
        fetch_samples(make(), classes=9, example=example((2,)))
    one_line(caught.value)


@pytest.mark.parametrize("which", [0, -3, []])
def test_fetching_no_samples_is_refused(which: Any) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        fetch_samples(Samples(torch.ones(4, 2), None, source="s"), which)


def test_large_finite_inputs_are_no_infinity() -> None:
    (inputs,), _ = fetch_samples(Samples(torch.full((4, 2), 3e38), None, source="large"))
    assert torch.equal(inputs, torch.full((4, 2), 3e38))  # their sum is infinite, none of them is


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 inputs but 3 labels"):
        Samples(torch.ones(4, 2), torch.zeros(3), source="s")


def one_line(error: Exception) -> None:
    text = str(error)
    assert "\n" not in text
    assert ": " in text


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path / "bad.npz", **arrays)
    return path / "bad.npz"


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image_among(root: Path, content: bytes, name: str = "0.png") -> Path:
    written(write_folder(root, GREY) / "train" / "ant" / name, content)
    return root


def png(array: np.ndarray, root: Path) -> bytes:
    Image.fromarray(array).save(root / "tmp.png")
    content = (root / "tmp.png").read_bytes()
    (root / "tmp.png").unlink()
    return content


def tiff(array: np.ndarray, root: Path) -> bytes:
    Image.fromarray(array).save(root / "tmp.tif")
    content = (root / "tmp.tif").read_bytes()
    (root / "tmp.tif").unlink()
    return content


def idx_of(root: Path, name: str, content: bytes) -> Path:
    write_idx(root, GREY)
    (root / name).write_bytes(content)
    return root


X = IMAGES[GREY]
BAD_DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda root: root / "nowhere", "no such file"),
    "empty folder": (lambda root: root, "empty folder"),
    "hugging face": (lambda root: written(root / "dataset_dict.json", b"{}").parent, "a dataset of Hugging Face's library"),
    "unknown file": (lambda root: written(root / "data.csv", b"1,2"), "not a form"),
    "folder without classes": (lambda root: written(root / "a.png", b"").parent, "no class folders"),
    "classes without images": (lambda root: written(root / "ant" / "a.txt", b"").parents[1], "no images"),
    "no train folder": (lambda root: written(root / "test" / "ant" / "a.png", b"").parents[2], "no folder train"),
    "float image": (lambda root: image_among(root, tiff(X[0].astype(np.float32), root), "0.tif"), "more than 16 bits"),
    "image of another size": (lambda root: image_among(root, png(X[0][:4], root)), "one static shape"),
    "too few to part": (lambda root: save(root, inputs=X[:3], labels=LABELS[:3]), "at least 5"),
    "npz is text": (lambda root: written(root / "bad.npz", b"hello"), "not an .npz"),
    "npz is a pickle": (lambda root: written(root / "bad.npz", pickle.dumps([1])), "not an .npz"),
    "npz truncated": (lambda root: written(root / "bad.npz", save(root, x_train=X).read_bytes()[:200]), "not an .npz"),
    "npz damaged": (
        lambda root: written(root / "bad.npz", save(root, x_train=X).read_bytes().replace(X[4].tobytes(), X[5].tobytes())),
        "CRC",
    ),
    "npz of objects": (lambda root: save(root, x_train=np.array([object()], object)), "may run code"),
    "npz labels of objects": (lambda root: save(root, x_train=X, y_train=np.array([None] * 10, object)), "may run code"),
    "npz without inputs": (lambda root: save(root, images=X), "no array x_train or inputs, it holds images"),
    "npz of one number": (lambda root: save(root, x_train=np.float32(1)), "no samples"),
    "npz without samples": (lambda root: save(root, x_train=X[:0]), "no samples"),
    "npz unequal": (lambda root: save(root, x_train=X, y_train=LABELS[:9]), "10 inputs but 9 labels"),
    "npz one set unequal": (lambda root: save(root, inputs=X, labels=LABELS[:9]), "10 inputs but 9 labels"),
    "npz another size": (lambda root: save(root, x_train=X[:, :4]), "one static shape"),
    "npz floats of another size": (lambda root: save(root, x_train=X[:, :4] / 255), "one static shape"),
    "npz flat bytes": (lambda root: save(root, x_train=X.reshape(10, -1)), "are no images"),
    "npz two channels": (lambda root: save(root, x_train=np.zeros((10, 8, 6, 2), np.uint8)), "no grey or colour image"),
    "npz of int64": (lambda root: save(root, x_train=X.astype(int)), "inputs are int64"),
    "npz of text": (lambda root: save(root, x_train=np.array(["a"] * 10)), "inputs are <U1"),
    "npz nan": (lambda root: save(root, x_train=np.where(X[:, None] > 200, np.nan, 1.0)), "NaN"),
    "npz float labels": (lambda root: save(root, x_train=X, y_train=LABELS * 0.5), "integer"),
    "npz text labels": (lambda root: save(root, x_train=X, y_train=np.array(["a"] * 10)), "labels are <U1"),
    "npz negative labels": (lambda root: save(root, x_train=X, y_train=LABELS - 1), "from -1"),
    "npz one-hot labels": (lambda root: save(root, x_train=X, y_train=np.eye(10, dtype=int)), "argmax"),
    "idx truncated": (lambda root: idx_of(root, "train-images-idx3-ubyte.gz", b"\x1f\x8b\x08"), "unreadable idx"),
    "idx short": (lambda root: idx_of(root, "train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x0a123"), "promises 10 bytes"),
    "idx of floats": (lambda root: idx_of(root, "train-labels-idx1-ubyte", b"\0\0\x0d\x01\0\0\0\0"), "unsigned bytes"),
    "idx unequal": (lambda root: idx_of(root, "train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\x01"), "10 images but 1 labels"),
    "idx without labels": (lambda root: [p := write_idx(root, GREY), (p / "train-labels-idx1-ubyte").unlink()][0], "no train-labels"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused(tmp_path: Path, case: str) -> None:
    make, fact = BAD_DATA[case]
    path = make(tmp_path)
    with pytest.raises(ConfigError, match=fact) as caught:
        fetch_samples(data.load_data(path, "train", preprocessing=HALF, example=example(GREY)), classes=2)
    one_line(caught.value)
    assert str(tmp_path) in str(caught.value)


BAD_PREPROCESSING: dict[str, tuple[Preprocessing | None, tuple[int, ...], str]] = {
    "two means for one channel": (Preprocessing(mean=(0, 0), std=(1,)), GREY, "mean"),
    "std zero": (Preprocessing(mean=(0,), std=(0,)), GREY, "positive"),
    "std nan": (Preprocessing(mean=(0,), std=(float("nan"),)), GREY, "std"),
    "crop zero": (Preprocessing(mean=(0,), std=(1,), crop=0), GREY, "pixels"),
    "crop larger than the image": (Preprocessing(mean=(0,), std=(1,), crop=9), GREY, "smaller than the crop"),
    "two channels": (None, (2, 8, 6), "no grey or colour"),
    "no image": (None, (48,), "no grey or colour"),
}


@pytest.mark.parametrize("case", BAD_PREPROCESSING)
def test_bad_preprocessing_is_refused(tmp_path: Path, case: str) -> None:
    preprocessing, shape, fact = BAD_PREPROCESSING[case]
    with pytest.raises(ConfigError, match=fact) as caught:
        data.load_data(write_idx(tmp_path, GREY), "train", preprocessing=preprocessing, example=example(shape))
    one_line(caught.value)


def test_an_eval_class_unknown_to_training_is_refused(tmp_path: Path) -> None:
    written(write_folder(tmp_path, GREY) / "test" / "wasp" / "a.png", b"")
    with pytest.raises(ConfigError, match="class wasp has no training folder"):
        data.load_data(tmp_path, "eval", preprocessing=None, example=example(GREY))
