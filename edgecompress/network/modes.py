"""Training mode for networks that return other outputs in it, e.g. with auxiliary heads, or ask for targets."""

import copy
import re
from typing import Final, NamedTuple

import torch
from torch import nn

from edgecompress.errors import UnsupportedError
from edgecompress.faults.user_code import UserCodeError
from edgecompress.network import batches
from edgecompress.network.batches import Batch

# What Python and people say where a network in training mode is called without the targets that it computes its losses from.
ASKS_FOR_TARGETS: Final = re.compile(r"NoneType|\bnone\b|missing \d+ required|target|label|annotation|ground.?truth", re.IGNORECASE)


class TrainingMode(NamedTuple):
    """How a network is put into training mode.

    Attributes:
        leaves_alone: Whether only its modules without children are, so that it returns what it returns in eval mode.
        reason: Why, as the end of a sentence about the network in training mode; "" where the whole network is.
    """

    leaves_alone: bool
    reason: str = ""


def train_leaves(model: nn.Module) -> None:
    """Put modules without children (BatchNorm, dropout) into training mode, in place, and the modules that hold them into eval mode."""
    for module in model.modules():
        module.training = next(module.children(), None) is None


def choose_training_mode(model: nn.Module, inputs: Batch) -> TrainingMode:
    """Return the mode in which a network can be trained on what it returns in eval mode; the network is left as it was.

    Args:
        inputs: At least two samples.

    Raises:
        UnsupportedError: Even with its leaves alone in training mode the network returns other outputs, or none has a gradient.
        UserCodeError: The network fails in training mode, for another reason than the lack of targets.
    """
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # frozen ones are trained in a copy too
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        with torch.no_grad():
            wanted = batches.run_model(model.eval(), inputs)
        reason = _find_departure(model.train(), inputs, wanted)
        if not reason:
            return TrainingMode(leaves_alone=False)
        train_leaves(model)
        if other := _find_departure(model, inputs, wanted):
            raise UnsupportedError(f"fine-tuning: the network {other} in training mode; let forward return those of eval mode")
    return TrainingMode(leaves_alone=True, reason=reason)


def _find_departure(model: nn.Module, inputs: Batch, wanted: Batch) -> str:
    """Return what a network in its present mode does in place of returning outputs like some others; "" where it returns them."""
    try:
        outputs = batches.run_model(model, inputs)
    except UnsupportedError:  # losses, or a dict of anything
        return "returns other outputs"
    except UserCodeError as error:
        if isinstance(error.__cause__, AssertionError) or ASKS_FOR_TARGETS.search(str(error.__cause__)):
            return f"asks for targets ({type(error.__cause__).__name__}) and returns no outputs"
        raise
    if not batches.has_same_shapes(outputs, wanted):
        return "returns other outputs"
    if not any(y.is_floating_point() for y in outputs):
        remedy = "return the scores that they come from, or give --epochs 0"
        raise UnsupportedError(f"fine-tuning: all outputs are integers, which have no gradients; {remedy}")
    if any(x.requires_grad for x in model.parameters()) and not any(y.requires_grad for y in outputs):
        raise UnsupportedError("fine-tuning: no output has a gradient; leave torch.no_grad(), inference_mode() and detach() out of forward")
    return ""
