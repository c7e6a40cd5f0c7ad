"""`run` sends one request through a middleware, in any of its forms."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError, NoResponseError
from httpmw.compat import BaseHTTPMiddleware as DropIn
from httpmw.stack import MiddlewareStack
from httpmw.testing import ASGIViolation, run
from tests.harness import Chunks, body, script, start


async def served_by(conn: Connection) -> Flow:
    response = yield
    response.headers["x-served-by"] = "mine"


async def gate(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


@pytest.mark.unchecked("the checker would keep the stack from taking over what its layers are")
async def test_layer_of_a_stack_that_is_of_the_drop_in() -> None:
    """The outermost layer of a stack runs alone, whatever its style."""

    async def tag(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-tag"] = "yes"
        return response

    stack = MiddlewareStack(PlainTextResponse(), [Middleware(DropIn, dispatch=tag), served_by])
    result = await run(stack.app, PlainTextResponse("inner"))

    assert (result.headers["x-tag"], result.body) == ("yes", b"inner")
    assert "x-served-by" not in result.headers


def suffix(text: str) -> Any:
    async def mw(conn: Connection) -> Flow:
        response = yield
        response.body = await response.read() + text.encode()

    return mw


class Named(HTTPMiddleware):
    def __init__(self, app: ASGIApp, name: str = "class") -> None:
        super().__init__(app)
        self.name = name

    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        response.headers["x-served-by"] = self.name


class Raw:
    """A middleware that is none of ours."""

    def __init__(self, app: ASGIApp, name: str = "raw") -> None:
        self.app = app
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"x-served-by", self.name.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, named)


async def test_one_line() -> None:
    """A middleware function alone is enough: the request is a GET, the app answers 200 "ok"."""
    result = await run(served_by)

    assert result.headers["x-served-by"] == "mine"
    assert (result.status, result.text) == (200, "ok")
    assert result.outcome == "completed"
    assert result.exception is None
    assert result.app_ran


class Callable:
    async def __call__(self, conn: Connection) -> Flow:
        response = yield
        response.headers["x-served-by"] = "object"


def plain(conn: Connection) -> Flow:
    return served_by(conn)


def factory(app: ASGIApp) -> ASGIApp:
    return Raw(app, "factory")


async def call_next_style(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers["x-served-by"] = "starlette"
    return response


@pytest.mark.parametrize(
    ("mw", "name"),
    [
        (served_by, "mine"),
        (plain, "mine"),
        (functools.partial(served_by), "mine"),
        (Callable(), "object"),
        (Named, "class"),
        (Named(PlainTextResponse("elsewhere"), "instance"), "instance"),
        (Middleware(Named, name="options"), "options"),
        (Middleware(HTTPMiddleware, dispatch=served_by), "mine"),
        (Raw, "raw"),
        (functools.partial(Raw, name="partial"), "partial"),
        (Middleware(Raw, "positional"), "positional"),
        (factory, "factory"),
        (lambda app: Raw(app, "lambda"), "lambda"),
        (Middleware(BaseHTTPMiddleware, dispatch=call_next_style), "starlette"),
        ([served_by, Named, Raw], "mine"),
        ([Raw], "raw"),
    ],
)
async def test_forms_of_middleware(mw: Any, name: str) -> None:
    """Whatever can be registered can be run, around the app that was given."""
    result = await run(mw, PlainTextResponse("data"))

    assert result.headers["x-served-by"] == name
    assert result.body == b"data"


async def test_sequence_is_outermost_first() -> None:
    """Of several middleware the first is the outermost."""
    result = await run([suffix("outer"), suffix("inner,")], PlainTextResponse("app,"))

    assert result.text == "app,inner,outer"


async def test_app_alone() -> None:
    """Without a middleware an app is run by itself."""
    result = await run(app=JSONResponse({"a": 1}, 201))

    assert result.status == 201
    assert result.json() == {"a": 1}


async def test_no_middleware_function() -> None:
    """What is no middleware is refused as it is at registration."""
    with pytest.raises(TypeError, match="`call_next` style"):
        await run(call_next_style)  # type: ignore[arg-type]


async def test_request() -> None:
    """The app gets the request that was described."""
    result = await run(
        served_by,
        method="POST",
        path="/caf%C3%A9",
        query="q=1",
        headers={"X-A": "b"},
        body="data",
        scope={"client": ("10.0.0.1", 1), "state": {"key": "value"}},
        extensions={"http.response.pathsend": {}},
        spec="2.4",
    )

    request = result.request
    assert request is not None
    assert (request.method, request.scope["raw_path"]) == ("POST", b"/caf%C3%A9")
    assert request.scope["path"] == "/café"
    assert dict(request.query_params) == {"q": "1"}
    assert request.headers.items() == [
        ("host", "testserver"),
        ("x-a", "b"),
        ("content-length", "4"),
    ]
    assert request.client is not None
    assert request.client.host == "10.0.0.1"
    assert request.state.key == "value"
    assert request.scope["asgi"]["spec_version"] == "2.4"
    assert request.scope["extensions"] == {"http.response.pathsend": {}}
    assert result.request_body == b"data"


async def test_query_in_the_path() -> None:
    """A query string may stand in the path; a host that is given stays."""
    result = await run(path="/x?a=1", headers=[(b"Host", b"example.org")])

    assert result.request is not None
    assert str(result.request.url) == "http://example.org/x?a=1"


async def test_request_that_was_changed() -> None:
    """What the middleware does to the request is to be seen in what the app got."""

    async def mw(conn: Connection) -> Flow:
        conn.scope["path"] = "/other"
        conn.state.user = "me"
        conn.replace_body(b"new")
        yield

    result = await run(mw, method="POST", body=[b"o", b"ld"])

    assert result.request is not None
    assert result.request.url.path == "/other"
    assert result.request.state.user == "me"
    assert result.request_body == b"new"
    assert result.received == [{"type": "http.request", "body": b"new", "more_body": False}]


async def test_early_answer() -> None:
    """A middleware that answers by itself leaves no trace of the app."""
    result = await run(gate)

    assert (result.status, result.text) == (403, "members only")
    assert not result.app_ran
    assert result.request is None
    assert result.received == []
    assert (await run(gate, headers={"x-member": "1"})).app_ran


async def test_exception_is_raised() -> None:
    """What the middleware lets pass is raised, as the object it is."""
    error = LookupError()
    with pytest.raises(LookupError) as raised:
        await run(served_by, error)

    assert raised.value is error


async def test_exception_is_kept() -> None:
    """With `keep_error` there is a result all the same."""
    result = await run(served_by, LookupError, keep_error=True)

    assert isinstance(result.exception, LookupError)
    assert result.outcome == "failed"
    assert result.status is None
    assert result.sent == []
    with pytest.raises(LookupError, match="there is no response"):
        assert result.headers


async def test_exception_that_is_handled() -> None:
    """An exception in place of the app is what the middleware sees at its yield."""

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except LookupError as error:
            yield PlainTextResponse(repr(error), 500)

    result = await run(mw, LookupError("none"))

    assert (result.status, result.text) == (500, "LookupError('none')")
    assert result.exception is None


async def test_chunks() -> None:
    """The body is there whole, by chunk, and as raw messages."""
    result = await run(app=StreamingResponse(Chunks(b"a", b"b")))

    assert result.body == b"ab"
    assert result.chunks == [b"a", b"b", b""]
    assert result.types == ["start", "body", "body", "body"]
    assert result.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_head() -> None:
    """To HEAD there is no body."""
    result = await run(served_by, PlainTextResponse("data"), method="HEAD")

    assert result.body == b""
    assert result.headers["content-length"] == "4"


@pytest.mark.parametrize(
    ("app", "outcome"),
    [
        (script(), "no response"),
        (script(start()), "incomplete"),
        (script(start(), body(b"a", more=True)), "incomplete"),
        (script(start(), body()), "completed"),
    ],
    ids=["nothing", "start", "part", "all"],
)
async def test_outcome(app: ASGIApp, outcome: str) -> None:
    """The outcome is that at the server."""
    assert (await run(app=app)).outcome == outcome


async def test_no_response_names_the_app() -> None:
    """The tools that stand around the app do not hide it in an error."""
    app = script()
    with pytest.raises(NoResponseError, match=r"'script\.<locals>\.app' \(.*harness\.py"):
        await run(served_by, app)


@pytest.mark.parametrize(("after", "types"), [(1, ["start"]), (2, ["start", "body"])])
async def test_client_leaves(after: int, types: list[str], spec: str | None) -> None:
    """The client leaves after some messages; the middleware sees it."""
    seen = []

    async def log(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        finally:
            seen.append(response.outcome)

    app = StreamingResponse(Chunks(b"a", b"b", b"c"))
    result = await run(log, app, leaves_after=after, spec=spec, keep_error=True)

    assert result.outcome == "disconnected"
    assert result.types == types
    assert seen == ["disconnected"]
    assert isinstance(result.exception, ClientDisconnect) is (spec in {"2.4", "2.5"})


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_client_is_gone(disconnect: Any) -> None:
    """A client can be gone from the beginning."""

    async def reads(conn: Connection) -> Flow:
        with contextlib.suppress(ClientDisconnect):
            await conn.body()
        if not await conn.is_disconnected():
            raise AssertionError
        raise ClientDisconnect
        yield

    result = await run(reads, leaves_after=0, disconnect=disconnect, keep_error=True)

    assert isinstance(result.exception, ClientDisconnect)
    assert result.outcome == "disconnected"
    assert result.sent == []


async def test_middleware_that_breaks_a_rule_outwards() -> None:
    """A message of the middleware that no server takes is an `ASGIViolation`, whatever follows."""

    class Late:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)
            with contextlib.suppress(RuntimeError):
                await send(body(b"late"))

    with pytest.raises(ASGIViolation, match=r"H02: .*\n.*Late\.__call__") as raised:
        await run(Late, keep_error=True)

    assert raised.value.rule.side == "app"


async def test_middleware_that_breaks_a_rule_inwards() -> None:
    """So is what the middleware gives to the app and no server would."""

    def wrong(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "query_string": "text"}, receive, send)

        return middleware

    with pytest.raises(ASGIViolation, match="S04: `query_string` is bytes") as raised:
        await run(wrong)

    assert raised.value.rule.side == "server"


async def test_misuse_is_raised() -> None:
    """A middleware function that breaks the contract is an error of the test."""

    async def silent(conn: Connection) -> Flow:
        if conn.method == "NONE":
            yield

    with pytest.raises(MiddlewareError, match="ended without a yield"):
        await run(silent)


async def test_two_kinds_of_middleware() -> None:
    """A middleware of Starlette's is run, and checked, as ours are."""
    app = PlainTextResponse("data " * 500)
    result = await run([served_by, GZipMiddleware], app, headers={"accept-encoding": "gzip"})

    assert result.headers["content-encoding"] == "gzip"
    assert result.headers["x-served-by"] == "mine"


def test_testing_imports_no_pytest() -> None:
    """`httpmw.testing` works where there is no pytest, and loads no trio."""
    code = "import sys, httpmw.testing; print('pytest' in sys.modules, 'trio' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert output.stdout.split() == ["False", "False"]


# WebSockets.


async def marking_gate(conn: Connection) -> Flow:
    """Let members in, and refuse all others."""
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    response = yield
    response.headers["x-gate"] = "open"


async def test_a_handshake_that_is_accepted() -> None:
    """The default app accepts and echoes; the result has the acceptance and what was sent."""
    result = await run(
        marking_gate, websocket=True, headers={"x-member": "1"}, messages=["a", b"b"]
    )
    assert (result.status, result.headers["x-gate"]) == (101, "open")
    assert (result.messages, result.outcome, result.close_code) == (["a", b"b"], "completed", None)
    assert result.request is not None
    assert result.request.scope["type"] == "websocket"


@pytest.mark.parametrize("extensions", [None, {}])
async def test_a_handshake_that_is_refused(extensions: Any) -> None:
    """It is a response where the server can send one, and a close where it cannot."""
    result = await run(marking_gate, websocket=True, extensions=extensions)
    assert (result.status, result.app_ran, result.outcome) == (403, False, "completed")
    assert result.text == ("members only" if extensions is None else "")
    assert result.close_code == (None if extensions is None else 1000)


async def test_a_handshake_around_a_layer() -> None:
    """A layer is there for it only if it says so."""
    assert (await run(HTTPMiddleware(Response(), marking_gate), websocket=True)).status == 101
    layer = HTTPMiddleware(Response(), marking_gate, websocket=True)
    assert (await run(layer, websocket=True)).status == 403
    assert (
        await run(Middleware(HTTPMiddleware, marking_gate, websocket=True), websocket=True)
    ).status == 403


async def test_a_websocket_that_breaks_off() -> None:
    """The client can leave without a close, before the answer and after a number of messages."""
    result = await run(None, websocket=True, messages=["a"], closes=1006)
    assert (result.messages, result.outcome) == (["a"], "disconnected")
    result = await run(None, websocket=True, messages=["a", "b", "c"], leaves_after=2)
    assert (result.messages, result.outcome) == (["a"], "disconnected")


async def test_a_websocket_that_the_app_closes() -> None:
    """`close_code` is that of the app."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "p"})
        await send({"type": "websocket.close", "code": 4000})

    result = await run(
        marking_gate, app, websocket=True, headers={"x-member": "1"}, subprotocols=["p"]
    )
    assert (result.close_code, result.outcome) == (4000, "completed")


async def test_an_app_that_breaks_the_rules_of_websockets() -> None:
    """Sending before the acceptance is a violation, and raised."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.send", "text": "a"})

    with pytest.raises(ASGIViolation, match="W04"):
        await run(None, app, websocket=True)
