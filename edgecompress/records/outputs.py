"""Outputs of a network: the kind of each one, and how much of it a compressed network keeps."""

from __future__ import annotations

from typing import Literal, get_args

from edgecompress.records.base import Record

OutputKind = Literal["logits", "probabilities", "independent", "class_map", "classes", "values", "embedding", "state", "ignore"]
OUTPUT_KINDS: tuple[str, ...] = get_args(OutputKind)


class OutputSpec(Record, frozen=True, kw_only=True):
    """The kind of one output, by which it is judged and distilled; `edgecompress.network.output_kinds.KINDS` describes the kinds.

    Attributes:
        name: The key of a dict or the field of a named tuple that the network returns; `output_0`, … otherwise.
        source: Where the kind was read, in words; "" where the user gives it.
        axis: Axis of the classes or directions; None for the kind's usual one.
        tolerance: Of `values`: the largest difference that is no loss, in the output's unit.
        scale: Of `values`: the magnitude that errors are divided by; None for the standard deviation of the dense network's values.
        channels: What each channel along `axis`, or axis 1, holds, for those who read the manifest: `left in pixels`, `score of dog`.
    """

    kind: OutputKind
    name: str = ""
    source: str = ""
    axis: int | None = None
    tolerance: float | None = None
    scale: float | None = None
    channels: tuple[str, ...] = ()


class OutputFidelity(Record, frozen=True, kw_only=True):
    """How much of one output is kept of the dense network's.

    Attributes:
        kept: The number that the bound is for, from 0 to 1: see the kind.
        min_kept: The bound.
        agreement: Fraction of the answers that are the same; None for kinds without answers.
        cosine, neighbours: Mean cosine, and fraction of the samples whose nearest neighbour is the same; None for other kinds and for too
            few samples.
        relative_error: Root mean square difference over the standard deviation of the dense network's values, of the worst channel.
        sqnr_db: 20·log10(1 / relative_error), capped at 200.
        channel: Index of the worst channel along `channel_axis`; None for one channel alone, and for kinds without channels.
        max_abs: Largest difference of any value.
    """

    name: str
    kind: OutputKind
    kept: float
    min_kept: float
    max_abs: float
    agreement: float | None = None
    cosine: float | None = None
    neighbours: float | None = None
    relative_error: float | None = None
    sqnr_db: float | None = None
    channel: int | None = None
    channel_axis: int | None = None

    @property
    def details(self) -> tuple[str, ...]:
        """The numbers beside `kept` in words, by the kind; the channel is named where it decided."""
        found = []
        if self.cosine is not None:
            found.append(f"cosine {self.cosine:.4f}")
        if self.neighbours is not None:
            found.append(f"nearest neighbours {self.neighbours:.1%}")
        where = "" if self.channel is None else f"channel {self.channel} of axis {self.channel_axis}"
        if self.sqnr_db is not None:
            found.append(f"{self.sqnr_db:.1f} dB{where and f' in {where}'}".replace("-", "−"))
        elif where:
            found.append(f"{where} is constant")
        if self.kind == "independent":
            found.append(f"largest difference {self.max_abs:.2g}")
        return tuple(found)

    @property
    def has_answers(self) -> bool:
        """Whether the fraction that is kept is one of answers."""
        return self.agreement is not None and self.kind != "independent"


class Fidelity(Record, frozen=True, kw_only=True):
    """How much a compressed network or its file keeps of the dense network, on held-out inputs, for every output by its kind."""

    outputs: tuple[OutputFidelity, ...]
    samples: int

    @property
    def worst(self) -> OutputFidelity | None:
        """The output that is nearest to its bound or furthest beyond it; None where every output is ignored."""
        return min(self.outputs, key=lambda each: each.kept - each.min_kept, default=None)

    @property
    def holds(self) -> bool:
        """Whether every output keeps its bound."""
        return all(each.kept >= each.min_kept for each in self.outputs)
