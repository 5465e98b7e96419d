"""The programs are found in a checkout and in a wheel."""

import pytest

from edgecompress import programs
from edgecompress.errors import ConfigError


def test_every_format_has_a_program():
    assert "tflite" in programs.converter_formats()
    assert all(programs.converter(name).is_file() for name in programs.converter_formats())


def test_runner_and_example_are_there():
    assert programs.runner().is_file()
    assert programs.example().is_dir()


@pytest.mark.parametrize("name", ["", "../runner", "keras", "tflite.py"])
def test_an_unknown_format_lists_the_known(name):
    with pytest.raises(ConfigError, match=r"unknown format.*tflite"):
        programs.converter(name)


def test_what_a_wheel_carries_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "PACKAGE", tmp_path)
    (tmp_path / "_runners").mkdir()
    (tmp_path / "_converters").mkdir()
    (tmp_path / "_converters" / "to_foo.py").touch()
    assert programs.runner() == tmp_path / "_runners" / "runner.py"
    assert programs.converter_formats() == ("foo",)
    assert programs.converter("foo") == tmp_path / "_converters" / "to_foo.py"
