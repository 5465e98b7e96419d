"""The command that looks into a model file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from edgecompress.cli import parameters as p
from edgecompress.cli.numbers import rank, size
from edgecompress.cli.session import console
from edgecompress.cli.tables import table
from edgecompress.records import Inspection, TensorSpec, to_json

LABELS: Final = 5  # that are shown


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .tflite, .ptl, .onnx or .pte file; it needs no manifest.")],
    json: p.Json = False,
) -> None:
    """Look into a model file: ops, shapes, quantization, delegation, sizes.

    Example: edgecompress inspect examples/prebuilt/resnet20_fashion_mnist-int8-static.tflite
    """
    from edgecompress.artifacts.inspect import inspect as look

    found = look(file)
    if json:
        typer.echo(to_json(found), nl=False)
        return
    out = console()
    for line in facts(found):
        out.print(Text(line))
    for made in (tensors(found), ops(found), quantization(found), constants(found)):
        if made.row_count:
            out.print()
            out.print(made)


def facts(found: Inspection) -> Iterator[str]:
    """What is said in a line each."""
    yield f"{found.path}: {found.format}, {size(found.size_bytes)}, of which weights {size(found.weights_bytes)}"
    if found.name:
        yield f"name: {found.name}"
    if found.bytecode_version is not None:
        yield f"bytecode version: {found.bytecode_version}"
    if found.delegation is not None:
        yield f"XNNPACK: takes {found.delegation.taken} of {sum(found.ops.values())} ops in {found.delegation.partitions} partitions"
        for left in found.delegation.undelegated:
            yield f"  not {left.op} ×{left.count}: {left.reason}"
    peak = "" if found.peak_activation_bytes is None else f"{size(found.peak_activation_bytes)}: "
    yield f"activation memory: {peak}{found.peak_from}"
    if found.preprocessing is not None:
        yield f"normalisation: (x / 255 − mean) / std, mean {found.preprocessing.mean}, std {found.preprocessing.std}"
    if found.labels:
        more = ", …" if len(found.labels) > LABELS else ""
        yield f"labels: {len(found.labels)}: {', '.join(found.labels[:LABELS])}{more}"
    yield from (f"note: {note}" for note in found.notes)


def tensors(found: Inspection) -> Table:
    rows = [(end, *_tensor(spec)) for end, specs in (("input", found.inputs), ("output", found.outputs)) for spec in specs]
    return table(("", "tensor", "shape", "dtype", "layout", "quantization"), rows, left=2)


def _tensor(spec: TensorSpec) -> tuple[str, ...]:
    quantization = "–" if spec.scale is None else f"scale {spec.scale:.6g}, zero point {spec.zero_point}"
    return spec.name, rank(spec.shape), spec.dtype, spec.layout or "–", quantization


def ops(found: Inspection) -> Table:
    return table(("op", "count"), [(name, str(n)) for name, n in found.ops.items()])


def quantization(found: Inspection) -> Table:
    rows = [
        (
            q.dtype,
            "weights" if q.constant else "activations",
            str(q.per_tensor),
            str(q.per_channel),
            "–" if q.smallest_scale is None else f"{q.smallest_scale:.3g}–{q.largest_scale:.3g}",
        )
        for q in found.quantized
    ]
    return table(("quantized", "", "per tensor", "per channel", "scales"), rows, left=2)


def constants(found: Inspection) -> Table:
    rows = [(c.op, rank(c.shape), c.dtype, size(c.size_bytes), str(c.scales) if c.scales else "–") for c in found.constants]
    return table(("largest constants", "shape", "dtype", "size", "scales"), rows)


COMMANDS: Final = (inspect,)
