"""Find the layer of a node in an exported program, and the scheme of a layer (mixed precision)."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgecompress.errors import ConfigError, UnsupportedError
from edgecompress.network.subgraph import enclosing_modules
from edgecompress.records import ConversionRequest
from edgecompress.targets import FLOAT32


def layer_of(node: Any) -> str:
    """Return the qualified name of the layer that an aten node belongs to, "" where none is known."""
    return enclosing_modules(node)[-1] if enclosing_modules(node) else ""


def name_layer(nodes: Iterable[Any], op: str) -> str:
    """Return `LAYER: ` for the first node that computes the aten op, as a prefix for error messages.

    Outside of layers it is the line of the network's source, `FILE:LINE: `; "" where neither is known.
    """
    node = next((node for node in nodes if f"{node.target}.".startswith(f"{op}.")), None)
    place = "" if node is None else layer_of(node) or _source_line(node)
    return f"{place}: " if place else ""


def _source_line(node: Any) -> str:
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{Path(lines[-1][0]).name}:{lines[-1][1]}" if lines else ""


def scheme_of(inside: Sequence[str], request: ConversionRequest) -> str:
    """Return the scheme of an op inside the given modules, outermost first: the innermost module that the request names decides."""
    return next((request.layers[name] for name in reversed(inside) if name in request.layers), request.scheme)


def check_layers(request: ConversionRequest, program: Any, *, subject: str) -> None:
    """Raise an error unless the program has every layer that the request names.

    Raises:
        ConfigError: A layer is missing.
    """
    known = {name for node in program.graph.nodes for name in enclosing_modules(node)} - {""}
    if missing := [name for name in request.layers if name not in known]:
        raise ConfigError(f"{subject}: no layer is called {missing[0]!r}; layers are {', '.join(sorted(known))[:300]}")


def quantized_scheme(request: ConversionRequest, program: Any, *, subject: str) -> str:
    """Return the one scheme of the request's layers other than fp32; fp32 without one.

    Raises:
        ConfigError: The request names a layer that the program does not have.
        UnsupportedError: The request names two schemes other than fp32.
    """
    check_layers(request, program, subject=subject)
    wanted = {request.scheme, *request.layers.values()} - {FLOAT32}
    if len(wanted) > 1:
        raise UnsupportedError(f"{subject}: {' and '.join(sorted(wanted))} in one file; beside fp32 a file has one scheme, choose one")
    return wanted.pop() if wanted else FLOAT32
