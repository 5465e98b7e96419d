"""The whole job from Python: what `edgecompress export` does, for a model that is already in memory."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.options import updated
from edgecompress.pipeline import Pipeline
from edgecompress.progress import Track, silent
from edgecompress.recipe import of_model
from edgecompress.records import ExportResult, Preprocessing
from edgecompress.runs import open_run, trying


def export(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    target: str = "android",
    run: str | Path = "",
    name: str = "",
    train_data: "Dataset[Any] | None" = None,
    eval_data: "Dataset[Any] | None" = None,
    calibration_data: "Dataset[Any] | None" = None,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = (),
    track: Track = silent,
    **options: Any,
) -> ExportResult:
    """Decompose, fine-tune, quantize, convert and verify `model` for a target; return the manifests of what was published.

    Args:
        model: The trained dense model; left untouched.
        example_inputs: One tensor an input, with a batch axis; every artifact has these shapes.
        run: The run folder, `runs/NAME` by default; running again continues there.
        train_data: Items as `edgecompress.recipe` says, for fine-tuning and calibration. Without it nothing is decomposed that
            BatchNorm re-estimation alone would not repair.
        eval_data: For accuracies and for the proof of each artifact.
        options: Any of `edgecompress.options.Options`, e.g. `macs_ratio=0.35, epochs=6, scheme=("int8-static",)`.

    Raises:
        EdgeCompressError: One of errors.py, as the command would print it.
    """
    recipe = of_model(
        model,
        example_inputs,
        name=name,
        train_data=train_data,
        eval_data=eval_data,
        calibration_data=calibration_data,
        preprocessing=preprocessing,
        labels=labels,
    )
    folder = Path(run or Path("runs") / recipe.name)
    with open_run(folder, name=recipe.name, recipe=recipe.source) as opened:
        steps = Pipeline(opened, recipe, track=track)
        with trying(opened, updated(opened.record.options, {"target": target, **options})):
            result = steps.export()
        if steps.failures:
            raise steps.failures[0]
        return result
