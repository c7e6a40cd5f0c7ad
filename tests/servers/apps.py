"""
The application that the real servers run: `tests.servers.apps:app`.

1. A request names itself with `?id=...`; what becomes of it is written in the ledger.
2. `?do=...` names the middleware functions that take part in it, see `FUNCTIONS`.
3. `/fused/...` has its layers fused, `/nested/...` has a plain ASGI layer between any two.
4. `/ledger/{id}` answers as soon as nothing of that request is left inside, or after `PATIENCE`;
   `/notes/{id}` answers at once; `/release/{id}` lets a request go on that is held by `hold`.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from a2wsgi import WSGIMiddleware
from fastapi import FastAPI
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from docs_src.recipes.head_as_get import head_as_get
from httpmw import Connection, DeadlineExceeded, Flow, HTTPMiddleware
from httpmw.compat import BaseHTTPMiddleware, RequestResponseEndpoint
from tests.harness import PassThrough

PATIENCE = 5
PLAIN = b"a plain response"
CHUNKS = [b"chunk %d of a stream\n" % number for number in range(20)]
FILE = Path(__file__)
FILE_SIZE = FILE.stat().st_size


class Intended(Exception):
    """Raised on purpose; its message names the request."""


# The ledger.


class Exchange:
    """What became of one request: who is still inside, and what was noted about it."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.notes: dict[str, Any] = {}
        self.empty = anyio.Event()
        self.released = anyio.Event()
        self.go_on = threading.Event()

    @contextmanager
    def enter(self, name: str) -> Iterator[None]:
        self.inside.append(name)
        try:
            yield
        finally:
            self.inside.remove(name)
            if not self.inside:
                self.empty.set()


ledger: defaultdict[str, Exchange] = defaultdict(Exchange)


def exchange_of(scope: Scope) -> Exchange:
    return ledger[Request(scope).query_params["id"]]


class Watch:
    """A plain ASGI layer that notes who is inside, what comes out, and that the client left."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        kinds: list[str] = exchange.notes.setdefault(f"sent by {self.name}", [])

        async def noted(message: Message) -> None:
            kind = message["type"].removeprefix("http.response.")
            if kind not in kinds:
                kinds.append(kind)
            await send(message)

        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                exchange.notes[f"{self.name} was told"] = True
            return message

        with exchange.enter(self.name):
            await self.app(scope, received, noted)


async def read_ledger(request: Request) -> Response:
    exchange = ledger[request.path_params["id"]]
    with anyio.move_on_after(PATIENCE):
        await exchange.empty.wait()
    return JSONResponse({"inside": exchange.inside, **exchange.notes})


async def read_notes(request: Request) -> Response:
    return JSONResponse(ledger[request.path_params["id"]].notes)


async def release(request: Request) -> Response:
    exchange = ledger[request.path_params["id"]]
    exchange.released.set()
    exchange.go_on.set()
    return Response()


# The middleware functions. `audit` and `stamp` take part in every request, the others if asked to.

current: ContextVar[str] = ContextVar("current", default="nobody")


async def audit(conn: Connection) -> Flow:
    exchange = exchange_of(conn.scope)
    token = current.set(conn.query_params["id"])
    try:
        response = yield
        try:
            yield response
        finally:
            # The watch outside of the stack is all that may be inside by now.
            exchange.notes |= {
                "status": response.status_code,
                "outcome": response.outcome,
                "bytes_sent": response.bytes_sent,
                "inside at the end": list(exchange.inside),
            }
    except Exception as error:
        exchange.notes["raised"] = repr(error)
        raise
    finally:
        current.reset(token)


async def stamp(conn: Connection) -> Flow:
    response = yield
    response.headers["x-stamp"] = current.get()


async def answer(conn: Connection) -> Flow:
    """Answer in place of the app."""
    yield PlainTextResponse("answered early", 403)


async def refuse(conn: Connection) -> Flow:
    """Answer in place of the app, and leave nothing of up to two MiB of an upload."""
    drained = await conn.drain(max_size=2 << 20)
    yield PlainTextResponse("refused", 403, None if drained else {"connection": "close"})


async def replace(conn: Connection) -> Flow:
    """Answer in place of the response that the app began."""
    response = yield
    try:
        yield PlainTextResponse("replaced", 503)
    finally:
        await anyio.lowlevel.checkpoint()
        exchange_of(conn.scope).notes["replaced"] = response.outcome


async def hold(conn: Connection) -> Flow:
    """Work on a response until the test lets go of it."""
    exchange = exchange_of(conn.scope)
    response = yield
    exchange.notes["held"] = True
    await exchange.released.wait()
    exchange.notes["app was told while held"] = "app was told" in exchange.notes
    response.headers["x-held"] = "yes"


async def fail(conn: Connection) -> Flow:
    """Fail with the response in hand."""
    yield
    raise Intended(conn.query_params["id"])


async def rescue(conn: Connection) -> Flow:
    """Answer an exception of the app."""
    try:
        yield
    except Intended:
        yield PlainTextResponse("rescued", 500)


async def read_request(conn: Connection) -> Flow:
    """Read the upload before the app does."""
    exchange_of(conn.scope).notes["request read"] = digest(await conn.body())
    yield


async def transform_request(conn: Connection) -> Flow:
    """Change the upload on its way to the app."""
    conn.body_iterator = swapcase(conn.body_iterator)
    yield


async def read_response(conn: Connection) -> Flow:
    """Read the response that the app sends."""
    response = yield
    exchange_of(conn.scope).notes["response read"] = digest(await response.read())


async def deadline(conn: Connection) -> Flow:
    """Give the app a time limit."""
    conn.fail_after(0.2, idle=0.2)
    try:
        response = yield
    except DeadlineExceeded:
        yield PlainTextResponse("too slow", 504)
        return
    try:
        yield response
    except DeadlineExceeded:
        raise Intended(conn.query_params["id"]) from None


async def upload_limit(conn: Connection) -> Flow:
    """Give the client a time limit for its upload."""
    conn.fail_upload_after(idle=0.2)
    yield


async def cancelling(conn: Connection) -> Flow:
    """Cancel the app when the client leaves."""
    conn.cancel_on_disconnect()
    try:
        yield
    except ClientDisconnect:
        exchange_of(conn.scope).notes["at the yield"] = "ClientDisconnect"
        raise


async def small_wait(conn: Connection) -> Flow:
    """Read the response within a time limit, as in docs/limits.md."""
    response = yield
    try:
        async with asyncio.timeout(0.1):
            await response.read()
    except TimeoutError:
        yield PlainTextResponse("the body took too long", 504)


async def small_loop(conn: Connection) -> Flow:
    """Iterate over the response within a time limit."""
    response = yield
    try:
        async with asyncio.timeout(0.1):
            async for _ in response.body_iterator:
                pass
    except TimeoutError:
        yield PlainTextResponse("the body took too long", 504)


async def transform_response(conn: Connection) -> Flow:
    """Change the response on its way to the client."""
    response = yield
    response.body_iterator = swapcase(response.body_iterator)


def status_of(conn: Connection) -> int:
    return int(conn.query_params["status"])


async def set_status(conn: Connection) -> Flow:
    """Give the app's response another status."""
    response = yield
    response.status_code = status_of(conn)


async def set_status_and_wait(conn: Connection) -> Flow:
    """The same, and wait until all is over."""
    response = yield
    response.status_code = status_of(conn)
    yield response


async def set_status_of_a_body_that_was_read(conn: Connection) -> Flow:
    """Read the body before its response gets another status."""
    response = yield
    await response.read()
    response.status_code = status_of(conn)


async def set_status_of_a_transform(conn: Connection) -> Flow:
    """Change the body of a response that gets another status."""
    response = yield
    response.body_iterator = swapcase(response.body_iterator)
    response.status_code = status_of(conn)


async def answer_with_old_headers(conn: Connection) -> Flow:
    """Answer in place of the response that the app began, with the headers of that."""
    response = yield
    yield JSONResponse("another body", status_of(conn), dict(response.headers))


async def set_status_in_call_next_style(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    """Give the app's response another status, in `call_next` style."""
    response = await call_next(request)
    response.status_code = int(request.query_params.get("last_status", response.status_code))
    return response


left: ContextVar[str] = ContextVar("left", default="nothing")


async def begin_afresh(conn: Connection) -> Flow:
    """Set what may be left of the request before."""
    left.set("nothing")
    yield


FUNCTIONS: list[Callable[[Connection], Flow]] = [
    begin_afresh,
    answer_with_old_headers,
    set_status,
    set_status_and_wait,
    set_status_of_a_body_that_was_read,
    set_status_of_a_transform,
    rescue,
    answer,
    refuse,
    replace,
    hold,
    fail,
    deadline,
    upload_limit,
    cancelling,
    small_wait,
    small_loop,
    transform_response,
    read_response,
    transform_request,
    read_request,
]


async def swapcase(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.swapcase()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# The app. Its streams are objects: a generator that is left before its end would be left to the
# garbage collector by Starlette, and trio warns of that.


class Chunks:
    """A stream of *chunks*."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration


class Endless:
    """A stream of events that never ends, *wait* seconds apart; the first comes at once."""

    def __init__(self, event: Any, wait: float) -> None:
        self.event = event
        self.wait = wait
        self.first = True

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> Any:
        if not self.first:
            await anyio.sleep(self.wait)
        self.first = False
        return self.event


async def plain(request: Request) -> Response:
    exchange = exchange_of(request.scope)
    task = BackgroundTask(exchange.notes.__setitem__, "background", "ran")
    return PlainTextResponse(PLAIN, background=task)


async def variable(request: Request) -> Response:
    found = left.get()
    left.set("something")
    return PlainTextResponse(f"sees {found}!")


async def stream(request: Request) -> Response:
    return StreamingResponse(Chunks(CHUNKS), media_type="text/plain")


async def file(request: Request) -> Response:
    return FileResponse(FILE, media_type="text/plain")


class PathResponse(FileResponse):
    """A file response that uses `pathsend`, as `FileResponse` itself does in newer releases."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"content-length", b"%d" % FILE_SIZE)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": str(FILE)})


async def path(request: Request) -> Response:
    return PathResponse(FILE, media_type="text/plain")


async def events(request: Request) -> Response:
    return StreamingResponse(Endless(b"data: tick\n\n", 0.01), media_type="text/event-stream")


async def busy(request: Request) -> Response:
    """Send events for ever without a pause."""
    return StreamingResponse(Endless(b"data: tick\n\n", 0), media_type="text/event-stream")


async def idle(request: Request) -> Response:
    """Send one event, and then none for ever."""
    return StreamingResponse(Endless(b"data: tick\n\n", 1e6), media_type="text/event-stream")


async def sse(request: Request) -> Response:
    return EventSourceResponse(Endless({"data": "tick"}, 0.01))


async def upload(request: Request) -> Response:
    data = await request.body()
    length = request.headers.get("content-length")
    return JSONResponse({"digest": digest(data), "size": len(data), "content-length": length})


async def unread(request: Request) -> Response:
    """Answer an upload without reading it."""
    return PlainTextResponse(PLAIN)


def thread(request: Request) -> Response:
    """Hold a thread until the test lets go of it."""
    exchange = exchange_of(request.scope)
    exchange.notes["thread"] = "began"
    exchange.go_on.wait(PATIENCE)
    exchange.notes["thread"] = "ended"
    return PlainTextResponse(PLAIN)


async def silent(request: Request) -> Response:
    """Answer nothing, and do not listen; as one that waits for somebody else."""
    exchange = exchange_of(request.scope)
    exchange.notes["waits"] = True
    try:
        await anyio.sleep_forever()
    except BaseException as error:
        exchange.notes["cancelled"] = type(error).__name__
        raise
    raise AssertionError


async def fail_before(request: Request) -> Response:
    raise Intended(request.query_params["id"])


async def fail_within(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield CHUNKS[0]
        raise Intended(request.query_params["id"])

    return StreamingResponse(chunks(), media_type="text/plain")


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    yield from CHUNKS * 3


def routes() -> list[BaseRoute]:
    get = (
        *(plain, stream, variable, file, path, events, busy, idle, sse),
        *(fail_before, fail_within, thread, silent),
    )
    post = (upload, unread)
    return [
        *(Route(f"/{endpoint.__name__}", endpoint) for endpoint in get),
        *(Route(f"/{endpoint.__name__}", endpoint, methods=["POST"]) for endpoint in post),
        Mount("/wsgi", WSGIMiddleware(wsgi)),
    ]


def asked_to(function: Callable[[Connection], Flow]) -> Callable[[Connection], bool]:
    return lambda conn: function.__name__ in conn.query_params.getlist("do")


def build(*, fused: bool) -> ASGIApp:
    layers = [
        Middleware(HTTPMiddleware, dispatch=audit),
        Middleware(HTTPMiddleware, dispatch=stamp),
        *(
            Middleware(HTTPMiddleware, dispatch=function, when=asked_to(function))
            for function in FUNCTIONS
        ),
    ]
    layers.append(Middleware(BaseHTTPMiddleware, dispatch=set_status_in_call_next_style))
    if not fused:
        layers = [layer for pair in layers for layer in (pair, Middleware(PassThrough))]
    # The outer watch is around Starlette's own error handling, the inner one around the routes.
    return Watch(
        Starlette(routes=routes(), middleware=[*layers, Middleware(Watch, "app")]), "stack"
    )


def gets_only() -> ASGIApp:
    """Return an application whose routes know GET only, and answer HEAD all the same."""
    app = FastAPI()
    app.add_middleware(HTTPMiddleware, dispatch=head_as_get)
    app.add_middleware(PassThrough)

    @app.get("/plain")
    async def plain() -> Response:
        return PlainTextResponse(PLAIN)

    @app.get("/stream")
    async def stream() -> Response:
        return StreamingResponse(iter(CHUNKS))

    @app.get("/file")
    async def file() -> Response:
        return FileResponse(FILE)

    return app


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"started": True}


async def ready(request: Request) -> Response:
    return PlainTextResponse("ready" if request.state.started else "no lifespan")


async def signature(conn: Connection) -> Flow:
    response = yield
    response.headers["x-signature"] = "httpmw"


# The layer around all of it lets the lifespan through.
app = HTTPMiddleware(
    Starlette(
        routes=[
            Route("/ready", ready),
            Route("/ledger/{id}", read_ledger),
            Route("/notes/{id}", read_notes),
            Route("/release/{id}", release),
            Mount("/head", gets_only()),
            Mount("/fused", build(fused=True)),
            Mount("/nested", build(fused=False)),
        ],
        lifespan=lifespan,
    ),
    dispatch=signature,
)
