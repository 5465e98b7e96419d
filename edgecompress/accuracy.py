"""The record of one evaluation: a file of its own beside records.py, which is long enough."""

from edgecompress.records import SCHEMA, DeviceInfo, Parity, Record


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
