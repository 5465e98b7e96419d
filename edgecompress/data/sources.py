"""What a command takes as a network: a recipe, a function of a file, a network of a package; each becomes a module of functions.

recipe.py, its folder, or package.module    a recipe
net.py:make@1x3x32x32                       a function or class of a file that returns the network, and the shape of its input
torchvision:mobilenet_v3_small              a network of torchvision, with random weights until --weights gives others
timm:mobilenetv4_conv_small@1x3x160x160     a network of timm, here with another shape of its input
hf:my/folder@1x128                          a folder that `save_pretrained` of transformers wrote
net.onnx                                    an ONNX file, read by onnx2torch
net.pt2                                     a program that torch.export.save wrote
"""

import copy
import difflib
import hashlib
import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from edgecompress.data.program_files import load_program
from edgecompress.data.recipe_files import hash_sources, import_file, import_module
from edgecompress.data.shapes import SHAPES, UnknownShapeError, read_sizes
from edgecompress.data.transformers_folder import read_folder
from edgecompress.errors import ConfigError, UnsupportedError, first_line
from edgecompress.faults.user_code import call_user_function, user_code
from edgecompress.network.program_layers import list_input_sizes, make_network
from edgecompress.records import Preprocessing

MISSING_OP: Final = re.compile(r"operation_type='(\w+)', version=(\d+)")
DEFAULT_SIDE: Final = 224  # of networks of torchvision that have no weights to tell
FORMS: Final = (
    "give a Python file, a folder with recipe.py, a module name, FILE.py:FUNCTION, torchvision:NAME, timm:NAME, hf:FOLDER, "
    "FILE.onnx or FILE.pt2"
)


class Source(NamedTuple):
    """The functions of a recipe, whatever they came from.

    Attributes:
        module: Has `model`, `example_inputs` and whatever else a recipe may have.
        text: Names the source from any working directory.
        sha256: Hash of the files, or of the version of the package, that define the network.
    """

    module: ModuleType
    name: str
    text: str
    sha256: str


def load_source(target: str) -> Source:
    """Return the functions of what a command was given.

    Raises:
        ConfigError: Nothing of that name is there, its package is missing, or it fails while it is imported.
    """
    for form, load in LOADERS.items():
        if found := re.fullmatch(form, target):
            return load(target, **found.groupdict())
    path = Path(target).expanduser()
    path = path / "recipe.py" if path.is_dir() else path
    if path.suffix == ".py" and path.is_file():
        module = _import(path, target)
        name = path.resolve().parent.name if path.name == "recipe.py" else path.stem
        return Source(module, name, str(path.resolve()), hash_sources(module, path.resolve()))
    if path.suffix == ".py" or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(f"{target}: no such recipe; {FORMS}")
    with user_code("the import", target):
        module = import_module(target)
    file = Path(module.__file__ or target)
    return Source(module, file.parent.name if file.name == "recipe.py" else file.stem, target, hash_sources(module, file))


def _import(path: Path, target: str) -> ModuleType:
    with user_code("the import", target):
        return import_file(path.resolve())


def _load_function(target: str, path: str, function: str, shapes: str | None) -> Source:
    """Return a function of a file as `model`, beside whatever else of a recipe the file has."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{target}: {path} is no file; {FORMS}")
    module = _import(file, target)
    if not callable(make := getattr(module, function, None)):
        raise ConfigError(f"{target}: {path} has no function {function}{_suggest(function, vars(module))}")
    if shapes is None and not hasattr(module, "example_inputs"):
        raise UnknownShapeError(target)
    functions: dict[str, Any] = {**vars(module), "model": make}
    if shapes is not None:
        functions["example_inputs"] = partial(_make_inputs, shapes)
    text = f"{file}:{function}{'@' + shapes if shapes else ''}"
    return Source(_make_module(module.__name__, functions), function, text, hash_sources(module, file))


def _load_torchvision(target: str, name: str, shapes: str | None) -> Source:
    """Return a network of torchvision with the preprocessing and the classes of its default weights; nothing is fetched."""
    models = _import_package("torchvision.models", target)
    if name not in (known := models.list_models()):
        raise ConfigError(f"{target}: torchvision has no {name}{_suggest(name, known)}")
    weights: Any = next(iter(models.get_model_weights(name)), None)
    way: Any = weights.transforms() if weights is not None else None
    parts = {part: None for part in inspect.signature(models.get_model_builder(name)).parameters if part.startswith("weights")}
    make = partial(models.get_model, name, **parts)  # a detector fetches weights of its backbone unless told not to
    if len(getattr(way, "crop_size", ())) != 1:  # of videos, of boxes, or without weights
        return _describe_package(target, "torchvision", name, shapes, make, size=(3, DEFAULT_SIDE, DEFAULT_SIDE))
    side, ratio = way.crop_size[0], way.resize_size[0] / way.crop_size[0]
    colours = Colours(tuple(way.mean), tuple(way.std), ratio)
    labels = tuple(weights.meta.get("categories", ()))
    return _describe_package(target, "torchvision", name, shapes, make, size=(3, side, side), colours=colours, labels=labels)


def _load_timm(target: str, name: str, shapes: str | None) -> Source:
    """Return a network of timm with the preprocessing of its weights; nothing is fetched."""
    timm = _import_package("timm", target)
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(f"{target}: timm has no {name}{_suggest(name, timm.list_models())}")
    given = timm.get_pretrained_cfg(name)
    colours = Colours(tuple(given.mean), tuple(given.std), 1 / given.crop_pct)
    fixed = {"img_size": _make_inputs(shapes)[0].shape[2:]} if shapes and getattr(given, "fixed_input_size", False) else {}
    make = partial(timm.create_model, name, pretrained=False, **fixed)  # position embeddings have the size of the input
    return _describe_package(target, "timm", name, shapes, make, size=tuple(given.input_size), colours=colours)


class Colours(NamedTuple):
    """Mean and standard deviation of each colour that a network was trained with, and the side of an image before and after its crop."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    ratio: float


def _describe_package(
    target: str,
    package: str,
    name: str,
    shapes: str | None,
    make: Callable[[], nn.Module],
    *,
    size: tuple[int, ...],
    colours: Colours | None = None,
    labels: tuple[str, ...] = (),
) -> Source:
    """Return a network of a package, whose side is that of its weights unless the target or `--resolution` gives another."""
    if shapes is not None:
        size = tuple(_make_inputs(shapes)[0].shape[1:])

    def example_inputs(resolution: int = 0) -> tuple[Tensor, ...]:
        return (torch.zeros(1, *(size if not resolution else (size[0], resolution, resolution))),)

    def preprocessing(resolution: int = 0) -> Preprocessing | None:
        side = resolution or size[-1]
        return colours and Preprocessing(mean=colours.mean, std=colours.std, resize=round(side * colours.ratio), crop=side)

    functions = {"model": partial(_make_seeded_network, make, target), "example_inputs": example_inputs, "labels": lambda: labels}
    text = f"{package}:{name}{'@' + shapes if shapes else ''}"
    version = importlib.import_module(package).__version__
    digest = hashlib.sha256(f"{text} {version}".encode()).hexdigest()
    return Source(_make_module(package, functions | {"preprocessing": preprocessing}), name, text, digest)


def _load_onnx(target: str, path: str, shapes: str | None) -> Source:
    """Return the network of an ONNX file with its weights, as onnx2torch reads it."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{target}: {path} is no file; {FORMS}")
    onnx2torch, onnx = (_import_package(name, target, install="onnx2torch") for name in ("onnx2torch", "onnx"))
    try:
        network: nn.Module = onnx2torch.convert(str(file))
    except Exception as error:  # of its converters, of onnx, of protobuf
        if found := MISSING_OP.search(str(error)):
            remedy = "write the file with opset_version=13, or replace that op"
            raise UnsupportedError(f"{target}: onnx2torch has no {found[1]} of opset {found[2]}; {remedy}") from error
        raise ConfigError(f"{target}: onnx2torch cannot read it: {first_line(error)}; write the file again") from error
    if shapes is None:
        graph = onnx.load(str(file), load_external_data=False).graph
        given = {weight.name for weight in graph.initializer}
        sizes = [[max(1, size.dim_value) for size in x.type.tensor_type.shape.dim] for x in graph.input if x.name not in given]
        shapes = ",".join("x".join(map(str, [1, *size[1:]])) for size in sizes)
    functions = {"model": lambda: copy.deepcopy(network), "example_inputs": partial(_make_inputs, shapes)}
    digest = hashlib.sha256(file.read_bytes() + shapes.encode()).hexdigest()
    return Source(_make_module("onnx", functions), file.stem, f"{file}@{shapes}", digest)


def _load_transformers(target: str, path: str, shapes: str | None) -> Source:
    """Return the network of a folder in the layout of transformers, with its weights."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{target}: {path} is no folder, and nothing is fetched; give a folder that save_pretrained wrote")
    transformers = _import_package("transformers", target)
    found = read_folder(transformers, folder, read_sizes(shapes), target)
    functions = {
        "model": found.make,
        "example_inputs": lambda: found.example,
        "preprocessing": lambda: found.preprocessing,
        "labels": lambda: found.labels,
    }
    text = f"hf:{folder}{'@' + shapes if shapes else ''}"
    described = [(folder / name).read_bytes() for name in ("config.json", "preprocessor_config.json") if (folder / name).is_file()]
    digest = hashlib.sha256(b"\0".join((text.encode(), str(transformers.__version__).encode(), *described))).hexdigest()
    return Source(_make_module("transformers_folder", functions), folder.name, text, digest)


def _load_program(target: str, path: str, shapes: str | None) -> Source:
    """Return the network of an exported program, with its weights; a batch that the program leaves open is 1."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{target}: {path} is no file; {FORMS}")
    program = load_program(file, target)
    inputs = list_input_sizes(program)
    network = make_network(program, name=target)
    sizes = read_sizes(shapes) or tuple((size[0] or 1, *(n or 0 for n in size[1:])) for size, _ in inputs)
    if len(sizes) != len(inputs):
        raise ConfigError(f"{target}: {len(sizes)} shapes are given, the program takes {len(inputs)} inputs; give a shape for each")
    if not shapes and any(0 in size for size in sizes):
        raise UnknownShapeError(target)
    example = tuple(torch.zeros(size, dtype=dtype) for size, (_, dtype) in zip(sizes, inputs, strict=True))
    functions = {"model": lambda: copy.deepcopy(network), "example_inputs": lambda: example}
    text = f"{file}{'@' + shapes if shapes else ''}"
    digest = hashlib.sha256(file.read_bytes() + text.encode()).hexdigest()
    return Source(_make_module("program", functions), file.stem, text, digest)


LOADERS: Final[dict[str, Callable[..., Source]]] = {
    rf"(?P<path>.+\.py):(?P<function>[A-Za-z_]\w*){SHAPES}": _load_function,
    rf"torchvision:(?P<name>\w+){SHAPES}": _load_torchvision,
    rf"timm:(?P<name>[\w.]+){SHAPES}": _load_timm,
    rf"hf:(?P<path>.+?){SHAPES}": _load_transformers,
    rf"(?P<path>.+\.onnx){SHAPES}": _load_onnx,
    rf"(?P<path>.+\.pt2){SHAPES}": _load_program,
}


def _make_module(name: str, functions: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(functions)
    return module


def _make_inputs(shapes: str) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(size) for size in read_sizes(shapes))


def _make_seeded_network(make: Callable[[], nn.Module], target: str) -> nn.Module:
    """Return a network whose random weights are the same in every process, so that a run can be gone on with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = call_user_function(make, "the network", target)
        return network


def _import_package(name: str, target: str, install: str = "") -> Any:
    package = install or name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{target}: {package} cannot be imported ({error}); pip install {package}") from error
    except Exception as error:  # of a package that was built for another torch
        remedy = f"install the {package} that was built for torch {torch.__version__}"
        raise ConfigError(f"{target}: {package} cannot be imported ({first_line(error)}); {remedy}") from error


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    return f"; did you mean {' or '.join(close)}?" if close else "; check the name"
