from time import monotonic

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware


class RateLimit(HTTPMiddleware):
    def __init__(self, app: ASGIApp, *, requests: int, seconds: float) -> None:
        super().__init__(app)
        self.requests = requests
        self.seconds = seconds
        self.windows: dict[str, tuple[float, int]] = {}
        self.swept = monotonic()

    async def dispatch(self, conn: Connection) -> Flow:
        client = conn.client.host if conn.client else "unknown"
        now = monotonic()
        if now - self.swept >= self.seconds:  # forget who did not come back
            self.swept = now
            self.windows = {
                name: (began, count)
                for name, (began, count) in self.windows.items()
                if now - began < self.seconds
            }
        began, count = self.windows.get(client, (now, 0))
        if now - began >= self.seconds:
            began, count = now, 0
        if count >= self.requests:
            wait = str(int(began + self.seconds - now) + 1)
            yield JSONResponse(
                {"detail": "slow down"}, 429, headers={"retry-after": wait}
            )
            return
        self.windows[client] = (began, count + 1)
        response = yield
        response.headers["x-ratelimit-limit"] = str(self.requests)
        response.headers["x-ratelimit-remaining"] = str(self.requests - count - 1)
