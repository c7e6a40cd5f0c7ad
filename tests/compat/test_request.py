"""
The request in a dispatch function: what it reads, what it changes, and `call_next(other_request)`.

What was measured on Starlette is kept where something can stand on it; where the argument of
`call_next` is concerned, which Starlette ignores, it is honoured for everything further in.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.compat import BaseHTTPMiddleware, RequestResponseEndpoint
from tests.harness import Chunks, PassThrough, Server
from tests.harness import request as ask

Next = RequestResponseEndpoint
Dispatch = Callable[[Any, Any], Any]
Wrap = Callable[..., ASGIApp]

PARTS = (b"one, ", b"two, ", b"three")
WHOLE = b"one, two, three"


async def passing(request: Request, call_next: Next) -> Response:
    return await call_next(request)


async def nothing(conn: Connection) -> Flow:
    yield


@pytest.fixture(params=["fused", "nested", "generator inside"])
def wrap(request: pytest.FixtureRequest) -> Wrap:
    """Put a function around an app, with a layer inside and one outside."""

    def layers(app: ASGIApp, function: Dispatch) -> ASGIApp:
        if request.param == "generator inside":
            app = HTTPMiddleware(app, dispatch=nothing)
        else:
            app = BaseHTTPMiddleware(app, dispatch=passing)
        between = PassThrough if request.param == "nested" else (lambda app: app)
        app = BaseHTTPMiddleware(between(app), dispatch=function)
        return BaseHTTPMiddleware(between(app), dispatch=passing)

    return layers


class Messages:
    """An app that notes what it receives, up to the end of the body or a disconnect."""

    def __init__(self, *, to_the_end: bool = False) -> None:
        self.received: list[Message] = []
        self.scopes: list[Scope] = []
        self.to_the_end = to_the_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        more = True
        while more:
            message = await receive()
            self.received.append(message)
            more = message.get("more_body", False)
        await Response()(scope, receive, send)
        if self.to_the_end:
            self.received.append(await receive())

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)


# -- what is read before the call ------------------------------------------------------------


async def test_request_is_a_starlette_request(wrap: Wrap) -> None:
    """It is the request of the scope, with all that Starlette's has."""
    seen: list[Any] = []

    async def look(request: Request, call_next: Next) -> Response:
        assert isinstance(request, Request)
        request.state.seen = True
        seen.extend([request.method, request.url.path, request.headers["x-a"], request.client])
        seen.append(request.scope)
        return await call_next(request)

    app = Messages()
    server = await ask(wrap(app, look), path="/a", headers=[("x-a", "1")])

    assert seen[:3] == ["GET", "/a", "1"]
    assert seen[4] == server.scope
    assert app.scopes[0] is server.scope  # as nothing was changed
    assert server.scope["state"] == {"seen": True}


@pytest.mark.parametrize("body", [WHOLE, PARTS, b""], ids=["one message", "parts", "empty"])
async def test_body_that_was_left_alone(wrap: Wrap, body: Any) -> None:
    """The app gets the very messages of the server."""
    app = Messages()
    plain = Messages()
    await ask(plain, method="POST", body=body)
    await ask(wrap(app, passing), method="POST", body=body)

    assert app.received == plain.received


@pytest.mark.parametrize("read", ["body", "json", "form"])
async def test_body_that_was_read_is_there_for_the_app(wrap: Wrap, read: str) -> None:
    """`body()` and what stands on it leave the body to the app, in one message."""
    data = b"[1]" if read == "json" else b"a=1"
    seen: list[Any] = []

    async def look(request: Request, call_next: Next) -> Response:
        await request.body()
        seen.append(await getattr(request, read)())
        return await call_next(request)

    app = Messages(to_the_end=True)
    await ask(
        wrap(app, look),
        method="POST",
        body=[data[:1], data[1:]],
        headers=[("content-type", "application/x-www-form-urlencoded")],
    )

    assert seen == [{"body": data, "json": [1], "form": FormData(a="1")}[read]]
    assert app.received == [
        {"type": "http.request", "body": data, "more_body": False},
        {"type": "http.disconnect"},
    ]


async def test_form_without_body_takes_the_body(wrap: Wrap) -> None:
    """As with Starlette: a form is parsed from the stream, and the app gets an empty body."""

    async def look(request: Request, call_next: Next) -> Response:
        assert dict(await request.form()) == {"a": "1"}
        return await call_next(request)

    app = Messages()
    headers = [("content-type", "application/x-www-form-urlencoded")]
    await ask(wrap(app, look), method="POST", body=b"a=1", headers=headers)

    assert app.body == b""


async def test_part_of_the_stream_is_taken(wrap: Wrap) -> None:
    """The app gets what is left of the stream."""

    async def look(request: Request, call_next: Next) -> Response:
        async with aclosing(request.stream()) as chunks:
            assert await anext(chunks) == PARTS[0]
        return await call_next(request)

    app = Messages()
    await ask(wrap(app, look), method="POST", body=PARTS)

    assert [message["body"] for message in app.received] == list(PARTS[1:])


async def test_layers_read_one_after_the_other() -> None:
    """Each of several layers reads the whole body, generators among them."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        seen.append(await request.body())
        return await call_next(request)

    async def generator(conn: Connection) -> Flow:
        seen.append(await conn.body())
        yield

    app = Messages()
    asked: ASGIApp = app
    for _ in range(2):
        asked = BaseHTTPMiddleware(HTTPMiddleware(asked, dispatch=generator), dispatch=look)
    await ask(asked, method="POST", body=PARTS)

    assert seen == [WHOLE] * 4
    assert app.body == WHOLE


async def test_is_disconnected_takes_nothing(wrap: Wrap) -> None:
    """Where Starlette loses a message of the body, here the app gets all of them."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        seen.append(await request.is_disconnected())
        seen.append(await request.is_disconnected())
        return await call_next(request)

    app = Messages()
    await ask(wrap(app, look), method="POST", body=PARTS)

    assert seen == [False, False]
    assert app.body == WHOLE


async def test_endpoint_learns_that_the_client_has_left(wrap: Wrap) -> None:
    """`request.is_disconnected()` of the endpoint works behind a layer, unlike Starlette's."""
    server = Server()
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()
        seen.append(await request.is_disconnected())
        server.disconnect()
        seen.append(await request.is_disconnected())
        await Response()(scope, receive, send)

    await server.run(wrap(app, passing))

    assert seen == [False, True]


async def test_client_that_leaves_while_the_body_is_read(wrap: Wrap) -> None:
    """`ClientDisconnect` is raised in the function; who goes on gives the app the disconnect."""

    async def look(request: Request, call_next: Next) -> Response:
        with pytest.raises(ClientDisconnect):
            await request.body()
        assert await request.is_disconnected()
        return await call_next(request)

    app = Messages()
    await ask(wrap(app, look), method="POST", body=PARTS, leaves_after=0)

    assert app.received == [{"type": "http.disconnect"}]


# -- what is read after the call -------------------------------------------------------------


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    await Response()(scope, receive, send)


async def test_body_that_the_app_left_alone_can_be_read_afterwards(wrap: Wrap) -> None:
    """The function may be the first to read."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        seen.append(await request.body())
        return response

    await ask(wrap(silent, look), method="POST", body=PARTS)

    assert seen == [WHOLE]


@pytest.mark.parametrize("read", ["body", "stream"])
async def test_body_that_the_app_has_read_is_consumed(wrap: Wrap, read: str) -> None:
    """It is Starlette's error, at once; nothing hangs."""
    errors = []

    async def look(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        with pytest.raises(RuntimeError, match="Stream consumed") as raised:
            if read == "body":
                await request.body()
            else:
                await anext(request.stream())
        errors.append(raised)
        return response

    await ask(wrap(Messages(), look), method="POST", body=PARTS)

    assert len(errors) == 1


# -- what is patched -------------------------------------------------------------------------


async def given() -> Message:
    return {"type": "http.request", "body": b"given", "more_body": False}


async def test_receive_that_is_patched_is_what_the_app_gets(wrap: Wrap) -> None:
    """`request._receive = f`, where the body was not read."""

    async def patch(request: Request, call_next: Next) -> Response:
        request._receive = given
        return await call_next(request)

    app = Messages()
    await ask(wrap(app, patch), method="POST", body=PARTS)

    assert app.body == b"given"


async def test_receive_that_is_patched_after_the_body_was_read(wrap: Wrap) -> None:
    """It is ignored, as the body is there already."""

    async def patch(request: Request, call_next: Next) -> Response:
        await request.body()
        request._receive = given
        return await call_next(request)

    app = Messages()
    await ask(wrap(app, patch), method="POST", body=PARTS)

    assert app.body == WHOLE


@pytest.mark.parametrize("read", [True, False])
async def test_body_that_is_patched_is_what_the_app_gets(wrap: Wrap, *, read: bool) -> None:
    """`request._body = data`, after it was read or without; then comes the disconnect."""

    async def patch(request: Request, call_next: Next) -> Response:
        if read:
            await request.body()
        request._body = b"given"
        assert await request.body() == b"given"
        return await call_next(request)

    app = Messages(to_the_end=True)
    await ask(wrap(app, patch), method="POST", body=PARTS)

    assert app.received == [
        {"type": "http.request", "body": b"given", "more_body": False},
        {"type": "http.disconnect"},
    ]


@pytest.mark.parametrize("how", ["patched", "given"])
async def test_receive_that_gives_the_body_again_and_again(
    wrap: Wrap, how: str, spec: str | None
) -> None:
    """The well-known three lines do not make a listener for the disconnect turn for ever."""

    async def replay(request: Request, call_next: Next) -> Response:
        await request.body()
        if how == "patched":
            request._receive = given
            return await call_next(request)
        return await call_next(Request(request.scope, given))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        data = await Request(scope, receive).body()
        await StreamingResponse(Chunks(data))(scope, receive, send)

    server = await ask(wrap(app, replay), method="POST", body=PARTS, spec=spec)

    assert server.body == (WHOLE if how == "patched" else b"given")
    assert server.complete


# -- another request -------------------------------------------------------------------------


async def test_scope_of_another_request_is_honoured(wrap: Wrap) -> None:
    """Everything further in gets it; the function itself and outer layers keep theirs."""
    seen: dict[str, Any] = {}

    async def outside(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        seen["outside"] = request.url.path
        return response

    async def inside(conn: Connection) -> Flow:
        seen["inside"] = (conn.url.path, conn.headers.get("x-new"))
        yield
        seen["inside, after"] = conn.url.path

    async def rewrite(request: Request, call_next: Next) -> Response:
        scope = {**request.scope, "path": "/new", "headers": [(b"x-new", b"1")]}
        response = await call_next(Request(scope, request.receive))
        seen["itself"] = request.url.path
        return response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen["app"] = (scope["path"], scope["headers"])
        await Response()(scope, receive, send)

    asked = wrap(HTTPMiddleware(app, dispatch=inside), rewrite)
    server = await ask(BaseHTTPMiddleware(asked, dispatch=outside), path="/old")

    assert seen == {
        "inside": ("/new", "1"),
        "app": ("/new", [(b"x-new", b"1")]),
        "inside, after": "/new",
        "itself": "/old",
        "outside": "/old",
    }
    assert server.scope["path"] == "/old"


async def test_scope_is_the_old_one_for_outer_layers_after_a_failure(wrap: Wrap) -> None:
    """Also where the app fails under the other scope."""
    seen = []

    async def answer(request: Request, call_next: Next) -> Response:
        with suppress(LookupError):
            await call_next(Request({**request.scope, "path": "/new"}, request.receive))

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["path"])
            await PlainTextResponse("answered")(scope, receive, send)

        return late  # type: ignore[return-value]

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        raise LookupError

    server = await ask(wrap(failing, answer), path="/old")

    assert server.body == b"answered"
    assert seen == ["/new", "/old"]


async def test_scope_that_is_set_on_the_request_is_honoured(wrap: Wrap) -> None:
    """`request.scope = ...` is the same as to pass another request."""

    async def rewrite(request: Request, call_next: Next) -> Response:
        request.scope = {**request.scope, "path": "/new"}
        return await call_next(request)

    app = Messages()
    await ask(wrap(app, rewrite), path="/old")

    assert app.scopes[0]["path"] == "/new"


async def test_receive_of_another_request_is_honoured(wrap: Wrap) -> None:
    """A limit on the size of uploads that is written this way does limit."""

    class TooLarge(Exception):
        pass

    async def limit(request: Request, call_next: Next) -> Response:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await request.receive()
            size += len(message.get("body", b""))
            if size > len(PARTS[0]):
                raise TooLarge
            return message

        try:
            return await call_next(Request(request.scope, counted))
        except TooLarge:
            return Response(status_code=413)

    assert (await ask(wrap(Messages(), limit), method="POST", body=PARTS)).status == 413
    assert (await ask(wrap(Messages(), limit), method="POST", body=PARTS[0])).status == 200


async def test_receive_of_another_request_gets_to_the_disconnect(wrap: Wrap) -> None:
    """What it passes on after the body is passed on."""

    async def forward(request: Request, call_next: Next) -> Response:
        async def forwarded() -> Message:
            return await request.receive()

        return await call_next(Request(request.scope, forwarded))

    app = Messages(to_the_end=True)
    await ask(wrap(app, forward), method="POST", body=PARTS)

    assert app.body == WHOLE
    assert app.received[-1] == {"type": "http.disconnect"}


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("how", ["scope only", "its receive", "its class", "a connection", "None"])
async def test_another_request_without_a_body_of_its_own(
    wrap: Wrap, how: str, *, read: bool
) -> None:
    """The app gets the body of the first one, also where that was read already."""

    async def forward(request: Request, call_next: Next) -> Response:
        if read:
            await request.body()
        other: Any = {
            "scope only": Request(request.scope),
            "its receive": Request(request.scope, request.receive),
            "its class": type(request)(request.scope, request.receive),
            "a connection": HTTPConnection(request.scope),
            "None": None,
        }[how]
        return await call_next(other)

    app = Messages()
    await ask(wrap(app, forward), method="POST", body=PARTS)

    assert app.body == WHOLE


async def test_another_request_that_has_read_the_body(wrap: Wrap) -> None:
    """What the other request holds is what the app gets."""

    async def forward(request: Request, call_next: Next) -> Response:
        other = Request(request.scope, request.receive)
        assert await other.body() == WHOLE
        other._body = WHOLE.upper()
        return await call_next(other)

    app = Messages()
    await ask(wrap(app, forward), method="POST", body=PARTS)

    assert app.body == WHOLE.upper()


async def test_exception_handler_takes_nothing_of_the_body() -> None:
    """What it reads for an early HTTPException is still there for the layers outside."""
    seen: list[bytes] = []

    async def refuses(request: Request, call_next: Next) -> Response:
        raise HTTPException(400)

    async def outside(conn: Connection) -> Flow:
        yield
        seen.append(await conn.body())

    async def says(request: Request, exc: Exception) -> Response:
        return Response(await request.body(), 400)

    layers = [
        Middleware(HTTPMiddleware, dispatch=outside),
        Middleware(BaseHTTPMiddleware, dispatch=refuses),
    ]
    app = Starlette(exception_handlers={400: says}, middleware=layers)
    server = await ask(app, method="POST", body=PARTS)

    assert (server.status, server.body, seen) == (400, WHOLE, [WHOLE])


async def test_what_was_looked_at_can_be_read_after_the_end(wrap: Wrap) -> None:
    """A request that outlives its response has lost nothing that came before that."""
    kept: list[Request] = []

    async def looks(request: Request, call_next: Next) -> Response:
        assert not await request.is_disconnected()
        kept.append(request)
        return await call_next(request)

    await ask(wrap(Response(), looks), method="POST", body=[WHOLE])

    assert await kept[0].body() == WHOLE


async def test_method_of_another_request_is_not_the_servers(wrap: Wrap) -> None:
    """A HEAD that the app sees as GET is a HEAD still to the layers outside."""

    async def as_get(request: Request, call_next: Next) -> Response:
        return await call_next(Request({**request.scope, "method": "GET"}, request.receive))

    async def outside(conn: Connection) -> Flow:
        response = yield
        response.body = b"longer than nothing"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(scope["method"])(scope, receive, send)

    asked = HTTPMiddleware(wrap(app, as_get), dispatch=outside)
    server = await ask(asked, method="HEAD")

    assert server.violations == []
    assert server.sent[-1].get("body", b"") == b""


async def test_message_that_is_received_is_taken(wrap: Wrap) -> None:
    """`request.receive()` takes a message, as with Starlette."""

    async def take(request: Request, call_next: Next) -> Response:
        assert (await request.receive())["body"] == PARTS[0]
        return await call_next(request)

    app = Messages()
    await ask(wrap(app, take), method="POST", body=PARTS)

    assert app.body == b"".join(PARTS[1:])


async def test_app_that_stops_listening_loses_nothing(wrap: Wrap) -> None:
    """A `receive` of the app that is cancelled leaves the message, also after a read."""
    server = Server(method="POST", body=b"data")
    seen: list[Any] = []

    async def look(request: Request, call_next: Next) -> Response:
        await request.body()
        return await call_next(request)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        seen.append(await request.body())
        for _ in range(3):
            seen.append(await request.is_disconnected())
        server.disconnect()
        seen.append(await request.is_disconnected())
        await Response()(scope, receive, send)

    await server.run(wrap(app, look))

    assert seen == [b"data", False, False, False, True]


async def test_stream_endpoint_behind_a_layer_that_read_the_body(
    wrap: Wrap, spec: str | None
) -> None:
    """A stream, which listens for the disconnect before spec 2.4, comes to its end."""

    async def look(request: Request, call_next: Next) -> Response:
        await request.body()
        return await call_next(request)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        data = await Request(scope, receive).body()

        async def chunks() -> AsyncGenerator[bytes]:
            yield data
            await anyio.lowlevel.checkpoint()
            yield data

        await StreamingResponse(chunks())(scope, receive, send)

    server = await ask(wrap(app, look), method="POST", body=PARTS, spec=spec)

    assert server.body == WHOLE * 2
    assert server.complete
