"""Quantize an exported program to int8 for XNNPACK by quantization of its graph (PT2E)."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torch import Tensor, fx
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from converters.shared.constant_folding import add_constant, fold_constants
from edgecompress.errors import ToolchainError, first_line
from edgecompress.faults.remedies import find_toolchain_remedy
from edgecompress.network.constants import get_constant
from edgecompress.network.folding import remove_unused_constants

aten = torch.ops.aten
CONVOLUTIONS: Final = {
    getattr(aten, name).__getattr__(overload)
    for name, overload in (
        *((f"conv{n}d", kind) for n in (1, 2, 3) for kind in ("default", "padding")),
        ("conv_transpose1d", "default"),
        ("conv_transpose2d", "input"),
        ("conv_transpose3d", "input"),
    )
}
LAYERS: Final = {*CONVOLUTIONS, aten.linear.default}
CLAMPS: Final = {aten.relu6.default, aten.hardtanh.default, aten.clamp.default}
DEQUANTIZE: Final = torch.ops.quantized_decomposed.dequantize_per_tensor.tensor  # with a scale and a zero point computed at run time
MIN_SCALE: Final = 2.0**-20  # with the quantizer's own 2⁻¹², weights below 0.03, as factors have, get fewer than 8 bits


def quantize(
    program: Any,
    samples: list[tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    *,
    dynamic: bool,
    is_quantized: Callable[[fx.Node], bool],
) -> tuple[Any, tuple[str, ...]]:
    """Return the int8 program, and a note on the layers that stayed float.

    Args:
        samples: Calibration inputs.
        inputs: Example inputs.
        dynamic: Activations take their ranges while the file runs, rather than from `samples`.
        is_quantized: Whether a node may be quantized.
    """
    module = program.module(check_guards=False)
    fold_constants(module)  # PT2E makes integers of a constant weight alone, not of one that the graph computes
    _rewrite_clamps(module)
    _hide_batch_norms(module)
    _unshare_biases(module)
    layers = sum(node.target in LAYERS for node in module.graph.nodes)
    quantizer = _Quantizer(dynamic, is_quantized)
    try:
        with torch.no_grad():
            prepared = prepare_pt2e(module, quantizer)
            for sample in samples:
                prepared(*sample)
            converted = convert_pt2e(prepared)
            _unshare_quantized_inputs(converted)
            remove_unused_constants(converted)  # the float weights
            made = torch.export.export(converted, inputs, strict=False)
    except Exception as error:  # PT2E fails with assertions and errors of every class
        remedy = find_toolchain_remedy(error) or "choose fp32 or format tflite"
        raise ToolchainError(f"executorch: PT2E quantization failed: {first_line(error)}; {remedy}") from error
    left = sum(node.target in LAYERS and "dequantize" not in str(node.args[1]) for node in made.graph.nodes)
    return made, ((f"{left} of {layers} convolution and linear layers stayed float32",) if left else ())


class _Quantizer(XNNPACKQuantizer):  # type: ignore[misc]  # executorch has no types
    """XNNPACK's quantizer with ranges of all samples, finer scales, and clamps fused into the layer before them.

    Its own fuses ReLU alone. It would give the layer before a ReLU6 one scale for everything that the ReLU6 then cuts off.
    """

    def __init__(self, dynamic: bool, is_quantized: Callable[[fx.Node], bool]) -> None:
        super().__init__()
        config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
        weight = PerChannelMinMaxObserver.with_args(eps=MIN_SCALE)
        config = dataclasses.replace(config, weight=dataclasses.replace(config.weight, observer_or_fake_quant_ctr=weight))
        if not dynamic:
            activation = MinMaxObserver.with_args(eps=MIN_SCALE)
            spec = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=activation)
            config = dataclasses.replace(config, input_activation=spec, output_activation=spec)
        self.output_spec = config.output_activation
        self.set_global(config)
        # Constants are part of each pattern; they belong to no layer and are never the reason to leave one out.
        self.is_quantized: Callable[[fx.Node], bool] = lambda node: node.op != "call_function" or is_quantized(node)
        self.set_filter_function(self.is_quantized)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        model = super().annotate(model)
        for clamp in model.graph.nodes:
            layer = clamp.args[0] if clamp.target is aten.hardtanh.default else None
            if not isinstance(layer, fx.Node) or layer.target not in LAYERS or len(layer.users) != 1:
                continue
            annotation = layer.meta.get(Q_ANNOTATION_KEY)
            if annotation is None or annotation.output_qspec is None:
                continue  # it stays float, and so does the clamp
            annotation.output_qspec = None
            clamp.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=self.output_spec, _annotated=True)
        self._release_float_nodes(model)
        return model

    def _release_float_nodes(self, model: fx.GraphModule) -> None:
        """Take annotations from nodes that stay float, which the filter keeps from layers alone, and from nodes that share their scale."""
        released: set[fx.Node] = set()
        for node in model.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            if annotation is None:
                continue
            specs = (*annotation.input_qspec_map.values(), annotation.output_qspec)
            shared = {spec.edge_or_node for spec in specs if isinstance(spec, SharedQuantizationSpec)}
            owners = {each[1] if isinstance(each, tuple) else each for each in shared}
            if not self.is_quantized(node) or owners & released:
                del node.meta[Q_ANNOTATION_KEY]
                released.add(node)


def _unshare_quantized_inputs(module: fx.GraphModule) -> None:
    """Quantize an input once for each layer that reads it, where its range is computed at run time.

    XNNPACK lays the integers out for one kernel; a pointwise convolution and another one that shared them had an SQNR of 7 dB.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=DEQUANTIZE):
        for user in list(node.users)[1:]:
            quantize, *parameters = node.args[:3]
            with graph.inserting_before(user):
                found = graph.node_copy(parameters[0].args[0])
                own = [graph.call_function(operator.getitem, (found, i)) for i in range(len(parameters))]
                again = graph.create_node("call_function", quantize.target, (quantize.args[0], *own, *quantize.args[3:]), quantize.kwargs)
                read = graph.create_node("call_function", node.target, (again, *own, *node.args[3:]), node.kwargs)
            user.replace_input_with(node, read)
    module.recompile()


def _unshare_biases(module: fx.GraphModule) -> None:
    """Give each call of a layer a bias of its own.

    XNNPACK stores a bias once, as float or as integers in the scale of the input of one call; it refuses the file where calls differ.
    """
    seen: set[str] = set()
    for node in module.graph.nodes:
        bias = node.args[2] if node.target in LAYERS and len(node.args) > 2 else None
        if not isinstance(bias, fx.Node) or bias.op != "get_attr":
            continue
        if bias.target in seen:
            with module.graph.inserting_before(node):
                own = add_constant(module, f"{node.name}_bias", get_constant(module, str(bias.target)))
            node.update_arg(2, own)
        seen.add(str(bias.target))
    module.recompile()


def _hide_batch_norms(module: fx.GraphModule) -> None:
    """Keep PT2E from folding a BatchNorm into the convolution before it, whose output another op reads as well."""
    for node in module.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        node.target = _batch_norm  # the export that follows restores the op
    module.recompile()


def _batch_norm(*arguments: Any) -> Tensor:
    result: Tensor = aten.batch_norm.default(*arguments)
    return result


def _rewrite_clamps(module: fx.GraphModule) -> None:
    """Write ReLU6 and clamps between two numbers as hardtanh, the one form that XNNPACK fuses."""
    for node in module.graph.nodes:
        if node.target not in CLAMPS:
            continue
        if node.target is aten.relu6.default:
            low, high = 0.0, 6.0
        else:
            default = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
            names = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
            given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
            low, high = (given.get(name, value) for name, value in zip(names, default, strict=True))
        if low is not None and high is not None:
            node.target, node.args, node.kwargs = aten.hardtanh.default, (node.args[0], float(cast("float", low)), float(high)), {}
    module.recompile()
