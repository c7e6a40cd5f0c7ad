"""Tasks, contexts and scopes: where a middleware function runs, and what it may hold meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError, _context
from httpmw._exchange import Exchange
from tests.harness import (
    Chunks,
    Inner,
    Server,
    body,
    explained,
    left_to_the_collector,
    passing,
    plain_inner,
    request,
    script,
    stack,
    start,
    stream_inner,
    waiting,
)

Layers = Callable[[ASGIApp, Callable[..., Any]], ASGIApp]

VAR: ContextVar[str] = ContextVar("VAR", default="unset")


def eager_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop whose tasks start at once, inside the one that makes them."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


LOOPS: list[Any] = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"debug": True}), id="asyncio-debug"),
    pytest.param("trio", id="trio"),
]
if importlib.util.find_spec("uvloop") is not None:
    LOOPS.append(pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))
if sys.version_info >= (3, 12):
    LOOPS.append(pytest.param(("asyncio", {"loop_factory": eager_loop}), id="asyncio-eager"))


ON_ASYNCIO = pytest.mark.parametrize(
    "anyio_backend", [loop for loop in LOOPS if loop.values != ("trio",)]
)


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every event loop there is."""
    return request.param


def is_asyncio() -> bool:
    """Tell whether the running loop is one of asyncio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def task() -> Any:
    """Return the running task."""
    return asyncio.current_task() if is_asyncio() else trio.lowlevel.current_task()


# The context of the request.


@contextlib.contextmanager
def bound(value: str) -> Iterator[None]:
    """Set `VAR`, and reset it with the token, which only works in the same context."""
    token = VAR.set(value)
    try:
        yield
    finally:
        VAR.reset(token)


async def test_token_is_reset_after_the_yield(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """A context variable that was set before the yield can be reset after it, on any response."""
    seen: list[str] = []

    async def mw(conn: Connection) -> Flow:
        with bound("mine"):
            yield
            seen.append(VAR.get())
        seen.append(VAR.get())

    server = await request(layers(inner, mw), spec=spec)
    assert (server.body, server.complete) == (Inner.BODY, True)
    assert seen == ["mine", "unset"]
    assert VAR.get() == "unset"


async def test_what_a_stream_sees_behind_a_block_around_one_yield(layers: Layers) -> None:
    """A task that the app began inside of the block keeps the value, the request's own does not."""
    seen: dict[str, str] = {}

    async def mw(conn: Connection) -> Flow:
        with bound("mine"):
            yield

    for spec in ("2.3", "2.4"):

        async def chunks(spec: str = spec) -> AsyncIterator[bytes]:
            yield b"one"
            seen[spec] = VAR.get()
            yield b"two"

        async def app(scope: Scope, receive: Receive, send: Send, chunks: Any = chunks) -> None:
            await StreamingResponse(chunks())(scope, receive, send)

        await request(layers(app, mw), spec=spec)

    assert seen == {"2.3": "mine", "2.4": "unset"}


async def test_file_response_sends_from_the_task_that_it_was_called_in(tmp_path: Path) -> None:
    """For HEAD, and with `pathsend` where no range is asked for; else from a task of its own."""
    file = tmp_path / "file"
    file.write_bytes(b"some bytes")
    pathsend = {"extensions": {"http.response.pathsend": {}}}
    ranged = {"headers": [(b"range", b"bytes=0-3")]}
    cases: list[tuple[bool, dict[str, Any]]] = [
        (False, {}),
        (True, {"method": "HEAD"}),
        (True, pathsend),
        (False, pathsend | ranged),
    ]

    async def mw(conn: Connection) -> Flow:
        began = anyio.get_current_task().id
        yield
        same.append(anyio.get_current_task().id == began)

    for expected, options in cases:
        same: list[bool] = []
        await request(HTTPMiddleware(FileResponse(file), dispatch=mw), spec="2.3", **options)
        assert same == [expected], options


async def test_token_is_reset_after_the_second_yield(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """The same holds where the function waits for the end."""
    seen: list[str] = []

    async def mw(conn: Connection) -> Flow:
        with bound("mine"):
            response = yield
            yield response
            seen.append(VAR.get())

    server = await request(layers(inner, mw), spec=spec)
    assert server.body == Inner.BODY
    assert (seen, VAR.get()) == (["mine"], "unset")


async def test_token_is_reset_after_a_replacement(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """The same holds where the function answers in place of the app."""

    async def mw(conn: Connection) -> Flow:
        with bound("mine"):
            yield
            yield PlainTextResponse("instead", 418)

    server = await request(layers(inner, mw), spec=spec)
    assert (server.body, VAR.get()) == (b"instead", "unset")


async def test_token_is_reset_in_a_step_that_waits(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """The context is kept across everything that a step awaits."""

    async def mw(conn: Connection) -> Flow:
        with bound("before"):
            response = yield
            await anyio.lowlevel.checkpoint()
            with bound("between"):
                await anyio.lowlevel.checkpoint()
                assert await response.read() == Inner.BODY
                assert VAR.get() == "between"
        assert VAR.get() == "unset"

    assert (await request(layers(inner, mw), spec=spec)).body == Inner.BODY


async def test_token_is_reset_when_the_app_fails(layers: Layers) -> None:
    """The context is the same when an exception is raised at the yield."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError

    async def mw(conn: Connection) -> Flow:
        with bound("mine"):
            yield

    server = await request(layers(app, mw), keep_error=True)
    assert isinstance(server.error, LookupError)
    assert VAR.get() == "unset"


@contextlib.contextmanager
def begun_generators() -> Iterator[list[str]]:
    """Note the async generators that the event loop is told of."""
    names: list[str] = []
    hooks = sys.get_asyncgen_hooks()

    def note(generator: Any) -> None:
        names.append(generator.__name__)
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    sys.set_asyncgen_hooks(firstiter=note)
    try:
        yield names
        assert sys.get_asyncgen_hooks().firstiter is note
    finally:
        sys.set_asyncgen_hooks(*hooks)


async def test_loop_is_told_of_generators_but_not_of_flows(layers: Layers) -> None:
    """It ends those that users leave behind; the flows are ended without it."""

    async def mine() -> AsyncIterator[int]:
        yield 1

    async def begin() -> None:
        generator = mine()
        await generator.__anext__()
        await generator.aclose()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin()
        await plain_inner()(scope, receive, send)

    async def mw(conn: Connection) -> Flow:
        await begin()
        response = yield
        await begin()
        yield response
        await begin()

    with begun_generators() as names:
        assert (await request(layers(app, mw))).complete
    assert names == ["mine"] * 4


async def test_value_set_after_the_yield(inner: Inner, spec: str | None, fused: bool) -> None:
    """What an inner function sets after its yield is seen further out."""
    seen: list[str] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append(VAR.get())
        yield response
        seen.append(VAR.get())

    async def innermost(conn: Connection) -> Flow:
        response = yield
        VAR.set("start")
        yield response
        VAR.set("end")

    with bound("outside"):
        await request(stack(inner, outer, passing, innermost, fused=fused), spec=spec)
    assert seen == ["start", "end"]


async def test_value_set_before_the_yield(inner: Inner, spec: str | None, fused: bool) -> None:
    """What an outer function sets before its yield is seen further in, and in the app."""
    seen: list[str] = []

    async def outer(conn: Connection) -> Flow:
        VAR.set("outer")
        yield

    async def innermost(conn: Connection) -> Flow:
        seen.append(VAR.get())
        yield
        seen.append(VAR.get())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(VAR.get())
        await inner(scope, receive, send)

    with bound("outside"):
        await request(stack(app, outer, passing, innermost, fused=fused), spec=spec)
    assert seen == ["outer", "outer", "outer"]


@pytest.mark.parametrize("kind", ["plain", "stream"])
async def test_value_set_in_the_endpoint(spec: str | None, kind: str, fused: bool) -> None:
    """What an endpoint sets is seen after the yield."""
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        VAR.set("endpoint")
        return StreamingResponse(Chunks(b"x")) if kind == "stream" else PlainTextResponse("x")

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.append(VAR.get())
        yield response
        seen.append(VAR.get())

    functions = (passing, mw, waiting) if fused else (mw,)
    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(HTTPMiddleware, dispatch=function) for function in functions],
    )
    with bound("outside"):
        assert (await request(app, spec=spec)).body == b"x"
    assert seen == ["endpoint", "endpoint"]


async def test_context_of_its_own(inner: Inner, spec: str | None, layers: Layers) -> None:
    """A request whose task was given a context of its own runs its functions in that one."""

    async def mw(conn: Connection) -> Flow:
        with bound("mine"):
            yield
        VAR.set("last")

    context = copy_context()
    app = layers(inner, mw)
    if is_asyncio():
        await asyncio.create_task(request(app, spec=spec), context=context)
    else:
        async with trio.open_nursery() as nursery:
            context.run(nursery.start_soon, run_request, app, spec)
        return  # trio gives each task a copy
    assert context[VAR] == "last"
    assert VAR.get() == "unset"


@ON_ASYNCIO
@pytest.mark.parametrize("how", ["leaves it alone", "resets a token"])
async def test_start_sent_by_an_eager_task(layers: Layers, how: str) -> None:
    """A task that starts inside of the request's runs the function in its own context."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.create_task(send(start()))  # type: ignore[arg-type]
        await asyncio.create_task(send(body(b"x")))  # type: ignore[arg-type]

    async def mw(conn: Connection) -> Flow:
        if how == "leaves it alone":
            yield
            await anyio.lowlevel.checkpoint()
        else:
            with bound("mine"):
                yield

    server = await request(layers(app, mw), keep_error=True)
    if how == "resets a token" and asyncio.get_running_loop().get_task_factory() is not None:
        assert isinstance(server.error, MiddlewareError)
        explained(server.error, mw)
    else:
        assert server.error is None
        assert (server.body, server.complete) == (b"x", True)


async def run_request(app: ASGIApp, spec: str | None) -> None:
    """Run a request without a result."""
    await request(app, spec=spec)


# The task of the request.


async def test_back_in_the_task_at_the_end(inner: Inner, spec: str | None, layers: Layers) -> None:
    """After `yield response` the function is back in the task in which it began."""
    tasks: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        tasks.append(task())
        response = yield
        yield response
        tasks.append(task())

    await request(layers(inner, mw), spec=spec)
    assert tasks == [task(), task()]


@pytest.mark.parametrize("function", [passing, waiting])
async def test_no_task_is_created(
    inner: Inner, spec: str | None, layers: Layers, function: Callable[..., Any]
) -> None:
    """A request creates as many tasks as it does without middleware."""
    with counted_tasks() as bare:
        await request(inner, spec=spec)
    with counted_tasks() as tasks:
        await request(layers(inner, function), spec=spec)
    assert len(tasks) == len(bare)


async def test_no_task_is_created_by_all_that_is_offered(layers: Layers) -> None:
    """No task is created for reading, transforming, replacing or answering."""

    async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.upper()

    async def mw(conn: Connection) -> Flow:
        await conn.body()
        conn.fail_after(60)
        response = yield
        if conn.url.path == "/read":
            await response.read()
        elif conn.url.path == "/transform":
            response.body_iterator = upper(response.body_iterator)
        elif conn.url.path == "/set":
            response.body = b"set"
        elif conn.url.path == "/replace":
            yield PlainTextResponse("instead")

    app = layers(script(start(), body(b"a", more=True), body(b"b")), mw)
    with counted_tasks() as tasks:
        bodies = [
            (await request(app, path=path)).body
            for path in ("/", "/read", "/transform", "/set", "/replace")
        ]
    assert bodies == [b"ab", b"ab", b"AB", b"set", b"instead"]
    assert tasks == []


@contextlib.contextmanager
def counted_tasks() -> Iterator[list[Any]]:
    """Collect what is made into a task."""
    made: list[Any] = []
    if is_asyncio():
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()

        def count(coro: Any, **options: Any) -> asyncio.Task[Any]:
            made.append(coro)
            return asyncio.Task(coro, **options)

        def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            return count(coro, loop=loop, **options)

        # anyio knows an eager factory by its code.
        eager = factory is not None
        loop.set_task_factory(asyncio.create_eager_task_factory(count) if eager else make)  # type: ignore[attr-defined]
        try:
            yield made
        finally:
            loop.set_task_factory(factory)
    else:

        class Count(trio.abc.Instrument):
            def task_spawned(self, task: trio.lowlevel.Task) -> None:
                made.append(task)

        instrument = Count()
        trio.lowlevel.add_instrument(instrument)
        try:
            yield made
        finally:
            trio.lowlevel.remove_instrument(instrument)


async def test_body_read_from_a_task_of_its_own(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """Reading a body from another task is refused at that `await`, which says what to write."""
    errors: list[MiddlewareError] = []

    async def mw(conn: Connection) -> Flow:
        response = yield

        async def read() -> None:
            try:
                await response.read()
            except MiddlewareError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(read)

    server = await request(layers(inner, mw), spec=spec)
    assert (server.body, server.complete) == (Inner.BODY, True)
    assert "await response.read()" in str(errors[0])
    assert len(errors) == 1


# What may be held across a yield.


@ON_ASYNCIO
@pytest.mark.parametrize("late", [False, True], ids=["first", "second"])
async def test_timeout_of_asyncio(
    inner: Inner, spec: str | None, layers: Layers, late: bool
) -> None:
    """`asyncio.timeout` may be held open across a yield."""

    async def mw(conn: Connection) -> Flow:
        async with asyncio.timeout(60):
            response = yield
            if late:
                yield response

    server = await request(layers(inner, mw), spec=spec)
    assert (server.body, server.complete) == (Inner.BODY, True)


@ON_ASYNCIO
@pytest.mark.parametrize("shape", ["hangs", "in a scope", "in a child"])
async def test_timeout_of_asyncio_runs_out(spec: str | None, layers: Layers, shape: str) -> None:
    """When the time of `asyncio.timeout` is over the app is stopped, and may be answered for."""
    stopped: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append("stopped")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if shape == "in a child":
            async with anyio.create_task_group() as group:
                group.start_soon(hang)
        elif shape == "in a scope":
            with anyio.CancelScope():
                await hang()
        else:
            await hang()

    async def mw(conn: Connection) -> Flow:
        try:
            async with asyncio.timeout(0):
                yield
        except TimeoutError:
            yield PlainTextResponse("too slow", 504)

    server = await request(layers(app, mw), spec=spec)
    assert (server.status, server.body) == (504, b"too slow")
    if shape != "in a child":  # which may not have been started yet
        assert stopped == ["stopped"]
    assert task().cancelling() == 0


@ON_ASYNCIO
async def test_timeout_of_asyncio_runs_out_in_the_body(spec: str | None, layers: Layers) -> None:
    """It may as well run out in mid-body, at `yield response`."""
    limits: list[asyncio.Timeout] = []
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x", more=True))
        limits[0].reschedule(0)
        await anyio.sleep_forever()

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                yield response
        except TimeoutError:
            seen.append((response.bytes_sent, response.outcome))

    server = await request(layers(app, mw), spec=spec)
    assert server.types == ["start", "body"]
    assert not server.complete
    assert seen == [(1, "cancelled")]
    assert task().cancelling() == 0


@ON_ASYNCIO
async def test_timeout_of_asyncio_runs_out_before_anything_is_sent(
    spec: str | None, layers: Layers
) -> None:
    """A response whose start could not be sent is an error, also if the function is silent."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                yield response

    server = await request(layers(plain_inner(), mw), spec=spec, keep_error=True)
    assert server.sent == []
    assert isinstance(server.error, Exception)
    assert task().cancelling() == 0


def semaphore_of_the_loop() -> Any:
    """Make a semaphore of asyncio or trio."""
    return asyncio.Semaphore(1) if is_asyncio() else trio.Semaphore(1)


def lock_of_nobody() -> Any:
    """Make a lock that has no owner; there is one in asyncio only."""
    return asyncio.Lock() if is_asyncio() else anyio.Semaphore(1)


@pytest.mark.parametrize(
    "make",
    [lambda: anyio.Semaphore(1), semaphore_of_the_loop, lock_of_nobody],
    ids=["anyio", "loop", "lock"],
)
async def test_semaphore(
    inner: Inner, spec: str | None, layers: Layers, make: Callable[[], Any]
) -> None:
    """A semaphore, or a lock that nobody owns, may be held across the yields."""
    semaphore = make()
    inside: list[int] = [0, 0]

    async def mw(conn: Connection) -> Flow:
        async with semaphore:
            inside[0] += 1
            inside[1] = max(inside)
            response = yield
            await anyio.lowlevel.checkpoint()
            if conn.url.path == "/waits":
                yield response
            inside[0] -= 1

    app = layers(inner, mw)
    async with anyio.create_task_group() as group:
        for path in ("/", "/waits", "/", "/waits"):
            group.start_soon(run_path, app, spec, path)
    assert inside == [0, 1]
    assert inner.ended == [None] * 4


async def run_path(app: ASGIApp, spec: str | None, path: str) -> None:
    """Run a request and check its body."""
    assert (await request(app, spec=spec, path=path)).body == Inner.BODY


@pytest.mark.parametrize(
    "make", [anyio.Lock, lambda: anyio.CapacityLimiter(1)], ids=["Lock", "CapacityLimiter"]
)
async def test_lock_that_belongs_to_a_task(layers: Layers, make: Callable[[], Any]) -> None:
    """A lock with an owner fails where a child sends; the error says what to use instead."""
    lock = make()

    async def holds_a_lock(conn: Connection) -> Flow:
        async with lock:
            yield

    server = await request(layers(stream_inner(), holds_a_lock), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, holds_a_lock, "Semaphore")
    assert isinstance(server.error.__cause__, RuntimeError)
    assert server.sent == []


# Many requests, one instance.


async def test_concurrent_requests(inner: Inner, spec: str | None, layers: Layers) -> None:
    """Requests that run at the same time share a middleware and nothing else."""
    count = 8
    arrived: list[str] = []
    all_there = anyio.Event()
    servers = [Server(spec=spec, path=f"/{number}") for number in range(count)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.append(scope["path"])
        if len(arrived) == count:
            all_there.set()
        await all_there.wait()
        await inner(scope, receive, send)

    async def mw(conn: Connection) -> Flow:
        with bound(conn.url.path):
            response = yield
            await anyio.lowlevel.checkpoint()
            response.headers["x-path"] = VAR.get()
            yield response
            assert VAR.get() == conn.url.path

    wrapped = layers(app, mw)
    async with anyio.create_task_group() as group:
        for server in servers:
            group.start_soon(server.run, wrapped)
    for server in servers:
        assert server.headers["x-path"] == server.scope["path"]
        assert server.body == Inner.BODY


# Every generator is ended.


async def early(conn: Connection) -> Flow:
    yield PlainTextResponse("early")


async def replaces(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse("instead")


async def streams(conn: Connection) -> Flow:
    yield
    yield StreamingResponse(Chunks(b"in", b"stead"))


async def reads(conn: Connection) -> Flow:
    response = yield
    await response.read()
    yield response


async def reads_a_part(conn: Connection) -> Flow:
    response = yield
    async for _ in response.body_iterator:
        break


async def ends_at_once(conn: Connection) -> Flow:
    if conn.url.path == "/never":
        yield


async def raises_first(conn: Connection) -> Flow:
    raise LookupError
    yield


async def raises_after(conn: Connection) -> Flow:
    yield
    raise LookupError


async def raises_last(conn: Connection) -> Flow:
    response = yield
    yield response
    raise LookupError


async def denies(conn: Connection) -> Flow:
    yield
    raise HTTPException(403)


async def asks_twice(conn: Connection) -> Flow:
    yield
    yield


async def answers_twice(conn: Connection) -> Flow:
    response = yield
    yield response
    yield response


async def never_stops(conn: Connection) -> Flow:
    while True:
        with contextlib.suppress(Exception):
            yield


async def swallows(conn: Connection) -> Flow:
    with contextlib.suppress(BaseException):
        response = yield
        yield response


async def answers_all(conn: Connection) -> Flow:
    try:
        yield
    except Exception:
        yield PlainTextResponse("sorry", 500)


async def nonsense(conn: Connection) -> Flow:
    yield
    yield 42


async def holds_a_scope(conn: Connection) -> Flow:
    with anyio.CancelScope():
        yield


async def fails_in_finally(conn: Connection) -> Flow:
    try:
        yield
    finally:
        raise LookupError


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError


async def breaks_off(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start())
    await send(body(b"x", more=True))
    raise KeyError


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Return without a response."""


FUNCTIONS = [
    early,
    replaces,
    streams,
    reads,
    reads_a_part,
    ends_at_once,
    raises_first,
    raises_after,
    raises_last,
    denies,
    asks_twice,
    answers_twice,
    never_stops,
    swallows,
    answers_all,
    nonsense,
    holds_a_scope,
    fails_in_finally,
]


def recorded(function: Callable[[Connection], Flow], flows: list[Any]) -> Callable[..., Any]:
    """Keep the generators that *function* makes."""

    def dispatch(conn: Connection) -> Flow:
        flow = function(conn)
        flows.append(flow)
        return flow

    return dispatch


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_every_generator_is_ended(
    function: Callable[[Connection], Flow], spec: str | None, fused: bool
) -> None:
    """Whatever happens, when the adapter returns every generator has ended."""
    apps: list[ASGIApp] = [
        plain_inner(),
        stream_inner(),
        broken,
        breaks_off,
        silent,
        script(start(), body(b"x", more=True)),
    ]
    for app in apps:
        flows: list[Any] = []
        functions = [recorded(each, flows) for each in (waiting, function, passing, waiting)]
        await request(stack(app, *functions, fused=fused), spec=spec, keep_error=True)
        assert len(flows) >= 2
        assert [flow for flow in flows if flow.ag_frame is not None] == []


async def test_every_generator_is_ended_when_the_request_is_cancelled(
    spec: str | None, fused: bool
) -> None:
    """The same holds for a cancelled request, before the start and in mid-body."""
    for messages in ([], [start(), body(b"x", more=True)]):
        flows: list[Any] = []
        functions = [recorded(each, flows) for each in (waiting, passing, answers_all)]

        with anyio.CancelScope() as scope:

            async def app(
                asgi: Scope,
                receive: Receive,
                send: Send,
                messages: Any = messages,
                scope: anyio.CancelScope = scope,
            ) -> None:
                for message in messages:
                    await send(message)
                scope.cancel()
                await anyio.sleep_forever()

            await request(stack(app, *functions, fused=fused), spec=spec)
        assert scope.cancelled_caught
        assert len(flows) == 3
        assert [flow for flow in flows if flow.ag_frame is not None] == []


@pytest.mark.parametrize(
    "messages", [[], [start(), body(b"x", more=True)]], ids=["before", "after"]
)
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "waits"])
async def test_every_generator_is_ended_when_the_adapter_is_closed(
    messages: list[Any], fused: bool, reads: bool
) -> None:
    """The same holds when the coroutine of the adapter is closed, as by a loop that shuts down."""
    flows: list[Any] = []
    ended: list[str] = []

    class Forever:
        def __await__(self) -> Any:
            yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        await Forever()

    async def cleans_up(conn: Connection) -> Flow:
        try:
            response = yield
            if reads:
                await response.read()
            yield response
        finally:
            ended.append("closed")

    async def send(message: Any) -> None:
        pass

    server = Server()
    functions = [recorded(each, flows) for each in (waiting, cleans_up, cleans_up)]
    wrapped = stack(app, *functions, fused=fused)
    running = wrapped(server.scope, server.receive, send)
    running.send(None)  # type: ignore[attr-defined]
    assert ended == []
    running.close()  # type: ignore[attr-defined]
    assert ended == ["closed"] * 2
    assert [flow for flow in flows if flow.ag_frame is not None] == []


async def test_generator_that_ignores_being_closed(layers: Layers) -> None:
    """A generator that cannot be ended is an error that says what was wrong in the first place."""

    async def ignores_being_closed(conn: Connection) -> Flow:
        try:
            yield
            yield
        finally:
            yield

    server = await request(layers(plain_inner(), ignores_being_closed), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, ignores_being_closed)
    assert isinstance(server.error.__context__, RuntimeError)
    assert server.sent == []


async def test_transform_is_ended(spec: str | None, layers: Layers) -> None:
    """The generators that transform a body are ended as well, however the request ends."""

    async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.upper()

    async def first(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            break

    async def fails(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            raise LookupError

    for transform in (upper, first, fails):
        for app in (plain_inner(), stream_inner(), breaks_off):
            made: list[Any] = []

            async def mw(
                conn: Connection, transform: Any = transform, made: list[Any] = made
            ) -> Flow:
                response = yield
                made.append(transform(response.body_iterator))
                response.body_iterator = made[0]

            await request(layers(app, mw), spec=spec, keep_error=True)
            assert made[0].ag_frame is None


async def catches(conn: Connection) -> Flow:
    async def fails() -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError

    async def caught() -> None:
        with contextlib.suppress(LookupError):
            # A future, where there are any, goes to whoever drives the function.
            await (asyncio.create_task(fails()) if is_asyncio() else fails())

    await caught()
    yield
    await caught()


@pytest.mark.parametrize(
    "function", [passing, waiting, replaces, early, reads, answers_all, catches]
)
async def test_nothing_is_left_to_the_garbage_collector(
    inner: Inner, spec: str | None, layers: Layers, function: Callable[[Connection], Flow]
) -> None:
    """When a request is over, reference counting alone frees its connection."""
    seen: list[weakref.ref[Connection]] = []

    def dispatch(conn: Connection) -> Flow:
        seen.append(weakref.ref(conn))
        return function(conn)

    await request(layers(inner, dispatch), spec=spec)
    inner.ended.clear()  # It keeps exceptions, and they keep frames.
    await anyio.lowlevel.checkpoint()
    assert [each() for each in seen] == [None]


async def looks_back(conn: Connection) -> Flow:
    response = yield
    yield response
    await conn.is_disconnected()


async def fails_afterwards(conn: Connection) -> Flow:
    response = yield
    yield response
    raise LookupError


@pytest.mark.parametrize("function", [looks_back, fails_afterwards])
async def test_end_leaves_nothing_to_the_garbage_collector(
    function: Callable[[Connection], Flow],
) -> None:
    """What happens when everything is over is let go of as well."""
    app = stack(script(start(), body(b"ab")), waiting, function, waiting, fused=True)

    async def once() -> None:
        server = Server()
        with contextlib.suppress(LookupError):
            await app(server.scope, server.receive, server.send)

    assert await left_to_the_collector(Exchange, once) == []


# The check for open scopes, and the private data that it reads.


@contextlib.asynccontextmanager
async def any_scope(kind: str) -> AsyncIterator[None]:
    """Open a scope of *kind*."""
    if kind == "task group":
        async with anyio.create_task_group():
            yield
    elif kind == "nursery":
        async with trio.open_nursery():
            yield
    else:
        make: Any = {
            "cancel scope": anyio.CancelScope,
            "fail_after": lambda: anyio.fail_after(60),
            "move_on_after": lambda: anyio.move_on_after(60),
            "trio scope": trio.CancelScope,
            "trio.fail_after": lambda: trio.fail_after(60),
        }[kind]
        with make():
            yield


ANYIO_SCOPES = ["cancel scope", "fail_after", "move_on_after", "task group"]
TRIO_SCOPES = ["trio scope", "trio.fail_after", "nursery"]


async def test_canary_scopes_are_seen() -> None:
    """The private data of anyio and trio is where the check looks for it."""
    running = task()
    kinds = ANYIO_SCOPES if is_asyncio() else ANYIO_SCOPES + TRIO_SCOPES
    for kind in kinds:
        _context.find_states()
        before = _context.open_scopes(running)
        assert type(before) is not _context._Deadline, "the check has fallen back"
        async with any_scope(kind):
            inside = _context.open_scopes(running)
            assert inside != before
            async with any_scope(kind):
                assert _context.open_scopes(running) != inside
            assert not _context.open_scopes(running) != inside  # noqa: SIM202 - `!=` is the check
        assert not _context.open_scopes(running) != before  # noqa: SIM202


async def test_canary_context_of_a_task() -> None:
    """The context of a running task is where it is looked for."""
    with bound("mine"):
        context = _context.context_of(task())
        assert context is not None
        assert context[VAR] == "mine"
        VAR.set("changed")
        assert context[VAR] == "changed"


async def test_canary_current_task() -> None:
    """The running task is found on every loop."""
    assert _context.current_task() is task()


class Broken:
    """A backend of anyio's whose data has moved."""


async def test_check_that_is_broken_fails_no_request(
    inner: Inner, spec: str | None, layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the private data has moved requests are served as before."""
    monkeypatch.setattr(_context, "states", _context.states_in(Broken()))
    assert isinstance(_context.open_scopes(task()), _context._Deadline)
    with anyio.move_on_after(60):
        server = await request(layers(inner, waiting), spec=spec)
    assert server.body == Inner.BODY


async def test_check_that_is_broken_still_sees_time_limits(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the private data has moved a time limit is still found by its deadline."""
    monkeypatch.setattr(_context, "states", _context.states_in(Broken()))

    async def holds_a_limit(conn: Connection) -> Flow:
        with anyio.fail_after(60):
            yield

    server = await request(layers(plain_inner(), holds_a_limit), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, holds_a_limit, "conn.fail_after")


async def test_check_whose_fall_back_is_broken_fails_no_request(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where anyio cannot tell the deadline either, requests are served as before."""

    def missing() -> float:
        raise ImportError("no backend")

    monkeypatch.setattr(_context, "states", _context.states_in(Broken()))
    monkeypatch.setattr("httpmw._context.anyio.current_effective_deadline", missing)
    server = await request(layers(plain_inner(), waiting))
    assert server.body == Inner.BODY


def test_backend_that_comes_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What anyio knows is looked for again until its backend can be imported."""
    import anyio._backends._asyncio as backend

    with monkeypatch.context() as without:
        without.setitem(sys.modules, backend.__name__, None)
        without.delattr("anyio._backends._asyncio", raising=False)
        without.setattr(_context, "states", None)
        _context.find_states()
        assert _context.states is None
    monkeypatch.setattr(_context, "states", None)
    _context.find_states()
    assert type(_context.states) is dict


# -- a start that is sent from elsewhere ---------------------------------------------------------


async def slow(conn: Connection) -> Flow:
    """Wait for something of its own at the response start."""
    yield
    await anyio.lowlevel.checkpoint()


async def with_a_header(conn: Connection) -> Flow:
    response = yield
    response.headers["x-mw"] = "yes"


async def with_a_limit(conn: Connection) -> Flow:
    """Open and close a scope after the yield."""
    yield
    with anyio.move_on_after(60):
        await anyio.lowlevel.checkpoint()


async def denies_late(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse("no", 403)


@pytest.mark.parametrize("function", [waiting, passing, slow, with_a_limit, denies_late])
async def test_start_may_be_sent_by_a_child_that_was_given_send(
    function: Callable[..., Any], fused: bool
) -> None:
    """`start_soon(send, message)` calls `send` in one task, and awaits it in another."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(send, start())
        await send(body(b"x"))

    server = await request(stack(app, waiting, function, passing, fused=fused))

    assert server.status == (403 if function is denies_late else 200)
    assert server.complete


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("function", [waiting, passing, slow, with_a_header])
async def test_start_whose_task_never_ran_was_not_sent(function: Callable[..., Any]) -> None:
    """Another start may follow, and goes through the functions."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(send(start()))  # type: ignore[arg-type]
        sending.cancel()
        await asyncio.wait([sending])
        await send(start(500))
        await send(body(b"x"))

    server = await request(HTTPMiddleware(app, dispatch=function))

    assert server.status == 500
    assert server.headers.get("x-mw") == ("yes" if function is with_a_header else None)


async def test_start_after_one_that_was_cancelled_does_not_pass_the_functions() -> None:
    """Nobody knows whether the server has the first one; another is refused."""
    sent = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(0.01):
            await send(start())
        await send(start(504))

    async def blocked(message: Any) -> None:
        sent.append(message["status"])
        if len(sent) == 1:
            await anyio.sleep_forever()

    server = Server()
    with pytest.raises(RuntimeError, match="a second http"):
        await HTTPMiddleware(app, dispatch=with_a_header)(server.scope, server.receive, blocked)
    assert sent == [200]


async def test_malformed_start_leaves_room_for_another() -> None:
    """What is wrong with it is raised where it was sent, and another may follow."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(KeyError):
            await send({"type": "http.response.start"})
        await send(start(500))
        await send(body(b"x"))

    server = Server()
    await HTTPMiddleware(app, dispatch=waiting)(server.scope, server.receive, server.send)
    assert server.status == 500


async def test_stepping_aside_takes_a_new_request_body_back() -> None:
    """A layer that is not there has not replaced anything."""
    got = []

    def aside(conn: Connection) -> Flow | None:
        conn.replace_body(b"other")
        return passing(conn) if conn.method == "GET" else None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append((await receive())["body"])
        await PlainTextResponse("x")(scope, receive, send)

    await request(stack(app, passing, aside, fused=True), method="POST", body=b"own")
    assert got == [b"own"]
