from secrets import token_urlsafe

from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware


class SecurityHeaders(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, hsts: int = 31_536_000) -> None:
        super().__init__(app)
        self.hsts = f"max-age={hsts}"

    async def dispatch(self, conn: Connection) -> Flow:
        conn.state.csp_nonce = nonce = token_urlsafe(16)
        response = yield
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["x-frame-options"] = "DENY"
        if conn.url.scheme == "https":
            response.headers["strict-transport-security"] = self.hsts
        if "content-security-policy" not in response.headers:
            policy = f"default-src 'self'; script-src 'nonce-{nonce}'"
            response.headers["content-security-policy"] = policy
        if "server" in response.headers:
            del response.headers["server"]
