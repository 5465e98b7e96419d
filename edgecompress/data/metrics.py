"""Metrics of labelled data: the user's function, a torchmetrics `Metric`, or one of METRICS.

A recipe's `metric(outputs, targets)` gets the outputs of a batch in the structure that the network returns, and the targets as
`collate_targets` gathers them; it returns a dict of numbers, which are averaged over batches with their samples as weights. What is no
average over samples (an F-score, mean average precision) is an object with `update`, `compute` and `reset`, as those of torchmetrics, or a
function without arguments that returns one. The first number of the dict is the headline.

    metric = recipe.metric or make_builtin("top-1")
    specs = check_metric(metric, outputs, targets, structure)            a few samples, before anything long runs
    values = measure_metric(metric, outputs, targets, structure)         outputs that are computed already
    values = evaluate_metric(metric, run, dataset, structure=structure)  outputs computed in chunks, e.g. of a file
    specs = describe_metric(metric, values)                              specs[0] is the headline, of values[specs[0].name]
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgecompress.data.builtin_metrics import METRICS
from edgecompress.data.samples import choose_indices, describe_dataset, fetch_pairs
from edgecompress.data.targets import Targets, advise_shapes, is_class_index, take_targets
from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import describe_place, split_place, takes_arguments, user_code
from edgecompress.network import batches
from edgecompress.network.batches import Batch, Structure
from edgecompress.network.output_kinds import class_axis
from edgecompress.records.metrics import MetricSpec
from edgecompress.records.outputs import OutputSpec

METRIC_BATCH: Final = 64  # samples of one call of a metric: all are measured in like batches, since the average of some depends on them
LOWER_IS_BETTER: Final = frozenset(
    ["mae", "mse", "rmse", "mape", "smape", "loss", "error", "err", "nll", "perplexity", "ppl", "wer", "cer", "eer", "distance"]
)  # words in the names of metrics that fall as a network gets better
REPEATABLE: Final = 1e-6  # relative difference of two values for the same input that rounding in another order can make
Direction = bool | Mapping[str, bool] | None


class Accumulator(Protocol):
    """Gathers batches of outputs and targets and computes the values of a metric from them."""

    def update(self, outputs: Any, targets: Any, /) -> Any: ...
    def compute(self) -> Any: ...


@dataclass(frozen=True)
class Metric:
    """A metric that `measure_metric` and `evaluate_metric` can compute.

    Attributes:
        given: The user's function or object.
        place: Begins the messages about it, e.g. `recipe.py:12: metric()`.
        start: Returns an accumulator that has seen no batch.
        higher_is_better: Of all values, or of those in a dict; None where the user does not say.
        output: Index of the output that a metric of METRICS reads; None for the user's, which get all.
    """

    given: Any
    place: str
    start: Callable[[], Accumulator]
    higher_is_better: Direction = None
    output: int | None = None


def make_metric(given: Any, *, higher_is_better: Direction = None, source: str = "") -> Metric:
    """Return a metric from what the user gives: a function, an object with `update` and `compute`, or a function that makes one.

    Args:
        source: Names the recipe where the object has no line of its own.

    Raises:
        ConfigError: The user gives none of these.
    """
    place = describe_place(given, "metric", source=source)
    if _is_accumulator(given) and not isinstance(given, type):
        return Metric(given, place, partial(_copy_empty, given), higher_is_better)
    if isinstance(given, type) or takes_arguments(given, 0):
        return Metric(given, place, partial(_call_factory, given, place), higher_is_better)
    if takes_arguments(given, 2):
        return Metric(given, place, partial(_SampleMean, given, place), higher_is_better)
    raise ConfigError(f"{place}: is no function of two arguments; define metric(outputs, targets), or return a torchmetrics Metric")


def make_builtin(name: str, *, output: int = 0, axis: int = 1) -> Metric:
    """Return a metric of METRICS for one output, whose classes lie along `axis`."""
    return Metric(METRICS[name], name, partial(METRICS[name], output, axis), higher_is_better=True, output=output)


def choose_metric(specs: tuple[OutputSpec, ...], targets: Targets | None) -> Metric | None:
    """Return the usual metric of an output that holds classes: top-1 of class indices, mean IoU of class maps; None where targets fit none.

    Of several outputs that hold classes, none is chosen.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    name, kinds = ("top-1", {"logits", "probabilities", "classes"}) if is_class_index(targets) else ("mIoU", {"class_map", "classes"})
    found = [(i, spec) for i, spec in enumerate(specs) if spec.kind in kinds]
    if len(found) != 1:
        return None
    output, spec = found[0]
    return make_builtin(name, output=output, axis=class_axis(spec))


def measure_metric(metric: Metric, outputs: Batch, targets: Targets, structure: Structure) -> dict[str, float]:
    """Return the values of a metric for outputs that are computed already; the first one is the headline.

    Args:
        outputs: Each `(n, …)`; the metric gets copies of them in `structure`.
        targets: Of the same samples, as `fetch_pairs` returns them.

    Raises:
        ConfigError: The metric raises, or returns anything but a dict of finite numbers.
    """
    n = batches.count_samples(outputs)
    parts = ((batches.take_samples(outputs, rows), take_targets(targets, rows)) for rows in _even_slices(n))
    return _accumulate(metric, parts, structure)


def evaluate_metric(
    metric: Metric,
    run: Callable[[Batch], Batch],
    dataset: "Dataset[Any]",
    *,
    structure: Structure,
    which: int | Sequence[int] | None = None,
    seed: int | None = None,
    example: Batch | None = None,
) -> dict[str, float]:
    """Return the values of a metric for a network or a file, computed in chunks so that any number of samples fits the memory.

    Args:
        run: Returns the outputs for some inputs.
        which, seed, example: See `fetch_pairs`.

    Raises:
        ConfigError: As `fetch_pairs` and `measure_metric`, or the dataset has no targets.
    """
    indices = choose_indices(dataset, which, seed)

    def compute_parts() -> Iterator[tuple[Batch, Targets]]:
        for rows in _even_slices(len(indices)):
            inputs, targets = fetch_pairs(dataset, indices[rows], example=example)
            if targets is None:
                raise ConfigError(f"{describe_dataset(dataset)}: holds no targets, {metric.place} needs them; yield (input, target)")
            yield run(inputs), targets

    return _accumulate(metric, compute_parts(), structure)


def check_metric(metric: Metric, outputs: Batch, targets: Targets, structure: Structure) -> tuple[MetricSpec, ...]:
    """Measure a metric twice on a few samples and return its description, so that a faulty one is refused before anything long runs.

    Args:
        outputs: Of the dense network for at most METRIC_BATCH samples, which should be drawn at random.

    Raises:
        ConfigError: As `measure_metric`; or the metric returns other values for the same input, or `higher_is_better` names another one.
    """
    rows = slice(METRIC_BATCH)
    outputs, targets = batches.take_samples(outputs, rows), take_targets(targets, rows)
    first, second = (measure_metric(metric, outputs, targets, structure) for _ in range(2))
    for name, value in first.items():
        if not math.isclose(value, second.get(name, math.nan), rel_tol=REPEATABLE, abs_tol=REPEATABLE):
            again = f"{second[name]:g}" if name in second else "nothing"
            raise ConfigError(f"{metric.place}: {name} is {value:g}, then {again} for the same input; leave out what is random")
    return describe_metric(metric, first)


def describe_metric(metric: Metric, values: Mapping[str, float]) -> tuple[MetricSpec, ...]:
    """Return the description of each value of a metric; the first one is the headline.

    Args:
        values: Of the dense network, which show whether they are fractions.

    Raises:
        ConfigError: `higher_is_better` names a value that the metric does not return.
    """
    given = metric.higher_is_better
    if isinstance(given, Mapping) and (unknown := [name for name in given if name not in values]):
        found = ", ".join(values)
        raise ConfigError(f"{metric.place}: higher_is_better names {unknown[0]}, the metric returns {found}; name one of these")
    if given is None:
        known = getattr(metric.given, "higher_is_better", None)  # torchmetrics say it of their classes
        given = known if isinstance(known, bool) else {}
    specs = []
    for name, value in values.items():
        assumed = isinstance(given, Mapping) and name not in given
        higher = bool(given.get(name, _rises_with_quality(name)) if isinstance(given, Mapping) else given)
        specs.append(MetricSpec(name=name, higher_is_better=higher, is_accuracy=higher and 0 <= value <= 1, assumed=assumed))
    return tuple(specs)


def _rises_with_quality(name: str) -> bool:
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return not LOWER_IS_BETTER & set(words)


def _even_slices(n: int) -> Iterator[slice]:
    """Yield slices of about the same size, none above METRIC_BATCH: a last batch of one sample would make some metrics NaN."""
    chunks = max(1, -(-n // METRIC_BATCH))
    size = -(-n // chunks)
    return (slice(start, start + size) for start in range(0, n, size))


def _accumulate(metric: Metric, parts: Iterator[tuple[Batch, Targets]], structure: Structure) -> dict[str, float]:
    accumulator = metric.start()
    for outputs, targets in parts:
        copies = tuple(y.clone() for y in outputs)  # the metric may change them; those of inference mode could not be changed at all
        with torch.no_grad(), user_code(*split_place(metric.place), shapes_remedy=advise_shapes(outputs, targets)):
            accumulator.update(batches.restore_structure(copies, structure), targets)
    with torch.no_grad(), user_code(*split_place(metric.place)):
        found = accumulator.compute()
    return _read_values(found, metric, accumulator)


def _read_values(found: Any, metric: Metric, accumulator: Accumulator) -> dict[str, float]:
    """Return what an accumulator computed as numbers; entries of several numbers, as torchmetrics adds for each class, are left out."""
    if not isinstance(found, Mapping):
        found = {type(accumulator).__name__: found}
    values = {str(name): _read_number(value) for name, value in found.items()}
    numbers = {name: value for name, value in values.items() if value is not None}
    if not numbers:
        raise ConfigError(f"{metric.place}: computes no number; return a dict such as {{'accuracy': 0.9}}")
    _check_numbers(numbers, metric.place)
    return numbers


def _check_numbers(values: Mapping[str, float], place: str) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"{place}: {name} is {value}; return finite numbers for any batch, or an object with update() and compute()")


def _read_number(value: Any) -> float | None:
    """Return a number, or the only one of an array, as a float; None for anything else."""
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        array = torch.as_tensor(value)
        return float(array) if array.numel() == 1 and not array.is_complex() else None
    return float(value) if isinstance(value, bool | int | float) else None


def _is_accumulator(given: object) -> bool:
    return all(callable(getattr(given, name, None)) for name in ("update", "compute"))


def _copy_empty(given: Any) -> Accumulator:
    fresh: Accumulator = copy.deepcopy(given)
    if callable(reset := getattr(fresh, "reset", None)):
        reset()
    return fresh


def _call_factory(given: Callable[[], Any], place: str) -> Accumulator:
    with user_code(*split_place(place)):
        made: Accumulator = given()
    if not _is_accumulator(made):
        raise ConfigError(
            f"{place}: returns {type(made).__name__}; return an object with update() and compute(), or take (outputs, targets)"
        )
    return made


class _SampleMean:
    """Averages the dicts that a function returns for batches, with the number of samples of each as its weight."""

    def __init__(self, function: Callable[[Any, Any], Any], place: str) -> None:
        self.function = function
        self.place = place
        self.sums: dict[str, float] = {}
        self.samples = 0

    def update(self, outputs: Any, targets: Any, /) -> None:
        n = batches.count_samples(batches.flatten_structure(outputs))
        found = self.function(outputs, targets)
        if not isinstance(found, Mapping) or not found:
            raise ConfigError(f"{self.place}: returns {type(found).__name__} {found!r:.60}; return a dict such as {{'accuracy': 0.9}}")
        values = {str(name): _read_number(value) for name, value in found.items()}
        if wrong := [name for name, value in values.items() if value is None]:
            raise ConfigError(f"{self.place}: {wrong[0]} is of type {type(found[wrong[0]]).__name__}; return one number a name")
        numbers = {name: value for name, value in values.items() if value is not None}
        _check_numbers(numbers, self.place)
        if self.samples and numbers.keys() != self.sums.keys():
            raise ConfigError(f"{self.place}: returns {', '.join(numbers)}, before {', '.join(self.sums)}; return the same names always")
        self.sums = {name: self.sums.get(name, 0.0) + n * value for name, value in numbers.items()}
        self.samples += n

    def compute(self) -> dict[str, float]:
        return {name: total / self.samples for name, total in self.sums.items()}
