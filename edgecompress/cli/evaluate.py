"""The command that evaluates artifacts on labelled inputs, on a device."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer

from edgecompress.cli import parameters as p
from edgecompress.cli.artifacts import find_artifacts
from edgecompress.cli.session import make_console, show_progress
from edgecompress.cli.views.artifacts import tabulate_evaluations
from edgecompress.records import to_json
from edgecompress.records.evaluation import Evaluation, EvaluationOptions
from edgecompress.runs import is_run, store_result


@p.add_fields(EvaluationOptions)
def run_evaluate(
    paths: p.Artifacts, device: p.Device = "local://", *, inventory: p.Inventory = None, json: p.Json = False, **given: Any
) -> None:
    """Evaluate artifacts; keep and print every evaluation that was finished, also where a later one fails."""
    from edgecompress.cli.farm import show_farm
    from edgecompress.devices.evaluate import evaluate_artifacts
    from edgecompress.devices.farm import evaluate_pool, is_pool

    how = p.make_record(EvaluationOptions, given)
    files = find_artifacts(paths)
    home = paths[0] if is_run(paths[0]) else Path()
    made: list[Evaluation] = []
    kept: list[Path] = []

    def keep(record: Evaluation) -> None:
        kept.append(store_result(home, record))
        made.append(record)

    try:
        with redirect_stdout(sys.stderr):  # stdout is for the records; a recipe may print
            if is_pool(device):
                with show_farm() as draw:
                    evaluate_pool(files, how, device=device, inventory=inventory, on_result=keep, on_change=draw)
            else:
                with show_progress() as track:
                    evaluate_artifacts(files, how, device=device, inventory=inventory, on_result=keep, track=track)
    finally:
        if made:
            _print_evaluations(made, kept[-1].parent, json=json)


def _print_evaluations(made: Sequence[Evaluation], folder: Path, *, json: bool) -> None:
    """Print the records for a program, or for a person a table with its conditions and `folder` below."""
    if json:
        typer.echo(to_json(list(made)), nl=False)
        return
    make_console().print(tabulate_evaluations(made))
    notes = make_console(stderr=True)
    first = made[0]
    notes.print(f"{first.samples} samples of {first.data}; {first.backend} there, {first.host_backend} here")
    for note in dict.fromkeys(f"{record.artifact}: {note}" for record in made for note in record.notes):
        notes.print(f"note: {note}")
    notes.print(f"every figure: {folder}")
