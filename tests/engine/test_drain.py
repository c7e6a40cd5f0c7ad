"""`conn.drain()`: what is left of a request's body is received and dropped, by who refuses it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError
from httpmw.testing import Server
from httpmw.testing.driving._socket import SocketServer
from tests.harness import explained, passing, request, stack

UPLOAD = [b"x" * 1000] * 50


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("ran")(scope, receive, send)


class Gate:
    """A gate that refuses, and notes whether all of the body was received."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.drained: bool | None = None

    async def dispatch(self, conn: Connection) -> Flow:
        self.drained = await conn.drain(**self.options)
        yield PlainTextResponse("refused", 403)


@pytest.mark.parametrize("chunks", [UPLOAD, [b"x"], [], [b"", b"x", b""]])
async def test_the_body_of_a_refused_request_is_received(
    fused: bool, spec: str | None, chunks: list[bytes]
) -> None:
    """All messages of the request are received, and the answer is the gate's own."""
    gate = Gate()
    server = await request(
        stack(app, passing, gate.dispatch, passing, fused=fused),
        body=chunks,
        method="POST",
        spec=spec,
    )

    assert (server.status, server.body) == (403, b"refused")
    assert gate.drained is True
    assert server.receives == max(len(chunks), 1)


async def test_no_more_than_a_message_over_the_bound_is_received() -> None:
    """A body without a length is received up to the bound."""
    gate = Gate(max_size=4500)
    server = await request(HTTPMiddleware(app, dispatch=gate.dispatch), body=UPLOAD)

    assert (server.status, server.receives, gate.drained) == (403, 5, False)


async def test_nothing_is_received_of_what_is_known_to_be_too_large() -> None:
    """A length over the bound is believed."""
    gate = Gate(max_size=4500)
    server = await request(HTTPMiddleware(app, dispatch=gate.dispatch), body=b"x" * 4501)

    assert (server.status, server.receives, gate.drained) == (403, 0, False)


async def test_nothing_is_received_of_what_the_client_holds_back() -> None:
    """To receive would have the server ask for it (RFC 9110 section 10.1.1)."""
    gate = Gate()
    server = await request(
        HTTPMiddleware(app, dispatch=gate.dispatch),
        body=b"x",
        headers={"expect": "100-Continue"},
    )

    assert (server.status, server.receives, gate.drained) == (403, 0, False)


async def test_what_was_asked_for_already_is_received_to_its_end() -> None:
    """Once a part of the body has been read, the client does not hold it back any more."""
    drained = []

    async def gate(conn: Connection) -> Flow:
        async for _ in conn.stream():
            break
        drained.append(await conn.drain(max_size=50_000))
        yield PlainTextResponse("refused", 403)

    server = await request(
        HTTPMiddleware(app, dispatch=gate), body=UPLOAD, headers={"expect": "100-continue"}
    )

    assert (server.status, server.receives, drained) == (403, 50, [True])


async def test_a_body_that_was_read_is_left_alone() -> None:
    """Nothing is left to be dropped, and the inner app cannot be meant to run."""

    async def gate(conn: Connection) -> Flow:
        assert await conn.body() == b"x" * 50_000
        assert await conn.drain(max_size=0, seconds=0)
        assert await conn.body() == b"x" * 50_000
        yield PlainTextResponse("refused", 403)

    server = await request(HTTPMiddleware(app, dispatch=gate), body=UPLOAD)

    assert (server.status, server.receives) == (403, 50)


async def test_a_client_that_stops_is_not_waited_for_longer() -> None:
    """After the time the answer goes out without the rest."""
    gate = Gate(seconds=0.01)
    server = Server(body=[b"x", b"y"], method="POST")

    async def receive() -> Message:
        if server.receives == 1:
            await anyio.sleep_forever()
        return await server.receive()

    with anyio.fail_after(10):
        await HTTPMiddleware(app, dispatch=gate.dispatch)(server.scope, receive, server.send)

    assert (server.status, gate.drained) == (403, False)


@pytest.mark.parametrize("disconnect", ["once", "repeated"])
async def test_a_client_that_leaves_has_not_sent_all(disconnect: Any) -> None:
    """A disconnect is no end of a body."""
    gate = Gate()
    server = Server(body=UPLOAD, method="POST", disconnect=disconnect)

    async def receive() -> Message:
        if server.receives == 3:
            return {"type": "http.disconnect"}
        return await server.receive()

    await HTTPMiddleware(app, dispatch=gate.dispatch)(server.scope, receive, server.send)

    assert gate.drained is False


async def test_who_drops_the_body_has_to_answer(fused: bool) -> None:
    """The inner app is not run: it would miss the body."""

    async def forgetful(conn: Connection) -> Flow:
        await conn.drain()
        yield

    server = await request(
        stack(app, passing, forgetful, passing, fused=fused),
        body=b"x",
        method="POST",
        keep_error=True,
    )

    assert server.sent == []
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, forgetful, "Write `yield some_response`")


async def test_what_is_left_by_an_app_that_failed_is_received(
    fused: bool, spec: str | None
) -> None:
    """After the yield it goes on where the app has stopped."""
    drained = []

    async def reads_a_part(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise LookupError

    async def answers(conn: Connection) -> Flow:
        try:
            yield
        except LookupError:
            drained.append(await conn.drain())
            yield PlainTextResponse("sorry", 503)

    server = await request(
        stack(reads_a_part, passing, answers, passing, fused=fused), body=UPLOAD, spec=spec
    )

    assert (server.status, server.receives, drained) == (503, 50, [True])


async def test_an_app_that_has_read_all_leaves_nothing(fused: bool) -> None:
    """Nobody waits for the end of the exchange then."""
    drained = []

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        raise LookupError

    async def answers(conn: Connection) -> Flow:
        try:
            yield
        except LookupError:
            drained.append(await conn.drain(seconds=5))
            yield PlainTextResponse("sorry", 503)

    server = await request(stack(reads, passing, answers, fused=fused), body=UPLOAD)

    assert (server.status, server.receives, drained) == (503, 50, [True])


async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("refused", 401)(scope, receive, send)


@pytest.mark.parametrize("replaced", [False, True])
async def test_what_an_app_refused_is_received_behind_it(
    fused: bool, spec: str | None, replaced: bool
) -> None:
    """A layer reads on where the app answers an upload that it has not looked at."""
    drained = []

    async def drains(conn: Connection) -> Flow:
        response = yield
        drained.append(await conn.drain())
        if replaced:
            yield Response(status_code=response.status_code)

    server = await request(stack(refuses, passing, drains, fused=fused), body=UPLOAD, spec=spec)

    assert (server.status, server.receives >= 50, drained) == (401, True, [True])


async def test_what_an_app_reads_is_left_to_it(fused: bool) -> None:
    """An app that has begun its response and reads on gets its body."""
    drained = []

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({**message, "type": "http.response.body"})

    async def drains(conn: Connection) -> Flow:
        yield
        drained.append(await conn.drain())

    server = await request(stack(echo, passing, drains, fused=fused), body=UPLOAD)

    assert (len(server.body), drained) == (49_000, [False])


async def test_a_handshake_has_nothing_to_drain() -> None:
    """A gate for both kinds of requests is written once."""
    gate = Gate()
    server = await SocketServer().run(HTTPMiddleware(app, dispatch=gate.dispatch, websocket=True))

    assert gate.drained is True
    assert server.receives == 0


async def test_nothing_is_kept_of_what_is_dropped() -> None:
    """Memory holds a message at a time."""
    gate = Gate(max_size=64 << 20)
    left = 500

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": bytes(64 << 10), "more_body": left > 0}

    server = Server(method="POST")
    layer: ASGIApp = HTTPMiddleware(app, dispatch=gate.dispatch)
    tracemalloc.start()
    try:
        await layer(server.scope, receive, server.send)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (gate.drained, left) == (True, 0)
    assert peak < 1 << 20
