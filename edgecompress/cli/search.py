"""The command that searches the options of a run for the best artifacts."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edgecompress import toolchains
from edgecompress.cli import parameters as p
from edgecompress.cli.session import make_console, resolve_paths, show_progress
from edgecompress.cli.views.search import describe_trial, tabulate_front
from edgecompress.options import DEFAULTS, Options, update_options
from edgecompress.records import FailedTrial, SearchPoint, to_json
from edgecompress.studies.space import DEFAULT_TRIALS, build_space
from edgecompress.targets import SAMPLERS

Recipe = Annotated[str | None, typer.Argument(metavar="RECIPE", help="Recipe: file, folder, module.", show_default=False)]
Folder = Annotated[Path | None, typer.Option("--run", metavar="FOLDER", help="Folder of the search [searches/NAME].", show_default=False)]
Trials = Annotated[
    int,
    typer.Option(metavar="N", help=f"Trials of the study, failed ones counted [{DEFAULT_TRIALS}].", show_default=False),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="NAME=LOW:HIGH or NAME=VALUE,VALUE; repeatable.", show_default=False),
]
Sampler = Annotated[
    str | None, typer.Option(metavar="TEXT", help=f"How trials are chosen: {' or '.join(SAMPLERS)} [{SAMPLERS[0]}].", show_default=False)
]
Storage = Annotated[str | None, typer.Option(metavar="TEXT", help="SQLite file or postgresql://… [in the folder].", show_default=False)]
StudyName = Annotated[
    str | None, typer.Option("--study", metavar="TEXT", help="Name of the study there [the recipe's].", show_default=False)
]
MeasuredOn = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Device that measures the artifacts [local://].", show_default=False)
]
RARE_OPTIONS: Final = ("storage", "study", "layer", "calibration_samples", "speedup", "weights", "data", "repetitions")


@p.add_fields(Options, [name for name in Options.__struct_fields__ if name != "device"], can_negate=True, also_rare=RARE_OPTIONS)
def run_search(
    recipe: Recipe = None,
    run: Folder = None,
    trials: Trials = DEFAULT_TRIALS,
    vary: Vary = None,
    sampler: Sampler = None,
    storage: Storage = None,
    study: StudyName = None,
    device: MeasuredOn = "local://",
    *,
    json: p.Json = False,
    **given: Any,
) -> None:
    """Run the trials of a study and print the Pareto front."""
    given = {name: value for name, value in resolve_paths(given).items() if value is not None}
    build_space(update_options(DEFAULTS, given), given, vary or ())  # before the seconds that importing torch takes
    from edgecompress.studies.study import search

    notes = make_console(stderr=True)

    def report_trial(number: int, outcome: SearchPoint | FailedTrial) -> None:
        notes.print(describe_trial(number, outcome))

    with redirect_stdout(sys.stderr), show_progress() as track:  # stdout is for the record; a recipe may print
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
            on_trial=report_trial,
            **given,
        )
    if json:
        typer.echo(to_json(found), nl=False)
    else:
        make_console().print(tabulate_front(found))
    folder = run or Path("searches") / found.spec.model
    notes.print(f"{len(found.front)} of {len(found.points)} trials on the front; {len(found.failed)} failed, {found.running} unfinished")
    for point in found.front[:1]:
        notes.print(f"next: edgecompress export {folder / point.run}")
    notes.print(f"      open {folder / 'search.html'}")
