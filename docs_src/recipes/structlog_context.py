import structlog
from structlog.contextvars import bind_contextvars, reset_contextvars

from httpmw import Connection, Flow

from .request_id import id_of

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
    request_id = id_of(conn)
    tokens = bind_contextvars(
        request_id=request_id, method=conn.method, path=conn.url.path
    )
    response = None
    try:
        response = yield
        response.headers["x-request-id"] = request_id
        yield response
    finally:
        log.info(
            "answered",
            status=None if response is None else response.status_code,
            bytes=0 if response is None else response.bytes_sent,
            outcome="no response" if response is None else response.outcome,
        )
    # In no `finally`: what is raised is still to be logged by the server.
    reset_contextvars(**tokens)
