"""Digest code that lives in memory: functions, classes and modules of the user, for a run that has no recipe file to hash."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from torch import nn

PLAIN: Final = (bool, int, float, str, bytes, type(None))


def digest_code(*given: Any) -> str:
    """Return a hash of what the objects do: the code of functions, of classes and of all modules of a network, with their plain settings.

    Tensors are left out, and so is the code of torch itself.
    """
    digest = hashlib.sha256()
    seen: set[int] = set()
    for each in given:
        for part in _describe(each, seen):
            digest.update(f"{part}\0".encode())
    return digest.hexdigest()


def _describe(given: Any, seen: set[int]) -> Iterator[str]:
    """Yield what tells an object from another one; an object that was seen before is not entered again."""
    if isinstance(given, PLAIN):
        yield repr(given)
    elif isinstance(given, list | tuple):
        yield f"{len(given)} entries"
        for entry in given:
            yield from _describe(entry, seen)
    elif isinstance(given, set | frozenset):
        yield repr(sorted(map(repr, given)))
    elif isinstance(given, dict):
        yield f"{len(given)} keys"
        for key, value in given.items():
            yield repr(key)
            yield from _describe(value, seen)
    elif id(given) not in seen:
        seen.add(id(given))
        yield from _describe_object(given, seen)


def _describe_object(given: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(given, MethodType):
        yield from _describe(given.__func__, seen)
    elif isinstance(given, partial):
        yield from _describe([given.func, given.args, given.keywords], seen)
    elif isinstance(given, FunctionType):
        yield from _describe_function(given, seen)
    elif isinstance(given, CodeType):
        yield from _describe([given.co_code, given.co_names, given.co_consts], seen)
    elif isinstance(given, type):
        yield from _describe_class(given, seen)
    else:
        yield from _describe_instance(given, seen)


def _describe_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    """Yield the code of a function, its defaults, what it encloses, and the constants and functions of its own file that it names."""
    yield function.__qualname__
    if _is_foreign(function):
        return
    yield from _describe([function.__code__, function.__defaults__, function.__kwdefaults__], seen)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is not filled yet
            yield from _describe(cell.cell_contents, seen)
    for name in sorted(_names_in(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        if isinstance(value, PLAIN) or getattr(value, "__module__", None) == function.__module__:
            yield name
            yield from _describe(value, seen)


def _describe_class(kind: type, seen: set[int]) -> Iterator[str]:
    """Yield the methods and plain attributes of a class and of the bases that are the user's too."""
    yield kind.__qualname__
    for base in () if _is_foreign(kind) else kind.__mro__:
        members = {} if _is_foreign(base) else {name: _unwrap(member) for name, member in vars(base).items()}
        for name, member in members.items():
            if isinstance(member, FunctionType) or (isinstance(member, PLAIN) and not name.startswith("__")):
                yield name
                yield from _describe(member, seen)


def _describe_instance(given: Any, seen: set[int]) -> Iterator[str]:
    """Yield the class of an object and its plain public attributes; of a network those of each module."""
    yield from _describe(type(given), seen)
    for name, value in (vars(given) if hasattr(given, "__dict__") else {}).items():
        public = name != "training" and not name.startswith("_")
        if public and isinstance(value, (FunctionType, list, tuple, dict, *PLAIN)):
            yield name
            yield from _describe(value, seen)
    for name, child in given.named_children() if isinstance(given, nn.Module) else ():
        yield name
        yield from _describe(child, seen)


def _names_in(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names_in(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _unwrap(value: Any) -> Any:
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


def _is_foreign(given: Any) -> bool:
    return str(getattr(given, "__module__", "")).partition(".")[0] in {"torch", "builtins", "abc", "typing"}
