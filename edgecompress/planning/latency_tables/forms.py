"""Layers as cost tables know them: by geometry and form, not by name or weights."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from edgecompress.factorizations.blocks.layers import Layer
from edgecompress.factorizations.cache import arguments_of
from edgecompress.records import LayerForm, LayerStats


def form_of(
    layer: LayerStats, module: nn.Module, method: str, rank: tuple[int, ...], options: Mapping[str, Any] | None = None
) -> LayerForm:
    """Return what the latency of a layer in a form depends on."""
    return LayerForm(
        kind=type(module).__name__,
        arguments=arguments_of(cast(Layer, module)),
        input_shape=layer.input_shape,
        method=method,
        rank=rank,
        options=dict(options or {}),
    )
