"""Compare factorizations with tensorly, tensorly-torch and musco: time, error, sensitivity and memory on layers of ResNet-18 and VGG-16.

Both sides get the same kernels and one thread, and run in turns. A time is the median processor time of the repetitions, because other
work on the machine disturbs it least. The rows of the whole ResNet-18 use all cores and measure elapsed time. The first run creates the
environment of the peers.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peer_environment
import torch
from kernels import Kernels, shapes_3x3
from lines import Worker
from rows import Rows, parse

from edgecompress.devices.statistics import median
from edgecompress.factorizations.tensors.sensitivity import balance_factors, sensitivity_of

Call = Callable[[], dict[str, Any]]


class Sizes(NamedTuple):
    """Sizes of the layers, and the bounds that depend on them: our time over the time of the peer."""

    evbmf: int = 512
    tucker2: int = 512
    cp: int = 256
    width: int = 64  # channels of ResNet-18's first stage, in the rows of its 3×3 kernels
    whole: int = 64  # the same, in the rows that factorize all its layers
    linear: tuple[int, int] = (4096, 25088)
    modes: tuple[tuple[int, ...], tuple[int, ...]] = ((4, 4, 4, 4, 4, 4), (2, 7, 8, 8, 7, 4))
    repetitions: int = 5
    evbmf_bound: float = 1 / 100
    tucker2_bound: float = 1 / 6


QUICK = Sizes(256, 256, 128, 16, 8, (1024, 6272), ((4, 4, 4, 4, 4), (7, 7, 8, 4, 4)), 3, tucker2_bound=1 / 4)


class Benchmark:
    def __init__(self, rows: Rows, sizes: Sizes, kernels: Kernels, ours: Worker, peers: Worker) -> None:
        self.rows, self.sizes, self.kernels, self.ours, self.peers = rows, sizes, kernels, ours, peers

    def evbmf(self) -> None:
        n = self.sizes.evbmf
        matrix = self.kernels(n, n, 3, 3).flatten(1).numpy()
        work = f"EVBMF of the unfolding {n}×{9 * n}"
        (t, made), (peer_t, peer) = self.call_in_turns(*(lambda w=w: w.call("evbmf", matrix=matrix) for w in (self.ours, self.peers)))
        self.rows.add(f"{work}, seconds, over musco", ours=t, peer=peer_t, bound=self.sizes.evbmf_bound)
        self.rows.add(f"{work}, rank, over musco", ours=made["rank"], peer=peer["rank"], bound=1)
        self.rows.add(f"{work}, rank, over musco", ours=made["rank"], peer=peer["rank"], bound=1, sense=">=")

    def tucker2(self) -> None:
        n, bound = self.sizes.tucker2, self.sizes.tucker2_bound
        data = {"kernel": self.kernels(n, n, 3, 3).numpy(), "ranks": [n // 4, n // 4]}
        (t, made), (peer_t, peer), (conv_t, conv) = self.call_in_turns(
            lambda: self.ours.call("tucker2", **data),
            lambda: self.peers.call("tucker2", **data),
            lambda: self.peers.call("factorized_conv", **data),
        )
        work = f"Tucker-2 of {n}×{n}×3×3 at a quarter of the ranks"
        for name, seconds, other in (("tensorly", peer_t, peer), ("tensorly-torch", conv_t, conv)):
            self.rows.add(f"{work}, seconds, over {name}", ours=t, peer=seconds, bound=bound)
            excess = made["relative_error"] - other["relative_error"]
            self.rows.add(f"{work}, relative error above {name}'s", ours=excess, peer=None, bound=1e-6)

    def cp(self) -> None:
        n = self.sizes.cp
        data = {"kernel": self.kernels(n, n, 3, 3).numpy(), "rank": rank_for(n, n, rate=4)}
        aim = self.peers.call("cp", **data, sweeps=100)["relative_error"]
        (peer_t, _), (t, made) = self.call_in_turns(
            lambda: self.peers.call("cp", **data, sweeps=100),
            lambda: self.ours.call("cp_until", **data, error=aim),
            repetitions=3,
        )
        work = f"CP-ALS of {n}×{n}×9 at rank {data['rank']} to the error of 100 sweeps of tensorly"
        self.rows.add(f"{work}, seconds", ours=t, peer=peer_t, bound=1 / 3)
        self.rows.add(f"{work}, relative error", ours=made["relative_error"], peer=aim, bound=1)

    def sensitivity(self) -> None:
        for out, inside, *_ in shapes_3x3(self.sizes.width):
            data = {"kernel": self.kernels(out, inside, 3, 3).numpy(), "rank": rank_for(out, inside, rate=2)}
            peer = self.peers.call("cp", **data, sweeps=100)
            made = self.ours.call("cp_epc", **data, error=1.01 * peer["relative_error"])
            work = f"CP of {out}×{inside}×9 at rank {data['rank']}"
            ss, peer_ss, at_best = (
                *(sensitivity_of(factors(reply)) for reply in (made, peer)),
                sensitivity_of(balance_factors(factors(peer))),
            )
            self.rows.add(f"{work}, sensitivity, over parafac", ours=ss, peer=peer_ss, bound=1 / 5, peer_balanced=at_best)
            self.rows.add(f"{work}, relative error, over parafac", ours=made["relative_error"], peer=peer["relative_error"], bound=1.01)

    def whole(self) -> None:
        width = self.sizes.whole
        for work, call, budget in (
            ("Tucker-2 at EVBMF's ranks", "whole_tucker2", 5),
            ("CP-EPC at half the parameters", "whole_cp_epc", 600),
        ):
            made = self.ours.call(call, width=width)
            self.rows.add(f"ResNet-18 of width {width}, {work}, seconds, over the budget", ours=made["seconds"], peer=budget, bound=1)

    def memory(self, fresh: Callable[[], Worker]) -> None:
        n, (out, inside), (out_modes, in_modes) = 512, self.sizes.linear, self.sizes.modes
        for work, method, shape, rank, options, grams in (
            (f"Tucker-2 of {n}×{n}×3×3", "tucker2", (n, n, 3, 3), (n // 4, n // 4), {}, 2 * n * n),
            (f"SVD of a {inside}×{out} Linear at rank 256", "svd", (out, inside), (256,), {}, 2 * out * out),
            (
                f"tensor train of a {inside}×{out} Linear at ranks 4",
                "tensor_train",
                (out, inside),
                (4,) * (len(out_modes) - 1),
                {"in_modes": in_modes, "out_modes": out_modes},
                0,
            ),
        ):
            with fresh() as worker:
                made = worker.call("memory", method=method, shape=shape, rank=rank, options=options)
            weight = 4 * int(np.prod(shape))
            self.rows.add(
                f"{work}, bytes beyond the layer, over 3 weights and the Gram matrices",
                ours=made["grown"],
                peer=3 * weight + 8 * grams,
                bound=1,
            )
            if method != "tucker2":
                self.rows.add(f"{work}, peak bytes of the process, over 4 GB", ours=made["peak"], peer=4e9, bound=1)

    def call_in_turns(self, *calls: Call, repetitions: int | None = None) -> list[tuple[float, dict[str, Any]]]:
        """Make all calls in turns; return the median seconds and the last reply of each."""
        replies = [[call() for call in calls] for _ in range(repetitions or self.sizes.repetitions)]
        return [(median([reply["seconds"] for reply in mine]), mine[-1]) for mine in zip(*replies, strict=True)]


def rank_for(out: int, inside: int, *, rate: int) -> int:
    """Return the largest CP rank with at most 1 / `rate` of the parameters of a 3×3 kernel."""
    return out * inside * 9 // (rate * (out + inside + 9))


def factors(reply: dict[str, Any]) -> list[torch.Tensor]:
    return [torch.from_numpy(reply[name]) for name in ("area", "inside", "out")]


def main() -> None:
    arguments = parse(__doc__, weights="safetensors file of a trained model whose kernels are used where their shapes fit")
    sizes = QUICK if arguments.quick else Sizes()
    python = peer_environment.python()

    def our_worker() -> Worker:
        return Worker(Path(sys.executable), "factorization_jobs.py", threads=1)

    with our_worker() as ours, Worker(python, "factorization_peers.py", threads=1) as peers:
        benchmark = Benchmark(Rows(arguments.write), sizes, Kernels(arguments.weights and Path(arguments.weights)), ours, peers)
        benchmark.evbmf()
        benchmark.tucker2()
        benchmark.cp()
        benchmark.sensitivity()
        benchmark.whole()
    benchmark.memory(our_worker)
    benchmark.rows.end()


if __name__ == "__main__":
    main()
