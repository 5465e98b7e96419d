"""What the steps on the model find and decide: layers, plans, fine-tuning."""

from __future__ import annotations

from typing import Any

from edgecompress.records.base import SCHEMA, Record


class LayerStats(Record, frozen=True, kw_only=True):
    """Cost of one layer at batch size 1.

    Attributes:
        name: Qualified name as in `model.named_modules()`, e.g. `layer1.0.conv2`.
        kind: Class name of the module.
        weight_shape: `(out, in)` for Linear, `(out, in / groups, kh, kw)` for Conv2d.
        output_shape: Without the batch axis, `(out, h, w)` for Conv2d.
        calls: How often one forward pass runs it; `macs` and `latency_ms` are totals over the calls.
        activation_bytes: fp32 bytes of its inputs and outputs.
        latency_ms: Median eager time; None when not measured.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    macs: int
    calls: int
    activation_bytes: int
    latency_ms: float | None = None


class ModelStats(Record, frozen=True, kw_only=True):
    """What `analyze` found. `params` counts every parameter, `macs` only convolutions and linear layers."""

    schema: int = SCHEMA
    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    layers: tuple[LayerStats, ...]
    params: int
    macs: int
    latency_ms: float | None = None
    conditions: dict[str, str] = {}


class Budget(Record, frozen=True, kw_only=True):
    """What a compressed network may cost; all that is not None must hold.

    Attributes:
        macs_ratio, params_ratio: After over before.
        size_mb: Of the file, in 10⁶ bytes.
        latency_ms: Of one inference.
        speedup: Latency of the dense network over it.
        max_drop: Points of top-1 that may be lost before fine-tuning.
    """

    macs_ratio: float | None = None
    params_ratio: float | None = None
    size_mb: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    max_drop: float | None = None


class LayerPlan(Record, frozen=True, kw_only=True):
    """One layer's decision.

    Attributes:
        loss_increase: Predicted rise of the distillation loss when this layer alone is replaced.
        latency_ms_before, latency_ms: Of all its calls, measured on the plan's device; None without one.
        scheme: Of this layer in integer files; "" for the file's own.
        alternatives: Why other forms lost, in words.
        options: Of the method, beside its defaults.
    """

    layer: str
    method: str
    rank: tuple[int, ...]
    macs_before: int
    macs: int
    params_before: int
    params: int
    relative_error: float
    loss_increase: float
    latency_ms_before: float | None = None
    latency_ms: float | None = None
    scheme: str = ""
    why: str = ""
    alternatives: tuple[str, ...] = ()
    options: dict[str, Any] = {}

    @property
    def form(self) -> str:
        """The method, and what was chosen for it beside its rank."""
        return " ".join((self.method, *(f"{name}={value}" for name, value in self.options.items())))


class SkippedLayer(Record, frozen=True, kw_only=True):
    layer: str
    macs: int
    reason: str
    latency_ms: float | None = None
    scheme: str = ""


class CompressionPlan(Record, frozen=True, kw_only=True):
    """Which layers become which factorization, at which rank, and why the others stay dense.

    Attributes:
        budget: What was asked for; `macs / macs_before` and so on are what the plan reaches.
        scheme, measured_on: What latencies are of, and where they were measured; "" without any.
        latency_ms_before, latency_ms: Of the whole network, dense as measured and planned as predicted.
        notes: What the planner wants a reader to know, e.g. that a budget was not spent because it would hurt.
    """

    schema: int = SCHEMA
    model: str
    budget: Budget
    layers: tuple[LayerPlan, ...]
    skipped: tuple[SkippedLayer, ...]
    macs_before: int
    macs: int
    params_before: int
    params: int
    scheme: str = ""
    measured_on: str = ""
    latency_ms_before: float | None = None
    latency_ms: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def schemes(self) -> dict[str, str]:
        """The schemes of layers that differ from a file's."""
        chosen, dense = ({each.layer: each.scheme for each in self.layers}, {each.layer: each.scheme for each in self.skipped})
        return {layer: scheme for layer, scheme in {**chosen, **dense}.items() if scheme}


class DecomposeResult(Record, frozen=True, kw_only=True):
    """Measured after the factors were computed; compare with the plan's prediction.

    Attributes:
        notes: What was fitted less well than asked for, by layer, e.g. an iteration that did not converge.
    """

    schema: int = SCHEMA
    relative_errors: dict[str, float]
    mean_relative_error: float
    params: int
    macs: int
    notes: tuple[str, ...] = ()


class Epoch(Record, frozen=True, kw_only=True):
    epoch: int
    loss: float
    top1: float | None
    learning_rate: float
    seconds: float


class FinetuneResult(Record, frozen=True, kw_only=True):
    """Accuracies are fractions of the evaluation set; None without labels. `epochs[0]` is the state after BatchNorm re-estimation."""

    schema: int = SCHEMA
    dense_top1: float | None
    before_top1: float | None
    top1: float | None
    epochs: tuple[Epoch, ...]
    train_samples: int
    eval_samples: int
    data: str
    seed: int
    note: str = ""


class QatResult(Record, frozen=True, kw_only=True):
    """Simulated int8 before quantization-aware training, as rounding alone leaves it, and after.

    Attributes:
        before_top1, top1: Accuracies; None without labels or scores.
        before_agreement, agreement: Top-1 agreement with the float network; None without scores.
        eval_samples: Of evaluation data, or of calibration data where there is none.
    """

    schema: int = SCHEMA
    scheme: str
    before_top1: float | None
    top1: float | None
    before_agreement: float | None
    agreement: float | None
    before_sqnr_db: float
    sqnr_db: float
    epochs: tuple[Epoch, ...]
    train_samples: int
    eval_samples: int
    data: str
    seed: int
    note: str = ""
