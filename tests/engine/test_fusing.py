"""
Neighbouring layers are one adapter, and nobody can tell but by the speed.

The last tests run every pair of layers, and random stacks of them, around random apps both ways
and compare all that the server got and all that the functions saw and did, in its order.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, NoResponseError, ResponseTooLarge
from tests.harness import PassThrough, Server, body, request, script, stack, start

Dispatch = Callable[[Connection], Flow]


def frames() -> int:
    """Count the frames of the package, without the fake server, that are above the caller."""
    frame, count = sys._getframe(1), 0
    while frame is not None:
        package = frame.f_globals.get("__name__", "").split(".")[:2]
        count += package[0] == "httpmw" and package != ["httpmw", "testing"]
        frame = frame.f_back
    return count


class Depth:
    """An app that notes how many frames of the package are around it."""

    depth = -1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.depth = frames()
        await PlainTextResponse("x")(scope, receive, send)


async def depth(make: Callable[[ASGIApp], ASGIApp]) -> int:
    app = Depth()
    await request(make(app))
    return app.depth


async def layer(conn: Connection) -> Flow:
    yield


class Overriding(HTTPMiddleware):
    """A subclass as most are written."""

    async def dispatch(self, conn: Connection) -> Flow:
        yield


class Calling(HTTPMiddleware):
    """A subclass that is called itself."""

    async def dispatch(self, conn: Connection) -> Flow:
        yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)


def wrap(app: ASGIApp, *classes: type) -> ASGIApp:
    """Put layers of *classes* around *app*, the first one outermost."""
    for cls in reversed(classes):
        app = cls(app, dispatch=layer) if cls is HTTPMiddleware else cls(app)
    return app


# -- what fuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        [HTTPMiddleware] * 2,
        [HTTPMiddleware] * 10,
        [Overriding] * 2,
        [HTTPMiddleware, Overriding],
        [Overriding, HTTPMiddleware, Overriding],
    ],
    ids=["two", "ten", "subclasses", "subclass-inside", "mixed"],
)
async def test_neighbours_cost_one_frame(classes: list[type]) -> None:
    """Layers that are next to each other, also of classes with `dispatch` only, are one frame."""
    single = await depth(lambda app: wrap(app, HTTPMiddleware))

    assert single > 0
    assert await depth(lambda app: wrap(app, *classes)) == single


@pytest.mark.parametrize(
    ("classes", "adapters"),
    [
        ([HTTPMiddleware, PassThrough, HTTPMiddleware], 2),
        ([Overriding, PassThrough, Overriding, Overriding], 2),
        ([HTTPMiddleware, PassThrough, HTTPMiddleware, PassThrough, HTTPMiddleware], 3),
    ],
    ids=["one-between", "one-between-subclasses", "two-between"],
)
async def test_anything_in_between_keeps_layers_apart(classes: list[type], adapters: int) -> None:
    """A layer of another kind between two layers is run where it stands."""
    single = await depth(lambda app: wrap(app, HTTPMiddleware))

    assert await depth(lambda app: wrap(app, *classes)) == adapters * single


async def test_layer_with_a_call_of_its_own_does_not_fuse() -> None:
    """A subclass that overrides `__call__` is called, wherever it stands."""
    calls = []

    class Noting(Calling):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            calls.append(frames())
            await super().__call__(scope, receive, send)

    single = await depth(lambda app: wrap(app, HTTPMiddleware))
    outside = await depth(lambda app: wrap(app, Noting, HTTPMiddleware))
    inside = await depth(lambda app: wrap(app, HTTPMiddleware, Noting))

    assert calls == [0, single]
    assert outside >= single
    assert inside == 2 * single


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_lists_of_frameworks_fuse(framework: type[Starlette]) -> None:
    """Neighbours in an application's list of middleware are fused."""

    async def measure(*layers: Middleware) -> int:
        measured = Depth()
        app = framework(middleware=list(layers))
        app.mount("/", measured)
        await request(app)
        return measured.depth

    one = Middleware(HTTPMiddleware, dispatch=layer)
    single = await measure(one)

    assert single > 0
    assert await measure(one, one, Middleware(Overriding), one) == single
    assert await measure(one, Middleware(PassThrough), one) == 2 * single


async def test_predicates_fuse_as_well() -> None:
    """Layers with `when=` are no less neighbours."""
    single = await depth(lambda app: wrap(app, HTTPMiddleware))

    def make(app: ASGIApp) -> ASGIApp:
        for _ in range(3):
            app = HTTPMiddleware(app, dispatch=layer, when=lambda conn: True)
        return app

    assert await depth(make) == single


# -- what stays as it was --------------------------------------------------------------------


async def test_inner_layer_still_works_alone() -> None:
    """A layer whose functions were taken over by two others is still an app of its own."""

    def marking(text: str) -> Dispatch:
        async def marks(conn: Connection) -> Flow:
            response = yield
            response.headers.append("x-mark", text)

        return marks

    inner = HTTPMiddleware(Depth(), dispatch=marking("inner"))
    one = HTTPMiddleware(inner, dispatch=marking("one"))
    two = HTTPMiddleware(inner, dispatch=marking("two"))

    got = [(await request(app)).headers.getlist("x-mark") for app in (inner, one, two, inner)]
    assert got == [["inner"], ["inner", "one"], ["inner", "two"], ["inner"]]


async def test_order_is_from_the_outside_in_and_back() -> None:
    """Functions run in the order of the layers up to their yields, and back after them."""
    log: list[str] = []

    def noting(name: str) -> Dispatch:
        async def notes(conn: Connection) -> Flow:
            log.append(f"{name} in")
            response = yield
            log.append(f"{name} out")
            yield response
            log.append(f"{name} over")

        return notes

    for fused in (True, False):
        log.clear()
        await request(stack(Depth(), noting("a"), noting("b"), noting("c"), fused=fused))
        assert log[:3] == ["a in", "b in", "c in"]
        assert log[3:6] == ["c out", "b out", "a out"]
        assert log[6:] == ["c over", "b over", "a over"]


async def test_each_layer_has_its_own_connection_and_response(fused: bool) -> None:
    """Layers share the scope, not the objects: what one caches or attaches is its own."""
    seen: list[tuple[Any, Any]] = []

    async def keep(conn: Connection) -> Flow:
        response = yield
        seen.append((conn, response))
        yield response

    await request(stack(Depth(), keep, keep, fused=fused))

    (inner_conn, inner_response), (outer_conn, outer_response) = seen
    assert inner_conn is not outer_conn
    assert inner_response is not outer_response


async def test_concurrent_requests_through_one_stack(fused: bool) -> None:
    """Requests that run at the same time through the same layers do not mix."""
    arrived, go = anyio.Event(), anyio.Event()
    count = 0

    async def tag(conn: Connection) -> Flow:
        path = conn.url.path
        response = yield
        response.headers.append("x-path", path)
        yield response
        assert conn.url.path == path

    async def meet(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal count
        count += 1
        if count == 3:
            arrived.set()
        await go.wait()
        await PlainTextResponse(scope["path"])(scope, receive, send)

    app = stack(meet, tag, tag, fused=fused)
    servers = [Server(path=path) for path in ("/a", "/b", "/c")]
    async with anyio.create_task_group() as group:
        for server in servers:
            group.start_soon(server.run, app)
        await arrived.wait()
        go.set()

    for server in servers:
        path = server.scope["path"]
        assert server.headers.getlist("x-path") == [path, path]
        assert server.body == path.encode()


# -- random stacks ---------------------------------------------------------------------------


class Broken(Exception):
    """What layers and apps of this test raise."""


Log = list[Any]


def passes(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        log.append((name, "in"))
        yield
        log.append((name, "out"))

    return function


def edits(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        conn.state.last = name
        response = yield
        log.append((name, response.status_code, sorted(response.raw_headers)))
        response.headers.append("x-edited", name)
        response.status_code += 1
        response.set_cookie(name, "1")

    return function


def accounts(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except BaseException as error:
            log.append((name, "raised", type(error).__name__))
            raise
        finally:
            # How far a stream comes that is told to stop is the scheduler's choice.
            size = response.bytes_sent if response.outcome == "completed" else None
            log.append((name, response.outcome, size, conn.state.last))

    return function


def answers(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        log.append((name, "answers"))
        yield PlainTextResponse(name, 401, background=BackgroundTask(log.append, name))
        log.append((name, "answered"))

    return function


def replaces(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        log.append((name, "replaces", response.status_code))
        yield PlainTextResponse(name, 200, background=BackgroundTask(log.append, name))
        log.append((name, response.outcome))

    return function


def streams(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        yield StreamingResponse(shouted(response.body_iterator, name))
        log.append((name, response.outcome))

    return function


async def shouted(chunks: AsyncIterator[bytes], name: str) -> AsyncGenerator[bytes]:
    yield name.encode()
    async for chunk in chunks:
        yield chunk.upper()


def transforms(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = shouted(response.body_iterator, name)

    return function


def reads(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        log.append((name, await response.read()))

    return function


def limits(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        try:
            await response.read(max_size=6)
        except ResponseTooLarge:
            log.append((name, "too large"))

    return function


def rewrites(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        response.body = await response.read() + name.encode()
        response.headers["etag"] = name

    return function


def looks(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        async for chunk in response.body_iterator:
            log.append((name, chunk))
            break

    return function


def request_reads(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        log.append((name, await conn.body(), conn.headers.get("content-length")))
        yield
        log.append((name, await conn.body()))

    return function


def request_replaces(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        conn.replace_body(name.encode())
        yield

    return function


def request_transforms(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        conn.body_iterator = shouted(conn.body_iterator, name)
        yield

    return function


def raises_before(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        raise Broken(name)
        yield

    return function


def raises_after(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        yield
        raise Broken(name)

    return function


def raises_at_the_end(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        yield response
        raise Broken(name)

    return function


def catches(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        try:
            yield
        except Exception as error:
            log.append((name, "caught", type(error).__name__, str(error)[:10]))
            yield JSONResponse({"caught": name}, 500)

    return function


def cleans(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        try:
            yield
        except BaseException as error:
            log.append((name, "sees", type(error).__name__))
            raise
        finally:
            await anyio.lowlevel.checkpoint()
            log.append((name, "finally"))

    return function


def swallows(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        with suppress(Broken):
            yield

    return function


def yields_twice(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        yield
        yield

    return function


def steps_aside(log: Log, name: str) -> Callable[[Connection], None]:
    def function(conn: Connection) -> None:
        log.append((name, "aside"))

    return function


def delegates(log: Log, name: str) -> Dispatch:
    inner = edits(log, f"{name}-delegate")

    async def function(conn: Connection) -> Flow:
        response = yield inner(conn)
        log.append((name, response.headers.getlist("x-edited")))

    return function


def adds_background(log: Log, name: str) -> Dispatch:
    async def function(conn: Connection) -> Flow:
        response = yield
        response.background = BackgroundTask(log.append, (name, "background"))

    return function


KINDS: list[Callable[[Log, str], Any]] = [
    passes,
    edits,
    accounts,
    answers,
    replaces,
    streams,
    transforms,
    reads,
    limits,
    rewrites,
    looks,
    request_reads,
    request_replaces,
    request_transforms,
    raises_before,
    raises_after,
    raises_at_the_end,
    catches,
    cleans,
    swallows,
    yields_twice,
    steps_aside,
    delegates,
    adds_background,
]


def plain(log: Log) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        data = await Request(scope, receive).body()
        background = BackgroundTask(log.append, "app background")
        await Response(b"plain " + data, background=background)(scope, receive, send)
        log.append("app ended")

    return app


def raw_stream(log: Log) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"etag", b"a")]))
        for chunk in (b"one ", b"", b"two ", b"three"):
            await send(body(chunk, more=True))
        await send(body())
        log.append("app ended")

    return app


class Chunks:
    """A short body."""

    # Not a generator: StreamingResponse would leave it to the garbage collector.

    def __init__(self) -> None:
        self.left = [b"one ", b"two "]

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)


def response_stream(log: Log) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Chunks())(scope, receive, send)

    return app


def with_extras(log: Log) -> ASGIApp:
    return script(
        {"type": "http.response.early_hint", "links": [b"</a>"]},
        start(trailers=True),
        body(b"one ", more=True),
        body(b"two"),
        {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]},
    )


def without_a_body(log: Log) -> ASGIApp:
    return script(start(204), body())


def fails_before(log: Log) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Broken("app")

    return app


def fails_within(log: Log) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"one ", more=True))
        raise Broken("app")

    return app


def fails_behind(log: Log) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"one"))
        raise Broken("background")

    return app


def says_nothing(log: Log) -> ASGIApp:
    return script()


def stops_within(log: Log) -> ASGIApp:
    return script(start(), body(b"one ", more=True))


APPS = [
    plain,
    raw_stream,
    response_stream,
    with_extras,
    without_a_body,
    fails_before,
    fails_within,
    fails_behind,
    says_nothing,
    stops_within,
]


# The known limit: a layer that replaces the response, around a layer with a body of its own.
# Fused, that body is not pulled any more; nested, it is sent into the discarded response.
HOLD_A_BODY = {streams, transforms, rewrites, reads, limits, looks}


def differ(kinds: Sequence[Callable[[Log, str], Any]]) -> bool:
    if replaces not in kinds:
        return False
    return not HOLD_A_BODY.isdisjoint(kinds[kinds.index(replaces) :])


async def run(
    rng: random.Random, make_app: Any, kinds: list[Any], *, fused: bool
) -> tuple[Log, list[Any], str]:
    """Run a stack of *kinds*; return what they noted, what was sent, and the error."""
    log: Log = []
    functions = [kind(log, f"{kind.__name__}{index}") for index, kind in enumerate(kinds)]
    server = Server(
        method="POST",
        body=rng.choice([b"", b"data", [b"da", b"", b"ta"]]),
        spec=rng.choice([None, "2.3", "2.4"]),
        extensions={f"http.response.{name}": {} for name in ("trailers", "early_hint")},
    )
    server.scope["state"]["last"] = None
    error = ""
    try:
        await server.run(stack(make_app(log), *functions, fused=fused))
    except ClientDisconnect as caught:
        error = repr(caught)
    except NoResponseError as caught:
        error = type(caught).__name__  # it names the inner app, which is another one when nested
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return log, server.sent, error


async def compare(seed: int, make_app: Any, kinds: list[Any]) -> None:
    fused = await run(random.Random(seed), make_app, kinds, fused=True)
    nested = await run(random.Random(seed), make_app, kinds, fused=False)
    assert fused == nested, (seed, make_app.__name__, [kind.__name__ for kind in kinds])


@pytest.mark.parametrize("make_app", APPS)
async def test_every_pair_does_the_same_fused_and_nested(
    make_app: Callable[[Log], ASGIApp],
) -> None:
    """Of any two kinds of layers the server and the functions see the same, fused or nested."""
    for seed, kinds in enumerate(itertools.product(KINDS, KINDS)):
        if not differ(kinds):
            await compare(seed, make_app, list(kinds))


@pytest.mark.parametrize("block", range(4))
async def test_random_stacks_do_the_same_fused_and_nested(block: int) -> None:
    """In 1200 random stacks the server gets the same messages and the functions see the same."""
    for seed in range(block * 300, (block + 1) * 300):
        rng = random.Random(seed)
        make_app = rng.choice(APPS)
        kinds = rng.choices(KINDS, k=rng.randint(2, 5))
        if not differ(kinds):
            await compare(seed, make_app, kinds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make_app", APPS)
async def test_one_layer_is_the_same_beside_one_that_does_nothing(
    kind: Callable[[Log, str], Any], make_app: Callable[[Log], ASGIApp]
) -> None:
    """A layer that does nothing, inside or outside of another, fused or not, changes nothing."""

    def named(log: Log, name: str) -> Any:
        return kind(log, "layer")

    def idle(log: Log, name: str) -> Dispatch:
        return layer

    results = [
        await run(random.Random(1), make_app, kinds, fused=fused)
        for fused in (True, False)
        for kinds in ([idle, named], [named, idle])
    ]

    assert all(result == results[0] for result in results)
