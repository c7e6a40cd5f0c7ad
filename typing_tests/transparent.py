"""
What type-checks of `httpmw.testing.check_transparent`. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from typing import assert_type

from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response

from httpmw import Connection, Flow, HTTPMiddleware, compat
from httpmw.testing import TransparencyReport, TransparencyRow, check_transparent


async def identify(conn: Connection) -> Flow:
    response = yield
    response.headers["x-id"] = "1"


async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


async def checks() -> None:
    # A middleware function, a class, one with its options, functions that make a layer, many.
    await check_transparent(identify)
    await check_transparent(GZipMiddleware)
    await check_transparent(Middleware(GZipMiddleware, minimum_size=1))
    await check_transparent([identify, GZipMiddleware])
    await check_transparent(lambda app: BaseHTTPMiddleware(app, dispatch))
    await check_transparent(lambda app: compat.BaseHTTPMiddleware(app, dispatch))
    await check_transparent(lambda app: CORSMiddleware(app, allow_origins=["*"]), allow=["HEAD"])
    report = await check_transparent(
        lambda app: HTTPMiddleware(app, dispatch=identify),
        headers={"accept": "text/plain"},
        ignore_headers={"x-id"},
        ignore_body=True,
        allow={"trailers"},
        specs=[None, "2.3"],
        timeout=1,
    )
    assert_type(report, TransparencyReport)
    assert_type(report.runs, int)
    assert_type(report.failures, tuple[TransparencyRow, ...])
    for row in report.rows:
        assert_type((row.name, row.passed, row.allowed, row.detail), tuple[str, bool, bool, str])
    report.raise_for_failures()
