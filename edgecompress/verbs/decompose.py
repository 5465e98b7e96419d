"""Apply a plan: replace layers by their factorizations in a copy of the model."""

import copy

from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import factorize, relative_error
from edgecompress.models import replace
from edgecompress.progress import Track, silent
from edgecompress.records import CompressionPlan, DecomposeResult


def decompose(model: nn.Module, plan: CompressionPlan, *, fit: bool = True, track: Track = silent) -> tuple[nn.Module, DecomposeResult]:
    """Return a copy of `model` with the planned layers factorized, and the errors measured on them.

    Args:
        model: Left untouched.
        plan: Which layers, which method, which rank.
        fit: False leaves the factors unfitted, ready for `load_state_dict`; the errors are then the plan's.

    Raises:
        ConfigError: The plan names a layer or method that is not there, or a weight is not finite.
        UnsupportedError: A method cannot take its layer.
    """
    model = copy.deepcopy(model)
    errors: dict[str, float] = {}
    for step in track(plan.layers, "factorizing", len(plan.layers)):
        try:
            layer = model.get_submodule(step.layer)
        except AttributeError as error:
            raise ConfigError(f"{step.layer}: the plan names it, the model has no such layer; plan again") from error
        compact = factorize(layer, step.method, step.rank, name=step.layer, fit=fit)
        errors[step.layer] = relative_error(layer, step.method, compact) if fit else step.relative_error
        replace(model, step.layer, compact)
    mean = sum(errors.values()) / len(errors) if errors else 0.0
    return model, DecomposeResult(relative_errors=errors, mean_relative_error=mean, params=plan.params, macs=plan.macs)
