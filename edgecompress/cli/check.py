"""The command that probes a network and its data, and says in seconds what a run would stumble over."""

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
    else:
        out = make_console()
        out.print(tabulate_check(found))
        out.print(describe_check(found))
    if found.errors:
        raise typer.Exit(ConfigError.exit_code)


def make_result(error: ConfigError | UnsupportedError, name: str) -> CheckResult:
    """Return the error of a recipe that could not be opened as a finding."""
    fact, separator, remedy = str(error).rpartition("; ")
    text, remedy = (fact, remedy) if separator else (remedy, "mend the recipe")
    return CheckResult(model=name, checks=("recipe",), findings=(Finding(kind="recipe", severity="error", text=text, remedy=remedy),))
