"""What a finished step says in one line."""

from collections.abc import Callable
from typing import Any, Final

from edgecompress.cli.numbers import count, percent
from edgecompress.records import CompressionPlan, DecomposeResult, ExportResult, FinetuneResult, ModelStats, QuantizeResult


def _analyze(stats: ModelStats) -> str:
    return f"{count(stats.params)} params, {count(stats.macs)} MACs, {len(stats.layers)} layers"


def _plan(plan: CompressionPlan) -> str:
    ratio = plan.macs / max(1, plan.macs_before)
    note = f"; {plan.notes[-1]}" if plan.notes else ""
    return f"macs {ratio:.3f}, {len(plan.layers)} layers factorized, {len(plan.skipped)} left dense{note}"


def _decompose(result: DecomposeResult) -> str:
    return f"mean relative error {result.mean_relative_error:.3f}" if result.relative_errors else "nothing to decompose"


def _finetune(result: FinetuneResult) -> str:
    if result.top1 is None:
        return f"{len(result.epochs) - 1} epochs, no labels to score on"
    steps = f"top-1 {percent(result.before_top1)} → {percent(result.top1)} (dense {percent(result.dense_top1)})"
    return f"{steps}, {len(result.epochs) - 1} epochs"


def _quantize(result: QuantizeResult) -> str:
    samples = max((spec.calibration_samples for spec in result.specs), default=0)
    return f"{', '.join(spec.scheme for spec in result.specs)}; {samples} calibration inputs"


def _export(result: ExportResult) -> str:
    refused = f", {len(result.refused)} refused" if result.refused else ""
    return f"{len(result.artifacts)} artifacts agree with the model{refused}"


STEP_LINES: Final[dict[str, Callable[[Any], str]]] = {
    "analyze": _analyze,
    "plan": _plan,
    "decompose": _decompose,
    "finetune": _finetune,
    "quantize": _quantize,
    "export": _export,
}
