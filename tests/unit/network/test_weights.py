"""State dicts in files: loading needs every key and shape, writing is atomic."""

import errno
import re

import pytest
import torch
from support.networks import Net
from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import factorize
from edgecompress.network.checks import check_dense
from edgecompress.network.surgery import replace_module
from edgecompress.network.weights import fingerprint, load_weights, read_state, save_state


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_a_state_dict_comes_back_bit_for_bit(net, tmp_path):
    save_state(net.state_dict(), tmp_path / "w.safetensors")
    other = Net()
    load_weights(other, read_state(tmp_path / "w.safetensors"), source="w.safetensors")
    assert fingerprint(other) == fingerprint(net)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "no such file of weights"),
        (lambda p: p.touch(), "damaged safetensors file"),
        (lambda p: p.write_text("hello, this is no safetensors"), "damaged safetensors file"),
        (lambda p: p.write_bytes(b"\xff" * 64), "damaged safetensors file"),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused_in_one_line(tmp_path, write, message):
    path = tmp_path / "w.safetensors"
    write(path)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}: {message}.*; ") as refusal:
        read_state(path)
    assert "\n" not in str(refusal.value)


def test_keys_and_shapes_that_do_not_fit_are_named_and_nothing_is_loaded(net):
    state, before = net.state_dict(), fingerprint(net)
    missing = {k: torch.zeros_like(v) for k, v in state.items() if not k.startswith("head")}
    cases = [
        (missing, r"2 keys missing \(first: head\.bias, head\.weight\)"),
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
