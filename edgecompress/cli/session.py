"""Open the run a command works on, show its progress on stderr, and say what each step did."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edgecompress import toolchains
from edgecompress.cli.steplines import STEP_LINES
from edgecompress.errors import ConfigError
from edgecompress.options import update_options
from edgecompress.records import DecomposeResult, Record
from edgecompress.runs import is_run, open_run, read_run, use_options

if TYPE_CHECKING:
    from edgecompress.pipeline.context import RunContext

T = TypeVar("T")

PIPED_WIDTH: Final = 400  # lines of a pipe are not folded


def console(*, stderr: bool = False) -> Console:
    """A console that renders no markup, since names of layers and devices are not ours; plain and wide when piped."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=PIPED_WIDTH if piped else None)


class Bars:
    """Progress bars on a terminal, nothing when piped."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __call__(self, iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        task = self.progress.add_task(f"  {description}", total=total)
        try:
            yield from self.progress.track(iterable, task_id=task, total=total)
        finally:
            self.progress.remove_task(task)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show the loops of a verb as bars that vanish when they are done."""
    notes = console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        yield Bars(progress)


@contextmanager
def open_target(target: str | None, run: Path | None, given: dict[str, Any]) -> Iterator["RunContext"]:
    """Open the run of a recipe or run folder with the given options, and print a line for each step.

    Raises:
        ConfigError: No such recipe or run, an option out of range, or another process at work there.
    """
    given = absolute(given)
    notes = console(stderr=True)
    if target is not None and is_run(Path(target)):
        if run is not None and run.resolve() != Path(target).resolve():
            raise ConfigError(f"{target}: is a run folder already; leave out --run")
        folder, source = Path(target), read_run(Path(target)).recipe
        if source == "python":
            raise ConfigError(f"{target}: was made from Python; go on there, or use bench, verify and report on its artifacts")
    else:
        folder, source = run or Path(), str(toolchains.example()) if target is None else target
    update_early(given)
    from edgecompress.data.recipe import load_recipe
    from edgecompress.pipeline.context import open_context

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # what a recipe prints is no data of ours
        recipe = load_recipe(source)
        folder = folder if folder != Path() else Path("runs") / recipe.name
        notes.print(f"{recipe.name} → {folder}")
        track = stack.enter_context(bars())
        opened = stack.enter_context(open_run(folder, name=recipe.name, recipe=recipe.source))
        stack.enter_context(use_options(opened, update_options(opened.record.options, given)))

        def on_step(name: str, record: Record, seconds: float, reused: bool) -> None:
            spent = "reused" if reused else f"{seconds:.1f} s"
            stage, _, verb = name.rpartition("/")
            label = " ".join((verb, stage.removeprefix("stages/")))
            notes.print(f"  {label:<11} {STEP_LINES[verb](record):<86} {spent:>8}")
            for note in record.notes if isinstance(record, DecomposeResult) else ():
                notes.print(f"    {note}")

        yield open_context(opened, recipe, track=track, on_step=on_step)


def absolute(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with whole paths, since a run may be gone on with from elsewhere, and tuples."""
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    for name in {"weights", "data"} & given.keys():
        given[name] = given[name] and str(Path(given[name]).expanduser().resolve())
    if given.get("also_python"):  # not resolved: the link that an environment's Python is says which environment
        given["also_python"] = str(Path(given["also_python"]).expanduser().absolute())
    return given


def update_early(given: dict[str, Any]) -> None:
    """Refuse a wrong option before the seconds it takes to import torch."""
    from edgecompress.options import Options, parse_fixed_layers, parse_method, select_outputs

    made = update_options(Options(), given)
    select_outputs(made)
    parse_fixed_layers(made)
    parse_method(made)
