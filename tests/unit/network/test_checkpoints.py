"""Checkpoints as training scripts leave them are loaded and said; nothing of a file is run; what does not fit is named."""

import argparse
import json
import os
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.networks import Net
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import factorize
from edgecompress.network.checkpoints import load_checkpoint
from edgecompress.network.surgery import replace_module
from edgecompress.network.weights import fingerprint


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def state(net):
    return net.state_dict()


def renamed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def uncounted(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


def save(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin"])
def test_a_plain_state_dict_comes_back_bit_for_bit_without_a_word(net, state, tmp_path, name):
    (save_file if name == "w.safetensors" else torch.save)(state, tmp_path / name)
    other = Net()
    assert load_checkpoint(other, tmp_path / name) == ""
    assert fingerprint(other) == fingerprint(net)


LEFT_BY_SCRIPTS = {
    "data parallel": (lambda s: renamed(s, "module."), "prefix 'module.' removed"),
    "compiled": (lambda s: renamed(s, "_orig_mod."), "prefix '_orig_mod.' removed"),
    "both": (lambda s: renamed(s, "module._orig_mod."), "prefix 'module._orig_mod.' removed"),
    "student": (lambda s: renamed(s, "student."), "prefix 'student.' removed"),
    "any prefix": (lambda s: renamed(s, "my.encoder."), "prefix 'my.encoder.' removed"),
    "one layer compiled": (
        lambda s: {k.replace("body.", "body._orig_mod."): v for k, v in s.items()},
        "_orig_mod removed from keys",
    ),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, "weights taken from 'state_dict'"),
    "model": (lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "weights taken from 'model'"),
    "a key nobody knows": (lambda s: {"netG": s, "step": torch.tensor(3)}, "weights taken from 'netG'"),
    "a level more": (
        lambda s: {"ema": {"state_dict": renamed(s, "module.")}},
        "weights taken from 'ema' / 'state_dict'; an average over training; prefix 'module.' removed",
    ),
    "averaged": (lambda s: {"n_averaged": torch.tensor(4), **renamed(s, "module.")}, "prefix 'module.' removed; n_averaged not read"),
    "average beside": (
        lambda s: {"state_dict": s, "state_dict_ema": zeros(s)},
        "weights taken from 'state_dict'; the weights under 'state_dict_ema' fit too and are not used",
    ),
    "model before ema": (
        lambda s: {"ema": zeros(s), "model": s},
        "weights taken from 'model'; the weights under 'ema' fit too and are not used",
    ),
    "model before net": (
        lambda s: {"net": zeros(s), "model": s},
        "weights taken from 'model'; the weights under 'net' fit too and are not used",
    ),
    "student and teacher": (
        lambda s: {**renamed(zeros(s), "teacher."), **renamed(s, "student.")},
        "prefix 'student.' removed; .*the weights with the prefix 'teacher.' fit too and are not used",
    ),
    "lightning": (
        lambda s: {"state_dict": {**renamed(s, "model."), "criterion.weight": torch.ones(10), "train_acc.total": torch.tensor(1.0)}},
        "weights taken from 'state_dict'; prefix 'model.' removed; criterion.weight, train_acc.total not read",
    ),
    "criterion inside": (lambda s: {**s, "criterion.weight": torch.ones(10)}, "criterion.weight not read"),
    "auxiliary head": (lambda s: {**s, "aux1.weight": torch.ones(10)}, "aux1.weight not read"),
    "profiled": (
        lambda s: {**s, "total_ops": torch.zeros(1), "stem.total_params": torch.zeros(1)},
        "total_ops, stem.total_params not read",
    ),
    "no counters": (uncounted, "bn1.num_batches_tracked, bn2.num_batches_tracked missing, which evaluation does not read"),
    "arguments": (
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
        "weights taken from 'model'; objects of argparse.Namespace not loaded",
    ),
    "numpy numbers": (lambda s: {"model": s, "best": np.float64(0.5)}, "weights taken from 'model'; objects of .*scalar not loaded"),
    "an epoch among weights": (lambda s: {**s, "epoch": 3}, ""),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", LEFT_BY_SCRIPTS)
def test_what_a_training_script_leaves_is_loaded_and_said_in_one_note(net, state, tmp_path, case, old):
    make, note = LEFT_BY_SCRIPTS[case]
    path = tmp_path / "best.pth"
    torch.save(make(state), path, _use_new_zipfile_serialization=not old)
    other = Net()
    expected = fingerprint(net) if case != "no counters" else None
    found = load_checkpoint(other, path)
    assert re.fullmatch(f"best.pth: {note}" if note else "", found)
    if expected:
        assert fingerprint(other) == expected
    else:
        assert all(torch.equal(value, state[key]) for key, value in uncounted(other.state_dict()).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(state, tmp_path, dtype):
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    other = Net()
    assert load_checkpoint(other, save(half, tmp_path / "w.pt")) == f"w.pt: {str(dtype).removeprefix('torch.')} widened"
    assert all(value.dtype == state[key].dtype for key, value in other.state_dict().items())
    assert torch.equal(other.head.weight, state["head.weight"].to(dtype).float())


def write_shards(folder, state, suffix=".safetensors"):
    keys = list(state)
    parts = {f"model-0000{i + 1}-of-00002{suffix}": keys[i::2] for i in range(2)}
    for name, held in parts.items():
        (save_file if suffix == ".safetensors" else torch.save)({key: state[key] for key in held}, folder / name)
    index = folder / f"model{suffix}.index.json" if suffix == ".safetensors" else folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {key: name for name, held in parts.items() for key in held}}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_shards_are_gathered_by_their_index(net, state, tmp_path, suffix, as_folder):
    index = write_shards(tmp_path, renamed(state, "model."), suffix)
    other = Net()
    assert "prefix 'model.' removed" in load_checkpoint(other, tmp_path if as_folder else index)
    assert fingerprint(other) == fingerprint(net)


def test_faults_of_shards_are_named(state, tmp_path):
    index = write_shards(tmp_path, state)
    with pytest.raises(
        ConfigError, match=r"-of-00002.safetensors: does not fit .*missing.*; it is one shard of several: give the \.index\.json"
    ):
        load_checkpoint(Net(), tmp_path / "model-00001-of-00002.safetensors")
    shards = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**shards, "lost.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(
        ConfigError, match=r"00001-of-00002.safetensors: lacks lost\.weight, which model\.safetensors\.index\.json places there; "
    ):
        load_checkpoint(Net(), index)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(shards, "../w.pt")}))
    with pytest.raises(ConfigError, match=r"names the shard '\.\./w\.pt', which is no file beside it; "):
        load_checkpoint(Net(), index)
    index.write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"1 of 2 shards are not beside it \(first: model-00002-of-00002\.safetensors\); copy all"):
        load_checkpoint(Net(), index)
    index.write_text("[1]")
    with pytest.raises(ConfigError, match="not the index of a checkpoint in shards; "):
        load_checkpoint(Net(), index)


def test_tied_weights_are_read_from_the_one_that_was_saved(tmp_path):
    def tied():
        model = nn.Sequential(OrderedDict(embed=nn.Embedding(5, 4), head=nn.Linear(4, 5, bias=False)))
        model.head.weight = model.embed.weight
        return model

    first, second = tied(), tied()
    save_file({"embed.weight": first.embed.weight.detach()}, tmp_path / "w.safetensors")
    load_checkpoint(second, tmp_path / "w.safetensors")
    assert torch.equal(second.head.weight, first.head.weight)


def test_weights_of_the_one_module_that_a_network_holds_fit_it(net, state, tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net()

        def forward(self, x):
            return self.inner(x).softmax(1)

    wrapped = Wrapped()
    assert load_checkpoint(wrapped, save({"model": state}, tmp_path / "w.pt")) == "w.pt: weights taken from 'model'; prefix 'inner.' added"
    assert fingerprint(wrapped.inner) == fingerprint(net)
    with pytest.raises(ConfigError, match=r"does not fit the model: 14 keys missing \(first: inner\."):
        load_checkpoint(wrapped, save({"conv1.weight": torch.zeros(3)}, tmp_path / "w.pt"))


def test_weights_of_several_networks_are_refused_where_no_usual_name_decides(state, tmp_path):
    path = save({"netG_A": state, "netG_B": zeros(state)}, tmp_path / "gan.pt")
    with pytest.raises(
        ConfigError, match=r"several networks fit: under 'netG_A' and under 'netG_B'; save the state dict of the one to use"
    ):
        load_checkpoint(Net(), path)
    assert "fit too" in load_checkpoint(Net(), save({"netG_A": state, "copy": state}, path))


MISFITS = {
    "missing": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("head")},
        r": 2 keys missing \(first: head\.bias, head\.weight\); give the checkpoint of this very network",
    ),
    "missing under a key": (
        lambda s: {"model": {k: v for k, v in renamed(s, "net.").items() if "head" not in k}},
        r" under 'model' with the prefix 'net\.': 2 keys missing \(first: head\.bias, head\.weight\); give",
    ),
    "unknown": (lambda s: {**s, "extra": torch.zeros(1)}, r": 1 keys unknown \(first: extra\); give"),
    "a deeper network": (lambda s: {**s, "body.2.weight": torch.zeros(1)}, r": 1 keys unknown \(first: body\.2\.weight\); give"),
    "other classes": (
        lambda s: {**s, "head.weight": torch.zeros(7, 128), "head.bias": torch.zeros(7)},
        r": head\.weight is \(7, 128\), the model has \(10, 128\), head\.bias is \(7,\), the model has \(10,\); let model\(\) build",
    ),
    "integers": (
        lambda s: {**s, "head.weight": torch.zeros(10, 128, dtype=torch.int8)},
        r": head\.weight is int8, the model has float32; ",
    ),
    "another network": (
        lambda s: {"conv1.weight": torch.zeros(3)},
        r": 14 keys missing \(first: .*\), 1 keys unknown \(first: conv1\.weight\); ",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_keys_and_shapes_that_do_not_fit_are_named_and_nothing_is_loaded(net, state, tmp_path, case):
    make, message = MISFITS[case]
    path, before = save(make(state), tmp_path / "w.pt"), fingerprint(net)
    with pytest.raises(ConfigError, match=rf"w\.pt: does not fit the model{message}") as refusal:
        load_checkpoint(net, path)
    assert "\n" not in str(refusal.value)
    assert fingerprint(net) == before


def test_weights_of_a_decomposed_model_are_recognised(tmp_path):
    decomposed = Net()
    replace_module(decomposed, "body", factorize(decomposed.body, "tucker2", (4, 4)))
    with pytest.raises(ConfigError, match=r"w\.pt: holds the weights of an already decomposed model; give those of the dense model"):
        load_checkpoint(Net(), save(decomposed.state_dict(), tmp_path / "w.pt"))


@pytest.mark.parametrize("where", ["alone", "beside weights"])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickle_that_needs_code_is_refused_and_does_not_run(state, tmp_path, how, where):
    path, proof = tmp_path / "evil.pt", tmp_path / "it-ran"
    content = {"weight": Evil(proof)} if where == "alone" else {"model": state, "args": Evil(proof)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        ConfigError, match=rf"{re.escape(str(path))}: holds Python objects that would run code when loaded; save torch\.save"
    ):
        load_checkpoint(Net(), path)
    assert not proof.exists()
    if where == "alone":  # the attack is a real one
        if how == "pickle":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert proof.exists()


class Touching:
    """An object whose construction and whose state each write a file."""

    def __init__(self, path):
        self.path = path
        path.touch()

    def __reduce__(self):
        return Touching, (self.path,), {"path": self.path}

    def __setstate__(self, state):
        state["path"].touch()


def test_objects_of_unknown_classes_beside_the_weights_are_not_made(net, state, tmp_path):
    proof = tmp_path / "it-ran"
    path = save({"model": state, "config": Touching(proof)}, tmp_path / "w.pt")
    proof.unlink()
    other = Net()
    assert re.search(r"objects of .*Touching not loaded", load_checkpoint(other, path))
    assert fingerprint(other) == fingerprint(net)
    assert not proof.exists()


@pytest.mark.parametrize("place", [(), ("model",)])
def test_a_whole_module_is_refused_with_lines_that_save_its_state_dict(tmp_path, monkeypatch, place):
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))  # classes that the lines find without this test's module
    path = save({"model": plain, "epoch": 3} if place else plain, tmp_path / "whole.pt")
    under = " under 'model'" if place else ""
    with pytest.raises(
        ConfigError, match=f"whole.pt: holds a whole module{under}, Python objects that would run code when loaded; "
    ) as refusal:
        load_checkpoint(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), path)
    assert "\n" not in str(refusal.value)
    lines = str(refusal.value)[str(refusal.value).index("import torch;") :]
    assert len(lines.split("; ")) == 3
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    load_checkpoint(other, tmp_path / "whole-state.pt")
    assert fingerprint(other) == fingerprint(plain)


def write_script(path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def write_half(path):
    torch.save(Net().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive.*:UserWarning")
@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("gone.pt", lambda p: None, "no such checkpoint; give a .safetensors or .pt file"),
        ("folder.pt", lambda p: p.mkdir(), "no such checkpoint"),
        ("empty.pt", lambda p: p.touch(), "not a checkpoint"),
        ("text.pt", lambda p: p.write_text("hello, this is no checkpoint"), "not a checkpoint"),
        ("half.pt", write_half, "not a checkpoint"),
        ("script.pt", write_script, r"a TorchScript archive, not a checkpoint; save its state dict: import torch; torch\.save\(torch\.jit"),
        ("list.pt", lambda p: torch.save([torch.zeros(1)], p), "not a state dict"),
        ("nothing.pt", lambda p: torch.save({}, p), "not a state dict"),
        ("numbers.pt", lambda p: torch.save({"model": {"a": 1.0}, "epoch": 3}, p), "not a state dict"),
        ("arguments.pt", lambda p: torch.save(argparse.Namespace(a=1), p), "holds Python objects that would run code"),
        ("empty.safetensors", lambda p: p.touch(), "damaged safetensors file"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path / name))}: {message}") as refusal:
        load_checkpoint(Net(), tmp_path / name)
    assert "; " in str(refusal.value)
    assert "\n" not in str(refusal.value)
