"""A .pt2 file is a network with its layers; whatever in such a file would run as code is refused, and never runs."""

import io
import json
import os
import pickle
import re
import warnings
import zipfile
from contextlib import suppress

import pytest
import torch
from torch import nn

from edgecompress.data.program_files import MODEL, PAYLOADS, SAMPLES, load_program
from edgecompress.data.recipe import load_recipe
from edgecompress.data.shapes import UnknownShapeError
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.program_layers import make_network

WEIGHTS, CONSTANTS = PAYLOADS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, (2, 1), 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.twice = nn.Linear(16, 16)
        self.up = nn.ConvTranspose1d(16, 4, 2, 2, groups=2)
        self.tied = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("offset", torch.ones(16))
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        x = self.stem(x).view(x.shape[0], -1)  # (n, 16)
        x = self.twice(self.twice(x).relu()) * self.scale + self.offset
        x = self.tied(x) @ self.tied.weight
        return {"scores": self.norm(x), "up": [self.up(x[:, :, None])]}


def make_net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for norm in (net.stem[1], net.norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net.eval()


def export(net, inputs, path, shapes=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, inputs, dynamic_shapes=shapes, strict=False), path)
    return path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    return export(make_net(), (torch.zeros(1, 2, 4, 2),), tmp_path_factory.mktemp("programs") / "net.pt2")


@pytest.fixture(scope="module")
def open_sizes(tmp_path_factory):
    any_size = torch.export.Dim.DYNAMIC
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 3)), nn.Softmax(-1)).eval()
    return export(net, (torch.zeros(2, 5, 6),), tmp_path_factory.mktemp("open") / "net.pt2", [{0: any_size, 1: any_size}])


def test_a_program_is_a_network_of_its_layers_for_any_batch(fixed):
    recipe, net = load_recipe(str(fixed)), make_net()
    found = recipe.model()
    assert (recipe.name, recipe.source, recipe.example_inputs[0].shape) == ("net", str(fixed), (1, 2, 4, 2))
    kinds = {name: type(module) for name, module in found.named_modules() if list(module.parameters(recurse=False))}
    assert kinds.pop("") is type(found)  # the scale
    assert kinds == {
        "stem.0": nn.Conv2d, "stem.1": nn.BatchNorm2d, "twice": nn.Linear, "up": nn.ConvTranspose1d, "tied": nn.Module,
        "norm": nn.BatchNorm1d,
    }  # fmt: skip
    for n in (1, 3):
        x = torch.randn(n, 2, 4, 2)
        given, due = found(x), net(x)
        assert torch.allclose(given["scores"], due["scores"], atol=1e-5)
        assert torch.allclose(given["up"][0], due["up"][0], atol=1e-5)
    found.train()(torch.randn(4, 2, 4, 2))["scores"].sum().backward()
    assert found.twice.weight.grad is not None
    assert not torch.equal(found.norm.running_mean, net.norm.running_mean)
    assert recipe.model() is not found
    assert load_recipe(str(fixed)).sources_sha256 == recipe.sources_sha256


def test_sizes_that_a_program_leaves_open_are_given_with_it(open_sizes):
    with pytest.raises(UnknownShapeError, match=r"the shape of the input is not known; add it"):
        load_recipe(str(open_sizes))
    recipe = load_recipe(f"{open_sizes}@1x7x6")
    assert (recipe.example_inputs[0].shape, recipe.source) == ((1, 7, 6), f"{open_sizes}@1x7x6")
    assert recipe.model()(torch.zeros(2, 4, 6)).shape == (2, 4, 3)
    assert isinstance(recipe.model().get_submodule("0.0"), nn.Linear)
    with pytest.raises(ConfigError, match="2 shapes are given, the program takes 1 inputs"):
        load_recipe(f"{open_sizes}@1x7x6,1x3")


def test_a_program_in_training_mode_is_refused(tmp_path):
    path = export(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), (torch.zeros(2, 4),), tmp_path / "net.pt2")
    with pytest.raises(ConfigError, match=r"was exported in training mode; call model\.eval\(\) before torch\.export\.export"):
        load_recipe(str(path))


# --- files that would run code ---


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("code-ran",)


def pickled():
    buffer = io.BytesIO()
    torch.save(Hostile(), buffer)
    return buffer.getvalue()


def change(path, target, edit):
    """Write an archive whose members, by their names without the folder, were edited."""
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return target


def replace(member, old, new):
    def edit(members):
        assert old in members[member].decode(), members[member][:3000]
        members[member] = members[member].decode().replace(old, new).encode()

    return edit


def change_json(member, edit):
    def change_member(members):
        found = json.loads(members[member])
        edit(found)
        members[member] = json.dumps(found).encode()

    return change_member


def pickle_weight(members):
    change_json(WEIGHTS, lambda found: found["config"]["scale"].update(use_pickle=True, path_name="weight_0"))(members)
    members["data/weights/weight_0"] = pickled()


def pickle_constant(members):
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    change_json(CONSTANTS, lambda found: found["config"].update(planted=meta))(members)
    members["data/constants/opaque_obj_0"] = pickle.dumps(Hostile())


def size_expression(text):
    def edit(found):
        value = next(iter(found["graph_module"]["graph"]["tensor_values"].values()))
        value["sizes"] = [{"as_expr": {"expr_str": text, "hint": None}}]

    return change_json(MODEL, edit)


def operation(text):
    return change_json(MODEL, lambda found: found["graph_module"]["graph"]["nodes"][0].update(target=text))


def output_structure(kind, context):
    spec = json.dumps([1, {"type": kind, "context": context, "children_spec": []}])

    def edit(found):
        found["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    return change_json(MODEL, edit)


def add_argument(argument):
    return change_json(MODEL, lambda found: found["graph_module"]["graph"]["nodes"][0]["inputs"].append({"name": "x", "arg": argument}))


def use_old_weights(members):
    members["data/weights/model.pt"] = pickled()
    del members[WEIGHTS]


REFUSED = {
    "weight": (pickle_weight, ConfigError, r"scale is a pickled object, which would run code when loaded; give the function"),
    "constant": (pickle_constant, ConfigError, r"planted is a pickled object"),
    "elsewhere": (replace(WEIGHTS, '"weight_0"', '"../../x"'), ConfigError, "is a pickled object"),
    "size": (size_expression("__import__('os').mkdir('code-ran')"), ConfigError, "which could run as code when loaded"),
    "size by name": (size_expression("os.getcwd()"), ConfigError, "which could run as code when loaded"),
    "function": (operation("torch.os.mkdir"), UnsupportedError, r"calls torch\.os\.mkdir, only operations of torch\.ops\.aten are read"),
    "namespace": (operation("torch.ops.aten.__class__.mro"), UnsupportedError, "only operations of torch.ops.aten are read"),
    "file": (operation("torch.ops.aten.from_file.default"), UnsupportedError, "only operations of torch.ops.aten are read"),
    "operator": (operation("_operator.methodcaller"), UnsupportedError, "only operations of torch.ops.aten are read"),
    "package": (operation("torch.ops.torchvision.nms.default"), UnsupportedError, "only operations of torch.ops.aten are read"),
    "name": (replace(MODEL, '"p_scale"', '"p\\"]; import os #"'), ConfigError, "which could run as code when loaded"),
    "line": (replace(MODEL, '"p_scale"', '"p\\nimport os"'), ConfigError, "which could run as code when loaded"),
    "enumeration": (output_structure("builtins.dict", '{"__enum__": true}'), ConfigError, "which could run as code when loaded"),
    "class": (output_structure("my.Output", "null"), UnsupportedError, r"nests inputs or outputs in 'my\.Output'; use tuples, lists"),
    "graph": (add_argument({"as_graph": {"name": "g"}}), UnsupportedError, "has a branch, a loop or a block with settings of its own"),
    "operator argument": (add_argument({"as_operator": "torch.os.mkdir"}), ConfigError, "which could run as code when loaded"),
    "library": (lambda members: members.update({"data/aotinductor/net/x.so": b""}), UnsupportedError, "libraries compiled for one machine"),
    "old weights": (use_old_weights, ConfigError, "not a readable exported program"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_run_as_code_is_refused(fixed, tmp_path, monkeypatch, name):
    edit, error, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    path = change(fixed, tmp_path / "bad.pt2", edit)
    with pytest.raises(error, match=message) as caught:
        load_program(path, "bad.pt2")
    assert re.fullmatch(r"bad\.pt2: .+; .+", str(caught.value))
    assert not (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("edit", [pickle_constant, lambda members: members.update({SAMPLES: pickled()})])
def test_torch_itself_would_run_such_a_file(fixed, tmp_path, monkeypatch, edit):
    """These files are attacks, and not merely damaged."""
    monkeypatch.chdir(tmp_path)
    path = change(fixed, tmp_path / "bad.pt2", edit)
    with suppress(Exception):  # what the code returns is no part of a program
        torch.export.load(path)
    assert (tmp_path / "code-ran").is_dir()


def test_a_program_of_a_gpu_is_read_on_the_processor(fixed, tmp_path):
    def edit(members):
        for member in (MODEL, *PAYLOADS):
            replace(member, '"type": "cpu"', '"type": "cuda"')(members) if b'"cpu"' in members[member] else None

    path = change(fixed, tmp_path / "gpu.pt2", edit)
    assert all(x.device.type == "cpu" for x in load_recipe(str(path)).model().state_dict().values())


def test_samples_and_guards_are_never_read(fixed, tmp_path, monkeypatch):
    def edit(members):
        members[SAMPLES] = pickled()
        members["extra/remark"] = b"\xff"
        change_json(MODEL, lambda found: found.update(guards_code=["__import__('os').mkdir('code-ran')"]))(members)

    monkeypatch.chdir(tmp_path)
    path = change(fixed, tmp_path / "odd.pt2", edit)
    x = torch.randn(2, 2, 4, 2)
    assert torch.equal(make_network(load_program(path, "odd"), name="odd")(x)["scores"], load_recipe(str(fixed)).model()(x)["scores"])
    assert not (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", "short", "compressed", "empty"])
def test_a_file_of_another_kind_is_refused(fixed, tmp_path, content):
    path = tmp_path / "bad.pt2"
    if content == "short":
        path.write_bytes(fixed.read_bytes()[:-500])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("net/archive_format", "pt2")
            if content == "compressed":
                archive.writestr(f"net/{MODEL}", "{}")
    with pytest.raises(
        ConfigError, match=r"bad\.pt2: (not a readable exported program|is compressed).*; save it again with torch\.export\.save"
    ):
        load_program(path, "bad.pt2")
