"""Every option of a run, in one place with its default. The CLI and `edgecompress.export` take the same names."""

import difflib
import math
import re
from typing import Any, Final, NamedTuple

import msgspec

from edgecompress.errors import ConfigError
from edgecompress.records import Budget, Record
from edgecompress.records.fields import check_choice
from edgecompress.targets import ALLOCATORS, FORMATS, IO_TYPES, LAYOUTS, OPTIMIZERS, SCHEMES, TARGETS, TFLITE_ROUTES, Scheme

AUTO: Final = "auto"
DEFAULT_MACS_RATIO: Final = 0.35  # where no budget at all is given


class Choice(NamedTuple):
    """A form given by hand: a method, at a rank, with options beside the method's defaults."""

    method: str
    rank: tuple[int, ...] = ()
    options: dict[str, Any] = {}


class Options(Record, frozen=True, kw_only=True):
    """What a run was asked for.

    Attributes:
        target: A preset of targets.py: formats, schemes, rank multiple.
        format: These formats; () for the target's.
        scheme: These schemes of each format; () for the target's.
        weights: Checkpoint of the dense model; "" for the recipe's own.
        data: A path that replaces the recipe's data functions.
        resolution: Side of the images in pixels, where the recipe takes one; 0 for its own.
        macs_ratio, params_ratio: After over before; 0.35 of the MACs where no budget at all is given. All budgets given must hold.
        size_mb: Of an artifact in the cost scheme, in 10⁶ bytes, as far as weights tell.
        latency_ms, speedup: Of the whole network in the cost scheme, on the device.
        max_drop: Points of top-1 that may be lost before fine-tuning; the most is saved that costs no more.
        device: Where layers are measured to plan with; local:// where a latency is asked for, "" for none where it is not.
        table: Cost table to plan with, in place of this user's own for the device; without a device it must hold all that is needed.
        cost_scheme: Of TFLite files, that latencies and sizes are of; "" for the first of the target's.
        allocator: How the budget is shared out among layers.
        method: Factorization for every layer, `METHOD` or `METHOD:KEY=VALUE,…`, or "auto".
        layer: Fixed choices, `NAME=METHOD:RANK`, `NAME=METHOD:RANK:KEY=VALUE,…` or `NAME=dense`.
        data_aware: Fit to what the layers read from calibration inputs, where a method can.
        min_agreement: Without training data: top-1 agreement with the dense model that a decomposition must leave.
        sensitivity_samples: Inputs the planner measures on.
        stages: Rounds of planning, decomposing and fine-tuning, each nearer to the budget; each has `epochs`.
        weakening: Share of the way left to the budget that a stage before the last goes.
        epochs, epoch_samples, batch_size, optimizer, learning_rate: Fine-tuning; a rate of 0 is the optimizer's usual one.
        calibration_samples: Inputs that int8 ranges come from.
        mixed_precision: Keep in float what a simulation says int8-static files need in float to reach `min_int8_agreement`.
        layer_scheme: Schemes of layers in integer files, `NAME=SCHEME`, e.g. `stem=fp32`.
        qat_epochs: Of training the weights of int8-static files under their rounding; 0 rounds them alone.
        tflite_route: litert-torch, onnx2tf, auto (the first whose file passes) or fastest (both, and the faster file of those that pass).
        layout: NHWC or NCHW: of the images that TFLite files take and give.
        io: float32, or int8 for int8-static TFLite files that take and give integers.
        verify_samples: Inputs an artifact is compared on before it is published.
        max_rel: Largest fp32 difference over the output range.
        min_int8_agreement: Smallest top-1 agreement of an int8 artifact with the eager model.
        convert_timeout_s, convert_memory_gb: What a converter may take; at a limit it is stopped and the artifact refused.
        bytecode_version: Of TorchScript files, for older runtimes; 0 for the newest.
        also_python: An interpreter whose runtime TFLite files must agree in too, e.g. of an environment with tflite-runtime; "" for none.
        threads: For measured runs.
        repetitions: Timed inferences of each artifact.
        seed: Of everything random.
    """

    target: str = "android"
    format: tuple[str, ...] = ()
    scheme: tuple[str, ...] = ()
    weights: str = ""
    data: str = ""
    resolution: int = 0
    macs_ratio: float | None = None
    params_ratio: float | None = None
    size_mb: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    max_drop: float | None = None
    device: str = ""
    table: str = ""
    cost_scheme: str = ""
    allocator: str = "latency"
    method: str = AUTO
    layer: tuple[str, ...] = ()
    data_aware: bool = False
    min_agreement: float = 0.95
    sensitivity_samples: int = 256
    stages: int = 1
    weakening: float = 0.8
    epochs: int = 8
    epoch_samples: int = 10_000
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.0
    calibration_samples: int = 500
    mixed_precision: bool = False
    layer_scheme: tuple[str, ...] = ()
    qat_epochs: int = 0
    tflite_route: str = AUTO
    layout: str = "NHWC"
    io: str = "float32"
    verify_samples: int = 5000
    max_rel: float = 1e-4
    min_int8_agreement: float = 0.98
    convert_timeout_s: float = 900.0  # the slowest conversion known, onnx2tf of a ResNet-18, takes 44 s on a small machine
    convert_memory_gb: float = 16.0  # a ResNet-18 needs 2 to 4
    bytecode_version: int = 0
    also_python: str = ""
    threads: int = 1
    repetitions: int = 100
    seed: int = 0


DEFAULTS: Final = Options()


def update_options(options: Options, given: dict[str, Any]) -> Options:
    """Return `options` with the given ones; None means not given.

    Raises:
        ConfigError: Unknown option, wrong type, or a value out of its range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in Options.__struct_fields__:
            near = difflib.get_close_matches(name, Options.__struct_fields__, n=1)
            raise ConfigError(f"unknown option {name!r}; {f'did you mean {near[0]}?' if near else 'see edgecompress.options.Options'}")
    try:
        made = msgspec.convert({**msgspec.structs.asdict(options), **given}, Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options: {error}; see edgecompress.options.Options") from error
    check_choice("target", made.target, tuple(TARGETS))
    check_choice("TFLite route", made.tflite_route, TFLITE_ROUTES)
    check_choice("layout", made.layout, LAYOUTS)
    check_choice("type of inputs and outputs", made.io, IO_TYPES)
    for format_name in made.format:
        check_choice("format", format_name, tuple(FORMATS))
    check_choice("allocator", made.allocator, ALLOCATORS)
    check_choice("optimizer", made.optimizer, OPTIMIZERS)
    _check_training(made)
    parse_layer_schemes(made)
    for name in ("max_rel", "convert_timeout_s", "convert_memory_gb"):
        if not 0 < getattr(made, name) < math.inf:
            raise ConfigError(f"{name} {getattr(made, name)}: must be above 0, e.g. {getattr(DEFAULTS, name):g}")
    for name in ("stages", "sensitivity_samples", "calibration_samples", "verify_samples", "threads", "repetitions"):
        if getattr(made, name) < 1:
            raise ConfigError(f"{name} {getattr(made, name)}: must be at least 1")
    if made.resolution < 0:
        raise ConfigError(f"resolution {made.resolution}: must be at least 1, or 0 for the recipe's own")
    check_choice("cost scheme", made.cost_scheme, ("", *FORMATS["tflite"].schemes))
    for name in ("weakening", "min_agreement", "min_int8_agreement"):
        if not 0 < getattr(made, name) <= 1:
            raise ConfigError(f"{name} {getattr(made, name)}: must be above 0 and at most 1")
    check_budget(budget_of(made))
    return made


def check_budget(budget: Budget) -> Budget:
    """Return a budget that can be kept or missed.

    Raises:
        ConfigError: A number of it is out of its range.
    """
    for name in ("macs_ratio", "params_ratio"):
        value = getattr(budget, name)
        if value is not None and not 0 < value <= 1:
            raise ConfigError(f"{name} {value}: must be above 0 and at most 1; 0.35 keeps 35%")
    for name in ("size_mb", "latency_ms", "max_drop"):
        value = getattr(budget, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} {value}: must be above 0")
    if budget.speedup is not None and not 1 <= budget.speedup < math.inf:
        raise ConfigError(f"speedup {budget.speedup}: must be at least 1; 2.5 takes 1/2.5 of the dense network's time")
    return budget


def _check_training(options: Options) -> None:
    if min(options.epochs, options.qat_epochs) < 0 or options.batch_size < 2 or options.epoch_samples < 2:
        raise ConfigError("fine-tuning: epochs and qat-epochs must be at least 0, batch size and epoch samples at least 2")
    if options.stages > 1 and options.epochs == 0:
        raise ConfigError(f"stages {options.stages}: nothing is trained between them with 0 epochs; give --epochs, or ask for one stage")
    if not 0 <= options.learning_rate < math.inf:
        raise ConfigError(f"learning_rate {options.learning_rate}: must be at least 0; 0 takes the optimizer's usual one")


def select_outputs(options: Options) -> tuple[tuple[str, str], ...]:
    """Return the (format, scheme) pairs a run exports: those of the target that were not excluded, or else whatever was named.

    A format or a scheme that the target leaves out is exported when it is named.

    Raises:
        ConfigError: No format named has a scheme named.
    """
    for scheme in options.scheme:
        check_choice("scheme", scheme, tuple(SCHEMES))
    usual = TARGETS[options.target].outputs
    formats = options.format or tuple(dict.fromkeys(f for f, _ in usual))
    chosen: list[tuple[str, str]] = []
    for name in formats:
        preset = tuple(s for f, s in usual if f == name)
        wanted = options.scheme or preset or FORMATS[name].schemes
        chosen += [(name, s) for s in FORMATS[name].schemes if s in wanted]
    if not chosen:
        known = "; ".join(f"{f}: {', '.join(FORMATS[f].schemes)}" for f in formats)
        raise ConfigError(f"scheme {', '.join(options.scheme)}: none of the formats has it; there is {known}")
    return tuple(chosen)


def budget_of(options: Options) -> Budget:
    """Return what the compressed network may cost, the usual ratio of MACs where nothing is asked for."""
    budget = Budget(**{name: getattr(options, name) for name in Budget.__struct_fields__})
    return budget if budget != Budget() else Budget(macs_ratio=DEFAULT_MACS_RATIO)


def cost_scheme_of(options: Options) -> str:
    """Return the scheme of TFLite files that latencies and sizes are of."""
    return options.cost_scheme or next((s for f, s in select_outputs(options) if f == "tflite"), FORMATS["tflite"].schemes[0])


def parse_method(options: Options) -> Choice:
    """Parse `METHOD` or `METHOD:KEY=VALUE,…`.

    Raises:
        ConfigError: Not of that form.
    """
    method, _, given = options.method.partition(":")
    settings = _settings(given)
    if not method or settings is None:
        raise ConfigError(f"--method {options.method}: write METHOD or METHOD:KEY=VALUE, e.g. cp3:seed=1,starts=5")
    return Choice(method, (), settings)


def parse_fixed_layers(options: Options) -> dict[str, Choice]:
    """Parse `NAME=METHOD:RANK` or `NAME=METHOD:RANK:KEY=VALUE,…`; ranks are separated by x or a comma.

    Raises:
        ConfigError: Not of that form.
    """
    choices: dict[str, Choice] = {}
    for text in options.layer:
        name, equals, choice = text.partition("=")
        method, _, rest = choice.partition(":")
        rank, _, given = rest.partition(":")
        settings = _settings(given)
        try:
            ranks = tuple(int(r) for r in rank.replace("x", ",").split(",")) if rank else ()
        except ValueError:
            ranks = ()
        if not (name and equals and method) or settings is None or (bool(rank or given) if method == "dense" else not ranks):
            raise ConfigError(f"--layer {text}: write NAME=METHOD:RANK, e.g. layer1.0.conv1=tucker2:8x8, or NAME=dense")
        choices[name] = Choice(method, ranks, settings)
    return choices


def parse_layer_schemes(options: Options) -> dict[str, str]:
    """Parse `NAME=SCHEME`.

    Raises:
        ConfigError: Not of that form, or no such scheme.
    """
    chosen = {}
    for text in options.layer_scheme:
        name, _, scheme = text.rpartition("=")
        if not name:
            raise ConfigError(f"--layer-scheme {text}: write NAME=SCHEME, e.g. stem=fp32")
        chosen[name] = check_choice("scheme", scheme, tuple(SCHEMES))
    return chosen


def limits_of(scheme: str, options: Options) -> Scheme:
    """Return the gate of a scheme with the run's own thresholds."""
    limits = SCHEMES[scheme]
    if scheme == "fp32":
        return msgspec.structs.replace(limits, max_rel=options.max_rel)
    return msgspec.structs.replace(limits, min_agreement=options.min_int8_agreement) if scheme.startswith("int8") else limits


def _settings(text: str) -> dict[str, Any] | None:
    """Parse `KEY=VALUE,…`; values are JSON where they can be, else text; None when malformed."""
    settings: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", text) if text else ():  # a comma inside brackets parts the items of a list
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            return None
        try:
            settings[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            settings[key] = value
    return settings
