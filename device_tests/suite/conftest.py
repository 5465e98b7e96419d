"""Options of `pytest device_tests/suite`: the device, the artifacts and the runner."""

from pathlib import Path

import pytest
from golden_file import GoldenFile

from edgecompress.devices import open_device
from edgecompress.records.measurement import BENCHMARK_DEFAULTS

LINES = pytest.StashKey[list[str]]()
GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


def pytest_addoption(parser):
    group = parser.getgroup("edgecompress")
    group.addoption("--device", default="local://", help="local://, ssh://user@host:port or adb://SERIAL")
    group.addoption("--artifact", action="append", type=Path, default=[], help="a .tflite, .ptl, .onnx or .pte file; may be repeated")
    group.addoption("--python", default=None, help="the interpreter on the device that has the runtime")
    group.addoption("--runner", type=Path, default=None, help="an executable for the device that obeys runners/README.md")
    group.addoption("--threads", type=int, default=1)
    group.addoption("--repetitions", type=int, default=BENCHMARK_DEFAULTS.repetitions)
    group.addoption("--results", type=Path, default=None, help="write every raw value to this JSON file")
    group.addoption("--golden", type=Path, default=None, help="compare with this JSON file, or write it where it does not exist")
    group.addoption("--max-slowdown", type=float, default=None, help="how many times as long as the golden latency is allowed")


def pytest_configure(config):
    config.stash[LINES] = []


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[LINES]:
        terminalreporter.write_line(line)


def pytest_generate_tests(metafunc):
    if "artifact" in metafunc.fixturenames:
        paths = metafunc.config.getoption("--artifact") or [GOLDEN / "tiny.tflite", GOLDEN / "tiny-int8.tflite"]
        metafunc.parametrize("artifact", paths, ids=lambda path: path.name)


@pytest.fixture(scope="session")
def device(request):
    with open_device(request.config.getoption("--device")) as opened:
        yield opened


@pytest.fixture(scope="session")
def runner_options(request):
    """The options of the runner: interpreter, program and threads."""
    return {name: request.config.getoption(f"--{name}") for name in ("python", "runner", "threads")}


@pytest.fixture(scope="session")
def artifacts(request):
    return request.config.getoption("--artifact") or [GOLDEN / "tiny.tflite", GOLDEN / "tiny-int8.tflite"]


@pytest.fixture(scope="session")
def golden(request):
    """The golden file, which is written only when every test passed."""
    made = GoldenFile(request.config.getoption("--golden"), request.config.getoption("--max-slowdown"))
    yield made
    if request.session.testsfailed == 0:
        made.write()


@pytest.fixture
def add_summary_line(request):
    """A function that adds a line to the summary at the end of the run."""
    return request.config.stash[LINES].append
