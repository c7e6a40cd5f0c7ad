from contextvars import ContextVar
from uuid import uuid4

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

current_id: ContextVar[str] = ContextVar("current_id", default="")


class RequestID(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, *, header: str = "x-request-id") -> None:
        super().__init__(app)
        self.header = header

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        request_id = request.headers.get(self.header) or uuid4().hex
        request.state.request_id = request_id
        token = current_id.set(request_id)
        try:
            response = await call_next(request)
            response.headers[self.header] = request_id
            return response
        finally:
            current_id.reset(token)
