"""
One small middleware for each thing that httpmw lets a middleware do.

Every function stands on its own and is meant to be copied.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator

from starlette.responses import JSONResponse, PlainTextResponse

from httpmw import Connection, Flow

log = logging.getLogger(__name__)


async def nosniff(conn: Connection) -> Flow:
    """
    Set a header on every response.
    """
    response = yield
    response.headers["x-content-type-options"] = "nosniff"


async def access_log(conn: Connection) -> Flow:
    """
    Log every exchange when it is over: what was sent, and how it ended.
    """
    response = yield
    try:
        yield response
    finally:
        log.info(
            "%s %s %d, %d bytes, %s",
            conn.method,
            conn.url.path,
            response.status_code,
            response.bytes_sent,
            response.outcome,
        )


async def members_only(conn: Connection) -> Flow:
    """
    Answer early, without running the application.
    """
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


async def envelope(conn: Connection) -> Flow:
    """
    Change a body whole: put a JSON document inside another one.
    """
    response = yield
    if response.media_type == "application/json":
        response.body = b'{"data":%b}' % await response.read()


async def shout(conn: Connection) -> Flow:
    """
    Transform a body chunk by chunk, as the application sends it.
    """
    response = yield
    response.body_iterator = upper(response.body_iterator)


async def upper(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


async def errors_as_json(conn: Connection) -> Flow:
    """
    Answer an exception of the application.
    """
    try:
        yield
    except Exception:
        log.exception("%s %s failed", conn.method, conn.url.path)
        yield JSONResponse({"error": "internal server error"}, 500)


async def acceptable(conn: Connection) -> Flow:
    """
    Send another response in place of an event stream that the client did not ask for.
    """
    response = yield
    asked_for = "text/event-stream" in conn.headers.get("accept", "")
    if response.media_type == "text/event-stream" and not asked_for:
        yield PlainTextResponse("ask for it with accept: text/event-stream", 406)
