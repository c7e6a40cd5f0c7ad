"""`@http_middleware(app)`: the decorator for those who know `@app.middleware("http")`."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from httpmw import Connection, Flow, HTTPMiddleware, http_middleware
from tests.harness import request


def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def application(framework: type[Starlette]) -> Starlette:
    app = framework()
    app.router.routes.append(Route("/", hello))
    return app


frameworks = pytest.mark.parametrize("framework", [Starlette, FastAPI])


async def mark(conn: Connection) -> Flow:
    response = yield
    response.headers.append("x-mark", "decorated")


@frameworks
async def test_registers_the_function(framework: type[Starlette]) -> None:
    """A decorated function is a layer of the application."""
    app = application(framework)

    @http_middleware(app)
    async def decorated(conn: Connection) -> Flow:
        response = yield
        response.headers["x-mark"] = "decorated"

    server = await request(app)

    assert (server.body, server.headers["x-mark"]) == (b"hello", "decorated")


@frameworks
def test_returns_the_function_unchanged(framework: type[Starlette]) -> None:
    """The decorated name is still the very function, to be tested or used again."""
    before = dict(mark.__dict__)

    assert http_middleware(application(framework))(mark) is mark
    assert mark.__dict__ == before


@frameworks
async def test_last_decorated_is_outermost(framework: type[Starlette]) -> None:
    """Each decorator adds a layer around those before it, as `add_middleware` does."""
    app = application(framework)

    @http_middleware(app)
    async def first(conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", "first")

    @http_middleware(app)
    async def second(conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", "second")

    server = await request(app)

    assert server.headers.getlist("x-mark") == ["first", "second"]


@frameworks
async def test_takes_a_predicate(framework: type[Starlette]) -> None:
    """`@http_middleware(app, when=...)` gives the layer a predicate."""
    app = application(framework)
    app.router.routes.append(Route("/other", hello))
    http_middleware(app, when=lambda conn: conn.url.path == "/")(mark)

    assert (await request(app)).headers["x-mark"] == "decorated"
    assert "x-mark" not in (await request(app, path="/other")).headers


async def test_one_function_for_two_applications() -> None:
    """A function may be decorated for several applications."""
    one, two = application(Starlette), application(FastAPI)
    http_middleware(one)(http_middleware(two)(mark))

    assert (await request(one)).headers["x-mark"] == "decorated"
    assert (await request(two)).headers["x-mark"] == "decorated"


@frameworks
def test_registers_an_http_middleware(framework: type[Starlette]) -> None:
    """The application lists the layer as `HTTPMiddleware`, like one that was added by hand."""
    app = application(framework)
    http_middleware(app)(mark)

    assert [(entry.cls, entry.kwargs["dispatch"]) for entry in app.user_middleware] == [
        (HTTPMiddleware, mark)
    ]


@pytest.mark.parametrize(
    "thing",
    [
        Router(),
        lambda scope, receive, send: None,
        None,
        "app",
        HTTPMiddleware(Starlette(), dispatch=mark),
    ],
    ids=["router", "function", "none", "string", "middleware"],
)
def test_not_an_application(thing: Any) -> None:
    """Something that cannot take middleware is refused, and told what to write instead."""
    with pytest.raises(TypeError) as caught:
        http_middleware(thing)(mark)

    message = str(caught.value)
    assert "add_middleware" in message
    assert "HTTPMiddleware(app, dispatch=" in message


def test_function_without_the_application() -> None:
    """`@http_middleware` without `(app)` is refused, and says that the application is missing."""
    with pytest.raises(TypeError) as caught:
        http_middleware(mark)

    assert "@http_middleware(app)" in str(caught.value)


def test_unfit_function_is_refused_where_it_is_decorated() -> None:
    """A function that cannot be a middleware is refused at once, not at the first request."""

    async def no_yield(conn: Connection) -> None:
        return None

    app = application(Starlette)
    with pytest.raises(TypeError) as caught:
        http_middleware(app)(no_yield)

    assert "no_yield" in str(caught.value)
    assert app.user_middleware == []


async def test_application_that_has_started() -> None:
    """An application that has started takes no more middleware; its own error is shown."""
    app = application(Starlette)
    await request(app)

    with pytest.raises(RuntimeError, match="started"):
        http_middleware(app)(mark)
