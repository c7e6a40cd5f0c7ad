"""
The engine in 8,000 random schedules on asyncio and 2,000 on trio, and what they have found.

`make soak` runs the same scenarios with other seeds, and many more of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from httpmw import Connection, Flow, NoResponseError
from httpmw.testing import ScenarioFailure, World, explore
from tests.harness import Chunks, Server, body, passing, script, stack, start, waiting
from tests.scenarios import engine, unseen

SHARDS = [("asyncio", first, 1000) for first in range(0, 8_000, 1000)]
SHARDS += [("trio", first, 500) for first in range(0, 2_000, 500)]


@pytest.mark.parametrize(("backend", "first", "count"), SHARDS)
def test_random_schedules(backend: str, first: int, count: int) -> None:
    """Random layers around random inner apps keep the invariants, in every schedule."""
    struck = explore(engine, seeds=range(first, first + count), backend=backend)
    assert struck.total() == count
    assert min(struck.values()) > count / 20, "hardly any faults"


# What the schedules found. Each of these failed once.


@pytest.fixture
def anyio_backend() -> str:
    """What was found on asyncio alone."""
    return "asyncio"


async def noting(
    chunks: AsyncIterator[bytes], ended: list[type[BaseException]]
) -> AsyncIterator[bytes]:
    """Pass chunks on, and note with what it is ended."""
    try:
        async for chunk in chunks:
            yield chunk
    except BaseException as error:
        ended.append(type(error))
        raise


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass chunks on in capitals."""
    async for chunk in chunks:
        yield chunk.upper()


@pytest.mark.parametrize("sends", [0, 1, 2])
async def test_cancelled_as_the_app_returns(sends: int, fused: bool) -> None:
    """A cancellation that is pending when the app returns too early goes through the flows."""
    ended: list[type[BaseException]] = []

    async def mw(conn: Connection) -> Flow:
        try:
            response = yield
            yield response
        except BaseException as error:
            ended.append(type(error))
            raise

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in [start(), body(b"some", more=True)][:sends]:
            await send(message)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    wrapped = stack(app, mw, mw, fused=fused)
    task = asyncio.create_task(Server().run(wrapped))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [asyncio.CancelledError] * 2


async def test_cancelled_as_the_app_returns_in_a_body_that_is_transformed(fused: bool) -> None:
    """The same where a transform waits for the rest of the body."""
    ended: list[type[BaseException]] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = noting(response.body_iterator, ended)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"some", more=True))
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    task = asyncio.create_task(Server().run(stack(app, waiting, mw, fused=fused)))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [asyncio.CancelledError]


async def transforming(conn: Connection) -> Flow:
    """Transform the body."""
    response = yield
    response.body_iterator = upper(response.body_iterator)


async def ending_early(conn: Connection) -> Flow:
    """Send only the first chunk of the body."""

    async def first(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            return

    response = yield
    response.body_iterator = first(response.body_iterator)


async def setting(conn: Connection) -> Flow:
    """Send another body."""
    response = yield
    response.body = b"set"


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("further_in", [transforming, ending_early, setting])
async def test_signal_of_a_replaced_stream(further_in: Any, fused: bool) -> None:
    """A streamed replacement that is replaced in turn ends quietly, whatever is further in."""

    async def outer(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("outer", 503)

    async def replacing(conn: Connection) -> Flow:
        yield
        yield StreamingResponse(Chunks(b"repl", b"aced"), 502)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"some", more=True))
        await send(body())

    server = await Server(spec="2.4").run(
        stack(app, outer, replacing, further_in, passing, fused=fused)
    )
    assert server.body == b"outer"


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_second_start_while_the_body_is_read(fused: bool) -> None:
    """A second start is refused at once, and nothing of it is taken for a part of the body."""
    read: list[bytes] = []

    async def reading(conn: Connection) -> Flow:
        response = yield
        try:
            read.append(await response.read())
        finally:
            read.append(b"over")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(start(500))
        await send(body(b"error page"))

    server = Server()
    with pytest.raises(RuntimeError, match=r"second http\.response\.start"):
        await server.run(stack(app, waiting, reading, fused=fused))
    assert server.sent == []
    assert read == [b"over"]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_cancellation_in_a_group_stays_in_its_scope(fused: bool) -> None:
    """A limit of the app's own that ends a replacement is not raised again outside of it."""

    class Failing(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def fails_as_it_is_cancelled() -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    raise ValueError("replacement")

            async with anyio.create_task_group() as group:
                group.start_soon(fails_as_it_is_cancelled)
                await anyio.sleep_forever()

    async def replacing(conn: Connection) -> Flow:
        yield
        yield Failing()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(0.01):
            await send(start())

    cancelled = anyio.get_cancelled_exc_class()
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - which one, is looked at below
        await Server().run(stack(app, waiting, replacing, fused=fused))
    error: BaseException | None = raised.value
    assert not isinstance(error, cancelled)
    if isinstance(error, BaseExceptionGroup):
        assert error.subgroup(cancelled) is None
        assert error.subgroup(ValueError) is not None
    else:
        assert isinstance(error, ValueError)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_request_transform_whose_receive_was_cancelled(fused: bool) -> None:
    """A transform that waits for a message is ended with `GeneratorExit`, on every Python."""
    ended: list[type[BaseException]] = []

    async def mw(conn: Connection) -> Flow:
        conn.body_iterator = noting(conn.body_iterator, ended)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert not await Request(scope, receive).is_disconnected()
        await send(start())
        await send(body())

    server = Server(method="POST")
    wrapped = stack(app, waiting, mw, fused=fused)
    await wrapped(server.scope, anyio.sleep_forever, server.send)  # type: ignore[arg-type]
    assert server.complete
    assert ended == [GeneratorExit]


@pytest.mark.unchecked(reason="a checker's own `receive` hides the layers further out")
async def test_disconnect_waits_for_the_layers_further_out_as_well(fused: bool) -> None:
    """A disconnect that was held for one layer is held on for the next one that has the start."""
    order: list[str] = []
    server = Server()

    async def outer(conn: Connection) -> Flow:
        response = yield
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        order.append("outer is done")
        yield response

    async def reading(conn: Connection) -> Flow:
        response = yield
        await response.read()

    async def inner(conn: Connection) -> Flow:
        yield
        server.disconnect()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        order.append("inner is done")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def produce() -> None:
            await send(start())
            await send(body(b"whole"))

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            while (await receive())["type"] != "http.disconnect":
                pass
            order.append("told")
            group.cancel_scope.cancel()

    whole = stack(app, outer, reading, inner, fused=fused)
    await whole(server.scope, server.receive, server.send)

    assert order == ["inner is done", "outer is done", "told"]


async def test_cancelled_request_is_not_an_app_without_a_response(fused: bool) -> None:
    """Where the scope around a request is cancelled, a replaced app that returns is no error."""
    server = Server()

    async def replacing(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("replaced")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(send, start())
            # It does not learn of the cancellation: it returns.
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                scope_around.cancel()
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()

    async def server_send(message: Any) -> None:
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope_around:
        await stack(app, passing, replacing, fused=fused)(server.scope, server.receive, server_send)

    assert scope_around.cancelled_caught


def test_missing_response_where_no_loop_runs(fused: bool) -> None:
    """An adapter that is stepped outside of any event loop names the app that did not respond."""
    server = Server()
    app = stack(script(), passing, waiting, fused=fused)

    with pytest.raises(NoResponseError):
        app(server.scope, server.receive, server.send).send(None)


def test_schedule_of_the_world_reaches_every_layer() -> None:
    """The plans that are drawn have every kind of layer and every kind of inner app."""
    from tests.scenarios import app, draw, layer

    seen: set[str] = set()

    async def scenario(world: World) -> None:
        seen.update(draw(world)[0].names)

    explore(scenario, seeds=500)
    assert seen == {make.__name__ for make in [*layer.makers, *app.makers]}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nobody_sees_empty_layers(backend: str) -> None:
    """Any app has the same messages, sight and end without them, whatever goes wrong."""
    explore(unseen, seeds=300, backend=backend)


def test_a_layer_that_changes_something_is_seen() -> None:
    """One header is enough."""

    async def header(conn: Connection) -> Flow:
        response = yield
        response.headers["x-seen"] = "1"

    with pytest.raises(ScenarioFailure):
        explore(partial(unseen, layers=[header]), seeds=100)
