import logging
import re
from contextvars import ContextVar
from uuid import uuid4

from httpmw import Connection, Flow

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# What a client sends ends up in the log: only an id is taken from it.
ACCEPTED = re.compile(r"[A-Za-z0-9:@._-]{1,200}")


def id_of(conn: Connection) -> str:
    """
    Return the id that came with the request, if it is one, or a fresh one.
    """
    # Of several lines the last one is the nearest proxy's.
    given = conn.headers.getlist("x-request-id")[-1:]
    if given and ACCEPTED.fullmatch(given[0]):
        return given[0]
    return uuid4().hex


async def with_request_id(conn: Connection) -> Flow:
    value = id_of(conn)
    token = request_id.set(value)
    response = yield
    response.headers["x-request-id"] = value
    yield response  # the id holds until the last byte is out
    # In no `finally`: what is raised is still to be logged by the server.
    request_id.reset(token)


class RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True
