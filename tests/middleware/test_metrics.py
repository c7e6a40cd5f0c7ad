"""`PrometheusMiddleware` and `OpenTelemetryMetricsMiddleware`: one observation for each request."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import (
    OpenTelemetryMetricsMiddleware,
    ProblemDetailsMiddleware,
    PrometheusMiddleware,
    metrics_endpoint,
)
from httpmw.middleware._prometheus import _is_there
from httpmw.testing import Server, World, explore
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests import ROOT
from tests.harness import Chunks, PassThrough, body, request, script, start
from tests.middleware.test_route_template import starlette_only

DURATION = "http_server_request_duration_seconds"
ACTIVE = "http_server_active_requests"

Labels = dict[str, str]


class Seen:
    """What a registry has."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def samples(self, name: str) -> list[tuple[Labels, float]]:
        return [
            (sample.labels, sample.value)
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        ]

    def one(self, name: str = DURATION) -> Labels:
        """Return the labels, that are not empty, of what was observed once, and nothing else."""
        [(labels, count)] = self.samples(f"{name}_count")
        assert count == 1
        return {name: value for name, value in labels.items() if value}

    def in_flight(self, name: str = ACTIVE) -> float:
        return sum(value for _, value in self.samples(name))

    def layer(self, app: ASGIApp, **options: Any) -> PrometheusMiddleware:
        return PrometheusMiddleware(app, registry=self.registry, **options)


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    for name in (ACTIVE, "httpmw_websocket_active"):
        assert seen.in_flight(name) == 0


def without(labels: Labels, *names: str) -> Labels:
    return {name: value for name, value in labels.items() if name not in names}


BASE = {"http_request_method": "GET", "url_scheme": "http"}
OK = {**BASE, "http_response_status_code": "200"}


def raising(exc: BaseException, *before: Any) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in before:
            await send(message)
        raise exc

    return app


# -- every way out ---------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_a_plain_response(seen: Seen, spec: str | None, between: Any) -> None:
    """One observation, with the labels of OpenTelemetry."""

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.headers["x-outer"] = "1"

    app: ASGIApp = seen.layer(PlainTextResponse("ok"), outcome_label=True)
    app = HTTPMiddleware(between(app) if between else app, dispatch=outer)

    assert (await request(app, spec=spec)).text == "ok"
    assert seen.one() == {**OK, "outcome": "completed"}


async def test_a_stream_is_one_observation(seen: Seen, spec: str | None) -> None:
    """However many chunks it has."""
    app = seen.layer(StreamingResponse(Chunks(b"a", b"b", b"c")), body_sizes=True)

    await request(app, spec=spec)

    assert seen.one() == OK
    [(_, size)] = seen.samples("http_server_response_body_size_bytes_sum")
    assert size == 3


async def test_sizes_are_of_each_response(seen: Seen) -> None:
    """A stream after a response with a length: what was sent counts, not what was declared."""
    long = seen.layer(PlainTextResponse("x" * 2000), body_sizes=True)
    stream = seen.layer(StreamingResponse(Chunks(b"x" * 20, b"y" * 40)), body_sizes=True)

    await request(long, method="POST", body=b"12345")
    await request(stream)

    sizes = seen.samples("http_server_response_body_size_bytes_sum")
    assert sum(size for _, size in sizes) == 2060
    assert sum(size for _, size in seen.samples("http_server_request_body_size_bytes_sum")) == 5


async def test_a_raise_before_the_response(seen: Seen) -> None:
    """The status is the 500 that the server makes of it, `error_type` the name of the class."""
    await request(seen.layer(raising(HTTPException(500))), keep_error=True)

    assert seen.one() == {
        **BASE,
        "http_response_status_code": "500",
        "error_type": "starlette.exceptions.HTTPException",
    }


async def test_a_raise_in_mid_body(seen: Seen, spec: str | None) -> None:
    """The status that was sent, and the error."""
    app = raising(ValueError("x"), start(201), body(b"half", more=True))

    await request(seen.layer(app, outcome_label=True), keep_error=True, spec=spec)

    assert seen.one() == {
        **BASE,
        "http_response_status_code": "201",
        "error_type": "ValueError",
        "outcome": "failed",
    }


async def test_an_app_that_stops_in_mid_body(seen: Seen) -> None:
    """Nobody failed, and the body is not whole."""
    app = script(start(), body(b"half", more=True))

    await request(seen.layer(app), keep_error=True)

    assert seen.one() == {**OK, "error_type": "incomplete"}


async def test_a_client_that_leaves(seen: Seen, spec: str | None) -> None:
    """A dropped connection keeps its status, and is not a server's error."""
    app = seen.layer(StreamingResponse(Chunks(*[b"x"] * 50)), outcome_label=True)

    await request(app, leaves_after=2, keep_error=True, spec=spec)

    assert seen.one() == {**OK, "error_type": "disconnected", "outcome": "disconnected"}


async def test_a_client_that_leaves_events(seen: Seen, spec: str | None) -> None:
    """That is how a stream of events ends: no error."""
    events = StreamingResponse(Chunks(*[b"data: x\n\n"] * 50), media_type="text/event-stream")

    app = seen.layer(events, outcome_label=True)
    await request(app, leaves_after=2, keep_error=True, spec=spec)

    assert seen.one() == {**OK, "outcome": "disconnected"}


async def test_a_client_that_has_left_before_the_response(seen: Seen) -> None:
    """There was no response, so there is no status."""
    await request(seen.layer(raising(ClientDisconnect())), leaves_after=0, keep_error=True)

    assert seen.one() == {**BASE, "error_type": "disconnected"}


@pytest.mark.parametrize("before", [(), (start(), body(b"half", more=True))])
async def test_a_cancelled_request(seen: Seen, before: Any) -> None:
    """It is observed, and nothing is in flight afterwards."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in before:
            await send(message)
        cancel.cancel()
        await anyio.sleep(30)

    server = Server()
    with anyio.CancelScope() as cancel:
        await seen.layer(app)(server.scope, server.receive, server.send)

    labels = seen.one()
    assert labels["error_type"] == "cancelled"
    assert ("http_response_status_code" in labels) == bool(before)


async def test_a_5xx_that_nobody_raised(seen: Seen) -> None:
    """`error_type` is the status."""
    await request(seen.layer(PlainTextResponse("no", 503)))

    assert seen.one() == {**BASE, "http_response_status_code": "503", "error_type": "503"}


async def test_background_tasks_are_not_counted(seen: Seen) -> None:
    """It is over when the server has the last byte, not when the task has ended."""
    counted = []

    def task() -> None:
        counted.append((seen.one(), seen.in_flight()))

    app = seen.layer(PlainTextResponse("ok", background=BackgroundTask(task)))

    await request(app)

    assert counted == [(OK, 0)]


async def test_a_background_task_that_fails_is_not_the_requests(seen: Seen) -> None:
    """The response was complete."""

    def task() -> None:
        raise ValueError("x")

    app = seen.layer(PlainTextResponse("ok", background=BackgroundTask(task)))

    await request(app, keep_error=True)

    assert seen.one() == OK


async def test_the_exit_of_a_dependency_is_not_counted(seen: Seen) -> None:
    """FastAPI leaves those of the request's scope when the response is out."""
    counted = []

    async def dependency() -> Any:
        yield
        counted.append(seen.in_flight())

    app = FastAPI(middleware=[Middleware(PrometheusMiddleware, registry=seen.registry)])

    @app.get("/", dependencies=[Depends(dependency)])
    async def endpoint() -> str:
        return "ok"

    await request(app)

    assert counted == [0]


async def test_a_problem_is_seen_from_outside(seen: Seen) -> None:
    """What the client gets is what is counted."""
    app = seen.layer(ProblemDetailsMiddleware(raising(ValueError("x"))))

    await request(app, keep_error=True)

    assert seen.one() == {**BASE, "http_response_status_code": "500", "error_type": "500"}


async def test_in_flight_is_counted_while_it_runs(seen: Seen) -> None:
    """With method and scheme only: no route is known yet."""
    during = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        during.extend(seen.samples(ACTIVE))
        await PlainTextResponse("ok")(scope, receive, send)

    await request(seen.layer(app))

    assert during == [(BASE, 1.0)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_in_any_schedule_there_is_one_observation(backend: str) -> None:
    """Whatever goes wrong at whatever moment: each request once, and nothing left in flight."""

    async def scenario(world: World) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if world.random.random() < 0.3:
                await PlainTextResponse("ok", background=BackgroundTask(world.pause))(
                    scope, receive, send
                )
                return
            await send(start())
            for index in range(3):
                await world.pause()
                await send(body(b"x", more=index < 2))

        seen = Seen()
        layer = seen.layer(
            PassThrough(ProblemDetailsMiddleware(world.app(app))), outcome_label=True
        )
        met = []

        async def outer(scope: Scope, receive: Receive, send: Send) -> None:
            met.append(1)
            await layer(scope, receive, send)

        try:
            await world.run(outer)
        finally:
            assert sum(value for _, value in seen.samples(f"{DURATION}_count")) == len(met)
            assert seen.in_flight() == 0

    assert len(explore(scenario, seeds=100, backend=backend)) >= 4


# -- labels ----------------------------------------------------------------------------------


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def nested(framework: str, layer: Middleware) -> ASGIApp:
    if framework == "starlette":
        inner = [Mount("/deep", routes=[Route("/x/{number:int}", ok)])]
        return Starlette(routes=[Mount("/api", routes=inner), Route("/", ok)], middleware=[layer])
    router, deep = APIRouter(), APIRouter()

    @deep.get("/x/{number}")
    async def x(number: int) -> int:
        return number

    router.include_router(deep, prefix="/deep")
    app = FastAPI(middleware=[layer])
    app.include_router(router, prefix="/api")
    app.add_api_route("/", lambda: "ok")
    return app


@pytest.mark.parametrize("framework", [pytest.param("starlette", marks=starlette_only), "fastapi"])
@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/api/deep/x/7", r"/api/deep/x/{number}", "200"),
        ("GET", "/", "/", "200"),
        ("GET", "/none/7", None, "404"),
        ("POST", "/", "/", "405"),
    ],
)
async def test_the_route_is_the_template(
    seen: Seen, framework: str, method: str, path: str, route: str | None, status: str
) -> None:
    """Never the path; what matches no route has no label."""
    app = nested(framework, Middleware(PrometheusMiddleware, registry=seen.registry))

    await request(app, method=method, path=path)

    labels = seen.one()
    assert labels["http_response_status_code"] == status
    assert labels.get("http_route") == route


async def test_unmatched_can_have_a_name(seen: Seen) -> None:
    """For who wants a label there."""
    await request(seen.layer(PlainTextResponse("x", 404), unmatched="none"))

    assert seen.one()["http_route"] == "none"


@pytest.mark.parametrize(("method", "label"), [("QUERY", "QUERY"), ("PROPFIND", "_OTHER")])
async def test_methods_are_few(seen: Seen, method: str, label: str) -> None:
    """A client can send any word."""
    await request(seen.layer(PlainTextResponse("ok")), method=method)

    assert seen.one()["http_request_method"] == label


async def test_the_known_methods_are_those_of_the_environment(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the conventions say: the list replaces the known ones."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "GET, PROPFIND")
    app = seen.layer(PlainTextResponse("ok"))

    await request(app, method="PROPFIND")
    await request(app, method="POST")

    methods = {labels["http_request_method"] for labels, _ in seen.samples(f"{DURATION}_count")}
    assert methods == {"PROPFIND", "_OTHER"}


async def test_labels_are_asked_at_the_end(seen: Seen) -> None:
    """The endpoint has set what they look at."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["tenant"] = "acme"
        await PlainTextResponse("ok")(scope, receive, send)

    await request(seen.layer(app, labels={"tenant": lambda conn: conn.state.tenant}))

    assert seen.one()["tenant"] == "acme"


async def test_labels_are_bounded(seen: Seen) -> None:
    """What comes after the allowed number of values is `_OTHER`."""
    app = seen.layer(
        PlainTextResponse("ok"),
        labels={"who": lambda conn: conn.headers["x-who"]},
        max_label_values=2,
    )

    for who in "abcab":
        await request(app, headers={"x-who": who})

    counts = {labels["who"]: count for labels, count in seen.samples(f"{DURATION}_count")}
    assert counts == {"a": 2, "b": 2, "_OTHER": 1}


async def test_a_label_that_fails_costs_its_value(
    seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is counted all the same, and the log says whose fault it is."""
    app = seen.layer(PlainTextResponse("ok"), labels={"who": lambda conn: conn.headers["x-who"]})

    await request(app)

    assert seen.one() == OK
    assert "'who' of PrometheusMiddleware" in caplog.text


# -- WebSockets ------------------------------------------------------------------------------


def socket(endpoint: Callable[[WebSocket], Any], seen: Seen) -> Starlette:
    return Starlette(
        routes=[WebSocketRoute("/ws/{room}", endpoint)],
        middleware=[
            Middleware(PrometheusMiddleware, registry=seen.registry, outcome_label=True),
        ],
    )


WS = {"http_route": "/ws/{room}", "url_scheme": "ws"}
HANDSHAKE = "httpmw_websocket_handshake_duration_seconds"
SOCKET = "httpmw_websocket_duration_seconds"


@starlette_only
async def test_an_accepted_websocket_has_metrics_of_its_own(seen: Seen) -> None:
    """The handshake, how long it stayed, and how many there are; no duration of a request."""
    during = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        during.append(seen.in_flight("httpmw_websocket_active"))
        with suppress(WebSocketDisconnect):
            await websocket.receive_text()

    await SocketServer(path="/ws/1").run(socket(endpoint, seen))

    assert during == [1]
    assert seen.one(HANDSHAKE) == {**WS, "http_response_status_code": "101"}
    assert "error_type" not in seen.one(SOCKET)
    assert seen.samples(f"{DURATION}_count") == []


@starlette_only
async def test_a_refused_websocket_is_a_handshake(seen: Seen) -> None:
    """With the status of the refusal."""

    async def endpoint(websocket: WebSocket) -> None:
        raise HTTPException(401)

    await SocketServer(path="/ws/1", extensions=DENIES).run(socket(endpoint, seen))

    assert seen.one(HANDSHAKE) == {**WS, "http_response_status_code": "401"}
    assert seen.samples(f"{SOCKET}_count") == []


@starlette_only
async def test_a_dropped_websocket_is_over(seen: Seen) -> None:
    """The connection breaks off while the app sends."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        for _ in range(5):
            await websocket.send_text("x")

    await SocketServer(path="/ws/1", leaves_after=2).run(socket(endpoint, seen), keep_error=True)

    assert seen.one(HANDSHAKE)["http_response_status_code"] == "101"
    assert seen.one(SOCKET)["http_route"] == "/ws/{room}"


async def test_a_websocket_that_fails_has_its_error(seen: Seen) -> None:
    """After the acceptance it is that of the socket, before it that of the handshake."""

    async def endpoint(websocket: WebSocket) -> None:
        if websocket.path_params["room"] == "2":
            await websocket.accept()
        raise ValueError("x")

    for room in "12":
        server = SocketServer(path=f"/ws/{room}")
        await server.run(socket(endpoint, seen), keep_error=True)

    assert sorted(
        labels["http_response_status_code"] for labels, _ in seen.samples(f"{HANDSHAKE}_count")
    ) == ["101", "500"]
    assert seen.one(SOCKET)["error_type"] == "ValueError"


async def test_websockets_can_be_left_out(seen: Seen) -> None:
    """`websocket=False`, as with every layer."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()

    app = seen.layer(Starlette(routes=[WebSocketRoute("/", endpoint)]), websocket=False)

    await SocketServer().run(app)

    assert seen.samples(f"{HANDSHAKE}_count") == []


# -- the page --------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_the_page_shows_the_registry(seen: Seen, framework: Any) -> None:
    """In the text format, and it does not count itself."""
    app = framework(middleware=[Middleware(PrometheusMiddleware, registry=seen.registry)])
    app.add_route("/", ok)
    app.add_route("/metrics", metrics_endpoint(seen.registry))

    await request(app)
    first = await request(app, path="/metrics")
    second = await request(app, path="/metrics")

    assert first.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(second.text)}
    counts = [each for each in families[DURATION].samples if each.name == f"{DURATION}_count"]
    assert [each.value for each in counts] == [1.0]


async def test_the_page_knows_openmetrics_and_names(seen: Seen) -> None:
    """What `Accept` asks for, and `name[]` as prometheus-client's own page."""
    app = Starlette(routes=[Route("/metrics", metrics_endpoint(seen.registry))])
    await request(seen.layer(PlainTextResponse("ok")))

    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    server = await request(app, path=f"/metrics?name[]={DURATION}_count", headers=accept)

    assert server.headers["content-type"].startswith("application/openmetrics-text")
    assert server.text.splitlines()[-1] == "# EOF"
    assert len(re.findall(f"^{DURATION}", server.text, re.MULTILINE)) == 1


def test_the_page_checks_its_registry() -> None:
    """The error is where it is made."""
    with pytest.raises(TypeError, match="CollectorRegistry"):
        metrics_endpoint("metrics")  # type: ignore[arg-type]


async def test_exemplars_have_the_trace(seen: Seen) -> None:
    """Of a sampled span, in OpenMetrics."""
    tracer = TracerProvider().get_tracer("test")
    app = seen.layer(PlainTextResponse("ok"), exemplars=True)

    with tracer.start_as_current_span("request") as span:
        await request(app)

    page = Starlette(routes=[Route("/", metrics_endpoint(seen.registry))])
    server = await request(page, headers={"accept": "application/openmetrics-text"})
    assert f'trace_id="{span.get_span_context().trace_id:032x}"' in server.text


# -- names of prometheus-fastapi-instrumentator ----------------------------------------------


@starlette_only
async def test_pfi_has_its_five_metrics(seen: Seen) -> None:
    """With its labels: statuses in groups, and `none` for what matches no route."""
    app = Starlette(
        routes=[Route("/x/{number}", ok)],
        middleware=[Middleware(PrometheusMiddleware, registry=seen.registry, names="pfi")],
    )

    await request(app, path="/x/1", headers={"content-length": "3"}, body=b"123")
    await request(app, path="/none")

    assert seen.samples("http_requests_total") == [
        ({"method": "GET", "status": "2xx", "handler": "/x/{number}"}, 1.0),
        ({"method": "GET", "status": "4xx", "handler": "none"}, 1.0),
    ]
    assert seen.samples("http_request_size_bytes_sum")[0] == ({"handler": "/x/{number}"}, 3.0)
    assert seen.samples("http_response_size_bytes_sum")[0] == ({"handler": "/x/{number}"}, 2.0)
    assert seen.samples("http_request_duration_highr_seconds_count") == [({}, 2.0)]
    bounds = [
        labels["le"]
        for labels, _ in seen.samples("http_request_duration_seconds_bucket")
        if labels["handler"] == "none"
    ]
    assert bounds == ["0.1", "0.5", "1.0", "+Inf"]
    assert seen.samples("http_requests_inprogress") == [({}, 0.0)]


# -- layers and registries -------------------------------------------------------------------


async def test_a_layer_can_be_made_again(seen: Seen) -> None:
    """Starlette makes all of them when it builds its stack; the metrics are the same."""
    for _ in range(3):
        await request(seen.layer(PlainTextResponse("ok")))

    assert seen.samples(f"{DURATION}_count")[0][1] == 3


def test_other_options_on_one_registry_are_refused(seen: Seen) -> None:
    """The error says what to do; nothing is left half registered."""
    seen.layer(script())

    with pytest.raises(ValueError, match=r"`prefix=`"):
        seen.layer(script(), outcome_label=True)

    seen.layer(script(), outcome_label=True, prefix="other_")


def test_a_label_that_is_there_already_is_refused(seen: Seen) -> None:
    """Prometheus would not take what it shows."""
    with pytest.raises(ValueError, match="http_route"):
        seen.layer(script(), labels={"http_route": lambda conn: "x"})

    seen.layer(script())


@pytest.mark.parametrize("kind", [PrometheusMiddleware, OpenTelemetryMetricsMiddleware])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buckets": []}, "seconds that increase"),
        ({"buckets": [1, 1]}, "seconds that increase"),
        ({"buckets": "abc"}, "seconds that increase"),
        ({"labels": ["tenant"]}, "mapping of names"),
        ({"labels": {"a-b": str}}, "mapping of names"),
        ({"labels": {"tenant": "acme"}}, "plain functions"),
        ({"max_label_values": "many"}, "an int"),
        ({"outcome_label": 1}, "a bool"),
        ({"inprogress": None}, "a bool"),
    ],
)
def test_options_are_checked(kind: Any, options: Any, words: str) -> None:
    """Where the layer is made, with the name of the class."""
    with pytest.raises(TypeError, match=words) as caught:
        kind(script(), **options)

    assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"registry": "default"}, "CollectorRegistry"),
        ({"names": "starlette"}, "'otel' or 'pfi'"),
        ({"prefix": "a-b"}, "beginning of a name"),
        ({"unmatched": 1}, "a str or None"),
        ({"exemplars": "yes"}, "a bool"),
        ({"names": "pfi", "buckets": [1.0]}, "has its own"),
        ({"names": "pfi", "body_sizes": True}, "has them"),
    ],
)
def test_options_of_prometheus_are_checked(options: Any, words: str) -> None:
    """Where the layer is made."""
    with pytest.raises(TypeError, match=words):
        PrometheusMiddleware(script(), **options)


def test_options_of_opentelemetry_are_checked() -> None:
    """Where the layer is made."""
    with pytest.raises(TypeError, match="a MeterProvider"):
        OpenTelemetryMetricsMiddleware(script(), meter_provider="global")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("PrometheusMiddleware", "prometheus_client", "prometheus"),
        ("OpenTelemetryMetricsMiddleware", "opentelemetry", "opentelemetry"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(name: str, missing: str, extra: str) -> None:
    """The error says what to install."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"try:\n    from httpmw.middleware import {name}\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert f"{name} needs" in done.stdout
    assert f"httpmw[{extra}]" in done.stdout


# -- OpenTelemetry ---------------------------------------------------------------------------


class Metered:
    """A meter provider, and what it has."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def layer(self, app: ASGIApp, **options: Any) -> OpenTelemetryMetricsMiddleware:
        return OpenTelemetryMetricsMiddleware(app, meter_provider=self.provider, **options)


@pytest.fixture
def metered() -> Iterator[Metered]:
    metered = Metered()
    yield metered
    metered.provider.shutdown()


@starlette_only
async def test_opentelemetry_has_the_stable_conventions(metered: Metered) -> None:
    """Name, unit, buckets and attributes."""
    app = Starlette(
        routes=[Route("/x/{number}", ok)],
        middleware=[
            Middleware(
                OpenTelemetryMetricsMiddleware,
                meter_provider=metered.provider,
                body_sizes=True,
                outcome_label=True,
                labels={"tenant": lambda conn: "acme", "none": lambda conn: None},
            )
        ],
    )

    await request(app, path="/x/1")

    [point] = metered.points("http.server.request.duration")
    assert dict(point.attributes) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.route": "/x/{number}",
        "http.response.status_code": 200,
        "httpmw.outcome": "completed",
        "tenant": "acme",
    }
    assert point.count == 1
    assert point.explicit_bounds == (
        *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0),
    )
    [active] = metered.points("http.server.active_requests")
    assert active.value == 0
    assert dict(active.attributes) == {"http.request.method": "GET", "url.scheme": "http"}
    [size] = metered.points("http.server.response.body.size")
    assert size.sum == 2


async def test_opentelemetry_has_the_error(metered: Metered) -> None:
    """A dropped connection keeps its status (the example of the conventions)."""
    app = metered.layer(raising(KeyError("x"), start(201), body(b"x", more=True)))

    await request(app, keep_error=True)

    [point] = metered.points("http.server.request.duration")
    assert point.attributes["http.response.status_code"] == 201
    assert point.attributes["error.type"] == "KeyError"


async def test_opentelemetry_has_websockets(metered: Metered) -> None:
    """Under names of ours: the conventions have none."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()

    await SocketServer().run(metered.layer(Starlette(routes=[WebSocketRoute("/", endpoint)])))

    assert len(metered.points("httpmw.websocket.handshake.duration")) == 1
    assert len(metered.points("httpmw.websocket.duration")) == 1
    assert [point.value for point in metered.points("httpmw.websocket.active")] == [0]
    assert metered.points("http.server.request.duration") == []


def instrumented(metered: Metered, place: str, telemetry: Any, **options: Any) -> ASGIApp:
    app = FastAPI(telemetry={"meter_provider": metered.provider, **telemetry})
    app.add_api_route("/", lambda: "ok")
    options["meter_provider"] = metered.provider
    if place == "inside":
        app.add_middleware(OpenTelemetryMetricsMiddleware, **options)
        return app
    return OpenTelemetryMetricsMiddleware(PassThrough(app), **options)


def total(metered: Metered) -> int:
    return sum(point.count for point in metered.points("http.server.request.duration"))


@pytest.mark.skipif("telemetry" not in FastAPI.__init__.__annotations__, reason="an older FastAPI")
@pytest.mark.parametrize("place", ["inside", "outside"])
class TestBesideFastAPI:
    async def test_no_request_is_counted_twice(
        self, metered: Metered, place: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """FastAPI's own stay; the log says so once."""
        app = instrumented(metered, place, {})

        await request(app)
        await request(app)

        assert total(metered) == 2
        assert [point.value for point in metered.points("http.server.active_requests")] == [0]
        assert caplog.text.count("FastAPI records http.server.request.duration itself") == 1

    async def test_without_fastapis_own_it_is_ours(self, metered: Metered, place: str) -> None:
        """Whether all of it is off, or metrics alone."""
        await request(instrumented(metered, place, {"metrics": False}))

        assert total(metered) == 1

    async def test_force_records_both(self, metered: Metered, place: str) -> None:
        """The way out, for who wants it."""
        await request(instrumented(metered, place, {}, force=True))

        assert total(metered) == 2

    async def test_traces_alone_leave_the_metrics_to_us(self, metered: Metered, place: str) -> None:
        """The scope is marked by any of FastAPI's three signals."""
        tracing = {"metrics": False, "tracer_provider": TracerProvider()}

        await request(instrumented(metered, place, tracing))

        assert total(metered) == 1


async def test_a_fastapi_below_a_mount_is_not_counted_twice(metered: Metered) -> None:
    """It is found at the end, by what it has left in the scope."""
    inner = FastAPI(telemetry={"meter_provider": metered.provider})
    inner.add_api_route("/", lambda: "ok")
    app = Starlette(
        routes=[Mount("/sub", app=inner)],
        middleware=[Middleware(OpenTelemetryMetricsMiddleware, meter_provider=metered.provider)],
    )

    await request(app, path="/sub/")

    assert total(metered) == 1


# -- several processes -----------------------------------------------------------------------

SERVED = """
import os, anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from httpmw.middleware import PrometheusMiddleware, metrics_endpoint

async def pid(request):
    return PlainTextResponse(str(os.getpid()))

async def stays(request):
    await anyio.sleep(600)

app = Starlette(
    routes=[Route("/pid", pid), Route("/stays", stays), Route("/metrics", metrics_endpoint())],
    middleware=[Middleware(PrometheusMiddleware)],
)
"""

WORKER = """
import sys, anyio
from served import app
from httpmw.testing import Server, World, explore

async def main():
    async with anyio.create_task_group() as tasks:
        async def one(path):
            server = Server(path=path)
            await server.run(app)
            return server
        for line in iter(sys.stdin.readline, ""):
            path = line.strip()
            if path == "/stays":
                tasks.start_soon(one, path)
                await anyio.sleep(0.05)
                print("stays", flush=True)
            else:
                server = await one(path)
                print(server.text.replace("\\n", "|"), flush=True)
        tasks.cancel_scope.cancel()

anyio.run(main)
"""


class Worker:
    def __init__(self, folder: Path) -> None:
        environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder / "shared")}
        environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "worker.py")],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, path: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip().replace("|", "\n")

    def metrics(self) -> tuple[float, float]:
        """Return how many requests are in flight, and how many there were."""
        found = [
            sample
            for family in text_string_to_metric_families(self.ask("/metrics") + "\n")
            for sample in family.samples
        ]
        active = sum(each.value for each in found if each.name == ACTIVE)
        return active, sum(each.value for each in found if each.name == f"{DURATION}_count")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_four_workers_one_of_them_killed(tmp_path: Path) -> None:
    """Any page has the sum of all; of a worker that was killed the count stays, the gauge goes."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "served.py").write_text(SERVED)
    (tmp_path / "worker.py").write_text(WORKER)
    workers = [Worker(tmp_path) for _ in range(4)]
    try:
        for worker in workers:
            assert worker.ask("/pid") == str(worker.process.pid)
            assert worker.ask("/stays") == "stays"
        # Each page is a request in flight itself.
        before = [worker.metrics() for worker in workers]
        assert before == [(5.0, 4.0)] * 4

        killed = workers.pop()
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait()
        files = {path.name for path in (tmp_path / "shared").iterdir()}
        assert f"gauge_livesum_{killed.process.pid}.db" in files

        assert workers[0].metrics() == (4.0, 4.0)
        assert workers[1].metrics() == (4.0, 4.0)
        killed.end()
    finally:
        for worker in workers:
            worker.end()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_of_the_same_number_begins_with_nothing(tmp_path: Path) -> None:
    """What the one before it has left in the gauge is not in flight any more."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "served.py").write_text(SERVED)
    code = (
        "import os\nfrom prometheus_client import Gauge\n"
        f"gauge = Gauge({ACTIVE!r}, 'Number of active HTTP server requests.',"
        " ['http_request_method', 'url_scheme'], multiprocess_mode='livesum')\n"
        "gauge.labels('GET', 'http').inc(3)\n"
        "from prometheus_client import REGISTRY; REGISTRY.unregister(gauge)\n"
        "import anyio\nfrom served import app\nfrom httpmw.testing import Server\n"
        "server = anyio.run(Server(path='/metrics').run, app)\nprint(server.text)"
    )
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared")}
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])

    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )

    found = re.findall(f"^{ACTIVE}{{.*}} (.*)$", done.stdout, re.MULTILINE)
    assert found == ["1.0"]  # the page itself


def test_who_is_there() -> None:
    """This process is, one that has ended is not, and that of somebody else counts as there."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    assert _is_there(os.getpid())
    assert not _is_there(ended.pid)
    assert _is_there(1)
