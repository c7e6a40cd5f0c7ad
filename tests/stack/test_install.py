"""The layers of a Starlette or FastAPI application, edited before and after it has started."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack, StackError, http_middleware
from tests.harness import PassThrough, Server, request
from tests.stack.test_stack import Mark, app, generator, mark, marking, names, second
from tests.test_project import loaded_by

pytestmark = pytest.mark.unchecked("a stack looks whether the inner app of an adapter is its own")


class Broken(Exception):
    """What a route raises."""


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def broken(request: Request) -> Response:
    raise Broken


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(websocket.scope["passed"])
    await websocket.close()


ROUTES = [Route("/", hello), Route("/broken", broken), WebSocketRoute("/socket", socket)]

Make = Callable[..., Any]


@pytest.fixture(params=[Starlette, FastAPI])
def make(request: pytest.FixtureRequest) -> Make:
    """Make an application."""

    def make(*middleware: Any, cls: type[Any] = request.param, **options: Any) -> Any:
        app = cls(middleware=middleware, **options)
        app.router.routes.extend(ROUTES)
        return app

    return make


@pytest.fixture(params=[False, True], ids=["new", "started"])
def started(request: pytest.FixtureRequest) -> bool:
    """Whether an application has had its first event."""
    return request.param


def start(app: Any) -> None:
    app.middleware_stack = app.build_middleware_stack()


async def marks(app: Any, path: str = "/") -> list[str]:
    """Run a request and return its marks, the outermost layer's first."""
    server = await Server(path=path).run(app, keep_error=True)
    return server.headers.getlist("x-mark")[::-1]


def test_the_import_of_httpmw_loads_no_application() -> None:
    """What `install` needs of Starlette is loaded by `install`."""
    modules = loaded_by("import httpmw")

    assert modules.isdisjoint({"httpmw._installed", "starlette.applications", "starlette.routing"})


# -- install -----------------------------------------------------------------------------------


async def test_install_takes_the_layers_over(make: Make, started: bool) -> None:
    """The layers that an application has are those of its stack."""
    app = make(mark("a"), Middleware(HTTPMiddleware, dispatch=generator))
    if started:
        start(app)
    stack = MiddlewareStack.install(app)

    assert names(stack) == ["Mark", "generator"]
    assert await marks(app) == ["a", "generator"]


async def test_install_gives_the_same_stack_every_time(make: Make, started: bool) -> None:
    """An application has one stack."""
    app = make(mark("a"))
    if started:
        start(app)
    stack = MiddlewareStack.install(app)
    stack.add(generator)

    assert MiddlewareStack.install(app) is stack
    assert await marks(app) == ["generator", "a"]
    assert MiddlewareStack.install(app) is stack


def test_install_in_many_threads(make: Make, started: bool) -> None:
    """Threads that install at the same time get one stack."""
    app = make(mark("a"))
    if started:
        start(app)
    begin = threading.Barrier(8)
    found = []

    def install() -> None:
        begin.wait()
        found.append(MiddlewareStack.install(app))

    threads = [threading.Thread(target=install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [found[0]] * 8


def test_install_leaves_the_type_of_the_application(make: Make) -> None:
    """An application is still an instance of its class, and its class looks as before."""
    app = make()
    cls = type(app)
    MiddlewareStack.install(app)

    assert isinstance(app, cls)
    assert (type(app).__name__, type(app).__module__) == (cls.__name__, cls.__module__)


@pytest.mark.parametrize("other", [app, CORSMiddleware(app), object()])
def test_install_needs_an_application(other: Any) -> None:
    """What has no layers of Starlette's kind is refused, with what to write instead."""
    with pytest.raises(TypeError, match=r"app = MiddlewareStack\(app, \[...\]\)"):
        MiddlewareStack.install(other)


async def test_install_with_a_layer_that_cannot_be_made(make: Make) -> None:
    """The error is raised, and the application is as it was."""
    app = make(Middleware(Mark, option=1))
    before = dict(vars(app)), type(app)

    with pytest.raises(TypeError, match="option"):
        MiddlewareStack.install(app)

    assert (dict(vars(app)), type(app)) == before
    app.user_middleware.clear()
    MiddlewareStack.install(app).add(generator)
    assert await marks(app) == ["generator"]


async def test_each_layer_is_made_once(make: Make) -> None:
    """In an application that has not started, install makes the layers, and the start does not."""
    app = make(mark("a"))
    made = Mark.made
    stack = MiddlewareStack.install(app)
    stack.add(mark("b"))
    await marks(app)
    stack.add(generator)
    await marks(app)

    assert Mark.made == made + 2


async def test_the_stack_of_an_application_that_has_not_started(make: Make) -> None:
    """To call it is refused: what it stands in is still to be built by the application."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    with pytest.raises(StackError, match="Call the application"):
        await request(stack)

    assert await marks(app) == ["a"]
    assert await marks(stack) == ["a"]


async def test_neighbours_are_fused_in_an_application() -> None:
    """Middleware functions that stand side by side are one adapter."""
    app = Starlette(middleware=[Middleware(HTTPMiddleware, dispatch=generator)])
    stack = MiddlewareStack.install(app)
    stack.add(second)
    start(app)

    adapter = stack._chain.late_app
    assert isinstance(adapter, HTTPMiddleware)
    assert len(adapter._httpmw[0]) == 2


async def test_a_build_that_began_before_install(make: Make) -> None:
    """A first request that is still building when the stack comes gets the stack in the end."""
    building, go = threading.Event(), threading.Event()

    def slow(app: ASGIApp) -> ASGIApp:
        if not building.is_set():
            building.set()
            go.wait()
        return Mark(app, "slow")

    app = make(Middleware(slow))
    thread = threading.Thread(target=asyncio.run, args=[request(app)])
    thread.start()
    building.wait()
    stack = MiddlewareStack.install(app)
    stack.add(generator)
    go.set()
    thread.join()

    assert await marks(app) == ["generator", "slow"]
    stack.remove("slow")
    assert await marks(app) == ["generator"]


# -- the application's own ways ----------------------------------------------------------------


async def test_add_middleware_at_any_time(make: Make) -> None:
    """`app.add_middleware` is an edit, before the start and after."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    app.add_middleware(Mark, "b")
    assert await marks(app) == ["b", "a"]
    app.add_middleware(Mark, name="c")
    app.add_middleware(HTTPMiddleware, dispatch=generator)

    assert await marks(app) == ["generator", "c", "b", "a"]
    assert names(stack) == ["generator", "Mark", "Mark", "Mark"]


async def test_the_decorator_of_fastapi_at_any_time() -> None:
    """`@app.middleware("http")` is an edit, and its function a target."""
    app = FastAPI()
    app.router.routes.extend(ROUTES)
    stack = MiddlewareStack.install(app)
    assert await marks(app) == []

    @app.middleware("http")
    async def decorated(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-mark"] = "decorated"
        return response

    assert await marks(app) == ["decorated"]
    stack.remove(decorated)
    assert await marks(app) == []


async def test_the_decorator_of_httpmw_at_any_time(make: Make) -> None:
    """`@http_middleware(app)` is an edit."""
    app = make()
    MiddlewareStack.install(app)
    assert await marks(app) == []
    http_middleware(app)(generator)
    assert await marks(app) == ["generator"]


def test_user_middleware_shows_the_truth(make: Make) -> None:
    """It has a `Middleware` object for each layer inside of the error handler."""
    first = mark("a")
    app = make(first)
    stack = MiddlewareStack.install(app)
    stack.add(generator)
    stack.add(mark("out"), outside_errors=True)

    function, last = app.user_middleware
    assert last is first
    assert (function.cls, function.kwargs) == (HTTPMiddleware, {"dispatch": generator})
    stack.remove(generator)
    assert app.user_middleware == [first]
    assert [first] == app.user_middleware
    assert [*app.user_middleware] == list(app.user_middleware) == app.user_middleware[:] == [first]
    assert app.user_middleware[0] is app.user_middleware[-1] is first
    assert len(app.user_middleware) == 1
    assert first in app.user_middleware
    assert app.user_middleware.copy() == [first]
    other = [mark("other")]
    assert app.user_middleware + other == [first, *other]
    assert other + app.user_middleware == [*other, first]
    assert repr(app.user_middleware) == "[Middleware(Mark, 'a')]"


A, B, C = mark("a"), mark("b"), mark("c")


def assign(app: Any, layers: list[Middleware]) -> None:
    app.user_middleware = layers


def extend(app: Any, layers: list[Middleware]) -> None:
    app.user_middleware += layers


CHANGES: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "insert": (lambda app: app.user_middleware.insert(0, C), ["c", "a", "b"]),
    "append": (lambda app: app.user_middleware.append(C), ["a", "b", "c"]),
    "extend": (lambda app: app.user_middleware.extend(iter([C])), ["a", "b", "c"]),
    "in-place sum": (lambda app: extend(app, [C]), ["a", "b", "c"]),
    "remove": (lambda app: app.user_middleware.remove(A), ["b"]),
    "pop": (lambda app: app.user_middleware.pop(), ["a"]),
    "clear": (lambda app: app.user_middleware.clear(), []),
    "reverse": (lambda app: app.user_middleware.reverse(), ["b", "a"]),
    "sort": (lambda app: app.user_middleware.sort(key=lambda m: m is A), ["b", "a"]),
    "set an item": (lambda app: app.user_middleware.__setitem__(0, C), ["c", "b"]),
    "set a slice": (lambda app: app.user_middleware.__setitem__(slice(1), [B, C]), ["b", "c", "b"]),
    "delete": (lambda app: app.user_middleware.__delitem__(0), ["b"]),
    "assign": (lambda app: assign(app, [B, C]), ["b", "c"]),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
async def test_a_change_of_user_middleware_is_an_edit(
    change: Callable[[Any], Any], expected: list[str], started: bool
) -> None:
    """The list takes effect at once; what was in it before keeps its instance."""
    app = Starlette(routes=ROUTES, middleware=[A, B])
    stack = MiddlewareStack.install(app)
    if started:
        assert await marks(app) == ["a", "b"]
    instances = {slot.spec: slot.instance for slot in stack._chain.slots}

    change(app)

    assert await marks(app) == expected
    assert [layer.middleware for layer in stack] == app.user_middleware
    kept = [slot for slot in stack._chain.slots if slot.spec in instances]
    assert all(slot.instance is instances.pop(slot.spec, slot.instance) for slot in kept)


async def test_one_middleware_object_twice_in_user_middleware(make: Make) -> None:
    """Each place of it has an instance of its own, which lives on."""
    app = make(A, A)
    stack = MiddlewareStack.install(app)
    instances = [slot.instance for slot in stack._chain.slots]
    assert await marks(app) == ["a", "a"]

    app.user_middleware.append(B)

    assert [slot.instance for slot in stack._chain.slots][:2] == instances
    assert instances[0] is not instances[1]


async def test_a_bad_change_of_user_middleware_changes_nothing(make: Make) -> None:
    """The error is raised by the change."""
    app = make(mark("a"))
    MiddlewareStack.install(app)

    with pytest.raises(TypeError):
        app.user_middleware.append(Middleware(Mark, option=1))
    with pytest.raises(TypeError):
        app.user_middleware = [None]

    assert await marks(app) == ["a"]


# -- what other packages do to an application --------------------------------------------------


async def test_a_reset_by_hand(make: Make) -> None:
    """`app.middleware_stack = None` builds anew what is around the layers, and they live on."""
    app = make(mark("a"))
    MiddlewareStack.install(app)
    await request(app)
    made = Mark.made

    app.user_middleware.insert(0, mark("b"))
    app.middleware_stack = None
    # A request that has found it there a moment ago can still call it.
    assert app.middleware_stack is not None

    assert await marks(app) == ["b", "a"]
    assert Mark.made == made + 1
    assert isinstance(app.middleware_stack, ServerErrorMiddleware)


async def test_a_reset_of_an_application_that_has_not_started(make: Make) -> None:
    """Before the start there is nothing to build anew."""
    app = make(mark("a"))
    MiddlewareStack.install(app)
    app.middleware_stack = None

    assert app.middleware_stack is None
    assert await marks(app) == ["a"]


async def test_a_rebuild_by_hand(make: Make) -> None:
    """`app.middleware_stack = app.build_middleware_stack()` does what it says."""
    app = make(mark("a"), mark("b"))
    stack = MiddlewareStack.install(app)
    await request(app)

    app.user_middleware = [each for each in app.user_middleware if each.args != ("a",)]
    app.middleware_stack = app.build_middleware_stack()

    assert await marks(app) == ["b"]
    assert len(stack) == 1


async def test_the_built_stack_wrapped_by_hand(make: Make) -> None:
    """What is put around `app.middleware_stack` stays there, whatever is edited inside."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    await request(app)
    app.middleware_stack = Mark(app.middleware_stack, "by hand")
    stack.add(generator)

    assert await marks(app) == ["by hand", "generator", "a"]
    stack.add(second, outside_errors=True)
    assert await marks(app) == ["by hand", "second", "generator", "a"]


async def test_a_frame_that_is_called_by_hand(make: Make) -> None:
    """Who calls what `build_middleware_stack` gives runs all layers, also those from outside."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    stack.add(generator, outside_errors=True)
    frame = app.build_middleware_stack()

    assert await marks(frame) == ["generator", "a"]


class Instrumentor:
    """What OpenTelemetry's instrumentation does to an application of FastAPI."""

    @staticmethod
    def instrument(app: Any) -> None:
        original = app.build_middleware_stack

        def build() -> ASGIApp:
            inner = original()
            assert isinstance(inner, ServerErrorMiddleware)
            errors = ServerErrorMiddleware(PassThrough(inner.app), inner.handler, inner.debug)
            return ServerErrorMiddleware(Mark(errors, "instrumentation"))

        app._original = original
        app.build_middleware_stack = build

    @staticmethod
    def uninstrument(app: Any) -> None:
        app.build_middleware_stack = app._original
        app.middleware_stack = app.build_middleware_stack()


@pytest.fixture(params=["instrumented first", "installed first"])
def instrumented(make: Make, request: pytest.FixtureRequest) -> tuple[Any, MiddlewareStack]:
    """An application that has both, and its stack."""
    app = make(mark("a"))
    if request.param == "instrumented first":
        Instrumentor.instrument(app)
    stack = MiddlewareStack.install(app)
    if request.param == "installed first":
        Instrumentor.instrument(app)
    return app, stack


async def test_an_instrumentation_that_overrides_the_build(
    instrumented: tuple[Any, MiddlewareStack],
) -> None:
    """It finds what it looks for, stands around the layers, and can be taken back."""
    app, stack = instrumented
    made = Mark.made
    stack.add(generator)
    assert await marks(app) == ["instrumentation", "generator", "a"]
    stack.remove(generator)
    stack.add(second, outside_errors=True)
    assert await marks(app) == ["second", "instrumentation", "a"]

    Instrumentor.uninstrument(app)

    assert await marks(app) == ["second", "a"]
    stack.add(generator)
    assert await marks(app) == ["second", "generator", "a"]
    assert Mark.made == made + 1  # the instrumentation's own


async def test_an_override_of_a_build_can_be_deleted(make: Make) -> None:
    """Without the override the class builds again."""
    app = make(mark("a"))
    MiddlewareStack.install(app)
    Instrumentor.instrument(app)
    del app.build_middleware_stack

    assert await marks(app) == ["a"]


# -- overrides of subclasses -------------------------------------------------------------------


async def test_an_overridden_build_is_respected(make: Make) -> None:
    """What a subclass puts around its application stays there."""

    class Application(type(make())):  # type: ignore[misc]
        def build_middleware_stack(self) -> ASGIApp:
            return Mark(super().build_middleware_stack(), "override")

    app = make(mark("a"), cls=Application)
    stack = MiddlewareStack.install(app)
    assert await marks(app) == ["override", "a"]
    stack.add(generator)
    assert await marks(app) == ["override", "generator", "a"]


async def test_an_overridden_build_that_adds_layers(make: Make) -> None:
    """Layers that a subclass adds while it builds are layers of the stack."""

    class Application(type(make())):  # type: ignore[misc]
        def build_middleware_stack(self) -> ASGIApp:
            self.user_middleware.insert(0, mark("inserted"))
            self.add_middleware(Mark, "added")
            return super().build_middleware_stack()

    app = make(mark("a"), cls=Application)
    stack = MiddlewareStack.install(app)

    assert await marks(app) == ["added", "inserted", "a"]
    assert len(stack) == 3


async def test_a_build_that_leaves_the_layers_out(make: Make) -> None:
    """Where layers would have no effect, a stack is refused."""

    class Application(type(make())):  # type: ignore[misc]
        def build_middleware_stack(self) -> ASGIApp:
            return self.router

    app = make(cls=Application)
    start(app)
    cls = type(app)

    with pytest.raises(StackError, match=r"Application.build_middleware_stack.*leaves"):
        MiddlewareStack.install(app)

    assert type(app) is cls
    assert await marks(app) == []


async def test_a_build_that_fails_later(make: Make) -> None:
    """The error is raised where the build was asked for; the application serves on, with edits."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    assert await marks(app) == ["a"]
    app.build_middleware_stack = lambda: app.router

    with pytest.raises(StackError, match="leaves `user_middleware` out"):
        app.build_middleware_stack()
    stack.add(generator, outside_errors=True)
    assert await marks(app, "/broken") == ["generator"]
    assert await marks(app) == ["generator", "a"]


# -- the error handlers ------------------------------------------------------------------------


def teapot(request: Request, exc: Exception) -> Response:
    return PlainTextResponse("teapot", 418)


async def test_handlers_that_are_added_before_the_start(make: Make) -> None:
    """As in Starlette, all handlers count that are there at the first event."""
    app = make(mark("a"))
    MiddlewareStack.install(app)
    app.add_exception_handler(Broken, teapot)

    assert (await request(app, path="/broken")).status == 418


async def test_handlers_that_are_added_after_the_start(make: Make) -> None:
    """As in Starlette, later handlers count when the stack is built anew."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    await request(app)
    app.add_exception_handler(Broken, teapot)
    stack.add(generator)
    assert (await request(app, path="/broken", keep_error=True)).status == 500

    app.middleware_stack = None

    assert (await request(app, path="/broken")).status == 418
    assert await marks(app, "/broken") == ["generator", "a"]


async def test_a_layer_outside_of_the_error_handler(make: Make, started: bool) -> None:
    """It sees the response that is made of an unhandled exception; a layer inside does not."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    if started:
        await request(app)
    stack.add(generator, outside_errors=True)
    stack.add(mark("out"), outside_errors=True, name="out")
    stack.add(second, outside_errors=True, innermost=True)

    server = await request(app, path="/broken", keep_error=True)

    assert server.status == 500
    assert isinstance(server.error, Broken)
    assert server.headers.getlist("x-mark") == ["second", "generator", "out"]
    assert await marks(app) == ["out", "generator", "second", "a"]
    stack.remove("out")
    stack.remove(generator)
    stack.remove(second)
    assert await marks(app) == ["a"]


async def test_places_outside_and_inside(make: Make) -> None:
    """`before` and `after` put a layer on the side of the error handler where the other one is."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    stack.add(mark("out"), outside_errors=True, name="out")
    stack.add(marking("after"), after="out")
    stack.add(marking("outermost"))

    assert await marks(app, "/broken") == ["out", "after"]
    stack.move("after", before="outermost")
    assert await marks(app, "/broken") == ["out"]
    stack.move("after", outside_errors=True)
    assert await marks(app, "/broken") == ["after", "out"]
    assert await marks(app) == ["after", "out", "outermost", "a"]
    with pytest.raises(StackError, match="cannot stand beside 'outermost'"):
        stack.add(second, outside_errors=True, before="outermost")


def test_the_drawing_of_an_application(make: Make) -> None:
    """The handlers of Starlette are in it; layers on both sides of one are not bracketed."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    stack.add(generator)
    stack.add(second, outside_errors=True)

    assert str(stack).splitlines() == [
        "  second",
        "  ServerErrorMiddleware",
        "  generator",
        "  Mark",
        "  ExceptionMiddleware",
    ]
    stack.remove(generator)
    stack.remove(Mark)
    assert str(stack).splitlines() == [
        "  second",
        "  ServerErrorMiddleware",
        "  ExceptionMiddleware",
    ]


async def test_an_http_exception_of_a_layer_meets_the_handlers(make: Make) -> None:
    """Rule 9 holds for layers that were added late, inside and outside."""

    async def refuse(conn: Connection) -> Flow:
        raise HTTPException(404)
        yield

    app = make(exception_handlers={404: teapot})
    stack = MiddlewareStack.install(app)
    await request(app)
    stack.add(refuse)
    assert (await request(app)).status == 418
    stack.remove(refuse)
    stack.add(refuse, outside_errors=True)
    assert (await request(app)).status == 418


async def test_a_request_that_is_on_its_way_when_the_first_outside_layer_comes(make: Make) -> None:
    """It has passed the place of the new layer, and keeps the layers that it began with."""
    app = make()
    stack = MiddlewareStack.install(app)

    class Editing(PassThrough):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            stack.add(generator, outside_errors=True)
            stack.add(second)
            await self.app(scope, receive, send)

    stack.add(Middleware(Editing))
    stack.add(mark("a"), innermost=True)

    assert await marks(app) == ["a"]
    stack.remove(Editing)
    assert await marks(app) == ["generator", "second", "a"]


async def test_layers_outside_of_a_request_that_comes_in_behind_them(make: Make) -> None:
    """Somebody has kept what was around the layers: those from outside are the outermost inside."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    await request(app)
    frame = app.middleware_stack
    stack.add(mark("out"), outside_errors=True)
    assert await marks(app) == ["out", "a"]

    assert await marks(frame) == ["out", "a"]


# -- uninstall ---------------------------------------------------------------------------------


async def test_uninstall_before_the_start(make: Make) -> None:
    """The application has the layers of its stack, and builds them itself."""
    app = make(mark("a"))
    cls = type(app)
    stack = MiddlewareStack.install(app)
    stack.add(generator)
    stack.add(mark("out"), outside_errors=True)

    stack.uninstall()

    assert type(app) is cls
    assert type(app.user_middleware) is list
    app.add_middleware(Mark, "late")
    assert await marks(app) == ["late", "out", "generator", "a"]
    with pytest.raises(RuntimeError, match="after an application has started"):
        app.add_middleware(Mark)


async def test_uninstall_after_the_start(make: Make) -> None:
    """The layers stay as they are, with their state, and Starlette's rules hold again."""
    app = make(mark("a"))
    cls = type(app)
    stack = MiddlewareStack.install(app)
    await request(app)
    stack.add(mark("out"), outside_errors=True)
    made = Mark.made

    stack.uninstall()

    assert type(app) is cls
    server = await request(app)
    assert server.scope["passed"] == ["out:1", "a:2"]
    assert Mark.made == made
    assert [each.args for each in app.user_middleware] == [("out",), ("a",)]
    with pytest.raises(RuntimeError, match="after an application has started"):
        app.add_middleware(Mark)


async def test_after_uninstall_a_stack_is_not_edited(make: Make) -> None:
    """The stack that has lost its application says so; install gives a new one."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    await request(app)
    stack.uninstall()

    with pytest.raises(StackError, match="this stack was uninstalled"):
        stack.add(generator)
    with pytest.raises(StackError, match="this stack was uninstalled"):
        stack.uninstall()

    again = MiddlewareStack.install(app)
    again.add(generator)
    assert again is not stack
    assert await marks(app) == ["generator", "a"]


async def test_uninstall_leaves_an_override_of_the_build(
    instrumented: tuple[Any, MiddlewareStack],
) -> None:
    """What somebody has put before the build of the class stays, and can be taken back."""
    app, stack = instrumented
    stack.uninstall()

    assert await marks(app) == ["instrumentation", "a"]
    Instrumentor.uninstrument(app)
    assert await marks(app) == ["a"]


def test_uninstall_within_an_edit(make: Make) -> None:
    """It is an edit itself."""
    stack = MiddlewareStack.install(make())

    with stack.edit(), pytest.raises(StackError, match="is being edited"):
        stack.uninstall()


# -- more than one application, other scopes ---------------------------------------------------


async def test_a_mounted_application_has_a_stack_of_its_own(make: Make) -> None:
    """Edits of one do not touch the other."""
    sub, app = make(mark("sub")), make(mark("app"))
    app.router.routes.insert(0, Mount("/sub", app=sub))
    inner, outer = MiddlewareStack.install(sub), MiddlewareStack.install(app)
    assert await marks(app, "/sub/") == ["app", "sub"]
    inner.add(generator)
    outer.add(second, innermost=True)

    assert await marks(app, "/sub/") == ["app", "second", "generator", "sub"]
    assert await marks(app) == ["app", "second"]
    assert await marks(sub) == ["generator", "sub"]


async def test_a_stack_around_an_application_with_one(make: Make) -> None:
    """A stack around the whole application and one inside of it go together."""
    app = make(mark("a"))
    inner = MiddlewareStack.install(app)
    outer = MiddlewareStack(app, [mark("out")])
    await request(outer)
    inner.add(generator)
    outer.add(second)

    assert await marks(outer) == ["second", "out", "generator", "a"]


def test_a_layer_added_after_the_start_gets_no_lifespan(make: Make) -> None:
    """Each lifespan event goes through the layers that there were at the start."""
    seen: list[str] = []

    def noting(name: str) -> Callable[[ASGIApp], ASGIApp]:
        def factory(app: ASGIApp) -> ASGIApp:
            async def layer(scope: Scope, receive: Receive, send: Send) -> None:
                if scope["type"] == "lifespan":
                    seen.append(name)
                await app(scope, receive, send)
                if scope["type"] == "lifespan":
                    seen.append(f"{name} is over")

            return layer

        return factory

    app = make(Middleware(noting("early")))
    stack = MiddlewareStack.install(app)
    with TestClient(app) as client:
        stack.add(Middleware(noting("late")))
        stack.remove(list(stack)[1])
        assert client.get("/").text == "hello"

    assert seen == ["early", "early is over"]


def test_websockets_pass_through_all_layers(make: Make) -> None:
    """A layer that was added late sees a connection that was opened later."""
    app = make(mark("a"))
    stack = MiddlewareStack.install(app)
    client = TestClient(app)
    assert client.get("/").text == "hello"
    stack.add(mark("b"))
    stack.add(generator)
    stack.add(mark("out"), outside_errors=True)

    with client.websocket_connect("/socket") as connection:
        assert connection.receive_json() == ["out:1", "b:1", "a:2"]


def test_the_layers_that_people_edit() -> None:
    """A CORS layer swapped and a GZip layer added, after requests, in one edit."""
    app = Starlette(routes=ROUTES, middleware=[Middleware(CORSMiddleware, allow_origins=["a"])])
    stack = MiddlewareStack.install(app)
    client = TestClient(app)
    assert (
        client.get("/", headers={"origin": "b"}).headers.get("access-control-allow-origin") is None
    )

    with stack.edit() as draft:
        draft.remove(CORSMiddleware)
        draft.add(Middleware(CORSMiddleware, allow_origins=["b"]))
        draft.add(Middleware(GZipMiddleware, minimum_size=1))

    response = client.get("/", headers={"origin": "b"})
    assert response.headers["access-control-allow-origin"] == "b"
    assert response.headers["content-encoding"] == "gzip"
    assert response.text == "hello"
