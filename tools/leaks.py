"""
A million mixed requests: does anything stay behind?

    python -m tools.leaks                       1,000,000 requests
    python -m tools.leaks --requests 50000 --backend trio

Layers and inner apps of all kinds are put together at random, as an application would have them:
once, for many requests. Clients leave, requests are cancelled, apps and layers fail. After each
10,000 requests the process is looked at: resident memory, async generators, coroutines, tasks and
tracebacks that are alive. Before that, some thousand requests are run without the garbage
collector, to count what only it would have found.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import platform
import random
import statistics
import sys
import time
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.testing import Server
from tests.harness import Chunks, PassThrough, passing, waiting

STEP = 10_000  # requests between two looks
ALIVE = {
    "async generators": types.AsyncGeneratorType,
    "coroutines": types.CoroutineType,
    "tracebacks": types.TracebackType,
    "frames": types.FrameType,
}


class Planned(Exception):  # noqa: N818 - no error of anybody's
    """What apps and layers raise."""


# ---------------------------------------------------------------------- layers


async def header(conn: Connection) -> Flow:
    """Set a header."""
    response = yield
    response.headers["x-layer"] = "1"


async def slow(conn: Connection) -> Flow:
    """Await something in between."""
    response = yield
    await anyio.lowlevel.checkpoint()
    yield response
    await anyio.lowlevel.checkpoint()


async def replacing(conn: Connection) -> Flow:
    """Send something else."""
    yield
    yield StreamingResponse(Chunks(b"re", b"placed"), 503)


async def early(conn: Connection) -> Flow:
    """Answer at once."""
    yield PlainTextResponse("early", 401)


async def reading(conn: Connection) -> Flow:
    """Read the response."""
    response = yield
    await response.read()


async def setting(conn: Connection) -> Flow:
    """Set the body."""
    response = yield
    response.body = b"set"
    yield response


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass chunks on in capitals."""
    async for chunk in chunks:
        yield chunk.upper()


async def transforming(conn: Connection) -> Flow:
    """Transform the response."""
    response = yield
    response.body_iterator = upper(response.body_iterator)


async def catching(conn: Connection) -> Flow:
    """Answer what is raised."""
    try:
        response = yield
    except Planned:
        yield PlainTextResponse("caught", 500)
        return
    with contextlib.suppress(Planned):
        yield response


async def failing(conn: Connection) -> Flow:
    """Fail with the response in hand."""
    yield
    raise Planned


async def failing_late(conn: Connection) -> Flow:
    """Fail at the end."""
    response = yield
    yield response
    raise Planned


async def refusing(conn: Connection) -> Flow:
    """Raise what becomes a response."""
    raise HTTPException(403)
    yield


async def requesting(conn: Connection) -> Flow:
    """Read the request."""
    await conn.body()
    yield


async def request_transforming(conn: Connection) -> Flow:
    """Transform the request."""
    conn.body_iterator = upper(conn.body_iterator)
    yield


async def polling(conn: Connection) -> Flow:
    """Look whether the client is there."""
    await conn.is_disconnected()
    response = yield
    yield response
    await conn.is_disconnected()


async def limiting(conn: Connection) -> Flow:
    """Set a limit."""
    conn.fail_after(60)
    response = yield
    yield response


async def task() -> None:
    """Run in the background."""


async def adding(conn: Connection) -> Flow:
    """Add a background task."""
    response = yield
    response.background = BackgroundTask(task)


async def delegating(conn: Connection) -> Flow:
    """Leave it to another one."""
    response = yield waiting(conn)
    yield response


async def misusing(conn: Connection) -> Flow:
    """Yield once too often."""
    response = yield
    yield response
    yield response


async def silent(conn: Connection) -> Flow:
    """End without a yield."""
    if conn.method == "NEVER":
        yield


def aside(conn: Connection) -> None:
    """Step aside."""


LAYERS: list[Callable[[Connection], Any]] = [
    *(passing, header, waiting, slow, replacing, early, reading, setting, transforming, catching),
    *(failing, failing_late, refusing, requesting, request_transforming, polling, limiting),
    *(adding, delegating, misusing, silent, aside),
]


# ---------------------------------------------------------------------- inner apps

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
MORE: Message = {"type": "http.response.body", "body": b"some", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"last"}


def sending(*messages: Message, error: type[BaseException] | None = None) -> ASGIApp:
    """Return an app that sends *messages*, and may raise."""

    async def sending(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return sending


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the request body back."""
    data = b"".join([chunk async for chunk in Request(scope, receive).stream()])
    await send(START)
    await send({**LAST, "body": data})


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a stream, from a child task below ASGI 2.4."""
    await StreamingResponse(Chunks(b"a", b"b", b"c"))(scope, receive, send)


async def pausing(scope: Scope, receive: Receive, send: Send) -> None:
    """Pause between messages."""
    for message in (START, MORE, LAST):
        await send(message)
        await anyio.lowlevel.checkpoint()


async def gone(scope: Scope, receive: Receive, send: Send) -> None:
    """Wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass


APPS: list[ASGIApp] = [
    *(sending(START, LAST), sending(START, LAST), sending(START, MORE, MORE, LAST)),
    *(sending(error=Planned), sending(START, error=Planned), sending(START, MORE, error=Planned)),
    *(sending(), sending(START, MORE), echo, echo, stream, stream, pausing, gone),
]


# ---------------------------------------------------------------------- requests


class Client(Server):
    """A server and its client, for one request; nobody waits for ever."""

    async def receive(self) -> Message:
        """Give the body, then wait for the end."""
        if not (self.complete or self.left or self.receives < 2):
            await anyio.sleep(0.001)
            self.disconnect()
        return await super().receive()


def applications(rng: random.Random, count: int) -> list[ASGIApp]:
    """Put *count* applications together."""
    made = []
    for _ in range(count):
        app = rng.choice(APPS)
        for function in rng.choices(LAYERS, k=rng.randrange(1, 5)):
            if rng.random() < 0.3:
                app = PassThrough(app)
            app = HTTPMiddleware(app, dispatch=function)
        made.append(app)
    return made


async def serve(app: ASGIApp, rng: random.Random, outcomes: Counter[str]) -> None:
    """Send one request to *app*."""
    client = Client(
        method="POST",
        body=(b"abc", b"def"),
        spec=rng.choice(("2.3", "2.4")),
        leaves_after=rng.choice((0, 1, 2, 3, *(None,) * 6)),
    )
    cancelled_at = rng.choice((1, 2, 4, *(0,) * 12))
    outcome = "returned"
    with anyio.CancelScope() as scope:

        async def send(message: Message) -> None:
            if len(client.sent) + 1 == cancelled_at:
                scope.cancel()
            await client.send(message)

        try:
            await app(client.scope, client.receive, send if cancelled_at else client.send)
        except Exception as error:  # noqa: BLE001 - a server logs it
            outcome = type(error).__name__
    if scope.cancelled_caught:
        outcome = "cancelled"
    client.__dict__.clear()
    outcomes[outcome] += 1


async def batch(apps: list[ASGIApp], rng: random.Random, count: int) -> Counter[str]:
    """Send *count* requests, twenty at a time."""
    outcomes: Counter[str] = Counter()
    for _ in range(count // 20):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(serve, rng.choice(apps), rng, outcomes)
    return outcomes


# ---------------------------------------------------------------------- looking


def resident() -> int:
    """Give the resident memory, in KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def alive() -> Counter[str]:
    """Count what is alive and should not be."""
    kinds = Counter(type(each) for each in gc.get_objects())
    return Counter({name: kinds[kind] for name, kind in ALIVE.items()})


async def without_collector(apps: list[ASGIApp], rng: random.Random) -> Counter[str]:
    """Run some requests without the garbage collector; count what is left to it."""
    await batch(apps, rng, 400)
    gc.collect()
    before = alive()
    gc.disable()
    await batch(apps, rng, 4_000)
    left = alive()
    left.subtract(before)
    gc.enable()
    gc.collect()
    return left


async def measure(options: argparse.Namespace) -> int:
    """Send the requests; give 1 when something stayed behind."""
    rng = random.Random(options.seed)
    apps = applications(rng, 300)
    at_first = await without_collector(apps, rng)
    print(f"left to the collector by 4,000 requests: {dict(at_first)}", flush=True)
    outcomes: Counter[str] = Counter()
    memory: list[int] = []
    baseline = alive()
    baseline["tasks"] = len(anyio.get_running_tasks())
    worst: Counter[str] = Counter()
    started = time.monotonic()
    for done in range(STEP, options.requests + 1, STEP):
        outcomes += await batch(apps, rng, STEP)
        gc.collect()
        memory.append(resident())
        now = alive()
        now["tasks"] = len(anyio.get_running_tasks())
        now.subtract(baseline)
        worst |= now
        if done % (10 * STEP) == 0:
            print(
                f"{done:,} requests, {time.monotonic() - started:,.0f} s, "
                f"{memory[-1]:,} KiB, alive: {dict(now)}",
                flush=True,
            )
    settled = memory[len(memory) // 5 :]  # after the warm-up
    slope = statistics.linear_regression(range(len(settled)), settled).slope if settled[1:] else 0.0
    print(
        f"Python {platform.python_version()}, {options.backend}, starlette {version('starlette')}"
    )
    print(f"{outcomes.total():,} requests: {dict(outcomes.most_common())}")
    print(f"memory: {slope:+.3f} KiB for each {STEP:,} requests, {settled[0]:,} -> {settled[-1]:,}")
    stayed = {name: count for name, count in worst.items() if count > 0}
    print(f"alive after a collection, at most: {stayed or 'nothing'}")
    return 1 if stayed or slope >= 1 else 0


def main() -> int:
    """Run on the event loop that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return anyio.run(measure, options, backend=options.backend)


if __name__ == "__main__":
    sys.exit(main())
