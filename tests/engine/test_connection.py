"""The connection that a middleware function gets: a Starlette `Request` and a little more."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from httpmw import Connection, DeadlineExceeded, Flow, HTTPMiddleware, _limit
from tests.harness import Server, body, request, stack, start


async def nothing(conn: Connection) -> Flow:
    yield


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    await anyio.sleep_forever()


# -- a Starlette request ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda conn: isinstance(conn, Request), True),
        (lambda conn: conn.method, "POST"),
        (lambda conn: conn.url.path, "/members/7"),
        (lambda conn: str(conn.url), "http://example.org/members/7?a=1&a=2"),
        (lambda conn: conn.query_params.getlist("a"), ["1", "2"]),
        (lambda conn: conn.headers["x-name"], "value"),
        (lambda conn: conn.cookies, {"c": "d"}),
        (lambda conn: conn.client.host, "testclient"),
        (lambda conn: conn["type"], "http"),
        (lambda conn: conn.scope["http_version"], "1.1"),
    ],
    ids=[
        "type",
        "method",
        "path",
        "url",
        "query_params",
        "headers",
        "cookies",
        "client",
        "item",
        "scope",
    ],
)
async def test_connection_is_a_request(read: Callable[[Connection], Any], expected: Any) -> None:
    """What a Starlette request can be asked, a connection can be asked."""
    seen = []

    async def look(conn: Connection) -> Flow:
        seen.append(read(conn))
        yield
        seen.append(read(conn))

    await request(
        HTTPMiddleware(hello, dispatch=look),
        method="POST",
        path="/members/7",
        query=b"a=1&a=2",
        headers={"host": "example.org", "x-name": "value", "cookie": "c=d"},
    )

    assert seen == [expected, expected]


async def test_session_and_user_of_outer_layers() -> None:
    """The session and the user that layers further out provide are there."""
    seen = []

    async def look(conn: Connection) -> Flow:
        seen.append(conn.session.get("x"))
        conn.session["x"] = "set"
        seen.append(conn.user.is_authenticated)
        yield

    class Nobody:
        async def authenticate(self, conn: Any) -> None:
            return None

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(request.session["x"])

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[
            Middleware(SessionMiddleware, secret_key="secret"),
            Middleware(AuthenticationMiddleware, backend=Nobody()),
            Middleware(HTTPMiddleware, dispatch=look),
        ],
    )
    server = await request(app)

    assert server.body == b"set"
    assert seen == [None, False]
    assert "session=" in server.headers["set-cookie"]


async def test_app_is_reachable() -> None:
    """`conn.app` is the application, and `url_for` knows its routes."""
    seen = []

    async def look(conn: Connection) -> Flow:
        seen.append(conn.app)
        seen.append(conn.url_for("page").path)
        yield

    async def page(request: Request) -> Response:
        return PlainTextResponse("page")

    app = Starlette(
        routes=[Route("/page", page)], middleware=[Middleware(HTTPMiddleware, dispatch=look)]
    )
    await request(app, path="/page")

    assert seen == [app, "/page"]


async def test_route_parameters_are_there_after_the_yield(fused: bool) -> None:
    """What routing found is in the scope after the yield, as it is the app's own scope."""
    seen = []

    async def look(conn: Connection) -> Flow:
        seen.append(conn.path_params)
        yield
        seen.append(conn.path_params)

    async def page(request: Request) -> Response:
        return PlainTextResponse("page")

    app = stack(Starlette(routes=[Route("/{name}", page)]), look, nothing, fused=fused)
    await request(app, path="/x")

    assert seen == [{}, {"name": "x"}]


# -- the scope -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("path", "/other", lambda request: request.url.path),
        ("query_string", b"q=1", lambda request: request.query_params["q"]),
        ("headers", [(b"x-a", b"1")], lambda request: request.headers["x-a"]),
        ("custom", 7, lambda request: request.scope["custom"]),
    ],
)
async def test_scope_edited_in_place_is_seen_further_in(
    key: str, value: Any, read: Callable[[Request], Any], fused: bool
) -> None:
    """What a layer writes into `conn.scope` is seen by inner layers and by the app."""
    seen = []

    async def edit(conn: Connection) -> Flow:
        conn.scope[key] = value
        yield

    async def look(conn: Connection) -> Flow:
        seen.append(read(conn))
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(read(Request(scope, receive)))
        await hello(scope, receive, send)

    await request(stack(app, edit, look, fused=fused))

    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_headers_appended_in_place_are_seen_by_inner_layers(fused: bool) -> None:
    """A header appended to the scope's list after `conn.headers` was used is seen further in."""
    seen = []

    async def edit(conn: Connection) -> Flow:
        assert "x-added" not in conn.headers
        conn.scope["headers"].append((b"x-added", b"yes"))
        yield

    async def look(conn: Connection) -> Flow:
        seen.append(conn.headers["x-added"])
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope).headers["x-added"])
        await hello(scope, receive, send)

    await request(stack(app, edit, look, fused=fused))

    assert seen == ["yes", "yes"]


async def test_each_layer_has_a_fresh_view_of_the_scope(fused: bool) -> None:
    """A layer that looked at the URL before the yield does not pin it for the layers further in."""
    seen = []

    async def rewrite(conn: Connection) -> Flow:
        assert conn.url.path == "/old"
        conn.scope["path"] = "/new"
        yield

    async def look(conn: Connection) -> Flow:
        seen.append(conn.url.path)
        yield

    await request(stack(hello, rewrite, look, fused=fused), path="/old")

    assert seen == ["/new"]


async def test_state_is_the_apps_state(fused: bool) -> None:
    """`conn.state` is shared by the layers and the endpoint, both ways."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        conn.state.a = 1
        yield
        seen.append(conn.state.b)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        state = Request(scope, receive).state
        seen.append(state.a)
        state.b = 2
        await hello(scope, receive, send)

    await request(stack(app, outer, nothing, fused=fused))

    assert seen == [1, 2]


async def test_state_is_made_where_the_server_gives_none(fused: bool) -> None:
    """`conn.state` works on a server whose scope has no state."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        conn.state.a = 1
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope, receive).state.a)
        await hello(scope, receive, send)

    server = Server()
    del server.scope["state"]
    await server.run(stack(app, outer, nothing, fused=fused))

    assert seen == [1]


async def test_attributes_of_the_users_own_stay_on_the_connection() -> None:
    """A connection carries attributes that the function sets, over the yield."""

    async def remember(conn: Connection) -> Flow:
        conn.mine = "kept"
        response = yield
        response.headers["x-mine"] = conn.mine

    server = await request(HTTPMiddleware(hello, dispatch=remember))

    assert server.headers["x-mine"] == "kept"


async def test_early_hints_go_out_at_once() -> None:
    """`conn.send_early_hints()` before the yield reaches the server before the response."""

    async def hint(conn: Connection) -> Flow:
        await conn.send_early_hints("</style.css>; rel=preload")
        yield

    server = await request(
        HTTPMiddleware(hello, dispatch=hint), extensions={"http.response.early_hint": {}}
    )

    assert server.types == ["early_hint", "start", "body"]


# -- disconnects -----------------------------------------------------------------------------


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_disconnect_stays_seen(disconnect: str, fused: bool) -> None:
    """A disconnect that one asked for is known to every layer and to the app, for good."""
    seen = []
    server = Server(disconnect=disconnect)

    async def ask(conn: Connection) -> Flow:
        seen.append(await conn.is_disconnected())
        server.disconnect()
        seen.append(await conn.is_disconnected())
        yield
        seen.append(await conn.is_disconnected())

    async def ask_again(conn: Connection) -> Flow:
        await conn.body()
        seen.append(await conn.is_disconnected())
        yield
        seen.append(await conn.is_disconnected())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        seen.append(await request.is_disconnected())
        seen.append(await request.is_disconnected())
        await hello(scope, receive, send)

    await server.run(stack(app, ask, ask_again, fused=fused))

    assert seen == [False, *[True] * 6]


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_endpoint_learns_that_the_client_left(
    disconnect: str, spec: str | None, fused: bool
) -> None:
    """`request.is_disconnected()` in an endpoint behind layers becomes true."""
    answers = []
    server = Server(spec=spec, disconnect=disconnect)

    async def endpoint(request: Request) -> Response:
        await request.body()
        answers.append(await request.is_disconnected())
        server.disconnect()
        answers.append(await request.is_disconnected())
        return PlainTextResponse("unseen")

    app = stack(Starlette(routes=[Route("/", endpoint)]), nothing, nothing, fused=fused)
    await server.run(app, keep_error=True)

    assert answers == [False, True]


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_everyone_who_waits_is_told(disconnect: str, fused: bool) -> None:
    """Two tasks of the app that wait in `receive` are both told, with one server call at a time."""
    told = []
    server = Server(disconnect=disconnect)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

        async def wait(name: str) -> None:
            told.append((name, (await receive())["type"]))

        async with anyio.create_task_group() as group:
            group.start_soon(wait, "a")
            group.start_soon(wait, "b")
            await anyio.wait_all_tasks_blocked()
            server.disconnect()
        await hello(scope, receive, send)

    await server.run(stack(app, nothing, nothing, fused=fused), keep_error=True)

    assert sorted(told) == [("a", "http.disconnect"), ("b", "http.disconnect")]
    assert server.most_receivers == 1


async def test_waiting_task_that_is_cancelled_loses_nothing(fused: bool) -> None:
    """A cancelled `receive` of the app takes no message away from the next one."""
    server = Server(disconnect="once")
    told = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        server.disconnect()
        told.append((await receive())["type"])
        await hello(scope, receive, send)

    await server.run(stack(app, nothing, nothing, fused=fused), keep_error=True)

    assert told == ["http.disconnect"]
    assert server.most_receivers == 1


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_stream_ends_when_the_client_leaves(
    disconnect: str, spec: str | None, fused: bool
) -> None:
    """An endless stream behind layers ends with its client, on old and new servers."""
    server = Server(spec=spec, disconnect=disconnect)
    ended = []

    class Endless:
        def __init__(self) -> None:
            self.chunks = 0

        def __aiter__(self) -> Endless:
            return self

        async def __anext__(self) -> bytes:
            await anyio.lowlevel.checkpoint()
            self.chunks += 1
            if self.chunks == 2:
                server.disconnect()
            return b"x"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await StreamingResponse(Endless())(scope, receive, send)
        finally:
            ended.append(True)

    await server.run(stack(app, nothing, nothing, fused=fused), keep_error=True)

    assert ended == [True]
    assert server.chunks == [b"x"]
    assert not server.complete


async def test_layer_can_watch_for_the_client_beside_its_own_work() -> None:
    """A layer may poll for the client before the yield without taking the body from the app."""

    async def poll(conn: Connection) -> Flow:
        for _ in range(3):
            assert not await conn.is_disconnected()
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(await Request(scope, receive).body())(scope, receive, send)

    server = await request(
        HTTPMiddleware(app, dispatch=poll), method="POST", body=[b"a", b"b", b"c", b"d"]
    )

    assert server.body == b"abcd"


# -- time limits -----------------------------------------------------------------------------


async def test_fail_after_raises_at_the_yield(fused: bool, spec: str | None) -> None:
    """A time limit that runs out before the start is a `TimeoutError` at the yield."""

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(0)
        try:
            yield
        except TimeoutError:
            yield PlainTextResponse("too late", 504)

    server = await request(stack(hang, nothing, limit, nothing, fused=fused), spec=spec)

    assert (server.status, server.body) == (504, b"too late")


async def test_fail_after_not_handled_is_raised(fused: bool) -> None:
    """A `DeadlineExceeded`, a `TimeoutError`, that no layer catches leaves the adapter."""

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(0)
        yield

    server = await request(stack(hang, nothing, limit, fused=fused), keep_error=True)

    assert type(server.error) is DeadlineExceeded
    assert isinstance(server.error, TimeoutError)


async def test_fail_after_unwinds_the_app(fused: bool) -> None:
    """The app's clean-up runs when its time is over, before the layer goes on."""
    log = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("app unwound")

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(0)
        try:
            yield
        except TimeoutError:
            log.append("limit")
            yield PlainTextResponse("too late", 504)

    await request(stack(app, limit, nothing, fused=fused))

    assert log == ["app unwound", "limit"]


@pytest.mark.parametrize("streamed", [False, True], ids=["raw", "stream"])
async def test_fail_after_ends_with_the_start(
    streamed: bool, spec: str | None, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app has a deadline up to the response start and none after it."""
    finite = []
    deadlines = [math.inf]

    def noting(cut: type[Any]) -> None:
        move = cut.move

        def noted(self: Any, deadline: float) -> None:
            deadlines.append(deadline)
            move(self, deadline)

        monkeypatch.setattr(cut, "move", noted)

    noting(_limit.TaskCut)
    noting(_limit.ScopeCut)

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(60)
        yield

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        finite.append(math.isfinite(deadlines[-1]))
        yield b"b"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        finite.append(math.isfinite(deadlines[-1]))
        if streamed:
            await StreamingResponse(chunks())(scope, receive, send)
            return
        await send(start())
        async for chunk in chunks():
            await send(body(chunk, more=True))
        await send(body())

    server = await request(stack(app, limit, nothing, fused=fused), spec=spec)

    assert server.body == b"ab"
    assert finite == [True, False]


async def test_body_may_take_longer_than_the_limit() -> None:
    """A limit whose time comes after the response start has no effect."""

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(0.2)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await anyio.sleep(0.3)  # the time itself is what is tested
        await send(body(b"late"))

    server = await request(HTTPMiddleware(app, dispatch=limit))

    assert server.body == b"late"


async def test_fail_after_in_time_changes_nothing(fused: bool, spec: str | None) -> None:
    """A limit that does not run out leaves the response and the background task alone."""
    done = []

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(60)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        background = BackgroundTask(done.append, "background")
        await JSONResponse({"a": 1}, background=background)(scope, receive, send)

    server = await request(stack(app, limit, limit, fused=fused), spec=spec)

    assert server.body == b'{"a":1}'
    assert done == ["background"]


async def test_shortest_limit_runs_out_first(fused: bool) -> None:
    """Of two layers with a limit the one whose time is over gets the error, at its own yield."""
    seen = []

    def limited(name: str, seconds: float) -> Callable[[Connection], Flow]:
        async def limit(conn: Connection) -> Flow:
            conn.fail_after(seconds)
            try:
                response = yield
            except TimeoutError:
                seen.append(name)
                yield PlainTextResponse(name, 504)
            else:
                seen.append((name, response.status_code))

        return limit

    inner_short = await request(stack(hang, limited("outer", 60), limited("inner", 0), fused=fused))
    outer_short = await request(stack(hang, limited("outer", 0), limited("inner", 60), fused=fused))

    assert inner_short.body == b"inner"
    assert outer_short.body == b"outer"
    assert seen == ["inner", ("outer", 504), "outer"]


async def test_fail_after_limits_the_inner_layers_too(fused: bool) -> None:
    """A layer's limit covers everything inside it, also a layer that waits before its yield."""
    log = []

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(0)
        try:
            yield
        except TimeoutError:
            yield PlainTextResponse("too late", 504)

    async def waits(conn: Connection) -> Flow:
        try:
            await anyio.sleep_forever()
            yield
        finally:
            log.append("ended")

    server = await request(stack(hello, limit, waits, fused=fused))

    assert server.body == b"too late"
    assert log == ["ended"]


async def test_fail_after_limits_an_inner_layer_after_its_yield(fused: bool) -> None:
    """A layer's limit still runs while a layer inside it works on the response."""
    log = []

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(0.05)
        try:
            yield
        except TimeoutError:
            yield PlainTextResponse("too late", 504)

    async def waits(conn: Connection) -> Flow:
        yield
        try:
            await anyio.sleep_forever()
        finally:
            log.append("ended")

    server = await request(stack(hello, limit, waits, fused=fused))

    assert server.body == b"too late"
    assert log == ["ended"]


async def test_late_start_after_the_limit_is_dropped(fused: bool) -> None:
    """An app that answers while its time-out unwinds it does not get through."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await hello(scope, receive, send)

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(0)
        try:
            yield
        except TimeoutError:
            yield PlainTextResponse("too late", 504)

    server = await request(stack(app, limit, nothing, fused=fused))

    assert (server.status, server.body) == (504, b"too late")


async def test_app_that_raises_a_timeout_of_its_own_is_not_mistaken(fused: bool) -> None:
    """A `TimeoutError` that the app raises in time is that very object at the yield."""
    failure = TimeoutError("the database")
    seen = []

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(60)
        try:
            yield
        except TimeoutError as error:
            seen.append(error)
            raise

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise failure

    server = await request(stack(app, limit, nothing, fused=fused), keep_error=True)

    assert seen == [failure]
    assert server.error is failure


async def test_cancelled_request_is_not_mistaken_for_the_limit(fused: bool) -> None:
    """A request that is cancelled from outside is cancelled, not timed out."""
    seen: list[Any] = []

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(60)
        try:
            yield
        except BaseException as error:
            seen.append(type(error))
            raise

    server = Server()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await server.run(stack(hang, limit, nothing, fused=fused))

    assert seen == [anyio.get_cancelled_exc_class()]
    assert server.sent == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_asyncio_timeout_around_the_yield_that_does_not_run_out(
    streamed: bool, spec: str | None, fused: bool
) -> None:
    """`asyncio.timeout` may be held across the yield, also when a child task sends."""

    async def limit(conn: Connection) -> Flow:
        async with asyncio.timeout(60):
            response = yield
        response.headers["x-limit"] = "kept"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamingResponse(iter(["a"])) if streamed else PlainTextResponse("a")
        await response(scope, receive, send)

    server = await request(stack(app, limit, limit, fused=fused), spec=spec)

    assert server.body == b"a"
    assert server.headers["x-limit"] == "kept"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_timeout_around_the_yield_that_runs_out(fused: bool) -> None:
    """`asyncio.timeout` around the yield becomes a `TimeoutError` that the layer can answer."""

    async def limit(conn: Connection) -> Flow:
        try:
            async with asyncio.timeout(0):
                yield
        except TimeoutError:
            yield PlainTextResponse("too late", 504)

    server = await request(stack(hang, nothing, limit, fused=fused))

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert (server.status, server.body) == (504, b"too late")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_beside_is_disconnected_is_counted(fused: bool) -> None:
    """The request is cancelled while a layer in a child task of the app asks for the client."""
    groups: list[Any] = []

    class Cancelling(Server):
        async def receive(self) -> Message:
            task.cancel()
            groups[0].cancel_scope.cancel()
            await anyio.sleep_forever()
            raise AssertionError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            groups.append(group)
            group.start_soon(send, start())
            await anyio.sleep_forever()

    async def asks(conn: Connection) -> Flow:
        yield
        await conn.is_disconnected()

    server = Cancelling()
    layers = stack(app, asks, nothing, fused=fused)
    task = asyncio.create_task(layers(server.scope, server.receive, server.send))
    await asyncio.wait([task])

    assert task.cancelled()
    assert task.cancelling() == 1


async def test_messages_of_the_server_are_not_changed(fused: bool) -> None:
    """The app gets the very request messages of the server, with keys nobody knows."""
    odd: Message = {"type": "http.request", "body": b"x", "more_body": False, "custom": 1}
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())
        await hello(scope, receive, send)

    async def receive() -> Message:
        return odd

    server = Server()
    await stack(app, nothing, nothing, fused=fused)(server.scope, receive, server.send)

    assert got == [odd]


async def test_time_limit_of_a_delegating_function_is_its_own() -> None:
    """A limit set before `yield other(conn)` is raised there, whatever limit the other sets."""

    async def other(conn: Connection) -> Flow:
        conn.fail_after(60)
        yield

    async def delegates(conn: Connection) -> Flow:
        conn.fail_after(0.01)
        try:
            yield other(conn)
        except TimeoutError:
            yield PlainTextResponse("too slow", 504)

    async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    server = await request(stack(hangs, delegates, fused=True))

    assert (server.status, server.body) == (504, b"too slow")


async def test_time_limit_of_a_layer_that_stepped_aside_is_gone() -> None:
    """A function that sets a limit and returns None limits nobody."""

    def steps_aside(conn: Connection) -> Any:
        return conn.fail_after(0)

    async def passes(conn: Connection) -> Flow:
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.lowlevel.checkpoint()
        await PlainTextResponse("in time")(scope, receive, send)

    server = await request(stack(app, steps_aside, passes, fused=True))

    assert server.body == b"in time"


async def test_two_readers_of_one_body_get_it_both() -> None:
    """`body()` called from two tasks at once neither hangs nor takes a message too many."""
    got: list[bytes] = []

    async def mw(conn: Connection) -> Flow:
        async def read() -> None:
            got.append(await conn.body())

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(read)
        yield

    with anyio.fail_after(5):
        await request(stack(PlainTextResponse("ok"), mw, fused=True), method="POST", body=b"once")

    assert got == [b"once", b"once"]
