"""The wheel that users install, built from the source distribution, runs the main job outside of the repository."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.runs import QUICK

from edgecompress.records import Artifact, read_record

pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.timeout(900)]
OUTPUTS = ("--format", "tflite", "--format", "torchscript", "--scheme", "int8-static")
FILES = {
    "edgecompress/_programs/converters/to_tflite.py",
    "edgecompress/_programs/converters/onnx/export.py",
    "edgecompress/_programs/device_tests/runners/runner.py",
    "edgecompress/_programs/examples/resnet20_fashion_mnist/weights.safetensors",
    "edgecompress/py.typed",
}


def run(*argv, cwd):
    done = subprocess.run(
        [*map(str, argv)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def environment():
    """Return this process's environment without anything that would lead an interpreter to the repository."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "COV"))}
    return inherited | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from an unpacked source distribution as pip builds it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=REPOSITORY)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / archive.name.removesuffix(".tar.gz"))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` folder of a new environment that has the wheel, and sees the dependencies, but not the package, of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(
        sysconfig.get_path("purelib")
    )  # whose own .pth files, the editable one among them, stay unread
    return folder / "bin"


def test_the_wheel_holds_the_programs_and_the_example_and_nothing_of_the_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= FILES
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"edgecompress"}
    assert not [name for name in names if name.startswith("edgecompress/_programs/tests")]


def test_an_installed_wheel_is_found_and_not_the_repository(installed, tmp_path):
    code = "import json, sys; from edgecompress import toolchains as t; print(json.dumps([t.__file__, str(t.example()), sys.path]))"
    package, example, paths = json.loads(run(installed / "python", "-c", code, cwd=tmp_path))
    assert Path(package).is_relative_to(installed.parent)
    assert Path(example).is_relative_to(installed.parent)
    assert not [path for path in paths if path and Path(path).resolve() == REPOSITORY]


@pytest.mark.slow
def test_an_installed_wheel_does_the_main_job(installed, digits_recipe, tmp_path):
    """Export starts the converters, bench the runner, inspect the reader of files: each of those programs lies inside the wheel."""
    command = installed / "edgecompress"
    run(command, "export", digits_recipe, "--run", "digits", *OUTPUTS, *QUICK, cwd=tmp_path)
    files = sorted((tmp_path / "digits/artifacts").glob("digits-int8-static.*[!n]"))
    assert [path.suffix for path in files] == [".ptl", ".tflite"]
    for path in files:
        manifest = read_record(path.with_name(f"{path.name}.json"), Artifact)
        assert manifest.parity.top1_agreement >= 0.98
        assert manifest.size_bytes == path.stat().st_size
    run(command, "bench", *files, "--repetitions", "3", cwd=tmp_path)
    assert json.loads(run(command, "inspect", files[1], "--json", cwd=tmp_path))["format"] == "tflite"


@pytest.mark.slow
def test_an_installed_wheel_analyzes_its_own_example(installed, tmp_path):
    assert json.loads(run(installed / "edgecompress", "analyze", "--run", "example", "--json", cwd=tmp_path))["layers"]
