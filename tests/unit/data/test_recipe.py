"""Recipes load from files, folders and modules, and a broken recipe is refused with a remedy."""

import re
import sys

import pytest
import torch
from torch import nn

from edgecompress.data.recipe import check_example, load_recipe, recipe_at_resolution, recipe_from_model
from edgecompress.data.recipe_files import hash_sources, import_file, import_module, list_sources
from edgecompress.errors import ConfigError
from edgecompress.records import Preprocessing
from edgecompress.records.outputs import OutputSpec

GOOD = """
import torch
from torch import nn

def model():
    return nn.Linear(4, 2)

def example_inputs():
    return (torch.zeros(1, 4),)
"""
FULL = """
from edgecompress import Preprocessing

def train_data():
    return [1, 2]

def preprocessing():
    return Preprocessing(mean=(0.5,), std=(0.5,), resize=256, crop=224)

def labels():
    return ["cat", "dog"]
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="recipe.py"):
        path = tmp_path / "my_net" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("form", "name"), [("file", "my_net"), ("folder", "my_net"), ("other-name", "lenet")])
def test_a_recipe_is_a_file_or_its_folder(write, form, name):
    path = write(GOOD, "lenet.py" if form == "other-name" else "recipe.py")
    recipe = load_recipe(str(path.parent if form == "folder" else path))
    assert recipe.name == name
    assert recipe.source == str(path)
    assert isinstance(recipe.model(), nn.Linear)
    assert [tuple(x.shape) for x in recipe.example_inputs] == [(1, 4)]
    assert (recipe.train_data, recipe.eval_data, recipe.preprocessing, recipe.labels) == (None, None, None, ())


def test_a_recipe_is_a_module(write, monkeypatch):
    path = write(GOOD + FULL, "net_of_mine.py")
    write("", "__init__.py")
    monkeypatch.syspath_prepend(path.parent.parent)
    recipe = load_recipe("my_net.net_of_mine")
    assert (recipe.name, recipe.source) == ("net_of_mine", "my_net.net_of_mine")
    assert recipe.train_data() == [1, 2]
    assert recipe.preprocessing == Preprocessing(mean=(0.5,), std=(0.5,), resize=256, crop=224)
    assert recipe.labels == ("cat", "dog")


def test_files_beside_a_recipe_are_imported_relatively_and_read_again_when_edited(write):
    write("from torch import nn\n\ndef net():\n    return nn.Linear(4, 2)\n", "network.py")
    path = write(GOOD.replace("def model():\n    return nn.Linear(4, 2)", "from .network import net as model"))
    first = load_recipe(str(path))
    assert first.model().out_features == 2
    write("from torch import nn\n\ndef net():\n    return nn.Linear(4, 33)\n", "network.py")
    second = load_recipe(str(path))
    assert second.model().out_features == 33
    assert second.sources_sha256 != first.sources_sha256
    assert load_recipe(str(path)).sources_sha256 == second.sources_sha256


def test_two_recipes_of_one_file_name_do_not_clash(tmp_path):
    for i in (3, 5):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "net.py").write_text(f"width = {i}\n")
        (tmp_path / str(i) / "recipe.py").write_text(
            GOOD.replace("import torch\n", "import torch\nfrom .net import width\n").replace("2)", "width)")
        )
    recipes = [load_recipe(str(tmp_path / str(i))) for i in (3, 5)]
    assert [r.model().out_features for r in recipes] == [3, 5]
    assert "net" not in sys.modules


def without(function):
    return re.sub(rf"def {function}\(\):\n    return .*\n", "", GOOD)


BROKEN = {
    "no model": (without("model"), r"has no function model\(\); a recipe defines model\(\) and example_inputs\(\)"),
    "no example": (without("example_inputs"), r"has no function example_inputs\(\)"),
    "model no function": (GOOD + "model = 3\n", r"has no function model\(\)"),
    "import": (
        "import no_such_package_at_all\n" + GOOD,
        r"the import fails with ModuleNotFoundError: No module named 'no_such_package_at_all'; install it, or check its name",
    ),
    "relative": ("from .gone import Net\n" + GOOD, r"the import fails with ModuleNotFoundError: .*gone"),
    "syntax": (GOOD + "def (:\n", r"the import fails with SyntaxError"),
    "raises": ("raise ValueError('on my own')\n", r"the import fails with ValueError: on my own; mend it"),
    "exits": ("import sys\nsys.exit(3)\n", r"the import fails with SystemExit: 3; mend it"),
    "example raises": (
        GOOD.replace("(torch.zeros(1, 4),)", "1 / 0"),
        r"example_inputs\(\) fails with ZeroDivisionError: division by zero",
    ),
    "dynamic": (GOOD.replace("torch.zeros(1, 4),", "1, None"), r"example_inputs\(\) must return a tuple of tensors"),
    "dynamic zero": (GOOD.replace("zeros(1, 4)", "zeros(0, 4)"), r"shape \(0, 4\); artifacts have static shapes, give every size"),
    "no batch": (GOOD.replace("zeros(1, 4)", "tensor(1.0)"), r"shape \(\); artifacts have static shapes"),
    "nothing": (GOOD.replace("(torch.zeros(1, 4),)", "()"), r"must return a tuple of tensors"),
    "nan": (GOOD.replace("torch.zeros(1, 4)", "torch.full((1, 4), float('nan'))"), "an example input holds NaN or infinity"),
    "preprocessing": (
        GOOD + "def preprocessing():\n    return {'mean': 1}\n",
        r"preprocessing\(\) returned dict; return edgecompress\.Preprocessing",
    ),
    "preprocessing raises": (
        GOOD + "def preprocessing():\n    return {}['mean']\n",
        r"preprocessing\(\) fails with KeyError: 'mean'",
    ),
    "outputs unknown": (
        GOOD + "def outputs():\n    return 'score'\n",
        r"outputs\(\): a kind is 'score'; give one of logits, ",
    ),
    "outputs number": (GOOD + "def outputs():\n    return ['logits', 3]\n", r"outputs\(\): a kind is of type int"),
    "outputs by number": (GOOD + "def outputs():\n    return {0: 'logits'}\n", r"outputs\(\): 0 is no name of an output"),
    "outputs raises": (GOOD + "def outputs():\n    return {}[3]\n", r"outputs\(\) fails with KeyError: 3"),
    "metric one argument": (
        GOOD + "def metric(outputs):\n    return {}\n",
        r"metric\(\): is no function of two arguments; define metric\(outputs, targets\)",
    ),
    "metric number": (GOOD + "metric = 3\n", "metric: is no function of two arguments"),
    "loss number": (GOOD + "loss = 3\n", r"loss: is no function of two arguments; define loss\(outputs, targets\)"),
    "direction text": (
        GOOD + "def metric(outputs, targets):\n    return {}\n\nhigher_is_better = 'yes'\n",
        r"higher_is_better: is 'yes'; give True, False, or a dict",
    ),
    "direction alone": (GOOD + "higher_is_better = True\n", "higher_is_better: no metric to go with it"),
    "labels none": (GOOD + "def labels():\n    return None\n", r"labels\(\) returned NoneType; return a list of class names"),
    "labels text": (GOOD + "def labels():\n    return 'cat'\n", r"labels\(\) returned str; return a list of class names"),
    "labels raise": (GOOD + "def labels():\n    return open('/gone')\n", r"labels\(\) fails with FileNotFoundError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_recipe_is_refused_with_what_to_do(write, name):
    text, message = BROKEN[name]
    path = write(text)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}(:\d+)?:? (.*{message}|{message})"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gone.py", "gone.py: no such recipe; give a Python file, a folder with recipe.py, a module name, FILE.py:FUNCTION"),
        ("gone/deep", "gone/deep: no such recipe"),
        ("../gone", r"\.\./gone: no such recipe"),
        ("", ": no such recipe"),
        ("no_such_module_here", r"^no_such_module_here: the import fails with ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("weights.safetensors", r"the import fails with ModuleNotFoundError"),
    ],
)
def test_a_missing_recipe_is_refused(tmp_path, monkeypatch, target, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_recipe(target)


def test_a_folder_without_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no such recipe; give a Python file, a folder with recipe\.py"):
        load_recipe(str(tmp_path))


def test_example_inputs_are_copies_of_batch_one():
    x = torch.ones(5, 3)
    recipe = recipe_from_model(torch.nn.Linear(3, 2), [x])
    (rows,), (kept,) = recipe.example_rows, recipe.example_inputs
    assert rows.shape == (5, 3)
    assert kept.shape == (1, 3)
    kept.zero_()
    rows.zero_()
    assert float(x.sum()) == 15
    assert check_example(x, "net")[0].shape == (5, 3)
    assert check_example((torch.zeros(1, 2, dtype=torch.int64),), "net")[0].dtype == torch.int64


JUDGED = """
def outputs():
    return {"scores": "logits", "boxes": OutputSpec(kind="values", tolerance=0.1)}

def metric(outputs, targets):
    return {"f1": 1.0}

def loss(outputs, targets):
    return outputs["scores"].mean()

higher_is_better = {"f1": True}
"""


def test_a_recipe_says_how_its_outputs_are_judged(write):
    path = write("from edgecompress import OutputSpec\n" + GOOD + JUDGED)
    recipe = load_recipe(str(path))
    assert recipe.outputs == {"scores": "logits", "boxes": OutputSpec(kind="values", tolerance=0.1)}
    assert recipe.outputs_place == f"{path}:12: outputs()"
    assert (recipe.metric.place, recipe.metric.higher_is_better) == (f"{path}:15: metric()", {"f1": True})
    assert recipe.loss.place == f"{path}:18: loss()"
    plain = load_recipe(str(write(GOOD, "plain.py")))
    assert (plain.outputs, plain.metric, plain.loss) == (None, None, None)


def test_a_model_in_memory_takes_the_same():
    given = {"outputs": ["logits"], "metric": lambda outputs, targets: {"f1": 1.0}, "loss": nn.MSELoss(), "higher_is_better": False}
    recipe = recipe_from_model(nn.Linear(3, 2), (torch.zeros(1, 3),), **given)
    assert recipe.outputs == ("logits",)
    assert recipe.metric.higher_is_better is False
    assert recipe.loss.function is given["loss"]
    with pytest.raises(ConfigError, match="linear: outputs: a kind is 'scores'"):
        recipe_from_model(nn.Linear(3, 2), (torch.zeros(1, 3),), outputs="scores")


def test_a_model_in_memory_is_never_changed():
    net = nn.Linear(3, 2).train()
    recipe = recipe_from_model(net, (torch.zeros(1, 3),), labels=("a", "b"))
    assert (recipe.name, recipe.source, recipe.labels) == ("linear", "python", ("a", "b"))
    copy = recipe.model()
    assert torch.equal(copy.weight, net.weight)
    nn.init.zeros_(copy.eval().weight)
    assert net.training
    assert bool((net.weight != 0).any())


def test_datasets_in_memory_are_not_copied():
    data = [1, 2, 3]
    recipe = recipe_from_model(nn.Linear(3, 2), (torch.zeros(1, 3),), train_data=data)
    assert recipe.train_data() is data
    assert recipe.eval_data is None


SIZED = """
import torch
from torch import nn

def model():
    return nn.AdaptiveAvgPool2d(1)

def example_inputs(resolution=32):
    return (torch.zeros(1, 3, resolution, resolution),)

def eval_data(resolution=32):
    return [torch.ones(3, resolution, resolution)]
"""


def test_functions_that_take_a_resolution_are_called_with_it(write):
    recipe = load_recipe(str(write(SIZED)))
    smaller = recipe_at_resolution(recipe, 24)
    assert [tuple(r.example_inputs[0].shape) for r in (recipe, smaller, recipe_at_resolution(smaller, 40))] == [
        (1, 3, 32, 32),
        (1, 3, 24, 24),
        (1, 3, 40, 40),
    ]
    assert smaller.eval_data()[0].shape == (3, 24, 24)
    assert (smaller.name, smaller.source, smaller.sources_sha256) == (recipe.name, recipe.source, recipe.sources_sha256)
    assert recipe_at_resolution(recipe, 0) is recipe


@pytest.mark.parametrize("kind", ["recipe", "memory"])
def test_a_resolution_that_a_recipe_does_not_take_is_refused(write, kind):
    recipe = load_recipe(str(write(GOOD))) if kind == "recipe" else recipe_from_model(nn.Linear(4, 2), (torch.zeros(1, 4),))
    with pytest.raises(ConfigError, match=r"takes no resolution; let it take one"):
        recipe_at_resolution(recipe, 24)


# --- the sources of a recipe ---

IMPORTS = """
import torch
import beside_absolutely
from torch import nn
from elsewhere_of_mine import helper
from .parts import first
from .parts.second import second_part

def model():
    from .lazily import late
    return nn.Linear(4, 2)

def example_inputs():
    return (torch.zeros(1, 4),)
"""
FILES = {
    "net/recipe.py": IMPORTS,
    "net/beside_absolutely.py": "",
    "net/parts/__init__.py": "",
    "net/parts/first.py": "from . import deeper\n",
    "net/parts/deeper.py": "",
    "net/parts/second.py": "second_part = 1\n",
    "net/lazily.py": "from .only_from_there import x\n\ndef late(): ...\n",
    "net/only_from_there.py": "x = 1\n",
    "other/elsewhere_of_mine.py": "def helper(): ...\n",
}
UNRELATED = ("net/unrelated.py", "net/parts/unrelated.py", "other/unrelated.py")


@pytest.mark.parametrize("as_module", [False, True])
def test_the_sources_are_the_user_s_files_that_are_imported(tmp_path, monkeypatch, as_module):
    for name in (*FILES, *UNRELATED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(FILES.get(name, "x = 1\n"))
    for folder in ("net", "other", "."):
        monkeypatch.syspath_prepend(tmp_path / folder)
    for name in ("beside_absolutely", "elsewhere_of_mine", "net", "net.recipe"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if as_module:
        module = import_module("net.recipe")
        file = tmp_path / "net/recipe.py"
    else:
        file = tmp_path / "net/recipe.py"
        module = import_file(file)
    try:
        assert {str(path.relative_to(tmp_path.resolve())) for path in list_sources(module, file)} == set(FILES)
        before = hash_sources(module, file)
        for name in UNRELATED:
            (tmp_path / name).write_text("x = 2\n")
        assert hash_sources(module, file) == before
        (tmp_path / "net/only_from_there.py").write_text("x = 2\n")
        assert hash_sources(module, file) != before
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "net"]:
            del sys.modules[name]
