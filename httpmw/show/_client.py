# A client in the same process: one request to an ASGI app, and the app's lifespan around it.
#
# It is no checker: what a server lets pass, it lets pass.

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote, unquote

import anyio
from starlette.types import ASGIApp, Message, Scope

_IN_A_PATH: Final = "/%:@!$&'()*+,;=~"
_PORT: Final = 50000


class Exchange:
    """
    One request, or one WebSocket handshake, and what came of it.

    Args:
        method: The HTTP method; "WEBSOCKET" opens a WebSocket, and closes it once it is open.
        path: The path, with a query string.
        headers: Pairs of names and values.
        body: The request's body.
        state: What the lifespan has left there.
    """

    def __init__(
        self,
        method: str,
        path: str,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        state: Mapping[str, Any],
    ) -> None:
        self.is_websocket = method == "WEBSOCKET"
        self.status: int | None = None
        self.bytes_sent = 0
        self.complete = False
        self.over = anyio.Event()
        path, _, query = path.partition("?")
        pairs = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
        ]
        names = {name for name, _ in pairs}
        if b"host" not in names:
            pairs.insert(0, (b"host", b"localhost"))
        if body and not names & {b"content-length", b"transfer-encoding"}:
            pairs.append((b"content-length", b"%d" % len(body)))
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": quote(path, safe=_IN_A_PATH).encode(),
            "root_path": "",
            "query_string": query.encode("latin-1"),
            "headers": pairs,
            "client": ("127.0.0.1", _PORT),
            "server": ("localhost", 80),
            "state": dict(state),
            "extensions": {},
        }
        self._inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        if self.is_websocket:
            del self.scope["method"]
            self.scope |= {"type": "websocket", "scheme": "ws", "subprotocols": []}
            self.scope["extensions"] = {"websocket.http.response": {}}
            self._inbox = [{"type": "websocket.connect"}]

    async def receive(self) -> Message:
        """
        Give the request, then wait until the response is complete.
        """
        if self._inbox:
            return self._inbox.pop(0)
        if not self.is_websocket:
            await self.over.wait()
            return {"type": "http.disconnect"}
        if self.status != 101:  # noqa: PLR2004 - Switching Protocols
            await self.over.wait()
        return {"type": "websocket.disconnect", "code": 1000, "reason": ""}

    async def send(self, message: Message) -> None:
        """
        Take what the app sends.
        """
        kind = message["type"]
        if kind.endswith((".response.start", ".accept", ".close")) and self.status is None:
            self.status = message.get("status", 101 if kind.endswith("accept") else 403)
            self.complete = kind.endswith(".close")
        self.bytes_sent += len(message.get("body") or message.get("bytes") or b"")
        if kind == "http.response.pathsend" or (
            kind.endswith(".response.body") and not message.get("more_body", False)
        ):
            self.complete = True
        if self.complete:
            self.over.set()

    async def run(self, app: ASGIApp) -> BaseException | None:
        """
        Run *app*; give what it raises.
        """
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as exc:  # noqa: BLE001 - a server logs it
            return exc
        finally:
            self.over.set()
        return None


class StartupError(Exception):
    """
    The application says that it cannot start.
    """


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """
    Start an application, and shut it down at the end; give its state.

    An app that knows no lifespan runs without, as servers have it.
    """
    state: dict[str, Any] = {}
    started, stopping, stopped = anyio.Event(), anyio.Event(), anyio.Event()
    failed: list[str] = []
    asked: list[str] = []

    async def receive() -> Message:
        if not asked:
            asked.append("startup")
            return {"type": "lifespan.startup"}
        await stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.failed":
            failed.append(message.get("message", ""))
        if kind.startswith("lifespan.startup"):
            started.set()
        else:
            stopped.set()

    async def live() -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        try:
            await app({**scope, "state": state}, receive, send)
        except Exception as exc:  # noqa: BLE001 - one that knows no lifespan may raise anything
            if started.is_set() and not stopping.is_set():
                failed.append(repr(exc))
        finally:
            started.set()
            stopped.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live)
        await started.wait()
        if failed:
            tasks.cancel_scope.cancel()
        else:
            yield state
            stopping.set()
            await stopped.wait()
            tasks.cancel_scope.cancel()
    if failed:
        raise StartupError(failed[0])
