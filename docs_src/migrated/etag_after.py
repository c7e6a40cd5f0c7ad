import hashlib

from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware


class ETag(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, max_age: int = 0) -> None:
        super().__init__(app)
        self.cache_control = f"private, max-age={max_age}"

    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        if conn.method != "GET" or response.status_code != 200:
            return
        body = await response.read()
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        headers = {"etag": etag, "cache-control": self.cache_control}
        if conn.headers.get("if-none-match") == etag:
            yield Response(status_code=304, headers=headers)
            return
        response.headers.update(headers)
