"""Quantize an exported program to int8 by FX graph mode quantization.

FX quantization handles calls of `torch.nn.functional`, not the aten ops of an exported program; the graph is therefore first rewritten with
such calls. An aten op without an entry in FUNCTIONAL stays in the graph and computes in float.
"""

import operator
from collections.abc import Callable
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.ao.quantization import (
    HistogramObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_quant_observer,
    get_default_qconfig,
    get_default_qconfig_mapping,
    quantize_fx,
)

from edgecompress.errors import ToolchainError, UnsupportedError, first_line
from edgecompress.quantization.fake_quantize import largest_integer

aten = torch.ops.aten
ENGINES: Final = ("qnnpack", "x86", "fbgemm", "onednn")  # qnnpack first: it is what ARM phones have
FUNCTIONAL: Final[dict[Any, Callable[..., Any]]] = {
    aten.linear.default: F.linear,
    aten.relu.default: F.relu,
    aten.relu6.default: F.relu6,
    aten.hardtanh.default: F.hardtanh,
    aten.leaky_relu.default: F.leaky_relu,
    aten.elu.default: F.elu,
    aten.hardswish.default: F.hardswish,
    aten.hardsigmoid.default: F.hardsigmoid,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.silu.default: F.silu,
    aten.gelu.default: F.gelu,
    aten.add.Tensor: operator.add,
    aten.mul.Tensor: operator.mul,
    aten.cat.default: torch.cat,
    aten.mean.dim: torch.mean,
    aten.max_pool1d.default: F.max_pool1d,
    aten.max_pool2d.default: F.max_pool2d,
    aten.avg_pool2d.default: F.avg_pool2d,
    aten.adaptive_avg_pool1d.default: F.adaptive_avg_pool1d,
    aten.adaptive_avg_pool2d.default: F.adaptive_avg_pool2d,
    aten.flatten.using_ints: torch.flatten,
    aten.permute.default: torch.permute,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze,
    aten.pad.default: F.pad,
}
CONVOLUTIONS: Final = {
    aten.conv1d.default: F.conv1d,
    aten.conv2d.default: F.conv2d,
    aten.conv3d.default: F.conv3d,
    aten.conv1d.padding: F.conv1d,
    aten.conv2d.padding: F.conv2d,
    aten.conv3d.padding: F.conv3d,
}
CONVOLUTION_DEFAULTS: Final = (None, None, None, 1, 0, 1, 1)  # input, weight, bias, stride, padding, dilation, groups
CLAMPS: Final = {F.relu6, F.hardtanh}
# The grid of edgecompress.quantization.gptq. The default step is a 127.5th of the peak, which would round compensated weights anew.
INT8_MAX: Final = largest_integer(8)
WEIGHTS: Final = PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-INT8_MAX, quant_max=INT8_MAX
)
ATEN_CLAMPS: Final = {aten.relu6.default, aten.hardtanh.default}
LAYERS: Final = {*CONVOLUTIONS, aten.linear.default, aten.add.Tensor}
RESHAPE: Final = {aten.view.default, aten.reshape.default}


def to_functional_module(program: torch.export.ExportedProgram, stays_float: Callable[[fx.Node], bool]) -> fx.GraphModule:
    """Return the program as a plain module of functional calls: tensors in, one tensor or a tuple out.

    Args:
        stays_float: Whether an aten node computes in float in any case.
    """
    source = program.module(check_guards=False)
    assert isinstance(source, fx.GraphModule)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in source.graph.nodes:
        if node.op == "output":
            results = [copies[result] for result in node.args[0]]
            graph.output(results[0] if len(results) == 1 else tuple(results))
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].type = None
        if stays_float(node):
            continue
        if node.target in CONVOLUTIONS:
            _write_convolution(node, copies[node])
        elif node.target in RESHAPE:
            copies[node].op, copies[node].target = "call_method", "reshape"
        elif node.target in ATEN_CLAMPS and (not _can_fuse_clamp(node) or stays_float(node.args[0])):
            continue
        elif node.target in FUNCTIONAL and not (node.target is aten.add.Tensor and node.kwargs):  # add has an alpha, + has none
            copies[node].target = FUNCTIONAL[node.target]
    return fx.GraphModule(source, graph).eval()


def _write_convolution(node: fx.Node, copy: fx.Node) -> None:
    """Make `copy` the functional call, with every argument and padding in numbers, which is what the quantized kernels take."""
    arguments = [*copy.args, *CONVOLUTION_DEFAULTS[len(copy.args) :]]
    sizes = node.args[1].meta["val"].shape[2:] if isinstance(node.args[1], fx.Node) else ()
    stride, padding, dilation = (_repeat_for_axes(value, len(sizes)) for value in arguments[3:6])
    if padding[0] == "valid":
        padding = [0] * len(sizes)
    elif padding[0] == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, sizes, strict=True)]
        if any(span % 2 for span in spans):
            return  # pads one side more than the other: no functional call does, it stays float
        padding = [span // 2 for span in spans]
    copy.args = (*arguments[:3], stride, padding, dilation, arguments[6])
    copy.target = CONVOLUTIONS[node.target]


def _repeat_for_axes(value: Any, axes: int) -> list[Any]:
    values = [value] if isinstance(value, int | str) else list(value)
    return values * axes if len(values) == 1 else values


def choose_engine() -> str:
    """Choose the quantized kernels and make torch use them.

    Raises:
        UnsupportedError: This torch has none.
    """
    supported = torch.backends.quantized.supported_engines
    engine = next((name for name in ENGINES if name in supported), None)
    if engine is None:
        raise UnsupportedError(
            f"torchscript: torch {torch.__version__} has no int8 kernels ({', '.join(supported)}); choose fp32 or format tflite"
        )
    torch.backends.quantized.engine = engine
    return engine


def quantize(
    module: fx.GraphModule, samples: list[tuple[Tensor, ...]], inputs: tuple[Tensor, ...], *, dynamic: bool
) -> tuple[fx.GraphModule, list[str]]:
    """Return the int8 module, and a note on the layers that stayed float.

    Raises:
        UnsupportedError: int8-dynamic of a network without a linear layer: torch has dynamic kernels for nothing else.
    """
    before = _count_calls(module, (F.linear, F.conv1d, F.conv2d, F.conv3d))
    if dynamic:
        if not _count_calls(module, (F.linear,)):
            raise UnsupportedError("torchscript: int8-dynamic quantizes linear layers alone and there is none; choose int8-static")
        mapping = QConfigMapping().set_object_type(F.linear, QConfig(default_dynamic_quant_observer, WEIGHTS))
    else:
        mapping = _make_static_mapping(torch.backends.quantized.engine)
    try:
        with torch.no_grad():
            prepared = quantize_fx.prepare_fx(module, mapping, inputs)
            if not dynamic:
                _fuse_clamps(prepared)
            for sample in samples:
                prepared(*sample)
            quantized = quantize_fx.convert_fx(prepared)
    except Exception as error:  # FX quantization fails with assertions and errors of every class
        raise ToolchainError(f"torchscript: FX quantization failed: {first_line(error)}; choose fp32 or format tflite") from error
    left = _count_calls(quantized, (F.linear, F.conv1d, F.conv2d, F.conv3d))
    notes = [f"{left} of {before} convolution and linear layers stayed float32"] if left else []
    return quantized, notes


class _ClampingObserver(HistogramObserver):
    """Clamp, and see what is left. In int8 the clamp is the end of the range: the layer before it saturates there by itself."""

    def __init__(self, low: float, high: float, *, reduce_range: bool) -> None:
        super().__init__(reduce_range=reduce_range)
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(self.low, self.high)
        super().forward(x)
        return x


def _fuse_clamps(prepared: fx.GraphModule) -> None:
    """Make the ReLU6 or hardtanh after a layer the range of that layer's output.

    FX quantization fuses ReLU alone. It would give the layer's output one scale for everything that ReLU6 then cuts off, and then call
    qnnpack's clamp, which mixes up channels (torch 2.13): on EfficientNet-Lite0 nothing of the signal was left.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in list(prepared.graph.nodes):
        if node.op != "call_function" or node.target not in CLAMPS:
            continue
        before, after = node.args[0], next(iter(node.users))
        observer = modules.get(str(before.target))
        if not (isinstance(observer, HistogramObserver) and after.op == "call_module" and len(node.users) == 1):
            continue  # the layer stays float, and so does the clamp
        reduce_range = observer.reduce_range
        prepared.set_submodule(str(before.target), _ClampingObserver(*_clamp_bounds(node), reduce_range=reduce_range))
        after.replace_all_uses_with(before)
        prepared.graph.erase_node(after)
        prepared.graph.erase_node(node)
    prepared.recompile()


def _clamp_bounds(node: fx.Node) -> tuple[float, float]:
    if node.target is F.relu6 or node.target is aten.relu6.default:
        return 0.0, 6.0
    given = [*node.args[1:3], *(node.kwargs[key] for key in ("min_val", "max_val") if key in node.kwargs)]
    low, high = [*given, *(-1.0, 1.0)[len(given) :]]
    return float(cast("float", low)), float(cast("float", high))


def _can_fuse_clamp(node: fx.Node) -> bool:
    """Whether a clamp of the aten graph reads a layer that nothing else reads, and keeps zero."""
    layer = node.args[0]
    low, high = _clamp_bounds(node)
    return isinstance(layer, fx.Node) and layer.target in LAYERS and len(layer.users) == 1 and low <= 0 <= high


def _make_static_mapping(engine: str) -> QConfigMapping:
    """Histogram activation ranges, on the engine's defaults for ops whose range is known."""
    half_range = engine in ("x86", "fbgemm")  # their int16 accumulators overflow on CPUs without VNNI otherwise
    qconfig = QConfig(activation=HistogramObserver.with_args(reduce_range=half_range), weight=WEIGHTS)
    mapping = get_default_qconfig_mapping(engine).set_global(qconfig)
    for layer in (F.conv1d, F.conv2d, F.conv3d, F.linear):
        mapping.set_object_type(layer, qconfig)
    for layer in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
        mapping.set_object_type(layer, get_default_qconfig("qnnpack"))
    return mapping


def _count_calls(module: fx.GraphModule, functions: tuple[Callable[..., Any], ...]) -> int:
    return sum(node.op == "call_function" and node.target in functions for node in module.graph.nodes)
