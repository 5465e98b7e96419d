"""An error of the user's code is told with the last line of the user's that it passed; faults of edgecompress keep their traceback."""

import importlib.util
import sys
from functools import partial

import pytest
import torch
from torch import nn

import edgecompress
from edgecompress import errors
from edgecompress.data.targets import advise_shapes
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.faults.user_code import UserCodeError, call_user_function, find_user_line, is_user_fault, is_user_file, user_code
from edgecompress.network.batches import call_network


def load(folder, text, name="theirs"):
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_innermost_line_of_the_user_is_named_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = load(tmp_path, "import json\n\ndef outer():\n    inner()\n\ndef inner():\n    json.loads('{')\n")
    with pytest.raises(UserCodeError, match=r"^theirs\.py:7: work\(\) fails with JSONDecodeError: Expecting property name"):
        call_user_function(theirs.outer, "work()", "recipe.py")


def test_an_error_of_a_package_alone_has_the_origin():
    with pytest.raises(UserCodeError, match=r"^recipe\.py:3: work\(\) fails with RuntimeError: mat1 and mat2 shapes"):
        call_user_function(partial(nn.functional.linear, torch.zeros(1, 2), torch.zeros(3, 4)), "work()", "recipe.py:3")


def test_the_place_of_a_cause_is_found_where_the_error_itself_has_none(tmp_path):
    theirs = load(tmp_path, "def work():\n    raise ValueError('theirs')\n")
    error = RuntimeError("wrapped")
    try:
        theirs.work()
    except ValueError as cause:
        error.__cause__ = cause
    assert find_user_line(error).endswith("theirs.py:2")


@pytest.mark.parametrize("passes", [KeyboardInterrupt(), MemoryError(), UnsupportedError("x: no; do y"), ConfigError("x: no; do y")])
def test_what_is_no_fault_of_the_code_passes(passes):
    with pytest.raises(type(passes)) as caught, user_code("work()"):
        raise passes
    assert caught.value is passes


def test_files_of_packages_of_python_and_of_edgecompress_are_not_the_users():
    for module in (torch, sys.modules["importlib.util"], edgecompress):
        assert not is_user_file(module.__file__)
    assert not is_user_file("<string>")
    assert is_user_file(__file__)
    assert is_user_file("/tmp/ipykernel_12/345.py")


class Block(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


def test_a_network_is_told_with_the_module_and_the_shapes():
    model = nn.Sequential(nn.Identity(), nn.Sequential(Block(ValueError("no")))).eval()
    with pytest.raises(
        ConfigError, match=r"test_user_code\.py:\d+: forward\(\) of Block 1\.0 for an input of shape \(2, 3\) fails"
    ) as caught:
        call_network(model, (torch.zeros(2, 3),))
    assert str(caught.value).endswith("fails with ValueError: no; mend it")
    with pytest.raises(
        ConfigError, match=r"for inputs of shape \(2, 3\), \(2,\) fails with TypeError: .*; give example_inputs\(\) and the"
    ):
        call_network(Block(ValueError()).eval(), (torch.zeros(2, 3), torch.zeros(2)))


def test_a_network_of_packages_alone_is_told_by_its_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4)).eval()
    with pytest.raises(ConfigError, match=r"^forward\(\) of Linear 1 for an input of shape \(2, 3\) fails with RuntimeError: mat1"):
        call_network(model, (torch.zeros(2, 3),))


def test_a_hook_of_edgecompress_that_fails_keeps_its_traceback():
    model = nn.Linear(3, 4)
    found = {}
    exec(compile("def hook(module, args):\n    raise ZeroDivisionError", errors.__file__, "exec"), found)  # as if it stood there
    model.register_forward_pre_hook(found["hook"])
    with pytest.raises(ZeroDivisionError) as caught:
        call_network(model, (torch.zeros(2, 3),))
    assert not is_user_fault(caught.value)


def test_shapes_that_a_metric_cannot_compare_are_told():
    outputs, targets = torch.zeros(4, 12), torch.zeros(4, 11)
    with (
        pytest.raises(ConfigError, match=r"; make the targets fit the outputs: \(4, 11\) against \(4, 12\)$"),
        user_code("metric()", shapes_remedy=advise_shapes((outputs,), targets)),
    ):
        outputs - targets
