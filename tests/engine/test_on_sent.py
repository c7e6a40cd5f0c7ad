"""`response.on_sent` and `ended_at`: the moment at which a response is over, and who is told."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from httpmw import AppResponse, Connection, Flow, HTTPMiddleware, MiddlewareError
from httpmw._exchange import Exchange
from httpmw._observe import Observer
from httpmw.compat import BaseHTTPMiddleware
from tests.harness import (
    Chunks,
    Inner,
    Server,
    body,
    explained,
    left_to_the_collector,
    request,
    script,
    stack,
    start,
)

Dispatch = Callable[[Connection], Any]
Seen = tuple[str, Any, int]


@dataclass
class Log:
    """What happened, in order; and what each callback saw: a name, the outcome, the bytes."""

    events: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def callback(self, name: str) -> Callable[[AppResponse], None]:
        def done(response: AppResponse) -> None:
            assert response.ended_at is not None
            self.events.append(f"{name} told")
            self.seen.append((name, response.outcome, response.bytes_sent))

        return done

    def once(self, name: str) -> Dispatch:
        """Return a layer with one yield that is told."""

        async def layer(conn: Connection) -> Flow:
            response = yield
            response.on_sent(self.callback(name))

        return layer

    def twice(self, name: str) -> Dispatch:
        """Return a layer with two yields that is told."""

        async def layer(conn: Connection) -> Flow:
            response = yield
            response.on_sent(self.callback(name))
            try:
                yield response
            finally:
                self.events.append(f"{name} resumed")

        return layer

    def outcomes(self) -> list[tuple[str, Any]]:
        return [(name, outcome) for name, outcome, _ in self.seen]


@pytest.fixture
def log() -> Log:
    return Log()


async def quiet(conn: Connection) -> Flow:
    yield


async def waits(conn: Connection) -> Flow:
    response = yield
    yield response


async def upper(chunks: Any) -> Any:
    async for chunk in chunks:
        yield chunk.upper()


async def transforms(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = upper(response.body_iterator)


async def reads(conn: Connection) -> Flow:
    response = yield
    await response.read()


# -- the moment ------------------------------------------------------------------------------


@pytest.mark.parametrize("yields", ["once", "twice"])
async def test_before_a_background_task(
    log: Log, spec: str | None, body_file: Any, yields: str, fused: bool
) -> None:
    """The moment comes before a background task of the app begins, for each kind of response."""

    async def background() -> None:
        log.events.append("background")

    task = BackgroundTask(background)
    makes: list[Callable[[], Response]] = [
        lambda: PlainTextResponse(Inner.BODY, background=task),
        lambda: StreamingResponse(Chunks(b"ab", b"cd"), background=task),
        lambda: FileResponse(str(body_file), background=task),
    ]
    layer = getattr(log, yields)("layer")
    for make in makes:
        log.events.clear()
        await request(stack(Inner(make), quiet, layer, quiet, fused=fused), spec=spec)

        assert log.events[:2] == ["layer told", "background"]
    assert [outcome for _, outcome in log.outcomes()] == ["completed"] * 3


async def test_duration_is_from_the_start_to_the_end(fused: bool) -> None:
    """It is there when both are known, and not before."""
    seen: list[Any] = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        seen.append(response.duration)
        yield response
        assert response.started_at is not None
        assert response.ended_at is not None
        seen.append(response.duration == response.ended_at - response.started_at)

    await request(stack(PlainTextResponse("ab"), quiet, layer, fused=fused))

    assert seen == [None, True]


async def test_ended_at_is_the_last_message(spec: str | None, fused: bool) -> None:
    """`ended_at` lies before what the app does after its response, and after its last message."""
    seen: list[AppResponse] = []
    moments: list[float] = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        seen.append(response)
        yield response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        moments.append(time.perf_counter())
        await send(body(b"x"))
        moments.append(time.perf_counter())

    await request(stack(app, layer, layer, fused=fused), spec=spec)

    for response in seen:
        assert response.ended_at is not None
        assert moments[0] <= response.ended_at <= moments[1]


async def test_fastapi_leaves_the_exits_of_dependencies_out(log: Log) -> None:
    """A dependency with a `yield` and a background task of FastAPI come after the moment."""

    async def session() -> Any:
        yield "session"
        log.events.append("exit")

    app = FastAPI()

    @app.get("/")
    async def index(it: str = Depends(session)) -> Response:  # noqa: FAST002 - a local name
        task = BackgroundTask(lambda: log.events.append("background"))
        return PlainTextResponse(it, background=task)

    app.add_middleware(HTTPMiddleware, dispatch=log.twice("layer"))
    server = await request(app)

    assert server.body == b"session"
    assert log.events[0] == "layer told"
    assert set(log.events[1:3]) == {"exit", "background"}
    assert log.events[3] == "layer resumed"


@pytest.mark.parametrize("more", [False, True], ids=["one", "several"])
async def test_trailers_count(log: Log, fused: bool, more: bool) -> None:
    """The last message of a response with trailers is the last of them."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(trailers=True))
        await send(body(b"ab"))
        log.events.append("body")
        if more:
            await send({"type": "http.response.trailers", "headers": [], "more_trailers": True})
            log.events.append("trailers")
        await send({"type": "http.response.trailers", "headers": []})
        log.events.append("end")

    stacked = stack(app, log.once("outer"), log.twice("inner"), fused=fused)
    await request(stacked, extensions={"http.response.trailers": {}})

    between = ["trailers"] if more else []
    assert log.events == ["body", *between, "outer told", "inner told", "end", "inner resumed"]


async def test_pathsend(log: Log, body_file: Any, fused: bool) -> None:
    """A `pathsend` is the last message, and the bytes are those of the file."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send({"type": "http.response.pathsend", "path": str(body_file)})
        log.events.append("end")

    stacked = stack(app, log.once("outer"), log.twice("inner"), fused=fused)
    await request(stacked, extensions={"http.response.pathsend": {}})

    assert log.events == ["outer told", "inner told", "end", "inner resumed"]
    assert {(outcome, size) for _, outcome, size in log.seen} == {("completed", len(Inner.BODY))}


async def test_early_answer_with_a_background_task(log: Log, fused: bool) -> None:
    """An answer of a layer further in is over before its background task begins."""

    async def gate(conn: Connection) -> Flow:
        task = BackgroundTask(lambda: log.events.append("background"))
        yield PlainTextResponse("no", 403, background=task)

    await request(stack(script(), log.twice("outer"), gate, fused=fused))

    assert log.events == ["outer told", "background", "outer resumed"]
    assert log.seen == [("outer", "completed", 2)]


async def test_before_the_background_of_the_response(log: Log, fused: bool) -> None:
    """`response.background` comes after the moment."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.background = BackgroundTask(lambda: log.events.append("background"))
        response.on_sent(log.callback("layer"))

    await request(stack(script(start(), body(b"ab")), quiet, layer, fused=fused))

    assert log.events == ["layer told", "background"]


# -- the order -------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [quiet, waits, transforms, reads])
async def test_outermost_first(log: Log, inner: Inner, fused: bool, between: Dispatch) -> None:
    """Layers further out are told first, as they see first that the server has the message."""
    layers = [log.once("a"), log.twice("b"), between, log.once("c"), log.twice("d")]
    await request(stack(inner, *layers, fused=fused))

    assert log.events == ["a told", "b told", "c told", "d told", "d resumed", "b resumed"]
    assert {(outcome, size) for _, outcome, size in log.seen} == {("completed", len(Inner.BODY))}


async def test_several_callbacks_of_one_layer(log: Log) -> None:
    """Callbacks of one function are called in the order in which they were given."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        for name in "abc":
            response.on_sent(log.callback(name))

    await request(stack(script(start(), body(b"ab")), layer, fused=True))

    assert log.events == ["a told", "b told", "c told"]


async def test_each_layer_sees_its_own_response(fused: bool) -> None:
    """A callback gets the response as its own function left it."""
    seen: list[Any] = []

    def layer(status: int) -> Dispatch:
        async def function(conn: Connection) -> Flow:
            response = yield
            response.status_code = status
            response.headers["x-status"] = str(status)
            response.on_sent(lambda r: seen.append((r is response, r.status_code, r.headers)))

        return function

    server = await request(
        stack(script(start(), body(b"ab")), layer(203), layer(201), layer(202), fused=fused)
    )

    assert server.status == 203
    told = [(same, status, headers["x-status"]) for same, status, headers in seen]
    assert told == [(True, status, str(status)) for status in (203, 201, 202)]


# -- the outcomes ----------------------------------------------------------------------------


async def test_disconnected_by_receive(log: Log, fused: bool) -> None:
    """A client that is found to be gone is the moment, whatever the app does afterwards."""
    server = Server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(start())
        await send(body(b"a", more=True))
        server.disconnect()
        await receive()
        log.events.append("after")

    await server.run(stack(app, log.once("outer"), log.twice("inner"), fused=fused))

    assert log.events == ["outer told", "inner told", "after", "inner resumed"]
    assert log.seen == [("outer", "disconnected", 1), ("inner", "disconnected", 1)]


async def test_disconnected_by_send(log: Log, fused: bool) -> None:
    """An `OSError` of a server of ASGI 2.4 is the moment."""
    server = Server(spec="2.4")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        server.disconnect()
        with pytest.raises(OSError):  # noqa: PT011 - a server may say anything
            await send(body(b"b", more=True))
        log.events.append("after")

    await server.run(stack(app, log.once("outer"), log.twice("inner"), fused=fused))

    assert log.events == ["outer told", "inner told", "after", "inner resumed"]
    assert log.seen == [("outer", "disconnected", 1), ("inner", "disconnected", 1)]


async def test_stream_whose_client_leaves(log: Log, spec: str | None, fused: bool) -> None:
    """A background task that Starlette runs although the client left comes after the moment."""
    server = Server(spec=spec)

    class Leaving(Chunks):
        async def __anext__(self) -> bytes:
            await anyio.lowlevel.checkpoint()
            chunk = await super().__anext__()
            if chunk == b"b":
                server.disconnect()
            return chunk

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        task = BackgroundTask(lambda: log.events.append("background"))
        stream = StreamingResponse(Leaving(b"a", b"b", *[b"c"] * 50), background=task)
        await stream(scope, receive, send)

    await server.run(
        stack(app, log.once("outer"), log.twice("inner"), fused=fused), keep_error=True
    )

    assert log.events[:2] == ["outer told", "inner told"]
    assert log.outcomes() == [("outer", "disconnected"), ("inner", "disconnected")]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_disconnect_that_is_told_within_the_last_send(
    log: Log, fused: bool, cancelled: bool
) -> None:
    """A server (hypercorn) tells of the end within its last `send`: that is no client who left."""
    ended = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                assert (await receive())["type"] == "http.disconnect"
                if cancelled:
                    group.cancel_scope.cancel()

            await send(start())
            group.start_soon(listen)
            await send(body(b"ab"))

    async def receive() -> Message:
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            ended.set()
            for _ in range(5):
                await anyio.lowlevel.checkpoint()

    stacked = stack(app, log.once("outer"), log.twice("inner"), fused=fused)
    await stacked(Server().scope, receive, send)

    assert log.seen == [("outer", "completed", 2), ("inner", "completed", 2)]


async def test_end_that_nobody_gets(log: Log, fused: bool) -> None:
    """An app that goes on to its end after its client left has `disconnected` all the same."""
    server = Server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        server.disconnect()
        await receive()
        await send(start())
        await send(body(b"ab"))

    await server.run(stack(app, log.once("outer"), log.twice("inner"), fused=fused))

    assert log.outcomes() == [("outer", "disconnected"), ("inner", "disconnected")]


async def test_incomplete(log: Log, fused: bool) -> None:
    """An app that returns in the middle of its body: those further in are told first."""
    app = script(start(), body(b"a", more=True))
    await request(stack(app, log.once("outer"), log.twice("inner"), fused=fused))

    assert log.events == ["inner told", "inner resumed", "outer told"]
    assert log.seen == [("inner", "incomplete", 1), ("outer", "incomplete", 1)]


async def test_failed(log: Log, fused: bool) -> None:
    """An app that raises in the middle of its body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        raise LookupError("in the body")

    server = await request(
        stack(app, log.once("outer"), log.twice("inner"), fused=fused), keep_error=True
    )

    assert isinstance(server.error, LookupError)
    assert log.seen == [("inner", "failed", 1), ("outer", "failed", 1)]


async def test_app_that_fails_after_its_end(log: Log, fused: bool) -> None:
    """What the app raises behind its last message changes nothing of what was told."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"ab"))
        raise LookupError("behind the end")

    server = await request(
        stack(app, log.once("outer"), log.twice("inner"), fused=fused), keep_error=True
    )

    assert isinstance(server.error, LookupError)
    assert log.seen == [("outer", "completed", 2), ("inner", "completed", 2)]


async def test_cancelled(log: Log, fused: bool) -> None:
    """A request that is cancelled in the middle of its body."""
    with anyio.CancelScope() as scope:

        async def app(_: Scope, receive: Receive, send: Send) -> None:
            await send(start())
            await send(body(b"a", more=True))
            scope.cancel()
            await anyio.sleep_forever()

        await request(stack(app, log.once("outer"), log.twice("inner"), fused=fused))

    assert scope.cancelled_caught
    assert log.seen == [("inner", "cancelled", 1), ("outer", "cancelled", 1)]


async def test_replaced(log: Log, fused: bool) -> None:
    """A function that gives another response is told at once; those further out see the other."""

    async def replacing(conn: Connection) -> Flow:
        response = yield
        response.on_sent(log.callback("replaced"))
        log.events.append("gives another")
        yield PlainTextResponse("other")

    app = script(start(), body(b"ab"))
    layers = [log.once("outer"), replacing, log.once("inner")]
    server = await request(stack(app, *layers, fused=fused))

    assert server.body == b"other"
    assert log.events == ["gives another", "replaced told", "outer told", "inner told"]
    assert log.seen == [("replaced", "replaced", 0), ("outer", "completed", 5), ANY_INNER]


# To the layer further in, the server took its body.
ANY_INNER = ("inner", "completed", 2)


async def test_replaced_by_a_stream_of_the_same_body(log: Log, fused: bool) -> None:
    """A `StreamingResponse` made from the body is told of when that has left."""

    async def replacing(conn: Connection) -> Flow:
        response = yield
        response.on_sent(log.callback("layer"))
        yield StreamingResponse(upper(response.body_iterator))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"ab", more=True))
        log.events.append("half")
        await send(body(b"cd"))

    server = await request(stack(app, quiet, replacing, fused=fused))

    assert server.body == b"ABCD"
    assert log.events == ["half", "layer told"]
    assert log.seen == [("layer", "replaced", 4)]


async def test_answered_by_an_http_exception(log: Log, fused: bool) -> None:
    """An `HTTPException` of the function itself is another response, too."""

    async def raising(conn: Connection) -> Flow:
        response = yield
        response.on_sent(log.callback("layer"))
        raise HTTPException(403)

    server = await request(stack(script(start(), body(b"ab")), quiet, raising, fused=fused))

    assert server.status == 403
    assert log.seen == [("layer", "replaced", 0)]


async def test_function_that_fails(log: Log, fused: bool) -> None:
    """A function that fails with the response in hand is told before the app learns of it."""

    async def raising(conn: Connection) -> Flow:
        response = yield
        response.on_sent(log.callback("layer"))
        raise LookupError("in the function")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(start())
        finally:
            log.events.append("app")

    server = await request(stack(app, log.once("outer"), raising, fused=fused), keep_error=True)

    assert isinstance(server.error, LookupError)
    assert log.events == ["layer told", "app"]
    assert log.seen == [("layer", "failed", 0)]


async def test_discarded_from_further_out(log: Log, spec: str | None, fused: bool) -> None:
    """Where a layer further out gives another response, it looks like a client that left."""

    async def replacing(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("other")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            await send(body(b"a", more=True))
        finally:
            log.events.append("after")

    await request(stack(app, replacing, log.once("inner"), fused=fused), spec=spec)

    raises = spec is not None and spec >= "2.4"
    assert log.events == (["inner told", "after"] if raises else ["after", "inner told"])
    assert log.seen[0][1] in ("disconnected", "incomplete")
    assert (log.seen[0][1] == "disconnected") >= raises


async def test_adapter_that_is_closed(log: Log, fused: bool) -> None:
    """An exchange that is closed from outside tells, too."""

    class Never:
        def __await__(self) -> Iterator[None]:
            yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await Never()

    async def taken(message: Message) -> None:
        pass

    layers = [log.once("outer"), log.once("inner")]
    running: Any = stack(app, *layers, fused=fused)(Server().scope, Server().receive, taken)
    running.send(None)
    running.close()

    assert sorted(log.outcomes()) == [("inner", "cancelled"), ("outer", "cancelled")]


# -- what callbacks do -----------------------------------------------------------------------


@contextmanager
def one_record(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    with caplog.at_level(logging.ERROR, logger="httpmw"):
        yield records
    records += [each for each in caplog.records if each.name == "httpmw"]
    assert len(records) == 1


def cancelled_result(response: AppResponse) -> None:
    raise asyncio.CancelledError


def failing(response: AppResponse) -> None:
    raise LookupError("in the callback")


@pytest.mark.parametrize("callback", [failing, cancelled_result])
async def test_callback_that_raises(
    log: Log, inner: Inner, fused: bool, caplog: pytest.LogCaptureFixture, callback: Any
) -> None:
    """What a callback raises is logged, with its place, and harms nothing."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(callback)
        response.on_sent(log.callback("next"))
        yield response
        log.events.append("resumed")

    with one_record(caplog) as records:
        server = await request(stack(inner, quiet, layer, fused=fused))

    assert server.body == Inner.BODY
    assert log.events == ["next told", "resumed"]
    assert explained(records[0].getMessage(), callback) is not None  # type: ignore[arg-type]
    assert records[0].exc_info is not None


async def test_callback_that_gives_a_coroutine(caplog: pytest.LogCaptureFixture) -> None:
    """A plain function that returns a coroutine is logged with the remedy."""

    async def done() -> None:
        raise AssertionError

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda _: done())

    with one_record(caplog) as records:
        await request(HTTPMiddleware(script(start(), body(b"")), dispatch=layer))

    assert records[0].exc_info is not None
    assert "Write `def done(response)" in str(records[0].exc_info[1])


async def test_callback_that_ends_the_process(fused: bool) -> None:
    """KeyboardInterrupt goes its way."""

    def interrupted(response: AppResponse) -> None:
        raise KeyboardInterrupt

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(interrupted)

    with pytest.raises(KeyboardInterrupt):
        await request(stack(script(start(), body(b"")), quiet, layer, fused=fused))


async def test_context_of_the_request(inner: Inner, spec: str | None, fused: bool) -> None:
    """A callback sees and sets the context variables of the request, whoever sends."""
    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    seen: list[str] = []

    def done(response: AppResponse) -> None:
        seen.append(variable.get())
        variable.set("callback")

    async def layer(conn: Connection) -> Flow:
        variable.set("layer")
        response = yield
        response.on_sent(done)
        yield response
        seen.append(variable.get())

    await request(stack(inner, quiet, layer, quiet, fused=fused), spec=spec)

    assert seen == ["layer", "callback"]


# -- what is refused -------------------------------------------------------------------------


class WithCall:
    async def __call__(self, response: AppResponse) -> None:
        raise AssertionError


async def coroutine_function(response: AppResponse) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    "callback",
    [None, 1, coroutine_function, functools.partial(coroutine_function), WithCall()],
    ids=["none", "int", "coroutine-function", "partial", "object"],
)
async def test_what_cannot_be_called(callback: Any) -> None:
    """What is no plain function is refused where it is given."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        with pytest.raises(TypeError, match=r"Write `def done\(response\)"):
            response.on_sent(callback)

    server = await request(HTTPMiddleware(script(start(), body(b"ab")), dispatch=layer))
    assert server.body == b"ab"


async def test_after_the_response(inner: Inner, fused: bool) -> None:
    """After `yield response` it is refused, with the place and the remedy."""
    errors: list[MiddlewareError] = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        yield response
        try:
            response.on_sent(print)
        except MiddlewareError as error:
            errors.append(error)

    await request(stack(inner, quiet, layer, fused=fused))

    explained(errors[0], layer, "between `response = yield`")


async def test_in_the_callback(fused: bool) -> None:
    """In a callback it is too late for another one."""
    errors: list[MiddlewareError] = []

    async def layer(conn: Connection) -> Flow:
        response = yield

        def done(response: AppResponse) -> None:
            try:
                response.on_sent(print)
            except MiddlewareError as error:
                errors.append(error)

        response.on_sent(done)

    await request(stack(script(start(), body(b"")), quiet, layer, fused=fused))

    assert len(errors) == 1


async def test_after_the_end_of_the_function(fused: bool) -> None:
    """A function that has ended can ask for nothing more, not even from a transform of its own."""
    errors: list[MiddlewareError] = []

    async def layer(conn: Connection) -> Flow:
        response = yield

        async def transform(chunks: Any) -> Any:
            try:
                response.on_sent(print)
            except MiddlewareError as error:
                errors.append(error)
            async for chunk in chunks:
                yield chunk

        response.body_iterator = transform(response.body_iterator)

    await request(stack(script(start(), body(b"")), quiet, layer, fused=fused))

    assert len(errors) == 1


# -- elsewhere -------------------------------------------------------------------------------


async def test_drop_in(log: Log, inner: Inner, spec: str | None) -> None:
    """A dispatch function in `call_next` style asks for it in the same way."""

    async def dispatch(request: Request, call_next: Any) -> Response:
        response: AppResponse = await call_next(request)
        response.on_sent(log.callback("layer"))
        return response

    await request(BaseHTTPMiddleware(inner, dispatch=dispatch), spec=spec)

    assert log.seen == [("layer", "completed", len(Inner.BODY))]


async def test_in_an_application(log: Log) -> None:
    """The layers of an application are told around its own."""

    async def index(request: Request) -> Response:
        return PlainTextResponse("ab")

    app = Starlette(
        routes=[
            Route("/", index, middleware=[Middleware(HTTPMiddleware, dispatch=log.once("route"))])
        ],
        middleware=[Middleware(HTTPMiddleware, dispatch=log.once("application"))],
    )
    await request(app)

    assert log.seen == [("application", "completed", 2), ("route", "completed", 2)]


@pytest.mark.parametrize("between", [quiet, waits, transforms])
@pytest.mark.parametrize("more", [True, False], ids=["cut", "whole"])
async def test_nothing_is_left(log: Log, between: Dispatch, more: bool, fused: bool) -> None:
    """No object of the engine is left to the garbage collector."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"ab", more=more))

    async def once() -> None:
        await request(stack(app, log.once("a"), between, log.twice("b"), fused=fused))

    assert await left_to_the_collector(Exchange, once) == []
    assert await left_to_the_collector(Observer, once) == []
