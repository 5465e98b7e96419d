"""A real PostgreSQL server in a temporary folder, reached by a socket in it, run by a user without privileges."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from support.require import require


def find_programs():
    """Return the folder of the server's programs, which Debian keeps off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else Path(require("initdb", "postgresql")).resolve().parent


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """The URL of an empty database."""
    folder, home = find_programs(), tmp_path_factory.mktemp("postgres")
    user = pwd.getpwuid(os.getuid()).pw_name
    as_user = []
    if os.getuid() == 0:  # the server refuses to be root
        user = "nobody"
        home = Path("/tmp") / f"edgecompress-postgres-{os.getpid()}"  # its user may not enter pytest's folders
        home.mkdir(mode=0o700)
        os.chown(home, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        as_user = [require("setpriv", "util-linux"), f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]

    def run(*argv):
        done = subprocess.run([*as_user, *argv], cwd=home, capture_output=True, text=True, timeout=300, check=False, env={"LC_ALL": "C"})
        assert done.returncode == 0, done.stderr

    data = home / "data"
    try:
        run(folder / "initdb", "--pgdata", data, "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8")
        options = f"-k {home} -c listen_addresses='' -c fsync=off"
        run(folder / "pg_ctl", "start", "--pgdata", data, "--wait", "--log", home / "log", "--options", options)
        try:
            yield f"postgresql://postgres@/postgres?host={quote(str(home), safe='')}"
        finally:
            run(folder / "pg_ctl", "stop", "--pgdata", data, "--mode", "immediate")
    finally:
        if as_user:
            shutil.rmtree(home)
