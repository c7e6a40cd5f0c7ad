"""
What type-checks of a stack, and what is refused. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import assert_type

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import (
    Connection,
    Flow,
    HTTPMiddleware,
    HTTPMWError,
    Layer,
    MiddlewareStack,
    StackError,
    http_middleware,
)


async def function(conn: Connection) -> Flow:
    yield


async def sends_response(conn: Connection) -> AsyncGenerator[None, Response]:
    yield


async def with_options(conn: Connection, *, name: str) -> Flow:
    yield


async def without_a_yield(conn: Connection) -> None:
    pass


async def endpoint(scope: Scope, receive: Receive, send: Send) -> None: ...


# Around any app, as an app.

assert_type(MiddlewareStack(endpoint), MiddlewareStack)
stack = MiddlewareStack(endpoint, [Middleware(GZipMiddleware), function])
as_app: ASGIApp = stack
Mount("/sub", app=stack)
MiddlewareStack(stack, middleware=(function, sends_response))

# In an application.

app = Starlette()
assert_type(MiddlewareStack.install(app), MiddlewareStack)
assert_type(MiddlewareStack.install(FastAPI()), MiddlewareStack)


class Subclass(MiddlewareStack):
    pass


assert_type(Subclass.install(app), Subclass)
http_middleware(app)(function)

# Edits.

layer = stack.add(Middleware(CORSMiddleware, allow_origins=["*"]))
assert_type(layer, Layer)
assert_type(layer.name, str)
stack.add(function, before=layer)
stack.add(sends_response, after=CORSMiddleware, name="mine")
stack.add(partial(with_options, name="mine"), innermost=True)
stack.add(Middleware(HTTPMiddleware, dispatch=function), outside_errors=True)
assert_type(stack.replace("mine", function), Layer)
stack.replace(function, Middleware(GZipMiddleware), name="other")
stack.move(layer, after=function)
stack.move("other", outside_errors=True)
stack.remove(GZipMiddleware)
for each in stack:
    assert_type(each, Layer)
assert_type(len(stack), int)

with stack.edit() as draft:
    assert_type(draft.add(function), Layer)
    draft.remove(function)
    draft.replace(CORSMiddleware, Middleware(GZipMiddleware))
    draft.move(layer)
    for each in draft:
        assert_type(each, Layer)

stack.uninstall()

stack_error: type[HTTPMWError] = StackError
value_error: type[ValueError] = StackError

# What is refused.

stack.add(GZipMiddleware)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
stack.add(without_a_yield)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
stack.add(layer)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
stack.add(function, layer)  # type: ignore[call-arg]  # pyrefly: ignore[bad-argument-count]
stack.remove(1)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
MiddlewareStack.install(endpoint)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
layer.name = "other"  # type: ignore[misc]  # pyrefly: ignore[read-only]
with stack.edit() as draft:
    draft.edit()  # type: ignore[attr-defined]  # pyrefly: ignore[missing-attribute]
