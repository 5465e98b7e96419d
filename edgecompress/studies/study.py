"""The whole search: what it explores, the study it goes on with, its trials, and the Pareto front of what was found."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from edgecompress.data.recipe import Recipe, at_resolution, load
from edgecompress.devices import open_device
from edgecompress.devices.inventory import resolve_device
from edgecompress.devices.statistics import kind_of_device
from edgecompress.errors import ConfigError, EdgeCompressError, ToolchainError
from edgecompress.files import stamp, write_atomic
from edgecompress.options import Options, update_options
from edgecompress.pipeline.context import DenseNetwork
from edgecompress.pipeline.latencies import LOCAL
from edgecompress.progress import Track, silent
from edgecompress.records import Axis, FailedTrial, SearchPoint, SearchResult, SearchSpec, to_json
from edgecompress.records.fields import check_choice
from edgecompress.records.search import Value
from edgecompress.reporting.search import render
from edgecompress.runs import key
from edgecompress.studies.front import front
from edgecompress.studies.space import applied, space_of
from edgecompress.studies.speeds import at_one_speed
from edgecompress.targets import SAMPLERS

try:
    from edgecompress.studies import loop
    from edgecompress.studies.samplers import PerTrial
    from edgecompress.studies.storage import Study, keep_spec, name_of, open_storage, open_study, storing
    from edgecompress.studies.trial import try_out
except ModuleNotFoundError as error:
    raise ToolchainError(f"search: {error.name} is not installed; pip install 'edgecompress[search]'") from error

DATABASE: Final = "study.sqlite3"
RESULT: Final = "search.json"
PAGE: Final = "search.html"
OF_THE_HOST: Final = ("weights", "data", "also_python", "device", "table")  # where things are; what they are is in the hash and device


def search(
    recipe: str | Path | Recipe,
    *,
    run: str | Path = "",
    trials: int = 30,
    vary: Sequence[str] = (),
    sampler: str | None = None,
    storage: str = "",
    study: str = "",
    device: str = LOCAL,
    track: Track = silent,
    on_trial: Callable[[int, SearchPoint | FailedTrial], object] = lambda *_: None,
    **options: Any,
) -> SearchResult:
    """Try out budgets, methods, allocators, schemes and resolutions; return the Pareto front of accuracy, latency and size.

    Each trial is a run folder, `RUN/trials/NUMBER`, that `export` and every other verb takes. The same call goes on with the study, taking
    up trials that were killed; other processes and hosts may join it. `RUN/search.json` and `RUN/search.html` are written after each trial.

    Args:
        recipe: As for `export`, or one of `edgecompress.data.recipe.of_model`.
        run: The folder of the search, `searches/NAME` by default.
        trials: How many the study is to have, those of others and failed ones counted.
        vary: What an option may be, `NAME=LOW:HIGH` or `NAME=VALUE,VALUE`, e.g. `macs_ratio=0.3:0.9`; see `edgecompress.studies.space`.
        sampler: tpe or nsga2; tpe by default.
        storage: A file, or `postgresql://…` for hosts that share the study; by default a file in `run`.
        study: Its name in the storage; by default the recipe's.
        device: Where latency is measured.
        options: Any of `edgecompress.options.Options`, for every trial; they are not varied. What is not given is as the study has it.

    Raises:
        ConfigError: A space or a storage that cannot be used, or a study of something else.
        DeviceError: The device cannot be reached.
        EdgeCompressError: Several trials in a row failed, or all did.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load(str(recipe))
    if trials < 1:
        raise ConfigError(f"trials {trials}: must be at least 1")
    folder = Path(run or Path("searches") / recipe.name)
    place = str(storage or folder / DATABASE)
    with open_storage(place) as opened:
        found, before = open_study(opened, study or recipe.name, place=place)
        spec = _spec(recipe, before, vary=vary, sampler=sampler, device=device, given=options)
        if before is None:
            with storing(name_of(place)):
                keep_spec(found, spec)
        else:
            _check_same(before, spec, f"{name_of(place)}: study {found.study_name!r}")
        base = update_options(Options(), spec.options)
        found.sampler = PerTrial(spec.sampler, base.seed)
        ours = Study(found, opened, name_of(place), folder)

        def make(number: int, inside: Path, choice: dict[str, Value]) -> SearchPoint:
            return try_out(number, inside, choice, recipe=recipe, options=applied(base, choice), device=device, track=track)

        def keep(number: int, outcome: SearchPoint | FailedTrial) -> None:
            result = _write(folder, result_of(ours, spec))
            on_trial(number, next((point for point in result.points if point.trial == outcome.trial), outcome))

        loop.explore(ours, spec.space, make, trials=trials, on_trial=keep, track=track)
        result = _write(folder, result_of(ours, spec))
    if result.failed and not result.points:
        raise EdgeCompressError(f"search: all {len(result.failed)} trials failed, the first with: {result.failed[0].reason}")
    return result


def result_of(study: Study, spec: SearchSpec) -> SearchResult:
    """Return what the study holds by now, of whichever process and host."""
    known = study.trials()
    outcomes = [loop.outcome_of(trial) for trial in known]
    points = at_one_speed(outcome for outcome in outcomes if isinstance(outcome, SearchPoint))
    on_front = set(front([point.score for point in points]))
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
    page = render(result).encode()
    write_atomic(folder / RESULT, to_json(result))
    write_atomic(folder / PAGE, page)
    return result


def _spec(
    recipe: Recipe, before: SearchSpec | None, *, vary: Sequence[str], sampler: str | None, device: str, given: dict[str, Any]
) -> SearchSpec:
    """Return what is asked for, with what a study that exists has where nothing is."""
    given = {name: value for name, value in given.items() if value is not None}
    base = update_options(Options() if before is None else update_options(Options(), before.options), given)
    space = space_of(base, given, vary, before.space if before else None)
    if device != LOCAL and {"latency_ms", "speedup"} & {*space, *given}:  # what is measured there is planned for there
        base = update_options(base, {"device": device})
    _check_space(recipe, space)
    return SearchSpec(
        model=recipe.name,
        network=_network(recipe, base),
        options=msgspec.json.decode(msgspec.json.encode(base)),
        space=space,
        sampler=check_choice("sampler", sampler or (before.sampler if before else SAMPLERS[0]), SAMPLERS),
        device=_device(device),
    )


def _network(recipe: Recipe, options: Options) -> str:
    """Check the network once, before any trial, and return a hash of it that is the same on every host.

    Raises:
        ConfigError: It cannot be built, or has no class scores to rank trials by.
    """
    network = DenseNetwork(at_resolution(recipe, options.resolution), weights=options.weights)
    if not network.has_scores:
        raise ConfigError(f"{recipe.source}: its outputs are no class scores, so trials cannot be ranked; compare runs by hand")
    shapes = [(tuple(x.shape), str(x.dtype)) for x in network.recipe.example_inputs]
    files = [(name, size) for name, size, _ in stamp(Path(options.data))] if options.data else []
    return key(recipe.sources_sha256, network.fingerprint, shapes, files)


def _check_space(recipe: Recipe, space: dict[str, Axis]) -> None:
    """Refuse resolutions that the recipe cannot be had at."""
    for side in space["resolution"].values if "resolution" in space else ():
        at_resolution(recipe, int(side))


def _device(device: str) -> str:
    """Return what kind of device latencies are measured on: those of different kinds are not compared."""
    with open_device(resolve_device(device).url) as connected:
        return kind_of_device(connected.info())


def _check_same(before: SearchSpec, now: SearchSpec, where: str) -> None:
    """Refuse to mix trials that are not of one search.

    Raises:
        ConfigError: Says what differs.
    """
    remedy = "give what it was begun with, or another --study and --run"
    if (before.model, before.network) != (now.model, now.network):
        raise ConfigError(f"{where} is of another network, recipe or data ({before.model}); give another --study and --run")
    for name, value in before.options.items():
        if name not in OF_THE_HOST and now.options[name] != value:
            raise ConfigError(f"{where} has {name} {value}, not {now.options[name]}; {remedy}")
    for name in (*before.space, *now.space):
        if before.space.get(name) != now.space.get(name):
            raise ConfigError(f"{where} has {name} {_told(before.space.get(name))}, not {_told(now.space.get(name))}; {remedy}")
    if before.sampler != now.sampler:
        raise ConfigError(f"{where} has the sampler {before.sampler}, not {now.sampler}; {remedy}")
    if before.device != now.device:
        raise ConfigError(f"{where} measures on {before.device}, this device is {now.device}; give --device of that kind, or another study")


def _told(axis: Axis | None) -> str:
    if axis is None:
        return "fixed"
    return "in " + ", ".join(map(str, axis.values)) if axis.values else f"from {axis.low:g} to {axis.high:g}"
