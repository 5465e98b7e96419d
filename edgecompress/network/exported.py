"""Export a trained network as a program, from which every converter starts.

The program is static (batch 1, the example's shapes), in inference mode, float32 and self-contained, so a converter needs none of the
user's code. BatchNorm is folded here rather than by the converters, so that every format and scheme starts from the same weights.
"""

import copy
import io
import itertools
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from edgecompress import files
from edgecompress.errors import ConfigError, UnsupportedError, first_line
from edgecompress.faults.remedies import find_remedy
from edgecompress.faults.user_code import find_user_line, is_user_file
from edgecompress.network.batches import call_network, find_failed_module
from edgecompress.network.constant_reads import record_reads, replay_reads
from edgecompress.network.folding import fold_batch_norm
from edgecompress.network.weights import nonfinite_tensors

aten = torch.ops.aten

DROPOUT_OPS = {
    getattr(aten, name).default
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for name in (kind, f"{kind}_")
}


def to_program(model: nn.Module, example_inputs: tuple[Tensor, ...], *, name: str = "model") -> torch.export.ExportedProgram:
    """Return `model` as a static inference program with BatchNorm folded; `model` itself stays unchanged.

    The program returns one tensor, or a tuple of all tensors in the model's output, in their order.

    Args:
        example_inputs: One sample for each input, batch axis included and equal to 1.
        name: The model's name in messages.

    Raises:
        ConfigError: A weight is not finite or not float32, the batch is not 1, or the model fails on the example inputs.
        UnsupportedError: torch.export cannot take the model, its shapes depend on data, or it changes its own buffers.
    """
    _check_weights(model, name)
    _check_inputs(example_inputs, name)
    inputs = tuple(x.detach().cpu().contiguous() for x in example_inputs)
    module = _copy_for_inference(model, name)
    with torch.no_grad():
        call_network(module, inputs)
        program = _export_with_constants(module, inputs, name)
        _check_static(program, name)
        graph = program.module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        _flatten_outputs(graph, name)
        _drop_dropout(graph)
        fold_batch_norm(graph)
        _make_constants_contiguous(graph)
        program = _functionalize(_export_module(fx.GraphModule(graph, graph.graph).eval(), inputs, name))
        _check_stateless(program, name)
        return program


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write `program` to `path`, which ends in `.pt2`, atomically."""
    with files.replace_atomically(path) as temporary:
        torch.export.save(program, temporary)


def read_program(path: Path) -> torch.export.ExportedProgram:
    """Return the program that `write_program` wrote.

    Raises:
        ConfigError: The file is missing, damaged, or written by another version of torch.
    """
    try:
        return torch.export.load(path)
    except Exception as error:  # zip, pickle, schema and JSON errors of many classes
        raise ConfigError(f"{path}: not a readable exported program: {first_line(error)}; run the step that writes it again") from error


def example_inputs(program: torch.export.ExportedProgram) -> tuple[Tensor, ...]:
    """Return zeros with the shapes and dtypes of the inputs of `program`."""
    taken = set(program.graph_signature.user_inputs)
    return tuple(
        torch.zeros(tuple(node.meta["val"].shape), dtype=node.meta["val"].dtype)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in taken
    )


def example_outputs(program: torch.export.ExportedProgram) -> tuple[Tensor, ...]:
    """Return zeros with the shapes and dtypes of the outputs of `program`."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    return tuple(torch.zeros(tuple(values[name].shape), dtype=values[name].dtype) for name in program.graph_signature.user_outputs)


def _check_weights(model: nn.Module, name: str) -> None:
    for key, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            raise ConfigError(f"{name}: {key} is {str(tensor.dtype).removeprefix('torch.')}; give the model in float32, model.float()")
    for key in nonfinite_tensors(model):
        raise ConfigError(f"{name}: {key} holds NaN or inf; load other weights or train again with a lower learning rate")


def _check_inputs(inputs: tuple[Tensor, ...], name: str) -> None:
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ConfigError(f"{name}: example inputs are not a tuple of tensors; give (x,) or (x, y)")
    for i, x in enumerate(inputs):
        if x.ndim == 0 or x.shape[0] != 1:
            raise ConfigError(f"{name}: example input {i} has shape {tuple(x.shape)}, artifacts take batch 1; give x[:1]")


def _copy_for_inference(model: nn.Module, name: str) -> nn.Module:
    try:
        module = copy.deepcopy(model)
    except RuntimeError as error:  # e.g. weight_norm of old keeps a computed weight
        raise UnsupportedError(f"{name}: cannot be copied: {first_line(error)}; remove its hooks or parametrizations first") from error
    module = module.cpu().eval().requires_grad_(False)
    _compute_parametrized_weights(module)
    return module


def _compute_parametrized_weights(model: nn.Module) -> None:
    """Replace parametrized weights, e.g. tensor trains, by their computed values, in place.

    `remove_parametrizations` would also remove them from the model that `model` is a copy of, because both share a class made for them.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in cast(nn.ModuleDict, module.parametrizations)}
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _export_with_constants(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> torch.export.ExportedProgram:
    """Return the program of a module; numbers that it reads from its constants become constants of the program."""
    try:
        return _export_module(module, inputs, name)
    except UnsupportedError:
        reads = record_reads(module, inputs)
        if not reads:
            raise
        with replay_reads(module, reads):
            return _export_module(module, inputs, name)


def _export_module(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> torch.export.ExportedProgram:
    try:
        with silence_export():
            return torch.export.export(module, inputs, strict=False)
    except Exception as error:  # torch.export lets errors of many classes through, and those of the model's own code
        raise UnsupportedError(
            f"{name}: torch.export cannot take it: {_describe_failure(error, module)}; {_suggest_remedy(error)}"
        ) from error


@contextmanager
def silence_export() -> Iterator[None]:
    """Keep torch.export from logging and printing the graph of a model that it refuses; the error's message is enough."""
    loggers = [logging.getLogger(key) for key in logging.root.manager.loggerDict if key.startswith("torch.")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # torch 2.13 warns about itself
            warnings.filterwarnings("ignore", r"The tensor attributes? [\w.]+\._flat_weights", UserWarning)  # and its own LSTM
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _describe_failure(error: Exception, module: nn.Module) -> str:
    """Return the first line of a torch.export error, with the user's source line and the module where they are known."""
    where = [found for found in re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', str(error)) if is_user_file(found[0])]
    line = f"{Path(where[-1][0]).name}:{where[-1][1]}: {where[-1][2].strip()[:120]}" if where else Path(find_user_line(error)).name
    failed = find_failed_module(module, error)
    places = [line, f"in {failed}" if failed != type(module).__name__ else ""]  # the network itself need not be named
    place = f" ({', '.join(filter(None, places))})" if any(places) else ""
    if "data-dependent" in str(error):
        return f"what it does depends on the values of its input{place}"
    return f"{first_line(error)}{place}"


def _suggest_remedy(error: Exception) -> str:
    return find_remedy(error, ("depends on values",)) or "change that line, or wrap the model so that forward is tensors in, tensors out"


def _check_static(program: torch.export.ExportedProgram, name: str) -> None:
    for node in program.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if not all(isinstance(size, int) for size in shape):
            raise UnsupportedError(f"{name}: {node.target} makes a shape that depends on the input's values; use a mask of fixed shape")


def _flatten_outputs(graph: fx.GraphModule, name: str) -> None:
    """Replace lists, dicts and dataclasses among the model's inputs and outputs by plain tensors."""
    output = graph.graph.output_node()
    results = output.args[0]
    assert isinstance(results, list | tuple)
    for i, result in enumerate(results):
        if not isinstance(result, fx.Node):
            raise UnsupportedError(f"{name}: output {i} is {result!r} and not a tensor; wrap the model so that forward returns tensors")
    output.args = (results[0] if len(results) == 1 else tuple(results),)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.recompile()


def _functionalize(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with in-place operations written as ordinary ones; no other op is decomposed."""
    mutable = any(node.target._schema.is_mutable for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    if not mutable:
        return program
    with silence_export():
        functional: torch.export.ExportedProgram = program.run_decompositions({})
    return functional


def _check_stateless(program: torch.export.ExportedProgram, name: str) -> None:
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        changed = next(iter(signature.buffers_to_mutate.values()))
        raise UnsupportedError(f"{name}: forward changes the buffer {changed}; an artifact keeps no state, pass it as an input")
    if signature.user_inputs_to_mutate:
        changed = next(iter(signature.user_inputs_to_mutate.values()))
        raise UnsupportedError(f"{name}: forward writes into its input {changed}; clone it first")


def _drop_dropout(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.target in DROPOUT_OPS:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()


def _make_constants_contiguous(graph: fx.GraphModule) -> None:
    """Make all constants contiguous: converters have read strided ones as dense and silently computed wrong numbers (litert-torch#1238)."""
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        owner, _, leaf = str(node.target).rpartition(".")
        value = getattr(graph.get_submodule(owner), leaf)
        if isinstance(value, nn.Parameter):
            setattr(graph.get_submodule(owner), leaf, nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), False))
        elif isinstance(value, Tensor):
            setattr(graph.get_submodule(owner), leaf, value.detach().clone(memory_format=torch.contiguous_format))
