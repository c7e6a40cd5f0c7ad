from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware


class LoginRequired(HTTPMiddleware):
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

    async def dispatch(self, conn: Connection) -> Flow:
        if conn.scope["path"] in self.public:
            yield
            return
        session = conn.cookies.get("session", "")
        user = self.users.get(session)
        if user is None:
            if "text/html" in conn.headers.get("accept", ""):
                yield RedirectResponse("/login", 303)
            else:
                yield JSONResponse({"detail": "not logged in"}, 401)
            return
        conn.state.user = user
        response = yield
        if response.status_code < 400:
            response.set_cookie("session", session, max_age=3600, httponly=True)
