"""
Ask an application with `InspectorMiddleware` as fast as it answers, with its page open.

    python -m tools.inspector_load
    python -m tools.inspector_load --rounds 20 --requests 2000

Three servers take turns: the application alone, with the inspector imported and not registered,
and with it there and its events being read, by Chromium where that is here. Of each it tells the
requests in a second, and the processor time of the server for a request, which what else runs on
the machine does not change; then how much memory the server with the inspector has gained from
round to round, and how long the page takes to answer meanwhile.

Exits with 1 when the inspector takes more than 15 percent of the requests in a second, going by the
processor time, or the memory goes on growing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from httpmw import Connection, Flow, HTTPMiddleware

MOST = 0.15
# Of 200 kept requests, and what an allocator holds back.
MOST_GROWTH = 4_000  # kB, over the second half of the rounds
CONNECTIONS = 8
TICK = os.sysconf("SC_CLK_TCK")

KINDS = ("alone", "imported", "open")


async def served_by(conn: Connection) -> Flow:  # noqa: ARG001 - a middleware function
    response = yield
    response.headers["x-served-by"] = "mine"


async def waiting(conn: Connection) -> Flow:  # noqa: ARG001 - see above
    response = yield
    yield response


def make() -> FastAPI:
    kind = os.environ["INSPECTOR_LOAD"]
    app = FastAPI(debug=True)
    app.add_middleware(HTTPMiddleware, dispatch=served_by)
    app.add_middleware(HTTPMiddleware, dispatch=waiting)
    app.add_middleware(GZipMiddleware)
    if kind != "alone":
        from httpmw.middleware import InspectorMiddleware  # noqa: PLC0415 - what is measured

        if kind == "open":
            app.add_middleware(InspectorMiddleware)

    @app.get("/users/{user_id}")
    async def user(user_id: int) -> dict[str, int]:
        return {"id": user_id}

    return app


class Server:
    """One uvicorn, in a process of its own."""

    def __init__(self, kind: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tools.inspector_load:make", "--factory"),
                *("--port", str(self.port), "--log-level", "warning", "--http", "httptools"),
            ],
            env={**os.environ, "INSPECTOR_LOAD": kind},
        )
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                break
            time.sleep(0.1)

    @property
    def cpu(self) -> float:
        """Seconds of the processor so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / TICK

    @property
    def memory(self) -> int:
        """What it has in memory, in kB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(each for each in status.splitlines() if each.startswith("VmRSS"))
        return int(line.split()[1])

    async def ask(self, number: int) -> tuple[float, float]:
        """Ask it so often; give the seconds and the processor's seconds."""
        before, began = self.cpu, time.perf_counter()
        share = number // CONNECTIONS
        await asyncio.gather(*(ask(self.port, share) for _ in range(CONNECTIONS)))
        return time.perf_counter() - began, self.cpu - before


async def ask(port: int, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(number):
        writer.write(b"GET /users/7 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head  # noqa: S101 - or there is nothing to measure
        await reader.readexactly(len(b'{"id":7}'))
    writer.close()


@contextlib.contextmanager
def page(port: int) -> Iterator[Any]:
    """Open the page, in a browser where there is one; else its events are read."""
    from tests.browser import CHROMIUM, Page  # noqa: PLC0415 - where it is

    address = f"http://localhost:{port}/_httpmw"
    if CHROMIUM is None:
        command = f"while curl -sN {address}/events -o /dev/null; do :; done"
        reads = subprocess.Popen(["/bin/sh", "-c", command])
        yield None
        reads.kill()
        return
    with Page() as opened:
        opened.open(address)
        opened.until("document.getElementById('status').textContent", lambda text: text == "live")
        yield opened


def against_alone(times: dict[str, list[tuple[float, float]]], kind: str) -> float:
    """How many requests more or less by the processor time, round by round: what the median is."""
    rounds = zip(times["alone"], times[kind], strict=True)
    return median(alone / other for (_, alone), (_, other) in rounds) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000, help="in each round, of each kind")
    options = parser.parse_args()
    servers = {kind: Server(kind) for kind in KINDS}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    memory, answers = [], []
    try:
        for server in servers.values():
            asyncio.run(server.ask(200))
        with page(servers["open"].port) as opened:
            chance = random.Random(0)
            for _ in range(options.rounds):
                for kind in chance.sample(KINDS, len(KINDS)):
                    times[kind].append(asyncio.run(servers[kind].ask(options.requests)))
                    if kind == "open" and opened is not None:
                        began = time.perf_counter()
                        opened.run("document.querySelectorAll('#requests button').length")
                        answers.append(time.perf_counter() - began)
                memory.append(servers["open"].memory)
    finally:
        for server in servers.values():
            server.process.kill()
    for kind, found in times.items():
        rate = median(options.requests / seconds for seconds, _ in found)
        cpu = median(each for _, each in found) / options.requests * 1e6
        print(
            f"{kind:<9}{rate:>8.0f} requests/s  {cpu:>7.0f} µs of the processor each  "
            f"{against_alone(times, kind):>+7.1%} requests"
        )
    growth = memory[-1] - memory[len(memory) // 2]
    print(f"memory in kB, round by round: {memory}")
    if answers:
        print(f"the page answers in {median(answers) * 1000:.0f} ms, at most {max(answers):.2f} s")
    failed = against_alone(times, "open") < -MOST or growth > MOST_GROWTH
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
