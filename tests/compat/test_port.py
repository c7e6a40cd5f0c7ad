"""
What Starlette tests of its own `BaseHTTPMiddleware`, asked of the drop-in.

Where Starlette pins what it does to frames and exceptions, the better answer is asked for: frames
and exceptions arrive as the app made them. `make upstream` runs the original.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from httpmw.compat import BaseHTTPMiddleware, RequestResponseEndpoint

Client = Callable[..., TestClient]
Next = RequestResponseEndpoint


@pytest.fixture
def client(anyio_backend_name: str, anyio_backend_options: dict[str, Any]) -> Client:
    """Make test clients that run the app on each event loop."""
    return functools.partial(
        TestClient, backend=anyio_backend_name, backend_options=anyio_backend_options
    )


class Header(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        response.headers["x-custom"] = "yes"
        return response


async def passing(request: Request, call_next: Next) -> Response:
    return await call_next(request)


def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


def app_with(*endpoints: Callable[..., Any], layers: Any = (passing,), **paths: Any) -> Starlette:
    """An application with an endpoint at `/`, others at their names, and layers around them."""
    routes = [Route("/", endpoint, methods=["GET", "POST"]) for endpoint in endpoints]
    routes += [Route(f"/{name}", endpoint) for name, endpoint in paths.items()]
    middleware = [
        Middleware(layer)
        if isinstance(layer, type)
        else Middleware(BaseHTTPMiddleware, dispatch=layer)
        for layer in layers
    ]
    return Starlette(routes=routes, middleware=middleware)


def scope_of(**keys: Any) -> Scope:
    scope = {"type": "http", "version": "3", "method": "GET", "path": "/", "headers": []}
    return {**scope, "query_string": b"", **keys}


async def never() -> Message:
    raise AssertionError("nobody has a reason to call receive")


async def run(app: ASGIApp, receive: Receive = never, **keys: Any) -> list[Message]:
    """Run one request by hand and give the messages that were sent."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of(**keys), receive, send)
    return sent


# -- responses and exceptions ----------------------------------------------------------------


def test_header_is_added(client: Client) -> None:
    """A subclass edits the response of the app."""
    response = client(app_with(hello, layers=[Header])).get("/")

    assert response.headers["x-custom"] == "yes"
    assert response.text == "hello"


def fail(request: Request) -> Response:
    raise LookupError("in the endpoint")


def fail_as_group(request: Request) -> Response:
    raise ExceptionGroup("two", [ValueError("one of them")])


def fail_in_stream(request: Request) -> Response:
    def chunks() -> Iterator[bytes]:
        yield b"ok"
        raise LookupError("in the stream")

    return StreamingResponse(chunks())


@pytest.mark.parametrize(
    ("endpoint", "kind", "words"),
    [
        (fail, LookupError, "in the endpoint"),
        (fail_in_stream, LookupError, "in the stream"),
        (fail_as_group, ExceptionGroup, "two"),
    ],
)
def test_exception_of_the_app_arrives_unchanged(
    client: Client, endpoint: Callable[..., Any], kind: type[Exception], words: str
) -> None:
    """What the app raises, before its response or in it, comes out as it was raised."""
    with pytest.raises(kind, match=words):
        client(app_with(endpoint, layers=[Header])).get("/")


class Silent:
    """An endpoint that returns and never answers."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass

    def __await__(self) -> Iterator[Any]:
        return iter(())


def test_missing_response_is_a_runtime_error(client: Client) -> None:
    """An app that does not respond is reported with a `RuntimeError`."""
    with pytest.raises(RuntimeError, match="without sending a response"):
        client(app_with(Silent, layers=[Header])).get("/")


def test_websocket_passes(client: Client) -> None:
    """WebSocket sessions go past the layer."""

    async def greet(session: WebSocket) -> None:
        await session.accept()
        await session.send_text("hello")
        await session.close()

    app = Starlette(routes=[WebSocketRoute("/ws", greet)], middleware=[Middleware(Header)])

    with client(app).websocket_connect("/ws") as session:
        assert session.receive_text() == "hello"


def test_state_is_shared_by_all_layers(client: Client) -> None:
    """What one layer puts into `request.state` is there for the others, inward and outward."""

    async def first(request: Request, call_next: Next) -> Response:
        request.state.first = "1"
        response = await call_next(request)
        response.headers["x-second-seen-outside"] = request.state.second
        return response

    async def second(request: Request, call_next: Next) -> Response:
        request.state.second = request.state.first + "2"
        return await call_next(request)

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(request.state.second)

    response = client(app_with(endpoint, layers=[first, second])).get("/")

    assert response.text == "12"
    assert response.headers["x-second-seen-outside"] == "12"


def test_response_can_be_replaced(client: Client) -> None:
    """Another response takes the place of the one that was received."""

    async def replace(request: Request, call_next: Next) -> Response:
        await call_next(request)
        return PlainTextResponse("instead")

    response = client(app_with(layers=[replace])).get("/nowhere")

    assert (response.status_code, response.text) == (200, "instead")


def test_exception_can_be_answered(client: Client) -> None:
    """An exception that was caught and answered is not raised again."""

    async def answer(request: Request, call_next: Next) -> Response:
        try:
            return await call_next(request)
        except LookupError as error:
            return PlainTextResponse(str(error), 400)

    response = client(app_with(fail, layers=[answer])).get("/")

    assert (response.status_code, response.text) == (400, "in the endpoint")


def test_context_and_cause_of_an_exception_are_its_own(client: Client) -> None:
    """Neither is added to, taken away or moved."""

    def plain(request: Request) -> Response:
        raise LookupError("plain")

    def with_context(request: Request) -> Response:
        try:
            raise ValueError("inner")
        except ValueError:
            raise LookupError("outer")  # noqa: B904 - the context is the test

    def with_cause(request: Request) -> Response:
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise LookupError("outer") from error

    asking = client(app_with(plain=plain, with_context=with_context, with_cause=with_cause))

    with pytest.raises(LookupError) as raised:
        asking.get("/plain")
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)

    with pytest.raises(LookupError) as raised:
        asking.get("/with_context")
    assert raised.value.__cause__ is None
    assert str(raised.value.__context__) == "inner"

    with pytest.raises(LookupError) as raised:
        asking.get("/with_cause")
    assert str(raised.value.__cause__) == "inner"


# -- context variables -----------------------------------------------------------------------

VARIABLE: ContextVar[str] = ContextVar("VARIABLE")


def streamed(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"hello"

    return StreamingResponse(chunks())


@pytest.mark.parametrize("make", [hello, streamed])
def test_context_variables_cross_the_layer_both_ways(
    client: Client, make: Callable[..., Response]
) -> None:
    """The endpoint sees what the layer has set, and the layer what the endpoint has."""
    seen = []

    async def layer(request: Request, call_next: Next) -> Response:
        VARIABLE.set("by the layer")
        response = await call_next(request)
        seen.append(VARIABLE.get())
        return response

    async def endpoint(request: Request) -> Response:
        seen.append(VARIABLE.get())
        VARIABLE.set("by the endpoint")
        return make(request)

    assert client(app_with(endpoint, layers=[layer])).get("/").text == "hello"
    assert seen == ["by the layer", "by the endpoint"]


# -- background tasks and clean-up -----------------------------------------------------------


async def test_background_task_runs_after_the_response(client: Client) -> None:
    """The endpoint's background task runs to its end, after the last message, one at a time."""
    events: list[Any] = []

    async def background() -> None:
        events.append("begun")
        await anyio.lowlevel.checkpoint()
        events.append("ended")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(background))

    async def send(message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        events.append(message["type"])

    app = app_with(endpoint)
    await app(scope_of(), never, send)

    assert events == ["http.response.start", "http.response.body", "begun", "ended"]


async def test_background_tasks_do_not_hold_other_requests() -> None:
    """Both responses are out before either of two background tasks has ended."""
    events: list[str] = []
    both_begun = anyio.Event()

    async def background() -> None:
        events.append("begun")
        if events.count("begun") == 2:
            both_begun.set()
        await both_begun.wait()
        events.append("ended")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(background))

    async def send(message: Message) -> None:
        events.append(message["type"])

    app = app_with(endpoint)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, scope_of(), never, send)
        tasks.start_soon(app, scope_of(), never, send)

    assert sorted(events[:6]) == sorted(2 * ["begun", "http.response.body", "http.response.start"])
    assert events[6:] == ["ended", "ended"]


def test_exception_of_a_background_task_arrives(client: Client) -> None:
    """What a background task raises comes out of the application."""

    async def background() -> None:
        raise LookupError("in the background")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(background))

    with pytest.raises(LookupError, match="in the background"):
        client(app_with(endpoint)).get("/")


async def test_context_manager_of_an_inner_layer_is_left() -> None:
    """An ASGI layer further in comes to its own end, waiting included."""
    left = []

    async def leave() -> None:
        await anyio.lowlevel.checkpoint()
        left.append(True)

    class Managing:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(leave)
                await self.app(scope, receive, send)

    app = Starlette(
        routes=[Route("/", hello)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=passing), Middleware(Managing)],
    )
    await run(app)

    assert left == [True]


# -- the app of a response that was replaced -------------------------------------------------


async def test_discarded_app_learns_it_while_it_sends(client: Client) -> None:
    """An app that streams for ever, and listens, is told that its client has left."""

    async def replace(request: Request, call_next: Next) -> Response:
        response: Any = await call_next(request)
        async with aclosing(response.body_iterator) as chunks:
            assert await anext(chunks) == b"chunk "
        return PlainTextResponse("instead")

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with anyio.create_task_group() as tasks:

            async def stop_on_disconnect() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop_on_disconnect)
            while True:
                await send({"type": "http.response.body", "body": b"chunk ", "more_body": True})
                await anyio.lowlevel.checkpoint()

    sent: list[Message] = []
    over = anyio.Event()

    async def receive() -> Message:
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            over.set()

    await BaseHTTPMiddleware(endless, dispatch=replace)(scope_of(), receive, send)

    assert [message.get("body") for message in sent] == [None, b"instead"]


def test_discarded_app_learns_it_when_it_asks(client: Client) -> None:
    """An app that has sent and then looks is told that its client has left."""
    told = []

    async def replace(request: Request, call_next: Next) -> Response:
        await call_next(request)
        return PlainTextResponse("instead")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one, ", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        told.append((await receive())["type"])

    response = client(BaseHTTPMiddleware(app, dispatch=replace)).get("/")

    assert response.text == "instead"
    assert told == ["http.disconnect"]


# -- the request body ------------------------------------------------------------------------


async def read_stream(request: Request) -> list[bytes]:
    return [chunk async for chunk in request.stream()]


async def read_body(request: Request) -> bytes:
    return await request.body()


@pytest.mark.parametrize(
    ("outside", "seen_outside", "inside", "seen_inside"),
    [
        (read_stream, [b"a", b""], read_stream, [b""]),
        (read_body, b"a", read_stream, [b"a", b""]),
        (read_stream, [b"a", b""], read_body, b""),
        (read_body, b"a", read_body, b"a"),
    ],
)
def test_body_read_before_call_next(
    client: Client,
    outside: Callable[[Request], Any],
    seen_outside: Any,
    inside: Callable[[Request], Any],
    seen_inside: Any,
) -> None:
    """What `body()` read is given to the app again, and what `stream()` took is gone."""
    seen = []

    async def layer(request: Request, call_next: Next) -> Response:
        seen.append(await outside(request))
        return await call_next(request)

    async def endpoint(request: Request) -> Response:
        seen.append(await inside(request))
        return Response()

    client(app_with(endpoint, layers=[layer])).post("/", content=b"a")

    assert seen == [seen_outside, seen_inside]


@pytest.mark.parametrize("inside", [read_stream, read_body])
def test_body_after_call_next_is_consumed(client: Client, inside: Callable[[Request], Any]) -> None:
    """A body that the app has read cannot be streamed afterwards."""

    async def layer(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        with pytest.raises(RuntimeError, match="Stream consumed"):
            await read_stream(request)
        return response

    async def endpoint(request: Request) -> Response:
        await inside(request)
        return Response()

    assert client(app_with(endpoint, layers=[layer])).post("/", content=b"a").status_code == 200


@pytest.mark.parametrize(("again", "expected"), [(read_stream, [b"a", b""]), (read_body, b"a")])
def test_body_read_before_call_next_can_be_read_after_it(
    client: Client, again: Callable[[Request], Any], expected: Any
) -> None:
    """What was read once by `body()` is there to the end."""
    seen = []

    async def layer(request: Request, call_next: Next) -> Response:
        await request.body()
        response = await call_next(request)
        seen.append(await again(request))
        return response

    async def endpoint(request: Request) -> Response:
        assert await request.body() == b"a"
        return Response()

    client(app_with(endpoint, layers=[layer])).post("/", content=b"a")

    assert seen == [expected]


async def test_layer_and_app_take_turns_at_the_body() -> None:
    """The layer takes the first chunk, the app the second, the layer the third."""
    taken = []

    async def layer(request: Request, call_next: Next) -> Response:
        response = None
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                taken.append(("layer", chunk))
                if response is not None:
                    break
                response = await call_next(request)
        assert response is not None
        return response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(Request(scope, receive).stream()) as chunks:
            taken.append(("app", await anext(chunks)))
        await Response()(scope, receive, send)

    async def messages() -> AsyncGenerator[Message, None]:
        yield {"type": "http.request", "body": b"1", "more_body": True}
        yield {"type": "http.request", "body": b"2", "more_body": True}
        yield {"type": "http.request", "body": b"3"}
        raise AssertionError("nobody has a reason to look for a disconnect")

    async with aclosing(messages()) as receive:
        sent = await run(BaseHTTPMiddleware(app, dispatch=layer), receive.__anext__)

    assert taken == [("layer", b"1"), ("app", b"2"), ("layer", b"3")]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_app_gets_a_disconnect_and_the_layer_knows() -> None:
    """The app gets the message itself, and `is_disconnected()` is true from then on."""

    async def layer(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        assert await request.is_disconnected()
        return response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        await Response()(scope, receive, send)

    async def messages() -> AsyncGenerator[Message, None]:
        yield {"type": "http.disconnect"}
        raise AssertionError("it was told once already")

    async with aclosing(messages()) as receive:
        sent = await run(BaseHTTPMiddleware(app, dispatch=layer), receive.__anext__)

    assert sent[0]["status"] == 200


async def test_disconnect_seen_by_the_layer_comes_after_the_body() -> None:
    """The app gets the body that was read, and then the disconnect."""
    seen: list[Message] = []

    async def layer(request: Request, call_next: Next) -> Response:
        await request.body()
        assert await request.is_disconnected()
        return await call_next(request)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive(), await receive()])
        await Response()(scope, receive, send)

    async def messages() -> AsyncGenerator[Message, None]:
        yield {"type": "http.request", "body": b"hi"}
        yield {"type": "http.disconnect"}
        raise AssertionError("it was told once already")

    async with aclosing(messages()) as receive:
        await run(BaseHTTPMiddleware(app, dispatch=layer), receive.__anext__)

    assert seen == [
        {"type": "http.request", "body": b"hi", "more_body": False},
        {"type": "http.disconnect"},
    ]


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_asgi_layer_that_changes_the_body(client: Client, *, inside: bool) -> None:
    """A layer inside or outside that changes `receive` is honoured by those further in."""
    seen = []

    async def layer(request: Request, call_next: Next) -> Response:
        seen.append(await request.body())
        return await call_next(request)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await Request(scope, receive).body())
        await Response()(scope, receive, send)

    def doubling(app: ASGIApp) -> ASGIApp:
        async def doubled(scope: Scope, receive: Receive, send: Send) -> None:
            async def twice() -> Message:
                message = await receive()
                return {**message, "body": message["body"] * 2}

            await app(scope, twice, send)

        return doubled

    if inside:
        asked: ASGIApp = BaseHTTPMiddleware(doubling(app), dispatch=layer)
    else:
        asked = doubling(BaseHTTPMiddleware(app, dispatch=layer))
    client(asked).post("/", content=b"foo ")

    assert seen == ([b"foo ", b"foo foo "] if inside else [b"foo foo ", b"foo foo "])


# -- disconnects -----------------------------------------------------------------------------


async def test_ten_layers_and_a_client_that_has_left() -> None:
    """All layers begin and complete in order, and all of their background tasks are run."""
    order: list[str] = []
    background: list[int] = []

    class Numbered(BaseHTTPMiddleware):
        def __init__(self, app: ASGIApp, number: int) -> None:
            self.number = number
            super().__init__(app)

        async def dispatch(self, request: Request, call_next: Next) -> Response:
            order.append(f"{self.number} begun")
            response = await call_next(request)
            order.append(f"{self.number} done")
            assert response.background is None
            response.background = BackgroundTask(background.append, self.number)
            return response

    async def endpoint(request: Request) -> Response:
        with pytest.raises(ClientDisconnect):
            await request.body()
        return Response(b"")

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(Numbered, number=number) for number in range(10)],
    )

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    sent = await run(app, gone)

    assert order == [f"{n} begun" for n in range(10)] + [f"{n} done" for n in reversed(range(10))]
    assert sorted(background) == list(range(10))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["headers"] == [(b"content-length", b"0")]


@pytest.mark.parametrize("with_body", [True, False])
async def test_app_may_ask_for_the_disconnect_again(*, with_body: bool) -> None:
    """A server that tells of a disconnect once is enough for an app that asks twice."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            while (message := await receive())["type"] == "http.request":
                pass
            assert message["type"] == "http.disconnect"
        await Response(b"good")(scope, receive, send)

    async def messages() -> AsyncGenerator[Message, None]:
        if with_body:
            yield {"type": "http.request", "body": b"hello", "more_body": True}
            yield {"type": "http.request", "body": b"", "more_body": False}
        yield {"type": "http.disconnect"}
        raise AssertionError("it was told once already")

    async with aclosing(messages()) as receive:
        sent = await run(BaseHTTPMiddleware(app, dispatch=passing), receive.__anext__)

    assert sent[0]["headers"] == [(b"content-length", b"4")]
    assert [message.get("body") for message in sent] == [None, b"good"]


# -- extensions ------------------------------------------------------------------------------


async def test_pathsend_passes(tmp_path: Path) -> None:
    """A file that the server is to send is left to the server."""
    file = tmp_path / "file.txt"
    file.write_text("in the file")

    async def endpoint(request: Request) -> Response:
        return FileResponse(file)

    sent = await run(app_with(endpoint), extensions={"http.response.pathsend": {}})

    assert [message["type"] for message in sent] == [
        "http.response.start",
        "http.response.pathsend",
    ]


@pytest.mark.skipif(
    not hasattr(Request, "send_early_hints"), reason="Request.send_early_hints is newer"
)
async def test_early_hints_pass_in_order() -> None:
    """Early hints of the layer and of the app go out before the response, in their order."""

    async def layer(request: Request, call_next: Next) -> Response:
        await request.send_early_hints("</layer.css>; rel=preload; as=style")
        return await call_next(request)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive, send).send_early_hints("</app.css>; rel=preload; as=style")
        await PlainTextResponse("hello")(scope, receive, send)

    sent = await run(
        BaseHTTPMiddleware(app, dispatch=layer), extensions={"http.response.early_hint": {}}
    )

    assert [message.get("links") for message in sent] == [
        [b"</layer.css>; rel=preload; as=style"],
        [b"</app.css>; rel=preload; as=style"],
        None,
        None,
    ]
