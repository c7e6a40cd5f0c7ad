"""What is refused when a layer is made, or before a flow takes its first step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import (
    Connection,
    Flow,
    HTTPMiddleware,
    MiddlewareError,
    MiddlewareStack,
    http_middleware,
)
from httpmw.compat import BaseHTTPMiddleware
from tests.harness import PassThrough, Server, explained, request, stack


class App:
    """An app that counts its runs, and waits until it is told to go on."""

    def __init__(self) -> None:
        self.runs = 0
        self.entered = anyio.Event()
        self.go_on = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.runs += 1
        self.entered.set()
        if scope["path"] == "/wait":
            await self.go_on.wait()
        await PlainTextResponse("secret")(scope, receive, send)


async def gate(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


# -- a flow that has begun (A4) ----------------------------------------------------------------


def kept(make: Callable[[Connection], Flow]) -> Callable[[Connection], Flow]:
    """A function that gives every request the generator of the first."""
    flows: list[Flow] = []

    def dispatch(conn: Connection) -> Flow:
        if not flows:
            flows.append(make(conn))
        return flows[0]

    return dispatch


def by_a_plain_function(app: ASGIApp) -> ASGIApp:
    return HTTPMiddleware(app, dispatch=kept(gate))


def by_a_wrapper(app: ASGIApp) -> ASGIApp:
    return HTTPMiddleware(app, dispatch=functools.wraps(gate)(functools.partial(kept(gate))))


def by_an_override(app: ASGIApp) -> ASGIApp:
    give = kept(gate)

    class Gate(HTTPMiddleware):
        def dispatch(self, conn: Connection) -> Flow:
            return give(conn)

    return Gate(app)


def by_delegation(app: ASGIApp) -> ASGIApp:
    give = kept(gate)

    async def outer(conn: Connection) -> Flow:
        yield give(conn)

    return HTTPMiddleware(app, dispatch=outer)


def by_deep_delegation(app: ASGIApp) -> ASGIApp:
    give = kept(gate)

    async def inner(conn: Connection) -> Flow:
        yield give(conn)

    async def outer(conn: Connection) -> Flow:
        yield inner(conn)

    return HTTPMiddleware(app, dispatch=outer)


WAYS = [by_a_plain_function, by_a_wrapper, by_an_override, by_delegation, by_deep_delegation]


@pytest.mark.parametrize("way", WAYS)
async def test_a_flow_that_waits_lets_nobody_else_in(way: Callable[[ASGIApp], ASGIApp]) -> None:
    """A second request with the generator of one that is in the app is refused, unharmed."""
    app = App()
    layer = way(app)
    first, second = Server(path="/wait", headers={"x-member": "yes"}), Server()
    async with anyio.create_task_group() as group:
        group.start_soon(first.run, layer)
        await app.entered.wait()
        await second.run(layer, keep_error=True)
        app.go_on.set()

    assert app.runs == 1
    assert (first.status, first.body) == (200, b"secret")
    assert isinstance(second.error, MiddlewareError)
    explained(second.error, gate, "has begun already", "anew for each request")


@pytest.mark.parametrize("way", WAYS)
async def test_a_flow_that_is_over_lets_nobody_in(way: Callable[[ASGIApp], ASGIApp]) -> None:
    """Nor does a generator that has ended."""
    app = App()
    layer = way(app)
    assert (await request(layer, headers={"x-member": "yes"})).body == b"secret"
    second = await request(layer, keep_error=True)

    assert app.runs == 1
    assert isinstance(second.error, MiddlewareError)


@pytest.mark.parametrize("way", WAYS)
async def test_a_flow_in_its_first_step_lets_nobody_in(
    way: Callable[[ASGIApp], ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that waits for something of its own before its first yield."""
    app = App()
    began, go_on = anyio.Event(), anyio.Event()

    async def slow(conn: Connection) -> Flow:
        began.set()
        await go_on.wait()
        yield

    monkeypatch.setitem(globals(), "gate", slow)
    layer = way(app)
    first, second = Server(), Server()
    async with anyio.create_task_group() as group:
        group.start_soon(first.run, layer)
        await began.wait()
        await second.run(layer, keep_error=True)
        assert app.runs == 0
        go_on.set()

    assert (first.body, app.runs) == (b"secret", 1)
    explained(second.error, slow, "has begun already")


async def test_a_coroutine_that_waits_lets_nobody_else_in() -> None:
    """The same for the drop-in, whose functions are coroutines."""
    app = App()
    coroutines: list[Any] = []

    async def members(request: Request, call_next: Any) -> Response:
        if "x-member" not in request.headers:
            return PlainTextResponse("members only", 403)
        response: Response = await call_next(request)
        return response

    def dispatch(request: Request, call_next: Any) -> Any:
        if not coroutines:
            coroutines.append(members(request, call_next))
        return coroutines[0]

    layer = BaseHTTPMiddleware(app, dispatch=dispatch)
    first, second = Server(path="/wait", headers={"x-member": "yes"}), Server()
    async with anyio.create_task_group() as group:
        group.start_soon(first.run, layer)
        await app.entered.wait()
        await second.run(layer, keep_error=True)
        app.go_on.set()

    assert (first.body, app.runs) == (b"secret", 1)
    assert isinstance(second.error, MiddlewareError)
    explained(second.error, dispatch, "has begun already")


# -- a gate that is not there (A9) -------------------------------------------------------------


def test_a_wrapper_that_forgets_its_return() -> None:
    """It could only ever step aside: refused when the layer is made."""

    @functools.wraps(gate)
    def wrapper(conn: Connection) -> None:
        print("called")  # noqa: T201
        gate(conn)

    with pytest.raises(TypeError) as caught:
        HTTPMiddleware(App(), dispatch=wrapper)

    explained(caught.value, gate, "no `return` with a value", "return mw(conn)")


def test_an_override_that_forgets_its_return() -> None:
    """The same in a subclass."""

    class Gate(HTTPMiddleware):
        def dispatch(self, conn: Connection) -> Flow:
            super().dispatch(conn)  # type: ignore[return]

    with pytest.raises(TypeError) as caught:
        Gate(App())

    explained(caught.value, Gate.dispatch, "no `return` with a value")


@pytest.mark.parametrize(
    "register",
    [
        lambda function: HTTPMiddleware(App(), dispatch=function),
        http_middleware(Starlette()),
        lambda function: MiddlewareStack(App(), [function]),
        lambda function: HTTPMiddleware(App(), dispatch=functools.partial(function)),
    ],
    ids=["layer", "decorator", "stack", "partial"],
)
def test_a_forgotten_return_is_refused_wherever_it_is_registered(register: Any) -> None:
    """A bare `return` in between counts as none."""

    def dispatch(conn: Connection) -> None:
        if conn.method == "GET":
            return
        with contextlib.suppress(OSError):
            gate(conn)

    with pytest.raises(TypeError, match="no `return` with a value"):
        register(dispatch)


def returning(conn: Connection) -> Flow | None:
    return gate(conn) if conn.method == "GET" else None


def returning_in_a_loop(conn: Connection) -> Flow | None:
    for each in ("GET", "POST"):
        if conn.method == each:
            return gate(conn)
    return None


def returning_in_a_block(conn: Connection) -> Flow | None:
    try:
        with contextlib.suppress(OSError):
            return gate(conn)
    finally:
        print("made")  # noqa: T201


def returning_nothing_on_purpose(conn: Connection) -> Flow | None:
    return None


def raising(conn: Connection) -> Flow:
    raise HTTPException(403)


@pytest.mark.parametrize(
    "function",
    [
        returning,
        returning_in_a_loop,
        returning_in_a_block,
        returning_nothing_on_purpose,
        raising,
        lambda conn: print("aside"),  # noqa: T201
    ],
)
def test_what_may_return_something_is_taken(function: Any) -> None:
    """Where a value can be returned, None is returned on purpose, or nothing is."""
    HTTPMiddleware(App(), dispatch=function)


async def test_a_predicate_that_gives_a_coroutine() -> None:
    """It would count as true: an error, and the app is not run."""

    async def asked(conn: Connection) -> bool:
        return False

    def when(conn: Connection) -> Any:
        return asked(conn)

    app = App()
    server = await request(HTTPMiddleware(app, dispatch=gate, when=when), keep_error=True)

    assert app.runs == 0
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, when, "has to be awaited", "plain function")


async def test_dispatch_of_a_layer_is_its_function() -> None:
    """`layer.dispatch(conn)` delegates to what the layer was made with."""
    layer = HTTPMiddleware(App(), dispatch=gate)

    async def outer(conn: Connection) -> Flow:
        yield layer.dispatch(conn)

    app = App()
    server = await request(HTTPMiddleware(app, dispatch=outer))

    assert (server.status, app.runs) == (403, 0)


@pytest.mark.parametrize("cls", [HTTPMiddleware, type("Own", (HTTPMiddleware,), {})])
def test_dispatch_of_a_layer_is_not_assigned(cls: type[HTTPMiddleware]) -> None:
    """It would have no effect: refused, with what has."""
    layer = cls(App(), dispatch=gate)
    with pytest.raises(TypeError) as caught:
        layer.dispatch = gate  # type: ignore[method-assign]

    explained(caught.value, gate, "cannot be assigned", "MiddlewareStack.replace")


# -- weak texts (E11) --------------------------------------------------------------------------


async def test_a_forgotten_return_after_an_answer() -> None:
    """The error names the line after which `return` is missing."""

    async def forgetful(conn: Connection) -> Flow:
        if "x-member" not in conn.headers:
            yield PlainTextResponse("no", 403)
        yield

    line = forgetful.__code__.co_firstlineno + 2
    server = await request(HTTPMiddleware(App(), dispatch=forgetful), keep_error=True)

    assert (server.status, server.body) == (403, b"no")
    explained(server.error, forgetful, f"Write `return` after the first yield (line {line})")


async def test_a_forgotten_return_after_one_of_several_answers() -> None:
    """Where it may be one of several, all are named; what is awaited is none of them."""

    async def forgetful(conn: Connection) -> Flow:
        await anyio.lowlevel.checkpoint()
        if "x-member" not in conn.headers:
            yield PlainTextResponse("no", 403)
        elif conn.method == "POST":
            yield PlainTextResponse("no", 405)
        yield

    first = forgetful.__code__.co_firstlineno
    server = await request(HTTPMiddleware(App(), dispatch=forgetful), keep_error=True)

    explained(server.error, forgetful, f"(line {first + 3} or {first + 5})")


async def in_call_next_style(request: Any, call_next: Any) -> AsyncGenerator[Any, Any]:
    yield


async def without_parameters() -> AsyncGenerator[Any, Any]:
    yield


async def with_an_option(conn: Connection, *, option: str) -> Flow:
    yield


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (in_call_next_style, "httpmw.compat.BaseHTTPMiddleware"),
        (without_parameters, "async def mw(conn)"),
        (with_an_option, "functools.partial"),
    ],
)
def test_parameters_that_do_not_fit(function: Any, remedy: str) -> None:
    """A function that cannot be called with the connection is refused when it is registered."""
    for register in (
        lambda: HTTPMiddleware(App(), dispatch=function),
        lambda: http_middleware(Starlette())(function),
    ):
        with pytest.raises(TypeError) as caught:
            register()
        explained(caught.value, function, remedy)


def test_parameters_that_fit() -> None:
    """What may be called with one argument is taken, whatever it says of what it wraps."""

    async def two(conn: Connection, option: str) -> Flow:
        yield

    @functools.wraps(two)
    def wrapper(conn: Connection) -> Flow:
        return two(conn, "x")

    async def defaults(conn: Connection, option: str = "x", *rest: str) -> Flow:
        yield

    class Instance:
        async def __call__(self, conn: Connection) -> Flow:
            yield

    for each in (wrapper, defaults, functools.partial(two, option="x"), Instance()):
        HTTPMiddleware(App(), dispatch=each)


@pytest.mark.parametrize("kind", ["coroutine", "generator", "plain"])
def test_a_class_in_the_old_style_is_told_at_its_import(kind: str) -> None:
    """A `dispatch(self, request, call_next)` is seen where the class is defined."""
    with pytest.raises(TypeError) as caught:
        if kind == "coroutine":

            class Old(HTTPMiddleware):
                async def dispatch(self, request: Any, call_next: Any) -> Any:
                    return await call_next(request)

        elif kind == "generator":

            class Half(HTTPMiddleware):
                async def dispatch(self, request: Any, call_next: Any) -> Any:
                    yield

        else:

            class Plain(HTTPMiddleware):
                def dispatch(self, request: Any, call_next: Any) -> Any:
                    return call_next(request)

    assert "call_next" in str(caught.value)
    assert "httpmw migrate" in str(caught.value)
    assert "test_refused.py:" in str(caught.value)


def test_a_class_may_take_options_of_its_own() -> None:
    """`__init_subclass__` of others, and defaults of a `dispatch`, are theirs."""

    class Base(HTTPMiddleware):
        def __init_subclass__(cls, /, name: str, **options: Any) -> None:
            super().__init_subclass__(**options)
            cls.name = name

    class Derived(Base, name="x"):
        async def dispatch(self, conn: Connection, option: str = "x") -> Flow:
            yield

    assert Derived.name == "x"
    Derived(App())


@pytest.mark.parametrize("router", [Router(), APIRouter()])
def test_a_router_is_no_application(router: Any) -> None:
    """It is named as what it is, with the way that a router has."""
    with pytest.raises(TypeError) as caught:
        http_middleware(router)(gate)

    name = type(router).__name__
    assert f"a {name}." in str(caught.value)
    way = "Router(routes, middleware=" if type(router) is Router else "MiddlewareRouter(middleware="
    assert way in str(caught.value)


@pytest.mark.parametrize("waits", [False, True], ids=["one yield", "two yields"])
@pytest.mark.unchecked("it has no headers to look at")
async def test_headers_that_are_assigned(fused: bool, waits: bool) -> None:
    """`response.headers = {...}` is refused with what to write instead, in every place."""

    async def assigning(conn: Connection) -> Flow:
        response = yield
        response.headers = {"x-a": "b"}  # type: ignore[assignment]
        if waits:
            yield response

    for functions in ([assigning], [nothing, assigning], [assigning, nothing]):
        layers = stack(App(), *functions, fused=fused)
        server = await request(layers, keep_error=True)

        assert isinstance(server.error, MiddlewareError), server.error
        assert "`response.headers` was assigned {'x-a': 'b'}, a dict" in str(server.error)
        assert "response.headers.update({...})" in str(server.error)
        assert server.sent == []


def test_a_function_given_to_depends() -> None:
    """FastAPI takes it for a dependency, which no code of ours sees; the page on errors says so."""

    async def no_store(conn: Connection) -> Flow:
        response = yield
        response.headers["cache-control"] = "no-store"

    app = FastAPI(dependencies=[Depends(no_store)])
    app.add_api_route("/", lambda: "hello")

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'headers'"):
        TestClient(app).get("/")


# -- an HTTPException in a group (E10) ---------------------------------------------------------


async def load(what: str) -> None:
    await anyio.lowlevel.checkpoint()
    if what == "missing":
        raise HTTPException(404, "nothing there")


async def preparing(conn: Connection) -> Flow:
    async with anyio.create_task_group() as group:
        group.start_soon(load, "user")
        group.start_soon(load, "missing")
    yield


async def test_an_http_exception_alone_in_a_group_answers(fused: bool) -> None:
    """A layer that prepares in a task group answers as if it had raised the exception itself."""
    seen: list[int] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append(response.status_code)

    app = App()
    inner: ASGIApp = HTTPMiddleware(app, dispatch=preparing)
    server = await request(HTTPMiddleware(inner if fused else PassThrough(inner), dispatch=outer))

    assert (server.status, server.body, app.runs) == (404, b"nothing there", 0)
    assert seen == [404]


async def test_an_http_exception_among_others_in_a_group_is_raised() -> None:
    """Where something else went wrong as well, the group goes outward as it is."""
    group = ExceptionGroup("two", [HTTPException(404), ValueError()])

    async def function(conn: Connection) -> Flow:
        raise group
        yield

    server = await request(HTTPMiddleware(App(), dispatch=function), keep_error=True)

    assert server.error is group


# -- names of routes (E8) ----------------------------------------------------------------------


async def named(request: Request) -> Response:
    return PlainTextResponse(str(request.url_for("sub:inner")))


async def in_old_style(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


async def nothing(conn: Connection) -> Flow:
    yield


@pytest.mark.parametrize(
    "wrap",
    [
        lambda app: HTTPMiddleware(app, dispatch=nothing),
        lambda app: HTTPMiddleware(HTTPMiddleware(app, dispatch=nothing), dispatch=nothing),
        lambda app: MiddlewareStack(app, [nothing]),
        lambda app: MiddlewareStack(MiddlewareStack(app), [nothing]),
        lambda app: BaseHTTPMiddleware(app, dispatch=in_old_style),
        lambda app: HTTPMiddleware(BaseHTTPMiddleware(app, in_old_style), dispatch=nothing),
    ],
    ids=["layer", "layers", "stack", "stacks", "drop-in", "both"],
)
@pytest.mark.parametrize("cls", [Starlette, Router])
@pytest.mark.unchecked("the checker around the inner app has no routes")
async def test_a_mounted_layer_has_the_names_of_its_app(wrap: Any, cls: Any) -> None:
    """`url_for` finds the routes within."""
    sub = cls(routes=[Route("/inner", named, name="inner")])
    app = Starlette(routes=[Mount("/sub", app=wrap(sub), name="sub")])
    server = await request(app, path="/sub/inner")

    assert server.body.endswith(b"/sub/inner")


def test_a_layer_around_an_app_without_routes_has_none() -> None:
    """Who looks for `routes` finds out that there are none."""
    assert not hasattr(HTTPMiddleware(App(), dispatch=nothing), "routes")
    assert not hasattr(MiddlewareStack(App()), "routes")
    assert Mount("/", app=HTTPMiddleware(App(), dispatch=nothing)).routes == []


def test_a_class_may_have_routes_of_its_own() -> None:
    """An attribute of that name is the class's business."""

    class Own(HTTPMiddleware):
        def __init__(self, app: ASGIApp) -> None:
            super().__init__(app, dispatch=nothing)
            self.routes = ["mine"]

    assert Own(Router()).routes == ["mine"]
