from uuid import uuid4

import structlog
from structlog.contextvars import bound_contextvars

from httpmw import Connection, Flow

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.JSONRenderer(),
    ],
)

log = structlog.get_logger()


async def log_context(conn: Connection) -> Flow:
    request_id = conn.headers.get("x-request-id") or uuid4().hex
    with bound_contextvars(
        request_id=request_id, method=conn.method, path=conn.url.path
    ):
        response = yield
        response.headers["x-request-id"] = request_id
        yield response
        log.info(
            "answered",
            status=response.status_code,
            bytes=response.bytes_sent,
            outcome=response.outcome,
        )
