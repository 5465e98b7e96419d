"""Fold constants: compute once the parts of a program that depend on no input, such as masks."""

from typing import Any, Final

import torch
from torch import Tensor, fx

from edgecompress.network.constants import get_constant

MAX_FOLDED_ELEMENTS: Final = 1 << 22  # a larger constant would make the file grow by more than 16 MiB


def fold_constants(graph: fx.GraphModule) -> None:
    """Replace each computation that depends on no input by its result, in place."""
    values: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = get_constant(graph, str(node.target))
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes) and _is_pure(node):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            made = node.target(*args, **kwargs)
            if isinstance(made, Tensor) and made.numel() <= MAX_FOLDED_ELEMENTS:
                values[node] = made
    for number, node in enumerate([n for n in values if n.op != "get_attr"]):
        if any(user not in values for user in node.users):
            with graph.graph.inserting_before(node):
                made = add_constant(graph, f"constant_{number}", values[node])
            node.replace_all_uses_with(made)
    graph.graph.eliminate_dead_code()


def add_constant(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Register `value` as the buffer `name`; return a node that reads the buffer, at the current insertion point."""
    graph.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
    made = graph.graph.get_attr(name)
    made.meta["val"] = value
    return made


def _is_pure(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags
