"""Read a network in the layout of the `transformers` library: config.json beside weights in safetensors, whole or in shards.

The library's own classes make the network. No code of the folder is run, and nothing is fetched.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from edgecompress.data.shapes import Sizes, UnknownShapeError
from edgecompress.errors import ConfigError, UnsupportedError, first_line
from edgecompress.records import Preprocessing

WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
FURTHER_INPUTS: Final = ("attention_mask", "token_type_ids")  # of the shapes after the first, in this order
FUNCTION: Final = "give a function that returns the network, FILE.py:FUNCTION@SHAPE"


class KeywordNetwork(nn.Module):
    """A network of transformers that takes its inputs by position, and returns the tensors of its output by name.

    Args:
        names: The keyword of each input.
    """

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        given = self.network(**dict(zip(self.names, inputs, strict=True)), return_dict=True)
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}


class TransformersNetwork(NamedTuple):
    """What a folder says about its network; the weights are read by `make`."""

    make: Callable[[], nn.Module]
    example: tuple[Tensor, ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]


def read_folder(transformers: Any, folder: Path, sizes: Sizes, target: str) -> TransformersNetwork:
    """Read the description of a network; its weights are not read yet.

    Args:
        transformers: The package.
        sizes: Shapes of the inputs, batch axis included: the main input, then `attention_mask`, then `token_type_ids`. Where none is
            given, the main input is an image of the size that the folder tells.
        target: The folder's name in messages.

    Raises:
        ConfigError: The folder is of another layout, the shape of an input is not known, or the library cannot read it.
        UnsupportedError: The network needs inputs of several kinds.
    """
    config = _read_config(transformers, folder, target)
    kind = _find_class(transformers, config, target)
    names = _name_inputs(kind, max(1, len(sizes)), target)
    images = _read_json(folder / "preprocessor_config.json", target)
    sizes = sizes or _read_image_size(config, images, names[0], target)
    return TransformersNetwork(
        make=partial(_load_network, transformers, kind, config, folder, names, target),
        example=tuple(_make_example(config, name, size) for name, size in zip(names, sizes, strict=True)),
        preprocessing=_read_preprocessing(images, sizes[0]),
        labels=_read_labels(kind, config),
    )


def _read_config(transformers: Any, folder: Path, target: str) -> Any:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{target}: has no config.json; give a folder that save_pretrained wrote")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ConfigError(f"{target}: has none of {', '.join(WEIGHTS)}; save the network again with save_pretrained")
    own_code = "auto_map" in _read_json(folder / "config.json", target)
    try:
        with _silence(transformers):
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of the library, of its checks of values
        remedy = f"code of its own is not run, so {FUNCTION}" if own_code else "update transformers, or save the network again"
        raise ConfigError(f"{target}: transformers cannot read config.json ({first_line(error)}); {remedy}") from error
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values of earlier calls are no outputs
    return config


def _find_class(transformers: Any, config: Any, target: str) -> Any:
    """Return the class of the library that config.json names.

    Raises:
        ConfigError: It names none, or none of this version of the library.
    """
    name = next(iter(getattr(config, "architectures", None) or ()), None)
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ConfigError(f"{target}: config.json names the class {name}, which transformers {transformers.__version__} lacks; {FUNCTION}")
    return kind


def _name_inputs(kind: Any, count: int, target: str) -> tuple[str, ...]:
    """Return the keywords of the first inputs of a network.

    Raises:
        ConfigError: It takes fewer.
        UnsupportedError: It needs further inputs of another kind.
    """
    parameters = inspect.signature(kind.forward).parameters
    if "decoder_input_ids" in parameters:
        raise UnsupportedError(f"{target}: {kind.__name__} takes inputs of an encoder and of a decoder; {FUNCTION} of one of them")
    names = (kind.main_input_name, *(name for name in FURTHER_INPUTS if name in parameters))
    if count > len(names):
        raise ConfigError(f"{target}: {count} shapes are given, {kind.__name__} takes {', '.join(names)}; give {len(names)} or fewer")
    return names[:count]


def _read_image_size(config: Any, images: dict[str, Any], name: str, target: str) -> Sizes:
    """Return the shape `(1, c, h, w)` of the images that a network was trained on.

    Raises:
        ConfigError: The main input is no image, or its size is told nowhere.
    """
    side = getattr(config, "image_size", None) or _read_side(images.get("crop_size")) or _read_side(images.get("size"))
    if name != "pixel_values" or not side:
        example = "1x128" if _holds_indices(name) else "1x3x224x224" if name == "pixel_values" else "1x16000"
        raise UnknownShapeError(target, name, example)
    height, width = (side, side) if isinstance(side, int) else side
    return ((1, getattr(config, "num_channels", 3), height, width),)


def _make_example(config: Any, name: str, size: tuple[int, ...]) -> Tensor:
    """Return one input: different indices below the vocabulary, a mask that hides nothing, token types 0, or floats."""
    if name == FURTHER_INPUTS[0]:
        return torch.ones(size, dtype=torch.int64)
    if not _holds_indices(name):
        return torch.zeros(size)
    rows = config.get_text_config().vocab_size if name == "input_ids" else 1
    return (torch.arange(torch.Size(size).numel()) % rows).reshape(size)


def _holds_indices(name: str) -> bool:
    return name.endswith("_ids")


def _load_network(transformers: Any, kind: Any, config: Any, folder: Path, names: tuple[str, ...], target: str) -> nn.Module:
    """Return the network with its weights in float32.

    Raises:
        ConfigError: The weights cannot be read, or some are missing.
    """
    try:
        with _silence(transformers):
            network, found = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # of the library, of safetensors
        remedy = "save the network again with save_pretrained"
        raise ConfigError(f"{target}: transformers cannot read the weights ({first_line(error)}); {remedy}") from error
    if missing := sorted(found["missing_keys"]):
        names_of_missing = f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if missing[3:] else ''}"
        remedy = "save the whole network with save_pretrained, or mend architectures in config.json"
        raise ConfigError(f"{target}: {kind.__name__} has weights that the files lack ({names_of_missing}); {remedy}")
    return KeywordNetwork(network, names)


@contextmanager
def _silence(transformers: Any) -> Iterator[None]:
    """Keep the library's warnings and progress bars off the terminal; errors are raised."""
    log = transformers.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def _read_json(path: Path, target: str) -> dict[str, Any]:
    """Return what a file says; nothing where it is missing.

    Raises:
        ConfigError: It is no JSON object.
    """
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{target}: {path.name} is damaged ({first_line(error)}); save the network again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{target}: {path.name} holds no object; save the network again")
    return found


def _read_side(size: object) -> int | None:
    """Return the height, or the short side, of a size in preprocessor_config.json: `224`, `{"height": …}` or `{"shortest_edge": …}`."""
    side = (size.get("shortest_edge") or size.get("height")) if isinstance(size, dict) else size
    return side if isinstance(side, int) else None


def _read_preprocessing(images: dict[str, Any], size: tuple[int, ...]) -> Preprocessing | None:
    """Return what is done to images; None where the folder does not tell it, or pixels are not scaled to [0, 1] first."""
    if "image_mean" not in images or not images.get("do_rescale", True) or len(size) != 4 or size[2] != size[3]:
        return None
    side, normalized = size[3], images.get("do_normalize", True)
    resized, cropped = _read_side(images.get("size")), _read_side(images.get("crop_size"))
    ratio = resized / cropped if resized and cropped and images.get("do_center_crop") else 1.0
    return Preprocessing(
        mean=tuple(map(float, images["image_mean"])) if normalized else (0.0,) * size[1],
        std=tuple(map(float, images["image_std"])) if normalized else (1.0,) * size[1],
        resize=round(side * ratio),
        crop=side,
    )


def _read_labels(kind: Any, config: Any) -> tuple[str, ...]:
    """Return the names of the classes of a classifier; () where nobody named them."""
    known = dict(getattr(config, "id2label", None) or {}) if "Classification" in kind.__name__ else {}
    names = tuple(str(known[i]) for i in sorted(known))
    return () if all(name.startswith("LABEL_") for name in names) else names
