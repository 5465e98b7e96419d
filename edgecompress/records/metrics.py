"""Metrics by which networks and files are judged against targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgecompress.records.base import Record


class MetricSpec(Record, frozen=True, kw_only=True):
    """A metric: its name, which direction is better, and how its values are shown.

    Attributes:
        name: As the metric's function returns it.
        is_accuracy: Whether its values lie within 0 … 1 and higher is better: changes are points, 0.912 → 0.902 being −1.0. The values of
            another metric are shown in its own unit, its changes in percent.
        assumed: Whether `higher_is_better` was read from the name, since the user did not say.
    """

    name: str
    higher_is_better: bool = True
    is_accuracy: bool = True
    assumed: bool = False


TOP1: Final = MetricSpec(name="top-1")


def metric_loss(spec: MetricSpec, dense: Mapping[str, float], found: Mapping[str, float]) -> float:
    """Return the loss of a metric, positive where it got worse: in points of an accuracy, in percent of the dense value of another."""
    before, after = dense[spec.name], found[spec.name]
    worse = before - after if spec.higher_is_better else after - before
    return 100 * worse if spec.is_accuracy else 100 * worse / max(abs(before), 1e-12)
