"""Code that is not HTTP and takes a `call_next` of its own is left alone."""

from __future__ import annotations

import textwrap

import pytest

from httpmw.migrate import Conversion
from tests.codemod import run


def alone(source: str) -> Conversion:
    return run(mw=source)["mw"]


def codes(conversion: Conversion) -> list[str]:
    return [each.code for each in conversion.diagnostics]


# Shapes of MCP servers, error trackers, queues, RPC: nothing in them is HTTP, and none says so.
FOREIGN = {
    "a hook of an MCP server": """
        from fastmcp.server.middleware import Middleware, MiddlewareContext

        class Timing(Middleware):
            async def on_call_tool(self, context: MiddlewareContext, call_next):
                started = time.perf_counter()
                result = await call_next(context)
                log(time.perf_counter() - started)
                return result

            async def __call__(self, context: MiddlewareContext, call_next):
                return await call_next(context)
        """,
    "a hook of an MCP server, without annotations": """
        from fastmcp.server.middleware import Middleware

        class Deny(Middleware):
            async def on_list_tools(self, context, call_next):
                tools = await call_next(context)
                return [tool for tool in tools if "private" not in tool.tags]
        """,
    "a chain of an MCP server by its types": """
        from mcp.server import ServerRequestContext
        from mcp.shared import CallNext

        async def instrument(ctx: "ServerRequestContext[Any, Any]", call_next: "CallNext"):
            return await call_next(ctx)
        """,
    "a request of another library": """
        from mcp.types import CallToolRequest

        async def on_request(request: CallToolRequest, call_next):
            return await call_next(request)
        """,
    "the chain of another library": """
        from fastmcp.server.middleware import CallNext

        async def on_request(request, call_next: CallNext):
            return await call_next(request)
        """,
    "a chain of calls with something else": """
        from collections.abc import Awaitable, Callable
        from jobs import Job

        async def retry(job, call_next: Callable[[Job], Awaitable[None]]):
            return await call_next(job)
        """,
    "a lookup by name": """
        from transforms import Transform

        class Namespace(Transform):
            async def get_tool(self, name: str, call_next):
                return await call_next(name.removeprefix("ns_"))
        """,
}


@pytest.mark.parametrize("source", FOREIGN.values(), ids=list(FOREIGN))
def test_what_is_plainly_something_else_is_passed_over(source: str) -> None:
    """It is left, and nothing is said of it."""
    done = alone(source)

    assert not done.changed
    assert done.conversions == done.diagnostics == []


UNSURE = {
    "a context": """
        class Middleware:
            async def on_call_tool(self, context, call_next):
                return await call_next(context)
        """,
    "a job": """
        async def log_job(job, call_next):
            print(job.id)
            return await call_next(job)
        """,
    "an event of an error tracker": """
        class Scrub:
            async def __call__(self, event, call_next):
                event.pop("user", None)
                return await call_next(event)
        """,
    "a base that is not in the run": """
        from vendor import Base

        class Log(Base):
            async def handle(self, request, call_next):
                return await call_next(request)
        """,
    "a base that is not in the run, of a class further out": """
        from vendor import Base

        class Ours(Base):
            pass

        class Log(Ours):
            async def handle(self, request, call_next):
                return await call_next(request)
        """,
    "a mixin of a class with such a base": """
        from vendor import Base

        class Logging:
            async def handle(self, request, call_next):
                return await call_next(request)

        class Log(Logging, Base):
            pass
        """,
    "a base that is not in the run, and Starlette's request": """
        from starlette.requests import Request
        from vendor import Base

        class Log(Base):
            async def handle(self, request: Request, call_next):
                return await call_next(request)
        """,
    "a type that is not among the files": """
        from .types import Request

        async def log(request: Request, call_next):
            return await call_next(request)
        """,
    "no coroutine function": """
        def log(request, call_next):
            return call_next(request)
        """,
    "a result of another library": """
        from grpc_chain import Reply

        async def log(request, call_next) -> Reply:
            return await call_next(request)
        """,
}


@pytest.mark.parametrize("source", UNSURE.values(), ids=list(UNSURE))
def test_what_may_be_something_else_is_left_with_a_code(source: str) -> None:
    """It is left, and the code says what would show that it is HTTP."""
    done = alone(source)

    assert not done.changed
    assert codes(done) == ["HM122"]
    assert done.diagnostics[0].severity == "error"


HTTP = {
    "a request by its name": """
        async def log(request, call_next):
            return await call_next(request)
        """,
    "a request by its annotation": """
        from fastapi import Request

        async def log(r: Request, call_next):
            return await call_next(r)
        """,
    "a request with state": """
        from typing import Annotated
        from starlette.requests import Request

        async def log(r: "Annotated[Request[State], 1] | None", call_next):
            return await call_next(r)
        """,
    "a request class of the file": """
        import starlette.requests

        class Ours(starlette.requests.Request):
            pass

        async def log(r: Ours, call_next):
            return await call_next(r)
        """,
    "another name of a request": """
        from starlette import requests
        Http = requests.Request

        async def log(r: Http, call_next):
            return await call_next(r)
        """,
    "Starlette's call_next": """
        from starlette.middleware.base import RequestResponseEndpoint

        async def log(incoming, call_next: RequestResponseEndpoint):
            return await call_next(incoming)
        """,
    "a call_next that takes a request": """
        from collections.abc import Awaitable, Callable
        from fastapi import Request, Response

        async def log(incoming, call_next: Callable[[Request], Awaitable[Response]]):
            return await call_next(incoming)
        """,
    "a plain class": """
        class Log:
            async def __call__(self, request, call_next):
                return await call_next(request)
        """,
    "a class with bases of the standard library": """
        from abc import ABC
        from typing import Generic, TypeVar

        T = TypeVar("T")

        class Log(ABC, Generic[T], dict):
            async def handle(self, request, call_next):
                return await call_next(request)
        """,
}


@pytest.mark.parametrize("source", HTTP.values(), ids=list(HTTP))
def test_a_request_is_known(source: str) -> None:
    """What shows that it is HTTP is converted, with a word on the registration."""
    done = alone(source)

    assert [each.registered for each in done.conversions] == ["elsewhere"]
    assert codes(done) == ["HM207"]


def test_a_registration_shows_what_it_is() -> None:
    """A function that is registered for HTTP is HTTP, whatever its parameters are called."""
    done = alone(
        """
        async def log(incoming, call_next):
            return await call_next(incoming)

        app.middleware("http")(log)
        """
    )

    assert "async def log(incoming: Connection) -> Flow:\n    yield\n" in done.code
    assert codes(done) == []


def test_a_caller_that_is_http_shows_what_it_is() -> None:
    """A function that is handed `call_next` of HTTP middleware needs no other sign."""
    done = alone(
        """
        async def step(context, call_next):
            return await call_next(context)

        @app.middleware("http")
        async def log(request, call_next):
            return await step(request, call_next)
        """
    )

    assert codes(done) == []
    assert [each.kind for each in done.conversions] == ["helper", "decorator"]


def test_a_method_that_is_called_by_the_program_is_left() -> None:
    """What a chain of the program's own calls is not converted."""
    done = run(
        chain="""
            class Middleware:
                async def on_request(self, request, call_next):
                    return await call_next(request)

            class Size(Middleware):
                async def on_request(self, request, call_next):
                    return (await call_next(request)) * 2
            """,
        server="""
            async def run(layers, request, call_next):
                for layer in layers:
                    call_next = partial(layer.on_request, call_next=call_next)
                return await call_next(request)
            """,
    )

    assert not any(each.changed for each in done.values())
    assert set(codes(done["chain"])) == {"HM113"}


def test_a_class_of_middleware_of_another_library_is_no_outside_base() -> None:
    """A `dispatch` of something that is plainly not HTTP is no subclass of a vendor's class."""
    done = alone(
        """
        from bus import Context, Handler

        class Log(Handler):
            async def dispatch(self, context: Context, call_next):
                return await call_next(context)
        """
    )

    assert done.diagnostics == []


def test_a_file_of_the_name_of_a_library() -> None:
    """`integrations/mcp.py` is not where `mcp.server` is imported from."""
    done = run(
        sdk__integrations__mcp="""
            from mcp.server import Context

            async def trace(ctx: "Context[Any]", call_next):
                return await call_next(ctx)
            """,
    )

    assert codes(done["sdk/integrations/mcp"]) == []


def test_both_kinds_in_one_run() -> None:
    """HTTP middleware is converted beside middleware of an MCP server, and only that."""
    mcp = textwrap.dedent(FOREIGN["a hook of an MCP server"]).lstrip("\n")
    done = run(
        tools=mcp,
        web="""
            from starlette.middleware.base import BaseHTTPMiddleware

            class Log(BaseHTTPMiddleware):
                async def dispatch(self, request, call_next):
                    return await call_next(request)
            """,
    )

    assert not done["tools"].changed
    assert done["web"].changed
