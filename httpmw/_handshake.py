# WebSocket handshakes, as what they are: HTTP requests whose answer is an HTTP response, 101 or any
# other (RFC 6455 section 4).
#
# Words: the *acceptance* is the inner app's `websocket.accept`, a *refusal* whatever else answers.
#
#               websocket.*                  http.*                websocket.*
#     server ───────────────── Edge, which is a part of Handshake ──────────────── inner app
#
# Rule 1: a handshake is an `Exchange` like any other. What is said of flows, of discarded apps and
# of failures holds in it, because it is the same code; here is only what is translated. To the
# inner app the handshake translates itself, to the server its `Edge` does.
# Rule 2: what no layer has touched leaves as it came: a translated message has its original with
# it, under the key `ORIGIN`.
# Rule 3: only the inner app accepts. A status that says otherwise is an error, and the handshake
# fails: another one on an acceptance here, and in `_travel` 101 of a layer's own: it is not final.
# Rule 4: after the acceptance messages go to the server's own `send` and take them from its own
# `receive`, unless a flow waits for the end; then they are counted on their way.
# Rule 5: layers of ours that have nothing of somebody else's between them hand each other what they
# mean, in HTTP: a server that cannot be told all is a matter for the outermost of them.

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from . import _context, _errors
from ._body import ACCEPTED, DISCONNECT, Body, LiveBody, Progress
from ._connection import Connection, ReceivedHandshake
from ._errors import NoResponseError
from ._exchange import LAYOUT, Adapter, AnyFlow, Exchange, Functions
from ._layout import lay_out
from ._phases import DISCARDED, PASSING, TRAVELLING, WAITING
from ._response import ORIGIN, AppResponse, Outcome
from ._travel import Discarded, Outbound

if TYPE_CHECKING:
    from typing import Self

_ACCEPT: Final = "websocket.accept"
_CLOSE: Final = "websocket.close"
_START: Final = "http.response.start"
_BODY: Final = "http.response.body"
_DENIAL: Final = "websocket.http.response"
_REFUSED: Final = 403  # what servers make of a close before the acceptance
# RFC 6455 section 7.4.1: there was no close frame.
_DROPPED: Final = 1006
_NO_CODE: Final = 1005


class Handshakes:
    """
    The functions of an adapter that are there for handshakes.
    """

    def __init__(self, functions: Functions) -> None:
        self.functions = functions

    def around(self, further: Handshakes | None) -> Handshakes:
        return self if further is None else Handshakes((*self.functions, *further.functions))

    def first(self) -> Handshakes:
        return Handshakes(self.functions[:1])

    def begin(self, receive: Receive, send: Send) -> Handshake:
        """
        Make the exchange for one handshake, with what it receives from and sends to.
        """
        if type(send) is MethodType:
            outer = send.__self__
            if outer is getattr(receive, "__self__", None) and isinstance(outer, Handshake):
                return InnerHandshake.between(outer.ask, outer.tell)
        exchange = Handshake()
        exchange.websocket_receive = receive
        exchange.websocket_send = send
        exchange._straight_send = exchange._straight_receive = None
        return exchange


class Edge:
    """
    Between an exchange and a server: HTTP on one side, WebSocket on the other.
    """

    __slots__ = ("__dict__",)

    # What the server gave.
    websocket_scope: Scope
    websocket_receive: Receive
    websocket_send: Send
    # The start of a close that nobody has touched so far.
    _held: Message | None = None
    # Whether the body of a refusal goes out.
    _is_open = False

    async def server_receive(self) -> Message:
        message = await self.websocket_receive()
        kind = message["type"]
        if kind == "websocket.connect":
            return {"type": "http.request", "body": b"", "more_body": False, ORIGIN: message}
        if kind == "websocket.disconnect":
            return {"type": "http.disconnect", ORIGIN: message}
        return message

    def server_send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == _START:
            origin = message.get(ORIGIN)
            if origin is None or message["status"] != ACCEPTED:  # rule 3
                return self._refuse(message, origin)
            if "headers" in message:
                origin = {**origin, "headers": message["headers"]}
            return self.websocket_send(origin)
        if kind == _BODY:
            return self._send_body(message)
        return self.websocket_send(message)

    async def _refuse(self, start: Message, origin: Message | None) -> None:
        close = origin if origin is not None and origin["type"] == _CLOSE else None
        if not self._denies():
            await self.websocket_send(close or {"type": _CLOSE, "code": 1000, "reason": ""})
        elif close is not None and start["status"] == _REFUSED and not start.get("headers"):
            self._held = start  # a layer may have given it a body
        else:
            await self._deny(start)

    def _denies(self) -> bool:
        """
        Whether a whole response is taken as a refusal; an exchange of ours takes it always.
        """
        behind = getattr(inspect.unwrap(self.websocket_send), "__self__", None)
        extensions = self.websocket_scope.get("extensions") or ()
        return isinstance(behind, Handshake) or _DENIAL in extensions

    async def _deny(self, start: Message) -> None:
        self._is_open = True
        denial = {**start, "type": f"{_DENIAL}.start"}
        denial.pop(ORIGIN, None)
        await self.websocket_send(denial)

    async def _send_body(self, message: Message) -> None:
        start, self._held = self._held, None
        if start is not None:
            if not message.get("body") and not message.get("more_body"):
                await self.websocket_send(start[ORIGIN])
                return
            await self._deny(start)
        if self._is_open:
            await self.websocket_send({**message, "type": f"{_DENIAL}.body"})


class EdgeOf(Edge):
    # Of nothing but what flows want around the app; see `Handshake.surround`.

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.websocket_scope = scope
        self.websocket_receive = receive
        self.websocket_send = send


class Handshake(Edge, Exchange):  # pyrefly: ignore[invalid-inheritance]
    """
    One WebSocket handshake in one adapter; of several, in the outermost.

    It is its own edge: an object beside it would cost each handshake a tenth.
    """

    __slots__ = ("_straight_receive", "_straight_send", "websocket_receive", "websocket_send")

    # The server's own, once the inner app may have them.
    _straight_receive: Receive | None
    _straight_send: Send | None

    # Whether there is nothing of ours further out.
    is_outermost = True
    # Whether a layer further in, or the inner app, has asked for a message.
    _asked = False
    # Those that wait for a message before there is an answer.
    _listeners: tuple[anyio.CancelScope, ...] = ()

    # ------------------------------------------------------------------ what is different

    @property
    def websocket_scope(self) -> Scope:  # type: ignore[override]  # pyrefly: ignore[bad-override]
        return self.scope_given_to(0)

    def as_http(self, scope: Scope) -> Scope:
        http = {"http_version": "1.1", **scope, "type": "http", "method": "GET"}
        http["scheme"] = "https" if scope.get("scheme") == "wss" else "http"
        # None of those that there are is HTTP's.
        http["extensions"] = {}
        http.pop("subprotocols", None)
        return http

    def connection(self, scope: Scope) -> Connection:
        connection: Connection = ReceivedHandshake._of(self, scope)
        return connection

    def inside(self, functions: Functions, app: ASGIApp) -> Adapter:
        adapter = Adapter()
        adapter.take((), app, Handshakes(functions))
        return adapter

    def surround(self, app: ASGIApp, around: Callable[[ASGIApp], ASGIApp]) -> ASGIApp:
        # What flows want around the app speaks HTTP, to both sides.
        async def in_websocket(scope: Scope, receive: Receive, send: Send) -> None:
            inner = InnerHandshake.between(receive, send)
            inner.app, inner.scope = app, scope
            inner.task, inner.loop, inner.states = self.task, self.loop, self.states
            inner.plain, inner.phase, inner.waiting = True, WAITING, []
            await app(scope, inner.receive, inner.send)

        surrounded = around(in_websocket)

        async def in_http(scope: Scope, receive: Receive, send: Send) -> None:
            edge = EdgeOf(scope, receive, send)
            await surrounded(scope, edge.server_receive, edge.server_send)

        return in_http

    def live_body(self) -> LiveBody:
        if self.answered != _ACCEPT:
            return super().live_body()
        if self._body is None:
            self._body = LiveBody(self)
            self._body.ahead.append({"type": _BODY, "body": b"", "more_body": False})
            self._body.ended = True
            self.complicate()
        return self._body

    def _silence(self, flow: AnyFlow, response: AppResponse) -> _errors.MiddlewareError | None:
        status = response.status_code
        if status == ACCEPTED and self.answered == _ACCEPT:  # what follows is no body
            return None
        if response.is_acceptance:
            return _errors.status_of_acceptance(flow, status)
        return super()._silence(flow, response)

    def _send_no_bytes(self) -> None:
        if self._silent:
            super()._send_no_bytes()

    def _progress_of(self, outward: AppResponse) -> Progress:
        if not outward.is_acceptance:
            return super()._progress_of(outward)
        if self._progress is None:
            self._progress = SocketProgress()
            self._progresses = (self._progress,)
        return self._progress

    async def _find_outcome(
        self, response: AppResponse, failure: BaseException | None
    ) -> BaseException | None:
        progress = response._progress
        if not isinstance(progress, SocketProgress):
            return await super()._find_outcome(response, failure)
        outcome: Outcome = "failed"
        if progress.complete:
            outcome = "completed"
        elif _context.is_cancellation(failure):
            outcome = "cancelled"
        elif (
            failure is None
            or progress.close_code == _DROPPED
            or isinstance(failure, (ClientDisconnect, OSError, WebSocketDisconnect))
        ):
            outcome = "disconnected"
        response._outcome = outcome
        return failure

    async def _no_response(self) -> BaseException:
        error = await super()._no_response()
        return _errors.no_answer(self.source) if isinstance(error, NoResponseError) else error

    def _further_out(self) -> Outbound | None:
        receive = self.websocket_receive if self.is_outermost else self.server_receive
        outbound = getattr(receive, "__self__", None)
        return outbound if isinstance(outbound, Outbound) else None

    # ------------------------------------------------------------------ the inner app's side

    def send(self, message: Message) -> Awaitable[None]:
        straight = self._straight_send
        if straight is not None:
            return straight(message)
        if message["type"] == _ACCEPT and self.phase is WAITING:
            self.answered = _ACCEPT
            start: Message = {"type": _START, "status": ACCEPTED, ORIGIN: message}
            if "headers" in message:
                start["headers"] = message["headers"]
            return self._start(start)
        return self._translate(message)

    def receive(self) -> Awaitable[Message]:  # type: ignore[override]  # pyrefly: ignore[bad-override]
        straight = self._straight_receive
        if straight is not None:
            return straight()
        if not self._asked and self.incoming is None and self.is_outermost:
            # The connect, which is there: nobody waits for it.
            self._asked = True
            return self.websocket_receive()
        return self.receive() if self._straighten() else self._translated()

    def _translate(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if self.answered == _ACCEPT:
            return self.send(message) if self._straighten() else self.tell(message)
        if kind.startswith(_DENIAL):
            self.answered = _DENIAL
            message = {**message, "type": kind.removeprefix("websocket.")}
        elif kind == _CLOSE and not self.answered:
            self.answered = _CLOSE
            return self._send_close(message)
        return self.tell(message)

    async def _send_close(self, message: Message) -> None:
        await self.tell({"type": _START, "status": _REFUSED, "headers": [], ORIGIN: message})
        await self.tell({"type": _BODY, "body": b"", "more_body": False})

    async def _translated(self) -> Message:
        is_first = not self._asked
        message = await self.ask()
        kind = message["type"]
        if kind == "http.disconnect" and is_first:
            return {"type": "websocket.connect"}  # that comes first, and the other comes again
        if kind == "http.disconnect":
            return message.get(ORIGIN) or self._gone()
        origin: Message = message.get(ORIGIN, message)
        return origin

    def _gone(self) -> Message:
        message: Message = {"type": "websocket.disconnect", "code": _DROPPED}
        if self._spec_version() >= (2, 3):
            message["reason"] = ""
        return message

    def _straighten(self) -> bool:
        """
        Let the inner app have what is the server's, if it may.
        """
        outermost = self._outermost_of_all() if self.answered == _ACCEPT else None
        if outermost is None:
            return False
        self._straight_receive = outermost.websocket_receive
        self._straight_send = outermost.websocket_send
        return True

    def _outermost_of_all(self) -> Handshake | None:
        """
        Give the outermost exchange, where nobody sees what passes.
        """
        # Something may have been read ahead.
        if self.phase is not PASSING or self.incoming is not None:
            return None
        if self.is_outermost:
            return self
        outer = getattr(self.server_send, "__self__", None)
        return outer._outermost_of_all() if isinstance(outer, Handshake) else None

    # ------------------------------------------------------------------ the same in HTTP

    def tell(self, message: Message) -> Awaitable[None]:
        """
        What a layer further in has as `send`.
        """
        if not self.answered and message["type"] == _START:
            origin = message.get(ORIGIN)
            self.answered = _DENIAL if origin is None else origin["type"]
        return super().send(message)

    async def ask(self) -> Message:
        """
        What a layer further in has as `receive`.
        """
        if self._asked and (self.phase is WAITING or self.phase is TRAVELLING):
            message = await self._listen()
        else:
            self._asked = True  # the first message is there, whoever asks
            message = await super().receive()
        if self.phase is DISCARDED:
            self._told_gone(DiscardedSocket)
        return message

    async def receive_inward(self) -> Message:
        message = await super().receive_inward()
        if isinstance(self._progress, SocketProgress):
            self._progress.count_received(message)
        return message

    async def _listen(self) -> Message:
        message = DISCONNECT
        with anyio.CancelScope() as listener:
            self._listeners = (*self._listeners, listener)
            try:
                message = await super().receive()
            finally:
                self._listeners = tuple(each for each in self._listeners if each is not listener)
        if listener.cancel_called:
            await anyio.lowlevel.checkpoint_if_cancelled()  # the shield has hidden it
        return message

    def _wake(self) -> None:
        # Nobody knows whether the server ends a `receive` over a refusal. Shielded for what anyio
        # takes back (see `Connection.is_disconnected`).
        for each in self._listeners:
            each.shield = True
            each.cancel()

    async def _replace(self, flow: AnyFlow | None, response: AppResponse, value: Response) -> None:
        try:
            await super()._replace(flow, response, value)
        finally:
            self._wake()

    async def _pump(self, body: Body, *, trailers: bool) -> None:
        await super()._pump(body, trailers=trailers)
        if self.phase is DISCARDED:
            self._wake()

    async def _drop(self, message: Message) -> None:
        # What follows an acceptance that was taken quietly.
        if message["type"].startswith("websocket.") and self._spec_version() >= (2, 4):
            raise self._told_gone(DiscardedSocket)
        await super()._drop(message)


class InnerHandshake(Handshake):
    # In an adapter that has another one of ours, and nothing else, around it (rule 5).

    __slots__ = ("server_receive", "server_send")
    is_outermost = False

    @classmethod
    def between(cls, receive: Receive, send: Send) -> Self:
        self = cls()
        as_slots: Any = self  # further out they are methods
        as_slots.server_receive = receive
        as_slots.server_send = send
        self._straight_send = self._straight_receive = None
        return self


for each in (Handshake, InnerHandshake):
    lay_out(each(), *LAYOUT, "_asked", "answered")


class DiscardedSocket(Discarded):
    # The same for a discarded app that has accepted. It may have been told by a message, too, and
    # whatever tells it says the same.

    def _is_behind(self, exc: BaseException | None) -> bool:
        return isinstance(exc, WebSocketDisconnect) or super()._is_behind(exc)


class SocketProgress(Progress):
    """
    What has become of a WebSocket.
    """

    __slots__ = ("close_code", "close_reason", "messages_received", "messages_sent")

    def __init__(self) -> None:
        super().__init__(trailers=False)
        self.messages_sent = self.messages_received = 0
        self.close_code: int | None = None
        self.close_reason: str | None = None

    def count(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.send":
            self.messages_sent += 1
            data = message.get("bytes")
            if data is None:
                text = message.get("text") or ""
                self.bytes_sent += len(text) if text.isascii() else len(text.encode())
            else:
                self.bytes_sent += len(data)
        elif kind == _CLOSE:
            self._close(message.get("code", 1000), message.get("reason"))

    def count_received(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.receive":
            self.messages_received += 1
        elif kind == "http.disconnect":
            origin = message.get(ORIGIN) or {"code": _DROPPED}
            self._close(origin.get("code", _NO_CODE), origin.get("reason"))

    def lose(self) -> None:
        self._close(_DROPPED, None)

    def _close(self, code: int, reason: str | None) -> None:
        if self.close_code is not None:  # an echo
            return
        self.close_code = code
        self.close_reason = reason or ""
        self.complete = code != _DROPPED
        self.lost = not self.complete
        self.end()
