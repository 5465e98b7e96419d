"""The command that measures what layers cost on a device."""

from typing import Annotated, Final

import typer

from edgecompress.cli import parameters as p
from edgecompress.cli import tables
from edgecompress.cli.session import console, open_target
from edgecompress.records import ModelStats, to_json

SCHEMES = ("fp32", "int8-dynamic", "int8-static")
Schemes = Annotated[
    list[str] | None, typer.Option("--scheme", help="Of TFLite files [fp32, int8-dynamic, int8-static].", show_default=False)
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Measure again what the table has.")]
Noisy = Annotated[bool, typer.Option("--noisy", help="Keep what a busy device measures.")]


def profile(
    recipe: p.Target = None,
    run: p.RunFolder = None,
    device: p.PlanDevice = None,
    scheme: Schemes = None,
    table: p.CostTable = None,
    method: p.Method = None,
    threads: p.Threads = None,
    weights: p.Weights = None,
    data: p.Data = None,
    refresh: Refresh = False,
    noisy: Noisy = False,
    json: p.Json = False,
) -> None:
    """Measure layers on a device, dense and in every form a plan may choose; plans there use the table.

    Example: edgecompress profile runs/resnet20_fashion_mnist --device adb://SERIAL
    """
    given = {"device": device, "table": table, "method": method, "threads": threads, "weights": weights, "data": data}
    with open_target(recipe, run, given) as context:
        from edgecompress.pipeline.latencies import profile_network
        from edgecompress.pipeline.runner import run as run_steps

        run_steps(context, "analyze")
        stats = context.read(ModelStats)
        found, path = profile_network(context, stats, tuple(dict.fromkeys(scheme or SCHEMES)), refresh=refresh, noisy=noisy)
    if json:
        print(to_json(found).decode(), end="")  # noqa: T201
        return
    console().print(tables.costs(found, stats))
    console(stderr=True).print(f"kept in {path}")


COMMANDS: Final = (profile,)
