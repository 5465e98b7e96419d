"""The program: its commands, and the one place that turns an error into a line on stderr and an exit code."""

import logging
import os
import signal
import sys
import threading
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer

from edgecompress.cli.artifacts import run_bench, run_devices, run_report, run_targets, run_verify
from edgecompress.cli.check import run_check
from edgecompress.cli.evaluate import run_evaluate
from edgecompress.cli.help import COMMAND_HELP
from edgecompress.cli.init import run_init
from edgecompress.cli.inspect import run_inspect
from edgecompress.cli.profile import run_profile
from edgecompress.cli.search import run_search
from edgecompress.cli.steps import STEP_COMMANDS
from edgecompress.errors import EdgeCompressError
from edgecompress.faults.user_code import describe_user_error, is_user_fault

INTERRUPTED: Final = 130  # the exit code of a program that Ctrl-C ended
MAX_SHORT_OPTIONS: Final = 14  # the help of so many options fits a screen, so that none is left out
HELP_ALL: Final = "--help-all"
# Typer has its own click since 0.29 and used the package before; a misspelt command line raises this exception of either one.
UsageFault: Final[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgecompress {version('edgecompress')}")
        raise typer.Exit


class Command(typer.core.TyperCommand):
    """A command whose help fits a screen: where it would not, `--help` leaves the rare options to `--help-all`."""

    @property
    def rare(self) -> list[Any]:
        """The options that `--help` leaves out."""
        names = getattr(self.callback, "rare", ()) if len(self.params) > MAX_SHORT_OPTIONS else ()
        return [option for option in self.params if option.name in names]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        every, rare = self.params, self.rare
        if not rare or (ctx.find_root().obj or {}).get(HELP_ALL):
            return super().format_options(ctx, formatter)
        self.params = [option for option in every if option not in rare]
        try:
            super().format_options(ctx, formatter)
        finally:
            self.params = every
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"{HELP_ALL} shows {len(rare)} more.")
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
COMMANDS: Final = {
    "init": run_init,
    "check": run_check,
    **STEP_COMMANDS,
    "profile": run_profile,
    "search": run_search,
    "verify": run_verify,
    "bench": run_bench,
    "report": run_report,
    "devices": run_devices,
    "targets": run_targets,
    "inspect": run_inspect,
    "evaluate": run_evaluate,
}
for name, command in COMMANDS.items():
    app.command(name=name, help=COMMAND_HELP[name].text, epilog=f"Example: {COMMAND_HELP[name].example}", cls=Command)(command)


@app.callback()
def take_common_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the programs that are started. May stand anywhere.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Declare the options of the program itself; `main` has removed the first two wherever they stood."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; the exit status is that of the error's class."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # OpenMP threads that spin while they wait can make two busy processes crawl; a short spin costs nothing alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: converters are stopped, and nothing half-written stays
    debug, verbose = _remove_flag(arguments, "--debug"), _remove_flag(arguments, "--verbose") or _remove_flag(arguments, "-v")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    if not verbose:
        for noisy in ("torch", "asyncssh", "filelock"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
    if not arguments and (debug or verbose):
        arguments = ["--help"]
    if help_all := _remove_flag(arguments, HELP_ALL):
        arguments.append("--help")
    try:
        status = app(args=arguments, prog_name="edgecompress", standalone_mode=False, obj={HELP_ALL: help_all})
    except (EdgeCompressError, KeyboardInterrupt, MemoryError, typer.Abort, UsageFault, BrokenPipeError) as error:
        if debug:
            raise
        sys.exit(print_error(error))
    except Exception as error:
        if debug or not is_user_fault(error):  # a programming mistake of edgecompress keeps its traceback
            raise
        sys.exit(print_error(describe_user_error(error, "code of the recipe")))
    if status == INTERRUPTED:  # typer has caught the KeyboardInterrupt without a message
        print_error(KeyboardInterrupt())
    sys.exit(status if isinstance(status, int) else 0)


def print_error(error: BaseException) -> int:
    """Print one line for a person and return the exit status."""
    if isinstance(error, EdgeCompressError):
        line = " ".join(str(error).split())
        typer.echo(f"edgecompress: {''.join(c if c.isprintable() else '?' for c in line)}", err=True)
        return error.exit_code
    if isinstance(error, MemoryError):
        typer.echo("edgecompress: out of memory; every finished step is kept, free memory or take smaller inputs and batches", err=True)
        return EdgeCompressError.exit_code
    if isinstance(error, UsageFault):
        error.show()
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; Python's exit must not fail on it again
        return 1
    typer.echo("edgecompress: interrupted; every finished step is kept, the same command goes on from there", err=True)
    return INTERRUPTED


def _remove_flag(arguments: list[str], flag: str) -> bool:
    """Remove a flag that may stand anywhere among the arguments; return whether it stood there."""
    found = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return found
