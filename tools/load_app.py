"""
The application that `tools/load.py` asks: `tools.load_app:app`.

1. A request names itself with `x-id`; its response carries the same name, set by a layer out of a
   context variable that another layer has set.
2. `?do=...` names the middleware functions that take part, see `FUNCTIONS`.
3. `/counts` tells how many flows began and ended, in which way, and how many are inside.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextvars import ContextVar
from pathlib import Path

import anyio
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
from starlette.routing import Route

from httpmw import Connection, Flow, HTTPMiddleware

FILE = Path(__file__)

counts: Counter[str] = Counter()
current: ContextVar[str] = ContextVar("current")


class Intended(Exception):  # noqa: N818 - it is raised on purpose
    """
    Raised on purpose; its message names the request.
    """


async def count(conn: Connection) -> Flow:
    """
    Count how every request ends, and make its name known.
    """
    counts["begun"] += 1
    token = current.set(conn.headers["x-id"])
    response = None
    try:
        response = yield
        yield response
    finally:
        # Where the context is another one than before, this raises.
        current.reset(token)
        counts["ended"] += 1
        counts[response.outcome or "unknown" if response else "no response"] += 1


async def identify(conn: Connection) -> Flow:  # noqa: ARG001 - the name is in the context
    """
    Name the response after the request.
    """
    response = yield
    response.headers["x-id"] = current.get()


async def rescue(conn: Connection) -> Flow:
    """
    Answer an exception of the app.
    """
    try:
        yield
    except Intended:
        yield PlainTextResponse(f"rescued {conn.headers['x-id']}", 500)


async def answer(conn: Connection) -> Flow:
    """
    Answer in place of the app.
    """
    yield PlainTextResponse(f"answered {conn.headers['x-id']}", 403)


async def replace(conn: Connection) -> Flow:
    """
    Answer in place of the response that the app began.
    """
    response = yield
    yield PlainTextResponse(f"replaced {conn.headers['x-id']}", 503)
    counts[f"replaced {response.outcome}"] += 1


async def shout(conn: Connection) -> Flow:  # noqa: ARG001 - it is for every request
    """
    Change the response on its way to the client.
    """
    response = yield
    response.body_iterator = upper(response.body_iterator)


async def shout_at(conn: Connection) -> Flow:
    """
    Change the request on its way to the app.
    """
    conn.body_iterator = upper(conn.body_iterator)
    yield


async def read_request(conn: Connection) -> Flow:
    """
    Read the request before the app does.
    """
    try:
        size = len(await conn.body())
    except ClientDisconnect:
        yield Response(status_code=400)
        return
    response = yield
    response.headers["x-request-size"] = str(size)


async def read_response(conn: Connection) -> Flow:  # noqa: ARG001 - it is for every request
    """
    Read the response that the app sends.
    """
    response = yield
    response.headers["x-size"] = str(len(await response.read()))


async def upper(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """
    Change bytes in a way that can be checked.
    """
    async for chunk in chunks:
        yield chunk.upper()


FUNCTIONS: list[Callable[[Connection], Flow]] = [
    rescue,
    answer,
    replace,
    shout,
    read_response,
    read_request,
    shout_at,
]


def asked_to(function: Callable[[Connection], Flow]) -> Callable[[Connection], bool]:
    """
    Say for which requests *function* is there.
    """
    return lambda conn: function.__name__ in conn.query_params.getlist("do")


async def plain(request: Request) -> Response:
    """
    Answer at once; a background task follows.
    """
    done = BackgroundTask(counts.update, ["background"])
    return PlainTextResponse(f"plain {request.headers['x-id']}", background=done)


class Chunks:
    """
    A stream of *number* chunks that are all different, with a pause now and then.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.numbers = iter(range(number))

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        for number in self.numbers:
            if number % 5 == 4:
                await anyio.sleep(0.001)
            return f"chunk {number} of {self.name}\n".encode()
        raise StopAsyncIteration


async def stream(request: Request) -> Response:
    """
    Stream as many chunks as are asked for.
    """
    number = int(request.query_params["chunks"])
    return StreamingResponse(Chunks(request.headers["x-id"], number), media_type="text/plain")


async def endless(request: Request) -> Response:
    """
    Stream until the client leaves.
    """
    return StreamingResponse(Chunks(request.headers["x-id"], 1 << 60), media_type="text/plain")


async def file(request: Request) -> Response:  # noqa: ARG001 - the file is always the same
    """
    Send a file.
    """
    return FileResponse(FILE, media_type="text/plain")


async def upload(request: Request) -> Response:
    """
    Read an upload and say what it was.
    """
    try:
        data = await request.body()
    except ClientDisconnect:
        # As Starlette is, this would be an error in the log of the server.
        return Response(status_code=400)
    return JSONResponse({"size": len(data), "digest": hashlib.sha256(data).hexdigest()})


async def unread(request: Request) -> Response:
    """
    Answer an upload without reading it.
    """
    return PlainTextResponse(f"unread {request.headers['x-id']}", 413)


async def fail(request: Request) -> Response:
    """
    Raise before the response.
    """
    raise Intended(request.headers["x-id"])


async def fail_within(request: Request) -> Response:
    """
    Raise within the body.
    """

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        raise Intended(request.headers["x-id"])

    return StreamingResponse(chunks(), media_type="text/plain")


async def tell(request: Request) -> Response:  # noqa: ARG001 - it tells of all of them
    """
    Tell the counts; this request is one of those inside.
    """
    return JSONResponse({**counts, "inside": counts["begun"] - counts["ended"] - 1})


GET = (plain, stream, endless, file, fail, fail_within)

app = Starlette(
    routes=[
        *(Route(f"/{endpoint.__name__}", endpoint) for endpoint in GET),
        Route("/upload", upload, methods=["POST"]),
        Route("/unread", unread, methods=["POST"]),
        Route("/counts", tell),
    ],
    middleware=[
        Middleware(HTTPMiddleware, dispatch=count),
        Middleware(HTTPMiddleware, dispatch=identify),
        *(
            Middleware(HTTPMiddleware, dispatch=function, when=asked_to(function))
            for function in FUNCTIONS
        ),
    ],
)
