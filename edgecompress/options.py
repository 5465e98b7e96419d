"""The options of a run, each with its help, range and default; the command line and `edgecompress.export` take the same names."""

import difflib
import re
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from edgecompress.errors import ConfigError
from edgecompress.records import Budget, Record
from edgecompress.records.fields import (
    Count,
    Fraction,
    Limits,
    Option,
    Positive,
    check_choice,
    check_value,
    check_values,
    describe_fields,
    option_fields,
)
from edgecompress.records.measurement import BENCHMARK_DEFAULTS, Repetitions, Threads
from edgecompress.targets import ALLOCATORS, FLOAT32, FORMATS, IO_TYPES, LAYOUTS, OPTIMIZERS, SCHEMES, TARGETS, TFLITE_ROUTES, Gate

AUTO: Final = "auto"
DEFAULT_MACS_RATIO: Final = 0.35  # the examples and the benchmark of the main job go by it
ALL_HOLD: Final = "All budgets that are given must hold."
PROFILE_SCHEMES: Final = ("fp32", "int8-dynamic", "int8-static")  # each scheme takes minutes to measure, so others are measured on request
QAT_COMMAND_EPOCHS: Final = 3  # as many as `edgecompress.qat` trains by default


class Choice(NamedTuple):
    """The form of a layer that the user fixed: a method, a rank, and options that differ from the method's defaults."""

    method: str
    rank: tuple[int, ...] = ()
    options: dict[str, Any] = {}


class Options(Record, frozen=True, kw_only=True):
    target: Annotated[str, Option("Preset", "It stands for formats, schemes and a rank multiple.", choices=tuple(TARGETS))] = "android"
    format: Annotated[
        tuple[str, ...],
        Option("Format", "A format that the target leaves out is exported too.", choices=tuple(FORMATS), usual="the target's"),
    ] = ()
    scheme: Annotated[
        tuple[str, ...],
        Option("Scheme", "It is exported in each format that has it.", choices=SCHEMES, usual="the target's"),
    ] = ()
    macs_ratio: Annotated[
        Fraction | None,
        Option(
            "Fraction of the multiply-adds to keep",
            f"The default holds where no budget is given. {ALL_HOLD}",
            usual=f"{DEFAULT_MACS_RATIO}",
        ),
    ] = None
    speedup: Annotated[
        float | None, Limits(at_least=1), Option("Speed-up to reach over the dense network", f"2.5 takes 1/2.5 of its latency. {ALL_HOLD}")
    ] = None
    latency_ms: Annotated[Positive | None, Option("Latency to reach on the device, in ms", ALL_HOLD, rare=True)] = None
    size_mb: Annotated[
        Positive | None, Option("Size of the file to reach, in MB (10⁶ bytes)", f"The weights tell the size. {ALL_HOLD}", rare=True)
    ] = None
    params_ratio: Annotated[Fraction | None, Option("Fraction of the parameters to keep", ALL_HOLD, rare=True)] = None
    max_drop: Annotated[
        Positive | None,
        Option(
            "Loss of the metric that a plan may cost before fine-tuning",
            "Points of an accuracy, percent of another metric, or without a metric percent of the worst output. "
            "The plan saves as much as it can for that loss.",
            rare=True,
        ),
    ] = None
    device: Annotated[
        str, Option("Device that measures the latencies to plan by", "By default local:// where a latency is asked for, else none.")
    ] = ""
    table: Annotated[
        str,
        Option(
            "Latency table to plan with, in place of the user's own for the device",
            "Without a device it must hold every latency that the plan needs.",
            metavar="FILE",
            rare=True,
        ),
    ] = ""
    cost_scheme: Annotated[
        str,
        Option(
            "Scheme of the TFLite file whose latency and size are planned",
            choices=FORMATS["tflite"].schemes,
            usual="the target's first",
            rare=True,
        ),
    ] = ""
    allocator: Annotated[str, Option("How the budget is shared out among the layers", choices=ALLOCATORS, rare=True)] = "latency"
    method: Annotated[str, Option("Factorization, METHOD[:KEY=VALUE,…]", "It is that of every layer, e.g. `cp3:seed=1,starts=5`.")] = AUTO
    layer: Annotated[
        tuple[str, ...],
        Option("Layer form, NAME=METHOD:RANK or =dense", "Options of the method follow the rank: `NAME=METHOD:RANK:KEY=VALUE,…`."),
    ] = ()
    data_aware: Annotated[bool, Option("Fit factors to what the layers read from calibration inputs, where the method can", rare=True)] = (
        False
    )
    max_loss: Annotated[
        float | None,
        Limits(at_least=0),
        Option(
            "Largest loss of the metric",
            "Points of an accuracy, percent of another metric. A file that loses more is not published.",
            usual="2",
        ),
    ] = None
    min_fidelity: Annotated[
        float | None,
        Limits(at_least=0, at_most=1),
        Option(
            "Fraction of every output that must be kept of the dense network, where no metric decides",
            "Plans that nothing will repair keep it too. 0 publishes whatever is left.",
            usual="0.95, or 0.9 of values",
            rare=True,
        ),
    ] = None
    sensitivity_samples: Annotated[Count, Option("Calibration inputs that the planner measures losses on", rare=True)] = 256
    stages: Annotated[
        Count,
        Option("Rounds of planning, decomposing and fine-tuning", "Each starts from the network of the one before.", rare=True),
    ] = 1
    weakening: Annotated[Fraction, Option("Fraction of the remaining compression that each stage but the last performs", rare=True)] = 0.8
    epochs: Annotated[int, Limits(at_least=0), Option("Epochs of fine-tuning, in each stage")] = 8
    epoch_samples: Annotated[
        int, Limits(at_least=2), Option("Training samples of an epoch", "Each epoch draws others from a larger dataset.", rare=True)
    ] = 10_000
    batch_size: Annotated[int, Limits(at_least=2), Option("Training samples of a batch", rare=True)] = 64
    optimizer: Annotated[str, Option("Optimizer of fine-tuning", choices=OPTIMIZERS, rare=True)] = "sgd"
    learning_rate: Annotated[
        float,
        Limits(at_least=0),
        Option(
            "Highest learning rate of fine-tuning",
            "The default is lowered where a short test shows that it would harm the network.",
            usual="0.01 for sgd, 0.001 for adamw",
            rare=True,
        ),
    ] = 0.0
    calibration_samples: Annotated[Count, Option("Inputs from which int8 ranges are taken")] = 500
    mixed_precision: Annotated[
        bool,
        Option(
            "Keep the layers that int8 hurts most in fp32",
            "A simulation of the int8-static file chooses as few as reach `min_int8_agreement`.",
            rare=True,
        ),
    ] = False
    layer_scheme: Annotated[
        tuple[str, ...],
        Option("Scheme of a layer in integer files, NAME=SCHEME, e.g. stem=fp32", rare=True),
    ] = ()
    qat_epochs: Annotated[
        int,
        Limits(at_least=0),
        Option(
            "Epochs of quantization-aware training for int8-static files",
            f"0 rounds the weights only. The command `qat` trains {QAT_COMMAND_EPOCHS} epochs where the run asks for none.",
            rare=True,
        ),
    ] = 0
    tflite_route: Annotated[
        str,
        Option(
            "Converter of TFLite files",
            "`auto` takes the first whose file passes the gate, `fastest` the faster of the files that pass.",
            choices=TFLITE_ROUTES,
            kind="TFLite route",
            rare=True,
        ),
    ] = AUTO
    layout: Annotated[str, Option("Layout of images in TFLite files", choices=LAYOUTS, rare=True)] = "NHWC"
    io: Annotated[
        str, Option("Inputs and outputs of int8-static TFLite files", choices=IO_TYPES, kind="type of inputs and outputs", rare=True)
    ] = "float32"
    bytecode_version: Annotated[
        int, Limits(at_least=0), Option("Bytecode version of TorchScript files, for older runtimes", usual="the newest", rare=True)
    ] = 0
    verify_samples: Annotated[Count, Option("Inputs on which an artifact is compared with the model", rare=True)] = 5000
    max_rel: Annotated[Positive, Option("fp32 gate: largest difference, over the output range", rare=True)] = 1e-4
    min_int8_agreement: Annotated[Fraction, Option("int8 gate: smallest top-1 agreement", rare=True)] = 0.98
    also_python: Annotated[
        str,
        Option("Python whose TFLite runtime must agree as well, e.g. one with tflite-runtime", metavar="PATH", rare=True),
    ] = ""
    # The slowest conversion known, onnx2tf of a ResNet-18, takes 44 s on a small machine.
    convert_timeout_s: Annotated[Positive, Option("Seconds after which a converter is stopped", rare=True)] = 900.0
    # Converting a ResNet-18 takes 2 to 4 GB.
    convert_memory_gb: Annotated[Positive, Option("Memory at which a converter is stopped, in GB", rare=True)] = 16.0
    jobs: Annotated[
        int,
        Limits(at_least=0),
        Option(
            "Formats exported at the same time",
            "Fewer where memory is short. The files are the same for any number.",
            usual="the number of cores",
            rare=True,
        ),
    ] = 0
    weights: Annotated[str, Option("Checkpoint: .safetensors, .pt, or a folder of shards", metavar="FILE")] = ""
    data: Annotated[str, Option("Data in place of the recipe's: images, .npz, idx, .tar", metavar="PATH")] = ""
    resolution: Annotated[
        int, Limits(at_least=0), Option("Side of the images in pixels, where the recipe takes one", usual="the recipe's own", rare=True)
    ] = 0
    threads: Threads = BENCHMARK_DEFAULTS.threads
    repetitions: Repetitions = BENCHMARK_DEFAULTS.repetitions
    seed: Annotated[int, Option("Seed of everything random", rare=True)] = 0


Options.__doc__ = describe_fields(Options, "The options of a run. Each field has its help, range and default.")
DEFAULTS: Final = Options()


def update_options(options: Options, given: dict[str, Any]) -> Options:
    """Return `options` with the given values in place of its own; None stands for "not given".

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
    check_values(made)
    if made.stages > 1 and made.epochs == 0:
        raise ConfigError(f"stages {made.stages}: nothing is trained between them with 0 epochs; give --epochs, or ask for one stage")
    parse_layer_schemes(made)
    return made


def check_budget(budget: Budget) -> Budget:
    """Return `budget` if its numbers are in their ranges.

    Raises:
        ConfigError: One of its numbers is out of its range.
    """
    for name in Budget.__struct_fields__:
        check_value(option_fields(Options)[name], getattr(budget, name))
    return budget


def select_outputs(options: Options) -> tuple[tuple[str, str], ...]:
    """Return the (format, scheme) pairs that a run exports: the target's, narrowed to the formats and schemes that are given.

    A format or a scheme that the target leaves out is exported when it is given.

    Raises:
        ConfigError: None of the formats has one of the schemes.
    """
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
    """Return the budget of the compressed network: the given limits, or the default fraction of MACs where none is given."""
    return Budget(macs_ratio=DEFAULT_MACS_RATIO) if has_default_budget(options) else _asked_budget(options)


def has_default_budget(options: Options) -> bool:
    """Whether no limit of the compressed network is given."""
    return _asked_budget(options) == Budget()


def _asked_budget(options: Options) -> Budget:
    return Budget(**{name: getattr(options, name) for name in Budget.__struct_fields__})


def cost_scheme_of(options: Options) -> str:
    """Return the scheme of the TFLite file whose latency and size are planned."""
    return options.cost_scheme or next((s for f, s in select_outputs(options) if f == "tflite"), FORMATS["tflite"].schemes[0])


def parse_method(options: Options) -> Choice:
    """Return the method of every layer with its options; the text reads `METHOD` or `METHOD:KEY=VALUE,…`.

    Raises:
        ConfigError: The text has another form.
    """
    method, _, given = options.method.partition(":")
    settings = _parse_settings(given)
    if not method or settings is None:
        raise ConfigError(f"--method {options.method}: write METHOD or METHOD:KEY=VALUE, e.g. cp3:seed=1,starts=5")
    return Choice(method, (), settings)


def parse_fixed_layers(options: Options) -> dict[str, Choice]:
    """Return the forms of the layers that the user fixed, by the layer's name.

    A text reads `NAME=dense`, `NAME=METHOD:RANK` or `NAME=METHOD:RANK:KEY=VALUE,…`; ranks are separated by x or a comma.

    Raises:
        ConfigError: A text has another form.
    """
    choices: dict[str, Choice] = {}
    for text in options.layer:
        name, equals, choice = text.partition("=")
        method, _, rest = choice.partition(":")
        rank, _, given = rest.partition(":")
        settings = _parse_settings(given)
        try:
            ranks = tuple(int(r) for r in rank.replace("x", ",").split(",")) if rank else ()
        except ValueError:
            ranks = ()
        if not (name and equals and method) or settings is None or (bool(rank or given) if method == "dense" else not ranks):
            raise ConfigError(f"--layer {text}: write NAME=METHOD:RANK, e.g. layer1.0.conv1=tucker2:8x8, or NAME=dense")
        choices[name] = Choice(method, ranks, settings)
    return choices


def parse_layer_schemes(options: Options) -> dict[str, str]:
    """Return the schemes of the layers that the user fixed, by the layer's name; a text reads `NAME=SCHEME`.

    Raises:
        ConfigError: A text has another form, or its scheme is unknown.
    """
    chosen = {}
    for text in options.layer_scheme:
        name, _, scheme = text.rpartition("=")
        if not name:
            raise ConfigError(f"--layer-scheme {text}: write NAME=SCHEME, e.g. stem=fp32")
        chosen[name] = check_choice("scheme", scheme, tuple(SCHEMES))
    return chosen


def gate_of(scheme: str, options: Options) -> Gate:
    """Return the gate of a scheme with the run's own thresholds."""
    gate = SCHEMES[scheme].gate
    if scheme == FLOAT32:
        return msgspec.structs.replace(gate, max_rel=options.max_rel)
    return msgspec.structs.replace(gate, min_agreement=options.min_int8_agreement) if SCHEMES[scheme].is_int8 else gate


def _parse_settings(text: str) -> dict[str, Any] | None:
    """Return the settings of `KEY=VALUE,…`, each value parsed as JSON where it is JSON, else as text; None for another form."""
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
