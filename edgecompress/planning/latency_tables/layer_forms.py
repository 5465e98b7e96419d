"""Describe a layer by its geometry and form, as cost tables do, not by its name or weights."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from edgecompress.factorizations.blocks.layers import DenseLayer
from edgecompress.factorizations.cache import layer_arguments
from edgecompress.records import LayerForm, LayerStats


def layer_form(
    layer: LayerStats, module: nn.Module, method: str, rank: tuple[int, ...], options: Mapping[str, Any] | None = None
) -> LayerForm:
    """Return everything that the latency of a layer with this method and rank depends on."""
    return LayerForm(
        kind=type(module).__name__,
        arguments=layer_arguments(cast(DenseLayer, module)),
        input_shape=layer.input_shape,
        method=method,
        rank=rank,
        options=dict(options or {}),
    )
