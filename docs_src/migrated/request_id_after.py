from contextvars import ContextVar
from uuid import uuid4

from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware

current_id: ContextVar[str] = ContextVar("current_id", default="")


class RequestID(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, header: str = "x-request-id") -> None:
        super().__init__(app)
        self.header = header

    async def dispatch(self, conn: Connection) -> Flow:
        request_id = conn.headers.get(self.header) or uuid4().hex
        conn.state.request_id = request_id
        token = current_id.set(request_id)
        try:
            response = yield
            response.headers[self.header] = request_id
            yield response
        finally:
            current_id.reset(token)
