"""What a program computes from its constants alone, computed once: a mask, say, that some converters leave to each inference."""

from typing import Any, Final

import torch
from torch import Tensor, fx

from edgecompress.network.constants import get_constant

LARGEST_FOLDED: Final = 1 << 22  # elements; beyond it a computed constant stays computed, the file would grow


def fold_constants(graph: fx.GraphModule) -> None:
    """Put what does not depend on the inputs in the place of its computation."""
    values: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = get_constant(graph, str(node.target))
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes) and _is_pure(node):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            made = node.target(*args, **kwargs)
            if isinstance(made, Tensor) and made.numel() <= LARGEST_FOLDED:
                values[node] = made
    for number, node in enumerate([n for n in values if n.op != "get_attr"]):
        if any(user not in values for user in node.users):
            with graph.graph.inserting_before(node):
                made = add_constant(graph, f"constant_{number}", values[node])
            node.replace_all_uses_with(made)
    graph.graph.eliminate_dead_code()


def add_constant(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Keep `value` as the buffer `name`; return a node that gives it, where nodes are being inserted."""
    graph.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
    made = graph.graph.get_attr(name)
    made.meta["val"] = value
    return made


def _is_pure(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags
