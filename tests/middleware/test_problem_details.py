"""`ProblemDetailsMiddleware`: what goes wrong inside, as RFC 9457 has it."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.exceptions import HTTPException as FastAPIHTTPException
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from httpmw import AppResponse, Connection, Flow, HTTPMiddleware
from httpmw.middleware import (
    Problem,
    ProblemDetailsMiddleware,
    RequestIDMiddleware,
    problem_responses,
)
from httpmw.testing import Server
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import Chunks, PassThrough, body, request, script, start

SECRET = "dsn=postgres://hunter2"  # noqa: S105 - of nobody


class OutOfStockError(LookupError):
    def __init__(self, item: str) -> None:
        super().__init__(item)
        self.item = item


def out_of_stock(conn: Connection, exc: OutOfStockError) -> Problem:
    return Problem(409, "none left", code="out-of-stock", item=exc.item)


def raising(exc: BaseException) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise exc

    return app


def layer(app: ASGIApp, **options: Any) -> ProblemDetailsMiddleware:
    return ProblemDetailsMiddleware(app, **options)


def starlette(endpoint: Callable[..., Any], *outside: Middleware, **options: Any) -> Starlette:
    application = {
        name: options.pop(name) for name in ("debug", "exception_handlers") if name in options
    }
    middleware = [*outside, Middleware(ProblemDetailsMiddleware, **options)]
    return Starlette(routes=[Route("/", endpoint)], middleware=middleware, **application)


async def failed(app: ASGIApp, **options: Any) -> Server:
    return await request(app, keep_error=True, **options)


def problem(server: Any, status: int) -> dict[str, Any]:
    """Check that the answer is a problem document of *status*; return it."""
    assert server.status == status
    assert server.headers["content-type"] == "application/problem+json"
    assert server.headers["content-length"] == str(len(server.body))
    document: dict[str, Any] = server.json()
    assert document["status"] == status
    return document


# -- exceptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_an_unknown_exception_is_answered_and_raised_on(
    spec: str | None, between: Any
) -> None:
    """The client gets a 500 that says nothing of the exception, the server the exception itself."""
    exc = ValueError(SECRET)
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda response: seen.append((response.status_code, response.outcome)))

    inner: ASGIApp = layer(raising(exc))
    app = HTTPMiddleware(between(inner) if between else inner, dispatch=outer)

    server = await failed(app, spec=spec)

    assert problem(server, 500) == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
    }
    assert SECRET.encode() not in server.body
    assert server.error is exc
    assert seen == [(500, "completed")]


async def test_an_exception_of_a_class_with_a_handler_is_answered_alone() -> None:
    """What is expected is an answer, and no error of the server."""
    app = layer(
        raising(OutOfStockError("tea")),
        handlers={LookupError: lambda conn, exc: 404, OutOfStockError: out_of_stock},
        type_base="https://example.com/problems/",
    )

    server = await request(app)

    assert problem(server, 409) == {
        "type": "https://example.com/problems/out-of-stock",
        "title": "Conflict",
        "status": 409,
        "detail": "none left",
        "code": "out-of-stock",
        "item": "tea",
    }


async def test_a_handler_of_a_base_class_is_found() -> None:
    """The nearest base class counts."""
    app = layer(raising(OutOfStockError("tea")), handlers={LookupError: lambda conn, exc: 404})

    assert problem(await request(app), 404)["title"] == "Not Found"


async def test_a_handler_may_be_async_and_return_a_response() -> None:
    """A response of its own goes out as it is."""

    async def handler(conn: Connection, exc: Exception) -> Response:
        await anyio.lowlevel.checkpoint()
        return PlainTextResponse(f"{conn.url.path} {exc}", 418)

    server = await request(layer(raising(KeyError("x")), handlers={KeyError: handler}), path="/a")

    assert (server.status, server.text) == (418, "/a 'x'")


async def test_a_handler_for_exception_is_raised_on() -> None:
    """As Starlette does with its handler for `Exception`: it stands for what is unknown."""
    exc = RuntimeError("x")
    app = layer(raising(exc), handlers={Exception: lambda conn, exc: Problem(503, "later")})

    server = await failed(app)

    assert problem(server, 503)["detail"] == "later"
    assert server.error is exc


@pytest.mark.parametrize("result", [None, True, "text"])
async def test_a_handler_that_returns_nothing_useful_is_named(result: Any) -> None:
    """The error says whose it is and what to return."""

    def useless(conn: Connection, exc: Exception) -> Any:
        return result

    server = await failed(layer(raising(KeyError("x")), handlers={KeyError: useless}))

    assert "useless" in str(server.error)
    assert "a Problem, a response or a status" in str(server.error)
    assert isinstance(server.error.__context__, KeyError)
    assert problem(server, 500)


async def test_a_handler_that_fails_is_answered_with_500() -> None:
    """The client has its answer, and the server the failure with the exception as its context."""

    def broken(conn: Connection, exc: Exception) -> Problem:
        raise ZeroDivisionError

    server = await failed(layer(raising(KeyError("x")), handlers={KeyError: broken}))

    assert problem(server, 500)
    assert isinstance(server.error, ZeroDivisionError)
    assert isinstance(server.error.__context__, KeyError)


async def test_without_reraise_the_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    """The layer writes the traceback itself, once, and the server sees nothing."""
    exc = ValueError(SECRET)

    server = await request(layer(raising(exc), reraise=False), path="/a%0Ab")

    assert problem(server, 500)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("httpmw", logging.ERROR)
    assert record.getMessage() == r"GET /a\nb failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is exc


async def test_with_reraise_nothing_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    """It is the server's to log, once."""
    await failed(layer(raising(ValueError("x"))))

    assert caplog.records == []


async def test_a_raised_problem_is_the_answer() -> None:
    """An endpoint raises one, or a subclass of it, with headers."""

    class TeaError(Problem):
        def __init__(self) -> None:
            super().__init__(429, "slow down", headers={"retry-after": "3"}, tea="green")

    async def endpoint(request: Request) -> Response:
        raise TeaError

    server = await request(starlette(endpoint))

    assert problem(server, 429)["tea"] == "green"
    assert server.headers["retry-after"] == "3"


async def test_a_group_of_one_stands_for_what_is_in_it() -> None:
    """Task groups make them; groups within groups are looked into as well."""
    group = ExceptionGroup("a", [ExceptionGroup("b", [OutOfStockError("tea")])])

    server = await request(layer(raising(group), handlers={OutOfStockError: out_of_stock}))

    assert problem(server, 409)["item"] == "tea"


async def test_a_group_is_raised_on_as_it_is() -> None:
    """The original group is what the server gets."""
    group = ExceptionGroup("a", [ValueError("x")])

    server = await failed(layer(raising(group)))

    assert problem(server, 500)
    assert server.error is group


async def test_an_exception_in_mid_body_passes() -> None:
    """Nothing can be said then: the body looks truncated, and the server gets the exception."""
    exc = ValueError("x")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"half", more=True))
        raise exc

    server = await failed(layer(app))

    assert server.error is exc
    assert (server.body, server.complete) == (b"half", False)


async def test_a_client_that_has_left_is_no_problem(caplog: pytest.LogCaptureFixture) -> None:
    """`ClientDisconnect` is nobody's error."""
    server = await failed(layer(raising(ClientDisconnect()), reraise=False), leaves_after=0)

    assert server.sent == []
    assert caplog.records == []


async def test_a_cancelled_request_stays_cancelled() -> None:
    """No answer is made of a cancellation."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope_.cancel()
        await anyio.sleep(10)

    server = Server()
    with anyio.CancelScope() as scope_:
        await layer(app)(server.scope, server.receive, server.send)

    assert scope_.cancelled_caught
    assert server.sent == []


async def test_an_http_exception_of_a_plain_asgi_app_is_answered() -> None:
    """There is nobody inside who would make a response of it."""
    exc = HTTPException(401, "no token", {"www-authenticate": "Bearer"})

    server = await request(layer(raising(exc)))

    assert problem(server, 401)["detail"] == "no token"
    assert server.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("status", [204, 304, 600])
async def test_an_http_exception_that_is_no_error_stays_what_it_is(status: int) -> None:
    """There is no problem that could have that status."""
    server = await request(layer(raising(HTTPException(status, "", {"x-own": "1"}))))

    assert (server.status, server.body, server.headers["x-own"]) == (status, b"", "1")


# -- whose answer it is ----------------------------------------------------------------------


@pytest.mark.parametrize("key", [500, Exception])
async def test_the_applications_own_handler_is_not_hidden(key: Any) -> None:
    """Where it has one for unknown exceptions it answers, once."""
    runs = []

    async def own(request: Request, exc: Exception) -> Response:
        runs.append(exc)
        return PlainTextResponse("own", 500)

    async def endpoint(request: Request) -> Response:
        raise ValueError(SECRET)

    app = starlette(endpoint, exception_handlers={key: own}, handlers={Exception: lambda c, e: 503})
    server = await failed(app)

    assert (server.status, server.text) == (500, "own")
    assert len(runs) == 1


async def test_debug_shows_the_traceback() -> None:
    """Starlette's page is what a developer wants."""

    async def endpoint(request: Request) -> Response:
        raise ValueError("here")

    server = await failed(starlette(endpoint, debug=True))

    assert "Traceback" in server.text


async def test_a_mounted_application_does_not_decide_for_the_one_outside() -> None:
    """A sub-application writes itself into the scope; its handlers are its own."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("x")

    class Fails(PassThrough):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def quiet(message: Any) -> None:
                pass

            await self.app(scope, receive, quiet)
            raise ValueError(SECRET)

    inner = Starlette(
        routes=[Route("/", endpoint)],
        exception_handlers={Exception: lambda request, exc: PlainTextResponse("own", 500)},
    )
    app = Starlette(
        routes=[Mount("/sub", app=Fails(inner))], middleware=[Middleware(ProblemDetailsMiddleware)]
    )

    assert problem(await failed(app, path="/sub/"), 500)


@pytest.mark.parametrize(
    ("status", "content_type", "text"),
    [
        (400, "application/json", '{"detail": "x", "code": 3}'),
        (400, "application/json", '{"error": "x"}'),
        (400, "application/json", "[1]"),
        (400, "application/json", '{"detail": '),
        (400, "application/problem+json", '{"detail": "x"}'),
        (404, "text/plain; charset=utf-8", "members only"),
        (500, "text/plain", "\xff"),
        (404, "text/html", "Not Found"),
        (200, "application/json", '{"detail": "x"}'),
        (400, "application/json", json.dumps({"detail": "x" * 65536})),
    ],
)
async def test_a_response_of_its_own_passes(
    status: int, content_type: str, text: str, spec: str | None
) -> None:
    """Only the bare form is converted."""
    data = text.encode("latin-1")
    app = script(
        start(
            status,
            [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(data))],
        ),
        body(data),
    )

    server = await request(layer(app), spec=spec)

    assert (server.status, server.body) == (status, data)
    assert server.headers["content-type"] == content_type
    assert "vary" not in server.headers


async def test_a_stream_is_not_held_back() -> None:
    """An error without a length is a stream, and goes out chunk by chunk."""
    app = script(
        start(500, [(b"content-type", b"application/json")]),
        body(b'{"detail":', more=True),
        body(b' "x"}'),
    )

    server = await request(layer(app))

    assert server.chunks == [b'{"detail":', b' "x"}']


async def test_without_convert_responses_pass() -> None:
    """`convert=False` leaves all responses alone."""
    server = await request(layer(JSONResponse({"detail": "x"}, 400), convert=False))

    assert server.json() == {"detail": "x"}


# -- what is converted -----------------------------------------------------------------------


class Account(BaseModel):
    name: str
    password: int
    born: dt.date | None = None


def fastapi(*outside: Middleware, **options: Any) -> FastAPI:
    app = FastAPI(middleware=[*outside, Middleware(ProblemDetailsMiddleware, **options)])

    @app.post("/accounts/{number}")
    async def create(number: int, account: Account, page: int = 1) -> None:
        pass

    @app.get("/refused")
    async def refused(kind: str = "text") -> None:
        details: dict[str, Any] = {
            "text": "no token",
            "dict": {"balance": 3},
            "list": ["one", {"two": 2}],
            "number": 3,
        }
        raise FastAPIHTTPException(
            401, details[kind], {"www-authenticate": "Bearer", "retry-after": "3"}
        )

    @app.get("/fails")
    async def fails() -> None:
        raise ValueError(SECRET)

    return app


async def test_an_invalid_request_of_fastapi_is_told_without_its_input() -> None:
    """Where and what, but nothing of what the client has sent, a password least of all."""
    sent = {"password": "hunter2", "born": "hunter2", "a~b/c": 1}

    server = await request(
        fastapi(),
        method="POST",
        path="/accounts/seven?page=hunter2",
        headers={"content-type": "application/json"},
        body=json.dumps(sent),
    )

    document = problem(server, 422)
    assert document["title"] == "Unprocessable Content"
    assert b"hunter2" not in server.body
    assert b"seven" not in server.body
    where = [error.get("pointer") or error.get("parameter") for error in document["errors"]]
    assert where == ["number", "page", "#/name", "#/password", "#/born"]
    assert {key for error in document["errors"] for key in error} == {
        "detail",
        "type",
        "pointer",
        "parameter",
    }


async def test_echo_input_repeats_the_input() -> None:
    """Who asks for it gets it."""
    server = await request(
        fastapi(echo_input=True),
        method="POST",
        path="/accounts/1",
        headers={"content-type": "application/json"},
        body='{"name": "a", "password": "hunter2"}',
    )

    assert problem(server, 422)["errors"][0]["input"] == "hunter2"


async def test_broken_json_has_no_pointer() -> None:
    """FastAPI has the position in the text where the path stands otherwise."""
    server = await request(
        fastapi(),
        method="POST",
        path="/accounts/1",
        headers={"content-type": "application/json"},
        body='{"name": hunter2',
    )

    [error] = problem(server, 422)["errors"]
    assert error["type"] == "json_invalid"
    assert error.keys() == {"detail", "type"}
    assert b"hunter2" not in server.body


async def test_a_pointer_is_escaped() -> None:
    """RFC 6901 sections 3 and 6: as a fragment of a URI."""
    detail = [{"msg": "m", "loc": ["body", "a~b/c d", 0, "ü"], "type": "t"}]

    server = await request(layer(JSONResponse({"detail": detail}, 422)))

    assert problem(server, 422)["errors"][0]["pointer"] == "#/a~0b~1c%20d/0/%C3%BC"


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("text", {"detail": "no token"}),
        ("dict", {"data": {"balance": 3}}),
        ("list", {"errors": [{"detail": "one"}, {"two": 2}]}),
        ("number", {"data": 3}),
    ],
)
async def test_an_http_exception_keeps_status_and_headers(
    kind: str, members: dict[str, Any], spec: str | None
) -> None:
    """Whatever its detail is; the member `detail` is a text."""
    server = await request(fastapi(), path=f"/refused?kind={kind}", spec=spec)

    document = problem(server, 401)
    assert {"type": "about:blank", "title": "Unauthorized", "status": 401, **members} == document
    assert server.headers["www-authenticate"] == "Bearer"
    assert server.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [("GET", "/none", 404, "Not Found"), ("POST", "/", 405, "Method Not Allowed")],
)
@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_404_and_405_are_problems(
    framework: Any, method: str, path: str, status: int, title: str
) -> None:
    """FastAPI's JSON and Starlette's phrases as texts."""

    async def endpoint(request: Request) -> Response:
        return Response()

    app = framework(routes=[Route("/", endpoint)])
    app.add_middleware(ProblemDetailsMiddleware)

    server = await request(app, method=method, path=path)

    assert problem(server, status)["title"] == title
    assert status != 405 or set(server.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_the_default_500_of_a_mounted_application_is_a_problem() -> None:
    """It has answered already when its exception comes out."""

    async def endpoint(request: Request) -> Response:
        raise ValueError(SECRET)

    app = Starlette(
        routes=[Mount("/sub", app=Starlette(routes=[Route("/", endpoint)]))],
        middleware=[Middleware(ProblemDetailsMiddleware)],
    )

    server = await failed(app, path="/sub/")

    assert problem(server, 500)
    assert isinstance(server.error, ValueError)


async def test_head_has_the_same_fields_and_no_body() -> None:
    """RFC 9110 section 9.3.2."""
    app = layer(raising(ValueError("x")))
    get, head = await failed(app), await failed(app, method="HEAD")

    assert head.body == b""
    assert dict(head.headers) == dict(get.headers)


async def test_background_tasks_of_a_converted_response_run() -> None:
    """Its body is another one, and it is as sent as before."""
    ran = []

    async def endpoint(request: Request) -> Response:
        return JSONResponse({"detail": "x"}, 400, background=BackgroundTask(ran.append, 1))

    assert problem(await request(starlette(endpoint)), 400)
    assert ran == [1]


async def test_a_digest_of_the_old_body_is_dropped() -> None:
    """The body is another one (RFC 9530)."""
    headers = {"etag": '"a"', "content-digest": "sha-256=:x:", "x-own": "kept"}

    server = await request(layer(JSONResponse({"detail": "x"}, 400, headers)))

    assert problem(server, 400)
    assert "etag" not in server.headers
    assert "content-digest" not in server.headers
    assert server.headers["x-own"] == "kept"


# -- negotiation -----------------------------------------------------------------------------

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "application/json;q=0.5, text/html"])
async def test_who_prefers_html_gets_a_page(accept: str) -> None:
    """A short one, with everything escaped."""
    app = layer(raising(Problem(404, "<script>alert(1)</script>")))

    server = await request(app, headers={"accept": accept})

    assert server.status == 404
    assert server.headers["content-type"] == "text/html; charset=utf-8"
    assert server.headers["vary"] == "Accept"
    assert "<h1>404 Not Found</h1>" in server.text
    assert "&lt;script&gt;" in server.text
    assert "<script>" not in server.text


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/json",
        "application/problem+json",
        "text/html, application/json",
        "text/html;q=0.5, */*",
        "text/html;q=0",
        "text/html;q=x",
        "text/plain",
        "",
        ";;,",
    ],
)
async def test_everybody_else_gets_json(accept: str) -> None:
    """RFC 9457 section 3: also those that have not asked for it by name."""
    server = await request(layer(JSONResponse({"detail": "x"}, 400)), headers={"accept": accept})

    assert problem(server, 400)
    assert server.headers["vary"] == "Accept"


async def test_a_vary_of_the_application_is_kept() -> None:
    """`Accept` is added to it."""
    app = layer(JSONResponse({"detail": "x"}, 400, {"vary": "Cookie"}))

    assert (await request(app)).headers["vary"] == "Cookie, Accept"


async def test_without_negotiate_all_get_json() -> None:
    """And nothing varies."""
    app = layer(raising(Problem(404)), negotiate=False)

    server = await request(app, headers={"accept": BROWSER})

    assert problem(server, 404)
    assert "vary" not in server.headers


# -- with others -----------------------------------------------------------------------------


async def test_cors_headers_are_on_a_500() -> None:
    """With Starlette's `CORSMiddleware` outside: the browser shows the problem to the page."""
    app = fastapi(Middleware(CORSMiddleware, allow_origins=["https://page.example"]))

    server = await failed(app, path="/fails", headers={"origin": "https://page.example"})

    assert problem(server, 500)
    assert server.headers["access-control-allow-origin"] == "https://page.example"
    assert isinstance(server.error, ValueError)


async def test_the_request_id_is_a_member() -> None:
    """The same as in the header."""
    app = RequestIDMiddleware(layer(raising(Problem(404))))

    server = await request(app, headers={"x-request-id": "abc-1"})

    assert problem(server, 404)["request_id"] == "abc-1"
    assert server.headers["x-request-id"] == "abc-1"


async def test_the_trace_id_is_a_member_where_asked_for() -> None:
    """Of the traceparent with which the request came."""
    app = RequestIDMiddleware(layer(raising(Problem(404)), include=["trace_id"]))
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

    server = await request(app, headers={"traceparent": parent})

    assert problem(server, 404)["trace_id"] == "a" * 32
    assert "request_id" not in server.json()


async def test_instance_is_what_the_function_says() -> None:
    """An absolute URI, where the problem has none itself."""
    app = layer(raising(Problem(404)), instance=lambda conn: f"urn:example:{conn.method}")

    assert problem(await request(app), 404)["instance"] == "urn:example:GET"


@pytest.mark.parametrize("made", ["/relative", 3, ZeroDivisionError])
async def test_a_wrong_instance_costs_its_member(
    made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """There is an answer all the same."""

    def instance(conn: Connection) -> Any:
        if made is ZeroDivisionError:
            raise ZeroDivisionError
        return made

    server = await request(layer(raising(Problem(404)), instance=instance))

    assert "instance" not in problem(server, 404)
    assert "instance=" in caplog.text


async def test_what_is_not_json_is_written_as_text() -> None:
    """A date, a UUID: as `str` has them."""
    app = layer(raising(Problem(409, day=dt.date(2026, 12, 1))))

    assert problem(await request(app), 409)["day"] == "2026-12-01"


async def test_what_cannot_be_written_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Not a number is not JSON; there is an answer all the same."""
    server = await request(layer(raising(Problem(409, "x", value=float("nan")))))

    assert problem(server, 409) == {"type": "about:blank", "title": "Conflict", "status": 409}
    assert "cannot be written" in caplog.text


async def test_neighbours_fuse() -> None:
    """It is a layer as any other: the one outside sees the problem."""

    async def outer(conn: Connection) -> Flow:
        response: AppResponse = yield
        response.headers["x-outer"] = str(response.status_code)

    app = HTTPMiddleware(layer(raising(Problem(404))), dispatch=outer)

    assert len(app._httpmw[0]) == 2
    assert (await request(app)).headers["x-outer"] == "404"


# -- WebSockets ------------------------------------------------------------------------------


def socket(endpoint: Callable[[WebSocket], Any]) -> Starlette:
    return Starlette(
        routes=[WebSocketRoute("/", endpoint)], middleware=[Middleware(ProblemDetailsMiddleware)]
    )


async def test_a_refused_handshake_is_a_problem() -> None:
    """The refusal of a handshake is a response like others, where the server can send one."""

    async def endpoint(websocket: WebSocket) -> None:
        raise HTTPException(401, "Unauthorized", {"www-authenticate": "Bearer"})

    server = await SocketServer(extensions=DENIES).run(socket(endpoint))

    assert problem(server, 401)
    assert server.headers["www-authenticate"] == "Bearer"


async def test_an_exception_in_a_handshake_is_answered() -> None:
    """A 500 in place of a connection that breaks off."""

    async def endpoint(websocket: WebSocket) -> None:
        raise ValueError(SECRET)

    server = await SocketServer(extensions=DENIES).run(socket(endpoint), keep_error=True)

    assert problem(server, 500)
    assert isinstance(server.error, ValueError)


async def test_without_reraise_a_failing_handshake_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is a GET to its path."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(SECRET)

    server = await SocketServer(path="/ws").run(layer(app, reraise=False))

    assert problem(server, 500)
    assert caplog.records[0].getMessage() == "GET /ws failed"


async def test_without_the_extension_a_refusal_is_bare() -> None:
    """A close is all that there is; servers make a 403 of it."""

    async def endpoint(websocket: WebSocket) -> None:
        raise Problem(429)

    server = await SocketServer(extensions={}).run(socket(endpoint))

    assert server.types == ["websocket.close"]


async def test_an_accepted_websocket_is_left_alone() -> None:
    """What goes wrong after the acceptance is not HTTP's any more."""
    exc = ValueError(SECRET)

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        raise exc

    server = await SocketServer().run(socket(endpoint), keep_error=True)

    assert server.types[:2] == ["websocket.accept", "websocket.send"]
    assert server.error is exc


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"handlers": [ValueError]}, "a mapping of classes"),
        ({"handlers": {404: out_of_stock}}, "exception_handlers"),
        ({"handlers": {KeyboardInterrupt: out_of_stock}}, "classes of exceptions"),
        ({"handlers": {FastAPIHTTPException: out_of_stock}}, "never arrives here"),
        ({"handlers": {KeyError: 404}}, "not to 404"),
        ({"convert": "yes"}, "convert='yes'"),
        ({"type_base": "/problems/"}, "https://example.com/problems/"),
        ({"instance": "request-id"}, "plain function"),
        ({"include": "request_id"}, "collection of some"),
        ({"include": ["user"]}, "collection of some"),
    ],
)
def test_options_are_checked_where_the_layer_is_made(options: Any, words: str) -> None:
    """The error names the class, the option and what is expected."""
    with pytest.raises(TypeError) as caught:
        layer(script(), **options)

    assert "ProblemDetailsMiddleware" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"status": 200}, "400 to 599"),
        ({"status": "404"}, "400 to 599"),
        ({"status": 404, "type": "out-of-stock"}, "code="),
        ({"status": 404, "instance": "/orders/1"}, "absolute"),
        ({"status": 404, "no": 1}, "two or more"),
        ({"status": 404, "a-b-c": 1}, "letters, digits or _"),
    ],
)
def test_a_problem_is_checked_where_it_is_made(arguments: dict[str, Any], words: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(ValueError, match=words):
        Problem(**arguments)


def test_openapi_has_the_problems() -> None:
    """`problem_responses` replaces FastAPI's own schema of a 422."""
    app = FastAPI(responses=problem_responses(404, 422))

    @app.get("/{number}")
    async def get(number: int) -> int:
        return number

    responses = app.openapi()["paths"]["/{number}"]["get"]["responses"]

    assert responses["404"]["description"] == "Not Found"
    for status in ("404", "422"):
        assert [*responses[status]["content"]] == ["application/problem+json"]
    schema = responses["422"]["content"]["application/problem+json"]["schema"]
    assert "errors" in schema["properties"]


async def test_a_stream_that_was_cut_is_no_problem(spec: str | None) -> None:
    """A client that leaves a stream is nobody's error."""

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(Chunks(b"a", b"b", b"c"))

    server = await failed(starlette(endpoint), leaves_after=2, spec=spec)

    assert server.body == b"a"
    assert server.error is None or isinstance(server.error, ClientDisconnect)


# -- uploads ---------------------------------------------------------------------------------


def refusing(what: str, **options: Any) -> Any:
    """Make an application that answers an error without having read the request."""
    app = FastAPI()
    app.add_middleware(ProblemDetailsMiddleware, reraise=False, **options)

    @app.post("/")
    async def endpoint() -> None:
        if what == "raises":
            raise RuntimeError("before the upload was read")
        raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer"})

    return app


@pytest.mark.parametrize("what", ["raises", "answers"])
@pytest.mark.parametrize(
    ("drain", "receives", "closes"),
    [(True, 2, False), ({"max_size": 3}, 0, True), (False, 0, False)],
)
async def test_what_is_left_of_an_upload_is_received(
    what: str, drain: Any, receives: int, *, closes: bool
) -> None:
    """Before an error is answered; beyond the bound the connection ends."""
    app = refusing(what, drain=drain)
    server = await request(app, method="POST", headers={"content-length": "4"}, body=[b"ab", b"cd"])

    assert server.status == (500 if what == "raises" else 401)
    assert server.headers["content-type"] == "application/problem+json"
    assert server.receives == receives
    assert ("connection" in server.headers) is closes


async def test_a_response_that_a_handler_gives_to_all_is_left_alone() -> None:
    """`connection: close` is said of this request, not by the handler's own object."""
    shared = PlainTextResponse("sorry", 503)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError

    layer = ProblemDetailsMiddleware(
        app, handlers={LookupError: lambda conn, exc: shared}, drain={"max_size": 3}
    )
    server = await request(layer, method="POST", headers={"content-length": "4"}, body=b"abcd")

    assert server.headers["connection"] == "close"
    assert "connection" not in shared.headers
