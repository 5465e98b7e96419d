"""State dicts in files: reading runs no code, loading needs every key and shape, writing is atomic."""

import errno
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from support.networks import Net
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import factorize
from edgecompress.network.surgery import replace_module
from edgecompress.network.weights import check_dense, fingerprint, load_weights, read_state, save_state


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_state_dict_comes_back_bit_for_bit(net, tmp_path, name, nested):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save({"state_dict": net.state_dict(), "epoch": 3} if nested else net.state_dict(), path)
    other = Net()
    load_weights(other, read_state(path), source=str(path))
    assert fingerprint(other) == fingerprint(net)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickle_that_needs_code_is_refused_and_does_not_run(tmp_path, how):
    path, proof = tmp_path / "evil.pt", tmp_path / "it-ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": Evil(proof)}, protocol=2))
    else:
        torch.save({"weight": Evil(proof)}, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        ConfigError, match=rf"{re.escape(str(path))}: holds Python objects that would run code when loaded; save torch\.save"
    ):
        read_state(path)
    assert not proof.exists()
    careless = "torch.load(file, weights_only=False)" if how != "pickle" else "pickle.load(file)"
    code = f"import pickle, sys, torch\nwith open(sys.argv[1], 'rb') as file: {careless}"
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=300)
    assert proof.exists()  # the attack is a real one


def test_a_whole_module_is_refused(net, tmp_path):
    torch.save(net, tmp_path / "module.pt")
    with pytest.raises(ConfigError, match="holds Python objects that would run code"):
        read_state(tmp_path / "module.pt")


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
        ("script.pt", write_script, "not a checkpoint"),
        ("list.pt", lambda p: torch.save([torch.zeros(1)], p), "not a state dict"),
        ("nothing.pt", lambda p: torch.save({}, p), "not a state dict"),
        ("mixed.pt", lambda p: torch.save({"model": OrderedDict(a=torch.zeros(1)), "epoch": 3}, p), "not a state dict"),
        ("empty.safetensors", lambda p: p.touch(), "damaged safetensors file"),
        ("text.safetensors", lambda p: p.write_text("hello, this is no safetensors"), "damaged safetensors file"),
        ("huge.safetensors", lambda p: p.write_bytes(b"\xff" * 64), "damaged safetensors file"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path / name))}: {message}.*; |{message}") as refusal:
        read_state(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_keys_and_shapes_that_do_not_fit_are_named_and_nothing_is_loaded(net):
    state, before = net.state_dict(), fingerprint(net)
    missing = {k: torch.zeros_like(v) for k, v in state.items() if not k.startswith("head")}
    cases = [
        (missing, r"2 keys missing \(first: head\.bias\)"),
        ({**state, "extra": torch.zeros(1)}, r"1 keys unknown \(first: extra\)"),
        ({**state, "head.weight": torch.zeros(7, 128)}, r"head\.weight is \(7, 128\), the model has \(10, 128\)"),
        ({f"module.{k}": v for k, v in state.items()}, r"keys missing .*, .* keys unknown \(first: module\.bn1"),
    ]
    for wrong, message in cases:
        with pytest.raises(ConfigError, match=rf"w\.pt: does not fit the model: .*{message}.*; give the checkpoint of this very network"):
            load_weights(net, wrong, source="w.pt")
        assert fingerprint(net) == before


def decomposed(net):
    replace_module(net, "body", factorize(net.body, "tucker2", (4, 4)))
    return net


def test_weights_of_a_decomposed_model_are_recognised(net):
    with pytest.raises(ConfigError, match=r"w\.pt: holds the weights of an already decomposed model; give those of the dense model"):
        load_weights(Net(), decomposed(net).state_dict(), source="w.pt")


def test_a_decomposed_model_is_refused(net):
    check_dense(net, subject="recipe.py")
    with pytest.raises(ConfigError, match=r"recipe\.py: body is already decomposed; give the dense model"):
        check_dense(decomposed(net), subject="recipe.py")


@pytest.mark.parametrize("key", ["head.weight", "bn1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_or_buffer_that_is_not_finite_is_refused(net, key, value):
    net.state_dict()[key].view(-1)[0] = value
    with pytest.raises(ConfigError, match=rf"recipe\.py: weight {re.escape(key)} holds NaN or infinity; retrain or repair"):
        check_dense(net, subject="recipe.py")


@pytest.mark.parametrize("value", [None, 3, lambda x: x, Net])
def test_an_object_that_is_no_module_is_refused(value):
    with pytest.raises(ConfigError, match=r"recipe\.py: model\(\) returned \w+; return a torch\.nn\.Module"):
        check_dense(value, subject="recipe.py")


def test_views_and_shared_tensors_are_saved_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save_state({"a": base, "b": base.T, "c": base[:, 1]}, tmp_path / "s.safetensors")
    state = read_state(tmp_path / "s.safetensors")
    assert torch.equal(state["a"], base)
    assert torch.equal(state["b"], base.T)
    assert torch.equal(state["c"], base[:, 1])


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "s.safetensors"
    save_state({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"sparse|memory format"):
        save_state({"a": torch.ones(3).to_sparse()}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_fingerprint_depends_on_names_types_shapes_and_values(net):
    one = nn.Linear(2, 2)
    prints = {fingerprint(one)}
    with torch.no_grad():
        one.weight[0, 0] += 1
    prints |= {fingerprint(one), fingerprint(one.to(torch.bfloat16)), fingerprint(nn.Sequential(one)), fingerprint(nn.BatchNorm1d(2))}
    assert len(prints) == 5
    assert fingerprint(one) == fingerprint(one)


def test_enospc_has_the_number_that_save_state_relies_on():
    assert errno.ENOSPC == 28  # safetensors tells of it as "os error 28"
