from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.fastapi import MiddlewareRouter


async def only_members(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


members = MiddlewareRouter(prefix="/members", middleware=[only_members])


@members.get("/news")
async def news() -> list[str]:
    return ["good", "bad"]


# Whatever is included into it is behind the layer, too.
archive = APIRouter(prefix="/archive")


@archive.get("/news")
async def old_news() -> list[str]:
    return ["old"]


members.include_router(archive)

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
