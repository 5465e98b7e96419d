"""The report as frozen records; `report.json` is exactly a `Report`.

Numbers stay numbers (the template formats them). A number that is None has a reason beside it, in words for a reader.
"""

from typing import Literal

from edgecompress.records import (
    SCHEMA,
    DeviceInfo,
    Fidelity,
    LayerQuantization,
    MetricSpec,
    OutputFidelity,
    OutputSpec,
    Parity,
    PrecisionPlan,
    QatResult,
    Record,
    RefusedArtifact,
)

FigureKind = Literal["size", "speed", "int8", "metric", "kept", "macs"]


class Figure(Record, frozen=True, kw_only=True):
    """One headline number.

    Attributes:
        kind: `speed` is against the dense fp32 file, `int8` the speed against the dense file in integers; `kept` is the fraction that is
            kept of the network as given.
        name: Of the metric, of the output that is kept least, or of the dense file in integers.
        change: before / after for size (bytes) and speeds (ms), after / before for MACs; of a metric as in `ArtifactRow`. None for `kept`,
            whose `after` is the fraction.
        metric: Says how a metric's values are shown.
        reason: Why `change` is None, or a caveat.
    """

    kind: FigureKind
    name: str = ""
    metric: MetricSpec | None = None
    before: float | None = None
    after: float | None = None
    change: float | None = None
    reason: str = ""


class Verdict(Record, frozen=True, kw_only=True):
    """The result in one sentence, its numbers, and the shortfalls that a reader must not overlook.

    Attributes:
        artifact: The file of the figures, which the report recommends; "" when nothing was exported.
        proofs: Conversion and compression of this file, a sentence each.
        shortfalls: Goals that were missed, files that were refused, and figures that were not measured.
    """

    sentence: str
    artifact: str
    figures: tuple[Figure, ...]
    shortfalls: tuple[str, ...]
    proofs: tuple[str, ...] = ()


class Latency(Record, frozen=True, kw_only=True):
    """Statistics and raw values of one benchmark result, in ms; of very many inferences the values are a sample."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    max_ms: float
    samples_ms: tuple[float, ...]
    inferences: int
    load_ms: float
    first_ms: float
    warmups: int
    peak_rss_bytes: int
    noisy: tuple[str, ...] = ()


class ArtifactRow(Record, frozen=True, kw_only=True):
    """One artifact on one device, or one that was not measured.

    Attributes:
        artifact: Name of the file.
        baseline: Whether this is a dense fp32 file, which others are compared with.
        times_smaller: Size of the dense fp32 file of this format over this size.
        metric: The metric that files are judged by; None where there is none and fidelity decides.
        value, dense_value: Of the metric: of this file, and of the dense fp32 file of this format on the same data.
        change: Of the metric, a loss being negative whichever direction is better: points of an accuracy, percent of another.
        parity: Conversion: this file against the network that it was converted from.
        fidelity: Compression: how much this file keeps of the network as given.
        speed_up: Time of `speed_baseline` over the time of this file: a ratio of medians where there is no interval; None, with
            `speed_reason`, where the two are not `comparable`.
        speed_interval: The 99% confidence interval of `speed_up`, where the files were measured with `bench --compare`.
        int8_speed_up, int8_interval: The same against the dense file in integers, `int8_baseline`, of a compressed file.
        slower_than: The dense file of the same scheme, or else in fp32, that is faster than this file; "" where none is.
    """

    artifact: str
    model: str
    format: str
    scheme: str
    baseline: bool
    size_bytes: int
    times_smaller: float | None = None
    size_reason: str = ""
    metric: MetricSpec | None = None
    value: float | None = None
    dense_value: float | None = None
    change: float | None = None
    metric_reason: str = ""
    data: str = ""
    parity: Parity | None = None
    fidelity: Fidelity | None = None
    latency: Latency | None = None
    speed_up: float | None = None
    speed_interval: tuple[float, float] | None = None
    speed_baseline: str = ""
    speed_reason: str = ""
    int8_speed_up: float | None = None
    int8_interval: tuple[float, float] | None = None
    int8_baseline: str = ""
    slower_than: str = ""


class Group(Record, frozen=True, kw_only=True):
    """Results that are `comparable`, as rows.

    Attributes:
        told: Further conditions that the device told, (name, text).
    """

    session: str
    device: DeviceInfo
    runner: str
    backend: str
    threads: int
    started_at: str
    temperature_c: tuple[float | None, float | None]
    load_average: tuple[float | None, float | None]
    rows: tuple[ArtifactRow, ...]
    reason: str = ""
    cpu_mask: str = ""
    told: tuple[tuple[str, str], ...] = ()


class KeptRow(Record, frozen=True, kw_only=True):
    """How much of one output a file keeps, or the compressed network itself, whose `artifact` is ""."""

    artifact: str
    found: OutputFidelity


class OutputTable(Record, frozen=True, kw_only=True):
    """One output with its kind, and how much of it is kept."""

    spec: OutputSpec
    rows: tuple[KeptRow, ...]


class MetricRow(Record, frozen=True, kw_only=True):
    """The metrics of a file, or of a network in PyTorch.

    Attributes:
        name: Name of the file, or which network.
        change: Of the first metric, from the dense network or the dense fp32 file of the format; None for these and where it is unknown.
    """

    name: str
    values: dict[str, float]
    change: float | None = None


class CompressionProof(Record, frozen=True, kw_only=True):
    """What is left of the network as given: every output by its kind, and every metric.

    Attributes:
        metric: The metric that bounds the loss; None where fidelity does.
        max_loss: Largest loss of the metric; None where it was not kept.
        data, samples: The held-out inputs.
    """

    outputs: tuple[OutputTable, ...]
    metric: MetricSpec | None
    metrics: tuple[MetricRow, ...]
    max_loss: float | None
    data: str
    samples: int | None


class AccuracyRow(Record, frozen=True, kw_only=True):
    """One artifact on labelled inputs on a device.

    Attributes:
        value: The metric of the table on the device, and `host_value` on the host.
        change: Difference from the dense fp32 file on the same device and samples, a loss being negative: in points of an accuracy, in
            percent of another metric.
        problem: How the outputs on the device differ from those on the host; "" when they agree.
    """

    artifact: str
    value: float | None
    change: float | None
    host_value: float | None
    top5: float | None
    agreement: float | None
    problem: str = ""


class AccuracyTable(Record, frozen=True, kw_only=True):
    """Evaluations that are `comparable`: of one device, runtime, number of threads, set of samples and metric."""

    device: DeviceInfo
    backend: str
    data: str
    samples: int
    metric: MetricSpec
    rows: tuple[AccuracyRow, ...]
    reason: str = ""


class LayerRow(Record, frozen=True, kw_only=True):
    """One layer before and after compression.

    Attributes:
        method: Factorization; "" for a layer that stays dense.
        latency_ms: Latency of the dense layer on the plan's device, or eager in PyTorch without one.
        planned_ms: Latency of the chosen form on the plan's device.
        why: The planner's reason to choose the form, or to leave the layer dense.
        alternatives: Why other forms lost.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs_before: int
    macs: int
    params_before: int | None = None
    params: int | None = None
    method: str = ""
    rank: tuple[int, ...] = ()
    planned_error: float | None = None
    relative_error: float | None = None
    loss_increase: float | None = None
    latency_ms: float | None = None
    planned_ms: float | None = None
    skipped: bool = False
    why: str = ""
    alternatives: tuple[str, ...] = ()


class LayerTable(Record, frozen=True, kw_only=True):
    """All layers, with the totals of the whole network.

    Attributes:
        timed_on: Scheme, device, runtime and threads of the plan's latencies; "" without latencies.
        latency_ms_before, predicted_ms: Latency of the whole network on that device: dense as measured, planned as predicted.
        measured_ms: Latency of the published file on that device; None until it is measured.
        common_why: The reason that most decomposed layers share.
    """

    layers: tuple[LayerRow, ...]
    macs_before: int
    macs: int
    params_before: int
    params: int
    macs_ratio_asked: float | None = None
    timed_on: str = ""
    latency_ms_before: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    common_why: str = ""
    planned: bool = False
    measured: bool = False


class EpochPoint(Record, frozen=True, kw_only=True):
    """One epoch of fine-tuning, epoch 0 being the network before it; the loss is None where it was not finite, and of epoch 0.

    Attributes:
        value: Headline of the metric on the evaluation samples; None where nothing was scored.
        divergence: From the dense network on validation samples; None where it was not measured.
        kept: Whether the network is that of this epoch.
    """

    epoch: int
    loss: float | None
    value: float | None
    learning_rate: float
    seconds: float
    divergence: float | None = None
    kept: bool = False


class Training(Record, frozen=True, kw_only=True):
    """The fine-tuning of a run.

    Attributes:
        metric: The headline on the evaluation samples; None where nothing was scored.
        dense, before, after: Its values of the dense network, before training, and of the network that is kept.
        validation: By what and on which samples the kept epoch was chosen.
        rate_reason: Why the learning rate was taken.
    """

    metric: MetricSpec | None
    dense: float | None
    before: float | None
    after: float | None
    epochs: tuple[EpochPoint, ...]
    train_samples: int
    eval_samples: int
    data: str
    seed: int
    validation: str = ""
    rate_reason: str = ""


class StageRow(Record, frozen=True, kw_only=True):
    """One of several stages of planning, decomposing and fine-tuning.

    Attributes:
        layers: Number of factorized layers.
        changed: Number of those that were dense, or of a higher rank, in the stage before.
        metric: The headline on the evaluation samples; None where nothing was scored.
        before, after: Its values after BatchNorm re-estimation, before training, and of the network that is kept.
    """

    number: int
    macs: int
    params: int
    layers: int
    changed: int
    metric: MetricSpec | None
    before: float | None
    after: float | None
    epochs: int
    seconds: float


class Quantization(Record, frozen=True, kw_only=True):
    """Calibration, the int8 fit of each layer's weight, and the choice of layers for mixed precision."""

    schemes: tuple[str, ...]
    calibration_data: str
    input_range: tuple[float, float]
    layers: tuple[LayerQuantization, ...]
    precision: PrecisionPlan | None = None


class Note(Record, frozen=True, kw_only=True):
    """A remark of a step, or of the artifacts and results that share it."""

    source: str
    text: str


class Conditions(Record, frozen=True, kw_only=True):
    """Named facts of a run, a measurement or a file."""

    title: str
    entries: tuple[tuple[str, str], ...]


class MissingSection(Record, frozen=True, kw_only=True):
    """A section of the report without data, and the command that fills it."""

    section: str
    command: str


class Report(Record, frozen=True, kw_only=True):
    """All facts of the page, and no others."""

    schema: int = SCHEMA
    title: str
    created_at: str
    version: str
    verdict: Verdict
    groups: tuple[Group, ...]
    unmeasured: tuple[ArtifactRow, ...]
    accuracies: tuple[AccuracyTable, ...]
    compression: CompressionProof | None
    layers: LayerTable | None
    training: Training | None
    quantization: Quantization | None
    notes: tuple[Note, ...]
    conditions: tuple[Conditions, ...]
    missing: tuple[MissingSection, ...]
    refused: tuple[RefusedArtifact, ...] = ()
    qat: QatResult | None = None
    stages: tuple[StageRow, ...] = ()
