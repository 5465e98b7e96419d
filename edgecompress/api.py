"""What `edgecompress export` and `edgecompress profile` do, for a model that is already in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.data.recipe import Recipe, recipe_from_model
from edgecompress.network.output_reading import Declared
from edgecompress.options import PROFILE_SCHEMES, update_options
from edgecompress.pipeline.context import RunContext, open_context
from edgecompress.pipeline.latencies import profile_network
from edgecompress.pipeline.publication import check_refusals, publish
from edgecompress.pipeline.runner import run as run_steps
from edgecompress.progress import Track, track_silently
from edgecompress.records import CostTable, ExportResult, ModelStats, Preprocessing
from edgecompress.runs import open_run, use_options


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
    outputs: Declared | None = None,
    metric: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    higher_is_better: bool | Mapping[str, bool] | None = None,
    track: Track = track_silently,
    **options: Any,
) -> ExportResult:
    """Decompose, fine-tune, quantize, convert and verify `model` for a target; return the manifests of what was published.

    Args:
        model: The trained dense model; left untouched.
        example_inputs: One tensor an input, with a batch axis; every artifact has these shapes.
        run: The run folder, `runs/NAME` by default; running again continues there.
        train_data: Items as `edgecompress.data.recipe` says, for fine-tuning and calibration. Without it nothing is decomposed that
            BatchNorm re-estimation alone would not repair.
        eval_data: For accuracies and for the proof of each artifact.
        outputs: Kind of each output: one for the only output, several by position, or a dict by name; a kind is a name such as "logits",
            "probabilities", "values" or "embedding", or an `edgecompress.OutputSpec`. The rest is read from the network and the data.
        metric: `metric(outputs, targets) -> dict[str, float]`, or a torchmetrics `Metric`; its first value is the headline.
        loss: `loss(outputs, targets) -> Tensor`, a scalar that fine-tuning minimises on the targets.
        higher_is_better: Whether larger values of the metric are better, for all of them or by name; None goes by their names.
        options: Any of `edgecompress.options.Options`, e.g. `macs_ratio=0.35, epochs=6, scheme=("int8-static",)`.

    Raises:
        EdgeCompressError: One of errors.py, as the command would print it.
    """
    recipe = recipe_from_model(
        model,
        example_inputs,
        name=name,
        train_data=train_data,
        eval_data=eval_data,
        calibration_data=calibration_data,
        preprocessing=preprocessing,
        labels=labels,
        outputs=outputs,
        metric=metric,
        loss=loss,
        higher_is_better=higher_is_better,
    )
    with _open_context(recipe, run, {"target": target, **options}, track) as context:
        exported = publish(context).exported
    check_refusals(exported)
    return exported


def profile(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    schemes: Sequence[str] = PROFILE_SCHEMES,
    run: str | Path = "",
    name: str = "",
    refresh: bool = False,
    noisy: bool = False,
    track: Track = track_silently,
    **options: Any,
) -> CostTable:
    """Measure what the layers of `model` cost on a device, dense and in every form that a plan may choose, and the whole dense network.

    What is measured is kept in the table of that device, where plans with a budget of time find it; it is not measured again.

    Args:
        schemes: Of TFLite files.
        run: The run folder, as for `export`.
        refresh: Measure again what the table has.
        noisy: Keep what a busy device measures.
        options: As for `export`; `device` (by default this machine), `table`, `method`, `threads` and `target` matter here.

    Raises:
        EdgeCompressError: One of errors.py, as the command would print it.
    """
    with _open_context(recipe_from_model(model, example_inputs, name=name), run, options, track) as context:
        run_steps(context, "analyze", before="plan")
        return profile_network(context, context.read(ModelStats), tuple(schemes), refresh=refresh, noisy=noisy).table


@contextmanager
def _open_context(recipe: Recipe, run: str | Path, options: dict[str, Any], track: Track) -> Iterator[RunContext]:
    """Open the run of a recipe with these options; it keeps its former ones if one of these is found to be wrong."""
    with (
        open_run(Path(run or Path("runs") / recipe.name), name=recipe.name, recipe=recipe.source) as opened,
        use_options(opened, update_options(opened.record.options, options)),
    ):
        yield open_context(opened, recipe, track=track)
