"""Count parameters, MACs and milliseconds of every layer of a network."""

import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from edgecompress.network.batches import call_network
from edgecompress.network.containers import find_irreplaceable_layers
from edgecompress.network.counting import params_of, record_layer_costs
from edgecompress.network.threads import use_threads
from edgecompress.progress import Track, track_silently
from edgecompress.records import LayerStats, ModelStats

REPETITIONS = 15  # the median of so many runs is steady, and large networks take seconds each


@torch.inference_mode()
def analyze(
    model: nn.Module, example_inputs: tuple[Tensor, ...], *, name: str = "model", measure: bool = True, track: Track = track_silently
) -> ModelStats:
    """Return parameters, MACs, shapes and, with `measure`, median eager milliseconds of each Linear and convolution; batch 1, one thread.

    Raises:
        ConfigError: The model does not run on the example inputs; see `call_network`.
    """
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with use_threads(1):
            with record_layer_costs(model, len(example_inputs[0])) as seen:
                call_network(model, example_inputs)
            irreplaceable = find_irreplaceable_layers(model, example_inputs, list(seen))
            times, total = _time_layers(model, example_inputs, track) if measure else ({}, None)
    finally:
        for module, mode in training.items():
            module.training = mode
    modules = dict(model.named_modules())
    layers = tuple(
        LayerStats(
            name=layer,
            kind=type(modules[layer]).__name__,
            weight_shape=tuple(modules[layer].weight.shape),
            input_shape=one.input_shape,
            output_shape=one.output_shape,
            params=params_of(modules[layer]),
            macs=one.macs,
            calls=one.calls,
            activation_bytes=one.activation_bytes,
            latency_ms=times.get(layer),
            irreplaceable=irreplaceable.get(layer, ""),
        )
        for layer, one in seen.items()
    )
    return ModelStats(
        model=name,
        input_shapes=tuple(tuple(x.shape) for x in example_inputs),
        layers=layers,
        params=params_of(model),
        macs=sum(layer.macs for layer in layers),
        latency_ms=total,
        conditions={"runtime": f"torch {torch.__version__} eager", "threads": "1", "repetitions": str(REPETITIONS)} if measure else {},
    )


def _time_layers(model: nn.Module, inputs: tuple[Tensor, ...], track: Track) -> tuple[dict[str, float], float]:
    """Return the median ms of each module without children, and of the whole model without hooks."""
    spent: defaultdict[str, float] = defaultdict(float)
    samples: defaultdict[str, list[float]] = defaultdict(list)

    def make_hooks(name: str) -> tuple[Any, Any]:
        started = 0.0

        def start_clock(*_: object) -> None:
            nonlocal started
            started = time.perf_counter()

        def stop_clock(*_: object) -> None:
            spent[name] += 1e3 * (time.perf_counter() - started)

        return start_clock, stop_clock

    handles = []
    for name, module in model.named_modules():
        if name and not list(module.children()):
            start, stop = make_hooks(name)
            handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        for _ in track(range(REPETITIONS), "timing layers", REPETITIONS):
            spent.clear()
            model(*inputs)
            for name, ms in spent.items():
                samples[name].append(ms)
    finally:
        for handle in handles:
            handle.remove()
    whole = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        model(*inputs)
        whole.append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in samples.items()}, statistics.median(whole)
