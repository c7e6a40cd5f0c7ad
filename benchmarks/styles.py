"""
The arms of the benchmarks: one layer written in every style, and the applications inside.

Every style does the same work, it sets one header on the response.
A style is a function that puts one layer of it around an application.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware

NAME, VALUE = "x-layer", "1"

App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
Style = Callable[[App], App]


class HandWritten:
    """
    The layer that httpmw is measured against, as Starlette's documentation writes it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[NAME] = VALUE
            await send(message)

        await self.app(scope, receive, send_with_header)


async def one_yield(conn: Connection) -> Flow:
    response = yield
    response.headers[NAME] = VALUE


async def two_yields(conn: Connection) -> Flow:
    response = yield
    response.headers[NAME] = VALUE
    yield response


async def call_next_style(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers[NAME] = VALUE
    return response


STYLES: dict[str, Style] = {
    "asgi": HandWritten,
    "one yield": lambda app: HTTPMiddleware(app, dispatch=one_yield),
    "two yields": lambda app: HTTPMiddleware(app, dispatch=two_yields),
    "BaseHTTP": lambda app: BaseHTTPMiddleware(app, dispatch=call_next_style),
}


def one_message() -> App:
    """
    An application that answers as Starlette's `Response` does: a start and one body message.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": response_headers()})
        await send({"type": "http.response.body", "body": b"hello, world"})

    return app


def chunks(number: int) -> App:
    """
    An application that answers as Starlette's `StreamingResponse` does: chunks and an empty end.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": response_headers()})
        for _ in range(number):
            await send({"type": "http.response.body", "body": b"hello, world", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


BODIES: dict[str, App] = {"one message": one_message(), "20 chunks": chunks(20)}


def response_headers() -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"12"),
        (b"cache-control", b"no-store"),
    ]


def request_scope() -> Scope:
    """
    A new scope, as a server makes one for every request.
    """
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": REQUEST_HEADERS,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }


REQUEST_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"benchmark"),
    (b"accept", b"*/*"),
]


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Message) -> None:
    pass


def layered(app: App, style: str, layers: int) -> App:
    """
    Put that many layers of a style around an application.
    """
    for _ in range(layers):
        app = STYLES[style](app)
    return app
