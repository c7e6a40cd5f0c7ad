from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware


async def only_members(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


class MembersRoute(APIRoute):
    """
    A route with a layer around it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layer = HTTPMiddleware(super().handle, dispatch=only_members)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.layer(scope, receive, send)


members = APIRouter(prefix="/members", route_class=MembersRoute)


@members.get("/news")
async def news() -> list[str]:
    return ["good", "bad"]


app = FastAPI()
app.include_router(members, prefix="/v1")


@app.get("/")
async def hello() -> str:
    return "hello"


# A mounted application has layers of its own, too.
admin = FastAPI()
admin.add_middleware(HTTPMiddleware, dispatch=only_members)


@admin.get("/users")
async def users() -> list[str]:
    return ["me"]


app.mount("/admin", admin)
