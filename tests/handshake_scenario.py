"""Random WebSocket handshakes: random layers around random apps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError, NoResponseError
from httpmw.testing import ASGIChecker, ASGIViolation, World
from httpmw.testing.driving._socket import DENIES
from tests.harness import Chunks, PassThrough

Function = Callable[[Connection], Any]


class Planned(Exception):
    """What an app or a layer raises because the plan says so."""


def some_app(world: World) -> tuple[str, ASGIApp]:
    """Draw an inner app."""

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"x-inner", b"yes")]})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})

    async def of_starlette(scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        try:
            await socket.send_text("hello")
            await socket.receive_text()
            await socket.close(4000)
        except WebSocketDisconnect:
            pass

    async def listening(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            while (await receive())["type"] != "websocket.disconnect":
                pass
            group.cancel_scope.cancel()

        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await send({"type": "websocket.accept"})
            for _ in range(3):
                await send({"type": "websocket.send", "bytes": b"tick"})
                await world.pause()
            await send({"type": "websocket.close"})

    async def closes(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4401})

    async def denies(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        start: Message = {"type": "websocket.http.response.start", "status": 404, "headers": []}
        await send(start)
        for chunk in (b"a", b"b"):
            await send({"type": "websocket.http.response.body", "body": chunk, "more_body": True})
        await send({"type": "websocket.http.response.body"})

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if world.random.random() < 0.5:
            await send({"type": "websocket.accept"})
        raise Planned

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    apps = [echo, echo, of_starlette, of_starlette, listening, closes, denies, fails, silent]
    app = world.random.choice(apps)
    return app.__name__, app


class Layers:
    """What becomes of the flows of one handshake."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.open = 0
        self.seen: list[tuple[int, str | None]] = []

    def draw(self) -> Function:
        """Draw a middleware function."""
        world = self.world

        async def passing(conn: Connection) -> Flow:
            response = yield
            await world.pause()
            response.headers["x-layer"] = "passing"

        async def waiting(conn: Connection) -> Flow:
            assert conn.is_websocket
            response = yield
            await world.pause()
            try:
                yield response
            finally:
                self.seen.append((response.status_code, response.outcome))

        async def refusing(conn: Connection) -> Flow:
            await world.pause()
            yield PlainTextResponse("no", 403)

        async def replacing(conn: Connection) -> Flow:
            yield
            await world.pause()
            yield StreamingResponse(Chunks(b"not", b"you"), 401)

        async def reading(conn: Connection) -> Flow:
            await conn.is_disconnected()
            response = yield
            await response.read()

        async def answering(conn: Connection) -> Flow:
            try:
                yield
            except (Planned, NoResponseError):
                yield PlainTextResponse("sorry", 500)

        async def limited(conn: Connection) -> Flow:
            conn.fail_after(1000)
            yield

        async def failing(conn: Connection) -> Flow:
            yield
            raise Planned

        kinds = [passing, waiting, waiting, refusing, replacing, reading, answering, limited]
        function = world.random.choice([*kinds, failing])

        def counted(conn: Connection) -> Any:
            return self.counted(function, conn)

        return counted

    async def counted(self, function: Function, conn: Connection) -> Flow:
        """Run a function inside of one that counts it as open until it has ended."""
        self.open += 1
        try:
            flow = function(conn)
            response = yield flow
            yield response
        finally:
            self.open -= 1


async def handshake(world: World) -> None:
    """One handshake, and what must hold of it whatever happens."""
    random = world.random
    name, app = some_app(world)
    violations: list[ASGIViolation] = []
    stacked: ASGIApp = ASGIChecker(world.app(app), side="server", violations=violations)
    layers = Layers(world)
    for index in range(random.randint(1, 4)):
        if index and random.random() < 0.5:
            stacked = PassThrough(stacked)
        stacked = HTTPMiddleware(stacked, dispatch=layers.draw(), websocket=True)
    expected: tuple[type[Exception], ...] = (Planned, NoResponseError, MiddlewareError)
    if name == "listening":
        # A discarded app sends in one task and listens in the other: what it is told by an
        # `OSError` comes in a group with what was planted.
        expected = (*expected, OSError)
    server = await world.run(
        stacked,
        websocket=True,
        expect=expected,
        extensions=DENIES if name == "denies" or random.random() < 0.7 else {},
        messages=["a", b"b"][: random.randint(0, 2)],
        closes=random.choice([1000, 4000, 1006]),
        leaves_at=random.choice([None, None, 0.5]),
    )
    assert violations == []
    assert layers.open == 0
    kinds = [each["type"] for each in server.sent]
    answers = [each for each in kinds if each != "websocket.send"]
    if "websocket.accept" in kinds:
        assert kinds[0] == "websocket.accept"
        assert answers in (["websocket.accept"], ["websocket.accept", "websocket.close"])
    else:
        assert "websocket.send" not in kinds
    if world.raised is None and not world.disconnected and not world.cancelled:
        assert server.status is not None
