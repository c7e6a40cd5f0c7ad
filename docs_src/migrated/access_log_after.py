import logging
from time import perf_counter

from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware

log = logging.getLogger("shop.access")


class AccessLog(HTTPMiddleware):
    def __init__(
        self, app: ASGIApp, *, quiet: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(app)
        self.quiet = quiet

    async def dispatch(self, conn: Connection) -> Flow:
        if conn.url.path in self.quiet:
            yield
            return
        started = perf_counter()
        try:
            response = yield
        except Exception:
            log.exception("%s %s failed", conn.method, conn.url.path)
            raise
        log.info(
            "%s %s %d in %.3f s",
            conn.method,
            conn.url.path,
            response.status_code,
            perf_counter() - started,
        )
