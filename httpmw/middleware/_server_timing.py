from __future__ import annotations

import functools
import re
import threading
import time
import types
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, HTTPMiddleware, Predicate
from httpmw._connection import Connection, Received
from httpmw._drive import Driven
from httpmw._exchange import Function
from httpmw._order import inward

from ._ready import Exclude, Ready, view_of

# Where a request has its timing: in its state, which all that see the request share.
_KEY: Final = "httpmw.server_timing"
# RFC 9110 section 5.6.2: what the name of a metric is made of.
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_MOST: Final = 32  # metrics in one response


class ServerTiming:
    """
    What was measured in one request; `timing(conn)` gives it.
    """

    def __init__(self) -> None:
        # Threads measure, too.
        self._lock = threading.Lock()
        self._parts: dict[str, tuple[float, str | None]] = {}

    @contextmanager
    def measure(self, name: str, description: str | None = None) -> Iterator[None]:
        """
        Measure how long a block takes; what has the same name is added up.

            with timing(request).measure("db"):
                rows = await database.fetch(query)

        Args:
            name: The name of the metric: letters, digits and characters of ``!#$%&'*+.^_`|~-``.
            description: What a browser shows in its place.

        Raises:
            ValueError: The name is no such name, or the description is not printable ASCII.
        """
        _check(name, description)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began, description)

    def add(self, name: str, seconds: float, description: str | None = None) -> None:
        """
        Add what was measured elsewhere.

        Args:
            name: As in `measure`.
            seconds: How long it took, in seconds.
            description: As in `measure`.

        Raises:
            ValueError: As in `measure`.

        What comes when the response has started is lost; of more than 32 names those that come
        last are left out.
        """
        _check(name, description)
        with self._lock:
            before, known = self._parts.get(name, (0.0, None))
            if name in self._parts or len(self._parts) < _MOST:
                self._parts[name] = before + seconds, description or known

    def _header(self, total: str | None, took: float) -> str:
        with self._lock:
            parts = dict(self._parts)
        metrics = [] if total is None else [_metric(total, took, None)]
        metrics += [_metric(name, *part) for name, part in parts.items() if name != total]
        return ", ".join(metrics[:_MOST])


class ServerTimingMiddleware(Ready):
    """
    Tell the browser where the time went, by the header `Server-Timing`.

    `timing(request).measure("db")` measures; the developer tools of browsers show it. It is not
    there for WebSocket handshakes.

    Args:
        app: The inner app.
        enabled: Whether the header is sent: a bool, or a predicate on the connection. By default
            where the application has `debug=True`, as times tell strangers what the server does.
        total: The name of the time from the request to the response start; None: it is not sent.
        allow_origin: The value of `Timing-Allow-Origin`, for pages of other origins; None: none.
        process_time: Whether `x-process-time` is sent as well, in seconds.
        layers: Whether the own time of each layer of httpmw further in is sent as well, under the
            name of its class or function: from the request to the response start, without what
            is further in, and without waiting for the body of the response.
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default False.

    Raises:
        TypeError: An option is not what it has to be.
    """

    kind = "server_timing"

    def __init__(
        self,
        app: ASGIApp,
        *,
        enabled: bool | Callable[[Connection[Any]], bool] | None = None,
        total: str | None = "total",
        allow_origin: str | None = None,
        process_time: bool = False,
        layers: bool = False,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        if not isinstance(enabled, bool | None):
            self._check_callables(enabled=enabled)
        self._check_flags(process_time=process_time, layers=layers)
        if total is not None and not _is_name(total):
            raise self._bad("total", total, "the name of a metric, or None")
        if allow_origin is not None and not _is_printable(allow_origin):
            raise self._bad("allow_origin", allow_origin, 'origins, "*" or None')
        super().__init__(
            app, when=when, exclude=exclude, websocket=websocket, wanted=_wanted(enabled)
        )
        self._total = total
        self._allow_origin = allow_origin
        self._process_time = process_time
        if layers:
            # Neighbours are run by this layer, and others by the outermost of their own.
            for layer in (self, *inward(self)):
                if isinstance(layer, HTTPMiddleware) and "_httpmw" in vars(layer):
                    functions, inner, handshakes = layer._httpmw  # noqa: SLF001 - one unit
                    timed = tuple(map(_measured, functions))
                    layer._httpmw = timed, inner, handshakes  # noqa: SLF001

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Send what was measured in this request.
        """
        began = time.perf_counter()
        measured = ServerTiming()
        setattr(conn.state, _KEY, measured)
        response = yield
        took = time.perf_counter() - began
        header = measured._header(self._total, took)  # noqa: SLF001 - not for users
        if header:
            response.headers.append("server-timing", header)
        if self._allow_origin is not None:
            response.headers.setdefault("timing-allow-origin", self._allow_origin)
        if self._process_time:
            response.headers["x-process-time"] = f"{took:.6f}"


# ---------------------------------------------------------------------- the layers


def _measured(layer: tuple[Any, Function, Function | None]) -> tuple[Any, Function, Any]:
    """
    Put what measures around the flows of a layer further in.
    """
    make, function, when = layer
    owner = getattr(function, "__self__", None)
    is_ours = isinstance(owner, ServerTimingMiddleware) or isinstance(function, _Measured)
    # A dispatch function with `call_next` is no flow.
    if is_ours or make is not Received:
        return layer
    named = owner if isinstance(owner, HTTPMiddleware) else None
    name = getattr(function, "__name__", "layer") if named is None else type(named).__name__
    return make, _Measured(function, name if _is_name(name) else "layer"), when


class _Measured:
    """
    A middleware function whose flows are measured where somebody asks for it.
    """

    def __init__(self, function: Function, name: str) -> None:
        self._function = function
        self._name = name

    def __call__(self, conn: Connection[Any]) -> Any:
        flow = self._function(conn)
        found = (view_of(conn).get("state") or {}).get(_KEY)
        if flow is None or not isinstance(found, ServerTiming):
            return flow
        return _MeasuredFlow(flow, functools.partial(found.add, self._name))


class _MeasuredFlow:
    """
    A flow of the engine's, with its methods, and how long its steps take.
    """

    def __init__(self, flow: Any, add: Callable[[float], None]) -> None:
        self._flow = flow
        self._add = add

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flow, name)

    def asend(self, value: Any) -> Any:
        return self._step(self._flow.asend(value))

    def athrow(self, *exc: Any) -> Any:
        return self._step(self._flow.athrow(*exc))

    def aclose(self) -> Any:
        return self._flow.aclose()

    @types.coroutine
    def _step(self, step: Any) -> Generator[Any, Any, Any]:
        # As `yield from`, but for the time in which it waits for a message of the app's.
        call, argument = step.send, None
        spent, since = 0.0, time.perf_counter()
        try:
            while True:
                try:
                    awaited = call(argument)
                except StopIteration as stop:
                    value = stop.value
                    # Delegation: the other function is a part of this one.
                    return _MeasuredFlow(value, self._add) if hasattr(value, "asend") else value
                if isinstance(awaited, Driven):
                    spent += time.perf_counter() - since
                try:
                    call, argument = step.send, (yield awaited)
                except BaseException as exc:
                    call, argument = step.throw, exc
                if isinstance(awaited, Driven):
                    since = time.perf_counter()
        finally:
            argument = None  # it may hold this frame
            self._add(spent + time.perf_counter() - since)


def timing(conn: HTTPConnection[Any]) -> ServerTiming:
    """
    Give what measures in a request.

    Args:
        conn: The connection, or a request of Starlette or FastAPI.

    Returns:
        The timing of this request. Where `ServerTimingMiddleware` is not there, or not enabled, one
        that nobody sends, so that code can measure all the same.
    """
    found = (conn.get("state") or {}).get(_KEY)
    return found if isinstance(found, ServerTiming) else ServerTiming()


def _wanted(enabled: bool | Predicate | None) -> Predicate | None:  # noqa: FBT001 - the option
    if enabled is True:
        return None
    if enabled is False:
        return lambda conn: False  # noqa: ARG005 - a predicate
    return _is_debugged if enabled is None else enabled


def _is_debugged(conn: Connection[Any]) -> bool:
    return bool(getattr(view_of(conn).get("app"), "debug", False))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def _is_printable(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _check(name: str, description: str | None) -> None:
    if not _is_name(name) or not (description is None or _is_printable(description)):
        raise _errors.bad_metric(name, description)


def _metric(name: str, seconds: float, description: str | None) -> str:
    # W3C Server Timing section 4.2: milliseconds.
    metric = f"{name};dur={seconds * 1000:.3f}"
    if description is not None:
        quoted = description.replace("\\", "\\\\").replace('"', '\\"')
        metric += f';desc="{quoted}"'
    return metric
