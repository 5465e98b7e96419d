"""Checks that run a network: on its example, on samples one by one and together, twice, and in training mode.

Each is a pure function of a probe, and a row of the table in `checks`.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from edgecompress.errors import UnsupportedError
from edgecompress.network import batches
from edgecompress.network.modes import TrainingMode
from edgecompress.network.probe import Fact, Probe, differs, find_departing_module, split_remedy


def check_run(p: Probe) -> Iterator[Fact]:
    """Find a network that does not run on its example or on real samples, or that changes what it is given."""
    if p.first.outputs is None:
        if len(p.rows[0]) == 1 or p.by_rows[0].outputs is None:  # otherwise the next row says why
            yield Fact(*split_remedy(str(p.first.error)))
    elif real := [run for run in p.alone if run.outputs is None and p.real_pair is not None]:
        yield Fact(*split_remedy(str(real[0].error)))
    elif any(run.has_changed_inputs for run in (p.first, *p.alone)):
        yield Fact("forward() changes its input in place", "compute on a copy, e.g. x = x - 1 in place of x -= 1")


def check_batch_axis(p: Probe) -> Iterator[Fact]:
    """Find an example whose first axis is no batch, and the axis that is."""
    n = len(p.rows[0])
    if all(len(x) == 1 for x in p.rows):
        return
    shapes = ", ".join(str(tuple(x.shape)) for x in p.rows)
    remedy = _advise_axis(p)
    if any(len(x) != n for x in p.rows):
        yield Fact(f"the example inputs {shapes} differ in their first axis, which is the batch", remedy)
        return
    whole, rows = p.by_rows
    if whole.outputs is None or any(row.outputs is None for row in rows):
        reason = next(run.reason for run in (whole, *rows) if run.outputs is None)
        yield Fact(f"the first axis of the example inputs {shapes} is no batch: {reason}", remedy)
    elif any(y.ndim == 0 or len(y) != n for y in whole.outputs):
        yield Fact(f"the first axis of the example inputs {shapes} is no batch: an output is {_list_shapes(whole.outputs)}", remedy)
    elif any(differs(batches.take_samples(whole.outputs, slice(i, i + 1)), row.outputs or ()) for i, row in enumerate(rows)):
        yield Fact(f"the first axis of the example inputs {shapes} is no batch: an output depends on several of its {n} entries", remedy)
    else:
        yield Fact(f"the example has {n} samples; files take one", severity="note")


def _advise_axis(p: Probe) -> str:
    axis = p.other_batch_axis
    if not axis:
        return "make the batch the first axis of every input and output, as batch_first=True does, and give an example of one sample"
    shapes = ", ".join(str(tuple(x.movedim(axis, 0).shape)) for x in p.rows)
    return (
        f"axis {axis} is the batch: build the network with batch_first=True, or let model() return a module that calls it with "
        f"x.movedim(0, {axis}), and give example inputs of shape {shapes}"
    )


def check_repeatable(p: Probe) -> Iterator[Fact]:
    """Find a network that gives other outputs in the next run on the same sample."""
    one, again = p.alone[0].outputs, p.again.outputs
    if one is None or again is None or not differs(one, again):
        return
    x = batches.take_samples(p.pair, slice(1))
    if changed := _find_changed_buffer(p.model, x):
        yield Fact(
            f"two runs on one sample in eval mode differ, and each changes the buffer {changed}",
            "write to it only where self.training is True",
        )
        return
    place = find_departing_module(p.model, lambda: p.model(*x), lambda: p.model(*x))
    where = f", first in {place}" if place else ""
    yield Fact(
        f"two runs on one sample in eval mode differ{where}; it draws random numbers",
        "draw none where self.training is False, e.g. F.dropout(x, training=self.training)",
    )


@torch.no_grad()
def _find_changed_buffer(model: nn.Module, x: batches.Batch) -> str:
    """Return the first buffer of a network that a run changes; "" for none."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    batches.call_network(model, x)
    return next((name for name, value in model.named_buffers() if name in before and not torch.equal(value, before[name])), "")


def check_batch(p: Probe) -> Iterator[Fact]:
    """Find a network that takes one sample only, or whose outputs depend on the other samples of a batch."""
    if any(run.outputs is None for run in p.alone):
        return  # drawn samples that it does not take show nothing
    if p.together.outputs is None:
        remedy = "let forward take any number of samples, e.g. reshape(len(x), …)"
        yield Fact(f"takes one sample at a time; on two it fails: {p.together.reason}", remedy)
        return
    whole = p.together.outputs
    parts = [run.outputs or () for run in p.alone]
    if any(differs(batches.take_samples(whole, slice(i, i + 1)), part) for i, part in enumerate(parts)):
        yield _explain_coupling(p)


def _explain_coupling(p: Probe) -> Fact:
    alone = batches.take_samples(p.pair, slice(1))
    place = find_departing_module(p.model, lambda: p.model(*alone), lambda: p.model(*p.pair))
    module = p.model.get_submodule(place) if place else None
    remedy = "let each output depend on its own sample alone"
    if isinstance(module, _NormBase) and module.running_mean is None and not hasattr(module, "groups"):
        place += f", a {type(module).__name__} without running statistics"
        remedy = "train it with track_running_stats=True, or use GroupNorm"
    elif isinstance(module, nn.RNNBase) and not module.batch_first:
        place += f", a {type(module).__name__} whose second axis is the batch"
        remedy = "build it with batch_first=True, or transpose in forward so that the first axis of inputs and outputs is the batch"
    where = f", first in {place}" if place else ""
    return Fact(f"two samples at once give other outputs than one by one{where}", remedy)


def check_training_run(p: Probe) -> Iterator[Fact]:
    """Find a network that fails in training mode, for another reason than the lack of targets."""
    if _is_trainable(p) and isinstance(p.training, Exception) and not isinstance(p.training, UnsupportedError):
        yield Fact(*split_remedy(str(p.training)))


def check_training_mode(p: Probe) -> Iterator[Fact]:
    """Find a network that cannot be trained on what it returns in eval mode, or only with its leaves in training mode."""
    if not _is_trainable(p):
        return
    if isinstance(p.training, TrainingMode):
        if p.training.leaves_alone:
            text = f"in training mode it {p.training.reason}: it is trained on what it returns in eval mode"
            yield Fact(text, severity="note")
    elif isinstance(p.training, UnsupportedError):
        yield Fact(*split_remedy(str(p.training)))


def _is_trainable(p: Probe) -> bool:
    return p.is_trained and not any(run.outputs is None for run in (*p.alone, p.together))


def _list_shapes(outputs: batches.Batch) -> str:
    return ", ".join(str(tuple(y.shape)) for y in outputs)
