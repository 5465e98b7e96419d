"""Read checkpoint files: safetensors whole or in shards, and what `torch.save` wrote. No code of a file is run."""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from edgecompress.errors import ConfigError, first_line
from edgecompress.network.weights import State, read_state

FOLDER_FILES: Final = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_CLASSES: Final = 500  # a pickled network names some dozens of classes; a file of more is made to exhaust
# A pickle that names one of these is an attack: no training script writes them.
HOSTILE_MODULES: Final = {"ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "socket", "subprocess", "sys", "webbrowser"}
HOSTILE_BUILTINS: Final = {"eval", "exec", "compile", "open", "__import__", "input", "breakpoint"}
GIVE: Final = "give a .safetensors or .pt file"
# How a file begins that was put in the place of a checkpoint, what it is, and how to get the checkpoint.
SUBSTITUTES: Final = {
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; fetch it, git lfs pull",
    b"<!doctype": "a web page in place of the file; download it again",
    b"<html": "a web page in place of the file; download it again",
    b"\x89hdf": "an HDF5 file, as Keras writes them; give the weights of a PyTorch network",
}


class Unread:
    """Stands for an object of a class that a checkpoint names: arguments and state are kept, and nothing of the class is run.

    Attributes:
        class_name: Full name of the class, of each subclass.
        state: What the pickle would have set.
    """

    class_name = ""
    state: Any = None

    def __new__(cls, *_: object) -> "Unread":
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        """Take the arguments of the constructor, and ignore them."""

    def __setstate__(self, state: object) -> None:
        self.state = state


def read_checkpoint(path: Path) -> object:
    """Return what a checkpoint holds: tensors by name, or dicts of these beside other values; objects of unknown classes are `Unread`.

    Args:
        path: A safetensors file, what `torch.save` wrote, the index of a checkpoint in shards, or a folder with one of these.

    Raises:
        ConfigError: The file or a shard is missing or damaged, or a pickle that asks for hostile functions.
    """
    if path.is_dir():
        path = next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint; {GIVE}")
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if known := next((what for start, what in SUBSTITUTES.items() if head.startswith(start)), ""):
        raise ConfigError(f"{path}: {known}")
    if path.suffix == ".json":
        return _read_shards(path)
    return read_state(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_shards(path: Path) -> State:
    """Return the tensors that an index names, each from its shard beside the index."""
    try:
        shards = json.loads(path.read_bytes())["weight_map"]
        named = {str(key): str(name) for key, name in shards.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not the index of a checkpoint in shards; {GIVE}, or the .index.json beside the shards") from error
    files = sorted(set(named.values()))
    if wrong := [name for name in files if Path(name).name != name or name.endswith(".json")]:
        raise ConfigError(f"{path}: names the shard {wrong[0]!r}, which is no file beside it; put index and shards into one folder")
    if missing := [name for name in files if not (path.parent / name).is_file()]:
        raise ConfigError(f"{path}: {len(missing)} of {len(files)} shards are not beside it (first: {missing[0]}); copy all of them")
    state: dict[str, Any] = {}
    for name in files:
        shard = read_checkpoint(path.parent / name)
        held = shard if isinstance(shard, Mapping) else {}
        wanted = [key for key, file in named.items() if file == name]
        if absent := [key for key in wanted if not isinstance(held.get(key), torch.Tensor)]:
            raise ConfigError(f"{path.parent / name}: lacks {absent[0]}, which {path.name} places there; copy the shards again")
        state |= {key: held[key] for key in wanted}
    return state


def _read_pickle(path: Path) -> object:
    """Return what `torch.save` wrote, read with `weights_only`: classes that are not torch's own are replaced by `Unread`."""
    classes: dict[str, type[Unread]] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(cls, name) for name, cls in classes.items()]), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # on the protocol of the pickle
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported" not in str(error) and "GLOBAL" not in str(error):
                raise ConfigError(f"{path}: not a checkpoint, or a damaged one; {GIVE}") from error
            names = _list_unknown_classes(path, str(error)) - classes.keys()
            if not names or any(map(_is_hostile, names)) or len(classes) + len(names) > MAX_CLASSES:
                raise ConfigError(refuse_objects(path)) from error
            classes |= {name: type(name.rpartition(".")[2], (Unread,), {"class_name": name}) for name in names}
        except Exception as error:  # a damaged pickle ends in any kind of error, KeyError and struct.error among them
            if "TorchScript" in str(error):
                save = f"import torch; torch.save(torch.jit.load({path.name!r}).state_dict(), '{path.stem}-state.pt')"
                raise ConfigError(f"{path}: a TorchScript archive, not a checkpoint; save its state dict: {save}") from error
            if classes:  # one of them is used as what it is
                raise ConfigError(refuse_objects(path)) from error
            raise ConfigError(f"{path}: not a checkpoint, or a damaged one ({first_line(error)}); {GIVE}") from error


def refuse_objects(path: Path) -> str:
    """Return the message on a pickle that holds objects where weights were expected."""
    return f"{path}: holds Python objects that would run code when loaded; save torch.save(model.state_dict(), …) or a .safetensors file"


def _list_unknown_classes(path: Path, message: str) -> set[str]:
    """Return the full names of the classes and functions that a pickle names and torch does not allow: all, or the first one."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file in torch's old format, or an opcode that the listing does not know
        found = re.search(r"GLOBAL (\S+) was not an allowed global", message)
        return set() if found is None else {found[1] if "." in found[1] else f"builtins.{found[1]}"}


def _is_hostile(name: str) -> bool:
    module, _, function = name.rpartition(".")
    return module.partition(".")[0] in HOSTILE_MODULES or (module in {"builtins", "__builtin__"} and function in HOSTILE_BUILTINS)
