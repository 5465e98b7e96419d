"""Compress trained PyTorch networks for phones and small boards.

The public functions are imported when first used, so that `import edgecompress` is quick and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.api import export, profile
    from edgecompress.artifacts.inspect import inspect
    from edgecompress.artifacts.verify import verify
    from edgecompress.devices import list_devices, open_device
    from edgecompress.devices.bench import bench
    from edgecompress.devices.evaluate import evaluate
    from edgecompress.factorizations.decompose import decompose
    from edgecompress.network.analyze import analyze
    from edgecompress.planning.plan import plan
    from edgecompress.quantization.quantize import quantize
    from edgecompress.records import Artifact, BenchmarkResult, CompressionPlan, ModelStats, OutputSpec, Preprocessing
    from edgecompress.records.evaluation import Evaluation
    from edgecompress.records.run_records import RunRecords
    from edgecompress.recovery.finetune import finetune
    from edgecompress.recovery.qat import qat
    from edgecompress.reporting.report import report
    from edgecompress.studies.study import search

__all__ = [
    "Artifact",
    "BenchmarkResult",
    "CompressionPlan",
    "Evaluation",
    "ModelStats",
    "OutputSpec",
    "Preprocessing",
    "RunRecords",
    "analyze",
    "bench",
    "decompose",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "list_devices",
    "open_device",
    "plan",
    "profile",
    "qat",
    "quantize",
    "report",
    "search",
    "verify",
]
__version__ = "0.1.0"

_HOME = {
    "Evaluation": "records.evaluation",
    "RunRecords": "records.run_records",
    "analyze": "network.analyze",
    "bench": "devices.bench",
    "decompose": "factorizations.decompose",
    "evaluate": "devices.evaluate",
    "export": "api",
    "finetune": "recovery.finetune",
    "inspect": "artifacts.inspect",
    "list_devices": "devices",
    "open_device": "devices",
    "plan": "planning.plan",
    "profile": "api",
    "qat": "recovery.qat",
    "quantize": "quantization.quantize",
    "report": "reporting.report",
    "search": "studies.study",
    "verify": "artifacts.verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgecompress' has no attribute {name!r}")
    return getattr(import_module(f"edgecompress.{_HOME.get(name, 'records')}"), name)
