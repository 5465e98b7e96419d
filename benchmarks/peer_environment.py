"""The environment the peers run in: packages of their own beside the numpy, scipy and torch of the environment that measures.

So both sides compute with the same libraries. What it is made of stands in it; anything else there is replaced.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[1] / ".venv-peers"
PACKAGES: Final = ("tensorly==0.10.0", "tensorly-torch==0.5.0", "packaging", "scipy", "numpy")  # tensorly imports packaging undeclared
ALONE: Final = ("musco-pytorch==1.0.6",)  # what it depends on has no wheels for today's Pythons


def python() -> Path:
    """Return the interpreter of the peers' environment, which is created when it is missing or of other packages."""
    ours = sysconfig.get_path("purelib")
    program, made = FOLDER / "bin" / "python", FOLDER / "made-of"
    wanted = "\n".join((ours, sys.version, *PACKAGES, *ALONE))
    if made.is_file() and made.read_text() == wanted:
        return program
    print(f"creating the peers' environment in {FOLDER}", file=sys.stderr)
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    own = next((FOLDER / "lib").glob("python*/site-packages"))
    (own / "measuring.pth").write_text(ours)
    install = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *PACKAGES], check=True, stdout=sys.stderr)
    subprocess.run([*install, "--no-deps", *ALONE], check=True, stdout=sys.stderr)
    made.write_text(wanted)
    return program
