"""The work of edgecompress in the comparison with its peers, run in a process like theirs."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kernels import resnet18, trained_like
from lines import measure_time, serve
from numpy.typing import NDArray
from torch import nn

from edgecompress.factorizations import METHODS, FitWarning, factorize, parse_options, relative_error
from edgecompress.factorizations.parallel import FactorizationJob, factorize_all
from edgecompress.factorizations.ranks import rank_by_evbmf as evbmf_ranks
from edgecompress.factorizations.ranks import rank_by_parameter_rate
from edgecompress.factorizations.tensors.cp import kernel_tensor, random_factors, run_als
from edgecompress.factorizations.tensors.epc import approach_error, lower_cost
from edgecompress.factorizations.tensors.vbmf import evbmf_rank


def evbmf(matrix: NDArray[np.float32]) -> dict[str, Any]:
    seconds, rank = measure_time(lambda: evbmf_rank(torch.from_numpy(matrix)))
    return {"seconds": seconds, "rank": rank}


def tucker2(kernel: NDArray[np.float32], ranks: list[int]) -> dict[str, Any]:
    layer = convolution(kernel)
    seconds, made = measure_time(lambda: factorize(layer, "tucker2", tuple(ranks)))
    return {"seconds": seconds, "relative_error": relative_error(layer, "tucker2", made)}


def cp_until(kernel: NDArray[np.float32], rank: int, error: float) -> dict[str, Any]:
    """Run ALS until it reaches a relative error."""
    tensor = torch.from_numpy(kernel)
    seconds, run = measure_time(lambda: run_als(kernel_tensor(tensor), rank, sweeps=1000, until=error))
    return {"seconds": seconds, "relative_error": run.error, "sweeps": run.sweeps}


def cp_epc(kernel: NDArray[np.float32], rank: int, error: float) -> dict[str, Any]:
    """Find factors of low sensitivity within a relative error, as cp_epc does within the error of its own ALS."""
    tensor = kernel_tensor(torch.from_numpy(kernel))
    near = approach_error(tensor, random_factors(tensor.shape, rank, 0), bound=error, sweeps=200, tolerance=1e-3)
    run = lower_cost(tensor, near.factors, bound=error)
    area, inside, out = (f.numpy() for f in run.factors)
    return {"relative_error": run.error, "out": out, "inside": inside, "area": area}


def whole_tucker2(width: int) -> dict[str, Any]:
    """Factorize all layers of ResNet-18 at the ranks EVBMF finds: Tucker-2 where a kernel has an area, else SVD."""
    layers = fill_layers(resnet18(width))

    def work() -> Any:
        methods = ["svd" if METHODS["svd"].reject(layer) is None else "tucker2" for layer in layers]
        return factorize_all(
            [
                FactorizationJob(f"layer{i}", layer, m, evbmf_ranks(layer, m))
                for i, (layer, m) in enumerate(zip(layers, methods, strict=True))
            ],
            cache="",
        )

    return {"seconds": elapsed_seconds(work)}


def whole_cp_epc(width: int) -> dict[str, Any]:
    """Factorize all layers of ResNet-18 at half the parameters: CP-EPC where a kernel has an area, else SVD."""
    layers = fill_layers(resnet18(width))

    def work() -> Any:
        methods = ["svd" if METHODS["svd"].reject(layer) is None else "cp_epc" for layer in layers]
        ranks = [rank_by_parameter_rate(layer, m, 2.0) for layer, m in zip(layers, methods, strict=True)]
        return factorize_all(
            [FactorizationJob(f"layer{i}", *job) for i, job in enumerate(zip(layers, methods, ranks, strict=True))], cache=""
        )

    return {"seconds": elapsed_seconds(work)}


def elapsed_seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory(method: str, shape: list[int], rank: list[int], options: dict[str, Any]) -> dict[str, Any]:
    """Factorize one layer in a fresh process; return the growth of its memory and the peak, in bytes."""
    warmed = nn.Linear(64, 32) if len(shape) == 2 else nn.Conv2d(16, 16, 3)
    if METHODS[method].reject(warmed) is None:
        factorize(warmed, method, tuple(1 for _ in METHODS[method].max_rank(warmed, parse_options(method))))
    with torch.device("meta"):
        layer = nn.Linear(shape[1], shape[0], bias=False) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    layer.weight = nn.Parameter(torch.empty(shape).normal_(generator=torch.Generator().manual_seed(0)), requires_grad=False)
    limit = METHODS[method].max_rank(layer, parse_options(method, options))
    Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak to the present size
    before = peak_bytes()
    factorize(layer, method, tuple(map(min, rank, limit)), options=options)
    after = peak_bytes()
    return {"grown": after - before, "peak": after}


def peak_bytes() -> int:
    """Return the largest resident size so far, as Linux reports it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def convolution(kernel: NDArray[np.float32]) -> nn.Conv2d:
    out, inside, *area = kernel.shape
    layer = nn.Conv2d(inside, out, area, bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(kernel))
    return layer


def fill_layers(layers: list[nn.Module]) -> list[nn.Module]:
    """Give layers on the meta device values with the spectra of trained ones, in place; return them."""
    for layer in layers:
        layer.to_empty(device="cpu")
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(trained_like(*p.shape))
    return layers


if __name__ == "__main__":
    warnings.simplefilter("ignore", FitWarning)
    serve(evbmf, tucker2, cp_until, cp_epc, whole_tucker2, whole_cp_epc, memory)
