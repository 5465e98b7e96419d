"""Call functions that the user wrote, and say in which line of which file a fault of theirs stands."""

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from edgecompress.errors import ConfigError, EdgeCompressError, first_line


def call_user_function(function: Callable[[], Any], subject: str) -> Any:
    """Call a function of the user's recipe.

    Raises:
        ConfigError: The function raised; the message names the function and its error.
    """
    try:
        return function()
    except EdgeCompressError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises is theirs to read
        raise ConfigError(f"{subject} fails: {type(error).__name__}: {error}; mend the recipe") from error


def describe_place(given: object, name: str, *, source: str = "") -> str:
    """Return the place of a user's function, e.g. `recipe.py:12: metric()`; an object without a line of its own is `recipe.py: metric`."""
    code = _code_of(given)
    if code is None:
        return f"{source}: {name}" if source else name
    return f"{_shorten_path(code.co_filename)}:{code.co_firstlineno}: {name}()"


@contextmanager
def user_code(given: object, place: str) -> Iterator[None]:
    """Turn whatever the user's code in the block raises into one line with its place.

    Args:
        given: The function that is called; the line named is the last one of its file that the error passed through.
        place: Its place, as `describe_place` returns it.

    Raises:
        ConfigError: The code raised.
    """
    try:
        yield
    except EdgeCompressError:
        raise
    except (Exception, SystemExit) as error:
        code = _code_of(given)
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if code and frame.f_code.co_filename == code.co_filename]
        if code and lines:
            place = place.replace(f":{code.co_firstlineno}: ", f":{lines[-1]}: ", 1)
        raise ConfigError(f"{place}: fails with {type(error).__name__}: {first_line(error)}; mend it") from error


def takes_arguments(function: object, count: int) -> bool:
    """Whether a callable can be called with so many positional arguments; an object whose signature Python does not know can."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _code_of(given: object) -> CodeType | None:
    while isinstance(given, partial):
        given = given.func
    given = inspect.unwrap(given) if callable(given) else given
    code = getattr(getattr(given, "__func__", given), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _shorten_path(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name
