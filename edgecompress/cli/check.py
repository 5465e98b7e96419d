"""The command that probes a network and its data, and says in seconds what a run would stumble over."""

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer

from edgecompress.cli import parameters as p
from edgecompress.cli.session import make_console, open_target
from edgecompress.cli.views.check import describe_check, tabulate_check
from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.options import Options
from edgecompress.pipeline.steps import CHECK
from edgecompress.records import CheckResult, Finding, to_json


@p.add_fields(Options, CHECK.options)
def run_check(recipe: p.Target = None, run: p.RunFolder = None, *, json: p.Json = False, **given: Any) -> None:
    """Print the findings of the probe; the exit status is 2 where one is an error."""
    try:
        with open_target(recipe, run, given, shows_findings=False) as context:
            from edgecompress.pipeline.runner import run_check as probe

            found = probe(context)
    except (ConfigError, UnsupportedError) as error:
        found = make_result(error, recipe or "")
    if json:
        typer.echo(to_json(found), nl=False)
        _exit_on_errors(found)
    else:
        show_findings(found)


def show_findings(found: CheckResult) -> None:
    """Print a table of findings; the exit status is 2 where one is an error."""
    out = make_console()
    out.print(tabulate_check(found))
    out.print(describe_check(found))
    _exit_on_errors(found)


def _exit_on_errors(found: CheckResult) -> None:
    if found.errors:
        raise typer.Exit(ConfigError.exit_code)


def probe_recipe(target: str) -> CheckResult:
    """Return the findings of the probe on a recipe; no run folder is kept."""
    from edgecompress.data.recipe import load_recipe
    from edgecompress.pipeline.context import open_context
    from edgecompress.pipeline.runner import run_check as probe
    from edgecompress.runs import open_run

    try:
        with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:  # a recipe may print
            recipe = load_recipe(target)
            with open_run(Path(folder), name=recipe.name, recipe=recipe.source) as run:
                return probe(open_context(run, recipe))
    except (ConfigError, UnsupportedError) as error:
        return make_result(error, target)


def make_result(error: ConfigError | UnsupportedError, name: str) -> CheckResult:
    """Return the error of a recipe that could not be opened as a finding."""
    fact, separator, remedy = str(error).rpartition("; ")
    text, remedy = (fact, remedy) if separator else (remedy, "mend the recipe")
    return CheckResult(model=name, checks=("recipe",), findings=(Finding(kind="recipe", severity="error", text=text, remedy=remedy),))
