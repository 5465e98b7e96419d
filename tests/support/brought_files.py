"""Checkpoints and folders of data as people have them, each with what is said of it."""

import argparse
import io
import json
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from edgecompress.data import Samples, fetch_pairs, load_data
from edgecompress.data.classes import number_classes
from edgecompress.network.checkpoints import load_checkpoint
from support.arrow_files import CLASSES, IMAGE, pyarrow_stand_in, write_splits


class Brought(NamedTuple):
    """Something that a person has.

    Attributes:
        use: Makes it in a folder, gives it to the function that reads it, and returns what is said.
        says: A regular expression for what is said, or for the message of the refusal.
    """

    use: Callable[[Path], str]
    says: str
    is_refused: bool = False


def make_net():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), head=nn.Conv2d(4, 2, 1)))


def load(path: Path, wanted) -> str:
    """Load a checkpoint and check that the network has its weights; return the note."""
    net = make_net()
    note = load_checkpoint(net, path)
    own = net.state_dict()
    assert all(torch.equal(own[key], value.float()) for key, value in wanted.items() if value.is_floating_point())
    return note or "loaded"


def saved(change, name="best.pth", **options):
    """Return a use of what `torch.save` makes of a changed state dict."""

    def use(folder: Path) -> str:
        state = make_net().state_dict()
        torch.save(change(state), folder / name, **options)
        wanted = {key: value.half().float() if name == "half.pth" else value for key, value in state.items()}
        return load(folder / name, wanted)

    return use


def written(content: bytes, name="best.pth"):
    def use(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return load_checkpoint(make_net(), folder / name)

    return use


def sharded(*, lost=False):
    def use(folder: Path) -> str:
        state = make_net().state_dict()
        names = {key: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(state)}
        for name in sorted(set(names.values()))[: 1 if lost else 2]:
            save_file({key: state[key] for key in state if names[key] == name}, folder / name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        return load(folder, state)

    return use


def cut(folder: Path) -> str:
    torch.save(make_net().state_dict(), folder / "best.pth")
    (folder / "best.pth").write_bytes((folder / "best.pth").read_bytes()[:900])
    return load_checkpoint(make_net(), folder / "best.pth")


def scripted(folder: Path) -> str:
    torch.jit.save(torch.jit.trace(make_net().eval(), torch.zeros(1, 3, 8, 8)), folder / "net.pt")
    return load_checkpoint(make_net(), folder / "net.pt")


def prefixed(prefix):
    return saved(lambda state: {f"{prefix}{key}": value for key, value in state.items()})


def under(key):
    return saved(lambda state: {key: state, "epoch": 3, "optimizer": {"state": {}}})


CHECKPOINTS = {
    "a plain state dict": Brought(saved(lambda state: state), "^loaded$"),
    **{
        f"prefix {prefix}": Brought(prefixed(prefix), f"prefix '{prefix}' removed")
        for prefix in ("module.", "_orig_mod.", "model.", "net.", "student.", "my.encoder.", "module._orig_mod.")
    },
    **{
        f"under {key}": Brought(under(key), f"weights taken from '{key}'")
        for key in ("state_dict", "model", "model_state_dict", "ema", "netG", "params")
    },
    "lightning": Brought(
        saved(lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()} | {"criterion.weight": torch.ones(2)}, "epoch": 1}),
        r"weights taken from 'state_dict'; prefix 'model\.' removed; criterion\.weight not read",
    ),
    "without counters": Brought(
        saved(lambda state: {k: v for k, v in state.items() if "num_batches" not in k}),
        r"bn\.num_batches_tracked missing, which evaluation does not read",
    ),
    "arguments beside": Brought(
        saved(lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)}), r"objects of argparse\.Namespace not loaded"
    ),
    "half precision": Brought(saved(lambda state: {k: v.half() for k, v in state.items()}, "half.pth"), "float16 widened"),
    "shards": Brought(sharded(), "^loaded$"),
    "a shard too few": Brought(sharded(lost=True), r"1 of 2 shards are not beside it \(first: model-00002-of-00002.*; copy all", True),
    "other classes": Brought(
        saved(lambda state: state | {"head.weight": torch.zeros(5, 4, 1, 1)}),
        r"head\.weight is \(5, 4, 1, 1\), the model has \(2, 4, 1, 1\); let model\(\) build a network of these sizes",
        True,
    ),
    "another network": Brought(saved(lambda _: {"fc.weight": torch.zeros(3)}), r"does not fit the model: .* keys missing.*unknown", True),
    "a whole module": Brought(
        saved(lambda _: make_net()),
        r"holds a whole module.*run code when loaded; .*: import torch; net = torch\.load\(.*\); torch\.save\(net\.state_dict\(\), ",
        True,
    ),
    "a file cut short": Brought(cut, "not a checkpoint, or a damaged one.*; give", True),
    "TorchScript's archive": Brought(scripted, r"a TorchScript archive, not a checkpoint; save its state dict: ", True),
    "Git LFS": Brought(written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a pointer of Git LFS .*; fetch it", True),
    "a web page": Brought(written(b"<!DOCTYPE html><html>Quota exceeded"), "a web page in place of the file; download it again", True),
    "Keras": Brought(written(b"\x89HDF\r\n\x1a\n", "net.h5"), "an HDF5 file, as Keras writes them; give", True),
    "an empty file": Brought(written(b""), "not a checkpoint, or a damaged one.*; give", True),
    "no file": Brought(lambda folder: load_checkpoint(make_net(), folder / "gone.pth"), "gone.pth: no such checkpoint; give", True),
}

RNG = np.random.default_rng(0)


def picture(mode="RGB", kind="PNG", *, side=4, **options) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(RNG.integers(0, 256, (side, side, 3), np.uint8)).convert(mode)
    image.save(content, kind, **options)
    return content.getvalue()


def wide() -> bytes:
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 65536, (4, 4)).astype(np.uint16)).save(content, "PNG")
    return content.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture(kind="JPEG", exif=exif)


def describe(found: Samples) -> str:
    """Read all samples; return classes, the number of samples of each, and the notes."""
    inputs, labels = fetch_pairs(found)
    assert inputs[0].shape == (len(found), 3, 4, 4)
    assert 0 <= float(inputs[0].min()) <= float(inputs[0].max()) <= 1
    counts = labels.bincount(minlength=len(found.class_names)).tolist() if labels is not None else None
    return f"{' '.join(found.class_names)} {counts} {' '.join(found.notes)}"


def read(path: Path, split="train", labels=()) -> str:
    loaded = load_data(path, split, preprocessing=None, example=(torch.zeros(1, 3, 4, 4),))
    return describe(number_classes(loaded, labels, "recipe.py"))


def folders(*names, split="train", labels=(), **more: bytes):
    """Return a use of a folder of images: five in each of some folders, none where the name ends in a slash, and further files."""

    def use(root: Path) -> str:
        for name in names:
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(0 if name.endswith("/") else 5):
                (root / name / f"{i}.png").write_bytes(picture())
        for name, content in more.items():
            (root / names[0] / name.replace("_", ".")).write_bytes(content)
        return read(root, split, labels)

    return use


def shards(root: Path) -> str:
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-000000.tar", "w") as archive:
            for i in range(6):
                for kind, content in (("png", picture()), ("cls", b"%d" % (i % 2))):
                    member = tarfile.TarInfo(f"{i:03}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return read(root, "eval")


def arrow_files(root: Path, *, has_reader: bool) -> str:
    cells = [{"bytes": picture(), "path": None} for _ in range(6)]
    write_splits(root / "d", ("train", "test"), {"image": IMAGE, "label": CLASSES}, {"image": cells, "label": [0, 1] * 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        if not has_reader:
            return read(root / "d")
        with pyarrow_stand_in():
            return read(root / "d", "eval")


def arrays(**named: np.ndarray):
    def use(root: Path) -> str:
        np.savez(root / "data.npz", **named)
        return read(root / "data.npz")

    return use


BYTES = RNG.integers(0, 256, (10, 4, 4, 3), np.uint8)
FOLDERS = {
    **{
        f"{train} and {held_out}": Brought(
            folders(f"{train}/cat", f"{train}/dog", f"{held_out}/cat", f"{held_out}/dog", split="eval"), r"^cat dog \[5, 5\] $"
        )
        for train, held_out in (
            ("train", "test"),
            ("Training", "Testing"),
            ("TRAIN", "Valid"),
            ("train_images", "validation"),
            ("archive/flowers/train", "archive/flowers/dev"),
        )
    },
    "no held-out set": Brought(folders("cat", "dog", split="eval"), r"^cat dog \[1, 1\] $"),
    "images in folders of a class": Brought(folders("train/cat/2023", "train/cat/2024", "train/dog", "test/cat"), r"^cat dog \[10, 5\] $"),
    "an empty class": Brought(folders("train/bird/", "train/cat", "test/cat"), "train/bird: a class without images; add images", True),
    "a class of the test set alone": Brought(
        folders("train/cat", "test/cat", "test/dog", split="eval"), "class dog has no training folder; ", True
    ),
    "splits within classes": Brought(
        folders("cat/train", "cat/test", "dog/train", "dog/test"), "cat: a class folder that holds a .*; move", True
    ),
    "images without classes": Brought(folders("train", "test"), "test: no class folders; put the images into one folder a class", True),
    "numbers as classes": Brought(
        folders(*map(str, range(11))),
        r"^0 1 10 2 .* numbered class folders were taken in the order of their names as text \(0, 1, 10, 2, 3",
    ),
    "numbers as classes, with labels()": Brought(
        folders(*map(str, range(11)), labels=tuple(map(str, range(11)))), r"^0 1 2 3 4 5 6 7 8 9 10 \[4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4\] $"
    ),
    "classes in another order": Brought(folders("Dog", "hot-dog", labels=("hot dog", "dog")), r"^hot dog dog \[4, 4\] $"),
    "a class that labels() lacks": Brought(
        folders("cat", "dog", labels=("cat", "bird")),
        r"recipe\.py: class 'dog' of the data is not among its labels \(cat, bird\); name it",
        True,
    ),
    **{
        f"{kind} images": Brought(folders("train/cat", "train/dog", "test/cat", **{f"a_{suffix}": content}), r"^cat dog \[6, 5\] $")
        for kind, suffix, content in (
            ("grey", "png", picture("L")),
            ("16-bit", "png", wide()),
            ("palette", "png", picture("P")),
            ("transparent", "png", picture("RGBA")),
            ("CMYK", "jpg", picture("CMYK", "JPEG")),
            ("turned", "jpg", turned()),
        )
    },
    "a few corrupt images": Brought(
        folders("train/cat", "train/dog", "test/cat", a_png=b"", b_jpg=b"<html>"),
        r"^cat dog \[5, 5\] 2 unreadable images in .*train were left out: cat/a\.png, cat/b\.jpg$",
    ),
    "many corrupt images": Brought(
        folders("train/cat", "train/dog", "test/cat", a_png=b"", b_png=b"", c_png=b"", d_png=b""),
        r"4 of 14 images cannot be read \(first: cat/a\.png: .*\); replace or remove them",
        True,
    ),
    "images of another size": Brought(
        folders("cat", "dog", a_png=picture(side=5)), r"a\.png: its shape is \(3, 5, 5\), .*one static shape, so resize", True
    ),
    "WebDataset": Brought(shards, r"^ \[3, 3\] $"),
    "Hugging Face": Brought(lambda root: arrow_files(root, has_reader=True), r"^cat dog \[3, 3\] $"),
    "Hugging Face without pyarrow": Brought(
        lambda root: arrow_files(root, has_reader=False),
        "a dataset of Hugging Face's library, which pyarrow reads; pip install pyarrow",
        True,
    ),
    "arrays": Brought(arrays(inputs=BYTES, labels=np.arange(10) % 2), r"^ \[4, 4\] $"),
    "arrays without a name": Brought(arrays(x=BYTES), "no array x_train or inputs, it holds x; name the arrays so", True),
    "pickled arrays": Brought(arrays(inputs=np.array([None] * 10, object)), "a pickled .* array, which may run code; save plain", True),
    "a table": Brought(
        lambda root: (root / "data.csv").write_text("1,2") and read(root / "data.csv"), "not a form of data known here; ", True
    ),
    "an empty folder": Brought(read, "an empty folder; data are ", True),
    "a path that is not there": Brought(lambda root: read(root / "gone"), "gone: no such file or folder; data are ", True),
}
