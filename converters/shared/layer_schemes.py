"""Layers of an exported program, for every converter program: which one a node belongs to, and which scheme it has (mixed precision)."""

from collections.abc import Iterable, Sequence
from typing import Any

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.subgraph import enclosing_modules
from edgecompress.records import ConversionRequest


def layer_of(node: Any) -> str:
    """Return the qualified name of the layer that an aten node belongs to, "" where none is known."""
    return enclosing_modules(node)[-1] if enclosing_modules(node) else ""


def place(nodes: Iterable[Any], op: str) -> str:
    """Return `layer: ` of the first node that computes the aten op, "" where that is not known."""
    layer = next((layer_of(node) for node in nodes if f"{node.target}.".startswith(f"{op}.")), "")
    return f"{layer}: " if layer else ""


def scheme_of(inside: Sequence[str], request: ConversionRequest) -> str:
    """Return the scheme of what stands `inside` these modules: the innermost that the request names decides."""
    return next((request.layers[name] for name in reversed(inside) if name in request.layers), request.scheme)


def check_layers(request: ConversionRequest, program: Any, *, subject: str) -> None:
    """Refuse a request that names a layer which the program has not.

    Raises:
        ConfigError: It does.
    """
    known = {name for node in program.graph.nodes for name in enclosing_modules(node)} - {""}
    if missing := [name for name in request.layers if name not in known]:
        raise ConfigError(f"{subject}: no layer is called {missing[0]!r}; layers are {', '.join(sorted(known))[:300]}")


def quantized_scheme(request: ConversionRequest, program: Any, *, subject: str) -> str:
    """Return the one scheme, beside fp32, of the request's layers; fp32 when there is none.

    Raises:
        ConfigError: The request names a layer that the program has not.
        UnsupportedError: It names two schemes beside fp32.
    """
    check_layers(request, program, subject=subject)
    wanted = {request.scheme, *request.layers.values()} - {"fp32"}
    if len(wanted) > 1:
        raise UnsupportedError(f"{subject}: {' and '.join(sorted(wanted))} in one file; beside fp32 a file has one scheme, choose one")
    return wanted.pop() if wanted else "fp32"
