"""The programs are found in a checkout and in a wheel."""

import pytest

from edgecompress import toolchains
from edgecompress.errors import ConfigError


def test_every_format_has_a_program():
    assert "tflite" in toolchains.converter_formats()
    assert all(toolchains.converter(name).is_file() for name in toolchains.converter_formats())


def test_runner_and_example_are_there():
    assert toolchains.runner().is_file()
    assert toolchains.example().is_dir()


@pytest.mark.parametrize("name", ["", "../runner", "keras", "tflite.py"])
def test_an_unknown_format_lists_the_known(name):
    with pytest.raises(ConfigError, match=r"unknown format.*tflite"):
        toolchains.converter(name)


def test_what_a_wheel_carries_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchains, "PACKAGE", tmp_path)
    (tmp_path / "_runners").mkdir()
    (tmp_path / "_converters").mkdir()
    (tmp_path / "_converters" / "to_foo.py").touch()
    assert toolchains.runner() == tmp_path / "_runners" / "runner.py"
    assert toolchains.converter_formats() == ("foo",)
    assert toolchains.converter("foo") == tmp_path / "_converters" / "to_foo.py"
