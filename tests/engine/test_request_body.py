"""
Request bodies: read by a layer and again by the app, limited, replaced, transformed.

The app must get what it would have got without the layers, whatever they read.
The last tests hold that against random scripts of reads, with and without a client that leaves.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, File, Form, UploadFile
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import BodyTooLarge, Connection, Flow, HTTPMiddleware, MiddlewareError
from httpmw.compat import BaseHTTPMiddleware, RequestResponseEndpoint
from tests.harness import Server, passing, request, stack

Dispatch = Callable[[Connection], Flow]

MULTIPART = (
    b'--edge\r\nContent-Disposition: form-data; name="field"\r\n\r\nvalue\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\ncontent\r\n--edge--\r\n"
)


async def nothing(conn: Connection) -> Flow:
    yield


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(await Request(scope, receive).body())(scope, receive, send)


async def ignore(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("ignored")(scope, receive, send)


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body's headers and the body."""
    request = Request(scope, receive)
    names = ("content-length", "content-encoding", "transfer-encoding", "content-type")
    headers = {name: request.headers[name] for name in names if name in request.headers}
    content = {"headers": headers, "body": (await request.body()).decode()}
    await JSONResponse(content)(scope, receive, send)


async def chunks_of(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [bytes(chunk) async for chunk in stream if chunk]


# -- replay ----------------------------------------------------------------------------------


async def by_body(conn: Request) -> Any:
    return await conn.body()


async def by_stream(conn: Request) -> Any:
    async with aclosing(conn.stream()) as stream:
        return b"".join([chunk async for chunk in stream])


async def by_json(conn: Request) -> Any:
    return await conn.json()


async def by_form(conn: Request) -> Any:
    form = await conn.form()
    found = []
    for name, value in form.multi_items():
        found.append((name, value if isinstance(value, str) else await value.read()))
    await conn.close()
    return found


READS: list[Any] = [
    pytest.param(by_body, "text/plain", b"plain", b"plain", id="body"),
    pytest.param(by_stream, "text/plain", b"plain", b"plain", id="stream"),
    pytest.param(by_json, "application/json", b'{"a": [1]}', {"a": [1]}, id="json"),
    pytest.param(
        by_form,
        "application/x-www-form-urlencoded",
        b"a=1&a=2",
        [("a", "1"), ("a", "2")],
        id="urlencoded",
    ),
    pytest.param(
        by_form,
        "multipart/form-data; boundary=edge",
        MULTIPART,
        [("field", "value"), ("file", b"content")],
        id="multipart",
    ),
]


@pytest.mark.parametrize("chunked", [False, True], ids=["one", "chunked"])
@pytest.mark.parametrize(("read", "content_type", "body", "expected"), READS)
async def test_body_is_read_by_layers_and_by_the_app(
    read: Callable[[Request], Any],
    content_type: str,
    body: bytes,
    expected: Any,
    chunked: bool,
    fused: bool,
) -> None:
    """Two layers and the app each get the whole body, in any of the ways to read it."""
    got = []

    async def reading(conn: Connection) -> Flow:
        got.append(await read(conn))
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await read(Request(scope, receive)))
        await ignore(scope, receive, send)

    await request(
        stack(app, reading, reading, fused=fused),
        method="POST",
        headers={"content-type": content_type},
        body=[body[index : index + 3] for index in range(0, len(body), 3)] if chunked else body,
    )

    assert got == [expected, expected, expected]


async def test_body_is_read_by_a_layer_and_by_its_answer(fused: bool) -> None:
    """What a layer answers with gets the whole body too, though the layer has read it."""

    class Echo(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await echo(scope, receive, send)

    async def answering(conn: Connection) -> Flow:
        assert await conn.body() == b"abc"
        yield Echo()

    server = await request(
        stack(ignore, nothing, answering, fused=fused), method="POST", body=[b"a", b"bc"]
    )

    assert server.body == b"abc"


async def test_form_closes_as_a_context_manager() -> None:
    """`async with conn.form()` works before the yield and leaves the body to the app."""

    async def reading(conn: Connection) -> Flow:
        async with conn.form() as form:
            assert form["field"] == "value"
        yield

    server = await request(
        HTTPMiddleware(echo, dispatch=reading),
        method="POST",
        headers={"content-type": "multipart/form-data; boundary=edge"},
        body=MULTIPART,
    )

    assert server.body == MULTIPART


async def test_broken_form_leaves_the_body_to_the_app() -> None:
    """A form that a layer could not parse is still whole for the app."""

    async def reading(conn: Connection) -> Flow:
        with pytest.raises(Exception, match="boundary"):
            await conn.form()
        yield

    server = await request(
        HTTPMiddleware(echo, dispatch=reading),
        method="POST",
        headers={"content-type": "multipart/form-data"},
        body=[b"one", b"two"],
    )

    assert server.body == b"onetwo"


@pytest.mark.parametrize("taken", range(4))
async def test_partly_read_stream_is_whole_for_the_app(taken: int, fused: bool) -> None:
    """The app gets every chunk, whatever number of them a layer took before."""
    chunks = [b"a", b"b", b"c"]
    got = []

    async def partly(conn: Connection) -> Flow:
        async with aclosing(conn.stream()) as stream:
            for _ in range(taken):
                got.append(await anext(stream))
        yield

    server = await request(stack(echo, partly, partly, fused=fused), method="POST", body=chunks)

    assert got == chunks[:taken] * 2
    assert server.body == b"abc"


async def test_stream_left_by_break_is_whole_for_the_app(fused: bool) -> None:
    """A `break` out of `async for chunk in conn.stream()` takes nothing away from the app."""

    async def partly(conn: Connection) -> Flow:
        stream = conn.stream()
        async for chunk in stream:
            assert chunk == b"a"
            break
        await stream.aclose()
        yield

    server = await request(
        stack(echo, partly, nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert server.body == b"ab"


async def test_message_received_by_hand_is_whole_for_the_app(fused: bool) -> None:
    """A message that a layer took with `conn.receive()` comes to the app as well."""

    async def by_hand(conn: Connection) -> Flow:
        assert (await conn.receive())["body"] == b"a"
        yield

    server = await request(
        stack(echo, by_hand, by_hand, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert server.body == b"ab"


async def test_body_read_twice_is_received_once() -> None:
    """A second `body()` gives the same bytes without asking the server again."""
    server = Server(method="POST", body=b"abc")

    async def reading(conn: Connection) -> Flow:
        first = await conn.body()
        receives = server.receives
        assert await conn.body() is first
        assert server.receives == receives
        yield

    await server.run(HTTPMiddleware(echo, dispatch=reading))

    assert server.body == b"abc"


async def test_unread_body_is_not_received() -> None:
    """A body that neither layer nor app wants stays with the server."""
    server = await request(
        stack(ignore, nothing, nothing, fused=True), method="POST", body=[b"a", b"b"]
    )

    assert server.receives == 0


async def test_app_pulls_the_body_at_its_own_pace(fused: bool) -> None:
    """One `receive` of the app is one `receive` of the server, message for message."""
    got: list[tuple[int, Message]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            message = await receive()
            got.append((server.receives, message))
        await ignore(scope, receive, send)

    server = Server(method="POST", body=[b"a", b"", b"c"])
    await server.run(stack(app, nothing, nothing, fused=fused))

    assert got == [
        (1, {"type": "http.request", "body": b"a", "more_body": True}),
        (2, {"type": "http.request", "body": b"", "more_body": True}),
        (3, {"type": "http.request", "body": b"c", "more_body": False}),
    ]


@pytest.mark.parametrize(
    "body",
    [[b"", b"a", b"", b"b", b""], [b"", b""], [b"a", b""], b""],
    ids=["between", "only", "last", "none"],
)
async def test_empty_chunks_are_no_end(body: Any, fused: bool) -> None:
    """Empty chunks in the middle of a body do not end it, read by whom it may be."""
    seen = []

    async def reading(conn: Connection) -> Flow:
        seen.append(await conn.body())
        yield

    async def streaming(conn: Connection) -> Flow:
        seen.append(await by_stream(conn))
        yield

    server = await request(stack(echo, reading, streaming, fused=fused), method="POST", body=body)

    assert [*seen, server.body] == [b"".join(body) if isinstance(body, list) else body] * 3


async def test_messages_without_keys_are_read(fused: bool) -> None:
    """A request message may lack `body` and `more_body`, as the ASGI specification allows."""

    async def reading(conn: Connection) -> Flow:
        assert await conn.body() == b""
        yield

    async def receive() -> Message:
        return {"type": "http.request"}

    server = Server(method="POST")
    app = stack(echo, reading, nothing, fused=fused)
    await app(server.scope, receive, server.send)

    assert server.body == b""


# -- a client that leaves in the middle ------------------------------------------------------


def half_a_body(server: Server) -> Receive:
    """Return a `receive` that gives two chunks, then tells once that the client left."""
    messages: list[Message] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        raise AssertionError("asked again after the disconnect")

    return receive


async def test_client_that_leaves_while_a_layer_reads(fused: bool) -> None:
    """A layer gets `ClientDisconnect`, and the app the same chunks and then the disconnect."""
    got: list[Any] = []

    async def reading(conn: Connection) -> Flow:
        try:
            await conn.body()
        except ClientDisconnect:
            got.append("layer")
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(4):
            message = await receive()
            got.append(message.get("body", message["type"]))
        await ignore(scope, receive, send)

    server = Server(method="POST")
    layered = stack(app, reading, reading, fused=fused)
    await layered(server.scope, half_a_body(server), server.send)

    assert got == ["layer", "layer", b"a", b"b", "http.disconnect", "http.disconnect"]


async def test_disconnect_that_no_layer_handles_runs_no_app(fused: bool) -> None:
    """What no layer handles is nobody's fault: the app is not run, and no error is logged."""
    runs = []

    async def reading(conn: Connection) -> Flow:
        await conn.body()
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        runs.append(1)

    server = Server(method="POST")
    await stack(app, nothing, reading, fused=fused)(server.scope, half_a_body(server), server.send)

    assert runs == []
    assert server.sent == []


async def by_chunks(conn: Connection) -> None:
    async for _ in conn.body_iterator:
        pass


@pytest.mark.parametrize("read", [by_body, by_stream, by_json, by_chunks])
async def test_upload_that_breaks_off_reaches_outer_layers(
    read: Callable[[Any], Any], fused: bool
) -> None:
    """As `ClientDisconnect` at their yield; one that does not handle it raises nothing either."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        try:
            yield
        except ClientDisconnect as error:
            seen.append(error)
            raise

    async def reading(conn: Connection) -> Flow:
        await read(conn)
        yield

    server = Server(method="POST")
    layered = stack(ignore, outer, reading, fused=fused)
    await layered(server.scope, half_a_body(server), server.send)

    assert len(seen) == 1
    assert server.sent == []


async def test_client_disconnect_of_the_apps_own_is_raised(fused: bool) -> None:
    """What the app makes of it is not the layer's business."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()

    server = Server(method="POST")
    with pytest.raises(ClientDisconnect):
        await stack(app, nothing, nothing, fused=fused)(
            server.scope, half_a_body(server), server.send
        )


async def test_upload_that_breaks_off_may_be_answered(fused: bool) -> None:
    """A layer that handles it goes on as it likes."""

    async def reading(conn: Connection) -> Flow:
        try:
            await conn.body()
        except ClientDisconnect:
            yield PlainTextResponse("gone", 400)

    server = Server(method="POST")
    layered = stack(ignore, nothing, reading, fused=fused)
    await layered(server.scope, half_a_body(server), server.send)

    assert server.status == 400


# -- what is kept ----------------------------------------------------------------------------


class Sizes:
    """A `receive` that gives messages of these sizes, the last one without content."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.sizes = [*sizes]
        self.bytes = sum(self.sizes)
        self._left = iter(self.sizes)
        self.given = 0

    async def __call__(self) -> Message:
        for size in self._left:
            self.given += size
            return {"type": "http.request", "body": b"%d" % (size % 10) * size, "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}


async def drain(scope: Scope, receive: Receive, send: Send) -> None:
    """Take all of the body, and answer with how much it was."""
    size = 0
    more_body = True
    while more_body:
        message = await receive()
        size += len(message["body"])
        more_body = message["more_body"]
    await PlainTextResponse(str(size))(scope, receive, send)


async def to_the_end(conn: Connection) -> None:
    async with aclosing(conn.stream()) as stream:
        async for _ in stream:
            pass


async def half_and_then_all(conn: Connection) -> None:
    async with aclosing(conn.stream()) as stream:
        left = 100
        async for _ in stream:
            left -= 1
            if not left:
                break
    await conn.body()


SHAPES = {
    "nothing": [0] * 2_000,
    "one byte": [1] * 4_000,
    "one byte among nothing": [0, 0, 0, 1] * 1_000,
    "small": [100] * 1_500,
    "small and large": [1, 5_000] * 300,
    "large and small": [9_000, 4_000, 1] * 100,
    "large": [65_536] * 20,
    "one": [1_000_000],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("read", [by_body, to_the_end, by_chunks, half_and_then_all])
async def test_memory_of_a_body_that_is_read(read: Callable[[Any], Any], shape: str) -> None:
    """It is at most twice the bytes and 64 KiB, whatever the sizes of the messages."""

    async def reading(conn: Connection) -> Flow:
        await read(conn)
        yield

    await check_memory(stack(drain, reading, fused=True), SHAPES[shape])


@pytest.mark.parametrize("shape", SHAPES)
async def test_memory_of_a_body_that_a_dispatch_function_reads(shape: str) -> None:
    """So it is in the drop-in, where Starlette's `Request.body()` keeps a list of the chunks."""

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        await request.body()
        return await call_next(request)

    await check_memory(BaseHTTPMiddleware(drain, dispatch=dispatch), SHAPES[shape])


async def check_memory(layered: ASGIApp, sizes: list[int]) -> None:
    """Send messages of these sizes through a layer; all that is kept is bounded by their bytes."""
    receive = Sizes(sizes)
    server = Server(method="POST")
    await layered(Server(method="POST").scope, Sizes([1] * 200), Server().send)  # what is made once
    gc.collect()
    tracemalloc.start()
    try:
        await layered(server.scope, receive, server.send)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert server.body == b"%d" % receive.bytes
    assert peak <= 2 * receive.bytes + 64 * 1024


async def test_messages_that_were_joined_are_whole() -> None:
    """For the app and for those who read at the same time, from the beginning or the middle."""
    sizes = [1, 0, 2, 3, 5000, 7] * 100
    expected = b"".join([b"%d" % (size % 10) * size for size in sizes])
    got: list[bytes] = []

    async def stream(conn: Connection) -> None:
        got.append(await by_stream(conn))

    async def body(conn: Connection) -> None:
        got.append(await conn.body())

    async def by_hand(conn: Connection) -> None:
        parts = []
        more_body = True
        while more_body:
            message = await conn.receive()
            parts.append(message["body"])
            more_body = message["more_body"]
            await anyio.lowlevel.checkpoint()
        got.append(b"".join(parts))

    async def reading(conn: Connection) -> Flow:
        async with anyio.create_task_group() as group:
            for read in (by_hand, stream, stream):
                group.start_soon(read, conn)
        async with anyio.create_task_group() as group:
            for read in (body, stream, body):
                group.start_soon(read, conn)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await Request(scope, receive).body())
        await ignore(scope, receive, send)

    await stack(app, reading, fused=True)(Server().scope, Sizes(sizes), Server().send)

    assert got == [expected] * 7


async def test_rest_of_joined_messages_is_transformed() -> None:
    """What was read before the transform was put in place is not in it."""
    sizes = [1, 2, 3] * 100
    expected = b"".join([b"%d" % size * size for size in sizes])

    async def dropping(conn: Connection) -> Flow:
        chunks = conn.body_iterator
        size = 0
        for _ in range(250):
            size += len(await anext(chunks))

        async def rest() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                yield chunk

        conn.body_iterator = rest()
        assert size < len(expected)
        conn.state.read = size
        yield

    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await Request(scope, receive).body())
        await ignore(scope, receive, send)

    server = Server()
    await stack(app, dropping, fused=True)(server.scope, Sizes(sizes), server.send)

    assert got == [expected[server.scope["state"]["read"] :]]


async def test_few_messages_keep_their_boundaries(fused: bool) -> None:
    """What a layer reads of them in parts reaches the app in the same parts."""
    sizes = [1, 2, 3] * 20
    got = []

    async def reading(conn: Connection) -> Flow:
        await to_the_end(conn)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.extend([len((await receive())["body"]) for _ in [*sizes, 0]])
        await ignore(scope, receive, send)

    await stack(app, reading, fused=fused)(Server().scope, Sizes(sizes), Server().send)

    assert got == [*sizes, 0]


# -- is the client still there? --------------------------------------------------------------


async def ask_often(conn: Any, *, times: int = 1_000) -> set[bool]:
    return {await conn.is_disconnected() for _ in range(times)}


async def asking(conn: Connection) -> Flow:
    assert await ask_often(conn) == {False}
    yield


async def asking_afterwards(conn: Connection) -> Flow:
    yield
    assert await ask_often(conn) == {False}


async def asking_and_reading(conn: Connection) -> Flow:
    async with aclosing(conn.stream()) as stream:
        for _ in range(10):
            await anext(stream)
            await ask_often(conn, times=100)
    yield


async def asking_dispatch(request: Request, call_next: Any) -> Response:
    assert await ask_often(request) == {False}
    response: Response = await call_next(request)
    return response


@pytest.mark.parametrize("size", [1, 1_000, 65_536])
@pytest.mark.parametrize(
    ("layer", "read"), [(asking, 0), (asking_afterwards, 0), (asking_and_reading, 10)]
)
async def test_asking_often_leaves_an_upload_where_it_is(
    layer: Dispatch, read: int, size: int, fused: bool
) -> None:
    """At most 64 KiB and a message are taken beyond what is read: back-pressure stays."""
    receive = Sizes([size] * 100_000)

    await stack(ignore, layer, nothing, fused=fused)(Server().scope, receive, Server().send)

    assert receive.given < 64 * 1024 + (read + 1) * size


@pytest.mark.parametrize("size", [1, 1_000, 65_536])
async def test_asking_often_in_a_dispatch_function(size: int) -> None:
    """The same holds in `call_next` style."""
    receive = Sizes([size] * 100_000)

    layered = BaseHTTPMiddleware(ignore, dispatch=asking_dispatch)
    await layered(Server().scope, receive, Server().send)

    assert receive.given < 64 * 1024 + size


async def test_app_gets_what_was_looked_at(fused: bool) -> None:
    """All of it, and in order."""
    receive = Sizes([1, 2, 3, 0, 4, 50_000, 6] * 10)
    server = Server()

    await stack(drain, asking, asking, fused=fused)(server.scope, receive, server.send)

    assert server.body == b"%d" % receive.bytes


async def test_client_that_left_is_found_behind_a_long_body(fused: bool) -> None:
    """Once the end of the body has come there is no bound."""
    seen = []

    async def look(conn: Connection) -> Flow:
        await conn.body()
        seen.append([await conn.is_disconnected() for _ in range(3)])
        yield

    messages: list[Message] = [
        {"type": "http.request", "body": b"x" * 200_000, "more_body": True},
        {"type": "http.request", "body": b"y" * 200_000, "more_body": False},
    ]

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    await stack(ignore, look, look, fused=fused)(Server().scope, receive, Server().send)

    assert seen == [[True, True, True]] * 2


# -- body(max_size=) -------------------------------------------------------------------------


def limited(size: int) -> Dispatch:
    async def limit(conn: Connection) -> Flow:
        await conn.body(max_size=size)
        yield

    return limit


async def test_too_large_by_content_length_is_refused_unread(fused: bool) -> None:
    """A content-length over the limit is refused before anything is received."""
    server = await request(
        stack(echo, nothing, limited(3), fused=fused), method="POST", body=b"four"
    )

    assert server.status == 413
    assert server.receives == 0


async def test_too_large_in_chunks_is_refused(fused: bool) -> None:
    """A chunked body is refused with the chunk that goes over the limit, and no later one."""
    server = await request(
        stack(echo, nothing, limited(3), fused=fused),
        method="POST",
        body=[b"ab", b"cd", b"ef", b"gh"],
    )

    assert server.status == 413
    assert server.receives == 2


@pytest.mark.parametrize("body", [b"abc", [b"a", b"b", b"c"], [b"abc", b""], b""])
async def test_body_up_to_the_limit_passes(body: Any, fused: bool) -> None:
    """A body of exactly the limit, or less, is read and comes to the app."""
    server = await request(
        stack(echo, limited(3), limited(4), fused=fused), method="POST", body=body
    )

    assert server.status == 200
    assert server.body == (b"".join(body) if isinstance(body, list) else body)


async def test_content_length_that_lies_does_not_pass(fused: bool) -> None:
    """A body that is longer than its content-length says is counted, not believed."""
    server = await request(
        stack(echo, limited(3), nothing, fused=fused),
        method="POST",
        headers={"content-length": "2"},
        body=[b"ab", b"cd"],
    )

    assert server.status == 413


@pytest.mark.parametrize("value", ["abc", "", "-5", "1, 2"])
async def test_content_length_that_is_no_number_is_not_looked_at(value: str) -> None:
    """A broken content-length is no error of its own: the body is counted."""
    small = await request(
        HTTPMiddleware(echo, dispatch=limited(3)),
        method="POST",
        headers={"content-length": value},
        body=b"abc",
    )
    large = await request(
        HTTPMiddleware(echo, dispatch=limited(3)),
        method="POST",
        headers={"content-length": value},
        body=b"abcd",
    )

    assert (small.status, large.status) == (200, 413)


async def test_too_large_is_answered_by_the_apps_own_handler(fused: bool) -> None:
    """Unhandled, the refusal is answered as the application answers a 413."""

    async def handler(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return PlainTextResponse("shorter, please", error.status_code)

    app = Starlette(
        routes=[Route("/", echo, methods=["POST"])],
        middleware=[
            Middleware(HTTPMiddleware, dispatch=nothing),
            Middleware(HTTPMiddleware, dispatch=limited(3)),
        ],
        exception_handlers={413: handler},
    )
    server = await request(app, method="POST", body=b"four")

    assert (server.status, server.body) == (413, b"shorter, please")


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
async def test_exception_handler_reads_the_body(read: bool) -> None:
    """A handler of the application that a layer's `HTTPException` comes to can read the body."""

    async def refuse(conn: Connection) -> Flow:
        if read:
            await conn.body()
        raise HTTPException(400)
        yield

    async def handler(request: Request, error: Exception) -> Response:
        return Response(b"refused: " + await request.body(), 400)

    app = Starlette(
        routes=[Route("/", echo, methods=["POST"])],
        middleware=[Middleware(HTTPMiddleware, dispatch=refuse)],
        exception_handlers={400: handler},
    )
    server = await request(app, method="POST", body=[b"a", b"b"])

    assert (server.status, server.body) == (400, b"refused: ab")


async def test_outer_layer_sees_the_refusal_as_a_response(fused: bool) -> None:
    """Layers further out get the 413 as a response that they can edit."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append(response.status_code)
        response.headers["x-outer"] = "yes"

    server = await request(stack(echo, outer, limited(3), fused=fused), method="POST", body=b"four")

    assert seen == [413]
    assert server.headers["x-outer"] == "yes"


@pytest.mark.parametrize("body", [b"four", [b"fo", b"ur", b"!"]], ids=["one", "chunked"])
async def test_app_can_run_though_the_body_is_too_large(body: Any, fused: bool) -> None:
    """A layer that catches the refusal may still run the app, which gets the whole body."""

    async def lenient(conn: Connection) -> Flow:
        with pytest.raises(BodyTooLarge):
            await conn.body(max_size=3)
        yield

    server = await request(stack(echo, lenient, lenient, fused=fused), method="POST", body=body)

    assert server.body == (b"".join(body) if isinstance(body, list) else body)


async def test_limit_holds_for_a_body_that_was_read_before(fused: bool) -> None:
    """`body(max_size=)` refuses a body that is already there just the same."""
    refused = []

    async def first(conn: Connection) -> Flow:
        await conn.body()
        with pytest.raises(BodyTooLarge):
            await conn.body(max_size=3)
        refused.append("same layer")
        yield

    async def second(conn: Connection) -> Flow:
        with pytest.raises(BodyTooLarge):
            await conn.body(max_size=3)
        refused.append("inner layer")
        yield

    server = await request(
        stack(echo, first, second, fused=fused), method="POST", body=[b"ab", b"cd"]
    )

    assert refused == ["same layer", "inner layer"]
    assert server.body == b"abcd"


async def test_exception_handler_reads_the_body_as_it_was_replaced() -> None:
    """A handler sees the body that a layer further out put in place of the client's."""

    async def refuse(conn: Connection) -> Flow:
        raise HTTPException(400)
        yield

    async def handler(request: Request, error: Exception) -> Response:
        return Response(await request.body(), 400)

    app = Starlette(
        middleware=[
            Middleware(HTTPMiddleware, dispatch=replacing(b"new")),
            Middleware(HTTPMiddleware, dispatch=refuse),
        ],
        exception_handlers={400: handler},
    )
    server = await request(app, method="POST", body=b"old")

    assert server.body == b"new"


# -- replace_body ----------------------------------------------------------------------------


def replacing(data: bytes, *, read: bool = False) -> Dispatch:
    async def replace(conn: Connection) -> Flow:
        if read:
            await conn.body()
        conn.replace_body(data)
        yield

    return replace


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("body", [b"old body", [b"old ", b"body"]], ids=["one", "chunked"])
async def test_replaced_body_is_what_the_app_gets(body: Any, read: bool, fused: bool) -> None:
    """The app gets the new body with its length, and nothing of the old one."""
    server = await request(
        stack(length, nothing, replacing(b"new", read=read), nothing, fused=fused),
        method="POST",
        headers={"content-encoding": "gzip", "content-type": "text/x"},
        body=body,
    )

    assert json.loads(server.body) == {
        "headers": {"content-length": "3", "content-type": "text/x"},
        "body": "new",
    }


async def test_outer_layers_keep_their_own_headers_and_body(fused: bool) -> None:
    """A layer outside of the one that replaced the body still has what the client sent."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        seen.append((conn.headers["content-length"], await conn.body()))
        yield
        seen.append((conn.headers["content-length"], await conn.body()))

    server = Server(method="POST", body=b"old body")
    headers = server.scope["headers"]
    before = list(headers)
    await server.run(stack(length, outer, replacing(b"new"), fused=fused))

    assert seen == [("8", b"old body")] * 2
    assert headers == before


async def test_inner_layers_read_the_new_body(fused: bool) -> None:
    """A layer inside of the one that replaced the body reads the new one and its length."""
    seen = []

    async def inner(conn: Connection) -> Flow:
        seen.append((conn.headers["content-length"], await conn.body()))
        yield

    await request(
        stack(length, replacing(b"new"), inner, fused=fused), method="POST", body=b"old body"
    )

    assert seen == [("3", b"new")]


async def test_innermost_replacement_wins(fused: bool) -> None:
    """Of two layers that replace the body the inner one is what the app gets."""
    server = await request(
        stack(echo, replacing(b"outer"), replacing(b"inner"), fused=fused),
        method="POST",
        body=b"old",
    )

    assert server.body == b"inner"


async def test_last_replacement_in_a_layer_wins() -> None:
    """A layer may replace the body twice; the last one counts."""

    async def twice(conn: Connection) -> Flow:
        conn.replace_body(b"first")
        conn.replace_body(b"second, longer")
        yield

    server = await request(HTTPMiddleware(length, dispatch=twice), method="POST", body=b"old")

    answer = json.loads(server.body)
    assert answer == {"headers": {"content-length": "14"}, "body": "second, longer"}


async def test_body_replaced_by_nothing() -> None:
    """An empty replacement is a body of length 0."""
    server = await request(
        HTTPMiddleware(length, dispatch=replacing(b"")), method="POST", body=b"old"
    )

    assert json.loads(server.body) == {"headers": {"content-length": "0"}, "body": ""}


async def test_after_the_replacement_comes_the_disconnect() -> None:
    """An app that receives on after the new body waits for the disconnect, not the old body."""
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())
        await ignore(scope, receive, send)
        got.append(await receive())

    await request(
        HTTPMiddleware(app, dispatch=replacing(b"new")), method="POST", body=[b"old ", b"body"]
    )

    assert [message["type"] for message in got] == ["http.request", "http.disconnect"]
    assert got[0]["body"] == b"new"
    assert not got[0].get("more_body", False)


# -- transforms ------------------------------------------------------------------------------


async def gunzip(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    inflate = zlib.decompressobj(wbits=31)
    async for chunk in body:
        yield inflate.decompress(chunk)
    yield inflate.flush()


async def upper(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    async for chunk in body:
        yield chunk.upper()


async def bracket(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield b"("
    async for chunk in body:
        yield chunk
    yield b")"


def transforming(transform: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]) -> Dispatch:
    async def layer(conn: Connection) -> Flow:
        conn.body_iterator = transform(conn.body_iterator)
        yield

    return layer


def gzip_chunks(data: bytes, size: int) -> list[bytes]:
    deflate = zlib.compressobj(wbits=31)
    packed = deflate.compress(data) + deflate.flush()
    return [packed[index : index + size] for index in range(0, len(packed), size)]


async def test_gunzip_on_the_way_in(fused: bool) -> None:
    """A transform may change the length of the body; the old length does not reach the app."""
    data = bytes(range(65, 91)) * 50
    packed = gzip_chunks(data, 7)
    server = await request(
        stack(length, nothing, transforming(gunzip), fused=fused),
        method="POST",
        headers={"content-length": str(sum(map(len, packed)))},
        body=packed,
    )

    answer = json.loads(server.body)
    assert answer["body"].encode() == data
    assert answer["headers"].get("content-length", str(len(data))) == str(len(data))


async def test_transforms_of_two_layers_compose(fused: bool) -> None:
    """The outer layer's transform comes first, the inner one works on what it made."""
    server = await request(
        stack(echo, transforming(upper), transforming(bracket), transforming(upper), fused=fused),
        method="POST",
        body=[b"a", b"b"],
    )

    assert server.body == b"(AB)"


async def test_transforms_of_one_layer_compose() -> None:
    """A layer may wrap the body twice."""

    async def twice(conn: Connection) -> Flow:
        conn.body_iterator = upper(conn.body_iterator)
        conn.body_iterator = bracket(conn.body_iterator)
        yield

    server = await request(HTTPMiddleware(echo, dispatch=twice), method="POST", body=[b"a", b"b"])

    assert server.body == b"(AB)"


async def test_transform_pulls_one_chunk_at_a_time(fused: bool) -> None:
    """The transform takes a chunk from the server only when the app asks for one."""
    log: list[str] = []
    server = Server(method="POST", body=[b"a", b"b", b"c"])

    async def noting(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in body:
            log.append(f"transform {chunk.decode()} after {server.receives}")
            yield chunk

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(Request(scope, receive).stream()) as stream:
            async for chunk in stream:
                if chunk:
                    log.append(f"app {chunk.decode()}")
        await ignore(scope, receive, send)

    await server.run(stack(app, transforming(noting), nothing, fused=fused))

    assert log == [
        "transform a after 1",
        "app a",
        "transform b after 2",
        "app b",
        "transform c after 3",
        "app c",
    ]


async def test_transform_that_nobody_pulls_does_not_run(fused: bool) -> None:
    """Where the app reads no body, neither the transform nor the server's `receive` runs."""
    log = []

    async def noting(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        log.append("run")
        async for chunk in body:
            yield chunk

    server = await request(
        stack(ignore, transforming(noting), nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert server.body == b"ignored"
    assert log == []
    assert server.receives == 0


async def test_count_and_hash_without_buffering(fused: bool) -> None:
    """A transform that only watches leaves the chunks as they are and knows them all."""
    totals = {}

    async def watch(conn: Connection) -> Flow:
        digest = hashlib.sha256()

        async def hashing(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            async for chunk in body:
                digest.update(chunk)
                yield chunk

        conn.body_iterator = hashing(conn.body_iterator)
        yield
        totals["digest"] = digest.hexdigest()

    server = await request(
        stack(echo, watch, nothing, fused=fused), method="POST", body=[b"ab", b"", b"c"]
    )

    assert server.body == b"abc"
    assert totals["digest"] == hashlib.sha256(b"abc").hexdigest()


async def test_limit_raised_in_a_transform_is_answered(fused: bool) -> None:
    """An exception of the transform comes out of the app's read and back at the yield."""

    async def limit(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        size = 0
        async for chunk in body:
            size += len(chunk)
            if size > 3:
                raise BodyTooLarge(3)
            yield chunk

    async def layer(conn: Connection) -> Flow:
        conn.body_iterator = limit(conn.body_iterator)
        try:
            yield
        except BodyTooLarge:
            yield PlainTextResponse("too large", 413)

    server = await request(
        stack(echo, nothing, layer, nothing, fused=fused), method="POST", body=[b"ab", b"cd", b"e"]
    )

    assert (server.status, server.body) == (413, b"too large")
    assert server.receives == 2


async def test_failure_of_a_transform_is_that_very_exception(fused: bool) -> None:
    """An exception of the transform that nobody handles leaves the adapter unchanged."""
    failure = ValueError("bad chunk")

    async def fail(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in body:
            yield chunk
            raise failure

    server = await request(
        stack(echo, transforming(fail), nothing, fused=fused),
        method="POST",
        body=[b"a", b"b"],
        keep_error=True,
    )

    assert server.error is failure
    assert server.sent == []


async def test_failure_of_a_transform_is_raised_again(fused: bool) -> None:
    """An app that goes on after the transform failed gets the same exception, and no end."""
    failure = ValueError("bad chunk")
    caught: list[BaseException] = []

    async def fail(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for _ in body:
            raise failure
        yield b""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            try:
                await receive()
            except ValueError as error:
                caught.append(error)
        await ignore(scope, receive, send)

    await request(
        stack(app, transforming(fail), nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert caught == [failure, failure]


async def test_cancelled_transform_says_so(fused: bool) -> None:
    """A transform that the app cancelled in an await of its own is named as the reason."""
    messages: list[str] = []

    async def waiting(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in body:
            await anyio.sleep_forever()
            yield chunk

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as poll:
            poll.cancel()
            await receive()
        with pytest.raises(MiddlewareError) as caught:
            await receive()
        messages.append(str(caught.value))
        await ignore(scope, receive, send)

    await request(
        stack(app, transforming(waiting), nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert "cancelled" in messages[0]


async def test_transform_is_closed_when_the_app_stops_reading(fused: bool) -> None:
    """The clean-up of a transform runs before the request is over, though the app read a part."""
    log = []

    async def cleaning(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async for chunk in body:
                yield chunk
        finally:
            log.append("closed")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await ignore(scope, receive, send)

    await request(
        stack(app, transforming(cleaning), nothing, fused=fused),
        method="POST",
        body=[b"a", b"b", b"c"],
    )

    assert log == ["closed"]


async def test_transform_may_swallow_the_whole_body(fused: bool) -> None:
    """A transform that yields nothing leaves an empty body."""

    async def swallow(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for _ in body:
            pass
        return
        yield

    server = await request(
        stack(echo, transforming(swallow), nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert (server.status, server.body) == (200, b"")


async def test_transform_need_not_read_the_body(fused: bool) -> None:
    """A transform may give a body of its own and leave the client's unread."""

    async def own(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        yield b"own "
        yield b"body"

    server = await request(
        stack(echo, transforming(own), nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert server.body == b"own body"


async def test_inner_layer_reads_what_the_transform_made(fused: bool) -> None:
    """`conn.body()` inside of a transforming layer gives the transformed body, as does the app."""
    seen = []

    async def reading(conn: Connection) -> Flow:
        seen.append(await conn.body())
        yield
        seen.append(await conn.body())

    server = await request(
        stack(echo, transforming(upper), reading, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert [*seen, server.body] == [b"AB", b"AB", b"AB"]


async def test_body_read_first_and_transformed_then(fused: bool) -> None:
    """A layer that read the body may still transform it; its own copy stays as it was."""
    seen = []

    async def both(conn: Connection) -> Flow:
        seen.append(await conn.body())
        conn.body_iterator = upper(conn.body_iterator)
        yield

    server = await request(
        stack(echo, both, nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert seen == [b"ab"]
    assert server.body == b"AB"


async def test_client_that_leaves_during_a_transform(fused: bool) -> None:
    """The app behind a transform learns that the client left in the middle of the body."""
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with pytest.raises(ClientDisconnect):
            async with aclosing(request.stream()) as stream:
                async for chunk in stream:
                    got.append(chunk)
        got.append(await request.is_disconnected())
        await ignore(scope, receive, send)

    server = Server(method="POST")
    layered = stack(app, transforming(upper), nothing, fused=fused)
    await layered(server.scope, half_a_body(server), server.send)

    assert got == [b"A", b"B", True]


async def test_disconnect_reaches_the_app_past_a_transform_that_ended(fused: bool) -> None:
    """After a transformed body the app still learns that the client is gone."""
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        got.append(await request.body())
        got.append(await request.is_disconnected())
        server.disconnect()
        got.append(await request.is_disconnected())

    server = Server(method="POST", body=[b"a", b"b"])
    layered = stack(app, transforming(upper), nothing, fused=fused)
    await server.run(layered, keep_error=True)

    assert got == [b"AB", False, True]


async def test_two_tasks_of_the_app_receive_through_a_transform(fused: bool) -> None:
    """The second waits until the transform has made what the first one gets."""
    got: list[tuple[bytes, bool]] = []

    async def slow(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            await anyio.lowlevel.checkpoint()
            yield chunk.upper()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def take() -> None:
            message = await receive()
            got.append((message["body"], message["more_body"]))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(take)
        await ignore(scope, receive, send)

    server = await request(
        stack(app, nothing, transforming(slow), fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert server.complete
    assert got == [(b"A", True), (b"B", True), (b"", False)]


async def test_polling_app_does_not_disturb_a_transform(fused: bool) -> None:
    """A `receive` of the app that is cancelled while it waits kills no transform."""
    got: list[bytes] = []
    polled = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal polled
        more = True
        while more:
            with anyio.CancelScope() as poll:
                poll.cancel()
                message = await receive()
            if poll.cancelled_caught:
                polled += 1
                message = await receive()
            got.append(message.get("body", b""))
            more = message.get("more_body", False)
        await ignore(scope, receive, send)

    chunks = [b"a", b"b", b"c"]

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    server = Server(method="POST")
    layered = stack(app, transforming(upper), nothing, fused=fused)
    await layered(server.scope, receive, server.send)

    assert b"".join(got) == b"ABC"
    assert polled == 3


async def test_body_iterator_read_in_the_layer_is_replayed(fused: bool) -> None:
    """`async for chunk in conn.body_iterator` before the yield just reads."""
    seen = []

    async def reading(conn: Connection) -> Flow:
        seen.extend(await chunks_of(conn.body_iterator))
        yield

    server = await request(
        stack(echo, reading, nothing, fused=fused), method="POST", body=[b"a", b"b"]
    )

    assert seen == [b"a", b"b"]
    assert server.body == b"ab"


# -- FastAPI, which reads bodies by itself ---------------------------------------------------


def fastapi_app(*functions: Dispatch) -> FastAPI:
    app = FastAPI(
        middleware=[Middleware(HTTPMiddleware, dispatch=function) for function in functions]
    )

    @app.post("/json")
    async def take_json(item: dict[str, int]) -> dict[str, int]:
        return item

    @app.post("/form")
    async def take_form(
        field: Annotated[str, Form()], file: Annotated[UploadFile, File()]
    ) -> dict[str, str]:
        return {"field": field, "file": (await file.read()).decode()}

    return app


async def test_fastapi_parameters_behind_a_layer_that_read() -> None:
    """JSON, form fields and uploads arrive behind layers that read the body."""

    async def reading(conn: Connection) -> Flow:
        await conn.body()
        yield

    async def reading_form(conn: Connection) -> Flow:
        async with conn.form():
            pass
        yield

    app = fastapi_app(reading, reading_form)
    as_json = await request(
        app,
        method="POST",
        path="/json",
        headers={"content-type": "application/json"},
        body=b'{"a":1}',
    )
    as_form = await request(
        app,
        method="POST",
        path="/form",
        headers={"content-type": "multipart/form-data; boundary=edge"},
        body=[MULTIPART[:50], MULTIPART[50:]],
    )

    assert as_json.body == b'{"a":1}'
    assert as_form.body == b'{"field":"value","file":"content"}'


async def test_fastapi_gets_the_replaced_body() -> None:
    """FastAPI parses the body that a layer put in place of the client's."""
    server = await request(
        fastapi_app(replacing(b'{"a":2}')),
        method="POST",
        path="/json",
        headers={"content-type": "application/json"},
        body=b'{"a":"not a number"}',
    )

    assert (server.status, server.body) == (200, b'{"a":2}')


async def test_fastapi_gets_the_transformed_body() -> None:
    """FastAPI parses the body that a layer unpacks on its way."""
    packed = gzip_chunks(b'{"a":3}', 5)
    server = await request(
        fastapi_app(transforming(gunzip)),
        method="POST",
        path="/json",
        headers={"content-type": "application/json", "content-length": "27"},
        body=packed,
    )

    assert (server.status, server.body) == (200, b'{"a":3}')


async def test_fastapi_answers_a_limit_in_a_transform() -> None:
    """`BodyTooLarge` raised in a transform while FastAPI reads is answered with 413."""

    async def refuse(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in body:
            if len(chunk) > 3:
                raise BodyTooLarge(3)
            yield chunk

    server = await request(
        fastapi_app(transforming(refuse)),
        method="POST",
        path="/json",
        headers={"content-type": "application/json"},
        body=b'{"a":1}',
    )

    assert server.status == 413


# -- after the app ---------------------------------------------------------------------------


@pytest.mark.parametrize("read", [by_body, by_stream, by_json], ids=["body", "stream", "json"])
async def test_body_that_the_app_consumed_is_refused(
    read: Callable[[Request], Any], fused: bool
) -> None:
    """Reading a body for the first time after the app consumed it is a clear error."""
    messages = []

    async def late(conn: Connection) -> Flow:
        yield
        with pytest.raises(RuntimeError) as caught:
            await read(conn)
        messages.append(str(caught.value))

    server = await request(stack(echo, late, late, fused=fused), method="POST", body=b"1")

    assert server.body == b"1"
    assert len(messages) == 2
    assert all("yield" in message for message in messages)


@pytest.mark.parametrize("read", [by_body, by_stream], ids=["body", "stream"])
async def test_body_read_before_is_there_after_the_app(
    read: Callable[[Request], Any], fused: bool
) -> None:
    """A body that the layer read before the yield can be read again after it."""
    seen = []

    async def reading(conn: Connection) -> Flow:
        await conn.body()
        response = yield
        seen.append(await read(conn))
        yield response
        seen.append(await read(conn))

    await request(stack(echo, reading, nothing, fused=fused), method="POST", body=[b"a", b"b"])

    assert seen == [b"ab", b"ab"]


async def test_json_read_before_is_there_after_the_app() -> None:
    """A parsed body is kept over the yield, the same object."""
    seen = []

    async def reading(conn: Connection) -> Flow:
        parsed = await conn.json()
        yield
        seen.append(await conn.json() is parsed)

    await request(HTTPMiddleware(echo, dispatch=reading), method="POST", body=b'{"a": 1}')

    assert seen == [True]


async def test_body_left_unread_by_the_app_does_not_hang_a_late_reader(fused: bool) -> None:
    """Where the app read nothing, a read after the yield gives the body or an error at once."""
    seen = []

    async def late(conn: Connection) -> Flow:
        yield
        try:
            seen.append(await conn.body())
        except RuntimeError:
            seen.append(b"abc")

    await request(stack(ignore, late, nothing, fused=fused), method="POST", body=b"abc")

    assert seen == [b"abc"]


# -- random scripts --------------------------------------------------------------------------

SEEDS = range(300)


class Client:
    """The server's side of one script: chunks, and perhaps a client that leaves, told once."""

    def __init__(self, chunks: list[bytes], leaves: bool) -> None:
        self.messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": leaves or bool(left)}
            for chunk, left in zip(chunks, range(len(chunks) - 1, -1, -1), strict=True)
        ]
        if leaves:
            self.messages.append({"type": "http.disconnect"})
        self.complete = anyio.Event()
        self.told = leaves

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await self.complete.wait()
        if self.told:
            await anyio.sleep_forever()
        self.told = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete.set()


def scripted_app(how: str, got: list[Any]) -> Callable[[Scope, Receive, Send], Any]:
    """Return an app that reads its body in one of five ways, and notes what it got."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if how == "body":
                got.append(await request.body())
            elif how == "stream":
                got.append(await by_stream(request))
            elif how == "raw":
                data, more = b"", True
                while more:
                    message = await receive()
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
                got.append((data, message["type"]))
            elif how == "poll":
                data = await request.body()
                got.append((data, await request.is_disconnected()))
        except ClientDisconnect:
            got.append("disconnect")
            got.append(await request.is_disconnected())
        await ignore(scope, receive, send)

    return app


def scripted_layer(rng: random.Random, whole: bytes) -> Dispatch:
    """Return a layer that reads in a random way before the yield and perhaps after it."""
    steps = rng.choices(["body", "limit", "stream", "part", "poll", "receive"], k=rng.randint(0, 3))
    sizes = [rng.randint(0, 3) for _ in steps]
    late = rng.choice([None, by_body, by_stream])

    async def step(conn: Connection, how: str, size: int) -> bytes | None:
        if how == "body":
            return await conn.body()
        if how == "limit":
            assert len(await conn.body(max_size=size)) <= size
        elif how == "stream":
            return await by_stream(conn)
        elif how == "part":
            async with aclosing(conn.stream()) as stream:
                for _ in range(size):
                    await anext(stream)
        elif how == "poll":
            await conn.is_disconnected()
        else:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await conn.receive()
        return None

    async def layer(conn: Connection) -> Flow:
        kept = False
        for index, (how, size) in enumerate(zip(steps, sizes, strict=True)):
            try:
                data = await step(conn, how, size)
            except (ClientDisconnect, BodyTooLarge, StopAsyncIteration):
                continue
            except RuntimeError:
                assert index > 0
                continue
            assert data in (None, whole) or index > 0
            kept = kept or how == "body"
        yield
        if late is not None:
            try:
                data = await late(conn)
            except (ClientDisconnect, RuntimeError):
                assert not kept
            else:
                assert data == whole or not kept

    return layer


async def test_random_reads_change_nothing_for_the_app(fused: bool) -> None:
    """Whatever 0 to 3 layers read, in 300 scripts, the app gets what it would get without them."""
    for seed in SEEDS:
        rng = random.Random(seed)
        chunks = [rng.choice([b"", b"a", b"bc", b"def"]) for _ in range(rng.randint(1, 5))]
        leaves = rng.random() < 0.25
        how = rng.choice(["body", "stream", "raw", "poll", "nothing"])
        bare: list[Any] = []
        layered: list[Any] = []
        functions = [scripted_layer(rng, b"".join(chunks)) for _ in range(rng.randint(1, 3))]
        scope = Server(method="POST").scope

        client = Client(chunks, leaves)
        await scripted_app(how, bare)(dict(scope), client.receive, client.send)
        client = Client(chunks, leaves)
        app = stack(scripted_app(how, layered), *functions, fused=fused)
        await app(dict(scope), client.receive, client.send)

        assert layered == bare, f"seed {seed}"


async def test_scope_around_the_input_of_a_transform_is_refused(fused: bool) -> None:
    """The scopes of whoever reads the body would be crossed; the message is about the request."""

    async def limited(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        with anyio.fail_after(60):
            async for chunk in chunks:
                yield chunk

    async def layer(conn: Connection) -> Flow:
        conn.body_iterator = limited(conn.body_iterator)
        yield

    server = await Server(method="POST", body=[b"a", b"b"]).run(
        stack(echo, passing, layer, fused=fused), keep_error=True
    )

    assert isinstance(server.error, MiddlewareError)
    assert "conn.body_iterator" in str(server.error)
    assert "await conn.body()" in str(server.error)
