"""What a finished step says in one line."""

from collections.abc import Callable
from typing import Any, Final

from edgecompress.cli.numbers import count, percent
from edgecompress.records import CompressionPlan, DecomposeResult, ExportResult, FinetuneResult, ModelStats, QatResult, QuantizeResult


def _analyze(stats: ModelStats) -> str:
    return f"{count(stats.params)} params, {count(stats.macs)} MACs, {len(stats.layers)} layers"


def _plan(plan: CompressionPlan) -> str:
    ratio = plan.macs / max(1, plan.macs_before)
    faster = f", {plan.latency_ms_before / plan.latency_ms:.2f}× as fast predicted" if plan.latency_ms and plan.latency_ms_before else ""
    note = f"; {plan.notes[-1]}" if plan.notes else ""
    return f"macs {ratio:.3f}{faster}, {len(plan.layers)} layers factorized, {len(plan.skipped)} left dense{note}"


def _decompose(result: DecomposeResult) -> str:
    return f"mean relative error {result.mean_relative_error:.3f}" if result.relative_errors else "nothing to decompose"


def _finetune(result: FinetuneResult) -> str:
    if result.top1 is None:
        return f"{len(result.epochs) - 1} epochs, no labels to score on"
    steps = f"top-1 {percent(result.before_top1)} → {percent(result.top1)} (dense {percent(result.dense_top1)})"
    return f"{steps}, {len(result.epochs) - 1} epochs"


def _quantize(result: QuantizeResult) -> str:
    samples = max((spec.calibration_samples for spec in result.specs), default=0)
    kept = f"; {len(result.precision.schemes)} layers in other schemes" if result.precision else ""
    return f"{', '.join(spec.scheme for spec in result.specs)}; {samples} calibration inputs{kept}"


def _qat(result: QatResult) -> str:
    top1 = f"top-1 {percent(result.before_top1)} → {percent(result.top1)}, " if result.top1 is not None else ""
    agrees = f"agrees {percent(result.before_agreement)} → {percent(result.agreement)}, " if result.agreement is not None else ""
    note = f"; {result.note}" if result.note else ""
    return f"simulated {result.scheme}: {top1}{agrees}{result.before_sqnr_db:.1f} → {result.sqnr_db:.1f} dB{note}"


def _export(result: ExportResult) -> str:
    refused = f", {len(result.refused)} refused" if result.refused else ""
    return f"{len(result.artifacts)} artifacts agree with the model{refused}"


STEP_LINES: Final[dict[str, Callable[[Any], str]]] = {
    "analyze": _analyze,
    "plan": _plan,
    "decompose": _decompose,
    "finetune": _finetune,
    "quantize": _quantize,
    "qat": _qat,
    "export": _export,
}
