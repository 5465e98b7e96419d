"""The commands that work on published artifacts: check them again, measure them, report on them; and the lists of devices and targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from edgecompress.cli import parameters as p
from edgecompress.cli.session import make_console, show_progress
from edgecompress.cli.views import artifacts as views
from edgecompress.cli.views.devices import list_problems, tabulate_devices, tabulate_targets
from edgecompress.errors import ConfigError
from edgecompress.options import Options
from edgecompress.pipeline.run_records import read_run_records
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import BenchmarkOptions, BenchmarkResult, ExportResult, read_record, to_json
from edgecompress.runs import is_run, store_result
from edgecompress.targets import FORMATS, TARGETS


def find_artifacts(paths: list[Path]) -> tuple[Path, ...]:
    """Return the artifacts at `paths`: a run folder stands for those of its last export, another folder for its model files, sorted.

    Raises:
        ConfigError: A folder without artifacts.
    """
    found: list[Path] = []
    for path in paths:
        inside = _list_exported(path) if is_run(path) else _list_models(path) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path}: holds no artifacts; run `edgecompress export {path}`")
        found += inside
    return tuple(found)


def _list_exported(run: Path) -> list[Path]:
    """Return the files that the last export of a run published; files of earlier exports may lie beside them."""
    file = run / STEPS["export"].files[0]
    return [run / "artifacts" / artifact.path for artifact in read_record(file, ExportResult).artifacts] if file.is_file() else []


def _list_models(folder: Path) -> list[Path]:
    """Return the model files of a folder, sorted."""
    return sorted(file for file in folder.iterdir() if file.suffix in {known.suffix for known in FORMATS.values()})


@p.add_fields(Options, ("also_python",))
def run_verify(paths: p.Artifacts, *, json: p.Json = False, **given: Any) -> None:
    """Check artifacts and print their manifests."""
    from edgecompress.artifacts.verify import verify

    files = find_artifacts(paths)
    with show_progress() as track:
        manifests = tuple(verify(path, also_python=given["also_python"] or "") for path in track(files, "verifying", len(files)))
    if json:
        typer.echo(to_json(manifests), nl=False)
    else:
        out = make_console()
        out.print(views.tabulate_artifacts(manifests))
        for line in views.list_compression(manifests):
            out.print(line, soft_wrap=not out.is_terminal)


@p.add_fields(BenchmarkOptions)
def run_bench(
    paths: p.Artifacts, device: p.Device = "local://", *, inventory: p.Inventory = None, json: p.Json = False, **given: Any
) -> None:
    """Measure artifacts; keep and print the results, also those that a farm has when some of its jobs fail."""
    from edgecompress.cli.farm import show_farm
    from edgecompress.devices.bench import bench_artifacts
    from edgecompress.devices.farm import FarmError, bench_pool, is_pool

    how = p.make_record(BenchmarkOptions, given)
    files = find_artifacts(paths)
    home = paths[0] if is_run(paths[0]) else Path()
    kept: list[Path] = []

    def keep(result: BenchmarkResult) -> None:
        kept.append(store_result(home, result))

    failure: FarmError | None = None
    if is_pool(device):
        with show_farm() as draw:
            try:
                results = bench_pool(files, how, device=device, inventory=inventory, on_result=keep, on_change=draw)
            except FarmError as error:
                failure, results = error, error.results
    else:
        with show_progress() as track:
            results = bench_artifacts(files, how, device=device, inventory=inventory, track=track)
        for result in results:
            keep(result)
    if json:
        typer.echo(to_json(results), nl=False)
    else:
        _print_results(results, how, [path.parent for path in kept])
    if failure is not None:
        raise failure


def _print_results(results: Sequence[BenchmarkResult], how: BenchmarkOptions, folders: Sequence[Path]) -> None:
    make_console().print(views.tabulate_results(results, compare=how.compare))
    if how.profile:
        make_console().print(views.tabulate_ops(results))
    notes = make_console(stderr=True)
    for line in views.list_remarks(results):
        notes.print(line)
    for folder in dict.fromkeys(folders):
        notes.print(f"every sample: {folder}")


def run_report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    open_it: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    json: p.Json = False,
) -> None:
    """Write the report of a run and print its verdict.

    Raises:
        ConfigError: The folder is no run.
    """
    from edgecompress.reporting.report import report

    if not is_run(run):
        raise ConfigError(f"{run}: no run folder; run `edgecompress export --run {run}`")
    record = report(run, read_run_records(run))
    if json:
        typer.echo(to_json(record), nl=False)
    else:
        out = make_console()
        for line in (record.verdict.sentence, *record.verdict.proofs):
            out.print(line, soft_wrap=not out.is_terminal)
        make_console(stderr=True).print(f"{run / 'report.html'}")
    if open_it:
        typer.launch(str((run / "report.html").resolve()))


def run_devices(inventory: p.Inventory = None, json: p.Json = False) -> None:
    """Print the devices that can be reached, and why others cannot."""
    from edgecompress.devices import list_devices
    from edgecompress.devices.inventory import load_inventory

    entries = load_inventory(inventory)
    with show_progress() as track:
        found = list_devices(entries, track=track)
    if json:
        typer.echo(to_json(found), nl=False)
    else:
        out = make_console()
        out.print(tabulate_devices(found))
        for problem in list_problems(found):
            out.print(problem)


def run_targets(json: p.Json = False) -> None:
    """Print the presets."""
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(TARGETS), indent=2))
    else:
        make_console().print(tabulate_targets())
