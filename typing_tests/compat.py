"""
What type-checks, and what does not, of `httpmw.compat`. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import assert_type

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware import base as starlette_base
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from httpmw import HTTPMiddleware
from httpmw.compat import (
    BaseHTTPMiddleware,
    DispatchFunction,
    RequestResponseEndpoint,
    StarlettePatch,
    patch_starlette,
)

app = Starlette()
api = FastAPI()


class Overriding(BaseHTTPMiddleware):
    def __init__(self, app: ASGIApp, *, option: str = "") -> None:
        super().__init__(app)
        self.option = option

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        assert_type(response, Response)
        return response


class Narrower(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> JSONResponse:
        return JSONResponse({})


class WithSuper(Overriding):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await super().dispatch(request, call_next)


async def function(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def forwarding(request: Request, call_next: RequestResponseEndpoint) -> Awaitable[Response]:
    return call_next(request)


# The names are those of Starlette, and mean the same.
named: DispatchFunction = function
starlettes: starlette_base.DispatchFunction = named
ours: DispatchFunction = starlettes
endpoint: starlette_base.RequestResponseEndpoint = Overriding(app).dispatch_func  # type: ignore[assignment]  # pyrefly: ignore[bad-assignment]

# Registered in every way.
Middleware(BaseHTTPMiddleware, dispatch=function)
Middleware(Overriding, option="")
app.add_middleware(BaseHTTPMiddleware, dispatch=forwarding)
app.add_middleware(Overriding, option="")
api.add_middleware(BaseHTTPMiddleware, dispatch=function)
asgi_app: ASGIApp = BaseHTTPMiddleware(PlainTextResponse("hello"), dispatch=function)
HTTPMiddleware(BaseHTTPMiddleware(app, function))

# The patch.
assert_type(patch_starlette(), StarlettePatch)
assert_type(patch_starlette().restore(), None)
with patch_starlette() as patch:
    assert_type(patch, StarlettePatch)


# What is refused.


async def without_call_next(request: Request) -> Response:
    return Response()


async def without_response(request: Request, call_next: RequestResponseEndpoint) -> None:
    await call_next(request)


BaseHTTPMiddleware(app, dispatch=without_call_next)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
BaseHTTPMiddleware(app, dispatch=without_response)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
BaseHTTPMiddleware(app, function, when=bool)  # type: ignore[call-arg]  # pyrefly: ignore[unexpected-keyword]
HTTPMiddleware(app, dispatch=function)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


class WithoutResponse(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> None:  # type: ignore[override]  # pyrefly: ignore[bad-override]
        pass
