"""The runner for devices without Python (device_tests/runners/native), built once for a checkout."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from support.require import unavailable

BUILD = Path(__file__).parents[2] / "device_tests" / "runners" / "native" / "build.py"


@cache
def build_native_runner() -> Path:
    """Return the executable; where this machine cannot build it, skip, or fail in CI."""
    done = subprocess.run([sys.executable, BUILD], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        said = done.stderr.strip()
        (pytest.fail if "Traceback" in said or "error:" in said else unavailable)(said)
    return Path(done.stdout.strip())
