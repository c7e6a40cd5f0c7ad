# The layers of a stack in one order, and how a request finds its way through them.
#
# Words: a *layer* is one middleware around everything further in; a *slot* is a layer in its
# stack, with the instance that was made for it; a *link* is what that instance has for its inner
# app; a *chain* is one order of slots, with where each link leads in it.
#
# Rule 1: a chain is never changed. It is published by one assignment, and a request reads it once,
# where it enters; it takes no lock.
# Rule 2: a request keeps its chain in the scope, under the key of its stack, and each link looks
# up there where it leads. So a scope that is copied, a sub-application with a stack of its own and
# a layer that is removed under a request are all the same case. A link that has led to one place
# in all chains so far, since the application has started, has no need to look.
# Rule 3: an instance is made once, around its link, and lives as long as a chain has it. What is
# fused is made for each chain: an adapter has no state of its own.
# Rule 4: nothing that a chain is made of refers back to the chain, so that the last request frees
# it.

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from . import _errors
from ._adapter import Dispatch, HTTPMiddleware, layer_of
from ._exchange import Functions, fused
from ._handshake import Handshakes


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """
    One layer of a `MiddlewareStack`; it names its layer in every later edit.

    Attributes:
        name: The name it was given, or that of its function or class.
        middleware: What was added: a `Middleware` object or a middleware function.
    """

    name: str
    middleware: Middleware | Dispatch


Target: TypeAlias = Layer | str | Middleware | Callable[..., Any]
"""
What names a layer: itself, its name, its class or factory, its function, its `Middleware` object.
"""


class Slot(NamedTuple):
    layer: Layer
    named: bool
    # What Starlette's `user_middleware` shows, whatever was added.
    spec: Middleware
    instance: ASGIApp
    link: Link
    # Where the instance is an adapter and nothing else: what it runs.
    functions: Functions
    handshakes: Handshakes | None
    # Whether it stands around the application's own error handler.
    outside: bool


class Nowhere:
    # Where the layers of an application lead before it has started.

    def __init__(self, app: object) -> None:
        self._app = app

    async def __call__(self, *_: object) -> None:
        raise _errors.not_started(self._app)


class Link(NamedTuple):
    name: str
    call: ASGIApp
    # Tells it where it leads in the chain that is published next, for requests that enter at the
    # stack and for those that come in late.
    lead: Callable[[ASGIApp, ASGIApp], None]


Table: TypeAlias = dict[str, ASGIApp]

# Where a table says that its request has come through the layers outside of the application's
# error handler: the outermost layer inside of it.
INSIDE: Final = ""


@dataclass(frozen=True, eq=False, slots=True)
class Chain:
    slots: tuple[Slot, ...]
    # Where a request enters, and where its links lead.
    app: ASGIApp
    table: Table
    # The same for one that comes in only behind the application's error handler: layers that
    # belong outside of it are then the outermost ones inside.
    late_app: ASGIApp
    late_table: Table

    @property
    def has_outside(self) -> bool:
        return self.table is not self.late_table


F = TypeVar("F", bound=Callable[..., Any])

if sys.version_info >= (3, 12):
    marked: Final = inspect.markcoroutinefunction
else:
    from asyncio import coroutines

    def marked(function: F) -> F:
        # As `inspect.markcoroutinefunction`, which came later.
        function._is_coroutine = coroutines._is_coroutine  # type: ignore[attr-defined]  # pyrefly: ignore[missing-attribute]
        return function


def make(key: str, number: int, middleware: Any, name: str | None, *, outside: bool) -> Slot:
    """
    Make a layer around its link, in the stack that has this key.
    """
    if isinstance(middleware, Middleware):
        spec = middleware
    elif isinstance(middleware, type | Layer) or not callable(middleware):
        raise _errors.not_a_layer(middleware)
    else:
        spec = Middleware(HTTPMiddleware, dispatch=middleware)
    link = _link(key, sys.intern(str(number)))
    cls, args, kwargs = spec
    instance = cls(link.call, *args, **kwargs)
    if not callable(instance):
        raise _errors.no_instance(spec, instance)
    functions, inner, handshakes = fused(instance)
    # One that has something of its own further in stays as it was made.
    functions = functions if inner is link.call else ()
    layer = Layer(_name(spec) if name is None else name, middleware)
    return Slot(layer, name is not None, spec, instance, link, functions, handshakes, outside)


# Whoever wants to look at the instances of each order, the outermost first; see `middleware`.
watchers: Final[list[Callable[[Sequence[object]], None]]] = []


def chain(slots: Sequence[Slot], inner: ASGIApp, frame: ASGIApp | None) -> Chain:
    """
    Put slots between a frame, where there is one, and an inner app.
    """
    for watch in watchers:
        watch([slot.instance for slot in slots])
    inside = [slot for slot in slots if not slot.outside]
    outside = slots[: len(slots) - len(inside)]
    table: Table = {}
    late_app = first = _nest(inside, inner, table)
    late_table = table
    if outside:
        late_table = table.copy()
        late_app = _nest(outside, first, late_table)
        table[INSIDE] = first
    app = late_app if frame is None else _nest(outside, frame, table)
    for slot in slots:
        late = late_table[slot.link.name]
        slot.link.lead(table.get(slot.link.name, late), late)
    return Chain(tuple(slots), app, table, late_app, late_table)


def _link(key: str, name: str) -> Link:
    # A function that hands its arguments on costs half of what a coroutine does; marked as what it
    # stands for, as there are layers that ask.
    # The attributes are a dict of its own, so that the function does not refer to itself.
    last: dict[str, Any] = {}
    only: ASGIApp | None = None

    def call(scope: Scope, receive: Receive, send: Send) -> Any:
        app = only
        if app is None:
            app = looked_up(scope)
        return app(scope, receive, send)

    def looked_up(scope: Scope) -> Any:
        try:
            return scope[key][name]
        except KeyError:
            # A layer has made a new scope out of known keys: where the link led at last.
            return last["app"]

    def lead(app: ASGIApp, late_app: ASGIApp) -> None:
        nonlocal only
        # It is called before the chain is published: a request that still finds the old value is
        # in a chain where it holds.
        is_first = isinstance(last.get("app"), Nowhere | None)
        is_only = app is late_app and (is_first or app is only)
        only = app if is_only else None
        last["app"] = late_app

    call.__dict__ = last
    return Link(name, marked(call), lead)


def _nest(slots: Sequence[Slot], app: ASGIApp, table: Table) -> ASGIApp:
    """
    Put the slots around *app*: note where their links lead, and give the outermost app.
    """
    for slot in reversed(slots):
        table[slot.link.name] = app
        if slot.functions:
            # Past the link: an adapter is made for one chain, and takes its neighbours over.
            app = layer_of(slot.functions, app, slot.handshakes)
        else:
            app = slot.instance
    return app


def find(slots: Sequence[Slot], target: Target) -> int:
    found = [index for index, slot in enumerate(slots) if _is_meant(slot, target)]
    if len(found) == 1:
        return found[0]
    drawn = draw(slots, has_frame=any(slot.outside for slot in slots))
    if found:
        raise _errors.layer_found_twice(target, len(found), drawn)
    raise _errors.layer_not_found(target, drawn)


def _is_meant(slot: Slot, target: Target) -> bool:
    if isinstance(target, Layer):
        return slot.layer is target
    if isinstance(target, str):
        return slot.layer.name == target
    # Two bound methods of one object are equal, and not the same.
    return target is slot.spec or target in (slot.spec.cls, _dispatch(slot.spec))


def _dispatch(spec: Middleware) -> Any:
    """
    Give the function of a layer that is registered with a class of httpmw, or of that style.
    """
    if not hasattr(spec.cls, "dispatch"):
        return None
    dispatch = spec.kwargs.get("dispatch", spec.args[0] if spec.args else None)
    return dispatch if callable(dispatch) else None


def _name(spec: Middleware) -> str:
    subject: Any = _dispatch(spec) or spec.cls
    while isinstance(subject, functools.partial):
        subject = subject.func
    return str(getattr(subject, "__name__", type(subject).__name__))


def draw(slots: Sequence[Slot], *, has_frame: bool) -> str:
    """
    Write the layers down, the outermost first; those that are fused are bracketed.
    """
    lines: list[str] = []
    for index, slot in enumerate(slots):
        if has_frame and not slot.outside and (not index or slots[index - 1].outside):
            lines.append("  ServerErrorMiddleware")
        around, inside = (
            bool(slot.functions)
            and 0 <= other < len(slots)
            and bool(slots[other].functions)
            and slots[other].outside == slot.outside
            for other in (index - 1, index + 1)
        )
        bracket = {(False, True): "┌", (True, True): "│", (True, False): "└"}.get(
            (around, inside), " "
        )
        kind = _name(slot.spec)
        named = slot.layer.name if slot.layer.name == kind else f"{slot.layer.name} ({kind})"
        lines.append(f"{bracket} {named}")
    if has_frame:
        if not slots or slots[-1].outside:
            lines.append("  ServerErrorMiddleware")
        lines.append("  ExceptionMiddleware")
    return "\n".join(lines) or "  no layer"
