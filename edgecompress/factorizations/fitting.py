"""Fit the factors of planned layers to their weights, or to the layers' inputs where a method can."""

import copy
from collections.abc import Iterator, Sequence
from typing import Final, cast

from torch import nn

from edgecompress.factorizations import get_method
from edgecompress.factorizations.blocks.layers import DenseLayer, grouped_kernel
from edgecompress.factorizations.moments import collect_moments, supports_moments
from edgecompress.factorizations.parallel import FactorizationJob, Factorized, factorize_all
from edgecompress.network import batches
from edgecompress.network.batches import Batch
from edgecompress.progress import Track, track_silently

MAX_MOMENTS_BYTES: Final = 1_000_000_000  # memory for moments; layers whose moments take more are fitted in several passes
MAX_LAYER_MOMENTS_BYTES: Final = MAX_MOMENTS_BYTES // 2  # a layer whose moments take more is fitted to its weight


def fit_layers(
    model: nn.Module, jobs: Sequence[FactorizationJob], *, inputs: Batch | None = None, track: Track = track_silently
) -> list[Factorized]:
    """Return the fitted factors of layers of `model`, which stays unchanged; see `factorize_all`.

    Args:
        jobs: The layers with methods and ranks, named as in `model`, without moments.
        inputs: Real inputs of the model; data-aware methods then minimise the error of each layer's output on them.
    """
    sizes = {i: _moments_bytes(job) for i, job in enumerate(jobs)} if inputs is not None else {}
    wide = {i for i, size in sizes.items() if size > MAX_LAYER_MOMENTS_BYTES}
    aware = [i for i, size in sizes.items() if 0 < size <= MAX_LAYER_MOMENTS_BYTES]
    plain = [i for i in range(len(jobs)) if i not in aware]
    made = dict(zip(plain, factorize_all([jobs[i] for i in plain], track=track), strict=True))
    for i in wide:
        note = f"second moments of its input would take {sizes[i] / 1e9:.1f} GB, so it was fitted to its weight"
        made[i] = made[i]._replace(note="; ".join(filter(None, (made[i].note, note))))
    if aware and inputs is not None:
        reader = copy.deepcopy(model).eval() if any(m.training for m in model.modules()) else model
        for group in _split_by_memory(aware, jobs, sizes):
            moments = collect_moments(reader, sorted({jobs[i].name for i in group}), batches.split_samples(inputs, batches.MAX_SAMPLES))
            read = [jobs[i]._replace(moments=moments.get(jobs[i].name)) for i in group]
            made |= zip(group, factorize_all(read, track=track), strict=True)
    return [made[i] for i in range(len(jobs))]


def _moments_bytes(job: FactorizationJob) -> int:
    """Return the bytes of the second moments of a layer's input; 0 if the method or the layer cannot use them."""
    form = get_method(job.method)
    if not form.DATA_AWARE or form.reject(job.layer) or not supports_moments(cast(DenseLayer, job.layer)):
        return 0
    k = grouped_kernel(cast(DenseLayer, job.layer))
    return 8 * len(k) * k[0, 0].numel() ** 2


def _split_by_memory(chosen: Sequence[int], jobs: Sequence[FactorizationJob], sizes: dict[int, int]) -> Iterator[list[int]]:
    """Split jobs into groups whose moments fit into memory together."""
    group: list[int] = []
    held: dict[str, int] = {}
    for i in chosen:
        if group and sum((held | {jobs[i].name: sizes[i]}).values()) > MAX_MOMENTS_BYTES:
            yield group
            group, held = [], {}
        group.append(i)
        held[jobs[i].name] = sizes[i]
    if group:
        yield group
