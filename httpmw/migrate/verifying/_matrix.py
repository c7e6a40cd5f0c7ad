# The apps and the requests that both versions of a function are run with.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ._stubs import Stub, World

__all__ = ["APPS", "REQUESTS", "Asked", "OwnError"]

# ------------------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class Asked:
    """
    One request.

    Attributes:
        name: What it is called in reports.
        method: Its method.
        path: Its path.
        query: Its query string.
        headers: Its headers.
        chunks: Its body.
    """

    name: str
    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    chunks: tuple[bytes, ...] = (b"",)

    def scope(self, world: World) -> dict[str, Any]:
        """
        Give a fresh scope.
        """
        size = sum(map(len, self.chunks))
        headers = [("host", "testserver"), ("user-agent", "Mozilla/5.0 (X11; Linux) verify/1.0")]
        if size:
            headers.append(("content-length", str(size)))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query.encode(),
            "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in (*headers, *self.headers)],
            "client": ("127.0.0.1", 50000),
            "server": ("testserver", 80),
            "state": _State(world) if world.truthy else {},
            "session": {},
            "user": Stub(world, "request.user"),
            "auth": Stub(world, "request.auth"),
            "app": Stub(world, "request.app"),
        }


class _State(dict[str, Any]):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def __missing__(self, name: str) -> Any:
        return Stub(self._world, f"state.{name}")


_LOGGED_IN: Final = (
    ("authorization", "Bearer token-1"),
    ("cookie", "session=abc; session_id=s1; access_token=t1; csrftoken=c1"),
    ("x-request-id", "request-0001"),
    ("x-api-key", "key-1"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip"),
    ("origin", "http://localhost:3000"),
)
_JSON: Final = (("content-type", "application/json"),)
_FORM: Final = (("content-type", "application/x-www-form-urlencoded"),)

REQUESTS: Final = (
    Asked("GET /"),
    Asked("GET /api/items, logged in", path="/api/items", query="id=1&q=a,b", headers=_LOGGED_IN),
    Asked("POST json", "POST", "/api/items", headers=_JSON, chunks=(b'{"name": ', b'"x", "n": 1}')),
    Asked("POST form", "POST", "/login", headers=_FORM, chunks=(b"user=a&password=b",)),
    Asked("GET /health", path="/health"),
    Asked("OPTIONS", "OPTIONS", headers=(("origin", "http://localhost:3000"),)),
    Asked("HEAD", "HEAD", "/docs"),
)


# ----------------------------------------------------------------------------------- inner apps


class OwnError(ValueError):
    """
    What the inner apps raise.
    """


async def _json(scope: Scope, receive: Receive, send: Send) -> None:
    size = len(await Request(scope, receive).body())
    response = JSONResponse({"ok": True, "size": size}, headers={"x-app": "json"})
    response.set_cookie("first", "1")
    response.set_cookie("second", "2", httponly=True)
    await response(scope, receive, send)


async def _value_error(*_asgi: object) -> None:
    raise OwnError("the app fails")


async def _raise_404(*_asgi: object) -> None:
    raise HTTPException(404, "no such thing")


async def _raised_http(*_asgi: object) -> None:
    raise HTTPException(418, "raised by a layer further in", headers={"x-pot": "tea"})


async def _status_500(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": "broken"}, 500)(scope, receive, send)


async def _events(scope: Scope, receive: Receive, send: Send) -> None:
    lines = [f"data: {number}\n\n".encode() for number in range(3)]
    await StreamingResponse(_each(lines), media_type="text/event-stream")(scope, receive, send)


async def _stream(scope: Scope, receive: Receive, send: Send) -> None:
    response = StreamingResponse(_each([b"first ", b"second ", b"third"]), media_type="text/plain")
    response.headers["etag"] = '"1"'
    await response(scope, receive, send)


async def _each(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=204)(scope, receive, send)


async def _redirect(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"location": "/elsewhere", "cache-control": "no-store"}
    await PlainTextResponse("elsewhere", 307, headers)(scope, receive, send)


async def _breaks_off(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half of it", "more_body": True})
    raise OwnError("the app fails in mid-body")


def _route() -> ASGIApp:
    async def read(request: Request) -> Response:
        return JSONResponse({"path": request.url.path, "query": str(request.query_params)})

    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]
    try:
        from fastapi import FastAPI  # noqa: PLC0415 - it need not be installed
    except ImportError:
        return Starlette(routes=[Route("/{path:path}", read, methods=methods)])
    app = FastAPI(openapi_url=None)
    app.api_route("/{path:path}", methods=methods, response_model=None)(read)
    return app


def _file(path: str) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await FileResponse(path, filename="report.txt")(scope, receive, send)

    return app


APPS: Final[Mapping[str, ASGIApp]] = {
    "json": _json,
    "ValueError": _value_error,
    "404": ExceptionMiddleware(_raise_404),
    "HTTPException": _raised_http,
    "500": _status_500,
    "events": _events,
    "stream": _stream,
    "204": _nothing,
    "redirect": _redirect,
    "breaks off": _breaks_off,
    "route": _route(),
    "file": _file(__file__),
}
"""
The inner apps, by name.
"""
