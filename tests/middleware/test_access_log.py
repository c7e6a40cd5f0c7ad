"""`AccessLogMiddleware`: one line on every way out, and nothing in it that should not be there."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import structlog
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack
from httpmw.middleware import AccessLogMiddleware, AccessRecord, RequestIDMiddleware
from httpmw.testing import run
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import Chunks, Inner, PassThrough, request, script, stack, start

Line = tuple[str, str, dict[str, Any]]


class Kept:
    """A logger in the manner of structlog's, which keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        if level not in {"debug", "info", "warning", "error"}:
            raise AttributeError(level)

        def log(message: str, **fields: Any) -> None:
            self.lines.append((level, message, fields))

        return log

    @property
    def only(self) -> Line:
        [line] = self.lines
        return line

    @property
    def fields(self) -> dict[str, Any]:
        return self.only[2]


@pytest.fixture
def kept() -> Kept:
    return Kept()


Logged = Callable[..., Any]


@pytest.fixture(params=["alone", "fused", "nested"])
def logged(request: pytest.FixtureRequest, kept: Kept) -> Logged:
    """Put the layer around an app: alone, or between two others, fused or nested."""

    def logged(app: Any, **options: Any) -> Any:
        if request.param == "alone":
            return AccessLogMiddleware(app, logger=kept, **options)
        inner = stack(app, waiting, fused=True)
        if request.param == "nested":
            inner = PassThrough(inner)
        layer: Any = AccessLogMiddleware(inner, logger=kept, **options)
        if request.param == "nested":
            layer = PassThrough(layer)
        return stack(layer, waiting, fused=True)

    return logged


async def waiting(conn: Connection) -> Flow:
    response = yield
    yield response


def ended(kept: Kept) -> tuple[str, Any, str, int]:
    level, _, fields = kept.only
    return level, fields["status"], fields["outcome"], fields["bytes"]


# -- every way out ---------------------------------------------------------------------------


async def test_completed(logged: Logged, kept: Kept, inner: Inner, spec: str | None) -> None:
    """A response that is complete: its status, all its bytes, both times."""
    await request(logged(inner), spec=spec)

    assert ended(kept) == ("info", 200, "completed", len(Inner.BODY))
    assert 0 <= kept.fields["time_to_start"] <= kept.fields["duration"]
    assert "error" not in kept.fields


async def test_before_background_tasks(logged: Logged, kept: Kept, spec: str | None) -> None:
    """The line is there before a background task begins, and one that fails adds none."""
    seen: list[int] = []

    async def task() -> None:
        seen.append(len(kept.lines))
        raise RuntimeError("in the background")

    for response in (
        PlainTextResponse("abc", background=BackgroundTask(task)),
        StreamingResponse(Chunks(b"a", b"bc"), background=BackgroundTask(task)),
    ):
        kept.lines.clear()
        server = await request(logged(response), spec=spec, keep_error=True)

        assert isinstance(server.error, RuntimeError)
        assert ended(kept) == ("info", 200, "completed", 3)
    assert seen == [1, 1]


async def test_raised_before_the_start(logged: Logged, kept: Kept, spec: str | None) -> None:
    """Without a response there is no status: none is invented, the exception is named."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("nothing there")

    server = await request(logged(app), spec=spec, keep_error=True)

    assert isinstance(server.error, LookupError)
    assert ended(kept) == ("error", None, "failed", 0)
    assert kept.fields["error"] == "LookupError"


async def test_raised_within_the_body(logged: Logged, kept: Kept, spec: str | None) -> None:
    """What breaks off has the status and the bytes that were sent, and the exception."""

    async def chunks() -> Any:
        yield b"some"
        raise HTTPException(418)

    app = StreamingResponse(chunks())
    server = await request(logged(app), spec=spec, keep_error=True)

    assert server.error is not None
    level, status, outcome, size = ended(kept)
    assert (level, status, outcome, size) == ("error", 200, "failed", 4)
    assert kept.fields["error"] == "starlette.exceptions.HTTPException"


async def test_incomplete(logged: Logged, kept: Kept) -> None:
    """An app that returns in the middle."""
    message = {"type": "http.response.body", "body": b"ab", "more_body": True}
    await request(logged(script(start(), message)), keep_error=True)

    assert ended(kept) == ("warning", 200, "incomplete", 2)


async def test_no_response(logged: Logged, kept: Kept) -> None:
    """An app that returns without a response."""
    await request(logged(script()), keep_error=True)

    assert ended(kept) == ("error", None, "failed", 0)
    assert kept.fields["error"] == "httpmw.NoResponseError"


@pytest.mark.parametrize("leaves_after", [0, 1, 2])
async def test_the_client_leaves(
    logged: Logged, kept: Kept, spec: str | None, leaves_after: int
) -> None:
    """A client that leaves, before the start and within the body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if (await receive())["type"] == "http.disconnect":
            return
        await StreamingResponse(Chunks(b"ab", b"cd", b"ef"))(scope, receive, send)

    await request(logged(app), spec=spec, leaves_after=leaves_after, keep_error=True)

    level, status, outcome, size = ended(kept)
    assert (level, outcome) == ("info", "disconnected")
    assert status == (None if leaves_after == 0 else 200)
    assert size <= 6


@pytest.mark.parametrize("started", [False, True])
async def test_cancelled(logged: Logged, kept: Kept, started: bool) -> None:
    """A request that is cancelled, before the start and within the body."""
    running = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if started:
            await send(start())
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        running.set()
        await anyio.sleep_forever()

    layer = logged(app)

    async def one() -> None:
        await request(layer)

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await running.wait()
        group.cancel_scope.cancel()

    expected = ("warning", 200, "cancelled", 2) if started else ("warning", None, "cancelled", 0)
    assert ended(kept) == expected


async def test_replaced_by_a_layer_further_in(kept: Kept) -> None:
    """What another layer sends in place of the app's response is what is logged."""

    async def replaces(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("other", 418)

    inner = HTTPMiddleware(PlainTextResponse("ok"), dispatch=replaces)
    await request(AccessLogMiddleware(inner, logger=kept))

    assert ended(kept) == ("info", 418, "completed", 5)


async def test_replaced_by_a_layer_further_out(kept: Kept, fused: bool) -> None:
    """A response that is thrown away further out has its one line."""

    async def replaces(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("other", 418)

    layer: Any = AccessLogMiddleware(StreamingResponse(Chunks(b"ab", b"cd")), logger=kept)
    if not fused:
        layer = PassThrough(layer)
    server = await request(HTTPMiddleware(layer, dispatch=replaces))

    assert server.status == 418
    assert len(kept.lines) == 1
    assert kept.fields["status"] in {None, 200}


async def test_two_times_in_a_stack(kept: Kept) -> None:
    """Outside of the error handler the page for an exception is logged: its status, its bytes."""
    app = Starlette(routes=[Route("/", lambda request: 1 / 0)])
    MiddlewareStack.install(app).add(
        Middleware(AccessLogMiddleware, logger=kept), outside_errors=True
    )
    await request(app, keep_error=True)

    assert ended(kept) == ("error", 500, "completed", 21)


async def test_inside_of_the_error_handler(kept: Kept) -> None:
    """Added to the application, it logs the exception, and no status that it has not seen."""
    app = Starlette(routes=[Route("/", lambda request: 1 / 0)])
    app.add_middleware(AccessLogMiddleware, logger=kept)
    await request(app, keep_error=True)

    assert ended(kept) == ("error", None, "failed", 0)
    assert kept.fields["error"] == "ZeroDivisionError"


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_answers_of_frameworks(kept: Kept, kind: type[Any]) -> None:
    """404, 405 and the answer to an `HTTPException`, with the route that was matched."""

    async def endpoint(request: Request) -> None:
        raise HTTPException(403)

    app = kind()
    app.router.routes.append(Mount("/in", routes=[Route("/{name}", endpoint)]))
    app.add_middleware(AccessLogMiddleware, logger=kept)
    for method, path in (("GET", "/in/x"), ("POST", "/in/x"), ("GET", "/nowhere")):
        await request(app, method=method, path=path)

    assert [line[2]["status"] for line in kept.lines] == [403, 405, 404]
    assert "route" not in kept.lines[2][2]
    assert kept.lines[0][2]["route"] in {"/in/{name}", "/in/*"}


async def test_a_422_and_its_route(kept: Kept) -> None:
    """FastAPI's 422 has the template of its route, and nothing of the input."""
    app = FastAPI()
    app.add_middleware(AccessLogMiddleware, logger=kept)

    @app.get("/users/{user_id}")
    async def user(user_id: int) -> None: ...

    await request(app, path="/users/seven")

    assert ended(kept)[1] == 422
    assert kept.fields["route"] == "/users/{user_id}"


# -- WebSockets ------------------------------------------------------------------------------


async def endpoint(websocket: WebSocket) -> None:
    if "refuse" in websocket.query_params:
        await websocket.send_denial_response(PlainTextResponse("no", 401))
        return
    await websocket.accept()
    await websocket.send_text("hello")
    if "break" in websocket.query_params:
        raise RuntimeError("broken")
    await websocket.receive_text()
    await websocket.close(1001)


sockets = Starlette(routes=[WebSocketRoute("/", endpoint)])


@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("/", {"messages": ["x"]}, ("info", 101, "completed", 5)),
        ("/?refuse=1", {"extensions": DENIES}, ("info", 401, "completed", 2)),
        ("/?break=1", {}, ("error", 101, "failed", 5)),
        ("/nowhere", {}, ("info", 403, "completed", 0)),
    ],
)
async def test_websocket(kept: Kept, path: str, options: Any, expected: Any) -> None:
    """One line when the socket is over: what was accepted, what was refused and why it ended."""
    server = SocketServer(path=path, **options)
    await server.run(AccessLogMiddleware(sockets, logger=kept), keep_error=True)

    assert ended(kept) == expected
    assert kept.fields["websocket"] is True
    if path == "/":
        assert kept.fields["close_code"] == 1001


async def test_a_websocket_that_breaks_off(kept: Kept) -> None:
    """A connection that breaks off is told from one that was closed."""
    server = SocketServer(leaves_after=2)
    await server.run(AccessLogMiddleware(sockets, logger=kept), keep_error=True)

    assert ended(kept)[2] == "disconnected"
    assert kept.fields["close_code"] == 1006


async def test_no_line_before_a_websocket_is_over(kept: Kept) -> None:
    """While the socket is open there is no line, but that of `log_start`."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        seen.append([line[2]["outcome"] for line in kept.lines])
        await send({"type": "websocket.close", "code": 1000})

    for log_start in (False, True):
        await SocketServer().run(AccessLogMiddleware(app, logger=kept, log_start=log_start))

    assert seen == [[], ["completed", "started"]]
    assert [line[2]["outcome"] for line in kept.lines] == ["completed", "started", "completed"]


# -- privacy ---------------------------------------------------------------------------------

ok = PlainTextResponse("ok")


async def line_of(
    *, path: str = "/", sent: Any = (), scope: Any = None, **options: Any
) -> dict[str, Any]:
    kept = Kept()
    layer = Middleware(AccessLogMiddleware, logger=kept, **options)
    await run(layer, ok, path=path, headers=sent, scope=scope or {})
    return kept.fields


async def test_the_query_is_not_shown() -> None:
    """By default there is a path without its query, and no value of a header."""
    fields = await line_of(path="/a?token=secret", sent={"cookie": "secret", "x": "secret"})

    assert "secret" not in repr(fields)
    assert fields["path"] == "/a"


async def test_a_query_in_the_raw_path_is_not_shown() -> None:
    """A server that leaves the query in `raw_path` gives nothing away."""
    fields = await line_of(path="/a", scope={"raw_path": b"/a?token=secret"})

    assert fields["path"] == "/a"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("a=1&token=x&b=2", "a=1&token=REDACTED&b=2"),
        ("to%6ben=x&sig=y", "to%6ben=REDACTED&sig=REDACTED"),
        ("Token=x&SIG=y&tokens=z", "Token=x&SIG=y&tokens=z"),
        ("X-Amz-Signature=x&password=&code", "X-Amz-Signature=REDACTED&password=REDACTED&code"),
        ("a=b=token=c&&=", "a=b=token=c&&="),
    ],
)
async def test_redacted_query(query: str, shown: str) -> None:
    """Asked for, the query is there, and values of the listed keys are not; case-sensitive."""
    fields = await line_of(path=f"/?{query}", query="redacted")

    assert fields["query"] == shown


async def test_the_list_can_be_changed() -> None:
    """`redact=` takes the place of the list, for queries and for the referer."""
    headers = {"referer": "https://x.example/?a=1&token=2"}
    options: dict[str, Any] = {"query": "redacted", "headers": ["Referer"], "redact": ["a"]}
    fields = await line_of(path="/?a=1&token=2", sent=headers, **options)

    assert fields["query"] == "a=REDACTED&token=2"
    assert fields["headers"] == {"referer": "https://x.example/?a=REDACTED&token=2"}
    fields = await line_of(sent=headers, **{**options, "redact": ["token"]})
    assert fields["headers"] == {"referer": "https://x.example/?a=1&token=REDACTED"}


@pytest.mark.parametrize(
    ("host", "prefix"),
    [
        ("192.0.2.77", "192.0.2.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::ffff:192.0.2.77", "192.0.2.0"),
        ("fe80::1%eth0", "fe80::"),
        ("a-name", None),
    ],
)
async def test_client(host: str, prefix: str | None) -> None:
    """The client's address is there in full, as its network, or not at all."""
    scope = {"client": (host, 1)}

    assert (await line_of(scope=scope))["client"] == host
    assert (await line_of(scope=scope, client="prefix")).get("client") == prefix
    assert "client" not in await line_of(scope=scope, client=None)
    assert "client" not in await line_of(scope={"client": None})


async def test_headers() -> None:
    """Only the listed headers are there."""
    sent = {"user-agent": "curl", "x-other": "1"}
    fields = await line_of(sent=sent, headers=["User-Agent", "x-none"])

    assert fields["headers"] == {"user-agent": "curl"}
    assert "headers" not in await line_of(sent=sent)


EVIL = "x\r\n2026 ERROR forged \x1b[31m\x00\u202e"


async def test_control_characters_are_escaped() -> None:
    """What comes from the client can neither begin a line nor speak to a terminal."""
    for form in ("text", "combined"):
        kept = Kept()
        layer = Middleware(
            AccessLogMiddleware, logger=kept, format=form, query="redacted", headers=["x-evil"],
            fields=lambda conn, response: {"evil": EVIL},
        )  # fmt: skip
        evil = EVIL[:-1].encode("latin-1")
        headers = [(b"x-evil", evil), (b"user-agent", evil), (b"referer", evil)]
        scope = {"query_string": evil, "raw_path": b"/" + evil, "client": (EVIL, 1)}
        await run(layer, ok, headers=headers, scope=scope)
        _, message, _ = kept.only
        assert message.isprintable(), message
        assert "\\r\\n2026" in message

    fields = await line_of(scope={"path": f"/{EVIL}", "raw_path": None})
    assert fields["path"].isprintable()


@pytest.mark.parametrize("name", ["Authorization", "cookie", "proxy-authorization"])
def test_credentials_are_refused(name: str) -> None:
    """A header that is nothing but a credential cannot be asked for."""
    with pytest.raises(TypeError, match=f"without {name.lower()}"):
        AccessLogMiddleware(ok, headers=["x", name])


# -- formats ---------------------------------------------------------------------------------


def record(**changes: Any) -> AccessRecord:
    return AccessRecord(
        **{
            "time": 1_790_000_000.5, "method": "GET", "path": "/users/7", "status": 200,
            "outcome": "completed", "bytes": 26, "duration": 0.25, "time_to_start": 0.125,
            "route": "/users/{user_id}", "client": "192.0.2.7", "request_id": "abc", **changes,
        }
    )  # fmt: skip


@pytest.fixture
def formatted(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> Callable[..., str]:
    """Write a record with a logger of the standard library."""

    def formatted(form: Any, record: AccessRecord, level: int = logging.INFO) -> str:
        layer = AccessLogMiddleware(ok, format=form)
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "httpmw.access"):
            layer._write(level, record)
        [written] = caplog.records
        return written.getMessage()

    return formatted


def test_text(formatted: Callable[..., str]) -> None:
    """The format for people."""
    assert formatted("text", record()) == (
        "GET /users/7 200, 26 bytes in 250.0 ms, completed, start=125.0ms route=/users/{user_id} "
        "client=192.0.2.7 request_id=abc"
    )
    assert formatted("text", record(status=None, outcome="failed", error="KeyError")).startswith(
        "GET /users/7 -, 26 bytes in 250.0 ms, failed, "
    )


def test_combined(formatted: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Apache's format: a size of 0 is a dash, quotes are escaped, the time is local."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        headers = {"referer": "https://x.example/", "user-agent": 'a "b" \\'}
        line = formatted("combined", record(bytes=0, headers=headers, query="a=1"))
        none = formatted("combined", record(client=None, status=None))
    finally:
        monkeypatch.undo()
        time.tzset()

    assert line == (
        '192.0.2.7 - - [21/Sep/2026:19:43:20 +0530] "GET /users/7?a=1 HTTP/1.1" 200 - '
        r'"https://x.example/" "a \"b\" \\"'
    )
    assert none.startswith("- - - [")
    assert none.endswith('HTTP/1.1" - 26 "-" "-"')


def test_json(formatted: Callable[..., str]) -> None:
    """Our own names, numbers as numbers, seconds."""
    assert json.loads(formatted("json", record(fields={"user": 7, "at": object}))) == {
        "time": "2026-09-21T14:13:20.500+00:00", "level": "info", "user": 7,
        "at": "<class 'object'>", "method": "GET", "path": "/users/7", "status": 200,
        "outcome": "completed", "bytes": 26, "time_to_start": 0.125, "duration": 0.25,
        "http_version": "1.1", "route": "/users/{user_id}", "client": "192.0.2.7",
        "request_id": "abc",
    }  # fmt: skip


def test_ecs(formatted: Callable[..., str]) -> None:
    """The Elastic Common Schema: nanoseconds, its words for outcomes, labels for more fields."""
    written = record(headers={"user-agent": "curl"}, fields={"user": 7}, trace_id="f" * 32)
    fields = json.loads(formatted("ecs", written))

    assert fields["event.duration"] == 250_000_000
    assert fields["event.outcome"] == "success"
    assert fields["http.request.method"] == "GET"
    assert fields["http.request.id"] == "abc"
    assert fields["http.response.body.bytes"] == 26
    assert fields["http.response.status_code"] == 200
    assert fields["trace.id"] == "f" * 32
    assert fields["url.path"] == "/users/7"
    assert fields["client.address"] == "192.0.2.7"
    assert fields["user_agent.original"] == "curl"
    assert fields["labels.user"] == 7
    assert fields["httpmw.outcome"] == "completed"
    outcomes = {
        outcome: json.loads(formatted("ecs", record(outcome=outcome)))["event.outcome"]
        for outcome in ("failed", "incomplete", "disconnected", "cancelled")
    }
    assert list(outcomes.values()) == ["failure", "failure", "unknown", "unknown"]


def test_otel(formatted: Callable[..., str]) -> None:
    """OpenTelemetry's attributes: a method that nobody knows is `_OTHER`, a 500 is an error."""
    fields = json.loads(formatted("otel", record(method="BREW", status=503, headers={"x": "1"})))

    assert fields["http.request.method"] == "_OTHER"
    assert fields["http.request.method_original"] == "BREW"
    assert fields["http.route"] == "/users/{user_id}"
    assert fields["http.request.header.x"] == ["1"]
    assert fields["error.type"] == "503"
    assert fields["httpmw.duration_s"] == 0.25
    assert "http.request.method_original" not in json.loads(formatted("otel", record()))


def test_own_format(formatted: Callable[..., str]) -> None:
    """A callable gives a str, or a mapping that is written as JSON."""
    assert formatted(lambda record: f"{record.status}!", record()) == "200!"
    assert formatted(lambda record: {"s": record.status}, record()) == '{"s":200}'


# -- loggers ---------------------------------------------------------------------------------


async def test_structured(caplog: Any) -> None:
    """With `structured=True` a logger of the standard library gets fields as `extra`."""
    for form, names in (
        ("text", {"status", "outcome", "module_"}),
        ("ecs", {"event.duration", "labels.module"}),
        ("otel", {"http.request.method", "module_"}),
    ):
        caplog.clear()
        layer = Middleware(
            AccessLogMiddleware, format=form, structured=True,
            fields=lambda conn, response: {"module": "shop"},
        )  # fmt: skip
        with caplog.at_level(logging.INFO, "httpmw.access"):
            await run(layer, ok)
        [written] = caplog.records
        assert names <= vars(written).keys()
        assert written.getMessage().startswith("GET / 200")
        assert "@timestamp" not in vars(written)


async def test_structlog() -> None:
    """A logger of structlog gets the fields as keywords."""
    with structlog.testing.capture_logs() as captured:
        layer = Middleware(
            AccessLogMiddleware, logger=structlog.get_logger(), format="json",
            fields=lambda conn, response: {"event": "mine"},
        )  # fmt: skip
        await run(layer, ok)

    [event] = captured
    assert event["event"] == "GET / 200"
    assert event["event_"] == "mine"
    assert event["log_level"] == "info"
    assert event["status"] == 200


async def test_a_logger_adapter_and_a_logger(caplog: Any) -> None:
    """A logger object and an adapter are loggers, too; one that is switched off costs no line."""
    log = logging.getLogger("tests.access")
    for logger in (log, logging.LoggerAdapter(log, {}), "tests.access"):
        caplog.clear()
        with caplog.at_level(logging.INFO, "tests.access"):
            await run(Middleware(AccessLogMiddleware, logger=logger), ok)
        assert len(caplog.records) == 1
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tests.access"):
            await run(Middleware(AccessLogMiddleware, logger=logger), ok)
        assert caplog.records == []


# -- levels, sampling, slow ------------------------------------------------------------------


async def test_levels(kept: Kept) -> None:
    """A status from 500 on is an error, one below is none; a callable decides otherwise."""
    for status in (200, 404, 500):
        await run(Middleware(AccessLogMiddleware, logger=kept), Response(status_code=status))
    await run(Middleware(AccessLogMiddleware, logger=kept, level=lambda record: logging.DEBUG), ok)
    await run(Middleware(AccessLogMiddleware, logger=kept, level=lambda record: 25), ok)

    assert [line[0] for line in kept.lines] == ["info", "info", "error", "debug", "info"]


async def test_sampling_goes_by_the_id() -> None:
    """The same ids have a line in every service; errors always have one."""

    async def sampled(sample: float, app: Any = ok) -> set[int]:
        kept = Kept()
        layers = [
            Middleware(RequestIDMiddleware),
            Middleware(AccessLogMiddleware, logger=kept, sample=sample),
        ]
        for number in range(100):
            await run(layers, app, headers={"x-request-id": f"id-{number}"})
        return {int(line[2]["request_id"].partition("-")[2]) for line in kept.lines}

    quarter, half = await sampled(0.25), await sampled(0.5)
    assert 0 < len(quarter) < len(half) < 100
    assert quarter < half
    assert quarter == await sampled(0.25)
    assert await sampled(0) == set()
    assert len(await sampled(0, Response(status_code=500))) == 100


async def test_sampling_without_an_id(kept: Kept) -> None:
    """Without an id chance decides."""
    for _ in range(200):
        await run(Middleware(AccessLogMiddleware, logger=kept, sample=0.5), ok)

    assert 20 < len(kept.lines) < 180


async def test_slow(kept: Kept) -> None:
    """What is slow is at least a warning, and has a line whatever the sample; streams by start."""
    stream = StreamingResponse(Chunks(b"a"), media_type="text/event-stream")
    options: dict[str, Any] = {"logger": kept, "sample": 0}
    await run(Middleware(AccessLogMiddleware, slow=0, **options), ok)
    await run(Middleware(AccessLogMiddleware, slow=1000, **options), ok)
    assert (kept.only[0], kept.fields["slow"]) == ("warning", True)

    layer = AccessLogMiddleware(ok, slow=1.0)
    for response, is_slow in ((ok, True), (stream, False)):
        long = record(duration=2.0, time_to_start=0.5)
        assert layer._is_slow(long, response) is is_slow  # type: ignore[arg-type]
    assert layer._is_slow(record(duration=2.0, is_websocket=True), ok) is False  # type: ignore[arg-type]


# -- callables that fail ---------------------------------------------------------------------


def fails(*_: object) -> Any:
    raise LookupError("not today")


@pytest.mark.parametrize(
    "options",
    [
        {"fields": fails}, {"fields": lambda conn, response: 3}, {"level": fails},
        {"level": lambda record: "INFO"}, {"request_id": fails}, {"format": fails},
        {"format": lambda record: 3},
    ],
)  # fmt: skip
async def test_a_callable_that_fails_costs_its_field(options: Any, kept: Kept, caplog: Any) -> None:
    """There is a line all the same, and the log says once which option has failed."""
    layer = AccessLogMiddleware(ok, logger=kept, **options)
    for _ in range(3):
        server = await request(layer)
        assert server.status == 200

    assert [line[2]["status"] for line in kept.lines] == [200] * 3
    [failure] = [each for each in caplog.records if each.levelno == logging.ERROR]
    [name] = options
    assert f"`{name}`" in failure.getMessage()


async def test_a_logger_that_fails_harms_nothing(caplog: Any) -> None:
    """A logger that raises costs the line, and not the request."""

    class Broken(Kept):
        def __getattr__(self, level: str) -> Any:
            return fails

    for app in (ok, script()):
        await request(AccessLogMiddleware(app, logger=Broken()), keep_error=True)
    assert [each.levelname for each in caplog.records] == ["ERROR", "ERROR"]


async def test_fields_and_request_id(kept: Kept) -> None:
    """The callables see the connection and the response, None where there is none."""
    seen: list[Any] = []

    def fields(conn: Connection, response: Any) -> dict[str, Any]:
        seen.append(response)
        return {"tenant": conn.headers["x-tenant"], "status": "mine"}

    options: dict[str, Any] = {"fields": fields, "request_id": lambda conn: "own"}
    layer = Middleware(AccessLogMiddleware, logger=kept, **options)
    for app in (ok, LookupError()):
        await run(layer, app, headers={"x-tenant": "acme"}, keep_error=True)

    assert [line[2]["tenant"] for line in kept.lines] == ["acme"] * 2
    assert [line[2]["status"] for line in kept.lines] == [200, None]
    assert [line[2]["request_id"] for line in kept.lines] == ["own"] * 2
    assert seen[0].status_code == 200
    assert seen[1] is None


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
async def test_the_id_of_the_request(kept: Kept, order: list[int]) -> None:
    """The line has the id, whichever of the two layers is outside; on failures from outside."""
    layers = [Middleware(RequestIDMiddleware), Middleware(AccessLogMiddleware, logger=kept)]
    await run([layers[i] for i in order], ok, headers={"x-request-id": "came"})

    assert kept.fields["request_id"] == "came"


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "apache"}, "one of text, combined, json, ecs, otel"),
        ({"logger": 3}, "a logger or its name"),
        ({"query": "full"}, '"redacted" or None'),
        ({"query": True}, '"redacted" or None'),
        ({"client": "none"}, '"full", "prefix" or None'),
        ({"sample": 2}, "a number from 0.0 to 1.0"),
        ({"sample": True}, "a number from 0.0 to 1.0"),
        ({"sample": "all"}, "a number from 0.0 to 1.0"),
        ({"slow": "1s"}, "a number of seconds"),
        ({"redact": "token"}, "a list of names"),
        ({"headers": "user-agent"}, "a list of names"),
        ({"headers": [b"user-agent"]}, "a list of names"),
        ({"level": logging.INFO}, "a plain function"),
        ({"fields": {"a": 1}}, "a plain function"),
        ({"request_id": "x"}, "a plain function"),
        ({"structured": 1}, "a bool"),
        ({"log_start": None}, "a bool"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made, by its name."""
    [name] = options
    with pytest.raises(TypeError, match=re.escape(f"AccessLogMiddleware({name}=")) as caught:
        AccessLogMiddleware(ok, **options)

    assert words in str(caught.value)
