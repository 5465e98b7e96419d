"""The steps of a run as a table. A new step is one row here, one `make_` function beside this module, and one view of the command line.

Nothing heavy is imported: the command line reads its commands from this table before it needs torch.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edgecompress.options import Options, select_outputs
from edgecompress.records import (
    CheckResult,
    CompressionPlan,
    DecomposeResult,
    ExportResult,
    FinetuneResult,
    ModelStats,
    QatResult,
    QuantizeResult,
    Record,
)
from edgecompress.targets import INT8_STATIC

if TYPE_CHECKING:
    from edgecompress.pipeline.context import RunContext

SOURCE_OPTIONS: Final = ("weights", "data", "resolution")  # hashed with the dense network, which every step depends on


class Step(NamedTuple):
    """One step of a run.

    Attributes:
        name: The command, the row in run.json, the section of the report.
        record: The type of its result.
        needs: Steps whose results it reads; hashes of their files enter its key.
        options: Fields of `Options` that change its result: they enter its key and are its command's flags.
        data: Splits of `pipeline.run_data.SPLITS` that it reads: a hash of what they hold enters its key.
        files: The files that it writes into the run folder; the first is its record.
        make: Computes the record and writes the other files.
        applies: Whether a run with these options has this step.
        reusable: Whether an unchanged key spares the step; otherwise it is made anew, from parts that are reused one by one.
    """

    name: str
    record: type[Record]
    needs: tuple[str, ...]
    options: tuple[str, ...]
    files: tuple[str, ...]
    make: "Callable[[RunContext], Record]"
    data: tuple[str, ...] = ()
    applies: Callable[[Options], bool] = lambda _: True
    reusable: bool = True


def _import_when_called(name: str) -> "Callable[[RunContext], Any]":
    """Return the function `name` of the module of the same name; the module, which needs torch, is imported at the first call."""

    def make(context: "RunContext") -> Any:
        return getattr(import_module(f"edgecompress.pipeline.{name}"), name)(context)

    return make


def trains_quantized(options: Options) -> bool:
    """Whether int8-static files get weights of their own from quantization-aware training."""
    return options.qat_epochs > 0 and INT8_STATIC in {scheme for _, scheme in select_outputs(options)}


_ROWS: Final = (
    Step(
        name="analyze",
        record=ModelStats,
        needs=(),
        options=SOURCE_OPTIONS,
        files=("stats.json",),
        make=_import_when_called("make_analysis"),
    ),
    Step(
        name="plan",
        record=CompressionPlan,
        needs=("analyze",),
        options=(
            "target", "macs_ratio", "latency_ms", "speedup", "size_mb", "params_ratio", "max_drop", "device", "table", "cost_scheme",
            "threads", "mixed_precision", "allocator", "method", "layer", "data_aware", "sensitivity_samples", "min_fidelity", "stages",
            "weakening", "seed", *SOURCE_OPTIONS,
        ),
        files=("plan.json",),
        make=_import_when_called("make_plan"),
        data=("calibration",),
    ),
    Step(
        name="decompose",
        record=DecomposeResult,
        needs=("plan",),
        options=("data_aware", "sensitivity_samples", "seed"),
        files=("decompose.json", "decomposed.safetensors"),
        make=_import_when_called("make_decomposition"),
        data=("calibration",),
    ),
    Step(
        name="finetune",
        record=FinetuneResult,
        needs=("decompose",),
        options=("stages", "weakening", "epochs", "epoch_samples", "batch_size", "optimizer", "learning_rate", "seed", "data"),
        files=("finetune.json", "weights.safetensors"),
        make=_import_when_called("make_finetuning"),
        data=("recovery", "eval"),
    ),
    Step(
        name="quantize",
        record=QuantizeResult,
        needs=("plan", "finetune"),
        options=(
            "target", "format", "scheme", "calibration_samples", "mixed_precision", "layer_scheme", "min_int8_agreement", "seed", "data",
        ),
        files=("quantize.json", "calibration.safetensors"),
        make=_import_when_called("make_calibration"),
        data=("calibration",),
    ),
    Step(
        name="qat",
        record=QatResult,
        needs=("plan", "finetune", "quantize"),
        options=("qat_epochs", "epoch_samples", "batch_size", "layer_scheme", "seed", "data"),
        files=("qat.json", "qat.safetensors"),
        make=_import_when_called("make_qat"),
        data=("train", "eval"),
        applies=trains_quantized,
    ),
    Step(
        name="export",
        record=ExportResult,
        needs=("plan", "finetune", "quantize", "qat"),
        options=(
            "target", "format", "scheme", "layer_scheme", "tflite_route", "layout", "io", "bytecode_version", "verify_samples", "max_rel",
            "min_int8_agreement", "max_loss", "min_fidelity",
            "also_python", "convert_timeout_s", "convert_memory_gb", "jobs", "threads", "repetitions",
        ),
        files=("export.json",),
        make=_import_when_called("make_artifacts"),
        data=("evidence",),
        reusable=False,
    ),
)  # fmt: skip
# The probe precedes every step and enters no key: it decides whether steps run, and not what they compute.
CHECK: Final = Step(
    name="check",
    record=CheckResult,
    needs=(),
    options=SOURCE_OPTIONS,
    files=("check.json",),
    make=_import_when_called("make_check"),
    data=("train", "eval", "calibration"),
)
STEPS: Final = {step.name: step for step in _ROWS}
STAGED: Final = ("plan", "decompose", "finetune")  # the steps that are repeated, under `stages/NUMBER/`, where a run has several stages


def steps_up_to(last: str, options: Options) -> tuple[Step, ...]:
    """Return the steps that `last` needs, directly or not, in the order of the table, and `last` itself."""
    needed, pending = set[str](), [last]
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += [other for other in STEPS[name].needs if STEPS[other].applies(options)]
    return tuple(step for step in STEPS.values() if step.name in needed)


def stage_path(name: str, stage: int, stages: int) -> str:
    """Return the name of a step or a file within a run: that of an earlier stage stands under `stages/NUMBER/`, the last one's does not."""
    return name if stage == stages else f"stages/{stage}/{name}"
