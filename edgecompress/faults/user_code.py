"""Call code that the user wrote, and say in one line what it raised and where in the user's files.

with user_code("model()", "recipe.py"):
    network = recipe.model()
"""

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from edgecompress.errors import ConfigError, EdgeCompressError, first_line
from edgecompress.faults.remedies import CAUSES, find_remedy

OURS: Final = f"{Path(__file__).resolve().parents[1]}/"
REMEDY: Final = "mend it"


class UserCodeError(ConfigError):
    """Code of the user raised an error, which is the `__cause__`."""


@contextmanager
def user_code(what: str, origin: str = "", *, shapes_remedy: str = "") -> Iterator[None]:
    """Turn whatever the user's code in the block raises into one line. Ctrl-C and the end of memory are no faults of it and pass.

    Args:
        what: What is called, e.g. `model()` or `sample 3 of train_data()`.
        origin: Where it comes from, for errors that passed no line of the user's, as those of an installed package.
        shapes_remedy: The remedy where shapes do not fit each other and it is not the network that is called.

    Raises:
        UserCodeError: The code raised; the message begins with the last line of the user's that the error passed.
    """
    try:
        yield
    except (EdgeCompressError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise describe_user_error(error, what, origin, shapes_remedy=shapes_remedy) from error


def call_user_function(function: Callable[[], Any], what: str, origin: str) -> Any:
    """Call a function of the user's.

    Raises:
        UserCodeError: See `user_code`.
    """
    with user_code(what, origin):
        return function()


def describe_user_error(error: BaseException, what: str, origin: str = "", *, shapes_remedy: str = "") -> UserCodeError:
    """Return the error that says in one line what code of the user raised."""
    place = find_user_line(error) or origin
    subject = f"{place}: {what}" if place else what
    remedy = find_remedy(error) or REMEDY
    if shapes_remedy and remedy == CAUSES["shapes"].remedy:
        remedy = shapes_remedy
    return UserCodeError(f"{subject} fails with {type(error).__name__}: {first_line(error)}; {remedy}")


def find_user_line(error: BaseException) -> str:
    """Return `path:line` of the last line in the user's files that an error, or one of its causes, passed; "" where it passed none."""
    if isinstance(error, SyntaxError) and error.filename and is_user_file(error.filename):
        return f"{_shorten_path(error.filename)}:{error.lineno}"
    passed = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    lines = [f"{_shorten_path(file)}:{line}" for file, line in passed if is_user_file(file)]
    if lines:
        return lines[-1]
    return find_user_line(error.__cause__) if error.__cause__ else ""


def is_user_fault(error: BaseException) -> bool:
    """Whether an error was raised in the user's files, or in a package that was called from there."""
    frame = find_innermost_frame(error)
    return frame is not None and is_user_file(frame.f_code.co_filename)


def find_innermost_frame(error: BaseException) -> FrameType | None:
    """Return the innermost frame of edgecompress or of the user's below the frame that caught an error; None for an error of a package."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    return next(
        (frame for frame in reversed(frames) if is_own_file(frame.f_code.co_filename) or is_user_file(frame.f_code.co_filename)), None
    )


def is_own_file(name: str) -> bool:
    """Whether a source file is one of edgecompress."""
    return name.startswith(OURS)


@cache
def is_user_file(name: str) -> bool:
    """Whether a source file is neither Python's own, nor of an installed package, nor of edgecompress; a notebook's is a mere name."""
    path = Path(name)
    if name.startswith("<") or path.suffix != ".py" or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    paths = sysconfig.get_paths()
    return not any(path.is_relative_to(root) for root in (paths["stdlib"], paths["platstdlib"], OURS))


def describe_place(given: object, name: str, *, source: str = "") -> str:
    """Return the place of a user's function, e.g. `recipe.py:12: metric()`; an object without a line of its own is `recipe.py: metric`."""
    if line := find_first_line(given):
        return f"{line}: {name}()"
    return f"{source}: {name}" if source else name


def find_first_line(given: object) -> str:
    """Return `path:line` of the first line of a function or method; "" for an object without one."""
    code = _code_of(given)
    return "" if code is None else f"{_shorten_path(code.co_filename)}:{code.co_firstlineno}"


def split_place(place: str) -> tuple[str, str]:
    """Return what is called and its origin, as `user_code` takes them, of a place."""
    origin, _, what = place.rpartition(": ")
    return what, origin


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
