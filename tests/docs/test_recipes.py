"""
Every recipe of docs/recipes does what its page promises, in Starlette and in FastAPI.

`app_with` is the fixture that makes an application of either kind from endpoints and layers.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import inspect
import io
import json
import logging
import re
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import HTTPException as FastAPIHTTPException
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from docs_src.recipes import (
    access_log,
    auth_gate,
    compress,
    conditions,
    edit_while_serving,
    error_pages,
    etag,
    gunzip_upload,
    head_as_get,
    language_model,
    log_bodies,
    placing_fastapi,
    placing_starlette,
    problem_details,
    request_headers,
    request_id,
    retry_route,
    rewrite_html,
    route_template,
    security_headers,
    server_timing,
    session_sqlite,
    testing_a_middleware,
    time_limits,
    upload_limits,
)
from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack
from httpmw.testing import run, step
from tests import ROOT
from tests.harness import Chunks
from tools.docs_code import COPY


@pytest.fixture(params=[Starlette, FastAPI])
def app_with(request: pytest.FixtureRequest) -> Callable[..., ASGIApp]:
    """Make an application of the endpoints by their path, with layers around it."""

    def make(endpoints: dict[str, Any], *functions: Any, **options: Any) -> ASGIApp:
        app = request.param(
            middleware=[Middleware(HTTPMiddleware, dispatch=each) for each in functions], **options
        )
        for path, endpoint in endpoints.items():
            app.router.add_route(path, endpoint, methods=["GET", "POST"])
        return app

    return make


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def fail(request: Request) -> Response:
    raise LookupError("lost")


async def echo(request: Request) -> Response:
    return Response(await request.body())


def streaming(*chunks: bytes, media_type: str = "text/plain") -> Any:
    async def stream(request: Request) -> Response:
        return StreamingResponse(Chunks(*chunks), media_type=media_type)

    return stream


def recipe(name: str, *needs: str) -> Any:
    """Import a recipe whose library may not be installed."""
    for each in needs:
        pytest.importorskip(each)
    return importlib.import_module(f"docs_src.recipes.{name}")


# Seeing what happens


@pytest.fixture
def id_log() -> Any:
    """Log lines that begin with the request's id."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.addFilter(request_id.RequestIdFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s %(message)s"))
    log = logging.getLogger("recipes.request_id")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_request_id_is_in_the_log_until_the_last_byte(app_with, id_log, spec):
    """Lines of the endpoint and of its stream carry the id that the client sent."""
    log = logging.getLogger("recipes.request_id")

    class Lines(Chunks):
        async def __anext__(self) -> bytes:
            log.info("chunk")
            return await super().__anext__()

    async def endpoint(request: Request) -> Response:
        log.info("endpoint")
        return StreamingResponse(Lines(b"a"))

    app = app_with({"/": endpoint}, request_id.with_request_id)
    result = await run(app=app, headers={"x-request-id": "abc-1"}, spec=spec)
    log.info("after")

    assert result.headers["x-request-id"] == "abc-1"
    assert id_log.getvalue().split("\n")[:-1] == [
        "abc-1 endpoint",
        "abc-1 chunk",
        "abc-1 chunk",
        "- after",
    ]


async def test_request_id_takes_nothing_else_than_an_id_from_the_client(app_with):
    """An id that could break a log is replaced by a fresh one."""
    app = app_with({"/": hello}, request_id.with_request_id)

    first = await run(app=app, headers={"x-request-id": "a b"})
    second = await run(app=app)

    assert len(first.headers["x-request-id"]) == 32
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def served(app: ASGIApp, log: Any) -> ASGIApp:
    """What servers do around an app: they log what it raises, in the task of the request."""

    async def server(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except Exception:
            log("Exception in ASGI application")
            raise

    return server


async def test_request_id_takes_the_id_of_the_nearest_proxy(app_with):
    """A proxy may add its own id in another line, behind the client's."""
    app = app_with({"/": hello}, request_id.with_request_id)

    result = await run(app=app, headers=[("x-request-id", "client"), ("x-request-id", "7F:0@_9")])

    assert result.headers["x-request-id"] == "7F:0@_9"


@pytest.mark.parametrize("stream", [False, True], ids=["before the start", "in the body"])
async def test_request_id_is_in_what_the_server_logs(app_with, id_log, stream):
    """The traceback of a request that fails has the id."""

    class Broken(Chunks):
        async def __anext__(self) -> bytes:
            raise LookupError("lost")

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(Broken(b""))

    app = app_with({"/": endpoint if stream else fail}, request_id.with_request_id)
    log = logging.getLogger("recipes.request_id").info
    result = await run(app=served(app, log), headers={"x-request-id": "abc-1"}, keep_error=True)

    assert isinstance(result.exception, LookupError)
    assert id_log.getvalue() == "abc-1 Exception in ASGI application\n"


async def test_structlog_has_a_line_for_a_request_that_fails(app_with, capsys):
    """So has what the server logs of it; and no id that is none is taken from a client."""
    module = recipe("structlog_context", "structlog")
    app = app_with({"/": fail}, module.log_context)

    await run(app=served(app, module.log.info), headers={"x-request-id": "a\tb"}, keep_error=True)
    answered, logged = map(json.loads, capsys.readouterr().out.splitlines())

    assert answered["event"] == "answered"
    assert (answered["status"], answered["outcome"]) == (None, "no response")
    assert len(answered["request_id"]) == 32
    assert logged["request_id"] == answered["request_id"]


async def test_structlog_lines_carry_what_was_bound(app_with, capsys):
    """Every line of a request has its id, method and path; the last one tells how it ended."""
    module = recipe("structlog_context", "structlog")

    async def endpoint(request: Request) -> Response:
        module.log.info("working")
        return StreamingResponse(Chunks(b"ab", b"c"))

    app = app_with({"/": endpoint}, module.log_context)
    await run(app=app, headers={"x-request-id": "abc"})
    module.log.info("after")

    working, answered, after = map(json.loads, capsys.readouterr().out.splitlines())
    bound = {"request_id": "abc", "method": "GET", "path": "/"}
    assert bound.items() <= working.items()
    assert {**bound, "bytes": 3, "outcome": "completed", "status": 200}.items() <= answered.items()
    assert "request_id" not in after


async def access_line(caplog: Any, app: ASGIApp, **options: Any) -> str:
    with caplog.at_level(logging.INFO, logger="access"):
        await run(app=app, keep_error=True, **options)
    (record,) = (each for each in caplog.records if each.name == "access")
    return record.getMessage()


async def test_access_log_counts_the_bytes(app_with, caplog):
    """The line has method, path, status, bytes and outcome."""
    app = app_with({"/": streaming(b"abc", b"de")}, access_log.access_log)

    line = await access_line(caplog, app)

    assert line.startswith("GET / 200, 5 bytes in ")
    assert line.endswith(" ms, completed")


async def test_access_log_tells_of_a_client_that_left(app_with, caplog):
    """The outcome is the real one, and the bytes are those that were sent."""
    app = app_with({"/": streaming(b"abc", b"de")}, access_log.access_log)

    line = await access_line(caplog, app, leaves_after=2, spec="2.4")

    assert line.startswith("GET / 200, 3 bytes in ")
    assert line.endswith(" ms, disconnected")


async def test_access_log_tells_of_an_exception(app_with, caplog):
    """A request that gets no response of the app is logged as well."""
    line = await access_line(caplog, app_with({"/": fail}, access_log.access_log))

    assert line.startswith("GET / -, 0 bytes in ")
    assert line.endswith(" ms, no response")


async def test_access_log_outside_of_the_error_page_knows_it(app_with, caplog):
    """Added with `add_middleware` it says that there was no response; here it counts the page."""
    app = app_with({"/": fail})
    MiddlewareStack.install(app).add(access_log.access_log, outside_errors=True)

    line = await access_line(caplog, app)

    assert line.startswith("GET / 500, 21 bytes in ")


async def answer_like(request: Request) -> Response:
    """Answer with the body and the type of the request."""
    kind = request.headers.get("content-type", "")
    return Response(await request.body(), headers={"content-type": kind})


@pytest.mark.parametrize(
    ("kind", "body", "line"),
    [
        (
            "application/json",
            b'{"name": "me", "Password": "p", "of": [{"token": 1}]}',
            '{"name": "me", "Password": "***", "of": [{"token": "***"}]}',
        ),
        ("application/problem+json; charset=utf-8", b'{"a": "b\\n"}', '{"a": "b\\n"}'),
        ("application/x-www-form-urlencoded", b"a=1&a=2&card_no=3&b=", "a=1&a=2&card_no=***&b="),
        ("application/json", b"password: p", "11 bytes that are not 'application/json'"),
        ("application/json", b"[" * 90_000, "90000 bytes that are not 'application/json'"),
        ("text/plain", b"password: p", "11 bytes of 'text/plain'"),
    ],
)
async def test_bodies_are_logged_without_secrets(app_with, caplog, kind, body, line):
    """Members and fields with telling names are hidden; what cannot be read is not shown."""
    app = app_with({"/": answer_like}, log_bodies.log_bodies)
    headers = {"content-type": kind}

    with caplog.at_level(logging.INFO, logger="bodies"):
        result = await run(app=app, method="POST", headers=headers, body=body)

    assert result.body == body
    assert [each.getMessage() for each in caplog.records if each.name == "bodies"] == [
        f"POST / < {line}",
        f"POST / > 200 {line}",
    ]


async def test_logged_bodies_are_cut_behind_what_was_hidden(app_with, caplog, monkeypatch):
    """A secret that the cut would halve is hidden already."""
    monkeypatch.setattr(log_bodies, "SHOWN", 20)
    app = app_with({"/": hello}, log_bodies.log_bodies)
    body = json.dumps({"token": "s" * 40, "more": "m" * 40}).encode()
    headers = {"content-type": "application/json"}

    with caplog.at_level(logging.INFO, logger="bodies"):
        await run(app=app, method="POST", headers=headers, body=body)

    assert 'POST / < {"token": "***", "mo... of ' in caplog.text
    assert "sss" not in caplog.text


async def test_streams_and_packed_bodies_are_not_read_for_the_log(app_with, caplog):
    """They pass in their chunks, and there is no line."""

    async def packed(request: Request) -> Response:
        return Response(gzip.compress(b"abc"), headers={"content-encoding": "gzip"})

    endpoints = {"/": streaming(b"ab", b"c"), "/packed": packed, "/empty": echo}
    app = app_with(endpoints, log_bodies.log_bodies)

    with caplog.at_level(logging.INFO, logger="bodies"):
        stream = await run(app=app)
        await run(app=app, path="/packed")
        await run(app=app, path="/empty")

    assert stream.chunks[:2] == [b"ab", b"c"]
    assert [each.getMessage() for each in caplog.records if each.name == "bodies"] == [
        "GET /empty > 200 nothing"
    ]


async def test_server_timing_has_the_parts_and_the_total(app_with):
    """Each measured part is a header of its own, beside those of the app."""

    async def endpoint(request: Request) -> Response:
        for _ in range(2):
            with request.state.timings.measure("db"):
                pass
        return PlainTextResponse("hello", headers={"server-timing": "cache;desc=hit"})

    result = await run(app=app_with({"/": endpoint}, server_timing.server_timing))

    names = [each.partition(";")[0] for each in result.headers.getlist("server-timing")]
    assert names == ["cache", "db", "total"]
    assert float(result.headers["x-process-time"]) >= 0


def templates(*layers: Middleware) -> FastAPI:
    router = APIRouter(prefix="/users")

    @router.get("/{user_id}")
    async def user(user_id: str) -> str:
        return user_id

    app = FastAPI(middleware=layers)
    app.include_router(router, prefix="/v1")
    app.mount("/static", PlainTextResponse("file"))
    return app


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v1/users/7", "/v1/users/{user_id}"),
        ("/static/a.css", "/static/*"),
        ("/nowhere", "unmatched"),
    ],
)
async def test_route_template(path, template):
    """The template has the prefix of an included router, and a mount has one for all."""
    found = []

    async def keep(conn: Connection) -> Flow:
        yield
        found.append(route_template.route_template(conn))

    await run(keep, templates(), path=path)

    assert found == [template]


async def test_route_template_of_a_mounted_starlette_application():
    """The path of the mount is part of the template."""
    found = []

    async def keep(conn: Connection) -> Flow:
        yield
        if "route" not in conn.scope:
            pytest.skip("this Starlette does not keep the route in the scope")
        found.append(route_template.route_template(conn))

    inside = Starlette(routes=[Route("/b/{name}", hello)])
    await run(keep, Starlette(routes=[Mount("/a", inside)]), path="/a/b/c")

    assert found == ["/a/b/{name}"]


async def test_metrics_have_templates_and_outcomes():
    """Requests are counted by template; a failure and a client that left are told apart."""
    module = recipe("prometheus_metrics", "prometheus_client")
    app = templates(Middleware(HTTPMiddleware, dispatch=module.metrics))
    app.add_route("/fail", fail)
    app.add_route("/stream", streaming(b"abc", b"de"))
    for option in (
        {"path": "/v1/users/7"},
        {"path": "/v1/users/8"},
        {"path": "/fail"},
        {"path": "/stream", "leaves_after": 2, "spec": "2.4"},
        {"path": "/nowhere", "method": "BREW"},
    ):
        await run(app=app, keep_error=True, **option)
    page = (await run(app=Starlette(routes=[Route("/", module.metrics_page)]))).text

    def count(name: str, **labels: str) -> float:
        return module.registry.get_sample_value(name, labels) or 0

    user = {"method": "GET", "route": "/v1/users/{user_id}"}
    assert count("http_requests_total", **user, status="200", outcome="completed") >= 2
    assert count("http_request_seconds_count", **user) >= 2
    assert 'status="500"' in page
    assert 'outcome="failed"' in page
    assert 'outcome="disconnected"' in page
    assert 'method="other",route="unmatched"' in page
    assert "BREW" not in page
    assert 'http_sent_bytes_total{method="GET",route="/v1/users/{user_id}"}' in page


async def test_span_goes_to_the_last_byte(monkeypatch):
    """The span continues the client's trace, and spans of the stream are inside of it."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    module = recipe("opentelemetry_span")
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(module, "tracer", tracer)

    class Traced(Chunks):
        async def __anext__(self) -> bytes:
            chunk = await super().__anext__()
            with tracer.start_as_current_span("chunk"):
                return chunk

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(Traced(b"abc"))

    app = FastAPI()
    app.add_api_route("/things/{name}", endpoint, methods=["GET"], response_model=None)
    await run(
        module.traced,
        app,
        path="/things/one",
        headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"},
    )

    chunk, span = exporter.get_finished_spans()
    assert (chunk.name, span.name) == ("chunk", "GET /things/{name}")
    assert chunk.parent.span_id == span.context.span_id
    assert f"{span.context.trace_id:x}" == "a" * 32
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.response.body.size"] == 3


@pytest.mark.parametrize("sampled", [True, False])
async def test_span_of_fastapi_is_enough(monkeypatch, sampled):
    """Inside of a FastAPI that makes spans there is none beside its own."""
    pytest.importorskip("opentelemetry.sdk")
    if "telemetry" not in inspect.signature(FastAPI).parameters:
        pytest.skip("this FastAPI makes no spans")
    from opentelemetry.sdk.trace import TracerProvider, sampling
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind

    module = recipe("opentelemetry_span")
    exporter = InMemorySpanExporter()
    sampler = sampling.ALWAYS_ON if sampled else sampling.ALWAYS_OFF
    theirs = TracerProvider(shutdown_on_exit=False, sampler=sampler)
    ours = TracerProvider(shutdown_on_exit=False)
    for provider in (theirs, ours):
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(module, "tracer", ours.get_tracer("test"))

    app = FastAPI(telemetry={"tracer_provider": theirs, "operation_spans": False})
    app.add_middleware(HTTPMiddleware, dispatch=module.traced)
    app.add_route("/", hello)
    await run(app=app)
    first = [span.name for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    exporter.clear()
    app = FastAPI(telemetry={"tracing": False})
    app.add_middleware(HTTPMiddleware, dispatch=module.traced)
    app.add_api_route("/", hello, response_model=None)
    await run(app=app)
    second = [span.name for span in exporter.get_finished_spans()]

    assert len(first) == (1 if sampled else 0)
    assert second == ["GET /"]


async def test_span_keeps_the_exception():
    """A request that fails has the exception in its span, and an error as its status."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    module = recipe("opentelemetry_span")
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tracer", provider.get_tracer("test"))
        result = await run(module.traced, LookupError("lost"), keep_error=True)

    (span,) = exporter.get_finished_spans()
    assert isinstance(result.exception, LookupError)
    assert not span.status.is_ok
    assert [event.name for event in span.events] == ["exception"]


# The response


async def test_security_headers_leave_a_policy_that_is_there(app_with):
    """Each header is set, unless the app has set it."""

    async def page(request: Request) -> Response:
        return HTMLResponse("hi", headers={"content-security-policy": "default-src 'none'"})

    result = await run(app=app_with({"/": page}, security_headers.security_headers))

    assert result.headers["content-security-policy"] == "default-src 'none'"
    assert result.headers["x-content-type-options"] == "nosniff"
    assert set(security_headers.HEADERS) <= set(result.headers)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_hsts_is_for_https_only(app_with, scheme):
    """Over plain HTTP the header is not sent."""
    app = app_with({"/": hello}, security_headers.security_headers)

    result = await run(app=app, scope={"scheme": scheme})

    assert ("strict-transport-security" in result.headers) == (scheme == "https")


async def out_of_stock(request: Request) -> Response:
    raise problem_details.OutOfStockError("tea")


async def teapot(request: Request) -> Response:
    raise HTTPException(418, "short and stout", headers={"x-handle": "yes"})


@pytest.mark.parametrize(
    ("path", "status", "members"),
    [
        ("/stock", 409, {"type": "/problems/out-of-stock", "item": "tea", "title": "Conflict"}),
        ("/fail", 500, {"title": "Internal Server Error"}),
        ("/teapot", 418, {"detail": "short and stout"}),
        ("/nowhere", 404, {"detail": "Not Found"}),
    ],
)
async def test_problem_details(app_with, caplog, path, status, members):
    """What an application raises becomes a problem document, without words of the exception."""
    app = app_with(
        {"/stock": out_of_stock, "/fail": fail, "/teapot": teapot},
        problem_details.problems,
        exception_handlers={problem_details.HTTPException: problem_details.http_exception},
    )

    result = await run(app=app, path=path)

    assert result.status == result.json()["status"] == status
    assert result.headers["content-type"] == "application/problem+json"
    assert members.items() <= result.json().items()
    assert "lost" not in result.text
    assert ("lost" in caplog.text) == (path == "/fail")
    assert result.headers.get("x-handle") == ("yes" if path == "/teapot" else None)


async def test_problem_details_app():
    """The application of the page answers so for itself."""
    result = await run(app=problem_details.app, path="/nowhere")
    stock = await run(app=problem_details.app, path="/items/0")

    assert result.json() == {"title": "Not Found", "status": 404, "detail": "Not Found"}
    assert stock.json()["item"] == "tea"


async def test_problem_of_a_request_that_is_not_valid():
    """FastAPI's 422 is a problem, too."""
    result = await run(app=problem_details.app, path="/items/one")

    assert result.status == 422
    assert result.headers["content-type"] == "application/problem+json"
    (error,) = result.json()["errors"]
    assert error["loc"] == ["path", "number"]
    assert "detail" not in result.json()


@pytest.mark.parametrize(
    ("detail", "members"),
    [
        ({"code": "sold-out", "status": 200}, {"code": "sold-out", "status": 409}),
        (["one", "two"], {"errors": ["one", "two"]}),
        ("words", {"detail": "words"}),
    ],
)
async def test_problem_of_a_detail_that_is_no_text(detail, members):
    """The members of a mapping become members, and `detail` is always a text."""

    async def refuse(request: Request) -> Response:
        raise FastAPIHTTPException(409, detail)

    app = FastAPI(exception_handlers=problem_details.app.exception_handlers)
    app.add_route("/", refuse)
    problem = (await run(app=app)).json()

    assert members.items() <= problem.items()
    assert isinstance(problem.get("detail", ""), str)


@pytest.mark.parametrize(("status", "body"), [(304, False), (499, True)])
async def test_problem_of_an_unusual_status(status, body):
    """A status without a body has none, and one without a name is no error."""

    async def refuse(request: Request) -> Response:
        raise HTTPException(status, "no")

    app = FastAPI(exception_handlers=problem_details.app.exception_handlers)
    app.add_route("/", refuse)
    result = await run(app=app)

    assert (result.status, bool(result.body)) == (status, body)


@pytest.mark.parametrize("weak", ["", "W/"])
async def test_etag_is_answered_with_304(app_with, weak):
    """A client that has the body gets a 304 with the same etag and no body."""

    async def page(request: Request) -> Response:
        return PlainTextResponse("hello", headers={"cache-control": "max-age=9"})

    app = app_with({"/": page}, etag.etag)
    first = await run(app=app)
    tag = first.headers["etag"]
    second = await run(app=app, headers={"if-none-match": f'"other", {weak}{tag}'})

    assert (first.status, first.body) == (200, b"hello")
    assert (second.status, second.body) == (304, b"")
    assert second.headers["etag"] == tag
    assert second.headers["cache-control"] == "max-age=9"
    assert not {"content-length", "content-type"} & set(second.headers)


async def test_etag_of_another_body_is_another(app_with):
    """A client with an old etag gets the new body."""
    result = await run(
        app=app_with({"/": hello}, etag.etag), headers={"if-none-match": '"old", W/"older"'}
    )

    assert (result.status, result.body) == (200, b"hello")


async def test_etag_of_the_app_is_compared(app_with):
    """An etag that the app has set stays, and is answered with 304, for HEAD as well."""

    async def page(request: Request) -> Response:
        return PlainTextResponse("hello", headers={"etag": '"v1"'})

    app = app_with({"/": page}, etag.etag)

    for method in ("GET", "HEAD"):
        fresh = await run(app=app, method=method)
        known_one = await run(app=app, method=method, headers={"if-none-match": '"v1"'})
        assert (fresh.status, fresh.headers["etag"]) == (200, '"v1"')
        assert known_one.status == 304


async def test_etag_leaves_streams_large_bodies_and_posts_alone(app_with, monkeypatch):
    """Only a GET whose body has a length, and a small one, gets an etag."""
    monkeypatch.setattr(etag, "LARGEST", 4)
    app = app_with({"/stream": streaming(b"a", b"b"), "/large": hello, "/": echo}, etag.etag)

    stream = await run(app=app, path="/stream")
    large = await run(app=app, path="/large")
    post = await run(app=app, method="POST")

    assert stream.chunks[:2] == [b"a", b"b"]
    assert large.body == b"hello"
    assert not {"etag"} & {*stream.headers, *large.headers, *post.headers}


async def test_compressed_stream_stays_a_stream():
    """Each chunk can be unpacked as soon as it is sent."""
    unpack = zlib.decompressobj(wbits=31)
    async with step(compress.compress, headers={"accept-encoding": "br, gzip;q=0.5"}) as flow:
        await flow.respond(200, {"content-type": "text/event-stream", "etag": '"1"'})
        await flow.chunk(b"data: 1\n\n")
        assert unpack.decompress(b"".join(flow.chunks)) == b"data: 1\n\n"
        await flow.finish()

        assert flow.headers["content-encoding"] == "gzip"
        assert flow.headers["vary"] == "accept-encoding"
        assert flow.headers["etag"] == 'W/"1"'


async def test_compressed_body_is_the_body(app_with):
    """A body with a length loses the length, and unpacks to what the app sent."""
    app = app_with({"/": hello}, compress.compress)

    result = await run(app=app, headers={"accept-encoding": "gzip"})

    assert gzip.decompress(result.body) == b"hello"
    assert "content-length" not in result.headers


@pytest.mark.parametrize("accepted", ["", "br", "gzip;q=0", "*;q=0"])
async def test_who_does_not_accept_gzip_gets_none(app_with, accepted):
    """The body is as it was, and caches are told that it depends."""
    app = app_with({"/": hello}, compress.compress)

    result = await run(app=app, headers={"accept-encoding": accepted})

    assert result.body == b"hello"
    assert result.headers["vary"] == "accept-encoding"


async def test_what_is_compressed_already_stays(app_with):
    """Another encoding, a picture, and a part of a file pass untouched."""

    async def encoded(request: Request) -> Response:
        return PlainTextResponse("x", headers={"content-encoding": "br"})

    async def picture(request: Request) -> Response:
        return Response(b"x", media_type="image/png")

    async def part(request: Request) -> Response:
        return PlainTextResponse("x", 206)

    app = app_with({"/a": encoded, "/b": picture, "/c": part}, compress.compress)

    for path in ("/a", "/b", "/c"):
        result = await run(app=app, path=path, headers={"accept-encoding": "gzip"})
        assert result.body == b"x"


async def test_compressed_body_is_compared_by_its_etag(app_with):
    """Around the recipe for etags, a 304 has the etag and the vary of its 200."""
    app = app_with({"/": hello}, compress.compress, etag.etag)
    accepts = {"accept-encoding": "gzip"}

    first = await run(app=app, headers=accepts)
    second = await run(app=app, headers={**accepts, "if-none-match": first.headers["etag"]})

    assert (first.status, second.status) == (200, 304)
    for name in ("etag", "vary"):
        assert first.headers[name] == second.headers[name]
    assert "content-encoding" not in second.headers


async def test_etag_outside_of_what_compresses_is_none(app_with):
    """What is compressed has no length, so it is left alone there, and never answered with 304."""
    app = app_with({"/": hello}, etag.etag, compress.compress)
    accepts = {"accept-encoding": "gzip"}

    first = await run(app=app, headers=accepts)
    plain = await run(app=app)
    second = await run(app=app, headers={**accepts, "if-none-match": plain.headers["etag"]})

    assert "etag" not in first.headers
    assert (first.status, second.status) == (200, 200)


async def test_security_headers_inside_of_a_gate_are_not_on_its_refusals(app_with):
    """Outside of it they are."""
    gate = auth_gate.gate(known, public=frozenset())
    inside = app_with({"/": hello}, gate, security_headers.security_headers)
    outside = app_with({"/": hello}, security_headers.security_headers, gate)

    assert "x-frame-options" not in (await run(app=inside)).headers
    assert "x-frame-options" in (await run(app=outside)).headers


PAGE = b"<head><title>a</title></head><body></body>"


@pytest.mark.parametrize("size", [1, 3, 7, 29, len(PAGE)])
async def test_html_is_rewritten_wherever_it_is_cut(app_with, size):
    """The script is put in once, also where the tag is cut in two."""
    chunks = [PAGE[start : start + size] for start in range(0, len(PAGE), size)]
    app = app_with({"/": streaming(*chunks, media_type="text/html")}, rewrite_html.live_reload)

    result = await run(app=app)

    assert result.body == PAGE.replace(b"</head>", rewrite_html.SCRIPT + b"</head>")


async def test_what_has_no_head_stays_as_it_is(app_with):
    """HTML without the tag is sent whole, and what is no HTML untouched."""
    app = app_with(
        {"/": streaming(b"<p>", b"a</p>", media_type="text/html"), "/text": streaming(PAGE)},
        rewrite_html.live_reload,
    )

    assert (await run(app=app)).body == b"<p>a</p>"
    assert (await run(app=app, path="/text")).body == PAGE


async def test_html_is_not_rewritten_outside_of_what_compresses(app_with):
    """Inside of it the script is put in first."""
    page = streaming(PAGE, media_type="text/html")
    outside = app_with({"/": page}, rewrite_html.live_reload, compress.compress)
    inside = app_with({"/": page}, compress.compress, rewrite_html.live_reload)
    accepts = {"accept-encoding": "gzip"}

    assert gzip.decompress((await run(app=outside, headers=accepts)).body) == PAGE
    rewritten = gzip.decompress((await run(app=inside, headers=accepts)).body)
    assert rewrite_html.SCRIPT in rewritten


# The request


async def known(given: str) -> str | None:
    return "me" if given == "t1" else None


async def whoami(request: Request) -> Response:
    return PlainTextResponse(getattr(request.state, "user", "nobody"))


@pytest.mark.parametrize(
    ("path", "headers", "status", "text"),
    [
        ("/health", {}, 200, "nobody"),
        ("/me", {"authorization": "Bearer t1"}, 200, "me"),
        ("/me", {}, 401, None),
        ("/me", {"authorization": "Bearer wrong"}, 401, None),
        ("/me", {"authorization": "Basic t1"}, 401, None),
        ("/me", {"host": "x/health?"}, 401, None),
        ("/me/health", {}, 401, None),
        ("//health", {}, 401, None),
    ],
)
async def test_gate(app_with, path, headers, status, text):
    """Public is exactly what is listed; everything else needs a token that is known."""
    gate = auth_gate.gate(known, public=frozenset({"/health"}))
    app = app_with({"/health": whoami, "/me": whoami}, gate)

    result = await run(app=app, path=path, headers=headers)

    assert result.status == status
    if status == 401:
        assert result.headers["www-authenticate"] == "Bearer"
    else:
        assert result.text == text


async def test_gate_guards_handshakes():
    """With `websocket=True` a WebSocket route needs a token as well."""
    gate = auth_gate.gate(known, public=frozenset())
    known_token = {"authorization": "Bearer t1"}

    assert (await run(gate, websocket=True)).status == 401
    assert (await run(gate, websocket=True, headers=known_token)).status == 101


async def test_gate_outside_of_cors_refuses_preflights(app_with):
    """A preflight request has no token: CORS stands outside."""
    gate = Middleware(HTTPMiddleware, dispatch=auth_gate.gate(known, public=frozenset()))
    cors = Middleware(CORSMiddleware, allow_origins=["https://a.example"])
    preflight = {"origin": "https://a.example", "access-control-request-method": "GET"}

    wrong = await run(app=Starlette(middleware=[gate, cors]), method="OPTIONS", headers=preflight)
    right = await run(app=Starlette(middleware=[cors, gate]), method="OPTIONS", headers=preflight)

    assert (wrong.status, right.status) == (401, 200)


async def test_gate_answers_through_the_handlers_of_the_application(app_with):
    """A refusal looks like every other error of the application."""

    async def handler(request: Request, error: Exception) -> Response:
        return JSONResponse({"handled": True}, 401)

    gate = auth_gate.gate(known, public=frozenset())
    app = app_with({"/": hello}, gate, exception_handlers={HTTPException: handler})

    assert (await run(app=app)).json() == {"handled": True}


GZIP = {"content-encoding": "gzip"}


async def test_gzipped_upload_is_unpacked_on_the_way(app_with):
    """The app reads plain bytes, and is not told that they were packed."""

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        assert not {"content-encoding", "content-length"} & set(request.headers)
        return Response(body)

    data = bytes(range(256)) * 2000
    packed = gzip.compress(data)
    app = app_with({"/": endpoint}, gunzip_upload.gunzip_upload)

    result = await run(app=app, method="POST", headers=GZIP, body=[packed[:100], packed[100:]])

    assert result.body == data


async def test_application_is_told_who_asks(app_with):
    """By the layer alone: what the client says of it, and its secret, stay outside."""

    async def find(authorization: str) -> str | None:
        return "ann" if authorization == "Bearer secret" else None

    async def headers(request: Request) -> Response:
        names = ("x-user", "authorization", "x-other")
        return JSONResponse({name: request.headers.getlist(name) for name in names})

    app = app_with({"/": headers}, request_headers.identified(find))
    forged = [("x-user", "bob"), ("x-other", "1"), ("x-user", "eve"), ("x-other", "2")]

    known = await run(app=app, headers=[*forged, ("authorization", "Bearer secret")])
    unknown = await run(app=app, headers=[*forged, ("authorization", "Bearer guess")])

    assert known.json() == {"x-user": ["ann"], "authorization": [], "x-other": ["1", "2"]}
    assert unknown.json() == {"x-user": [], "authorization": [], "x-other": ["1", "2"]}


async def test_head_is_answered_by_get_routes():
    """With the headers of the GET; without the layer FastAPI answers 405."""
    app = FastAPI()
    app.add_api_route("/", lambda: {"a": 1}, methods=["GET"])

    refused = await run(app=app, method="HEAD")
    result = await run(head_as_get.head_as_get, app=app, method="HEAD")
    got = await run(head_as_get.head_as_get, app=app, method="GET")

    assert refused.status == 405
    assert (result.status, result.headers) == (200, got.headers)
    assert result.headers["content-length"] == "7"


async def test_plain_upload_passes(app_with):
    """What is not packed is left alone."""
    app = app_with({"/": echo}, gunzip_upload.gunzip_upload)

    assert (await run(app=app, method="POST", body=b"abc")).body == b"abc"


@pytest.mark.parametrize("cut", [1, 7, 30, 1_000_000])
async def test_all_members_of_a_gzip_body_are_unpacked(app_with, cut):
    """Several members in a row are one body, wherever the chunks are cut."""
    body = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
    chunks = [body[start : start + cut] for start in range(0, len(body), cut)]
    app = app_with({"/": echo}, gunzip_upload.gunzip_upload)

    assert (await run(app=app, method="POST", headers=GZIP, body=chunks)).body == b"one two"


async def test_old_name_of_gzip_is_known(app_with):
    """`x-gzip` is gzip."""
    app = app_with({"/": echo}, gunzip_upload.gunzip_upload)
    headers = {"content-encoding": "x-gzip"}

    result = await run(app=app, method="POST", headers=headers, body=gzip.compress(b"abc"))

    assert result.body == b"abc"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no gzip", 400),
        (b"", 400),
        (gzip.compress(b"x" * 1000)[:-9], 400),
        (gzip.compress(b"x" * 1000)[:-1], 400),
        (gzip.compress(b"x") + gzip.compress(b"y")[:-1], 400),
        (gzip.compress(b"x") + gzip.compress(b"y")[:5], 400),
        (gzip.compress(b"x") + b"junk behind the end", 400),
        (gzip.compress(b"x" * 1000)[:-6] + b"wrong!", 400),
        (gzip.compress(b"x" * 100_000), 413),
        (gzip.compress(b"x" * 6_000) * 2, 413),
    ],
    ids=[
        "other bytes",
        "nothing",
        "cut off",
        "cut in the length",
        "second cut off",
        "second cut in its head",
        "junk behind the end",
        "wrong sum",
        "bomb",
        "bomb of two",
    ],
)
async def test_bad_gzip_is_refused(app_with, monkeypatch, body, status):
    """What cannot be unpacked is a 400, what would become too large a 413."""
    monkeypatch.setattr(gunzip_upload, "LARGEST", 10_000)
    app = app_with({"/": echo}, gunzip_upload.gunzip_upload)

    assert (await run(app=app, method="POST", headers=GZIP, body=body)).status == status


async def test_upload_is_unpacked_piece_by_piece(monkeypatch):
    """A bomb is refused after the first pieces; the rest of it is never unpacked."""
    pieces = []
    monkeypatch.setattr(gunzip_upload, "LARGEST", 100)
    monkeypatch.setattr(gunzip_upload, "PIECE", 30)

    async def app(scope, receive, send):
        try:
            while True:
                pieces.append((await receive())["body"])
        except HTTPException:
            await PlainTextResponse("no", 413)(scope, receive, send)

    await run(
        gunzip_upload.gunzip_upload,
        app,
        method="POST",
        headers=GZIP,
        body=gzip.compress(b"x" * 10_000_000),
    )

    assert [len(each) for each in pieces] == [30, 30, 30]


async def test_upload_that_says_it_is_too_large_is_not_received(app_with, monkeypatch):
    """The length is looked at first, before a byte is received."""
    monkeypatch.setattr(upload_limits, "LARGEST", 3)

    result = await run(upload_limits.limit_upload, method="POST", body=b"abcd")

    assert result.status == 413
    assert not result.app_ran


async def test_upload_without_a_length_is_cut_off(app_with, monkeypatch):
    """A chunked upload is refused where it goes over the limit."""
    monkeypatch.setattr(upload_limits, "LARGEST", 3)
    app = app_with({"/": echo}, upload_limits.limit_upload)

    small = await run(app=app, method="POST", body=[b"ab", b"c"])
    large = await run(app=app, method="POST", body=[b"ab", b"cd"])

    assert (small.status, small.body) == (200, b"abc")
    assert large.status == 413


@pytest.mark.parametrize(
    ("layers", "status"),
    [
        ([upload_limits.limit_upload, gunzip_upload.gunzip_upload], 200),
        ([gunzip_upload.gunzip_upload, upload_limits.limit_upload], 413),
    ],
    ids=["limit outside", "limit inside"],
)
async def test_limit_counts_packed_bytes_outside_of_what_unpacks(
    app_with, monkeypatch, layers, status
):
    """And unpacked ones inside of it."""
    monkeypatch.setattr(upload_limits, "LARGEST", 1000)
    app = app_with({"/": echo}, *layers)

    body = gzip.compress(b"x" * 5000)
    assert (await run(app=app, method="POST", headers=GZIP, body=[body])).status == status


async def test_upload_is_counted_and_hashed(app_with, caplog):
    """Size and hash are those of the whole body, which the app got in its chunks."""
    app = app_with({"/": echo}, upload_limits.watch_upload)

    with caplog.at_level(logging.INFO, logger=upload_limits.__name__):
        result = await run(app=app, method="POST", body=[b"ab", b"cd"])

    assert result.body == b"abcd"
    assert f"/: 4 bytes, sha256 {hashlib.sha256(b'abcd').hexdigest()}" in caplog.text


async def slow(request: Request) -> Response:
    await anyio.sleep_forever()


class Endless(Chunks):
    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await anyio.sleep_forever()
            raise


async def test_time_limit_until_the_start(app_with, monkeypatch):
    """An app that does not answer in time is cancelled, and the client gets a 504."""
    app = app_with({"/": slow, "/hello": hello}, time_limits.until_the_start)

    assert (await run(app=app, path="/hello")).status == 200
    monkeypatch.setattr(time_limits, "START_SECONDS", 0.01)
    assert (await run(app=app)).status == 504


async def test_time_limit_until_the_end(app_with, monkeypatch, anyio_backend):
    """Before the start it is a 504; a body that has begun is cut off."""
    if anyio_backend == "trio":
        pytest.skip("asyncio.timeout() is asyncio's")

    async def endless(request: Request) -> Response:
        return StreamingResponse(Endless(b"abc"))

    app = app_with({"/": slow, "/endless": endless, "/hello": hello}, time_limits.until_the_end)

    assert (await run(app=app, path="/hello")).status == 200
    monkeypatch.setattr(time_limits, "WHOLE_SECONDS", 0.01)
    assert (await run(app=app)).status == 504
    monkeypatch.setattr(time_limits, "WHOLE_SECONDS", 0.5)
    cut = await run(app=app, path="/endless", keep_error=True)
    assert (cut.status, cut.body, cut.outcome) == (200, b"abc", "failed")


async def test_upload_that_takes_too_long_is_given_up(app_with, monkeypatch):
    """A client that does not send its body in time gets a 408."""
    app = app_with({"/": echo}, time_limits.while_it_uploads)

    async def stalling(scope, receive, send):
        await app(scope, anyio.sleep_forever, send)

    in_time = await run(app=app, method="POST", body=[b"a", b"b"])
    monkeypatch.setattr(time_limits, "UPLOAD_SECONDS", 0.01)
    late = await run(app=stalling, method="POST", body=[b"a", b"b"])

    assert late.status == 408
    assert (in_time.status, in_time.body) == (200, b"ab")


class Tries:
    """An application with a route that fails, and what its dependency saw."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.failures = failures
        self.error = error
        self.seen: list[str] = []
        self.app = FastAPI()
        router = APIRouter(route_class=retry_route.RetriedRoute)
        for path, endpoint in (("/", self.endpoint), ("/stream", self.stream)):
            router.add_api_route(
                path,
                endpoint,
                methods=["GET", "PUT", "POST"],
                dependencies=[Depends(self.session)],
                response_model=None,
            )
        self.app.include_router(router, prefix="/v1")

    async def session(self) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            self.seen.append(type(error).__name__)
            raise
        self.seen.append("committed")

    def fail(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise self.error

    async def endpoint(self, request: Request) -> Response:
        body = await request.body()
        self.fail()
        return Response(body)

    async def stream(self) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            self.fail()

        return StreamingResponse(chunks())

    async def ask(self, method: str = "PUT", path: str = "/v1/", **options: Any) -> Any:
        return await run(app=self.app, method=method, path=path, keep_error=True, **options)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_route, "WAIT", 0)


@pytest.mark.usefixtures("at_once")
async def test_endpoint_is_tried_again_with_the_same_body():
    """Each try has the whole body and dependencies of its own, which see how it ended."""
    tries = Tries(failures=2)

    result = await tries.ask(body=[b"one ", b"two"])

    assert (result.status, result.body) == (200, b"one two")
    assert tries.seen == ["ConnectionError", "ConnectionError", "committed"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("failures", "error", "options", "runs"),
    [
        (3, ConnectionError, {}, 3),
        (1, ConnectionError, {"method": "POST"}, 1),
        (1, LookupError, {}, 1),
        (1, ConnectionError, {"method": "GET", "path": "/v1/stream"}, 1),
        (1, ConnectionError, {"body": b"more than ten bytes"}, 1),
    ],
    ids=["too often", "not idempotent", "another error", "has begun", "too large"],
)
async def test_what_is_not_tried_again(monkeypatch, failures, error, options, runs):
    """The exception is the server's, after as many tries as make sense."""
    monkeypatch.setattr(retry_route, "LARGEST", 10)
    tries = Tries(failures, error)

    result = await tries.ask(**options)

    assert isinstance(result.exception, error)
    assert tries.failures == failures - runs


@pytest.mark.parametrize("words", [0, 2], ids=["thinks", "streams"])
async def test_model_is_stopped_when_its_reader_has_gone(app_with, monkeypatch, words):
    """Before the first word and between two, the call of the model is closed."""
    log: list[str] = []
    asked, gone = anyio.Event(), anyio.Event()

    class Model:
        def __init__(self, prompt: str) -> None:
            self.left = words

        async def __aenter__(self) -> Self:
            log.append("asked")
            return self

        async def __aexit__(self, *_: object) -> None:
            log.append("closed")

        def __aiter__(self) -> Model:
            return self

        async def __anext__(self) -> str:
            self.left -= 1
            if self.left < 0:
                asked.set()
                await anyio.sleep_forever()
            return "word "

    class Streamed(StreamingResponse):
        # Starlette leaves a generator to the garbage collector, about which trio complains.
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async with aclosing(self.body_iterator):
                await super().__call__(scope, receive, send)

    monkeypatch.setattr(language_model, "ask_model", Model)
    monkeypatch.setattr(language_model, "StreamingResponse", Streamed)
    app = app_with({"/": language_model.chat}, language_model.stop_for_nobody)

    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        first = True

        async def received() -> Any:
            nonlocal first
            if first:
                first = False
                return await receive()
            await asked.wait()
            return {"type": "http.disconnect"}

        await app(scope, received, send)
        gone.set()

    await run(app=leaving, path="/?prompt=hello", keep_error=True)

    assert gone.is_set()
    assert log == ["asked", "closed"]


@pytest.mark.parametrize("kind", ["background", "dependency"])
async def test_access_log_and_metrics_do_not_wait_for_what_comes_later(caplog, kind):
    """The line and the observation are there before a background task, or a dependency's exit."""
    seen: list[tuple[int, int]] = []

    def look() -> None:
        lines = [each for each in caplog.records if each.name == "access"]
        seen.append((len(lines), metrics_of("/later")))

    module = recipe("prometheus_metrics", "prometheus_client")

    def metrics_of(route: str) -> int:
        samples = module.requests.collect()[0].samples
        counts = [each for each in samples if each.name.endswith("_total")]
        return sum(int(each.value) for each in counts if each.labels["route"] == route)

    async def exit_later() -> AsyncIterator[None]:
        yield
        look()

    app = FastAPI()
    dependencies = [Depends(exit_later)] if kind == "dependency" else []

    @app.get("/later", dependencies=dependencies)
    async def later() -> Response:
        task = BackgroundTask(look) if kind == "background" else None
        return PlainTextResponse("x", background=task)

    app.add_middleware(HTTPMiddleware, dispatch=access_log.access_log)
    app.add_middleware(HTTPMiddleware, dispatch=module.metrics)
    before = metrics_of("/later")
    with caplog.at_level(logging.INFO, logger="access"):
        await run(app=app, path="/later")

    assert seen == [(1, before + 1)]


async def test_stream_that_falls_silent_is_cut_off(app_with, monkeypatch):
    """A stream that goes on is left alone; one that falls silent is cut."""

    async def endless(request: Request) -> Response:
        return StreamingResponse(Endless(b"abc"))

    app = app_with({"/endless": endless, "/hello": hello}, time_limits.while_it_streams)

    assert (await run(app=app, path="/hello")).status == 200
    monkeypatch.setattr(time_limits, "IDLE_SECONDS", 0.05)
    cut = await run(app=app, path="/endless", keep_error=True)
    assert (cut.status, cut.body, cut.outcome) == (200, b"abc", "failed")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A database with one empty table; what it holds."""
    path = tmp_path / "shop.sqlite3"
    monkeypatch.setattr(session_sqlite, "DATABASE", str(path))

    def query(sql: str) -> list[str]:
        db = sqlite3.connect(path)
        try:
            return [row[0] for row in db.execute(sql)]
        finally:
            db.commit()
            db.close()

    query(
        "create table things"
        " (name primary key, part_of references things deferrable initially deferred)"
    )
    return lambda: query("select name from things")


def insert(request: Request) -> None:
    request.state.db.execute("insert into things (name) values ('tea')")


async def store(request: Request) -> Response:
    await anyio.to_thread.run_sync(insert, request)
    return PlainTextResponse("stored", int(request.query_params.get("status", "200")))


async def store_and_fail(request: Request) -> Response:
    await store(request)
    raise LookupError("lost")


async def test_session_is_committed_before_the_response(app_with, rows):
    """When the first byte is sent, the rows are there."""
    seen = []

    async def watch(conn: Connection) -> Flow:
        yield
        seen.append(rows())

    result = await run(app=app_with({"/": store}, watch, session_sqlite.session))

    assert result.status == 200
    assert seen == [["tea"]]


@pytest.mark.parametrize("path", ["/?status=409", "/fail"])
async def test_session_is_rolled_back(app_with, rows, path):
    """After an error, and after an exception, nothing is stored."""
    app = app_with({"/": store, "/fail": store_and_fail}, session_sqlite.session)

    await run(app=app, path=path, keep_error=True)

    assert rows() == []


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_session_is_open_while_the_body_streams(app_with, rows, spec):
    """A streamed body reads from it, and afterwards it is closed."""
    kept = []

    async def endpoint(request: Request) -> Response:
        kept.append(request.state.db)
        insert(request)

        class Rows(Chunks):
            async def __anext__(self) -> bytes:
                await super().__anext__()
                ((name,),) = request.state.db.execute("select name from things")
                return name.encode()

        return StreamingResponse(Rows(b""))

    result = await run(app=app_with({"/": endpoint}, session_sqlite.session), spec=spec)

    assert result.body == b"tea"
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        kept[0].execute("select 1")


async def test_session_that_cannot_be_committed_is_no_success(app_with, rows):
    """A commit that fails is raised, and no byte of the success is sent."""

    async def endpoint(request: Request) -> Response:
        request.state.db.execute("pragma foreign_keys = on")
        request.state.db.execute("insert into things values ('tea', 'no such thing')")
        return PlainTextResponse("stored")

    app = app_with({"/": endpoint}, session_sqlite.session)
    result = await run(app=app, keep_error=True)

    assert isinstance(result.exception, sqlite3.IntegrityError)
    assert result.status == 500
    assert rows() == []


async def test_session_of_sqlalchemy(app_with, tmp_path, anyio_backend, monkeypatch):
    """The same with SQLAlchemy: committed, rolled back, and open while the body streams."""
    if anyio_backend == "trio":
        pytest.skip("SQLAlchemy's asyncio extension is asyncio's")
    pytest.importorskip("aiosqlite")
    module = recipe("session_sqlalchemy", "sqlalchemy")
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}")
    monkeypatch.setattr(module, "sessions", async_sessionmaker(engine))
    async with engine.begin() as db:
        await db.execute(text("create table things (name)"))

    async def endpoint(request: Request) -> Response:
        db = request.state.db
        await db.execute(text("insert into things (name) values ('tea')"))

        class Rows(Chunks):
            async def __anext__(self) -> bytes:
                await super().__anext__()
                return str((await db.execute(text("select name from things"))).scalar()).encode()

        return StreamingResponse(Rows(b""), int(request.query_params.get("status", "200")))

    app = app_with({"/": endpoint}, module.session)
    try:
        refused = await run(app=app, path="/?status=409")
        stored = await run(app=app)
        async with engine.begin() as db:
            names = (await db.execute(text("select name from things"))).scalars().all()
    finally:
        await engine.dispose()

    assert (refused.body, stored.body) == (b"tea", b"tea")
    assert names == ["tea"]


# Where a layer stands


@pytest.mark.parametrize(
    ("path", "headers", "status", "cache_control"),
    [
        ("/", {}, 200, None),
        ("/fresh", {}, 200, "no-store"),
        ("/members/", {}, 403, None),
        ("/members/news", {}, 403, None),
        ("/members/news", {"x-member": "1"}, 200, None),
    ],
)
async def test_layers_of_routes_and_mounts(path, headers, status, cache_control):
    """A layer of a route is there for that route, a layer of a mount for all below it."""
    result = await run(app=placing_starlette.app, path=path, headers=headers)

    assert result.status == status
    assert result.headers.get("cache-control") == cache_control


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/v1/members/news", {}, 403),
        ("/v1/members/news", {"x-member": "1"}, 200),
        ("/v1/members/archive/news", {}, 403),
        ("/v1/members/archive/news", {"x-member": "1"}, 200),
        ("/v1/members/nothing", {}, 404),
        ("/admin/users", {}, 403),
        ("/admin/users", {"x-member": "1"}, 200),
    ],
)
async def test_layers_of_routers_in_fastapi(path, headers, status):
    """A router with layers covers what is in it, routers that it includes too."""
    result = await run(app=placing_fastapi.app, path=path, headers=headers)

    assert result.status == status


@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("/page", {}, {"cache-control"}),
        ("/api/things", {}, {"cache-control", "x-robots-tag"}),
        ("/apis", {}, {"cache-control"}),
        ("/static/a.css", {}, set()),
        ("/static/a.css", {"headers": {"cookie": "session=1"}}, {"cache-control"}),
        (
            "/page",
            {"method": "OPTIONS", "headers": {"access-control-request-method": "GET"}},
            set(),
        ),
        ("/page", {"method": "OPTIONS"}, {"cache-control"}),
    ],
)
async def test_conditions(path, options, expected):
    """Where its condition is false, a layer is not there."""
    result = await run(app=conditions.app, path=path, **options)

    assert {"cache-control", "x-robots-tag"} & set(result.headers) == expected


@pytest.mark.parametrize("given", ["abc", "a b"])
@pytest.mark.parametrize("way", ["by_stack", "around", "by_handler", "by_layer"])
async def test_header_on_a_500(caplog, way, given):
    """However it is registered, the page for an unhandled exception has an id that was checked."""
    app = getattr(error_pages, way)()

    result = await run(app=app, path="/broken", headers={"x-request-id": given}, keep_error=True)

    assert result.status == 500
    assert (result.headers["x-request-id"] == given) == (given == "abc")
    assert len(result.headers.getlist("x-request-id")) == 1
    # The layer that answers has to log what the server is not told any more.
    assert (result.exception is None) == (way == "by_layer") == ("database" in caplog.text)


SENTRY = """
import anyio
import sentry_sdk
from fastapi import FastAPI, HTTPException

from httpmw import HTTPMiddleware
from httpmw.testing import run

reported = []
sentry_sdk.init(
    "http://key@127.0.0.1:9/1",
    auto_session_tracking=False,
    before_send=lambda event, hint: reported.append(event["transaction"]),
)
app = FastAPI()


@app.get("/endpoint")
async def endpoint():
    raise HTTPException(503)


@app.get("/layer")
async def layer():
    return "hello"


async def busy(conn):
    if conn.scope["path"] == "/layer":
        raise HTTPException(503)
    yield


app.add_middleware(HTTPMiddleware, dispatch=busy)


async def main():
    for path in ("/endpoint", "/layer"):
        assert (await run(app=app, path=path)).status == 503


anyio.run(main)
print(reported)
"""


def test_sentry_is_told_of_an_http_exception_of_an_endpoint_only():
    """One that a middleware function raises is answered by the same handlers, and not reported."""
    pytest.importorskip("sentry_sdk")
    command = [sys.executable, "-W", "ignore", "-c", SENTRY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("['/endpoint']\n", 0), done.stderr


async def test_maintenance_is_switched_on_and_off_while_serving():
    """The layer is there from the next request on, and gone again."""
    app = edit_while_serving.app

    async def ask(method: str = "GET", path: str = "/") -> int:
        return (await run(app=app, method=method, path=path)).status

    assert await ask() == 200
    for _ in range(2):
        assert await ask("POST", "/admin/maintenance") == 200
        assert await ask() == 503
    for _ in range(2):
        assert await ask("DELETE", "/admin/maintenance") == 200
        assert await ask() == 200


@pytest.mark.parametrize(
    "name", [each for each in vars(testing_a_middleware) if each.startswith("test_")]
)
async def test_tests_of_the_page(name):
    """The tests that the page shows pass."""
    await getattr(testing_a_middleware, name)()


# The pages


def shown() -> set[tuple[str, str | None]]:
    pages = (ROOT / "docs").glob("**/*.md")
    found = (match for page in pages for match in COPY.finditer(page.read_text()))
    return {(match["path"], match["section"]) for match in found}


def test_every_recipe_is_on_a_page():
    """No file or section lies in docs_src that nobody reads."""
    there = set()
    for file in (ROOT / "docs_src").glob("*/*.py"):
        path = file.relative_to(ROOT).as_posix()
        sections = re.findall(r"\[start:(\w+)\]", file.read_text())
        if sections:
            there |= {(path, section) for section in sections}
        elif file.name not in ("__init__.py", "patterns_shared.py"):
            there.add((path, None))

    assert there - shown() == set()


@pytest.mark.parametrize(
    "file", sorted((ROOT / "docs_src" / "recipes").glob("*.py")), ids=lambda file: file.stem
)
def test_every_recipe_is_tested(file):
    """Each file of the recipes is named in this one."""
    assert file.stem == "__init__" or re.search(rf"\b{file.stem}\b", Path(__file__).read_text())
