"""
What Starlette promises for request and response middleware, held by generators.

Each test is a behaviour that Starlette tests for its own `BaseHTTPMiddleware`, or for middleware
in an application, a router, a route or a mount.
The parts where a generator does better are tested for the better answer: context variables,
disconnects, trailers, frames, and a body that is read twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError, NoResponseError
from tests.harness import Server, request, stack

Client = Callable[..., TestClient]


@pytest.fixture
def client(anyio_backend_name: str, anyio_backend_options: dict[str, Any]) -> Iterator[Client]:
    """Make test clients that run the app on each event loop."""
    with contextlib.ExitStack() as clients:

        def make(app: ASGIApp, **options: Any) -> TestClient:
            return clients.enter_context(
                TestClient(
                    app,
                    backend=anyio_backend_name,
                    backend_options=anyio_backend_options,
                    **options,
                )
            )

        yield make


async def custom_header(conn: Connection) -> Flow:
    response = yield
    response.headers["custom-header"] = "Example"


async def nothing(conn: Connection) -> Flow:
    yield


def layers(*functions: Callable[..., Any]) -> list[Middleware]:
    return [Middleware(HTTPMiddleware, dispatch=function) for function in functions]


def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def echo(request: Request) -> Response:
    return Response(await request.body())


# -- a middleware around a whole application -------------------------------------------------


def plain_failure(request: Request) -> Response:
    raise ValueError("in the endpoint")


def stream_failure(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        raise ValueError("in the stream")

    return StreamingResponse(chunks())


def group_failure(request: Request) -> Response:
    raise ExceptionGroup("two at once", [ValueError("a"), TypeError("b")])


class NoResponse:
    """An endpoint that returns and never answers."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass

    def __await__(self) -> Iterator[Any]:
        return iter(())


async def greet_socket(session: WebSocket) -> None:
    await session.accept()
    await session.send_text("hello, socket")
    await session.close()


def example_app(*functions: Callable[..., Any]) -> Starlette:
    return Starlette(
        routes=[
            Route("/", hello),
            Route("/failure", plain_failure),
            Route("/stream", stream_failure),
            Route("/group", group_failure),
            Route("/silent", NoResponse),
            WebSocketRoute("/socket", greet_socket),
        ],
        middleware=layers(*functions),
    )


def test_adds_a_header(client: Client) -> None:
    """A header set after the yield is in the response."""
    response = client(example_app(custom_header)).get("/")

    assert (response.text, response.headers["custom-header"]) == ("hello", "Example")


@pytest.mark.parametrize(
    ("path", "message"), [("/failure", "in the endpoint"), ("/stream", "in the stream")]
)
def test_failures_of_the_app_come_out_unchanged(client: Client, path: str, message: str) -> None:
    """An exception of an endpoint or of its stream leaves the application as it is."""
    with pytest.raises(ValueError, match=message):
        client(example_app(custom_header)).get(path)


def test_exception_group_of_an_endpoint_stays_a_group(client: Client) -> None:
    """An exception group that an endpoint raises is neither collapsed nor wrapped."""
    with pytest.raises(ExceptionGroup) as caught:
        client(example_app(custom_header)).get("/group")

    assert [type(error) for error in caught.value.exceptions] == [ValueError, TypeError]


def test_app_without_a_response_is_an_error(client: Client) -> None:
    """An app that returns without a response is reported as that."""
    with pytest.raises(NoResponseError):
        client(example_app(custom_header)).get("/silent")


def test_websocket_is_untouched(client: Client) -> None:
    """A websocket session does not pass through the middleware."""
    with client(example_app(custom_header)).websocket_connect("/socket") as session:
        text = session.receive_text()

    assert text == "hello, socket"


def test_state_is_shared_by_all_layers(client: Client) -> None:
    """State set by one layer is seen by the others, before and after the app."""

    async def outer(conn: Connection) -> Flow:
        conn.state.foo = "foo"
        response = yield
        response.headers["x-bar"] = conn.state.bar

    async def inner(conn: Connection) -> Flow:
        conn.state.bar = "bar"
        response = yield
        response.headers["x-foo"] = conn.state.foo

    async def outermost(conn: Connection) -> Flow:
        response = yield
        response.headers["x-all"] = ",".join(sorted(conn.state._state))

    app = Starlette(routes=[Route("/", hello)], middleware=layers(outermost, outer, inner))
    response = client(app).get("/")

    assert response.text == "hello"
    assert response.headers["x-foo"] == "foo"
    assert response.headers["x-bar"] == "bar"
    assert response.headers["x-all"] == "bar,foo"


async def test_replaced_response_of_the_app_is_evaluated_no_further(
    spec: str | None, fused: bool
) -> None:
    """A layer may drop the app's response and send one of its own."""

    async def replace(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("OK")

    app = Starlette(routes=[Route("/", hello)])
    server = await request(stack(app, nothing, replace, fused=fused), path="/missing", spec=spec)

    assert (server.status, server.body) == (200, b"OK")


# -- context variables -----------------------------------------------------------------------

variable: ContextVar[str] = ContextVar("variable")


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_context_variables_pass_both_ways(
    spec: str | None, fused: bool, streamed: bool
) -> None:
    """The endpoint sees what the layers set, and the layers see what the endpoint set."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        variable.set("outer")
        yield
        seen.append(("outer", variable.get()))

    async def inner(conn: Connection) -> Flow:
        seen.append(("inner before", variable.get()))
        variable.set("inner")
        yield
        seen.append(("inner after", variable.get()))
        variable.set("inner again")

    async def endpoint(request: Request) -> Response:
        seen.append(("endpoint", variable.get()))
        variable.set("endpoint")
        return StreamingResponse(iter(["a"])) if streamed else PlainTextResponse("a")

    app = Starlette(routes=[Route("/", endpoint)])
    await request(stack(app, outer, inner, fused=fused), spec=spec)

    assert seen == [
        ("inner before", "outer"),
        ("endpoint", "inner"),
        ("inner after", "endpoint"),
        ("outer", "inner again"),
    ]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_context_token_is_reset_after_the_yield(
    spec: str | None, fused: bool, streamed: bool
) -> None:
    """A token from before the yield can be used after it, whichever task sends the start."""

    async def scoped(conn: Connection) -> Flow:
        token = variable.set("scoped")
        try:
            yield
        finally:
            variable.reset(token)

    async def endpoint(request: Request) -> Response:
        assert variable.get() == "scoped"
        return StreamingResponse(iter(["a"])) if streamed else PlainTextResponse("a")

    app = Starlette(routes=[Route("/", endpoint)])
    server = await request(stack(app, scoped, scoped, fused=fused), spec=spec)

    assert server.body == b"a"
    assert variable.get(None) is None


# -- background tasks and clients that leave -------------------------------------------------


async def test_background_runs_though_the_client_leaves(spec: str | None, fused: bool) -> None:
    """A background task runs to its end when the client leaves with the last byte."""
    done = []

    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        done.append("work")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(work))

    server = Server(spec=spec)

    async def send(message: Message) -> None:
        await server.send(message)
        if server.complete:
            server.disconnect()

    app = stack(Starlette(routes=[Route("/", endpoint)]), nothing, custom_header, fused=fused)
    await app(server.scope, server.receive, send)

    assert done == ["work"]
    assert server.body == b"hello"


async def test_middleware_alone_never_receives() -> None:
    """A layer that reads no body never calls the server's `receive`."""
    server = await request(stack(example_app(), nothing, custom_header, fused=True), body=b"data")

    assert server.receives == 0


def test_failure_of_a_background_task_comes_out(client: Client) -> None:
    """An exception of the app's background task is raised, though the response is out."""

    async def work() -> None:
        raise ValueError("in the background")

    async def endpoint(request: Request) -> Response:
        return Response(background=BackgroundTask(work))

    app = Starlette(routes=[Route("/", endpoint)], middleware=layers(nothing))

    with pytest.raises(ValueError, match="in the background"):
        client(app).get("/")


def test_caught_failure_is_answered_once(client: Client) -> None:
    """An exception that a layer turned into a response is not raised again."""

    async def catch(conn: Connection) -> Flow:
        try:
            yield
        except ValueError as error:
            yield JSONResponse({"error": str(error)}, 400)

    response = client(example_app(catch)).get("/failure")

    assert (response.status_code, response.json()) == (400, {"error": "in the endpoint"})


async def test_background_does_not_hold_the_body_back(spec: str | None, fused: bool) -> None:
    """The whole response is out, frame by frame as sent, before the background task starts."""
    log: list[str] = []

    def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(work))

    server = Server(spec=spec)

    async def work() -> None:
        log.extend(server.types)
        log.append("work")

    app = Starlette(routes=[Route("/", endpoint)])
    await server.run(stack(app, custom_header, nothing, fused=fused))

    assert log == ["start", "body", "work"]


async def test_requests_do_not_wait_for_each_others_background() -> None:
    """A second request is answered in full while the background task of the first one runs."""
    running, release = anyio.Event(), anyio.Event()

    async def work() -> None:
        running.set()
        await release.wait()

    async def endpoint(request: Request) -> Response:
        background = BackgroundTask(work) if request.url.path == "/first" else None
        return PlainTextResponse("hello", background=background)

    app = Starlette(routes=[Route("/{name}", endpoint)], middleware=layers(custom_header, nothing))
    first = Server(path="/first")
    async with anyio.create_task_group() as group:
        group.start_soon(first.run, app)
        await running.wait()
        second = await request(app, path="/second")
        release.set()

    assert first.body == second.body == b"hello"
    assert len(first.chunks) == 1


async def test_context_manager_of_an_inner_layer_exits_though_the_client_leaves(
    spec: str | None,
) -> None:
    """An `async with` further in runs its exit to the end when the client leaves."""
    log = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("exit")

    class Holding:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async with resource():
                await self.app(scope, receive, send)

    server = Server(spec=spec)

    async def send(message: Message) -> None:
        await server.send(message)
        if server.complete:
            server.disconnect()

    app = Starlette(routes=[Route("/", hello)], middleware=[*layers(nothing), Middleware(Holding)])
    await app(server.scope, server.receive, send)

    assert log == ["exit"]


# -- responses that are dropped --------------------------------------------------------------


async def replace_with_ok(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse("replaced")


async def test_dropped_app_learns_of_it_while_it_sends(fused: bool) -> None:
    """An app that streams for ever is told `http.disconnect` when its response was replaced."""
    log = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        async with anyio.create_task_group() as group:

            async def stop() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                log.append("told")
                group.cancel_scope.cancel()

            group.start_soon(stop)
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        log.append("ended")

    server = await request(stack(endless, nothing, replace_with_ok, fused=fused))

    assert server.body == b"replaced"
    assert log == ["told", "ended"]


async def test_dropped_app_learns_of_it_after_it_sent(fused: bool) -> None:
    """An app that sends a part and then receives gets `http.disconnect`, though it read nothing."""
    received = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        received.append(await receive())

    server = await request(stack(app, nothing, replace_with_ok, fused=fused), body=b"unread")

    assert server.body == b"replaced"
    assert received == [{"type": "http.disconnect"}]


# -- request bodies --------------------------------------------------------------------------


async def read_body(conn: Connection) -> None:
    assert await conn.body() == b"abcdef"


async def read_stream(conn: Connection) -> None:
    async with aclosing(conn.stream()) as stream:
        assert b"".join([chunk async for chunk in stream]) == b"abcdef"


@pytest.mark.parametrize("body", [b"abcdef", [b"ab", b"cd", b"ef"]], ids=["one", "chunked"])
@pytest.mark.parametrize("in_app", [read_body, read_stream], ids=["app-body", "app-stream"])
@pytest.mark.parametrize("in_layer", [read_body, read_stream], ids=["mw-body", "mw-stream"])
async def test_body_read_in_a_layer_is_read_again_in_the_app(
    in_layer: Callable[..., Any], in_app: Callable[..., Any], body: Any, fused: bool
) -> None:
    """The app gets the whole body after a layer read it, whichever way each of them reads."""

    async def reading(conn: Connection) -> Flow:
        await in_layer(conn)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_app(Request(scope, receive))
        await PlainTextResponse("read")(scope, receive, send)

    server = await request(stack(app, reading, reading, fused=fused), method="POST", body=body)

    assert server.body == b"read"


@pytest.mark.parametrize("in_app", [read_body, read_stream], ids=["app-body", "app-stream"])
async def test_body_is_refused_after_the_app_consumed_it(in_app: Callable[..., Any]) -> None:
    """A layer that reads the body only after the app did so is told, and does not hang."""
    refused = []

    async def late(conn: Connection) -> Flow:
        yield
        try:
            await conn.body()
        except RuntimeError as error:
            refused.append(error)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_app(Request(scope, receive))
        await PlainTextResponse("read")(scope, receive, send)

    server = await request(HTTPMiddleware(app, dispatch=late), method="POST", body=b"abcdef")

    assert server.body == b"read"
    assert len(refused) == 1


@pytest.mark.parametrize("in_app", [read_body, read_stream], ids=["app-body", "app-stream"])
async def test_body_read_before_the_app_is_there_after_it(in_app: Callable[..., Any]) -> None:
    """A layer that read the body before the yield has it after the yield as well."""
    after = []

    async def reading(conn: Connection) -> Flow:
        await conn.body()
        yield
        after.append(await conn.body())
        async with aclosing(conn.stream()) as stream:
            after.append(b"".join([chunk async for chunk in stream]))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_app(Request(scope, receive))
        await PlainTextResponse("read")(scope, receive, send)

    await request(HTTPMiddleware(app, dispatch=reading), method="POST", body=b"abcdef")

    assert after == [b"abcdef", b"abcdef"]


async def test_stream_begun_in_a_layer_is_whole_in_the_app(fused: bool) -> None:
    """An app that streams the body gets the chunk that a layer took before it as well."""
    taken = []

    async def first_chunk(conn: Connection) -> Flow:
        async with aclosing(conn.stream()) as stream:
            taken.append(await anext(stream))
        yield

    server = await request(
        stack(Starlette(routes=[Route("/", echo, methods=["POST"])]), first_chunk, fused=fused),
        method="POST",
        body=[b"1", b"2", b"3"],
    )

    assert taken == [b"1"]
    assert server.body == b"123"


async def test_app_gets_the_disconnect_as_a_message(fused: bool) -> None:
    """A client that left before the body is told to the app, and then known to the layers."""
    seen = []

    async def ask(conn: Connection) -> Flow:
        response = yield
        seen.append(await conn.is_disconnected())
        seen.append(response.status_code)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        with pytest.raises(ClientDisconnect):
            await Request(scope, receive).body()
        await PlainTextResponse("unseen")(scope, receive, send)

    server = Server(method="POST", body=b"never read")
    server.disconnect()
    await server.run(stack(app, ask, nothing, fused=fused))

    assert seen == [{"type": "http.disconnect"}, True, 200]


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_disconnect_seen_in_a_layer_comes_to_the_app_in_its_order(
    disconnect: str, fused: bool
) -> None:
    """The app gets what a layer saw, body first and disconnect after it."""
    server = Server(method="POST", body=b"abc", disconnect=disconnect)
    seen: list[Any] = []

    async def ask(conn: Connection) -> Flow:
        seen.append(await conn.body())
        server.disconnect()
        seen.append(await conn.is_disconnected())
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["body"])
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])
        await PlainTextResponse("unseen")(scope, receive, send)

    await server.run(stack(app, ask, nothing, fused=fused))

    assert seen == [b"abc", True, b"abc", "http.disconnect", "http.disconnect"]


async def test_receive_of_an_inner_layer_is_honoured() -> None:
    """A layer further in that changes `receive` still reaches the endpoint."""

    class AddChunk:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def more() -> Message:
                message = await receive()
                if message["type"] == "http.request" and not message.get("more_body"):
                    message = {**message, "body": message["body"] + b"-added"}
                return message

            await self.app(scope, more, send)

    async def reading(conn: Connection) -> Flow:
        assert await conn.body() == b"abc"
        yield

    app = Starlette(
        routes=[Route("/", echo, methods=["POST"])],
        middleware=[*layers(reading), Middleware(AddChunk)],
    )
    server = await request(app, method="POST", body=b"abc")

    assert server.body == b"abc-added"


async def test_body_logger_outside_a_body_rewriter(fused: bool) -> None:
    """A logger keeps the body as it was sent, the endpoint gets it as it was rewritten."""
    logged = []

    async def logger(conn: Connection) -> Flow:
        logged.append(await conn.body())
        yield
        logged.append(await conn.body())

    async def rewriter(conn: Connection) -> Flow:
        conn.replace_body(await conn.body() + b" rewritten")
        yield

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    server = await request(stack(app, logger, rewriter, fused=fused), method="POST", body=b"abc")

    assert server.body == b"abc rewritten"
    assert logged == [b"abc", b"abc"]


# -- many layers, many disconnects -----------------------------------------------------------


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_ten_layers_and_a_client_that_left(disconnect: str, fused: bool) -> None:
    """All layers begin and end in order and all background tasks run, though nobody listens."""
    log: list[str] = []
    depth = 10

    def numbered(number: int) -> Callable[[Connection], Flow]:
        async def layer(conn: Connection) -> Flow:
            log.append(f"begin {number}")
            response = yield
            log.append(f"end {number}")
            response.background = BackgroundTask(log.append, f"background {number}")

        return layer

    server = Server(disconnect=disconnect)
    server.disconnect()
    app = Starlette(routes=[Route("/", hello)])
    functions = [numbered(number) for number in range(depth)]
    await server.run(stack(app, *functions, fused=fused))

    assert log[:depth] == [f"begin {number}" for number in range(depth)]
    assert log[depth : 2 * depth] == [f"end {number}" for number in reversed(range(depth))]
    assert sorted(log[2 * depth :]) == sorted(f"background {number}" for number in range(depth))


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_app_polls_for_the_disconnect_twice(disconnect: str, fused: bool) -> None:
    """An app that asks twice whether the client left gets the answer twice, and does not hang."""
    answers = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        server.disconnect()
        for _ in range(2):
            answers.append((await receive())["type"])
        await PlainTextResponse("unseen")(scope, receive, send)

    async def reading(conn: Connection) -> Flow:
        await conn.body()
        yield

    server = Server(disconnect=disconnect)
    await server.run(stack(app, nothing, reading, fused=fused))

    assert answers == ["http.disconnect", "http.disconnect"]


# -- other messages, other errors ------------------------------------------------------------


async def test_pathsend_passes(tmp_path: Any, fused: bool) -> None:
    """A file that the server is asked to send stays two messages."""
    path = tmp_path / "file.txt"
    path.write_bytes(b"content")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": str(path)})

    server = await request(
        stack(app, nothing, custom_header, fused=fused),
        extensions={"http.response.pathsend": {}},
    )

    assert server.types == ["start", "pathsend"]
    assert server.sent[1]["path"] == str(path)


async def test_trailers_pass(fused: bool) -> None:
    """Trailers, and the announcement of them in the start, reach the server."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    server = await request(
        stack(app, nothing, custom_header, fused=fused),
        extensions={"http.response.trailers": {}},
    )

    assert server.types == ["start", "body", "trailers"]
    assert server.sent[2]["headers"] == [(b"x-sum", b"1")]


async def test_early_hints_and_debug_pass_before_the_start(fused: bool) -> None:
    """Messages that come before the start go out before any layer sees a response."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.debug", "info": {"template": "t"}})
        await send({"type": "http.response.early_hint", "links": [b"</a.css>"]})
        await PlainTextResponse("x")(scope, receive, send)

    server = await request(
        stack(app, nothing, custom_header, fused=fused),
        extensions={"http.response.debug": {}, "http.response.early_hint": {}},
    )

    assert server.types == ["debug", "early_hint", "start", "body"]


async def test_start_without_headers_is_taken(fused: bool) -> None:
    """A response start that has no `headers` key gets the headers that a layer sets."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    server = await request(stack(app, nothing, custom_header, fused=fused))

    assert server.headers.raw == [(b"custom-header", b"Example")]


async def test_cause_and_context_of_an_error_are_kept(fused: bool) -> None:
    """An exception leaves the layers with the cause and the context that it had in the app."""
    root, cause = KeyError("root"), OSError("cause")
    failure = ValueError("failure")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            raise root
        except KeyError:
            raise failure from cause

    async def reraise(conn: Connection) -> Flow:
        try:
            yield
        except ValueError as error:
            assert error is failure
            raise

    server = await request(stack(app, reraise, nothing, reraise, fused=fused), keep_error=True)

    assert server.error is failure
    assert failure.__cause__ is cause
    assert failure.__context__ is root


async def test_error_raised_from_another_keeps_its_chain(fused: bool) -> None:
    """An exception that a layer raises instead of the app's own has that one as its context."""
    failure = ValueError("failure")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise failure

    async def translate(conn: Connection) -> Flow:
        try:
            yield
        except ValueError as error:
            raise LookupError("translated") from error

    server = await request(stack(app, nothing, translate, fused=fused), keep_error=True)

    assert isinstance(server.error, LookupError)
    assert server.error.__cause__ is failure


# -- applications, routers, routes, mounts ---------------------------------------------------


def test_each_layer_is_made_once(client: Client) -> None:
    """An application makes each of its layers once, however many requests there are."""
    made = []

    class Counting(HTTPMiddleware):
        def __init__(self, app: ASGIApp) -> None:
            made.append(type(self))
            super().__init__(app)

        async def dispatch(self, conn: Connection) -> Flow:
            yield

    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(Counting)
    app.add_middleware(Counting)
    session = client(app)
    session.get("/")
    session.get("/")

    assert len(made) == 2


def test_options_reach_the_constructor(client: Client) -> None:
    """Positional and keyword options of `Middleware(...)` come to the layer's constructor."""
    given = []

    class Configured(HTTPMiddleware):
        def __init__(self, app: ASGIApp, first: str, *, second: str) -> None:
            given.append((first, second))
            super().__init__(app)

        async def dispatch(self, conn: Connection) -> Flow:
            yield

    app = Starlette(
        routes=[Route("/", hello)], middleware=[Middleware(Configured, "a", second="b")]
    )

    assert client(app).get("/").text == "hello"
    assert given == [("a", "b")]


def test_function_as_a_factory(client: Client) -> None:
    """A function that returns the layer can stand where its class would."""

    def factory(app: ASGIApp, value: str) -> ASGIApp:
        async def header(conn: Connection) -> Flow:
            response = yield
            response.headers["x-value"] = value

        return HTTPMiddleware(app, dispatch=header)

    app = Starlette(
        routes=[Route("/", hello)], middleware=[Middleware(factory, value="from the factory")]
    )

    assert client(app).get("/").headers["x-value"] == "from the factory"


def test_middleware_record_unpacks_and_shows_itself() -> None:
    """`Middleware(HTTPMiddleware, ...)` unpacks to its three parts and names the class."""
    record = Middleware(HTTPMiddleware, dispatch=nothing)
    cls, args, kwargs = record

    assert (cls, args, kwargs) == (HTTPMiddleware, (), {"dispatch": nothing})
    assert repr(record).startswith("Middleware(HTTPMiddleware, dispatch=")


def test_router_with_middleware(client: Client) -> None:
    """A layer of a router sees the requests to all its routes."""
    router = Router([Route("/", hello)], middleware=layers(custom_header))

    assert client(router).get("/").headers["custom-header"] == "Example"


def test_route_with_middleware(client: Client) -> None:
    """A layer of one route sees the requests to that route only."""
    app = Starlette(
        routes=[
            Route("/with", hello, middleware=layers(custom_header)),
            Route("/without", hello),
        ]
    )
    session = client(app)

    assert session.get("/with").headers["custom-header"] == "Example"
    assert "custom-header" not in session.get("/without").headers


def test_mount_with_middleware_builds_urls(client: Client) -> None:
    """A layer of a mount sees what is under it, and the names of its routes still resolve."""
    app = Starlette(
        routes=[
            Mount(
                "/mounted",
                routes=[Route("/page", hello, name="page")],
                name="mounted",
                middleware=layers(custom_header),
            ),
            Route("/", hello),
        ]
    )
    session = client(app)

    assert session.get("/mounted/page").headers["custom-header"] == "Example"
    assert "custom-header" not in session.get("/").headers
    assert app.url_path_for("mounted:page") == "/mounted/page"


def test_failure_in_a_mounted_app_comes_out(client: Client) -> None:
    """An exception in a mounted application passes the layers around both applications."""
    app = Starlette(
        routes=[Mount("/sub", app=example_app(custom_header))], middleware=layers(custom_header)
    )

    with pytest.raises(ValueError, match="in the endpoint"):
        client(app).get("/sub/failure")


def test_layer_of_a_mount_sees_the_exception_itself(client: Client) -> None:
    """A layer inside the exception handlers sees the exception, one outside sees its response."""
    seen = []

    def watch(name: str) -> Callable[[Connection], Flow]:
        async def watching(conn: Connection) -> Flow:
            try:
                response = yield
            except HTTPException as error:
                seen.append((name, "exception", error.status_code))
                raise
            seen.append((name, "response", response.status_code))

        return watching

    def refuse(request: Request) -> Response:
        raise HTTPException(403, "no")

    app = Starlette(
        routes=[
            Mount("/sub", routes=[Route("/", refuse)], middleware=layers(watch("mount"))),
        ],
        middleware=layers(watch("app")),
    )
    response = client(app).get("/sub/")

    assert (response.status_code, response.text) == (403, "no")
    # Starlette answers a route's own exception inside of the route, so both see the response.
    assert seen == [("mount", "response", 403), ("app", "response", 403)]


def test_websocket_route_beside_a_layer(client: Client) -> None:
    """A layer on a websocket route lets the session through."""
    app = Starlette(
        routes=[WebSocketRoute("/socket", greet_socket, middleware=layers(custom_header))]
    )

    with client(app).websocket_connect("/socket") as session:
        assert session.receive_text() == "hello, socket"


# -- what was asked of the first generator design --------------------------------------------


def test_answer_before_the_app(client: Client) -> None:
    """A response as the first yield is the answer, and the app is not run."""

    async def gate(conn: Connection) -> Flow:
        if conn.headers.get("x-early") == "true":
            yield PlainTextResponse("early", 401)
            return
        yield

    session = client(example_app(gate))

    assert session.get("/").text == "hello"
    response = session.get("/failure", headers={"x-early": "true"})
    assert (response.status_code, response.text) == (401, "early")


def test_second_yield_after_an_early_answer_is_an_error(client: Client) -> None:
    """Falling through to `yield` after an early answer is reported."""

    async def fall_through(conn: Connection) -> Flow:
        yield PlainTextResponse("early", 401)
        yield

    with pytest.raises(MiddlewareError):
        client(example_app(fall_through)).get("/")


def test_two_bare_yields_are_an_error(client: Client) -> None:
    """The app can be run once only."""

    async def twice(conn: Connection) -> Flow:
        yield
        yield

    with pytest.raises(MiddlewareError):
        client(example_app(twice)).get("/")


def test_swallowed_failure_without_an_answer_is_an_error(client: Client) -> None:
    """A layer that hides the app's exception and gives no response is reported."""

    async def hide(conn: Connection) -> Flow:
        with contextlib.suppress(ValueError):
            yield

    with pytest.raises(MiddlewareError):
        client(example_app(hide)).get("/failure")


def test_content_type_is_changed(client: Client) -> None:
    """Assigning the media type changes the header that the client gets."""

    async def as_csv(conn: Connection) -> Flow:
        response = yield
        response.media_type = "text/csv"

    content_type = client(example_app(as_csv)).get("/").headers["content-type"]

    assert content_type.split(";")[0] == "text/csv"


def test_body_is_visible_after_it_was_read(client: Client) -> None:
    """The body of the app's response can be read in the layer."""
    seen = []

    async def look(conn: Connection) -> Flow:
        response = yield
        seen.append(await response.read())

    assert client(example_app(look)).get("/").text == "hello"
    assert seen == [b"hello"]
