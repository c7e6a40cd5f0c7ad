"""
A fake ASGI server for one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, Literal, Self, TypeVar
from urllib.parse import quote, unquote

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message

from httpmw.testing.checking.rules._http import HTTP
from httpmw.testing.checking.rules._rule import ASGIViolation, spec_version, with_lists
from httpmw.testing.checking.rules._web import Web

from ._headers import HeadersLike, latin, raw_headers
from ._sent import Sent

DISCONNECT: Final[Message] = {"type": "http.disconnect"}

# RFC 3986 section 3.3, and the sign of what is encoded already.
IN_A_PATH: Final = "/%:@!$&'()*+,;=~"


_Talk = TypeVar("_Talk", bound=Web)


class FakeServer(Sent, Generic[_Talk]):
    # What a server does for one scope, of a request or of a handshake.

    scope: dict[str, Any]
    violations: list[ASGIViolation]
    error: BaseException | None
    _talk: _Talk
    _waiters: list[anyio.Event]

    async def receive(self) -> Message:
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    async def run(self, app: ASGIApp, *, keep_error: bool = False) -> Self:
        """
        Run *app* for this request or handshake.

        What it raises is kept in `error`, and raised on unless *keep_error* is set; cancellation
        is always raised on.
        """
        self._talk.app = app
        self._talk.scope.update(self.scope)
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as error:
            self.error = error
            if not keep_error or isinstance(error, anyio.get_cancelled_exc_class()):
                raise
        return self

    def _take(self, message: Message) -> Message:
        message = with_lists(message)
        violation = self._talk.sending(message)
        if violation is not None:
            self.violations.append(violation)
            raise violation
        self.sent.append(message)
        return message

    async def _wait(self) -> None:
        waiter = anyio.Event()
        self._waiters.append(waiter)
        try:
            await waiter.wait()
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set()


class Server(FakeServer[HTTP]):
    """
    Feed one request to an app, and record what the app sends.

    It keeps the rules of ASGI: what breaks one of them is refused with an `ASGIViolation` out of
    `send`. When the client has left it does what the version in its scope says: from 2.4 on
    `send` raises `OSError`, before that it does nothing.

    Args:
        method: The HTTP method.
        path: The path, with percent-encoded parts; a query string may follow.
        query: The query string, percent-encoded.
        headers: A mapping or pairs. With a *body*, `content-length` is added, or
            `transfer-encoding` where the body is a sequence.
        body: The request body; a sequence arrives as one message for each item.
        spec: The version of ASGI's HTTP specification in the scope, None: none.
        extensions: The ASGI extensions that the scope announces, with their values.
        disconnect: How often `receive` tells that the client is gone: uvicorn and granian
            repeat it, hypercorn and daphne tell one waiter, once, and block from then on.
        leaves_after: After how many messages of the response the client leaves, 0: at once.

    Attributes:
        scope: The scope of the request, to be changed before `run`.
        sent: The messages that were taken.
        violations: The violations that were raised out of `send`.
        error: What the app raised.
        receives: How often `receive` was called.
        most_receivers: How many calls of `receive` were open at the same time, at most.
    """

    def __init__(  # noqa: PLR0913 - what a request has, each with a default
        self,
        *,
        method: str = "GET",
        path: str = "/",
        query: str | bytes = b"",
        headers: HeadersLike = (),
        body: str | bytes | Sequence[bytes] = b"",
        spec: str | None = "2.3",
        extensions: Mapping[str, Any] = {},
        disconnect: Literal["repeated", "once"] = "repeated",
        leaves_after: int | None = None,
    ) -> None:
        path, _, path_query = path.partition("?")
        body = body.encode() if isinstance(body, str) else body
        raw = raw_headers(headers)
        names = {name for name, _ in raw}
        if body and not names & {b"content-length", b"transfer-encoding"}:
            if isinstance(body, bytes):
                raw.append((b"content-length", b"%d" % len(body)))
            else:
                raw.append((b"transfer-encoding", b"chunked"))

        asgi = {"version": "3.0"}
        if spec is not None:
            asgi["spec_version"] = spec
        self.scope = {
            "type": "http",
            "asgi": asgi,
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": quote(path, safe=IN_A_PATH).encode(),
            "root_path": "",
            "query_string": latin(query or path_query),
            "headers": raw,
            "client": ("testclient", 50000),
            "server": ("testserver", 80),
            "state": {},
            "extensions": dict(extensions),
        }
        self.sent = []
        self.is_head = method == "HEAD"
        self.violations = []
        self.error = None
        self.receives = 0
        self.most_receivers = 0

        chunks = [body] if isinstance(body, bytes) else list(body) or [b""]
        self._requests: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks)}
            for index, chunk in enumerate(chunks, 1)
        ]
        self._raises = spec_version(self.scope) >= (2, 4)
        self._leaves_after = leaves_after
        self._once = disconnect == "once"
        self._receivers = 0
        self._told = False
        self._waiters = []
        self._talk = HTTP(self.scope)
        self._gone = leaves_after == 0

    async def receive(self) -> Message:
        """
        Give the chunks of the request, then wait until the exchange is over.
        """
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
            over = self._gone or self.complete
            if self._requests and (self._once or not over):
                return self._requests.pop(0)
            if over and not (self._once and self._told):
                self._told = True
                return dict(DISCONNECT)
            await self._wait()

    async def send(self, message: Message) -> None:
        """
        Take a message of the app, or refuse it.
        """
        await anyio.lowlevel.checkpoint()
        if self._gone:
            if self._raises:
                raise OSError("the client has left")
            return
        self._take(message)
        if len(self.sent) == self._leaves_after:
            self.disconnect()
        elif self.complete:
            self._wake()

    def disconnect(self) -> None:
        """
        Let the client leave now.
        """
        self._gone = True
        self._wake()

    @property
    def complete(self) -> bool:
        """
        Whether the last message of the response was taken.
        """
        return self._talk.complete

    @property
    def left(self) -> bool:
        """
        Whether the client has left.
        """
        return self._gone
