"""
Layers that can be edited while requests run through them.
"""

# How requests find their way is said in `_chain.py`, what is done to an application in
# `_installed.py`. Here it is kept that editors hold the lock from reading the slots until their
# chain is published, and that what can fail fails before that.

from __future__ import annotations

import inspect
import itertools
import sys
import threading
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from . import _errors
from ._adapter import Dispatch
from ._chain import Layer, Slot, Target, chain, draw, find, make
from ._exchange import RoutesWithin

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ._installed import Installation
else:
    Starlette = Any  # for `typing.get_type_hints`; to import it takes longer than all of httpmw

__all__ = ["Layers", "MiddlewareStack"]

# One for each stack: the key under which a request has its chain in the scope.
_stacks: Final = itertools.count(1)


class Layers:
    """
    Layers around an app, the outermost first, and the ways to edit them.

    This is what `stack.edit()` gives; a `MiddlewareStack` is one, too, of which every edit takes
    effect at once. To iterate gives each `Layer`; `str()` draws the order.
    """

    def add(  # noqa: PLR0913 - the places where a layer can be
        self,
        middleware: Middleware | Dispatch,
        *,
        before: Target | None = None,
        after: Target | None = None,
        innermost: bool = False,
        outside_errors: bool = False,
        name: str | None = None,
    ) -> Layer:
        """
        Make a layer and put it in; by default outermost, as Starlette's `add_middleware`.

        Args:
            middleware: A `Middleware` object of any ASGI middleware, or a middleware function.
            before: The layer around which it shall stand.
            after: The layer inside of which it shall stand.
            innermost: Whether it shall stand inside of all others.
            outside_errors: Whether it shall stand around Starlette's own error handler, so that
                it sees the response that is made of an unhandled exception, too.
            name: Its name; by default that of its function or class.

        Returns:
            The layer.

        Raises:
            StackError: There is no such place, or more than one.
            TypeError: *middleware* is no middleware.
            Exception: Whatever the middleware raises when it is made. Nothing is changed then.
        """
        with self._editing() as slots:
            index, outside = self._place(slots, before, after, innermost, outside_errors)
            slot = self._stack._make(middleware, name, outside=outside)
            slots.insert(index, slot)
        return slot.layer

    def remove(self, target: Target) -> None:
        """
        Take a layer out.

        Requests that have begun still go through it, to their end.

        Args:
            target: The layer, its name, its class or its function.

        Raises:
            StackError: There is no such layer, or more than one.
        """
        with self._editing() as slots:
            del slots[find(slots, target)]

    def replace(
        self, target: Target, middleware: Middleware | Dispatch, *, name: str | None = None
    ) -> Layer:
        """
        Put a new layer in the place of another.

        Args:
            target: The layer to be replaced, its name, its class or its function.
            middleware: As in `add`.
            name: The name of the new layer; by default the one that the old layer was given.

        Returns:
            The new layer.

        Raises:
            StackError: There is no such layer, or more than one.
            TypeError: *middleware* is no middleware.
            Exception: Whatever the middleware raises when it is made. Nothing is changed then.
        """
        with self._editing() as slots:
            index = find(slots, target)
            old = slots[index]
            if name is None and old.named:
                name = old.layer.name
            slots[index] = self._stack._make(middleware, name, outside=old.outside)
            return slots[index].layer

    def move(
        self,
        target: Target,
        *,
        before: Target | None = None,
        after: Target | None = None,
        innermost: bool = False,
        outside_errors: bool = False,
    ) -> None:
        """
        Put a layer in another place, by default outermost; it keeps its instance.

        Args:
            target: The layer, its name, its class or its function.
            before: As in `add`.
            after: As in `add`.
            innermost: As in `add`.
            outside_errors: As in `add`.

        Raises:
            StackError: There is no such layer or place, or more than one.
        """
        with self._editing() as slots:
            found = find(slots, target)
            others = slots[:found] + slots[found + 1 :]
            for beside in (before, after):
                if beside is not None and find(slots, beside) == found:
                    raise _errors.beside_itself(slots[found].layer.name)
            index, outside = self._place(others, before, after, innermost, outside_errors)
            others.insert(index, slots[found]._replace(outside=outside))
            slots[:] = others

    def __iter__(self) -> Iterator[Layer]:
        return iter([slot.layer for slot in self._read()])

    def __len__(self) -> int:
        return len(self._read())

    def __bool__(self) -> bool:
        # An app is there, also without a layer.
        return True

    def __str__(self) -> str:
        return draw(self._read(), has_frame=self._stack._installation is not None)

    @property
    def _stack(self) -> MiddlewareStack:
        raise NotImplementedError

    def _read(self) -> Sequence[Slot]:
        raise NotImplementedError

    def _editing(self) -> AbstractContextManager[list[Slot]]:
        raise NotImplementedError

    def _place(
        self,
        slots: list[Slot],
        before: Target | None,
        after: Target | None,
        innermost: bool,  # noqa: FBT001 - as `add` and `move` have it
        outside_errors: bool,  # noqa: FBT001 - see above
    ) -> tuple[int, bool]:
        """
        Say where a slot is to be inserted, and whether that is outside of the error handler.
        """
        if (before is not None) + (after is not None) + innermost > 1:
            raise _errors.two_places()
        if outside_errors and self._stack._installation is None:
            raise _errors.no_error_handler()
        beside = before if before is not None else after
        if beside is not None:
            index = find(slots, beside)
            if outside_errors and not slots[index].outside:
                raise _errors.not_outside(slots[index].layer.name, draw(slots, has_frame=True))
            return index + (after is not None), slots[index].outside
        number_outside = sum(slot.outside for slot in slots)
        if outside_errors:
            return number_outside if innermost else 0, True
        return len(slots) if innermost else number_outside, False


class _Draft(Layers):
    def __init__(self, stack: MiddlewareStack, slots: list[Slot]) -> None:
        self._owner = stack
        self._slots = slots
        self.is_over = False

    @property
    def _stack(self) -> MiddlewareStack:
        return self._owner

    def _read(self) -> Sequence[Slot]:
        return self._slots

    @contextmanager
    def _editing(self) -> Iterator[list[Slot]]:
        if self.is_over:
            raise _errors.draft_over()
        yield self._slots


class MiddlewareStack(Layers):
    """
    Layers around an ASGI app that can be added, removed, replaced and moved while it serves.

    Around any ASGI app it is an ASGI app: `MiddlewareStack(app, [Middleware(GZipMiddleware)])`.
    Into a Starlette or FastAPI application it is put with `MiddlewareStack.install(app)`.

    1. An edit takes effect at once and as a whole. It can be made in any thread.
    2. A request keeps the layers that it began with, to its end.
    3. A layer is made when it is added, and only then: it keeps its instance and state when
       others come and go.
    4. WebSocket and lifespan events pass through all layers that are ASGI middleware. A layer
       that is added after the start gets no lifespan start-up.
    5. Neighbouring httpmw layers are fused, in every order.

    To iterate gives each `Layer`, the outermost first; `str(stack)` draws the order.

    Args:
        app: The inner app.
        middleware: The first layers, the outermost first.

    Raises:
        TypeError: One of *middleware* is no middleware.
        Exception: Whatever a middleware raises when it is made.
    """

    def __init__(self, app: ASGIApp, middleware: Sequence[Middleware | Dispatch] = ()) -> None:
        self._installation: Installation | None = None
        self._key = sys.intern(f"httpmw.stack.{next(_stacks)}")
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._is_edited = False
        self._is_over = False
        self._inner = app
        # What stands around the layers and belongs to the application; inside of it they begin.
        self._frame: ASGIApp | None = None
        self._publish([self._make(each) for each in middleware])

    routes = RoutesWithin("_inner")

    if sys.version_info >= (3, 12):

        @inspect.markcoroutinefunction
        def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            """
            Run the inner app inside of the layers that there are now.
            """
            chain = self._chain
            scope[self._key] = chain.table
            return chain.app(scope, receive, send)
    else:
        # There is no mark yet that every server looks for.
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            """
            Run the inner app inside of the layers that there are now.
            """
            chain = self._chain
            scope[self._key] = chain.table
            await chain.app(scope, receive, send)

    @property
    def app(self) -> ASGIApp:
        """
        The outermost of what is inside: tools find their way inward by attributes of this name.
        """
        return self._chain.app

    @classmethod
    def install(cls, app: Starlette) -> Self:
        """
        Take over the layers of a Starlette or FastAPI application, which may serve already.

        From now on `app.add_middleware`, FastAPI's `@app.middleware("http")` and changes of
        `app.user_middleware` are edits of the stack, at any time. In an application that has
        started, every layer is made once more by this.

        Args:
            app: The application.

        Returns:
            The stack of this application; the same one every time.

        Raises:
            TypeError: *app* is no such application.
            StackError: Its `build_middleware_stack` leaves its `user_middleware` out.
            Exception: Whatever a layer raises when it is made. Nothing is changed then.
        """
        from ._installed import install  # noqa: PLC0415 - loads starlette.applications

        return install(cls, app)

    def uninstall(self) -> None:
        """
        Give the application back, with the layers that it has now.

        They stay as they are; from now on `app.add_middleware` is Starlette's own again, and
        this stack cannot be edited any more. Layers outside of the error handler are the first in
        `app.user_middleware`.

        Raises:
            StackError: The stack is not installed, or is just being edited in this thread.
        """
        if self._installation is None:
            raise _errors.not_installed()
        with self._editing():
            self._installation.remove()
            self._is_over = True

    @contextmanager
    def edit(self) -> Iterator[Layers]:
        """
        Make several edits as one.

        They are made on what `with stack.edit() as draft` gives, and take effect together at the
        end of the block. An exception out of the block leaves everything as it was.
        Other editors wait meanwhile, so nothing is to be awaited in the block.

        Raises:
            StackError: The stack is being edited in this thread already.
        """
        with self._editing() as slots:
            draft = _Draft(self, slots)
            try:
                yield draft
            finally:
                draft.is_over = True

    @property
    def _stack(self) -> MiddlewareStack:
        return self

    def _read(self) -> Sequence[Slot]:
        return self._chain.slots

    @contextmanager
    def _editing(self) -> Iterator[list[Slot]]:
        with self._lock:
            if self._is_over:
                raise _errors.uninstalled()
            # The lock lets the same thread in twice: that is another task, or a call of the
            # editor's own that would get lost when its draft is published.
            if self._is_edited:
                raise _errors.edit_is_open()
            self._is_edited = True
            slots = list(self._chain.slots)
            try:
                yield slots
            finally:
                self._is_edited = False
            self._publish(slots)

    def _make(
        self, middleware: Middleware | Dispatch, name: str | None = None, *, outside: bool = False
    ) -> Slot:
        return make(self._key, next(self._numbers), middleware, name, outside=outside)

    def _publish(self, slots: Sequence[Slot]) -> None:
        new = chain(slots, self._inner, self._frame)
        if self._installation is not None:
            self._installation.prepare(new)
        self._chain = new

    def _surround(self, frame: ASGIApp, inner: ASGIApp) -> None:
        """
        Put the layers between another frame and inner app.
        """
        self._frame, self._inner = frame, inner
        self._publish(self._chain.slots)
