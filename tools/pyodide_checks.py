"""
What is asked of httpmw on Pyodide: `make pyodide`.

1. Each check is a coroutine that runs on the loop that is there, since Pyodide cannot start one.
2. The server is asked by hand: there are no sockets and no threads, so neither a real one nor
   Starlette's test client.
3. The suite runs the same checks on CPython, so that one that fails on Pyodide alone tells of it.
"""

from __future__ import annotations

import asyncio
import platform
import re
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import httpmw
from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.testing import Server

README = Path(__file__).parent.parent / "README.md"
SPECS = ("2.3", "2.4")  # below 2.4 Starlette sends a stream from a task of its own
CHUNKS = ("one ", "two ", "three")

VAR: ContextVar[str] = ContextVar("VAR", default="unset")
CHECKS: list[Callable[[], Awaitable[None]]] = []


def application(*functions: Callable[..., Any], endpoint: Callable[..., Any] | None = None) -> Any:
    """
    Make an application with these layers around a stream, or around another endpoint.
    """
    layers = [Middleware(HTTPMiddleware, dispatch=function) for function in functions]
    route = Route("/", endpoint or stream, methods=["GET", "POST"])
    return Starlette(routes=[route], middleware=layers)


async def stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[str]:
        for chunk in CHUNKS:
            await asyncio.sleep(0)
            yield chunk

    return StreamingResponse(chunks(), headers={"x-var": VAR.get()})


@CHECKS.append
async def the_example_of_the_readme_runs() -> None:
    source = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)[0]
    # Of what FastAPI needs not all is a pure wheel, so Starlette takes its place.
    source = source.replace(
        "from fastapi import", "from starlette.applications import Starlette as"
    )
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - our own README
    server = await Server(path="/nowhere").run(names["app"])

    assert server.status == 404, server.status
    assert "mine" in dict(server.headers).values(), server.headers


@CHECKS.append
async def a_stream_stays_a_stream() -> None:
    async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.upper()

    async def transforms(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = upper(response.body_iterator)

    for spec in SPECS:
        server = await Server(spec=spec).run(application(transforms))
        bodies = [message["body"] for message in server.sent[1:]]
        assert [each for each in bodies if each] == [b"ONE ", b"TWO ", b"THREE"], bodies


@CHECKS.append
async def both_bodies_can_be_read_and_arrive() -> None:
    read: list[bytes] = []

    async def reads(conn: Connection) -> Flow:
        read.append(await conn.body())
        response = yield
        read.append(await response.read())

    async def echo(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    for spec in SPECS:
        read.clear()
        server = Server(spec=spec, method="POST", body=[b"up", b"load"])
        await server.run(application(reads, endpoint=echo))
        assert read == [b"upload", b"upload"], read
        assert server.body == b"upload", server.body


@CHECKS.append
async def a_context_variable_reaches_the_app_and_is_taken_back() -> None:
    seen: list[str] = []

    async def binds(conn: Connection) -> Flow:
        token = VAR.set("bound")
        try:
            response = yield
            yield response
        finally:
            VAR.reset(token)

    async def looks(conn: Connection) -> Flow:
        response = yield
        seen.append(response.headers["x-var"])
        yield response
        seen.append(VAR.get())

    for spec in SPECS:
        seen.clear()
        await Server(spec=spec).run(application(looks, binds))
        assert seen == ["bound", "unset"], seen


@CHECKS.append
async def a_client_that_leaves_is_told_of() -> None:
    outcomes: list[str | None] = []

    async def logs(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        finally:
            outcomes.append(response.outcome)

    async def endless(request: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            while True:
                await asyncio.sleep(0)
                yield "chunk"

        return StreamingResponse(chunks())

    for spec in SPECS:
        outcomes.clear()
        server = Server(spec=spec, leaves_after=3)
        await server.run(application(logs, endpoint=endless), keep_error=True)
        assert outcomes == ["disconnected"], outcomes


@CHECKS.append
async def a_gate_answers_without_the_app() -> None:
    ran: list[bool] = []

    async def gate(conn: Connection) -> Flow:
        yield PlainTextResponse("members only", 403)

    async def endpoint(request: Request) -> Response:
        ran.append(True)
        return PlainTextResponse("secret")

    server = await Server().run(application(gate, endpoint=endpoint))
    assert (server.status, server.body, ran) == (403, b"members only", [])


async def main() -> int:
    """
    Run all checks and say how they went.

    Returns:
        How many failed.

    """
    python = f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}"
    loop = type(asyncio.get_running_loop()).__name__
    versions = ", ".join(f"{name} {version(name)}" for name in ("starlette", "anyio"))
    print(f"httpmw {httpmw.__version__}, {python}, {loop}, {versions}")
    failed = 0
    for each in CHECKS:
        try:
            await each()
        except Exception:  # noqa: BLE001 - it is told, and the others run
            traceback.print_exc()
            failed += 1
        else:
            print(f"* {each.__name__.replace('_', ' ')}")
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return failed
