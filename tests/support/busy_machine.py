"""`pytest --busy` keeps every processor busy while the tests run: no test may fail because a machine has other work too."""

from contextlib import ExitStack

import pytest

from support.processes import busy


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--busy", action="store_true", help="run the tests beside one busy process for each processor")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("busy") and not hasattr(config, "workerinput"):
        running = ExitStack()
        running.enter_context(busy())
        config.add_cleanup(running.close)
