"""Open the run that a command works on, show its progress on stderr, and report every step."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edgecompress import toolchains
from edgecompress.cli.views.check import list_errors, list_findings
from edgecompress.cli.views.steps import STEP_VIEWS
from edgecompress.errors import ConfigError
from edgecompress.options import DEFAULTS, Options, parse_fixed_layers, parse_method, select_outputs, update_options
from edgecompress.progress import Track
from edgecompress.records import CheckResult, Record
from edgecompress.reporting.numbers import format_seconds
from edgecompress.runs import is_run, open_run, read_run, use_options

if TYPE_CHECKING:
    from edgecompress.pipeline.context import RunContext

T = TypeVar("T")

SECONDS_A_LINE: Final = 10.0  # a log stays short, and nobody wonders whether the command hangs
PIPED_WIDTH: Final = 400  # wide enough that no line of a table is folded where a program reads it


def make_console(*, stderr: bool = False) -> Console:
    """Return a console without markup, since names of layers and devices may hold anything; plain and wide when piped."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=PIPED_WIDTH if piped else None)


class ProgressLines:
    """Lines where no terminal is, at most one in some seconds: how far a loop has come, and about how long the rest takes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.told = time.monotonic()

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        started = time.monotonic()
        for done, item in enumerate(iterable, start=1):
            yield item
            now = time.monotonic()
            if now - self.told >= SECONDS_A_LINE and done != total:
                self.told = now
                left = f" of {total}, about {format_seconds((now - started) / done * (total - done))} s left" if total else ""
                self.console.print(f"    {description}: {done}{left}")


class ProgressBars:
    """Progress bars on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        task = self.progress.add_task(f"  {description}", total=total)
        try:
            yield from self.progress.track(iterable, task_id=task, total=total)
        finally:
            self.progress.remove_task(task)


@contextmanager
def show_progress() -> Iterator[Track]:
    """Show the loops inside a block on stderr: as bars on a terminal, each until its loop is over, as a line now and then elsewhere."""
    notes = make_console(stderr=True)
    if not notes.is_terminal:
        yield ProgressLines(notes)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        yield ProgressBars(progress)


@contextmanager
def open_target(
    target: str | None, run: Path | None, given: dict[str, Any], *, defaults: Mapping[str, Any] = {}, shows_findings: bool = True
) -> Iterator["RunContext"]:
    """Open the run of a recipe or run folder with the given options, and print a line for each step.

    Args:
        defaults: Values for options that are neither given nor set in the run.
        shows_findings: Whether warnings and notes of the probe are printed too.

    Raises:
        ConfigError: No such recipe or run, an option out of range, or another process at work there.
    """
    given = resolve_paths({name: value for name, value in given.items() if value is not None})
    notes = make_console(stderr=True)
    folder, source = _find_run(target, run)
    _check_early(given)
    from edgecompress.data.recipe import load_recipe
    from edgecompress.pipeline.context import open_context

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # stdout is for the record; a recipe may print
        recipe = load_recipe(source)
        folder = folder or Path("runs") / recipe.name
        notes.print(f"{recipe.name} → {folder}")
        track = stack.enter_context(show_progress())
        opened = stack.enter_context(open_run(folder, name=recipe.name, recipe=recipe.source))
        before = opened.record.options
        missing = {name: value for name, value in defaults.items() if getattr(before, name) == getattr(DEFAULTS, name)}
        stack.enter_context(use_options(opened, update_options(before, missing | given)))

        survived: list[str] = []  # errors of the probe, which are told when a step runs in spite of them

        def report_step(name: str, record: Record, seconds: float, reused: bool) -> None:
            if isinstance(record, CheckResult):
                for line in list_findings(record) if shows_findings else ():
                    notes.print(f"  {line}", soft_wrap=True)
                survived.extend(list_errors(record))
                return
            while survived:
                notes.print(f"  {survived.pop(0)}", soft_wrap=True)
            spent = "reused" if reused else f"{format_seconds(seconds)} s"
            stage, _, step = name.rpartition("/")
            label = " ".join((step, stage.removeprefix("stages/")))
            notes.print(f"  {label:<11} {STEP_VIEWS[step].summarize(record):<86} {spent:>8}")
            for line in STEP_VIEWS[step].explain(record):
                notes.print(f"    {line}")

        yield open_context(opened, recipe, track=track, on_step=report_step)


def _find_run(target: str | None, run: Path | None) -> tuple[Path | None, str]:
    """Return the folder of the run, None for the usual one of its recipe, and the recipe.

    Raises:
        ConfigError: The target is the run of another folder, or a run without a recipe.
    """
    if target is None or not is_run(Path(target)):
        return run, str(toolchains.example()) if target is None else target
    if run is not None and run.resolve() != Path(target).resolve():
        raise ConfigError(f"{target}: is a run folder already; leave out --run")
    source = read_run(Path(target)).recipe
    if source == "python":
        raise ConfigError(f"{target}: was made from Python; go on there, or use bench, verify and report on its artifacts")
    return Path(target), source


def resolve_paths(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with absolute paths, since a later command may continue the run from another folder, and with tuples."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for name in {"weights", "data"} & given.keys():
        given[name] = given[name] and str(Path(given[name]).expanduser().resolve())
    if given.get("also_python"):  # not resolved: the link that an environment's Python is names the environment
        given["also_python"] = str(Path(given["also_python"]).expanduser().absolute())
    return given


def _check_early(given: dict[str, Any]) -> None:
    """Refuse a wrong option before the seconds that importing torch takes."""
    options = update_options(Options(), given)
    select_outputs(options)
    parse_fixed_layers(options)
    parse_method(options)
