"""The commands that look at what was built: prove it again, measure it, show it."""

from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from edgecompress.cli import parameters as p
from edgecompress.cli import tables
from edgecompress.cli.session import bars, console
from edgecompress.errors import ConfigError
from edgecompress.options import Options, update_options
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import BenchmarkOptions, BenchmarkResult, ExportResult, read_record, to_json
from edgecompress.runs import is_run, store_result
from edgecompress.targets import FORMATS, TARGETS

Paths = Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifacts, or a run folder for all of its artifacts.")]


def files_of(paths: list[Path]) -> tuple[Path, ...]:
    """Return the artifacts that `paths` name: those of a run's last export, those of another folder sorted.

    Raises:
        ConfigError: A folder without artifacts.
    """
    found: list[Path] = []
    for path in paths:
        inside = _exported(path) if is_run(path) else _inside(path) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path}: holds no artifacts; run `edgecompress export {path}`")
        found += inside
    return tuple(found)


def _exported(run: Path) -> list[Path]:
    """What the last export of a run published; files of earlier options may lie beside them."""
    file = run / STEPS["export"].files[0]
    return [run / "artifacts" / artifact.path for artifact in read_record(file, ExportResult).artifacts] if file.is_file() else []


def _inside(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in {known.suffix for known in FORMATS.values()})


def verify(paths: Paths, also_python: p.AlsoPython = None, json: p.Json = False) -> None:
    """Prove published artifacts again: hash and outputs.

    Example: edgecompress verify examples/prebuilt
    """
    from edgecompress.artifacts.verify import verify as verify_one

    files = files_of(paths)
    with bars() as track:
        manifests = tuple(verify_one(path, also_python=also_python or "") for path in track(files, "verifying", len(files)))
    if json:
        typer.echo(to_json(manifests), nl=False)
    else:
        console().print(tables.artifacts(manifests))


def bench(
    paths: Paths,
    device: p.DeviceOrPool = "local://",
    threads: p.Threads = None,
    repetitions: p.Repetitions = None,
    warmup: p.Warmup = None,
    cpu_mask: p.CpuMask = None,
    cooldown_c: p.Cooldown = None,
    compare: p.Compare = False,
    profile: p.Profile = False,
    runner: p.Runner = None,
    inventory: p.Inventory = None,
    json: p.Json = False,
) -> None:
    """Measure artifacts on a device, interleaved.

    Example: edgecompress bench runs/resnet20_fashion_mnist --device ssh://pi@raspberrypi.local
    """
    from edgecompress.cli.farm import shown
    from edgecompress.devices.bench import bench_artifacts
    from edgecompress.devices.farm import FarmError, bench_pool, is_pool

    asked = update_options(Options(), {"threads": threads, "repetitions": repetitions})
    files = files_of(paths)
    home = paths[0] if is_run(paths[0]) else Path()
    kept: list[Path] = []

    def keep(result: BenchmarkResult) -> None:
        kept.append(store_result(home, result))

    how = BenchmarkOptions(
        threads=asked.threads,
        repetitions=asked.repetitions,
        warmup_s=0.5 if warmup is None else warmup,
        cpu_mask=cpu_mask or "",
        cooldown_c=cooldown_c,
        compare=compare,
        profile=profile,
        runner=str(runner or ""),
    )
    failure: FarmError | None = None
    if is_pool(device):
        with shown() as watch:
            try:
                results = bench_pool(files, how, device=device, inventory=inventory, on_result=keep, on_change=watch)
            except FarmError as error:
                failure, results = error, error.results
    else:
        with bars() as track:
            results = bench_artifacts(files, how, device=device, inventory=inventory, track=track)
        for result in results:
            keep(result)
    if json:
        typer.echo(to_json(results), nl=False)
    else:
        console().print(tables.results(results, compare=compare))
        if profile:
            console().print(tables.profiles(results))
        for line in tables.remarks(results):
            console(stderr=True).print(line)
        for folder in dict.fromkeys(path.parent for path in kept):
            console(stderr=True).print(f"every sample: {folder}")
    if failure is not None:
        raise failure


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    json: p.Json = False,
) -> None:
    """Write report.html and report.json.

    Example: edgecompress report runs/resnet20_fashion_mnist --open
    """
    from edgecompress.reporting.report import report as write

    if not is_run(run):
        raise ConfigError(f"{run}: no run folder; run `edgecompress export --run {run}`")
    record = write(run, read_run_records(run))
    if json:
        typer.echo(to_json(record), nl=False)
    else:
        console().print(record.verdict.sentence)
        console(stderr=True).print(f"{run / 'report.html'}")
    if open_it:
        typer.launch(str((run / "report.html").resolve()))


def devices(inventory: p.Inventory = None, json: p.Json = False) -> None:
    """List this machine, what adb sees and what the inventory names.

    Example: edgecompress devices
    """
    from edgecompress.devices import list_devices
    from edgecompress.devices.inventory import load_inventory

    entries = load_inventory(inventory)
    with bars() as track:
        found = list_devices(entries, track=track)
    if json:
        typer.echo(to_json(found), nl=False)
    else:
        out = console()
        out.print(tables.devices(found))
        for problem in tables.problems(found):
            out.print(problem)


def targets(json: p.Json = False) -> None:
    """List the presets of `export --target`.

    Example: edgecompress targets
    """
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(TARGETS), indent=2))
    else:
        console().print(tables.targets())


COMMANDS: Final = (verify, bench, report, devices, targets)
