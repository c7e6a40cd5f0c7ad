"""
The cases of `tools.compare_ready`: an application, a server for one request, and what that saw.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, WebSocket
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Scope

SECRET = "dsn=postgres://root:hunter2@db"  # noqa: S105 - to be seen by nobody
LARGE = b"".join(b"%d some text that is said again and again, " % number for number in range(200))
PARTS = (b"one, of three", b"two, of three", b"three, of three")
TAG = '"v1"'
# Set by the application itself.
OWN = {
    "x-request-id": "of the app",
    "content-security-policy": "default-src 'none'",
    "etag": TAG,
    "content-digest": "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
}


@dataclass(frozen=True)
class Case:
    """A request, and what its client or its server does in the middle."""

    name: str
    path: str
    # The template of the route that it matches.
    route: str | None = None
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    ends: Literal["leaves", "cancelled", "closes"] | None = None
    is_websocket: bool = False


PLAIN = Case("plain", "/plain", "/plain")
CASES = (
    PLAIN,
    Case("3-chunk stream", "/stream", "/stream"),
    Case("event stream, the client leaves", "/events", "/events", ends="leaves"),
    Case("raises before the response", "/raises", "/raises"),
    Case("raises within the body", "/breaks", "/breaks"),
    Case("cancelled", "/waits", "/waits", ends="cancelled"),
    Case("404", "/nothing"),
    Case("405", "/plain", "/plain", method="POST"),
    Case("422", "/typed?number=hunter2", "/typed"),
    Case("500", "/fails", "/fails"),
    Case("in a mounted app", "/mounted/items/7", "/mounted/items/{item}"),
    Case("in a nested router", "/outer/inner/items/7", "/outer/inner/items/{item}"),
    Case("what the app has set itself", "/own", "/own"),
    Case("WebSocket accepted", "/socket", "/socket", ends="closes", is_websocket=True),
    Case("WebSocket refused", "/refused", "/refused", is_websocket=True),
    Case("WebSocket dropped", "/socket", "/socket", ends="leaves", is_websocket=True),
)


@dataclass
class Seen:
    """What the server and the application saw of one request."""

    case: Case
    messages: list[Message] = field(default_factory=list)
    raised: BaseException | None = None
    hung: bool = False
    # What the application noted while it ran, and the server when an exception came to it.
    noted: list[Any] = field(default_factory=list)
    at_server: Any = None

    def of(self, *kinds: str) -> list[Message]:
        return [each for each in self.messages if each["type"] in kinds]

    @property
    def starts(self) -> list[Message]:
        return self.of("http.response.start", "websocket.accept", "websocket.http.response.start")

    @property
    def status(self) -> int | None:
        """The status that the client gets."""
        if not self.starts:
            return 403 if self.case.is_websocket and self.of("websocket.close") else None
        start = self.starts[0]
        return 101 if start["type"] == "websocket.accept" else start["status"]

    def values(self, name: str) -> list[str]:
        """The values of a header, in any case of letters, as servers send it on."""
        headers = self.starts[0].get("headers", ()) if self.starts else ()
        return [value.decode("latin-1") for key, value in headers if key.lower() == name.encode()]

    @property
    def body(self) -> bytes:
        bodies = self.of("http.response.body", "websocket.http.response.body")
        return b"".join(each.get("body", b"") for each in bodies)

    @property
    def is_complete(self) -> bool:
        """Whether the client sees the end of a response."""
        bodies = self.of("http.response.body")
        return bool(bodies) and not bodies[-1].get("more_body", False)


async def ask(app: ASGIApp, case: Case, note: Callable[[], Any] = lambda: None) -> Seen:
    """
    Ask *app* as uvicorn does (ASGI 2.3), and see what it answers.

    *note* is called in the application while it handles the request, and where the server logs what
    was raised.
    """
    seen = Seen(case)
    gone = anyio.Event()
    reached = anyio.Event()
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            if case.is_websocket:
                return {"type": "websocket.connect"}
            return {"type": "http.request", "body": case.body, "more_body": False}
        if case.is_websocket:
            code = 1000 if case.ends == "closes" else 1006
            return {"type": "websocket.disconnect", "code": code, "reason": ""}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if gone.is_set():
            return  # as servers before ASGI 2.4 do
        seen.messages.append(message)
        if case.ends == "leaves" and len([1 for each in seen.messages if each.get("body")]) == 2:
            gone.set()

    def noted() -> None:
        seen.noted.append(note())
        reached.set()

    scope = scope_of(case, noted)

    async def serve() -> None:
        try:
            await app(scope, receive, send)
        except Exception as exc:  # noqa: BLE001 - whatever comes to the server
            seen.raised = exc
            seen.at_server = note()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as cancelled:
            if case.ends == "cancelled":

                async def cancel() -> None:
                    await reached.wait()
                    cancelled.cancel()

                group.start_soon(cancel)
            with anyio.move_on_after(5) as limit:
                # Of a stream that a layer holds back the client sees nothing, and leaves as well.
                async with anyio.create_task_group() as silent:

                    async def leave() -> None:
                        await anyio.sleep(0.5)
                        gone.set()

                    if case.ends == "leaves" and not case.is_websocket:
                        silent.start_soon(leave)
                    await serve()
                    silent.cancel_scope.cancel()
            seen.hung = limit.cancelled_caught
        group.cancel_scope.cancel()
    return seen


def scope_of(case: Case, noted: Callable[[], None]) -> Scope:
    path, _, query = case.path.partition("?")
    headers = [(b"host", b"shop.example"), (b"user-agent", b"somebody")]
    headers += [(name.encode(), value.encode()) for name, value in case.headers]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("192.0.2.7", 4711),
        "server": ("shop.example", 80),
        "state": {"noted": noted},
        "extensions": {},
    }
    if case.is_websocket:
        return scope | {"type": "websocket", "scheme": "ws", "subprotocols": []}
    return scope | {"method": case.method}


# ---------------------------------------------------------------------- the application


def note(request: Request | WebSocket) -> None:
    request.state.noted()


async def three() -> AsyncIterator[bytes]:
    for part in PARTS:
        await anyio.lowlevel.checkpoint()
        yield part


async def events() -> AsyncIterator[bytes]:
    for name in (b"one", b"two"):
        yield b"data: %s\n\n" % name
        await anyio.lowlevel.checkpoint()
    await anyio.sleep_forever()


async def broken() -> AsyncIterator[bytes]:
    yield b"one, of three"
    await anyio.lowlevel.checkpoint()
    raise ValueError(SECRET)


async def item_of(request: Request) -> Response:
    note(request)
    return JSONResponse({"item": request.path_params["item"]})


def application() -> FastAPI:
    """
    Make the application, which others put their layers around.
    """
    # What FastAPI records by itself is not what is looked at.
    app = FastAPI(telemetry={"metrics": False, "traces": False, "logs": False})

    @app.get("/plain")
    async def plain(request: Request) -> dict[str, str]:
        note(request)
        return {"hello": "world"}

    @app.get("/stream")
    async def stream(request: Request) -> StreamingResponse:
        note(request)
        return StreamingResponse(three(), media_type="text/plain")

    @app.get("/events")
    async def event_stream(request: Request) -> StreamingResponse:
        note(request)
        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/raises")
    async def raises(request: Request) -> None:
        note(request)
        raise ValueError(SECRET)

    @app.get("/breaks")
    async def breaks(request: Request) -> StreamingResponse:
        note(request)
        return StreamingResponse(broken(), media_type="text/plain")

    @app.get("/waits")
    async def waits(request: Request) -> None:
        note(request)
        await anyio.sleep_forever()

    @app.get("/typed")
    async def typed(request: Request, number: int) -> int:
        note(request)
        return number

    @app.get("/fails")
    async def fails(request: Request) -> None:
        note(request)
        raise HTTPException(500, "not now", {"retry-after": "7"})

    @app.get("/own")
    async def own(request: Request) -> PlainTextResponse:
        note(request)
        return PlainTextResponse(LARGE, headers=OWN)

    @app.post("/pay")
    async def pay(request: Request) -> dict[str, str]:
        note(request)
        return {"paid": "yes"}

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        note(websocket)
        await websocket.accept()
        async for _ in websocket.iter_text():
            pass

    @app.websocket("/refused")
    async def refused(websocket: WebSocket) -> None:
        note(websocket)
        await websocket.close(1008)

    outer, inner = APIRouter(prefix="/outer"), APIRouter(prefix="/inner")
    inner.add_api_route("/items/{item}", item_of)
    outer.include_router(inner)
    app.include_router(outer)
    mounted = Starlette(routes=[Route("/items/{item}", item_of)])
    app.router.routes.append(Mount("/mounted", mounted))
    return app
