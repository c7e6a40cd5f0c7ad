"""
A stack in an application that instrumentation patches, before it is installed and after.

The fakes patch what the real ones patch; those run in `test_instrumented.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import MiddlewareStack, StackError
from tests.harness import PassThrough, request
from tests.stack.test_install import ROUTES, Make, marks
from tests.stack.test_stack import Mark, generator, mark, second

pytestmark = pytest.mark.unchecked("a stack looks whether the inner app of an adapter is its own")

Patch = pytest.MonkeyPatch


class Seen(list[str]):
    """What a fake has seen."""

    def around(self, app: ASGIApp) -> ASGIApp:
        async def seeing(scope: Scope, receive: Receive, send: Send) -> None:
            self.append(scope["type"])
            await app(scope, receive, send)

        return seeing


def calls_of_classes(patch: Patch, app: Any, seen: Seen) -> None:
    """Patch `Middleware.__init__` as Sentry does: it sets `__call__` of whatever is registered."""
    original = Middleware.__init__

    def init(self: Any, cls: Any, *args: Any, **options: Any) -> None:
        call = cls.__call__

        async def call_seen(app: Any, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])
            await call(app, scope, receive, send)

        if call.__name__ != "call_seen":
            if isinstance(cls, type):
                patch.setattr(cls, "__call__", call_seen)
            else:
                cls.__call__ = call_seen
        original(self, cls, *args, **options)

    patch.setattr(Middleware, "__init__", init)


def builds_of_the_class(patch: Patch, app: Any, seen: Seen) -> None:
    """Wrap `build_middleware_stack` of the class, as ddtrace does."""
    cls = FastAPI if isinstance(app, FastAPI) else Starlette
    original = cls.build_middleware_stack

    @functools.wraps(original)
    def build(self: Any) -> ASGIApp:
        return seen.around(original(self))

    patch.setattr(cls, "build_middleware_stack", build)


def layers_in_a_build(patch: Patch, app: Any, seen: Seen) -> None:
    """Add a layer whenever a stack is built, as Elastic APM's automatic instrumentation does."""
    cls = FastAPI if isinstance(app, FastAPI) else Starlette
    original = cls.build_middleware_stack
    add = functools.partial(PassThrough)

    def build(self: Any) -> ASGIApp:
        self.add_middleware(add)
        seen.append("build")
        return original(self)

    patch.setattr(cls, "build_middleware_stack", build)


def calls_of_the_application(patch: Patch, app: Any, seen: Seen) -> None:
    """Wrap `Starlette.__call__`, as Sentry and New Relic do."""
    original = Starlette.__call__

    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await seen.around(functools.partial(original, self))(scope, receive, send)

    patch.setattr(Starlette, "__call__", call)


def added_layers(patch: Patch, app: Any, seen: Seen) -> None:
    """Wrap `Starlette.add_middleware`, as New Relic does: other layers are added then."""
    original = Starlette.add_middleware

    def add(self: Any, cls: Any, /, *args: Any, **options: Any) -> None:
        @functools.wraps(cls, updated=())
        def make(app: ASGIApp, *args: Any, **options: Any) -> ASGIApp:
            return seen.around(cls(app, *args, **options))

        original(self, make, *args, **options)

    patch.setattr(Starlette, "add_middleware", add)


def added_layers_of_one(patch: Patch, app: Any, seen: Seen) -> None:
    """Wrap `add_middleware` of one application."""
    original = app.add_middleware

    def add(cls: Any, /, *args: Any, **options: Any) -> None:
        original(lambda app, *args, **options: seen.around(cls(app, *args, **options)), *args)

    app.add_middleware = add


FAKES = [
    calls_of_classes,
    builds_of_the_class,
    layers_in_a_build,
    calls_of_the_application,
    added_layers,
    added_layers_of_one,
]

Fake = Callable[[Patch, Any, Seen], None]


@pytest.fixture(params=FAKES, ids=lambda fake: fake.__name__)
def fake(request: pytest.FixtureRequest) -> Fake:
    """One kind of instrumentation."""
    return request.param


@pytest.fixture(params=[Starlette, FastAPI])
def make(request: pytest.FixtureRequest) -> Make:
    """Make an application."""

    def make(*middleware: Any) -> Any:
        app = request.param(middleware=middleware)
        app.router.routes.extend(ROUTES)
        return app

    return make


@pytest.fixture(params=["instrumented first", "installed first"])
def order(request: pytest.FixtureRequest) -> str:
    """Which of the two is there first."""
    return request.param


@pytest.fixture(params=[False, True], ids=["new", "started"])
def started(request: pytest.FixtureRequest) -> bool:
    """Whether the application has been started before both."""
    return request.param


@pytest.fixture
def both(
    fake: Fake, make: Make, order: str, started: bool, monkeypatch: Patch
) -> tuple[Any, MiddlewareStack, Seen]:
    """An application that is instrumented and has a stack, the stack, and what was seen."""
    app, seen = make(mark("a")), Seen()
    if order == "instrumented first":
        fake(monkeypatch, app, seen)
    if started:
        app.middleware_stack = app.build_middleware_stack()
    stack = MiddlewareStack.install(app)
    if order == "installed first":
        fake(monkeypatch, app, seen)
    return app, stack, seen


Both = tuple[Any, MiddlewareStack, Seen]


async def test_requests_and_edits_while_serving(both: Both) -> None:
    """Every edit takes effect, in whatever way it is made."""
    app, stack, _ = both
    assert await marks(app) == ["a"]

    stack.add(generator)
    app.add_middleware(Mark, "b")
    assert await marks(app) == ["b", "generator", "a"]
    stack.add(second, outside_errors=True)
    assert await marks(app, "/broken") == ["second"]
    stack.remove(generator)
    app.user_middleware = [each for each in app.user_middleware if each.args != ("a",)]
    assert await marks(app) == ["second", "b"]


async def test_an_instrumentation_of_the_build_is_asked_in_each_build(
    make: Make, order: str, monkeypatch: Patch
) -> None:
    """A build that is wrapped after `install` is not gone round."""
    app, seen = make(mark("a")), Seen()
    if order == "instrumented first":
        builds_of_the_class(monkeypatch, app, seen)
    stack = MiddlewareStack.install(app)
    builds_of_the_class(monkeypatch, app, seen)
    stack.add(generator)

    assert await marks(app) == ["generator", "a"]
    assert seen == ["http"] * (2 if order == "instrumented first" else 1)


@pytest.mark.parametrize("wrap", [added_layers, added_layers_of_one])
async def test_an_instrumentation_of_added_layers_gets_each(
    make: Make, order: str, started: bool, wrap: Fake, monkeypatch: Patch
) -> None:
    """An `add_middleware` that is wrapped, on the class or the application, is not gone round."""
    app, seen = make(), Seen()
    if order == "instrumented first":
        wrap(monkeypatch, app, seen)
    stack = MiddlewareStack.install(app)
    if order == "installed first":
        wrap(monkeypatch, app, seen)
    if started:
        assert await marks(app) == []
    app.add_middleware(Mark, "b")

    assert await marks(app) == ["b"]
    assert seen == ["http"]
    assert len(stack) == 1


async def test_an_application_that_overrides_add_middleware(started: bool) -> None:
    """An override of a subclass is asked, and may change what is added."""

    class Application(Starlette):
        def add_middleware(self, cls: Any, /, *args: Any, **options: Any) -> None:
            self.added = cls
            super().add_middleware(cls, f"my {args[0]}", **options)

    app = Application(routes=ROUTES)
    stack = MiddlewareStack.install(app)
    if started:
        assert await marks(app) == []
    app.add_middleware(Mark, "b")

    assert await marks(app) == ["my b"]
    assert app.added is Mark
    stack.uninstall()
    assert type(app) is Application


async def test_add_middleware_by_way_of_the_type(make: Make) -> None:
    """`type(app).add_middleware(app, ...)` is an edit, too."""
    app = make()
    MiddlewareStack.install(app)
    assert await marks(app) == []
    type(app).add_middleware(app, Mark, "b")

    assert await marks(app) == ["b"]


async def test_an_uninstall_while_a_layer_is_added(make: Make) -> None:
    """A layer that takes the stack out while it is made gets the error, and nothing is changed."""
    app = make()
    stack = MiddlewareStack.install(app)
    assert await marks(app) == []

    def factory(_: ASGIApp) -> ASGIApp:
        stack.uninstall()
        raise AssertionError

    with pytest.raises(StackError, match="is being edited"):
        app.add_middleware(factory)

    app.add_middleware(Mark, "b")
    assert await marks(app) == ["b"]


async def test_a_layer_of_each_build_is_there_once(
    make: Make, order: str, started: bool, monkeypatch: Patch
) -> None:
    """What a build adds each time is not added again, however often the stack is built."""
    app, seen = make(mark("a")), Seen()
    if order == "instrumented first":
        layers_in_a_build(monkeypatch, app, seen)
    if started:
        app.middleware_stack = app.build_middleware_stack()
    stack = MiddlewareStack.install(app)
    layers_in_a_build(monkeypatch, app, seen)
    for _ in range(2):
        app.middleware_stack = None
        await request(app)

    assert len(stack) == (3 if order == "instrumented first" else 2)
    assert seen.count("build") > 1


def test_websockets_and_lifespan(both: Both) -> None:
    """Both reach the application, and handshakes go through the layers."""
    app, stack, _ = both
    with TestClient(app) as client:
        stack.add(mark("b"))
        with client.websocket_connect("/socket") as connection:
            assert [each.split(":")[0] for each in connection.receive_json()] == ["b", "a"]


async def test_uninstall(both: Both) -> None:
    """The application serves on as it did, instrumented; a started one takes no more layers."""
    app, stack, seen = both
    stack.add(generator)
    await marks(app)
    seen.clear()
    assert await marks(app) == ["generator", "a"]
    before = list(seen)
    seen.clear()
    stack.uninstall()

    assert await marks(app) == ["generator", "a"]
    assert seen == before
    with pytest.raises(RuntimeError, match="started"):
        app.add_middleware(Mark)
    app.middleware_stack = None
    assert await marks(app) == ["generator", "a"]
