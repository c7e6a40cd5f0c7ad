"""
What type-checks. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from functools import partial
from typing import Literal, TypedDict, assert_type

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import MutableHeaders, State
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from httpmw import (
    AppResponse,
    BodyTooLarge,
    Connection,
    DeadlineExceeded,
    Dispatch,
    Flow,
    HTTPMiddleware,
    HTTPMWError,
    MiddlewareError,
    MiddlewareStack,
    NoResponseError,
    Outcome,
    Predicate,
    ResponseTooLarge,
    Target,
    http_middleware,
)

# Middleware functions under `Flow`.


async def bare_yield(conn: Connection) -> Flow:
    response = yield
    assert_type(response, AppResponse)


async def yield_alone(conn: Connection) -> Flow:
    yield


class MyState(TypedDict):
    tenant: str


async def typed_state(conn: Connection[MyState]) -> Flow:
    assert_type(conn.state, MyState)
    assert_type(conn.state["tenant"], str)
    yield


async def untyped_state(conn: Connection) -> Flow:
    assert_type(conn.state, State)
    conn.state.tenant = "a"
    yield


class TypedState(HTTPMiddleware):
    @override
    async def dispatch(self, conn: Connection[MyState]) -> Flow:
        yield


Middleware(HTTPMiddleware, dispatch=typed_state, when=lambda conn: conn.method == "GET")


async def request_headers(conn: Connection) -> Flow:
    conn.set_header("x-tenant", conn.headers["host"])
    conn.delete_header("authorization")
    conn.scope["path"] = "/new"
    conn.scope = {**conn.scope, "method": "GET"}
    yield


async def yield_response(conn: Connection) -> Flow:
    response = yield
    yield response


async def yield_another_response(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    try:
        yield
    except LookupError:
        yield JSONResponse({"error": "not found"}, 404)


async def delegating(conn: Connection) -> Flow:
    response = yield bare_yield(conn)
    assert_type(response, AppResponse)


# The annotations that people write without knowing `Flow`.


async def sends_app_response(conn: Connection) -> AsyncGenerator[None, AppResponse]:
    response = yield
    assert_type(response, AppResponse)


async def sends_response(conn: Connection) -> AsyncGenerator[None, Response]:
    response = yield
    assert_type(response, Response)


async def yields_both(conn: Connection) -> AsyncGenerator[Response | None, AppResponse]:
    response = yield None
    yield response


async def takes_a_request(request: Request) -> AsyncGenerator[None, Response]:
    response = yield
    response.headers["x-path"] = request.url.path


# What else is a middleware function.


class Holder:
    async def method(self, conn: Connection) -> Flow:
        yield

    async def __call__(self, conn: Connection) -> Flow:
        yield


async def with_options(conn: Connection, *, name: str) -> Flow:
    response = yield
    response.headers["x-served-by"] = name


def stepping_aside(conn: Connection) -> Flow | None:
    return None if conn.url.path == "/health" else bare_yield(conn)


class Subclass(HTTPMiddleware):
    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        assert_type(response, AppResponse)


class WithOptions(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, name: str) -> None:
        super().__init__(app)
        self.name = name

    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        response.headers["x-served-by"] = self.name


class Delegating(WithOptions):
    async def dispatch(self, conn: Connection) -> Flow:
        response = yield super().dispatch(conn)
        assert_type(response, AppResponse)


class SteppingAside(HTTPMiddleware):
    def dispatch(self, conn: Connection) -> Flow | None:
        return None


class Endpoint:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def is_api(conn: Connection) -> bool:
    return conn.url.path.startswith("/api")


# Every way to register one.

app = Starlette(
    middleware=[
        Middleware(HTTPMiddleware, dispatch=bare_yield),
        Middleware(HTTPMiddleware, dispatch=yield_response, when=is_api),
        Middleware(HTTPMiddleware, dispatch=sends_app_response),
        Middleware(HTTPMiddleware, dispatch=sends_response),
        Middleware(HTTPMiddleware, dispatch=yields_both),
        Middleware(HTTPMiddleware, dispatch=takes_a_request),
        Middleware(HTTPMiddleware, dispatch=Holder().method),
        Middleware(HTTPMiddleware, dispatch=Holder()),
        Middleware(HTTPMiddleware, dispatch=partial(with_options, name="mine")),
        Middleware(HTTPMiddleware, dispatch=stepping_aside),
        Middleware(Subclass),
        Middleware(WithOptions, name="mine"),
        Middleware(Delegating, name="mine"),
        Middleware(SteppingAside),
    ],
    routes=[
        Mount(
            "/mount",
            Router(middleware=[Middleware(HTTPMiddleware, dispatch=delegating)]),
            middleware=[Middleware(HTTPMiddleware, dispatch=yield_alone)],
        ),
        Route("/", Endpoint(), middleware=[Middleware(Subclass)]),
    ],
)
app.add_middleware(HTTPMiddleware, dispatch=bare_yield)
app.add_middleware(HTTPMiddleware, dispatch=sends_app_response, when=is_api)
app.add_middleware(HTTPMiddleware, dispatch=sends_response)
app.add_middleware(WithOptions, name="mine")

HTTPMiddleware(app, dispatch=bare_yield)
HTTPMiddleware(app, dispatch=sends_app_response)
HTTPMiddleware(app, dispatch=sends_response)
HTTPMiddleware(app, dispatch=yields_both)
HTTPMiddleware(app, dispatch=Holder().method)
HTTPMiddleware(app, dispatch=Holder())
HTTPMiddleware(app, dispatch=partial(with_options, name="mine"))
HTTPMiddleware(app, dispatch=stepping_aside)
HTTPMiddleware(app, dispatch=lambda conn: bare_yield(conn) if is_api(conn) else None)
HTTPMiddleware(HTTPMiddleware(Endpoint(), dispatch=bare_yield), yield_response, when=is_api)

api = FastAPI(middleware=[Middleware(HTTPMiddleware, dispatch=bare_yield)])
api.add_middleware(HTTPMiddleware, dispatch=bare_yield)


@http_middleware(api)
async def decorated(conn: Connection) -> Flow:
    response = yield
    assert_type(response, AppResponse)


@http_middleware(app, when=is_api)
async def decorated_conditional(conn: Connection) -> AsyncGenerator[None, Response]:
    yield


@http_middleware(app)
async def decorated_app_response(conn: Connection) -> AsyncGenerator[None, AppResponse]:
    yield


async def returned_unchanged(conn: Connection) -> Flow:
    # The decorated name keeps its type.
    assert_type(decorated(conn), Flow)
    assert_type(decorated_conditional(conn), AsyncGenerator[None, Response])
    yield


# The connection and the response.


async def upper(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


async def connection(conn: Connection) -> Flow:
    as_request: Request = conn
    assert_type(await conn.body(), bytes)
    assert_type(await conn.body(max_size=1_000_000), bytes)
    async for chunk in conn.stream():
        assert_type(chunk, bytes)
    conn.replace_body(b"data")
    conn.replace_body("data")
    conn.body_iterator = upper(conn.body_iterator)
    conn.fail_after(1.5)
    conn.fail_after(1, idle=2, total=3.5)
    conn.fail_after(idle=2)
    conn.fail_upload_after(idle=1, total=2.5)
    conn.cancel_on_disconnect()
    assert_type(await conn.is_disconnected(), bool)
    assert_type(await conn.drain(), bool)
    assert_type(await conn.drain(max_size=1, seconds=0.5), bool)
    yield
    del as_request


async def response(conn: Connection) -> Flow:
    response = yield
    as_response: Response = response
    assert_type(response.headers, MutableHeaders)
    response.headers["x-served-by"] = "mine"
    response.status_code += 1
    response.media_type = "text/plain"
    assert_type(await response.read(), bytes)
    assert_type(await response.read(max_size=1_000), bytes)
    assert_type(response.body, bytes)
    response.body = b"data"
    response.body = "data"
    response.body_iterator = upper(response.body_iterator)
    response.background = BackgroundTask(print)
    response.set_cookie("name", "value")
    response.delete_cookie("name")
    response.on_sent(lambda sent: sent.outcome)
    yield as_response
    assert_type(response.bytes_sent, int)
    assert_type(response.started_at, float | None)
    assert_type(response.ended_at, float | None)
    assert_type(response.duration, float | None)
    assert_type(
        response.outcome,
        Literal["completed", "disconnected", "incomplete", "failed", "cancelled", "replaced"]
        | None,
    )


# The names in the signatures.


def registered(app: Starlette, dispatch: Dispatch, when: Predicate, before: Target) -> None:
    http_middleware(app, when=when)(dispatch)
    MiddlewareStack(app).add(dispatch, before=before)


async def outcomes(conn: Connection) -> Flow:
    response = yield
    yield response
    assert_type(response.outcome, Outcome | None)


# The errors.

library_errors: list[type[HTTPMWError]] = [MiddlewareError, NoResponseError, BodyTooLarge]
runtime_errors: list[type[RuntimeError]] = [MiddlewareError, NoResponseError]
http_error: type[HTTPException] = BodyTooLarge
timeout_error: type[TimeoutError] = DeadlineExceeded
assert_type(DeadlineExceeded("start", 1.5).seconds, float)
assert_type(DeadlineExceeded("start", 1.5).limit, Literal["start", "idle", "total"])
assert_type(BodyTooLarge(1_000).max_size, int)
assert_type(ResponseTooLarge(1_000).max_size, int)
assert_type(BodyTooLarge(1_000).headers, Mapping[str, str] | None)
