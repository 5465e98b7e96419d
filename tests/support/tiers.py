"""The tiers of the tests, and which tests one worker of pytest-xdist runs together.

A test's tier is the folder of `tests/` that its file stands in. Two workers each make the fixtures of a session or a module for themselves.
The tests of a file that use such a fixture of that file stand in one `xdist_group`, which one worker runs, and so do all tests that use a
server. Results on disk that tests of several files read are shared between workers instead (`support.shared`).
"""

from typing import Final

import pytest

from support.paths import TESTS

# In the order in which workers take them: the tests that run longest start first, so that no worker is left with one at the end.
TIERS: Final = {
    "toolchains": "real converters and their runtimes",
    "system": "commands from end to end",
    "devices": "devices over real servers, emulated where there is no hardware",
    "unit": "a module or a room",
    "laws": "rules that every method, allocator or source file obeys",
}
SERVERS: Final = {
    "pi_device": "raspberry-pi",
    "adb_server": "adb",
    "bundled_adb_server": "adb",
    "sshd": "ssh",
    "postgres": "postgres",
    "browser": "browser",
}


def tier_of(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]


def group_of(item: pytest.Item) -> str:
    """Return the name of the group that the test's fixtures put it in, "" for none."""
    found = getattr(item, "_fixtureinfo", None)
    definitions = {name: known[-1] for name, known in found.name2fixturedefs.items()} if found else {}
    if servers := sorted({SERVERS[name] for name in definitions.keys() & SERVERS.keys()}):
        return "-".join(servers)
    own = [fixture for fixture in definitions.values() if fixture.scope != "function" and fixture.baseid.endswith(item.path.name)]
    return item.path.stem if own else ""


def write_group(item: pytest.Item) -> None:
    """Append the group to the test's id, where the scheduler reads it; pytest-xdist 3.8.0 alone fails to with pytest 9.2."""
    mark = item.get_closest_marker("xdist_group")
    if mark and hasattr(item, "id") and "@" not in item.nodeid.rpartition("]")[2]:
        item._id = type(item.id).parse(f"{item.nodeid}@{mark.args[0]}")


def pytest_configure(config: pytest.Config) -> None:
    for tier, contents in TIERS.items():
        config.addinivalue_line("markers", f"{tier}: {contents}; set by the folder that the file stands in")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test with its tier and its group as soon as it is found: pytest-xdist reads the groups before other hooks see the list."""
    if not item.path.is_relative_to(TESTS):
        return
    item.add_marker(tier_of(item))
    if not item.get_closest_marker("xdist_group") and (group := group_of(item)):
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        for item in items:
            write_group(item)
        order = list(TIERS)
        items.sort(key=lambda item: order.index(tier_of(item)) if item.path.is_relative_to(TESTS) else -1)
