"""Compress trained PyTorch networks for phones and small boards.

The public functions are imported when first used, so that `import edgecompress` is quick and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.accuracy import Evaluation
    from edgecompress.api import export, profile
    from edgecompress.devices import list_devices, open_device
    from edgecompress.records import Artifact, BenchmarkResult, CompressionPlan, ModelStats, Preprocessing
    from edgecompress.searching.study import search
    from edgecompress.verbs.analyze import analyze
    from edgecompress.verbs.bench import bench
    from edgecompress.verbs.decompose import decompose
    from edgecompress.verbs.evaluate import evaluate
    from edgecompress.verbs.finetune import finetune
    from edgecompress.verbs.inspect import inspect
    from edgecompress.verbs.plan import plan
    from edgecompress.verbs.qat import qat
    from edgecompress.verbs.quantize import quantize
    from edgecompress.verbs.report import report
    from edgecompress.verbs.verify import verify

__all__ = [
    "Artifact",
    "BenchmarkResult",
    "CompressionPlan",
    "Evaluation",
    "ModelStats",
    "Preprocessing",
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

_VERBS = {"analyze", "bench", "decompose", "evaluate", "finetune", "inspect", "plan", "qat", "quantize", "report", "verify"}
_HOME = {
    "Evaluation": "accuracy",
    "export": "api",
    "list_devices": "devices",
    "open_device": "devices",
    "profile": "api",
    "search": "searching.study",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgecompress' has no attribute {name!r}")
    home = f"verbs.{name}" if name in _VERBS else _HOME.get(name, "records")
    return getattr(import_module(f"edgecompress.{home}"), name)
