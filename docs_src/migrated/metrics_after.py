from collections import Counter
from time import perf_counter

from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware


class Metrics(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, counts: Counter[str]) -> None:
        super().__init__(app)
        self.counts = counts

    async def dispatch(self, conn: Connection) -> Flow:
        started = perf_counter()
        status = 500
        self.counts["running"] += 1
        try:
            response = yield
            status = response.status_code
        finally:
            self.counts["running"] -= 1
            self.counts[f"{conn.method} {status}"] += 1
            self.counts["milliseconds"] += round(
                (perf_counter() - started) * 1000
            )
