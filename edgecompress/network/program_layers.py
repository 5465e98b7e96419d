"""Make a network of an exported program: its linear layers, convolutions and BatchNorms are modules again, and it takes any batch."""

from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from edgecompress.errors import ConfigError
from edgecompress.network.exported import DROPOUT_OPS
from edgecompress.network.layer_kinds import CONVOLUTION_OPS, LINEAR_OPS, TRANSPOSED_OPS, WEIGHTED_OPS
from edgecompress.network.subgraph import graph_of

aten = torch.ops.aten

BATCH_NORM: Final = aten.batch_norm.default
RESHAPING_OPS: Final = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS: Final = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by the axes of their input
TENSORS: Final = ("weight", "bias", "running_mean", "running_var")
COUNTER: Final = "num_batches_tracked"


def make_network(program: ExportedProgram, *, name: str) -> nn.Module:
    """Return the network that a program was exported from, as far as its graph tells.

    A layer is a module again, under its own name, where its weights belong to it alone. Reshapes to the batch of the export take any batch.
    Inputs are taken by position, and outputs are nested as the network nested them.

    Raises:
        ConfigError: The program was exported in training mode, or takes inputs that are no tensors.
    """
    graph = graph_of(program)
    _check_mode(graph, name)
    _check_inputs(graph, name)
    _free_batch(graph)
    output = graph.graph.output_node()
    output.args = (_pytree.tree_unflatten(list(cast("list[fx.Node]", output.args[0])), program.call_spec.out_spec),)
    graph.graph.set_codegen(fx.graph.CodeGen())
    _restore_layers(graph)
    return fx.GraphModule(graph, graph.graph).eval()  # copies the modules and constants that the graph reads


def list_input_sizes(program: ExportedProgram) -> tuple[tuple[tuple[int | None, ...], torch.dtype], ...]:
    """Return shape and type of each input; None for a size that the program leaves open."""
    taken = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in taken]
    return tuple((tuple(n if isinstance(n, int) else None for n in x.shape), x.dtype) for x in values if isinstance(x, Tensor))


def _check_mode(graph: fx.GraphModule, name: str) -> None:
    for node in graph.graph.nodes:
        if node.target in DROPOUT_OPS or node.target is BATCH_NORM:
            given = _read_arguments(node)
            if given.get("training") or given.get("train"):
                raise ConfigError(f"{name}: was exported in training mode; call model.eval() before torch.export.export")


def _check_inputs(graph: fx.GraphModule, name: str) -> None:
    for node in graph.graph.nodes:
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
            raise ConfigError(f"{name}: its input {node.name} is no tensor; export a network that takes tensors alone")


def _free_batch(graph: fx.GraphModule) -> None:
    """Let each reshape to the batch of the export keep the first axis open; the other axes are as the export saw them."""
    first = next((node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"), None)
    if first is None or not first.ndim or not isinstance(first.shape[0], int):
        return
    for node in graph.graph.nodes:
        sizes = node.args[1] if node.target in RESHAPING_OPS else None
        if isinstance(sizes, list | tuple) and sizes and sizes[0] == len(first) and all(isinstance(n, int) for n in sizes):
            node.args = (node.args[0], [-1, *node.meta["val"].shape[1:]])


def _restore_layers(graph: fx.GraphModule) -> None:
    """Put a module in the place of each layer whose tensors belong to one module and to no other operation."""
    for node in list(graph.graph.nodes):
        if (node.target not in WEIGHTED_OPS and node.target is not BATCH_NORM) or (found := _find_tensors(graph, node)) is None:
            continue
        owner, tensors = found
        holder = graph.get_submodule(owner)
        if type(holder) is nn.Module:  # not made yet; an operation that calls the layer once more finds it
            holder = _make_layer(node, tensors)
            parent, _, leaf = owner.rpartition(".")
            setattr(graph.get_submodule(parent), leaf, holder)
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(owner, (node.args[0],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.graph.erase_node(node)


def _find_tensors(graph: fx.GraphModule, node: fx.Node) -> tuple[str, dict[str, Tensor | None]] | None:
    """Return the name of the module that holds the tensors of a layer, and the tensors; None where they are not its own alone."""
    given = {key: value for key, value in _read_arguments(node).items() if key in TENSORS}
    nodes = {key: value for key, value in given.items() if value is not None}
    if not {"weight"} <= nodes.keys() or any(value.op != "get_attr" for value in nodes.values()):
        return None
    owner = str(nodes["weight"].target).rpartition(".")[0]
    if not owner or any(str(value.target) != f"{owner}.{key}" for key, value in nodes.items()):
        return None
    if any(user.target is not node.target or user.args[1:] != node.args[1:] for value in nodes.values() for user in value.users):
        return None
    holder = graph.get_submodule(owner)
    held = {*holder._parameters, *holder._buffers, *holder._modules}
    if type(holder) is nn.Module and not held <= {*nodes, COUNTER}:
        return None
    return owner, {key: getattr(holder, key) if key in nodes else None for key in given}


def _make_layer(node: fx.Node, tensors: dict[str, Tensor | None]) -> nn.Module:
    """Return the module that computes a layer, with its tensors."""
    given, weight = _read_arguments(node), cast("Tensor", tensors["weight"])
    layer: nn.Module
    with torch.device("meta"):
        if node.target in LINEAR_OPS:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=tensors["bias"] is not None)
        elif node.target is BATCH_NORM:
            layer = BATCH_NORMS[node.meta["val"].ndim](len(weight), eps=given["eps"], momentum=given["momentum"])
        else:
            layer = _make_convolution(node, given, weight, bias=tensors["bias"] is not None)
    for key, value in tensors.items():
        if value is not None:
            learned = key in ("weight", "bias")
            setattr(layer, key, nn.Parameter(value.detach()) if learned else value.detach())
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_batches_tracked = torch.tensor(0)
    return layer


def _make_convolution(node: fx.Node, given: dict[str, Any], weight: Tensor, *, bias: bool) -> nn.Module:
    axes = weight.ndim - 2
    options: dict[str, Any] = {key: _spread(given[key], axes) for key in ("stride", "padding", "dilation")}
    options |= {"kernel_size": tuple(weight.shape[2:]), "groups": given["groups"], "bias": bias}
    groups = given["groups"]
    if node.target in CONVOLUTION_OPS:
        return CONVOLUTIONS[axes - 1](weight.shape[1] * groups, len(weight), **options)
    assert node.target in TRANSPOSED_OPS
    options["output_padding"] = _spread(given["output_padding"], axes)
    return TRANSPOSED[axes - 1](len(weight), weight.shape[1] * groups, **options)


def _spread(value: Any, axes: int) -> Any:
    """Return a value for each axis; a word such as "same" stays."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * axes if len(values) == 1 else values


def _read_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call of a PyTorch operation by name, with defaults."""
    named = cast("torch._ops.OpOverload", node.target)._schema.arguments
    given = dict(zip((each.name for each in named), node.args, strict=False)) | dict(node.kwargs)
    return {each.name: given.get(each.name, each.default_value) for each in named}
