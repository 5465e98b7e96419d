"""Count the parameters and multiply-accumulates (MACs) of layers while a network runs, or of weights in an exported graph.

Products of activations with each other, like the two of an attention between its projections, belong to no layer and are not counted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgecompress.network.layer_kinds import CONVOLUTION_OPS, LINEAR_OPS, TRANSPOSED_MODULES, TRANSPOSED_OPS, WEIGHTED_MODULES

aten = torch.ops.aten
PRODUCT_OPS = {aten.matmul.default, aten.mm.default, aten.bmm.default}
RECURRENT_OPS = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}


@dataclass
class LayerCosts:
    """Cost of one layer in a forward pass for one sample; the shapes are those of its last call, without axis 0."""

    calls: int = 0
    macs: int = 0
    activation_bytes: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = field(default=())


def macs_of(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the MACs of one call: each weight is used once per position of the output, or of the input in transposed convolutions.

    Positions are all axes but the channels: samples too, on whichever axis they lie, and e.g. windows that a network folds into them.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, nn.Linear):
        return weight.numel() * math.prod(y.shape[:-1])
    shape = (x if isinstance(layer, TRANSPOSED_MODULES) else y).shape
    channels = len(shape) - len(layer.kernel_size) - 1  # type: ignore[arg-type]  # the axis
    return weight.numel() * math.prod(shape) // shape[channels]


@contextmanager
def record_layer_costs(model: nn.Module, samples: int = 1) -> Iterator[dict[str, LayerCosts]]:
    """Record the cost of each weighted layer per sample, while the `with` block runs the model on a batch of `samples`."""
    seen: dict[str, LayerCosts] = {}

    def make_hook(name: str) -> object:
        def record_call(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            one = seen.setdefault(name, LayerCosts())
            one.calls += 1
            one.macs += macs_of(layer, x, y) // samples
            one.activation_bytes += 4 * (x.numel() + y.numel()) // samples
            one.input_shape, one.output_shape = tuple(x.shape[1:]), tuple(y.shape[1:])

        return record_call

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, WEIGHTED_MODULES)]
    handles = [m.register_forward_hook(make_hook(n), with_kwargs=True) for n, m in layers]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def params_of(module: nn.Module) -> int:
    """Return the number of parameters of a module; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def cost_of(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (params, macs) of a module on the meta device for one input of `input_shape`, without its batch axis."""
    with record_layer_costs(module) as seen:
        module(torch.empty(1, *input_shape, device="meta"))
    return params_of(module), sum(one.macs for one in seen.values())


def count_weight_macs(program: ExportedProgram) -> dict[str, int]:
    """Return the MACs of each weight of a program of batch 1, for all ops that multiply an activation by a weight.

    A weight may be reshaped or computed from constants on its way. Products of activations with each other are left out.
    """
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    origins: dict[fx.Node, str] = {}  # of nodes that depend on constants alone
    found: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            origins[node] = names[node.name]
        if node.op != "call_function":
            continue
        inputs = node.all_input_nodes
        if inputs and all(each in origins for each in inputs):
            origins[node] = origins[max(inputs, key=_count_elements)]
            continue
        for weight, macs in _list_products(node):
            if weight in origins:
                found[origins[weight]] = found.get(origins[weight], 0) + macs
    return found


def _list_products(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """Yield the operands of a node that may be weights, each with its MACs."""
    args = node.args
    if node.target in LINEAR_OPS | CONVOLUTION_OPS | TRANSPOSED_OPS:
        x, weight = args[0], args[1]
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        shape = _shape(x) if node.target in TRANSPOSED_OPS else _shape(node)
        axis = len(shape) - (1 if node.target in LINEAR_OPS else len(_shape(weight)) - 1)
        yield weight, _count_elements(weight) * math.prod(shape) // max(1, shape[axis])
    elif node.target in PRODUCT_OPS or node.target is aten.addmm.default:
        a, b = args[-2:]
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        for weight in (a, b):
            yield weight, _count_elements(node) * _shape(a)[-1]
    elif node.target in RECURRENT_OPS:
        x, weights = args[0], args[2]
        assert isinstance(x, fx.Node)
        assert isinstance(weights, list | tuple)
        for weight in weights:
            if isinstance(weight, fx.Node) and len(_shape(weight)) == 2:
                yield weight, _count_elements(weight) * math.prod(_shape(x)[:-1])


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _count_elements(node: fx.Node) -> int:
    return int(node.meta["val"].numel()) if isinstance(node.meta.get("val"), Tensor) else 0
