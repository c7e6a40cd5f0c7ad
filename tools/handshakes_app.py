"""
The application that `tools/handshakes.py` asks: alone, and inside of three layers.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from httpmw import Connection, Flow, HTTPMiddleware

# What has happened since it was asked for last.
LOG: list[list[Any]] = []


async def echo(socket: WebSocket) -> None:
    offered = socket.scope.get("subprotocols") or [None]
    headers = [(b"x-app", b"yes"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    await socket.accept(subprotocol=offered[0], headers=headers)
    while (message := await socket.receive())["type"] == "websocket.receive":
        if message.get("text") == "close":
            await socket.close(4001, "bye")
        elif message.get("text") is not None:
            await socket.send_text(message["text"])
        else:
            await socket.send_bytes(message["bytes"])
    LOG.append(["app", message.get("code")])


async def close(socket: WebSocket) -> None:
    await socket.receive()
    await socket.close(4401, "who?")


async def deny(socket: WebSocket) -> None:
    await socket.receive()
    await socket.send_denial_response(PlainTextResponse("denied", 404))


async def log(request: Request) -> JSONResponse:  # noqa: ARG001 - Starlette
    said = json.loads(json.dumps(LOG))
    LOG.clear()
    return JSONResponse(said)


alone: ASGIApp = Starlette(
    routes=[
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/refused", echo),
        WebSocketRoute("/replaced", echo),
        WebSocketRoute("/close", close),
        WebSocketRoute("/deny", deny),
        Route("/log", log),
    ]
)


async def gate(conn: Connection) -> Flow:
    if conn["path"] == "/refused":
        yield PlainTextResponse("members only", 403, headers={"x-gate": "shut"})
        return
    yield
    if conn["path"] == "/replaced":
        yield PlainTextResponse("not you", 401, headers={"x-gate": "shut"})


async def mark(conn: Connection) -> Flow:  # noqa: ARG001 - a middleware function
    response = yield
    response.headers["x-layer"] = "yes"
    response.set_cookie("c", "3")


async def ending(conn: Connection) -> Flow:
    response = yield
    yield response
    if conn.is_websocket:
        LOG.append(["layer", response.outcome, response.close_code])


layered: ASGIApp = alone
for each in (gate, mark, ending):
    layered = HTTPMiddleware(layered, dispatch=each, websocket=True)
