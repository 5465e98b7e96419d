"""Import a recipe from a file or a package, and hash the source files that it is made of."""

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from edgecompress.errors import ConfigError


def import_file(path: Path) -> ModuleType:
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


def import_module(name: str) -> ModuleType:
    """Import a module from the working directory first, as `python -m` does."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def hash_sources(module: ModuleType, file: Path) -> str:
    """Hash the Python files beside the recipe and the files of its package that it has imported, wherever they lie."""
    package = module.__name__.partition(".")[0]
    imported = [m.__file__ for name, m in list(sys.modules.items()) if name.partition(".")[0] == package and getattr(m, "__file__", None)]
    digest = hashlib.sha256()
    for path in sorted({*file.parent.glob("*.py"), *(Path(name) for name in imported if name and name.endswith(".py"))}):
        digest.update(os.path.relpath(path, file.parent).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
