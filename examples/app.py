"""
The sample application: Starlette, with a FastAPI application mounted at /shop.

It shows the places where middleware can stand:
around the whole application, around it but only for some requests (`when=`),
around one route, and around a FastAPI application (`@http_middleware`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from itertools import count
from pathlib import Path

import anyio
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from examples import middleware
from httpmw import Connection, Flow, HTTPMiddleware, http_middleware

FILE = Path(middleware.__file__)

POEM = ["rows of ink, ", "then white, ", "then rows of ink"]


async def hello(request: Request) -> Response:
    return JSONResponse({"hello": "world"})


async def poem(request: Request) -> Response:
    async def lines() -> AsyncIterator[str]:
        for line in POEM:
            yield line
            await anyio.sleep(0.01)

    return StreamingResponse(lines(), media_type="text/plain")


async def file(request: Request) -> Response:
    return FileResponse(FILE, media_type="text/x-python")


async def members(request: Request) -> Response:
    return PlainTextResponse("welcome")


async def fail(request: Request) -> Response:
    raise RuntimeError("the database is down")


class EventStream(StreamingResponse):
    """
    An event stream that counts how many of it are being sent.
    """

    media_type = "text/event-stream"
    running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        EventStream.running += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            EventStream.running -= 1


async def events(request: Request) -> Response:
    """
    Send events without an end: only a client that leaves ends them.
    """

    async def ticks() -> AsyncIterator[str]:
        for number in count(1):
            yield f"data: {number}\n\n"
            await anyio.sleep(0.01)

    return EventStream(ticks())


async def running(request: Request) -> Response:
    return JSONResponse({"running": EventStream.running})


class Order(BaseModel):
    item: str
    quantity: int


shop = FastAPI()


@http_middleware(shop)
async def body_digest(conn: Connection) -> Flow:
    """
    Read the request body; the application reads it again.
    """
    digest = sha256(await conn.body()).hexdigest()
    response = yield
    response.headers["x-request-digest"] = digest[:12]


@shop.post("/orders", status_code=201)
async def place(order: Order) -> dict[str, str]:
    return {"ordered": f"{order.quantity} x {order.item}"}


def members_area(conn: Connection) -> bool:
    path: str = conn["path"]
    return path.startswith("/members")


# The first layer is the outermost one.
app = Starlette(
    middleware=[
        Middleware(HTTPMiddleware, dispatch=middleware.access_log),
        Middleware(HTTPMiddleware, dispatch=middleware.nosniff),
        Middleware(HTTPMiddleware, dispatch=middleware.errors_as_json),
        Middleware(HTTPMiddleware, dispatch=middleware.members_only, when=members_area),
        Middleware(HTTPMiddleware, dispatch=middleware.acceptable),
    ],
    routes=[
        Route(
            "/hello",
            hello,
            middleware=[Middleware(HTTPMiddleware, dispatch=middleware.envelope)],
        ),
        Route(
            "/poem",
            poem,
            middleware=[Middleware(HTTPMiddleware, dispatch=middleware.shout)],
        ),
        Route("/file", file),
        Route("/members", members),
        Route("/fail", fail),
        Route("/events", events),
        Route("/running", running),
        Mount("/shop", shop),
    ],
)
