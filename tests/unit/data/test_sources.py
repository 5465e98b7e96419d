"""Recipes may import what lies beside them; a function of a file, networks of packages and ONNX files are taken as recipes are."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from edgecompress.data.recipe import load_recipe, recipe_at_resolution
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.weights import fingerprint

NET = "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self):\n        super().__init__({size}, 3)\n"
RECIPE = (
    "import torch\n{first}\ndef model():\n    {then}\n    return Net()\n\ndef example_inputs():\n    return (torch.zeros(1, {size}),)\n"
)
PLAIN, LAZY = {"first": "from net import Net\n", "then": "pass"}, {"first": "", "then": "from net import Net"}


def write_pair(folder, size, how):
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NET.format(size=size))
    (folder / "recipe.py").write_text(RECIPE.format(size=size, **how))
    return str(folder)


@pytest.mark.parametrize("how", [PLAIN, LAZY])
def test_a_recipe_imports_what_lies_beside_it(tmp_path, how):
    first, second = write_pair(tmp_path / "first", 4, how), write_pair(tmp_path / "second", 5, how)
    for folder, size in ((first, 4), (second, 5), (first, 4)):
        assert load_recipe(folder).model().in_features == size
    before = load_recipe(first).sources_sha256
    write_pair(tmp_path / "first", 6, how)
    after = load_recipe(first)
    assert after.model().in_features == 6
    (tmp_path / "first/net.py").write_text(NET.format(size=6) + "# another\n")
    assert len({before, after.sources_sha256, load_recipe(first).sources_sha256}) == 3


@pytest.mark.parametrize("how", [PLAIN, LAZY])
def test_modules_that_the_user_had_imported_before_stay(tmp_path, monkeypatch, how):
    folder = write_pair(tmp_path / "first", 4, how)
    mine = ModuleType("mine_before")
    mine.__file__ = f"{folder}/mine_before.py"
    monkeypatch.setitem(sys.modules, "mine_before", mine)
    load_recipe(folder)
    load_recipe(folder)
    assert sys.modules["mine_before"] is mine


FILE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 4), Small())

class Small(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

def labels():
    return "abc".split()
"""


def test_a_function_or_class_of_a_file_is_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FILE.replace('"abc".split()', '["a", "b", "c"]'))
    recipe = load_recipe("nets.py:make@1x6")
    assert (recipe.name, recipe.labels, recipe.example_inputs[0].shape) == ("make", ("a", "b", "c"), (1, 6))
    assert recipe.model()(*recipe.example_inputs).shape == (1, 3)
    assert recipe.source == f"{tmp_path}/nets.py:make@1x6"
    monkeypatch.chdir("/")
    assert load_recipe(recipe.source).sources_sha256 == recipe.sources_sha256
    assert isinstance(load_recipe(f"{tmp_path}/nets.py:Small@1x4,1x2x2").model(), nn.Linear)
    assert [x.shape for x in load_recipe(f"{tmp_path}/nets.py:Small@1x4,1x2x2").example_inputs] == [(1, 4), (1, 2, 2)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nets.py:mak@1x6", "nets.py has no function mak; did you mean make"),
        ("nets.py:make", "the shape of the input is not known; add it, e.g. nets.py:make@1x3x224x224"),
        ("gone.py:make@1x6", "gone.py is no file"),
        ("gone.onnx", "gone.onnx is no file"),
        ("gone.pt2", "gone.pt2 is no file"),
        ("nets.py:make@1xx6", "no such recipe; give a Python file"),
        ("keras:resnet", "no such recipe; give a Python file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FILE)
    with pytest.raises(ConfigError) as caught:
        load_recipe(target)
    assert str(caught.value).startswith(f"{target}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(("target", "module", "package"), [
    ("torchvision:resnet18", "torchvision", "torchvision"), ("timm:resnet18", "timm", "timm"), ("net.onnx", "onnx2torch", "onnx2torch"),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_installation(tmp_path, monkeypatch, target, module, package):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").touch()
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.models", None)
    with pytest.raises(ConfigError, match=rf"^{target}: {package} cannot be imported .*; pip install {package}$"):
        load_recipe(target)


def plant(monkeypatch, name, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def make_net(*_, **options):
    assert not any(options.values())  # neither weights nor pretrained
    return nn.Conv2d(3, 2, 3)


@pytest.fixture
def packages(monkeypatch):
    """Packages with what of torchvision 0.28 and timm 1.0 is called; neither is needed by edgecompress, so neither is installed here."""
    way = SimpleNamespace(crop_size=[32], resize_size=[36], mean=[0.5] * 3, std=[0.25] * 3)
    weights = SimpleNamespace(transforms=lambda: way, meta={"categories": ["cat", "dog"]})
    plant(monkeypatch, "torchvision", __version__="0.28")
    listed = {"list_models": lambda: ["small"], "get_model_weights": lambda _: [weights], "get_model": make_net}
    listed["get_model_builder"] = lambda _: lambda *, weights=None, progress=True, weights_backbone="fetched": None
    plant(monkeypatch, "torchvision.models", **listed)
    configuration = SimpleNamespace(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=32 / 36)
    known = {"is_model": "small".__eq__, "list_models": lambda: ["small"], "get_pretrained_cfg": lambda _: configuration}
    plant(monkeypatch, "timm", __version__="1.0", create_model=make_net, **known)


@pytest.mark.parametrize("target", ["torchvision:small", "timm:small", "timm:small.a_in1k"])
def test_a_network_of_a_package_has_the_shape_and_preprocessing_of_its_weights(packages, target):
    recipe = load_recipe(target)
    assert (recipe.source, recipe.example_inputs[0].shape) == (target, (1, 3, 32, 32))
    assert (recipe.preprocessing.resize, recipe.preprocessing.crop, recipe.preprocessing.mean) == (36, 32, (0.5, 0.5, 0.5))
    assert recipe.labels == (("cat", "dog") if target.startswith("torchvision") else ())
    state = torch.get_rng_state()
    assert fingerprint(recipe.model()) == fingerprint(load_recipe(target).model())
    assert torch.equal(torch.get_rng_state(), state)
    larger = recipe_at_resolution(recipe, 64)
    assert (larger.example_inputs[0].shape, larger.preprocessing.resize, larger.preprocessing.crop) == ((1, 3, 64, 64), 72, 64)
    assert load_recipe(f"{target}@1x3x16x16").preprocessing.crop == 16


def test_no_weights_are_fetched_for_the_backbone_either(packages, monkeypatch):
    given = {}
    monkeypatch.setattr(sys.modules["torchvision.models"], "get_model", lambda _, **options: given.update(options) or nn.Linear(1, 1))
    load_recipe("torchvision:small").model()
    assert given == {"weights": None, "weights_backbone": None}


@pytest.mark.parametrize(("fixed", "expected"), [(True, {"pretrained": False, "img_size": (16, 24)}), (False, {"pretrained": False})])
def test_a_network_of_timm_whose_input_has_a_fixed_size_is_made_for_that_of_the_target(packages, monkeypatch, fixed, expected):
    given = {}
    timm = sys.modules["timm"]
    monkeypatch.setattr(timm, "create_model", lambda _, **options: given.update(options) or nn.Linear(1, 1))
    timm.get_pretrained_cfg("small").fixed_input_size = fixed
    load_recipe("timm:small@1x3x16x24").model()
    assert given == expected


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_misspelt_network_of_a_package_is_told_with_those_like_it(packages, package):
    with pytest.raises(ConfigError, match=rf"^{package}:smal: {package} has no smal; did you mean small\?"):
        load_recipe(f"{package}:smal")


def test_an_onnx_file_is_read_with_its_shape_or_refused_by_its_op(tmp_path, monkeypatch):
    size = SimpleNamespace(dim_value=6)
    x = SimpleNamespace(
        name="x", type=SimpleNamespace(tensor_type=SimpleNamespace(shape=SimpleNamespace(dim=[SimpleNamespace(dim_value=0), size])))
    )
    graph = SimpleNamespace(initializer=[SimpleNamespace(name="w")], input=[x, SimpleNamespace(name="w")])
    plant(monkeypatch, "onnx", load=lambda *_, **__: SimpleNamespace(graph=graph))
    plant(monkeypatch, "onnx2torch", convert=lambda _: nn.Linear(6, 2))
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.source, recipe.example_inputs[0].shape) == ("net", f"{path}@1x6", (1, 6))
    assert recipe.model() is not recipe.model()
    assert load_recipe(recipe.source).sources_sha256 == recipe.sources_sha256

    def refuse(_):
        raise NotImplementedError("Converter is not implemented (OperationDescription(domain='', operation_type='Reshape', version=19))")

    plant(monkeypatch, "onnx2torch", convert=refuse)
    with pytest.raises(UnsupportedError, match="onnx2torch has no Reshape of opset 19; write the file with opset_version=13"):
        load_recipe(str(path))
