"""Programs of the system that some tests need."""

import os
import shutil
from typing import NoReturn

import pytest


def require(program: str, package: str) -> str:
    """Return the path of `program`, or skip naming the Debian package; where CI or EDGECOMPRESS_REQUIRE_SERVERS=1 says so, fail."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return found or unavailable(f"{program} is missing; install the Debian package {package}")


def unavailable(message: str) -> NoReturn:
    """Skip for want of something this machine could have; where CI or EDGECOMPRESS_REQUIRE_SERVERS=1 says so, fail."""
    if os.environ.get("CI") == "true" or os.environ.get("EDGECOMPRESS_REQUIRE_SERVERS") == "1":
        pytest.fail(message)
    pytest.skip(message)
