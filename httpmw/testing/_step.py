# One request, driven by hand.
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
from httpmw._context import current_task, open_scopes

from ._checker import ASGIChecker
from ._headers import HeadersLike, raw_headers, with_host
from ._http import BODY, HTTP, START
from ._layers import AnyMiddleware, Watcher, around, function_of
from ._sent import Sent
from ._server import Server

State = Literal["waiting", "reading", "sending", "answered", "ended"]
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
        extensions: The ASGI extensions that the server announces, with their values.
        scope: Other keys of the scope, such as `client`, `state` or `app`.
        disconnect: Whether the server tells of a disconnect each time or once.

    Attributes:
        sent: The messages that the server took so far; `status`, `headers`, `body` and so on
            are made from them.
        ended: Whether everything is over.
        request: The request as the app got it, a `starlette.requests.Request`; None as long as
            the app was not called.
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
        extensions: Mapping[str, Any] = {},
        scope: Mapping[str, Any] = {},
        disconnect: Literal["repeated", "once"] = "repeated",
    ) -> None:
        self._server = Server(
            method=method,
            path=path,
            query=query,
            headers=with_host(headers),
            body=body,
            spec=spec,
            extensions=extensions,
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
        function = function_of(mw, puppet)
        if function is None:
            self._layer = around(mw, puppet)
        else:
            self._layer = self._watcher.around(function, puppet)
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        # What the puppet has sent, and what its last command gave.
        self._said: HTTP | None = None
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
        "answered": the middleware has sent a whole response, and what the app still says is
        dropped; "ended": everything is over.
        """
        said = self._said
        if self._server.complete and not (said is not None and said.complete):
            return "answered"
        if self.ended:
            return "ended"
        if self.starts:
            return "sending"
        return "waiting" if said is None or said.start is None else "reading"

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
        Let the app send its response start.

        Args:
            status: The status.
            headers: A mapping or pairs.
            **keys: Other keys of the message, such as `trailers=True`.
        """
        raw = raw_headers(headers)
        await self.send({"type": START, "status": status, "headers": raw, **keys})

    async def chunk(self, data: bytes) -> None:
        """
        Let the app send a part of its body, with more to come.
        """
        await self.send({"type": BODY, "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """
        Let the app send the last part of its body, and return.
        """
        await self.send({"type": BODY, "body": data, "more_body": False})
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

    def disconnect(self) -> None:
        """
        Let the client leave; the app and the middleware learn of it when they look.
        """
        self._server.disconnect()

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
        self._said = HTTP(scope)
        self.request = Request(dict(scope))
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
