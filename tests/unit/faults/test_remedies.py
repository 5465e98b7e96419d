"""Each known cause has one remedy, which real errors of that cause find, also behind errors that they caused."""

import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from edgecompress.faults.remedies import CAUSES, find_remedy, find_toolchain_remedy


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def raised(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def import_missing():
    import no_such_package_at_all  # noqa: F401


def load_unsafe(path):
    torch.save(nn.Linear(1, 1), path)
    torch.load(path)


def linear(n):
    return nn.Linear(n, 1)(torch.zeros(1, 3))


# Cause → a function of a path that raises an error of it, or the error where this machine cannot make one.
EXAMPLES = {
    "missing package": lambda _: import_missing(),
    "missing file": lambda path: path.read_bytes(),
    "closed file": PermissionError(13, "Permission denied", "weights.pt"),
    "full disk": OSError(28, "No space left on device"),
    "no network": URLError("Name or service not known"),
    "memory": lambda _: torch.empty(1 << 60, dtype=torch.int8),
    "no GPU": lambda _: torch.zeros(1).cuda() if not torch.cuda.is_available() else pytest.skip("has a GPU"),
    "several devices": RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cpu and cuda:0!"),
    "unsafe checkpoint": load_unsafe,
    "other checkpoint": lambda _: nn.Linear(1, 2).load_state_dict(nn.Linear(2, 1).state_dict()),
    "dtypes": lambda _: nn.Linear(3, 1)(torch.zeros(1, 3).half()),
    "depends on values": lambda _: torch.export.export(Branch(), (torch.zeros(1, 3),), strict=False),
    "complex numbers": RuntimeError("Unsupported ir element type: complex<f32>"),
    "number of inputs": lambda _: nn.Linear(3, 1)(torch.zeros(1, 3), torch.zeros(1)),
    "shapes": lambda _: linear(4),
}


def test_every_cause_has_an_example():
    assert EXAMPLES.keys() == CAUSES.keys()


@pytest.mark.parametrize("cause", CAUSES)
def test_an_error_finds_the_remedy_of_its_cause(tmp_path: Path, cause):
    example = EXAMPLES[cause]
    error = raised(lambda: example(tmp_path / "file")) if callable(example) else example
    assert find_remedy(error) == CAUSES[cause].remedy
    wrapped = RuntimeError("the step failed")
    wrapped.__cause__ = error
    assert find_remedy(wrapped) == CAUSES[cause].remedy


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.Conv2d(1, 2, 3)(torch.zeros(1, 3, 8, 8)),
        lambda: nn.Conv2d(1, 2, 3)(torch.zeros(1, 1, 2, 2)),
        lambda: nn.Conv2d(1, 2, 3)(torch.zeros(1, 3)),
        lambda: torch.cat([torch.zeros(1, 2), torch.zeros(2, 3)]),
        lambda: torch.zeros(2) + torch.zeros(3),
        lambda: torch.zeros(6).view(4, 2),
        lambda: nn.LayerNorm(4)(torch.zeros(1, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_one_cause(call):
    assert find_remedy(raised(call)) == CAUSES["shapes"].remedy


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("size"), pickle.PicklingError("lambda"), ZeroDivisionError()])
def test_an_unknown_cause_has_no_remedy(error):
    assert find_remedy(error) == ""


def test_a_converter_that_fails_over_shapes_is_not_the_users_fault():
    error = raised(lambda: linear(4))
    assert find_remedy(error)
    assert find_toolchain_remedy(error) == ""
    assert find_toolchain_remedy(RuntimeError("Unsupported ir element type: complex<f32>")) == CAUSES["complex numbers"].remedy


def test_the_innermost_known_cause_decides():
    inner, middle, outer = FileNotFoundError("a.png"), ValueError("bad image"), RuntimeError("shape mismatch")
    middle.__cause__, outer.__cause__ = inner, middle
    assert find_remedy(outer) == CAUSES["missing file"].remedy
