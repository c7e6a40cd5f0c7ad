from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
from starlette.datastructures import URL
from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope

from . import _errors
from ._body import (
    Incoming,
    Place,
    RequestChunks,
    RequestStream,
    TransformedRequest,
    as_bytes,
    as_iterator,
)
from ._limit import Limit, UploadLimit, Watch
from ._scope import LayerRequest, StateT

if TYPE_CHECKING:
    from typing import Self

    from ._exchange import Exchange

__all__ = ["Connection"]


class Connection(LayerRequest[StateT]):
    """
    The request, as a middleware function gets it: a `starlette.requests.Request`.

    Everything that `Request` has works here. What is read of the body before the yield is still
    delivered to the inner app. What is changed before the yield, of `conn.scope`, of the headers or
    of the body, is seen further in and by nobody else: not by the layers further out, nor by the
    server. What is for those outside goes into `conn.state`, whose type may be named as with
    Starlette's requests: `conn: Connection[MyState]`.

    Args:
        scope: The ASGI scope of an HTTP request.
        receive: The ASGI `receive` of the request.
        send: The ASGI `send` of the request.

    A middleware function never makes one; in a unit test it can be made like a `Request`.
    """

    _stream_consumed = False
    _is_disconnected = False
    _form = None
    _body: bytes
    # Where it reads the body, and what the inner app gets instead; None: nobody has asked yet.
    _incoming: Incoming | None = None
    _outgoing: Incoming | None = None

    @classmethod
    def _of(cls, exchange: Exchange, scope: Scope) -> Self:
        """
        The connection of one layer of *exchange*, which was given *scope*.
        """
        # What `Request.__init__` would set is set by the class: this runs once a layer.
        self = object.__new__(cls)
        self._given = scope
        self._exchange = exchange
        if exchange.incoming is not None:
            self._incoming = exchange.incoming
        return self

    is_websocket = False
    """
    Whether this is a WebSocket handshake.
    """

    # How far it has read by hand.
    _place: Place | None = None

    async def _receive(self) -> Message:  # pyrefly: ignore[bad-override-mutable-attribute]
        """
        Read one message ahead of the inner app, which still gets it.
        """
        incoming = self._open()
        if incoming.taken:
            return await incoming.until_gone()
        if self._place is None:
            self._place = Place()
        return await incoming.peek(self._place)

    async def _latest(self) -> Message:
        # What was read ahead stays for the inner app; news can only come behind it.
        return await self._open().peek_latest()

    async def _send(  # pyrefly: ignore[bad-override-mutable-attribute]
        self, message: Message
    ) -> None:
        assert self._exchange is not None
        await self._exchange.server_send(message)

    def _open(self) -> Incoming:
        if self._incoming is None:
            if self._exchange is None:
                self._incoming = Incoming(self._receive)
            else:
                self._incoming = self._exchange.outermost_incoming()
        return self._incoming

    def stream(self) -> AsyncGenerator[bytes, None]:
        """
        Iterate over the chunks of the request body; the inner app still gets all of them.

        Returns:
            An async iterator of the chunks, with an empty one at the end, as `Request.stream()`
            has it.

        Raises:
            ClientDisconnect: The client left before the body was complete.
            MiddlewareError: The inner app has begun to read the body.
        """
        stream = (
            RequestStream(None, self._body)
            if hasattr(self, "_body")
            else RequestStream(self._open())
        )
        return cast(AsyncGenerator[bytes, None], stream)

    async def body(self, *, max_size: int | None = None) -> bytes:
        """
        Read the whole request body; the inner app still gets it.

        Args:
            max_size: The largest body, in bytes, that is read. A request whose
                `content-length` says more is refused before anything is received.

        Returns:
            The body. A body that was read once is returned again, at any time.

        Raises:
            BodyTooLarge: The body is larger than *max_size*; unhandled it answers 413.
            ClientDisconnect: The client left before the body was complete.
            MiddlewareError: The inner app has begun to read the body.
        """
        if not hasattr(self, "_body"):
            incoming = self._open()
            if max_size is not None and _content_length(self._view()) > max_size:
                raise _errors.BodyTooLarge(max_size)
            place = Place()
            try:
                self._body = await incoming.read(place, max_size)
            except ClientDisconnect:
                self._is_disconnected = True
                raise
            self._place = place
        if max_size is not None and len(self._body) > max_size:
            raise _errors.BodyTooLarge(max_size)
        return self._body

    async def drain(self, *, max_size: int = 1024 * 1024, seconds: float = 1.0) -> bool:
        """
        Receive what is left of the request's body, and drop it: for who refuses the request.

            if not allowed(conn):
                drained = await conn.drain()
                headers = None if drained else {"connection": "close"}
                yield PlainTextResponse("no", 403, headers)

        A server that answers an upload which nobody has read closes the connection, or its proxy
        does, while the client still writes: behind nginx, Apache, Caddy and Varnish the client of a
        large one then often gets a 502 in place of the answer. Where the end was not reached, say
        `connection: close` on HTTP/1, so that nobody waits for the rest.

        Nothing of it is kept in memory, so before the yield the function has to answer itself.
        After the yield it is for an inner app that has not read its request: where that runs and
        reads, nothing is received, and one that begins to read later waits for what is gone.

        Nothing is received either where `content-length` says more than *max_size*, or where the
        client holds the body back until somebody asks for it (`Expect: 100-continue`, RFC 9110
        section 10.1.1).

        Args:
            max_size: How much is received at most, in bytes; the message with which it is more is
                the last one.
            seconds: For how long, in seconds.

        Returns:
            Whether all of the body has been received. False as well where the client left.

        Raises:
            Exception: What a transform of a layer further out raises.
        """
        incoming = self._open()
        exchange = self._exchange
        may_drain = exchange is None or exchange.may_drain(incoming)
        if may_drain and not incoming.complete:
            if not incoming.asked:
                view = self._view()
                if _content_length(view) > max_size or _is_held_back(view):
                    return False
            with anyio.move_on_after(seconds):
                await incoming.drain(max_size)
        return incoming.complete

    async def is_disconnected(self) -> bool:
        """
        Tell, without waiting, whether the client has left; once True it stays True.
        """
        exchange = self._exchange
        if exchange is not None and exchange.gone:
            self._is_disconnected = True
        if not self._is_disconnected:
            message: Message = {}
            # Shielded, as anyio 4.16 leaves what a scope of a child task has to take back to a task
            # group around it that is cancelled as well: a cancellation of the request would count
            # for that.
            with anyio.CancelScope(shield=True) as scope:
                scope.cancel()
                message = await self._latest()
            if not message:
                await anyio.lowlevel.checkpoint_if_cancelled()  # the shield has hidden it
            self._is_disconnected = message.get("type") == "http.disconnect"
        return self._is_disconnected

    @property
    def body_iterator(self) -> AsyncIterator[bytes]:
        """
        The chunks of the request body, on their way to the inner app.

        Iterating over them just reads. Assign an async generator made from them, before the
        yield, and the body streams through it while the inner app pulls it:

            conn.body_iterator = gunzip(conn.body_iterator)

        A `content-length` is dropped from the headers that the inner app sees, as the length
        may change. A `content-encoding` that the transform undoes is yours to remove.

        Raises:
            MiddlewareError: On assignment after the yield, where it would have no effect.
            TypeError: On assignment of something that is not an iterable of bytes.
        """
        return RequestChunks(self._outgoing or self._open())

    @body_iterator.setter
    def body_iterator(self, iterator: Any) -> None:
        exchange = self._before_the_yield("conn.body_iterator = ...")
        source = self._outgoing or self._open()
        transform = TransformedRequest(exchange.task, source, as_iterator(iterator))
        exchange.add_transform(transform)
        self._send_inward(exchange, Incoming(transform.pull, exchange))
        self._drop_headers(b"content-length")

    def replace_body(self, data: bytes | str) -> None:
        """
        Give the inner app *data* as the request body, in place of what the client sends.

        Args:
            data: The body; a str is encoded in UTF-8.

        In the headers that the inner app sees `content-length` is corrected, and
        `content-encoding` and `transfer-encoding` are dropped.

        Raises:
            MiddlewareError: After the yield, where it would have no effect.
            TypeError: *data* is neither bytes nor str.
        """
        body = as_bytes(data)
        exchange = self._before_the_yield("conn.replace_body()")
        source = self._outgoing or self._open()

        async def pull() -> Message:
            while True:  # the replaced body
                message = await source.receive()
                if message["type"] != "http.request":
                    return message

        incoming = Incoming(pull)
        incoming.put(body)
        self._send_inward(exchange, incoming)
        self._drop_headers(b"content-encoding", b"transfer-encoding")
        self._put_header(b"content-length", b"%d" % len(body))

    def set_header(self, name: str, value: str) -> None:
        """
        Set a header of the request for all that is further in: in `conn.headers` and in its scope.

        It takes the place of the first header of that name, and the others of that name are
        dropped; where there is none it is appended. All other headers stay as they are. To be
        called before the yield.

        Args:
            name: The name, in any case of letters.
            value: The value; only characters of Latin-1.

        Raises:
            MiddlewareError: After the yield, where it would have no effect.
        """
        self._may_change("conn.set_header()")
        self._put_header(name.lower().encode("latin-1"), value.encode("latin-1"))

    def delete_header(self, name: str) -> None:
        """
        Delete a header of the request, as often as it is there, for all that is further in.

        One that is not there is no error. To be called before the yield.

        Args:
            name: The name, in any case of letters.

        Raises:
            MiddlewareError: After the yield, where it would have no effect.
        """
        self._may_change("conn.delete_header()")
        self._drop_headers(name.lower().encode("latin-1"))

    def fail_after(
        self,
        seconds: float | None = None,
        *,
        idle: float | None = None,
        total: float | None = None,
    ) -> None:
        """
        Limit the time of the inner app; to be called before the yield.

        When a limit is over the app is cancelled and `DeadlineExceeded` is raised: at the yield,
        where it can be answered, or, once the response has begun, at `yield response`; the body
        then breaks off, and the server cuts the connection. Background tasks are not limited.

        On asyncio the task of the request is cancelled, as `asyncio.timeout` does it. That is in
        time also where the app waits for a thread, as for a `def` endpoint: the thread runs on
        beside what follows, and its result is lost. On trio a thread is waited for.

        Args:
            seconds: How long the app may take to start its response, in seconds.
            idle: How long it may take for each message that follows, in seconds. The time in which
                the server takes a message, from an app that is faster than its client, does not
                count.
            total: How long it may take from its response start to its last message, in seconds. It
                does not strike while a layer further out has a message in hand, but right after.

        Raises:
            MiddlewareError: After the yield, where it would have no effect.
            TypeError: No limit was given.
        """
        exchange = self._before_the_yield("conn.fail_after()")
        if seconds is None and idle is None and total is None:
            raise _errors.no_limit("conn.fail_after()")
        exchange.put_around(lambda app: Limit(app, exchange, seconds, idle, total))

    def fail_upload_after(self, *, idle: float | None = None, total: float | None = None) -> None:
        """
        Limit the time that the client may take for the request's body, from now on.

        Only the time counts in which this layer, or one further in, waits for the client. When a
        limit is over, what reads the body gets a `DeadlineExceeded` that is an `HTTPException`
        with status 408 as well. Where no response has begun the answer is a 408 (RFC 9110 section
        15.5.9), with `connection: close` on HTTP/1, whatever the app makes of the exception; else
        the body of the response breaks off. To be called before the yield.

        Args:
            idle: How long the client may take for each message, in seconds.
            total: How long it may take for all of them, in seconds.

        Raises:
            MiddlewareError: After the yield, where it would have no effect.
            TypeError: No limit was given.
        """
        exchange = self._before_the_yield("conn.fail_upload_after()")
        if idle is None and total is None:
            raise _errors.no_limit("conn.fail_upload_after()")
        limit = UploadLimit(exchange, idle, total)
        exchange.server_receive = limit
        exchange.put_around(limit.around)

    def cancel_on_disconnect(self) -> None:
        """
        Cancel the inner app when the client leaves before the response is complete.

        The app's clean-up runs. At the yield, or at `yield response`, it is a `ClientDisconnect`,
        which is dropped silently where nobody handles it. Background tasks of a complete response
        are left alone. To be called before the yield.

        This is the one place where something runs beside the app: a task that waits for what the
        server says. It takes up to 64 KiB of the request's body ahead of the app; a client that
        has more to say is not asked, and not watched, until the app reads on.

        The app is cancelled as by `fail_after`.

        Raises:
            MiddlewareError: After the yield, where it would have no effect.
        """
        exchange = self._before_the_yield("conn.cancel_on_disconnect()")
        exchange.put_around(lambda app: Watch(app, exchange))

    def _before_the_yield(self, what: str) -> Exchange:
        exchange = self._exchange
        if exchange is None or exchange.entered:
            raise _errors.too_late(what)
        return exchange

    def _send_inward(self, exchange: Exchange, incoming: Incoming) -> None:
        self._outgoing = incoming
        exchange.send_inward(incoming)

    def _may_change(self, what: str) -> None:
        self._before_the_yield(what)


class Received(Connection[Any]):
    # As each layer of each request gets one: to be initialised would cost it about as much again.

    __init__ = object.__init__


class ReceivedHandshake(Received):
    # The same for a WebSocket handshake, a GET request without a body (RFC 6455 section 4.1).

    is_websocket = True
    method = "GET"
    _body = b""

    @property
    def url(self) -> URL:
        return self._with_scheme(super().url)

    @property
    def base_url(self) -> URL:
        return self._with_scheme(super().base_url)

    def _with_scheme(self, url: URL) -> URL:
        # It may be left out; daphne does.
        return url if "scheme" in self else url.replace(scheme="ws")

    async def is_disconnected(self) -> bool:
        exchange = self._exchange
        # What is read ahead after the answer would be missed by the inner app.
        if exchange is not None and (exchange.gone or exchange.answered):
            self._is_disconnected = exchange.gone
            return exchange.gone
        return await super().is_disconnected()

    @property
    def body_iterator(self) -> AsyncIterator[bytes]:
        raise _errors.no_request_body("conn.body_iterator")

    @body_iterator.setter
    def body_iterator(self, iterator: Any) -> None:  # noqa: ARG002
        raise _errors.no_request_body("conn.body_iterator")

    async def drain(self, *, max_size: int = 0, seconds: float = 0.0) -> bool:  # noqa: ARG002
        return True  # nothing is left

    def fail_upload_after(self, *, idle: float | None = None, total: float | None = None) -> None:  # noqa: ARG002
        raise _errors.no_request_body("conn.fail_upload_after()")

    def replace_body(self, data: bytes | str) -> None:  # noqa: ARG002
        raise _errors.no_request_body("conn.replace_body()")


# In messages it is what users know it as.
ReceivedHandshake.__name__ = ReceivedHandshake.__qualname__ = "Connection"
Received.__name__ = Received.__qualname__ = "Connection"


def _content_length(scope: Scope) -> int:
    for key, value in scope.get("headers", ()):
        if key.lower() == b"content-length":
            try:
                return int(value)
            except ValueError:
                return 0
    return 0


def _is_held_back(scope: Scope) -> bool:
    return any(
        key.lower() == b"expect" and value.lower() == b"100-continue"
        for key, value in scope.get("headers", ())
    )
