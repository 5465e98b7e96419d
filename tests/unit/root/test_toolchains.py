"""The programs are found in a checkout and in a wheel."""

import pytest

from edgecompress import toolchains
from edgecompress.errors import ConfigError


def test_every_format_has_a_program():
    assert "tflite" in toolchains.converter_formats()
    assert all(toolchains.converter(name).is_file() for name in toolchains.converter_formats())


def test_runner_and_example_are_found():
    assert toolchains.runner().is_file()
    assert toolchains.example().is_dir()


@pytest.mark.parametrize("name", ["", "../runner", "keras", "tflite.py"])
def test_an_unknown_format_lists_the_known(name):
    with pytest.raises(ConfigError, match=r"unknown format.*tflite"):
        toolchains.converter(name)


def test_a_wheel_carries_the_programs_at_the_same_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchains, "PACKAGE", tmp_path)
    programs = tmp_path / "_programs"
    (programs / "converters").mkdir(parents=True)
    (programs / "converters" / "to_foo.py").touch()
    assert toolchains.program_root() == programs
    assert toolchains.converter_formats() == ("foo",)
    assert toolchains.converter("foo") == programs / "converters" / "to_foo.py"
    assert toolchains.runner() == programs / "device_tests" / "runners" / "runner.py"
