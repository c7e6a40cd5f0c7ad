"""
What type-checks of `httpmw.testing`. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from functools import partial
from typing import assert_type

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message

from httpmw import AppResponse, Connection, Flow, HTTPMiddleware
from httpmw.testing import (
    ASGIChecker,
    ASGIViolation,
    Result,
    Rule,
    Server,
    as_call_next,
    run,
    step,
)


async def function(conn: Connection) -> Flow:
    yield


async def not_a_middleware(conn: Connection) -> None:
    pass


class Subclass(HTTPMiddleware):
    async def dispatch(self, conn: Connection) -> Flow:
        yield


class Options(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, name: str) -> None:
        super().__init__(app, dispatch=function)
        self.name = name


def factory(app: ASGIApp) -> ASGIApp:
    return ASGIChecker(app)


async def forms(app: Starlette) -> None:
    await run(function)
    await run(Subclass)
    await run(Subclass(app))
    await run(GZipMiddleware, app)
    await run(partial(GZipMiddleware, minimum_size=1), app)
    await run(Middleware(Options, name="x"), PlainTextResponse("x"))
    await run(factory, ValueError("x"))
    await run([function, Subclass, Middleware(GZipMiddleware)], ValueError)
    await run(app=app)
    await run(not_a_middleware)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
    await run(function, app="x")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
    await run(function, spec=2.4)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


async def results() -> None:
    result = await run(function, headers={"a": "b"}, body=[b"a"], leaves_after=1)
    assert_type(result, Result)
    assert_type(result.status, int | None)
    assert_type(result.headers, Headers)
    assert_type(result.sent, list[Message])
    assert_type(result.exception, BaseException | None)
    assert_type(result.request, Request | None)
    assert_type(result.request_body, bytes)


async def steps() -> None:
    async with step(function, path="/x", headers=[(b"a", b"b")]) as flow:
        assert_type(flow, step)
        await flow.respond(200, {"a": "b"}, trailers=True)
        await flow.chunk(b"x")
        await flow.fail(ValueError())
        assert_type(await flow.receive(), Message)
        assert_type(flow.conn, Connection | None)
        assert_type(flow.response, AppResponse | None)
        assert_type(flow.answer, Response | None)
        assert_type(flow.body, bytes)


async def call_next(request: Request) -> Response:
    return Response()


async def dispatches(request: Request) -> None:
    response = await as_call_next(function)(request, call_next)
    response.headers["anything"]
    await as_call_next(Subclass)(object(), call_next)


async def checked(app: Starlette, violations: list[ASGIViolation]) -> None:
    ASGIChecker(app, side="server", violations=violations)
    Starlette(middleware=[Middleware(ASGIChecker, side="app")])
    ASGIChecker(app, side="client")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
    assert_type(violations[0].rule, Rule)
    server = await Server(spec=None).run(ASGIChecker(app))
    assert_type(server, Server)
