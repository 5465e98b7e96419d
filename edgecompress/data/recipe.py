"""A recipe is a user's Python file with functions that return the model, its example inputs and its data.

    def model() -> nn.Module                        required
    def example_inputs() -> tuple[Tensor, ...]      required; the shapes every artifact will have
    def train_data() -> Dataset                     optional; see below for its items
    def eval_data() -> Dataset                      optional
    def calibration_data() -> Dataset               optional; default is train_data, then eval_data
    def preprocessing() -> Preprocessing            optional; written into manifests
    def labels() -> Sequence[str]                   optional; written into manifests

Items of a dataset are `(input, label)`, or just `input`; with several inputs `((input_0, input_1), label)`, or `((input_0, input_1),)`
without a label. A tuple of two tensors is an input and its label, never two inputs. Inputs have no batch axis, and the shape and kind of
the example inputs: float32 numbers, or int64 indices. A label is a class index where exactly one output is a vector of scores; the labels
of other networks are ignored. Outputs are tensors, or tuples, lists or dicts of tensors; axis 0 of each is the batch. A float output
`(n, k)` with k > 1 is taken for class scores, and a quantized file is judged by their arg-max; return k numbers that are no scores as
`(n, k, 1)` or one by one as `(n, 1)`, and the file is judged by their values.

Functions may take `resolution`, the side of an image in pixels, with the usual one as default: `example_inputs(resolution=224)`, and the
data functions and `preprocessing` where they depend on the size. `--resolution` then gives the argument.

A recipe is named by a path (`my/recipe.py`, or its folder) or as a module (`package.module`). Files beside the recipe are imported
relatively: `from .network import Net`.
"""

import copy
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from edgecompress.errors import ConfigError, EdgeCompressError
from edgecompress.records import Preprocessing

Data = Callable[[], "Dataset[Any]"]


@dataclass(frozen=True)
class Recipe:
    """A loaded recipe.

    Attributes:
        sources_sha256: Hash of the recipe, of the Python files beside it and of those that it imports from its package.
        resized: Returns the recipe at another resolution; None for a recipe without `resolution`.
    """

    name: str
    source: str
    sources_sha256: str
    model: Callable[[], nn.Module]
    example_inputs: tuple[Tensor, ...]
    train_data: Data | None = None
    eval_data: Data | None = None
    calibration_data: Data | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    resized: "Callable[[int], Recipe] | None" = None


def load_recipe(target: str) -> Recipe:
    """Import a recipe.

    Raises:
        ConfigError: The recipe is missing, fails while it is imported, or lacks `model` or `example_inputs`.
    """
    path = Path(target).expanduser()
    path = path / "recipe.py" if path.is_dir() else path
    is_file = path.suffix == ".py"
    if (is_file and not path.is_file()) or (not is_file and not _is_module_name(target)):
        raise ConfigError(f"{target}: no such recipe; give a Python file, a folder with recipe.py, or a module name")
    try:
        module = _import_file(path.resolve()) if is_file else _import_module(target)
    except EdgeCompressError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(f"{target}: cannot be imported ({error}); install what it needs or check the name") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises is theirs to read
        raise ConfigError(f"{target}: fails while it is imported: {type(error).__name__}: {error}; mend the recipe") from error
    for name in ("model", "example_inputs"):
        if not callable(getattr(module, name, None)):
            raise ConfigError(f"{target}: has no function {name}(); a recipe defines model() and example_inputs()")
    file = Path(module.__file__ or target)
    return _assemble_recipe(module, target, source=str(file) if is_file else target, sources_sha256=_hash_sources(module, file))


def recipe_at_resolution(recipe: Recipe, resolution: int) -> Recipe:
    """Return the recipe at a resolution; 0 stands for its default.

    Raises:
        ConfigError: The recipe takes no resolution, or fails at this one.
    """
    if not resolution:
        return recipe
    if recipe.resized is None:
        remedy = "let it take one, example_inputs(resolution=224), and the data functions too; or leave out --resolution"
        raise ConfigError(f"{recipe.source}: example_inputs() takes no resolution; {remedy}")
    return recipe.resized(resolution)


def _assemble_recipe(module: ModuleType, target: str, *, source: str, sources_sha256: str, resolution: int = 0) -> Recipe:
    """Collect the functions of a recipe; a resolution other than 0 is passed to those that take one."""

    def get_function(name: str, default: Any = None) -> Any:
        function = getattr(module, name, default)
        return partial(function, resolution=resolution) if resolution and _takes_resolution(function) else function

    file = Path(module.__file__ or target)
    assemble_again = partial(_assemble_recipe, module, target, source=source, sources_sha256=sources_sha256)
    return Recipe(
        name=file.parent.name if file.name == "recipe.py" else file.stem,
        source=source,
        sources_sha256=sources_sha256,
        model=get_function("model"),
        example_inputs=check_example(call_user_function(get_function("example_inputs"), f"{target}: example_inputs()"), target),
        train_data=get_function("train_data"),
        eval_data=get_function("eval_data"),
        calibration_data=get_function("calibration_data"),
        preprocessing=_check_preprocessing(
            call_user_function(get_function("preprocessing", lambda: None), f"{target}: preprocessing()"), target
        ),
        labels=_check_labels(call_user_function(get_function("labels", tuple), f"{target}: labels()"), target),
        resized=(lambda side: assemble_again(resolution=side)) if _takes_resolution(module.example_inputs) else None,
    )


def _takes_resolution(function: object) -> bool:
    return inspect.isfunction(function) and "resolution" in inspect.signature(function).parameters


def check_example(value: object, subject: str) -> tuple[Tensor, ...]:
    """Return the example inputs as a tuple of tensors with a batch axis of one.

    Raises:
        ConfigError: The inputs are not tensors, have no batch axis or a dynamic size, or hold NaN.
    """
    inputs = (value,) if isinstance(value, Tensor) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ConfigError(
            f"{subject}: example_inputs() must return a tuple of tensors, one static shape each; return e.g. (torch.zeros(1, 3, 224, 224),)"
        )
    for x in inputs:
        if x.ndim < 1 or 0 in x.shape or any(type(n) is not int for n in x.shape):
            raise ConfigError(f"{subject}: an example input has shape {tuple(x.shape)}; artifacts have static shapes, give every size")
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ConfigError(f"{subject}: an example input holds NaN or infinity; return ordinary numbers")
    return tuple(x[:1].detach().clone() for x in inputs)


def _check_preprocessing(value: object, subject: str) -> Preprocessing | None:
    if value is None or isinstance(value, Preprocessing):
        return value
    raise ConfigError(f"{subject}: preprocessing() returned {type(value).__name__}; return edgecompress.Preprocessing(mean=…, std=…)")


def _check_labels(value: object, subject: str) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(str, value))
    raise ConfigError(f"{subject}: labels() returned {type(value).__name__}; return a list of class names")


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


def recipe_from_model(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    name: str = "",
    train_data: "Dataset[Any] | None" = None,
    eval_data: "Dataset[Any] | None" = None,
    calibration_data: "Dataset[Any] | None" = None,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = (),
) -> Recipe:
    """Return a recipe for a model that lives in memory."""
    name = name or type(model).__name__.lower()
    sets = [None if d is None else (str(getattr(d, "source", type(d))), len(d)) for d in (train_data, eval_data, calibration_data)]  # type: ignore[arg-type]
    return Recipe(
        name=name,
        source="python",
        sources_sha256=hashlib.sha256(f"{model}{sets}".encode()).hexdigest(),
        model=lambda: copy.deepcopy(model),  # no run may change the caller's model
        example_inputs=check_example(example_inputs, name),
        train_data=_make_data_function(train_data),
        eval_data=_make_data_function(eval_data),
        calibration_data=_make_data_function(calibration_data),
        preprocessing=preprocessing,
        labels=tuple(labels),
    )


def _is_module_name(target: str) -> bool:
    return all(part.isidentifier() for part in target.split("."))


def _make_data_function(data: "Dataset[Any] | None") -> Data | None:
    return None if data is None else lambda: data


def _import_file(path: Path) -> ModuleType:
    """Import a file as a module of a package made for its folder, so that relative imports work and no names clash."""
    package = f"edgecompress_recipe_{hashlib.sha256(str(path.parent).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        del sys.modules[name]  # an edited recipe is read again
    folder = ModuleType(package)
    folder.__path__ = [str(path.parent)]
    sys.modules[package] = folder
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    """Import a module from the working directory first, as `python -m` does."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def _hash_sources(module: ModuleType, file: Path) -> str:
    """Hash the Python files beside the recipe and the files of its package that it has imported, wherever they lie."""
    package = module.__name__.partition(".")[0]
    imported = [m.__file__ for name, m in list(sys.modules.items()) if name.partition(".")[0] == package and getattr(m, "__file__", None)]
    digest = hashlib.sha256()
    for path in sorted({*file.parent.glob("*.py"), *(Path(name) for name in imported if name and name.endswith(".py"))}):
        digest.update(os.path.relpath(path, file.parent).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
