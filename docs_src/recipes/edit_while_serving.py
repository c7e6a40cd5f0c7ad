from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from httpmw import Connection, Flow, MiddlewareStack

app = FastAPI()
stack = MiddlewareStack.install(app)


async def maintenance(conn: Connection) -> Flow:
    if conn["path"].startswith("/admin/"):
        yield
        return
    yield PlainTextResponse("back soon", 503, headers={"retry-after": "600"})


@app.get("/")
async def hello() -> str:
    return "hello"


@app.post("/admin/maintenance")
async def begin() -> str:
    if not any(layer.name == "maintenance" for layer in stack):
        stack.add(maintenance, name="maintenance")
    return str(stack)


@app.delete("/admin/maintenance")
async def end() -> str:
    if any(layer.name == "maintenance" for layer in stack):
        stack.remove("maintenance")
    return str(stack)
