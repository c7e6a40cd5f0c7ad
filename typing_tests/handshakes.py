"""
What type-checks of WebSocket handshakes. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from typing import assert_type

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message
from typing_extensions import override

from httpmw import Connection, Flow, HTTPMiddleware, http_middleware
from httpmw.testing import check_transparent, run, step


async def function(conn: Connection) -> Flow:
    assert_type(conn.is_websocket, bool)
    response = yield
    assert_type(response.is_acceptance, bool)
    assert_type(response.subprotocol, str | None)
    yield response
    assert_type(response.close_code, int | None)
    assert_type(response.close_reason, str | None)
    assert_type(response.messages_sent, int)
    assert_type(response.messages_received, int)


class Gate(HTTPMiddleware):
    websocket = True

    @override
    async def dispatch(self, conn: Connection) -> Flow:
        yield


def made(app: ASGIApp) -> None:
    assert_type(HTTPMiddleware(app, dispatch=function, websocket=True).websocket, bool)
    Gate(app, websocket=False)
    HTTPMiddleware(app, dispatch=function, websocket="yes")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


def registered(app: Starlette) -> None:
    Starlette(middleware=[Middleware(HTTPMiddleware, dispatch=function, websocket=True)])
    app.add_middleware(HTTPMiddleware, dispatch=function, websocket=True)
    FastAPI().add_middleware(Gate, websocket=False)
    http_middleware(app, websocket=True)(function)


async def tested() -> None:
    result = await run(function, websocket=True, subprotocols=["a"], messages=["a", b"b"])
    assert_type(result.messages, list[str | bytes])
    assert_type(result.close_code, int | None)
    async with step(function, websocket=True, subprotocols=["a"], extensions={}) as flow:
        await flow.accept(subprotocol="a", headers={"x-a": "b"})
        flow.message("text")
        assert_type(await flow.receive(), Message)
        await flow.say(b"bytes")
        flow.disconnect(1001)
        await flow.close(4000, "why")
        assert_type(flow.messages, list[str | bytes])
    (await check_transparent(function, websocket=True)).raise_for_failures()
