"""Where the programs lie that edgecompress starts but never imports.

A wheel carries them inside the package (`_converters`, `_runners`, `_examples`); in a checkout they are folders of the repository.
"""

from pathlib import Path

from edgecompress.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
DEFAULT_EXAMPLE = "resnet20_fashion_mnist"


def converter(format: str) -> Path:  # noqa: A002 - the word of the field
    """Return the program that writes files of `format`: `to_<format>.py`.

    Raises:
        ConfigError: No such converter; lists the formats there are.
    """
    path = _folder("_converters", "converters") / f"to_{format}.py"
    if format not in converter_formats():
        raise ConfigError(f"unknown format {format!r}; choose from {', '.join(converter_formats())}")
    return path


def converter_formats() -> tuple[str, ...]:
    """Return the formats that can be exported: the names of the converter programs, sorted."""
    return tuple(sorted(path.stem.removeprefix("to_") for path in _folder("_converters", "converters").glob("to_*.py")))


def inspector() -> Path:
    """Return the program that reads model files of every format."""
    return _folder("_converters", "converters") / "inspect_file.py"


def layer_writer() -> Path:
    """Return the program that writes files of single layers, to be measured."""
    return _folder("_converters", "converters") / "layer_files.py"


def runner() -> Path:
    """Return the program that runs artifacts on a device."""
    return _folder("_runners", "device_tests/runners") / "runner.py"


def runner_parts() -> tuple[Path, ...]:
    """Return every file of that program; they lie beside each other on the device too."""
    return tuple(sorted(runner().parent.glob("runner*.py")))


def example() -> Path:
    """Return the folder of the default example: recipe, weights and data."""
    return _folder("_examples", "examples") / DEFAULT_EXAMPLE


def _folder(packaged: str, checkout: str) -> Path:
    inside = PACKAGE / packaged
    return inside if inside.is_dir() else REPOSITORY / checkout
