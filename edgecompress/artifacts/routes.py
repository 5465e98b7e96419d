"""Which of TFLite's two toolchains an artifact comes from, where nobody said."""

import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edgecompress.artifacts.gate import Divergence
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.files import write_atomically
from edgecompress.records import Artifact, to_json
from edgecompress.targets import TFLITE_TOOLCHAINS

Make = Callable[[str, Path], Artifact]
Medians = Callable[[Sequence[Path]], Sequence[float]]
REFUSALS = (ParityError, UnsupportedError, ToolchainError)
FIRST, SECOND = TFLITE_TOOLCHAINS
MISSING = f"{SECOND} is not installed, so {FIRST} had no rival; pip install 'edgecompress[{SECOND}]'"


def is_installed(route: str = SECOND) -> bool:
    """Whether the toolchain of a route is there."""
    return all(find_spec(package) is not None for package in {"onnx2tf": ("onnx2tf", "tensorflow")}.get(route, ()))


def export_by_route(asked: str, make: Make, *, folder: Path, medians: Medians, second: bool | None = None) -> Artifact:
    """Return the artifact that `make` publishes in `folder` by the route that was asked for.

    Args:
        asked: A toolchain; "auto" for the first whose file passes the gate; "fastest" for the faster file of those that pass.
        make: Converts by a toolchain, proves the file and publishes it in a folder with its manifest.
        medians: Measures files, interleaved, and returns the median latency of each.
        second: Whether the second toolchain is there; None looks.

    Raises:
        ParityError, UnsupportedError, ToolchainError: No route gives a file that passes; says why of each.
    """
    second = is_installed() if second is None else second
    if asked == "fastest" and second:
        return _fastest(make, folder, medians)
    if asked == "fastest":
        return _noted(make(FIRST, folder), folder, MISSING)
    return _first(make, folder, second=second) if asked == "auto" else make(asked, folder)


def _first(make: Make, folder: Path, *, second: bool) -> Artifact:
    try:
        return make(FIRST, folder)
    except REFUSALS as error:
        if not second or _scheme_is_at_fault(error):
            raise
        try:
            made = make(SECOND, folder)
        except REFUSALS as other:
            raise _both(error, other) from other
        return _noted(made, folder, f"route {SECOND}, because {FIRST} gave no file that passes: {error}")


def _scheme_is_at_fault(error: EdgeCompressError) -> bool:
    return isinstance(error, Divergence) and error.departure is not None and error.departure.scheme_alone is True


def _fastest(make: Make, folder: Path, medians: Medians) -> Artifact:
    """Make a file by each route, in a folder of its own, and publish the faster one of those that pass."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".routes-") as rivals:
        made: dict[str, Artifact] = {}
        refused: list[EdgeCompressError] = []
        for route in TFLITE_TOOLCHAINS:
            try:
                made[route] = make(route, Path(rivals, route))
            except REFUSALS as error:
                refused.append(error)
        if not made:
            raise _both(*refused)
        if len(made) == 1:
            (route,) = made
            note = f"route {route}, because the other gave no file that passes: {refused[0]}"
        else:
            route, note = _faster({route: Path(rivals, route, artifact.path) for route, artifact in made.items()}, medians)
        for source in (Path(rivals, route, made[route].path), manifest_path(Path(rivals, route, made[route].path))):
            source.replace(folder / source.name)
    return _noted(made[route], folder, note)


def _faster(paths: dict[str, Path], medians: Medians) -> tuple[str, str]:
    times = dict(zip(paths, medians(list(paths.values())), strict=True))
    best, other = sorted(times, key=lambda route: times[route])
    return best, f"route {best}: {times[best]:.3g} ms, {other} {times[other]:.3g} ms, interleaved on this machine"


def _noted(made: Artifact, folder: Path, note: str) -> Artifact:
    made = msgspec.structs.replace(made, notes=(*made.notes, note))
    write_atomically(manifest_path(folder / made.path), to_json(made))
    return made


def _both(first: EdgeCompressError, second: EdgeCompressError) -> EdgeCompressError:
    """Return the first route's error, which also tells the second's."""
    if str(first) != str(second):
        first.args = (f"{first}; {SECOND} as well: {second}",)
    return first
