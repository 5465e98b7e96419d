"""Judge a compressed network, or a file of it, against the dense network.

This is the proof of compression; the gate's is that of conversion.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import msgspec

from edgecompress.data.metrics import Metric, describe_metric, measure_metric
from edgecompress.data.targets import Targets
from edgecompress.network.batches import Batch, Structure
from edgecompress.network.fidelity import describe_loss, measure_fidelity
from edgecompress.records import Record
from edgecompress.records.metrics import MetricSpec, metric_loss
from edgecompress.records.outputs import Fidelity, OutputSpec

MAX_LOSS: Final = 2.0  # points of an accuracy, percent of another metric: int8 of a sound network loses less than one


class DenseComparison(Record, frozen=True, kw_only=True):
    """How a network or a file compares with the dense network: fidelity of every output, and the values of the metrics."""

    fidelity: Fidelity
    metrics: dict[str, float] = {}


@dataclass(frozen=True)
class Judge:
    """Compares outputs on held-out inputs with those of the dense network, and with targets where there is a metric.

    Attributes:
        specs: The kinds of the outputs.
        dense: The dense network's outputs on the inputs.
        metric: Bounds the loss, by its headline; None leaves it to the fidelity.
        targets: Of the same inputs; None without a metric.
        structure: That of the outputs which the network returns.
        max_loss: Largest loss of the metric, in points of an accuracy or percent of another metric; None for MAX_LOSS.
        min_fidelity: The least that every output keeps that no metric measures; None for the bounds of the kinds.
    """

    specs: tuple[OutputSpec, ...]
    dense: Batch
    metric: Metric | None = None
    targets: Targets | None = None
    structure: Structure | None = None
    max_loss: float | None = None
    min_fidelity: float | None = None

    @cached_property
    def dense_metrics(self) -> dict[str, float]:
        """Values of the metrics of the dense network; empty without a metric."""
        return self._measure_metrics(self.dense)

    @cached_property
    def headline(self) -> MetricSpec | None:
        """The metric that bounds the loss."""
        return describe_metric(self.metric, self.dense_metrics)[0] if self.metric is not None and self.dense_metrics else None

    @property
    def loss_limit(self) -> float:
        return MAX_LOSS if self.max_loss is None else self.max_loss

    def judge(self, outputs: Batch) -> DenseComparison:
        """Compare the outputs of a network or a file with the dense network's.

        Raises:
            ParityError: The outputs have other shapes than the dense network's.
            ConfigError: The user's metric fails.
        """
        fidelity = measure_fidelity(outputs, self.dense, self.specs, min_kept=self.min_fidelity)
        return DenseComparison(fidelity=fidelity, metrics=self._measure_metrics(outputs))

    def loss(self, outputs: Batch) -> float:
        """Return what is lost: points of an accuracy, percent of another metric, or without a metric percent of the worst output."""
        found = self.judge(outputs)
        if self.headline is not None:
            return metric_loss(self.headline, self.dense_metrics, found.metrics)
        worst = found.fidelity.worst
        return 0.0 if worst is None else 100 * (1 - worst.kept)

    def quality(self, found: DenseComparison) -> float:
        """Return one number by which networks are ranked, 1 being the best: an accuracy itself, else the fraction that is kept."""
        if self.headline is None:
            return found.fidelity.worst.kept if found.fidelity.worst else 1.0
        if self.headline.is_accuracy:
            return found.metrics[self.headline.name]
        return 1 - metric_loss(self.headline, self.dense_metrics, found.metrics) / 100

    def describe_shortfall(self, found: DenseComparison) -> str:
        """Return why a network must not be published as good, with the numbers and the bound; "" where it keeps the bound."""
        return "; ".join(filter(None, (self.describe_metric_shortfall(found), describe_loss(self._select_unmeasured(found.fidelity)))))

    def allows_noise(self, outputs: Batch) -> bool:
        """Whether the user's metric, which sees every output, allows the loss of these; where none does, noise has a limit of its own."""
        if self.metric is None or self.metric.output is not None:
            return False
        return not self.describe_shortfall(self.judge(outputs))

    def describe_metric_shortfall(self, found: DenseComparison) -> str:
        """Return how much of the metric is lost where that is too much; "" otherwise."""
        if self.headline is None:
            return ""
        if metric_loss(self.headline, self.dense_metrics, found.metrics) <= self.loss_limit:
            return ""
        return f"{describe_metric_loss(self.headline, self.dense_metrics, found.metrics)}; at most {self.loss_limit:g} may be lost"

    def name_bound(self, found: DenseComparison) -> str:
        """Return the option of the bound that a network is beyond."""
        return "--max-loss" if self.describe_metric_shortfall(found) else "--min-fidelity"

    def _select_unmeasured(self, fidelity: Fidelity) -> Fidelity:
        """Return the fidelity of the outputs that the metric does not see: all without one, none where the user's metric gets all."""
        if self.headline is None or self.metric is None:
            return fidelity
        measured = {spec.name for spec in self.specs} if self.metric.output is None else {self.specs[self.metric.output].name}
        return msgspec.structs.replace(fidelity, outputs=tuple(each for each in fidelity.outputs if each.name not in measured))

    def _measure_metrics(self, outputs: Batch) -> dict[str, float]:
        if self.metric is None or self.targets is None:
            return {}
        assert self.structure is not None
        return measure_metric(self.metric, outputs, self.targets, self.structure)


def describe_metric_loss(spec: MetricSpec, dense: dict[str, float], found: dict[str, float]) -> str:
    """Return e.g. `top-1 went from 94.3% to 91.0% (3.3 points lost)` or `mae went from 2.1 to 2.6 (23.8% worse)`."""
    before, after, lost = dense[spec.name], found[spec.name], metric_loss(spec, dense, found)
    if spec.is_accuracy:
        return f"{spec.name} went from {before:.2%} to {after:.2%} ({lost:.2f} points lost)"
    return f"{spec.name} went from {before:.4g} to {after:.4g} ({lost:.1f}% worse)"
