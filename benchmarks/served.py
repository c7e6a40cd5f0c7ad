"""
The application that `benchmarks.servers` puts on uvicorn.

`BENCHMARK_ARM` says which: framework, style and number of layers, as in `starlette/asgi/5`.
"""

from __future__ import annotations

import os
import time
from functools import partial

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.styles import STYLES

WORK = 0.002  # seconds of CPU time


def work() -> None:
    """
    Keep the CPU busy, as templates, validation and database drivers do.
    """
    end = time.thread_time() + WORK
    while time.thread_time() < end:
        pass


async def json(request: Request) -> JSONResponse:
    return JSONResponse({"hello": "world"})


async def heavy(request: Request) -> JSONResponse:
    work()
    return JSONResponse({"hello": "world"})


async def json_of_fastapi() -> dict[str, str]:
    return {"hello": "world"}


async def heavy_of_fastapi() -> dict[str, str]:
    work()
    return {"hello": "world"}


def make(framework: str, style: str, layers: int) -> Starlette:
    """
    Make an application under layers.
    """
    middleware = [Middleware(partial(STYLES[style])) for _ in range(layers)]
    if framework == "starlette":
        routes = [Route("/json", json), Route("/heavy", heavy)]
        return Starlette(routes=routes, middleware=middleware)
    app = FastAPI(middleware=middleware)
    app.get("/json")(json_of_fastapi)
    app.get("/heavy")(heavy_of_fastapi)
    return app


def from_environment() -> Starlette:
    """
    Make the application that the environment names.
    """
    framework, style, layers = os.environ["BENCHMARK_ARM"].split("/")
    return make(framework, style, int(layers))
