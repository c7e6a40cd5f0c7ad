"""What `check_transparent` says of middleware that changes nothing, one thing, or many."""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.compat import BaseHTTPMiddleware, RequestResponseEndpoint
from httpmw.testing import TransparencyReport, check_transparent
from httpmw.testing.comparing import _transparent
from httpmw.testing.comparing._inner_apps import Intended, Unusual
from tests import ROOT
from tests.harness import PassThrough, passing, stack, waiting

PAGE = ROOT / "docs" / "comparison.md"
SPEC = ("2.3",)


# Middleware that is transparent.


async def test_no_middleware_is_transparent(anyio_backend: str) -> None:
    """An app is like itself, in every row."""
    report = await check_transparent([])

    assert report.failures == ()
    assert all(row.passed for row in report.rows)


@pytest.mark.parametrize("function", [passing, waiting])
async def test_empty_layer_is_transparent(
    function: Callable[[Connection], Flow], anyio_backend: str
) -> None:
    """A layer that does nothing changes nothing, whether it waits for the end or not."""
    report = await check_transparent(function)

    assert report.failures == (), report


async def test_stack_is_transparent(fused: bool, anyio_backend: str) -> None:
    """Neither do many layers, fused or nested."""
    report = await check_transparent(
        lambda app: stack(app, waiting, passing, waiting, passing, fused=fused)
    )

    assert report.failures == (), report


async def test_layer_that_is_not_there_is_transparent(anyio_backend: str) -> None:
    """Neither does a layer that stands aside."""
    report = await check_transparent(
        lambda app: HTTPMiddleware(app, dispatch=waiting, when=lambda conn: False)
    )

    assert report.failures == (), report


async def test_plain_layer_is_transparent(anyio_backend: str) -> None:
    """Plain ASGI middleware is judged in the same way."""
    report = await check_transparent(PassThrough)

    assert report.failures == (), report


async def test_call_next_layer_is_transparent(anyio_backend: str) -> None:
    """Neither does the drop-in for Starlette's class."""

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    report = await check_transparent(lambda app: BaseHTTPMiddleware(app, dispatch))

    assert report.failures == (), report


# Changes that are meant.


async def identify(conn: Connection) -> Flow:
    response = yield
    response.headers["x-id"] = "1"


async def shout(conn: Connection) -> Flow:
    async def upper(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.upper()

    response = yield
    response.body_iterator = upper(response.body_iterator)


async def test_header_that_is_meant_is_ignored(anyio_backend: str) -> None:
    """A header that the middleware sets on purpose is no failure if it is named."""
    assert "plain response" in failing(await check_transparent(identify, specs=SPEC))
    assert failing(await check_transparent(identify, ignore_headers={"X-Id"})) == set()


async def test_request_header_that_is_meant_is_ignored(anyio_backend: str) -> None:
    """A header that the middleware adds to the request is no failure if it is named."""

    def make(app: ASGIApp) -> ASGIApp:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            if "headers" in scope:
                scope = {**scope, "headers": [*scope["headers"], (b"x-trace", b"1")]}
            await app(scope, receive, send)

        return layer

    assert failing(await check_transparent(make, specs=SPEC)) == {"the scope that the app sees"}
    assert failing(await check_transparent(make, ignore_headers={"x-trace"})) == set()


async def test_body_that_is_meant_is_ignored(anyio_backend: str) -> None:
    """Bytes that the middleware changes on purpose are no failure if that is said."""
    assert "plain response" in failing(await check_transparent(shout, specs=SPEC))
    # Where a transform makes nothing of a chunk, nothing is sent.
    report = await check_transparent(shout, ignore_body=True, allow={"stream with an empty chunk"})
    assert failing(report) == set()


async def test_rows_that_may_fail(anyio_backend: str) -> None:
    """A row that is allowed to fail is reported and is no failure."""
    report = await check_transparent(
        changing("http.response.trailers", drop), allow={"trailers"}, specs=SPEC
    )

    assert report.failures == ()
    assert [row.name for row in report.rows if not row.passed] == ["trailers"]
    report.raise_for_failures()


async def test_row_that_is_not_there_can_not_be_allowed(anyio_backend: str) -> None:
    """A misspelt row is refused, and the message lists those that there are."""
    with pytest.raises(ValueError, match=r"no row has the name 'trailer'; there are: .*trailers,"):
        await check_transparent(PassThrough, allow={"trailer"})


async def test_no_version_is_no_check(anyio_backend: str) -> None:
    """Without a version of ASGI nothing would be run, and everything would seem to hold."""
    with pytest.raises(ValueError, match="specs is empty"):
        await check_transparent(PassThrough, specs=[])


async def test_headers_of_every_request(anyio_backend: str) -> None:
    """A middleware that asks for a header gets it, also beside those of the case."""

    async def members_only(conn: Connection) -> Flow:
        assert conn.headers["x-member"] == "1"
        yield

    report = await check_transparent(members_only, headers={"x-member": "1"}, specs=SPEC)

    assert report.failures == ()


# Middleware that changes one thing, and the row that tells.


def drop(message: Message) -> list[Message]:
    return []


def changing(kind: str, change: Callable[[Message], list[Message]]) -> Any:
    """Return a middleware that sends for each message of *kind* what *change* makes of it."""

    def make(app: ASGIApp) -> ASGIApp:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            async def changed(message: Message) -> None:
                fits = message["type"] == kind
                for each in change(message) if fits else [message]:
                    await send(each)

            await app(scope, receive, changed)

        return layer

    return make


def around(layer: Callable[..., Awaitable[None]]) -> Any:
    """Return a middleware of a function of app, scope, receive and send."""

    def make(app: ASGIApp) -> ASGIApp:
        async def called(scope: Scope, receive: Receive, send: Send) -> None:
            await layer(app, scope, receive, send)

        return called

    return make


def status(message: Message) -> list[Message]:
    return [{**message, "status": 200}]


def unique(message: Message) -> list[Message]:
    headers = dict(message.get("headers", []))
    return [{**message, "headers": list(headers.items())}]


def only_known(*keys: str) -> Callable[[Message], list[Message]]:
    return lambda message: [{key: message[key] for key in ("type", *keys) if key in message}]


def halved(message: Message) -> list[Message]:
    data, more = bytes(message.get("body", b"")), message.get("more_body", False)
    middle = len(data) // 2
    kind = "http.response.body"
    return [
        {"type": kind, "body": data[:middle], "more_body": True},
        {"type": kind, "body": data[middle:], "more_body": more},
    ]


def in_place(message: Message) -> list[Message]:
    MutableHeaders(scope=message).setdefault("content-type", "text/plain")
    message["changed"] = True
    return [{key: value for key, value in message.items() if key != "changed"}]


def needs_headers(message: Message) -> list[Message]:
    assert isinstance(message["headers"], list)
    return [message]


def not_empty(message: Message) -> list[Message]:
    return [message] if message.get("body") or not message.get("more_body") else []


def needs_bytes(message: Message) -> list[Message]:
    assert isinstance(message.get("body", b""), bytes)
    return [message]


def bodiless(message: Message) -> list[Message]:
    return [] if not message.get("body") and not message.get("more_body") else [message]


async def unmoved(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def in_a_task(app: ASGIApp, *call: Any) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(app, *call)


async def queued(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let a task of its own send what the app has sent."""
    writer, reader = anyio.create_memory_object_stream[Message](10)

    async def forward() -> None:
        async with reader:
            async for message in reader:
                await send(message)

    async with anyio.create_task_group() as group, writer:
        group.start_soon(forward)
        await app(scope, receive, writer.send)


async def collected(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Hold everything back until the app is done."""
    messages: list[Message] = []

    async def collect(message: Message) -> None:
        messages.append(message)

    if scope["type"] != "http":
        await app(scope, receive, send)
        return
    await app(scope, receive, collect)
    for message in messages:
        await send(message)


async def closing(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """End a body that the app has not ended."""
    open_body = False

    async def noted(message: Message) -> None:
        nonlocal open_body
        await send(message)
        open_body = message["type"] == "http.response.start" or message.get("more_body", False)

    try:
        await app(scope, receive, noted)
    finally:
        if open_body:
            with anyio.CancelScope(shield=True):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def wrapping(app: ASGIApp, *call: Any) -> None:
    try:
        await app(*call)
    except Exception as error:
        raise RuntimeError("something failed") from error


async def copying(app: ASGIApp, *call: Any) -> None:
    try:
        await app(*call)
    except Exception as error:
        raise type(error)(*error.args) from error.__cause__


async def with_cause(app: ASGIApp, *call: Any) -> None:
    try:
        await app(*call)
    except Exception as error:
        raise error from LookupError("mine")


async def cutting(app: ASGIApp, *call: Any) -> None:
    try:
        await app(*call)
    except Exception as error:
        raise error.with_traceback(None)  # noqa: B904 - this is the sabotage


async def hiding(app: ASGIApp, *call: Any) -> None:
    with suppress(BaseException):
        await app(*call)


async def answering(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Make an error page, as if it were always time for one."""
    started = False

    async def noted(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    await app(scope, receive, noted)
    if not started and scope["type"] == "http":
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"no response"})


async def complaining(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    started = scope["type"] != "http"

    async def noted(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    await app(scope, receive, noted)
    if not started:
        raise RuntimeError("no response")


async def deaf(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Never tell the app that the client left."""

    async def received() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            await anyio.sleep_forever()
        return message

    await app(scope, received, send)


async def quieting(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    async def sent(message: Message) -> None:
        with suppress(OSError):
            await send(message)

    await app(scope, receive, sent)


async def reading(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole request first, and give it to the app in one piece."""
    if scope["type"] != "http":
        await app(scope, receive, send)
        return
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message.get("body", b""), message.get("more_body", False)
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": data, "more_body": False}

    await app(scope, received, send)


async def losing(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Lose the bytes of the request."""

    async def received() -> Message:
        message = await receive()
        return {**message, "body": b""} if "body" in message else message

    await app(scope, received, send)


async def impatient(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Wait for the server in a way that no time limit reaches."""

    async def received() -> Message:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(0.001):
                return await receive()
        return {"type": "http.disconnect"}

    await app(scope, received, send)


async def elsewhere(app: ASGIApp, *call: Any) -> None:
    """Run the app in the task of the request and in another context, as far as that goes."""
    step: Any = app(*call).__await__()
    context = contextvars.Context()

    class Stepped:
        def __await__(self) -> Any:
            value, send = None, step.send
            while True:
                try:
                    awaited = context.run(send, value)
                except StopIteration:
                    return
                try:
                    value, send = (yield awaited), step.send
                except BaseException as error:
                    value, send = error, step.throw

    await Stepped()


async def own_scope(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    state = dict(scope.get("state", {}))
    await app({**scope, "state": state, "extensions": {}}, receive, send)


async def only_http(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await app(scope, receive, send)


async def in_a_hurry(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Leave when the response is complete."""
    with anyio.CancelScope() as limit:

        async def sent(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                limit.cancel()

        await app(scope, receive, sent)


async def one_at_a_time(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Send early hints and all that comes after the start before it."""
    start: list[Message] = []

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.append(message)
            return
        if message["type"] == "http.response.body":
            while start:
                await send(start.pop())
        await send(message)

    await app(scope, receive, sent)
    while start:
        await send(start.pop())


async def by_turns(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Send only what the task of the request sends."""
    mine = anyio.get_current_task().id

    async def sent(message: Message) -> None:
        if anyio.get_current_task().id == mine:
            await send(message)

    await app(scope, receive, sent)


BODY = "http.response.body"
START = "http.response.start"

SABOTAGE: dict[str, tuple[Any, set[str]]] = {
    "app not run": (around(unmoved), {"the app is run"}),
    "status": (changing(START, status), {"plain response", "204 and 304", "partial content"}),
    "headers made unique": (changing(START, unique), {"repeated headers"}),
    "headers expected": (
        changing(START, needs_headers),
        {"start without headers", "headers in a tuple"},
    ),
    "start without its other keys": (
        changing(START, only_known("status", "headers", "trailers")),
        {"keys of a later version"},
    ),
    "bytes expected": (changing(BODY, needs_bytes), {"body in a memoryview"}),
    "message changed in place": (
        changing(START, in_place),
        {"the messages that the app keeps"},
    ),
    "chunks halved": (changing(BODY, halved), {"message boundaries"}),
    "empty chunks dropped": (changing(BODY, not_empty), {"stream with an empty chunk"}),
    "empty bodies dropped": (changing(BODY, bodiless), {"HEAD", "stream", "204 and 304"}),
    "trailers dropped": (changing("http.response.trailers", drop), {"trailers"}),
    "hints dropped": (
        changing("http.response.early_hint", drop),
        {"early hints before the start", "early hints after the start"},
    ),
    "debug dropped": (changing("http.response.debug", drop), {"debug"}),
    "push dropped": (changing("http.response.push", drop), {"push"}),
    "pathsend dropped": (changing("http.response.pathsend", drop), {"pathsend"}),
    "zerocopysend dropped": (changing("http.response.zerocopysend", drop), {"zerocopysend"}),
    "unknown message dropped": (
        changing("http.response.later", drop),
        {"message of a later version"},
    ),
    "app in a task": (
        around(in_a_task),
        {
            "no task is made",
            "the app runs in the task of the request",
            "context variables, both ways",
            "exception group",
        },
    ),
    "queue": (around(queued), {"a slow client holds the app back", "no task is made"}),
    "buffer": (
        around(collected),
        {
            "start is not held back",
            "chunks are not held back",
            "a slow client holds the app back",
            "background task",
            "exception after the start",
            "disconnect after the response",
            "answer while the request comes in",
        },
    ),
    "start held back": (
        around(one_at_a_time),
        {"early hints after the start", "push", "start is not held back"},
    ),
    "body closed": (around(closing), {"end within the body", "exception within the body"}),
    "exception wrapped": (
        around(wrapping),
        {
            "exception before the start",
            "exception within the body",
            "exception after the response",
            "exception in a websocket",
            "exception at startup",
        },
    ),
    "exception copied": (around(copying), {"exception before the start"}),
    "cause given": (around(with_cause), {"exception with a cause", "exception with a context"}),
    "traceback cut": (around(cutting), {"exception before the start"}),
    "everything swallowed": (
        around(hiding),
        {"exception that is no Exception", "exception group", "cancelled request"},
    ),
    "response invented": (around(answering), {"no response", "quiet end after a disconnect"}),
    "no response is an error": (around(complaining), {"quiet end after a disconnect"}),
    "server's error swallowed": (around(quieting), {"app that sends to a client that left"}),
    "request read ahead": (
        around(reading),
        {
            "request body",
            "request that is not read",
            "request keys of a later version",
            "client leaves in the middle of its request",
            "answer while the request comes in",
        },
    ),
    "request lost": (around(losing), {"request body", "request body of one message"}),
    "scope changed": (around(own_scope), {"the scope that the app sees"}),
    "other scopes dropped": (
        around(only_http),
        {
            "websocket",
            "websocket that is denied",
            "websocket that is denied in parts",
            "websocket that is refused",
            "websocket that is refused, where nothing else is understood",
            "websocket that the app closes",
            "client leaves before the acceptance",
            "exception in an open websocket",
            "lifespan",
            "exception at startup",
        },
    ),
    "no background": (
        around(in_a_hurry),
        {"background task"},
    ),
    "children not heard": (
        around(by_turns),
        {
            "stream from a child task",
            "start and body from different tasks",
            "two tasks that take turns",
        },
    ),
    "context not passed on": (around(elsewhere), {"context variables, both ways"}),
    "time limit not heard": (around(impatient), {"time limit in the app"}),
    "disconnect hidden": (
        around(deaf),
        {
            "client leaves, the app asks",
            "client leaves, the app listens",
            "client leaves in the middle of its request",
            "Request.is_disconnected()",
            "quiet end after a disconnect",
            "disconnect after the response",
        },
    ),
}


def failing(report: TransparencyReport) -> set[str]:
    return {row.name for row in report.failures}


@pytest.mark.parametrize("name", SABOTAGE)
async def test_sabotage_is_found(name: str, anyio_backend: str) -> None:
    """A middleware that changes one thing fails in the row that is about it."""
    make, rows = SABOTAGE[name]
    report = await check_transparent(make, specs=["2.4"], timeout=0.05)

    assert rows <= failing(report), report


async def test_every_row_can_fail(anyio_backend: str) -> None:
    """There is a sabotage for every row."""
    report = await check_transparent(PassThrough, specs=SPEC)

    assert {row.name for row in report.rows} == set().union(
        *(rows for _, rows in SABOTAGE.values())
    )


# The report.


async def test_failures_are_raised_with_a_line_for_each(anyio_backend: str) -> None:
    """What fails a test names each row, what was different, and where."""
    make = changing("http.response.trailers", drop)
    report = await check_transparent(make, specs=["2.3", "2.4"])

    with pytest.raises(AssertionError) as raised:
        report.raise_for_failures()

    first, *lines = str(raised.value).splitlines()
    assert first == "the middleware is not transparent"
    assert [re.split("  +", line) for line in lines] == [
        [
            "NO",
            "trailers",
            (
                "the server gets start + body, not start + body + trailers + trailers "
                "(ASGI 2.3, and 1 more)"
            ),
        ]
    ]


async def test_report_is_a_table(anyio_backend: str) -> None:
    """The report as text has a line for each row, that says how it is marked."""
    make = changing("http.response.trailers", drop)
    report = await check_transparent(make, allow={"trailers"}, specs=SPEC)

    title, *lines = str(report).splitlines()
    assert title == f"67 of 68 are as without the middleware, in {report.runs} runs"
    assert [line.split()[0] for line in lines].count("ok") == 67
    assert next(line for line in lines if line.startswith("allowed")).split()[1] == "trailers"


async def test_layers_around_handshakes_are_transparent(anyio_backend: str) -> None:
    """Functions that change nothing change nothing of a handshake, fused and nested."""
    for layers in ([passing, waiting], [waiting, PassThrough, passing]):
        report = await check_transparent(layers, websocket=True, specs=[None, "2.4"])
        report.raise_for_failures()


async def test_a_change_of_a_handshake_is_found(anyio_backend: str) -> None:
    """A function is around handshakes where that is asked for."""

    async def closed_to_websockets(conn: Connection) -> Flow:
        if conn.is_websocket:
            yield PlainTextResponse("no", 403)
        else:
            yield

    report = await check_transparent(closed_to_websockets, specs=SPEC)
    assert report.failures == ()
    report = await check_transparent(closed_to_websockets, specs=SPEC, websocket=True)
    assert {"websocket", "websocket that the app closes"} <= failing(report)


async def test_row_that_looks_at_every_case_says_in_which(anyio_backend: str) -> None:
    """The detail of such a row begins with the first case."""
    report = await check_transparent(changing(BODY, halved), specs=SPEC)
    row = next(row for row in report.rows if row.name == "message boundaries")

    assert row.detail.startswith("bodies of 2 + 3 bytes, not bodies of 5 bytes (plain response; ")


async def test_app_that_is_never_run_is_told(anyio_backend: str) -> None:
    """A middleware that answers everything itself is told so, in one row."""

    async def members_only(conn: Connection) -> Flow:
        yield PlainTextResponse("members only", 403)

    report = await check_transparent(members_only, specs=SPEC)

    [row] = report.failures
    assert row.name == "the app is run"
    assert row.detail.startswith("it is not, the server gets 403 + body (plain response; ASGI 2.3,")


async def test_middleware_that_raises_before_the_app_is_told(anyio_backend: str) -> None:
    """A middleware that fails before it runs the app is told with what."""

    async def careless(conn: Connection) -> Flow:
        conn.headers["x-member"]
        yield

    report = await check_transparent(careless, specs=SPEC)

    [row] = report.failures
    assert row.detail.startswith("it is not, KeyError('x-member') is raised (plain response;")


async def test_middleware_that_hangs_is_told(anyio_backend: str) -> None:
    """A middleware that never ends is cancelled, and told so."""

    async def hang(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)
        await anyio.sleep_forever()

    report = await check_transparent(around(hang), specs=SPEC, timeout=0.001)

    assert "it hangs (ASGI 2.3)" in {row.detail for row in report.failures}


async def test_cancellation_that_is_swallowed_is_told(anyio_backend: str) -> None:
    """A middleware that makes a normal end of a cancellation is told so."""
    report = await check_transparent(around(hiding), specs=SPEC)
    row = next(row for row in report.rows if row.name == "cancelled request")

    # The scope that was cancelled has nothing to catch any more.
    assert row.detail.startswith("it swallows the cancellation")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_debt_of_cancellations_is_told(anyio_backend: str) -> None:
    """A middleware that leaves a cancellation owed to its task is told so."""

    async def owe(app: ASGIApp, *call: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await anyio.lowlevel.checkpoint()
        await app(*call)

    report = await check_transparent(around(owe), specs=SPEC)
    row = next(row for row in report.rows if row.name == "plain response")
    assert row.detail.startswith("task.cancelling() is 1 afterwards, not 0")


# What it leaves behind, and the page that is made of it.


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_garbage_is_no_task(anyio_backend: str) -> None:
    """A generator that the loop closes meanwhile is none of the tasks that are made."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b""
        yield b""

    async def litter(app: ASGIApp, *call: Any) -> None:
        await anext(chunks())
        await anyio.lowlevel.checkpoint()
        await app(*call)

    report = await check_transparent(around(litter), specs=SPEC)

    assert "no task is made" not in failing(report)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_task_factory_is_restored(anyio_backend: str) -> None:
    """After a check the loop makes its tasks as before."""

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(make)
    try:
        report = await check_transparent(around(in_a_task), specs=SPEC)
        assert loop.get_task_factory() is make
    finally:
        loop.set_task_factory(None)

    assert "no task is made" in failing(report)


async def test_context_is_restored(anyio_backend: str) -> None:
    """After a check every context variable is what it was before."""
    before = dict(contextvars.copy_context())
    await check_transparent(PassThrough, specs=SPEC)

    assert {each for each in contextvars.copy_context() if each not in before} == set()


async def test_inner_apps_end_as_they_mean_to(anyio_backend: str) -> None:
    """Alone, no inner app sends what the strict server refuses, hangs, or fails by mistake."""
    for variant in _transparent._variants(_transparent.SPECS, {}):
        run = await _transparent._run(variant, None, 5)
        raised = run.raised.error if run.raised else None
        intended = (Intended, Unusual, ExceptionGroup, OSError, type(None))

        assert isinstance(raised, intended), (str(variant), raised)
        assert not run.hung, str(variant)


def test_table_of_the_page_is_fresh() -> None:
    """The comparison page holds what `check_transparent` says today."""
    if f"Made with Starlette {version('starlette')}," not in PAGE.read_text():
        pytest.skip("the page was made with another Starlette")
    command = [sys.executable, "tools/transparency.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    checked = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")


async def test_example_of_the_page(anyio_backend: str) -> None:
    """The middleware that the page shows fails with the message that it shows, and only so."""
    page = PAGE.read_text()
    code = re.search(r"^```python[^\n]*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    shown = re.search(r"^```text\nAssertionError: (.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert code is not None
    assert shown is not None
    namespace: dict[str, Any] = {}
    mended = code[1].replace('message["headers"]', 'message.get("headers", [])')
    exec(code[1], namespace)  # noqa: S102 - it is our own page

    with pytest.raises(AssertionError, match=f"^{re.escape(shown[1])}$"):
        await namespace["test_request_id"]()
    exec(mended, namespace)  # noqa: S102 - it is our own page
    await namespace["test_request_id"]()
