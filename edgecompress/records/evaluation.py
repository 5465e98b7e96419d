"""Accuracy on a device: the options of an evaluation, and its result."""

from typing import Annotated, Final

from edgecompress.records import SCHEMA, DeviceInfo, Parity, Record
from edgecompress.records.fields import Count, Limits, Option, describe_fields
from edgecompress.records.measurement import BENCHMARK_DEFAULTS, DevicePython, DeviceRunner, RunTimeout, Threads
from edgecompress.records.metrics import TOP1, MetricSpec


class EvaluationOptions(Record, frozen=True, kw_only=True):
    data: Annotated[
        str | None,
        Option(
            "Labelled data, or a recipe with eval_data()",
            "Data of a path are preprocessed as the manifest says.",
            usual="the run's",
            metavar="DATA",
        ),
    ] = None
    samples: Annotated[Count, Option("Inputs to score on, at most", "They are drawn at random, the same ones each time.")] = 1000
    batch: Annotated[Count | None, Option("Inputs of one transfer to the device", "By default what fits 16 MiB, at most 1000.")] = None
    tolerance: Annotated[
        float | None,
        Limits(at_least=0),
        Option(
            "Allowed difference from this machine, over the range",
            "By default 1e-5 in fp32 and 1e-3 in fp16; in int8 no output may be more than one quantization step away.",
        ),
    ] = None
    threads: Threads = BENCHMARK_DEFAULTS.threads
    timeout_s: RunTimeout = BENCHMARK_DEFAULTS.timeout_s
    python: DevicePython = ""
    runner: DeviceRunner = ""


EvaluationOptions.__doc__ = describe_fields(EvaluationOptions, "How artifacts are evaluated on labelled inputs.")
EVALUATION_DEFAULTS: Final = EvaluationOptions()


class Evaluation(Record, frozen=True, kw_only=True):
    """Metrics of one artifact on a device, and agreement of its outputs with those of this machine.

    Attributes:
        data: Source of the inputs; `data_sha256` is the hash of the inputs and targets used, `samples` their number.
        classes: Number of classes that an output has scores of; 0 where none has.
        top1: Fraction of the samples classified correctly on the device, None without classes; `top5` also with fewer than 10 classes.
        host_top1: Top-1 of the same file and inputs with the runtime of this machine, `host_backend`.
        metric: The headline of another metric, the user's or mean IoU; None where top-1 is the metric.
        metrics: Values of that metric by name on the device, {} when the outputs there hold NaN; `host_metrics` are this machine's.
        host: Agreement of the device's outputs with this machine's; None when they hold NaN.
        quantization_step: Step of an int8 artifact's output; `beyond_step` counts the values that differ from this machine's by more.
        reference: Agreement of the device's outputs with the eager model's, on the inputs kept beside the artifact; None without them.
        published_top1: Top-1 in the manifest, on the evaluation data of the export.
        problem: How the device's outputs differ from this machine's; "" when they agree.
    """

    schema: int = SCHEMA
    session: str
    artifact: str
    artifact_sha256: str
    size_bytes: int
    scheme: str
    device: DeviceInfo
    runner: str
    backend: str
    host_backend: str
    threads: int
    data: str
    data_sha256: str
    samples: int
    classes: int
    top1: float | None
    top5: float | None
    host_top1: float | None
    metric: MetricSpec | None = None
    metrics: dict[str, float] = {}
    host_metrics: dict[str, float] = {}
    host: Parity | None
    quantization_step: float | None
    beyond_step: int | None
    reference: Parity | None
    published_top1: float | None
    started_at: str
    notes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def headline(self) -> MetricSpec:
        """The metric that the evaluation is about."""
        return self.metric or TOP1

    @property
    def value(self) -> float | None:
        """Value of the headline on the device; None when the outputs there hold NaN."""
        return self.metrics.get(self.metric.name) if self.metric else self.top1

    @property
    def host_value(self) -> float | None:
        """Value of the headline on this machine."""
        return self.host_metrics.get(self.metric.name) if self.metric else self.host_top1
