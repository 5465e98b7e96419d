"""Choose which of TFLite's two toolchains makes an artifact, where the user left the choice open."""

import re
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edgecompress.artifacts.converter_process import LOG_NOTE
from edgecompress.artifacts.gate import Divergence
from edgecompress.devices.manifests import manifest_path
from edgecompress.errors import EdgeCompressError, ParityError, ToolchainError, UnsupportedError
from edgecompress.files import write_atomically
from edgecompress.records import Artifact, to_json
from edgecompress.targets import TFLITE_TOOLCHAINS

ExportBy = Callable[[str, Path], Artifact]  # (route, folder): converts, checks and publishes one artifact
MeasureMedians = Callable[[Sequence[Path]], Sequence[float]]
REFUSALS = (ParityError, UnsupportedError, ToolchainError)
FIRST, SECOND = TFLITE_TOOLCHAINS
SECOND_IS_MISSING = f"{SECOND} is not installed, so {FIRST} had no rival; pip install 'edgecompress[{SECOND}]'"


def is_second_installed() -> bool:
    """Whether the packages of the second toolchain can be imported."""
    return all(find_spec(package) is not None for package in ("onnx2tf", "tensorflow"))


def first_route(route: str) -> str:
    """Return the toolchain that `export_by_route` tries first."""
    return FIRST if route in ("auto", "fastest") else route


def export_by_route(route: str, make: ExportBy, *, folder: Path, medians: MeasureMedians, second: bool | None = None) -> Artifact:
    """Return the artifact that `make` publishes in `folder` by the chosen toolchain.

    Args:
        route: A toolchain; "auto" for the first whose file passes the gate; "fastest" for the faster file of those that pass.
        make: Converts by a toolchain, checks the file, and publishes it in a folder with its manifest.
        medians: Measures files, interleaved, and returns the median latency of each.
        second: Whether the second toolchain is installed; None finds out.

    Raises:
        ParityError, UnsupportedError, ToolchainError: No toolchain makes a file that passes; the message has the reason of each.
    """
    second = is_second_installed() if second is None else second
    if route == "fastest" and second:
        return _export_fastest(make, folder, medians)
    if route == "fastest":
        return _add_note(make(FIRST, folder), folder, SECOND_IS_MISSING)
    return _export_first(make, folder, second=second) if route == "auto" else make(route, folder)


def _export_first(make: ExportBy, folder: Path, *, second: bool) -> Artifact:
    try:
        return make(FIRST, folder)
    except REFUSALS as error:
        if not second or _is_scheme_at_fault(error):
            raise
        try:
            made = make(SECOND, folder)
        except REFUSALS as other:
            raise _join_errors(error, other) from other
        return _add_note(made, folder, f"route {SECOND}, because {FIRST} gave no file that passes: {error}")


def _is_scheme_at_fault(error: EdgeCompressError) -> bool:
    return isinstance(error, Divergence) and error.departure is not None and error.departure.scheme_alone is True


def _export_fastest(make: ExportBy, folder: Path, medians: MeasureMedians) -> Artifact:
    """Make a file by each toolchain, in a folder of its own, and publish the faster one of those that pass."""
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
            raise _join_errors(*refused)
        if len(made) == 1:
            (route,) = made
            note = f"route {route}, because the other gave no file that passes: {refused[0]}"
        else:
            route, note = _choose_faster({route: Path(rivals, route, artifact.path) for route, artifact in made.items()}, medians)
        for source in (Path(rivals, route, made[route].path), manifest_path(Path(rivals, route, made[route].path))):
            source.replace(folder / source.name)
    return _add_note(made[route], folder, note)


def _choose_faster(paths: dict[str, Path], medians: MeasureMedians) -> tuple[str, str]:
    """Return the route whose file is faster, and a note with both latencies."""
    times = dict(zip(paths, medians(list(paths.values())), strict=True))
    best, other = sorted(times, key=lambda route: times[route])
    return best, f"route {best}: {times[best]:.3g} ms, {other} {times[other]:.3g} ms, interleaved on this machine"


def _add_note(made: Artifact, folder: Path, note: str) -> Artifact:
    made = msgspec.structs.replace(made, notes=(*made.notes, note))
    write_atomically(manifest_path(folder / made.path), to_json(made))
    return made


def _join_errors(first: EdgeCompressError, second: EdgeCompressError) -> EdgeCompressError:
    """Return the first toolchain's error with what the second found, and one remedy: neither route is one, since both were tried."""
    if str(first) == str(second):
        return first
    (fact, remedy, log), (other, another, _) = _split_message(first), _split_message(second)
    message = f"{fact}; {SECOND} as well: {other}{remedy or another}{log}"
    return Divergence(message, first.departure) if isinstance(first, Divergence) else type(first)(message)


def _split_message(error: EdgeCompressError) -> tuple[str, str, str]:
    """Return fact, remedy and log of a message; the latter two begin with a semicolon, or are "". A remedy leaves out the other route."""
    text, noted, log = str(error).partition(LOG_NOTE)
    fact, _, remedy = text.rpartition("; ")
    if not fact:
        return text, "", noted + log
    remedy = re.sub(r"(?: or )?take route \S+.*", "", remedy)
    return fact, f"; {remedy}" if remedy else "", noted + log
