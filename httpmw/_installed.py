# A stack in the place of an application's layers.
#
#   app.__call__ ─▶ frame: ServerErrorMiddleware, ... ─▶ core ─▶ layers ─▶ ExceptionMiddleware, ...
#
# and where there are layers outside of the error handler, the stack itself comes first:
#
#   app.__call__ ─▶ stack ─▶ layers ─▶ frame ─▶ core ─▶ layers ─▶ ExceptionMiddleware, ...
#
# Rule 1: the frame, which is what an application puts around its layers and inside of them, is
# built by the application's own `build_middleware_stack`, whoever has overridden it: while it runs,
# its thread finds the core in `user_middleware`, and nothing else.
# Rule 2: every door is watched, by a class that is put before the application's own. A build that
# was begun before `install` and ends after it is the reason: nothing else sees that it sets
# `middleware_stack`.
# Rule 3: once a request has found a `middleware_stack`, there is always one.
# Rule 4: whoever wraps `__call__`, `build_middleware_stack`, `add_middleware` or `Middleware`, on
# the class or on the application, before `install` or after it, is asked as without a stack. So
# methods of the class are looked up when they are called, and the layers that are added come by
# way of them; and what is in `user_middleware` during a build is a plain function, which takes any
# attribute: instrumentation sets `__call__` on whatever a `Middleware` has for its class.

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from threading import get_ident
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast, overload

from starlette import applications
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from . import _errors
from ._chain import INSIDE, Chain, Nowhere, Slot, marked

if TYPE_CHECKING:
    from starlette.applications import Starlette


class Stack(Protocol):
    """
    What an installation needs of its stack, which is made with the application and its layers.
    """

    _chain: Chain
    _installation: Installation | None
    _key: str
    _lock: threading.RLock

    def __init__(self, app: ASGIApp, middleware: Iterable[Middleware], /) -> None: ...
    def _read(self) -> Sequence[Slot]: ...
    def _editing(self) -> AbstractContextManager[list[Slot]]: ...
    def _make(self, middleware: Middleware, /) -> Slot: ...
    def _surround(self, frame: ASGIApp, inner: ASGIApp) -> None: ...
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]: ...


S = TypeVar("S", bound=Stack)

# Where an application has its installation.
_PLACE: Final = "_httpmw_installation"

# Instrumentation may have put a subclass in the place of the class, of which FastAPI is none.
_Application: Final = next(
    cls for cls in applications.Starlette.__mro__ if cls.__module__ == applications.__name__
)

_installing: Final = threading.RLock()


def install(cls: type[S], app: Starlette) -> S:
    if not isinstance(app, _Application):
        raise _errors.not_an_application(app)
    with _installing:
        installation = vars(app).get(_PLACE)
        if installation is None:
            installation = Installation(cls, app)
            installation.enter()
        return cast(S, installation.stack)


class Installation:
    """
    What one application and its stack know of each other.
    """

    def __init__(self, cls: type[Stack], app: Starlette) -> None:
        self.app = app
        self.cls = type(app)
        # What others have put on the application, before the methods of its class.
        self.overrides = {name: vars(app)[name] for name in _METHODS if name in vars(app)}
        self.is_over = False
        # The threads that do this just now.
        self.building: int | None = None
        self.adding: int | None = None
        self.core: Any = None
        self.frame: ASGIApp | None = None
        self.user_middleware = UserMiddleware(self)
        self.stack = cls(Nowhere(app), list(app.user_middleware))
        self.stack._installation = self

    def enter(self) -> None:
        """
        Put the watching class before the application's own, and the stack in its place.
        """
        attributes = vars(self.app)
        left = before = list(self.app.user_middleware)
        attributes[_PLACE] = self
        for name in self.overrides:
            del attributes[name]
        self.watching, self.while_adding = _watching(self.cls)
        self.app.__class__ = self.watching
        try:
            left = attributes.pop("user_middleware")
            if left != before:  # edited meanwhile
                self.adopt(left)
            if attributes["middleware_stack"] is not None:
                self.app.middleware_stack = self.app.build_middleware_stack()
        except BaseException:
            self._leave(left)
            raise

    def remove(self) -> None:
        """
        Give the application back.
        """
        self._leave([slot.spec for slot in self.stack._read()])

    def _leave(self, layers: list[Middleware]) -> None:
        attributes = vars(self.app)
        # Hidden by the watching class until that is gone.
        attributes["user_middleware"] = layers
        attributes.update(self.overrides)
        self.is_over = True
        self.app.__class__ = self.cls
        del attributes[_PLACE]

    def method(self, name: str) -> Callable[..., Any]:
        """
        Give a method as the application would have it without a stack.
        """
        override: Callable[..., Any] | None = self.overrides.get(name)
        return override or MethodType(getattr(self.cls, name), self.app)

    # ------------------------------------------------------------------ the frame

    def enter_core(self, app: ASGIApp) -> Any:
        self.core = make_core(self.stack, app)
        return self.core

    def build(self, builder: Callable[[], ASGIApp]) -> ASGIApp:
        """
        Have the application build its frame, and put the layers into it.
        """
        with self.stack._lock:
            # The other builders are those that have got this one before and call it now.
            if self.is_over or self.building is not None:
                return builder()
            frame = self._build_with_core(builder)
            self.core.frame = self.frame = frame
            self.stack._surround(frame, self.core.inner)
            return frame

    def _build_with_core(self, builder: Callable[[], ASGIApp]) -> ASGIApp:
        before, self.core = self.core, None
        self.building = get_ident()
        try:
            frame = builder()
            if self.core is None:
                raise _errors.layers_left_out(builder)
        except BaseException:
            self.core = before
            raise
        finally:
            self.building = None
        return frame

    @property
    def built(self) -> ASGIApp | None:
        """
        What the application has as its `middleware_stack`.
        """
        app: ASGIApp | None = vars(self.app)["middleware_stack"]
        return app

    def place(self, app: ASGIApp | None) -> None:
        """
        Somebody puts *app* where the application has its `middleware_stack`.
        """
        with self.stack._lock:
            vars(self.app)["middleware_stack"] = self._in_place_of(app)

    def _in_place_of(self, app: ASGIApp | None) -> ASGIApp | None:
        if app is None:
            # It is to be built again. By the next request, but not with a gap before it.
            return None if self.built is None else self.rebuild
        if self._find(app) is None and isinstance(app, ServerErrorMiddleware):
            # Built without the stack: begun before `install`, and ended after it.
            self.app.build_middleware_stack()
        elif not self._is_ours(app):
            return app
        return self._first(self.stack._chain)

    def prepare(self, chain: Chain) -> None:
        """
        Get ready for a chain that is published next.
        """
        if self.core is not None:
            self.core.app = chain.table.get(INSIDE, chain.late_app)
        if self._is_ours(self.built):
            vars(self.app)["middleware_stack"] = self._first(chain)

    def _first(self, chain: Chain) -> ASGIApp | None:
        return self.stack if chain.has_outside else self.frame

    def _is_ours(self, app: Any) -> bool:
        """
        Whether *app* is what stands here without anybody else's doing.
        """
        if app is None:
            return False
        return app in (self.stack, self.frame) or getattr(self._find(app), "frame", None) is app

    async def rebuild(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.stack._lock:
            if self.built == self.rebuild:
                self.app.middleware_stack = self.app.build_middleware_stack()
        await cast(ASGIApp, self.built)(scope, receive, send)

    def _find(self, app: Any) -> Any:
        """
        Look inward from *app* for the stack or a core of it.
        """
        seen: list[Any] = []
        while app is not None and not any(app is each for each in seen):
            if app is self.stack or getattr(app, "stack", None) is self.stack:
                return app
            seen.append(app)
            app = getattr(app, "app", None)
        return None

    # ------------------------------------------------------------------ the layers

    def layers(self) -> list[Middleware]:
        return [slot.spec for slot in self.stack._read() if not slot.outside]

    def add(self, adder: Callable[..., None], /, *args: Any, **kwargs: Any) -> None:
        """
        Have the application add a layer to its `user_middleware`, though it has started.
        """
        with self.stack._lock, self._as_if_not_started():
            adder(*args, **kwargs)

    @contextmanager
    def _as_if_not_started(self) -> Iterator[None]:
        if self.is_over or self.adding is not None:
            yield
            return
        self.adding = get_ident()
        self.app.__class__ = self.while_adding
        try:
            yield
        finally:
            self.adding = None
            if not self.is_over:
                self.app.__class__ = self.watching

    def adopt(self, layers: Iterable[Middleware]) -> None:
        """
        Make these the layers inside of the error handler; those that are there already stay.
        """
        with self.stack._editing() as slots:
            outside = [slot for slot in slots if slot.outside]
            kept = slots[len(outside) :]
            if self.building == get_ident():
                layers = _once(layers, [slot.spec for slot in kept])
            slots[:] = outside + [self._kept_or_made(kept, each) for each in layers]

    def _kept_or_made(self, kept: list[Slot], layer: Middleware) -> Slot:
        for index, slot in enumerate(kept):
            if slot.spec is layer:
                return kept.pop(index)
        return self.stack._make(layer)


def _core_of(installation: Installation) -> Callable[[ASGIApp], Any]:
    def core(app: ASGIApp) -> Any:  # no bound method: see rule 4
        return installation.enter_core(app)

    return core


def _once(layers: Iterable[Middleware], before: list[Middleware]) -> list[Middleware]:
    """
    Leave out what a build adds each time it runs, and has added before.
    """
    known = [tuple(each) for each in before]
    return [each for each in layers if each in before or tuple(each) not in known]


def make_core(stack: Stack, inner: ASGIApp) -> Any:
    """
    Make what stands where the frame ends on the way inward, and the layers begin.
    """
    key = stack._key

    def core(scope: Scope, receive: Receive, send: Send) -> Any:
        if key in scope:
            app = scope[key].get(INSIDE)
            if app is not None:
                return app(scope, receive, send)
        # Not come through the stack: because nothing stands outside, or because the request was
        # on its way when that came, or because somebody has put the frame into something else.
        chain = stack._chain
        scope[key] = chain.late_table
        return chain.late_app(scope, receive, send)

    core.__dict__.update(stack=stack, inner=inner, frame=None)
    return marked(core)


class UserMiddleware(MutableSequence[Middleware]):
    """
    The layers of an application as its `user_middleware`: a change of it is an edit of the stack.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def _items(self) -> list[Middleware]:
        installation = self._installation
        if installation.building == get_ident():
            return [Middleware(_core_of(installation))]
        return installation.layers()

    def _change(self, change: Callable[[list[Middleware]], object]) -> None:
        installation = self._installation
        with installation.stack._lock:
            layers = installation.layers()
            change(layers)
            installation.adopt(layers)

    def __len__(self) -> int:
        return len(self._items())

    @overload
    def __getitem__(self, index: int) -> Middleware: ...

    @overload
    def __getitem__(self, index: slice) -> list[Middleware]: ...

    def __getitem__(self, index: int | slice) -> Middleware | list[Middleware]:
        return self._items()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._change(lambda layers: layers.__setitem__(index, value))

    def __delitem__(self, index: int | slice) -> None:
        self._change(lambda layers: layers.__delitem__(index))

    def insert(self, index: int, value: Middleware) -> None:
        self._change(lambda layers: layers.insert(index, value))

    def clear(self) -> None:
        self._change(lambda layers: layers.clear())

    def extend(self, values: Iterable[Middleware]) -> None:
        added = list(values)
        self._change(lambda layers: layers.extend(added))

    def reverse(self) -> None:
        self._change(lambda layers: layers.reverse())

    def sort(self, **options: Any) -> None:
        self._change(lambda layers: layers.sort(**options))

    def copy(self) -> list[Middleware]:
        return self._items()

    def __iter__(self) -> Iterator[Middleware]:
        return iter(self._items())

    def __add__(self, other: list[Middleware]) -> list[Middleware]:
        return self._items() + other

    def __radd__(self, other: list[Middleware]) -> list[Middleware]:
        return other + self._items()

    def __eq__(self, other: object) -> bool:
        return self._items() == (list(other) if isinstance(other, UserMiddleware) else other)

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return repr(self._items())


class _MiddlewareStack:
    # Without `__get__`, so that a request reads the attribute as quickly as ever.

    def __set__(self, app: Any, value: ASGIApp | None) -> None:
        vars(app)[_PLACE].place(value)


class _MiddlewareStackWhileAdding(_MiddlewareStack):
    # An application that has started takes no layer, and sees that by this attribute.

    def __get__(self, app: Any, _: object = None) -> ASGIApp | None:
        installation: Installation = vars(app)[_PLACE]
        return None if installation.adding == get_ident() else installation.built


class _Method:
    """
    A method of an application that others may override, on its class or on itself.
    """

    def __init__(self, perform: Callable[..., Any]) -> None:
        self._perform = perform

    def __set_name__(self, _: object, name: str) -> None:
        self._name = name

    def __get__(self, app: Any, _: object = None) -> Any:
        if app is None:  # of the class, where it takes the application as its first argument
            return lambda app, *args, **kwargs: self.__get__(app)(*args, **kwargs)
        installation: Installation = vars(app)[_PLACE]
        # The method of now, not that of the call: who overrides it again calls this one.
        return partial(self._perform, installation, installation.method(self._name))

    def __set__(self, app: Any, override: Callable[..., Any]) -> None:
        vars(app)[_PLACE].overrides[self._name] = override

    def __delete__(self, app: Any) -> None:
        vars(app)[_PLACE].overrides.pop(self._name, None)


class _Watching:
    """
    What is put before the class of an application.
    """

    middleware_stack = _MiddlewareStack()
    build_middleware_stack = _Method(Installation.build)
    add_middleware = _Method(Installation.add)

    @property
    def user_middleware(self) -> UserMiddleware:
        installation: Installation = vars(self)[_PLACE]
        return installation.user_middleware

    @user_middleware.setter
    def user_middleware(self, layers: Iterable[Middleware]) -> None:
        vars(self)[_PLACE].adopt(list(layers))


_METHODS: Final = [name for name, each in vars(_Watching).items() if isinstance(each, _Method)]


def _watching(cls: type[Starlette]) -> tuple[Any, Any]:
    """
    Give the class that watches an application, and the one that it has while a layer is added.
    """
    names = ("__doc__", "__module__", "__qualname__")
    same = {name: getattr(cls, name) for name in names}
    watching = type(cls.__name__, (_Watching, cls), same)
    adding = {**same, "middleware_stack": _MiddlewareStackWhileAdding()}
    return watching, type(cls.__name__, (watching,), adding)
