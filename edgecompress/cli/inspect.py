"""The command that looks into a model file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from edgecompress.cli import parameters as p
from edgecompress.cli.session import make_console
from edgecompress.cli.views import inspection as views
from edgecompress.records import to_json

ModelFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .tflite, .ptl, .onnx or .pte file; it needs no manifest.")]


def run_inspect(file: ModelFile, json: p.Json = False) -> None:
    """Print the facts and tables of a model file."""
    from edgecompress.artifacts.inspect import inspect

    found = inspect(file)
    if json:
        typer.echo(to_json(found), nl=False)
        return
    out = make_console()
    for line in views.describe_file(found):
        out.print(Text(line))
    tabulate = (views.tabulate_tensors, views.tabulate_ops, views.tabulate_quantization, views.tabulate_constants)
    for table in (each(found) for each in tabulate):
        if table.row_count:
            out.print()
            out.print(table)
