"""The work of the peers, run in their own environment: tensorly 0.10, tensorly-torch 0.5 and musco-pytorch 1.0.6.

Only the file with the EVBMF function of musco runs. Importing the package imports scikit-tensor-py3, which fails at `np.float` (removed
from NumPy in 1.24) and asks for numpy 1.16 and scipy 1.3, of which there are no wheels for Python 3.11; its CP layers import
`tensorly.kruskal_tensor`, which tensorly has renamed. So the one file is loaded by its path.
"""

import importlib.util
import warnings
from importlib.metadata import distribution
from typing import Any

import numpy as np
import tensorly
import torch
from lines import measure_time, serve
from numpy.typing import NDArray
from tensorly.decomposition import parafac, partial_tucker
from tltorch import FactorizedConv

warnings.simplefilter("ignore")


def evbmf(matrix: NDArray[np.float32]) -> dict[str, Any]:
    seconds, (_, values, _, _) = measure_time(lambda: musco.EVBMF(matrix))
    return {"seconds": seconds, "rank": len(values)}


def tucker2(kernel: NDArray[np.float32], ranks: list[int]) -> dict[str, Any]:
    """Decompose with tensorly on its default backend, with its default start and tolerance."""
    tensorly.set_backend("numpy")
    seconds, ((core, factors), _) = measure_time(lambda: partial_tucker(kernel, rank=ranks, modes=[0, 1]))
    u, v, g = (np.asarray(part, dtype=np.float64) for part in (*factors, core))
    return {"seconds": seconds, "relative_error": relative_error(kernel, np.einsum("ta,abhw,sb->tshw", u, g, v, optimize=True))}


def factorized_conv(kernel: NDArray[np.float32], ranks: list[int]) -> dict[str, Any]:
    """Make a Tucker layer of a convolution with tensorly-torch; the ranks of the kernel area stay full."""
    tensorly.set_backend("pytorch")
    out, inside, *area = kernel.shape
    conv = torch.nn.Conv2d(inside, out, area, bias=False)
    conv.weight.data = torch.from_numpy(kernel)
    seconds, made = measure_time(
        lambda: FactorizedConv.from_conv(conv, rank=(*ranks, *area), factorization="tucker", fixed_rank_modes="spatial")
    )
    return {"seconds": seconds, "relative_error": relative_error(kernel, made.weight.to_tensor().detach().double().numpy())}


def cp(kernel: NDArray[np.float32], rank: int, sweeps: int) -> dict[str, Any]:
    """Decompose with tensorly's ALS on its default backend, from its default start, without computing the error between sweeps."""
    tensorly.set_backend("numpy")
    tensor = kernel.reshape(*kernel.shape[:2], -1)
    seconds, (weights, factors) = measure_time(lambda: parafac(tensor, rank, n_iter_max=sweeps, tol=0, random_state=0))
    out, inside, area = (np.asarray(f, dtype=np.float64) for f in factors)
    area = area * weights
    error = relative_error(tensor, np.einsum("tr,sr,ar->tsa", out, inside, area, optimize=True))
    return {"seconds": seconds, "relative_error": error, "out": out, "inside": inside, "area": area}


def relative_error(exact: NDArray[np.float32], made: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(exact - made) / np.linalg.norm(exact))


if __name__ == "__main__":
    path = distribution("musco-pytorch").locate_file("musco/pytorch/compressor/rank_selection/vbmf.py")
    spec = importlib.util.spec_from_file_location("musco_vbmf", str(path))
    musco = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(musco)
    serve(evbmf, tucker2, factorized_conv, cp)
