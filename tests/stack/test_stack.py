"""Layers around any ASGI app that are edited while it serves."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, HTTPMWError, Layer, MiddlewareStack, StackError
from httpmw._chain import Chain
from httpmw.compat import BaseHTTPMiddleware
from tests.harness import PassThrough, explained, request

pytestmark = pytest.mark.unchecked("a stack looks whether the inner app of an adapter is its own")


class Mark:
    """A layer that appends its name to a header, and counts its requests."""

    made = 0

    def __init__(self, app: ASGIApp, name: str = "mark") -> None:
        Mark.made += 1
        self.app = app
        self.name = name
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        scope.setdefault("passed", []).append(f"{self.name}:{self.requests}")

        async def send_marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-mark", self.name.encode()))
            await send(message)

        await self.app(scope, receive, send_marked)


class Other(Mark):
    """Another class."""


async def generator(conn: Connection) -> Flow:
    response = yield
    response.headers.append("x-mark", "generator")


async def second(conn: Connection) -> Flow:
    response = yield
    response.headers.append("x-mark", "second")


def marking(name: str) -> Callable[[Connection], Flow]:
    async def function(conn: Connection) -> Flow:
        response = yield
        response.headers.append("x-mark", name)

    function.__name__ = name
    return function


def mark(name: str) -> Middleware:
    return Middleware(Mark, name)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def marks(stack: ASGIApp, **options: Any) -> list[str]:
    """Run a request and return its marks, the outermost layer's first."""
    server = await request(stack, **options)
    assert server.body == b"hello"
    return server.headers.getlist("x-mark")[::-1]


def names(stack: Any) -> list[str]:
    return [layer.name for layer in stack]


# -- what a layer is, and where it stands ------------------------------------------------------


async def test_first_layers_are_given_outermost_first() -> None:
    """The layers of the constructor stand in the order of a `middleware=` list."""
    stack = MiddlewareStack(app, [mark("a"), generator, mark("b")])

    assert await marks(stack) == ["a", "generator", "b"]


async def test_without_a_layer() -> None:
    """A stack without a layer is the app, and as true as that."""
    stack = MiddlewareStack(app)

    assert await marks(stack) == []
    assert (len(stack), bool(stack)) == (0, True)


async def test_add_is_outermost() -> None:
    """`add` puts a layer around those before, as `add_middleware` does."""
    stack = MiddlewareStack(app, [mark("a")])
    stack.add(mark("b"))
    stack.add(generator)

    assert await marks(stack) == ["generator", "b", "a"]


async def test_add_before_after_and_innermost() -> None:
    """`before` is outside of a layer, `after` is inside, `innermost` is inside of all."""
    stack = MiddlewareStack(app)
    middle = stack.add(mark("middle"))
    stack.add(mark("before"), before=middle)
    stack.add(mark("outermost"))
    stack.add(mark("after"), after=middle)
    stack.add(mark("innermost"), innermost=True)

    assert await marks(stack) == ["outermost", "before", "middle", "after", "innermost"]


def test_iteration_gives_layers_outermost_first() -> None:
    """To iterate over a stack gives what was added, under its name."""
    added = mark("a")
    stack = MiddlewareStack(app, [added, generator])

    assert [(layer.name, layer.middleware) for layer in stack] == [
        ("Mark", added),
        ("generator", generator),
    ]
    assert len(stack) == 2


@pytest.mark.parametrize(
    ("middleware", "name"),
    [
        (Middleware(Mark), "Mark"),
        (Middleware(lambda app: app), "<lambda>"),
        (Middleware(functools.partial(Mark, name="x")), "Mark"),
        (generator, "generator"),
        (functools.partial(generator), "generator"),
        (Middleware(HTTPMiddleware, dispatch=generator), "generator"),
        (Middleware(HTTPMiddleware, generator), "generator"),
        (Middleware(BaseHTTPMiddleware, dispatch=asyncio.sleep), "sleep"),
    ],
)
def test_a_layer_is_named_for_its_function_or_class(middleware: Any, name: str) -> None:
    """Without a `name=` a layer has the name by which its author knows it."""
    assert MiddlewareStack(app).add(middleware).name == name


def test_a_name_that_is_given() -> None:
    """`name=` is the layer's name."""
    assert MiddlewareStack(app).add(generator, name="mine").name == "mine"


def test_the_drawing_shows_the_order_and_what_is_fused() -> None:
    """`str(stack)` has a line for each layer, outermost first, and brackets what is fused."""
    stack = MiddlewareStack(app, [generator, second, mark("a"), generator])
    stack.add(mark("b"), name="cors")

    assert str(stack).splitlines() == [
        "  cors (Mark)",
        "┌ generator",
        "└ second",
        "  Mark",
        "  generator",
    ]
    assert str(MiddlewareStack(app)) == "  no layer"


# -- targets -----------------------------------------------------------------------------------


class Callables:
    async def method(self, conn: Connection) -> Flow:
        yield


HOLDER = Callables()
FACTORY = functools.partial(Mark, name="factory")
REGISTERED = mark("registered")


TARGETS: dict[str, tuple[Any, Any]] = {
    "class": (Middleware(Mark), Mark),
    "name of the class": (Middleware(Mark), "Mark"),
    "factory": (Middleware(FACTORY), FACTORY),
    "middleware object": (REGISTERED, REGISTERED),
    "function": (generator, generator),
    "name of the function": (generator, "generator"),
    "bound method": (HOLDER.method, HOLDER.method),
    "function of a registered layer": (Middleware(HTTPMiddleware, dispatch=generator), generator),
    "class of a function": (generator, HTTPMiddleware),
}


@pytest.mark.parametrize(("middleware", "target"), TARGETS.values(), ids=TARGETS)
def test_a_target_is_a_class_a_function_or_a_name(middleware: Any, target: Any) -> None:
    """A layer is found by whatever its author knows it by."""
    stack = MiddlewareStack(app, [Middleware(Other), middleware])

    stack.remove(target)

    assert names(stack) == ["Other"]


def test_a_target_is_the_layer_that_add_gave() -> None:
    """Of two layers of one class each is named by its `Layer`."""
    stack = MiddlewareStack(app)
    first = stack.add(mark("a"))
    stack.add(mark("b"))

    stack.remove(first)

    assert first not in list(stack)
    assert len(stack) == 1


def test_a_target_that_is_not_there() -> None:
    """The error names the target and lists what is there."""
    stack = MiddlewareStack(app, [mark("a"), generator])

    for edit in (stack.remove, stack.move, lambda target: stack.replace(target, generator)):
        with pytest.raises(StackError, match=r"no layer for str 'gzip'.*\n  Mark\n  generator"):
            edit("gzip")
    with pytest.raises(StackError, match="no layer for type 'Other'"):
        stack.add(generator, before=Other)


def test_a_target_that_is_there_twice() -> None:
    """The error says how many there are and lists them."""
    stack = MiddlewareStack(app, [mark("a"), mark("b"), generator])

    with pytest.raises(StackError, match=r"2 layers for type 'Mark'.*\n  Mark\n  Mark"):
        stack.remove(Mark)
    assert len(stack) == 3


def test_a_layer_that_was_removed_is_not_found() -> None:
    """A `Layer` names one layer, not another one made like it."""
    stack = MiddlewareStack(app)
    layer = stack.add(generator)
    stack.remove(layer)
    stack.add(generator)

    with pytest.raises(StackError, match="no layer for Layer 'generator'"):
        stack.remove(layer)


# -- edits -------------------------------------------------------------------------------------


async def test_remove() -> None:
    """A removed layer is not there for the next request."""
    stack = MiddlewareStack(app, [mark("a"), generator])
    stack.remove(Mark)

    assert await marks(stack) == ["generator"]


async def test_replace_keeps_the_place() -> None:
    """The new layer stands where the old one stood."""
    stack = MiddlewareStack(app, [mark("a"), generator, mark("b")])
    layer = stack.replace(generator, second)

    assert layer.name == "second"
    assert await marks(stack) == ["a", "second", "b"]


def test_replace_keeps_a_name_that_was_given() -> None:
    """A name that was given stays with the place, until another one is given."""
    stack = MiddlewareStack(app)
    stack.add(generator, name="cors")

    assert stack.replace("cors", second).name == "cors"
    assert stack.replace("cors", second, name="other").name == "other"


async def test_move() -> None:
    """A moved layer stands in its new place, and keeps its instance."""
    stack = MiddlewareStack(app, [mark("a"), generator, Middleware(Other, "b")])
    made = Mark.made

    stack.move(Mark, after=Other)
    assert await marks(stack) == ["generator", "b", "a"]
    stack.move(Mark, before=Other)
    assert await marks(stack) == ["generator", "a", "b"]
    stack.move(generator, innermost=True)
    assert await marks(stack) == ["a", "b", "generator"]
    stack.move(generator)
    assert await marks(stack) == ["generator", "a", "b"]
    assert Mark.made == made


def test_a_layer_cannot_be_moved_beside_itself() -> None:
    """The error names the layer."""
    stack = MiddlewareStack(app, [generator])

    with pytest.raises(StackError, match="'generator' cannot be moved to before or after itself"):
        stack.move(generator, after="generator")


def test_two_places_are_refused() -> None:
    """A layer has one place."""
    stack = MiddlewareStack(app, [generator, second])

    for edit in (functools.partial(stack.add, mark("a")), functools.partial(stack.move, second)):
        with pytest.raises(StackError, match="more than one of `before`, `after` and `innermost`"):
            edit(before=generator, innermost=True)
    assert names(stack) == ["generator", "second"]


def test_outside_errors_needs_an_application() -> None:
    """Around any app there is no error handler that a layer could be outside of."""
    with pytest.raises(StackError, match=r"`MiddlewareStack.install\(app\)`"):
        MiddlewareStack(app).add(generator, outside_errors=True)


def test_a_stack_around_an_app_cannot_be_uninstalled() -> None:
    """`uninstall` is for what `install` did."""
    with pytest.raises(StackError, match="cannot be uninstalled"):
        MiddlewareStack(app).uninstall()


def test_stack_errors_are_errors_of_httpmw() -> None:
    """A `StackError` is caught as an `HTTPMWError` and as a `ValueError`."""
    assert issubclass(StackError, HTTPMWError)
    assert issubclass(StackError, ValueError)


# -- what cannot be made -----------------------------------------------------------------------


async def coroutine(conn: Connection) -> None: ...


@pytest.mark.parametrize(
    ("middleware", "words"),
    [
        (Mark, r"`Middleware\(Mark\)`"),
        (None, r"`Middleware\(cls, option=...\)`"),
        (Layer("a", generator), "pass its `layer.middleware`"),
        (coroutine, "is an `async def` without a `yield`"),
        (Middleware(HTTPMiddleware), "no middleware function"),
        (Middleware(Mark, option=1), "unexpected keyword argument 'option'"),
        (Middleware(lambda app: None), "made None, a NoneType, instead of an ASGI app"),
    ],
)
async def test_a_layer_that_cannot_be_made_changes_nothing(middleware: Any, words: str) -> None:
    """The error is raised by the edit, and the layers are as before."""
    stack = MiddlewareStack(app, [generator])

    with pytest.raises(TypeError, match=words):
        stack.add(middleware)
    with pytest.raises(TypeError, match=words):
        stack.replace(generator, middleware)

    assert await marks(stack) == ["generator"]


def test_the_error_of_a_function_names_it() -> None:
    """A function that is none is named with its file and line."""
    with pytest.raises(TypeError) as caught:
        MiddlewareStack(app).add(coroutine)  # type: ignore[arg-type]

    explained(caught.value, coroutine, "`response = yield`")


# -- several edits as one ----------------------------------------------------------------------


async def test_edits_of_a_block_take_effect_together() -> None:
    """Until the block ends, requests see the layers as they were."""
    stack = MiddlewareStack(app, [mark("old")])

    with stack.edit() as draft:
        draft.remove(Mark)
        draft.add(mark("new"))
        draft.add(generator)
        assert await marks(stack) == ["old"]
        assert names(draft) == ["generator", "Mark"]
        assert names(stack) == ["Mark"]

    assert await marks(stack) == ["generator", "new"]


async def test_an_exception_out_of_the_block_leaves_everything_as_it_was() -> None:
    """The exception goes on, and no edit of the block has happened."""
    stack = MiddlewareStack(app, [mark("old")])

    with pytest.raises(KeyError), stack.edit() as draft:
        draft.remove(Mark)
        draft.add(generator)
        raise KeyError

    assert await marks(stack) == ["old"]
    stack.add(second)
    assert await marks(stack) == ["second", "old"]


async def test_an_edit_that_fails_and_is_caught_leaves_the_draft_as_it_was() -> None:
    """Who catches the error of one edit of a block keeps the others."""
    stack = MiddlewareStack(app, [mark("a")])

    with stack.edit() as draft:
        draft.add(generator)
        with pytest.raises(TypeError):
            draft.replace(generator, Middleware(Mark, option=1))
        with pytest.raises(StackError):
            draft.remove("nothing")

    assert await marks(stack) == ["generator", "a"]


def test_the_stack_itself_cannot_be_edited_inside_the_block() -> None:
    """An edit that would get lost is refused, and the error says what to edit."""
    stack = MiddlewareStack(app)

    with stack.edit() as draft:
        with pytest.raises(StackError, match="Edit the `draft`"):
            stack.add(generator)
        with pytest.raises(StackError, match="Edit the `draft`"), stack.edit():
            pass
        draft.add(generator)

    assert names(stack) == ["generator"]


def test_a_layer_that_edits_its_stack_while_it_is_made_is_refused() -> None:
    """The making of a layer is a part of an edit."""
    stack = MiddlewareStack(app)

    def factory(app: ASGIApp) -> ASGIApp:
        stack.add(generator)
        return app

    with pytest.raises(StackError, match="a layer is being made"):
        stack.add(Middleware(factory))
    assert names(stack) == []


def test_a_draft_is_over_with_its_block() -> None:
    """What is done to a draft too late is refused."""
    stack = MiddlewareStack(app)
    with stack.edit() as draft:
        pass

    with pytest.raises(StackError, match="this edit is over"):
        draft.add(generator)


# -- instances ---------------------------------------------------------------------------------


async def test_untouched_layers_keep_their_instances() -> None:
    """An edit makes the layers that it adds, and no other."""
    stack = MiddlewareStack(app, [mark("a"), generator, Middleware(Other, "b")])
    made = Mark.made
    server = await request(stack)
    assert server.scope["passed"] == ["a:1", "b:1"]

    stack.move(generator)
    stack.remove(generator)
    stack.add(generator, before=Other)
    with stack.edit() as draft:
        draft.move(Other)
        draft.add(second)

    server = await request(stack)
    assert server.scope["passed"] == ["b:2", "a:2"]
    assert Mark.made == made


async def test_a_subclass_of_httpmiddleware_keeps_its_state() -> None:
    """Its instance lives on while its functions are fused anew in every chain."""

    class Counting(HTTPMiddleware):
        count = 0

        async def dispatch(self, conn: Connection) -> Flow:
            self.count += 1
            response = yield
            response.headers.append("x-mark", f"count {self.count}")

    stack = MiddlewareStack(app, [Middleware(Counting)])
    assert await marks(stack) == ["count 1"]
    stack.add(generator)
    assert await marks(stack) == ["generator", "count 2"]
    stack.add(mark("a"), innermost=True)
    assert await marks(stack) == ["generator", "count 3", "a"]


def adapters(stack: MiddlewareStack) -> list[int]:
    """Tell how many functions each adapter of a stack has, the outermost first."""
    found = []
    inner: Any = stack.app
    while inner is not app:
        if isinstance(inner, HTTPMiddleware):
            functions, inner, _ = inner._httpmw
            found.append(len(functions))
        else:
            inner = inner.app
    return found


def test_neighbouring_functions_are_fused_in_every_chain() -> None:
    """However neighbours came to be, they are one adapter."""
    stack = MiddlewareStack(app, [generator, mark("a"), second])
    assert adapters(stack) == [1, 1]
    stack.remove(Mark)
    assert adapters(stack) == [2]
    stack.add(Middleware(HTTPMiddleware, dispatch=marking("third")), after=generator)
    assert adapters(stack) == [3]
    stack.add(mark("b"), before=second)
    assert adapters(stack) == [2, 1]
    stack.move(Mark)
    assert adapters(stack) == [3]


def test_the_drop_in_is_fused_with_its_neighbours() -> None:
    """Layers of `httpmw.compat` are fused as any other of httpmw."""

    async def dispatch(conn: Any, call_next: Any) -> Any:
        return await call_next(conn)

    stack = MiddlewareStack(app, [generator, Middleware(BaseHTTPMiddleware, dispatch=dispatch)])

    assert adapters(stack) == [2]


async def test_an_adapter_around_something_of_its_own_is_not_taken_apart() -> None:
    """A factory that puts more than one thing around the app stays as it was made."""

    def factory(app: ASGIApp) -> ASGIApp:
        return HTTPMiddleware(Mark(app, "inner"), generator)

    stack = MiddlewareStack(app, [second, Middleware(factory), mark("a")])
    stack.add(marking("third"), after=second)

    assert await marks(stack) == ["second", "third", "generator", "inner", "a"]


async def test_a_factory_that_gives_its_app_back_is_no_layer() -> None:
    """A factory may decide that nothing is to be done."""
    stack = MiddlewareStack(app, [mark("a"), Middleware(lambda app: app), generator])
    assert await marks(stack) == ["a", "generator"]
    stack.remove(generator)
    assert await marks(stack) == ["a"]


async def test_inner_apps_look_like_coroutine_functions() -> None:
    """A layer that asks what kind of ASGI app it has gets the right answer."""
    seen: list[ASGIApp] = []

    def factory(app: ASGIApp) -> ASGIApp:
        seen.append(app)
        return app

    stack = MiddlewareStack(app, [Middleware(factory)])
    ask = (
        inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction
    )

    assert ask(seen[0])
    assert inspect.iscoroutinefunction(stack.__call__)


# -- requests ----------------------------------------------------------------------------------


class Waiting:
    """A layer in which a request waits until it is let go on."""

    def __init__(self, app: ASGIApp, arrived: anyio.Event, go: anyio.Event) -> None:
        self.app = app
        self.arrived = arrived
        self.go = go

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.arrived.set()
        await self.go.wait()
        await self.app(scope, receive, send)


Edit = Callable[[MiddlewareStack], Any]
EDITS: dict[str, Edit] = {
    "the layer itself is removed": lambda stack: stack.remove(Waiting),
    "the next one is removed": lambda stack: stack.remove(Mark),
    "one is put in between": lambda stack: stack.add(mark("new"), after=Waiting),
    "functions come and go": lambda stack: stack.replace(generator, second),
    "the order is turned around": lambda stack: stack.move(generator),
    "all go": lambda stack: [stack.remove(layer) for layer in list(stack)],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_a_request_keeps_the_layers_it_began_with(edit: Edit) -> None:
    """What is edited under a request that is on its way inward does not touch it."""
    arrived, go = anyio.Event(), anyio.Event()
    stack = MiddlewareStack(
        app, [Middleware(Waiting, arrived, go), mark("a"), generator, Middleware(Other, "b")]
    )
    found: list[list[str]] = []
    before = names(stack)

    async def run() -> None:
        found.append(await marks(stack))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await arrived.wait()
        edit(stack)
        go.set()

    assert found == [["a", "generator", "b"]]
    assert names(stack) != before


async def test_a_removed_instance_goes_with_its_last_request() -> None:
    """A layer lives as long as a request needs it, and no longer."""
    arrived, go = anyio.Event(), anyio.Event()
    stack = MiddlewareStack(app, [Middleware(Waiting, arrived, go), mark("a")])
    instances = [weakref.ref(slot.instance) for slot in stack._chain.slots]

    async with anyio.create_task_group() as group:
        group.start_soon(request, stack)
        await arrived.wait()
        with stack.edit() as draft:
            draft.remove(Waiting)
            draft.remove(Mark)
        gc.collect()
        assert all(instance() is not None for instance in instances)
        go.set()

    gc.collect()
    assert [instance() for instance in instances] == [None, None]


@pytest.mark.parametrize("copy", [dict, lambda scope: {**scope, "path": "/other"}])
async def test_a_layer_may_copy_the_scope(copy: Callable[[Scope], Scope]) -> None:
    """A layer that hands a copy of the scope on changes nothing for the layers inside."""

    class Copying(PassThrough):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(copy(scope), receive, send)

    stack = MiddlewareStack(app, [mark("a"), Middleware(Copying), generator, mark("b")])

    assert await marks(stack) == ["a", "generator", "b"]


async def test_a_layer_may_make_a_new_scope() -> None:
    """A scope of known keys only leads on through the layers that there are."""

    class Renewing(PassThrough):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            known = ("type", "asgi", "http_version", "method", "path", "headers", "query_string")
            await self.app({key: scope[key] for key in known}, receive, send)

    stack = MiddlewareStack(app, [mark("a"), Middleware(Renewing), mark("b")])
    stack.add(generator, after=Renewing)
    stack.add(second, innermost=True)

    assert await marks(stack) == ["a", "generator", "b", "second"]


async def test_a_removed_layer_may_make_a_new_scope() -> None:
    """Where a request has lost its chain under an edit, it still arrives."""
    arrived, go = anyio.Event(), anyio.Event()

    class Renewing(Waiting):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            kept = {key: value for key, value in scope.items() if not key.startswith("httpmw")}
            await super().__call__(kept, receive, send)

    stack = MiddlewareStack(app, [Middleware(Renewing, arrived, go), mark("a")])
    found: list[list[str]] = []

    async def run() -> None:
        found.append(await marks(stack))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await arrived.wait()
        stack.remove(Renewing)
        go.set()

    assert found == [["a"]]


async def test_a_stack_around_a_stack() -> None:
    """Several stacks in one request do not know of each other."""
    inner = MiddlewareStack(app, [mark("c"), generator])
    outer = MiddlewareStack(inner, [mark("a"), second])
    assert await marks(outer) == ["a", "second", "c", "generator"]
    inner.remove(Mark)
    outer.add(mark("b"), innermost=True)
    assert await marks(outer) == ["a", "second", "b", "generator"]


async def test_a_request_that_enters_twice() -> None:
    """A layer may send the request through the whole stack again."""

    class Again(PassThrough):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope.pop("again", True):
                scope["again"] = False
                await stack(scope, receive, send)
            else:
                await self.app(scope, receive, send)

    stack = MiddlewareStack(app, [mark("a"), Middleware(Again), mark("b")])

    assert await marks(stack) == ["a", "a", "b"]


async def test_one_scope_for_two_requests() -> None:
    """A scope that is used again leads through the layers of the later time."""
    stack = MiddlewareStack(app, [mark("a")])
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {}}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await stack(scope, None, send)  # type: ignore[arg-type]
    stack.add(mark("b"))
    await stack(scope, None, send)  # type: ignore[arg-type]

    assert [name for name, _ in sent[0]["headers"]].count(b"x-mark") == 1
    assert [name for name, _ in sent[2]["headers"]].count(b"x-mark") == 2


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "custom"])
async def test_other_scopes_pass_through_all_asgi_layers(kind: str) -> None:
    """Every ASGI layer sees WebSocket and lifespan scopes; middleware functions do not."""
    seen: list[Any] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["type"], scope["passed"]))

    stack = MiddlewareStack(inner, [mark("a"), generator, mark("b")])
    stack.add(mark("c"))

    await stack({"type": kind}, None, None)  # type: ignore[arg-type]

    assert seen == [(kind, ["c:1", "a:1", "b:1"])]


async def test_an_exception_of_a_layer_is_the_one_that_it_raised() -> None:
    """A stack puts nothing between a layer and who called it."""
    error = KeyError("a")

    async def failing(conn: Connection) -> Flow:
        raise error
        yield

    stack = MiddlewareStack(app, [mark("a"), failing])

    with pytest.raises(KeyError) as caught:
        await request(stack)
    assert caught.value is error


def test_tools_find_their_way_inward() -> None:
    """By attributes called `app` one comes from the stack through all layers to the app."""
    stack = MiddlewareStack(app, [mark("a"), generator, mark("b")])
    stack.add(Middleware(Other), innermost=True)
    found = []
    inner: Any = stack
    while inner is not app:
        inner = inner.app
        found.append(type(inner).__name__)

    assert [name for name in found if name != "function"] == [
        "Mark",
        "HTTPMiddleware",
        "Mark",
        "Other",
    ]


# -- any sequence of edits ---------------------------------------------------------------------


class Model:
    """The same edits on a plain list of names."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.number = 0
        self.names: list[str] = []

    def new(self) -> tuple[str, Any]:
        self.number += 1
        name = f"n{self.number}"
        kinds = [lambda: mark(name), lambda: marking(name), lambda: self.registered(name)]
        return name, self.rng.choice(kinds)()

    def registered(self, name: str) -> Middleware:
        return Middleware(HTTPMiddleware, dispatch=marking(name))

    def step(self, layers: Any) -> None:
        """Do one edit to *layers* and to the names."""
        chosen = self.rng.choice(self.names) if self.names else None
        kind = self.rng.choice(["add", "beside", "innermost", "remove", "replace", "move"])
        if chosen is None or kind == "add":
            name, new = self.new()
            layers.add(new, name=name)
            self.names.insert(0, name)
        elif kind == "beside":
            name, new = self.new()
            side = self.rng.choice(["before", "after"])
            layers.add(new, name=name, **{side: chosen})
            self.names.insert(self.names.index(chosen) + (side == "after"), name)
        elif kind == "innermost":
            name, new = self.new()
            layers.add(new, name=name, innermost=True)
            self.names.append(name)
        elif kind == "remove":
            layers.remove(chosen)
            self.names.remove(chosen)
        elif kind == "replace":
            name, new = self.new()
            layers.replace(chosen, new, name=name)
            self.names[self.names.index(chosen)] = name
        else:
            self.names.remove(chosen)
            beside = self.rng.choice([None, *self.names])
            layers.move(chosen, after=beside)
            self.names.insert(0 if beside is None else self.names.index(beside) + 1, chosen)


@pytest.mark.parametrize("seed", range(10))
async def test_any_sequence_of_edits_gives_the_order_of_a_list(seed: int) -> None:
    """After every edit of a random sequence the layers run in the order of a list edited alike."""
    model = Model(random.Random(seed))
    stack = MiddlewareStack(app)
    for _ in range(40):
        if model.rng.random() < 0.3:
            with stack.edit() as draft:
                for _ in range(3):
                    model.step(draft)
        else:
            model.step(stack)
        assert names(stack) == model.names
        assert await marks(stack) == model.names


# -- threads and memory ------------------------------------------------------------------------


def test_editors_in_many_threads_are_serialised() -> None:
    """No edit of one thread gets lost in that of another."""
    stack = MiddlewareStack(app)
    begin = threading.Barrier(8)

    def edit(number: int) -> None:
        begin.wait()
        for turn in range(20):
            stack.add(mark(""), name=f"{number} {turn}")
            with stack.edit() as draft:
                draft.add(mark(""), name=f"{number} {turn} once more")
                draft.remove(f"{number} {turn}")

    threads = [threading.Thread(target=edit, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(names(stack)) == sorted(f"{n} {t} once more" for n in range(8) for t in range(20))


def test_an_editor_waits_for_the_block_of_another() -> None:
    """An edit in one thread is made after the block that is open in another."""
    stack = MiddlewareStack(app)
    began, edited = threading.Event(), threading.Event()

    def edit() -> None:
        began.set()
        stack.add(second)
        edited.set()

    thread = threading.Thread(target=edit)
    with stack.edit() as draft:
        thread.start()
        began.wait()
        draft.add(generator)
        assert not edited.is_set()
    thread.join()

    assert names(stack) == ["second", "generator"]


@pytest.fixture
def only_references() -> Iterator[None]:
    """Leave everything to reference counts."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("only_references")
async def test_ten_thousand_edits_leave_nothing_behind() -> None:
    """What was removed is freed at once, without the garbage collector."""
    stack = MiddlewareStack(app, [mark("stays"), generator])
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def factory(app: ASGIApp) -> ASGIApp:
        instance = Mark(app, "goes")
        alive.add(instance)
        alive.add(app)
        return instance

    def edit() -> None:
        stack.add(Middleware(factory), after="Mark", name="goes")
        stack.add(second)
        with stack.edit() as draft:
            draft.move("goes", innermost=True)
            draft.replace("goes", Middleware(factory))
        stack.remove("goes")
        stack.remove(second)

    for _ in range(20):
        edit()
    assert await marks(stack) == ["stays", "generator"]
    objects = len(gc.get_objects())
    chains = sum(isinstance(each, Chain) for each in gc.get_objects())
    for _ in range(2_000):
        edit()

    assert len(alive) == 0
    assert sum(isinstance(each, Chain) for each in gc.get_objects()) == chains
    # Those of the test itself: what the loop above has bound.
    assert len(gc.get_objects()) - objects < 20


@pytest.mark.usefixtures("only_references")
async def test_a_stack_frees_its_layers_with_itself() -> None:
    """A stack that nobody refers to any more is gone, and its layers with it."""
    stack = MiddlewareStack(app, [mark("a"), generator, mark("b")])
    instances = [weakref.ref(slot.instance) for slot in stack._chain.slots]
    assert await marks(stack) == ["a", "generator", "b"]

    del stack

    assert [instance() for instance in instances] == [None] * 3
