from contextvars import ContextVar

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

tenant: ContextVar[str] = ContextVar("tenant", default="")


class TenantContext(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, *, tenants: frozenset[str]) -> None:
        super().__init__(app)
        self.tenants = tenants

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        name = (
            request.headers.get("x-tenant")
            or (request.url.hostname or "").partition(".")[0]
        )
        if name not in self.tenants:
            return JSONResponse({"detail": "unknown tenant"}, 404)
        request.state.tenant = name
        token = tenant.set(name)
        try:
            response = await call_next(request)
        finally:
            tenant.reset(token)
        response.headers.add_vary_header("x-tenant")
        return response
