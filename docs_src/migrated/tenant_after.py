from contextvars import ContextVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware

tenant: ContextVar[str] = ContextVar("tenant", default="")


class TenantContext(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, tenants: frozenset[str]) -> None:
        super().__init__(app)
        self.tenants = tenants

    async def dispatch(self, conn: Connection) -> Flow:
        name = (
            conn.headers.get("x-tenant")
            or (conn.url.hostname or "").partition(".")[0]
        )
        if name not in self.tenants:
            yield JSONResponse({"detail": "unknown tenant"}, 404)
            return
        conn.state.tenant = name
        token = tenant.set(name)
        try:
            response = yield
            response.headers.add_vary_header("x-tenant")
            yield response
        finally:
            tenant.reset(token)
