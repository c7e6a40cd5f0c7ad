# The layer that users register, and how neighbouring layers become one.

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable
from types import FunctionType, MethodType
from typing import Any, Protocol, TypeAlias, TypeVar

from starlette.types import ASGIApp

from . import _errors
from ._code import can_only_give_none, has_begun
from ._connection import Connection, Received, ReceivedHandshake
from ._exchange import Adapter, Functions
from ._handshake import Handshakes
from ._response import AppResponse

__all__ = ["Flow", "HTTPMiddleware", "http_middleware"]

Flow: TypeAlias = AsyncGenerator[Any, AppResponse]
"""
What a middleware function returns.

The one annotation under which a bare `yield` and `yield response` both type-check, and
`response` in `response = yield` is an `AppResponse`.
"""

# `Any`: whatever type a function says that the state has.
Dispatch: TypeAlias = Callable[[Connection[Any]], AsyncGenerator[Any, AppResponse] | None]
"""
A middleware function, or a plain function that gives a flow, or None to step aside.
"""
Predicate: TypeAlias = Callable[[Connection[Any]], bool]
"""
What `when=` takes: whether the layer is there for this request.
"""


class HTTPMiddleware(Adapter):
    """
    Run a middleware function around an ASGI app, for each HTTP request.

    With `websocket=True` it runs around each WebSocket handshake as well.

    Register it as `Middleware(HTTPMiddleware, dispatch=mw)`, with
    `app.add_middleware(HTTPMiddleware, dispatch=mw)`, or put it around any ASGI app as
    `HTTPMiddleware(app, dispatch=mw)`; or subclass it and override `dispatch`.

    1. `response = yield` runs the inner app and evaluates to its response, of which nothing has
       been sent. What the inner app raises before that is raised there.
    2. `yield some_response` sends a response, the received one or another, and comes back when
       everything is over. What went wrong meanwhile is raised there.
    3. Ending without it sends the received response as edited.
    4. A function yields at most once each way: one run, one answer.
    5. A function that ends before any yield is an error, never a silent pass.
    6. A *dispatch* that returns None is skipped for this request.
    7. `response = yield other(conn)` runs another middleware function inside this one.

    Args:
        app: The inner app: any ASGI app. Neighbouring `HTTPMiddleware` layers become one.
        dispatch: The middleware function: `async def mw(conn)` with a `yield`.
        when: A predicate on the connection; where it is false, the layer is not there.
        websocket: Whether the layer is there for WebSocket handshakes, too; None: what the class
            says by its attribute of that name.

    Attributes:
        websocket: Whether it is.

    Raises:
        TypeError: *dispatch* can not be a middleware function, there is none or there are two,
            *when* is not a plain function, or *websocket* is not a bool.
    """

    websocket: bool = False

    def __init__(
        self,
        app: ASGIApp,
        dispatch: Dispatch | None = None,
        *,
        when: Predicate | None = None,
        websocket: bool | None = None,
    ) -> None:
        overridden = type(self).dispatch is not HTTPMiddleware.dispatch
        if dispatch is None:
            if not overridden:
                raise _errors.no_dispatch(type(self))
            dispatch = self.dispatch
        elif overridden:
            raise _errors.two_dispatches(type(self), dispatch)
        else:
            super().__setattr__("dispatch", dispatch)
        _check(dispatch)
        if when is not None:
            check_predicate(when)
        self.app = app
        if websocket is not None:
            self.websocket = websocket
        if not isinstance(self.websocket, bool):
            raise _errors.bad_websocket(self.websocket)
        begin = _begun_by_its_caller(dispatch)
        handshakes = None
        if self.websocket:
            handshakes = Handshakes(((ReceivedHandshake, begin, when),))
        self.take(((Received, begin, when),), app, handshakes)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dispatch = vars(cls).get("dispatch")
        # Seen at the import, not at the first request. All else at the making of a layer: a class
        # may leave it to its subclasses.
        if isinstance(dispatch, FunctionType) and _takes(dispatch, 3) and not _takes(dispatch, 2):
            raise _errors.takes_call_next(dispatch)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "dispatch":
            raise _errors.assigned_dispatch(type(self), value)
        super().__setattr__(name, value)

    def dispatch(self, conn: Connection[Any], /) -> AsyncGenerator[Any, AppResponse] | None:  # noqa: ARG002
        """
        Override this in a subclass, as `async def` with a `yield`.

        Of a layer that was made with `dispatch=` it is that function.

        Args:
            conn: The request.

        Returns:
            The flow of this request; here one that changes nothing.
        """
        return _unchanged()


def layer_of(
    functions: Functions, app: ASGIApp, handshakes: Handshakes | None = None
) -> HTTPMiddleware:
    """
    Put around *app* what another layer is made of.
    """
    layer: HTTPMiddleware = object.__new__(HTTPMiddleware)
    layer.app = app
    layer.websocket = handshakes is not None
    layer.take(functions, app, handshakes)
    return layer


async def _unchanged() -> Flow:
    yield


def _check(dispatch: Any) -> None:
    """
    Refuse what can be known never to work.
    """
    if not callable(dispatch) or isinstance(dispatch, type):
        raise _errors.not_a_function(dispatch)
    function = dispatch
    while isinstance(function, functools.partial):
        function = function.func
    for candidate in (function, getattr(type(function), "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(candidate):
            raise _errors.coroutine_function(dispatch)
        if inspect.isgeneratorfunction(candidate):
            raise _errors.sync_generator(dispatch)
        if can_only_give_none(candidate):
            raise _errors.forgotten_return(dispatch)
    if not _takes(dispatch, 1):
        raise (_errors.takes_call_next if _takes(dispatch, 2) else _errors.parameters)(dispatch)


def _takes(function: Any, number: int) -> bool:
    """
    Say whether *function* can be called with so many arguments; yes, where it cannot be told.
    """
    try:
        inspect.signature(function, follow_wrapped=False).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def _begun_by_its_caller(dispatch: Any) -> Any:
    """
    Give *dispatch*, or something that refuses what it gives if that is no new generator.

    An async generator function always gives a new one, so only others are looked at. One that has
    begun would go on behind the checks that it has made for another request.
    """
    function = dispatch
    while type(function) is functools.partial:
        function = function.func
    if type(function) is MethodType:
        function = function.__func__
    if type(function) is FunctionType and inspect.isasyncgenfunction(function):
        return dispatch

    @functools.wraps(dispatch, updated=())
    def begin(conn: Any) -> Any:
        flow = dispatch(conn)
        if flow is not None and has_begun(flow):
            raise _errors.has_begun(dispatch, flow)
        return flow

    return begin


def check_predicate(when: Any) -> None:
    # The coroutine of an `async def` would count as true.
    call = getattr(type(when), "__call__", None)  # noqa: B004
    if not callable(when) or any(map(inspect.iscoroutinefunction, (when, call))):
        raise _errors.bad_predicate(when)


class _Application(Protocol):
    @property
    def add_middleware(self) -> Callable[..., None]: ...


D = TypeVar("D", bound=Dispatch)


def http_middleware(
    app: _Application, *, when: Predicate | None = None, websocket: bool | None = None
) -> Callable[[D], D]:
    """
    Register the decorated middleware function with an application.

    For those who know FastAPI's `@app.middleware("http")`:

        @http_middleware(app)
        async def served_by(conn: Connection) -> Flow:
            response = yield
            response.headers["x-served-by"] = "mine"

    As with `app.add_middleware`, the layer that is added last is the outermost.

    Args:
        app: A Starlette or FastAPI application, or whatever has their `add_middleware`.
        when: As in `HTTPMiddleware`.
        websocket: As in `HTTPMiddleware`.

    Returns:
        A decorator that registers the function and gives it back unchanged.

    Raises:
        TypeError: *app* has no `add_middleware`, or the function is no middleware function.
        RuntimeError: Starlette's, where the application has started.
    """
    if not callable(getattr(app, "add_middleware", None)):
        raise _errors.no_add_middleware(app)

    def register(dispatch: D) -> D:
        # Now, not at the first request: the mistake is here.
        _check(dispatch)
        app.add_middleware(HTTPMiddleware, dispatch=dispatch, when=when, websocket=websocket)
        return dispatch

    return register
