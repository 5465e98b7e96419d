"""The causes of errors that edgecompress knows, each with the one remedy that works; whoever reports an error looks its cause up here.

A remedy belongs to what went wrong and not to the place that noticed it: an error is looked up by itself and by all its `__cause__`s.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple


class Cause(NamedTuple):
    """One kind of error.

    Attributes:
        kinds: Names of exception classes, their bases included, of which the error must be one; () for any.
        text: Regular expression that the error's message must contain.
    """

    kinds: tuple[str, ...]
    text: str
    remedy: str


CAUSES: Final = {
    "missing package": Cause(("ModuleNotFoundError",), "", "install it, or check its name"),
    "missing file": Cause(("FileNotFoundError",), "", "check the path; a relative one begins in the folder where the command runs"),
    "closed file": Cause(("PermissionError",), "", "mend the permissions of that file"),
    "full disk": Cause(("OSError",), r"No space left|Disk quota exceeded", "free space on that disk"),
    "no network": Cause(
        ("URLError", "ConnectionError", "gaierror", "TimeoutError", "NewConnectionError", "MaxRetryError"),
        "",
        "fetch the file once and read it from this disk",
    ),
    "memory": Cause((), r"can't allocate memory|[Nn]ot enough memory|out of memory", "free memory, or take smaller inputs and batches"),
    "no GPU": Cause(
        (),
        r"not compiled with CUDA|No CUDA GPUs|no NVIDIA driver|deserialize object on a (CUDA|MPS) device",
        "keep all of it on the CPU; load with torch.load(…, map_location='cpu')",
    ),
    "several devices": Cause((), r"all tensors to be on the same device", "keep all of it on the CPU, model.cpu()"),
    "unsafe checkpoint": Cause(("UnpicklingError",), r"[Ww]eights.only", "save the network's state_dict() and load that"),
    "other checkpoint": Cause((), r"Error\(s\) in loading state_dict", "load a checkpoint of this very network, or change model()"),
    "dtypes": Cause(
        (),
        r"must have the same dtype|expected scalar type|expected m1 and m2 to have the same dtype|Input type .* and (weight|bias) type",
        "give network and inputs in float32, model.float()",
    ),
    "depends on values": Cause(
        (),
        r"data-dependent|Could not extract specialized integer",
        "replace the branch or index by torch.where or a mask of fixed shape",
    ),
    "complex numbers": Cause((), r"complex numbers|complex<", "compute it by convolutions with fixed kernels, or take format onnx"),
    "number of inputs": Cause(
        ("TypeError",), r"forward\(\) (takes|missing) ", "give example_inputs() and the data as many inputs as forward() takes"
    ),
    "shapes": Cause(
        (),
        r"shapes cannot be multiplied|to have \d+ channels|[Ss]izes? of tensors? (a|must match)|is invalid for input of size"
        r"|Given (groups|normalized_shape)|Kernel size can't be greater|[Ee]xpected \d+(D| or \d+D)|shape mismatch",
        "give example_inputs() and the data the shape that the network takes",
    ),
}


TOOLCHAIN_CAUSES: Final = ("full disk", "no network", "memory", "complex numbers")  # the others would blame the user for a converter


def find_remedy(error: BaseException, among: Iterable[str] = tuple(CAUSES)) -> str:
    """Return the remedy for the cause of an error; "" where it is none of those. The innermost cause that is known decides.

    Args:
        among: Names of CAUSES.
    """
    known = [CAUSES[name].remedy for link in _chain(error) for name in among if _is_of(link, CAUSES[name])]
    return known[-1] if known else ""


def find_toolchain_remedy(error: BaseException) -> str:
    """Return the remedy for the cause of an error that a converter's toolchain raised; "" where it is not known."""
    return find_remedy(error, TOOLCHAIN_CAUSES)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_of(error: BaseException, cause: Cause) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return (not cause.kinds or not names.isdisjoint(cause.kinds)) and re.search(cause.text, str(error)) is not None
