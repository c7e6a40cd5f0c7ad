# One request, or one WebSocket handshake, driven by hand.
#
# The inner app is a puppet: it waits for commands, and does what they say. The coroutine of the
# whole exchange, from the middleware inward, is advanced by hand, in the test's own task: where
# the puppet waits for a command the test goes on, everything else that is awaited goes through
# to the event loop. So there is no task and no queue, and the engine is the real one.
#
# Rule 1: between two commands nothing runs but the test.
# Rule 2: the exchange comes to its end inside of the `async with`, whatever happens in there.

from __future__ import annotations

import contextlib
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from httpmw import AppResponse, Connection
from httpmw._body import ACCEPTED
from httpmw._context import current_task, open_scopes
from httpmw.testing.checking._checker import ASGIChecker
from httpmw.testing.checking.rules._http import BODY, HTTP, START
from httpmw.testing.checking.rules._websocket import (
    ACCEPT,
    CLOSE,
    DATA,
    DENIAL_BODY,
    DENIAL_START,
    WebSocket,
)

from ._headers import HeadersLike, raw_headers, with_host
from ._layers import AnyMiddleware, Watcher, around, function_of
from ._run import as_request
from ._sent import Sent
from ._server import Server
from ._socket import DENIES, SocketServer

State = Literal["waiting", "reading", "sending", "open", "answered", "ended"]
_Command: TypeAlias = Callable[[Receive, Send], Awaitable[Any]]


class step(Sent):  # noqa: N801 - used like a function
    """
    Drive one request through a middleware by hand, and look at what it does at each point.

        async with step(served_by, path="/x") as flow:
            assert flow.state == "waiting"
            await flow.respond(200, {"x-served-by": "theirs"})
            assert flow.headers["x-served-by"] == "mine"
            await flow.finish(b"data")

    On entering, the middleware has run to its first yield; in the block the test plays the inner
    app. A call returns as soon as the middleware waits for the app again. On leaving the block
    the client leaves and the app returns, if it has not.

    With `websocket=True` it is the handshake of a WebSocket:

        async with step(served_by, websocket=True) as flow:
            await flow.accept()
            assert flow.state == "open"
            flow.message("ping")
            assert (await flow.receive())["text"] == "ping"
            await flow.close()

    What the middleware raises is raised by the call that provoked it. The rules of ASGI are
    checked on both sides of the middleware. No task is made, and the middleware runs in the
    test's own.

    Args:
        mw: A middleware function or an `HTTPMiddleware`, as a class, an instance or
            `Middleware(...)`; or another ASGI middleware that calls its app in its own task.
        method: The HTTP method.
        path: The path; percent-encoded parts are decoded, a query string may follow.
        query: The query string, percent-encoded.
        headers: A mapping or pairs; `host` is added where it is missing.
        body: The request body; a sequence arrives as one message for each item.
        spec: The version of ASGI's HTTP specification that the server announces, None: none.
        extensions: The ASGI extensions that the server announces, with their values; by default
            none, and for a WebSocket the one by which a refusal is a whole response.
        scope: Other keys of the scope, such as `client`, `state` or `app`.
        disconnect: Whether the server tells of a disconnect each time or once.
        websocket: Whether it is the handshake of a WebSocket. A middleware function in *mw* runs
            around it; a layer has to say so itself. *method* and *body* do not count.
        subprotocols: What the client of a WebSocket offers.

    Attributes:
        sent: The messages that the server took so far; `status`, `headers`, `body` and so on
            are made from them.
        ended: Whether everything is over.
        request: The request as the app got it, a `starlette.requests.Request`, or an
            `HTTPConnection` for a WebSocket; None as long as the app was not called.
    """

    def __init__(  # noqa: PLR0913 - what a request has, each with a default
        self,
        mw: AnyMiddleware,
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
        websocket: bool = False,
        subprotocols: Sequence[str] = (),
    ) -> None:
        self._server: Server | SocketServer
        if websocket:
            self._server = SocketServer(
                path=path,
                query=query,
                headers=with_host(headers),
                subprotocols=subprotocols,
                closes=None,
                spec=spec,
                extensions=DENIES if extensions is None else extensions,
                disconnect=disconnect,
            )
        else:
            self._server = Server(
                method=method,
                path=path,
                query=query,
                headers=with_host(headers),
                body=body,
                spec=spec,
                extensions={} if extensions is None else extensions,
                disconnect=disconnect,
            )
        self._server.scope.update(scope)
        self.sent = self._server.sent
        self.is_head = self._server.is_head
        self.ended = False
        self.request: Request | None = None
        self._watcher = Watcher()
        violations = self._server.violations
        puppet = ASGIChecker(self._puppet, side="server", violations=violations)
        function = function_of(mw, puppet, websocket=websocket)
        if function is None:
            self._layer = around(mw, puppet, websocket=websocket)
        else:
            self._layer = self._watcher.around(function, puppet, websocket=websocket)
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        # What the puppet has sent, and what its last command gave.
        self._said: HTTP | WebSocket | None = None
        self._value: Any = None
        # The task that advances the coroutine.
        self._task: Any = None
        # Whether the middleware holds a scope open, that of a time limit.
        self._is_limited = False

    async def __aenter__(self) -> Self:
        self._coroutine = self._server.run(self._layer)
        scopes = open_scopes(current_task())
        await self._advance(None)
        self._is_limited = open_scopes(current_task()) != scopes
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.ended:
            return
        if error is not None:
            # The error of the test counts, whatever the clean-up of the middleware does.
            self.ended = True
            with contextlib.suppress(Exception):
                self._running().close()
            return
        self.disconnect()
        await self.end()

    # ------------------------------------------------------------------ what is to be seen

    @property
    def state(self) -> State:
        """
        Where the exchange is.

        "waiting": the app was called, and has not responded; "reading": the middleware holds the
        response start back, because it reads the body; "sending": the response start is out;
        "open": the acceptance of a WebSocket is out; "answered": the middleware has sent a whole
        response, and what the app still says is dropped; "ended": everything is over.
        """
        server = self._server
        answered = server.complete if isinstance(server, Server) else server.answered
        responded, complete = self._how_far()
        if answered and not complete:
            return "answered"
        if self.ended:
            return "ended"
        if self.starts:
            return "open" if self.status == ACCEPTED else "sending"
        return "reading" if responded else "waiting"

    def _how_far(self) -> tuple[bool, bool]:
        """
        Say whether the app has sent its response start, or its acceptance; and whether it is done.
        """
        said = self._said
        if isinstance(said, WebSocket):
            return said.accepted or said.denying or said.closed, said.closed
        return said is not None and said.start is not None, said is not None and said.complete

    @property
    def conn(self) -> Connection | None:
        """
        The connection that the middleware function got.
        """
        return self._watcher.conn

    @property
    def response(self) -> AppResponse | None:
        """
        The response that the middleware function received.
        """
        return self._watcher.response

    @property
    def answer(self) -> Response | None:
        """
        The response of its own that the middleware function gave.
        """
        return self._watcher.answer

    @property
    def app_ran(self) -> bool:
        """
        Whether the inner app was called.
        """
        return self.request is not None

    # ------------------------------------------------------------------ what the app does

    async def respond(
        self,
        status: int = 200,
        headers: HeadersLike = (),
        **keys: Any,
    ) -> None:
        """
        Let the app send its response start; of a WebSocket that of a refusal.

        Args:
            status: The status.
            headers: A mapping or pairs.
            **keys: Other keys of the message, such as `trailers=True`.
        """
        raw = raw_headers(headers)
        kind = START if isinstance(self._server, Server) else DENIAL_START
        await self.send({"type": kind, "status": status, "headers": raw, **keys})

    async def chunk(self, data: bytes) -> None:
        """
        Let the app send a part of its body, with more to come.
        """
        await self.send({"type": self._body_type, "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """
        Let the app send the last part of its body, and return.
        """
        await self.send({"type": self._body_type, "body": data, "more_body": False})
        await self.end()

    @property
    def _body_type(self) -> str:
        return BODY if isinstance(self._server, Server) else DENIAL_BODY

    async def accept(
        self, *, subprotocol: str | None = None, headers: HeadersLike = (), **keys: Any
    ) -> None:
        """
        Let the app accept a WebSocket; before that it receives the connect, if it has not.

        Args:
            subprotocol: One that the client has offered.
            headers: A mapping or pairs.
            **keys: Other keys of the message.
        """
        if isinstance(self._said, WebSocket) and not self._said.connected:
            await self.receive()
        raw = raw_headers(headers)
        await self.send({"type": ACCEPT, "subprotocol": subprotocol, "headers": raw, **keys})

    async def say(self, data: str | bytes) -> None:
        """
        Let the app send a message over its WebSocket: str as text, bytes as bytes.
        """
        await self.send({"type": DATA, "bytes" if isinstance(data, bytes) else "text": data})

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """
        Let the app close its WebSocket, or refuse it where it has not accepted; and return.
        """
        await self.send({"type": CLOSE, "code": code, "reason": reason})
        await self.end()

    async def send(self, message: Message) -> None:
        """
        Let the app send any message.
        """

        async def command(receive: Receive, send: Send) -> None:  # noqa: ARG001 - see _Command
            assert self._said is not None  # noqa: S101 - for the type checkers
            self._said.sending(message)
            await send(message)

        await self._advance(command)

    async def receive(self) -> Message:
        """
        Let the app receive a message; as any app it waits for ever where none comes.
        """

        async def command(receive: Receive, send: Send) -> Message:  # noqa: ARG001 - see _Command
            return await receive()

        await self._advance(command)
        message: Message = self._value
        if self._said is not None:
            self._said.receiving(message)
        return message

    async def end(self) -> None:
        """
        Let the app return.
        """
        await self._advance(None)

    async def fail(self, error: BaseException) -> None:
        """
        Let the app raise.
        """

        async def command(receive: Receive, send: Send) -> None:  # noqa: ARG001 - see _Command
            raise error

        await self._advance(command)

    async def hang(self) -> None:
        """
        Let the app do nothing until a time limit of the middleware strikes.
        """
        await self._advance(_hang)

    # ------------------------------------------------------------------ what the server does

    def message(self, data: str | bytes) -> None:
        """
        Let the client of a WebSocket send a message: str as text, bytes as bytes.

        Raises:
            RuntimeError: It is a request.
        """
        self._socket("message").feed(data)

    def disconnect(self, code: int | None = None) -> None:
        """
        Let the client leave; the app and the middleware learn of it when they look.

        Args:
            code: With what code it closes a WebSocket; None: the connection breaks off.

        Raises:
            RuntimeError: There is a code, and it is a request.
        """
        if code is None:
            self._server.disconnect()
        else:
            self._socket("disconnect").disconnect(code)

    def _socket(self, name: str) -> SocketServer:
        if isinstance(self._server, SocketServer):
            return self._server
        raise RuntimeError(
            f"flow.{name}() is about a WebSocket, and this is a request.\n"
            "Write `step(mw, websocket=True)`."
        )

    async def cancel(self) -> None:
        """
        Cancel the request, as a server does that shuts down.

        Raises:
            RuntimeError: On trio, a time limit of the middleware is running
                (`conn.fail_after()`); its scope and that of the cancellation would be crossed.
        """
        if self._is_limited:
            raise RuntimeError(
                "step() cannot cancel a request while a time limit of its middleware is running.\n"
                "Let the limit strike with `await flow.hang()`."
            )
        with anyio.CancelScope() as scope:
            scope.cancel()
            await self._advance(_hang)

    # ------------------------------------------------------------------ driving

    async def _puppet(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._said = HTTP(scope) if scope["type"] == "http" else WebSocket(scope)
        self.request = as_request(scope)
        while True:
            command = await self._next_command()
            if command is None:
                return
            self._value = await command(receive, send)

    @types.coroutine
    def _next_command(self) -> Generator[Any, Any, _Command | None]:
        if current_task() is not self._task:
            raise RuntimeError(
                "step() drives a middleware that calls its app in its own task; this one makes "
                "another.\n"
                "Test it with `await run(mw, app)`."
            )
        command: _Command | None = yield self
        return command

    async def _advance(self, command: _Command | None) -> None:
        if self.ended:
            raise RuntimeError(
                "the exchange is over: the app "
                + ("has returned." if self.app_ran else "was never called.")
                + "\nLook at `flow.state` and `flow.answer` first."
            )
        try:
            await self._drive(command)
        finally:
            # Whatever the middleware made of it.
            for violation in self._server.violations:
                self._server.violations.clear()
                raise violation

    @types.coroutine
    def _drive(self, argument: Any) -> Generator[Any, Any, None]:
        coroutine = self._running()
        self._task = current_task()
        call: Callable[[Any], Any] = coroutine.send
        try:
            while (awaited := call(argument)) is not self:
                try:
                    call, argument = coroutine.send, (yield awaited)
                except BaseException as exc:  # noqa: BLE001 - it belongs to the exchange
                    call, argument = coroutine.throw, exc
        except BaseException as exc:
            self.ended = True
            if not isinstance(exc, StopIteration):
                raise
        finally:
            argument = None  # it may be an exception, which holds this frame

    def _running(self) -> Coroutine[Any, Any, Any]:
        if self._coroutine is None:
            raise RuntimeError("Write `async with step(mw) as flow:`.")
        return self._coroutine


async def _hang(receive: Receive, send: Send) -> None:  # noqa: ARG001 - see _Command
    await anyio.sleep_forever()
