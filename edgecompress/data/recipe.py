"""A recipe is a user's Python file with functions that return the model, its example inputs and its data.

    def model() -> nn.Module                        required
    def example_inputs() -> tuple[Tensor, ...]      required; the shapes every artifact will have
    def train_data() -> Dataset                     optional; see below for its items
    def eval_data() -> Dataset                      optional
    def calibration_data() -> Dataset               optional; default is train_data, then eval_data
    def preprocessing() -> Preprocessing            optional; written into manifests
    def labels() -> Sequence[str]                   optional; written into manifests
    def outputs() -> str, sequence or dict          optional; the kind of each output
    def metric(outputs, targets) -> dict            optional; how good outputs are
    def loss(outputs, targets) -> Tensor            optional; what training minimises
    higher_is_better = True, False or a dict        optional; of the metric

Items of a dataset are `(input, target)`, or just `input`; with several inputs `((input_0, input_1), target)`, or `((input_0, input_1),)`
without a target. A tuple of two tensors is an input and its target, never two inputs. Inputs have no batch axis, and the shape and kind of
the example inputs: float32 numbers, or int64 indices. Outputs are tensors, or tuples, lists or dicts of tensors; axis 0 of each is the
batch.

A target is whatever `metric` and `loss` understand: a number, a tensor, text, or a dict, tuple or list of these; `targets.collate_targets`
says how those of a batch are gathered. Where neither is given, a target is used if it is a class index and an output holds class scores
(top-1), or a map of class indices and an output holds scores for each pixel (mean IoU). Float targets are never class indices, and no
output is taken for class scores because of its shape.

`outputs()` says what the network returns: one kind for its only output, kinds by position, or kinds by name, the name being the key of a
dict or the field of a named tuple that the network returns. A kind is a name such as "logits" or "embedding", or an
`edgecompress.OutputSpec`. Outputs that are not named are read from the network and the data.

`metric` and `loss` get the outputs of a batch as the network returns them, and the batch's targets. A metric returns numbers by name, of
which the first is the headline; they are averaged over batches. A metric that is no average over samples is an object with `update`,
`compute` and `reset`, such as those of torchmetrics, or a function without arguments that returns one. `higher_is_better` says whether
larger values are better, for all of them or by name; where it does not, the name does: loss, error, mae, mse, rmse, nll, perplexity and a
few more are better when low.

Functions may take `resolution`, the side of an image in pixels, with the usual one as default: `example_inputs(resolution=224)`, and the
data functions and `preprocessing` where they depend on the size. `--resolution` then gives the argument.

A recipe is named by a path (`my/recipe.py`, or its folder) or as a module (`package.module`); `sources` lists what else a network may
come from. Files beside the recipe are imported by their name, `from network import Net`, or relatively, `from .network import Net`.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.data.code import digest_code
from edgecompress.data.losses import Loss, make_loss
from edgecompress.data.metrics import Direction, Metric, make_metric
from edgecompress.data.sources import Source, load_source
from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import call_user_function, describe_place, split_place
from edgecompress.network.output_reading import Declared
from edgecompress.records import Preprocessing
from edgecompress.records.outputs import OUTPUT_KINDS, OutputSpec

Data = Callable[[], "Dataset[Any]"]


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe.

    Attributes:
        sources_sha256: Hash of the recipe and of the user's files that it imports; of a model in memory, of its code.
        outputs: As the user gives them, checked by themselves and not against the network; `outputs_place` begins messages about them.
        resized: Returns the recipe at another resolution; None for a recipe without `resolution`.
        example_rows: The example inputs as the user gives them; `example_inputs` has the first entry of each.
    """

    name: str
    source: str
    sources_sha256: str
    model: Callable[[], nn.Module]
    example_inputs: tuple[Tensor, ...]
    train_data: Data | None = None
    eval_data: Data | None = None
    calibration_data: Data | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    outputs: Declared | None = None
    outputs_place: str = "outputs"
    metric: Metric | None = None
    loss: Loss | None = None
    resized: "Callable[[int], Recipe] | None" = None
    example_rows: tuple[Tensor, ...] = ()


def load_recipe(target: str) -> Recipe:
    """Import a recipe.

    Raises:
        ConfigError: The recipe is missing, fails while it is imported, or lacks `model` or `example_inputs`.
    """
    source = load_source(target)
    for name in ("model", "example_inputs"):
        if not callable(getattr(source.module, name, None)):
            raise ConfigError(f"{target}: has no function {name}(); a recipe defines model() and example_inputs()")
    return _assemble_recipe(source, target)


def recipe_at_resolution(recipe: Recipe, resolution: int) -> Recipe:
    """Return the recipe at a resolution; 0 stands for its default.

    Raises:
        ConfigError: The recipe takes no resolution, or fails at this one.
    """
    if not resolution:
        return recipe
    if recipe.resized is None:
        remedy = "let it take one, example_inputs(resolution=224), and the data functions too; or leave out --resolution"
        raise ConfigError(f"{recipe.source}: example_inputs() takes no resolution; {remedy}")
    return recipe.resized(resolution)


def _assemble_recipe(source: Source, target: str, *, resolution: int = 0) -> Recipe:
    """Collect the functions of a recipe; a resolution other than 0 is passed to those that take one."""
    module = source.module

    def get_function(name: str, default: Any = None) -> Any:
        function = getattr(module, name, default)
        return partial(function, resolution=resolution) if resolution and _takes_resolution(function) else function

    rows = check_example(call_user_function(get_function("example_inputs"), "example_inputs()", target), target)
    return Recipe(
        name=source.name,
        source=source.text,
        sources_sha256=source.sha256,
        model=get_function("model"),
        example_inputs=take_one_sample(rows),
        example_rows=rows,
        train_data=get_function("train_data"),
        eval_data=get_function("eval_data"),
        calibration_data=get_function("calibration_data"),
        preprocessing=_check_preprocessing(
            call_user_function(get_function("preprocessing", lambda: None), "preprocessing()", target), target
        ),
        labels=_check_labels(call_user_function(get_function("labels", tuple), "labels()", target), target),
        **_collect_judging(
            outputs=getattr(module, "outputs", None),
            metric=getattr(module, "metric", None),
            loss=getattr(module, "loss", None),
            higher_is_better=getattr(module, "higher_is_better", None),
            source=target,
        ),
        resized=(lambda side: _assemble_recipe(source, target, resolution=side)) if _takes_resolution(module.example_inputs) else None,
    )


def _takes_resolution(function: object) -> bool:
    return inspect.isfunction(function) and "resolution" in inspect.signature(function).parameters


def check_example(value: object, subject: str) -> tuple[Tensor, ...]:
    """Return the example inputs as a tuple of tensors on the CPU.

    Raises:
        ConfigError: The inputs are not tensors, have no batch axis or a dynamic size, or hold NaN.
    """
    inputs = (value,) if isinstance(value, Tensor) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ConfigError(
            f"{subject}: example_inputs() must return a tuple of tensors, one static shape each; return e.g. (torch.zeros(1, 3, 224, 224),)"
        )
    for x in inputs:
        if x.ndim < 1 or 0 in x.shape or any(type(n) is not int for n in x.shape):
            raise ConfigError(f"{subject}: an example input has shape {tuple(x.shape)}; artifacts have static shapes, give every size")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ConfigError(f"{subject}: an example input holds NaN or infinity; return ordinary numbers")
    return tuple(x.detach().cpu().clone() for x in inputs)


def take_one_sample(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the first entry of each example input; the probe checks that the first axis is the batch."""
    return tuple(x[:1].clone() for x in rows)


def _check_preprocessing(value: object, subject: str) -> Preprocessing | None:
    if value is None or isinstance(value, Preprocessing):
        return value
    raise ConfigError(f"{subject}: preprocessing() returned {type(value).__name__}; return edgecompress.Preprocessing(mean=…, std=…)")


def _check_labels(value: object, subject: str) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(str, value))
    raise ConfigError(f"{subject}: labels() returned {type(value).__name__}; return a list of class names")


def _collect_judging(*, outputs: Any, metric: Any, loss: Any, higher_is_better: Any, source: str) -> dict[str, Any]:
    """Return the fields of a recipe that say how outputs are judged; each is a value, or a function in a recipe's file.

    Raises:
        ConfigError: One is of a wrong type.
    """
    place = describe_place(outputs, "outputs", source=source)
    outputs = call_user_function(outputs, *split_place(place)) if callable(outputs) else outputs
    direction_place = describe_place(higher_is_better, "higher_is_better", source=source)
    direction = call_user_function(higher_is_better, *split_place(direction_place)) if callable(higher_is_better) else higher_is_better
    direction = _check_direction(direction, direction_place)
    if direction is not None and metric is None:
        raise ConfigError(f"{direction_place}: no metric to go with it; define metric(outputs, targets)")
    return {
        "outputs": None if outputs is None else _check_outputs(outputs, place),
        "outputs_place": place,
        "metric": None if metric is None else make_metric(metric, higher_is_better=direction, source=source),
        "loss": None if loss is None else make_loss(loss, source=source),
    }


def _check_outputs(value: object, place: str) -> Declared:
    """Return the kinds of outputs as given; a sequence as a tuple.

    Raises:
        ConfigError: A kind is no name of one and no OutputSpec.
    """
    kinds: Sequence[object] = (value,)
    if isinstance(value, Mapping):
        kinds = tuple(value.values())
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise ConfigError(f"{place}: {wrong[0]!r} is no name of an output; give names, or a list of kinds by position")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        kinds = value = tuple(value)
    for kind in kinds:
        if not isinstance(kind, OutputSpec) and kind not in OUTPUT_KINDS:
            given = f"{kind!r}" if isinstance(kind, str) else f"of type {type(kind).__name__}"
            raise ConfigError(f"{place}: a kind is {given}; give one of {', '.join(OUTPUT_KINDS)}, or an edgecompress.OutputSpec")
    return cast("Declared", value)


def _check_direction(value: object, place: str) -> Direction:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping) and all(isinstance(name, str) and isinstance(better, bool) for name, better in value.items()):
        return dict(value)
    raise ConfigError(f"{place}: is {value!r:.60}; give True, False, or a dict such as {{'mae': False}}")


def recipe_from_model(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    name: str = "",
    train_data: "Dataset[Any] | None" = None,
    eval_data: "Dataset[Any] | None" = None,
    calibration_data: "Dataset[Any] | None" = None,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = (),
    outputs: Declared | None = None,
    metric: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    higher_is_better: Direction = None,
) -> Recipe:
    """Return a recipe for a model that lives in memory.

    Raises:
        ConfigError: An argument is none that a recipe may have.
    """
    name = name or type(model).__name__.lower()
    code = digest_code(model, metric, loss, higher_is_better)
    rows = check_example(example_inputs, name)
    return Recipe(
        name=name,
        source="python",
        sources_sha256=hashlib.sha256(f"{model}{code}{outputs}".encode()).hexdigest(),
        model=lambda: copy.deepcopy(model),  # no run may change the caller's model
        example_inputs=take_one_sample(rows),
        example_rows=rows,
        train_data=_make_data_function(train_data),
        eval_data=_make_data_function(eval_data),
        calibration_data=_make_data_function(calibration_data),
        preprocessing=preprocessing,
        labels=tuple(labels),
        **_collect_judging(outputs=outputs, metric=metric, loss=loss, higher_is_better=higher_is_better, source=name),
    )


def _make_data_function(data: "Dataset[Any] | None") -> Data | None:
    return None if data is None else lambda: data
