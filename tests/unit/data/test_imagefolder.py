"""Folders of images as people have them: names of splits, nesting, empty classes, unreadable files, and every kind of image."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgecompress.data import Samples, fetch_samples, image_checks, load_data, open_image, preprocess_image
from edgecompress.errors import ConfigError

EXAMPLE = (torch.zeros(1, 3, 4, 4),)
RNG = np.random.default_rng(0)


def picture(kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (4, 4, 3), np.uint8)).save(content, kind, **options)
    return content.getvalue()


def write(root: Path, *folders: str, count: int = 5) -> Path:
    """Write pictures into each of some folders below `root`; a name that ends in a slash stays empty."""
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(0 if name.endswith("/") else count):
            (root / name / f"{i}.png").write_bytes(picture())
    return root


def load(root: Path, split: Any = "train") -> Samples:
    return load_data(root, split, preprocessing=None, example=EXAMPLE)


def count_labels(samples: Samples) -> list[int]:
    assert samples.labels is not None
    return samples.labels.bincount(minlength=len(samples.class_names)).tolist()


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "test"), ("Train", "Test"), ("TRAIN", "VAL"), ("Training", "Testing"), ("training_set", "test_set"),
        ("train", "validation"), ("trainset", "valid"), ("train2017", "val2017"), ("train_images", "dev"), ("data/train", "data/eval"),
        ("archive/flowers/Train", "archive/flowers/Valid"), ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)  # fmt: skip
def test_splits_are_found_by_their_usual_names(tmp_path: Path, train: str, held_out: str) -> None:
    write(tmp_path, f"{train}/cat", f"{train}/dog", f"{held_out}/dog")
    samples, scored = load(tmp_path), load(tmp_path, "eval")
    assert (samples.class_names, count_labels(samples)) == (("cat", "dog"), [5, 5])
    assert (scored.class_names, count_labels(scored)) == (("cat", "dog"), [0, 5])
    assert scored.notes == (f"no images of cat in {tmp_path / held_out}, which are not scored",)
    assert f"{tmp_path / train}: 10 images" in samples.source


def test_a_held_out_set_without_known_classes_makes_way_for_the_next(tmp_path: Path) -> None:
    write(tmp_path, "train/cat", "train/dog", "test", "val/cat", "val/dog")
    assert str(tmp_path / "val") in load(tmp_path, "eval").source  # Kaggle's test pictures have no classes
    write(tmp_path, "test/unknown")
    assert str(tmp_path / "val") in load(tmp_path, "eval").source


def test_a_training_folder_alone_is_divided(tmp_path: Path) -> None:
    write(tmp_path, "train/cat", "train/dog")
    samples, scored = load(tmp_path), load(tmp_path, "eval")
    assert (count_labels(samples), count_labels(scored)) == ([4, 4], [1, 1])
    assert "held out" in scored.source


def test_images_of_a_class_may_lie_in_folders_within_it_and_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/2023", "train/cat/2024", "train/dog", "test/cat", "test/dog", "elsewhere")
    (tmp_path / "train" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "dog" / "loop").symlink_to(tmp_path / "train" / "dog")
    (tmp_path / "train" / "cat" / ".thumbs").mkdir()
    (tmp_path / "train" / "cat" / ".thumbs" / "0.png").write_bytes(picture())
    assert count_labels(load(tmp_path)) == [10, 10]


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    assert load(write(tmp_path, "bus", "car", "train")).class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("train/bird/", "train/cat", "train/dog", "test/cat"),
            "train/bird: a class without images; add images or remove the folder, since",
        ),
        (("bird/", "cat", "dog", "fish/"), "bird: a class without images, and 1 more such classes; add images or remove"),
        (("train/cat", "test/cat", "test/dog"), "test: class dog has no training folder; "),
        (("train", "test"), "test: no class folders; put the images into one folder a class"),
        (("cat", "dog", "test"), "test: no class folders; "),
        (("test/cat", "test/dog"), ": no folder train; "),
        (
            ("cat/train", "cat/test", "dog/train", "dog/test"),
            "cat: a class folder that holds a folder test; move the classes into it: test/cat",
        ),
    ],
)
def test_folders_that_would_shift_or_mix_labels_are_refused(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    write(tmp_path, *folders)
    with pytest.raises(ConfigError, match=message) as refusal:
        [load(tmp_path, split) for split in ("train", "eval")]
    assert str(refusal.value).startswith(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_an_empty_folder_in_the_held_out_set_is_no_class(tmp_path: Path) -> None:
    assert count_labels(load(write(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", "test/bird/"), "eval")) == [5, 5]


UNREADABLE = {
    "empty.png": b"",
    "text.png": b"hello, this is no image",
    "page.jpg": b"<!DOCTYPE html><html></html>",
    "header.jpg": b"\xff\xd8\xff\xe0 broken",
    "truncated.png": picture()[:60],
    "truncated.jpg": picture("JPEG")[:-80],
    "truncated.gif": picture("GIF")[:-40],
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("thorough", [True, False])
def test_an_unreadable_image_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, thorough: bool) -> None:
    write(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    (tmp_path / "train" / "cat" / f"1{name}").write_bytes(UNREADABLE[name])
    (tmp_path / "train" / "cat" / "photo.jpg").write_bytes(picture("JPEG") + b"maker notes")
    if not thorough:
        monkeypatch.setattr(image_checks, "DECODED_FILES", 0)
    samples = load(tmp_path)
    assert count_labels(samples) == [6, 5]
    assert samples.notes == (f"1 unreadable images in {tmp_path / 'train'} were left out: cat/1{name}",)
    assert len(fetch_samples(samples)[0][0]) == 11


def test_a_damaged_middle_is_found_where_the_set_is_small(tmp_path: Path) -> None:
    content = bytearray(picture())
    content[-30] ^= 255  # in the pixels, whose checksum no longer fits
    write(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "5.png").write_bytes(content)
    assert "cat/5.png" in load(tmp_path).notes[0]


def test_many_unreadable_images_are_refused_with_the_first(tmp_path: Path) -> None:
    write(tmp_path, "cat", "dog")
    for i in range(4):
        (tmp_path / "cat" / f"bad{i}.png").write_bytes(b"<html>")
    message = r"4 of 14 images cannot be read \(first: cat/bad0\.png: unreadable image: .*\); replace or remove them"
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)
    (tmp_path / "cat" / "bad3.png").unlink()
    assert load(tmp_path).notes == (f"3 unreadable images in {tmp_path} were left out: cat/bad0.png, cat/bad1.png, cat/bad2.png",)


RAMP = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T], 2)


def cmyk() -> Image.Image:
    return Image.fromarray(COLOUR).convert("CMYK")


KINDS = {
    "grey": (Image.fromarray(RAMP), np.stack([RAMP] * 3, 2)),
    "two colours": (Image.fromarray(RAMP > 100), np.stack([(RAMP > 100) * 255] * 3, 2)),
    "grey with transparency": (Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (4, 4), 7)]), np.stack([RAMP] * 3, 2)),
    "transparent": (Image.fromarray(np.dstack([COLOUR, RAMP])), COLOUR),
    "palette": (Image.fromarray(COLOUR).quantize(16), COLOUR),
    "16 bits": (Image.fromarray(RAMP.astype(np.uint16) * 257), np.stack([RAMP] * 3, 2)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_mode_is_converted(tmp_path: Path, kind: str, channels: int) -> None:
    image, pixels = KINDS[kind]
    image.save(tmp_path / "image.png")
    found = preprocess_image(open_image(tmp_path / "image.png"), None, (channels, 4, 4))
    expected = pixels if channels == 3 else np.asarray(Image.fromarray(pixels.astype(np.uint8)).convert("L"))[:, :, None]
    torch.testing.assert_close(found, torch.from_numpy(expected.transpose(2, 0, 1) / 255).float(), atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_upper_eight_in_any_format(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / f"image.{suffix}")
    assert np.array_equal(np.asarray(open_image(tmp_path / f"image.{suffix}")), RAMP)


def test_a_palette_with_transparency_has_the_colours_of_the_palette(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    image.save(tmp_path / "image.png", transparency=bytes(range(16)))
    found = preprocess_image(open_image(tmp_path / "image.png"), None, (3, 4, 4))
    torch.testing.assert_close(found, torch.from_numpy(COLOUR.transpose(2, 0, 1) / 255).float(), atol=1.01 / 255, rtol=0)


def test_cmyk_photographs_and_turned_ones_look_as_they_do_in_pillow(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    cmyk().resize((8, 4)).save(tmp_path / "image.jpg", exif=exif, quality=100)
    found = preprocess_image(open_image(tmp_path / "image.jpg"), None, (3, 8, 4))
    expected = np.asarray(Image.open(tmp_path / "image.jpg").convert("RGB").rotate(-90, expand=True))
    torch.testing.assert_close(found, torch.from_numpy(expected.transpose(2, 0, 1) / 255).float(), atol=1e-6, rtol=0)
