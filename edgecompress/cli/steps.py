"""The commands that build: one step each, with whatever is missing before it. Each is a row of `edgecompress.pipeline.steps.STEPS`."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.table import Table

from edgecompress.cli import parameters as p
from edgecompress.cli import tables
from edgecompress.cli.session import console, open_target
from edgecompress.pipeline.steps import STEPS
from edgecompress.records import BenchmarkResult, ExportResult, Record, to_json
from edgecompress.targets import TARGETS

if TYPE_CHECKING:
    from edgecompress.pipeline.context import RunContext


class View(NamedTuple):
    """How the command of a step presents itself: its help, and the table of its record."""

    help: str
    render: Callable[[Any], Table]


VIEWS: Final = {
    "analyze": View(
        """Count and time every layer.

        Example: edgecompress analyze examples/resnet20_fashion_mnist""",
        tables.stats,
    ),
    "plan": View(
        """Choose a form and rank for each layer, and say why.

        Example: edgecompress plan runs/resnet20_fashion_mnist --macs-ratio 0.5""",
        tables.plan,
    ),
    "decompose": View(
        """Replace the planned layers by their factors.

        Example: edgecompress decompose runs/resnet20_fashion_mnist""",
        tables.decomposed,
    ),
    "finetune": View(
        """Recover accuracy: BatchNorm re-estimation, then distillation from the dense model.

        Example: edgecompress finetune runs/resnet20_fashion_mnist --epochs 10""",
        tables.finetuned,
    ),
    "quantize": View(
        """Choose calibration inputs and what stays in float; show how well each layer fits int8.

        Example: edgecompress quantize runs/resnet20_fashion_mnist --calibration-samples 200""",
        tables.quantized,
    ),
    "qat": View(
        """Train the weights of int8-static files under their rounding, to answer as in float.

        Example: edgecompress qat runs/resnet20_fashion_mnist --qat-epochs 2""",
        tables.trained,
    ),
    "export": View(
        """Run every missing step and publish verified artifacts, measured here.

        Example: edgecompress export --target android""",
        lambda record: tables.artifacts(record.artifacts),
    ),
}


def flags_of(name: str) -> tuple[str, ...]:
    """Return the options that the command of a step takes: those of its row; `export`, which runs all, takes those of every step."""
    options = (
        tuple(dict.fromkeys(option for step in STEPS.values() for option in step.options)) if name == "export" else STEPS[name].options
    )
    return tuple(option for option in p.OF_RUN if option in options)


def _make_command(name: str, view: View) -> Callable[..., None]:
    """Make the function whose signature the command line reads."""

    def command(recipe: str | None, run: Any, json: bool, **given: Any) -> None:
        measured: tuple[BenchmarkResult, ...] = ()
        with open_target(recipe, run, given) as context:
            from edgecompress.pipeline.publication import publish
            from edgecompress.pipeline.runner import run as run_steps

            record: Record
            if name == "export":
                record, measured = publish(context)
            else:
                record = run_steps(context, name)
        if json:
            print(to_json(record).decode(), end="")  # noqa: T201
        else:
            console().print(tables.artifacts(record.artifacts, measured) if isinstance(record, ExportResult) else view.render(record))
        if isinstance(record, ExportResult):
            _finish_export(context, record)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    options = {"recipe": p.Target, "run": p.RunFolder, **{option: p.OF_RUN[option] for option in flags_of(name)}}
    taken = [inspect.Parameter(option, kind, default=None, annotation=told) for option, told in options.items()]
    taken.append(inspect.Parameter("json", kind, default=False, annotation=p.Json))
    command.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    command.__name__, command.__doc__ = name, view.help
    return command


def _finish_export(context: "RunContext", record: ExportResult) -> None:
    """Say what was refused and what can be done next; fail when something was refused."""
    from edgecompress.pipeline.publication import check_refusals

    folder, notes = context.run.folder, console(stderr=True)
    for refused in record.refused:
        notes.print(f"refused: {refused.path}: {refused.reason}")
    notes.print(f"next: edgecompress bench {folder} --device {TARGETS[context.options.target].device}")
    notes.print(f"      open {folder / 'report.html'}")
    check_refusals(record)


COMMANDS: Final = tuple(_make_command(name, view) for name, view in VIEWS.items())
