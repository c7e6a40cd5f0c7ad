import logging
from time import perf_counter

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

log = logging.getLogger("shop.access")


class AccessLog(BaseHTTPMiddleware):
    def __init__(
        self, app: ASGIApp, *, quiet: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(app)
        self.quiet = quiet

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        if request.url.path in self.quiet:
            return await call_next(request)
        started = perf_counter()
        try:
            response = await call_next(request)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            raise
        log.info(
            "%s %s %d in %.3f s",
            request.method,
            request.url.path,
            response.status_code,
            perf_counter() - started,
        )
        return response
