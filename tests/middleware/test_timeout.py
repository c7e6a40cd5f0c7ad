"""`TimeoutMiddleware`: who takes too long is answered, or cut off."""

from __future__ import annotations

import logging
import re
from typing import Any

import anyio
import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import AppResponse, Connection, DeadlineExceeded, Flow, HTTPMiddleware
from httpmw.middleware import TimeoutMiddleware
from httpmw.testing import Server
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import PassThrough, body, request, start

SOON = 0.02  # seconds
ok = PlainTextResponse("ok")


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    await anyio.sleep_forever()


def silent_after(*messages: Message) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        await anyio.sleep_forever()

    return app


# -- before the response ---------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_an_application_that_does_not_begin_is_answered(
    spec: str | None, between: Any
) -> None:
    """With a 504, when what is left of the upload was received; layers further out see that."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda sent: seen.append((sent.status_code, sent.outcome)))

    inner: ASGIApp = TimeoutMiddleware(never, start=SOON)
    server = await request(
        HTTPMiddleware(between(inner) if between else inner, dispatch=outer),
        method="POST",
        body=[b"x"] * 10,
        spec=spec,
    )

    assert server.status == 504
    assert server.headers["content-type"] == "application/problem+json"
    assert server.json()["code"] == "timeout"
    assert server.receives == 10
    assert seen == [(504, "completed")]


async def test_one_that_begins_in_time_is_left_alone(spec: str | None) -> None:
    """The same messages, with any limit."""
    plain = await request(ok, spec=spec)
    limits: Any = dict.fromkeys(("start", "idle", "total", "upload_idle", "upload_total"), 30)
    server = await request(TimeoutMiddleware(ok, **limits), spec=spec)

    assert server.sent == plain.sent


async def test_the_status_and_the_words_are_an_option() -> None:
    """A 503 for those who have no proxy."""
    app = TimeoutMiddleware(
        never, start=SOON, status=503, response=lambda conn, problem: PlainTextResponse("slow", 503)
    )
    server = await request(app)

    assert (server.status, server.body) == (503, b"slow")


async def test_it_is_logged(caplog: Any) -> None:
    """The line has what was asked for, and how long it took."""
    with caplog.at_level(logging.WARNING):
        await request(TimeoutMiddleware(never, start=SOON), path="/a%0Ab")

    assert caplog.messages == [r"GET /a\nb has not begun its response in 0.02 s"]


async def test_the_limit_of_a_function_further_in_is_answered_as_well() -> None:
    """Where it does not do so itself."""

    async def limited(conn: Connection) -> Flow:
        conn.fail_after(SOON)
        yield

    app = TimeoutMiddleware(HTTPMiddleware(never, dispatch=limited))

    assert (await request(app)).status == 504


async def test_a_time_limit_of_the_application_s_own_is_an_error_of_its_own() -> None:
    """It is no limit of ours, and passes on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("of a database")

    server = await request(TimeoutMiddleware(app), keep_error=True)

    assert type(server.error) is TimeoutError
    assert server.sent == []


# -- events ----------------------------------------------------------------------------------


async def test_an_event_source_is_told_to_ask_again() -> None:
    """To a 504 a browser never does."""
    headers = {"accept": "text/event-stream"}
    server = await request(TimeoutMiddleware(never, start=SOON), headers=headers)

    assert (server.status, server.body) == (200, b"retry: 5000\n\n")
    assert server.headers["content-type"].startswith("text/event-stream")
    assert server.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("headers", "options"),
    [
        ([("accept", "text/event-stream, */*")], {}),
        ([("accept", "text/event-stream"), ("accept", "*/*")], {}),
        ([("accept", "text/event-stream")], {"event_stream": "status"}),
    ],
)
async def test_others_get_the_status(headers: Any, options: Any) -> None:
    """Who takes something else as well is no browser's `EventSource`."""
    server = await request(TimeoutMiddleware(never, start=SOON, **options), headers=headers)

    assert server.status == 504


@pytest.mark.parametrize(
    "content_type", [b"text/event-stream", b"Text/Event-Stream; charset=utf-8"]
)
async def test_a_stream_of_events_may_be_silent(content_type: bytes) -> None:
    """Events come when there are some."""
    gate = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", content_type)]))
        await send(body(b"data: 1\n\n", more=True))
        with anyio.move_on_after(SOON * 4):
            await gate.wait()
        await send(body(b"data: 2\n\n"))

    server = await request(TimeoutMiddleware(app, idle=SOON, total=SOON * 2))

    assert server.body == b"data: 1\n\ndata: 2\n\n"


# -- within the response ---------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["idle", "total"])
async def test_a_body_that_takes_too_long_breaks_off(spec: str | None, limit: str) -> None:
    """No end is made up, and the exception goes to the server."""
    options: Any = {limit: SOON * 5}  # what comes before has to be sent until then
    app = TimeoutMiddleware(silent_after(start(), body(b"a", more=True)), **options)
    server = await request(app, spec=spec, keep_error=True)

    assert server.sent == [start(), body(b"a", more=True)]
    assert isinstance(server.error, DeadlineExceeded)


async def test_without_a_limit_to_the_start() -> None:
    """Each limit stands for itself."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(SOON * 3):
            await anyio.sleep_forever()
        await ok(scope, receive, send)

    assert (await request(TimeoutMiddleware(app, start=None, idle=SOON))).status == 200
    assert (await request(TimeoutMiddleware(app, start=None, upload_idle=SOON))).status == 200


async def test_a_cut_body_is_seen_by_who_waits_for_its_end() -> None:
    """The outcome is `failed`."""
    seen: list[AppResponse] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append(response)
        yield response

    app = TimeoutMiddleware(silent_after(start(), body(b"a", more=True)), idle=SOON)
    await request(HTTPMiddleware(app, dispatch=outer), keep_error=True)

    assert seen[0].outcome == "failed"


# -- uploads ---------------------------------------------------------------------------------


class Stalls(Server):
    """A client that sends a part of its upload, and then nothing."""

    async def receive(self) -> Message:
        if self.receives:
            await anyio.sleep_forever()
        return await super().receive()


async def reads(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await ok(scope, receive, send)


@pytest.mark.parametrize("options", [{"upload_idle": SOON}, {"upload_total": SOON}])
async def test_an_upload_that_takes_too_long_is_a_408(spec: str | None, options: Any) -> None:
    """With the end of the connection, as the rest would come before the next request."""
    server = Stalls(method="POST", body=[b"a", b"b"], spec=spec)
    await server.run(TimeoutMiddleware(reads, **options))

    assert server.status == 408
    assert server.headers["connection"] == "close"


# -- handshakes ------------------------------------------------------------------------------


async def test_a_handshake_that_is_not_answered_is_refused() -> None:
    """The limit is that to the acceptance."""
    app = TimeoutMiddleware(never, start=SOON, upload_idle=SOON, total=SOON)
    server = await SocketServer(extensions=DENIES, headers={"accept": "text/event-stream"}).run(app)

    assert server.sent[0]["status"] == 504


async def test_a_socket_that_is_open_is_left_alone() -> None:
    """It may be silent for as long as it likes; a handshake has no upload."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with anyio.move_on_after(SOON * 3):
            await anyio.sleep_forever()
        await send({"type": "websocket.close"})

    for options in ({"start": SOON}, {"start": None, "upload_idle": SOON}):
        server = await SocketServer().run(TimeoutMiddleware(app, **options))
        assert [message["type"] for message in server.sent] == [
            "websocket.accept",
            "websocket.close",
        ]


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 0}, "seconds, more than 0, or None"),
        ({"idle": True}, "seconds, more than 0, or None"),
        ({"total": "5"}, "seconds, more than 0, or None"),
        ({"upload_idle": -1}, "seconds, more than 0, or None"),
        ({"upload_total": float("nan")}, "seconds, more than 0, or None"),
        ({"start": None}, "seconds where no other limit is given"),
        ({"status": 408}, "500 to 599"),
        ({"status": True}, "500 to 599"),
        ({"event_stream": "never"}, '"retry" or "status"'),
        ({"response": 3}, "a plain function"),
        ({"drain": 3}, "a bool, or a mapping"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made."""
    with pytest.raises(TypeError, match=re.escape(words)):
        TimeoutMiddleware(ok, **options)


async def test_streams_of_starlette_are_limited_as_well(spec: str | None) -> None:
    """They are sent from a task of their own below ASGI 2.4."""

    class Silent:
        def __init__(self) -> None:
            self.left = 1

        def __aiter__(self) -> Silent:
            return self

        async def __anext__(self) -> bytes:
            if self.left:
                self.left -= 1
                return b"a"
            await anyio.sleep_forever()
            raise AssertionError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Silent())(scope, receive, send)

    server = await request(TimeoutMiddleware(app, idle=SOON), spec=spec, keep_error=True)

    assert server.body == b"a"
    assert isinstance(server.error, DeadlineExceeded)
