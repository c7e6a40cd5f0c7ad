"""
A web UI that changes the layers of its application in several steps while requests flood in.

The server is a real uvicorn in a thread of its own, the clients are threads that are there before
it, and the editor is the thread of the test.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, MiddlewareStack

pytestmark = pytest.mark.unchecked("a stack looks whether the inner app of an adapter is its own")

REQUESTS = 10_000
EDITS = 1_000
CLIENTS = 4
PIPELINED = 10


class Note:
    """A layer that appends its name to a header."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self.header = (b"x-layer", name.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append(self.header)
            await send(message)

        await self.app(scope, receive, send_noted)


def noting(name: str) -> Callable[[Connection], Flow]:
    """Make a middleware function that does what `Note` does."""

    async def function(conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-layer", name)

    return function


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


class Flood:
    """Requests of many clients, one after the other in each, from before the server is there."""

    def __init__(self, address: Any) -> None:
        self.address = address
        # What the responses had in their headers, the outermost layer's first.
        self.found: list[tuple[str, ...]] = []
        self.errors: list[Any] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def _run(self) -> None:
        try:
            with socket.create_connection(self.address) as connection:
                stream = connection.makefile("rb")
                while not self.over.is_set():
                    connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * PIPELINED)
                    for _ in range(PIPELINED):
                        self._read(stream)
        except Exception as error:
            self.errors.append(error)

    def _read(self, stream: Any) -> None:
        status = stream.readline()
        headers = list(iter(stream.readline, b"\r\n"))
        length = next(int(line[15:]) for line in headers if line.startswith(b"content-length:"))
        if (status, stream.read(length)) != (b"HTTP/1.1 200 OK\r\n", b"hello"):
            self.errors.append(status)
        names = [line[8:].strip().decode() for line in headers if line.startswith(b"x-layer:")]
        self.found.append(tuple(reversed(names)))


class Server(uvicorn.Server):
    """A server that says when it has started."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)
        super().__init__(config)
        self.has_started = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        self.has_started.set()


@contextmanager
def flooded(app: ASGIApp) -> Iterator[Flood]:
    """Serve *app* in a thread, with requests that wait for it from the start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(app)
        flood = Flood(listener.getsockname())
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        for thread in flood.threads:
            thread.start()
        serving.start()
        try:
            server.has_started.wait()
            yield flood
        finally:
            flood.over.set()
            for thread in flood.threads:
                thread.join()
            server.should_exit = True
            serving.join()


def wait_for_a_response(flood: Flood) -> None:
    before = len(flood.found)
    turn = threading.Event()
    while len(flood.found) == before and not flood.errors:
        turn.wait(0.001)


def test_the_way_without_a_stack_fails() -> None:
    """A layer that is added when requests have come is refused by Starlette."""
    app = Starlette(routes=[Route("/", hello)], middleware=[Middleware(Note, "ui")])

    with flooded(app) as flood:
        wait_for_a_response(flood)
        app.user_middleware = [each for each in app.user_middleware if each.cls is not Note]
        with pytest.raises(RuntimeError, match="after an application has started"):
            app.add_middleware(Note, "cors")

    assert set(flood.found) == {("ui",)}


def edits(stack: MiddlewareStack, published: set[tuple[str, ...]]) -> Iterator[None]:
    """
    Edit a stack at random, with a version on both ends that is another one after every edit.

    Each chain is noted before it is published.
    """
    rng = random.Random(4)
    order: list[str] = []
    for version in itertools.count():
        with stack.edit() as draft:
            if version:
                draft.remove("outermost")
                draft.remove("innermost")
            if len(order) < 3 or rng.random() < 0.4:
                name = f"layer {version}"
                make = rng.choice([noting, lambda name: Middleware(Note, name)])
                beside = rng.choice(order) if order else None
                draft.add(make(name), name=name, before=beside)
                order.insert(order.index(beside) if beside else 0, name)
            elif rng.random() < 0.5:
                draft.remove(order.pop(rng.randrange(len(order))))
            else:
                moved = order.pop(rng.randrange(len(order)))
                order.append(moved)
                draft.move(moved, innermost=True)
            while len(order) > 6:
                draft.remove(order.pop())
            draft.add(
                Middleware(Note, f"v{version}"),
                name="outermost",
                outside_errors=rng.random() < 0.5,
            )
            draft.add(noting(f"v{version}"), name="innermost", innermost=True)
            published.add((f"v{version}", *order, f"v{version}"))
        yield


def test_edits_under_a_flood_of_requests() -> None:
    """Of 10,000 requests during 1,000 edits and more none fails, and each ran in one chain."""
    app = Starlette(routes=[Route("/", hello)], middleware=[Middleware(Note, "ui")])
    published = {("ui",)}
    made = 0

    with flooded(app) as flood:
        stack = MiddlewareStack.install(app)
        stack.remove(Note)
        published.add(())
        for _ in edits(stack, published):
            made += 1
            if (made >= EDITS and len(flood.found) >= REQUESTS) or flood.errors:
                break
            # As many edits as requests, about, so that many requests meet one.
            if made > len(flood.found):
                wait_for_a_response(flood)

    assert flood.errors == []
    assert len(flood.found) >= REQUESTS
    assert made >= EDITS
    assert set(flood.found) <= published
    # The edits were made among the requests, not before or after them.
    assert len(set(flood.found)) > EDITS / 10
