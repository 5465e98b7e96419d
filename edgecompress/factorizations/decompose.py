"""Apply a plan: replace layers of a copy of the model by their factors."""

import copy

from torch import nn

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.factorizations import factorize
from edgecompress.factorizations.fitting import fit_layers
from edgecompress.factorizations.parallel import FactorizationJob
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.surgery import find_tied_layers, replace_module
from edgecompress.progress import Track, track_silently
from edgecompress.records import CompressionPlan, DecomposeResult


def decompose(
    model: nn.Module, plan: CompressionPlan, *, fit: bool = True, inputs: Batch | None = None, track: Track = track_silently
) -> tuple[nn.Module, DecomposeResult]:
    """Return a copy of `model` with the planned layers factorized, and the relative errors of their weights.

    Args:
        model: The dense model; left unchanged.
        plan: The layers to factorize, with methods and ranks.
        fit: False leaves the factors unfitted, ready for `load_state_dict`; the errors are then the plan's.
        inputs: Real inputs, a tuple of tensors `(n, …)`. Data-aware methods then minimise the error of the layers' outputs on them, not of
            their weights.

    Raises:
        ConfigError: The plan names a layer or method that does not exist, or a weight is not finite.
        UnsupportedError: A method cannot factorize its layer, or the layer shares its weight with another layer.
        ToolchainError: A process that factorized layers died.
    """
    tied = find_tied_layers(model)
    jobs = []
    for step in plan.layers:
        try:
            layer = model.get_submodule(step.layer)
        except AttributeError as error:
            raise ConfigError(f"{step.layer}: the plan names it, the model has no such layer; plan again") from error
        if step.layer in tied:
            raise UnsupportedError(f"{step.layer}: its weight is shared with {tied[step.layer]}; leave it dense or give each its own")
        jobs.append(FactorizationJob(step.layer, layer, step.method, step.rank, step.options))
    errors = {step.layer: step.relative_error for step in plan.layers}
    notes: list[str] = []
    if fit:
        made = fit_layers(model, jobs, inputs=inputs if inputs is None else batches.check_batch(inputs, "inputs"), track=track)
        errors = {job.name: one.relative_error for job, one in zip(jobs, made, strict=True)}
        notes = [f"{job.name}: {one.note}" for job, one in zip(jobs, made, strict=True) if one.note]
        factors = [one.compact for one in made]
    else:
        factors = [factorize(job.layer, job.method, job.rank, name=job.name, options=job.options, fit=False) for job in jobs]
    model = copy.deepcopy(model)
    for job, compact in zip(jobs, factors, strict=True):
        replace_module(model, job.name, compact)
    mean = sum(errors.values()) / len(errors) if errors else 0.0
    result = DecomposeResult(relative_errors=errors, mean_relative_error=mean, params=plan.params, macs=plan.macs, notes=tuple(notes))
    return model, result
