"""Batches: the inputs or the outputs of a network as a tuple of tensors, samples along axis 0.

A network with one input has a tuple of one. Outputs are flattened from whatever the network returns, in the order of an exported program.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edgecompress.errors import ConfigError, EdgeCompressError, UnsupportedError
from edgecompress.faults.user_code import describe_user_error, find_first_line, find_innermost_frame, is_own_file, is_user_file

Batch = tuple[Tensor, ...]
Structure = _pytree.TreeSpec  # how a network nests its outputs: a tensor, a tuple, a dict, a named tuple, or these in each other

MAX_SAMPLES: Final = 64  # bounds the memory of one forward pass
MAX_INPUT_BYTES: Final = 4_000_000  # feature maps of larger batches are given back to the system and cleared anew at every layer


def check_batch(batch: object, subject: str) -> Batch:
    """Return `batch` if it is a batch.

    Raises:
        ConfigError: `batch` is not a tuple of at least one tensor, all with the same number of samples.
    """
    if not isinstance(batch, tuple) or not batch or not all(isinstance(x, Tensor) and x.ndim for x in batch):
        raise ConfigError(f"{subject}: a {type(batch).__name__}; give a tuple with one tensor for each input of the model, e.g. (x,)")
    if len(sizes := {len(x) for x in batch}) != 1:
        raise ConfigError(f"{subject}: {' and '.join(map(str, sorted(sizes)))} samples; give every input the same number")
    return batch


def count_samples(batch: Batch) -> int:
    """Return the number of samples."""
    return len(batch[0])


def take_samples(batch: Batch, samples: slice) -> Batch:
    """Return the samples in a slice."""
    return tuple(x[samples] for x in batch)


def split_samples(batch: Batch, samples: int) -> Iterator[Batch]:
    """Yield the samples in order, at most `samples` at a time."""
    return zip(*(torch.split(x, samples) for x in batch), strict=True)


def split_evenly(batch: Batch) -> Iterator[Batch]:
    """Yield the samples in order, in chunks of about the same size, none above MAX_SAMPLES."""
    chunks = -(-count_samples(batch) // MAX_SAMPLES)
    return split_samples(batch, -(-count_samples(batch) // chunks))


def choose_chunk_size(batch: Batch) -> int:
    """Return how many samples to run at once."""
    return max(1, min(MAX_SAMPLES, MAX_INPUT_BYTES // max(1, sum(x[0].numel() * x.element_size() for x in batch))))


def is_finite(batch: Batch) -> bool:
    return all(bool(x.isfinite().all()) for x in batch)


def has_same_shapes(a: Batch, b: Batch) -> bool:
    """Whether two batches have as many tensors, of the same shapes."""
    return [x.shape for x in a] == [y.shape for y in b]


def call_network(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """Return whatever a network returns for some inputs; every call of a network that a user wrote goes through here.

    Raises:
        ConfigError: The network raised; the message has the user's line, the submodule and the shapes of the inputs.
    """
    try:
        return model(*inputs)
    except (EdgeCompressError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if _is_raised_by_hook(error):
            raise
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        mode = " in training mode" if model.training else ""
        given = f"{'inputs' if len(inputs) > 1 else 'an input'} of shape {shapes}"
        what = f"forward() of {find_failed_module(model, error)}{mode} for {given}"
        raise describe_user_error(error, what, find_first_line(type(model).forward) if _is_written_by_user(model) else "") from error


def _is_written_by_user(model: nn.Module) -> bool:
    return is_user_file(getattr(getattr(type(model).forward, "__code__", None), "co_filename", ""))


def _is_raised_by_hook(error: BaseException) -> bool:
    """Whether a hook of edgecompress raised; layers of edgecompress stand for the user's, and raise for what those would refuse."""
    frame = find_innermost_frame(error)
    return frame is not None and is_own_file(frame.f_code.co_filename) and not isinstance(frame.f_locals.get("self"), nn.Module)


def find_failed_module(model: nn.Module, error: BaseException) -> str:
    """Return class and name of the innermost module of a network in which an error was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    called = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = [module for module in called if isinstance(module, nn.Module) and id(module) in names]
    failed = inside[-1] if inside else model
    return " ".join(filter(None, (type(failed).__name__, names[id(failed)])))


def run_model(model: nn.Module, inputs: Batch) -> Batch:
    """Return the outputs of one call of a network.

    Raises:
        ConfigError: The network raised, or an index is beyond the rows of its embedding, which the message names.
        UnsupportedError: An output is no tensor, or does not have one row per sample.
    """
    watched = [m.register_forward_pre_hook(_check_indices(name, m)) for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    try:
        given = call_network(model, inputs)
    finally:
        for handle in watched:
            handle.remove()
    outputs = flatten_structure(given)
    for i, y in enumerate(outputs):
        if not isinstance(y, Tensor):
            raise UnsupportedError(f"output {i} is {y!r} and not a tensor; wrap the model so that forward returns tensors")
        if y.ndim == 0 or len(y) != count_samples(inputs):
            shape, n = tuple(y.shape), count_samples(inputs)
            raise UnsupportedError(f"output {i} has shape {shape} for {n} samples; make axis 0 of each output the batch")
    return outputs


@torch.inference_mode()
def structure_of(model: nn.Module, example: Batch) -> Structure:
    """Return the structure of the outputs of a network in eval mode, which `restore_structure` gives back to a batch."""
    return _pytree.tree_flatten(call_network(model, example))[1]


def restore_structure(outputs: Batch, structure: Structure) -> Any:
    """Return outputs in the structure that the network itself returns."""
    return _pytree.tree_unflatten(list(outputs), structure)


def structure_of_names(names: Sequence[str]) -> Structure:
    """Return the structure of outputs of which only names are known: a dict by name; a tuple, or one tensor, where they have numbers."""
    values: Any = dict.fromkeys(names)
    if all(name == f"output_{i}" for i, name in enumerate(names)):
        values = tuple(values) if len(names) > 1 else None
    return _pytree.tree_flatten(values)[1]


def flatten_structure(outputs: Any) -> Batch:
    """Return outputs of any structure as a batch."""
    return tuple(_pytree.tree_leaves(outputs))


@torch.inference_mode()
def output_names(model: nn.Module, example: Batch) -> tuple[str, ...]:
    """Return the name of each output of a network in eval mode, in the order of its batch.

    The name is the key of a dict or the field of a named tuple, with dots between the levels of nested ones, e.g. `heads.boxes`; an output
    that has none, or that of another output, is `output_0`, `output_1`, … by its number.
    """
    paths, _ = _pytree.tree_flatten_with_path(call_network(model, example))
    names: list[str] = []
    for i, (path, _) in enumerate(paths):
        numbered = all(isinstance(key, _pytree.SequenceKey) for key in path)
        name = f"output_{i}" if numbered else ".".join(_key_text(key) for key in path)
        names.append(f"output_{i}" if name in names else name)
    return tuple(names)


def _key_text(key: Any) -> str:
    return str(next(value for field in ("key", "name", "idx") if (value := getattr(key, field, None)) is not None))


def _check_indices(name: str, embedding: nn.Embedding) -> Callable[[nn.Module, Batch], None]:
    def check_call(_: nn.Module, args: Batch) -> None:
        indices, rows = args[0], embedding.num_embeddings
        bad = indices[(indices < 0) | (indices >= rows)]
        if len(bad):
            raise ConfigError(f"{name}: index {int(bad[0])} in an embedding of {rows} rows; give indices from 0 to {rows - 1}")

    return check_call
