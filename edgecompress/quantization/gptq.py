"""GPTQ: round weights to integers so that their rounding errors cancel on calibration inputs.

After a clipped activation (ReLU6) inputs are positive, so rounding to nearest leaves an error with a mean, which no later layer removes: on
EfficientNet-Lite0 that mean alone costs 17 dB. Here a layer's weights are rounded one input after another; the inputs not yet rounded make
up for each error, as their covariance on calibration data allows [FAHA23], and the remaining mean goes into the bias [NBBW19].
A converter that quantizes weights per channel, symmetrically, to [−127, 127] or [−7, 7] finds them on its grid and keeps them.

References:
    [FAHA23] E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh. GPTQ: accurate post-training quantization for generative pre-trained
        transformers. ICLR 2023.
    [NBBW19] M. Nagel, M. van Baalen, T. Blankevoort, M. Welling. Data-free quantization through weight equalization and bias
        correction. ICCV 2019, section 4.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgecompress.network.constants import get_constant, set_constant
from edgecompress.quantization.fake_quantize import largest_integer, round_to_multiples, symmetric_scale

aten = torch.ops.aten

ROUNDED_OPS: Final = {aten.conv2d.default, aten.linear.default}
POSITIONS_PER_SAMPLE: Final = 64  # neighbouring positions of a feature map say nearly the same
MAX_COVARIANCE_INPUTS: Final = 2048  # beyond so many inputs of one output the covariance costs too much, and only the mean is corrected
# Added to the covariance's diagonal, in units of its mean: the covariance of few samples must not be trusted far. On EfficientNet-Lite0
# 0.01 gave 27 dB, 1 gave 31 dB and 3 gave 29 dB.
DAMPING: Final = 1.0
MAX_BIAS_STEPS: Final = 1e6  # a bias is an int32 in steps of input scale × weight scale; this leaves room for a small input scale


@dataclass
class _InputMoments:
    """Sums over the inputs of a layer: `total` is `(groups, inputs)`, `second` is `(groups, inputs, inputs)`, or None for a wide layer."""

    count: int
    total: Tensor
    second: Tensor | None


def round_weights(
    program: torch.export.ExportedProgram,
    samples: Sequence[tuple[Tensor, ...]],
    *,
    bits_of: Callable[[fx.Node], int | None] = lambda _: 8,
) -> torch.export.ExportedProgram:
    """Return `program` with the weights of its convolutions and linear layers on the integer grid of each output channel.

    Args:
        program: Static, in inference mode, BatchNorm folded; stays unchanged.
        samples: Calibration inputs, each as the program takes them.
        bits_of: Returns the bits of a layer's grid, given its node; None leaves the layer's weight unchanged.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    for buffer in list(graph.state_dict()):  # program.module() shares its tensors with the program
        set_constant(graph, buffer, get_constant(graph, buffer).detach().clone())
    observer = _InputObserver(graph)
    with torch.no_grad():
        for sample in samples:
            observer.run(*sample)
        done: set[str] = set()
        for node in graph.graph.nodes:
            if (name := _roundable_weight(node)) and name in observer.moments and name not in done and (bits := bits_of(node)):
                done.add(name)
                _round_layer(graph, node, observer.moments[name], bits)
        graph.recompile()
        arguments = samples[0]
        return torch.export.export(graph, arguments, strict=False)


def round_rows(weight: Tensor, covariance: Tensor | None, scale: Tensor, bits: int = 8) -> Tensor:
    """Return `weight` in multiples of `scale`, with rounding errors compensated.

    Args:
        weight: `(groups, out, in)`.
        covariance: `(groups, in, in)` of the inputs; None rounds to nearest.
        scale: `(groups, out, 1)`, the step of each row's grid; the row's largest weight keeps its value.
        bits: Bits of the grid.
    """
    peak = weight.abs().argmax(-1, keepdim=True)
    if covariance is None:
        return round_to_multiples(weight, scale, bits)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    damping = DAMPING * diagonal.mean(-1, keepdim=True) + 1e-9
    damped = (covariance + torch.diag_embed(damping.expand_as(diagonal))).double()
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):  # inputs so large that float32 does not hold how they vary
        return round_rows(weight, None, scale, bits)
    inverse = torch.cholesky_inverse(factor)
    upper = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)  # (groups, in, in); row i says how the later inputs make up for i
    rest, rounded = weight.clone(), torch.empty_like(weight)
    for i in range(weight.shape[-1]):
        step = round_to_multiples(rest[..., i : i + 1], scale, bits)  # (groups, out, 1)
        rounded[..., i : i + 1] = torch.where(peak == i, weight[..., i : i + 1], step)
        error = (rest[..., i : i + 1] - rounded[..., i : i + 1]) / upper[:, i, i, None, None]
        rest[..., i:] -= error * upper[:, None, i, i:]
    return rounded


def _round_layer(graph: fx.GraphModule, node: fx.Node, moments: _InputMoments, bits: int) -> None:
    name = str(cast("fx.Node", node.args[1]).target)
    weight = get_constant(graph, name)
    groups = len(moments.total)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)  # (groups, out, in)
    bias = ensure_bias(graph, node)
    rows = _raise_vanishing_rows(rows, bias.reshape(groups, -1))
    mean = moments.total / moments.count  # (groups, in)
    covariance = None if moments.second is None else moments.second / moments.count - mean[:, :, None] * mean[:, None, :]
    rounded = round_rows(rows, covariance, symmetric_scale(rows.abs().amax(-1, keepdim=True), bits), bits)
    shift = ((rows - rounded) @ mean[:, :, None]).reshape(-1)  # (out,)
    set_constant(graph, name, rounded.reshape(weight.shape).contiguous())
    set_constant(graph, str(cast("fx.Node", node.args[2]).target), bias + shift)


def _raise_vanishing_rows(rows: Tensor, bias: Tensor) -> Tensor:
    """Give each row of vanishing weights one weight so large that the bias, in steps of the row's scale, fits an int32."""
    least = bias.abs()[..., None] * largest_integer(8) / MAX_BIAS_STEPS  # (groups, out, 1)
    peak = torch.zeros_like(rows).scatter_(-1, rows.abs().argmax(-1, keepdim=True), 1.0)
    return torch.where((peak > 0) & (rows.abs() < least), least, rows)


def ensure_bias(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the bias of a layer with a constant weight; a layer without one is given a bias of zeros."""
    if len(node.args) > 2 and isinstance(node.args[2], fx.Node):
        return get_constant(graph, str(node.args[2].target))
    weight_name = str(cast("fx.Node", node.args[1]).target)
    name = new_bias_name(weight_name)
    graph.register_buffer(name, (weight := get_constant(graph, weight_name)).new_zeros(len(weight)))
    for user in list(cast("fx.Node", node.args[1]).users):  # each call of a layer that is called twice
        with graph.graph.inserting_before(user):
            user.args = (*user.args[:2], graph.graph.get_attr(name), *user.args[3:])
    return get_constant(graph, name)


def new_bias_name(weight_name: str) -> str:
    """Return the name of the bias that `ensure_bias` makes for the layer of a weight."""
    return f"{weight_name.replace('.', '_')}_rounding_bias"  # other tools make biases of their own, and call them _bias


class _InputObserver(fx.Interpreter):
    """Runs a graph and sums up the inputs of each layer that can be rounded."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.moments: dict[str, _InputMoments] = {}
        self.generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        if name := _roundable_weight(n):
            self._add_patches(name, self._draw_patches(n))
        return super().run_node(n)

    def _draw_patches(self, node: fx.Node) -> Tensor:
        """Return `(groups, in, positions)` of the layer's input at positions drawn at random."""
        args, _ = self.fetch_args_kwargs_from_env(node)
        x, weight = args[0], args[1]
        if node.target is aten.linear.default:
            columns, groups = x.reshape(-1, x.shape[-1]).T[None], 1  # (1, in, positions)
        else:
            geometry: list[Any] = [[1, 1], [0, 0], [1, 1], 1]  # torch.export leaves out trailing defaults
            geometry[: max(0, len(args) - 3)] = args[3:]
            stride, padding, dilation, groups = geometry
            columns = F.unfold(x, tuple(weight.shape[2:]), dilation, padding, stride)  # (1, in · k², positions)
        chosen = torch.randperm(columns.shape[-1], generator=self.generator)[:POSITIONS_PER_SAMPLE]
        patches: Tensor = columns[0, :, chosen].reshape(groups, -1, len(chosen))
        return patches

    def _add_patches(self, name: str, patches: Tensor) -> None:
        total = patches.sum(-1)
        second = patches @ patches.transpose(1, 2) if patches.shape[1] <= MAX_COVARIANCE_INPUTS else None
        empty = _InputMoments(0, torch.zeros_like(total), None if second is None else torch.zeros_like(second))
        moments = self.moments.setdefault(name, empty)
        moments.count += patches.shape[-1]
        moments.total += total
        if second is not None and moments.second is not None:
            moments.second += second


def _roundable_weight(node: fx.Node) -> str | None:
    """Return the name of the constant weight of a node that GPTQ can round; None for every other node."""
    if node.target not in ROUNDED_OPS or node.kwargs or not isinstance(node.args[1], fx.Node) or node.args[1].op != "get_attr":
        return None
    if len(node.args) > 2 and isinstance(node.args[2], fx.Node) and node.args[2].op != "get_attr":
        return None
    return str(node.args[1].target)
