"""The rules of the contract, one after the other, as a user of a middleware function meets them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import anyio.lowlevel
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError
from tests.harness import (
    EXTENSIONS,
    Inner,
    Server,
    body,
    explained,
    passing,
    plain_inner,
    request,
    script,
    stack,
    start,
    waiting,
)

Layers = Callable[[ASGIApp, Callable[..., Any]], ASGIApp]

ALL: dict[str, dict[str, str]] = {name: {} for name in (*EXTENSIONS, "custom.message")}


# Rule 1: `response = yield` runs the inner app.


async def test_response_at_the_yield_before_a_byte_is_sent(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """`response = yield` gives the app's response while nothing has been sent."""
    server = Server(spec=spec)
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        seen.append((inner.runs, conn.url.path))
        response = yield
        seen.append((inner.runs, response.status_code, response.headers["x-inner"], server.sent[:]))
        response.headers["x-mw"] = "was here"

    await server.run(layers(inner, mw))
    assert seen == [(0, "/"), (1, 200, "yes", [])]
    assert (server.status, server.body, server.complete) == (200, Inner.BODY, True)
    assert server.headers["x-mw"] == "was here"
    assert (inner.runs, inner.ended) == (1, [None])


async def test_start_is_sent_when_the_function_is_done_with_it(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """The start goes out as soon as the function has ended, before the app makes its body."""
    events: list[str] = []

    class Watched(Server):
        async def send(self, message: Message) -> None:
            await super().send(message)
            events.append(message["type"].removeprefix("http.response."))

    async def mw(conn: Connection) -> Flow:
        events.append("before")
        yield
        events.append("after")

    await Watched(spec=spec).run(layers(inner, mw))
    assert events[:4] == ["before", "after", "start", "body"]


async def test_exception_before_the_start_is_raised_at_the_yield(layers: Layers) -> None:
    """The very exception of the app is raised at `response = yield`."""
    error = LookupError("before the start")
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except LookupError as caught:
            seen.append(caught)
            raise

    server = await request(layers(app, mw), keep_error=True)
    assert seen == [error]
    assert server.error is error
    assert server.sent == []


# Rule 2: `yield some_response` sends a response and waits for the end.


async def test_resumed_when_the_exchange_is_over(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """After `yield response` the response is out and the app has returned."""
    server = Server(spec=spec)
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers["x-mw"] = "was here"
        assert server.sent == []
        yield response
        seen.append((server.complete, inner.ended[:]))

    await server.run(layers(inner, mw))
    assert seen == [(True, [None])]
    assert (server.status, server.body) == (200, Inner.BODY)
    assert server.headers["x-mw"] == "was here"


async def test_another_response_takes_the_place_of_the_apps(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """Yielding another response sends that one, and nothing of the app's."""
    server = Server(spec=spec)
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        assert response.status_code == 200
        yield PlainTextResponse("instead", 418)
        seen.append((server.complete, len(inner.ended)))

    await server.run(layers(inner, mw))
    assert seen == [(True, 1)]
    assert (server.status, server.body, server.complete) == (418, b"instead", True)
    assert "x-inner" not in server.headers


async def test_early_answer(inner: Inner, spec: str | None, layers: Layers) -> None:
    """A response yielded first is the answer; the app is not run, the function is resumed."""
    server = Server(spec=spec)
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        yield PlainTextResponse("members only", 403)
        seen.append((server.complete, inner.runs))

    await server.run(layers(inner, mw))
    assert seen == [(True, 0)]
    assert (server.status, server.body, inner.runs) == (403, b"members only", 0)


async def test_early_streamed_answer(spec: str | None, layers: Layers) -> None:
    """An early answer may be any Starlette response, a stream as well."""

    async def parts() -> Any:
        yield b"one "
        yield b"two"

    async def mw(conn: Connection) -> Flow:
        yield StreamingResponse(parts(), 202)

    server = await request(layers(plain_inner(), mw), spec=spec)
    assert (server.status, server.body, server.complete) == (202, b"one two", True)


async def test_early_answer_passes_the_outer_layers(spec: str | None, fused: bool) -> None:
    """An outer layer gets an early answer as the response of what it wraps."""
    inner = plain_inner()

    async def outer(conn: Connection) -> Flow:
        response = yield
        assert response.status_code == 403
        response.headers["x-outer"] = "saw it"

    async def mw(conn: Connection) -> Flow:
        yield PlainTextResponse("members only", 403)

    server = await request(stack(inner, outer, mw, passing, fused=fused), spec=spec)
    assert (server.status, server.body) == (403, b"members only")
    assert server.headers["x-outer"] == "saw it"
    assert inner.runs == 0


async def test_exception_in_the_body_is_raised_at_the_second_yield(
    spec: str | None, layers: Layers
) -> None:
    """What the app raises after the start is raised at `yield response`."""
    error = LookupError("in the body")
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"some", more=True))
        raise error

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except LookupError as caught:
            seen.append(caught)
            raise

    server = await request(layers(app, mw), spec=spec, keep_error=True)
    assert seen == [error]
    assert server.error is error
    assert server.types == ["start", "body"]


# Rule 3: ending without `yield some_response` sends the response as edited.


async def test_response_edited_in_finally(inner: Inner, spec: str | None, layers: Layers) -> None:
    """A response that stands ready when a `finally` block runs can still be edited there."""

    async def mw(conn: Connection) -> Flow:
        response = None
        try:
            response = yield
            response.status_code = 203
            return
        finally:
            assert response is not None
            response.headers["x-finally"] = "edited"

    server = await request(layers(inner, mw), spec=spec)
    assert (server.status, server.headers["x-finally"]) == (203, "edited")
    assert server.body == Inner.BODY


# Rule 4: one run, one answer.


async def test_second_bare_yield(inner: Inner, spec: str | None, layers: Layers) -> None:
    """A second bare yield is an error before anything is sent."""
    ended: list[str] = []

    async def asks_twice(conn: Connection) -> Flow:
        try:
            yield
            yield
        finally:
            ended.append("closed")

    server = await request(layers(inner, asks_twice), spec=spec, keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, asks_twice, "yield")
    assert server.sent == []
    assert ended == ["closed"]


@pytest.mark.parametrize("early", [True, False], ids=["early", "received"])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "response"])
async def test_yield_after_the_answer(
    inner: Inner, spec: str | None, layers: Layers, early: bool, bare: bool
) -> None:
    """A yield after the answer is an error; the response that is out stays intact."""
    ended: list[str] = []

    async def answers_twice(conn: Connection) -> Flow:
        try:
            if early:
                response: Any = PlainTextResponse(Inner.BODY)
            else:
                response = yield
            yield response
            yield None if bare else PlainTextResponse("again")
        finally:
            ended.append("closed")

    server = await request(layers(inner, answers_twice), spec=spec, keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, answers_twice, "yield")
    assert (server.status, server.body, server.complete) == (200, Inner.BODY, True)
    assert ended == ["closed"]


@pytest.mark.parametrize("value", [42, "text", PlainTextResponse, {"status": 200}], ids=repr)
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
async def test_yield_of_what_is_no_response(layers: Layers, value: Any, first: bool) -> None:
    """Yielding anything but a response is an error that shows what was yielded."""
    inner = plain_inner()

    async def yields_nonsense(conn: Connection) -> Flow:
        if not first:
            yield
        yield value

    server = await request(layers(inner, yields_nonsense), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, yields_nonsense, type(value).__name__)
    assert server.sent == []
    assert inner.runs == (0 if first else 1)


# Rule 5: fail closed.


async def test_function_that_ends_before_any_yield(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """A function that returns before its first yield lets nothing through."""
    allowed = False

    async def forgets_to_answer(conn: Connection) -> Flow:
        if not allowed:
            return
        yield

    server = await request(layers(inner, forgets_to_answer), spec=spec, keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, forgets_to_answer, "yield")
    assert server.sent == []
    assert inner.runs == 0


async def test_function_that_raises_before_any_yield(layers: Layers) -> None:
    """A function that raises before its first yield lets nothing through."""
    inner = plain_inner()
    error = LookupError("mine")

    async def mw(conn: Connection) -> Flow:
        raise error
        yield

    server = await request(layers(inner, mw), keep_error=True)
    assert server.error is error
    assert server.sent == []
    assert inner.runs == 0


async def test_layers_inside_one_that_answers_are_not_entered(fused: bool) -> None:
    """The functions inside one that answers early, or fails, are never called."""
    entered: list[str] = []

    async def gate(conn: Connection) -> Flow:
        yield PlainTextResponse("closed", 503)

    async def inside(conn: Connection) -> Flow:
        entered.append("inside")
        yield

    server = await request(stack(plain_inner(), passing, gate, inside, fused=fused))
    assert server.status == 503
    assert entered == []


async def test_error_of_an_inner_layer_can_be_answered_by_an_outer_one(fused: bool) -> None:
    """The `MiddlewareError` of one layer is raised at the yield of the layers around it."""

    async def outer(conn: Connection) -> Flow:
        try:
            yield
        except MiddlewareError:
            yield PlainTextResponse("sorry", 500)

    async def forgets_to_answer(conn: Connection) -> Flow:
        if conn.url.path == "/other":
            yield

    server = await request(stack(plain_inner(), outer, forgets_to_answer, fused=fused))
    assert (server.status, server.body) == (500, b"sorry")


# Rule 6: stepping aside.


async def test_dispatch_that_returns_none_is_skipped(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """A `dispatch` that returns `None` is not there for this request."""

    async def tag(conn: Connection) -> Flow:
        response = yield
        response.headers["x-tag"] = "yes"

    def only_api(conn: Connection) -> Flow | None:
        return tag(conn) if conn.url.path.startswith("/api") else None

    app = layers(inner, only_api)
    server = await request(app, spec=spec, path="/api/x")
    assert server.headers["x-tag"] == "yes"
    server = await request(app, spec=spec, path="/other")
    assert "x-tag" not in server.headers
    assert server.body == Inner.BODY


@pytest.mark.parametrize(
    "result", ["text", PlainTextResponse("no"), 1], ids=["str", "response", "int"]
)
async def test_dispatch_that_returns_nonsense(layers: Layers, result: Any) -> None:
    """A `dispatch` that returns neither a generator nor `None` fails closed."""
    inner = plain_inner()

    def returns_nonsense(conn: Connection) -> Any:
        return result

    server = await request(layers(inner, returns_nonsense), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, returns_nonsense, repr(result), "async generator")
    assert (server.sent, inner.runs) == ([], 0)


async def test_when(inner: Inner, spec: str | None, fused: bool) -> None:
    """Where the predicate `when` is false, the layer is not there."""
    asked: list[bool] = []

    async def tag(conn: Connection) -> Flow:
        response = yield
        response.headers["x-tag"] = "yes"

    def is_api(conn: Connection) -> bool:
        asked.append(isinstance(conn, Connection))
        return conn.url.path.startswith("/api")

    app = HTTPMiddleware(stack(inner, passing, fused=fused), dispatch=tag, when=is_api)
    app = HTTPMiddleware(app, dispatch=waiting)
    assert (await request(app, spec=spec, path="/api/x")).headers["x-tag"] == "yes"
    server = await request(app, spec=spec, path="/other")
    assert "x-tag" not in server.headers
    assert server.body == Inner.BODY
    assert asked == [True, True]


async def test_when_is_asked_where_the_layer_stands() -> None:
    """The predicate sees what the outer layers did to the scope."""

    async def outer(conn: Connection) -> Flow:
        conn.scope["path"] = "/api"
        yield

    async def tag(conn: Connection) -> Flow:
        response = yield
        response.headers["x-tag"] = "yes"

    app = HTTPMiddleware(
        plain_inner(), dispatch=tag, when=lambda conn: conn.scope["path"] == "/api"
    )
    server = await request(HTTPMiddleware(app, dispatch=outer), path="/other")
    assert server.headers["x-tag"] == "yes"


async def test_all_layers_step_aside(inner: Inner, spec: str | None, fused: bool) -> None:
    """When every layer steps aside the app is run as if none were there."""

    def none(conn: Connection) -> None:
        return None

    server = await request(stack(inner, none, none, none, fused=fused), spec=spec)
    bare = await request(inner, spec=spec)
    assert server.sent == bare.sent


# Rule 7: delegation.


async def test_delegation(inner: Inner, spec: str | None, layers: Layers) -> None:
    """A function yielded before the app has run is run around the app, inside this one."""
    order: list[str] = []

    async def other(conn: Connection) -> Flow:
        order.append("other in")
        response = yield
        order.append("other out")
        response.headers["x-other"] = "yes"
        yield response
        order.append("other end")

    async def mw(conn: Connection) -> Flow:
        order.append("mw in")
        response = yield other(conn)
        order.append("mw out")
        assert response.headers["x-other"] == "yes"
        response.headers["x-mw"] = "yes"
        yield response
        order.append("mw end")

    server = await request(layers(inner, mw), spec=spec)
    assert order == ["mw in", "other in", "other out", "mw out", "other end", "mw end"]
    assert (server.headers["x-other"], server.headers["x-mw"]) == ("yes", "yes")
    assert server.body == Inner.BODY


async def test_delegation_of_a_delegate(layers: Layers) -> None:
    """A delegate may delegate in turn."""
    order: list[str] = []

    async def third(conn: Connection) -> Flow:
        yield
        order.append("third")

    async def second(conn: Connection) -> Flow:
        yield third(conn)
        order.append("second")

    async def first(conn: Connection) -> Flow:
        yield second(conn)
        order.append("first")

    server = await request(layers(plain_inner(), first))
    assert order == ["third", "second", "first"]
    assert server.body == Inner.BODY


async def test_early_answer_of_a_delegate(inner: Inner, spec: str | None, layers: Layers) -> None:
    """What a delegate answers early is the response of the function that delegated."""

    async def gate(conn: Connection) -> Flow:
        yield PlainTextResponse("closed", 503)

    async def mw(conn: Connection) -> Flow:
        response = yield gate(conn)
        assert response.status_code == 503
        response.headers["x-mw"] = "yes"

    server = await request(layers(inner, mw), spec=spec)
    assert (server.status, server.body, inner.runs) == (503, b"closed", 0)
    assert server.headers["x-mw"] == "yes"


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_exception_of_a_delegate(layers: Layers, before: bool) -> None:
    """What a delegate raises is raised at the yield that delegated."""
    error = LookupError("of the delegate")

    async def fails(conn: Connection) -> Flow:
        if before:
            raise error
        yield
        raise error

    async def mw(conn: Connection) -> Flow:
        try:
            yield fails(conn)
        except LookupError as caught:
            assert caught is error
            yield PlainTextResponse("caught", 500)

    server = await request(layers(plain_inner(), mw))
    assert (server.status, server.body) == (500, b"caught")


async def test_delegate_that_steps_aside(layers: Layers) -> None:
    """Yielding what a function that steps aside returned, `None`, just runs the app."""

    def none(conn: Connection) -> Flow | None:
        return None

    async def mw(conn: Connection) -> Flow:
        response = yield none(conn)
        response.headers["x-mw"] = "yes"

    server = await request(layers(plain_inner(), mw))
    assert (server.body, server.headers["x-mw"]) == (Inner.BODY, "yes")


async def test_delegation_to_the_base_class(inner: Inner, spec: str | None, fused: bool) -> None:
    """`response = yield super().dispatch(conn)` runs the base class' middleware."""

    class Tagged(HTTPMiddleware):
        async def dispatch(self, conn: Connection) -> Flow:
            response = yield
            response.headers["x-base"] = "yes"

    class More(Tagged):
        async def dispatch(self, conn: Connection) -> Flow:
            response = yield super().dispatch(conn)
            response.headers["x-more"] = response.headers["x-base"]

    server = await request(More(stack(inner, passing, fused=fused)), spec=spec)
    assert server.headers["x-more"] == "yes"
    assert server.body == Inner.BODY


async def test_delegation_after_the_app_has_run(layers: Layers) -> None:
    """It is too late to delegate when the app has run; the delegate is not entered."""
    entered: list[str] = []

    async def other(conn: Connection) -> Flow:
        entered.append("other")
        yield

    async def delegates_too_late(conn: Connection) -> Flow:
        yield
        yield other(conn)

    server = await request(layers(plain_inner(), delegates_too_late), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, delegates_too_late)
    assert (server.sent, entered) == ([], [])


async def test_broken_delegate_is_named(layers: Layers) -> None:
    """When a delegate breaks the contract the error names the delegate."""

    async def asks_twice(conn: Connection) -> Flow:
        yield
        yield

    async def mw(conn: Connection) -> Flow:
        yield asks_twice(conn)

    server = await request(layers(plain_inner(), mw), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, asks_twice)


# Rule 8: reading never steals.


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body of the request."""
    await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)


async def test_request_body_read_by_the_middleware(spec: str | None, layers: Layers) -> None:
    """What the middleware read of the request body is still delivered to the app."""

    async def mw(conn: Connection) -> Flow:
        assert await conn.body() == b"abcdef"
        yield

    server = await request(layers(echo, mw), spec=spec, method="POST", body=[b"abc", b"def"])
    assert server.body == b"abcdef"


async def test_request_body_read_in_part(spec: str | None, layers: Layers) -> None:
    """Of a request body that was read in part, the app still gets the whole."""

    async def mw(conn: Connection) -> Flow:
        async for chunk in conn.stream():
            assert chunk == b"abc"
            break
        yield

    server = await request(layers(echo, mw), spec=spec, method="POST", body=[b"abc", b"def"])
    assert server.body == b"abcdef"


async def test_response_body_read_by_the_middleware(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """What the middleware read of the response body is still delivered to the client."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        assert await response.read() == Inner.BODY

    server = await request(layers(inner, mw), spec=spec)
    assert (server.body, server.complete) == (Inner.BODY, True)


# Rule 9: `HTTPException` answers.


def denied() -> HTTPException:
    """Return an exception that stands for a 403."""
    return HTTPException(403, "members only", {"x-why": "no badge"})


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
async def test_http_exception_answers(
    inner: Inner, spec: str | None, layers: Layers, early: bool
) -> None:
    """Outside an application an `HTTPException` becomes Starlette's default response."""

    async def mw(conn: Connection) -> Flow:
        if early:
            raise denied()
        yield
        raise denied()

    server = await request(layers(inner, mw), spec=spec)
    assert (server.status, server.body) == (403, b"members only")
    assert server.headers["x-why"] == "no badge"
    assert "x-inner" not in server.headers
    assert inner.runs == (0 if early else 1)


async def test_http_exception_passes_the_outer_layers_as_a_response(
    spec: str | None, fused: bool
) -> None:
    """An outer layer gets the response that an `HTTPException` became, not the exception."""

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.headers["x-outer"] = str(response.status_code)

    async def mw(conn: Connection) -> Flow:
        raise denied()
        yield

    server = await request(stack(plain_inner(), outer, mw, passing, fused=fused), spec=spec)
    assert (server.status, server.headers["x-outer"]) == (403, "403")


@pytest.mark.parametrize("key", [HTTPException, 403], ids=["class", "status"])
@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
async def test_http_exception_with_a_handler(fused: bool, early: bool, key: Any) -> None:
    """The application's own handler makes the response."""

    async def mw(conn: Connection) -> Flow:
        if not early:
            yield
        raise denied()
        yield

    def handler(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    functions = (passing, mw, waiting) if fused else (mw,)
    app = Starlette(
        routes=[Route("/", hello)],
        middleware=[Middleware(HTTPMiddleware, dispatch=function) for function in functions],
        exception_handlers={key: handler},
    )
    server = await request(app)
    assert (server.status, server.body) == (403, b'{"error":"members only"}')


async def test_http_exception_with_an_async_handler() -> None:
    """The application's handler may be a coroutine function."""

    async def mw(conn: Connection) -> Flow:
        raise denied()
        yield

    async def handler(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("handled", 401)

    app = Starlette(
        middleware=[Middleware(HTTPMiddleware, dispatch=mw)],
        exception_handlers={HTTPException: handler},
    )
    assert (await request(app)).status == 401


async def test_http_exception_in_fastapi() -> None:
    """In a FastAPI application it is answered as one of a path operation is."""

    async def mw(conn: Connection) -> Flow:
        raise denied()
        yield

    app = FastAPI()
    app.add_middleware(HTTPMiddleware, dispatch=mw)
    server = await request(app)
    assert (server.status, server.body) == (403, b'{"detail":"members only"}')
    assert server.headers["x-why"] == "no badge"


async def test_http_exception_handler_that_raises() -> None:
    """What a handler raises travels outward."""
    error = LookupError("of the handler")

    async def mw(conn: Connection) -> Flow:
        raise denied()
        yield

    def handler(request: Request, exc: Exception) -> PlainTextResponse:
        raise error

    app = Starlette(
        middleware=[Middleware(HTTPMiddleware, dispatch=mw)],
        exception_handlers={HTTPException: handler},
    )
    assert (await request(app, keep_error=True)).error is error


async def test_http_exception_after_the_response_is_out(inner: Inner, layers: Layers) -> None:
    """Once a response is out an `HTTPException` is an exception like any other."""
    error = denied()

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        raise error

    server = await request(layers(inner, mw), keep_error=True)
    assert server.error is error
    assert (server.status, server.body, server.complete) == (200, Inner.BODY, True)


async def test_http_exception_of_the_app(layers: Layers) -> None:
    """An `HTTPException` that the inner app lets out is not the middleware's; it travels on."""
    error = denied()
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except HTTPException as caught:
            seen.append(caught)
            raise

    server = await request(layers(app, mw), keep_error=True)
    assert seen == [error]
    assert server.error is error


# Rule 10: only HTTP.


@pytest.mark.unchecked(reason="the app's own receive and send")
@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_scopes_go_straight_to_the_app(layers: Layers, kind: str) -> None:
    """The app gets the very scope, `receive` and `send` of the server."""
    got: list[Any] = []

    async def app(*args: Any) -> None:
        got.extend(args)

    async def mw(conn: Connection) -> Flow:
        pytest.fail("must not be called")
        yield

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope = {"type": kind}
    await layers(app, mw)(scope, receive, send)
    assert got[0] is scope
    assert got[1] is receive
    assert got[2] is send
    assert scope == {"type": kind}


# Rule 11: transparent.

SEQUENCES: dict[str, list[Message]] = {
    "plain": [start(headers=[(b"content-length", b"4")]), body(b"data")],
    "chunks": [start(), body(b"a", more=True), body(b"", more=True), body(b"b", more=True), body()],
    "repeated headers": [start(headers=[(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]), body()],
    "no headers": [{"type": "http.response.start", "status": 200}, body(b"x")],
    "bare body": [start(), {"type": "http.response.body"}],
    "headers as lists": [start(headers=[[b"a", b"1"], [b"a", b"2"]]), body()],
    "unknown keys": [start(x_key=[1]), body(b"x", more=True, other=object()), body(last=True)],
    "debug": [
        {"type": "http.response.debug", "info": {"template": "a"}},
        start(),
        body(b"x"),
    ],
    "early hints": [{"type": "http.response.early_hint", "links": [b"</a>"]}, start(), body()],
    "push": [start(), {"type": "http.response.push", "path": "/a", "headers": []}, body()],
    "trailers": [
        start(trailers=True),
        body(b"x"),
        {"type": "http.response.trailers", "headers": [(b"t", b"1")], "more_trailers": True},
        {"type": "http.response.trailers", "headers": [(b"u", b"2")]},
    ],
    "pathsend": [start(), {"type": "http.response.pathsend", "path": "/a/file"}],
    "unknown type": [{"type": "custom.message", "key": object()}, start(), body()],
    "not over": [start(), body(b"x", more=True)],
}


async def reads(conn: Connection) -> Flow:
    """Look at the response, and change nothing."""
    response = yield
    assert response.status_code == 200
    assert "x-none" not in response.headers
    yield response


@pytest.mark.parametrize("function", [passing, waiting, reads])
@pytest.mark.parametrize("name", SEQUENCES)
async def test_transparent(
    name: str, spec: str | None, layers: Layers, function: Callable[..., Any]
) -> None:
    """Every message that no middleware touched reaches the server as the app sent it."""
    messages = SEQUENCES[name]
    before = copy.copy(messages)
    server = await request(layers(script(*messages), function), spec=spec, extensions=ALL)
    assert server.sent == messages == before


async def test_transparent_for_the_inner_apps(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """An empty middleware changes no message of any inner app."""
    bare = await request(inner, spec=spec)
    server = await request(layers(inner, passing), spec=spec)
    assert server.sent == bare.sent


async def test_tuple_of_headers(layers: Layers) -> None:
    """Headers may be any iterable of pairs, and can be edited all the same."""
    pairs = ((b"a", b"1"), (b"a", b"2"))

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers.append("b", "3")

    app = script({**start(), "headers": pairs}, body())
    assert (await request(layers(app, passing))).sent[0]["headers"] == list(pairs)
    assert (await request(layers(app, mw))).sent[0]["headers"] == [*pairs, (b"b", b"3")]


async def test_missing_headers_can_be_set(layers: Layers) -> None:
    """A header can be set on a start message that has no headers at all."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers["b"] = "3"

    app = script({"type": "http.response.start", "status": 200}, body())
    assert (await request(layers(app, mw))).sent[0]["headers"] == [(b"b", b"3")]


async def test_only_what_was_edited_changes(layers: Layers) -> None:
    """An edited start keeps its other headers, in their order, and its other keys."""
    mark = object()
    pairs = [(b"set-cookie", b"a=1"), (b"x", b"y"), (b"set-cookie", b"b=2")]

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.status_code = 201
        response.headers["x"] = "z"

    app = script(start(200, pairs, trailers=False, mark=mark), body(b"data"))
    server = await request(layers(app, mw))
    changed = [pairs[0], (b"x", b"z"), pairs[2]]
    assert server.sent == [start(201, changed, trailers=False, mark=mark), body(b"data")]


async def test_message_of_the_app_is_not_edited(layers: Layers) -> None:
    """An app that sends the same message objects again and again does not see them change."""
    first, last = start(headers=[(b"a", b"1")]), body(b"x")

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers.append("a", "2")
        response.status_code = 201

    app = layers(script(first, last), mw)
    for _ in range(2):
        server = await request(app)
        assert server.headers.getlist("a") == ["1", "2"]
    assert (first, last) == (start(headers=[(b"a", b"1")]), body(b"x"))


async def test_chunk_is_sent_before_the_app_goes_on(layers: Layers, spec: str | None) -> None:
    """Each chunk has reached the server when the app's `send` returns."""
    server = Server(spec=spec)
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for chunk in (b"a", b"b"):
            await send(body(chunk, more=True))
            seen.append(server.body)
        await send(body())

    await server.run(layers(app, waiting))
    assert seen == [b"a", b"ab"]


async def test_scope_is_edited_in_place(layers: Layers, spec: str | None) -> None:
    """The inner app sees what a middleware did to `conn.scope`, and so does the layer around."""
    got: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append((scope["path"], scope["state"]))
        await PlainTextResponse("x")(scope, receive, send)

    async def mw(conn: Connection) -> Flow:
        conn.scope["path"] = "/other"
        conn.state.user = "ada"
        yield

    await request(layers(app, mw), spec=spec)
    assert got == [("/other", {"user": "ada"})]


async def test_layers_share_the_state(fused: bool) -> None:
    """`conn.state` is one for all layers of a request."""

    async def outer(conn: Connection) -> Flow:
        conn.state.trail = ["outer"]
        response = yield
        response.headers["x-trail"] = " ".join(conn.state.trail)

    async def middle(conn: Connection) -> Flow:
        conn.state.trail.append("middle")
        yield

    async def innermost(conn: Connection) -> Flow:
        conn.state.trail.append("inner")
        yield
        await anyio.lowlevel.checkpoint()
        conn.state.trail.append("out")

    server = await request(stack(plain_inner(), outer, middle, innermost, fused=fused))
    assert server.headers["x-trail"] == "outer middle inner out"
