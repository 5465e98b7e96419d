"""Frozen records that travel between steps; each is also a JSON file. Neither torch nor typer is imported here.

A record has no behaviour beyond derived numbers. Units stand in the names; ratios are after / before, in (0, 1]; 1 MAC is one fused
multiply-add at batch size 1. `from_json` refuses unknown keys, so a misspelt or newer file is an error and not a silent default.
"""

from edgecompress.records.artifact import (
    Artifact,
    ConversionReply,
    ConversionRequest,
    Departure,
    ExportResult,
    LayerPrecision,
    LayerQuantization,
    Parity,
    PrecisionPlan,
    Preprocessing,
    QuantizeResult,
    QuantSpec,
    RefusedArtifact,
    TensorSpec,
    Undelegated,
)
from edgecompress.records.base import (
    SCHEMA,
    Record,
    from_json,
    read,
    to_json,
)
from edgecompress.records.inspection import (
    Constant,
    Delegation,
    Inspection,
    InspectionRequest,
    Quantized,
)
from edgecompress.records.measurement import (
    BenchmarkResult,
    DeviceInfo,
    Measuring,
    OpTime,
)
from edgecompress.records.model import (
    CompressionPlan,
    DecomposeResult,
    Epoch,
    FinetuneResult,
    LayerPlan,
    LayerStats,
    ModelStats,
    QatResult,
    SkippedLayer,
)
from edgecompress.records.search import (
    Axis,
    FailedTrial,
    Score,
    SearchPoint,
    SearchResult,
    SearchSpec,
)

__all__ = [
    "SCHEMA",
    "Artifact",
    "Axis",
    "BenchmarkResult",
    "CompressionPlan",
    "Constant",
    "ConversionReply",
    "ConversionRequest",
    "DecomposeResult",
    "Delegation",
    "Departure",
    "DeviceInfo",
    "Epoch",
    "ExportResult",
    "FailedTrial",
    "FinetuneResult",
    "Inspection",
    "InspectionRequest",
    "LayerPlan",
    "LayerPrecision",
    "LayerQuantization",
    "LayerStats",
    "Measuring",
    "ModelStats",
    "OpTime",
    "Parity",
    "PrecisionPlan",
    "Preprocessing",
    "QatResult",
    "QuantSpec",
    "QuantizeResult",
    "Quantized",
    "Record",
    "RefusedArtifact",
    "Score",
    "SearchPoint",
    "SearchResult",
    "SearchSpec",
    "SkippedLayer",
    "TensorSpec",
    "Undelegated",
    "from_json",
    "read",
    "to_json",
]
