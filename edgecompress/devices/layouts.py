"""Convert tensors between the layout of a model (NCHW) and the layouts of its artifact."""

from collections.abc import Sequence

import numpy as np
import torch

from edgecompress.errors import ParityError
from edgecompress.network.batches import Batch
from edgecompress.records import TensorSpec


def to_artifact_layout(batch: Batch, specs: tuple[TensorSpec, ...]) -> list[np.ndarray]:
    """Return the inputs of a model in the layouts of its artifact's inputs."""
    moved = (x.permute(0, 2, 3, 1) if spec.layout == "NHWC" else x for x, spec in zip(batch, specs, strict=True))
    return [np.ascontiguousarray(x.numpy()) for x in moved]


def to_model_layout(arrays: Sequence[np.ndarray], specs: tuple[TensorSpec, ...]) -> Batch:
    """Return the outputs of an artifact in the layouts of the model; without specs no output is taken for an image."""
    if specs and len(arrays) != len(specs):
        raise ParityError(f"{len(arrays)} outputs, the converter told of {len(specs)}; export again")
    layouts = [spec.layout for spec in specs] or [""] * len(arrays)
    tensors = (torch.from_numpy(np.array(y)) for y in arrays)
    return tuple(y.permute(0, 3, 1, 2) if layout == "NHWC" else y for y, layout in zip(tensors, layouts, strict=True))
