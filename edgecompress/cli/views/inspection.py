"""Views of a model file that was inspected."""

from collections.abc import Iterator
from typing import Final

from rich.table import Table

from edgecompress.cli.views.tables import make_table
from edgecompress.records import Inspection, TensorSpec
from edgecompress.reporting.numbers import UNKNOWN, format_shape, format_significant, format_size

MAX_LABELS: Final = 5  # enough to recognize a list of labels


def describe_file(found: Inspection) -> Iterator[str]:
    """Yield a line for each property of a model file."""
    yield f"{found.path}: {found.format}, {format_size(found.size_bytes)}, of which weights {format_size(found.weights_bytes)}"
    if found.name:
        yield f"name: {found.name}"
    if found.bytecode_version is not None:
        yield f"bytecode version: {found.bytecode_version}"
    if found.delegation is not None:
        yield f"XNNPACK: takes {found.delegation.taken} of {sum(found.ops.values())} ops in {found.delegation.partitions} partitions"
        for left in found.delegation.undelegated:
            yield f"  not {left.op} ×{left.count}: {left.reason}"
    peak = "" if found.peak_activation_bytes is None else f"{format_size(found.peak_activation_bytes)}: "
    yield f"activation memory: {peak}{found.peak_from}"
    if found.preprocessing is not None:
        yield f"normalisation: (x / 255 − mean) / std, mean {found.preprocessing.mean}, std {found.preprocessing.std}"
    if found.labels:
        more = ", …" if len(found.labels) > MAX_LABELS else ""
        yield f"labels: {len(found.labels)}: {', '.join(found.labels[:MAX_LABELS])}{more}"
    yield from (f"note: {note}" for note in found.notes)


def tabulate_tensors(found: Inspection) -> Table:
    """Return the inputs and outputs."""
    rows = [(end, *_describe_tensor(spec)) for end, specs in (("input", found.inputs), ("output", found.outputs)) for spec in specs]
    return make_table(("", "tensor", "shape", "dtype", "layout", "quantization"), rows, text_columns=2)


def _describe_tensor(spec: TensorSpec) -> tuple[str, ...]:
    quantization = UNKNOWN if spec.scale is None else f"scale {spec.scale:.6g}, zero point {spec.zero_point}"
    return spec.name, format_shape(spec.shape), spec.dtype, spec.layout or UNKNOWN, quantization


def tabulate_ops(found: Inspection) -> Table:
    """Return how often each op occurs."""
    return make_table(("op", "count"), [(name, str(n)) for name, n in found.ops.items()])


def tabulate_quantization(found: Inspection) -> Table:
    """Return the number of quantized tensors of each type."""
    rows = [
        (
            q.dtype,
            "weights" if q.constant else "activations",
            str(q.per_tensor),
            str(q.per_channel),
            UNKNOWN if q.smallest_scale is None else f"{format_significant(q.smallest_scale)}–{format_significant(q.largest_scale)}",
        )
        for q in found.quantized
    ]
    return make_table(("quantized", "", "per tensor", "per channel", "scales"), rows, text_columns=2)


def tabulate_constants(found: Inspection) -> Table:
    """Return the largest constants with their sizes."""
    rows = [
        (c.op, format_shape(c.shape), c.dtype, format_size(c.size_bytes), str(c.scales) if c.scales else UNKNOWN) for c in found.constants
    ]
    return make_table(("largest constants", "shape", "dtype", "size", "scales"), rows)
