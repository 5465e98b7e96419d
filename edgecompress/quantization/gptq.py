"""Weights on the integer grid whose rounding errors cancel on real inputs, instead of each going to the nearest step.

After a clipped activation (ReLU6) inputs are positive, so nearest rounding leaves an error with a mean, which no later layer removes: on
EfficientNet-Lite0 it alone costs 17 dB. Here a layer's weights are rounded one input after another, each error is made up for by the
inputs not yet rounded, as their covariance on calibration data allows [FAHA23], and what is left of the mean goes into the bias [NBBW19].
A converter that quantizes weights per channel, symmetrically, to [−127, 127] or [−7, 7] finds them on its grid and keeps them.

References:
    [FAHA23] E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh. GPTQ: accurate post-training quantization for generative pre-trained
        transformers. ICLR 2023.
    [NBBW19] M. Nagel, M. van Baalen, T. Blankevoort, M. Welling. Data-free quantization through weight equalization and bias
        correction. ICCV 2019, section 4.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgecompress.network.constants import get_constant, set_constant

aten = torch.ops.aten

INT8, INT4 = 127, 7  # the largest integer of a symmetric grid
LARGEST = {8: INT8, 4: INT4}  # by its bits
LAYERS = {aten.conv2d.default, aten.linear.default}
POSITIONS = 64  # of a feature map that are looked at in each sample; neighbours say nearly the same
WIDEST = 2048  # inputs of one output beyond which the covariance costs too much, and only the mean is corrected
DAMPING = 1.0  # of the mean variance; few samples make a covariance that must not be trusted far. 0.01 gave 27 dB, 1 31 dB, 3 29 dB
BIAS_STEPS = 1e6  # a bias is stored in steps of input scale × weight scale, as int32


@dataclass
class _Inputs:
    """What a layer sees: `total` is `(groups, inputs)`, `second` is `(groups, inputs, inputs)` or None where that is too wide."""

    count: int
    total: Tensor
    second: Tensor | None


def round_weights(
    program: torch.export.ExportedProgram,
    samples: Sequence[tuple[Tensor, ...]],
    *,
    levels: Callable[[fx.Node], int | None] = lambda _: INT8,
) -> torch.export.ExportedProgram:
    """Return `program` with the weights of its convolutions and linear layers on the integer grid of each output channel.

    Args:
        program: Static, in inference mode, BatchNorm folded; stays as it is.
        samples: Calibration inputs, each as the program takes them.
        levels: Says of a layer's node the largest integer of its grid, INT8 or INT4; None leaves its weight as it is.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    for buffer in list(graph.state_dict()):  # program.module() shares its tensors with the program
        set_constant(graph, buffer, get_constant(graph, buffer).detach().clone())
    observer = _Observer(graph)
    with torch.no_grad():
        for sample in samples:
            observer.run(*sample)
        done: set[str] = set()
        for node in graph.graph.nodes:
            if (target := _weight_of(node)) and target in observer.inputs and target not in done and (largest := levels(node)):
                done.add(target)
                _round_layer(graph, node, observer.inputs[target], largest)
        graph.recompile()
        arguments = samples[0]
        return torch.export.export(graph, arguments, strict=False)


def round_rows(weight: Tensor, covariance: Tensor | None, scale: Tensor, largest: int = INT8) -> Tensor:
    """Return `weight` in multiples of `scale`, errors compensated.

    Args:
        weight: `(groups, out, in)`.
        covariance: `(groups, in, in)` of the inputs; None rounds to nearest.
        scale: `(groups, out, 1)`, each row's largest weight, which stays what it is, over `largest`.
    """
    peak = weight.abs().argmax(-1, keepdim=True)
    if covariance is None:
        return (weight / scale).round().clamp(-largest, largest) * scale
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    damping = DAMPING * diagonal.mean(-1, keepdim=True) + 1e-9
    damped = (covariance + torch.diag_embed(damping.expand_as(diagonal))).double()
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):  # numbers so large that float32 does not hold how they vary
        return round_rows(weight, None, scale, largest)
    inverse = torch.cholesky_inverse(factor)
    upper = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)  # (groups, in, in); row i says how the later inputs make up for i
    rest, rounded = weight.clone(), torch.empty_like(weight)
    for i in range(weight.shape[-1]):
        step = (rest[..., i : i + 1] / scale).round().clamp(-largest, largest) * scale  # (groups, out, 1)
        rounded[..., i : i + 1] = torch.where(peak == i, weight[..., i : i + 1], step)
        error = (rest[..., i : i + 1] - rounded[..., i : i + 1]) / upper[:, i, i, None, None]
        rest[..., i:] -= error * upper[:, None, i, i:]
    return rounded


def _round_layer(graph: fx.GraphModule, node: fx.Node, seen: _Inputs, largest: int) -> None:
    target = cast("fx.Node", node.args[1]).target
    weight = get_constant(graph, str(target))
    groups = len(seen.total)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)  # (groups, out, in)
    bias = bias_of(graph, node)
    rows = _raise_dead(rows, bias.reshape(groups, -1))
    mean = seen.total / seen.count  # (groups, in)
    covariance = None if seen.second is None else seen.second / seen.count - mean[:, :, None] * mean[:, None, :]
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) / largest
    rounded = round_rows(rows, covariance, scale, largest)
    shift = ((rows - rounded) @ mean[:, :, None]).reshape(-1)  # (out,)
    set_constant(graph, str(target), rounded.reshape(weight.shape).contiguous())
    set_constant(graph, str(cast("fx.Node", node.args[2]).target), bias + shift)


def _raise_dead(rows: Tensor, bias: Tensor) -> Tensor:
    """Give rows whose weights all but vanish one weight so large that the bias, in steps of their scale, fits an int32."""
    least = bias.abs()[..., None] * INT8 / BIAS_STEPS  # (groups, out, 1)
    peak = torch.zeros_like(rows).scatter_(-1, rows.abs().argmax(-1, keepdim=True), 1.0)
    return torch.where((peak > 0) & (rows.abs() < least), least, rows)


def bias_of(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the bias of a layer with a constant weight, made for it where it has none."""
    if len(node.args) > 2 and isinstance(node.args[2], fx.Node):
        return get_constant(graph, str(node.args[2].target))
    target = str(cast("fx.Node", node.args[1]).target)
    name = bias_name(target)
    graph.register_buffer(name, (weight := get_constant(graph, target)).new_zeros(len(weight)))
    for user in list(cast("fx.Node", node.args[1]).users):  # each call of a layer that is called twice
        with graph.graph.inserting_before(user):
            user.args = (*user.args[:2], graph.graph.get_attr(name), *user.args[3:])
    return get_constant(graph, name)


def bias_name(weight: str) -> str:
    """Return what a bias is called that is made for the layer of a weight."""
    return f"{weight.replace('.', '_')}_rounding_bias"  # other tools make biases of their own, and call them _bias


class _Observer(fx.Interpreter):
    """Runs the graph and sums up what each layer sees."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.inputs: dict[str, _Inputs] = {}
        self.generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        if target := _weight_of(n):
            self._add(target, self._patches(n))
        return super().run_node(n)

    def _patches(self, node: fx.Node) -> Tensor:
        """Return `(groups, in, positions)` of the layer's input."""
        args, _ = self.fetch_args_kwargs_from_env(node)
        x, weight = args[0], args[1]
        if node.target is aten.linear.default:
            columns, groups = x.reshape(-1, x.shape[-1]).T[None], 1  # (1, in, positions)
        else:
            geometry: list[Any] = [[1, 1], [0, 0], [1, 1], 1]  # torch.export leaves out trailing defaults
            geometry[: max(0, len(args) - 3)] = args[3:]
            stride, padding, dilation, groups = geometry
            columns = F.unfold(x, tuple(weight.shape[2:]), dilation, padding, stride)  # (1, in · k², positions)
        chosen = torch.randperm(columns.shape[-1], generator=self.generator)[:POSITIONS]
        patches: Tensor = columns[0, :, chosen].reshape(groups, -1, len(chosen))
        return patches

    def _add(self, target: str, patches: Tensor) -> None:
        total = patches.sum(-1)
        second = patches @ patches.transpose(1, 2) if patches.shape[1] <= WIDEST else None
        seen = self.inputs.setdefault(target, _Inputs(0, torch.zeros_like(total), None if second is None else torch.zeros_like(second)))
        seen.count += patches.shape[-1]
        seen.total += total
        if second is not None and seen.second is not None:
            seen.second += second


def _weight_of(node: fx.Node) -> str | None:
    """Return the name of the constant weight of a layer that can be rounded."""
    if node.target not in LAYERS or node.kwargs or not isinstance(node.args[1], fx.Node) or node.args[1].op != "get_attr":
        return None
    if len(node.args) > 2 and isinstance(node.args[2], fx.Node) and node.args[2].op != "get_attr":
        return None
    return str(node.args[1].target)
