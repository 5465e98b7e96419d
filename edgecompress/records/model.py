"""Results of the steps on the model: layers, plans, decomposition, fine-tuning."""

from __future__ import annotations

from typing import Any

from edgecompress.records.base import SCHEMA, Record
from edgecompress.records.metrics import TOP1, MetricSpec
from edgecompress.records.outputs import OutputSpec


class LayerStats(Record, frozen=True, kw_only=True):
    """Cost of one layer at batch size 1.

    Attributes:
        name: Qualified name as in `model.named_modules()`, e.g. `layer1.0.conv2`.
        kind: Class name of the module.
        weight_shape: `(out, in)` for Linear, `(out, in / groups, kh, kw)` for Conv2d.
        output_shape: Without the batch axis, `(out, h, w)` for Conv2d.
        calls: Number of calls in one forward pass; `macs` and `latency_ms` are totals over the calls.
        activation_bytes: fp32 bytes of inputs and outputs.
        latency_ms: Median eager time; None when not measured.
        irreplaceable: Why the network needs the layer as it is, e.g. since it reads its weight itself; "" where it does not.
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
    irreplaceable: str = ""


class ModelStats(Record, frozen=True, kw_only=True):
    """The layers, totals and outputs of a network.

    Attributes:
        layers: Its Linears and convolutions.
        params: All registered parameters.
        macs: MACs of the layers and of `other_macs`.
        other_macs: Weight → MACs, for weights that no layer holds; see `CheckResult.other_macs`.
        notes: How the checkpoint and the data were read, where that needs saying.
    """

    schema: int = SCHEMA
    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    layers: tuple[LayerStats, ...]
    params: int
    macs: int
    other_macs: dict[str, int] = {}
    latency_ms: float | None = None
    conditions: dict[str, str] = {}
    outputs: tuple[OutputSpec, ...] = ()
    notes: tuple[str, ...] = ()


class Budget(Record, frozen=True, kw_only=True):
    """Limits on a compressed network; each one that is not None must hold.

    Attributes:
        macs_ratio, params_ratio: After over before.
        size_mb: Size of the file, in 10⁶ bytes.
        latency_ms: Latency of one inference.
        speedup: Latency of the dense network over that of the compressed one.
        max_drop: Largest loss before fine-tuning: points of an accuracy, percent of another metric or of the worst output.
    """

    macs_ratio: float | None = None
    params_ratio: float | None = None
    size_mb: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    max_drop: float | None = None


class LayerPlan(Record, frozen=True, kw_only=True):
    """The factorization chosen for one layer.

    Attributes:
        loss_increase: Predicted rise of the distillation loss when this layer alone is replaced.
        latency_ms_before, latency_ms: Latency of all calls of the layer, measured on the plan's device; None without a device.
        scheme: Scheme of this layer in integer files; "" for that of the file.
        alternatives: Why other forms lost, in words.
        options: Options of the method that differ from its defaults.
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
        """The method with its options, without the rank."""
        return " ".join((self.method, *(f"{name}={value}" for name, value in self.options.items())))


class SkippedLayer(Record, frozen=True, kw_only=True):
    """A layer that stays dense, and the reason."""

    layer: str
    macs: int
    reason: str
    latency_ms: float | None = None
    scheme: str = ""


class CompressionPlan(Record, frozen=True, kw_only=True):
    """The factorization and rank of each layer, and the reason for each layer that stays dense.

    Attributes:
        budget: The limits that were asked for; the plan reaches `macs / macs_before` and so on.
        scheme, measured_on: Scheme of the files whose latencies were measured, and device, runtime and threads; "" without latencies.
        latency_ms_before, latency_ms: Latency of the whole network: dense as measured, planned as predicted.
        outputs: The kinds of outputs by which losses were measured.
        refusal: Why the budget was not spent, where the network would not survive it; "" where it was spent, or layers ended it.
        notes: Remarks of the planner; `refusal` is the last one.
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
    outputs: tuple[OutputSpec, ...] = ()
    refusal: str = ""

    @property
    def schemes(self) -> dict[str, str]:
        """Qualified name → scheme of the layers that differ from the scheme of a file."""
        chosen, dense = ({each.layer: each.scheme for each in self.layers}, {each.layer: each.scheme for each in self.skipped})
        return {layer: scheme for layer, scheme in {**chosen, **dense}.items() if scheme}


class DecomposeResult(Record, frozen=True, kw_only=True):
    """The errors and costs of the computed factors, which the plan predicted.

    Attributes:
        relative_errors: Layer → ‖W − Ŵ‖ / ‖W‖.
        notes: Layers that were fitted less well than asked for, e.g. where an iteration did not converge.
    """

    schema: int = SCHEMA
    relative_errors: dict[str, float]
    mean_relative_error: float
    params: int
    macs: int
    notes: tuple[str, ...] = ()


class Epoch(Record, frozen=True, kw_only=True):
    """One epoch of training; epoch 0 is the network before training.

    Attributes:
        loss: Mean over the epoch's batches; None for epoch 0 (0 in records of older versions).
        top1, metrics: On the evaluation data, which choose nothing; None and {} where nothing was scored.
        score, divergence: The metric, and the divergence from the dense network, on validation samples, by which the best epoch is chosen;
            None where they were not measured, or outputs were not finite.
    """

    epoch: int
    loss: float | None
    top1: float | None
    learning_rate: float
    seconds: float
    metrics: dict[str, float] = {}
    score: float | None = None
    divergence: float | None = None


class FinetuneResult(Record, frozen=True, kw_only=True):
    """Fine-tuning of a network; accuracies are fractions of the evaluation set, None without labels.

    Attributes:
        epochs: The first one is the state after BatchNorm re-estimation, before training.
        metric: The headline of the metric; None without one, and in records of older versions.
        dense_metrics, before_metrics, metrics: Values of the metric on the evaluation set, the first one being the headline: of the dense
            network, before training, and of the network that is kept.
        best_epoch: The epoch that is kept; None in records of older versions, which kept the last one.
        validation: By what and on which samples the best epoch was chosen.
        learning_rate, rate_reason: At the peak of the schedule, and why it was taken; 0 and "" where nothing was trained.
        note: Remarks, e.g. that training helped nothing.
    """

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
    dense_metrics: dict[str, float] = {}
    before_metrics: dict[str, float] = {}
    metrics: dict[str, float] = {}
    best_epoch: int | None = None
    validation: str = ""
    learning_rate: float = 0.0
    rate_reason: str = ""
    metric: MetricSpec | None = None

    @property
    def headline(self) -> MetricSpec | None:
        """What the network was scored by; top-1 in records of older versions that have it, None where nothing was scored."""
        return self.metric or (TOP1 if self.dense_top1 is not None else None)

    def select_value(self, metrics: dict[str, float], top1: float | None) -> float | None:
        """Return the headline among the values of a network; `top1` is that of records of older versions."""
        spec = self.headline
        return None if spec is None else metrics.get(spec.name, top1 if spec.name == TOP1.name else None)

    @property
    def dense_value(self) -> float | None:
        """The headline of the dense network."""
        return self.select_value(self.dense_metrics, self.dense_top1)

    @property
    def start_value(self) -> float | None:
        """The headline after BatchNorm re-estimation, before training."""
        return self.select_value(self.before_metrics, self.before_top1)

    @property
    def kept_value(self) -> float | None:
        """The headline of the network that is kept."""
        return self.select_value(self.metrics, self.top1)


class QatResult(Record, frozen=True, kw_only=True):
    """Simulated int8 before quantization-aware training, as rounding alone leaves it, and after.

    Attributes:
        before_top1, top1: Accuracies; None without labels or scores.
        before_agreement, agreement: Top-1 agreement with the float network; None without scores.
        epochs: The first one is the state before training; records of older versions lack it.
        eval_samples: Number of evaluation samples, or of calibration samples where there is no evaluation data.
        best_epoch: The epoch that is kept; None in records of older versions, which kept the last one or none.
        validation: By what and on which samples the best epoch was chosen.
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
    best_epoch: int | None = None
    validation: str = ""
