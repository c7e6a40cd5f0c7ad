from collections import Counter
from time import perf_counter

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp


class Metrics(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, *, counts: Counter[str]) -> None:
        super().__init__(app)
        self.counts = counts

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        started = perf_counter()
        status = 500
        self.counts["running"] += 1
        try:
            response = await call_next(request)
            status = response.status_code
            return response
        finally:
            self.counts["running"] -= 1
            self.counts[f"{request.method} {status}"] += 1
            self.counts["milliseconds"] += round(
                (perf_counter() - started) * 1000
            )
