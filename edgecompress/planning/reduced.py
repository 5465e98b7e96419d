"""A network with every layer at a third of its parameters: a second point to measure latencies by.

What a network takes beside its layers, and how much less than alone its layers take inside of it, are two unknowns. The dense network and
this one give two equations; `costs.shares.layers_share` solves them.
"""

import copy
from typing import Final

from torch import nn

from edgecompress.errors import ConfigError
from edgecompress.factorizations import METHODS, factorize
from edgecompress.factorizations.ranks import parameter_rate
from edgecompress.network.surgery import replace
from edgecompress.planning.candidates import repeats
from edgecompress.planning.latency_tables.forms import form_of
from edgecompress.records import LayerForm, ModelStats

RATE: Final = 3.0  # parameters before over after: about where plans end
MULTIPLE: Final = 8  # of ranks, as kernels like them
TRIED: Final = ("tucker2", "svd")


def reduced(model: nn.Module, stats: ModelStats) -> nn.Module:
    """Return a copy of the network with every layer factorized that can be, as well as that rank allows."""
    made = copy.deepcopy(model)
    for layer in stats.layers:
        module = model.get_submodule(layer.name)
        method, rank = _choice(module)
        if method == "dense":
            continue
        replace(made, layer.name, factorize(module, method, rank))
    return made.eval()


def forms(model: nn.Module, stats: ModelStats) -> list[tuple[LayerForm, LayerForm, float]]:
    """Return each layer as it is and as it is in the reduced network, and how often it is called."""
    found = []
    for layer in stats.layers:
        module = model.get_submodule(layer.name)
        small = form_of(layer, module, *_choice(module))
        found.append((form_of(layer, module, "dense", ()), small, float(repeats(layer, module))))
    return found


def _choice(module: nn.Module) -> tuple[str, tuple[int, ...]]:
    for method in TRIED:
        if METHODS[method].reject(module) is None:
            try:
                rank = parameter_rate(module, method, RATE)
            except ConfigError:  # no rank is so small
                continue
            return method, tuple(r if r < MULTIPLE else r // MULTIPLE * MULTIPLE for r in rank)
    return "dense", ()
