"""The network with every layer at a third of its parameters, measured to tell its layers' latency from the rest.

The latency of a network beside its layers, and how much faster its layers run inside it than alone, are two unknowns. The dense network and
this one give two equations; `latency_tables.layer_fraction` solves them.
"""

import copy
from typing import Final

from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS, factorize
from edgecompress.factorizations.ranks import rank_by_parameter_rate
from edgecompress.network.surgery import replace_module
from edgecompress.planning.candidates import effective_calls
from edgecompress.planning.latency_tables.layer_forms import layer_form
from edgecompress.records import LayerForm, ModelStats

PARAMETER_RATE: Final = 3.0  # parameters before over after; plans end near this rate
RANK_MULTIPLE: Final = 8  # kernels are fast at multiples of it
METHODS_TO_TRY: Final = ("tucker2", "svd")


def reduce_network(model: nn.Module, stats: ModelStats) -> nn.Module:
    """Return a copy of the network in which every layer is factorized that can be."""
    made = copy.deepcopy(model)
    for layer in stats.layers:
        module = model.get_submodule(layer.name)
        method, rank = _method_and_rank(module)
        if method == "dense":
            continue
        replace_module(made, layer.name, factorize(module, method, rank))
    return made.eval()


def form_pairs(model: nn.Module, stats: ModelStats) -> list[tuple[LayerForm, LayerForm, float]]:
    """Return for each layer its dense form, its form in the reduced network, and how often it is called."""
    found = []
    for layer in stats.layers:
        module = model.get_submodule(layer.name)
        small = layer_form(layer, module, *_method_and_rank(module))
        found.append((layer_form(layer, module, "dense", ()), small, float(effective_calls(layer, module))))
    return found


def _method_and_rank(module: nn.Module) -> tuple[str, tuple[int, ...]]:
    """Return a layer's method and rank in the reduced network; "dense" if no method can take the layer at that rate."""
    for method in METHODS_TO_TRY:
        if METHODS[method].reject(module) is None:
            try:
                rank = rank_by_parameter_rate(module, method, PARAMETER_RATE)
            except ConfigError:  # even rank 1 has more parameters
                continue
            return method, tuple(r if r < RANK_MULTIPLE else r // RANK_MULTIPLE * RANK_MULTIPLE for r in rank)
    return "dense", ()
