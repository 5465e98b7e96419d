"""Architectures that people put on phones go the whole way to the program that files are made from, or are refused by name."""

from importlib.util import find_spec

import pytest
from support.architectures import ARCHITECTURES, MACS_RATIO, run_architecture


def require(source):
    """Skip where the package that makes an architecture is not installed."""
    if not all(find_spec(package) for package in {"torchvision", source.partition(":")[0]}):  # timm needs torchvision
        pytest.skip(f"{source}: its package is not installed; pip install timm torchvision")


def check(source, formats, folder):
    require(source)
    result = run_architecture(source, formats, folder)
    assert not result.refusal
    assert (result.factorized > 0, result.macs_ratio <= MACS_RATIO) == (True, True)
    assert [(file.format, file.scheme, file.reason) for file in result.files if file.outcome not in ("passed", "scheme")] == []
    assert [file.outcome for file in result.files if file.scheme == "fp32"] == ["passed"] * len(formats)


@pytest.mark.slow
@pytest.mark.parametrize("source", ARCHITECTURES)
def test_an_architecture_is_planned_decomposed_and_exported_as_a_program(source, tmp_path):
    check(source, (), tmp_path)


@pytest.mark.slow
def test_a_small_architecture_becomes_files(tmp_path):
    check("torchvision:squeezenet1_1@1x3x32x32", ("torchscript",), tmp_path)


def test_no_architecture_is_listed_twice():
    assert len(set(ARCHITECTURES)) == len(ARCHITECTURES)
