"""
Every row of "What happens when" in the contract, once for each fault at each moment.

A row is a few layers around an inner app.
Without a fault it has to end as the contract says; with one, the invariants of `World.run` have
to hold: every layer ended, one start, nothing after the last message, `Task.cancelling()` as it
was, only exceptions that were to be expected, no tail cut off, nothing left to the collector.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, MiddlewareError, NoResponseError
from httpmw.testing import World, every_fault
from tests.harness import Chunks, body, stack, start


class Planned(Exception):
    """What an app or a layer raises because the row says so."""


class Unusual(BaseException):
    """An exception that `except Exception` does not catch."""


class Case:
    """One run of a row: its world, what its layers note, and whether the app was told to stop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.notes: list[Any] = []
        self.note = self.notes.append

    async def work(self, what: str) -> None:
        """Do something that must not be cut off by a client that leaves."""
        with self.world.whole(what):
            await self.world.pause()


Row = Callable[[Case], tuple[ASGIApp, list[Callable[[Connection], Any]]]]
ROWS: list[Any] = []


def row(
    *notes: Any,
    status: int | None = 200,
    data: bytes | None = None,
    raises: type[BaseException] | None = None,
    expect: tuple[type[BaseException], ...] = (),
    complete: bool = True,
    request: tuple[bytes, ...] = (),
    leaves_at: float | None = None,
) -> Callable[[Row], Row]:
    """
    Register a row, which makes an inner app and its layers, the outermost first.

    *notes* is what they note when nothing goes wrong, *status* and *data* the response, *raises*
    what comes out; *expect* and *complete* are for the runs with a fault.
    """

    def register(make: Row) -> Row:
        async def scenario(world: World, *, fused: bool) -> None:
            case = Case(world)
            app, layers = make(case)
            server = await world.run(
                stack(world.app(app), *layers, fused=fused),
                expect=(*expect, Planned) if raises is None else (*expect, Planned, raises),
                complete=complete,
                leaves_at=leaves_at,
                method="POST" if request else "GET",
                body=list(request) or b"",
            )
            if world.struck:
                return
            assert tuple(case.notes) == notes
            assert server.status == status
            assert data is None or server.body == data
            assert type(world.raised) is (raises or type(None))

        ROWS.append(pytest.param(scenario, id=make.__name__))
        return make

    return register


# ---------------------------------------------------------------------- inner apps and layers


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once."""
    await send(start())
    await send(body(b"plain"))


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a stream, before ASGI 2.4 from a child task."""
    await StreamingResponse(Chunks(b"a", b"b"))(scope, receive, send)


async def listening(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer from a child task, which ends as soon as the client is gone."""

    async def produce() -> None:
        await send(start())
        await send(body(b"some", more=True))
        await send(body(b"thing"))
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass chunks on in capitals."""
    async for chunk in chunks:
        yield chunk.upper()


def raising(error: BaseException, *messages: Any) -> ASGIApp:
    """Return an app that sends *messages* and raises *error*."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        raise error

    return app


def waiting(case: Case, name: str) -> Callable[[Connection], Flow]:
    """Return a layer that waits until the exchange is over, and notes how it ended."""

    async def waiting(conn: Connection) -> Flow:
        try:
            response = yield
            yield response
        except Exception as error:
            case.note(f"{name} {type(error).__name__}")
            raise
        case.note(f"{name} {response.outcome} {response.bytes_sent}")

    return waiting


# ---------------------------------------------------------------------- the rows


@row("inner 200", "outer 200", "inner over", "outer over", data=b"plain")
def inner_app_starts(case: Case) -> Any:
    """The flows are stepped from the inside out, twice."""

    def layer(name: str) -> Callable[[Connection], Flow]:
        async def mw(conn: Connection) -> Flow:
            response = yield
            case.note(f"{name} {response.status_code}")
            await case.work(f"{name} in hand")
            response.headers[f"x-{name}"] = "1"
            yield response
            await case.work(f"{name} at the end")
            case.note(f"{name} over")

        return mw

    return plain, [layer("outer"), layer("inner")]


@row("replaced", "outer completed 3", status=503, data=b"new")
def flow_replaces(case: Case) -> Any:
    """The replacement goes through the outer flows."""

    async def replacing(conn: Connection) -> Flow:
        yield
        await case.work("in hand")
        yield PlainTextResponse("new", 503)
        await case.work("after the replacement")
        case.note("replaced")

    return stream, [waiting(case, "outer"), replacing]


@row("task", "tail", status=503, data=b"news")
def flow_replaces_with_a_stream(case: Case) -> Any:
    """Its background task runs after the app has ended."""

    async def task() -> None:
        case.note("task")

    async def replacing(conn: Connection) -> Flow:
        yield
        yield StreamingResponse(Chunks(b"ne", b"ws"), 503, background=BackgroundTask(task))
        case.note("tail")

    async def outer(conn: Connection) -> Flow:
        response = yield
        await case.work("outer in hand")
        response.headers["x-outer"] = "1"

    return listening, [outer, replacing]


@row("answered Planned", status=500, data=b"sorry")
def flow_raises_and_another_answers(case: Case) -> Any:
    """The outer flow gets what the inner one raised."""

    async def answering(conn: Connection) -> Flow:
        try:
            yield
        except Planned as error:
            case.note(f"answered {type(error).__name__}")
            await case.work("in its answer")
            yield PlainTextResponse("sorry", 500)

    async def failing(conn: Connection) -> Flow:
        yield
        await case.world.pause()
        raise Planned

    return stream, [answering, failing]


@row("outer Planned", status=None, raises=Planned)
def flow_raises_and_nobody_answers(case: Case) -> Any:
    """It comes out, whatever the app makes of it."""

    async def failing(conn: Connection) -> Flow:
        yield
        raise Planned

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await plain(scope, receive, send)
        except Planned as error:
            raise RuntimeError("the app's own words") from error

    return app, [waiting(case, "outer"), failing]


@row("inner Unusual", status=418, data=b"odd")
def inner_app_raises_before_its_start(case: Case) -> Any:
    """Every `BaseException` is thrown in, inside out."""

    async def answering(conn: Connection) -> Flow:
        try:
            yield
        except Unusual:
            yield PlainTextResponse("odd", 418)

    async def inner(conn: Connection) -> Flow:
        try:
            yield
        except Unusual:
            case.note("inner Unusual")
            raise

    return raising(Unusual()), [answering, inner]


@row("outer MiddlewareError", status=None, raises=MiddlewareError)
def flow_swallows(case: Case) -> Any:
    """A flow that swallows an exception and answers nothing is an error."""

    async def swallowing(conn: Connection) -> Flow:
        try:
            yield
        except Exception:
            await case.world.pause()

    return raising(Planned()), [waiting(case, "outer"), swallowing]


@row("inner Planned", "outer Planned", raises=Planned, data=b"some")
def inner_app_raises_after_its_start(case: Case) -> Any:
    """It is raised where the flows wait, and the body stays cut off."""
    app = raising(Planned(), start(), body(b"some", more=True))
    return app, [waiting(case, "outer"), waiting(case, "inner")]


@row("swallowed", "outer incomplete 0", complete=False)
def flow_swallows_after_the_start(case: Case) -> Any:
    """It goes no further than the flow that swallows it."""

    async def swallowing(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except Planned:
            case.note("swallowed")

    return raising(Planned(), start()), [waiting(case, "outer"), swallowing]


@row("inner NoResponseError", status=204, data=b"")
def inner_app_returns_without_a_start(case: Case) -> Any:
    """A flow may answer in its place."""

    async def answering(conn: Connection) -> Flow:
        try:
            yield
        except NoResponseError:
            yield PlainTextResponse(None, 204)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await case.world.pause()

    return app, [answering, waiting(case, "inner")]


@row("inner ClientDisconnect", "outer ClientDisconnect", status=None, leaves_at=1.0)
def inner_app_returns_as_the_client_left(case: Case) -> Any:
    """No response for a client that is gone is no error."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return app, [waiting(case, "outer"), waiting(case, "inner")]


@row("inner incomplete 4", "outer incomplete 4", complete=False)
def inner_app_returns_in_its_body(case: Case) -> Any:
    """The flows come back normally, and know."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"some", more=True))

    return app, [waiting(case, "outer"), waiting(case, "inner")]


@row("outer completed 5", data=b"plain")
def request_is_cancelled(case: Case) -> Any:
    """A cancellation that a flow swallows goes on all the same."""

    async def swallowing(conn: Connection) -> Flow:
        try:
            response = yield
            await case.world.pause()
        except anyio.get_cancelled_exc_class():
            yield PlainTextResponse("shutting down", 503)
            return
        try:
            yield response
        except anyio.get_cancelled_exc_class():
            pass

    return plain, [waiting(case, "outer"), swallowing]


@row("outer MiddlewareError", status=None, raises=MiddlewareError)
def flow_holds_a_scope(case: Case) -> Any:
    """It is closed at its first yield."""

    async def holding(conn: Connection) -> Flow:
        with anyio.move_on_after(10):
            yield

    return plain, [waiting(case, "outer"), holding]


@row("stepped", data=b"oneend", complete=False, expect=(RuntimeError,))
def siblings_send_while_a_flow_is_stepped(case: Case) -> Any:
    """The second waits for the step; without one, its server would refuse what it sends."""

    async def working(conn: Connection) -> Flow:
        yield
        await case.world.pause()
        await case.world.pause()
        case.note("stepped")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(send, body(b"one", more=True))
            with anyio.CancelScope(shield=True):  # as long as this takes, the other one waits
                await send(start())
        await send(body(b"end"))

    return app, [working]


@row("outer", "inner", data=b"something")
def client_leaves_while_a_flow_is_stepped(case: Case) -> Any:
    """The app, which would end its own task for it, learns of it afterwards."""

    def layer(name: str) -> Callable[[Connection], Flow]:
        async def mw(conn: Connection) -> Flow:
            response = yield
            if not case.world.disconnected:
                with case.world.whole(f"{name} in hand"):
                    await case.world.pause()
                    await case.world.pause()
            case.note(name)
            yield response

        return mw

    return listening, [layer("inner"), layer("outer")]


@row("closed", "outer MiddlewareError", data=b"plain", raises=MiddlewareError)
def flow_yields_too_often(case: Case) -> Any:
    """It is closed; the response is intact."""

    async def yielding(conn: Connection) -> Flow:
        response = yield
        yield response
        try:
            yield response
        except GeneratorExit:
            case.note("closed")
            raise

    return plain, [waiting(case, "outer"), yielding]


# ---------------------------------------------------------------------- the rules


@row("tail", "outer completed 5", status=401, data=b"early")
def flow_answers_early(case: Case) -> Any:
    """The inner app is not run."""

    async def early(conn: Connection) -> Flow:
        await case.world.pause()
        yield PlainTextResponse("early", 401)
        await case.work("after the answer")
        case.note("tail")

    return plain, [waiting(case, "outer"), early]


@row("outer completed 6", status=403, data=b"walled")
def http_exception_answers(case: Case) -> Any:
    """An `HTTPException` of a flow becomes a response."""

    async def refusing(conn: Connection) -> Flow:
        yield
        await case.world.pause()
        raise HTTPException(403, "walled")

    return stream, [waiting(case, "outer"), refusing]


@row(status=None, raises=MiddlewareError)
def flow_ends_before_any_yield(case: Case) -> Any:
    """It fails closed."""

    async def silent(conn: Connection) -> Flow:
        if case.world.disconnected:
            yield

    return plain, [silent]


@row("inner", "outer", data=b"plain")
def flow_delegates(case: Case) -> Any:
    """The other flow runs inside of it."""

    async def other(conn: Connection) -> Flow:
        response = yield
        await case.work("other in hand")
        yield response
        case.note("inner")

    async def delegating(conn: Connection) -> Flow:
        response = yield other(conn)
        await case.work("in hand")
        yield response
        case.note("outer")

    return plain, [delegating]


@row("read b'abc'", status=201, data=b"abc", request=(b"ab", b"c"))
def request_body_is_read(case: Case) -> Any:
    """The inner app still gets it."""

    async def reading(conn: Connection) -> Flow:
        case.note(f"read {await conn.body()!r}")
        yield

    return echo(case), [reading]


@row("completed", status=201, data=b"ABC", request=(b"ab", b"c"))
def request_body_is_transformed(case: Case) -> Any:
    """It streams through a generator as the inner app pulls it."""

    async def transforming(conn: Connection) -> Flow:
        conn.body_iterator = upper(conn.body_iterator)
        response = yield
        yield response
        case.note(response.outcome)

    return echo(case), [transforming]


def echo(case: Case) -> ASGIApp:
    """Return an app that sends the request body back, if it gets it."""

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        data, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            data += message["body"]
            more = message["more_body"]
        await send(start(201))
        await send(body(data))

    return echo


@row("read b'ab'", "outer completed 2", data=b"ab")
def response_body_is_read(case: Case) -> Any:
    """The app goes on producing while the start is held."""

    async def reading(conn: Connection) -> Flow:
        response = yield
        case.note(f"read {await response.read()!r}")

    async def outer(conn: Connection) -> Flow:
        response = yield
        yield response
        case.note(f"outer {response.outcome} {response.bytes_sent}")

    return stream, [outer, reading]


@row("completed 3", data=b"set")
def response_body_is_set(case: Case) -> Any:
    """The app is discarded as if the client had left."""

    async def setting(conn: Connection) -> Flow:
        response = yield
        response.body = b"set"
        yield response
        case.note(f"{response.outcome} {response.bytes_sent}")

    return stream, [setting]


@row("completed 9", data=b"SOMETHING")
def response_body_is_transformed(case: Case) -> Any:
    """It streams through a generator at the pace of the app."""

    async def transforming(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = upper(response.body_iterator)
        yield response
        case.note(f"{response.outcome} {response.bytes_sent}")

    return listening, [transforming]


@row("late", status=504, data=b"late")
def time_runs_out(case: Case) -> Any:
    """A time limit of the adapter is raised at the yield."""

    async def limiting(conn: Connection) -> Flow:
        conn.fail_after(1)
        try:
            response = yield
        except TimeoutError:
            case.note("late")
            yield PlainTextResponse("late", 504)
        else:
            yield response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep(60)

    return app, [limiting]


@row("task", "tail", data=b"plain")
def background_task_is_added(case: Case) -> Any:
    """It runs when the app has ended, before the tails further out."""

    async def task() -> None:
        await case.world.pause()
        case.note("task")

    async def adding(conn: Connection) -> Flow:
        response = yield
        response.background = BackgroundTask(task)

    async def outer(conn: Connection) -> Flow:
        response = yield
        yield response
        case.note("tail")

    return plain, [outer, adding]


# ---------------------------------------------------------------------- the tests


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "nested"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("scenario", ROWS)
def test_row(scenario: Any, backend: str, fused: bool) -> None:
    """The row holds, and with every fault at every moment its invariants do."""

    async def run(world: World) -> None:
        await scenario(world, fused=fused)

    struck = every_fault(run, backend=backend)
    assert struck["nothing"] == 3
    assert struck["disconnect"]
    assert struck["cancellation"]
