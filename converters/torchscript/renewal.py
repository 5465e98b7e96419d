"""Names in TorchScript files that torch numbers by what a process has traced before."""

import linecache

import torch
from torch.fx import graph_module
from torch.jit import _recursive, _state, _trace

FX_SOURCES = "<eval_with_key>"  # the files that torch.fx pretends to have compiled modules from


def renew_names() -> None:
    """Let torch number classes and sources from the start, so that a file is the same whatever the process has converted before it.

    torch.jit keeps the classes of a process in one compilation unit. A new one takes its place, with stores that know no class. torch.fx
    numbers the sources of its modules, and a file holds their names for tracebacks.
    """
    unit = torch._C.CompilationUnit()
    for module in (_state, _recursive, _trace):
        module._python_cu = unit
    _state._clear_class_state()
    _state._jit_caching_layer.clear()
    _state._jit_function_overload_caching.clear()
    _recursive.concrete_type_store = _recursive.ConcreteTypeStore()
    for name in [name for name in linecache.cache if name.startswith(FX_SOURCES)]:
        del linecache.cache[name]
    graph_module._loader = graph_module._EvalCacheLoader()
