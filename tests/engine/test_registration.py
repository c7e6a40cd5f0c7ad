"""The ways to put a middleware function, or a class with a `dispatch`, around an app."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import AppResponse, Connection, Flow, HTTPMiddleware
from tests.harness import Server, request, stack


async def mark(conn: Connection) -> Flow:
    response = yield
    response.headers.append("x-mark", "function")


def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def plain_app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def marks(app: ASGIApp, path: str = "/", **options: Any) -> list[str]:
    """Run *app* and return its marks, the innermost layer's first."""
    server = await request(app, path=path, **options)
    assert server.body == b"hello"
    return server.headers.getlist("x-mark")


# -- where a layer can stand -----------------------------------------------------------------


async def test_in_the_list_of_starlette() -> None:
    """`Middleware(HTTPMiddleware, dispatch=...)` works in an application's list."""
    app = Starlette(
        routes=[Route("/", hello)], middleware=[Middleware(HTTPMiddleware, dispatch=mark)]
    )

    assert await marks(app) == ["function"]


async def test_in_the_list_of_fastapi() -> None:
    """`Middleware(HTTPMiddleware, dispatch=...)` works in a FastAPI application's list."""
    app = FastAPI(middleware=[Middleware(HTTPMiddleware, dispatch=mark)])
    app.get("/", response_class=PlainTextResponse)(lambda: "hello")

    assert await marks(app) == ["function"]


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_by_add_middleware(framework: type[Starlette]) -> None:
    """`app.add_middleware(HTTPMiddleware, dispatch=...)` works on both frameworks."""
    app = framework()
    app.router.routes.append(Route("/", hello))
    app.add_middleware(HTTPMiddleware, dispatch=mark)

    assert await marks(app) == ["function"]


async def test_around_any_app() -> None:
    """`HTTPMiddleware(app, dispatch=...)` is an ASGI app around any ASGI app."""
    assert await marks(HTTPMiddleware(plain_app, dispatch=mark)) == ["function"]


async def test_dispatch_as_the_second_argument() -> None:
    """The function may be given by position, as `BaseHTTPMiddleware` takes it."""
    assert await marks(HTTPMiddleware(plain_app, mark)) == ["function"]


async def test_on_a_route() -> None:
    """A route takes a layer in its `middleware=`."""
    app = Starlette(
        routes=[Route("/", hello, middleware=[Middleware(HTTPMiddleware, dispatch=mark)])]
    )

    assert await marks(app) == ["function"]


async def test_on_a_router() -> None:
    """A router takes a layer in its `middleware=`."""
    router = Router([Route("/", hello)], middleware=[Middleware(HTTPMiddleware, dispatch=mark)])

    assert await marks(router) == ["function"]


async def test_on_a_mount() -> None:
    """A mount takes a layer in its `middleware=`."""
    app = Starlette(
        routes=[
            Mount(
                "/sub",
                routes=[Route("/", hello)],
                middleware=[Middleware(HTTPMiddleware, dispatch=mark)],
            )
        ]
    )

    assert await marks(app, "/sub/") == ["function"]


async def test_around_a_fastapi_sub_application() -> None:
    """A FastAPI application with layers of its own can be mounted in one with layers."""
    sub, app = FastAPI(), FastAPI()
    router = APIRouter()
    router.get("/", response_class=PlainTextResponse)(lambda: "hello")
    sub.include_router(router)
    sub.add_middleware(HTTPMiddleware, dispatch=mark)
    app.mount("/sub", sub)
    app.add_middleware(HTTPMiddleware, dispatch=mark)

    assert await marks(app, "/sub/") == ["function", "function"]


# -- classes ---------------------------------------------------------------------------------


class Marker(HTTPMiddleware):
    """A middleware class with an option."""

    def __init__(self, app: ASGIApp, text: str = "class") -> None:
        super().__init__(app)
        self.text = text

    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", self.text)


async def test_subclass_with_dispatch() -> None:
    """A subclass writes its generator as `dispatch`."""
    assert await marks(Marker(plain_app)) == ["class"]


async def test_subclass_with_options() -> None:
    """A subclass takes options in its constructor, given through the framework's verbs."""
    app = Starlette(
        routes=[Route("/", hello)],
        middleware=[Middleware(Marker, text="listed"), Middleware(Marker, "positional")],
    )
    app.add_middleware(Marker, text="added")

    assert await marks(app) == ["positional", "listed", "added"]


async def test_attributes_set_after_the_constructor_of_the_base(fused: bool) -> None:
    """`dispatch` sees the instance as it is when the request comes, fused or not."""
    inner = Marker(plain_app, "inner")
    outer = HTTPMiddleware(inner, dispatch=mark) if fused else stack(inner, mark, fused=False)
    inner.text = "changed"

    assert await marks(outer) == ["changed", "function"]


async def test_super_dispatch_is_delegated_to() -> None:
    """`response = yield super().dispatch(conn)` runs the base's middleware around the app."""
    log = []

    class Derived(Marker):
        async def dispatch(self, conn: Connection) -> Flow:
            log.append("before")
            response = yield super().dispatch(conn)
            log.append(response.headers["x-mark"])
            response.headers.append("x-mark", "derived")

    assert await marks(Derived(plain_app)) == ["class", "derived"]
    assert log == ["before", "class"]


async def test_super_dispatch_through_two_bases() -> None:
    """Delegation goes as deep as the classes do."""

    class Middle(Marker):
        async def dispatch(self, conn: Connection) -> Flow:
            response = yield super().dispatch(conn)
            response.headers.append("x-mark", "middle")

    class Top(Middle):
        async def dispatch(self, conn: Connection) -> Flow:
            response = yield super().dispatch(conn)
            response.headers.append("x-mark", "top")

    assert await marks(Top(plain_app)) == ["class", "middle", "top"]


async def test_super_dispatch_answers_early() -> None:
    """An early answer of the base is the response that the derived class receives."""

    class Gate(HTTPMiddleware):
        async def dispatch(self, conn: Connection) -> Flow:
            if "x-key" not in conn.headers:
                yield PlainTextResponse("hello", 401)
                return
            yield

    class Marked(Gate):
        async def dispatch(self, conn: Connection) -> Flow:
            response = yield super().dispatch(conn)
            response.headers.append("x-mark", str(response.status_code))

    assert await marks(Marked(plain_app)) == ["401"]
    assert await marks(Marked(plain_app), headers={"x-key": "1"}) == ["200"]


async def test_delegation_in_one_branch_only() -> None:
    """A function may delegate for some requests and run the app itself for others."""

    async def sometimes(conn: Connection) -> Flow:
        if conn.url.path == "/marked":
            yield mark(conn)
        else:
            yield

    app = HTTPMiddleware(plain_app, dispatch=sometimes)

    assert await marks(app, "/marked") == ["function"]
    assert await marks(app, "/other") == []


async def test_instances_of_one_class_are_apart(fused: bool) -> None:
    """Two instances of one class in a stack keep their own options."""
    inner: ASGIApp = Marker(plain_app, "inner")
    if not fused:
        inner = stack(inner, fused=False)

    assert await marks(Marker(inner, "outer")) == ["inner", "outer"]


async def test_subclass_that_overrides_call_and_calls_it() -> None:
    """A subclass may wrap `__call__`; what it does there is done for each request."""
    scopes = []

    class Wrapped(Marker):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scopes.append(scope["type"])
            await super().__call__(scope, receive, send)

    app = Marker(Wrapped(Marker(plain_app, "a"), "b"), "c")

    assert await marks(app) == ["a", "b", "c"]
    assert scopes == ["http"]


# -- what dispatch may be --------------------------------------------------------------------


class Holder:
    """Something with a middleware method, and callable itself."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def method(self, conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", self.text)

    @classmethod
    async def class_method(cls, conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", cls.__name__)

    @staticmethod
    async def static_method(conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", "static")

    async def __call__(self, conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", f"called {self.text}")


class PlainCall:
    """A callable object whose `__call__` is a plain function."""

    def __call__(self, conn: Connection) -> Flow:
        return mark(conn)


async def with_options(text: str, conn: Connection, *, suffix: str = "") -> Flow:
    response = yield
    response.headers.append("x-mark", text + suffix)


def returns_a_generator(conn: Connection) -> Flow:
    return mark(conn)


def wrapped(function: Callable[[Connection], Flow]) -> Callable[[Connection], Flow]:
    @functools.wraps(function)
    def wrapper(conn: Connection) -> Flow:
        return function(conn)

    return wrapper


@pytest.mark.parametrize(
    ("dispatch", "expected"),
    [
        (mark, "function"),
        (Holder("bound").method, "bound"),
        (Holder.class_method, "Holder"),
        (Holder.static_method, "static"),
        (Holder("object"), "called object"),
        (PlainCall(), "function"),
        (functools.partial(with_options, "partial"), "partial"),
        (functools.partial(with_options, "partial", suffix="!"), "partial!"),
        (functools.partial(Holder.method, Holder("of a method")), "of a method"),
        (functools.partial(functools.partial(with_options), "twice"), "twice"),
        (returns_a_generator, "function"),
        (lambda conn: mark(conn), "function"),  # noqa: PLW0108 - a lambda is the case
        (wrapped(mark), "function"),
    ],
    ids=[
        "function",
        "bound-method",
        "class-method",
        "static-method",
        "object",
        "object-with-plain-call",
        "partial",
        "partial-keyword",
        "partial-method",
        "partial-of-partial",
        "plain-def",
        "lambda",
        "wrapped",
    ],
)
async def test_dispatch_may_be(dispatch: Any, expected: str, fused: bool) -> None:
    """Anything that, called with the connection, gives an async generator is a middleware."""
    assert await marks(stack(plain_app, dispatch, mark, fused=fused)) == ["function", expected]


async def test_plain_def_in_a_subclass() -> None:
    """A subclass may write `def dispatch` that returns a generator, or `None`."""

    class Choosing(HTTPMiddleware):
        def dispatch(self, conn: Connection) -> Flow | None:
            return mark(conn) if conn.url.path == "/marked" else None

    app = Choosing(plain_app)

    assert await marks(app, "/marked") == ["function"]
    assert await marks(app, "/other") == []


async def test_one_layer_serves_many_requests() -> None:
    """Each request gets a generator of its own from the one function."""
    app = HTTPMiddleware(plain_app, dispatch=mark)

    assert [await marks(app), await marks(app)] == [["function"], ["function"]]


# -- stepping aside --------------------------------------------------------------------------


async def test_dispatch_that_returns_none_is_skipped(fused: bool) -> None:
    """A `dispatch` that returns `None` is not there for this request."""

    def aside(conn: Connection) -> Flow | None:
        return None

    assert await marks(stack(plain_app, mark, aside, mark, fused=fused)) == ["function"] * 2


@pytest.mark.unchecked(reason="the app's own receive and send")
async def test_all_layers_step_aside(fused: bool) -> None:
    """Where every layer steps aside the app gets the server's own `receive` and `send`."""
    got = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append((receive, send))
        await plain_app(scope, receive, send)

    server = Server()
    receive, send = server.receive, server.send
    layers = stack(app, lambda conn: None, lambda conn: None, fused=fused)
    await layers(server.scope, receive, send)

    assert server.body == b"hello"
    assert got == [(receive, send)]


async def test_when_is_true(fused: bool) -> None:
    """`when=` with a predicate that is true leaves the layer there."""
    layer = functools.partial(HTTPMiddleware, dispatch=mark, when=lambda conn: True)

    assert await marks(layer(layer(plain_app))) == ["function", "function"]


async def test_when_is_false() -> None:
    """`when=` with a predicate that is false takes the layer away; its function is not called."""
    calls = []

    def counting(conn: Connection) -> Flow:
        calls.append(conn)
        return mark(conn)

    app = HTTPMiddleware(plain_app, dispatch=counting, when=lambda conn: False)

    assert await marks(app) == []
    assert calls == []


async def test_when_decides_for_each_request(fused: bool) -> None:
    """The predicate gets the connection, and each of several layers has its own."""

    def only(path: str) -> Callable[[Connection], bool]:
        return lambda conn: conn.url.path == path

    app: ASGIApp = HTTPMiddleware(plain_app, dispatch=Holder("a").method, when=only("/a"))
    if not fused:
        app = stack(app, fused=False)
    app = HTTPMiddleware(app, dispatch=Holder("b").method, when=only("/b"))
    app = HTTPMiddleware(app, dispatch=mark)

    assert await marks(app, "/a") == ["a", "function"]
    assert await marks(app, "/b") == ["b", "function"]
    assert await marks(app, "/c") == ["function"]


async def test_when_sees_what_outer_layers_did(fused: bool) -> None:
    """The predicate of an inner layer is asked after the outer layers ran up to their yield."""

    async def tag(conn: Connection) -> Flow:
        conn.state.tagged = True
        yield

    def tagged(conn: Connection) -> bool:
        return getattr(conn.state, "tagged", False)

    app: ASGIApp = HTTPMiddleware(plain_app, dispatch=mark, when=tagged)
    if not fused:
        app = stack(app, fused=False)

    assert await marks(HTTPMiddleware(app, dispatch=tag)) == ["function"]
    assert await marks(app) == []


async def test_when_is_not_asked_behind_an_early_answer(fused: bool) -> None:
    """Where an outer layer answers early, no inner function or predicate is called."""
    calls = []

    async def answer(conn: Connection) -> Flow:
        yield PlainTextResponse("hello")

    def asked(conn: Connection) -> bool:
        calls.append("when")
        return True

    def called(conn: Connection) -> Flow:
        calls.append("dispatch")
        return mark(conn)

    app: ASGIApp = HTTPMiddleware(plain_app, dispatch=called, when=asked)
    if not fused:
        app = stack(app, fused=False)

    assert await marks(HTTPMiddleware(app, dispatch=answer)) == []
    assert calls == []


async def test_when_on_a_subclass() -> None:
    """A subclass may hand `when=` to the base's constructor."""

    class Limited(HTTPMiddleware):
        def __init__(self, app: ASGIApp, path: str) -> None:
            super().__init__(app, when=lambda conn: conn.url.path == path)

        async def dispatch(self, conn: Connection) -> Flow:
            response = yield
            response.headers.append("x-mark", "limited")

    app = Starlette(
        routes=[Route("/a", hello), Route("/b", hello)],
        middleware=[Middleware(Limited, path="/a")],
    )

    assert await marks(app, "/a") == ["limited"]
    assert await marks(app, "/b") == []


async def test_failure_of_a_predicate_is_raised(fused: bool) -> None:
    """An exception of the predicate is an error of the request, seen by outer layers."""
    seen: list[Any] = []

    def fail(conn: Connection) -> bool:
        raise LookupError("predicate")

    async def watch(conn: Connection) -> Flow:
        try:
            yield
        except LookupError as error:
            seen.append(str(error))
            raise

    app: ASGIApp = HTTPMiddleware(plain_app, dispatch=mark, when=fail)
    if not fused:
        app = stack(app, fused=False)
    server = await request(HTTPMiddleware(app, dispatch=watch), keep_error=True)

    assert isinstance(server.error, LookupError)
    assert seen == ["predicate"]


@pytest.mark.parametrize("where", ["predicate", "function"])
async def test_stop_of_an_iterator_before_there_is_a_generator(where: str, fused: bool) -> None:
    """StopAsyncIteration is raised like any other exception where no generator can have ended."""
    stop = StopAsyncIteration()

    def fail(conn: Connection) -> Any:
        raise stop

    if where == "predicate":
        app: ASGIApp = HTTPMiddleware(plain_app, dispatch=mark, when=fail)
    else:
        app = HTTPMiddleware(plain_app, dispatch=fail)
    if not fused:
        app = stack(app, fused=False)
    server = await request(HTTPMiddleware(app, dispatch=mark), keep_error=True)

    assert server.error is stop
    assert server.sent == []


# -- only HTTP -------------------------------------------------------------------------------


@pytest.mark.unchecked(reason="the app's own receive and send")
@pytest.mark.parametrize("kind", ["websocket", "lifespan", "unknown"])
async def test_other_scopes_go_straight_to_the_app(kind: str, fused: bool) -> None:
    """The app gets the scope, the `receive` and the `send` of any other protocol as they are."""
    got = []
    calls = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append((scope, receive, send))

    def called(conn: Connection) -> Flow:
        calls.append(conn)
        return mark(conn)

    async def receive() -> Message:
        raise AssertionError("not called")

    async def send(message: Message) -> None:
        raise AssertionError("not called")

    scope: dict[str, Any] = {"type": kind}
    before = dict(scope)
    await stack(app, called, called, fused=fused)(scope, receive, send)

    assert got == [(scope, receive, send)]
    assert got[0][0] is scope
    assert scope == before
    assert calls == []


async def test_when_is_not_asked_for_other_scopes() -> None:
    """`when=` is asked for HTTP requests only."""
    runs = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        runs.append(scope["type"])

    def fail(conn: Connection) -> bool:
        raise AssertionError("asked")

    layer = HTTPMiddleware(app, dispatch=mark, when=fail)
    server = Server()
    await layer({"type": "lifespan"}, server.receive, server.send)

    assert runs == ["lifespan"]


async def test_lifespan_of_an_application_runs_behind_layers() -> None:
    """Start-up and shutdown of the application run, and its state reaches the requests."""
    log: list[str] = []

    class Lifespan:
        def __init__(self, app: Starlette) -> None:
            pass

        async def __aenter__(self) -> dict[str, Any]:
            log.append("up")
            return {"shared": "value"}

        async def __aexit__(self, *args: object) -> None:
            log.append("down")

    async def note(conn: Connection) -> Flow:
        response: AppResponse = yield
        response.headers["x-shared"] = conn.state.shared

    app = Starlette(
        routes=[Route("/", hello)],
        middleware=[Middleware(HTTPMiddleware, dispatch=note)],
        lifespan=Lifespan,
    )
    messages: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []
    state: dict[str, Any] = {}

    async def receive() -> Message:
        if len(messages) == 1:
            server = Server()
            server.scope["state"] = dict(state)
            await server.run(app)
            log.append(server.headers["x-shared"])
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "state": state}, receive, send)

    assert log == ["up", "value", "down"]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_app_attribute_is_the_app_that_was_wrapped() -> None:
    """`middleware.app` is what it was made around, fused or not, as in every ASGI middleware."""
    inner = HTTPMiddleware(plain_app, dispatch=mark)
    outer = HTTPMiddleware(inner, dispatch=mark)

    assert inner.app is plain_app
    assert outer.app is inner


async def test_handlers_are_those_of_the_application_outside() -> None:
    """An HTTPException after the yield meets the handlers of its own app, not of a mounted one."""

    def answering(text: str) -> Any:
        return lambda request, exc: PlainTextResponse(text, exc.status_code)

    async def mw(conn: Connection) -> Flow:
        yield
        raise HTTPException(418)

    inner = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("ok"))],
        exception_handlers={HTTPException: answering("inner")},
    )
    app = Starlette(
        routes=[Mount("/inner", inner)],
        middleware=[Middleware(HTTPMiddleware, dispatch=mw)],
        exception_handlers={HTTPException: answering("outer")},
    )

    assert (await request(app, path="/inner/")).body == b"outer"


def test_predicate_object_that_is_async_is_refused() -> None:
    """An object whose `__call__` is `async def` would always be true."""

    class Asks:
        async def __call__(self, conn: Connection) -> bool:
            return False

    async def mw(conn: Connection) -> Flow:
        yield

    with pytest.raises(TypeError, match="when"):
        HTTPMiddleware(PlainTextResponse("ok"), dispatch=mw, when=Asks())  # type: ignore[arg-type]
