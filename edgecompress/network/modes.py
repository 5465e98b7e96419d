"""Training mode for networks that return other outputs in it, e.g. with auxiliary heads."""

import copy

import torch
from torch import nn

from edgecompress.errors import UnsupportedError
from edgecompress.network import batches
from edgecompress.network.batches import Batch


def train_leaves(model: nn.Module) -> None:
    """Put modules without children (BatchNorm, dropout) into training mode, in place, and the modules that hold them into eval mode."""
    for module in model.modules():
        module.training = next(module.children(), None) is None


def needs_leaves(model: nn.Module, inputs: Batch) -> bool:
    """Whether a network in training mode returns other outputs than in eval mode, so that only its leaves can be trained in that mode.

    Args:
        inputs: At least two samples.

    Raises:
        UnsupportedError: Even with its leaves alone in training mode the network returns other outputs.
    """
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        wanted = batches.run_model(model.eval(), inputs)
        if _returns_like(model.train(), inputs, wanted):
            return False
        train_leaves(model)
        if not _returns_like(model, inputs, wanted):
            raise UnsupportedError("fine-tuning: the network returns other outputs in training mode; let forward return those of eval mode")
    return True


def _returns_like(model: nn.Module, inputs: Batch, wanted: Batch) -> bool:
    try:
        return batches.has_same_shapes(batches.run_model(model, inputs), wanted)
    except Exception:  # in training mode some networks ask for targets, and return losses
        return False
