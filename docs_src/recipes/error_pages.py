from uuid import uuid4

from fastapi import FastAPI

from httpmw import Connection, Flow, MiddlewareStack


async def request_id(conn: Connection) -> Flow:
    response = yield
    response.headers["x-request-id"] = (
        conn.headers.get("x-request-id") or uuid4().hex
    )


app = FastAPI()

stack = MiddlewareStack.install(app)
stack.add(request_id, outside_errors=True)


@app.get("/broken")
async def broken() -> None:
    raise RuntimeError("the database is down")
