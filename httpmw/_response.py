from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CodeType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar, cast

from starlette.background import BackgroundTask
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from . import _errors
from ._body import (
    BODILESS,
    Body,
    FixedBody,
    LiveBody,
    Progress,
    ResponseChunks,
    SilentBody,
    TransformedBody,
    as_bytes,
    as_iterator,
)
from ._handlers import is_plain_callable
from ._layout import lay_out
from ._observe import Callback, Observer

if TYPE_CHECKING:
    from ._call_next import DispatchFlow
    from ._travel import Outbound

__all__ = ["AppResponse", "Outcome"]

R = TypeVar("R", bound=Response)

Outcome = Literal["completed", "disconnected", "incomplete", "failed", "cancelled", "replaced"]
"""
How a response ended: see `AppResponse.outcome`.
"""

# A function that makes a generator, a coroutine or an async generator.
_SPECIAL: Final = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR

# Where a translated message has what it was: see `_handshake`.
ORIGIN: Final = "httpmw.origin"

_RESET_CONTENT: Final = 205
_NOT_MODIFIED: Final = 304
_FRAMING = (b"content-length", b"transfer-encoding")

# What describes the very bytes of a body (RFC 9110 section 8.8.3, RFC 9530, RFC 1864).
_OF_THE_BYTES = (b"etag", b"content-md5", b"digest", b"content-digest", b"repr-digest")


# The same few names are set time and again: as bytes, by how they were written.
_names: Final[dict[str, bytes]] = {}
_MOST_NAMES: Final = 1024


def _name(key: str) -> bytes:
    name = key.lower().encode("latin-1")
    if name == b"content-length":  # not kept, so that it is always met in here; see below
        return name
    if len(_names) >= _MOST_NAMES:  # somebody makes them up
        _names.clear()
    _names[key] = name
    return name


class Headers(MutableHeaders):
    # Made in every request, and set in almost every layer: `MutableHeaders(raw=...)` without its
    # checks, and a `__setitem__` that does the same in one pass.

    # Whoever makes one sets `_list`; to be called costs a request more than that.
    __init__ = object.__init__

    def __setitem__(self, key: str, value: str) -> None:
        headers = self._list
        try:
            name = _names[key]
        except KeyError:
            name = _name(key)
            if name == b"content-length":
                del self["transfer-encoding"]
        found = None
        for pair in headers:
            if pair[0] == name:
                if found is not None:  # repeated
                    break
                found = pair
        else:
            pair = name, value.encode("latin-1")
            if found is None:
                headers.append(pair)
            else:
                headers[headers.index(found)] = pair
            return
        super().__setitem__(key, value)

    # RFC 9112 section 6.2: who sets the length means it.

    def setdefault(self, key: str, value: str) -> str:
        if key.lower() == "content-length" and key not in self:
            self[key] = value
        return super().setdefault(key, value)

    def append(self, key: str, value: str) -> None:
        if key.lower() == "content-length":
            del self["transfer-encoding"]
        super().append(key, value)


def _refuse(*_: object) -> NoReturn:
    raise _errors.edited_after_sent()


class SentHeaders(list[tuple[bytes, bytes]]):
    # The headers of a response that a function has let go of: every edit would be lost.

    __slots__ = ()

    append = extend = insert = remove = pop = clear = reverse = _refuse
    sort = _refuse  # type: ignore[assignment]  # pyrefly: ignore[bad-override]
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse


class AppResponse(Response):
    """
    The inner app's response, as `response = yield` gives it: a `starlette.responses.Response`.

    Nothing of it has been sent. Status, headers, cookies and body can be edited until the
    function ends or yields it.

    Attributes:
        status_code: The status, to read and to set.
        headers: The headers, to read and to edit in place.
    """

    # Where Starlette has a property: it would be looked up in every layer.
    headers: MutableHeaders = cast(MutableHeaders, None)
    _message: Message
    if TYPE_CHECKING:  # `typing.get_type_hints` would not find the names
        _outbound: Outbound
        # The dispatch function in `call_next` style that it was given to: to that, `body_iterator`
        # is one iterator, as in Starlette, and to a middleware function a new one each time.
        _reader: DispatchFlow

    # What only some responses come to. The first two are set in every layer of some stacks, where a
    # default in the class would make that dearer (from Python 3.12 on).

    # The headers as this layer received them, where they are not those of the message.
    _received: list[tuple[bytes, bytes]]
    _chunks: ResponseChunks | None = None
    _background: BackgroundTask | None = None
    # None as long as nobody has asked for the body: it is still to come from the source.
    _body: Body | None = None
    # The body as this layer received it.
    _given_body: Body | None = None
    _bytes: bytes | None = None
    # Whether it still can be changed: until the function ends or yields it.
    _open = True
    # With what it went on, where it was closed; to refuse a status when it is set would cost all
    # who set one in time.
    _sent: list[tuple[bytes, bytes]]
    _sent_status: int
    _progress: Progress | None = None
    # Whom `on_sent` has asked to be told, until that was done.
    _observer: Observer | None = None
    _outcome: Outcome | None = None

    # See `received()`; `Response.__init__` would render a body.
    __init__ = object.__init__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:  # noqa: ARG002
        raise _errors.called_response()

    # ------------------------------------------------------------------ headers

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """
        The headers as a list of pairs of bytes, in their order and with repeated ones.
        """
        try:
            return self.headers._list
        except AttributeError:
            raise _errors.assigned_headers(self.headers) from None

    @raw_headers.setter
    def raw_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        if not self._open:
            _refuse()
        self.headers = _headers(headers)

    @property
    def media_type(self) -> str | None:
        """
        The media type of the `content-type` header, without its parameters; None without one.

        Setting it sets the header, with a charset for `text/*`, as Starlette's responses do.
        """
        content_type = self.headers.get("content-type")
        return None if content_type is None else content_type.partition(";")[0].strip()

    @media_type.setter
    def media_type(self, value: str | None) -> None:
        if value is None:
            del self.headers["content-type"]
            return
        if value.startswith("text/") and "charset=" not in value.lower():
            value = f"{value}; charset={self.charset}"
        self.headers["content-type"] = value

    @property
    def charset(self) -> str:  # type: ignore[override]  # pyrefly: ignore[bad-override]
        """
        The charset of the `content-type` header, `utf-8` where it names none.
        """
        given = next((value for key, value in self.raw_headers if key == b"content-type"), b"")
        if b"=" not in given:
            return "utf-8"
        for parameter in given.decode("latin-1").split(";")[1:]:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "charset":
                return value.strip().strip('"')
        return "utf-8"

    # ------------------------------------------------------------------ body

    async def read(self, *, max_size: int | None = None) -> bytes:
        """
        Read the whole body; it is still sent, in the same chunks, where it is not changed.

        The inner app goes on producing it while the response start is held. The body of a
        `pathsend` or `zerocopysend` message is read from its file.

        Args:
            max_size: The largest body, in bytes, that is read into memory.

        Returns:
            The body; afterwards `response.body` gives it as well.

        Raises:
            ResponseTooLarge: The body is larger than *max_size*; what was read is still sent if the
                response is passed on.
            NoResponseError: The inner app returned in the middle of the body.
            ClientDisconnect: It did so because the client has left.
            MiddlewareError: The body is gone already, or it is read from a task of its own.
            Exception: Whatever the inner app raised while it produced the body.
        """
        if self._bytes is None:
            if max_size is not None and self._declared_length() > max_size:
                raise _errors.ResponseTooLarge(max_size)
            body = self._replaceable()
            if type(body) is LiveBody and not body.transformed:
                self._bytes = await body.read(max_size)
        if self._bytes is None:
            size = 0
            read: list[bytes] = []
            async with aclosing(ResponseChunks(self._replaceable())) as chunks:
                async for chunk in chunks:
                    size += len(chunk)
                    if max_size is not None and size > max_size:
                        raise _errors.ResponseTooLarge(max_size)
                    if chunks.joined:
                        read[-1] = chunks.last
                    else:
                        read.append(chunk)
            self._bytes = b"".join(read)
        elif max_size is not None and len(self._bytes) > max_size:
            raise _errors.ResponseTooLarge(max_size)
        return self._bytes

    @property
    def body(self) -> bytes:
        """
        The body, once it was read with `await response.read()` or set.

        Setting it sends those bytes (or that str, encoded) instead: `content-length` is
        corrected, `etag` and digest headers of the old body are dropped unless they were set
        anew, and the inner app is discarded as if the client had left.

        Raises:
            MiddlewareError: The body has not been read; also an `AttributeError`.
            TypeError: On setting something that is neither bytes nor str.
        """
        if self._bytes is None:
            raise _errors.body_not_read()
        return self._bytes

    @body.setter
    def body(self, data: bytes | str | memoryview) -> None:
        body = as_bytes(data, self.charset)
        if self.is_acceptance:
            raise _errors.body_of_acceptance()
        inner = self._replaceable()
        self._body = FixedBody(body, inner)
        self._bytes = body
        self._chunks = None
        self._set_length(b"%d" % len(body))
        received = {key.lower(): value for key, value in self._received_headers()}
        self.raw_headers[:] = [
            (key, value)
            for key, value in self.raw_headers
            if key.lower() not in _OF_THE_BYTES or received.get(key.lower()) != value
        ]

    @property
    def body_iterator(self) -> AsyncIterator[bytes]:
        """
        The chunks of the body, as the inner app produces them.

        Iterating over them just reads: they are still sent. Assign an async generator made from
        them and the body streams through it, chunk by chunk, at the inner app's own pace:

            response.body_iterator = transform(response.body_iterator)

        `content-length` is dropped then, as the length may change.

        Raises:
            MiddlewareError: The body is gone already.
            TypeError: On assignment of something that is not an iterable of bytes.
        """
        if self._chunks is not None:
            return self._chunks
        chunks = ResponseChunks(self._replaceable())
        # It may open a file, and be left in the middle of it.
        self._outbound.exchange.add_transform(chunks)
        reader = getattr(self, "_reader", None)
        if reader is not None and not reader.is_over():
            self._chunks = chunks
        return chunks

    @body_iterator.setter
    def body_iterator(self, iterator: Any) -> None:
        self._take_body(self, iterator, self.charset)
        self._bytes = self._chunks = None
        self._set_length(None)

    def _replaceable(self) -> Body:
        if not self._open:
            raise _errors.response_body_gone()
        if self._body is None:
            self._body = self._outbound.body()
        return self._body

    @property
    def background(self) -> BackgroundTask | None:
        """
        A `BackgroundTask` to run after the inner app has ended; None when received.
        """
        return self._background

    @background.setter
    def background(self, task: BackgroundTask | None) -> None:
        if not self._open:
            _refuse()
        self._background = task
        self._outbound.exchange.complicate()

    def _set_length(self, length: bytes | None) -> None:
        frame(self.raw_headers, length)

    def _received_headers(self) -> Iterable[tuple[bytes, bytes]]:
        headers: Iterable[tuple[bytes, bytes]] | None = getattr(self, "_received", None)
        return self._message.get("headers", ()) if headers is None else headers

    def _declared_length(self) -> int:
        length = self.headers.get("content-length", "")
        return int(length) if length.isdecimal() and not self._outbound.is_head() else 0

    # ------------------------------------------------------------------ afterwards

    @property
    def bytes_sent(self) -> int:
        """
        How many bytes of body were sent so far; all of them, when the response is over.
        """
        return 0 if self._progress is None else self._progress.bytes_sent

    @property
    def started_at(self) -> float | None:
        """
        When the response start was sent, in seconds of `time.perf_counter()`; None before.
        """
        return None if self._progress is None else self._progress.started_at

    @property
    def ended_at(self) -> float | None:
        """
        When the response was over, in seconds of `time.perf_counter()`; None before.

        That is when the server had taken its last message, trailers included, or when it was known
        that none would come. What the inner app does afterwards does not count: its background
        tasks, the exits of FastAPI's dependencies.
        """
        return None if self._progress is None else self._progress.ended_at

    @property
    def duration(self) -> float | None:
        """
        How long it took from the response start to its end, in seconds; None before, or without.
        """
        started, ended = self.started_at, self.ended_at
        return None if started is None or ended is None else ended - started

    @property
    def outcome(self) -> Outcome | None:
        """
        How it ended, in a callback of `on_sent` and after `yield response`; None before.

        * `"completed"`: the last message was sent.
        * `"disconnected"`: the client left before.
        * `"incomplete"`: the inner app returned before.
        * `"failed"`: an exception came before; it is raised at `yield response`.
        * `"cancelled"`: a cancellation came before.
        * `"replaced"`: this function sent another response in its place.
        """
        return self._outcome

    def on_sent(self, callback: Callback) -> None:
        """
        Call *callback* once, with this response, as soon as it is over.

        That is when the server has taken the last message, or when it is known that none will come:
        the client is gone, the inner app has failed or was cancelled, the function gives another
        response. `outcome`, `bytes_sent` and `ended_at` are known then. Background tasks and the
        exits of FastAPI's dependencies come later, and so does `yield response`.

        Args:
            callback: A plain function. It runs in the context of the request, in the middle of
                sending: it should be quick. What it raises is logged by the logger `httpmw`, and
                harms nothing.

        Several callbacks of one function are called in their order, and those of layers further out
        first; where it is only found at the end that the last message is missing, those further in.

        Raises:
            MiddlewareError: After `yield response`, or after the function has ended.
            TypeError: *callback* cannot be called, or is a coroutine function.
        """
        # Nearly always a function: that is seen without the questions that an object needs.
        code = getattr(callback, "__code__", None)
        is_plain = isinstance(code, CodeType) and not code.co_flags & _SPECIAL
        if not is_plain and not is_plain_callable(callback):
            raise _errors.bad_callback(callback)
        self._outbound.observe(self, callback)

    # ------------------------------------------------------------------ of a WebSocket

    @property
    def is_acceptance(self) -> bool:
        """
        Whether this is the acceptance of a WebSocket handshake: status 101, without a body.
        """
        origin = self._message.get(ORIGIN)
        return origin is not None and bool(origin["type"] == "websocket.accept")

    @property
    def subprotocol(self) -> str | None:
        """
        The subprotocol that the inner app has chosen, of those in `conn.scope["subprotocols"]`.
        """
        subprotocol: str | None = self._message.get(ORIGIN, {}).get("subprotocol")
        return subprotocol

    @property
    def close_code(self) -> int | None:
        """
        The code with which the WebSocket was closed, by either side; None before, or without one.

        What the server tells is taken as it is: 1006 is a connection that broke off, or a server
        that says so of every close. For a response that waits, after `yield response`.
        """
        code: int | None = getattr(self._progress, "close_code", None)
        return code

    @property
    def close_reason(self) -> str | None:
        """
        The reason that was given with `close_code`, empty where none was; None before.
        """
        reason: str | None = getattr(self._progress, "close_reason", None)
        return reason

    @property
    def messages_sent(self) -> int:
        """
        How many messages the inner app has sent to the client over the WebSocket so far.
        """
        return int(getattr(self._progress, "messages_sent", 0))

    @property
    def messages_received(self) -> int:
        """
        How many messages of the client the inner app has received over the WebSocket so far.
        """
        return int(getattr(self._progress, "messages_received", 0))

    # ------------------------------------------------------------------ the engine's side

    def _has_wrong_length(self) -> bool:
        """
        Whether a status that allows no body came with the length of one.
        """
        if isinstance(self._body, FixedBody):
            return True
        if self.status_code == _NOT_MODIFIED:
            return False  # of the 200 that it stands for
        return any(
            key.lower() == b"content-length" and value != b"0" for key, value in self.raw_headers
        )

    def _has_trailers(self) -> bool:
        return bool(self._message.get("trailers"))

    def _take_body(self, response: AppResponse, iterator: Any, charset: str) -> None:
        """
        Send what *iterator* makes of the body of *response*.
        """
        chunks = as_iterator(iterator)
        inner = response._replaceable()
        self._body = body = TransformedBody(inner, chunks, charset)
        self._outbound.exchange.add_transform(body)

    def _is_being_read(self) -> bool:
        """
        Whether somebody has begun to iterate over the body, and not come to its end.
        """
        return self._body is not None and self._body.in_use

    def _close(self) -> None:
        """
        Settle what is sent; nothing can be changed any more.
        """
        self._open = False
        self._sent_status = self.status_code
        # The list itself goes on, and the function keeps a copy.
        headers = self.headers
        if type(headers) is not Headers:  # put there by the function, which may share it
            headers = self.headers = _headers(self.raw_headers.copy())
        self._sent = raw = headers._list
        headers._list = SentHeaders(raw)
        body = self._body
        if isinstance(body, FixedBody) and body is not self._given_body:
            body.inner.drop()

    def _outward(self) -> AppResponse:
        """
        The same response, as the next layer outward receives it.
        """
        response = received(self._outbound, self._message, self.status_code, self._sent)
        response._received = self.headers._list
        body = self._body
        if body is not None and (
            self.status_code in BODILESS or (self._outbound.is_head() and body.is_made())
        ):
            body = SilentBody(body)
        response._body = response._given_body = body
        return response

    def _start_message(self) -> Message:
        """
        The start that is sent: all that came with it, and what was changed.
        """
        message = self._message
        headers: Any = message.get("headers", ())
        raw = self.raw_headers if self._open else self._sent
        start = dict(message)
        start["status"] = self.status_code
        # Not a list, or not there at all: let it be what it was.
        if type(headers) is list or raw != list(headers):
            start["headers"] = raw
        if self._body is not None and isinstance(self._body.source, FixedBody):
            start.pop("trailers", None)  # they would have come from the app
        return start


lay_out(
    AppResponse(),
    "_outbound",
    "_message",
    "status_code",
    "headers",
    "_received",
    "_reader",
    "_body",
    "_given_body",
    "_open",
    "_sent",
    "_sent_status",
    "_observer",
    "_outcome",
    "_progress",
)


def frame(headers: list[tuple[bytes, bytes]], length: bytes | None) -> None:
    """
    Declare the *length* of a body in its headers; None leaves its framing to the server.

    RFC 9112 section 6.2: one framing. In any case of letters: ASGI wants lower case, but not every
    app knows.
    """
    dropped = _FRAMING if length is not None else _FRAMING[:1]
    headers[:] = [pair for pair in headers if pair[0].lower() not in dropped]
    if length is not None:
        headers.append((b"content-length", length))


def frame_nothing(headers: list[tuple[bytes, bytes]], status: int) -> None:
    """
    Frame a response that has no body: RFC 9110 sections 8.6 and 15.3.6, RFC 9112 section 6.1.

    A 304 could say the length of the 200 that it stands for; but servers close over one whose
    body never comes.
    """
    frame(headers, b"0")
    if status != _RESET_CONTENT:
        headers.pop()


def is_framed(response: Response) -> bool:
    """
    Whether a response that somebody made may go out as it is.
    """
    if response.status_code in BODILESS:
        return False
    length = coding = None
    for key, value in response.raw_headers:
        if key == b"content-length":
            if length is not None:
                return False
            length = value
        elif key == b"transfer-encoding":
            coding = value
    if length is None:
        return True
    # Of another one nobody knows the body before it is sent.
    is_whole = type(response).__call__ is Response.__call__
    return coding is None and not (is_whole and length != b"%d" % len(response.body))


def framed(response: R, *, is_head: bool) -> R:
    """
    Give a response as it may go out: the length is that of its body, and there is one framing.

    The object itself may be shared between requests, and stays as it is.
    """
    response = copy.copy(response)
    headers = response.raw_headers = [*response.raw_headers]
    if response.status_code in BODILESS:
        frame_nothing(headers, response.status_code)
    elif type(response).__call__ is Response.__call__ and not (is_head and not response.body):
        frame(headers, b"%d" % len(response.body))
    else:  # to HEAD it is the length of what GET would give
        lengths = [value for key, value in headers if key.lower() == b"content-length"]
        frame(headers, lengths[0])
    return response


def _headers(raw: list[tuple[bytes, bytes]]) -> Headers:
    headers: Headers = Headers()
    headers._list = raw
    return headers


def received(
    outbound: Outbound, message: Message, status: int, raw: list[tuple[bytes, bytes]]
) -> AppResponse:
    """
    Make a response as a layer receives it; `Outbound._start` does the same without the call.
    """
    response: AppResponse = AppResponse()
    response._outbound = outbound
    response._message = message
    response.status_code = status
    response.headers = _headers(raw)
    return response
