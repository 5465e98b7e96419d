"""The command that scores artifacts on labelled inputs, on a device."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from edgecompress.cli import parameters as p
from edgecompress.cli.artifacts import Paths, files_of
from edgecompress.cli.numbers import percent
from edgecompress.cli.session import bars, console
from edgecompress.cli.tables import table
from edgecompress.options import Options, update_options
from edgecompress.records import to_json
from edgecompress.records.evaluation import Evaluation, EvaluationOptions
from edgecompress.runs import is_run, store_result

Labelled = Annotated[str | None, typer.Option(help="Labelled data, or a recipe [the run's].", show_default=False)]
Samples = Annotated[int, typer.Option(help="Inputs to score on, at most [1000].", show_default=False)]
Batch = Annotated[int | None, typer.Option(help="Inputs a transfer [what fits 16 MiB].", show_default=False)]
Tolerance = Annotated[float | None, typer.Option(help="Difference allowed, over the range.", show_default=False)]
Python = Annotated[str | None, typer.Option(help="The interpreter there with the runtime.", show_default=False)]


def evaluate(
    paths: Paths,
    device: p.DeviceOrPool = "local://",
    data: Labelled = None,
    samples: Samples = 1000,
    batch: Batch = None,
    tolerance: Tolerance = None,
    threads: p.Threads = None,
    python: Python = None,
    runner: p.Runner = None,
    inventory: p.Inventory = None,
    json: p.Json = False,
) -> None:
    """Score artifacts on a device: top-1 there, parity with this machine.

    Example: edgecompress evaluate runs/resnet20 --device adb://SERIAL
    """
    from edgecompress.cli.farm import shown
    from edgecompress.devices.evaluate import evaluate_artifacts
    from edgecompress.devices.farm import evaluate_pool, is_pool

    asked = update_options(Options(), {"threads": threads})
    files = files_of(paths)
    home = paths[0] if is_run(paths[0]) else Path()
    made: list[Evaluation] = []
    kept: list[Path] = []

    def keep(record: Evaluation) -> None:
        kept.append(store_result(home, record))
        made.append(record)

    how = EvaluationOptions(
        data=data,
        samples=samples,
        batch=batch,
        tolerance=tolerance,
        threads=asked.threads,
        python=python or "",
        runner=str(runner or ""),
    )
    try:
        with redirect_stdout(sys.stderr):  # what a recipe prints is no data of ours
            if is_pool(device):
                with shown() as watch:
                    evaluate_pool(files, how, device=device, inventory=inventory, on_result=keep, on_change=watch)
            else:
                with bars() as track:
                    evaluate_artifacts(files, how, device=device, inventory=inventory, on_result=keep, track=track)
    finally:  # what was found before something failed is kept, and shown
        if made:
            show(made, kept[-1].parent, json=json)


def show(made: Sequence[Evaluation], folder: Path, *, json: bool) -> None:
    """Print the records for a program, or a table for a person with its conditions and `folder` below."""
    if json:
        typer.echo(to_json(list(made)), nl=False)
        return
    console().print(evaluations(made))
    notes = console(stderr=True)
    first = made[0]
    notes.print(f"{first.samples} samples of {first.data}; {first.backend} there, {first.host_backend} here")
    for note in dict.fromkeys(f"{record.artifact}: {note}" for record in made for note in record.notes):
        notes.print(f"note: {note}")
    notes.print(f"every figure: {folder}")


def evaluations(made: Sequence[Evaluation]) -> Table:
    """Accuracy of each artifact on the device, and its outputs there against here and against the model."""
    rows = [
        (
            e.artifact,
            percent(e.top1),
            percent(e.top5),
            percent(e.host_top1),
            percent(e.host.top1_agreement) if e.host else "–",
            f"{e.host.max_rel:.1e}" if e.host else "NaN",
            "–" if e.beyond_step is None else str(e.beyond_step),
            f"{e.reference.max_rel:.1e}" if e.reference else "–",
            "differs" if e.problem else "equal",
        )
        for e in made
    ]
    headings = ("artifact", "top-1", "top-5", "top-1 here", "agrees", "max of range", "over a step", "from the model", "there and here")
    return table(headings, rows)


COMMANDS: Final = (evaluate,)
