"""The one place that turns an error into a line on stderr and an exit code."""

import inspect
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer

from edgecompress.cli import parameters
from edgecompress.cli.artifacts import COMMANDS as LOOKING
from edgecompress.cli.evaluate import COMMANDS as SCORING
from edgecompress.cli.inspect import COMMANDS as INSPECTING
from edgecompress.cli.profile import COMMANDS as PROFILING
from edgecompress.cli.search import COMMANDS as SEARCHING
from edgecompress.cli.steps import COMMANDS as BUILDING
from edgecompress.errors import EdgeCompressError

INTERRUPTED: Final = 130
SCREEN: Final = 14  # options whose help fits one
EVERY_OPTION: Final = "--help-all"
# Typer brings its own click since 0.29, and used the package before; either way this is what it raises for a misspelt command line.
UsageFault: Final[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgecompress {version('edgecompress')}")
        raise typer.Exit


class Command(typer.core.TyperCommand):
    """A command whose help fits a screen: where it would not, what is seldom needed is left to --help-all."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        every = self.params
        rare = parameters.SELDOM | getattr(self.callback, "seldom", frozenset())
        seldom = [option for option in every if option.name in rare]
        if len(every) <= SCREEN or (ctx.find_root().obj or {}).get(EVERY_OPTION):
            return super().format_options(ctx, formatter)
        self.params = [option for option in every if option not in seldom]
        try:
            super().format_options(ctx, formatter)
        finally:
            self.params = every
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"{EVERY_OPTION} shows {len(seldom)} more.")
        return None


app = typer.Typer(
    name="edgecompress",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Compress a trained PyTorch network for phones and small boards: decompose, fine-tune, quantize, convert, verify, measure.",
    epilog="TARGET is a recipe (a Python file, its folder, or a module) or a run folder; without one the embedded example is used.",
)
EVERY: Final[tuple[Callable[..., Any], ...]] = (*BUILDING, *PROFILING, *SEARCHING, *LOOKING, *INSPECTING, *SCORING)
for command in EVERY:
    what, example, line = (inspect.getdoc(command) or "").partition("Example: ")
    app.command(help=what, epilog=example + line, cls=Command)(command)


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say which commands are run. May stand anywhere.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the program itself; `main` takes the first two out wherever they stand."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; the exit status is that of the error's class."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # OpenMP threads that spin while they wait can make two busy processes crawl; a short spin costs nothing alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    debug, verbose = _take(arguments, "--debug"), _take(arguments, "--verbose") or _take(arguments, "-v")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    if not verbose:
        for noisy in ("torch", "asyncssh", "filelock"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
    if not arguments and (debug or verbose):
        arguments = ["--help"]
    if everything := _take(arguments, EVERY_OPTION):
        arguments.append("--help")
    try:
        status = app(args=arguments, prog_name="edgecompress", standalone_mode=False, obj={EVERY_OPTION: everything})
    except (EdgeCompressError, KeyboardInterrupt, typer.Abort, UsageFault, BrokenPipeError) as error:
        if debug:
            raise
        sys.exit(explain(error))
    if status == INTERRUPTED:  # typer has caught the KeyboardInterrupt, and says nothing
        explain(KeyboardInterrupt())
    sys.exit(status if isinstance(status, int) else 0)


def explain(error: BaseException) -> int:
    """Print one line for a person and return the exit status."""
    if isinstance(error, EdgeCompressError):
        line = " ".join(str(error).split())
        typer.echo(f"edgecompress: {''.join(c if c.isprintable() else '?' for c in line)}", err=True)
        return error.exit_code
    if isinstance(error, UsageFault):
        error.show()
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; say nothing more at exit either
        return 1
    typer.echo("edgecompress: interrupted; every finished step is kept, the same command goes on from there", err=True)
    return INTERRUPTED


def _take(arguments: list[str], flag: str) -> bool:
    """Remove a flag that may stand anywhere; whether it was there."""
    found = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return found
