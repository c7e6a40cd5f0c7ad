"""
A fake ASGI server for one request, and stacks of middleware to run on it.

`Server` is as strict as the strictest server there is.
It refuses, with a `ProtocolError` (a `RuntimeError`) out of `send`:

1. a second response start, a body before the start, a message after the last one;
2. a message type that is unknown, or an extension that the scope does not announce;
3. early hints after the start, trailers that the start did not announce, a body after its end;
4. a body longer or shorter than its content-length, a body where the status allows none;
5. a status that is no `int`, headers that are no pairs of `bytes`, a body that is no `bytes`.

When the client has left it behaves as the ASGI version in its scope says: from 2.4 on `send`
raises `OSError`, before that it does nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
from starlette.datastructures import Headers
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from httpmw import Connection, Flow

SPECS: list[str | None] = [None, "2.1", "2.3", "2.4", "2.5"]

DISCONNECT: Message = {"type": "http.disconnect"}

BASIC = frozenset({"http.response.start", "http.response.body"})
EXTENSIONS = frozenset(
    f"http.response.{name}"
    for name in ("debug", "early_hint", "pathsend", "push", "trailers", "zerocopysend")
)


class ProtocolError(RuntimeError):
    """The app sent what a server refuses."""


class Server:
    """
    Feed one request to an app and record what the app sends.

    A `bytes` body arrives as one message with a content-length, a sequence as one message for
    each item with `transfer-encoding: chunked`.
    *disconnect* says how often `receive` tells that the client is gone: uvicorn and granian
    repeat it, hypercorn and daphne tell one waiter, once, and block from then on.
    """

    def __init__(
        self,
        *,
        method: str = "GET",
        path: str = "/",
        query: bytes = b"",
        headers: Mapping[str, str] | Iterable[tuple[Any, Any]] = (),
        body: bytes | Sequence[bytes] = b"",
        spec: str | None = "2.3",
        extensions: Mapping[str, Any] = {},
        disconnect: Literal["repeated", "once"] = "repeated",
    ) -> None:
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        raw = [(_latin(name).lower(), _latin(value)) for name, value in pairs]
        names = {name for name, _ in raw}
        if body and not names & {b"content-length", b"transfer-encoding"}:
            if isinstance(body, bytes):
                raw.append((b"content-length", b"%d" % len(body)))
            else:
                raw.append((b"transfer-encoding", b"chunked"))

        asgi = {"version": "3.0"}
        if spec is not None:
            asgi["spec_version"] = spec
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": asgi,
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query,
            "headers": raw,
            "client": ("testclient", 50000),
            "server": ("testserver", 80),
            "state": {},
            "extensions": dict(extensions),
        }
        self.sent: list[Message] = []
        self.error: BaseException | None = None
        # How often `receive` was called, and how many calls of it were open at the same time.
        self.receives = 0
        self.most_receivers = 0

        chunks = [body] if isinstance(body, bytes) else list(body) or [b""]
        self._requests: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks)}
            for index, chunk in enumerate(chunks, 1)
        ]
        self._raises = spec is not None and spec >= "2.4"
        self._once = disconnect == "once"
        self._receivers = 0
        self._told = False
        self._waiters: list[anyio.Event] = []
        self._start: Message | None = None
        self._length: int | None = None
        self._written = 0
        self._body_over = False
        self._gone = False
        self._complete = False

    async def receive(self) -> Message:
        """Give the chunks of the request, then wait until the exchange is over."""
        self.receives += 1
        self._receivers += 1
        self.most_receivers = max(self.most_receivers, self._receivers)
        try:
            return await self._next_message()
        finally:
            self._receivers -= 1

    async def _next_message(self) -> Message:
        # A server that repeats the disconnect gives it before the rest of the body, as uvicorn
        # does; one that queues its messages gives it after, as hypercorn does.
        while True:
            over = self._gone or self._complete
            if self._requests and (self._once or not over):
                return self._requests.pop(0)
            if over and not (self._once and self._told):
                self._told = True
                return dict(DISCONNECT)
            waiter = anyio.Event()
            self._waiters.append(waiter)
            try:
                await waiter.wait()
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    async def send(self, message: Message) -> None:
        """Take a message of the app, or refuse it."""
        await anyio.lowlevel.checkpoint()
        if self._gone:
            if self._raises:
                raise OSError("the client has left")
            return
        if "headers" in message:
            message = {**message, "headers": list(message["headers"])}
        self._check(message)
        self.sent.append(message)
        if self._complete:
            self._wake()

    def disconnect(self) -> None:
        """Let the client leave now."""
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set()

    async def run(self, app: ASGIApp, *, keep_error: bool = False) -> Server:
        """
        Run *app* for this request.

        What it raises is kept in `error`, and raised on unless *keep_error* is set; cancellation
        is always raised on.
        """
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:
            self.error = error
            if not keep_error or isinstance(error, anyio.get_cancelled_exc_class()):
                raise
        return self

    @property
    def starts(self) -> int:
        """How many response starts were taken: 0 or 1."""
        return sum(message["type"] == "http.response.start" for message in self.sent)

    @property
    def status(self) -> int | None:
        """The status of the response, `None` before its start."""
        return None if self._start is None else self._start["status"]

    @property
    def headers(self) -> Headers:
        """The headers of the response start."""
        assert self._start is not None, "no response start was sent"
        return Headers(raw=self._start.get("headers", []))

    @property
    def chunks(self) -> list[bytes]:
        """The body of the response, message by message, as the client gets it."""
        if self.scope["method"] == "HEAD":
            return []
        return [
            bytes(message.get("body", b""))
            for message in self.sent
            if message["type"] == "http.response.body"
        ]

    @property
    def body(self) -> bytes:
        """The body of the response as the client gets it."""
        return b"".join(self.chunks)

    @property
    def types(self) -> list[str]:
        """The types of the messages that were taken, without their `http.response.`."""
        return [message["type"].removeprefix("http.response.") for message in self.sent]

    @property
    def complete(self) -> bool:
        """Whether the last message of the response was taken."""
        return self._complete

    def _check(self, message: Message) -> None:
        kind = message["type"]
        if kind not in BASIC and kind not in self.scope["extensions"]:
            what = "was not announced" if kind in EXTENSIONS else "is unknown"
            raise ProtocolError(f"message {kind!r} {what}")
        if self._complete:
            raise ProtocolError(f"message {kind!r} after the response was complete")
        check = getattr(self, "_check_" + kind.removeprefix("http.response."), None)
        if check is not None:
            check(message)

    def _check_start(self, message: Message) -> None:
        if self._start is not None:
            raise ProtocolError("second response start")
        status = message["status"]
        if type(status) is not int or not 100 <= status <= 999:
            raise ProtocolError(f"status {status!r}")
        _check_headers(message.get("headers", []))
        self._start = message
        if (length := self.headers.get("content-length")) is not None and not self._bodiless:
            self._length = int(length)

    @property
    def _bodiless(self) -> bool:
        status = self.status or 200
        return self.scope["method"] == "HEAD" or status < 200 or status in (204, 205, 304)

    def _check_in_body(self, kind: str) -> None:
        if self._start is None:
            raise ProtocolError(f"{kind} before the response start")
        if self._body_over:
            raise ProtocolError(f"{kind} after the end of the body")

    def _check_body(self, message: Message) -> None:
        self._check_in_body("body")
        body = message.get("body", b"")
        if not isinstance(body, bytes | bytearray | memoryview):
            raise ProtocolError(f"body {type(body).__name__}, not bytes")
        if self._bodiless and self.scope["method"] != "HEAD" and len(body):
            raise ProtocolError(f"body in a {self.status} response")
        self._written += len(body)
        if self._length is not None and self._written > self._length:
            raise ProtocolError("body longer than its content-length")
        if not message.get("more_body", False):
            if self._length is not None and self._written < self._length:
                raise ProtocolError("body shorter than its content-length")
            self._end_body()

    def _check_pathsend(self, message: Message) -> None:
        self._check_in_body("pathsend")
        if self._written:
            raise ProtocolError("pathsend after a part of the body")
        if not isinstance(message["path"], str):
            raise ProtocolError("pathsend without a str path")
        self._end_body()

    def _check_zerocopysend(self, message: Message) -> None:
        self._check_in_body("zerocopysend")
        message["file"].fileno()
        self._length = None  # What the kernel copies is not counted here.
        if not message.get("more_body", False):
            self._end_body()

    def _end_body(self) -> None:
        assert self._start is not None
        self._body_over = True
        self._complete = not self._start.get("trailers", False)

    def _check_trailers(self, message: Message) -> None:
        if self._start is None or not self._start.get("trailers", False):
            raise ProtocolError("trailers that the response start did not announce")
        if not self._body_over:
            raise ProtocolError("trailers before the end of the body")
        _check_headers(message.get("headers", []))
        self._complete = not message.get("more_trailers", False)

    def _check_early_hint(self, message: Message) -> None:
        if self._start is not None:
            raise ProtocolError("early hints after the response start")


def _latin(value: str | bytes) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else value


def _check_headers(headers: Iterable[Any]) -> None:
    for name, value in headers:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise ProtocolError(f"header {name!r}: {value!r}, not bytes")
        if name != name.lower():
            raise ProtocolError(f"header {name!r} is not in lower case")


async def request(app: ASGIApp, *, keep_error: bool = False, **options: Any) -> Server:
    """Run *app* on a fresh `Server(**options)`."""
    return await Server(**options).run(app, keep_error=keep_error)


def start(status: int = 200, headers: Iterable[Any] = (), **keys: Any) -> Message:
    """Return a response start."""
    return {"type": "http.response.start", "status": status, "headers": list(headers), **keys}


def body(data: bytes = b"", *, more: bool = False, **keys: Any) -> Message:
    """Return a body message, the last one unless there is *more*."""
    return {"type": "http.response.body", "body": data, "more_body": more, **keys}


def script(*messages: Message) -> ASGIApp:
    """Return an app that sends *messages* and returns."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


class PassThrough:
    """A layer that does nothing, between two layers that must not fuse."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def stack(app: ASGIApp, *functions: Callable[..., Any], fused: bool) -> ASGIApp:
    """Wrap *app* in a layer for each of *functions*, the first one outermost."""
    from httpmw import HTTPMiddleware

    for index, function in enumerate(reversed(functions)):
        if index and not fused:
            app = PassThrough(app)
        app = HTTPMiddleware(app, dispatch=function)
    return app


async def passing(conn: Connection) -> Flow:
    """Do nothing, and be over at the response start."""
    yield


async def waiting(conn: Connection) -> Flow:
    """Do nothing, and wait until the exchange is over."""
    response = yield
    yield response


def explained(error: BaseException | None, function: Callable[..., Any], *remedy: str) -> str:
    """Check that the message names *function*, its file, a line of it and the *remedy*."""
    text = str(error)
    assert function.__name__ in text, text
    file = re.escape(Path(inspect.getfile(function)).name)
    named = re.search(file + r"\D{1,12}(\d+)", text)
    assert named, text
    lines, first = inspect.getsourcelines(function)
    assert first <= int(named[1]) < first + len(lines), text
    for words in remedy:
        assert words in text, text
    return text


class Inner:
    """
    An app that answers 200 with `BODY` and `x-inner: yes`, in one of three ways.

    It counts its runs, and notes in `ended` how each run ended: `None` or the exception.
    """

    BODY = b"first, second and third"
    STATUS = 200

    def __init__(self, make: Callable[[], Response]) -> None:
        self.make = make
        self.runs = 0
        self.ended: list[BaseException | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.runs += 1
        try:
            response = self.make()
            response.headers["x-inner"] = "yes"
            await response(scope, receive, send)
        except BaseException as error:
            self.ended.append(error)
            raise
        self.ended.append(None)


class Chunks:
    """
    An async iterator over some chunks.

    Not a generator: Starlette leaves one that it does not exhaust to the garbage collector,
    about which trio complains.
    """

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


def plain_inner() -> Inner:
    """Return an `Inner` that answers with a plain response, from the request's own task."""
    return Inner(lambda: PlainTextResponse(Inner.BODY))


def stream_inner() -> Inner:
    """Return an `Inner` that streams, before spec 2.4 from a child task."""
    parts = (b"first, ", b"second ", b"and third")
    return Inner(lambda: StreamingResponse(Chunks(*parts), media_type="text/plain"))


def file_inner(path: str) -> Inner:
    """Return an `Inner` that sends the file at *path*, which must hold `Inner.BODY`."""
    return Inner(lambda: FileResponse(path, media_type="text/plain"))
