from time import perf_counter

from fastapi import FastAPI
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

app = FastAPI()


@app.middleware("http")
async def add_process_time(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    started = perf_counter()
    response = await call_next(request)
    response.headers["x-process-time"] = f"{perf_counter() - started:.6f}"
    return response
