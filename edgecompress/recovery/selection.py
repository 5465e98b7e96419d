"""Choose the epoch of training that is kept: the best one by validation, the network before training included."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from edgecompress.records import Epoch
from edgecompress.records.metrics import MetricSpec
from edgecompress.recovery.schedule import learning_rate_fraction

PATIENCE: Final = 3  # epochs without a better one
SPENT: Final = 0.1  # of the peak rate: what a cosine schedule still gains below it is less than what epochs differ by


class MeasuredNetwork(Protocol):
    """A network that was measured: an epoch, or a state before it is one."""

    @property
    def score(self) -> float | None: ...
    @property
    def divergence(self) -> float | None: ...
    @property
    def metrics(self) -> dict[str, float]: ...


class Chooser(NamedTuple):
    """The rule by which one epoch is preferred to another.

    A metric goes first. Differences of an accuracy within their standard error are chance; among epochs that differ by no more, and where
    there is no metric, the smaller divergence from the dense network goes, which is measured much more precisely. Evaluation data choose
    nothing, but an epoch that is worse on them than the network before training is never kept.

    Attributes:
        metric: Of validation samples; None without any.
        samples: Number of validation samples.
        evaluated: Headline of the metric on evaluation data; None without any.
    """

    metric: MetricSpec | None
    samples: int
    evaluated: MetricSpec | None = None

    def prefers(self, new: MeasuredNetwork, best: MeasuredNetwork, seen: Sequence[MeasuredNetwork]) -> bool:
        """Whether `new` is better than `best`, the one kept of the epochs that were `seen` before; the first of these is the start."""
        if new.divergence is None or self._is_below_start(new, seen[0]):
            return False
        if best.divergence is None:
            return True
        if self.metric is not None:
            merits = [_merit(each.score, self.metric) for each in seen if not self._is_below_start(each, seen[0])]
            merit = _merit(new.score, self.metric)
            least = _lowest_equal(max(merit, *merits), self.metric, self.samples)
            if merit < least or _merit(best.score, self.metric) < least:
                return merit >= least
        return new.divergence < best.divergence

    def is_worse(self, repaired: MeasuredNetwork, before: MeasuredNetwork) -> bool:
        """Whether a repair did harm: on evaluation data where there are any, since other data may not show it, else by validation."""
        if self.evaluated is not None and repaired.metrics and before.metrics:
            return self._is_below_start(repaired, before)
        return self.prefers(before, repaired, [repaired])

    def _is_below_start(self, new: MeasuredNetwork, start: MeasuredNetwork) -> bool:
        if self.evaluated is None:
            return False
        name = self.evaluated.name
        return _merit(new.metrics.get(name), self.evaluated) < _merit(start.metrics.get(name), self.evaluated)


def is_over(epochs: Sequence[Epoch], best: int, last: int) -> bool:
    """Whether training may end before epoch `last`: nothing has improved for some epochs, and the rate is too low to change that."""
    number = epochs[-1].epoch
    return number - best >= PATIENCE and learning_rate_fraction(number / last) < SPENT


def _merit(value: float | None, spec: MetricSpec) -> float:
    """Return a metric, higher being better."""
    if value is None or math.isnan(value):
        return -math.inf
    return value if spec.higher_is_better else -value


def _lowest_equal(highest: float, spec: MetricSpec, samples: int) -> float:
    """Return the lowest merit that chance does not tell from the highest: less by one standard error of a difference.

    The variance of numbers from 0 to 1 with the mean p is at most p·(1 − p); p is estimated with one more of each (Laplace), since among a
    few samples all may be right. Of other metrics the variance is not known, and each difference counts.
    """
    if not spec.is_accuracy or not 0 <= highest <= 1:
        return highest
    p = (highest * samples + 1) / (samples + 2)
    return highest - math.sqrt(2 * p * (1 - p) / max(1, samples))
