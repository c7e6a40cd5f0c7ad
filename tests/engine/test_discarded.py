"""
The fate of an inner app whose response was replaced.

To the app it looks exactly like a client that left, as the ASGI version in its scope defines it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow
from tests.harness import (
    DISCONNECT,
    Chunks,
    Inner,
    Server,
    body,
    passing,
    request,
    stack,
    start,
    waiting,
)

Layers = Callable[[ASGIApp, Callable[..., Any]], ASGIApp]

# The specs whose servers raise out of `send` when the client has left.
RAISING = ("2.4", "2.5")


async def replaces(conn: Connection) -> Flow:
    """Answer in place of the app."""
    yield
    yield PlainTextResponse("instead", 418)


async def replaces_early_in_the_body(conn: Connection) -> Flow:
    """Answer in place of the app when its body was read."""
    response = yield
    async for _ in response.body_iterator:
        break
    yield PlainTextResponse("instead", 418)


def replaced(server: Server) -> bool:
    """Tell whether the client got the other response, in full."""
    return (server.status, server.body, server.complete) == (418, b"instead", True)


class Endless:
    """A body that never ends, with or without a checkpoint in it."""

    def __init__(self, *, busy: bool = False, idle: bool = False) -> None:
        self.busy = busy
        self.idle = idle
        self.produced = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.produced += 1
        if self.idle and self.produced > 1:
            await anyio.sleep_forever()
        if not self.busy:
            await anyio.lowlevel.checkpoint()
        return b"x" * 10


# Shapes of apps, and how each of them ends.


async def test_plain_response_with_a_background_task(spec: str | None, layers: Layers) -> None:
    """The final message is taken quietly, so a plain response's background task runs."""
    ran: list[str] = []
    app = PlainTextResponse("dropped", background=BackgroundTask(ran.append, "background"))
    server = await request(layers(app, replaces), spec=spec)
    assert replaced(server)
    assert ran == ["background"]


async def test_finite_stream_with_a_background_task(spec: str | None, layers: Layers) -> None:
    """A stream's background task runs below spec 2.4, as for a client that left."""
    ran: list[str] = []
    app = StreamingResponse(
        Chunks(b"a", b"b", b"c"), background=BackgroundTask(ran.append, "background")
    )
    server = await request(layers(app, replaces), spec=spec)
    assert replaced(server)
    assert ran == ([] if spec in RAISING else ["background"])


@pytest.mark.parametrize("kind", ["", "busy", "idle"])
async def test_endless_stream(spec: str | None, layers: Layers, kind: str) -> None:
    """An endless stream ends at once: by its listener, or by the `OSError` at its next chunk."""
    chunks = Endless(busy=kind == "busy", idle=kind == "idle")
    server = await request(layers(StreamingResponse(chunks), replaces), spec=spec)
    assert replaced(server)
    assert chunks.produced <= 3


async def test_endless_stream_that_was_looked_into(spec: str | None, layers: Layers) -> None:
    """A stream whose first chunk the middleware read before it answered ends as well."""
    chunks = Endless()
    app = layers(StreamingResponse(chunks), replaces_early_in_the_body)
    assert replaced(await request(app, spec=spec))
    assert chunks.produced <= 4


async def test_inner_apps(inner: Inner, spec: str | None, layers: Layers) -> None:
    """Each inner app ends, without an exception unless the server would have raised one."""
    server = await request(layers(inner, replaces), spec=spec)
    assert replaced(server)
    assert len(inner.ended) == 1
    if spec not in RAISING:
        assert inner.ended == [None]


async def test_app_blocked_in_receive(spec: str | None, layers: Layers) -> None:
    """An app that waits in `receive` from before its start is woken."""
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            while not got or got[-1] != DISCONNECT:
                got.append(await receive())

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await send(start())

    for disconnect in ("repeated", "once"):
        got.clear()
        server = await request(layers(app, replaces), spec=spec, disconnect=disconnect)
        assert replaced(server)
        assert got[-1] == DISCONNECT


async def test_app_loops_on_receive(spec: str | None, layers: Layers) -> None:
    """An app that asks for messages after its start is told that the client has left."""
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        while not got or got[-1] != DISCONNECT:
            got.append(await receive())
        got.extend([await receive(), await receive()])

    for disconnect in ("repeated", "once"):
        got.clear()
        server = await request(layers(app, replaces), spec=spec, disconnect=disconnect)
        assert replaced(server)
        assert got[-3:] == [DISCONNECT] * 3


async def test_disconnect_without_a_checkpoint(spec: str | None, layers: Layers) -> None:
    """`receive` tells of the disconnect at once, without giving way to another task."""
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        receiving = receive().__await__()  # type: ignore[attr-defined]
        try:
            next(receiving)
        except StopIteration as stop:
            got.append(stop.value)

    server = await request(layers(app, replaces), spec=spec)
    assert replaced(server)
    assert got == [DISCONNECT]


async def test_is_disconnected(spec: str | None, layers: Layers) -> None:
    """`Request.is_disconnected()` is true in a discarded app, and false before that."""
    seen: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        seen.append(await request.is_disconnected())
        await send(start())
        seen.append(await request.is_disconnected())

    assert replaced(await request(layers(app, replaces), spec=spec))
    assert seen == [False, True]


async def test_nothing_is_cancelled(spec: str | None, layers: Layers) -> None:
    """An app that is busy with something else is left to finish it."""
    done: list[str] = []
    release = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await release.wait()
        done.append("work")
        await send(body(b"dropped"))
        done.append("more work")

    async def free() -> None:
        await anyio.wait_all_tasks_blocked()
        release.set()

    async with anyio.create_task_group() as group:
        group.start_soon(free)
        server = await request(layers(app, replaces), spec=spec)
    assert replaced(server)
    assert done == ["work", "more work"]


# What `send` does.


async def test_message_with_more_body(spec: str | None, layers: Layers) -> None:
    """From spec 2.4 on a body message that is not the last raises an `OSError`; else nothing."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for _ in range(3):
            try:
                await send(body(b"x", more=True))
                seen.append("taken")
            except OSError:
                seen.append("OSError")

    server = await request(layers(app, replaces), spec=spec)
    assert replaced(server)
    assert seen == (["OSError"] if spec in RAISING else ["taken"]) * 3


@pytest.mark.parametrize(
    "message",
    [
        body(b"last"),
        {"type": "http.response.body"},
        start(500),
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.pathsend", "path": "/a/file"},
        {"type": "http.response.trailers", "headers": []},
        {"type": "custom.message"},
    ],
    ids=["last", "bare", "start", "debug", "pathsend", "trailers", "custom"],
)
async def test_other_messages_are_taken_quietly(
    spec: str | None, layers: Layers, message: Message
) -> None:
    """Every other message is dropped, and nothing is raised."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(message)

    server = await request(layers(app, replaces), spec=spec, extensions={message["type"]: {}})
    assert replaced(server)


@pytest.mark.parametrize("more", [True, False])
async def test_dropped_message_gives_way(spec: str | None, layers: Layers, more: bool) -> None:
    """Each dropped message is a checkpoint, so that a busy app does not stop all others."""
    more = more and spec not in RAISING  # There it raises instead.
    turns: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def other() -> None:
            turns.append("other")

        await send(start())
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            for _ in range(20):
                await send(body(b"x", more=more))
                turns.append("app")

    assert replaced(await request(layers(app, replaces), spec=spec))
    assert turns.index("other") < 20


# What the app raises.


@pytest.mark.parametrize("wrapped", ["bare", "cause", "group", "deep"])
async def test_our_own_signal_is_dropped(spec: str | None, layers: Layers, wrapped: str) -> None:
    """When the app ends with the `OSError` that we raised, however wrapped, all is well."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            await send(body(b"x", more=True))
        except OSError as error:
            if wrapped == "cause":
                raise RuntimeError("the client has left") from error
            if wrapped == "group":
                raise ExceptionGroup("several", [error, error]) from None
            if wrapped == "deep":
                inside = RuntimeError("the client has left")
                inside.__cause__ = error
                raise ExceptionGroup("all", [ExceptionGroup("some", [inside, error])]) from None
            raise

    assert replaced(await request(layers(app, replaces), spec=spec))


async def test_group_of_ours_alone(spec: str | None, layers: Layers) -> None:
    """Several children that all end with our signal, in a task group, are dropped together."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        async with anyio.create_task_group() as group:
            group.start_soon(send, body(b"x", more=True))
            group.start_soon(send, body(b"y", more=True))

    assert replaced(await request(layers(app, replaces), spec=spec))


@pytest.mark.parametrize("spec", RAISING)
async def test_mixed_group_is_split(spec: str, layers: Layers) -> None:
    """Of an exception group only our own signal is dropped; the rest is raised."""
    own = LookupError("of the app")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            await send(body(b"x", more=True))
        except OSError as error:
            nested = ExceptionGroup("nested", [error, own])
            raise BaseExceptionGroup("mixed", [error, nested, error]) from None

    server = await request(layers(app, replaces), spec=spec, keep_error=True)
    assert replaced(server)
    assert isinstance(server.error, BaseExceptionGroup)
    assert server.error.message == "mixed"
    rest = server.error.exceptions[0]
    assert isinstance(rest, BaseExceptionGroup)
    assert (rest.message, rest.exceptions) == ("nested", (own,))


@pytest.mark.parametrize("from_signal", [True, False], ids=["handling", "plain"])
async def test_other_exception_of_the_app(
    spec: str | None, layers: Layers, from_signal: bool
) -> None:
    """Any other exception of a discarded app comes out, by way of the yields."""
    error = LookupError("of the app")
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            await send(body(b"x", more=from_signal))
        finally:
            raise error

    async def mw(conn: Connection) -> Flow:
        yield
        try:
            yield PlainTextResponse("instead", 418)
        except LookupError as caught:
            seen.append(caught)
            raise

    server = await request(layers(app, mw), spec=spec, keep_error=True)
    assert replaced(server)
    assert server.error is error
    assert seen == [error]


async def test_exception_of_the_app_is_swallowed(spec: str | None, fused: bool) -> None:
    """The function that replaced the response may swallow what the app raised after that."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        raise LookupError

    async def mw(conn: Connection) -> Flow:
        yield
        with contextlib.suppress(LookupError):
            yield PlainTextResponse("instead", 418)

    server = await request(stack(app, waiting, mw, passing, fused=fused), spec=spec)
    assert replaced(server)


# The order of things.


async def test_order_of_the_ends(spec: str | None, layers: Layers) -> None:
    """The replacement is out, the app ends, its background task runs, then the function goes on."""
    server = Server(spec=spec)
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        events.append(f"app goes on, {server.body.decode()}")
        await send(body(b"dropped"))
        await anyio.lowlevel.checkpoint()
        events.append("app ends")

    async def mw(conn: Connection) -> Flow:
        yield
        background = BackgroundTask(events.append, "background")
        yield PlainTextResponse("instead", 418, background=background)
        events.append("tail")

    await server.run(layers(app, mw))
    assert replaced(server)
    assert events == ["app goes on, instead", "app ends", "background", "tail"]


async def test_background_task_that_fails(spec: str | None, layers: Layers) -> None:
    """What the replacement's background task raises is raised at the yield that gave it."""
    error = LookupError("in the background")
    seen: list[BaseException] = []

    async def fail() -> None:
        raise error

    async def mw(conn: Connection) -> Flow:
        yield
        try:
            yield PlainTextResponse("instead", 418, background=BackgroundTask(fail))
        except LookupError as caught:
            seen.append(caught)
            raise

    server = await request(layers(Response("x"), mw), spec=spec, keep_error=True)
    assert replaced(server)
    assert seen == [error]
    assert server.error is error


async def test_response_with_a_background_task_is_not_changed(layers: Layers) -> None:
    """A response object that is yielded for many requests keeps its background task."""
    ran: list[str] = []
    shared = PlainTextResponse("instead", 418, background=BackgroundTask(ran.append, "background"))

    async def mw(conn: Connection) -> Flow:
        yield
        yield shared

    app = layers(Response("x"), mw)
    for _ in range(2):
        assert replaced(await request(app))
    assert ran == ["background"] * 2


async def test_replacement_of_an_early_answer(spec: str | None, fused: bool) -> None:
    """An early answer of an inner layer is discarded like an app, if an outer one replaces it."""
    ran: list[str] = []
    chunks = Endless()

    async def early(conn: Connection) -> Flow:
        try:
            yield StreamingResponse(chunks)
        finally:
            ran.append("early")

    app = stack(Response("x"), waiting, replaces, early, fused=fused)
    assert replaced(await request(app, spec=spec))
    assert ran == ["early"]
    assert chunks.produced <= 3


async def test_exception_of_an_inner_layer_answered_while_the_app_streams(
    spec: str | None, fused: bool
) -> None:
    """An endless app ends as well when the answer is one to an exception of an inner layer."""
    chunks = Endless()

    async def answers(conn: Connection) -> Flow:
        try:
            yield
        except LookupError:
            yield PlainTextResponse("instead", 418)

    async def fails(conn: Connection) -> Flow:
        yield
        raise LookupError

    app = stack(StreamingResponse(chunks), answers, passing, fails, fused=fused)
    assert replaced(await request(app, spec=spec))
    assert chunks.produced <= 3


async def test_streamed_replacement(spec: str | None, layers: Layers) -> None:
    """A replacement may itself be a stream; the app stays discarded."""
    chunks = Endless()

    async def mw(conn: Connection) -> Flow:
        yield
        yield StreamingResponse(Chunks(b"in", b"stead"), 418)

    assert replaced(await request(layers(StreamingResponse(chunks), mw), spec=spec))
    assert chunks.produced <= 3


async def test_head_request(spec: str | None, layers: Layers) -> None:
    """The same holds for a request without a response body."""
    chunks = Endless()
    app = layers(StreamingResponse(chunks), replaces)
    server = await request(app, spec=spec, method="HEAD")
    assert (server.status, server.complete) == (418, True)


@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
async def test_app_is_told_when_the_replacement_is_out(
    spec: str | None, layers: Layers, leaves: bool
) -> None:
    """While the replacement is being sent the app's listener hears nothing, also of the client."""
    server = Server(spec=spec)
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            while await receive() != DISCONNECT:
                pass
            events.append("app was told")

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await send(start())

    class Slow(PlainTextResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send(start(418))
            await send(body(b"in", more=True))
            if leaves:
                server.disconnect()
            await anyio.wait_all_tasks_blocked()
            with contextlib.suppress(OSError):
                await send(body(b"stead"))
            events.append("replacement is out")

    async def mw(conn: Connection) -> Flow:
        yield
        yield Slow("")

    await server.run(layers(app, mw))
    assert events == ["replacement is out", "app was told"]
    assert server.body == (b"in" if leaves else b"instead")
