"""Processes that convert for many tests: one for each toolchain and worker of pytest-xdist, started when the first test asks."""

import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from edgecompress import errors
from edgecompress.records import ConversionReply, ConversionRequest, from_json, to_json
from support.processes import with_us

DRIVER: Final = Path(__file__).with_name("conversion_driver.py")
TIMEOUT_S: Final = 600.0  # a conversion takes seconds; the machine may be busy, and the first one loads TensorFlow
MAX_ALIVE: Final = 2  # each process holds about a gigabyte
END_S: Final = 20.0


class ConverterSession:
    """A process that has loaded the toolchain of one format."""

    def __init__(self, form: str, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*with_us("KILL"), sys.executable, DRIVER, form], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )

    def convert(self, request: ConversionRequest, data: Path | None = None) -> ConversionReply:
        """Convert, and run the file on the inputs in `data`; what there is to read lies beside `request.output`.

        Raises:
            EdgeCompressError: The converter refused the request.
        """
        path = Path(f"{request.output}.json")
        path.write_bytes(to_json(request))
        if data is not None and not path.with_suffix(".data").exists():
            path.with_suffix(".data").symlink_to(data)
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{path}\n".encode())
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], TIMEOUT_S)
        answered = ready and stdout.readline()
        assert answered, (
            f"{path.name}: the converter {'died' if ready else 'took too long'}: {self.log.read_text(errors='replace')[-3000:]}"
        )
        if path.with_suffix(".reply").exists():
            return from_json(path.with_suffix(".reply").read_bytes(), ConversionReply, source=path.name)
        kind, _, message = path.with_suffix(".refused").read_text().partition(": ")
        assert hasattr(errors, kind), f"{kind}: {message}"
        raise getattr(errors, kind)(message)

    def close(self) -> None:
        """Let the process end by itself, so that whoever measures coverage sees its lines too."""
        try:
            self.process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


class ConverterSessions:
    """The sessions of this worker; of more than `MAX_ALIVE` the one that was used longest ago is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.alive: dict[tuple[str, str], ConverterSession] = {}

    def convert(self, form: str, request: ConversionRequest, data: Path | None = None) -> ConversionReply:
        """Convert by the process of the request's toolchain; see `ConverterSession.convert`."""
        key = form, request.route or ("litert-torch" if form == "tflite" else "")
        session = self.alive.pop(key, None)
        if session is None or session.process.poll() is not None:
            while len(self.alive) >= MAX_ALIVE:
                self.alive.pop(next(iter(self.alive))).close()
            self.count += 1
            session = ConverterSession(form, self.folder / str(self.count))
        self.alive[key] = session
        return session.convert(request, data)

    def close(self) -> None:
        for session in self.alive.values():
            session.close()


@pytest.fixture(scope="session")
def converter_sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConverterSessions]:
    sessions = ConverterSessions(tmp_path_factory.mktemp("sessions"))
    yield sessions
    sessions.close()
