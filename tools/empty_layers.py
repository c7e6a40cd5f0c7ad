"""
A pytest plugin that puts layers which do nothing around every application of a test suite.

1. Around what a `TestClient` is given, a Starlette application or not.
2. Around all layers of each Starlette or FastAPI application, and inside of them all.

Of the two functions one is over at the response start, the other waits until everything is over.
"""

from __future__ import annotations

import functools
from typing import Any

import fastapi
import starlette.applications
import starlette.testclient
from starlette.middleware import Middleware

from httpmw import Connection, Flow, HTTPMiddleware


async def passing(conn: Connection) -> Flow:  # noqa: ARG001 - it does nothing
    """
    Do nothing, and be over at the response start.
    """
    yield


async def waiting(conn: Connection) -> Flow:  # noqa: ARG001 - it does nothing
    """
    Do nothing, and wait until everything is over.
    """
    response = yield
    yield response


def around_client() -> None:
    """
    Wrap the application in what the client talks to; `client.app` stays what it is.
    """
    transport = starlette.testclient._TestClientTransport  # noqa: SLF001 - there is no public place
    made = transport.__init__

    @functools.wraps(made)
    def make(self: Any, app: Any, *args: Any, **options: Any) -> None:
        made(self, HTTPMiddleware(app, dispatch=waiting), *args, **options)

    transport.__init__ = make


def around_stack(application: Any) -> None:
    """
    Add a layer outside and inside of the layers that the class *application* builds.
    """
    build = application.build_middleware_stack

    @functools.wraps(build)
    def build_with_layers(self: Any) -> Any:
        layers = self.user_middleware
        self.user_middleware = [
            Middleware(HTTPMiddleware, dispatch=passing),
            *layers,
            Middleware(HTTPMiddleware, dispatch=waiting),
        ]
        try:
            return build(self)
        finally:
            self.user_middleware = layers

    application.build_middleware_stack = build_with_layers


def pytest_configure() -> None:
    """
    Patch the classes before a test is collected.
    """
    around_client()
    around_stack(starlette.applications.Starlette)
    if "build_middleware_stack" in vars(fastapi.FastAPI):
        around_stack(fastapi.FastAPI)
