"""A run folder: its options, its finished steps, and the key that each step was made from.

    run.json    options, and for each step its key and the hashes of the files that it wrote
    NAME.json   the record of a step; its weights stand beside it as safetensors

A step is reused when its key is unchanged and its files are as the step left them. A lock keeps other processes out of the folder.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import msgspec
from filelock import FileLock, Timeout

from edgecompress.errors import ConfigError
from edgecompress.files import NO_SPACE, explain_write_error, hash_file, write_atomically
from edgecompress.options import Options
from edgecompress.records import (
    SCHEMA,
    BenchmarkResult,
    Record,
    read_record,
    to_json,
)
from edgecompress.records.evaluation import Evaluation

RUN_FILE: Final = "run.json"
FORMER_OPTIONS: Final = frozenset(["min_agreement"])  # `min_fidelity` has taken its place, with bounds for every kind of output


class FinishedStep(Record, frozen=True, kw_only=True):
    """A finished step. `made_from` is its key, `files` are paths in the run folder with their SHA-256."""

    made_from: str
    files: dict[str, str]
    seconds: float


class RunRecord(Record, frozen=True, kw_only=True):
    """The file run.json: the recipe and the options of a run, and its finished steps by name."""

    schema: int = SCHEMA
    name: str
    recipe: str
    options: Options
    steps: dict[str, FinishedStep] = {}


class Run:
    """An open run folder; see `open_run`."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder = folder
        self.record = record

    def path(self, name: str) -> Path:
        return self.folder / name

    def is_done(self, step: str, made_from: str) -> bool:
        """Whether `step` was finished with this key, and its files are unchanged since."""
        done = self.record.steps.get(step)
        if done is None or done.made_from != made_from:
            return False
        return all(self.path(name).is_file() and hash_file(self.path(name)) == digest for name, digest in done.files.items())

    def finish(self, step: str, made_from: str, files: tuple[str, ...], seconds: float) -> None:
        """Record that `step` is finished; a crash after this call loses nothing of the step."""
        done = FinishedStep(made_from=made_from, files={name: hash_file(self.path(name)) for name in files}, seconds=round(seconds, 3))
        self._write(msgspec.structs.replace(self.record, steps={**self.record.steps, step: done}))

    def set_options(self, options: Options) -> None:
        """Store the options; later steps, and later commands on this folder, go by them."""
        if options != self.record.options or not self.path(RUN_FILE).exists():
            self._write(msgspec.structs.replace(self.record, options=options))

    def digest(self, step: str) -> str:
        """Return a hash of the files of a finished step."""
        return hash_values(self.record.steps[step].files)

    def _write(self, record: RunRecord) -> None:
        write_atomically(self.path(RUN_FILE), to_json(record))
        self.record = record


@contextmanager
def use_options(run: Run, options: Options) -> Iterator[None]:
    """Give the run these options; it gets its former ones back if the block finds one of the new ones to be wrong."""
    before = run.record.options
    run.set_options(options)
    try:
        yield
    except ConfigError:
        run.set_options(before)
        raise


def hash_values(*parts: Any) -> str:
    """Return a SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


@contextmanager
def open_run(folder: Path, *, name: str, recipe: str) -> Iterator[Run]:
    """Open or make a run folder and hold its lock until the block ends.

    Raises:
        ConfigError: Another process has it, it belongs to another recipe, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"{folder}: in use by process {_read_owner(folder)}; wait for it, or give another folder with --run") from error
    except OSError as error:
        raise explain_write_error(error, folder) from error
    try:
        (folder / ".lock.pid").write_text(f"{os.getpid()}\n")
        record = read_run(folder) if is_run(folder) else None
        if record is not None and (record.name, record.recipe) != (name, recipe):
            raise ConfigError(f"{folder}: belongs to {record.recipe}, not to {recipe}; give another folder with --run")
        yield Run(folder, record or RunRecord(name=name, recipe=recipe, options=Options()))
    except OSError as error:
        if error.errno in NO_SPACE or _is_inside(error.filename, folder):
            raise explain_write_error(error, folder) from error
        raise  # The error concerns a file of the user's own.
    finally:
        lock.release()


def read_run(folder: Path) -> RunRecord:
    """Return the record of an existing run folder.

    Raises:
        ConfigError: The folder is no run folder.
    """
    try:
        return _read_options_of_before(folder / RUN_FILE) or read_record(folder / RUN_FILE, RunRecord)
    except ConfigError as error:
        fact, _, _ = str(error).rpartition("; ")  # run.json is of no single step, so the usual remedy does not help
        raise ConfigError(f"{fact}; name the recipe, and another folder with --run: edgecompress plan RECIPE --run FOLDER") from error


def _read_options_of_before(path: Path) -> RunRecord | None:
    """Return the record of a run that an earlier version began, with options that are gone left out; None for any other file."""
    try:
        values = msgspec.json.decode(path.read_bytes())
        gone = FORMER_OPTIONS & values["options"].keys()
        kept = {name: value for name, value in values["options"].items() if name not in gone}
        return msgspec.convert({**values, "options": kept}, RunRecord) if gone else None
    except (OSError, msgspec.MsgspecError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file()


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Yield a list to which the duration of the block in seconds is added at its end."""
    spent: list[float] = []
    started = time.perf_counter()
    yield spent
    spent.append(time.perf_counter() - started)


def _is_inside(name: object, folder: Path) -> bool:
    return isinstance(name, (str, os.PathLike)) and Path(name).resolve().is_relative_to(folder.resolve())


def _read_owner(folder: Path) -> str:
    try:
        return str(int((folder / ".lock.pid").read_text()))
    except (OSError, ValueError):
        return "unknown"


def store_result(folder: Path, result: BenchmarkResult | Evaluation) -> Path:
    """Write a result into a new file under `results/DEVICE/`, an accuracy under `results/DEVICE/accuracy/`; return the path."""
    device = "".join(c if c.isalnum() or c in "-._" else "-" for c in result.device.serial or "device")
    stem = f"{result.started_at.replace(':', '')}-{result.session[:8]}-{result.artifact}"
    kind = "accuracy" if isinstance(result, Evaluation) else ""
    inside = folder / "results" / device / kind
    names = chain((f"{stem}.json",), (f"{stem}-{n}.json" for n in count(2)))  # A comparison may hold one artifact twice.
    path = next(inside / name for name in names if not (inside / name).exists())
    write_atomically(path, to_json(result))
    return path
