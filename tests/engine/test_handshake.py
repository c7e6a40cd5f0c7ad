"""WebSocket handshakes through middleware functions: what a function sees, and what it answers."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, WebSocketException
from fastapi import WebSocket as FastAPIWebSocket
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from httpmw import (
    AppResponse,
    Connection,
    Flow,
    HTTPMiddleware,
    MiddlewareError,
    MiddlewareStack,
    NoResponseError,
    http_middleware,
)
from httpmw.compat import BaseHTTPMiddleware
from httpmw.testing import ASGIChecker, ASGIViolation
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import Chunks, PassThrough, explained, left_to_the_collector, request

pytestmark = pytest.mark.unchecked("`served` puts its own checker around the inner app")

Layered = Callable[..., ASGIApp]
Function = Callable[[Connection], Any]


class Apart(PassThrough):
    """A layer of somebody else's that has a `receive` and a `send` of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def own_receive() -> Message:
            return await receive()

        async def own_send(message: Message) -> None:
            await send(message)

        await self.app(scope, own_receive, own_send)


def wrapped(app: ASGIApp, *functions: Function, between: type[PassThrough] | None) -> ASGIApp:
    """Put a layer for each of *functions* around *app*, the first one outermost."""
    for index, function in enumerate(reversed(functions)):
        if index and between is not None:
            app = between(app)
        app = HTTPMiddleware(app, dispatch=function, websocket=True)
    return app


@pytest.fixture(params=[None, PassThrough], ids=["fused", "nested"])
def layered(request: pytest.FixtureRequest) -> Layered:
    """Put layers around an app, fused or nested."""

    def layered(app: ASGIApp, *functions: Function) -> ASGIApp:
        return wrapped(app, *functions, between=request.param)

    return layered


@pytest.fixture(params=[None, "2.0", "2.3", "2.4", "2.5"])
def spec(request: pytest.FixtureRequest) -> str | None:
    """The version of ASGI in the scope."""
    version: str | None = request.param
    return version


@pytest.fixture(params=[DENIES, {}], ids=["denies", "closes"])
def extensions(request: pytest.FixtureRequest) -> Any:
    """Whether the server takes a whole response as a refusal."""
    return request.param


class Served:
    """Run an app on a `SocketServer`, and see that nobody breaks a rule of ASGI."""

    def __init__(self, spec: str | None, extensions: Any) -> None:
        self.options = {"spec": spec, "extensions": extensions}
        self.denies = bool(extensions)
        self.raises = spec in ("2.4", "2.5")

    async def __call__(
        self,
        layered: Layered,
        app: ASGIApp,
        *functions: Function,
        keep_error: bool = False,
        **options: Any,
    ) -> SocketServer:
        violations: list[ASGIViolation] = []
        server = SocketServer(**{**self.options, **options})
        checked = ASGIChecker(app, side="server", violations=violations)
        try:
            await server.run(layered(checked, *functions), keep_error=keep_error)
        finally:
            assert violations == []
            assert server.violations == []
        return server


@pytest.fixture
def served(spec: str | None, extensions: Any) -> Served:
    """Run an app on the server of all versions, with and without the extension."""
    return Served(spec, extensions)


class Echo:
    """An app that accepts, sends back what it receives, and notes how it ended."""

    def __init__(self, **accept: Any) -> None:
        self.accept = accept
        self.runs = 0
        self.received: list[Message] = []
        self.ended: list[BaseException | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.runs += 1
        try:
            self.received.append(await receive())
            await send(
                {"type": "websocket.accept", "headers": [(b"x-inner", b"yes")], **self.accept}
            )
            while True:
                message = await receive()
                self.received.append(message)
                if message["type"] == "websocket.disconnect":
                    break
                await send({**message, "type": "websocket.send"})
        except BaseException as error:
            self.ended.append(error)
            raise
        self.ended.append(None)


def closing(code: int = 1000, reason: str = "") -> ASGIApp:
    """Return an app that closes in place of accepting."""

    async def closing(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": code, "reason": reason})

    return closing


def denying(status: int = 404, *chunks: bytes, headers: Any = ((b"x-inner", b"yes"),)) -> ASGIApp:
    """Return an app that denies with a response of its own."""

    async def denying(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        kind = "websocket.http.response"
        await send({"type": f"{kind}.start", "status": status, "headers": list(headers)})
        for chunk in chunks:
            await send({"type": f"{kind}.body", "body": chunk, "more_body": True})
        await send({"type": f"{kind}.body"})

    return denying


async def passing(conn: Connection) -> Flow:
    """Do nothing, and be over with the acceptance."""
    yield


async def waiting(conn: Connection) -> Flow:
    """Do nothing, and wait until the socket is over."""
    response = yield
    yield response


def refusing(response: Response | None = None) -> Function:
    """Return a function that refuses before the app is run."""

    async def refusing(conn: Connection) -> Flow:
        yield response or PlainTextResponse("members only", 403, headers={"x-mw": "yes"})

    return refusing


def replacing(response: Response | None = None) -> Function:
    """Return a function that refuses what the app has accepted."""

    async def replacing(conn: Connection) -> Flow:
        yield
        yield response or PlainTextResponse("not you", 401, headers={"x-mw": "yes"})

    return replacing


def marking(name: str) -> Function:
    """Return a function that leaves its mark in a header, and waits."""

    async def marking(conn: Connection) -> Flow:
        response = yield
        response.headers["x-marks"] = f"{response.headers.get('x-marks', '')}{name}"
        yield response

    return marking


# Which layers are there.


async def test_layers_see_http_only_unless_they_say_otherwise(served: Served) -> None:
    """A layer without `websocket=True` is not there for a handshake."""

    def layered(app: ASGIApp, *functions: Function) -> ASGIApp:
        return HTTPMiddleware(app, dispatch=functions[0])

    server = await served(layered, Echo(), refusing(), messages=["a"])
    assert (server.status, server.messages) == (101, ["a"])


@pytest.mark.parametrize("between", [None, PassThrough, Apart])
async def test_layers_with_and_without_it_share_a_stack(
    between: type[PassThrough] | None,
) -> None:
    """For a handshake those with it are there, for HTTP all of them, in the same order."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (Echo() if scope["type"] == "websocket" else Response())(scope, receive, send)

    stacked: ASGIApp = app
    for name in "dcba":
        if between is not None:
            stacked = between(stacked)
        stacked = HTTPMiddleware(stacked, dispatch=marking(name), websocket=name in "ac")
    server = await SocketServer().run(stacked)
    assert server.headers["x-marks"] == "ca"
    assert (await request(stacked)).headers["x-marks"] == "dcba"


async def test_a_class_says_it_by_an_attribute() -> None:
    """`websocket = True` in a class counts; the argument overrides it."""

    class Gate(HTTPMiddleware):
        websocket = True

        async def dispatch(self, conn: Connection) -> Flow:
            yield PlainTextResponse("no", 403)

    class Sub(Gate):
        pass

    assert (await SocketServer().run(Gate(Echo()))).status == 403
    assert (await SocketServer().run(Sub(Echo()))).status == 403
    assert (await SocketServer().run(Sub(Echo(), websocket=False))).status == 101
    assert Gate(Echo(), websocket=False).websocket is False


def test_something_else_than_a_bool_is_refused() -> None:
    """`websocket="yes"` is refused where the layer is made."""
    with pytest.raises(TypeError, match="websocket='yes' is a str, not a bool"):
        HTTPMiddleware(Echo(), dispatch=passing, websocket="yes")  # type: ignore[arg-type]


async def test_the_decorator_has_it() -> None:
    """`http_middleware(app, websocket=True)` registers a layer for both."""

    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])

    @http_middleware(app, websocket=True)
    async def mark(conn: Connection) -> Flow:
        response = yield
        response.headers["x-mw"] = "yes"

    assert (await SocketServer().run(app)).headers["x-mw"] == "yes"


async def test_the_stack_has_it() -> None:
    """A `MiddlewareStack` keeps what a layer says, in every order and after every edit."""
    stack = MiddlewareStack(Echo(), [Middleware(HTTPMiddleware, marking("a"), websocket=True)])
    stack.add(marking("b"))
    layer = stack.add(Middleware(HTTPMiddleware, marking("c"), websocket=True))
    assert (await SocketServer().run(stack)).headers["x-marks"] == "ac"
    stack.move(layer, innermost=True)
    assert (await SocketServer().run(stack)).headers["x-marks"] == "ca"
    stack.remove(layer)
    assert (await SocketServer().run(stack)).headers["x-marks"] == "a"


async def test_around_and_inside_of_the_drop_in() -> None:
    """The drop-in is not there for a handshake, what it has taken over is."""

    async def dispatch(request: Any, call_next: Any) -> Any:
        raise AssertionError

    app: ASGIApp = HTTPMiddleware(Echo(), dispatch=marking("a"), websocket=True)
    app = BaseHTTPMiddleware(app, dispatch)
    assert (await SocketServer().run(app)).headers["x-marks"] == "a"
    app = HTTPMiddleware(app, dispatch=marking("b"), websocket=True)
    assert (await SocketServer().run(app)).headers["x-marks"] == "ab"


async def test_around_one_route_and_one_mount() -> None:
    """A layer around a `WebSocketRoute` or a `Mount` covers its handshakes."""
    gate = Middleware(HTTPMiddleware, refusing(), websocket=True)
    app = Starlette(
        routes=[
            WebSocketRoute("/route", Echo(), middleware=[gate]),
            Mount("/mount", routes=[WebSocketRoute("/in", Echo())], middleware=[gate]),
            WebSocketRoute("/free", Echo()),
        ]
    )
    paths = ["/route", "/mount/in", "/free"]
    assert [(await SocketServer(path=path).run(app)).status for path in paths] == [403, 403, 101]


async def test_stepping_aside(served: Served, layered: Layered) -> None:
    """`when=` and a `dispatch` that returns None are asked for handshakes, too."""
    seen: list[Any] = []

    def none(conn: Connection) -> Any:
        seen.append(conn.method)
        return None if conn.is_websocket else passing(conn)

    def stacked(app: ASGIApp, *functions: Function) -> ASGIApp:
        app = HTTPMiddleware(app, dispatch=refusing(), when=lambda c: False, websocket=True)
        return layered(app, *functions)

    server = await served(stacked, Echo(), none, none, messages=["a"])
    assert (server.status, server.messages, seen) == (101, ["a"], ["GET", "GET"])


async def test_where_all_step_aside_the_app_gets_what_is_the_servers() -> None:
    """A handshake that no layer wants is the server's own business."""
    got: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend((receive, send))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    layer = HTTPMiddleware(app, dispatch=passing, when=lambda conn: False, websocket=True)
    await layer(SocketServer().scope, receive, send)
    assert got == [receive, send]


async def test_delegation(served: Served, layered: Layered) -> None:
    """A function can delegate a handshake to another one."""

    async def delegating(conn: Connection) -> Flow:
        response = yield marking("inside")(conn)
        response.headers["x-outside"] = "yes"

    server = await served(layered, Echo(), passing, delegating)
    assert (server.headers["x-marks"], server.headers["x-outside"]) == ("inside", "yes")


async def test_other_scopes_pass() -> None:
    """A scope that is neither goes straight to the app."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    layer = HTTPMiddleware(app, dispatch=refusing(), websocket=True)
    for kind in ("lifespan", "webtransport"):
        await layer({"type": kind}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan", "webtransport"]


# The connection.


async def test_what_conn_is(served: Served, layered: Layered) -> None:
    """It is the request of the handshake: GET, ws, without a body."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        seen.extend((conn.is_websocket, conn.method, str(conn.url), str(conn.base_url)))
        seen.extend((conn.query_params["q"], conn.cookies, conn.headers["x-a"], conn.client))
        seen.extend((await conn.body(), {each async for each in conn.stream()}))
        conn.state.seen = True
        yield

    await served(
        layered,
        Echo(),
        mw,
        path="/a?q=1",
        headers={"host": "h", "cookie": "c=d", "x-a": "b"},
    )
    assert seen == [
        True,
        "GET",
        "ws://h/a?q=1",
        "ws://h/",
        "1",
        {"c": "d"},
        "b",
        ("testclient", 50000),
        b"",
        {b""},
    ]


async def test_conn_of_http_is_no_websocket() -> None:
    """`conn.is_websocket` is False for HTTP."""
    seen: list[bool] = []

    async def mw(conn: Connection) -> Flow:
        seen.append(conn.is_websocket)
        yield

    await request(HTTPMiddleware(Response(), dispatch=mw, websocket=True))
    assert seen == [False]


@pytest.mark.parametrize(("given", "scheme"), [(None, "ws"), ("wss", "wss"), ("ws", "ws")])
async def test_the_scheme(given: str | None, scheme: str) -> None:
    """The scheme is that of the scope, and `ws` where there is none, as on daphne."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        seen.extend((conn.url.scheme, conn.base_url.scheme))
        yield

    server = SocketServer(headers={"host": "h"})
    server.scope["scheme"] = given
    if given is None:
        del server.scope["scheme"]
    await server.run(HTTPMiddleware(Echo(), dispatch=mw, websocket=True))
    assert seen == [scheme, scheme]


async def test_the_body_of_a_handshake_cannot_be_replaced(layered: Layered) -> None:
    """What makes no sense is refused, and says what to write instead."""
    seen: list[str] = []

    async def mw(conn: Connection) -> Flow:
        def assign() -> None:
            conn.body_iterator = conn.stream()

        for attempt in (
            lambda: conn.replace_body(b""),
            lambda: conn.fail_upload_after(idle=1),
            lambda: conn.body_iterator,
            assign,
        ):
            with pytest.raises(MiddlewareError) as caught:
                attempt()
            seen.append(explained(caught.value, mw, "has no body", "conn.is_websocket"))
        yield

    await SocketServer().run(layered(Echo(), passing, mw))
    assert len(seen) == 4


async def test_the_scope_of_the_app_is_its_own(served: Served, layered: Layered) -> None:
    """The inner app gets the scope of a WebSocket, and what a layer has put into it."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(dict(scope))
        await closing()(scope, receive, send)

    async def mw(conn: Connection) -> Flow:
        conn.state.user = "me"
        yield

    await served(layered, app, mw, mw, subprotocols=["a"])
    (scope,) = scopes
    assert (scope["type"], scope["subprotocols"]) == ("websocket", ["a"])
    assert "method" not in scope
    assert scope["state"] == {"user": "me"}


async def test_is_disconnected_before_the_answer(served: Served, layered: Layered) -> None:
    """It looks without waiting, and what it finds stays for the app."""
    seen: list[bool] = []

    async def mw(conn: Connection) -> Flow:
        seen.extend([await conn.is_disconnected(), await conn.is_disconnected()])
        yield
        seen.append(await conn.is_disconnected())

    server = await served(layered, Echo(), mw, mw, messages=["a"])
    assert seen == [False] * 6
    assert server.messages == ["a"]


async def test_a_client_that_left_before(served: Served, layered: Layered) -> None:
    """`is_disconnected` tells of a client that left before the answer."""
    seen: list[bool] = []

    async def mw(conn: Connection) -> Flow:
        seen.extend([await conn.is_disconnected(), await conn.is_disconnected()])
        yield PlainTextResponse("too late", 403)

    await served(layered, Echo(), mw, keep_error=True, leaves_after=0)
    assert seen == [False, True]


async def test_what_a_layer_changes_of_it(served: Served, layered: Layered) -> None:
    """It is seen further in; what the app writes arrives outside, and refusals pass through."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["path"], dict(scope["headers"])[b"x-a"]))
        scope["route"] = "mine"
        await closing()(scope, receive, send)

    async def mw(conn: Connection) -> Flow:
        conn.scope["path"] = "/changed"
        conn.scope["headers"].append((b"x-a", b"b"))
        response = yield
        seen.append((response.status_code, await response.read(), conn.scope.get("route")))

    async def outer(conn: Connection) -> Flow:
        yield
        seen.append((conn.url.path, conn.scope.get("route")))

    await served(layered, app, outer, mw)
    assert seen == [("/changed", b"b"), (403, b"", "mine"), ("/", "mine")]
    del seen[:]
    await served(layered, app, outer, mw, refusing(PlainTextResponse("no", 404)))
    assert seen == [(404, b"no", None), ("/", None)]


# The acceptance.


async def test_the_acceptance(served: Served, layered: Layered) -> None:
    """It is a response with status 101, and nothing is sent yet."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        assert isinstance(response, AppResponse)
        seen.extend((response.status_code, response.headers["x-inner"], response.subprotocol))
        seen.extend((response.is_acceptance, await response.read(), response.outcome))
        response.headers["x-mw"] = "yes"
        response.set_cookie("a", "b")
        response.set_cookie("c", "d")

    server = await served(
        layered, Echo(subprotocol="p"), passing, mw, subprotocols=["p"], messages=["a", b"b"]
    )
    assert seen == [101, "yes", "p", True, b"", None]
    assert server.accept is not None
    assert server.accept["subprotocol"] == "p"
    assert server.headers["x-mw"] == "yes"
    assert [each[:3] for each in server.headers.getlist("set-cookie")] == ["a=b", "c=d"]
    assert server.messages == ["a", b"b"]


async def test_an_acceptance_is_read_by_every_layer(served: Served, layered: Layered) -> None:
    """It has no body that a layer could wait for, wherever that stands."""
    seen: list[bytes] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.append(await response.read())
        yield response

    server = await served(layered, Echo(), mw, passing, mw, passing, messages=["a"])
    assert (server.messages, seen) == (["a"], [b"", b""])


async def test_a_disconnect_that_was_read_ahead_is_not_lost(spec: str | None) -> None:
    """An app that accepts all the same is told of it, by a server that tells it once."""
    app = Echo()

    async def mw(conn: Connection) -> Flow:
        while not await conn.is_disconnected():
            pass
        yield

    server = SocketServer(spec=spec, leaves_after=0, disconnect="once")
    await server.run(HTTPMiddleware(app, dispatch=mw, websocket=True), keep_error=True)
    if spec not in ("2.4", "2.5"):
        assert app.received[-1]["type"] == "websocket.disconnect"


async def test_an_untouched_acceptance_leaves_as_it_came(served: Served, layered: Layered) -> None:
    """Every key of it reaches the server, those that nobody knows, too."""
    accept = {"type": "websocket.accept", "subprotocol": None, "headers": [], "x.y": 1}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(accept)

    server = await served(layered, app, waiting, passing)
    assert server.sent == [accept]


async def test_an_acceptance_without_headers(served: Served, layered: Layered) -> None:
    """Headers are not there unless somebody sets one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    assert (await served(layered, app, passing, waiting)).sent == [{"type": "websocket.accept"}]
    server = await served(layered, app, passing, marking("a"))
    assert server.sent == [{"type": "websocket.accept", "headers": [(b"x-marks", b"a")]}]


async def test_the_body_of_an_acceptance_cannot_be_set(served: Served, layered: Layered) -> None:
    """It has none; who wants to refuse is told how."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.body = b"no"

    with pytest.raises(MiddlewareError) as caught:
        await served(layered, Echo(), passing, mw)
    explained(caught.value, mw, "yield a response of your own")


async def test_a_transform_of_nothing_runs(served: Served, layered: Layered) -> None:
    """A transform of the acceptance runs over an empty body, and the app goes on."""
    seen: list[bytes] = []

    async def upper(chunks: Any) -> Any:
        async for chunk in chunks:
            seen.append(chunk)
        yield b"more"
        seen.append(b"end")

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = upper(response.body_iterator)
        yield response

    server = await served(layered, Echo(), waiting, mw, messages=["a"])
    assert (server.status, server.messages, seen) == (101, ["a"], [b"end"])


async def test_only_the_app_accepts(served: Served, layered: Layered) -> None:
    """A 101 of a layer's own is an error, and the handshake is not accepted."""
    for mw in (refusing(Response(status_code=101)), replacing(Response(status_code=101))):
        with pytest.raises(MiddlewareError, match="only that accepts a WebSocket"):
            await served(layered, Echo(), passing, mw)


async def test_an_acceptance_is_not_refused_by_its_status(served: Served, layered: Layered) -> None:
    """Another status on an acceptance is an error that tells who set it and how to refuse."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.status_code = 403

    with pytest.raises(MiddlewareError, match=r"yield Response\(status_code=403\)") as raised:
        await served(layered, Echo(), passing, mw, marking("a"))
    line = mw.__code__.co_firstlineno
    assert f"mw' ({__file__}:{line})" in str(raised.value)


async def test_a_layer_that_steps_aside_takes_its_time_limit_with_it(
    served: Served, layered: Layered
) -> None:
    """Who waits for the end still sees the messages of the server."""
    ends: list[Any] = []

    def layers(app: ASGIApp, *functions: Function) -> ASGIApp:
        def limit(conn: Connection) -> bool:
            conn.fail_after(30)
            return False

        aside = HTTPMiddleware(app, dispatch=passing, when=limit, websocket=True)
        return layered(aside, *functions)

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        ends.append((response.outcome, response.close_code))

    await served(layers, Echo(), mw)
    assert ends == [("completed", 1000)]


async def test_a_denial_of_the_apps_with_status_101_is_the_apps_own(
    served: Served, layered: Layered
) -> None:
    """Only a function is told that 101 is no status of a refusal."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 101, "headers": []})

    server = await served(layered, app, passing)
    assert [message["type"] for message in server.sent] in (
        ["websocket.http.response.start"],
        ["websocket.close"],
    )


# Refusals.


async def test_refused_by_a_layer(served: Served, layered: Layered) -> None:
    """The app is not run; the client gets the response where the server can send one."""
    app = Echo()
    server = await served(layered, app, marking("a"), refusing())
    assert (server.status, app.runs) == (403, 0)
    if served.denies:
        assert (server.body, server.headers["x-mw"]) == (b"members only", "yes")
        assert server.headers["x-marks"] == "a"
    else:
        assert server.sent == [{"type": "websocket.close", "code": 1000, "reason": ""}]


@pytest.mark.parametrize("between", [None, PassThrough, Apart])
async def test_the_outermost_layer_refuses(
    served: Served, between: type[PassThrough] | None
) -> None:
    """Where nobody is further out the response goes straight out."""

    def layered(app: ASGIApp, *functions: Function) -> ASGIApp:
        return wrapped(app, *functions, between=between)

    server = await served(layered, Echo(), refusing(JSONResponse({"a": 1}, 429)), passing)
    assert server.status == (429 if served.denies else 403)
    if served.denies:
        assert server.json() == {"a": 1}


async def test_outer_layers_see_the_refusal_of_inner_ones(served: Served, layered: Layered) -> None:
    """They get it as the response that it is, whatever the server can send."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.extend((response.status_code, response.headers["x-mw"], await response.read()))
        yield response
        seen.extend((response.outcome, response.bytes_sent, response.close_code))

    await served(layered, Echo(), mw, refusing())
    assert seen == [403, "yes", b"members only", "completed", 12, None]


async def test_kinds_of_responses(served: Served, layered: Layered, tmp_path: Any) -> None:
    """Any Starlette response refuses: streamed, from a file, without a body."""
    file = tmp_path / "file"
    file.write_bytes(b"from a file")
    made: dict[bytes, Callable[[], Response]] = {
        b"streamed": lambda: StreamingResponse(Chunks(b"str", b"eamed"), 402),
        b"from a file": lambda: FileResponse(file, 402),
        b"": lambda: Response(status_code=402),
    }
    for content, make in made.items():
        for mw in (refusing(make()), replacing(make())):
            server = await served(layered, Echo(), waiting, mw)
            assert server.status == (402 if served.denies else 403)
            assert server.body == (content if served.denies else b"")


async def test_http_exception_refuses(served: Served, layered: Layered) -> None:
    """An HTTPException of a function becomes the answer, before and after the acceptance."""

    async def before(conn: Connection) -> Flow:
        raise HTTPException(402, "pay", headers={"x-e": "1"})
        yield

    async def after(conn: Connection) -> Flow:
        yield
        raise HTTPException(402, "pay", headers={"x-e": "1"})

    for mw in (before, after):
        server = await served(layered, Echo(), marking("a"), mw)
        assert server.status == (402 if served.denies else 403)
        if served.denies:
            assert (server.text, server.headers["x-e"]) == ("pay", "1")
            assert server.headers["x-marks"] == "a"


async def test_the_handlers_of_the_application_answer() -> None:
    """They are those of HTTP, and are called with the connection."""
    app = FastAPI()

    @app.exception_handler(HTTPException)
    async def handle(conn: Any, exc: HTTPException) -> Response:
        return JSONResponse({"method": conn.method, "detail": exc.detail}, exc.status_code)

    async def mw(conn: Connection) -> Flow:
        raise HTTPException(402, "pay")
        yield

    app.add_middleware(HTTPMiddleware, dispatch=mw, websocket=True)
    server = await SocketServer().run(app)
    assert (server.status, server.json()) == (402, {"method": "GET", "detail": "pay"})


async def test_the_app_closes(served: Served, layered: Layered) -> None:
    """A close before the acceptance is a 403, and leaves as it came where nobody touches it."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.extend((response.status_code, response.is_acceptance, await response.read()))
        yield response
        seen.append(response.outcome)

    server = await served(layered, closing(4401, "who?"), waiting, mw, passing)
    assert seen == [403, False, b"", "completed"]
    assert server.sent == [{"type": "websocket.close", "code": 4401, "reason": "who?"}]


async def test_a_close_that_is_edited_is_a_response(served: Served, layered: Layered) -> None:
    """With a header, a status or a body it goes out as a response where the server has that."""

    async def status(conn: Connection) -> Flow:
        response = yield
        response.status_code = 404

    async def body(conn: Connection) -> Flow:
        response = yield
        response.body = b"no"

    async def streamed(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = Chunks(b"n", b"o")

    expected = {marking("a"): (403, b""), status: (404, b""), body: (403, b"no")}
    for mw, answer in {**expected, streamed: (403, b"no")}.items():
        server = await served(layered, closing(4401), waiting, mw)
        if served.denies:
            assert (server.status, server.body) == answer
        else:
            assert server.sent == [{"type": "websocket.close", "code": 4401, "reason": ""}]


async def test_the_app_denies(layered: Layered, spec: str | None) -> None:
    """A denial of the app's own is the response that it is, read and transformed like any."""
    seen: list[Any] = []

    async def upper(chunks: Any) -> Any:
        async for chunk in chunks:
            yield chunk.upper()

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.extend((response.status_code, response.headers["x-inner"]))
        response.body_iterator = upper(response.body_iterator)

    async def reading(conn: Connection) -> Flow:
        response = yield
        seen.append(await response.read())
        yield response
        seen.append((response.outcome, response.bytes_sent))

    server = await Served(spec, DENIES)(layered, denying(404, b"a", b"bc"), reading, mw)
    assert (server.status, server.body, server.headers["x-inner"]) == (404, b"ABC", "yes")
    assert seen == [404, "yes", b"ABC", ("completed", 3)]


async def test_an_untouched_denial_leaves_as_it_came(layered: Layered, spec: str | None) -> None:
    """Every message of it, with its chunks and keys."""
    messages = [
        {"type": "websocket.http.response.start", "status": 404, "headers": [], "x": 1},
        {"type": "websocket.http.response.body", "body": b"a", "more_body": True, "y": 2},
        {"type": "websocket.http.response.body", "body": b"", "more_body": False},
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in messages:
            await send(message)

    server = await Served(spec, DENIES)(layered, app, waiting, passing)
    assert server.sent == messages


async def test_exceptions_of_the_framework_are_seen(served: Served) -> None:
    """FastAPI's `WebSocketException` and an HTTPException of a dependency arrive as refusals."""
    app = FastAPI()
    seen: list[int] = []

    @app.websocket("/ws")
    async def ws(socket: FastAPIWebSocket) -> None:
        raise WebSocketException(1008)

    @app.websocket("/http")
    async def http(socket: FastAPIWebSocket) -> None:
        raise HTTPException(402)

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.append(response.status_code)

    for path in ("/ws", "/http"):
        await served(lambda a, m: HTTPMiddleware(a, m, websocket=True), app, mw, path=path)
    assert seen == [403, 402]


# After the acceptance.


async def test_after_the_acceptance_the_app_has_what_is_the_servers(layered: Layered) -> None:
    """With layers of one yield nothing of ours is in between any more."""
    frames: list[int] = []

    class Counting(SocketServer):
        async def receive(self) -> Message:
            frames.append(ours())
            return await super().receive()

        async def send(self, message: Message) -> None:
            frames.append(ours())
            await super().send(message)

    def ours() -> int:
        frame, count = sys._getframe(2), 0
        while frame is not None and frame.f_code is not Echo.__call__.__code__:
            count += "httpmw/_" in frame.f_code.co_filename
            frame = frame.f_back  # type: ignore[assignment]
        return count

    # The app's own checker would be in between as well.
    server = Counting(messages=["a"])
    await server.run(layered(Echo(), passing, passing, passing))
    assert server.messages == ["a"]
    assert frames[2:] == [0, 0, 0]


@pytest.mark.parametrize("closes", [1000, 1001, 4000, 1005, 1006])
async def test_how_it_ended(served: Served, layered: Layered, closes: int) -> None:
    """A function that waits comes back when the app has ended, and learns what became of it."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.append((response.outcome, response.close_code, response.close_reason))
        seen.append((response.bytes_sent, response.messages_sent, response.messages_received))
        assert response.started_at is not None
        assert response.ended_at is not None
        assert response.started_at <= response.ended_at

    app = Echo()
    await served(layered, app, mw, passing, mw, messages=["é", b"abc", "x"], closes=closes)
    outcome = "disconnected" if closes == 1006 else "completed"
    assert seen == [(outcome, closes, ""), (6, 3, 3)] * 2
    assert app.ended == [None]


async def test_layers_inside_of_one_that_counts(served: Served, layered: Layered) -> None:
    """Messages go straight only as far as nobody wants to count them."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.extend((response.messages_sent, response.messages_received, response.close_code))

    for inside in ([passing], [passing, passing]):
        seen.clear()
        await served(layered, Echo(), mw, *inside, messages=["a", "b"])
        assert seen == [2, 2, 1000]


async def test_closed_by_the_app(served: Served, layered: Layered) -> None:
    """The app's own close counts, not what the server tells behind it."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
        await receive()

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.extend((response.outcome, response.close_code, response.close_reason))

    await served(layered, app, mw, closes=None)
    assert seen == ["completed", 4000, "enough"]


async def test_no_close_at_all(served: Served, layered: Layered) -> None:
    """An app that returns without one, and has heard of none, leaves a socket that broke off."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.extend((response.outcome, response.close_code, response.close_reason))

    await served(layered, app, mw, closes=None)
    assert seen == ["disconnected", None, None]


async def test_the_app_fails_after_the_acceptance(served: Served, layered: Layered) -> None:
    """Its exception is raised at `yield response`, and goes on to the server."""
    error = ValueError("broken")
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise error

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except ValueError as exc:
            seen.append((exc is error, response.outcome))
            raise

    server = await served(layered, app, mw, passing, mw, keep_error=True)
    assert seen == [(True, "failed")] * 2
    assert server.error is error
    assert server.types == ["websocket.accept"]


@pytest.mark.parametrize("closes", [1000, 1006])
async def test_an_app_that_lets_the_disconnect_out(
    served: Served, layered: Layered, closes: int
) -> None:
    """Starlette's `WebSocketDisconnect` is the app's failure; the outcome is that of the socket."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        await socket.receive_text()

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except WebSocketDisconnect:
            seen.append(response.outcome)
            raise

    server = await served(layered, app, mw, mw, closes=closes, keep_error=True)
    assert seen == ["completed" if closes == 1000 else "disconnected"] * 2
    assert isinstance(server.error, WebSocketDisconnect)


async def test_a_client_that_drops_while_the_app_sends(served: Served, layered: Layered) -> None:
    """From 2.4 on the app gets an `OSError`, and the outcome is the same without one."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(3):
            await send({"type": "websocket.send", "text": "a"})

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        finally:
            seen.append(response.outcome)

    server = await served(layered, app, mw, leaves_after=2, keep_error=True)
    assert seen == ["disconnected"]
    assert isinstance(server.error, OSError) is served.raises


async def test_cancelled_after_the_acceptance(layered: Layered, spec: str | None) -> None:
    """A cancellation is raised at the yields, and the outcome says so."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await anyio.sleep_forever()

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        finally:
            seen.append(response.outcome)

    server = SocketServer(spec=spec)
    async with anyio.create_task_group() as group:
        group.start_soon(server.run, layered(app, mw, passing, mw))
        while not server.sent:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert seen == ["cancelled"] * 2


async def test_background_tasks_and_edits_of_an_acceptance(
    served: Served, layered: Layered
) -> None:
    """A background task runs when the app has ended."""
    seen: list[str] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.background = BackgroundTask(seen.append, "background")
        yield response
        seen.append("after")

    app = Echo()
    await served(layered, app, passing, mw, messages=["a"])
    assert (seen, app.ended) == (["background", "after"], [None])


async def test_context_variables(served: Served, layered: Layered) -> None:
    """A function that waits comes back in its own context, and can reset what it has set."""
    variable = contextvars.ContextVar[str]("variable")
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        await Echo()(scope, receive, send)

    async def mw(conn: Connection) -> Flow:
        token = variable.set("set")
        response = yield
        yield response
        variable.reset(token)
        seen.append(variable.get(None))

    await served(layered, app, mw)
    assert seen == ["set", None]


async def test_accepted_in_a_child_task(served: Served, layered: Layered) -> None:
    """An app may accept and send in tasks of its own."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(send, {"type": "websocket.accept", "headers": []})
        async with anyio.create_task_group() as group:
            group.start_soon(send, {"type": "websocket.send", "text": "a"})

    server = await served(layered, app, marking("a"), passing, marking("b"))
    assert (server.headers["x-marks"], server.messages) == ("ba", ["a"])


# The discarded app.


async def test_a_discarded_app_sees_a_client_that_left(served: Served, layered: Layered) -> None:
    """Its acceptance is taken quietly; then it is told of a connection that broke off."""
    app = Echo()
    server = await served(layered, app, passing, replacing(), waiting)
    assert server.status == (401 if served.denies else 403)
    assert app.ended == [None]
    assert [each["type"] for each in app.received] == ["websocket.connect", "websocket.disconnect"]
    assert app.received[1]["code"] == 1006
    version = server.scope["asgi"].get("spec_version", "2.0")
    assert ("reason" in app.received[1]) is (version >= "2.3")


async def test_what_a_discarded_app_sends(served: Served, layered: Layered) -> None:
    """From 2.4 on it raises an `OSError`, which is dropped when it leaves the app."""
    seen: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for message in ({"type": "websocket.send", "text": "a"}, {"type": "websocket.close"}):
            try:
                await send(message)
            except OSError:
                seen.append(True)
            else:
                seen.append(False)
        await send({"type": "websocket.send", "text": "b"})

    server = await served(layered, app, waiting, replacing(), passing)
    assert seen == [served.raises] * 2
    assert server.status == (401 if served.denies else 403)
    assert server.messages == []


@pytest.mark.parametrize("first", ["receive", "send"])
async def test_a_discarded_app_of_starlette(served: Served, layered: Layered, first: str) -> None:
    """What `WebSocket` makes of it is dropped, as it is our own doing, but nothing else."""
    ended: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        try:
            if first == "send":
                await socket.send_text("a")
            await socket.receive_text()
        except BaseException as error:
            ended.append(error)
            raise

    async def mw(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("no", 401)
        ended.append(KeyError())

    await served(layered, app, waiting, mw, waiting)
    assert [type(each) for each in ended] == [WebSocketDisconnect, KeyError]

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            await app(scope, receive, send)
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await served(layered, failing, waiting, replacing(), waiting)


async def test_a_discarded_app_is_not_left_waiting(layered: Layered, spec: str | None) -> None:
    """A `receive` that was begun before the refusal ends, whatever the server does."""
    received: list[Message] = []

    class Deaf(SocketServer):
        async def receive(self) -> Message:
            if self.receives:
                await anyio.sleep_forever()
            return await super().receive()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            received.append(await receive())
            received.append(await receive())

        received.append(await receive())
        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await send({"type": "websocket.accept"})

    await Deaf(spec=spec).run(layered(app, waiting, replacing(), passing))
    assert [each["type"] for each in received[1:]] == ["websocket.disconnect"] * 2


async def test_a_discarded_app_gets_the_connect_first(served: Served, layered: Layered) -> None:
    """One that accepts without having asked is told of the connect before the disconnect."""
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        received.extend([(await receive())["type"], (await receive())["type"]])

    await served(layered, app, replacing(), passing)
    assert received == ["websocket.connect", "websocket.disconnect"]


async def test_outcomes_around_a_discarded_app(served: Served, layered: Layered) -> None:
    """Further in the client has left; the layer itself has replaced; further out all is well."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.append((response.status_code, response.outcome, response.close_code))

    async def replaces(conn: Connection) -> Flow:
        response = yield
        yield PlainTextResponse("no", 401)
        seen.append((response.status_code, response.outcome))

    await served(layered, Echo(), mw, replaces, mw)
    assert seen == [
        (101, "disconnected", 1006),
        (101, "replaced"),
        (401, "completed", None),
    ]


async def test_a_denial_that_is_replaced(layered: Layered, spec: str | None) -> None:
    """A discarded denial is what any discarded response is."""
    ended: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await denying(404, b"a", b"b")(scope, receive, send)
        except OSError:
            ended.append("told")
            raise
        ended.append("at its end")

    server = await Served(spec, DENIES)(layered, app, passing, replacing(), waiting)
    assert (server.status, server.body) == (401, b"not you")
    assert ended == ["told" if spec in ("2.4", "2.5") else "at its end"]


# Exceptions and errors.


async def test_the_app_fails_before_it_answers(served: Served, layered: Layered) -> None:
    """Its exception is raised at the yield, where it can be answered."""
    error = ValueError("broken")
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise error

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except ValueError as exc:
            seen.append(exc)
            raise

    async def answering(conn: Connection) -> Flow:
        try:
            yield
        except ValueError:
            yield PlainTextResponse("sorry", 500)

    server = await served(layered, app, mw, passing, keep_error=True)
    assert (seen, server.error, server.sent) == ([error], error, [])
    server = await served(layered, app, marking("a"), answering, mw)
    assert server.status == (500 if served.denies else 403)


async def test_a_function_fails_after_the_acceptance(served: Served, layered: Layered) -> None:
    """The handshake is not accepted; outer functions get the exception, and then the server."""
    error = ValueError("broken")
    seen: list[Any] = []

    async def failing(conn: Connection) -> Flow:
        yield
        raise error

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except ValueError as exc:
            seen.append(exc)
            raise

    server = await served(layered, Echo(), mw, failing, waiting, keep_error=True)
    assert (seen, server.error, server.sent) == ([error], error, [])


async def test_an_app_that_does_not_answer(served: Served, layered: Layered) -> None:
    """`NoResponseError` says what an app has to send."""

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    with pytest.raises(NoResponseError, match=r"silent.*\n.*`websocket.accept` or"):
        await served(layered, silent, passing, waiting)


async def test_a_client_that_leaves_before_the_answer(served: Served, layered: Layered) -> None:
    """It is a `ClientDisconnect` at the yield, and dropped silently where nobody handles it."""
    seen: list[type[BaseException]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "websocket.disconnect"

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except BaseException as exc:
            seen.append(type(exc))
            raise

    await served(layered, app, mw, passing, mw, leaves_after=0)
    assert seen == [ClientDisconnect] * 2


async def test_a_time_limit_for_the_answer(served: Served, layered: Layered) -> None:
    """`conn.fail_after` limits the time until the app has answered, and no longer."""
    seen: list[Any] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await anyio.sleep_forever()

    def limited(seconds: float) -> Function:
        async def limited(conn: Connection) -> Flow:
            conn.fail_after(seconds)
            try:
                yield
            except TimeoutError:
                yield PlainTextResponse("late", 504)

        return limited

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.append(response.status_code)

    server = await served(layered, late, mw, limited(0), waiting)
    assert server.status == (504 if served.denies else 403)
    assert seen == [504]
    for app in (Echo(), closing(), denying(404, b"a")):
        del seen[:]
        await served(layered, app, marking("a"), limited(1000), mw, limited(1000), passing)
        assert seen == [{Echo: 101}.get(type(app), seen[0])]


async def test_a_refusal_inside_of_a_time_limit_is_seen_whole(
    served: Served, layered: Layered
) -> None:
    """A layer whose time is limited by another one refuses as any."""
    seen: list[Any] = []

    async def limited(conn: Connection) -> Flow:
        conn.fail_after(1000)
        response = yield
        seen.extend((response.status_code, await response.read()))

    await served(layered, Echo(), limited, refusing())
    assert seen == [403, b"members only"]


async def test_open_scopes(served: Served, layered: Layered) -> None:
    """A scope that is held over the yield is refused, as for HTTP."""

    async def mw(conn: Connection) -> Flow:
        with anyio.CancelScope():
            yield

    app = Echo()
    with pytest.raises(MiddlewareError, match="cancel scope") as caught:
        await served(layered, app, passing, mw)
    explained(caught.value, mw)
    assert app.runs == 0


async def test_mistakes_are_the_same(served: Served, layered: Layered) -> None:
    """A second yield, no yield and no response are errors, and nothing is accepted."""

    async def twice(conn: Connection) -> Flow:
        yield
        yield

    async def never(conn: Connection) -> Flow:
        return
        yield

    async def nothing(conn: Connection) -> Flow:
        yield
        yield "no response"

    for mw in (twice, never, nothing):
        server = await served(layered, Echo(), passing, mw, keep_error=True)
        assert isinstance(server.error, MiddlewareError)
        explained(server.error, mw)
        assert server.sent == []


async def test_layers_of_others_in_between(spec: str | None, extensions: Any) -> None:
    """Through a layer of somebody else's all is told in messages of WebSockets."""

    def layered(app: ASGIApp, *functions: Function) -> ASGIApp:
        return wrapped(app, *functions, between=Apart)

    served = Served(spec, extensions)
    server = await served(layered, Echo(), marking("a"), marking("b"), messages=["a"])
    assert (server.headers["x-marks"], server.messages) == ("ba", ["a"])
    app = Echo()
    server = await served(layered, app, passing, replacing(), waiting)
    assert server.status == (401 if served.denies else 403)
    assert app.ended == [None]
    server = await served(layered, closing(4401), passing, waiting)
    assert server.sent == [{"type": "websocket.close", "code": 4401, "reason": ""}]


async def test_nothing_is_left_to_the_collector() -> None:
    """Exchanges, accepted, refused and replaced, are freed when they are over."""
    from httpmw._handshake import Handshake

    for functions in ([waiting], [passing, passing], [replacing(), waiting], [refusing()]):
        app = wrapped(Echo(), *functions, between=None)

        async def once(app: ASGIApp = app) -> None:
            await SocketServer(messages=["a"]).run(app)

        assert await left_to_the_collector(Handshake, once) == []


# What HTTP has, too.


@pytest.mark.parametrize("closes", [1000, 1006])
async def test_on_sent(served: Served, layered: Layered, closes: int) -> None:
    """It is called when the socket is over, by its close or by its end."""
    seen: list[Any] = []
    app = Echo()

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda it: seen.append((it.outcome, it.close_code, it.messages_sent)))

    await served(layered, app, passing, mw, passing, messages=["a"], closes=closes)
    assert seen == [("completed" if closes == 1000 else "disconnected", closes, 1)]


async def test_on_sent_of_a_refusal(served: Served, layered: Layered) -> None:
    """It is called for a response as for any."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda it: seen.append((it.outcome, it.status_code, it.bytes_sent)))

    await served(layered, Echo(), mw, refusing())
    assert seen == [("completed", 403, 12)]


async def test_limits_end_with_the_acceptance(served: Served, layered: Layered) -> None:
    """What limits a response, and who watches over it, has no business with the open socket."""

    async def mw(conn: Connection) -> Flow:
        conn.fail_after(1000, idle=0, total=0)
        conn.cancel_on_disconnect()
        yield

    class Slow(Echo):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def late() -> Message:
                await anyio.sleep(0.01)
                return await receive()

            await super().__call__(scope, late, send)

    app = Slow()
    server = await served(layered, app, passing, mw, waiting, messages=["a", "b"])
    assert (server.messages, app.ended) == (["a", "b"], [None])


async def test_cancelled_when_the_client_leaves_before_the_answer(
    served: Served, layered: Layered
) -> None:
    """`cancel_on_disconnect` watches until the app has answered."""
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def mw(conn: Connection) -> Flow:
        conn.cancel_on_disconnect()
        yield

    await served(layered, app, passing, mw, leaves_after=0)
    assert ended == ["cancelled"]
