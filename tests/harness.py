"""
Apps and stacks of middleware to run on the fake server of `httpmw.testing`.
"""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw.testing import Server
from httpmw.testing.checking.rules._http import EXTENSIONS  # noqa: F401 - for the tests
from httpmw.testing.driving._server import DISCONNECT  # noqa: F401 - for the tests

if TYPE_CHECKING:
    from httpmw import Connection, Flow

T = TypeVar("T")

SPECS: list[str | None] = [None, "2.1", "2.3", "2.4", "2.5"]


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


async def left_to_the_collector(kind: type[T], once: Callable[[], Awaitable[object]]) -> list[T]:
    """Run *once* twice; return the objects of *kind* that only the garbage collector would free."""
    await once()
    gc.collect()
    gc.disable()
    try:
        await once()
        # The loop holds what was cancelled until its next turn (seen from Python 3.12 on).
        await anyio.lowlevel.checkpoint()
        return [each for each in gc.get_objects() if isinstance(each, kind)]
    finally:
        gc.enable()


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
