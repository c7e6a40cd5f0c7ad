from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from httpmw import Connection, Flow, HTTPMiddleware


async def no_store(conn: Connection) -> Flow:
    response = yield
    response.headers["cache-control"] = "no-store"


async def only_members(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


app = Starlette(
    routes=[
        Route("/", hello),
        Route(
            "/fresh",
            hello,
            middleware=[Middleware(HTTPMiddleware, dispatch=no_store)],
        ),
        Mount(
            "/members",
            routes=[Route("/", hello), Route("/news", hello)],
            middleware=[Middleware(HTTPMiddleware, dispatch=only_members)],
        ),
    ],
)
