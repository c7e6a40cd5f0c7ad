"""`route_template(conn)`: a name for each route, never a path that somebody has asked for."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import route_template
from tests.harness import request

# Older ones leave it to FastAPI.
STARLETTE_SAYS = '"route"' in inspect.getsource(Router)

starlette_only = pytest.mark.skipif(not STARLETTE_SAYS, reason="this Starlette does not say it")


async def ok(request: Any) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def template_of(app: Any, path: str, method: str = "GET", **scope: Any) -> str | None:
    found: list[str | None] = []

    async def keep(conn: Connection) -> Flow:
        yield
        found.append(route_template(conn))

    server_app = HTTPMiddleware(app, dispatch=keep)

    async def with_scope(given: Any, receive: Any, send: Any) -> None:
        await server_app({**given, **scope}, receive, send)

    await request(with_scope, path=path, method=method)
    [template] = found
    return template


def fastapi_app() -> FastAPI:
    app, outer, inner = FastAPI(), APIRouter(), APIRouter()

    @app.get("/users/{user_id}")
    async def user(user_id: int) -> None: ...

    @inner.get("/items/{item:path}")
    async def item(item: str) -> None: ...

    outer.include_router(inner, prefix="/deep")
    app.include_router(outer, prefix="/api/{version}")
    app.mount("/static", PlainTextResponse("file"))
    return app


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/users/7", "/users/{user_id}"),
        ("/users/seven", "/users/{user_id}"),
        ("/api/v1/deep/items/a/b", "/api/{version}/deep/items/{item}"),
        ("/static/a/b.css", "/static/*"),
        ("/nowhere", None),
    ],
)
async def test_fastapi(path: str, template: str | None) -> None:
    """With FastAPI it has the prefixes of included routers, also where validation fails."""
    assert await template_of(fastapi_app(), path) == template


async def test_a_mounted_fastapi_application() -> None:
    """An application that is mounted has the path of its mount in front."""
    app = FastAPI()
    app.mount("/shop", fastapi_app())

    assert await template_of(app, "/shop/users/7") == "/shop/users/{user_id}"


async def test_the_root_path_of_the_server() -> None:
    """What the server says is in front of all is part of the template, as OpenTelemetry has it."""
    app = FastAPI()
    app.mount("/shop", fastapi_app())

    found = await template_of(fastapi_app(), "/proxy/users/7", root_path="/proxy")
    assert found == "/proxy/users/{user_id}"
    found = await template_of(app, "/proxy/shop/users/7", root_path="/proxy")
    assert found == "/proxy/shop/users/{user_id}"


@starlette_only
@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/a/b/c", "/a/b/{name}"),
        ("/a/nowhere", "/a/*"),
        ("/tenants/acme/b/c", "/tenants/{tenant}/b/{name}"),
        ("/tenants/tenants/b/c", "/{tenant}/tenants/b/{name}"),
        ("/tenants/acme/nowhere", "/tenants/{tenant}/*"),
        ("/numbers/007/b/c", "/numbers/{number}/b/{name}"),
        ("/vers-2/b/c", "/vers-{version}/b/{name}"),
        ("/plain", "/plain"),
        ("/", None),
    ],
)
async def test_starlette(path: str, template: str | None) -> None:
    """What a mount has matched of the path is replaced by the names of its parameters."""
    inside = Starlette(routes=[Route("/b/{name}", ok)])
    app = Starlette(
        routes=[
            Mount("/a", inside),
            Mount("/tenants/{tenant}", inside),
            Mount("/numbers/{number:int}", inside),
            Mount("/vers-{version}", inside),
            Route("/plain", ok),
        ]
    )

    assert await template_of(app, path) == template


@starlette_only
async def test_a_host() -> None:
    """A parameter of a host is none of the path."""
    inside = Starlette(routes=[Route("/b/{name}", ok)])
    app = Starlette(routes=[Host("{tenant}.example.org", inside)])
    headers = [(b"host", b"b.example.org")]

    assert await template_of(app, "/b/c", headers=headers) == "/b/{name}"


@starlette_only
async def test_method_not_allowed() -> None:
    """A 405 has matched a route."""
    app = Starlette(routes=[Route("/b/{name}", ok)])

    assert await template_of(app, "/b/c", method="DELETE") == "/b/{name}"
