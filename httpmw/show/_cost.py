# What a layer on Starlette's `BaseHTTPMiddleware` costs on this machine.

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, Final

import anyio
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw._adapter import Flow, HTTPMiddleware
from httpmw._connection import Connection

from ._client import Exchange

_ROUNDS: Final = 150
_WARM_UP: Final = 20


@functools.cache
def cost_of_base() -> tuple[float, float]:
    """
    Measure one layer around an app that answers at once, in turn with the app alone.

    Returns:
        The seconds of a layer on `BaseHTTPMiddleware`, and of an `HTTPMiddleware` layer, which do
        nothing.
    """
    apps: list[ASGIApp] = [
        _answer,
        BaseHTTPMiddleware(_answer, dispatch=_call_next),
        HTTPMiddleware(_answer, dispatch=_nothing),
    ]
    # In a thread of its own: in this one a loop may be running.
    with ThreadPoolExecutor(1) as pool:
        times = pool.submit(anyio.run, _measure, apps).result()
    alone, base, ours = (median(each) for each in times)
    return base - alone, max(ours - alone, 0.0)


async def _measure(apps: list[ASGIApp]) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in apps]
    for turn in range(_ROUNDS):
        for app, taken in zip(apps, times, strict=True):
            request = Exchange("GET", "/", (), b"", {})
            began = time.perf_counter()
            await request.run(app)
            if turn >= _WARM_UP:
                taken.append(time.perf_counter() - began)
    return times


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def _call_next(request: Request, call_next: Callable[[Any], Awaitable[Response]]) -> Response:
    return await call_next(request)


async def _nothing(conn: Connection[Any]) -> Flow:  # noqa: ARG001 - a middleware function
    yield
