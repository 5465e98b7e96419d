"""Rewrite a program, before either route lowers it, where TFLite or its quantizer would handle it badly.

No rewrite changes the outputs. TFLite computes on channels-last maps, so a program that reads a map in the order (channel, row, column)
costs a transposition of the whole map; the rewrites read the map in the other order where they can.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, fx

from converters.shared.attention_masks import make_masks_finite
from converters.shared.constant_folding import add_constant, fold_constants
from converters.tflite.max_pools import pad_explicitly
from edgecompress.network.constants import get_constant, set_constant
from edgecompress.network.exported import example_inputs
from edgecompress.network.folding import scale_and_shift

aten = torch.ops.aten

MAP_AXES: Final = 4
RESHAPES: Final = {aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default}
ELEMENTWISE: Final = {aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardswish.default, aten.silu.default}
TRANSPOSED: Final = {aten.conv_transpose1d.default, aten.conv_transpose2d.input}
SPATIAL: Final = ((2, 3), (-2, -1), (3, 2), (-1, -2))


def rewrite_program(program: torch.export.ExportedProgram, samples: Sequence[tuple[Tensor, ...]]) -> torch.export.ExportedProgram:
    """Return `program` rewritten for TFLite: constants folded, masks finite, maps read channels last.

    Args:
        samples: Calibration inputs where activations are integers; () where they are floats.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    fold_constants(graph)
    make_masks_finite(graph, samples)
    pad_explicitly(graph, samples)
    for name in list(graph.state_dict()):  # program.module() shares its tensors with the program
        set_constant(graph, name, get_constant(graph, name).detach().clone())
    for rewrite in (_replace_norms, _replace_means, _flatten_channels_last, _make_tokens_channels_last, _simplify_transposed):
        rewrite(graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    with torch.no_grad():
        return torch.export.export(graph, example_inputs(program), strict=False)


def _replace_norms(graph: fx.GraphModule) -> None:
    """Replace each BatchNorm that no layer before it absorbs by a depthwise convolution: one op in place of four that each round."""
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.batch_norm.default)):
        x, *constants = node.args[:5]
        computed = any(read is not None and read.op != "get_attr" for read in constants)
        if node.args[5] or constants[2] is None or computed or len(_shape_of(x) or ()) != MAP_AXES:
            continue  # it normalises by the batch's statistics, or by computed ones
        scale, shift = scale_and_shift(graph, node)
        values = {"weight": scale.reshape(-1, 1, 1, 1), "bias": shift}
        with graph.graph.inserting_before(node):
            own = [add_constant(graph, f"{node.name}_{kind}", value.float()) for kind, value in values.items()]
            made = graph.graph.call_function(aten.conv2d.default, (x, *own, [1, 1], [0, 0], [1, 1], len(scale)))
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})  # the layer's name, and with it its scheme
        _replace_node(node, made)


def _replace_means(graph: fx.GraphModule) -> None:
    """Replace each mean over rows and columns by average pooling."""
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.mean.dim)):
        x = node.args[0]
        if _shape_of(x) is None or len(_shape_of(x)) != MAP_AXES or tuple(node.args[1]) not in SPATIAL or node.kwargs:
            continue
        with graph.graph.inserting_before(node):
            made = graph.graph.call_function(aten.adaptive_avg_pool2d.default, (x, [1, 1]))
            if not (len(node.args) > 2 and node.args[2]):  # keepdim
                made = graph.graph.call_function(aten.reshape.default, (made, list(_shape_of(node))))
        _replace_node(node, made)


def _flatten_channels_last(graph: fx.GraphModule) -> None:
    """Flatten maps that a Linear reads channels last, and put the columns of the Linear in that order."""
    for linear in list(graph.graph.find_nodes(op="call_function", target=aten.linear.default)):
        chain = list(_walk_elementwise(linear.args[0]))
        flat, weight = chain[-1], linear.args[1]
        if flat.target not in RESHAPES or weight.op != "get_attr" or len(weight.users) > 1:
            continue
        x = flat.args[0]
        if any(len(n.users) > 1 for n in chain) or not _merges_axes(_shape_of(x), _shape_of(flat), keep=1):
            continue
        b, c, h, w = _shape_of(x)
        if h * w == 1:
            continue
        value = get_constant(graph, str(weight.target))
        set_constant(graph, str(weight.target), value.reshape(-1, c, h, w).permute(0, 2, 3, 1).reshape(value.shape).contiguous())
        with graph.graph.inserting_before(flat):
            last = graph.graph.call_function(aten.permute.default, (x, [0, 2, 3, 1]))
            made = graph.graph.call_function(aten.reshape.default, (last, [b, h * w * c]))
        _replace_node(flat, made)


def _make_tokens_channels_last(graph: fx.GraphModule) -> None:
    """Make tokens of patches, `(b, c, h, w)` → `(b, c, h·w)` → `(b, h·w, c)`, as vision transformers do, by one transposition."""
    for node in list(graph.graph.nodes):
        if not _swaps_last_two(node) or node.args[0].target not in RESHAPES or len(node.args[0].users) > 1:
            continue
        x = node.args[0].args[0]
        if not _merges_axes(_shape_of(x), _shape_of(node.args[0]), keep=2):
            continue
        b, c, h, w = _shape_of(x)
        with graph.graph.inserting_before(node):
            last = graph.graph.call_function(aten.permute.default, (x, [0, 2, 3, 1]))
            made = graph.graph.call_function(aten.reshape.default, (last, [b, h * w, c]))
        _replace_node(node, made)


def _simplify_transposed(graph: fx.GraphModule) -> None:
    """Split transposed convolutions in groups, which TFLite lacks, and crop in place of their padding, which litert-torch lacks."""
    for node in [n for n in graph.graph.nodes if n.target in TRANSPOSED]:
        defaults = (node.kwargs.get(known.name, known.default_value) for known in node.target._schema.arguments[len(node.args) :])
        x, weight, bias, stride, padding, output_padding, groups, dilation = (*node.args, *defaults)
        constants = [weight] if bias is None else [weight, bias]
        crops = any(padding) and all(more <= less for more, less in zip(output_padding, padding, strict=True))
        if (groups == 1 and not crops) or any(read.op != "get_attr" for read in constants):
            continue
        whole = ([0] * len(padding), [0] * len(padding)) if crops else (padding, output_padding)
        values = [get_constant(graph, str(read.target)).chunk(groups) for read in constants]
        share, parts = _shape_of(x)[1] // groups, []
        with graph.graph.inserting_before(node):
            for g in range(groups):
                own = [add_constant(graph, f"{node.name}_{g}_{k}", value[g]) for k, value in enumerate(values)]
                taken = x if groups == 1 else graph.graph.call_function(aten.slice.Tensor, (x, 1, g * share, (g + 1) * share))
                given = (taken, own[0], None if bias is None else own[1], stride, *whole, 1, dilation)
                parts.append(graph.graph.call_function(node.target, given))
                parts[-1].meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})  # the layer's name, and with it its scheme
            made = parts[0] if groups == 1 else graph.graph.call_function(aten.cat.default, (parts, 1))
            for axis, start in enumerate(padding if crops else (), 2):
                made = graph.graph.call_function(aten.slice.Tensor, (made, axis, start, start + _shape_of(node)[axis]))
        _replace_node(node, made)


def _walk_elementwise(node: fx.Node) -> Iterator[fx.Node]:
    """Yield `node` and what it is computed from, up to the first that is not elementwise."""
    yield node
    while node.target in ELEMENTWISE:
        node = node.args[0]
        yield node


def _merges_axes(before: tuple[int, ...] | None, after: tuple[int, ...] | None, *, keep: int) -> bool:
    """Whether a map's axes after the first `keep` became one."""
    if before is None or after is None or len(before) != MAP_AXES:
        return False
    return after == (*before[:keep], int(torch.Size(before[keep:]).numel()))


def _swaps_last_two(node: fx.Node) -> bool:
    if node.target is aten.transpose.int:
        return sorted(axis % 3 for axis in node.args[1:3]) == [1, 2] and len(_shape_of(node) or ()) == 3
    return node.target is aten.permute.default and tuple(node.args[1]) in ((0, 2, 1), (0, -1, -2))


def _replace_node(node: fx.Node, made: fx.Node) -> None:
    made.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)


def _shape_of(node: fx.Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None
