"""Import a recipe from a file or a package, and hash the source files that it is made of."""

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from edgecompress.errors import ConfigError
from edgecompress.faults.user_code import is_user_file

_ON_PATH: dict[str, frozenset[str]] = {}  # the folder that was put on the path → the names of modules that were imported before


def import_file(path: Path) -> ModuleType:
    """Import a file as a module of a package made for its folder, so that relative imports work and no names clash.

    The folder is put first on the path, as for a script, so that `from net import Net` finds the file beside it, also in a function that
    is called later. Modules that came from the folder of an earlier recipe are forgotten.
    """
    _put_on_path(path.parent)
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


def _put_on_path(folder: Path) -> None:
    """Put a folder first on the path, in place of the one of an earlier recipe, and forget what was imported from either."""
    while _ON_PATH:
        earlier, before = _ON_PATH.popitem()
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(earlier) and is_user_file(file):
                del sys.modules[name]
        if earlier in sys.path:
            sys.path.remove(earlier)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    _ON_PATH[str(folder)] = frozenset(sys.modules)


def import_module(name: str) -> ModuleType:
    """Import a module from the working directory first, as `python -m` does."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def hash_sources(module: ModuleType, file: Path) -> str:
    """Hash the file of a recipe and the user's own files that it imports, directly or not; files that merely lie beside it are left out."""
    digest = hashlib.sha256()
    for path in sorted(list_sources(module, file)):
        digest.update(os.path.relpath(path, file.parent).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def list_sources(module: ModuleType, file: Path) -> set[Path]:
    """Return the Python files that a recipe is made of: its own, and the user's that it imports, also those that a function would import.

    Installed packages are left out.
    """
    package = module.__name__.partition(".")[0]
    names = [name for name in list(sys.modules) if name.partition(".")[0] == package]
    found: set[Path] = {file.resolve()}
    beside = file.resolve().parent
    pending = [
        (module.__name__, file.resolve()),
        *((name, path) for name in names if (path := _find_file(name, package, beside)) is not None),
    ]
    seen: set[str] = set()
    while pending:
        name, path = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        found.add(path)
        for imported in _list_imports(name, path):
            other = _find_file(imported, package, beside)
            if other is not None and (imported.partition(".")[0] == package or _is_of_the_user(other, file.parent)):
                pending.append((imported, other))
    return found


def _list_imports(name: str, path: Path) -> Iterator[str]:
    """Yield the full names of all that a file may import, with the packages that hold them; some are functions and no modules."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            targets = [f"{origin}.{alias.name}" for alias in node.names]
        for target in targets:
            parts = target.split(".")
            yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))


def _find_file(name: str, package: str, beside: Path) -> Path | None:
    """Return the source file of a module that is imported, or that lies in the recipe's package or folder; None for any other name."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file).resolve() if file and file.endswith(".py") else None
    top, *rest = name.split(".")
    paths = [beside.joinpath(top, *rest)]
    if top == package:
        paths = [Path(root, *rest) for root in getattr(sys.modules.get(package), "__path__", ()) if rest]
    for path in paths:
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return file.resolve()
    return None


def _is_of_the_user(path: Path, folder: Path) -> bool:
    """Whether a module is neither installed, nor of Python itself, nor of edgecompress; the recipe's folder may lie in any of these."""
    if path.is_relative_to(folder.resolve()):
        return True
    foreign: tuple[str, ...] = (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), str(Path(__file__).parents[1]))
    return not any(path.is_relative_to(Path(root).resolve()) for root in foreign)
