"""Measure the error that rounding adds to CP factors of trained kernels: int8 with one scale a layer, int4 with one scale a channel.

A row is the relative error after rounding over the error before rounding; beside it is the same ratio for the factors that tensorly's
parafac finds in 100 sweeps at the same rank. Factors for 4 bits get 10% of slack, because that leaves less error after rounding than 1%
does. The row of cp_quantized is bounded by the rounded error of cp_epc. --rate sets how many times fewer parameters the factors have; at
2 some kernels are reproduced so closely that 4 bits cost more than the bound. --quick changes nothing: the full run takes half a minute.
"""

from collections.abc import Iterator

import torch
from rows import Rows, parse
from tensorly.decomposition import parafac
from torch import Tensor, nn

from edgecompress import toolchains
from edgecompress.data.recipe import load_recipe
from edgecompress.factorizations.tensors.cp import CP, compose_tensor, kernel_tensor
from edgecompress.factorizations.tensors.epc import decompose_stably
from edgecompress.factorizations.tensors.quantized_cp import quantize_factors, round_factors

NETWORKS = ("resnet20_fashion_mnist", "efficientnet_lite0")
GRIDS = ((8, False, 0.01, "int8, one scale a layer", 1.01), (4, True, 0.1, "int4, one scale a channel", 1.3))


def kernels() -> Iterator[tuple[str, Tensor]]:
    """Yield the kernels that CP can factorize: those that are neither of size 1 nor depthwise."""
    for network in NETWORKS:
        model = load_recipe(str(toolchains.REPOSITORY / "examples" / network)).model()
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) and layer.groups == 1 and layer.in_channels > 1:
                yield f"{network} {name}", layer.weight.detach().double()


def parafac_factors(k: Tensor, rank: int) -> CP:
    weights, factors = parafac(kernel_tensor(k).x.numpy(), rank, n_iter_max=100, tol=0, init="random", random_state=0)
    area, inside, out = (torch.from_numpy(f) for f in factors)
    return [area * torch.from_numpy(weights), inside, out]


def relative_error(k: Tensor, factors: CP) -> float:
    return float(torch.linalg.vector_norm(k - compose_tensor(factors).reshape(k.shape)) / torch.linalg.vector_norm(k))


def main() -> None:
    arguments = parse(__doc__, rate="how many times fewer parameters the factors have [4]")
    rows = Rows(arguments.write)
    torch.set_num_threads(1)
    for name, k in kernels():
        rank = max(1, int(k.numel() / float(arguments.rate or 4) / (k.shape[0] + k.shape[1] + k[0, 0].numel())))
        kernel = kernel_tensor(k)
        theirs = parafac_factors(k, rank)
        for bits, per_channel, slack, grid, bound in GRIDS:
            ours = decompose_stably(kernel, rank, slack=slack).factors
            lost, peer = (relative_error(k, round_factors(f, bits, per_channel=per_channel)) / relative_error(k, f) for f in (ours, theirs))
            on_grid = quantize_factors(kernel, ours, bits=bits, per_channel=per_channel).error / relative_error(k, ours)
            rows.add(
                f"{name}, rank {rank}, error {relative_error(k, ours):.3f}, {grid}: cp_epc", ours=lost, peer=None, bound=bound, parafac=peer
            )
            rows.add(f"{name}, rank {rank}, {grid}: cp_quantized", ours=on_grid, peer=None, bound=lost, parafac=peer)
    rows.end()


if __name__ == "__main__":
    main()
