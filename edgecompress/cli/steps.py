"""The commands that build: one step each, with whatever is missing before it. Each is a row of `STEPS`."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.table import Table

from edgecompress.cli import parameters as p
from edgecompress.cli import tables
from edgecompress.cli.session import console, pipeline
from edgecompress.records import ExportResult, to_json
from edgecompress.targets import TARGETS

if TYPE_CHECKING:
    from edgecompress.pipeline.steps_publish import Pipeline


class Step(NamedTuple):
    """A command: its help, the options of a run that it takes, and how its record is shown to a person."""

    help: str
    options: tuple[str, ...]
    render: Callable[[Any, "Pipeline"], Table]


STEPS: Final = {
    "analyze": Step(
        """Count and time every layer.

        Example: edgecompress analyze examples/resnet20_fashion_mnist""",
        ("weights", "data", "resolution"),
        lambda record, _: tables.stats(record),
    ),
    "plan": Step(
        """Choose a form and rank for each layer, and say why.

        Example: edgecompress plan runs/resnet20_fashion_mnist --macs-ratio 0.5""",
        (
            "macs_ratio",
            "latency_ms",
            "speedup",
            "size_mb",
            "params_ratio",
            "max_drop",
            "device",
            "table",
            "cost_scheme",
            "threads",
            "mixed_precision",
            "allocator",
            "method",
            "layer",
            "data_aware",
            "min_agreement",
            "stages",
            "weakening",
            "weights",
            "data",
            "seed",
        ),
        lambda record, _: tables.plan(record),
    ),
    "decompose": Step(
        """Replace the planned layers by their factors.

        Example: edgecompress decompose runs/resnet20_fashion_mnist""",
        (),
        lambda record, _: tables.decomposed(record),
    ),
    "finetune": Step(
        """Recover accuracy: BatchNorm re-estimation, then distillation from the dense model.

        Example: edgecompress finetune runs/resnet20_fashion_mnist --epochs 10""",
        ("stages", "weakening", "epochs", "epoch_samples", "batch_size", "optimizer", "learning_rate", "data", "seed"),
        lambda record, _: tables.finetuned(record),
    ),
    "quantize": Step(
        """Choose calibration inputs and what stays in float; show how well each layer fits int8.

        Example: edgecompress quantize runs/resnet20_fashion_mnist --calibration-samples 200""",
        ("format", "scheme", "calibration_samples", "mixed_precision", "layer_scheme", "min_int8_agreement", "data"),
        lambda record, _: tables.quantized(record),
    ),
    "qat": Step(
        """Train the weights of int8-static files under their rounding, to answer as in float.

        Example: edgecompress qat runs/resnet20_fashion_mnist --qat-epochs 2""",
        ("qat_epochs",),  # the others are shared with fine-tuning, which would be done again
        lambda record, _: tables.trained(record),
    ),
    "export": Step(
        """Run every missing step and publish verified artifacts, measured here.

        Example: edgecompress export --target android""",
        tuple(p.OF_RUN),
        lambda record, steps: tables.artifacts(record.artifacts, steps.measured),
    ),
}


def _command(name: str, step: Step) -> Callable[..., None]:
    """Make the function whose signature the command line reads."""

    def command(recipe: str | None, run: Any, json: bool, **given: Any) -> None:
        with pipeline(recipe, run, given) as steps:
            record = getattr(steps, name)()
        if json:
            print(to_json(record).decode(), end="")  # noqa: T201
        else:
            console().print(step.render(record, steps))
        if isinstance(record, ExportResult):
            _after_export(steps, record)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    options = {"recipe": p.Target, "run": p.RunFolder, **{option: p.OF_RUN[option] for option in step.options}}
    taken = [inspect.Parameter(option, kind, default=None, annotation=told) for option, told in options.items()]
    taken.append(inspect.Parameter("json", kind, default=False, annotation=p.Json))
    command.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    command.__name__, command.__doc__ = name, step.help
    return command


def _after_export(steps: "Pipeline", record: ExportResult) -> None:
    """Say what was refused and what can be done next; fail when something was refused."""
    folder, notes = steps.run.folder, console(stderr=True)
    for refused in record.refused:
        notes.print(f"refused: {refused.path}: {refused.reason}")
    notes.print(f"next: edgecompress bench {folder} --device {TARGETS[steps.options.target].device}")
    notes.print(f"      open {folder / 'report.html'}")
    if steps.failures:
        raise steps.failures[0]


COMMANDS: Final = tuple(_command(name, step) for name, step in STEPS.items())
