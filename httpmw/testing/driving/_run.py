from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw.testing.checking._checker import ASGIChecker

from ._headers import HeadersLike, with_host
from ._layers import AnyMiddleware, around
from ._sent import Sent
from ._server import Server
from ._socket import DENIES, SocketServer

Outcome = Literal["completed", "disconnected", "incomplete", "failed", "no response"]


class Result(Sent):
    """
    What came of one request.

    Attributes:
        sent: The messages that the server took, as they were.
        exception: What was raised out of the middleware; None where nothing was.
        request: The request as the inner app got it, a `starlette.requests.Request`, or an
            `HTTPConnection` for a WebSocket; None where the inner app was not run. `request.scope`
            is a copy of its scope.
        received: What the inner app received, message by message.
    """

    def __init__(self, server: Server | SocketServer, inside: Inside) -> None:
        self.sent = server.sent
        self.is_head = server.is_head
        self.exception = server.error
        self.request = inside.request
        self.received = inside.received
        self._complete = server.complete
        self._left = server.left

    @property
    def app_ran(self) -> bool:
        """
        Whether the inner app was called.
        """
        return self.request is not None

    @property
    def request_body(self) -> bytes:
        """
        The body of the request, as far as the inner app received it.
        """
        return b"".join(each.get("body", b"") for each in self.received)

    @property
    def outcome(self) -> Outcome:
        """
        How it ended, seen from the server.

        "completed": the last message of a response was sent; "disconnected": the client left
        before that; "failed": an exception came before that; "incomplete": the app returned in
        the middle of a response; "no response": or without one.
        """
        if self._complete:
            return "completed"
        if self._left:
            return "disconnected"
        if self.exception is not None:
            return "failed"
        return "incomplete" if self.starts else "no response"


class Inside:
    """
    Stands around the inner app, and keeps what it gets.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.__wrapped__ = app
        self.request: Request | None = None
        self.received: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.request = as_request(scope)

        async def noting_receive() -> Message:
            message = await receive()
            self.received.append(message)
            return message

        await self.app(scope, noting_receive, send)


def as_request(scope: Scope) -> Request:
    """
    Make of a scope, as it is now, what users look at.
    """
    kind = Request if scope["type"] == "http" else HTTPConnection  # it would refuse the scope
    return cast(Request, kind(dict(scope)))


async def read_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
    """
    The app to test with where none is given: it reads the request, and answers 200.
    """
    while (await receive()).get("more_body", False):
        pass
    await PlainTextResponse("ok")(scope, receive, send)


async def accept_and_echo(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """
    The same for a WebSocket: it accepts, and sends back what it receives, until the client closes.
    """
    message = await receive()
    if message["type"] == "websocket.connect":
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})


def as_app(app: ASGIApp | BaseException | type[BaseException] | None) -> ASGIApp:
    """
    Make an app of an exception, which it raises.
    """
    if app is None:
        return read_and_answer
    if isinstance(app, (BaseException, type)):
        return _failing(app)
    return app


def _failing(error: BaseException | type[BaseException]) -> ASGIApp:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - ASGI
        raise error

    return failing


async def run(  # noqa: PLR0913 - what a request has, each with a default
    mw: AnyMiddleware | Sequence[AnyMiddleware] | None = None,
    app: ASGIApp | BaseException | type[BaseException] | None = None,
    *,
    method: str = "GET",
    path: str = "/",
    query: str | bytes = b"",
    headers: HeadersLike = (),
    body: str | bytes | Sequence[bytes] = b"",
    spec: str | None = "2.3",
    extensions: Mapping[str, Any] | None = None,
    scope: Mapping[str, Any] = {},
    disconnect: Literal["repeated", "once"] = "repeated",
    leaves_after: int | None = None,
    keep_error: bool = False,
    websocket: bool = False,
    subprotocols: Sequence[str] = (),
    messages: Sequence[str | bytes] = (),
    closes: int | None = 1000,
) -> Result:
    """
    Send one request through a middleware, without a server.

        result = await run(served_by)
        assert result.headers["x-served-by"] == "mine"

    It works on asyncio and trio, under any test runner. The rules of ASGI are checked on both
    sides of the middleware.

    Args:
        mw: A middleware function; or any ASGI middleware, as a class, as `Middleware(...)` with
            its options, or as a function that takes an `app`; or a sequence of these, the first
            one outermost; None runs the app alone.
        app: The inner app: any ASGI app, such as a Starlette `Response`; or an exception, which
            is raised in its place. By default one that reads the request and answers 200 "ok".
        method: The HTTP method.
        path: The path; percent-encoded parts are decoded, a query string may follow.
        query: The query string, percent-encoded.
        headers: A mapping or pairs; `host` is added where it is missing, `content-length` or
            `transfer-encoding` where there is a body.
        body: The request body; a sequence arrives as one message for each item.
        spec: The version of ASGI's HTTP specification that the server announces, None: none.
            From 2.4 on `send` raises `OSError` when the client has left.
        extensions: The ASGI extensions that the server announces, with their values; by default
            none, and for a WebSocket the one by which a refusal is a whole response.
        scope: Other keys of the scope, such as `client`, `state` or `app`.
        disconnect: Whether the server tells of a disconnect each time, as uvicorn and granian
            do, or once, as hypercorn and daphne do.
        leaves_after: After how many messages of the response the client leaves: 0 at once,
            before the app is called, 1 after the start, 2 after the first chunk of the body.
        keep_error: Keep what the middleware raises in `result.exception` instead of raising it.
        websocket: Whether it is the handshake of a WebSocket. Middleware functions in *mw* run
            around it; a layer has to say so itself. The default app accepts and echoes.
            `result.status` is 101 for an acceptance, and 403 for a close in its place.
        subprotocols: What the client of a WebSocket offers.
        messages: What it sends after the acceptance: str as text, bytes as bytes.
        closes: The code with which it closes after that; 1006: the connection breaks off, None: it
            stays until the app has ended.

    Returns:
        What came of it, as a `Result`.

    Raises:
        Exception: What the middleware raised, unless *keep_error* is set.
        ASGIViolation: The middleware broke a rule of ASGI, towards the server or the app.
    """
    server: Server | SocketServer
    if websocket:
        server = SocketServer(
            path=path,
            query=query,
            headers=with_host(headers),
            subprotocols=subprotocols,
            messages=messages,
            closes=closes,
            spec=spec,
            extensions=DENIES if extensions is None else extensions,
            disconnect=disconnect,
            leaves_after=leaves_after,
        )
    else:
        server = Server(
            method=method,
            path=path,
            query=query,
            headers=with_host(headers),
            body=body,
            spec=spec,
            extensions={} if extensions is None else extensions,
            disconnect=disconnect,
            leaves_after=leaves_after,
        )
    server.scope.update(scope)
    inside = Inside(accept_and_echo if app is None and websocket else as_app(app))
    checked = ASGIChecker(inside, side="server", violations=server.violations)
    try:
        await server.run(around(mw, checked, websocket=websocket), keep_error=keep_error)
    finally:
        # Whatever the middleware or the app made of it.
        for violation in server.violations:
            raise violation
    return Result(server, inside)
