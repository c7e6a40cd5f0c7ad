"""A time limit of a function around a body that it waits for, whoever produces that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from httpmw import AppResponse, Connection, Flow, NoResponseError
from httpmw.compat import BaseHTTPMiddleware
from tests.harness import Chunks, Server, body, request, script, stack, start

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])

SOON = 0.05  # seconds


async def quiet(conn: Connection) -> Flow:
    yield


async def read(response: AppResponse) -> None:
    await response.read()


async def iterate(response: AppResponse) -> None:
    async for _ in response.body_iterator:
        pass


WAYS = {"read": read, "iterate": iterate}


class Stalling(Chunks):
    """A first chunk, and then nothing for ever."""

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await asyncio.sleep(3600)
            raise


async def stalls(scope: Scope, receive: Receive, send: Send) -> None:
    await StreamingResponse(Stalling(b"a"))(scope, receive, send)


async def in_an_asyncio_task(scope: Scope, receive: Receive, send: Send) -> None:
    """Send from a task of its own, which the app waits for."""
    await asyncio.create_task(in_one_task(scope, receive, send))


async def in_one_task(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start())
    await send(body(b"a", more=True))
    await asyncio.sleep(3600)


APPS = {"starlette": stalls, "task": in_an_asyncio_task, "one-task": in_one_task}


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_limit_is_answered(
    app: Any, way: Callable[[AppResponse], Any], spec: str | None, fused: bool
) -> None:
    """The time limit becomes a `TimeoutError` at the function's own `await`, and is answered."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            async with asyncio.timeout(SOON):
                await way(response)
        except TimeoutError:
            yield PlainTextResponse("too slow", 504)

    server = await request(stack(app, quiet, layer, quiet, fused=fused), spec=spec)

    assert (server.status, server.body) == (504, b"too slow")


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_drop_in(app: Any, way: Callable[[Any], Any], spec: str | None) -> None:
    """The same under the drop-in for `call_next`, as Starlette's own class answers."""

    async def dispatch(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        try:
            async with asyncio.timeout(SOON):
                await way(response)
        except TimeoutError:
            return PlainTextResponse("too slow", 504)
        return response

    server = await request(BaseHTTPMiddleware(app, dispatch=dispatch), spec=spec)

    assert (server.status, server.body) == (504, b"too slow")


async def test_limit_that_is_not_handled(spec: str | None, fused: bool) -> None:
    """A `TimeoutError` that nobody handles comes out as it is."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        async with asyncio.timeout(SOON):
            await response.read()

    server = await request(stack(stalls, quiet, layer, fused=fused), spec=spec, keep_error=True)

    assert type(server.error) is TimeoutError
    assert server.sent == []


async def test_client_that_leaves_is_no_time_limit(fused: bool) -> None:
    """An app whose own listener cancels its sender is a client that left, as ever."""
    server, raised = Server(spec="2.3"), list[BaseException]()

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            await response.read()
        except BaseException as error:
            raised.append(error)
            raise

    class Leaving(Stalling):
        async def __anext__(self) -> bytes:
            try:
                return await super().__anext__()
            finally:
                server.disconnect()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Leaving(b"a"))(scope, receive, send)

    await server.run(stack(app, quiet, layer, fused=fused))

    assert [type(error).__name__ for error in raised] == ["ClientDisconnect"]


async def test_app_that_cancels_its_own_sender_is_no_time_limit(fused: bool) -> None:
    """An app that ends its own sender by a scope has returned too early, as ever."""
    raised: list[BaseException] = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            await response.read()
        except BaseException as error:
            raised.append(error)
            raise

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(in_one_task, scope, receive, send)
            await anyio.sleep(SOON)
            group.cancel_scope.cancel()

    await request(stack(app, quiet, layer, fused=fused), keep_error=True)

    assert [type(error) for error in raised] == [NoResponseError]


async def test_nobody_else_is_cancelled(fused: bool) -> None:
    """The answer goes out through layers further out, and the request is not cancelled."""
    log: list[str] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        yield response
        await asyncio.sleep(0)
        log.append(f"{response.status_code} {response.outcome}")

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            async with asyncio.timeout(SOON):
                await response.read()
        except TimeoutError:
            task = BackgroundTask(lambda: log.append("background"))
            yield PlainTextResponse("too slow", 504, background=task)

    server = await request(stack(stalls, outer, layer, fused=fused), spec="2.3")

    assert server.status == 504
    assert log == ["background", "504 completed"]


async def test_limit_that_was_left_is_not_this_one(fused: bool) -> None:
    """A time limit that was over before, and is still in a variable, is no reason to cancel."""
    seen: list[BaseException] = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            async with asyncio.timeout(0) as limit:
                await asyncio.sleep(3600)
        except TimeoutError:
            assert limit.expired()
        try:
            await response.read()
        except NoResponseError as error:
            seen.append(error)
        yield PlainTextResponse("incomplete", 502)

    app = script(start(), body(b"a", more=True))

    server = await request(stack(app, quiet, layer, quiet, fused=fused))

    assert (server.status, len(seen)) == (502, 1)
