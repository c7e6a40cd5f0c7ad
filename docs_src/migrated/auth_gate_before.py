from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp


class LoginRequired(BaseHTTPMiddleware):
    def __init__(
        self,
        app: ASGIApp,
        *,
        users: dict[str, str],
        public: tuple[str, ...] = ("/login",),
    ) -> None:
        super().__init__(app)
        self.users = users
        self.public = public

    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        if request.scope["path"] in self.public:
            return await call_next(request)
        session = request.cookies.get("session", "")
        user = self.users.get(session)
        if user is None:
            if "text/html" in request.headers.get("accept", ""):
                return RedirectResponse("/login", 303)
            return JSONResponse({"detail": "not logged in"}, 401)
        request.state.user = user
        response = await call_next(request)
        if response.status_code < 400:
            response.set_cookie("session", session, max_age=3600, httponly=True)
        return response
