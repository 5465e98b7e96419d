"""Locate the programs that edgecompress starts but never imports: converters, runners, the default example.

A checkout has them in the repository. A wheel carries them under `edgecompress/_programs`, at the same paths below it.
"""

from pathlib import Path

from edgecompress.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parent
DEFAULT_EXAMPLE = "resnet20_fashion_mnist"


def program_root() -> Path:
    """Return the folder from which programs import each other, as in `from converters.shared import …`."""
    packaged = PACKAGE / "_programs"
    return packaged if packaged.is_dir() else REPOSITORY


def converter(format: str) -> Path:  # noqa: A002 - the word of the field
    """Return the program that writes files of `format`: `to_<format>.py`.

    Raises:
        ConfigError: No converter writes this format; lists the formats that can be written.
    """
    if format not in converter_formats():
        raise ConfigError(f"unknown format {format!r}; choose from {', '.join(converter_formats())}")
    return program_root() / "converters" / f"to_{format}.py"


def converter_formats() -> tuple[str, ...]:
    """Return the formats that can be exported, sorted: the names of the converter programs."""
    return tuple(sorted(path.stem.removeprefix("to_") for path in (program_root() / "converters").glob("to_*.py")))


def inspector() -> Path:
    """Return the program that reads model files of every format."""
    return program_root() / "converters" / "inspect_file.py"


def layer_writer() -> Path:
    """Return the program that writes model files of single layers, whose latency is measured."""
    return program_root() / "converters" / "layer_files.py"


def runner() -> Path:
    """Return the program that runs model files on a device."""
    return program_root() / "device_tests" / "runners" / "runner.py"


def runner_parts() -> tuple[Path, ...]:
    """Return every file of the runner program; a device holds them side by side in one folder."""
    return tuple(sorted(runner().parent.glob("runner*.py")))


def example() -> Path:
    """Return the folder of the default example: recipe, weights and data."""
    return program_root() / "examples" / DEFAULT_EXAMPLE
