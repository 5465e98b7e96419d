"""Latencies of single layers on a device: the forms to measure, and the table of measured costs."""

from __future__ import annotations

from typing import Any

from edgecompress.records.base import SCHEMA, Record


class LayerForm(Record, frozen=True, kw_only=True):
    """The geometry of one layer, dense or in one low-rank form, on which its latency depends; without weights.

    Attributes:
        kind: Class name in `torch.nn`.
        arguments: Arguments of the class's constructor.
        input_shape: Without the batch axis, channels first.
        method: A factorization, or "dense".
        options: Options of the method that differ from its defaults.
    """

    kind: str
    arguments: dict[str, Any]
    input_shape: tuple[int, ...]
    method: str = "dense"
    rank: tuple[int, ...] = ()
    options: dict[str, Any] = {}

    @property
    def geometry(self) -> str:
        """The layer without its form, e.g. `Conv2d 64→64 3×3 /1 @56×56`: a readable key that all forms of one layer share."""
        a = self.arguments
        if self.kind == "Linear":
            return f"Linear {a['in_features']}→{a['out_features']} @{_join_sizes(self.input_shape)}"
        channels = f"{a['in_channels']}→{a['out_channels']}"
        usual = {"padding": _same_padding(a["kernel_size"]), "dilation": 1, "groups": 1, "padding_mode": "zeros", "output_padding": 0}
        others = [f"{name}={_join_sizes(a[name])}" for name, value in usual.items() if name in a and not _is_usual(a[name], value)]
        return " ".join(
            (
                self.kind,
                channels,
                _join_sizes(a["kernel_size"]),
                f"/{_join_sizes(a['stride'])}",
                *others,
                f"@{_join_sizes(self.input_shape[1:])}",
            )
        )

    @property
    def form(self) -> str:
        """The form without the layer: `dense`, `tucker2 16×24`."""
        options = [f"{name}={value}" for name, value in sorted(self.options.items())]
        return " ".join(filter(None, (self.method, _join_sizes(self.rank), *options)))


class LayerFile(Record, frozen=True, kw_only=True):
    """A layer's form to write to `output`, as a TFLite file of a scheme."""

    layer: LayerForm
    scheme: str
    output: str


class LayersRequest(Record, frozen=True, kw_only=True):
    """The request for files of single layers, sent to the TFLite converter."""

    schema: int = SCHEMA
    files: tuple[LayerFile, ...]


class LayersReply(Record, frozen=True, kw_only=True):
    """The reply to a `LayersRequest`; `refused` maps an output to the reason why the form could not be written in its scheme."""

    toolchain: dict[str, str]
    refused: dict[str, str] = {}


class Cost(Record, frozen=True, kw_only=True):
    """Median latency of one layer's file beyond that of an empty call, measured interleaved with other layers.

    Attributes:
        spread: MAD over median.
        macs: Multiply-adds of one inference, by which costs between measured ranks are interpolated.
        again: Whether the cost was measured once more since a plan chose it.
    """

    ms: float
    spread: float
    macs: int
    measured_at: str
    again: bool = False


class NetworkCost(Cost, frozen=True, kw_only=True):
    """Median latency of a whole dense network.

    Attributes:
        layers_ms: Latency of its layers within it, see `planning.latency_tables.layer_fraction`.
    """

    layers_ms: float


class CostTable(Record, frozen=True, kw_only=True):
    """Costs of layers on one kind of device, with one runtime and number of threads.

    Attributes:
        device: Model, SoC and ABI, which all boards of one kind share.
        runtime: Runtime and version, e.g. `ai-edge-litert 2.3.0`.
        layers: Geometry → form → scheme → cost, see `LayerForm`.
        networks: Hash of a dense network's program → scheme → cost of the whole network.
    """

    schema: int = SCHEMA
    device: str
    runtime: str
    threads: int
    cpu_mask: str = ""
    layers: dict[str, dict[str, dict[str, Cost]]] = {}
    networks: dict[str, dict[str, NetworkCost]] = {}


def _join_sizes(values: Any) -> str:
    return "×".join(map(str, values)) if isinstance(values, (tuple, list)) else str(values)


def _same_padding(size: Any) -> tuple[int, ...]:
    return tuple(k // 2 for k in size)


def _is_usual(value: Any, usual: Any) -> bool:
    if isinstance(value, (tuple, list)) and not isinstance(usual, tuple):
        return all(v == usual for v in value)
    return bool((tuple(value) if isinstance(value, list) else value) == usual)
