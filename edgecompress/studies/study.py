"""A whole search: its space, its study, its trials, and the Pareto front of their scores."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from edgecompress.data.recipe import Recipe, load_recipe, recipe_at_resolution
from edgecompress.devices import open_device
from edgecompress.devices.inventory import resolve_device
from edgecompress.devices.statistics import kind_of_device
from edgecompress.errors import ConfigError, EdgeCompressError, ToolchainError
from edgecompress.files import stamp_files, write_atomically
from edgecompress.options import Options, update_options
from edgecompress.pipeline.context import open_context
from edgecompress.pipeline.latencies import LOCAL
from edgecompress.pipeline.runner import refuse_findings, run_check
from edgecompress.progress import Track, track_silently
from edgecompress.records import Axis, FailedTrial, SearchPoint, SearchResult, SearchSpec, to_json
from edgecompress.records.fields import check_choice
from edgecompress.records.search import Value
from edgecompress.reporting.search import render_search
from edgecompress.runs import hash_values, open_run
from edgecompress.studies.drift import correct_drift
from edgecompress.studies.pareto_front import pareto_front
from edgecompress.studies.space import DEFAULT_TRIALS, apply_choice, build_space
from edgecompress.targets import SAMPLERS

try:
    from edgecompress.studies import loop
    from edgecompress.studies.samplers import ReseededSampler
    from edgecompress.studies.storage import Study, display_name, open_storage, open_study, store_spec, translate_storage_errors
    from edgecompress.studies.trial import run_trial
except ModuleNotFoundError as error:
    raise ToolchainError(f"search: {error.name} is not installed; pip install 'edgecompress[search]'") from error

DATABASE: Final = "study.sqlite3"
RESULT: Final = "search.json"
PAGE: Final = "search.html"
# Paths and addresses differ between hosts; the hash of the network and the kind of device stand for their content.
HOST_OPTIONS: Final = ("weights", "data", "also_python", "device", "table")


def search(
    recipe: str | Path | Recipe,
    *,
    run: str | Path = "",
    trials: int = DEFAULT_TRIALS,
    vary: Sequence[str] = (),
    sampler: str | None = None,
    storage: str = "",
    study: str = "",
    device: str = LOCAL,
    track: Track = track_silently,
    on_trial: Callable[[int, SearchPoint | FailedTrial], object] = lambda *_: None,
    **options: Any,
) -> SearchResult:
    """Try budgets, methods, allocators, schemes and resolutions; return the Pareto front of accuracy, latency and size.

    Each trial is a run folder, `RUN/trials/NUMBER`, that `export` and every other command takes. The same call continues the study and
    resumes trials that were killed; other processes and hosts may join the study. `RUN/search.json` and `RUN/search.html` are written
    after each trial.

    Args:
        recipe: A recipe as `export` takes it, or a loaded one.
        run: The folder of the search, `searches/NAME` by default.
        trials: Number of trials of the study, failed ones and those of other processes included.
        vary: The values that an option may take, `NAME=LOW:HIGH` or `NAME=VALUE,VALUE`, e.g. `macs_ratio=0.3:0.9`;
            `edgecompress.studies.space` lists the options.
        sampler: tpe or nsga2; tpe by default.
        storage: Path of an SQLite file, or `postgresql://…` for hosts that share the study; by default a file in `run`.
        study: Name of the study in the storage; by default the name of the recipe.
        device: The device that latency is measured on.
        options: Fields of `edgecompress.options.Options` that are the same in every trial; by default those of the study.

    Raises:
        ConfigError: A space or a storage that cannot be used, or a study of something else.
        DeviceError: The device cannot be reached.
        EdgeCompressError: Several trials in a row failed, or all did.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    if trials < 1:
        raise ConfigError(f"trials {trials}: must be at least 1")
    folder = Path(run or Path("searches") / recipe.name)
    place = str(storage or folder / DATABASE)
    with open_storage(place) as opened:
        found, before = open_study(opened, study or recipe.name, place=place)
        spec = _build_spec(recipe, before, vary=vary, sampler=sampler, device=device, given=options)
        if before is None:
            with translate_storage_errors(display_name(place)):
                store_spec(found, spec)
        else:
            _check_same(before, spec, f"{display_name(place)}: study {found.study_name!r}")
        base = update_options(Options(), spec.options)
        found.sampler = ReseededSampler(spec.sampler, base.seed)
        ours = Study(found, opened, display_name(place), folder)

        def make(number: int, inside: Path, choice: dict[str, Value]) -> SearchPoint:
            return run_trial(number, inside, choice, recipe=recipe, options=apply_choice(base, choice), device=device, track=track)

        def keep(number: int, outcome: SearchPoint | FailedTrial) -> None:
            result = _write(folder, summarize_study(ours, spec))
            on_trial(number, next((point for point in result.points if point.trial == outcome.trial), outcome))

        loop.explore(ours, spec.space, make, trials=trials, on_trial=keep, track=track)
        result = _write(folder, summarize_study(ours, spec))
    if result.failed and not result.points:
        raise EdgeCompressError(f"search: all {len(result.failed)} trials failed, the first with: {result.failed[0].reason}")
    return result


def summarize_study(study: Study, spec: SearchSpec) -> SearchResult:
    """Return the outcomes of all trials of a study so far, of every process and host."""
    known = study.trials()
    outcomes = [loop.read_outcome(trial) for trial in known]
    points = correct_drift(outcome for outcome in outcomes if isinstance(outcome, SearchPoint))
    on_front = set(pareto_front([point.score for point in points]))
    return SearchResult(
        study=study.optuna.study_name,
        storage=study.place,
        spec=spec,
        points=tuple(msgspec.structs.replace(point, on_front=i in on_front) for i, point in enumerate(points)),
        failed=tuple(outcome for outcome in outcomes if isinstance(outcome, FailedTrial)),
        running=sum(trial.state not in loop.ENDED for trial in known),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write(folder: Path, result: SearchResult) -> SearchResult:
    page = render_search(result).encode()
    write_atomically(folder / RESULT, to_json(result))
    write_atomically(folder / PAGE, page)
    return result


def _build_spec(
    recipe: Recipe, before: SearchSpec | None, *, vary: Sequence[str], sampler: str | None, device: str, given: dict[str, Any]
) -> SearchSpec:
    """Return the specification of a search; an existing study fills in what the caller left open."""
    given = {name: value for name, value in given.items() if value is not None}
    base = update_options(Options() if before is None else update_options(Options(), before.options), given)
    space = build_space(base, given, vary, before.space if before else None)
    if device != LOCAL and {"latency_ms", "speedup"} & {
        *space,
        *given,
    }:  # plan for the device that is measured
        base = update_options(base, {"device": device})
    _check_space(recipe, space)
    return SearchSpec(
        model=recipe.name,
        network=_hash_network(recipe, base),
        options=msgspec.json.decode(msgspec.json.encode(base)),
        space=space,
        sampler=check_choice("sampler", sampler or (before.sampler if before else SAMPLERS[0]), SAMPLERS),
        device=_describe_device(device),
    )


def _hash_network(recipe: Recipe, options: Options) -> str:
    """Probe the network and its data once, before any trial, and return a hash of both that is the same on every host.

    Raises:
        EdgeCompressError: The probe found what stops an export.
    """
    with TemporaryDirectory(prefix="edgecompress-") as folder, open_run(Path(folder), name=recipe.name, recipe=recipe.source) as run:
        run.set_options(options)
        context = open_context(run, recipe)
        refuse_findings(run_check(context), context, "export")
        shapes = [(tuple(x.shape), str(x.dtype)) for x in context.recipe.example_inputs]
        files = [(name, size) for name, size, _ in stamp_files(Path(options.data))] if options.data else []
        targets = [context.data.digest(split, with_inputs=False) for split in ("train", "eval")]
        return hash_values(recipe.sources_sha256, context.network.fingerprint, shapes, files, targets)


def _check_space(recipe: Recipe, space: dict[str, Axis]) -> None:
    """Refuse resolutions that the recipe does not take."""
    for side in space["resolution"].values if "resolution" in space else ():
        recipe_at_resolution(recipe, int(side))


def _describe_device(device: str) -> str:
    """Return the kind of a device; latencies of different kinds are not compared."""
    with open_device(resolve_device(device).url) as connected:
        return kind_of_device(connected.info())


def _check_same(before: SearchSpec, now: SearchSpec, where: str) -> None:
    """Refuse to continue a study with another search.

    Raises:
        ConfigError: Says what differs.
    """
    remedy = "give what it was begun with, or another --study and --run"
    if (before.model, before.network) != (now.model, now.network):
        raise ConfigError(f"{where} is of another network, recipe or data ({before.model}); give another --study and --run")
    for name, value in before.options.items():
        if name not in HOST_OPTIONS and now.options[name] != value:
            raise ConfigError(f"{where} has {name} {value}, not {now.options[name]}; {remedy}")
    for name in (*before.space, *now.space):
        if before.space.get(name) != now.space.get(name):
            raise ConfigError(
                f"{where} has {name} {_describe_axis(before.space.get(name))}, not {_describe_axis(now.space.get(name))}; {remedy}"
            )
    if before.sampler != now.sampler:
        raise ConfigError(f"{where} has the sampler {before.sampler}, not {now.sampler}; {remedy}")
    if before.device != now.device:
        raise ConfigError(f"{where} measures on {before.device}, this device is {now.device}; give --device of that kind, or another study")


def _describe_axis(axis: Axis | None) -> str:
    if axis is None:
        return "fixed"
    return "in " + ", ".join(map(str, axis.values)) if axis.values else f"from {axis.low:g} to {axis.high:g}"
