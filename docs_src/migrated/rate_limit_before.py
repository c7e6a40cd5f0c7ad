from time import monotonic

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp


class RateLimit(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, *, requests: int, seconds: float) -> None:
        super().__init__(app)
        self.requests = requests
        self.seconds = seconds
        self.windows: dict[str, tuple[float, int]] = {}
        self.swept = monotonic()

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        client = request.client.host if request.client else "unknown"
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
            return JSONResponse(
                {"detail": "slow down"}, 429, headers={"retry-after": wait}
            )
        self.windows[client] = (began, count + 1)
        response = await call_next(request)
        response.headers["x-ratelimit-limit"] = str(self.requests)
        response.headers["x-ratelimit-remaining"] = str(self.requests - count - 1)
        return response
