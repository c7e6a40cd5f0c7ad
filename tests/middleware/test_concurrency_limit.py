"""`ConcurrencyLimitMiddleware`: how many requests at once, who waits, and who is refused."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import (
    AdaptiveLimit,
    ConcurrencyLimitMiddleware,
    RateLimitMiddleware,
    TimeoutMiddleware,
)
from httpmw.middleware import _concurrency_limit as concurrency
from httpmw.middleware._gradient import Gradient
from httpmw.testing import InjectedError, Server, World, explore
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import PassThrough, body, request, start

ok = PlainTextResponse("ok")


class Gate:
    """An application each of whose runs waits until it is let through."""

    def __init__(self, app: ASGIApp = ok) -> None:
        self.app = app
        self.waiting: list[anyio.Event] = []
        self.most = 0
        self.now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        event = anyio.Event()
        self.waiting.append(event)
        try:
            await event.wait()
            await self.app(scope, receive, send)
        finally:
            self.now -= 1
            if event in self.waiting:
                self.waiting.remove(event)

    def let_through(self, count: int = 1) -> None:
        for _ in range(count):
            self.waiting.pop(0).set()


async def settled() -> None:
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def asked(app: ASGIApp, count: int, **options: Any) -> AsyncIterator[list[Server]]:
    """Have so many requests under way; give those that are answered."""
    answered: list[Server] = []

    async def ask() -> None:
        answered.append(await request(app, **options))

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(ask)
            await settled()
        yield answered


def free(layer: ConcurrencyLimitMiddleware) -> bool:
    """Whether no slot is taken and nobody waits."""
    return layer._streams == 0 and all(
        not room.in_flight and not room.waiting for room in layer._rooms.values()
    )


# -- who is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_one_too_many_is_refused(between: Any) -> None:
    """With a 503 that says when to come back; layers further out see it."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda sent: seen.append((sent.status_code, sent.outcome)))

    gate = Gate()
    layer = ConcurrencyLimitMiddleware(gate, limit=2)
    app = HTTPMiddleware(between(layer) if between else layer, dispatch=outer)
    async with asked(app, 2):
        server = await request(app, method="POST", body=[b"x"] * 5)
        assert server.status == 503
        assert server.json()["code"] == "overloaded"
        assert 1 <= int(server.headers["retry-after"]) <= 3
        assert server.receives == 5
        gate.let_through(2)

    assert (gate.most, free(layer)) == (2, True)
    assert seen == [(503, "completed"), (200, "completed"), (200, "completed")]


async def test_it_is_told_once_in_a_while(caplog: Any) -> None:
    """With numbers, and not for each of them."""
    gate = Gate()
    app = ConcurrencyLimitMiddleware(gate, limit=1)
    with caplog.at_level(logging.WARNING):
        async with asked(app, 1):
            for _ in range(5):
                await request(app)
            gate.let_through()

    assert caplog.messages == [
        "1 requests were refused: 1 are in flight, the limit is 1, 0 wait, 0 streams"
    ]


async def test_an_event_source_is_told_to_ask_again() -> None:
    """To a 503 a browser never does."""
    gate = Gate()
    app = ConcurrencyLimitMiddleware(gate, limit=1)
    async with asked(app, 1):
        server = await request(app, headers={"accept": "text/event-stream"})
        gate.let_through()

    assert server.status == 200
    assert server.body in {b"retry: %d000\n\n" % n for n in (1, 2, 3)}


async def test_partitions_have_limits_of_their_own() -> None:
    """By what the function says of a request."""
    gate = Gate()
    app = ConcurrencyLimitMiddleware(gate, limit=1, partition=lambda conn: conn["path"])
    async with asked(app, 1, path="/a"), asked(app, 1, path="/b"):
        assert (await request(app, path="/a")).status == 503
        gate.let_through(2)

    def wrong(conn: Connection) -> Any:
        return 7

    server = await request(
        ConcurrencyLimitMiddleware(ok, limit=1, partition=wrong), keep_error=True
    )
    assert "Return a text." in str(server.error)


async def test_a_rate_limit_further_out_gives_back_what_was_refused() -> None:
    """Nothing was done for it."""
    gate = Gate()
    app = RateLimitMiddleware(ConcurrencyLimitMiddleware(gate, limit=1), limit="2/hour")
    async with asked(app, 1):
        assert [(await request(app)).status for _ in range(3)] == [503] * 3
        gate.let_through()
    async with asked(app, 1) as answered:
        gate.let_through()
    assert [each.status for each in answered] == [200]
    assert (await request(app)).status == 429


# -- the queue -------------------------------------------------------------------------------


@pytest.mark.parametrize(("queue", "order"), [("lifo", [0, 3, 2, 1]), ("fifo", [0, 1, 2, 3])])
async def test_who_is_next(queue: Any, order: list[int]) -> None:
    """Who came last, or who came first; never more than the limit, and more are refused."""
    done: list[int] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        done.append(int(scope["query_string"]))
        await ok(scope, receive, send)

    gate = Gate(noting)
    app = ConcurrencyLimitMiddleware(gate, limit=1, max_queue=3, queue_timeout=60, queue=queue)
    async with anyio.create_task_group() as group:
        for n in range(4):
            group.start_soon(lambda n=n: request(app, query=str(n)))
            await settled()
        assert (await request(app, query="9")).status == 503
        for _ in range(4):
            gate.let_through()
            await settled()

    assert done == order
    assert (gate.most, free(app)) == (1, True)


async def test_the_queue_has_a_time_limit() -> None:
    """Then it is a 503."""
    gate = Gate()
    app = ConcurrencyLimitMiddleware(gate, limit=1, max_queue=3, queue_timeout=0.02)
    async with asked(app, 1):
        assert (await request(app)).status == 503
        gate.let_through()

    assert free(app)


@pytest.mark.parametrize("how", ["repeated", "once"])
async def test_a_client_that_leaves_leaves_the_queue(how: Any, monkeypatch: Any) -> None:
    """It is seen while it waits, and nothing is run for it."""
    monkeypatch.setattr(concurrency, "_LOOK", 0.005)
    gate = Gate()
    app = ConcurrencyLimitMiddleware(gate, limit=1, max_queue=3, queue_timeout=60)
    async with asked(app, 1):
        await request(app, leaves_after=0, disconnect=how, keep_error=True)
        assert not app._rooms[""].waiting
        gate.let_through()

    assert (gate.most, free(app)) == (1, True)


@pytest.mark.parametrize("given", [False, True])
async def test_a_request_that_is_cancelled_leaves_the_queue(given: bool) -> None:
    """Also where it had just been given a slot: that goes on to the next."""
    gate = Gate()
    app = ConcurrencyLimitMiddleware(gate, limit=1, max_queue=3, queue_timeout=60, queue="fifo")
    scope = anyio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await request(app)

    async with asked(app, 1), anyio.create_task_group() as group:
        group.start_soon(cancelled)
        await settled()
        async with asked(app, 1) as answered:
            if given:
                waiter = app._rooms[""].waiting[0]
                event = waiter.event
                # In one turn.
                waiter.event = SimpleNamespace(  # type: ignore[assignment]
                    set=lambda: (event.set(), scope.cancel())
                )
                gate.let_through()
            else:
                scope.cancel()
                await settled()
                gate.let_through()
            await settled()
            gate.let_through()

    assert scope.cancelled_caught
    assert [each.status for each in answered] == [200]
    assert (gate.most, free(app)) == (1, True)


# -- until when ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hold", "moments"),
    [("app", [1, 1, 1]), ("body", [1, 1, 0]), ("start", [1, 0, 0])],
)
async def test_how_long_a_slot_is_held(hold: Any, moments: list[int], spec: str | None) -> None:
    """In the application, in the body, in the background task."""
    taken: list[int] = []

    def note() -> None:
        taken.append(layer._rooms[""].in_flight)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        note()
        await send(start())
        await send(body(b"a", more=True))
        note()
        await send(body(b"b"))
        note()

    layer = ConcurrencyLimitMiddleware(app, limit=5, hold=hold)
    await request(layer, spec=spec)

    assert taken == moments
    assert free(layer)


@pytest.mark.parametrize("kind", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("hold", ["app", "body", "start"])
async def test_streams_give_their_slot_back(kind: str, hold: Any) -> None:
    """They are no work; they have a limit of their own, where there is one."""
    gates = [anyio.Event()]

    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", kind.encode())]))
        await send(body(b"1", more=True))
        await gates[0].wait()
        await send(body(b"2"))

    layer = ConcurrencyLimitMiddleware(events, limit=1, hold=hold, max_streams=2)
    async with asked(layer, 2) as answered:
        assert (layer._rooms[""].in_flight, layer._streams) == (0, 2)
        # An application that was discarded is told that its client is gone, and is not cancelled.
        async with asked(layer, 1) as third:
            gates[0].set()

    assert third[0].status == 503
    assert [each.body for each in answered] == [b"12", b"12"]
    assert free(layer)


@pytest.mark.parametrize("extensions", [DENIES, {}])
async def test_sockets_have_a_slot_to_their_answer(extensions: Any) -> None:
    """And count as streams from then on."""
    seen: list[Any] = []

    async def socket(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        seen.append((layer._rooms[""].in_flight, layer._streams))
        await send({"type": "websocket.accept"})
        seen.append((layer._rooms[""].in_flight, layer._streams))
        await send({"type": "websocket.close"})

    layer = ConcurrencyLimitMiddleware(socket, limit=1, max_streams=1)
    await SocketServer(extensions=extensions).run(layer)
    assert seen == [(1, 0), (0, 1)]
    assert free(layer)

    layer._streams = 1
    refused = await SocketServer(extensions=extensions).run(layer)
    status = [each.get("status") for each in refused.sent if "status" in each]
    assert status == ([503] if extensions else [])
    assert "websocket.accept" not in [each["type"] for each in refused.sent]


async def test_a_slot_comes_back_on_every_way_out() -> None:
    """Exceptions before and in the response, replacements, background tasks that fail."""

    def fail() -> None:
        raise InjectedError

    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        raise InjectedError

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        raise InjectedError

    async def replacing(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("other")

    background = PlainTextResponse("x", background=BackgroundTask(fail))
    for hold in ("app", "body", "start"):
        for app in (early, late, background, HTTPMiddleware(ok, dispatch=replacing)):
            layer = ConcurrencyLimitMiddleware(app, limit=1, hold=hold)  # type: ignore[arg-type]
            await request(layer, keep_error=True)
            await request(HTTPMiddleware(layer, dispatch=replacing), keep_error=True)
            assert free(layer)


@pytest.mark.parametrize("hold", ["app", "body", "start"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_schedules(hold: Any, backend: str) -> None:
    """Whatever goes wrong, and when: no slot is lost, and none is given twice."""

    async def scenario(world: World) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await world.pause()
            await send(start())
            await send(body(b"a", more=True))
            await world.pause()
            await send(body(b"b"))

        layer = ConcurrencyLimitMiddleware(app, limit=1, max_queue=1, hold=hold)
        try:
            await world.run(layer)
        finally:
            assert free(layer)

    explore(scenario, seeds=60, backend=backend)


# -- the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_loop_that_is_late_refuses() -> None:
    """While there are requests; when there are none it is not looked at."""
    gate = Gate()
    app = ConcurrencyLimitMiddleware(gate, limit=9, max_loop_delay=0.3)
    async with asked(app, 1):
        delay = app._delay
        assert delay is not None
        delay._due = asyncio.get_running_loop().time() - 1
        assert (await request(app)).status == 503
        delay._tick(asyncio.get_running_loop())
        delay._late = 1.0
        assert (await request(app)).status == 503
        delay._late = 0.0
        gate.let_through()
    assert delay._timer is None
    async with asked(app, 1) as answered:
        gate.let_through()
    assert answered[0].status == 200


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_the_loop_of_trio_is_not_measured() -> None:
    """It is an error in words."""
    server = await request(
        ConcurrencyLimitMiddleware(ok, limit=1, max_loop_delay=1), keep_error=True
    )
    assert "measures the loop of asyncio" in str(server.error)


# -- a limit that adapts ---------------------------------------------------------------------


def served(gradient: Gradient, capacity: int, *, rounds: int = 400) -> float:
    """Serve as many as the limit lets in, of which *capacity* are worked on at once."""
    chosen = random.Random(1)
    for _ in range(rounds):
        in_flight = int(gradient.limit)
        seconds = 0.05 * max(1.0, in_flight / capacity) * chosen.uniform(0.9, 1.1)
        gradient.sample(seconds, in_flight)
    return gradient.limit


def test_it_grows_where_there_is_room_and_stops_where_there_is_none() -> None:
    """Beyond what can be done at once by a few times, and not up to the greatest."""
    assert served(Gradient(AdaptiveLimit(max=60)), 1000) == 60
    found = served(Gradient(AdaptiveLimit(initial=20)), 40)
    assert 40 <= found < 160


def test_it_does_not_grow_where_nobody_is_held_back() -> None:
    """With few requests an answer says nothing of more."""
    gradient = Gradient(AdaptiveLimit(initial=20))
    for _ in range(500):
        gradient.sample(0.01, 5)

    assert gradient.limit == 20


def test_it_shrinks_where_answers_take_longer() -> None:
    """In their proportion, and never below the least; what took too long counts as that."""
    gradient = Gradient(AdaptiveLimit(min=6, initial=100))
    for _ in range(20):
        gradient.sample(0.01, 100)
    before = gradient.limit
    gradient.sample(0.1, 100)
    assert gradient.limit < before
    for _ in range(100):
        gradient.drop()
    assert gradient.limit == 6


@pytest.mark.parametrize(
    ("app", "options", "counts"),
    [
        (ok, {}, True),
        (Response(status_code=404), {}, True),
        (Response(status_code=500), {}, False),
        (Response(status_code=304), {}, False),
        (ok, {"method": "HEAD"}, False),
        (ok, {"method": "OPTIONS"}, False),
        (RateLimitMiddleware(ok, limit="1/hour", cost=2), {}, False),
    ],
)
async def test_what_counts_as_a_sample(app: Any, options: Any, counts: bool) -> None:
    """What the application has worked for, and nothing that layers have answered."""
    layer = ConcurrencyLimitMiddleware(app, limit=AdaptiveLimit())
    await request(layer, **options)
    gradient = layer._rooms[""].gradient

    assert gradient is not None
    assert (gradient._count, gradient.limit) == (int(counts), 20)


@pytest.mark.parametrize("answered", [False, True])
async def test_a_time_limit_that_struck_has_it_shrink(answered: bool) -> None:
    """Whoever has answered it."""

    async def limited(conn: Connection) -> Flow:
        conn.fail_after(0.01)
        yield

    inner: ASGIApp = (
        TimeoutMiddleware(Gate(), start=0.01)
        if answered
        else HTTPMiddleware(Gate(), dispatch=limited)
    )
    layer = ConcurrencyLimitMiddleware(inner, limit=AdaptiveLimit())
    await request(layer, keep_error=True)
    gradient = layer._rooms[""].gradient

    assert gradient is not None
    assert gradient.limit < 20


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, "`limit` must be"),
        ({"limit": "5"}, "`limit` must be"),
        ({"max_queue": -1}, "`max_queue` must be"),
        ({"queue_timeout": 0}, "`queue_timeout` must be"),
        ({"queue": "random"}, '"lifo" or "fifo"'),
        ({"hold": "end"}, '"app", "body" or "start"'),
        ({"max_streams": -1}, "`max_streams` must be"),
        ({"max_loop_delay": 0}, "`max_loop_delay` must be"),
        ({"event_stream": True}, '"retry" or "status"'),
        ({"partition": "path"}, "`partition` must be"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong one is refused where the layer is made."""
    with pytest.raises(TypeError) as caught:
        ConcurrencyLimitMiddleware(ok, **{"limit": 5, **options})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"min": 0}, {"min": 30}, {"max": 10}, {"initial": "5"}, {"tolerance": 0.5}]
)
def test_options_of_an_adaptive_limit_are_checked(options: Any) -> None:
    """They stand in an order."""
    with pytest.raises(TypeError):
        AdaptiveLimit(**options)
