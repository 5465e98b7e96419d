"""A real recipe on real data, the command line, and one whole export that many tests look at."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from safetensors.torch import save_file

from edgecompress.cli import main
from edgecompress.pipeline import steps as table
from support.networks import Net, trained
from support.processes import with_us
from support.shared import made_once

COMMAND = Path(sys.executable).with_name("edgecompress")
OPTIONS = ("--format", "tflite", "--scheme", "fp32", "--scheme", "int8-static")
FILES = {name: step.files[0] for name, step in table.STEPS.items()}
STEPS = tuple(step for step in FILES if step not in ("qat", "export"))  # those of every run before its artifacts
# Two short epochs do not bring a network back, so no loss is too large here; tests of the bound give one.
QUICK = ("--epochs", "2", "--epoch-samples", "400", "--calibration-samples", "64", "--verify-samples", "200", "--max-loss", "100")
RECIPE = '''
"""A small network on scikit-learn's digits."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from edgecompress.data import Samples

from .network import Net


def model():
    net = Net()
    net.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return net


def example_inputs():
    return (torch.zeros(1, 1, 8, 8),)


def labels():
    return tuple("0123456789")


def _digits(first, last, source):
    raw = load_digits()
    x = torch.tensor(raw.images[first:last], dtype=torch.float32)[:, None] / 16
    return Samples(x, torch.tensor(raw.target[first:last]), source=source)


def train_data():
    return _digits(0, 1400, "digits, train")


def eval_data():
    return _digits(1400, 1797, "digits, eval")
'''
NETWORK = Path(__file__).with_name("networks.py")


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def digits_recipe(tmp_path_factory):
    """A recipe's folder with weights trained for a second."""
    return made_once(tmp_path_factory, "recipes", lambda folder: write_recipe(folder / "digits")) / "digits"


def write_recipe(folder):
    folder.mkdir()
    (folder / "recipe.py").write_text(RECIPE)
    text = NETWORK.read_text()
    (folder / "network.py").write_text(f"{text[: text.index('@cache')].rstrip()}\n")
    save_file(trained(Net()).state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture
def recipe(digits_recipe, tmp_path):
    """A copy of the recipe's folder, to be changed."""
    return Path(shutil.copytree(digits_recipe, tmp_path / "digits"))


@contextmanager
def start(*arguments, cwd, **settings):
    """Run the real command as a process of its own; if it still runs at the end, it is interrupted."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"} | settings
    argv = [*with_us("INT"), COMMAND, *map(str, arguments)]
    with subprocess.Popen(
        argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=300)
                process.kill()


def command(*arguments, cwd):
    with start(*arguments, cwd=cwd) as process:
        out, err = process.communicate(timeout=600)
    return Answer(process.returncode, out, err)


@pytest.fixture
def edgecompress(capsys, monkeypatch, tmp_path):
    """The command line in this process, where torch is imported already; the working directory is `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments)])
        out, err = capsys.readouterr()
        return Answer(stop.value.code or 0, out, err)

    return call


@pytest.fixture(scope="session")
def exported(digits_recipe, tmp_path_factory):
    """(run folder, what the command said) of one whole export; look, and copy to change."""

    def export(folder):
        answer = command("export", digits_recipe, "--target", "android", "--run", "digits", *OPTIONS, *QUICK, cwd=folder)
        assert answer.code == 0, answer.err
        (folder / "answer.json").write_text(json.dumps(asdict(answer)))

    folder = made_once(tmp_path_factory, "runs", export)
    return folder / "digits", Answer(**json.loads((folder / "answer.json").read_text()))


@pytest.fixture
def run(exported, tmp_path):
    """A copy of the whole export, to be gone on with."""
    return Path(shutil.copytree(exported[0], tmp_path / "run"))


def contents(folder):
    """Name → bytes of every file, without the lock."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".lock")}


def complaint(answer):
    """The one line that an error is."""
    lines = [line for line in answer.err.splitlines() if line.startswith("edgecompress: ")]
    assert len(lines) == 1, answer.err
    assert "Traceback" not in answer.err
    assert answer.err.splitlines()[-1] == lines[0], answer.err
    return lines[0].removeprefix("edgecompress: ")
