"""
A fake ASGI server for one WebSocket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote, unquote

import anyio
import anyio.lowlevel
from starlette.types import Message

from httpmw.testing.checking.rules._rule import spec_version
from httpmw.testing.checking.rules._websocket import (
    ACCEPT,
    CLOSE,
    CONNECT,
    DENIAL,
    DISCONNECT,
    RECEIVED,
    WebSocket,
)

from ._headers import HeadersLike, latin, raw_headers
from ._server import IN_A_PATH, FakeServer

DENIES: Mapping[str, Any] = {DENIAL: {}}

_DROPPED = 1006  # RFC 6455 section 7.4.1


class SocketServer(FakeServer[WebSocket]):
    """
    Feed one WebSocket handshake to an app, and then messages; record what the app sends.

    It keeps the rules of ASGI, as `Server` does for HTTP.

    Args:
        path: The path, with percent-encoded parts; a query string may follow.
        query: The query string, percent-encoded.
        headers: A mapping or pairs.
        subprotocols: What the client offers.
        messages: What the client sends after the acceptance: str as text, bytes as bytes.
        closes: The code with which the client closes after its last message; 1006: the
            connection breaks off, None: it stays until the app closes or has ended.
        spec: The version of ASGI's HTTP and WebSocket specification in the scope, None: none.
        extensions: The ASGI extensions that the scope announces, with their values.
        disconnect: How often `receive` tells of the end: "repeated" or "once".
        leaves_after: After how many messages of the app the connection breaks off, 0: at once.

    Attributes:
        scope: The scope of the handshake, to be changed before `run`.
        sent: The messages that were taken.
        violations: The violations that were raised out of `send`.
        error: What the app raised.
    """

    is_head = False

    def __init__(  # noqa: PLR0913 - what a handshake has, each with a default
        self,
        *,
        path: str = "/",
        query: str | bytes = b"",
        headers: HeadersLike = (),
        subprotocols: Sequence[str] = (),
        messages: Sequence[str | bytes] = (),
        closes: int | None = 1000,
        spec: str | None = "2.3",
        extensions: Mapping[str, Any] = DENIES,
        disconnect: Literal["repeated", "once"] = "repeated",
        leaves_after: int | None = None,
    ) -> None:
        path, _, path_query = path.partition("?")
        asgi = {"version": "3.0"}
        if spec is not None:
            asgi["spec_version"] = spec
        self.scope = {
            "type": "websocket",
            "asgi": asgi,
            "http_version": "1.1",
            "scheme": "ws",
            "path": unquote(path),
            "raw_path": quote(path, safe=IN_A_PATH).encode(),
            "root_path": "",
            "query_string": latin(query or path_query),
            "headers": raw_headers(headers),
            "client": ("testclient", 50000),
            "server": ("testserver", 80),
            "subprotocols": list(subprotocols),
            "state": {},
            "extensions": dict(extensions),
        }
        self.sent = []
        self.violations = []
        self.error = None
        self.receives = 0
        self._messages = [_received(each) for each in messages]
        self._closes = closes
        self._raises = spec_version(self.scope) >= (2, 4)
        self._leaves_after = leaves_after
        self._once = disconnect == "once"
        self._told = False
        self._connected = False
        self._waiters = []
        self._talk = WebSocket(self.scope)
        # With what code, once it is over.
        self._over: int | None = _DROPPED if leaves_after == 0 else None

    async def receive(self) -> Message:
        """
        Give the connect, then what the client sends, then the disconnect.
        """
        self.receives += 1
        if not self._connected:
            self._connected = True
            return {"type": CONNECT}
        while True:
            if self._messages and self._talk.accepted and self._over != _DROPPED:
                return self._messages.pop(0)
            if self._talk.accepted and self._over is None and self._closes is not None:
                self._over = self._closes
            if self._over is not None and not (self._once and self._told):
                self._told = True
                return {"type": DISCONNECT, "code": self._over, "reason": ""}
            await self._wait()

    async def send(self, message: Message) -> None:
        """
        Take a message of the app, or refuse it.
        """
        await anyio.lowlevel.checkpoint()
        if self._over is not None and not self._talk.closed:
            if self._raises:
                raise OSError("the client has left")
            return
        message = self._take(message)
        if len(self.sent) == self._leaves_after:
            self.disconnect()
        elif message["type"] == CLOSE and self._talk.accepted:
            self._end(message.get("code", 1000))
        elif self._talk.closed:
            self._end(_DROPPED)
        else:
            self._wake()

    def feed(self, data: str | bytes) -> None:
        """
        Let the client send one message more.
        """
        self._messages.append(_received(data))
        self._wake()

    def disconnect(self, code: int = _DROPPED) -> None:
        """
        Let the client leave now.
        """
        self._end(code)

    def _end(self, code: int) -> None:
        self._over = code
        self._wake()

    @property
    def complete(self) -> bool:
        """
        Whether it was closed in good order, or refused.
        """
        return self._talk.closed or (self._over is not None and self._over != _DROPPED)

    @property
    def answered(self) -> bool:
        """
        Whether the app, or a middleware in its place, has closed or refused it.
        """
        return self._talk.closed

    @property
    def left(self) -> bool:
        """
        Whether the client is gone without a word.
        """
        return self._over == _DROPPED and not self._talk.closed

    @property
    def accept(self) -> Message | None:
        """
        The acceptance, None where there is none.
        """
        return next((each for each in self.sent if each["type"] == ACCEPT), None)

    @property
    def close(self) -> Message | None:
        """
        The close that the app has sent, None where it has sent none.
        """
        return next((each for each in self.sent if each["type"] == CLOSE), None)


def _received(data: str | bytes) -> Message:
    return {"type": RECEIVED, "bytes" if isinstance(data, bytes) else "text": data}
