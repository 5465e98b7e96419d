"""Create the environment of the peers: their own packages beside the numpy, scipy and torch of the measuring environment.

Both sides therefore compute with the same libraries. The environment holds a list of its packages; one with another list is replaced.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[1] / ".venv-peers"
PACKAGES: Final = ("tensorly==0.10.0", "tensorly-torch==0.5.0", "packaging", "scipy", "numpy")  # tensorly imports packaging undeclared
WITHOUT_DEPENDENCIES: Final = ("musco-pytorch==1.0.6",)  # its dependencies have no wheels for current Pythons


def python() -> Path:
    """Return the interpreter of the peers' environment; create the environment when it is missing or has other packages."""
    ours = sysconfig.get_path("purelib")
    program, made = FOLDER / "bin" / "python", FOLDER / "made-of"
    wanted = "\n".join((ours, sys.version, *PACKAGES, *WITHOUT_DEPENDENCIES))
    if made.is_file() and made.read_text() == wanted:
        return program
    print(f"creating the peers' environment in {FOLDER}", file=sys.stderr)
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    own = next((FOLDER / "lib").glob("python*/site-packages"))
    (own / "measuring.pth").write_text(ours)
    install = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *PACKAGES], check=True, stdout=sys.stderr)
    subprocess.run([*install, "--no-deps", *WITHOUT_DEPENDENCIES], check=True, stdout=sys.stderr)
    made.write_text(wanted)
    return program
