"""What all tests share."""

import os
import signal

import pytest

# Tests share two cores with servers, converters and a browser: threads that wait for each other at every layer would make them crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that: tests that interrupt would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = (
    "support.tiers",
    "support.busy_machine",
    "support.ssh_server",
    "support.adb_server",
    "support.emulated_pi",
    "support.postgres",
    "support.factor_jobs",
    "support.tiny_models",
    "support.runs",
    "support.trained_net",
    "support.converter_session",
)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Let a test draw the same numbers whatever ran before it in its worker."""
    import torch  # after OMP_NUM_THREADS is set

    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep this user's locks, caches and devices out of the tests, and each worker's apart from the others'."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(folder.with_name("config")))
        patch.delenv("EDGECOMPRESS_INVENTORY", raising=False)
        patch.setenv("EDGECOMPRESS_CACHE", str(folder / "edgecompress"))
        patch.setenv("EDGECOMPRESS_LEASES", str(folder / "leases.sqlite3"))
        yield
