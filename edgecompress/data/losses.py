"""The user's loss: `loss(outputs, targets)` of a recipe, which training minimises on targets beside the distillation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgecompress.data.targets import Targets, advise_shapes
from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import describe_place, split_place, takes_arguments, user_code
from edgecompress.network.batches import Batch, Structure, restore_structure


@dataclass(frozen=True)
class Loss:
    """A loss of the user: called with the outputs of a batch in the structure that the network returns, and the batch's targets.

    Attributes:
        place: Begins the messages about it, e.g. `recipe.py:12: loss()`.
    """

    function: Callable[[Any, Any], Any]
    place: str

    def __call__(self, outputs: Batch, targets: Targets, structure: Structure) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            ConfigError: The function raises, or returns anything but one number as a tensor.
        """
        with user_code(*split_place(self.place), shapes_remedy=advise_shapes(outputs, targets)):
            value = self.function(restore_structure(outputs, structure), targets)
        if not isinstance(value, Tensor):
            raise ConfigError(f"{self.place}: returns {type(value).__name__}; return a scalar tensor, computed from the outputs")
        if value.numel() != 1:
            raise ConfigError(f"{self.place}: returns a tensor of shape {tuple(value.shape)}; return a scalar, e.g. its mean()")
        return value.reshape(())


def make_loss(given: Any, *, source: str = "") -> Loss:
    """Return the loss that the user gives, a function of outputs and targets, e.g. a module of `torch.nn`.

    Raises:
        ConfigError: The user gives something else.
    """
    place = describe_place(given, "loss", source=source)
    if isinstance(given, type) or not takes_arguments(given, 2):
        raise ConfigError(f"{place}: is no function of two arguments; define loss(outputs, targets)")
    return Loss(given, place)


def check_loss(loss: Loss, outputs: Batch, targets: Targets, structure: Structure) -> float:
    """Compute a loss and its gradient on a few samples, so that a faulty one is refused before anything long runs; return the loss.

    Args:
        outputs: Of the network, computed with or without gradients.

    Raises:
        ConfigError: As `Loss`; or the loss is NaN or infinite, or has no finite gradient that is not zero.
    """
    leaves = tuple(y.detach().clone().requires_grad_(y.is_floating_point()) for y in outputs)
    learned = [y for y in leaves if y.requires_grad]
    with torch.enable_grad():
        value = loss(tuple(y * 1 if y.requires_grad else y for y in leaves), targets, structure)  # × 1: a leaf may not be changed in place
        if not bool(value.isfinite()):
            raise ConfigError(f"{loss.place}: is {float(value.detach())} for {len(leaves[0])} samples; return a finite number")
        missing = f"{loss.place}: has no gradient; compute it from the outputs by operations of torch that have one (no argmax, no item())"
        if not value.requires_grad:
            raise ConfigError(missing)
        with user_code(*split_place(loss.place)):
            found = [g for g in torch.autograd.grad(value, learned, allow_unused=True) if g is not None]
    if not all(bool(g.isfinite().all()) for g in found):
        raise ConfigError(f"{loss.place}: its gradient holds NaN or infinity; keep it away from log(0), sqrt(0) and 0 / 0")
    if float(value.detach()) != 0 and not any(bool(g.any()) for g in found):
        raise ConfigError(missing)
    return float(value.detach())
