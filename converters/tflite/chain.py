"""Write a chain of convolutions or Linears with a ReLU at its end as a TFLite file, op by op as litert-torch lowers it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from torch import nn

OPS: Final = schema.BuiltinOperator
VERSIONS: Final = {OPS.CONV_2D: 1, OPS.DEPTHWISE_CONV_2D: 2, OPS.FULLY_CONNECTED: 1, OPS.PAD: 1}
OPTIONS: Final = schema.BuiltinOptions
RELU: Final = schema.ActivationFunctionType.RELU


def write_chain(layers: Sequence[nn.Module], input_shape: tuple[int, ...]) -> bytes | None:
    """Return the float file, images NHWC; None for a layer that litert-torch lowers to more than a convolution or matrix product.

    Args:
        input_shape: Without the batch axis, channels first.
    """
    if not all(_is_one_op(layer, input_shape) for layer in layers):
        return None
    chain = _Chain((1, *input_shape[1:], input_shape[0]) if len(input_shape) == 3 else (1, *input_shape))
    for i, layer in enumerate(layers):
        last = i == len(layers) - 1
        chain.add_convolution(layer, last) if isinstance(layer, nn.Conv2d) else chain.add_linear(layer, last)
    return chain.content()


def _is_one_op(layer: nn.Module, input_shape: tuple[int, ...]) -> bool:
    if isinstance(layer, nn.Conv2d):
        alike = layer.groups in (1, layer.in_channels)
        return len(input_shape) == 3 and alike and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


class _Chain:
    """A file with one graph, of which each op reads what the one before computes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "edgecompress cost table"
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.name = "main"
        self.graph.tensors, self.graph.operators = [], []
        self.shape = shape
        self.now = self._add_tensor("args_0", shape)
        self.graph.inputs = [self.now]

    def add_convolution(self, layer: nn.Conv2d, last: bool) -> None:
        _, h, w, channels = self.shape
        sizes = [_output_size(n, layer, axis) for axis, n in enumerate((h, w))]
        same = all(_is_same_padding(n, layer, axis) for axis, n in enumerate((h, w)))
        if not same and any(layer.padding):
            self._add_padding(tuple(layer.padding))
        depthwise = layer.groups > 1
        weight = layer.weight.detach().permute(1, 2, 3, 0) if depthwise else layer.weight.detach().permute(0, 2, 3, 1)
        options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        options.padding = schema.Padding.SAME if same else schema.Padding.VALID
        options.strideH, options.strideW = layer.stride
        options.dilationHFactor, options.dilationWFactor = layer.dilation
        options.fusedActivationFunction = RELU if last else schema.ActivationFunctionType.NONE
        if depthwise:
            options.depthMultiplier = layer.out_channels // channels
        code = OPS.DEPTHWISE_CONV_2D if depthwise else OPS.CONV_2D
        kind = OPTIONS.DepthwiseConv2DOptions if depthwise else OPTIONS.Conv2DOptions
        self._add_op(code, kind, options, self._add_parameters(layer, weight, layer.out_channels), (1, *sizes, layer.out_channels))

    def add_linear(self, layer: nn.Linear, last: bool) -> None:
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = len(self.shape) > 2
        options.fusedActivationFunction = RELU if last else schema.ActivationFunctionType.NONE
        parameters = self._add_parameters(layer, layer.weight.detach(), layer.out_features)
        self._add_op(OPS.FULLY_CONNECTED, OPTIONS.FullyConnectedOptions, options, parameters, (*self.shape[:-1], layer.out_features))

    def content(self) -> bytes:
        self.graph.outputs = [self.now]
        self.model.subgraphs = [self.graph]
        names = schema.SignatureDefT()
        names.signatureKey, names.subgraphIndex = "serving_default", 0
        names.inputs, names.outputs = [_signature_tensor("args_0", self.graph.inputs[0])], [_signature_tensor("output_0", self.now)]
        self.model.signatureDefs = [names]
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    def _add_padding(self, padding: tuple[int, ...]) -> None:
        _, h, w, channels = self.shape
        amounts = np.array([[0, 0], [padding[0]] * 2, [padding[1]] * 2, [0, 0]], dtype=np.int32)
        shape = (1, h + 2 * padding[0], w + 2 * padding[1], channels)
        self._add_op(OPS.PAD, OPTIONS.PadOptions, schema.PadOptionsT(), [self._add_constant(amounts)], shape)

    def _add_parameters(self, layer: Any, weight: torch.Tensor, out: int) -> list[int]:
        bias = torch.zeros(out) if layer.bias is None else layer.bias.detach()
        return [self._add_constant(weight.contiguous().numpy()), self._add_constant(bias.numpy())]

    def _add_op(self, code: int, kind: int, options: Any, constants: list[int], shape: tuple[int, ...]) -> None:
        op = schema.OperatorT()
        op.opcodeIndex = self._add_op_code(code)
        op.inputs = [self.now, *constants]
        self.now, self.shape = self._add_tensor(f"op_{len(self.graph.operators)}", shape), shape
        op.outputs = [self.now]
        op.builtinOptionsType, op.builtinOptions = kind, options
        self.graph.operators.append(op)

    def _add_op_code(self, code: int) -> int:
        for i, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == code:
                return i
        made = schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = code, code, VERSIONS[code]
        self.model.operatorCodes.append(made)
        return len(self.model.operatorCodes) - 1

    def _add_constant(self, values: np.ndarray) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        kind = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
        return self._add_tensor(f"constant_{len(self.model.buffers)}", values.shape, len(self.model.buffers) - 1, kind)

    def _add_tensor(self, name: str, shape: tuple[int, ...], buffer: int = 0, kind: int = schema.TensorType.FLOAT32) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, list(shape), buffer, kind
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1


def _signature_tensor(name: str, tensor: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, tensor
    return made


def _output_size(size: int, layer: nn.Conv2d, axis: int) -> int:
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    return (size + 2 * int(layer.padding[axis]) - reach - 1) // layer.stride[axis] + 1


def _is_same_padding(size: int, layer: nn.Conv2d, axis: int) -> bool:
    """Whether TensorFlow's SAME pads as the layer does: as little as gives ⌈size / stride⌉ outputs, the odd one behind."""
    stride, reach = layer.stride[axis], layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    return total == 2 * int(layer.padding[axis])
