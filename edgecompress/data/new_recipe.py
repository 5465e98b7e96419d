"""Write the first recipe of a network: a Python file with comments, for its user to read and to change."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from edgecompress.data.recipe import Recipe
from edgecompress.errors import ConfigError
from edgecompress.records import Preprocessing
from edgecompress.records.outputs import OUTPUT_KINDS

FUNCTION_SOURCE: Final = re.compile(r"(?P<path>.+\.py):(?P<function>\w+)(?:@[\dx,]+)?")
FILE_SOURCE: Final = re.compile(r"(?P<prefix>hf:|)(?P<path>/.+?)(?P<suffix>(?:@[\dx,]+)?)")
DATA_FUNCTIONS: Final = ("train_data", "eval_data", "calibration_data")
JUDGING: Final = ("outputs", "metric", "loss", "higher_is_better")
FUNCTIONS: Final = (*DATA_FUNCTIONS, "preprocessing", "labels", *JUDGING)  # that a recipe may have
SHORT_LIST: Final = 20  # names of classes that are written out
MAX_CHANNELS: Final = 4  # of an image


class Draft(NamedTuple):
    """What is known of a network whose recipe is to be written.

    Attributes:
        recipe: Of its source.
        output: Name of its first output; "" where outputs have no names.
        own: Functions of a recipe that the network's file has itself.
        weights, data: Paths; None for none.
        is_random: Whether the network's function draws random weights.
    """

    recipe: Recipe
    output: str = ""
    own: tuple[str, ...] = ()
    weights: Path | None = None
    data: Path | None = None
    is_random: bool = False


class _NetworkCode(NamedTuple):
    """How a recipe makes its network: imports, lines before its functions, and the expression."""

    imports: list[str]
    setup: list[str]
    make: str


def choose_place(recipe: Recipe) -> Path:
    """Return where the recipe of a source lies unless its user says something else: beside its file, or in a new folder of its name."""
    if found := FUNCTION_SOURCE.fullmatch(recipe.source):
        return Path(found["path"]).with_name("recipe.py")
    if found := FILE_SOURCE.fullmatch(recipe.source):
        path = Path(found["path"])
        return path / "recipe.py" if found["prefix"] else path.with_name("recipe.py")
    return Path(recipe.name, "recipe.py")


def compose_recipe(draft: Draft, folder: Path) -> str:
    """Return the text of a recipe that lies in a folder.

    Raises:
        ConfigError: The network's file has a name that Python cannot import.
    """
    network = _write_network(draft, folder)
    preprocessing = None if "preprocessing" in draft.own else _choose_preprocessing(draft)
    constants = [f"WEIGHTS = {_write_path(draft.weights, folder)}"] if draft.weights else []
    constants += [f"DATA = {_write_path(draft.data, folder)}"] if draft.data else []
    constants += network.setup
    blocks = [
        "\n\n".join(_write_head(draft, network, constants, with_preprocessing=preprocessing is not None)),
        _write_model(draft, network.make),
        _write_example(draft.recipe.example_inputs),
        *([_write_preprocessing(preprocessing, known=draft.recipe.preprocessing is not None)] if preprocessing else []),
        *([_write_labels(draft.recipe.labels)] if draft.recipe.labels and "labels" not in draft.own else []),
        *(_write_data(with_preprocessing=preprocessing is not None or "preprocessing" in draft.own) if draft.data else ()),
        "\n\n".join(_write_suggestions(draft)),
    ]
    return "\n\n\n".join(blocks) + "\n"


def _write_head(draft: Draft, network: _NetworkCode, constants: list[str], *, with_preprocessing: bool) -> Iterator[str]:
    """Yield the paragraphs before the first function: what is imported, and where files lie."""
    yield '"""What edgecompress is told about a network and its data. `edgecompress init` wrote this file; change what you like."""'
    standard = ["import sys"] if any(line.startswith("sys.") for line in constants) else []
    uses_here = any("HERE" in line for line in constants)
    standard += ["from pathlib import Path"] if uses_here or any("Path(" in line for line in constants) else []
    yield from ["\n".join(standard)] if standard else []
    yield "import torch\nfrom torch import Tensor, nn"
    own = ["from edgecompress import Preprocessing"] if with_preprocessing else []
    own += ["from edgecompress.data import Samples, load_data"] if draft.data else []
    own += [line for line in network.imports if line.startswith("from edgecompress")]
    own += ["from edgecompress.network.checkpoints import load_checkpoint"] if draft.weights else []
    yield from ["\n".join(own)] if own else []
    lines = ["HERE = Path(__file__).parent"] if uses_here else []
    yield from ["\n".join((*lines, *constants))] if constants else []
    rest = [line for line in network.imports if not line.startswith("from edgecompress")]
    yield from ["\n".join(rest)] if rest else []


def _write_network(draft: Draft, folder: Path) -> _NetworkCode:
    source = draft.recipe.source
    if (found := FUNCTION_SOURCE.fullmatch(source)) is None:
        setup = f"NETWORK = load_recipe({_write_source(source, folder)})"
        return _NetworkCode(["from edgecompress.data.recipe import load_recipe"], [setup], "NETWORK.model()")
    file = Path(found["path"])
    if not file.stem.isidentifier():
        name = re.sub(r"\W", "_", file.stem)
        raise ConfigError(f"{file}: Python cannot import a file of this name; rename it, e.g. {name}.py")
    setup = f"sys.path.insert(0, {_quote(str(file.parent))})  # where {file.stem}.py lies"
    own = [name for name in draft.own if not (draft.data and name in DATA_FUNCTIONS)]
    names = ", ".join((f"{found['function']} as make_network", *own))
    return _NetworkCode([f"from {file.stem} import {names}"], [] if file.parent == folder else [setup], "make_network()")


def _write_source(source: str, folder: Path) -> str:
    """Return the expression of a source; a file below the folder is named from there, so that both can be moved."""
    found = FILE_SOURCE.fullmatch(source)
    if found is None or not Path(found["path"]).is_relative_to(folder):
        return _quote(source)
    path = f"str({_write_path(Path(found['path']), folder)})"
    return " + ".join(filter(None, (found["prefix"] and _quote(found["prefix"]), path, found["suffix"] and _quote(found["suffix"]))))


def _write_path(path: Path, folder: Path) -> str:
    if not path.is_relative_to(folder):
        return f"Path({_quote(str(path))})"
    inner = path.relative_to(folder)
    return f"HERE / {_quote(str(inner))}" if inner.parts else "HERE"


def _write_model(draft: Draft, make: str) -> str:
    lines = ["def model() -> nn.Module:", '    """Return the trained network, in float32 and on the CPU."""']
    if draft.weights:
        lines += [f"    network = {make}", "    load_checkpoint(network, WEIGHTS)", "    return network"]
    elif draft.is_random:
        lines += ["    torch.manual_seed(0)  # its weights are random: load trained ones here", f"    return {make}"]
    else:
        lines += [f"    return {make}"]
    return "\n".join(lines)


def _write_example(example: tuple[Tensor, ...]) -> str:
    tensors = ", ".join(map(_write_tensor, example))
    return "\n".join(
        (
            "def example_inputs() -> tuple[Tensor, ...]:",
            '    """Return one tensor for each input. The first axis is the batch; files will have these shapes."""',
            f"    return ({tensors}{',' if len(example) == 1 else ''})",
        )
    )


def _write_tensor(x: Tensor) -> str:
    """Return the expression of an example input: of floats only the shape matters, integers stay below the largest one."""
    shape = ", ".join(map(str, x.shape))
    dtype = "" if str(x.dtype) == "torch.float32" else f", dtype={x.dtype}"
    if x.is_floating_point() or x.is_complex() or x.dtype is torch.bool or int(x.max()) < 1:
        return f"torch.zeros({shape}{dtype})"
    if bool((x == 1).all()):
        return f"torch.ones({shape}{dtype})"
    indices = f"(torch.arange({x.numel()}) % {int(x.max()) + 1}).reshape({shape})"
    return indices if x.dtype is torch.int64 else f"{indices}.to({x.dtype})"


def _choose_preprocessing(draft: Draft) -> Preprocessing | None:
    """Return the preprocessing of the source, or else where there are data one that only resizes square images."""
    shape = draft.recipe.example_inputs[0].shape
    has_images = draft.data is not None and draft.data.suffix != ".npz"  # arrays are often inputs already
    if draft.recipe.preprocessing is not None or not has_images or len(shape) != 4 or shape[1] > MAX_CHANNELS or shape[2] != shape[3]:
        return draft.recipe.preprocessing
    return Preprocessing(mean=(0.0,) * shape[1], std=(1.0,) * shape[1], resize=shape[3], crop=shape[3])


def _write_preprocessing(given: Preprocessing, *, known: bool) -> str:
    text = "as its weights were trained" if known else "here scaled to [0, 1] and resized"
    lines = [
        "def preprocessing() -> Preprocessing:",
        f'    """Return what is done to images, {text}: resize, crop, then (x / 255 - mean) / std."""',
    ]
    lines += [] if known else ["    # Replace mean and std by those that the network was trained with."]
    sizes = "".join(f", {name}={value}" for name, value in (("resize", given.resize), ("crop", given.crop)) if value is not None)
    return "\n".join((*lines, f"    return Preprocessing(mean={given.mean}, std={given.std}{sizes})"))


def _write_labels(labels: tuple[str, ...]) -> str:
    head = [
        "def labels() -> tuple[str, ...]:",
        '    """Return the names of the classes, in the order of the scores. Folders of images are numbered by them."""',
    ]
    body = f"({', '.join(map(_quote, labels))}{',' if len(labels) == 1 else ''})" if len(labels) <= SHORT_LIST else "NETWORK.labels"
    return "\n".join((*head, f"    return {body}"))


def _write_data(*, with_preprocessing: bool) -> Iterator[str]:
    given = f"preprocessing={'preprocessing()' if with_preprocessing else 'None'}, example=example_inputs()"
    told = {
        "train_data": ("train", "Return the samples to fine-tune on. An augmentation may be set: `samples.transform = function`."),
        "eval_data": ("eval", "Return the samples that accuracies are measured on, and that files are proved on."),
        "calibration_data": ("train", "Return samples to calibrate int8 on: the training samples without augmentation."),
    }
    for name, (split, text) in told.items():
        yield f'def {name}() -> Samples:\n    """{text}"""\n    return load_data(DATA, "{split}", {given})'


def _write_suggestions(draft: Draft) -> Iterator[str]:
    """Yield the functions that the recipe does not have, as comments."""
    missing = [name for name in FUNCTIONS if name not in draft.own and not (name == "labels" and draft.recipe.labels)]
    first = f"outputs[{_quote(draft.output)}]" if draft.output else "outputs"
    kind = f'{{{_quote(draft.output)}: "logits"}}' if draft.output else '"logits"'
    texts = {
        "train_data": (
            "def train_data():\n"
            '    """Return a torch Dataset of (input, target), inputs without a batch axis. eval_data() is alike."""\n'
            "    return torch.utils.data.TensorDataset(inputs, targets)"
        ),
        "labels": (
            "def labels() -> tuple[str, ...]:\n"
            '    """Return the names of the classes, in the order of the scores."""\n'
            '    return ("cat", "dog")'
        ),
        "outputs": (
            "def outputs():\n"
            '    """Return the kind of each output, by position or by name. Without it the network and the targets tell."""\n'
            f"    return {kind}  # or {', '.join(other for other in OUTPUT_KINDS if other != 'logits')}"
        ),
        "metric": (
            "def metric(outputs, targets) -> dict[str, float]:\n"
            '    """Return how good the outputs of a batch are. Without it class scores have their top-1."""\n'
            f'    return {{"accuracy": float(({first}.argmax(1) == targets).float().mean())}}'
        ),
        "loss": (
            "def loss(outputs, targets) -> Tensor:\n"
            '    """Return what fine-tuning minimises. Without it the answers of the trained network are kept."""\n'
            f"    return torch.nn.functional.cross_entropy({first}, targets)"
        ),
    }
    left_out = {"train_data"} if draft.data else set()
    yield "# A recipe may have these functions too; remove the `# ` before those that you need."
    for name in missing:
        if name in texts and name not in left_out:
            yield "\n".join(f"# {line}" for line in texts[name].splitlines())


def _quote(text: str) -> str:
    return repr(text) if set(text) & set("\"\\'") or not text.isprintable() else f'"{text}"'


def list_own_functions(names: Iterable[str]) -> tuple[str, ...]:
    """Return which functions of a recipe a module has, of the names in it."""
    return tuple(name for name in FUNCTIONS if name in set(names))
