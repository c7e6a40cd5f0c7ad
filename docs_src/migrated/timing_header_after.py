from time import perf_counter

from fastapi import FastAPI

from httpmw import Connection, Flow, http_middleware

app = FastAPI()


@http_middleware(app)
async def add_process_time(conn: Connection) -> Flow:
    started = perf_counter()
    response = yield
    response.headers["x-process-time"] = f"{perf_counter() - started:.6f}"
