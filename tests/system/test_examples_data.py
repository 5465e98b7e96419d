"""The examples' data are what their pages say."""

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.paths import REPOSITORY
from torch import nn

from edgecompress.data import Samples, fetch_samples, recipe

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(scope="module")
def clothes() -> recipe.Recipe:
    return recipe.load_recipe(str(EXAMPLES / "resnet20_fashion_mnist"))


@pytest.fixture(scope="module")
def photographs() -> recipe.Recipe:
    return recipe.load_recipe(str(EXAMPLES / "efficientnet_lite0"))


def samples(function: recipe.Data | None) -> Samples:
    assert function is not None
    found = function()
    assert isinstance(found, Samples)
    return found


def test_clothes_are_evaluated_on_the_shipped_test_images(clothes: recipe.Recipe) -> None:
    held_out = samples(clothes.eval_data)
    assert len(held_out) == 5000
    assert "shipped test images" in held_out.source
    (inputs,), labels = fetch_samples(held_out, 1000, example=clothes.example_inputs, classes=10)
    assert labels is not None
    assert set(labels.tolist()) == set(range(10))
    assert abs(float(inputs.mean())) < 0.05
    assert abs(float(inputs.std()) - 1) < 0.05
    assert len(clothes.labels) == len(held_out.class_names) == 10


def test_training_says_which_set_it_uses(clothes: recipe.Recipe) -> None:
    train = samples(clothes.train_data)
    full = Path("/usr/share/datasets/fashion-mnist").is_dir()
    assert len(train) == (60_000 if full else 10_000)
    assert ("full training set" if full else "shipped training images") in train.source
    assert str(len(train)) in train.source


def test_only_training_images_are_augmented(clothes: recipe.Recipe) -> None:
    train, calibration = samples(clothes.train_data), samples(clothes.calibration_data)
    torch.manual_seed(0)
    first, again, plain = (fetch_samples(data, 50)[0][0] for data in (train, train, calibration))
    assert not first.equal(again)
    assert not first.equal(plain)
    assert plain.equal(fetch_samples(calibration, 50)[0][0])
    torch.manual_seed(0)
    assert first.equal(fetch_samples(train, 50)[0][0])


def test_augmentation_moves_pixels_and_makes_none(clothes: recipe.Recipe) -> None:
    train, calibration = samples(clothes.train_data), samples(clothes.calibration_data)
    assert train.transform is not None
    x = calibration[0]
    assert isinstance(x, tuple)
    values = set(x[0].mul(1e5).round().unique().tolist())
    for _ in range(20):
        moved = train.transform(x[0])
        assert moved.shape == x[0].shape
        assert set(moved.mul(1e5).round().unique().tolist()) <= values  # black is among them


def test_shipped_subset_is_the_beginning_of_the_full_set() -> None:
    full = Path("/usr/share/datasets/fashion-mnist")
    if not full.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    from edgecompress.data import idx

    for split, size in (("train", 10_000), ("eval", 5_000)):
        for shipped, original in zip(
            idx.read_split(EXAMPLES / "resnet20_fashion_mnist/data", split), idx.read_split(full, split), strict=True
        ):
            assert (shipped == original[:size]).all()


def test_sample_images_of_the_raspberry_pi_are_test_images() -> None:
    from edgecompress.data import idx

    images, labels = idx.read_split(EXAMPLES / "resnet20_fashion_mnist/data", "eval")
    known = {hashlib.sha256(image.tobytes()).hexdigest(): int(label) for image, label in zip(images[:10], labels, strict=False)}
    for name, label in {"ankle_boot": 9, "pullover": 2, "trouser": 1}.items():
        with Image.open(EXAMPLES / f"raspberry_pi/images/{name}.png") as image:
            assert known[hashlib.sha256(image.tobytes()).hexdigest()] == label


def test_photographs_give_enough_crops_that_share_no_pixel(photographs: recipe.Recipe) -> None:
    held_out, calibration = samples(photographs.eval_data), samples(photographs.calibration_data)
    assert len(held_out) >= 100
    assert len(calibration) >= 100
    assert photographs.train_data is None
    (x,), labels = fetch_samples(held_out, 12, seed=0, example=(torch.zeros(1, 3, 224, 224),))
    assert labels is None
    assert -1 <= float(x.min()) < -0.5 < 0.5 < float(x.max()) <= 1
    assert held_out[3].equal(held_out[3])  # type: ignore[union-attr]


def test_network_is_made_of_ordinary_layers_and_repeats_itself(photographs: recipe.Recipe) -> None:
    model = photographs.model()
    kinds = {type(module) for module in model.modules() if any(True for _ in module.parameters(recurse=False))}
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}
    (x,), _ = fetch_samples(samples(photographs.eval_data), [0, 100])
    with torch.inference_mode():
        assert model(x).equal(model(x))


@pytest.mark.parametrize(("photograph", "classes"), [("camera.png", {872}), ("chelsea.png", {281, 282, 285}), ("coffee.png", {967})])
def test_network_knows_what_is_in_the_photographs(photographs: recipe.Recipe, photograph: str, classes: set[int]) -> None:
    from importlib.util import find_spec

    from edgecompress.data import open_image, preprocess_image

    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    image = open_image(Path(spec.origin).parent / "data" / photograph)
    with torch.inference_mode():
        logits = photographs.model()(preprocess_image(image, photographs.preprocessing, (3, 224, 224))[None])
    assert int(logits.argmax()) in classes  # tripod; tabby, tiger cat, Egyptian cat; espresso
