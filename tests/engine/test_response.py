"""The response that a middleware function receives: edited, read, replaced, transformed."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import (
    AppResponse,
    Connection,
    Flow,
    HTTPMiddleware,
    MiddlewareError,
    ResponseTooLarge,
    _response,
)
from tests.harness import Inner, Server, body, plain_inner, request, script, stack, start

Layers = Callable[[ASGIApp, Callable[..., Any]], ASGIApp]

Dispatch = Callable[[Connection], Flow]

ALL_EXTENSIONS = {
    f"http.response.{name}": {}
    for name in ("debug", "early_hint", "pathsend", "push", "trailers", "zerocopysend", "odd")
}


async def nothing(conn: Connection) -> Flow:
    yield


def trailers(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.trailers", "headers": list(headers)}


class Endless:
    """A body without an end; *server* loses its client with the second chunk."""

    # Not a generator: StreamingResponse would leave it to the garbage collector.

    def __init__(self, server: Server | None) -> None:
        self.server = server
        self.chunks = 0

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        self.chunks += 1
        if self.server is not None and self.chunks == 2:
            self.server.disconnect()
        return b"x"


def endless(server: Server | None = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Endless(server))(scope, receive, send)

    return app


def editing(edit: Callable[[AppResponse], Any]) -> Dispatch:
    """Return a layer that does *edit* to the response."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        edit(response)

    return layer


async def upper(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


async def bracket(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield b"("
    async for chunk in chunks:
        yield chunk
    yield b")"


async def own(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield b"own"


def transforming(transform: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]) -> Dispatch:
    async def layer(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = transform(response.body_iterator)

    return layer


def reading(into: list[Any]) -> Dispatch:
    async def layer(conn: Connection) -> Flow:
        response = yield
        into.append(await response.read())

    return layer


STREAMED = (
    start(headers=[(b"content-type", b"text/plain")]),
    body(b"a", more=True),
    body(b"b", more=True),
    body(b""),
)


# -- status and headers ----------------------------------------------------------------------


async def test_response_is_a_starlette_response(inner: Inner, spec: str | None) -> None:
    """The received object is a Starlette `Response` and an `AppResponse`, for every kind of app."""
    seen = []

    async def look(conn: Connection) -> Flow:
        response = yield
        seen.append((isinstance(response, Response), type(response)))

    await request(HTTPMiddleware(inner, dispatch=look), spec=spec)

    assert seen == [(True, AppResponse)]


async def test_status_is_read_and_set(inner: Inner, spec: str | None, fused: bool) -> None:
    """A status set by one layer is the status that outer layers and the client see."""
    seen = []

    async def change(conn: Connection) -> Flow:
        response = yield
        seen.append(response.status_code)
        response.status_code = 203

    async def look(conn: Connection) -> Flow:
        response = yield
        seen.append(response.status_code)

    server = await request(stack(inner, look, change, fused=fused), spec=spec)

    assert seen == [200, 203]
    assert (server.status, server.body) == (203, Inner.BODY)


async def test_headers_are_edited_in_place(inner: Inner, spec: str | None, fused: bool) -> None:
    """Headers can be read, set, added and removed by several layers."""

    def first(response: AppResponse) -> None:
        assert response.headers["x-inner"] == "yes"
        response.headers["x-set"] = "first"
        response.headers.append("vary", "a")

    def second(response: AppResponse) -> None:
        assert response.headers["x-set"] == "first"
        response.headers["x-set"] = "second"
        response.headers.append("vary", "b")
        del response.headers["x-inner"]
        response.headers.setdefault("x-default", "yes")

    server = await request(stack(inner, editing(second), editing(first), fused=fused), spec=spec)

    assert server.headers["x-set"] == "second"
    assert server.headers["x-default"] == "yes"
    assert server.headers.getlist("vary") == ["a", "b"]
    assert "x-inner" not in server.headers
    assert server.body == Inner.BODY


async def test_repeated_headers_stay_repeated(fused: bool) -> None:
    """Two cookies of the app stay two headers, in their order, beside a third one."""
    app = script(
        start(headers=[(b"set-cookie", b"a=1"), (b"x-other", b"o"), (b"set-cookie", b"b=2")]),
        body(b""),
    )
    server = await request(
        stack(
            app,
            editing(lambda response: response.set_cookie("c", "3")),
            editing(lambda response: response.headers.__setitem__("x-set", "s")),
            fused=fused,
        )
    )

    assert server.headers.raw[:3] == [
        (b"set-cookie", b"a=1"),
        (b"x-other", b"o"),
        (b"set-cookie", b"b=2"),
    ]
    cookies = [cookie.split(";")[0] for cookie in server.headers.getlist("set-cookie")]
    assert cookies == ["a=1", "b=2", "c=3"]


async def test_raw_headers_are_the_headers(fused: bool) -> None:
    """`raw_headers` shows the pairs of bytes and may be edited or assigned."""
    seen = []

    def append(response: AppResponse) -> None:
        seen.append(list(response.raw_headers))
        response.raw_headers.append((b"x-raw", b"1"))
        assert response.headers["x-raw"] == "1"

    def assign(response: AppResponse) -> None:
        response.raw_headers = [*response.raw_headers, (b"x-raw", b"2")]
        assert response.headers.getlist("x-raw") == ["1", "2"]

    app = script(start(headers=[(b"x-a", b"1")]), body(b""))
    server = await request(stack(app, editing(assign), editing(append), fused=fused))

    assert seen == [[(b"x-a", b"1")]]
    assert server.headers.raw == [(b"x-a", b"1"), (b"x-raw", b"1"), (b"x-raw", b"2")]


@pytest.mark.parametrize(
    "shape",
    [list, tuple, iter, lambda pairs: map(list, pairs), lambda pairs: dict(pairs).items()],
    ids=["list", "tuple", "iterator", "lists", "items"],
)
async def test_headers_of_any_shape_are_taken(shape: Callable[[Any], Any]) -> None:
    """Apps may send their headers as any iterable of pairs."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = shape([(b"x-a", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(body(b""))

    layer = editing(lambda response: response.headers.__setitem__("x-b", "2"))
    server = await request(HTTPMiddleware(app, dispatch=layer))

    assert [tuple(pair) for pair in server.headers.raw] == [(b"x-a", b"1"), (b"x-b", b"2")]


async def test_headers_of_the_app_are_not_changed_for_others() -> None:
    """Editing does not reach a header list that the app keeps for its next response."""
    shared = [(b"x-a", b"1")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": shared})
        await send(body(b""))

    layered = HTTPMiddleware(
        app, dispatch=editing(lambda response: response.headers.append("x-b", "2"))
    )
    await request(layered)
    server = await request(layered)

    assert shared == [(b"x-a", b"1")]
    assert server.headers.getlist("x-b") == ["2"]


async def test_unknown_keys_of_the_start_are_kept(fused: bool) -> None:
    """Keys of the start message that nobody knows reach the server beside the edited headers."""
    app = script({**start(), "custom": 1}, body(b""))
    server = await request(
        stack(app, editing(lambda response: response.headers.append("x-b", "2")), fused=fused)
    )

    assert server.sent[0] == {**start(headers=[(b"x-b", b"2")]), "custom": 1}


async def test_media_type_and_charset_are_read() -> None:
    """`media_type` and `charset` come from the content type of the app."""
    seen = []

    def look(response: AppResponse) -> None:
        seen.append((response.media_type, response.charset))

    for value in (b"application/json", b"text/html; charset=latin-1", b"Text/Plain"):
        app = script(start(headers=[(b"content-type", value)]), body(b""))
        await request(HTTPMiddleware(app, dispatch=editing(look)))
    await request(HTTPMiddleware(script(start(), body(b"")), dispatch=editing(look)))

    assert [str(media_type).lower() for media_type, _ in seen] == [
        "application/json",
        "text/html",
        "text/plain",
        "none",
    ]
    assert [charset for _, charset in seen] == ["utf-8", "latin-1", "utf-8", "utf-8"]


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [("application/json", "application/json"), ("text/csv", "text/csv; charset=utf-8")],
)
async def test_media_type_is_set(media_type: str, expected: str) -> None:
    """Setting `media_type` sets the content type, with a charset for text as Starlette does."""
    app = script(start(headers=[(b"content-type", b"text/plain; charset=utf-8")]), body(b""))
    layer = editing(lambda response: setattr(response, "media_type", media_type))
    server = await request(HTTPMiddleware(app, dispatch=layer))

    assert server.headers.getlist("content-type") == [expected]


async def test_cookies_are_set_and_deleted(inner: Inner, spec: str | None) -> None:
    """`set_cookie` and `delete_cookie` work as on every Starlette response."""

    def edit(response: AppResponse) -> None:
        response.set_cookie("a", "1", httponly=True)
        response.delete_cookie("b")

    server = await request(HTTPMiddleware(inner, dispatch=editing(edit)), spec=spec)

    first, second = server.headers.getlist("set-cookie")
    assert first.startswith("a=1;")
    assert "HttpOnly" in first
    assert second.startswith("b=")
    assert "Max-Age=0" in second


async def test_header_set_in_a_finally_reaches_the_client(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """A response can be edited in a `finally` block, as it goes out when the function has ended."""

    async def layer(conn: Connection) -> Flow:
        response = None
        try:
            response = yield
        finally:
            assert response is not None
            response.headers["x-finally"] = "yes"

    server = await request(stack(inner, layer, layer, fused=fused), spec=spec)

    assert server.headers["x-finally"] == "yes"


async def test_header_set_after_the_response_was_sent_does_not_reach_the_client(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """The edit is refused, which is the function's to catch, and what was sent stays as it is."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.headers["x-before"] = "yes"
        yield response
        with pytest.raises(MiddlewareError):
            response.headers["x-after"] = "yes"

    server = await request(stack(inner, layer, nothing, fused=fused), spec=spec)

    assert server.headers["x-before"] == "yes"
    assert "x-after" not in server.headers
    assert (server.status, server.body) == (200, Inner.BODY)


async def test_untouched_response_is_the_apps_own_messages(fused: bool) -> None:
    """Frames, chunk types and missing keys pass as they were sent."""
    messages: list[Message] = [
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.body", "more_body": True},
        {"type": "http.response.body", "body": bytearray(b"a"), "more_body": True, "custom": 1},
        {"type": "http.response.body", "body": memoryview(b"b"), "more_body": True},
        {"type": "http.response.body"},
    ]
    server = await request(stack(script(*messages), nothing, nothing, fused=fused))

    assert server.sent == messages


# -- background ------------------------------------------------------------------------------


async def test_background_runs_after_the_app_ended(spec: str | None, fused: bool) -> None:
    """Background tasks of layers run when the app, with its own task, has ended."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        background = BackgroundTask(log.append, "task of the app")
        await PlainTextResponse("x", background=background)(scope, receive, send)
        log.append("app ended")

    def adding(name: str) -> Dispatch:
        async def layer(conn: Connection) -> Flow:
            response = yield
            assert response.background is None
            response.background = BackgroundTask(log.append, name)

        return layer

    server = await request(stack(app, adding("outer"), adding("inner"), fused=fused), spec=spec)

    assert server.complete
    assert log == ["task of the app", "app ended", "inner", "outer"]


async def test_background_of_a_replacement_runs_after_the_app_ended(
    spec: str | None, fused: bool
) -> None:
    """The replacement's own background task waits for the app that was replaced."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("x")(scope, receive, send)
        await anyio.lowlevel.checkpoint()
        log.append("app ended")

    async def replace(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("y", background=BackgroundTask(log.append, "task"))

    server = await request(stack(app, nothing, replace, fused=fused), spec=spec)

    assert server.body == b"y"
    assert log == ["app ended", "task"]


@pytest.mark.parametrize("replaces", [False, True], ids=["passed on", "replaced"])
async def test_background_does_not_run_after_a_failure(
    replaces: bool, spec: str | None, fused: bool
) -> None:
    """A task that was to follow a response does not run where that response failed half-way."""
    log: list[str] = []

    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        raise ValueError("in the body")

    class Cut(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await cut(scope, receive, send)

    async def adding(conn: Connection) -> Flow:
        response: Response = yield
        if replaces:
            response = Cut()
        response.background = BackgroundTask(log.append, "task")
        yield response

    app = script(*STREAMED) if replaces else cut
    server = await request(stack(app, nothing, adding, fused=fused), spec=spec, keep_error=True)

    assert server.body == b"a"
    assert str(server.error) == "in the body"
    assert log == []


async def test_failure_of_a_background_task_is_raised(fused: bool) -> None:
    """What a layer's background task raises leaves the adapter, the response is out."""

    def fail() -> None:
        raise ValueError("in the background")

    layer = editing(lambda response: setattr(response, "background", BackgroundTask(fail)))
    server = await request(
        stack(script(start(), body(b"x")), nothing, layer, fused=fused), keep_error=True
    )

    assert server.complete
    assert str(server.error) == "in the background"


# -- read() ----------------------------------------------------------------------------------


async def test_body_is_read_and_still_sent(inner: Inner, spec: str | None, fused: bool) -> None:
    """`read()` gives the whole body; the client gets it as well, in frames that make it up."""
    seen: list[Any] = []
    server = await request(stack(inner, reading(seen), reading(seen), fused=fused), spec=spec)

    assert seen == [Inner.BODY, Inner.BODY]
    assert server.body == Inner.BODY
    assert server.complete
    assert server.headers["x-inner"] == "yes"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([body(b"abc")], b"abc"),
        ([body(b"a", more=True), body(b"b", more=True), body(b"c")], b"abc"),
        ([body(b"abc", more=True), body(b"")], b"abc"),
        ([body(b"", more=True), body(b"abc", more=True), body(b"")], b"abc"),
        ([body(b"")], b""),
        ([{"type": "http.response.body"}], b""),
        ([{"type": "http.response.body", "body": memoryview(b"abc")}], b"abc"),
        ([{"type": "http.response.body", "body": bytearray(b"abc")}], b"abc"),
    ],
    ids=["one", "chunks", "last-empty", "first-empty", "empty", "no-keys", "memoryview", "array"],
)
async def test_body_of_any_framing_is_read(
    messages: list[Message], expected: bytes, fused: bool
) -> None:
    """`read()` joins what the app sends, however it is cut."""
    seen: list[Any] = []
    app = script(start(), *messages)
    server = await request(stack(app, reading(seen), nothing, fused=fused))

    assert seen == [expected]
    assert type(seen[0]) is bytes
    assert server.body == expected
    assert server.complete


async def test_start_is_held_while_the_body_is_read() -> None:
    """Nothing is sent before the layer that reads has ended, so all of it can still be changed."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        data = await response.read()
        assert server.sent == []
        response.headers["x-size"] = str(len(data))
        response.status_code = 201

    server = Server()
    await server.run(HTTPMiddleware(script(*STREAMED), dispatch=layer))

    assert (server.status, server.headers["x-size"], server.body) == (201, "2", b"ab")


async def test_body_attribute_after_reading() -> None:
    """Once read, `response.body` is the bytes, and a second `read()` gives the same."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        data = await response.read()
        assert response.body is data
        assert await response.read() is data

    server = await request(HTTPMiddleware(script(*STREAMED), dispatch=layer))

    assert server.body == b"ab"


async def test_body_attribute_before_reading_says_what_to_do() -> None:
    """`response.body` of an unread response is an error that names `read()`."""
    messages = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        with pytest.raises(RuntimeError) as caught:
            _ = response.body
        messages.append(str(caught.value))

    server = await request(HTTPMiddleware(script(*STREAMED), dispatch=layer))

    assert "await response.read()" in messages[0]
    assert server.body == b"ab"


async def test_reading_up_to_the_limit(fused: bool) -> None:
    """`read(max_size=)` gives a body of that size."""
    seen = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        seen.append(await response.read(max_size=2))

    server = await request(stack(script(*STREAMED), nothing, layer, fused=fused))

    assert seen == [b"ab"]
    assert server.body == b"ab"


async def test_reading_over_the_limit_is_refused(fused: bool) -> None:
    """A longer body is `ResponseTooLarge`; unhandled, it is an error of the server."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        await response.read(max_size=1)

    server = await request(stack(script(*STREAMED), nothing, layer, fused=fused), keep_error=True)

    assert isinstance(server.error, ResponseTooLarge)
    assert server.sent == []


async def test_reading_over_the_limit_takes_nothing_away(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """A layer that catches the refusal lets the whole body pass."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        with pytest.raises(ResponseTooLarge):
            await response.read(max_size=8)

    server = await request(stack(inner, layer, layer, fused=fused), spec=spec)

    assert server.body == Inner.BODY
    assert server.complete


async def test_reading_stops_at_the_limit() -> None:
    """An endless body is refused when it goes over the limit, and can be replaced."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            await response.read(max_size=100)
        except ResponseTooLarge:
            yield PlainTextResponse("too long", 502)

    server = await request(HTTPMiddleware(endless(), dispatch=layer))

    assert (server.status, server.body) == (502, b"too long")


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_app_that_fails_while_the_body_is_read(
    streamed: bool, spec: str | None, fused: bool
) -> None:
    """The app's exception is raised at `read()`, where it can still be answered."""
    seen = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            await response.read()
        except ValueError as error:
            seen.append(str(error))
            yield PlainTextResponse("failed", 502)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("in the body")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if streamed:
            await StreamingResponse(chunks())(scope, receive, send)
        await send(start())
        async for chunk in chunks():
            await send(body(chunk, more=True))

    server = await request(stack(app, nothing, layer, fused=fused), spec=spec)

    assert seen == ["in the body"]
    assert (server.status, server.body) == (502, b"failed")


@pytest.mark.parametrize("again", ["at once", "under a time limit", "at the end"])
async def test_reading_again_after_the_app_failed(
    again: str, spec: str | None, fused: bool
) -> None:
    """Whoever reads on behind the end of a body that was cut off is told why, wherever that is."""
    failure = ValueError("in the body")
    raised: list[BaseException] = []

    async def read(chunks: AsyncIterator[bytes]) -> None:
        try:
            async for _ in chunks:
                pass
        except Exception as error:
            raised.append(error)

    async def layer(conn: Connection) -> Flow:
        response = yield
        chunks = response.body_iterator
        await read(chunks)
        if again == "at once":
            await read(chunks)
        elif again == "under a time limit":
            with anyio.fail_after(60):
                await read(chunks)
        yield PlainTextResponse("failed", 502)
        if again == "at the end":
            await read(chunks)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        raise failure

    server = await request(stack(app, nothing, layer, fused=fused), spec=spec)

    assert raised == [failure, failure]
    assert (server.status, server.body) == (502, b"failed")


async def test_app_that_fails_while_the_body_is_read_unhandled(fused: bool) -> None:
    """Not handled, the app's exception leaves the adapter and nothing is sent."""
    failure = ValueError("in the body")
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        raise failure

    server = await request(stack(app, nothing, reading(seen), fused=fused), keep_error=True)

    assert server.error is failure
    assert server.sent == []


async def test_reading_a_head_response_gives_nothing(fused: bool) -> None:
    """A HEAD response has no body to read and keeps its content-length."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-length", b"5")]))
        await send(body(b""))

    server = await request(stack(app, nothing, reading(seen), fused=fused), method="HEAD")

    assert seen == [b""]
    assert server.headers["content-length"] == "5"
    assert server.complete


# -- setting the body ------------------------------------------------------------------------


async def test_body_is_set(inner: Inner, spec: str | None, fused: bool) -> None:
    """`response.body = data` sends the data with its own length, and the app's headers."""
    layer = editing(lambda response: setattr(response, "body", b"new"))
    server = await request(stack(inner, nothing, layer, nothing, fused=fused), spec=spec)

    assert server.body == b"new"
    assert server.headers["content-length"] == "3"
    assert server.headers["x-inner"] == "yes"
    assert inner.runs == 1


async def test_body_is_read_and_set(inner: Inner, spec: str | None, fused: bool) -> None:
    """A body can be changed whole, layer by layer, from the inside out."""

    def adding(suffix: bytes) -> Dispatch:
        async def layer(conn: Connection) -> Flow:
            response = yield
            response.body = await response.read() + suffix

        return layer

    server = await request(stack(inner, adding(b"2"), adding(b"1"), fused=fused), spec=spec)

    assert server.body == Inner.BODY + b"12"
    assert server.headers["content-length"] == str(len(Inner.BODY) + 2)


async def test_outer_layer_reads_the_body_that_was_set(fused: bool) -> None:
    """An outer layer reads what an inner layer set."""
    seen: list[Any] = []
    layer = editing(lambda response: setattr(response, "body", b"new"))
    server = await request(stack(script(*STREAMED), reading(seen), layer, fused=fused))

    assert seen == [b"new"]
    assert server.body == b"new"


async def test_body_that_was_set_is_the_body_attribute() -> None:
    """After the assignment `response.body` and `read()` are the new bytes."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.body = b"new"
        assert response.body == b"new"
        assert await response.read() == b"new"

    server = await request(HTTPMiddleware(script(*STREAMED), dispatch=layer))

    assert server.body == b"new"


@pytest.mark.parametrize("name", ["etag", "content-md5", "digest", "content-digest", "repr-digest"])
async def test_checksums_of_the_old_body_are_dropped(name: str, fused: bool) -> None:
    """Headers that describe the old bytes go when the body is set, unless set again after."""
    app = script(start(headers=[(name.encode(), b"old"), (b"content-length", b"2")]), body(b"ab"))
    dropped = editing(lambda response: setattr(response, "body", b"new"))

    def renew(response: AppResponse) -> None:
        response.body = b"new"
        response.headers[name] = "new"

    without = await request(stack(app, nothing, dropped, fused=fused))
    again = await request(stack(app, nothing, editing(renew), fused=fused))

    assert name not in without.headers
    assert again.headers.getlist(name) == ["new"]


@pytest.mark.parametrize(
    ("of_the_app", "inner"),
    [
        (b'"old"', nothing),
        (b'"new"', editing(lambda response: setattr(response, "raw_headers", []))),
    ],
    ids=["another", "none left"],
)
async def test_checksum_set_before_the_body_is_kept(
    of_the_app: bytes, inner: Dispatch, fused: bool
) -> None:
    """An ETag that the layer set before it set the body is the layer's own, and stays."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.headers["etag"] = '"new"'
        response.body = b"new"

    app = script(start(headers=[(b"etag", of_the_app)]), body(b"ab"))
    server = await request(stack(app, nothing, layer, inner, fused=fused))

    assert server.headers["etag"] == '"new"'


async def test_names_of_headers_that_are_made_up_are_not_kept() -> None:
    """However many names are set, only so many are remembered; all of them are sent."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        for number in range(3000):
            response.headers[f"X-{number}"] = "yes"

    server = await request(HTTPMiddleware(script(start(), body(b"ab")), dispatch=layer))

    assert len(server.headers) == 3000
    assert server.headers["x-2999"] == "yes"
    assert len(_response._names) <= _response._MOST_NAMES


async def test_checksum_of_an_inner_layer_is_dropped(fused: bool) -> None:
    """An ETag that an inner layer set for its own body goes when an outer layer sets another."""

    async def inner(conn: Connection) -> Flow:
        response = yield
        response.body = b"inner"
        response.headers["etag"] = '"inner"'

    outer = editing(lambda response: setattr(response, "body", b"outer one"))
    server = await request(stack(script(*STREAMED), outer, inner, fused=fused))

    assert server.body == b"outer one"
    assert "etag" not in server.headers


async def test_app_whose_body_was_replaced_runs_to_its_end(spec: str | None, fused: bool) -> None:
    """The app whose body is not wanted ends by itself, and its background task runs."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        background = BackgroundTask(log.append, "background")
        await PlainTextResponse("old", background=background)(scope, receive, send)
        log.append("ended")

    layer = editing(lambda response: setattr(response, "body", b"new"))
    server = await request(stack(app, layer, nothing, fused=fused), spec=spec)

    assert server.body == b"new"
    assert log == ["background", "ended"]


async def test_endless_body_is_set(spec: str | None, fused: bool) -> None:
    """Setting the body of an endless stream ends the stream."""
    layer = editing(lambda response: setattr(response, "body", b"new"))
    server = await request(stack(endless(), nothing, layer, fused=fused), spec=spec)

    assert server.body == b"new"
    assert server.headers["content-length"] == "3"


async def test_response_with_trailers_whose_body_was_set_is_complete(fused: bool) -> None:
    """A new body leaves no announcement of trailers behind that never come."""
    app = script(start(trailers=True), body(b"old"), trailers((b"x-sum", b"1")))
    layer = editing(lambda response: setattr(response, "body", b"new"))
    server = await request(stack(app, nothing, layer, fused=fused), extensions=ALL_EXTENSIONS)

    assert server.body == b"new"
    assert server.complete


# -- transforms ------------------------------------------------------------------------------


async def test_body_is_transformed(inner: Inner, spec: str | None, fused: bool) -> None:
    """A transform changes the body on its way; the old length does not reach the client."""
    server = await request(
        stack(inner, nothing, transforming(bracket), nothing, fused=fused), spec=spec
    )

    assert server.body == b"(" + Inner.BODY + b")"
    assert "content-length" not in server.headers
    assert server.complete


async def test_transforms_of_two_layers_compose(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """The inner layer's transform comes first, the outer one works on what it made."""

    async def b_to_x(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            yield chunk.replace(b"(", b"[")

    server = await request(
        stack(inner, transforming(b_to_x), transforming(bracket), fused=fused), spec=spec
    )

    assert server.body == b"[" + Inner.BODY + b")"


async def test_transforms_of_one_layer_compose(fused: bool) -> None:
    """A layer may wrap the body twice."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = upper(response.body_iterator)
        response.body_iterator = bracket(response.body_iterator)

    server = await request(stack(script(*STREAMED), layer, nothing, fused=fused))

    assert server.body == b"(AB)"


async def test_chunk_is_out_when_its_send_returns(fused: bool) -> None:
    """A transform does not hold chunks back: each is with the server when the app goes on."""
    server = Server()
    log = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for chunk in (b"a", b"b", b"c"):
            await send(body(chunk, more=True))
            log.append(server.body)
        await send(body(b""))

    await server.run(stack(app, nothing, transforming(upper), nothing, fused=fused))

    assert log == [b"A", b"AB", b"ABC"]
    assert server.chunks[:3] == [b"A", b"B", b"C"]
    assert server.complete


async def test_transform_may_hold_chunks_and_flush_at_the_end(fused: bool) -> None:
    """What a transform keeps back it can send when the app's body is over."""

    async def join(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        kept = b""
        async for chunk in chunks:
            kept += chunk
        yield kept

    server = await request(stack(script(*STREAMED), transforming(join), nothing, fused=fused))

    assert server.body == b"ab"
    assert server.complete


async def test_transform_may_yield_more_than_it_took(fused: bool) -> None:
    """A transform may make several chunks of one."""

    async def split(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            for index in range(len(chunk)):
                yield chunk[index : index + 1]

    app = script(start(), body(b"abc", more=True), body(b"de"))
    server = await request(stack(app, transforming(split), nothing, fused=fused))

    assert server.body == b"abcde"


@pytest.mark.parametrize("chunk", ["text", memoryview(b"text"), bytearray(b"text")])
async def test_transform_may_yield_what_streaming_responses_may(chunk: Any) -> None:
    """Text is encoded, and any kind of bytes is sent, as a `StreamingResponse` does."""

    async def other(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Any]:
        async for _ in chunks:
            pass
        yield chunk

    server = await request(HTTPMiddleware(script(*STREAMED), dispatch=transforming(other)))

    assert server.body == b"text"


async def test_transform_that_yields_nothing(fused: bool) -> None:
    """A transform that swallows all of the body leaves an empty, complete response."""

    async def swallow(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for _ in chunks:
            pass
        return
        yield

    server = await request(stack(script(*STREAMED), transforming(swallow), nothing, fused=fused))

    assert (server.status, server.body, server.complete) == (200, b"", True)


async def test_transform_that_ends_early(spec: str | None, fused: bool) -> None:
    """A transform may end before the app does; the response is complete and the app ends."""

    async def first(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            yield chunk
            return

    server = await request(stack(endless(), nothing, transforming(first), fused=fused), spec=spec)

    assert (server.body, server.complete) == (b"x", True)


async def test_transform_that_reads_nothing(spec: str | None, fused: bool) -> None:
    """A transform may ignore the app's body and give its own."""
    server = await request(
        stack(script(*STREAMED), nothing, transforming(own), fused=fused), spec=spec
    )

    assert (server.body, server.complete) == (b"own", True)


async def test_transform_that_fails_leaves_a_cut_body(fused: bool) -> None:
    """A failing transform is raised, and no closing frame makes the body look whole."""
    failure = ValueError("in the transform")

    async def fail(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            yield chunk
            raise failure

    server = await request(
        stack(script(*STREAMED), nothing, transforming(fail), nothing, fused=fused),
        keep_error=True,
    )

    assert server.error is failure
    assert server.body == b"a"
    assert not server.complete


async def test_app_that_fails_in_mid_transform_leaves_a_cut_body(fused: bool) -> None:
    """When the app fails, the transform is closed and the body stays cut."""
    failure = ValueError("in the app")
    log = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        raise failure

    async def cleaning(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            log.append("closed")

    server = await request(
        stack(app, nothing, transforming(cleaning), nothing, fused=fused), keep_error=True
    )

    assert server.error is failure
    assert server.body == b"a"
    assert not server.complete
    assert log == ["closed"]


async def test_app_that_returns_in_mid_transform_leaves_a_cut_body(fused: bool) -> None:
    """When the app returns in mid-body, the body stays cut and is `incomplete` for outer layers."""
    seen: list[AppResponse] = []
    app = script(start(), body(b"a", more=True))
    server = await request(stack(app, accounting(seen), transforming(bracket), fused=fused))

    assert server.body == b"(a"
    assert not server.complete
    assert [response.outcome for response in seen] == ["incomplete"]


async def test_transform_is_closed_when_the_client_leaves(spec: str | None, fused: bool) -> None:
    """The clean-up of a transform runs before the request is over when the client left."""
    log = []
    server = Server(spec=spec)

    async def cleaning(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            log.append("closed")

    await server.run(
        stack(endless(server), transforming(cleaning), nothing, fused=fused), keep_error=True
    )

    assert log == ["closed"]
    assert not server.complete


async def test_checksums_of_the_old_body_are_dropped_by_a_transform(fused: bool) -> None:
    """A transform drops the app's content-length and keeps other headers."""
    app = script(start(headers=[(b"content-length", b"2"), (b"x-a", b"1")]), body(b"ab"))
    server = await request(stack(app, transforming(bracket), nothing, fused=fused))

    assert "content-length" not in server.headers
    assert server.headers["x-a"] == "1"


async def test_outer_layer_reads_the_transformed_body(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """`read()` in a layer outside of a transform gives the transformed bytes."""
    seen: list[Any] = []
    server = await request(
        stack(inner, reading(seen), transforming(bracket), fused=fused), spec=spec
    )

    assert seen == [b"(" + Inner.BODY + b")"]
    assert server.body == seen[0]


async def test_transform_outside_of_a_layer_that_read(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """A transform works on a body that an inner layer read."""
    seen: list[Any] = []
    server = await request(
        stack(inner, transforming(bracket), reading(seen), fused=fused), spec=spec
    )

    assert seen == [Inner.BODY]
    assert server.body == b"(" + Inner.BODY + b")"


async def test_body_read_and_transformed_in_one_layer(fused: bool) -> None:
    """A layer that read the body may still transform it chunk by chunk."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        assert await response.read() == b"ab"
        response.body_iterator = bracket(response.body_iterator)

    server = await request(stack(script(*STREAMED), layer, nothing, fused=fused))

    assert server.body == b"(ab)"


async def test_transform_of_a_body_that_was_set(fused: bool) -> None:
    """A transform of an outer layer works on the body that an inner layer set."""
    layer = editing(lambda response: setattr(response, "body", b"new"))
    server = await request(stack(script(*STREAMED), transforming(bracket), layer, fused=fused))

    assert server.body == b"(new)"
    assert server.headers.get("content-length", "5") == "5"


async def test_transform_of_a_replacement(spec: str | None, fused: bool) -> None:
    """A transform of an outer layer works on a response that replaced the app's."""

    async def replace(conn: Connection) -> Flow:
        yield
        yield StreamingResponse(iter(["n", "e", "w"]))

    server = await request(
        stack(script(*STREAMED), transforming(bracket), replace, fused=fused), spec=spec
    )

    assert (server.body, server.complete) == (b"(new)", True)


async def test_transform_of_an_early_answer(spec: str | None, fused: bool) -> None:
    """A transform of an outer layer works on an early answer of an inner one."""

    async def answer(conn: Connection) -> Flow:
        yield PlainTextResponse("early")

    server = await request(
        stack(script(*STREAMED), transforming(bracket), answer, fused=fused), spec=spec
    )

    assert (server.body, server.complete) == (b"(early)", True)
    assert "content-length" not in server.headers


async def test_await_inside_a_transform(spec: str | None, fused: bool) -> None:
    """A transform may wait for anything; the app waits with it."""

    async def waiting(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            await anyio.lowlevel.checkpoint()
            yield await anyio.to_thread.run_sync(chunk.upper)

    server = await request(
        stack(script(*STREAMED), transforming(waiting), transforming(waiting), fused=fused),
        spec=spec,
    )

    assert server.body == b"AB"


# -- body_iterator read by the layer itself --------------------------------------------------


async def test_iterating_in_the_layer_just_reads(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """`async for chunk in response.body_iterator` reads; the client still gets every chunk."""
    seen = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        seen.append(b"".join([chunk async for chunk in response.body_iterator]))

    server = await request(stack(inner, layer, layer, fused=fused), spec=spec)

    assert seen == [Inner.BODY, Inner.BODY]
    assert server.body == Inner.BODY
    assert server.complete


async def test_iterating_partly_keeps_the_stream(fused: bool) -> None:
    """After a part was read the rest still streams at the app's pace."""
    server = Server()
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for chunk in (b"a", b"b", b"c"):
            await send(body(chunk, more=True))
            seen.append(("sent", chunk, server.body))
        await send(body(b""))

    async def layer(conn: Connection) -> Flow:
        response = yield
        async for chunk in response.body_iterator:
            seen.append(("read", chunk))
            break

    await server.run(stack(app, layer, nothing, fused=fused))

    assert seen == [
        ("read", b"a"),
        ("sent", b"a", b"a"),
        ("sent", b"b", b"ab"),
        ("sent", b"c", b"abc"),
    ]
    assert server.complete


async def test_transform_after_a_part_was_read_gets_the_whole_body(fused: bool) -> None:
    """A transform that is set after the layer looked at the first chunk gets that chunk, too."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        async for chunk in response.body_iterator:
            assert chunk == b"a"
            break
        response.body_iterator = bracket(response.body_iterator)

    server = await request(stack(script(*STREAMED), layer, nothing, fused=fused))

    assert server.body == b"(ab)"


async def test_read_after_a_part_was_iterated_gives_the_whole_body(fused: bool) -> None:
    """`read()` after a part was iterated gives all of the body."""
    seen = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        async for _ in response.body_iterator:
            break
        seen.append(await response.read())

    server = await request(stack(script(*STREAMED), layer, nothing, fused=fused))

    assert seen == [b"ab"]
    assert server.body == b"ab"


# -- a new response made of the old one ------------------------------------------------------


async def test_streaming_response_over_the_body(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """A `StreamingResponse` over the received body streams it with headers of its own."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        yield StreamingResponse(
            bracket(response.body_iterator), 203, headers={"x-new": "yes"}, media_type="text/x"
        )

    server = await request(stack(inner, nothing, layer, nothing, fused=fused), spec=spec)

    assert (server.status, server.body) == (203, b"(" + Inner.BODY + b")")
    assert server.headers["x-new"] == "yes"
    assert "x-inner" not in server.headers
    assert server.complete


async def test_streaming_response_over_the_body_keeps_the_pace(
    spec: str | None, fused: bool
) -> None:
    """Chunks of the app pass such a response one by one, without being collected."""
    server = Server(spec=spec)
    log = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for chunk in (b"a", b"b"):
            await send(body(chunk, more=True))
            log.append(server.body)
        await send(body(b""))

    async def layer(conn: Connection) -> Flow:
        response = yield
        yield StreamingResponse(upper(response.body_iterator))

    await server.run(stack(app, layer, nothing, fused=fused))

    assert log == [b"A", b"AB"]
    assert server.body == b"AB"


async def test_code_after_a_streaming_response_over_the_body(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """The layer resumes when such a response is out and the app has ended."""
    log: list[Any] = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        yield StreamingResponse(upper(response.body_iterator))
        log.append((server.complete, inner.ended))

    server = Server(spec=spec)
    await server.run(stack(inner, layer, nothing, fused=fused))

    assert server.body == Inner.BODY.upper()
    assert log == [(True, [None])]


async def test_streaming_response_over_a_body_with_trailers(fused: bool) -> None:
    """A new response that announces no trailers sends none, whatever the app had to add."""
    app = script(start(trailers=True), body(b"a"), trailers((b"x-sum", b"1")))

    async def layer(conn: Connection) -> Flow:
        response = yield
        yield StreamingResponse(upper(response.body_iterator))

    server = await request(stack(app, nothing, layer, fused=fused), extensions=ALL_EXTENSIONS)

    assert "trailers" not in server.sent[0]
    assert set(server.types) == {"start", "body"}
    assert (server.body, server.complete) == (b"A", True)


async def test_plain_response_made_of_the_body(inner: Inner, spec: str | None, fused: bool) -> None:
    """A body can be read and sent in a response of another class."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        yield JSONResponse({"was": (await response.read()).decode()}, response.status_code)

    server = await request(stack(inner, nothing, layer, nothing, fused=fused), spec=spec)

    assert server.body == b'{"was":"%s"}' % Inner.BODY
    assert server.headers["content-type"] == "application/json"


# -- responses without a body ----------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_status_without_a_body_runs_no_transform(status: int, fused: bool) -> None:
    """A status that allows no body has none to transform, and stays complete."""
    app = script(start(headers=[(b"x-a", b"1")], status=status), body(b""))
    server = await request(stack(app, nothing, transforming(bracket), nothing, fused=fused))

    assert (server.status, server.body) == (status, b"")
    assert server.headers["x-a"] == "1"
    assert server.complete


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_status_without_a_body_is_read_as_empty(status: int, fused: bool) -> None:
    """`read()` of such a response is empty and adds no header."""
    seen: list[Any] = []
    app = script(start(status=status), body(b""))
    server = await request(stack(app, nothing, reading(seen), fused=fused))

    assert seen == [b""]
    assert server.sent[0]["headers"] == []
    assert server.complete


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_transform_of_no_body_runs_and_sends_nothing(
    method: str, status: int, fused: bool
) -> None:
    """Where there is no body a transform runs for what else it does; nothing of it is sent."""
    log = []

    async def noting(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            log.append(chunk)
        yield b"not to be sent"
        log.append(b"over")

    app = script(start(status, headers=[(b"x-a", b"1")]), body(b""))
    server = await request(
        stack(app, nothing, transforming(noting), nothing, fused=fused), method=method
    )

    assert log == [b"over"]
    assert server.headers["x-a"] == "1"
    assert [message["body"] for message in server.sent[1:]] == [b""]
    assert server.complete


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_body_set_on_a_status_without_one_is_not_sent(status: int, fused: bool) -> None:
    """A body that is set on a response that has none stays out of it."""
    layer = editing(lambda response: setattr(response, "body", b"not to be sent"))
    app = script(start(status), body(b""))
    server = await request(stack(app, nothing, layer, nothing, fused=fused))

    assert (server.status, server.body, server.complete) == (status, b"", True)


async def test_body_set_on_a_head_response_gives_its_length(fused: bool) -> None:
    """A HEAD response whose body is set says the length that a GET would have, and sends none."""
    layer = editing(lambda response: setattr(response, "body", b"new"))
    app = script(start(headers=[(b"content-length", b"20")]), body(b""))
    server = await request(stack(app, nothing, layer, fused=fused), method="HEAD")

    assert server.headers["content-length"] == "3"
    assert server.complete
    assert not any(message.get("body") for message in server.sent)


async def test_status_changed_to_one_without_a_body(fused: bool) -> None:
    """A layer that makes a 200 a 304 and empties the body gives a legal response."""

    def unchanged(response: AppResponse) -> None:
        response.status_code = 304
        response.body = b""

    app = script(start(headers=[(b"content-length", b"2")]), body(b"ab"))
    server = await request(stack(app, nothing, editing(unchanged), fused=fused))

    assert (server.status, server.body, server.complete) == (304, b"", True)


# -- files, trailers and other messages ------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_bytes(b"content of a file")
    return path


def pathsend(path: Path, *headers: tuple[bytes, bytes]) -> ASGIApp:
    return script(start(headers=headers), {"type": "http.response.pathsend", "path": str(path)})


def zerocopysend(path: Path) -> ASGIApp:
    """Return an app that sends a frame, then two parts of the file by descriptor."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with path.open("rb") as opened:
            part = {"type": "http.response.zerocopysend", "file": opened}
            await send(start())
            await send(body(b"<", more=True))
            await send({**part, "offset": 8, "count": 2, "more_body": True})
            await send({**part, "offset": 11})

    return app


@pytest.mark.parametrize("layer", [nothing, editing(lambda response: response.headers)])
async def test_pathsend_is_left_to_the_server(layer: Dispatch, file: Path, fused: bool) -> None:
    """Where no layer asks for the bytes, the server sends the file itself."""
    server = await request(
        stack(pathsend(file, (b"content-length", b"17")), layer, layer, fused=fused),
        extensions=ALL_EXTENSIONS,
    )

    assert server.types == ["start", "pathsend"]
    assert server.headers["content-length"] == "17"


async def test_pathsend_is_read_from_its_file(file: Path, fused: bool) -> None:
    """`read()` reads the file that the server was asked to send."""
    seen: list[Any] = []
    server = await request(
        stack(pathsend(file, (b"content-length", b"17")), nothing, reading(seen), fused=fused),
        extensions=ALL_EXTENSIONS,
    )

    assert seen == [b"content of a file"]
    assert server.complete
    if "pathsend" not in server.types:
        assert server.body == b"content of a file"


async def test_pathsend_is_transformed(file: Path, fused: bool) -> None:
    """A transform gets the bytes of the file."""
    server = await request(
        stack(
            pathsend(file, (b"content-length", b"17")), nothing, transforming(bracket), fused=fused
        ),
        extensions=ALL_EXTENSIONS,
    )

    assert server.body == b"(content of a file)"
    assert "content-length" not in server.headers
    assert server.complete


async def test_pathsend_over_the_limit_is_refused(file: Path, fused: bool) -> None:
    """`read(max_size=)` holds for a file, and lets it pass when the refusal is caught."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        with pytest.raises(ResponseTooLarge):
            await response.read(max_size=16)

    server = await request(
        stack(pathsend(file), nothing, layer, fused=fused), extensions=ALL_EXTENSIONS
    )

    assert server.complete
    if "pathsend" not in server.types:
        assert server.body == b"content of a file"


async def test_pathsend_of_a_missing_file_fails_where_it_is_read(
    tmp_path: Path, fused: bool
) -> None:
    """A file that is not there is an `OSError` at `read()`."""
    seen = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        try:
            await response.read()
        except OSError as error:
            seen.append(type(error))
            yield PlainTextResponse("gone", 404)

    server = await request(
        stack(pathsend(tmp_path / "missing"), nothing, layer, fused=fused),
        extensions=ALL_EXTENSIONS,
    )

    assert seen == [FileNotFoundError]
    assert (server.status, server.body) == (404, b"gone")


async def test_file_response_that_would_pathsend_is_read(file: Path, fused: bool) -> None:
    """Starlette's `FileResponse` on a server with pathsend is read and transformed as well."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await FileResponse(file)(scope, receive, send)

    seen: list[Any] = []
    server = await request(
        stack(app, transforming(upper), reading(seen), fused=fused), extensions=ALL_EXTENSIONS
    )

    assert seen == [b"content of a file"]
    assert server.body == b"CONTENT OF A FILE"


async def test_zerocopysend_is_left_to_the_server(file: Path, fused: bool) -> None:
    """Where no layer asks for the bytes, the descriptor goes to the server."""
    server = await request(
        stack(zerocopysend(file), nothing, nothing, fused=fused), extensions=ALL_EXTENSIONS
    )

    assert server.types == ["start", "body", "zerocopysend", "zerocopysend"]
    assert server.complete


async def test_zerocopysend_is_read_from_its_file(file: Path, fused: bool) -> None:
    """`read()` reads the parts of the file, with their offsets and counts."""
    seen: list[Any] = []
    server = await request(
        stack(zerocopysend(file), nothing, reading(seen), fused=fused), extensions=ALL_EXTENSIONS
    )

    assert seen == [b"<of" + b"a file"]
    assert server.complete


async def test_zerocopysend_is_transformed(file: Path, fused: bool) -> None:
    """A transform gets the frames and the parts of the file in their order."""
    server = await request(
        stack(zerocopysend(file), nothing, transforming(bracket), fused=fused),
        extensions=ALL_EXTENSIONS,
    )

    assert server.body == b"(<ofa file)"
    assert server.complete


@pytest.mark.parametrize(
    "layer",
    [nothing, reading([]), transforming(upper), transforming(bracket)],
    ids=["nothing", "read", "transform", "longer"],
)
async def test_trailers_follow_the_body(layer: Dispatch, fused: bool) -> None:
    """Trailers come after the last body frame, whatever was done to the body."""
    app = script(
        start(trailers=True), body(b"A", more=True), body(b"B"), trailers((b"x-sum", b"1"))
    )
    server = await request(
        stack(app, nothing, layer, nothing, fused=fused), extensions=ALL_EXTENSIONS
    )

    assert server.types[-1] == "trailers"
    assert b"AB" in server.body
    assert server.sent[0]["trailers"] is True
    assert server.sent[-1]["headers"] == [(b"x-sum", b"1")]
    assert server.complete


async def test_trailers_in_two_messages_follow_a_transform(fused: bool) -> None:
    """Trailers may come in several messages; all of them pass."""
    first = {**trailers((b"x-a", b"1")), "more_trailers": True}
    app = script(start(trailers=True), body(b"A"), first, trailers((b"x-b", b"2")))
    server = await request(
        stack(app, transforming(upper), reading([]), fused=fused), extensions=ALL_EXTENSIONS
    )

    assert [message["headers"] for message in server.sent if "trailers" in message["type"]] == [
        [(b"x-a", b"1")],
        [(b"x-b", b"2")],
    ]
    assert server.complete


@pytest.mark.parametrize(
    "layer",
    [nothing, transforming(upper), reading([])],
    ids=["nothing", "transform", "read"],
)
async def test_other_messages_pass_untouched(layer: Dispatch, fused: bool) -> None:
    """Early hints, debug, push and unknown messages reach the server as they are."""
    others: list[Message] = [
        {"type": "http.response.early_hint", "links": [b"</a.css>"]},
        {"type": "http.response.debug", "info": {"a": object()}},
        {"type": "http.response.odd", "key": 1},
        {"type": "http.response.push", "path": "/pushed", "headers": []},
    ]
    app = script(*others[:3], start(), others[3], body(b"A", more=True), others[2], body(b"B"))
    server = await request(
        stack(app, nothing, layer, nothing, fused=fused), extensions=ALL_EXTENSIONS
    )

    passed = [m for m in server.sent if m["type"][14:] not in ("start", "body")]
    assert passed == [*others[:3], others[3], others[2]]
    assert server.types[:3] == ["early_hint", "debug", "odd"]
    assert server.body == b"AB"


# -- what became of it -----------------------------------------------------------------------


def accounting(into: list[AppResponse]) -> Dispatch:
    """Return a layer that notes the response when all is over."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        into.append(response)
        yield response

    return layer


async def test_completed(inner: Inner, spec: str | None, fused: bool) -> None:
    """A whole response is `completed`, with its bytes counted."""
    seen: list[AppResponse] = []
    await request(stack(inner, accounting(seen), accounting(seen), fused=fused), spec=spec)

    assert [response.outcome for response in seen] == ["completed", "completed"]
    assert [response.bytes_sent for response in seen] == [len(Inner.BODY)] * 2


async def test_times_are_in_order(inner: Inner, spec: str | None) -> None:
    """`started_at` and `ended_at` are readings of the same clock, in order."""
    seen: list[AppResponse] = []
    await request(HTTPMiddleware(inner, dispatch=accounting(seen)), spec=spec)

    started, ended = seen[0].started_at, seen[0].ended_at
    assert started is not None
    assert ended is not None
    assert 0 < started <= ended


async def test_time_of_a_response_that_is_replaced(fused: bool) -> None:
    """Further in than the replacement, its start is the start."""
    seen: list[AppResponse] = []

    async def replacing(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("other")

    app = script(start(), body(b"ab"))
    await request(stack(app, replacing, accounting(seen), fused=fused))

    assert seen[0].started_at is not None


async def test_disconnected(spec: str | None, fused: bool) -> None:
    """A client that left in mid-body makes it `disconnected`."""
    seen: list[AppResponse] = []
    server = Server(spec=spec)

    await server.run(
        stack(endless(server), accounting(seen), accounting(seen), fused=fused), keep_error=True
    )

    assert [response.outcome for response in seen] == ["disconnected", "disconnected"]


async def test_disconnected_behind_a_transform(spec: str | None, fused: bool) -> None:
    """A client that left in mid-body is `disconnected` inside and outside of a transform."""
    seen: list[AppResponse] = []
    server = Server(spec=spec)
    app = stack(
        endless(server), accounting(seen), transforming(upper), accounting(seen), fused=fused
    )
    await server.run(app, keep_error=True)

    assert [response.outcome for response in seen] == ["disconnected", "disconnected"]
    assert server.body == b"X"


@pytest.mark.parametrize("function", [nothing, transforming(upper)], ids=["alone", "transformed"])
async def test_end_of_the_body_that_nobody_gets(function: Dispatch, fused: bool) -> None:
    """An end that a server takes after it told that the client left makes no `completed`."""
    seen: list[AppResponse] = []
    server = Server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        server.disconnect()
        await Request(scope, receive).is_disconnected()
        await send(body(b"b"))

    await server.run(stack(app, accounting(seen), function, accounting(seen), fused=fused))

    assert [response.outcome for response in seen] == ["disconnected", "disconnected"]
    assert not server.complete


async def test_body_that_was_read_but_not_sent(fused: bool) -> None:
    """A body that an outer layer read and then failed on was not completed, though all was read."""
    seen: list[AppResponse] = []

    async def fail(conn: Connection) -> Flow:
        response = yield
        await response.read()
        raise LookupError("after reading")

    app = stack(script(*STREAMED), fail, accounting(seen), reading([]), fused=fused)
    server = await request(app, keep_error=True)

    assert server.sent == []
    assert [response.outcome for response in seen] == ["failed"]


async def test_incomplete(fused: bool) -> None:
    """An app that returns in mid-body, with its client there, makes it `incomplete`."""
    seen: list[AppResponse] = []
    app = script(start(), body(b"a", more=True))
    server = await request(stack(app, accounting(seen), accounting(seen), fused=fused))

    assert [response.outcome for response in seen] == ["incomplete", "incomplete"]
    assert [response.bytes_sent for response in seen] == [1, 1]
    assert not server.complete


async def test_failed(fused: bool) -> None:
    """An app that raises in mid-body makes it `failed`."""
    seen: list[AppResponse] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        raise ValueError("in the body")

    server = await request(
        stack(app, accounting(seen), accounting(seen), fused=fused), keep_error=True
    )

    assert [response.outcome for response in seen] == ["failed", "failed"]
    assert isinstance(server.error, ValueError)
    assert not server.complete


async def test_cancelled(fused: bool) -> None:
    """A request that is cancelled in mid-body makes it `cancelled`."""
    seen: list[AppResponse] = []
    server = Server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(server.run, stack(app, accounting(seen), accounting(seen), fused=fused))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    assert [response.outcome for response in seen] == ["cancelled", "cancelled"]


async def test_replaced(inner: Inner, spec: str | None, fused: bool) -> None:
    """A response that another one took the place of is `replaced`; the other is `completed`."""
    seen: list[AppResponse] = []

    async def replace(conn: Connection) -> Flow:
        response = yield
        yield PlainTextResponse("new")
        assert (response.outcome, response.bytes_sent) == ("replaced", 0)

    await request(stack(inner, accounting(seen), replace, fused=fused), spec=spec)

    assert [(response.outcome, response.bytes_sent) for response in seen] == [("completed", 3)]


async def test_bytes_are_those_of_the_transformed_body(fused: bool) -> None:
    """Each layer counts what left it: an outer layer the transformed bytes."""
    seen: list[AppResponse] = []
    await request(stack(script(*STREAMED), accounting(seen), transforming(bracket), fused=fused))

    assert [response.bytes_sent for response in seen] == [4]


async def test_accounting_of_a_body_that_was_set(fused: bool) -> None:
    """A body that the layer itself set is counted as it was sent."""
    seen: list[Any] = []

    async def layer(conn: Connection) -> Flow:
        response = yield
        response.body = b"new one"
        yield response
        seen.append((response.outcome, response.bytes_sent))

    await request(stack(script(*STREAMED), layer, nothing, fused=fused))

    assert seen == [("completed", 7)]


async def test_accounting_of_an_early_answer_further_in(fused: bool) -> None:
    """An early answer of an inner layer is a completed response for the outer one."""
    seen: list[AppResponse] = []

    async def answer(conn: Connection) -> Flow:
        yield PlainTextResponse("early", 401)

    await request(stack(script(*STREAMED), accounting(seen), answer, fused=fused))

    assert [(r.outcome, r.status_code, r.bytes_sent) for r in seen] == [("completed", 401, 5)]


async def test_accounting_with_trailers(fused: bool) -> None:
    """A response with trailers is completed by them, and its body is counted alone."""
    seen: list[AppResponse] = []
    app = script(start(trailers=True), body(b"abc"), trailers((b"x-sum", b"1")))
    await request(stack(app, accounting(seen), fused=fused), extensions=ALL_EXTENSIONS)

    assert [(response.outcome, response.bytes_sent) for response in seen] == [("completed", 3)]


async def test_accounting_of_a_missing_trailer(fused: bool) -> None:
    """A response that announced trailers and sent none is incomplete."""
    seen: list[AppResponse] = []
    app = script(start(trailers=True), body(b"abc"))
    await request(stack(app, accounting(seen), fused=fused), extensions=ALL_EXTENSIONS)

    assert [response.outcome for response in seen] == ["incomplete"]


async def test_accounting_of_pathsend(file: Path, fused: bool) -> None:
    """A file that the server sends completes the response."""
    seen: list[AppResponse] = []
    await request(
        stack(pathsend(file), accounting(seen), accounting(seen), fused=fused),
        extensions=ALL_EXTENSIONS,
    )

    assert [response.outcome for response in seen] == ["completed", "completed"]


async def test_endpoint_reads_the_request_while_the_body_is_held(spec: str | None) -> None:
    """An endpoint that reads its request while it streams can be read by a layer."""
    seen: list[Any] = []

    async def endpoint(request: Request) -> Response:
        data = await request.body()

        async def chunks() -> AsyncIterator[bytes]:
            for byte in data:
                yield bytes([byte])

        return StreamingResponse(chunks())

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    server = await request(
        HTTPMiddleware(app, dispatch=reading(seen)), method="POST", body=b"abc", spec=spec
    )

    assert seen == [b"abc"]
    assert server.body == b"abc"


async def test_body_iterator_can_be_closed(fused: bool) -> None:
    """Closing the iterator takes nothing away from the client."""

    async def layer(conn: Connection) -> Flow:
        response = yield
        async with aclosing(response.body_iterator) as chunks:
            async for _ in chunks:
                break

    server = await request(stack(script(*STREAMED), layer, nothing, fused=fused))

    assert server.body == b"ab"


# -- several at once -------------------------------------------------------------------------


async def test_echo_of_chunks_through_transforms_on_both_sides(
    spec: str | None, fused: bool
) -> None:
    """An app that answers each chunk as it comes does so through transforms in both directions."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send(body(message["body"], more=more))
            log.append(f"{server.receives} in, {server.body.decode()} out")

    async def both(conn: Connection) -> Flow:
        conn.body_iterator = upper(conn.body_iterator)
        response = yield
        response.body_iterator = bracket(response.body_iterator)

    server = Server(method="POST", body=[b"a", b"b"], spec=spec)
    await server.run(stack(app, nothing, both, nothing, fused=fused))

    assert log == ["1 in, (A out", "2 in, (AB out", "2 in, (AB) out"]
    assert server.complete


async def test_siblings_that_send_through_a_transform_keep_their_order(fused: bool) -> None:
    """Chunks of two tasks of the app pass a transform that waits one after the other."""
    entered, go = anyio.Event(), anyio.Event()

    async def waiting(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            if chunk == b"a":
                entered.set()
                await go.wait()
            yield chunk

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def second() -> None:
            await entered.wait()
            await send(body(b"b", more=True))

        async def release() -> None:
            await anyio.wait_all_tasks_blocked()
            go.set()

        await send(start())
        async with anyio.create_task_group() as group:
            group.start_soon(second)
            group.start_soon(release)
            await send(body(b"a", more=True))
        await send(body(b"c"))

    server = await request(stack(app, nothing, transforming(waiting), fused=fused))

    assert (server.body, server.complete) == (b"abc", True)


def random_messages(rng: random.Random, opened: BinaryIO, path: Path) -> list[Message]:
    """Return a response: frames, perhaps parts of a file, perhaps trailers."""
    with_trailers = rng.random() < 0.3
    chunks = [rng.choice([b"", b"a", b"bcd", b"e" * 70_000]) for _ in range(rng.randint(0, 4))]
    messages = [start(**{"trailers": True} if with_trailers else {})]
    messages += [body(chunk, more=True) for chunk in chunks]
    for position in range(1, len(messages)):
        if rng.random() < 0.2:
            messages.insert(position, {"type": "http.response.odd", "position": position})
        if rng.random() < 0.1:
            offset, count = rng.randint(0, 9), rng.choice([None, 0, 3])
            part = {"type": "http.response.zerocopysend", "file": opened, "offset": offset}
            part |= {"more_body": True} if count is None else {"more_body": True, "count": count}
            messages.insert(position, part)
    if not any(chunks) and rng.random() < 0.5:
        messages = [messages[0], {"type": "http.response.pathsend", "path": str(path)}]
    else:
        messages.append(body(rng.choice([b"", b"end"])))
    if with_trailers:
        messages += [trailers((b"x-sum", b"1"))]
    return messages


def random_reader(rng: random.Random) -> Dispatch:
    """Return a layer that reads some of the body or passes it through an identity transform."""

    async def identity(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            yield chunk

    steps = rng.choices(["read", "limit", "part", "transform", "checkpoint"], k=rng.randint(0, 3))
    size = rng.randint(0, 5)
    waits = rng.random() < 0.5

    async def layer(conn: Connection) -> Flow:
        response = yield
        for step in steps:
            if step == "read":
                await response.read()
            elif step == "limit":
                with suppress(ResponseTooLarge):
                    await response.read(max_size=size)
            elif step == "part":
                async for _ in response.body_iterator:
                    break
            elif step == "transform":
                response.body_iterator = identity(response.body_iterator)
            else:
                await anyio.lowlevel.checkpoint()
        if waits:
            yield response
            assert response.outcome == "completed"

    return layer


def whole_body(server: Server) -> bytes:
    """Return the body with the files that the server would have sent itself."""
    data = b""
    for message in server.sent:
        if message["type"] == "http.response.body":
            data += message.get("body", b"")
        elif message["type"] == "http.response.pathsend":
            data += Path(message["path"]).read_bytes()
        elif message["type"] == "http.response.zerocopysend":
            end = message["offset"] + message["count"] if "count" in message else None
            data += Path(message["file"].name).read_bytes()[message["offset"] : end]
    return data


async def test_random_readers_change_nothing_for_the_client(file: Path, fused: bool) -> None:
    """Whatever 1 to 3 layers read, in 300 scripts, the client gets what it would get without."""
    for seed in range(300):
        rng = random.Random(seed)
        with file.open("rb") as opened:
            messages = random_messages(rng, opened, file)
            functions = [random_reader(rng) for _ in range(rng.randint(1, 3))]
            bare = await request(script(*messages), extensions=ALL_EXTENSIONS)
            layered = await request(
                stack(script(*messages), *functions, fused=fused), extensions=ALL_EXTENSIONS
            )

            assert whole_body(layered) == whole_body(bare), f"seed {seed}"
            for kind in ("http.response.odd", "http.response.trailers"):
                found = [[m for m in s.sent if m["type"] == kind] for s in (bare, layered)]
                assert found[0] == found[1], f"seed {seed}"
            assert layered.complete, f"seed {seed}"


@pytest.mark.parametrize("how", ["set", "transformed"])
async def test_length_in_capitals_is_corrected_as_well(how: str) -> None:
    """An app that writes `Content-Length` in capitals does not end up with two lengths."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        if how == "set":
            response.body = b"longer body"
        else:
            response.body_iterator = doubled(response.body_iterator)

    async def doubled(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            yield chunk * 2

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"Content-Length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})

    server = await request(stack(app, mw, fused=True))

    lengths = [value for key, value in server.headers.raw if key.lower() == b"content-length"]
    assert lengths == ([b"11"] if how == "set" else [])


@pytest.mark.parametrize(("status", "expected"), [(204, None), (205, "0"), (304, None)])
async def test_length_of_a_body_that_is_never_sent(status: int, expected: str | None) -> None:
    """A body set on a status that has none leaves no length of it behind (RFC 9110 section 8.6)."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.body = b"nobody sees it"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    server = await request(stack(app, mw, fused=True))

    assert (server.headers.get("content-length"), server.body) == (expected, b"")


async def test_bytes_of_an_answer_to_head_are_not_sent() -> None:
    """What an app hands over as the body of an answer to HEAD does not count."""
    seen: list[int] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.append(response.bytes_sent)

    await request(stack(PlainTextResponse("hello"), mw, fused=True), method="HEAD")

    assert seen == [0]


# -- too late --------------------------------------------------------------------------------


def replaced_list(response: AppResponse) -> None:
    response.raw_headers = [(b"x-late", b"yes")]


LATE: dict[str, Callable[[AppResponse], Any]] = {
    "set": lambda response: response.headers.__setitem__("x-late", "yes"),
    "set again": lambda response: response.headers.__setitem__("x-inner", "no"),
    "delete": lambda response: response.headers.__delitem__("x-inner"),
    "setdefault": lambda response: response.headers.setdefault("x-late", "yes"),
    "append": lambda response: response.headers.append("x-late", "yes"),
    "update": lambda response: response.headers.update({"x-late": "yes"}),
    "or": lambda response: response.headers.__ior__({"x-late": "yes"}),
    "vary": lambda response: response.headers.add_vary_header("x-late"),
    "length": lambda response: response.headers.__setitem__("content-length", "23"),
    "raw append": lambda response: response.raw_headers.append((b"x-late", b"yes")),
    "raw extend": lambda response: response.raw_headers.extend([(b"x-late", b"yes")]),
    "raw insert": lambda response: response.raw_headers.insert(0, (b"x-late", b"yes")),
    "raw remove": lambda response: response.raw_headers.remove((b"x-inner", b"yes")),
    "raw pop": lambda response: response.raw_headers.pop(),
    "raw clear": lambda response: response.raw_headers.clear(),
    "raw sort": lambda response: response.raw_headers.sort(),
    "raw reverse": lambda response: response.raw_headers.reverse(),
    "raw slice": lambda response: response.raw_headers.__setitem__(slice(None), []),
    "raw delete": lambda response: response.raw_headers.__delitem__(0),
    "raw add": lambda response: response.raw_headers.__iadd__([(b"x-late", b"yes")]),
    "raw list": replaced_list,
    "cookie": lambda response: response.set_cookie("late", "yes"),
    "no cookie": lambda response: response.delete_cookie("late"),
    "media type": lambda response: setattr(response, "media_type", "text/html"),
    "no media type": lambda response: setattr(response, "media_type", None),
    "background": lambda response: setattr(response, "background", BackgroundTask(print)),
    "body": lambda response: setattr(response, "body", b"late"),
    "iterator": lambda response: setattr(response, "body_iterator", response.body_iterator),
    "status": lambda response: setattr(response, "status_code", 201),
}


@pytest.mark.parametrize("edit", LATE.values(), ids=list(LATE))
@pytest.mark.parametrize("sends", ["it", "another"])
async def test_edit_after_the_response_was_sent_is_refused(
    edit: Callable[[AppResponse], Any], sends: str, layers: Layers
) -> None:
    """Whoever edits too late is told so, with the place and what to write instead."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response if sends == "it" else PlainTextResponse("another")
        edit(response)

    server = await request(layers(plain_inner(), mw), keep_error=True)

    assert server.complete
    assert "x-late" not in server.headers
    assert isinstance(server.error, MiddlewareError)
    text = str(server.error)
    assert f"{Path(__file__).name}:" in text
    assert "between `response = yield` and" in text


@pytest.mark.parametrize("edit", LATE.values(), ids=list(LATE))
async def test_edits_in_time_are_none_of_that(
    edit: Callable[[AppResponse], Any], layers: Layers
) -> None:
    """The very same edits before `yield response` do what they say."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        edit(response)
        yield response

    server = await request(layers(plain_inner(), mw))

    assert server.complete


async def test_headers_of_a_function_s_own_may_be_shared(fused: bool) -> None:
    """An object that is assigned in every request stays as it is, and can be edited in each."""
    shared = MutableHeaders({"x-shared": "yes"})

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.headers["x-outer"] = "yes"
        yield response

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers = shared
        response.headers["x-mine"] = "yes"
        yield response

    app = stack(plain_inner(), outer, mw, fused=fused)
    for _ in range(2):
        server = await request(app)
        assert server.sent[0]["headers"] == [
            (b"x-shared", b"yes"),
            (b"x-mine", b"yes"),
            (b"x-outer", b"yes"),
        ]

    assert shared.raw == [(b"x-shared", b"yes"), (b"x-mine", b"yes")]


async def test_response_is_still_readable_after_it_was_sent(layers: Layers) -> None:
    """Reading is what `yield response` is for."""
    seen: list[Any] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers["x-mine"] = "yes"
        yield response
        seen.extend([response.status_code, response.headers["x-mine"], response.media_type])
        seen.append((b"x-mine", b"yes") in response.raw_headers)

    await request(layers(plain_inner(), mw))

    assert seen == [200, "yes", "text/plain", True]


@pytest.mark.unchecked("it would make a list of the iterator")
async def test_headers_given_as_an_iterator_are_known_as_the_old_ones(fused: bool) -> None:
    """What describes the old body goes with it, however the app gave its headers."""
    old = [(b"etag", b'"1"'), (b"content-md5", b"x"), (b"x-a", b"b")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**start(), "headers": iter(old)})
        await send(body(b"hello"))

    layer = editing(lambda response: setattr(response, "body", b"other"))
    server = await request(stack(app, nothing, layer, fused=fused))

    assert server.sent[0]["headers"] == [(b"x-a", b"b"), (b"content-length", b"5")]


# -- the memory of a body that is held -------------------------------------------------------


class Sized:
    """An app that sends chunks of so many bytes."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for number, size in enumerate(self.sizes):
            await send(body(b"%d" % (number % 10) * size, more=True))
        await send(body())

    @property
    def body(self) -> bytes:
        return b"".join(b"%d" % (number % 10) * size for number, size in enumerate(self.sizes))


async def read_whole(response: AppResponse) -> None:
    await response.read()


async def read_by_chunks(response: AppResponse) -> None:
    async for _ in response.body_iterator:
        pass


async def read_a_part_and_the_whole(response: AppResponse) -> None:
    left = 100
    async for _ in response.body_iterator:
        left -= 1
        if not left:
            break
    await response.read()


SHAPES = {
    "nothing": [0] * 2_000,
    "one byte": [1] * 2_000,
    "one byte among nothing": [0, 0, 0, 1] * 1_000,
    "small": [100] * 2_000,
    "small and large": [1, 5_000] * 100,
    "large": [65_536] * 20,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("read", [read_whole, read_by_chunks, read_a_part_and_the_whole])
async def test_memory_of_a_body_that_is_held(
    read: Callable[[AppResponse], Any], shape: str
) -> None:
    """It is at most twice the bytes and 64 KiB, whatever the sizes of the messages."""
    peak = 0

    async def mw(conn: Connection) -> Flow:
        nonlocal peak
        response = yield
        await read(response)
        peak = tracemalloc.get_traced_memory()[1]

    size = sum(SHAPES[shape])
    sent = 0

    async def send(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))

    await stack(Sized([1] * 200), mw, fused=True)(Server().scope, Server().receive, send)
    sent = 0
    gc.collect()
    tracemalloc.start()
    try:
        await stack(Sized(SHAPES[shape]), mw, fused=True)(Server().scope, Server().receive, send)
    finally:
        tracemalloc.stop()

    assert sent == size
    assert peak <= 2 * size + 64 * 1024


async def test_messages_that_were_joined_are_whole(fused: bool) -> None:
    """For the client, and for all who read, from the beginning or the middle, one after another."""
    app = Sized([1, 0, 2, 3, 5000, 7] * 100)
    got: list[bytes] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        first, second = response.body_iterator, response.body_iterator
        read: dict[Any, list[bytes]] = {first: [], second: []}
        for turns in (50, 150, 1, 1000):
            for each in (first, second):
                for _ in range(turns):
                    read[each].append(await anext(each, b""))
        got.extend([b"".join(read[first]), b"".join(read[second]), await response.read()])

    server = await request(stack(app, mw, mw, fused=fused))

    assert got == [app.body] * 6
    assert server.body == app.body


async def test_few_messages_keep_their_bounds(fused: bool) -> None:
    """A body of some messages is sent on as it came, the ones without content too."""
    app = Sized([1, 0, 2, 3] * 15)

    async def mw(conn: Connection) -> Flow:
        response = yield
        await response.read()

    server = await request(stack(app, mw, mw, fused=fused))

    assert [len(message["body"]) for message in server.sent[1:]] == [*app.sizes, 0]


# -- in a debugger ---------------------------------------------------------------------------


async def test_what_shows_up_in_a_debugger(fused: bool) -> None:
    """A body, and the request behind it, say where they are."""
    seen = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        await response.read()
        seen.append(repr(response._body))
        seen.append(repr(response._outbound))

    await request(stack(PlainTextResponse("hello"), mw, fused=fused), path="/a")

    assert seen == [
        "<LiveBody: 1 messages ahead, complete>",
        "<Exchange '/a' TRAVELLING: 0 wait for the response, 0 for the end>",
    ]


async def test_replacement_in_a_debugger() -> None:
    """It says whose request it is in."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append(repr(response._outbound))

    async def inner(conn: Connection) -> Flow:
        yield PlainTextResponse("early")

    await request(stack(PlainTextResponse("hello"), outer, inner, fused=True), path="/a")

    exchange = "<Exchange '/a' WAITING: 0 wait for the response, 1 for the end>"
    assert seen == [f"<Replacement TRAVELLING in {exchange}>"]


# -- chunks that are counted, or kept, on their way --------------------------------------------


@pytest.mark.parametrize(("fails", "size"), [("server", 2), ("app", 4)])
async def test_chunk_that_the_server_fails_with_does_not_count(
    fails: str, size: int, fused: bool
) -> None:
    """Below ASGI 2.4 a chunk counts as the server gets it; one that it fails with does not."""
    seen = []

    async def logs(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        finally:
            seen.append((response.bytes_sent, response.outcome))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"ab", more=True))
        await send(body(b"cd", more=True))
        raise ValueError("app")

    async def send(message: Message) -> None:
        if fails == "server" and message.get("body") == b"cd":
            raise ValueError("server")

    with pytest.raises(ValueError, match=fails):
        await stack(app, logs, fused=fused)(Server(spec="2.3").scope, Server().receive, send)

    assert seen == [(size, "failed")]


@pytest.mark.unchecked("no server of these versions should do so")
@pytest.mark.parametrize("chunk", [b"", b"ab", b"cd"], ids=["start", "first", "second"])
async def test_a_client_that_the_server_tells_of_by_a_chunk_has_left(
    chunk: bytes, spec: str | None, fused: bool
) -> None:
    """An `OSError` out of the server's `send` says so whatever it was for, and in every version."""
    seen = []

    async def logs(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda response: seen.append(response.outcome))
        try:
            yield response
        finally:
            seen.append(response.outcome)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"ab", more=True))
        await send(body(b"cd", more=True))

    async def send(message: Message) -> None:
        if message.get("body", b"") == chunk:
            raise OSError("gone")

    with suppress(OSError):
        await stack(app, logs, fused=fused)(Server(spec=spec).scope, Server().receive, send)

    assert seen == ["disconnected"] * 2


async def test_body_over_the_limit_is_refused_at_once(fused: bool) -> None:
    """Who reads no more than so many bytes is told with the first one above, not at the end."""
    events = []

    async def limits(conn: Connection) -> Flow:
        response = yield
        with pytest.raises(ResponseTooLarge):
            await response.read(max_size=3)
        events.append("refused")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for _ in range(3):
            await send(body(b"ab", more=True))
            events.append("sent")
        await send(body())

    server = await request(stack(app, limits, fused=fused))

    assert server.body == b"ababab"
    assert events == ["sent", "refused", "sent", "sent"]
