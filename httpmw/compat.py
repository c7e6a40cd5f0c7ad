"""
Middleware in `call_next` style on the engine of httpmw.

`BaseHTTPMiddleware` takes the place of Starlette's class of that name; `patch_starlette()` puts
every middleware that stands on Starlette's class on this engine.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import starlette
from starlette.middleware import base
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from . import _errors
from ._call_next import beginning_of, make_flow
from ._exchange import Adapter, Layers, runs_as_adapter

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "BaseHTTPMiddleware",
    "DispatchFunction",
    "RequestResponseEndpoint",
    "StarlettePatch",
    "patch_starlette",
]

RequestResponseEndpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
"""
What `call_next` is.
"""

DispatchFunction: TypeAlias = Callable[[Request, RequestResponseEndpoint], Awaitable[Response]]
"""
What a dispatch function is.
"""


class BaseHTTPMiddleware(Adapter):
    """
    Run a dispatch function around an ASGI app, in the place of Starlette's class of this name.

    It is used in exactly the same way; to change the import is the whole migration:

        class ServedBy(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                response = await call_next(request)
                response.headers["x-served-by"] = "mine"
                return response

    Neighbouring layers become one, with each other and with `HTTPMiddleware`.

    Args:
        app: The inner app.
        dispatch: The dispatch function, for those who do not override `dispatch`.

    Attributes:
        app: The inner app.
        dispatch_func: The dispatch function.
    """

    def __init__(self, app: ASGIApp, dispatch: DispatchFunction | None = None) -> None:
        self.app = app
        self.dispatch_func: DispatchFunction = self.dispatch if dispatch is None else dispatch

    _httpmw_adapter: _Adapter | None = None

    @property
    def _httpmw(self) -> Layers:  # type: ignore[override]  # pyrefly: ignore[bad-override]
        adapter = self._httpmw_adapter
        # Without neighbours it makes no difference to us whether Starlette's class is patched.
        if adapter is None or adapter.app is not self.app or adapter.chain:
            adapter = _adapter(self)
        return adapter._httpmw

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """
        Override this in a subclass.

        Args:
            request: The request.
            call_next: Runs the inner app: `response = await call_next(request)`. Once.

        Returns:
            The response to send: the received one, edited or not, or any other.
        """
        raise NotImplementedError


# ---------------------------------------------------------------------- the layers

# A layer is what it is when a request comes, as with Starlette: `app` and `dispatch_func` may be
# set at any time, unless an `HTTPMiddleware` directly around it has taken it over. What drives it
# is kept as long as that holds.


def _adapter(layer: Any) -> _Adapter:
    """
    Give what drives a layer, and those that it is directly around.
    """
    adapter: _Adapter | None = getattr(layer, "_httpmw_adapter", None)
    if (
        adapter is None
        or adapter.app is not layer.app
        or adapter.patch is not _patch
        or (adapter.chain and adapter.is_stale())
    ):
        adapter = layer._httpmw_adapter = _Adapter(layer)
    return adapter


class _Adapter(Adapter):
    # What drives neighbouring layers, the given one outermost.

    def __init__(self, layer: Any) -> None:
        # Of one kind: those of Starlette's class go their own way again when it is restored.
        is_neighbour = _is_ours if isinstance(layer, BaseHTTPMiddleware) else _is_patched
        layers = [layer]
        while is_neighbour(layers[-1].app):
            layers.append(layers[-1].app)
        self.take(tuple((make_flow, beginning_of(each), None) for each in layers), layers[-1].app)
        self.patch = _patch
        self.app = layer.app
        # The layers further in, each with what it is around.
        self.chain = [(each, each.app) for each in layers[1:]]

    def is_stale(self) -> bool:
        """
        Whether one of the layers further in is around something else by now.
        """
        for layer, app in self.chain:  # noqa: SIM110 - a generator costs time in each request
            if layer.app is not app:
                return True
        return False


def _is_ours(app: object) -> bool:
    return isinstance(app, BaseHTTPMiddleware) and runs_as_adapter(app)


def _is_patched(app: object) -> bool:
    call = getattr(type(app), "__call__", None)  # noqa: B004 - which one it is
    return _holders > 0 and call is _patched_call


# ---------------------------------------------------------------------- Starlette's own class


class StarlettePatch:
    """
    What `patch_starlette()` gives: restores Starlette's class at the end of a `with` block.
    """

    def __init__(self) -> None:
        self._holds = True

    def restore(self) -> None:
        """
        Take this call of `patch_starlette()` back; a second time it does nothing.

        Starlette's class is as before when all calls have been taken back. Requests that are
        running are ended as they were begun.
        """
        global _holders  # noqa: PLW0603 - what it is about is global
        with _lock:
            if self._holds:
                self._holds = False
                _holders -= 1
                if not _holders:
                    _put_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.restore()


def patch_starlette() -> StarlettePatch:
    """
    Put every middleware that stands on Starlette's `BaseHTTPMiddleware` on the engine of httpmw.

    That is, in this process: subclasses of other packages, `Middleware(BaseHTTPMiddleware,
    dispatch=...)`, and FastAPI's `@app.middleware("http")`; those that were defined, registered
    or made before as well. A class that overrides `__call__` is left alone.

    One line at start-up is enough. To end it, use it as a context manager, or keep what it returns
    and call `restore()`. It may be called as often as one likes, from any thread.

    Returns:
        The means to take it back.

    Raises:
        RuntimeError: Starlette's class is not one that is known here, because of its version or
            because somebody else has patched it.
    """
    global _holders  # noqa: PLW0603 - see above
    with _lock:
        if not _holders:
            _put_in_place()
        _holders += 1
    return StarlettePatch()


_lock: Final = threading.Lock()
# How many calls have not been taken back.
_holders = 0
# Another object each time that the class is patched or restored.
_patch = object()
# Starlette's own `__call__`.
_starlette_call: Any = None


async def _patched_call(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
    if _holders:
        await _adapter(self)(scope, receive, send)
    else:  # restored; but somebody has wrapped this function meanwhile, and calls it still
        await _starlette_call(self, scope, receive, send)


def _put_in_place() -> None:
    global _patch, _starlette_call  # noqa: PLW0603 - see above
    _check_known()
    _starlette_call = base.BaseHTTPMiddleware.__call__
    base.BaseHTTPMiddleware.__call__ = _patched_call  # type: ignore[method-assign]
    _patch = object()


def _put_back() -> None:
    global _patch  # noqa: PLW0603 - see above
    _patch = object()
    if base.BaseHTTPMiddleware.__call__ is _patched_call:
        base.BaseHTTPMiddleware.__call__ = _starlette_call  # type: ignore[method-assign]


# What is relied on: `__call__` does nothing but run `dispatch_func` around `app`.
_VERSIONS: Final = ((0, 46), (2, 0))  # from, and up to
_PARAMETERS: Final = {
    "__init__": ["self", "app", "dispatch"],
    "__call__": ["self", "scope", "receive", "send"],
    "dispatch": ["self", "request", "call_next"],
}


def _check_known() -> None:
    cls = base.BaseHTTPMiddleware
    version = starlette.__version__
    first, end = _VERSIONS
    if not first <= tuple(map(int, re.findall(r"\d+", version)[:2])) < end:
        raise _errors.unknown_starlette(version, "its version has not been looked at")
    methods = {name: each for name, each in vars(cls).items() if callable(each)}
    for name, parameters in _PARAMETERS.items():
        method = methods.pop(name, None)
        if not isinstance(method, FunctionType) or method.__code__.co_filename != base.__file__:
            raise _errors.patched_starlette(name, method)
        if list(inspect.signature(method).parameters) != parameters:
            raise _errors.unknown_starlette(version, f"`{name}` takes other parameters")
    if methods:
        raise _errors.unknown_starlette(version, f"there is a method `{min(methods)}`")
    if not {"app", "dispatch_func"} <= {*cls.__call__.__code__.co_names}:
        raise _errors.unknown_starlette(version, "`__call__` works with other attributes")
