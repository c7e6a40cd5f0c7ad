import hashlib
import logging

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from docs_src.migrated.patterns_shared import sign, span, upper
from httpmw import Connection, DeadlineExceeded, Flow, HTTPMiddleware

log = logging.getLogger("patterns")


async def header(conn: Connection) -> Flow:
    # --8<-- [start:header]
    response = yield
    response.headers["x-served-by"] = "mine"
    # --8<-- [end:header]


async def passing(conn: Connection) -> Flow:
    # --8<-- [start:passing]
    conn.state.user = "me"
    yield
    # --8<-- [end:passing]


async def early(conn: Connection) -> Flow:
    # --8<-- [start:early]
    if "x-member" not in conn.headers:
        yield PlainTextResponse("no", 403)
        return
    yield
    # --8<-- [end:early]


async def replaced(conn: Connection) -> Flow:
    # --8<-- [start:replaced]
    response = yield
    if response.status_code == 404:
        yield JSONResponse({"found": False}, 404)
    # --8<-- [end:replaced]


async def either(conn: Connection) -> Flow:
    # --8<-- [start:either]
    response: Response = yield
    if response.status_code == 404:
        response = PlainTextResponse("?", 404)
    response.headers["x-served-by"] = "mine"
    yield response
    # --8<-- [end:either]


async def answered(conn: Connection) -> Flow:
    # --8<-- [start:answered]
    try:
        yield
    except LookupError:
        yield PlainTextResponse("none", 404)
    # --8<-- [end:answered]


async def cleaned_up(conn: Connection) -> Flow:
    # --8<-- [start:cleaned_up]
    try:
        response = yield
    except Exception:
        log.info("failed")
        raise
    else:
        log.info("%d", response.status_code)
    finally:
        log.info("over")
    # --8<-- [end:cleaned_up]


async def context(conn: Connection) -> Flow:
    # --8<-- [start:context]
    with span(conn.url.path):
        yield
    # --8<-- [end:context]


async def branches(conn: Connection) -> Flow:
    # --8<-- [start:branches]
    if conn.method != "POST":
        yield
        return
    yield
    log.info("stored")
    # --8<-- [end:branches]


async def in_an_expression(conn: Connection) -> Flow:
    # --8<-- [start:in_an_expression]
    sign((yield))
    # --8<-- [end:in_an_expression]


async def deadline(conn: Connection) -> Flow:
    # --8<-- [start:deadline]
    conn.fail_after(1)
    try:
        yield
    except DeadlineExceeded:
        yield PlainTextResponse("slow", 504)
    # --8<-- [end:deadline]


# --8<-- [start:plain]
async def plain(conn: Connection) -> Flow:
    yield


# --8<-- [end:plain]


async def read_request(conn: Connection) -> Flow:
    # --8<-- [start:read_request]
    body = await conn.body()
    conn.state.digest = hashlib.sha256(body)
    yield
    # --8<-- [end:read_request]


async def limit(conn: Connection) -> Flow:
    # --8<-- [start:limit]
    await conn.body(max_size=10)
    yield
    # --8<-- [end:limit]


async def change_request(conn: Connection) -> Flow:
    # --8<-- [start:change_request]
    body = (await conn.body()).upper()
    conn.replace_body(body)
    yield
    # --8<-- [end:change_request]


async def read_response(conn: Connection) -> Flow:
    # --8<-- [start:read_response]
    response = yield
    body = await response.read()
    log.info("%d bytes", len(body))
    # --8<-- [end:read_response]


async def change_response(conn: Connection) -> Flow:
    # --8<-- [start:change_response]
    response = yield
    body = (await response.read()).upper()
    response.body = body
    # --8<-- [end:change_response]


async def transform(conn: Connection) -> Flow:
    # --8<-- [start:transform]
    response = yield
    response.body_iterator = upper(
        response.body_iterator,
    )
    # --8<-- [end:transform]


async def after_the_last_byte(conn: Connection) -> Flow:
    # --8<-- [start:after_the_last_byte]
    response = yield
    yield response
    log.info("%d bytes", response.bytes_sent)
    # --8<-- [end:after_the_last_byte]


# --8<-- [start:helper]
async def guarded(conn: Connection) -> Flow:
    try:
        yield
    except LookupError:
        yield PlainTextResponse("none", 404)


async def helper(conn: Connection) -> Flow:
    response = yield guarded(conn)
    response.headers["x-served-by"] = "mine"


# --8<-- [end:helper]


# --8<-- [start:subclass]
class Base(HTTPMiddleware):
    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        response.headers["x-served-by"] = "base"


class Subclass(Base):
    async def dispatch(self, conn: Connection) -> Flow:
        response = yield super().dispatch(conn)
        response.headers["vary"] = "cookie"


# --8<-- [end:subclass]


async def refused(conn: Connection) -> Flow:
    # --8<-- [start:refused]
    if "x-member" not in conn.headers:
        raise HTTPException(403)
    yield
    # --8<-- [end:refused]
