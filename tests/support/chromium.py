"""A real headless Chromium, spoken to in its DevTools protocol over two pipes: no port, no client library.

https://chromedevtools.github.io/devtools-protocol/ ; messages are JSON, each ended by a NUL.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

Event = dict[str, Any]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps", "--remote-debugging-pipe",
)  # fmt: skip


class Chromium:
    """One browser with one page. Close it, or use it in a `with`."""

    def __init__(self, program: str, profile: Path, *, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self.events: list[Event] = []
        self._buffer, self._number, self._session = b"", 0, ""
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        # Chromium reads descriptor 3 and writes 4; copies far above those cannot be overwritten by putting them there.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 100) for end in (theirs_in, theirs_out)]
        log = os.open(profile.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        actions = [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4), *((os.POSIX_SPAWN_DUP2, log, n) for n in (1, 2))]
        argv = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(program, argv, dict(os.environ), file_actions=actions, setpgroup=0)
        for end in (theirs_in, theirs_out, *high, log):
            os.close(end)
        try:
            target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
            self._session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ask the browser to end, so that it takes its temporary files along; end all its processes if it does not."""
        if not self._pid:
            return
        self._session = ""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self.send("Browser.close")
            while select.select([self._read], [], [], 10)[0] and os.read(self._read, 1 << 16):
                pass  # until it has closed its end
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)
        self._pid = 0

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the reply to one command; events that come first are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        reply = self._until(lambda event: event.get("id") == self._number)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        result: dict[str, Any] = reply["result"]
        return result

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file as a person would, and wait until it is loaded."""
        self.size(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        if not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self._until(lambda event: event.get("method") == "Page.loadEventFired")

    def size(self, width: int, height: int = 900) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _until(self, wanted: Callable[[Event], bool]) -> Event:
        end = time.monotonic() + self.timeout_s
        while True:
            while b"\0" in self._buffer:
                raw, _, self._buffer = self._buffer.partition(b"\0")
                event: Event = json.loads(raw)
                if "id" not in event:
                    self.events.append(event)
                if wanted(event):
                    return event
            if not select.select([self._read], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError(f"Chromium did not answer within {self.timeout_s} s")
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self._buffer += chunk
