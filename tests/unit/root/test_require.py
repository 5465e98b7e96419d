"""What happens where a Debian package is missing."""

import pytest
from support.require import require


def test_what_is_there_is_found():
    assert require("sh", "dash").endswith("/sh")


@pytest.mark.parametrize("setting", [("CI", "true"), ("EDGECOMPRESS_REQUIRE_SERVERS", "1")])
def test_what_is_missing_skips_here_and_fails_in_ci(monkeypatch, setting):
    for name in ("CI", "EDGECOMPRESS_REQUIRE_SERVERS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(pytest.skip.Exception, match="install the Debian package nothing"):
        require("no-such-program", "nothing")
    monkeypatch.setenv(*setting)
    with pytest.raises(pytest.fail.Exception, match="install the Debian package nothing"):
        require("no-such-program", "nothing")
