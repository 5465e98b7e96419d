"""Programs of the system that some tests need."""

import os
import shutil

import pytest


def require(program: str, package: str) -> str:
    """Return the path of `program`, or skip naming the Debian package; where CI or EDGECOMPRESS_REQUIRE_SERVERS=1 says so, fail."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found:
        return found
    message = f"{program} is missing; install the Debian package {package}"
    if os.environ.get("CI") == "true" or os.environ.get("EDGECOMPRESS_REQUIRE_SERVERS") == "1":
        pytest.fail(message)
    pytest.skip(message)
