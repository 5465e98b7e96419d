"""A probe of one network: a few runs of it on samples, each made once, from which checks read what the network needs.

Every run is on the processor, without gradients, and leaves the network as it was.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm

from edgecompress.errors import EdgeCompressError
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.network.counting import count_weight_macs, record_layer_costs
from edgecompress.network.modes import TrainingMode, choose_training_mode

FLOAT_TOLERANCE: Final = 1e-3  # of the largest output: kernels of other batch sizes differ by 1e-6, a coupled batch by far more
INTEGER_TOLERANCE: Final = 0.05  # fraction of integers that may differ: an argmax of two nearly equal scores does


class Fact(NamedTuple):
    """What a check found, before it is known in which row of the table the check stands."""

    text: str
    remedy: str = ""
    severity: Literal["error", "warning", "note"] = "error"


class Attempt(NamedTuple):
    """One run of a network: its outputs, or None with the error."""

    outputs: Batch | None
    error: EdgeCompressError | None = None
    has_changed_inputs: bool = False

    @property
    def reason(self) -> str:
        """The error's fact, without its remedy."""
        return split_remedy(str(self.error or ""))[0]


class SplitSamples(NamedTuple):
    """A few samples of one split of the data.

    Attributes:
        name: The split, e.g. "train data".
        inputs: Each `(n, …)`, as the dataset gives them; () where it gives none.
        error: Why they cannot be read, as a message with its remedy; "" for none.
        labels: Class indices `(n,)`; None where targets are none.
        classes: Number of classes of the output that they belong to; 0 for unknown.
    """

    name: str
    inputs: Batch = ()
    error: str = ""
    labels: Tensor | None = None
    classes: int = 0


class Probe:
    """Facts about a network that take seconds to find, each found once and only when a check asks for it.

    Args:
        model: In eval mode.
        example: One sample of each input, `(1, …)`.
        rows: The example as the user gave it, with any number of rows.
        pair: Two different samples, `(2, …)`; None draws them.
        export: Returns the network's program; it may raise any error.
        read_outputs: Reads the kinds of the outputs, and raises what is wrong with those that the user said.
        judge: Tries the user's metric and loss on a few samples, and raises what is wrong with them.
        data: Samples of each split.
        is_trained: Whether there are data to train the network on.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Batch,
        *,
        rows: Batch = (),
        pair: Batch | None = None,
        export: Callable[[], ExportedProgram] | None = None,
        read_outputs: Callable[[], object] | None = None,
        judge: Callable[[], object] | None = None,
        data: tuple[SplitSamples, ...] = (),
        is_trained: bool = True,
    ) -> None:
        self.model = model
        self.example = example
        self.rows = rows or example
        self.real_pair = pair
        self.export = export
        self.read_outputs = read_outputs
        self.judge = judge
        self.data = data
        self.is_trained = is_trained

    @cached_property
    def first(self) -> Attempt:
        """The run on the example."""
        return attempt(self.model, self.example)

    @cached_property
    def again(self) -> Attempt:
        """The run on the first of the two samples, which `alone` repeats."""
        return attempt(self.model, batches.take_samples(self.pair, slice(1)))

    @cached_property
    def pair(self) -> Batch:
        """Two different samples: the data's where there are any."""
        return draw_rows(self.example, 2) if self.real_pair is None else self.real_pair

    @cached_property
    def alone(self) -> tuple[Attempt, ...]:
        """The runs on each of two samples."""
        return tuple(attempt(self.model, x) for x in batches.split_samples(self.pair, 1))

    @cached_property
    def together(self) -> Attempt:
        """The run on both samples at once."""
        return attempt(self.model, self.pair)

    @cached_property
    def by_rows(self) -> tuple[Attempt, tuple[Attempt, ...]]:
        """The run on as many rows as the user's example has, of other numbers, and the runs on its first two rows."""
        drawn = draw_rows(self.rows, 0)
        return attempt(self.model, drawn, counted=False), tuple(attempt(self.model, x) for x in list(batches.split_samples(drawn, 1))[:2])

    @cached_property
    def other_batch_axis(self) -> int:
        """The axis of all inputs, other than the first, that is a batch of one sample in the user's example; 0 for none."""
        axes = range(1, min(x.ndim for x in self.rows))
        return next((i for i in axes if all(x.shape[i] == 1 for x in self.rows) and _is_batch_axis(self.model, self.rows, i)), 0)

    @cached_property
    def training(self) -> TrainingMode | EdgeCompressError:
        """How the network can be trained on what it returns in eval mode, or why it cannot."""
        try:
            return choose_training_mode(self.model, self.pair)
        except EdgeCompressError as error:
            return error

    @cached_property
    def batchnorm_ratio(self) -> tuple[str, float]:
        """The first BatchNorm that was trained, and the mean square of what it reads of the data over that of its statistics.

        1 where no BatchNorm was trained, or without data.
        """
        known = [
            (name, m)
            for name, m in self.model.named_modules()
            if isinstance(m, _BatchNorm) and m.running_mean is not None and m.num_batches_tracked is not None and m.num_batches_tracked > 0
        ]
        read: list[tuple[str, float]] = []

        def compare(name: str, layer: _BatchNorm, x: Tensor) -> None:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            expected = float((layer.running_var + layer.running_mean.square()).mean())
            read.append((name, float(x.square().mean()) / expected if expected > 0 else 1.0))

        handles = [m.register_forward_pre_hook(lambda m, args, name=name: compare(name, m, args[0])) for name, m in known]
        try:
            if self.real_pair is not None:
                attempt(self.model, self.real_pair)
        finally:
            for handle in handles:
                handle.remove()
        return read[0] if read else ("", 1.0)

    @cached_property
    def program(self) -> ExportedProgram | EdgeCompressError | None:
        """The exported program, or the error of the export; None where none is asked for."""
        try:
            return self.export() if self.export is not None else None
        except EdgeCompressError as error:
            return error

    @cached_property
    def layers(self) -> frozenset[str]:
        """Names of the layers whose MACs are counted where they are called."""
        with record_layer_costs(self.model) as seen, torch.inference_mode():
            self.model(*self.example)
        return frozenset(seen)

    @cached_property
    def weight_macs(self) -> dict[str, int]:
        """MACs of each weight in the exported graph."""
        assert isinstance(self.program, ExportedProgram)
        return count_weight_macs(self.program)


def attempt(model: nn.Module, inputs: Batch, *, counted: bool = True) -> Attempt:
    """Run a network and return its outputs, or its error.

    Args:
        counted: Whether every output must have one row per sample.
    """
    given = tuple(x.clone() for x in inputs)
    with torch.inference_mode():
        try:
            if counted:
                outputs = batches.run_model(model, given)
            else:
                outputs = tuple(y for y in batches.flatten_structure(batches.call_network(model, given)) if isinstance(y, Tensor))
        except EdgeCompressError as error:
            return Attempt(None, error)
        return Attempt(outputs, has_changed_inputs=not all(map(torch.equal, given, inputs)))


def _is_batch_axis(model: nn.Module, rows: Batch, axis: int) -> bool:
    """Whether two samples along an axis give what each of them gives alone, along some axis of each output."""
    drawn = draw_rows(tuple(torch.cat([x, x], axis) for x in rows), 0)
    runs = [attempt(model, tuple(x.narrow(axis, i, n) for x in drawn), counted=False).outputs for i, n in ((0, 2), (0, 1), (1, 1))]
    whole, first, second = (run or () for run in runs)
    if not len(whole) == len(first) == len(second) > 0:
        return False
    return all(
        any(not differs((y,), (torch.cat([a, b], k),)) for k in range(y.ndim) if a.shape == b.shape and a.shape[k] == 1)
        for y, a, b in zip(whole, first, second, strict=True)
    )


def split_remedy(message: str) -> tuple[str, str]:
    """Return the fact and the remedy of an error's message."""
    fact, separator, remedy = message.rpartition("; ")
    return (fact, remedy) if separator else (remedy, "")


def find_departing_module(model: nn.Module, run: Callable[[], Any], other: Callable[[], Any], *, rows: int = 1) -> str:
    """Return the first module without children whose output differs between two runs of a network; "" for none.

    Args:
        rows: So many rows of each output are compared.
    """
    outputs: list[list[tuple[str, Batch]]] = []
    for call in (run, other):
        seen: list[tuple[str, Batch]] = []
        handles = [
            module.register_forward_hook(lambda _, __, y, name=name, seen=seen: seen.append((name, _keep_rows(y, rows))))
            for name, module in model.named_modules()
            if name and not list(module.children())
        ]
        try:
            with torch.inference_mode():
                call()
        finally:
            for handle in handles:
                handle.remove()
        outputs.append(seen)
    pairs = zip(outputs[0], outputs[1], strict=False)  # a run may end earlier than the other
    return next((name for (name, a), (_, b) in pairs if differs(a, b)), "")


def _keep_rows(y: Any, rows: int) -> Batch:
    return tuple(each[:rows].clone() for each in batches.flatten_structure(y) if isinstance(each, Tensor) and each.ndim)


def differs(a: Batch, b: Batch) -> bool:
    """Whether two outputs are more different than rounding makes them; NaN equals NaN."""
    if not batches.has_same_shapes(a, b):
        return True
    return any(_tensor_differs(x, y) for x, y in zip(a, b, strict=True))


def _tensor_differs(a: Tensor, b: Tensor) -> bool:
    if not a.numel():
        return False
    if not a.is_floating_point():
        return float((a != b).float().mean()) > INTEGER_TOLERANCE
    finite = a.isfinite() & b.isfinite()
    if bool((a.isfinite() != b.isfinite()).any()):
        return True
    scale = max(float(a[finite].abs().max()), float(b[finite].abs().max())) if bool(finite.any()) else 0.0
    return bool(finite.any()) and float((a - b)[finite].abs().max()) > FLOAT_TOLERANCE * scale


def draw_rows(example: Batch, rows: int) -> Batch:
    """Return different samples with the shapes of an example: random numbers, and for integers the example's own in another order.

    Args:
        rows: The number of samples; 0 for as many as the example has.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for x in example:
        n = rows or len(x)
        if x.is_floating_point():
            drawn.append(torch.randn((n, *x.shape[1:]), generator=generator).to(x.dtype))
        else:
            drawn.append(torch.stack([x[i % len(x)].roll(i, -1) if x.ndim > 1 else x[i % len(x)] for i in range(n)]))
    return tuple(drawn)
