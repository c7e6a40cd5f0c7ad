"""`explore` and `every_fault`: a planted bug is found, and its seed replays it exactly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.testing import (
    ASGIViolation,
    InjectedError,
    ScenarioFailure,
    World,
    every_fault,
    explore,
)
from tests.harness import Chunks, body, plain_inner, start

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
EITHER = pytest.mark.parametrize("search", [explore, every_fault])


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once."""
    await send(start())
    await send(body(b"plain"))


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a stream, before ASGI 2.4 from a child task."""
    await StreamingResponse(Chunks(b"a", b"b"))(scope, receive, send)


def around(app: ASGIApp, **options: Any) -> Callable[[World], Any]:
    """Return a scenario that sends one request to *app*."""

    async def scenario(world: World) -> None:
        await world.run(world.app(app), **options)

    return scenario


async def lost_update(world: World) -> None:
    """Count two requests at the same time, with a read and a write that are apart."""
    count = 0

    async def counting(conn: Connection) -> Flow:
        nonlocal count
        before = count
        await world.pause()
        count = before + 1
        yield

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(world.run, HTTPMiddleware(plain, dispatch=counting))
    assert world.struck or count == 2


# A planted bug


@BACKENDS
def test_race_is_found(backend: str) -> None:
    """A lost update shows in some schedule, and the failure says in which."""
    with pytest.raises(ScenarioFailure, match=r"^seed \d+ \(") as failure:
        explore(lost_update, seeds=200, backend=backend)
    assert f"explore(..., seeds=[{failure.value.seed}], backend={backend!r})" in str(failure.value)
    cause = failure.value.__cause__
    while isinstance(cause, ExceptionGroup):  # whoever was first
        cause = cause.exceptions[0]
    assert isinstance(cause, AssertionError | InjectedError)


@BACKENDS
def test_seed_of_a_failure_replays_it(backend: str) -> None:
    """The seed alone fails again, in the same way."""
    with pytest.raises(ScenarioFailure) as first:
        explore(lost_update, seeds=200, backend=backend)
    with pytest.raises(ScenarioFailure) as again:
        explore(lost_update, seeds=[first.value.seed], backend=backend)
    assert str(again.value) == str(first.value)


TRACE = """
import sys
import anyio
from httpmw import HTTPMiddleware
from httpmw.testing import explore
from tests.testing.exploring.test_explore import stream

trace = []

async def scenario(world):
    async def mw(conn):
        trace.append("in")
        response = yield
        await world.pause()
        trace.append("out")
        yield response
        trace.append("end")

    async def ticking():
        for number in range(5):
            await anyio.sleep(world.random.random())
            trace.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(ticking)
        group.start_soon(ticking)
        await world.run(HTTPMiddleware(world.app(stream), dispatch=mw))
    trace.append((world.counts, str(world.conditions), world.random.random()))

explore(scenario, seeds=range(20), backend=sys.argv[1])
print(trace)
"""


@BACKENDS
def test_schedule_is_the_same_in_another_process(backend: str) -> None:
    """A seed decides everything: not the hashes of strings, not the addresses of objects."""
    traces = {
        subprocess.run(
            [sys.executable, "-c", TRACE, backend],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(traces) == 1
    assert len(traces.pop()) > 1000


@BACKENDS
def test_schedules_differ(backend: str) -> None:
    """Two tasks come in either order, and the conditions change from seed to seed."""
    orders: set[tuple[str, ...]] = set()
    conditions: set[str] = set()

    async def scenario(world: World) -> None:
        order: list[str] = []

        async def task(name: str) -> None:
            await anyio.lowlevel.checkpoint()
            order.append(name)

        async with anyio.create_task_group() as group:
            for name in "abc":
                group.start_soon(task, name)
        orders.add(tuple(order))
        conditions.add(str(world.conditions))

    explore(scenario, seeds=100, backend=backend)
    assert len(orders) == 6
    assert len(conditions) > 50


# What is found


def raw(behave: Callable[[ASGIApp, Scope, Receive, Send], Any]) -> ASGIApp:
    """Return a hand-written middleware around a plain app."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await behave(plain, scope, receive, send)

    return app


@EITHER
def test_second_start_is_found(search: Any) -> None:
    """A middleware that answers a failure after the start breaks the protocol."""

    async def behave(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except InjectedError:
            await plain(scope, receive, send)

    with pytest.raises(ScenarioFailure, match="the server refused a message"):
        search(around(raw(behave)))


@EITHER
def test_message_that_was_refused_quietly_is_found(search: Any) -> None:
    """What the server refuses is a failure even where the app swallows it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await plain(scope, receive, send)
        with contextlib.suppress(ASGIViolation):
            await send(body(b"more"))

    with pytest.raises(ScenarioFailure, match="the server refused a message"):
        search(around(app))


async def flow(conn: Connection) -> AsyncIterator[None]:
    """A flow that nobody ends."""
    yield


@EITHER
def test_abandoned_flow_is_found(search: Any) -> None:
    """A generator that got a `Connection` has to be ended when the app returns."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        generators.append(flow(Connection(scope)))
        await anext(generators[-1])
        await plain(scope, receive, send)

    generators: list[Any] = []
    with pytest.raises(ScenarioFailure, match="flow was not ended"):
        search(around(app))


@EITHER
def test_generator_left_to_the_collector_is_found(search: Any) -> None:
    """The same where nobody holds it any more."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anext(flow(Connection(scope)))
        await plain(scope, receive, send)

    with pytest.raises(ScenarioFailure, match="flow was left to the garbage collector"):
        search(around(app))


@EITHER
def test_coroutine_that_was_never_awaited_is_found(search: Any) -> None:
    """What Python can only warn of is a failure."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        anyio.sleep(1)  # type: ignore[unused-coroutine]
        await plain(scope, receive, send)

    with pytest.raises(ScenarioFailure, match="was never awaited"):
        search(around(app))


def test_swallowed_cancellation_is_found() -> None:
    """A cancellation that was taken back is missing from `Task.cancelling()`."""

    async def behave(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()

    with pytest.raises(ScenarioFailure, match=r"task.cancelling\(\) is 0 after 1"):
        every_fault(around(raw(behave), complete=False))


def test_cancellation_of_its_own_is_found() -> None:
    """So is one too many."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await plain(scope, receive, send)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    with pytest.raises(ScenarioFailure, match=r"task.cancelling\(\) is 1 after 0"):
        every_fault(around(app))


@EITHER
@BACKENDS
def test_tail_that_is_cut_off_is_found(search: Any, backend: str) -> None:
    """What runs in a task that the app cancels is cut off as soon as the client leaves."""

    async def scenario(world: World) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def respond() -> None:
                await plain(scope, receive, send)
                with world.whole("the log"):
                    await world.pause()
                group.cancel_scope.cancel()

            async with anyio.create_task_group() as group:
                group.start_soon(respond)
                await receive()
                await receive()
                group.cancel_scope.cancel()

        await world.run(app)

    with pytest.raises(ScenarioFailure, match="the log was cut off"):
        search(scenario, backend=backend)


@EITHER
def test_exception_of_its_own_is_found(search: Any) -> None:
    """An exception that nobody expects fails the scenario, as itself."""

    async def behave(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except InjectedError:
            raise KeyError("mine") from None

    with pytest.raises(ScenarioFailure, match="KeyError: 'mine'") as failure:
        search(around(raw(behave)))
    assert isinstance(failure.value.__cause__, KeyError)
    search(around(raw(behave), expect=KeyError))


@EITHER
def test_client_that_waits_for_ever_is_found(search: Any) -> None:
    """An app that returns without a word leaves its client waiting."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())

    with pytest.raises(ScenarioFailure, match="the client still waits"):
        search(around(app))
    search(around(app, complete=False))


@EITHER
@BACKENDS
def test_request_that_hangs_is_found(search: Any, backend: str) -> None:
    """Nobody waits for an app that nothing will ever wake."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.Event().wait()

    with pytest.raises(ScenarioFailure, match="nothing can happen any more"):
        search(around(app), backend=backend)


@BACKENDS
def test_request_that_never_ends_is_found(backend: str) -> None:
    """Nor for one that is busy for ever."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(ScenarioFailure, match="did not end within 50000 steps"):
        explore(around(app), seeds=1, backend=backend)


# What is not a failure


@EITHER
@BACKENDS
def test_sound_scenario_passes(search: Any, backend: str) -> None:
    """Every kind of fault has struck."""

    async def scenario(world: World) -> None:
        async def mw(conn: Connection) -> Flow:
            response = yield
            yield response
            with world.whole("the log"):
                await world.pause()

        await world.run(HTTPMiddleware(world.app(stream), dispatch=mw))

    struck = search(scenario, backend=backend)
    assert min(struck[kind] for kind in ("cancellation", "disconnect", "error", "nothing")) > 2


@BACKENDS
def test_time_is_virtual(backend: str) -> None:
    """A year takes no time."""
    year = 365 * 86400.0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before = anyio.current_time()
        with anyio.move_on_after(year):
            await anyio.sleep(2 * year)
        assert anyio.current_time() - before == pytest.approx(year)
        await plain(scope, receive, send)

    started = time.monotonic()
    explore(around(app), seeds=20, backend=backend)
    assert time.monotonic() - started < 20


@BACKENDS
def test_threads_work(backend: str) -> None:
    """Code in a worker thread runs, though no seed decides when it comes back."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await anyio.to_thread.run_sync(lambda: 42) == 42
        await plain(scope, receive, send)

    explore(around(app), seeds=5, backend=backend)


@BACKENDS
def test_asyncio_thread_runs_in_place(backend: str) -> None:
    """`asyncio.to_thread` is a part of the schedule."""
    if backend == "trio":
        pytest.skip("asyncio's own")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await asyncio.to_thread(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        await plain(scope, receive, send)

    explore(around(app), seeds=5)


def test_generator_of_an_app_is_its_own_affair() -> None:
    """Starlette leaves the generator of a stream that is cut off to the garbage collector."""

    async def numbers() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"%d" % number

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(numbers())(scope, receive, send)

    for backend in ("asyncio", "trio"):
        explore(around(app), seeds=200, backend=backend)


def test_tasks_that_are_left_are_ended() -> None:
    """A task that outlives its request does not outlive its schedule."""
    ended: list[str] = []

    async def scenario(world: World) -> None:
        async def forever() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append("ended")

        tasks.append(asyncio.create_task(forever()))
        await asyncio.sleep(0.1)
        await world.run(plain)

    tasks: list[Any] = []
    explore(scenario, seeds=10)
    assert ended == ["ended"] * 10


# The world


@BACKENDS
def test_client_can_leave_on_its_own(backend: str) -> None:
    """`leaves_at` is a time of the clock that only the schedule has."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before = anyio.current_time()
        while (await receive())["type"] != "http.disconnect":
            pass
        if not (worlds[-1].struck or anyio.current_time() - before > 3):
            raise AssertionError("too early")

    worlds: list[World] = []

    async def scenario(world: World) -> None:
        worlds.append(world)
        await world.run(app, leaves_at=5)
        assert world.struck or world.disconnected

    explore(scenario, seeds=50, backend=backend)


def test_request_is_described_like_a_servers() -> None:
    """The arguments of `Server` are arguments of `World.run`, and win."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["method"] == "PUT"
        assert scope["path"] == "/x"
        assert scope["asgi"]["spec_version"] == "2.5"
        await plain(scope, receive, send)

    explore(around(app, method="PUT", path="/x", spec="2.5"), seeds=20)


def test_server_before_the_first_request() -> None:
    """There is none, and the message says what makes one."""

    async def scenario(world: World) -> None:
        with pytest.raises(RuntimeError, match=r"world\.run\(app\)"):
            _ = world.server
        await world.run(plain)
        assert world.server.complete or world.struck
        assert world.raised is None or world.struck

    explore(scenario, seeds=20)


def test_random_numbers_of_a_scenario_belong_to_its_seed() -> None:
    """They do not depend on the event loop."""

    def numbers(backend: str) -> list[float]:
        drawn: list[float] = []

        async def scenario(world: World) -> None:
            drawn.append(world.random.random())

        explore(scenario, seeds=5, backend=backend)
        return drawn

    assert numbers("asyncio") == numbers("trio")
    assert len(set(numbers("asyncio"))) == 5


# The calls


@EITHER
def test_unknown_event_loop(search: Any) -> None:
    """A backend is asyncio or trio."""
    with pytest.raises((ValueError, ScenarioFailure), match="'asyncio' or 'trio'"):
        search(around(plain), backend="curio")


def test_one_case_of_every_fault() -> None:
    """The message of a failure names cases that can be run alone."""

    async def behave(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def failing(message: Message) -> None:
            try:
                await send(message)
            except InjectedError:
                raise KeyError("mine") from None

        await app(scope, receive, failing)

    with pytest.raises(ScenarioFailure) as failure:
        every_fault(around(raw(behave)))
    only = str(failure.value).rpartition("only='")[2].partition("'")[0]
    assert only == "asyncio, spec 2.3, told repeated: error at app 1"
    with pytest.raises(ScenarioFailure, match="KeyError") as again:
        every_fault(around(raw(behave)), only=only)
    assert str(again.value).count("KeyError") == 1
    assert every_fault(around(plain), only=only) == {"error": 1}


def test_unknown_case_of_every_fault() -> None:
    """A case that is not there is not taken for one that passes."""
    with pytest.raises(ValueError, match=r"no case 'asyncio, spec 2\.3: rain'"):
        every_fault(around(plain), only="asyncio, spec 2.3: rain")


def test_every_fault_without_a_fault() -> None:
    """A scenario that fails by itself is reported once for each server."""

    async def scenario(world: World) -> None:
        raise KeyError("by itself")

    with pytest.raises(ScenarioFailure) as failure:
        every_fault(scenario)
    assert str(failure.value).count("no fault: KeyError") == 3


@EITHER
@BACKENDS
def test_process_is_as_before(search: Any, backend: str) -> None:
    """The garbage collector, the hooks and trio's scheduler are put back."""
    from trio._core import _run

    def state() -> tuple[Any, ...]:
        return (
            gc.isenabled(),
            sys.unraisablehook,
            sys.get_asyncgen_hooks(),
            _run._r,
            _run._ALLOW_DETERMINISTIC_SCHEDULING,
        )

    before = state()
    if search is explore:
        explore(around(plain), seeds=5, backend=backend)
    else:
        every_fault(around(plain), backend=backend)
    with pytest.raises(ScenarioFailure):
        search(around(anyio.sleep), backend=backend)  # type: ignore[arg-type]
    assert state() == before


@EITHER
def test_nothing_is_hidden_from_the_collector(search: Any) -> None:
    """
    Nothing is left frozen, also where something was before, as when Python 3.12 starts.

    The collector frees nothing that is frozen, and `gc.get_referrers()` does not look there.
    """
    gc.freeze()
    search(around(plain))
    assert gc.get_freeze_count() == 0


@EITHER
def test_garbage_of_before_is_left_alone(search: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it complains about is heard where it always is."""
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)

    class Complaining:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            raise KeyError("of before")

    Complaining()
    search(around(plain))
    gc.collect()
    assert [str(each.exc_value) for each in heard] == ["'of before'"]


def test_private_parts_of_trio() -> None:
    """What decides trio's schedule is where it is looked for."""
    from trio._core import _run

    assert isinstance(_run._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert callable(_run._r.shuffle)


async def test_inner_app_of_the_harness_passes() -> None:
    """A world can be made by hand, inside of a running loop."""
    from httpmw.testing.exploring._world import Conditions

    if sys.modules["sniffio"].current_async_library() == "trio":
        return
    world = World(Conditions())
    server = await world.run(world.app(plain_inner()))
    assert server.complete
    assert world.counts["server"] > 3
