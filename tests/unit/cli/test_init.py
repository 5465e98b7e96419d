"""`init` writes a recipe that passes `check`, asks only a person, and writes nothing where something is wrong."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from support.runs import complaint
from torch import nn

from edgecompress.cli import init
from edgecompress.data.new_recipe import Draft, compose_recipe
from edgecompress.data.recipe import load_recipe, recipe_from_model
from edgecompress.network.weights import fingerprint
from edgecompress.records import Preprocessing

NET = """
import torch
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def fixed():
    torch.manual_seed(1)
    return make()


def broken():
    raise RuntimeError("planted")


def number():
    return 3
"""
SHAPE = ("--shape", "1x3x8x8")


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NET)
    before = list(sys.path)  # a recipe elsewhere adds the folder of net.py
    yield path
    sys.path[:] = before
    sys.modules.pop("net", None)


def make_images(folder):
    colours = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(colours.integers(0, 256, (10, 12, 3), "uint8")).save(folder / split / name / f"{i}.png")
    return folder


def test_a_function_of_a_file_with_weights_and_images(edgecompress, net, tmp_path):
    images = make_images(tmp_path / "images")
    save_file(
        {f"module.{key}": value for key, value in load_recipe(f"{net}:fixed@1x3x8x8").model().state_dict().items()},
        tmp_path / "w.safetensors",
    )
    answer = edgecompress("init", "net.py:make", *SHAPE, "--data", "images", "--weights", "w.safetensors")
    assert answer.code == 0, answer.out + answer.err
    assert answer.out.startswith("wrote recipe.py\n")
    assert "every step can run" in answer.out
    assert answer.out.endswith("next: edgecompress export recipe.py --target raspberry-pi\n")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix or path.is_dir()) >= ["images", "net.py", "recipe.py"]
    assert not (tmp_path / "runs").exists()
    text = (tmp_path / "recipe.py").read_text()
    assert str(tmp_path) not in text  # the folder can be moved
    recipe = load_recipe("recipe.py")
    assert fingerprint(recipe.model()) == fingerprint(load_recipe("net.py:fixed@1x3x8x8").model())
    assert (len(recipe.train_data()), len(recipe.eval_data()), len(recipe.calibration_data())) == (12, 6, 12)
    assert recipe.train_data()[0][0].shape == (3, 8, 8)
    assert recipe.preprocessing == Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, resize=8, crop=8)
    assert images.is_dir()


def test_random_weights_are_the_same_in_every_process_and_said(edgecompress, net, tmp_path):
    assert edgecompress("init", "net.py:make", *SHAPE, "--to", "other").code == 0
    recipe = load_recipe("other")
    assert fingerprint(recipe.model()) == fingerprint(load_recipe("other/recipe.py").model())
    assert "torch.manual_seed(0)  # its weights are random: load trained ones here" in (tmp_path / "other/recipe.py").read_text()
    assert (recipe.train_data, recipe.preprocessing, recipe.name) == (None, None, "other")


def test_a_recipe_that_is_there_is_replaced_only_by_force(edgecompress, net, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("mine")
    answer = edgecompress("init", "net.py:fixed", *SHAPE)
    assert (answer.code, path.read_text()) == (2, "mine")
    assert complaint(answer) == "recipe.py: is there already; replace it with --force, or give another place with --to"
    assert edgecompress("init", "net.py:fixed", *SHAPE, "--force").code == 0
    assert "manual_seed" not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"init: no network is named; give NETWORK, e\.g\. net\.py:make or torchvision:resnet18"),
        (("net.py:make",), r"net\.py:make: the shape of the input is not known; give --shape 1x3x224x224"),
        (("net.py:make", "--shape", "8,x"), r"--shape 8,x: is no shape; give sizes with x between"),
        (("net.py",), r"net\.py: tells no network; name the function that makes the network, net\.py:FUNCTION"),
        (("resnet18",), r"resnet18: tells no network; give FILE\.py:FUNCTION, torchvision:NAME"),
        (("net.py:gone", *SHAPE), r"net\.py has no function gone"),
        (("net.py:broken", *SHAPE), r"net\.py:16: model\(\) fails with RuntimeError: planted"),
        (("net.py:number", *SHAPE), r"net\.py:number: returns int; name a function that returns a torch\.nn\.Module"),
        (("net.py:make", "--shape", "1x4x8x8"), r"forward\(\) of Conv2d 0 for an input of shape \(1, 4, 8, 8\) fails"),
        (("net.py:make", *SHAPE, "--data", "gone"), r"gone: no such file or folder; correct --data"),
        (("net.py:make", *SHAPE, "--weights", "gone.pt"), r"gone\.pt: no such file or folder; correct --weights"),
        (("net.py:make", *SHAPE, "--weights", "other.safetensors"), r"other\.safetensors: does not fit the model"),
        (("net.py:make", *SHAPE, "--to", "net.py"), r"net\.py: is the file of the network; give another place with --to"),
        (("my-net.py:make", *SHAPE), r"my-net\.py: Python cannot import a file of this name; rename it, e\.g\. my_net\.py"),
    ],
)
def test_what_is_missing_or_wrong_is_said_and_nothing_is_written(edgecompress, net, tmp_path, arguments, message):
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "my-net.py").write_text(NET)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    answer = edgecompress("init", *arguments)
    assert answer.code == 2
    assert re.search(message, complaint(answer))
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_person_is_asked(edgecompress, net, tmp_path, monkeypatch):
    asked = []
    answers = iter(["net.py:fixed", "", str(make_images(tmp_path / "images")), "1x3x8x8"])
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(init, "sys", SimpleNamespace(stdin=terminal, stderr=terminal))
    monkeypatch.setattr(typer, "prompt", lambda question, **_: asked.append(question) or next(answers))
    answer = edgecompress("init")
    assert answer.code == 0, answer.err
    assert [question.split()[0] for question in asked] == ["Network", "Checkpoint", "Data:", "Shape"]
    assert len(load_recipe("recipe.py").train_data()) == 12


def test_a_recipe_that_the_probe_refuses_is_written_whole_and_the_exit_code_tells(edgecompress, net, tmp_path):
    np.savez(tmp_path / "data.npz", inputs=np.zeros((10, 3, 8, 8), "float32"), labels=np.arange(10))
    answer = edgecompress("init", "net.py:fixed", *SHAPE, "--data", "data.npz")
    assert answer.code == 2
    assert "labels" in answer.out
    assert "next:" not in answer.out
    recipe = load_recipe("recipe.py")
    assert (len(recipe.eval_data()), recipe.preprocessing) == (2, None)


class Named(nn.Linear):
    def forward(self, x):
        return {"scores": super().forward(x)}


@pytest.mark.parametrize(("network", "output"), [(nn.Linear(4, 2), ""), (Named(4, 2), "scores")])
def test_the_functions_in_comments_are_right(tmp_path, monkeypatch, network, output):
    monkeypatch.setitem(sys.modules, "planted_net", SimpleNamespace(make=lambda: network))
    recipe = recipe_from_model(network, (torch.zeros(1, 4),))
    text = compose_recipe(
        Draft(recipe.__class__(**{**vars(recipe), "source": f"{tmp_path}/planted_net.py:make@1x4"}), output=output), tmp_path
    )
    head, mark, rest = text.partition("# A recipe may have these functions too")
    path = tmp_path / "recipe.py"
    path.write_text(head + mark + re.sub(r"^# ?", "", rest, flags=re.MULTILINE).replace(rest.splitlines()[0], "", 1))
    found = load_recipe(str(path))
    assert found.labels == ("cat", "dog")
    assert found.outputs == ({output: "logits"} if output else "logits")
    assert callable(found.train_data)
    assert found.metric is not None
    assert found.loss is not None
    assert all(len(line) <= 140 for line in text.splitlines())


def test_integers_labels_and_paths_elsewhere_are_written_as_python(tmp_path):
    source = f'hf:{tmp_path}/it\'s "here"@1x9'
    ids, mask = torch.arange(9).reshape(1, 9) % 7, torch.ones(1, 9, dtype=torch.int32)
    base = recipe_from_model(nn.Linear(4, 2), (ids, mask, mask == 1), labels=("a", 'b"', "c\\"), name="net")
    recipe = base.__class__(**{**vars(base), "source": source})
    text = compose_recipe(Draft(recipe, weights=tmp_path / "w.pt"), tmp_path / "inside")
    space = {}
    body = text[text.index("def example_inputs") :]
    exec("import torch\nfrom torch import Tensor\n" + body, space)  # the head would read the folder
    for found, due in zip(space["example_inputs"](), recipe.example_inputs, strict=True):
        assert found.dtype == due.dtype
        assert found.shape == due.shape
    assert torch.equal(space["example_inputs"]()[0], ids)
    assert space["labels"]() == recipe.labels
    (loaded,) = re.findall(r"^NETWORK = load_recipe\((.*)\)$", text, re.MULTILINE)
    assert eval(loaded) == source
    assert f'WEIGHTS = Path("{tmp_path}/w.pt")' in text


def test_a_network_of_a_package_keeps_what_is_known_of_it(edgecompress, tmp_path, monkeypatch):
    module = ModuleType("timm")
    configuration = SimpleNamespace(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.8)
    known = {"is_model": "small".__eq__, "list_models": lambda: ["small"], "get_pretrained_cfg": lambda _: configuration}
    make = {"create_model": lambda *_, **__: nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten())}
    vars(module).update(__version__="1.0", **known, **make)
    monkeypatch.setitem(sys.modules, "timm", module)
    answer = edgecompress("init", "timm:small")
    assert answer.code == 0, answer.out + answer.err
    assert answer.out.startswith("wrote small/recipe.py\n")
    recipe, source = load_recipe("small"), load_recipe("timm:small")
    assert (recipe.preprocessing, recipe.example_inputs[0].shape) == (source.preprocessing, (1, 3, 8, 8))
    assert fingerprint(recipe.model()) == fingerprint(source.model())
