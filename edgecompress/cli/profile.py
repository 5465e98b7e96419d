"""The command that measures the latencies of layers on a device."""

from typing import Annotated, Any, Final

import typer

from edgecompress.cli import parameters as p
from edgecompress.cli.session import make_console, open_target
from edgecompress.cli.views.steps import tabulate_latencies
from edgecompress.options import PROFILE_SCHEMES, Options
from edgecompress.records import ModelStats, to_json
from edgecompress.records.fields import Option
from edgecompress.targets import FORMATS

Refresh = Annotated[bool, typer.Option("--refresh", help="Measure again the latencies that the table holds.")]
Noisy = Annotated[bool, typer.Option("--noisy", help="Keep latencies measured while the device was busy.")]
# `plan` reads the latencies that `profile` measures, so the same fields have other tasks here.
OPTIONS: Final = {
    "device": Option("Device on which the layers are measured", usual="local://"),
    "scheme": Option("Scheme of the TFLite files to measure", choices=FORMATS["tflite"].schemes, usual=", ".join(PROFILE_SCHEMES)),
    "table": Option("Latency table to write", usual="the user's own for the device", metavar="FILE"),
    "method": Option("Factorization to measure, METHOD[:KEY=VALUE,…]"),
}


@p.add_fields(Options, ("device", "scheme", "table", "method", "threads", "weights", "data"), instead=OPTIONS)
def run_profile(
    recipe: p.Target = None,
    run: p.RunFolder = None,
    *,
    refresh: Refresh = False,
    noisy: Noisy = False,
    json: p.Json = False,
    **given: Any,
) -> None:
    """Measure the layers of a network and print the network's part of the latency table."""
    schemes = tuple(dict.fromkeys(given.pop("scheme") or PROFILE_SCHEMES))
    with open_target(recipe, run, given) as context:
        from edgecompress.pipeline.latencies import profile_network
        from edgecompress.pipeline.runner import run as run_steps

        run_steps(context, "analyze", before="plan")
        stats = context.read(ModelStats)
        found, path = profile_network(context, stats, schemes, refresh=refresh, noisy=noisy)
    if json:
        typer.echo(to_json(found), nl=False)
        return
    make_console().print(tabulate_latencies(found, stats))
    make_console(stderr=True).print(f"kept in {path}")
