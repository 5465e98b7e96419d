"""The exported program of a request: read, prepared for its scheme, and described by the tensors that it takes and returns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from converters.shared.attention_masks import export_with_finite_masks
from converters.shared.layer_schemes import name_layer, quantized_scheme, scheme_of
from edgecompress.errors import ToolchainError, UnsupportedError
from edgecompress.faults.remedies import CAUSES
from edgecompress.network.exported import example_inputs, example_outputs, read_program
from edgecompress.network.subgraph import enclosing_modules
from edgecompress.quantization.calibration import read_calibration
from edgecompress.quantization.fake_quantize import gptq_bits
from edgecompress.quantization.gptq import round_weights
from edgecompress.records import ConversionRequest, TensorSpec
from edgecompress.targets import SCHEMES, Scheme

ROUNDING_SAMPLES: Final = 192  # with more, the accuracy of EfficientNet-Lite0 did not change, and rounding took longer
IMAGE_AXES: Final = 4


class PreparedProgram(NamedTuple):
    """A program with finite attention masks and weights rounded for its scheme.

    Attributes:
        program: The prepared program.
        original: The program of the request.
        scheme: The scheme of the file; layers that the request names may stay float.
        samples: Calibration inputs; empty where the scheme needs none and the request has none.
    """

    program: Any
    original: Any
    scheme: Scheme
    samples: list[tuple[Tensor, ...]]


def prepare_program(request: ConversionRequest, format: str) -> PreparedProgram:  # noqa: A002
    """Read the program of a request and prepare it for a format whose files have one scheme beside fp32.

    Raises:
        ConfigError: The program or the calibration data cannot be read, or the request names a layer that the program does not have.
        UnsupportedError: The request names two schemes beside fp32.
    """
    original = program = read_program(Path(request.program))
    scheme = SCHEMES[quantized_scheme(request, program, subject=format)]
    samples = read_calibration(request.calibration, program) if scheme.has_static_activations or request.calibration else []
    if scheme.has_static_activations:
        program = export_with_finite_masks(program, samples[:ROUNDING_SAMPLES])
    if samples and scheme.has_integer_weights:
        program = round_program(program, request, samples, format)
    return PreparedProgram(program, original, scheme, samples)


def check_real(program: Any, format: str) -> None:  # noqa: A002
    """Raise an error where the program computes complex numbers, as transforms of Fourier do, and the format has none.

    Raises:
        UnsupportedError: Names the op and its layer.
    """
    computed = {node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if computed.isdisjoint(node.all_input_nodes):  # of constants, which are folded
            continue
        computed.add(node)
        if isinstance(value, Tensor) and value.is_complex():
            op = str(node.target).removesuffix(".default")
            remedy = CAUSES["complex numbers"].remedy
            raise UnsupportedError(f"{format}: {name_layer([node], op)}{op} makes complex numbers, which the format lacks; {remedy}")


def round_program(program: Any, request: ConversionRequest, samples: Sequence[tuple[Tensor, ...]], format: str) -> Any:  # noqa: A002
    """Return the program with the integer weights of each layer's scheme, rounded so that the error on the samples is small."""

    def bits_of(node: Any) -> int | None:
        return gptq_bits(node, scheme_of(enclosing_modules(node), request), format)

    return round_weights(program, samples[:ROUNDING_SAMPLES], bits_of=bits_of)


def input_specs(program: Any) -> tuple[TensorSpec, ...]:
    """Return the inputs of a file that takes them as the program does."""
    names = (str(name) for name in program.graph_signature.user_inputs)
    return tuple(_spec(name, x) for name, x in zip(names, example_inputs(program), strict=True))


def output_specs(outputs: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(f"output_{i}", y) for i, y in enumerate(outputs))


def check_output_shapes(outputs: Sequence[Tensor], program: Any, *, subject: str, remedy: str) -> None:
    """Raise an error unless a file's outputs have the shapes of the program's.

    Raises:
        ToolchainError: They do not.
    """
    shapes, due = [tuple(y.shape) for y in outputs], [tuple(y.shape) for y in example_outputs(program)]
    if shapes != due:
        raise ToolchainError(f"{subject}: the file gives shapes {shapes}, {due} were due; {remedy}")


def _spec(name: str, x: Tensor) -> TensorSpec:
    layout = "NCHW" if x.ndim == IMAGE_AXES else ""
    return TensorSpec(name=name, shape=tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."), layout=layout)
