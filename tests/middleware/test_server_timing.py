"""`ServerTimingMiddleware`: what was measured goes to the browser, where that is wanted."""

from __future__ import annotations

import re
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import (
    SecurityHeadersMiddleware,
    ServerTiming,
    ServerTimingMiddleware,
    timing,
)
from httpmw.testing import run
from httpmw.testing.driving._socket import SocketServer
from tests.harness import Chunks, PassThrough, body, request, start

ok = PlainTextResponse("ok")

METRIC = re.compile(r'([^;, ]+);dur=(\d+\.\d{3})(?:;desc="((?:[^"\\]|\\.)*)")?')


def metrics(sent: Any) -> dict[str, tuple[float, str]]:
    """Read the header as a browser does."""
    lines = sent.headers.getlist("server-timing")
    return {
        name: (float(took), text) for line in lines for name, took, text in METRIC.findall(line)
    }


def app_with(endpoint: Any, kind: Any = Starlette, **options: Any) -> Any:
    app = kind(routes=[Route("/", endpoint)], debug=options.pop("debug", False))
    app.add_middleware(ServerTimingMiddleware, **options)
    return app


async def measured(request: Request) -> PlainTextResponse:
    with timing(request).measure("db", 'the "big" one'):
        pass
    with timing(request).measure("db"):
        pass
    timing(request).add("cache", 0.25)
    return PlainTextResponse("ok")


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_what_was_measured(kind: Any, spec: str | None) -> None:
    """The total comes first, what has one name is added up, descriptions are quoted."""
    server = await request(app_with(measured, kind, enabled=True), spec=spec)
    found = metrics(server)

    assert list(found) == ["total", "db", "cache"]
    assert found["cache"] == (250.0, "")
    assert found["db"][1] == r"the \"big\" one"
    assert len(server.headers.getlist("server-timing")) == 1


async def test_off_unless_the_application_is_debugged() -> None:
    """Strangers are told nothing: by default there is a header under `debug=True` only."""
    for debug in (False, True):
        server = await request(app_with(measured, debug=debug))
        assert ("server-timing" in server.headers) is debug
    assert "server-timing" not in (await run(Middleware(ServerTimingMiddleware), ok)).headers


@pytest.mark.parametrize(
    ("enabled", "sent"),
    [(True, True), (False, False), (lambda conn: "x-me" in conn.headers, True)],
)
async def test_enabled(enabled: Any, sent: bool) -> None:
    """It is enabled for all, for none, or by a predicate, together with `when`."""
    for options, expected in (({}, sent), ({"when": lambda conn: False}, False)):
        layer = Middleware(ServerTimingMiddleware, enabled=enabled, **options)
        result = await run(layer, ok, headers={"x-me": "1"})
        assert ("server-timing" in result.headers) is expected
    if callable(enabled):
        layer = Middleware(ServerTimingMiddleware, enabled=enabled)
        assert "server-timing" not in (await run(layer, ok)).headers


async def test_code_measures_where_the_layer_is_not() -> None:
    """Without the layer, or where it is not enabled, measuring goes on unseen."""
    app = Starlette(routes=[Route("/", measured)])

    assert (await request(app)).status == 200
    assert (await request(app_with(measured, enabled=False))).status == 200


async def test_in_threads_and_mounts() -> None:
    """A `def` endpoint of a mounted application measures for the same request."""
    inside = FastAPI()

    @inside.get("/x")
    def endpoint(request: Request) -> None:
        assert threading.current_thread() is not threading.main_thread()
        timing(request).add("thread", 0.5)

    app = Starlette(routes=[Mount("/in", inside)])
    app.add_middleware(ServerTimingMiddleware, enabled=True)

    assert metrics(await request(app, path="/in/x"))["thread"] == (500.0, "")


async def test_threads_lose_nothing() -> None:
    """What threads add at the same time is all there."""
    measure = ServerTiming()

    def add() -> None:
        for _ in range(1000):
            measure.add("x", 0.001)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert measure._header(None, 0) == "x;dur=4000.000"


async def test_on_streams_and_errors(spec: str | None) -> None:
    """A stream has what was measured before its start; a 404 and an `HTTPException` have it."""

    async def endpoint(request: Request) -> StreamingResponse:
        timing(request).add("before", 0.1)
        if "fail" in request.query_params:
            raise HTTPException(418)
        return StreamingResponse(Chunks(b"a", b"b"))

    app = app_with(endpoint, enabled=True)
    for path, status in (("/", 200), ("/?fail=1", 418), ("/nowhere", 404)):
        server = await request(app, path=path, spec=spec)
        assert server.status == status
        assert "total" in metrics(server)
        assert ("before" in metrics(server)) is (status != 404)


async def test_an_exception_passes_on() -> None:
    """An exception is none of its business."""
    result = await run(
        Middleware(ServerTimingMiddleware, enabled=True), LookupError(), keep_error=True
    )

    assert isinstance(result.exception, LookupError)


async def test_a_header_of_the_application_stays() -> None:
    """What the application has measured by itself is not replaced."""
    app = PlainTextResponse("ok", headers={"server-timing": "mine;dur=1.000"})
    result = await run(Middleware(ServerTimingMiddleware, enabled=True), app)

    assert list(metrics(result)) == ["mine", "total"]


async def test_at_most_32() -> None:
    """Of many names the first ones are sent, the total among them."""

    async def endpoint(request: Request) -> PlainTextResponse:
        for number in range(100):
            timing(request).add(f"n{number}", 1)
        return PlainTextResponse("ok")

    found = metrics(await request(app_with(endpoint, enabled=True)))

    assert list(found) == ["total", *(f"n{number}" for number in range(31))]


async def test_other_headers() -> None:
    """The name of the total, other origins and `x-process-time` are options."""
    options = {"enabled": True, "total": "app", "allow_origin": "*", "process_time": True}
    result = await run(Middleware(ServerTimingMiddleware, **options), ok)

    assert list(metrics(result)) == ["app"]
    assert result.headers["timing-allow-origin"] == "*"
    assert float(result.headers["x-process-time"]) >= 0

    nothing = await run(Middleware(ServerTimingMiddleware, enabled=True, total=None), ok)
    assert "server-timing" not in nothing.headers
    assert "x-process-time" not in nothing.headers


async def test_not_on_handshakes() -> None:
    """A WebSocket has no such header."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})

    server = SocketServer()
    await server.run(ServerTimingMiddleware(app, enabled=True))

    assert not server.sent[0].get("headers")


@pytest.mark.parametrize(
    ("name", "description"),
    [("my db", None), ("", None), ("a;b", None), ("db", "caf\xe9"), ("db", "a\r\nb"), ("db", 3)],
)
def test_what_cannot_stand_in_a_header_is_refused(name: str, description: Any) -> None:
    """A name that is no token, and a description that is not printable, are errors at once."""
    with pytest.raises(ValueError, match=r"RFC 9110 section 5\.6\.2"):
        ServerTiming().add(name, 1, description)
    with pytest.raises(ValueError, match="measured"), ServerTiming().measure(name, description):
        pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enabled": "yes"}, "a plain function"),
        ({"total": "my total"}, "the name of a metric"),
        ({"total": 3}, "the name of a metric"),
        ({"allow_origin": ["*"]}, "origins"),
        ({"allow_origin": "a\nb"}, "origins"),
        ({"process_time": 1}, "a bool"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made, by its name."""
    [name] = options
    with pytest.raises(TypeError, match=words) as caught:
        ServerTimingMiddleware(ok, **options)

    assert f"ServerTimingMiddleware({name}=" in str(caught.value)


# -- the layers ------------------------------------------------------------------------------


class Clock:
    """Time that passes where it is said."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("httpmw.middleware._server_timing.time", clock)
    return clock


async def layered(app: Any, *functions: Any, fused: bool) -> Any:
    for function in reversed(functions):
        app = HTTPMiddleware(app if fused else PassThrough(app), dispatch=function)
    app = app if fused else PassThrough(app)
    return await request(ServerTimingMiddleware(app, enabled=True, layers=True))


@pytest.mark.parametrize("fused", [True, False])
async def test_own_time_of_layers(clock: Clock, *, fused: bool, anyio_backend: str) -> None:
    """Each layer has what passes in its own code, and in what that awaits, but for the app."""

    async def outer(conn: Connection) -> Flow:
        clock.now += 1
        await anyio.lowlevel.checkpoint()
        yield
        clock.now += 2

    async def inner(conn: Connection) -> Flow:
        clock.now += 4
        response = yield
        await response.read()
        clock.now += 8

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now += 16
        await send(start())
        clock.now += 32
        await send(body(b"ok"))

    server = await layered(app, outer, inner, fused=fused)

    assert {name: took for name, (took, _) in metrics(server).items()} == {
        "total": 63_000.0,
        "outer": 3_000.0,
        "inner": 12_000.0,
    }


@pytest.mark.parametrize("fused", [True, False])
async def test_a_layer_is_named_after_its_class(*, fused: bool, anyio_backend: str) -> None:
    """What is ready to import has the name of its class."""
    layer: Any = SecurityHeadersMiddleware(ok)
    app = ServerTimingMiddleware(layer if fused else PassThrough(layer), enabled=True, layers=True)

    assert [*metrics(await request(app))] == ["total", "SecurityHeadersMiddleware"]


@pytest.mark.parametrize("fused", [True, False])
async def test_measured_layers_do_what_they_did(*, fused: bool, anyio_backend: str) -> None:
    """Delegation, an exception of the app that is answered, and a replacement work as before."""

    async def header(conn: Connection) -> Flow:
        response = yield
        response.headers["x-delegated"] = "yes"

    async def delegating(conn: Connection) -> Flow:
        response = yield header(conn)
        response.headers["x-after"] = "yes"

    async def catching(conn: Connection) -> Flow:
        try:
            yield
        except KeyError:
            yield PlainTextResponse("caught", 418)

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError

    server = await layered(failing, delegating, catching, fused=fused)

    assert (server.status, server.body) == (418, b"caught")
    assert (server.headers["x-delegated"], server.headers["x-after"]) == ("yes", "yes")
    assert [*metrics(server)] == ["total", "delegating", "catching"]


async def test_layers_are_not_measured_where_it_is_not_enabled(anyio_backend: str) -> None:
    """Without the header nothing is measured, and the layers are there."""
    layer = SecurityHeadersMiddleware(ok)
    server = await request(ServerTimingMiddleware(layer, enabled=False, layers=True))

    assert "server-timing" not in server.headers
    assert "content-security-policy" in server.headers
