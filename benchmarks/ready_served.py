"""
The application that `benchmarks.ready` puts on uvicorn, and the layers around it.

`BENCHMARK_ARM` says which: the set and whose it is, as in `know/ours`. Both of a set do the same
work: the same ids, a line with the same fields on the same handler, the same level of a coding.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator
from secure import Secure
from secure.middleware import SecureASGIMiddleware
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_compress import CompressMiddleware

from httpmw.middleware import (
    AccessLogMiddleware,
    CompressionMiddleware,
    ETagMiddleware,
    PrometheusMiddleware,
    RequestIDMiddleware,
    SecurityHeadersMiddleware,
)

CHUNKS = 100
SIZES = {"1k": 1000, "100k": 100_000}
ROWS = 1000  # chunks of the stream that is compressed
TEXT = b"".join(b"%d, some text that is mostly the same; " % number for number in range(3000))

logger = logging.getLogger("benchmarks.access")


class HandLog:
    """
    An access log as a careful hand writes it, with the fields of `AccessLogMiddleware`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status, size, started, ended = 0, 0, 0.0, 0.0
        outcome, error = "incomplete", None

        async def sending(message: Message) -> None:
            nonlocal status, size, started, ended, outcome
            await send(message)
            if message["type"] == "http.response.start":
                status, started = message["status"], time.perf_counter()
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    ended, outcome = time.perf_counter(), "completed"

        try:
            await self.app(scope, receive, sending)
        except BaseException as exc:
            error, outcome = type(exc).__name__, "failed"
            raise
        finally:
            took = (ended or time.perf_counter()) - began
            route = getattr(scope.get("route"), "path", None)
            client = scope["client"][0] if scope.get("client") else None
            line = f"{scope['method']} {scope['path']} {status or '-'}, {size} bytes in "
            line += f"{took * 1000:.1f} ms, {outcome}, start={(started - began) * 1000:.1f}ms"
            line += f" route={route} client={client} request_id={correlation_id.get()}"
            if error is not None:
                line += f" error={error}"
            self.logger.info("%s", line)


class HandETag:
    """
    A layer that is found in many applications: the whole body is held, and hashed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"GET", "HEAD"}:
            await self.app(scope, receive, send)
            return
        start: Message = {}
        chunks: list[bytes] = []

        async def sending(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            chunks.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = b"".join(chunks)
            tag = b'W/"%s"' % hashlib.md5(body, usedforsecurity=False).hexdigest().encode()
            headers = [*start["headers"], (b"etag", tag)]
            for name, value in scope["headers"]:
                if name == b"if-none-match" and value == tag:
                    await send({"type": start["type"], "status": 304, "headers": [(b"etag", tag)]})
                    await send({"type": "http.response.body", "body": b""})
                    return
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, sending)


def compression(coding: str, whose: str) -> Middleware:
    """
    Give the layer for one coding, each at the level that starlette-compress has by default.
    """
    level = {"gzip": 4, "br": 4, "zstd": 4}[coding]
    if whose == "ours":
        return Middleware(
            CompressionMiddleware,
            codings=[coding],
            gzip_level=level,
            brotli_quality=level,
            zstd_level=level,
        )
    chosen = {"gzip": coding == "gzip", "brotli": coding == "br", "zstd": coding == "zstd"}
    levels = {"gzip_level": level, "brotli_quality": level, "zstd_level": level}
    return Middleware(CompressMiddleware, **chosen, **levels)


LAYERS: dict[str, list[Middleware]] = {
    "know/bare": [],
    "know/ours": [
        Middleware(RequestIDMiddleware),
        Middleware(AccessLogMiddleware, logger=logger),
        Middleware(PrometheusMiddleware),
    ],
    # The Instrumentator adds its own.
    "know/theirs": [Middleware(CorrelationIdMiddleware), Middleware(HandLog)],
    "answers/bare": [],
    "answers/ours": [
        Middleware(SecurityHeadersMiddleware),
        Middleware(CompressionMiddleware),
        Middleware(ETagMiddleware),
    ],
    "answers/theirs": [
        Middleware(SecureASGIMiddleware, secure=Secure.with_default_headers()),
        Middleware(CompressMiddleware),
        Middleware(HandETag),
    ],
    "request id/ours": [Middleware(RequestIDMiddleware)],
    "request id/theirs": [Middleware(CorrelationIdMiddleware)],
    "access log/ours": [Middleware(AccessLogMiddleware, logger=logger)],
    "access log/theirs": [Middleware(HandLog)],
    "metrics/ours": [Middleware(PrometheusMiddleware)],
    "metrics/theirs": [],
    "security headers/ours": [Middleware(SecurityHeadersMiddleware)],
    "security headers/theirs": [
        Middleware(SecureASGIMiddleware, secure=Secure.with_default_headers())
    ],
    "compression/ours": [Middleware(CompressionMiddleware)],
    "compression/theirs": [Middleware(CompressMiddleware)],
    "etag/ours": [Middleware(ETagMiddleware)],
    "etag/theirs": [Middleware(HandETag)],
    **{f"{coding}/bare": [] for coding in ("gzip", "br", "zstd")},
    **{
        f"{coding}/{whose}": [compression(coding, whose)]
        for coding in ("gzip", "br", "zstd")
        for whose in ("ours", "theirs")
    },
}


async def chunks(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b"line %d of a stream that is mostly the same\n" % number


async def json() -> dict[str, str]:
    return {"hello": "world"}


async def streamed() -> StreamingResponse:
    return StreamingResponse(chunks(CHUNKS), media_type="application/octet-stream")


async def rows() -> StreamingResponse:
    return StreamingResponse(chunks(ROWS), media_type="text/plain")


async def text(size: str) -> PlainTextResponse:
    return PlainTextResponse(TEXT[: SIZES[size]])


def make(arm: str) -> FastAPI:
    """
    Make an application under the layers of an arm.
    """
    app: Any = FastAPI()
    app.get("/json")(json)
    app.get("/chunks")(streamed)
    app.get("/rows")(rows)
    app.get("/text/{size}")(text)
    if arm in {"know/theirs", "metrics/theirs"}:
        Instrumentator().instrument(app)
    add(app, LAYERS[arm])
    return app


def add(app: FastAPI, layers: Sequence[Middleware]) -> None:
    for cls, args, kwargs in reversed(layers):
        app.add_middleware(cls, *args, **kwargs)


def listen() -> None:
    """
    Give the access logs of both sides a handler that formats and writes.
    """
    handler = logging.FileHandler(os.devnull)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def from_environment() -> FastAPI:
    """
    Make the application that the environment names.
    """
    listen()
    return make(os.environ["BENCHMARK_ARM"])
