"""
What type-checks of `httpmw.testing.overhead`. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from typing import assert_type

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.testing import Overhead, Phase, overhead


async def header(conn: Connection) -> Flow:
    response = yield
    response.headers["x-layer"] = "1"


class Options:
    def __init__(self, app: ASGIApp, *, level: int = 1) -> None: ...

    async def __call__(self, scope: object, receive: object, send: object) -> None: ...


# A middleware class that needs nothing else, and a function that makes a layer.
overhead(GZipMiddleware)
overhead(Options)
overhead(BaseHTTPMiddleware)
result = overhead(
    lambda app: HTTPMiddleware(app, dispatch=header),
    scope={"method": "POST", "headers": [(b"content-type", b"application/json")]},
    body=b"{}",
    chunks=1,
    requests=10,
    backend="trio",
)
assert_type(result, Overhead)
assert_type(result.before, Phase)
assert_type(result.whole.times, float)
assert_type(result.chunk.extra_seconds, float)
assert_type(result.whole.peak_bytes, int)
assert_type(str(result), str)

# What is refused.
overhead()  # type: ignore[call-arg]  # pyrefly: ignore[missing-argument]
overhead(lambda app: 1)  # type: ignore[arg-type,return-value]  # pyrefly: ignore[bad-argument-type]
overhead(GZipMiddleware, backend="uvloop")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
