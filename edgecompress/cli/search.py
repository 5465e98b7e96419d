"""The command that explores what a run may be asked for."""

import inspect
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from edgecompress import toolchains
from edgecompress.cli import parameters as p
from edgecompress.cli.numbers import ms, percent, size
from edgecompress.cli.session import absolute, bars, console
from edgecompress.cli.tables import table
from edgecompress.options import Options, update_options
from edgecompress.records import FailedTrial, SearchPoint, SearchResult, to_json
from edgecompress.records.search import Value
from edgecompress.studies.space import build_space

Recipe = Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Recipe: file, folder, module.", show_default=False)]
Folder = Annotated[Path | None, typer.Option("--run", help="Folder of the search; default searches/NAME.", show_default=False)]
Trials = Annotated[int, typer.Option(help="Trials the study is to have.")]
Vary = Annotated[list[str] | None, typer.Option(help="NAME=LOW:HIGH or NAME=VALUE,VALUE; repeatable.", show_default=False)]
Sampler = Annotated[str | None, typer.Option(help="tpe or nsga2 [tpe].", show_default=False)]
Storage = Annotated[str | None, typer.Option(help="SQLite file or postgresql://… [in the folder].", show_default=False)]
StudyName = Annotated[str | None, typer.Option("--study", help="Its name in the storage [the recipe's].", show_default=False)]
MeasuredOn = Annotated[str, typer.Option("--device", help="Where latency is measured, as for bench.")]
SELDOM: Final = frozenset({"layer", "tflite_route", "calibration_samples", "speedup", "weights", "data"})
OWN: Final[dict[str, tuple[Any, Any]]] = {
    "recipe": (Recipe, None),
    "run": (Folder, None),
    "trials": (Trials, 30),
    "vary": (Vary, None),
    "sampler": (Sampler, None),
    "storage": (Storage, None),
    "study": (StudyName, None),
    "device": (MeasuredOn, "local://"),
}


def _search(
    recipe: str | None,
    run: Path | None,
    trials: int,
    vary: list[str] | None,
    sampler: str | None,
    storage: str | None,
    study: str | None,
    device: str,
    json: bool,
    **given: Any,
) -> None:
    given = {name: value for name, value in absolute(given).items() if value is not None}
    build_space(update_options(Options(), given), given, vary or ())  # before the seconds it takes to import torch
    from edgecompress.studies.study import search

    notes = console(stderr=True)

    def told(number: int, outcome: SearchPoint | FailedTrial) -> None:
        notes.print(line(number, outcome))

    with redirect_stdout(sys.stderr), bars() as track:  # what a recipe prints is no data of ours
        found = search(
            recipe or toolchains.example(),
            run=run or "",
            trials=trials,
            vary=vary or (),
            sampler=sampler,
            storage=storage or "",
            study=study or "",
            device=device,
            track=track,
            on_trial=told,
            **given,
        )
    if json:
        typer.echo(to_json(found), nl=False)
    else:
        console().print(front(found))
    folder = run or Path("searches") / found.spec.model
    notes.print(f"{len(found.front)} of {len(found.points)} trials on the front; {len(found.failed)} failed, {found.running} unfinished")
    for point in found.front[:1]:
        notes.print(f"next: edgecompress export {folder / point.run}")
    notes.print(f"      open {folder / 'search.html'}")


def line(number: int, outcome: SearchPoint | FailedTrial) -> str:
    """What became of a trial, in one line."""
    choice = ", ".join(map(told, outcome.choice.values()))
    if isinstance(outcome, FailedTrial):
        return f"  trial {number:<4} {choice}: failed: {' '.join(outcome.reason.split())}"
    s = outcome.score
    noisy = ", noisy" if outcome.noisy else ""
    spent = f"{outcome.seconds:.1f} s" if outcome.trial == number else f"as trial {outcome.trial}"
    return f"  trial {number:<4} {choice}: {percent(s.accuracy)}, {ms(s.latency_ms)} ms, {size(s.size_bytes)}{noisy}   {spent}"


def front(found: SearchResult) -> Table:
    """The Pareto front, the fastest first, below the dense network."""
    axes = [name for name, axis in found.spec.space.items() if len(axis.values) != 1]
    rows = [
        (f"dense .{format_name}", percent(d.accuracy), ms(d.latency_ms), size(d.size_bytes), *("–" for _ in axes), "–", "")
        for format_name, d in found.references.items()
    ]
    rows += [
        (
            str(p.trial),
            percent(p.score.accuracy),
            ms(p.score.latency_ms),
            size(p.score.size_bytes),
            *(told(p.choice[name]) for name in axes),
            p.run,
            "noisy" if p.noisy else "",
        )
        for p in found.front
    ]
    accuracy = found.points[0].accuracy_of if found.points else "accuracy"
    return table(("trial", accuracy, "median ms", "size", *(name.replace("_", " ") for name in axes), "run", "state"), rows)


def told(value: Value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _command() -> Any:
    """Make the function whose signature the command line reads."""

    def search(**given: Any) -> None:
        """Find the Pareto front of accuracy, latency and size.

        Example: edgecompress search examples/resnet20_fashion_mnist --trials 12
        """
        _search(**given)

    kind = inspect.Parameter.KEYWORD_ONLY
    taken = [inspect.Parameter(name, kind, default=default, annotation=told) for name, (told, default) in OWN.items()]
    taken += [inspect.Parameter(name, kind, default=None, annotation=told) for name, told in p.OF_RUN.items() if name not in OWN]
    taken.append(inspect.Parameter("json", kind, default=False, annotation=p.Json))
    search.seldom = SELDOM  # type: ignore[attr-defined]
    search.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    return search


COMMANDS: Final = (_command(),)
