"""Export a program to an ONNX model, and name the nodes of the model by the program's layers."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx
import torch

from converters.shared import layer_schemes
from edgecompress.errors import ToolchainError, UnsupportedError, first_line
from edgecompress.network.exported import example_inputs, example_outputs

MISSING_OP = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes a node's modules, as the text of a Python list that ends in the node


def export_program(program: Any, *, subject: str, instead: str) -> onnx.ModelProto:
    """Return the model, with inputs `input_0`, … and outputs `output_0`, ….

    Args:
        subject: First word of error messages.
        instead: Remedy at the end of error messages.

    Raises:
        ToolchainError: The exporter failed.
        UnsupportedError: ONNX lacks an op; names it and its layer.
    """
    inputs = [f"input_{i}" for i in range(len(example_inputs(program)))]
    outputs = [f"output_{i}" for i in range(len(example_outputs(program)))]
    try:
        made = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=outputs, external_data=False, verbose=False)
    except Exception as error:  # OnnxExporterError and what its passes let through
        causes = list(_causes(error))
        if found := next(filter(None, (MISSING_OP.search(str(cause)) for cause in causes)), None):
            layer = layer_schemes.name_layer(program.graph.nodes, found[1])
            raise UnsupportedError(f"{subject}: {layer}ONNX has no {found[1]}; replace that op or {instead}") from error
        raise ToolchainError(f"{subject}: torch.onnx failed: {first_line(causes[-1])}; {instead}") from error
    assert made is not None
    return made.model_proto


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def name_nodes(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Name each node `layer/op`, and drop the exporter's notes, which hold lines and paths of the user's source.

    Returns:
        The name of each node → the names of the modules around the node, the outermost first.
    """
    used: Counter[str] = Counter()
    inside = {}
    for node in model.graph.node:
        noted = next((ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == SCOPES), ["", node.name])
        layers, op = tuple(name.partition("@")[0] for name in noted[:-1]), noted[-1]
        name = f"{layers[-1]}/{op}" if layers and layers[-1] else op
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}:{used[name] - 1}"
        inside[node.name] = layers
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer, model.graph, model):
        del value.metadata_props[:]
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]  # quantizers would leave these out of date
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return inside
