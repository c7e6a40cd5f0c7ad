# How a middleware is given to the tools, and how it is put around an app.

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from types import FunctionType
from typing import Any, TypeAlias, cast

from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import AppResponse, Connection, HTTPMiddleware
from httpmw._adapter import layer_of
from httpmw._connection import Received
from httpmw._exchange import layers_of

Dispatch: TypeAlias = Callable[[Connection[Any]], AsyncGenerator[Any, AppResponse] | None]
Factory: TypeAlias = Callable[..., ASGIApp]

AnyMiddleware: TypeAlias = Dispatch | Factory | Middleware | HTTPMiddleware
"""
A middleware function, an ASGI middleware class, `Middleware(...)` with its options, or a function
that takes an `app`.
"""


class Watcher:
    """
    Sees what one flow gets and what it gives.
    """

    def __init__(self) -> None:
        self.conn: Connection | None = None
        # The response that the flow received, the one of its own that it gave instead, and what
        # it raised.
        self.response: AppResponse | None = None
        self.answer: Response | None = None
        self.raised: BaseException | None = None

    def around(
        self, function: Dispatch, app: ASGIApp, *, websocket: bool = False
    ) -> HTTPMiddleware:
        """
        Put a middleware function around *app*, and watch it.
        """
        return HTTPMiddleware(app, dispatch=self.watch(function), websocket=websocket)

    def watch(self, dispatch: Dispatch) -> Dispatch:
        """
        Make a middleware function whose flows are watched.
        """

        def watched(conn: Connection) -> Any:
            self.conn = conn
            return self.watched(dispatch(self.as_conn(conn)))

        return functools.update_wrapper(watched, _named(dispatch))

    def watched(self, flow: Any) -> Any:
        return Watched(flow, self) if hasattr(flow, "asend") else flow

    def as_conn(self, conn: Connection) -> Any:
        """
        What the function gets as the connection.
        """
        return conn

    def given(self, value: Any) -> Any:
        """
        The flow is given *value* by the engine: return what it really gets.
        """
        if isinstance(value, AppResponse):
            self.response = value
        return value

    def stepped(self) -> None:
        """
        The flow has come to a yield or to its end.
        """

    def yielded(self, value: Any) -> Any:
        """
        The flow yields *value*: return what the engine gets.
        """
        if hasattr(value, "asend"):  # another function's flow, to be run inside of this one
            return Watched(value, self)
        if isinstance(value, Response) and not isinstance(value, AppResponse):
            self.answer = value
        return value


class Watched:
    """
    A flow that tells its watcher; otherwise the flow itself.
    """

    def __init__(self, flow: AsyncGenerator[Any, Any], watcher: Watcher) -> None:
        self._flow = flow
        self._watcher = watcher

    async def asend(self, value: Any) -> Any:
        return await self._step(self._flow.asend(self._watcher.given(value)))

    async def athrow(self, exc: BaseException) -> Any:
        return await self._step(self._flow.athrow(exc))

    async def aclose(self) -> None:
        await self._flow.aclose()

    async def _step(self, step: Any) -> Any:
        watcher = self._watcher
        watcher.raised = None
        try:
            value = await step
        except StopAsyncIteration:
            watcher.stepped()
            raise
        except BaseException as exc:
            watcher.raised = exc
            raise
        watcher.stepped()
        return watcher.yielded(value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flow, name)  # `ag_frame` and the like: where it stands


def _named(dispatch: Any) -> Any:
    while isinstance(dispatch, functools.partial):
        dispatch = dispatch.func
    return dispatch


def takes_an_app(mw: Any) -> bool:
    """
    Whether *mw* makes a layer, as classes do; a middleware function takes a connection.
    """
    function = _named(mw)
    if isinstance(function, type):
        return True
    if not isinstance(function, FunctionType) or inspect.isasyncgenfunction(function):
        return False
    return next(iter(inspect.signature(mw).parameters), None) == "app"


def function_of(mw: AnyMiddleware, app: ASGIApp, *, websocket: bool = False) -> Dispatch | None:
    """
    The middleware function in *mw*, None where it is another ASGI middleware.

    None, too, of a layer that is not there for handshakes where it is about a *websocket*.

    Of a layer it is its own function, without those that it took over from its neighbours.
    """
    layer = _made(mw, app)
    if layer is None:
        HTTPMiddleware(app, dispatch=cast(Dispatch, mw))  # refuses what is no middleware function
        return cast(Dispatch, mw)
    if not isinstance(layer, HTTPMiddleware) or (websocket and not layer.websocket):
        return None
    make, function, when = layers_of(layer)[0][0]
    if make is not Received:
        return None
    if when is None:
        return function

    # As the engine asks it; in one function, so that it can be watched.
    def conditional(conn: Connection) -> Any:
        return function(conn) if when(conn) else None

    return functools.update_wrapper(conditional, _named(function))


def around(
    mw: AnyMiddleware | Sequence[AnyMiddleware] | None, app: ASGIApp, *, websocket: bool = False
) -> ASGIApp:
    """
    Put *mw* around *app*; of a sequence the first one is the outermost.

    Functions that are no layer yet are there for handshakes where it is about a *websocket*.
    """
    if mw is None:
        return app
    if isinstance(mw, Sequence):
        for each in reversed(mw):
            app = around(each, app, websocket=websocket)
        return app
    if isinstance(mw, HTTPMiddleware):
        functions, _, handshakes = layers_of(mw)
        first = handshakes.first() if handshakes is not None and mw.websocket else None
        return layer_of(functions[:1], app, first)
    layer = _made(mw, app)
    if layer is None:
        layer = HTTPMiddleware(app, dispatch=cast(Dispatch, mw), websocket=websocket)
    return cast(ASGIApp, layer)


def _made(mw: Any, app: ASGIApp) -> Any:
    if isinstance(mw, Middleware):
        return mw.cls(app, *mw.args, **mw.kwargs)
    if isinstance(mw, HTTPMiddleware):
        return mw
    return mw(app) if takes_an_app(mw) else None
