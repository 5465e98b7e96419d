"""Accuracy on a device: how it is asked for, and what came of it."""

from edgecompress.records import SCHEMA, DeviceInfo, Parity, Record


class Scoring(Record, frozen=True, kw_only=True):
    """How artifacts are evaluated. What is "" here is taken from the inventory's entry of the device, where there is one.

    Attributes:
        data: A path to data, or a recipe (its `eval_data()`); None for those of the run that an artifact lies in.
        samples: At most so many, drawn at random, the same each time.
        batch: Inputs a transfer; by default what fits 16 MiB, at most 1000.
        tolerance: Largest difference from this machine over the output range. Default: 1e-5 for fp32, 1e-3 for fp16, and for int8 that
            no output is more than one quantization step away.
        timeout_s: For each transfer; after this the run is killed on the device.
        python: The interpreter there that has the runtime.
        runner: Path of an executable for the device that obeys the runner's protocol.
    """

    data: str | None = None
    samples: int = 1000
    batch: int | None = None
    tolerance: float | None = None
    threads: int = 1
    timeout_s: float = 600.0
    python: str = ""
    runner: str = ""


class Evaluation(Record, frozen=True, kw_only=True):
    """One artifact on labelled inputs: how often it is right on a device, and how far its outputs are from this machine's.

    Attributes:
        data: Where the inputs came from; `data_sha256` is of the inputs and labels that were used, `samples` how many.
        top1: Fraction of the samples named right on the device; `top5` where there are at least 10 classes.
        host_top1: The same file with the runtime of this machine, `host_backend`, on the same inputs.
        host: The device's outputs against this machine's; None when they hold NaN.
        quantization_step: Of an int8 artifact's output; `beyond_step` counts the values that are further than that from this machine's.
        reference: The device's outputs against the eager model's, on the inputs kept beside the artifact; None without them.
        published_top1: What the manifest says of its own evaluation data.
        problem: Why the device's outputs are not this machine's; "" when they are.
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
    top1: float
    top5: float | None
    host_top1: float
    host: Parity | None
    quantization_step: float | None
    beyond_step: int | None
    reference: Parity | None
    published_top1: float | None
    started_at: str
    notes: tuple[str, ...] = ()
    problem: str = ""
