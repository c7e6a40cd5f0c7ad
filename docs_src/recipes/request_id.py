import logging
import re
from contextvars import ContextVar
from uuid import uuid4

from httpmw import Connection, Flow

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# What a client sends ends up in the log: only an id is taken from it.
ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")


async def with_request_id(conn: Connection) -> Flow:
    given = conn.headers.get("x-request-id", "")
    value = given if ACCEPTED.fullmatch(given) else uuid4().hex
    token = request_id.set(value)
    try:
        response = yield
        response.headers["x-request-id"] = value
        yield response  # the id holds until the last byte is out
    finally:
        request_id.reset(token)


class RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True
