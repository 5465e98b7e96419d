"""Find the layers of an exported program, and extract the part of the program that computes some of them.

A layer here is one computation together with the activation that kernels fuse into it, since converters compute both as one op.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgecompress.network.exported import example_inputs, silence_export

aten = torch.ops.aten

SOFTMAX_OPS = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}
MASKING_OPS = {aten.add.Tensor, aten.masked_fill.Scalar, aten.baddbmm.default}
FUSED_ACTIVATIONS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default}


class ProgramLayer(NamedTuple):
    """A layer of an exported program.

    Attributes:
        node: Name of the layer's last node.
        name: Qualified name of the module, followed by the node if the module computes several layers.
        op: Names of the layer's operators.
    """

    node: str
    name: str
    op: str


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """Return the program as a graph module, whose constants are shared with the program."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def enclosing_modules(node: fx.Node) -> tuple[str, ...]:
    """Return the qualified names of the modules whose forward computes `node`, the outermost first; () if none is known."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(str(name).partition("@")[0] for name, _ in stack.values())  # a module's second call is name@1


def is_fused(node: fx.Node) -> bool:
    """Whether `node` is an activation that kernels fuse into the op before it, because nothing else reads that op's output."""
    before = node.args[0] if node.target in FUSED_ACTIVATIONS else None
    return isinstance(before, fx.Node) and before.op == "call_function" and len(before.users) == 1


def is_float_tensor(node: fx.Node) -> bool:
    """Whether `node` computes one floating-point tensor with at least one axis."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def layers_of(graph: fx.GraphModule) -> list[ProgramLayer]:
    """Return the layers that depend on the inputs, in the order of computation.

    Attention scores with a mask are left out: without their softmax, a converter takes the mask's −∞ for a number.
    """
    known = _input_dependent_nodes(graph)
    computed = (n for n in graph.graph.nodes if n in known and is_float_tensor(n) and not _is_masked_score(n))
    ends = [n for n in computed if not any(is_fused(user) for user in n.users)]
    modules = [next(reversed(enclosing_modules(n.args[0] if is_fused(n) else n)), "") for n in ends]
    found = []
    for node, module in zip(ends, modules, strict=True):
        single = module and modules.count(module) == 1
        chain = [cast("fx.Node", node.args[0]), node] if is_fused(node) else [node]
        op = " + ".join(str(n.target).removeprefix("aten.").partition(".")[0] for n in chain)
        found.append(ProgramLayer(node.name, module if single else f"{module}:{node.name}".removeprefix(":"), op))
    return found


def ancestors_of(graph: fx.GraphModule) -> dict[str, set[str]]:
    """Return, for each node, the names of all nodes that it is computed from."""
    found: dict[str, set[str]] = {}
    for node in graph.graph.nodes:
        found[node.name] = {b.name for b in node.all_input_nodes}.union(*(found[b.name] for b in node.all_input_nodes))
    return found


def extract_subgraph(program: ExportedProgram, nodes: Sequence[str]) -> tuple[ExportedProgram, tuple[int, ...]]:
    """Return the part of the program that computes `nodes`, and the indices of the inputs that this part takes.

    An output whose first axis is not the batch becomes one row, because an artifact returns one row per sample.
    """
    graph, inputs = graph_of(program), example_inputs(program)
    names = {node.name: node for node in graph.graph.nodes}
    output = graph.graph.output_node()
    with graph.graph.inserting_before(output):
        ends = tuple(_flatten_to_row(graph.graph, names[name]) for name in nodes)
    output.args = (ends[0] if len(ends) == 1 else ends,)
    graph.graph.eliminate_dead_code()
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    taken = tuple(i for i, node in enumerate(placeholders) if node.users)
    for node in placeholders:
        if not node.users:
            graph.graph.erase_node(node)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.delete_all_unused_submodules()
    with torch.no_grad(), silence_export():
        kept = fx.GraphModule(graph, graph.graph).eval()  # copies only the constants that the graph reads
        return torch.export.export(kept, tuple(inputs[i] for i in taken), strict=False), taken


def _is_masked_score(node: fx.Node) -> bool:
    return node.target in MASKING_OPS and any(user.target in SOFTMAX_OPS for user in node.users)


def _flatten_to_row(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return node if node.meta["val"].shape[0] == 1 else graph.call_function(aten.reshape.default, (node, [1, -1]))


def _input_dependent_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the computed nodes that depend on the inputs."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "call_function" and any(b.op == "placeholder" or b in found for b in node.all_input_nodes):
            found.add(node)
    return found
