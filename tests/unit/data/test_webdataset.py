"""Shards of WebDataset give the images and labels that were written into them; what is no shard is refused by name."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgecompress.data import Samples, fetch_samples, load_data
from edgecompress.errors import ConfigError

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
EXAMPLE = (torch.zeros(1, 3, 4, 4),)


def png(index: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS[index]).save(content, "PNG")
    return content.getvalue()


def write(path: Path, *samples: dict[str, bytes], mode: Any = "w") -> Path:
    """Write samples, bytes by the kind of their member, into a shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for index, sample in enumerate(samples):
            for kind, content in sample.items():
                member = tarfile.TarInfo(f"./images/{path.stem}{index:04}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def load(root: Path, split: Any = "train") -> Samples:
    return load_data(root, split, preprocessing=None, example=EXAMPLE)


def check(samples: Samples, rows: list[int], labels: list[int]) -> None:
    (inputs,), found = fetch_samples(samples, example=EXAMPLE)
    torch.testing.assert_close(inputs, torch.from_numpy(PIXELS[rows].transpose(0, 3, 1, 2) / 255).float())
    assert found is not None
    assert found.tolist() == labels


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train-{}.tar", "val-{}.tar"),
        ("imagenet-train-{}.tar", "imagenet-validation-{}.tar"),
        ("train/{}.tar", "test/{}.tar"),
        ("Train_{}.tar", "Test_{}.tar"),
    ],
)
def test_shards_belong_to_the_split_that_their_names_tell(tmp_path: Path, train: str, held_out: str) -> None:
    for shard in (0, 1):
        write(
            tmp_path / train.format(f"00000{shard}"),
            *({"png": png(i), "cls": str(i % 3).encode()} for i in range(4 * shard, 4 * shard + 4)),
        )
    write(tmp_path / held_out.format("000000"), {"png": png(8), "cls": b"2"}, {"png": png(9), "cls": b"0\n"})
    check(load(tmp_path), list(range(8)), [0, 1, 2, 0, 1, 2, 0, 1])
    check(load(tmp_path, "eval"), [8, 9], [2, 0])


def test_shards_without_a_split_are_divided_and_one_file_is_enough(tmp_path: Path) -> None:
    path = write(
        tmp_path / "flowers.tar", *({"png": png(i), "json": json.dumps({"label": i}).encode(), "txt": b"a flower"} for i in range(10))
    )
    check(load(path), [0, 1, 2, 3, 5, 6, 7, 8], [0, 1, 2, 3, 5, 6, 7, 8])
    check(load(tmp_path, "eval"), [4, 9], [4, 9])
    assert "held out" in load(path).source


def test_names_of_classes_are_numbered_by_the_training_shards(tmp_path: Path) -> None:
    names = [b"cat", b"ant", b"dog"]
    write(tmp_path / "train-0.tar", *({"png": png(i), "cls": name} for i, name in enumerate(names)))
    write(tmp_path / "val-0.tar", {"png": png(3), "cls": b"dog"})
    assert load(tmp_path).class_names == ("ant", "cat", "dog")
    check(load(tmp_path), [0, 1, 2], [1, 0, 2])
    check(load(tmp_path, "eval"), [3], [2])
    write(tmp_path / "val-0.tar", {"png": png(3), "cls": b"owl"})
    with pytest.raises(ConfigError, match=r"val-00000\.png: its class is in no training shard; "):
        load(tmp_path, "eval")


def test_of_two_held_out_sets_the_one_that_chose_nothing_is_read(tmp_path: Path) -> None:
    for index, name in enumerate(("train", "val", "test")):
        write(tmp_path / f"{name}-0.tar", {"png": png(index), "cls": b"0"})
    check(load(tmp_path, "eval"), [2], [0])


def test_an_archive_beside_the_images_that_it_held_is_left_alone(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(png(0))
    write(tmp_path / "images.tar", {"png": png(1), "cls": b"0"})
    assert load(tmp_path).class_names == ("cat", "dog")


def test_images_without_labels_are_inputs_alone(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a.tar", *({"jpg": png(i)} for i in range(5)))).labels is None


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"png": png(0), "cls": b"1"}, {"png": png(1)}], r"a0001\.png: its sample has no label like those of the others; "),
        ([{"png": png(0), "cls": b"1"}, {"png": png(1), "cls": b"cat"}], r"a0000\.png: its sample has no label like those of the others; "),
        ([{"png": png(0), "json": b"{"}], r"a0000\.json: no readable label; "),
        ([{"png": png(0), "json": b'{"label": [1]}'}], r"a0000\.json: no class index and no name; "),
        ([{"cls": b"1"}], "no images in it; a sample is KEY.jpg and KEY.cls"),
    ],
)
def test_faults_of_samples_are_named(tmp_path: Path, samples: list[dict[str, bytes]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        load(write(tmp_path / "a.tar", *samples, *samples[:1] * 5))
    assert "\n" not in str(refusal.value)


def test_faults_of_shards_are_named(tmp_path: Path) -> None:
    pairs = [{"png": png(i), "cls": b"1"} for i in range(5)]
    with pytest.raises(ConfigError, match=r"packed\.tar: not a readable tar file \(.*\); copy it again, without compression"):
        load(write(tmp_path / "packed.tar", *pairs, mode="w:gz"))
    (tmp_path / "packed.tar").unlink()
    write(tmp_path / "val-0.tar", *pairs)
    with pytest.raises(ConfigError, match=r"no shards of the split train; name them train-… and val-…"):
        load(tmp_path)
    broken = load(write(tmp_path / "broken" / "a.tar", {"png": b"<html>", "cls": b"1"}, *pairs))
    with pytest.raises(ConfigError, match=r"a\.tar: \./images/a0000\.png: unreadable image: .*; replace or remove it"):
        fetch_samples(broken, 1)
