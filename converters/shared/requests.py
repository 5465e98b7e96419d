"""Checks of a request, and texts for its file, that every converter program needs before it loads a toolchain."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import msgspec

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.records import ConversionRequest
from edgecompress.targets import FORMATS


def check_schemes(request: ConversionRequest, format: str, reasons: Mapping[str, str] | None = None) -> None:  # noqa: A002
    """Raise an error unless the format has every scheme that the request names.

    Args:
        reasons: Scheme → why the format lacks it, with a remedy, for schemes that users may expect.

    Raises:
        ConfigError: A scheme is unknown.
        UnsupportedError: The format lacks a scheme for the reason given.
    """
    for scheme in (request.scheme, *request.layers.values()):
        if reasons and scheme in reasons:
            raise UnsupportedError(f"{format}: {scheme}: {reasons[scheme]}")
        if scheme not in FORMATS[format].schemes:
            raise ConfigError(f"{format}: unknown scheme {scheme!r}; choose from {', '.join(FORMATS[format].schemes)}")


def check_single_route(request: ConversionRequest, format: str) -> None:  # noqa: A002
    """Raise an error where a request names a route or integer inputs and outputs, for formats that have neither.

    Raises:
        ConfigError: The request names a route.
        UnsupportedError: The request asks for other inputs and outputs than float32.
    """
    if request.route:
        raise ConfigError(f"{format}: unknown route {request.route!r}; there is only one, leave it out")
    if request.io != "float32":
        raise UnsupportedError(
            f"{format}: {request.io} inputs and outputs: a file has no place for their scale; take float32 or format tflite"
        )


def check_no_bytecode(request: ConversionRequest, format: str) -> None:  # noqa: A002
    """Raise an error where a request names a bytecode version, which only TorchScript files have.

    Raises:
        UnsupportedError: It does.
    """
    if request.bytecode_version:
        raise UnsupportedError(f"{format}: bytecode version: only a TorchScript file has one; leave it out")


def metadata_texts(request: ConversionRequest) -> dict[str, str]:
    """Return name, labels and preprocessing as texts for a file's metadata, lists and objects as JSON; empty ones are left out."""
    given = {"name": request.name}
    if request.labels:
        given["labels"] = msgspec.json.encode(request.labels).decode()
    if request.preprocessing:
        given["preprocessing"] = msgspec.json.encode(request.preprocessing).decode()
    return {key: value for key, value in given.items() if value}


def package_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each package, "unknown" where it has no metadata."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
