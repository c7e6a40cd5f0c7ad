import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message

from docs_src.migrated.patterns_shared import sign, span, upper

log = logging.getLogger("patterns")


async def header(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:header]
    response = await call_next(request)
    response.headers["x-served-by"] = "mine"
    return response
    # --8<-- [end:header]


async def passing(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:passing]
    request.state.user = "me"
    return await call_next(request)
    # --8<-- [end:passing]


async def early(request: Request, call_next: RequestResponseEndpoint) -> Response:
    # --8<-- [start:early]
    if "x-member" not in request.headers:
        return PlainTextResponse("no", 403)
    return await call_next(request)
    # --8<-- [end:early]


async def replaced(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:replaced]
    response = await call_next(request)
    if response.status_code == 404:
        return JSONResponse({"found": False}, 404)
    return response
    # --8<-- [end:replaced]


async def either(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:either]
    response = await call_next(request)
    if response.status_code == 404:
        response = PlainTextResponse("?", 404)
    response.headers["x-served-by"] = "mine"
    return response
    # --8<-- [end:either]


async def answered(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:answered]
    try:
        return await call_next(request)
    except LookupError:
        return PlainTextResponse("none", 404)
    # --8<-- [end:answered]


async def cleaned_up(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:cleaned_up]
    try:
        response = await call_next(request)
    except Exception:
        log.info("failed")
        raise
    else:
        log.info("%d", response.status_code)
    finally:
        log.info("over")
    return response
    # --8<-- [end:cleaned_up]


async def context(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:context]
    with span(request.url.path):
        return await call_next(request)
    # --8<-- [end:context]


async def branches(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:branches]
    if request.method != "POST":
        return await call_next(request)
    response = await call_next(request)
    log.info("stored")
    return response
    # --8<-- [end:branches]


async def in_an_expression(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:in_an_expression]
    return sign(await call_next(request))
    # --8<-- [end:in_an_expression]


async def deadline(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:deadline]
    try:
        return await asyncio.wait_for(
            call_next(request),
            timeout=1,
        )
    except TimeoutError:
        return PlainTextResponse("slow", 504)
    # --8<-- [end:deadline]


# fmt: off
# --8<-- [start:plain]
def plain(
    request: Request,
    call_next: RequestResponseEndpoint,
) -> Awaitable[Response]:
    return call_next(request)
# --8<-- [end:plain]
# fmt: on


async def read_request(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:read_request]
    body = await request.body()

    async def replay() -> Message:
        return {"type": "http.request", "body": body}

    request._receive = replay
    request.state.digest = hashlib.sha256(body)
    return await call_next(request)
    # --8<-- [end:read_request]


async def limit(request: Request, call_next: RequestResponseEndpoint) -> Response:
    # --8<-- [start:limit]
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > 10:
            raise HTTPException(413)
        return message

    limited = Request(request.scope, receive)
    return await call_next(limited)
    # --8<-- [end:limit]


async def change_request(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:change_request]
    body = (await request.body()).upper()

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    changed = Request(request.scope, receive)
    return await call_next(changed)
    # --8<-- [end:change_request]


async def read_response(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:read_response]
    response: Any = await call_next(request)
    body = b""
    async for chunk in response.body_iterator:
        body += chunk
    log.info("%d bytes", len(body))
    return Response(
        body,
        response.status_code,
        headers=dict(response.headers),
    )
    # --8<-- [end:read_response]


async def change_response(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:change_response]
    response: Any = await call_next(request)
    chunks = [chunk async for chunk in response.body_iterator]
    body = b"".join(chunks).upper()
    headers = dict(response.headers)
    headers["content-length"] = str(len(body))
    return Response(
        body,
        response.status_code,
        headers,
    )
    # --8<-- [end:change_response]


async def transform(request: Request, call_next: RequestResponseEndpoint) -> Any:
    # --8<-- [start:transform]
    response: Any = await call_next(request)
    response.body_iterator = upper(
        response.body_iterator,
    )
    return response
    # --8<-- [end:transform]


async def after_the_last_byte(
    request: Request, call_next: RequestResponseEndpoint
) -> Any:
    # --8<-- [start:after_the_last_byte]
    response: Any = await call_next(request)
    chunks = response.body_iterator

    async def counted() -> AsyncIterator[bytes]:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            yield chunk
        log.info("%d bytes", size)

    response.body_iterator = counted()
    return response
    # --8<-- [end:after_the_last_byte]


# fmt: off
# --8<-- [start:helper]
async def guarded(
    request: Request,
    call_next: RequestResponseEndpoint,
) -> Response:
    try:
        return await call_next(request)
    except LookupError:
        return PlainTextResponse("none", 404)


async def helper(
    request: Request,
    call_next: RequestResponseEndpoint,
) -> Response:
    response = await guarded(request, call_next)
    response.headers["x-served-by"] = "mine"
    return response
# --8<-- [end:helper]


# --8<-- [start:subclass]
class Base(BaseHTTPMiddleware):
    async def dispatch(
        self,
        request: Request,
        call_next: RequestResponseEndpoint,
    ) -> Response:
        response = await call_next(request)
        response.headers["x-served-by"] = "base"
        return response


class Subclass(Base):
    async def dispatch(
        self,
        request: Request,
        call_next: RequestResponseEndpoint,
    ) -> Response:
        response = await super().dispatch(
            request, call_next
        )
        response.headers["vary"] = "cookie"
        return response
# --8<-- [end:subclass]
# fmt: on


async def refused(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    # --8<-- [start:refused]
    if "x-member" not in request.headers:
        raise HTTPException(403)
    return await call_next(request)
    # --8<-- [end:refused]
