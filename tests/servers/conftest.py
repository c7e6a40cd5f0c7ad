"""
The real servers: each is started once, asked by all tests, stopped, and its log read to the end.

Nothing waits for a time to pass: what is not there yet is asked for again until `DEADLINE`.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from tests import ROOT

DEADLINE = 15
# No test needs it, but a client makes one if it gets none, and that takes longer than a request.
TLS = ssl.create_default_context()
# granian leaves the module out.
INTENDED = r"(tests\.servers\.apps\.)?Intended: "

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """How to start a server, and what it may log beside the exceptions that were intended."""

    module: str
    arguments: str
    allowed: tuple[str, ...] = ()
    runs_asyncio: bool = True
    has_pathsend: bool = False
    has_http2: bool = False


UVICORN = "--host 127.0.0.1 --port {port} --log-level warning --no-access-log"
HYPERCORN = "--bind 127.0.0.1:{port} --workers 0 --log-level warning"

KINDS = {
    "uvicorn-h11": Kind(
        "uvicorn",
        f"{UVICORN} --http h11 --loop asyncio",
        (r"ERROR: +Exception in ASGI application",),
    ),
    "uvicorn-httptools": Kind(
        "uvicorn", f"{UVICORN} --http httptools", (r"ERROR: +Exception in ASGI application",)
    ),
    "hypercorn-asyncio": Kind(
        "hypercorn",
        f"{HYPERCORN} --worker-class asyncio",
        (r"\[.*\] \[ERROR\] Error in ASGI Framework", r"socket\.send\(\) raised exception\."),
        has_http2=True,
    ),
    "hypercorn-trio": Kind(
        "hypercorn",
        f"{HYPERCORN} --worker-class trio",
        (r"\[.*\] \[ERROR\] Error in ASGI Framework",),
        runs_asyncio=False,
        has_http2=True,
    ),
    "granian": Kind(
        "granian",
        "--interface asgi --host 127.0.0.1 --port {port} --log-level warning",
        (r"\[ERROR\] Application callable raised an exception",),
        has_pathsend=True,
        has_http2=True,
    ),
}


class Server:
    """A running server, its address and its log."""

    def __init__(self, kind: Kind, log: Path) -> None:
        self.kind = kind
        self.log = log
        self.intended: list[str] = []
        self._ids = itertools.count(1)

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        arguments = self.kind.arguments.format(port=port).split()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.kind.module, *arguments, "tests.servers.apps:app"],
                cwd=ROOT,
                env=os.environ | {"PYTHONWARNINGS": "default", "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.address = ("127.0.0.1", port)
        self.admin = self.client()
        eventually(self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.admin.get("/ready").raise_for_status().text == "ready"
        except httpx2.ConnectError:
            return False

    def client(self) -> httpx2.Client:
        """Return a client that has one connection to the server."""
        limits = httpx2.Limits(max_connections=1)
        url = "http://{}:{}".format(*self.address)
        return httpx2.Client(base_url=url, timeout=DEADLINE, limits=limits, verify=TLS)

    def connect(self) -> socket.socket:
        """Return a connection for a test that speaks HTTP by itself."""
        return socket.create_connection(self.address, timeout=DEADLINE)

    def stop(self) -> int:
        """Ask the server to end, and return its exit code; a server that hangs is killed."""
        self.admin.close()
        self.process.terminate()
        try:
            return self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()

    def new_id(self) -> str:
        return f"request-{next(self._ids)}"

    def ledger(self, name: str) -> dict[str, Any]:
        """Wait until nothing of the request *name* is left inside; return what was noted."""
        notes = self.admin.get(f"/ledger/{name}").json()
        assert notes.pop("inside") == [], notes
        return notes

    def notes(self, name: str) -> dict[str, Any]:
        """Return what was noted of the request *name* so far."""
        return self.admin.get(f"/notes/{name}").json()

    def release(self, name: str) -> None:
        """Let the request *name* go on, which is held by the middleware function `hold`."""
        self.admin.get(f"/release/{name}").raise_for_status()

    def expect(self, name: str) -> None:
        """Wait until the exception that the request *name* intended is in the log."""
        self.intended.append(name)
        eventually(lambda: self.times_raised(name))

    def times_raised(self, name: str) -> int:
        return self._count(f"{INTENDED}{name}")

    def tracebacks(self) -> int:
        return self._count(r"Traceback \(most recent call last\):")

    def _count(self, line: str) -> int:
        return len(re.findall(f"^{line}$", self.log.read_text(), re.MULTILINE))

    def unexpected(self) -> list[str]:
        """Return the lines of the log that nobody intended or allowed."""
        allowed = [
            *self.kind.allowed,
            r"Traceback \(most recent call last\):",
            *(INTENDED + name for name in self.intended),
        ]
        lines = (line for line in self.log.read_text().splitlines() if line)
        # What is indented belongs to a traceback, whose last line is not; a group has a margin.
        return [
            line
            for line in lines
            if not re.match("  [^|+]", line) and not re.fullmatch("|".join(allowed), line)
        ]


def eventually(test: Callable[[], T]) -> T:
    """Ask *test* again and again until it gives something true; fail when time runs out."""
    end = time.monotonic() + DEADLINE
    while not (result := test()):
        assert time.monotonic() < end, f"not within {DEADLINE} seconds"
        time.sleep(0.02)
    return result


@contextmanager
def running(name: str, log: Path) -> Iterator[Server]:
    server = Server(KINDS[name], log)
    try:
        server.start()
        yield server
    finally:
        code = server.stop()
    # uvicorn ends itself with the signal that it got.
    assert code in (0, -signal.SIGTERM), log.read_text()
    assert server.unexpected() == [], log.read_text()
    for request_id in server.intended:
        assert server.times_raised(request_id) == 1, log.read_text()
    assert server.tracebacks() == len(server.intended), log.read_text()


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in KINDS],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real server, the same for all tests of this package."""
    with running(request.param, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx2.Client]:
    """A client that has one connection to the server."""
    with server.client() as client:
        yield client
