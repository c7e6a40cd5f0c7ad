"""
Every exception that httpmw raises, and the one place where their messages are written.

* HTTPMWError
  + MiddlewareError   (RuntimeError)        a middleware function broke the contract
  + NoResponseError   (RuntimeError)        the inner app returned without a response
  + StackError        (ValueError)          a stack of layers cannot be edited in that way
  + DeadlineExceeded  (TimeoutError)        a time limit that a middleware set was exceeded
  + BodyTooLarge      (HTTPException, 413)  a request's body is over the limit of a middleware
  + ResponseTooLarge                        a response's body is

Mistakes that can be seen when a layer is made are a plain `TypeError`.
Every message says who did what and where, what was expected, and what to write instead.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from types import CoroutineType, FrameType, FunctionType
from typing import Any, Literal

from starlette.exceptions import HTTPException

from ._code import lines_of_yields

__all__ = [
    "BodyTooLarge",
    "DeadlineExceeded",
    "HTTPMWError",
    "MiddlewareError",
    "NoResponseError",
    "ResponseTooLarge",
    "StackError",
]


class HTTPMWError(Exception):
    """
    The base class of the exceptions that httpmw raises.
    """


class MiddlewareError(HTTPMWError, RuntimeError):
    """
    A middleware function broke the contract; the message names it, and what to write instead.
    """


class NoResponseError(HTTPMWError, RuntimeError):
    """
    The inner app broke the ASGI contract: it returned without a (whole) response.

    Raised at the `yield` of the middleware functions around it.
    """


class StackError(HTTPMWError, ValueError):
    """
    A `MiddlewareStack` cannot be edited in that way; nothing was changed.

    Where a layer was not found, or found twice, the message lists what is there.
    """


class BodyTooLarge(HTTPMWError, HTTPException):
    """
    The body of a request is larger than the *max_size* that a middleware gave.

    It is a Starlette `HTTPException` with status 413: where no middleware handles it, it
    becomes the answer (RFC 9110 section 15.5.14).

    Attributes:
        max_size: The limit that was exceeded, in bytes.
    """

    def __init__(self, max_size: int) -> None:
        HTTPException.__init__(self, 413, f"Body larger than {max_size} bytes")
        self.max_size = max_size


class ResponseTooLarge(HTTPMWError):
    """
    The body of a response is larger than the *max_size* that a middleware gave.

    It is no `HTTPException`: a 413 is about the content of a request (RFC 9110 section 15.5.14),
    and the client can do nothing about this one. Unhandled it is an error like any other.

    Attributes:
        max_size: The limit that was exceeded, in bytes.
    """

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)
        self.max_size = max_size

    def __str__(self) -> str:
        return (
            f"the body of the response is larger than the {self.max_size} bytes that "
            "`response.read(max_size=...)` may take into memory.\n"
            "Write `except ResponseTooLarge:` around it: a response that is left as it is goes out "
            "whole."
        )


LimitKind = Literal["start", "idle", "total"]


class DeadlineExceeded(HTTPMWError, TimeoutError):
    """
    A time limit that a middleware set with `conn.fail_after` was exceeded.

    It is raised for that limit alone: a `TimeoutError` of the inner app's own stays what it is.
    Where the limit is one of `conn.fail_upload_after`, it is a Starlette `HTTPException` with
    status 408 as well, and so becomes the answer where nobody handles it.

    Attributes:
        limit: Which limit: "start", until the response start; "idle", between two messages;
            "total", all of the body.
        seconds: How long it was, in seconds.
    """

    def __init__(self, limit: LimitKind, seconds: float, message: str | None = None) -> None:
        TimeoutError.__init__(self, message or f"{_LIMITS[limit]} within {seconds} seconds")
        self.limit = limit
        self.seconds = seconds


_LIMITS: dict[LimitKind, str] = {
    "start": "the inner app did not start its response",
    "idle": "the inner app did not go on with its response",
    "total": "the inner app did not end its response",
}


class UploadDeadlineExceeded(DeadlineExceeded, HTTPException):
    # RFC 9110 section 15.5.9.

    def __init__(
        self, limit: LimitKind, seconds: float, headers: Mapping[str, str] | None = None
    ) -> None:
        HTTPException.__init__(self, 408, "The request body took too long", headers)
        what = "go on with" if limit == "idle" else "end"
        DeadlineExceeded.__init__(
            self,
            limit,
            seconds,
            f"the client did not {what} the request body within {seconds} seconds",
        )


UploadDeadlineExceeded.__name__ = UploadDeadlineExceeded.__qualname__ = "DeadlineExceeded"


class BodyNotRead(MiddlewareError, AttributeError):
    # Also an AttributeError, so that `hasattr(response, "body")` answers False instead of failing.
    pass


# A traceback names the place to import it from.
for _each in (
    HTTPMWError,
    MiddlewareError,
    NoResponseError,
    StackError,
    DeadlineExceeded,
    UploadDeadlineExceeded,
    BodyTooLarge,
    ResponseTooLarge,
):
    _each.__module__ = "httpmw"


# Who: a middleware function is named by its qualified name, its file and a line.


def place(subject: object) -> str:
    """
    Name a function, a generator or any callable, with its file and line where it has one.
    """
    frame = getattr(subject, "ag_frame", None)
    code = getattr(subject, "ag_code", None)
    if code is not None:
        line = code.co_firstlineno if frame is None else frame.f_lineno
        return f"{code.co_qualname!r} ({code.co_filename}:{line})"
    function: Any = subject
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = getattr(function, "__wrapped__")  # noqa: B009 - any object may have it
        else:
            break
    for candidate in (function, getattr(type(function), "__call__", None)):  # noqa: B004
        code = getattr(candidate, "__code__", None)
        if code is not None:
            return f"{code.co_qualname!r} ({code.co_filename}:{code.co_firstlineno})"
    return repr(subject)


def _caller() -> str:
    """
    Name the function that has called into httpmw, and where it did.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _package(frame) in _WITHIN:
        frame = frame.f_back
    if frame is None or _package(frame).partition(".")[0] in _LOOPS:
        return "a middleware function"
    code = frame.f_code
    return f"{code.co_qualname!r} ({code.co_filename}:{frame.f_lineno})"


# `conn.form()` comes here by way of Starlette; and a task of its own has nobody further out.
_WITHIN = (__package__, f"{__package__}.middleware", "starlette")
_LOOPS = ("asyncio", "trio", "anyio")


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__package__") or ""


# Mistakes in a layer's making.

_PATTERN = "Write `async def mw(conn): response = yield`"


def no_dispatch(owner: type) -> TypeError:
    return TypeError(
        f"{owner.__qualname__} has no middleware function: it was given no `dispatch=` and does "
        "not override `dispatch`.\n"
        f"{_PATTERN} and pass it as `Middleware({owner.__name__}, dispatch=mw)`, or override "
        "`async def dispatch(self, conn)`."
    )


def two_dispatches(owner: type, dispatch: object) -> TypeError:
    return TypeError(
        f"{owner.__qualname__} overrides `dispatch` ({place(vars_lookup(owner, 'dispatch'))}) and "
        f"was also given `dispatch=` {place(dispatch)}.\n"
        "Keep one of the two; a subclass that needs options takes them in its `__init__`."
    )


def vars_lookup(owner: type, name: str) -> object:
    return next(vars(base)[name] for base in owner.__mro__ if name in vars(base))


def not_a_function(dispatch: object) -> TypeError:
    hint = f"{_PATTERN} and pass the function itself."
    if hasattr(dispatch, "asend"):
        hint = "Pass the function, without calling it."
    elif isinstance(dispatch, type):
        hint = (
            "Pass an instance, or register a subclass of HTTPMiddleware by itself: "
            f"`Middleware({dispatch.__name__})`."
        )
    return TypeError(
        f"`dispatch` must be an async generator function, got {place(dispatch)}, "
        f"a {type(dispatch).__name__}.\n{hint}"
    )


def takes_call_next(dispatch: object) -> TypeError:
    return TypeError(
        f"function {place(dispatch)} takes a second parameter, as in `call_next` style; a "
        "middleware function is an async generator that takes the connection alone.\n"
        "Write `response = yield` for `response = await call_next(request)` (`httpmw migrate` "
        "does it), or give the function to `httpmw.compat.BaseHTTPMiddleware` as it is."
    )


def parameters(dispatch: object) -> TypeError:
    return TypeError(
        f"middleware function {place(dispatch)} cannot be called with the connection alone.\n"
        "Write `async def mw(conn): response = yield`; options come by `functools.partial`, or by "
        "the `__init__` of a class."
    )


def forgotten_return(dispatch: object) -> TypeError:
    return TypeError(
        f"function {place(dispatch)} has no `return` with a value, so it can only give None, which "
        "means that the layer is not there.\n"
        "Write `return` before what gives the generator, as in `return mw(conn)`; or write "
        "`async def` with a `yield`."
    )


def assigned_dispatch(owner: type, dispatch: object) -> TypeError:
    return TypeError(
        f"`dispatch` of a {owner.__qualname__} cannot be assigned, got {place(dispatch)}: what a "
        "layer runs is settled when it is made.\n"
        f"Pass it as `{owner.__name__}(app, dispatch=mw)`; to put another layer in its place while "
        "the application serves there is `MiddlewareStack.replace`."
    )


def coroutine_function(dispatch: object) -> TypeError:
    if _takes_call_next(dispatch):
        return takes_call_next(dispatch)
    return TypeError(
        f"middleware function {place(dispatch)} is an `async def` without a `yield`.\n"
        "A middleware function is an async generator: write `response = yield` where the inner "
        "app shall run, or `yield some_response` to answer."
    )


def _takes_call_next(dispatch: Any) -> bool:
    try:
        inspect.signature(dispatch).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


def bad_websocket(value: object) -> TypeError:
    return TypeError(
        f"websocket={value!r} is a {type(value).__name__}, not a bool.\n"
        "Write `websocket=True` for a layer that runs around WebSocket handshakes, too."
    )


def bad_option(owner: Any, option: str, value: object, expected: str) -> TypeError:
    return TypeError(f"{owner.__name__}({option}={value!r}): `{option}` must be {expected}.")


def not_in_debug(owner: type) -> RuntimeError:
    return RuntimeError(
        f"{owner.__name__} is for development: it shows the application's layers and requests, and "
        "the application has no `debug=True`.\n"
        f"Give the application `debug=True`, or take {owner.__name__} out. `enabled=True` has it "
        "there all the same, `enabled=False` leaves it out."
    )


def missing_extra(owner: type | str, distribution: str, extra: str) -> ImportError:
    name = owner if isinstance(owner, str) else owner.__name__
    return ImportError(
        f"{name} needs {distribution}, which is not installed.\n"
        f"Write `pip install 'httpmw[{extra}]'`."
    )


def wrong_order(outer: type, inner: type, harm: str) -> str:
    return (
        f"{outer.__name__} stands outside of {inner.__name__}: {harm}.\n"
        f"Put {inner.__name__} outside of it; `httpmw.middleware.recommended()` gives the order."
        if outer is not inner
        else f"{outer.__name__} is there two times: {harm}.\nTake one of them out."
    )


def no_client(owner: Any) -> RuntimeError:
    return RuntimeError(
        f"{owner.__name__} does not know who asks: the server gives no address of the client, as it"
        " listens on a Unix socket, say.\n"
        "Have it take the address from the proxy (uvicorn: `--proxy-headers"
        " --forwarded-allow-ips='*'`), or write `key=` with a function that says who it is."
    )


def no_rate_limit_layer(owner: Any) -> RuntimeError:
    return RuntimeError(
        f"`{owner.__name__}()` counts in the store of a RateLimitMiddleware, and there is none"
        " around this route.\n"
        'Write `app.add_middleware(RateLimitMiddleware, limit="1000/minute", store=...)`.'
    )


def bad_result(option: str, function: object, value: object, expected: str) -> TypeError:
    return TypeError(
        f"`{option}`, {place(function)}, gave {value!r}, a {type(value).__name__}.\n"
        f"Return {expected}."
    )


def untrusted_origins(layer: type, origins: list[str]) -> str:
    return (
        f"CORSMiddleware lets pages of {', '.join(origins)} ask, and {layer.__name__} refuses all "
        "of their requests that change something.\n"
        f"Write `trusted_origins={origins!r}` where they may, or leave them out of `allow_origins`."
    )


def late_nonce() -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} asked for `csp_nonce` when its response was on its way already, and that has "
        "got none: it is no HTML page.\n"
        "Ask before the response starts: `nonce = str(request.state.csp_nonce)`."
    )


def bad_metric(name: object, description: object) -> ValueError:
    return ValueError(
        f"Cannot send what was measured as {name!r} with the description {description!r}.\n"
        "Write a name that is a token (RFC 9110 section 5.6.2), such as `db`, and a description in "
        "printable characters of ASCII: both go into a header."
    )


def bad_id(make: object, value: object) -> ValueError:
    return ValueError(
        f"{place(make)} gave {value!r} for the id of a request.\n"
        "Return a str that is not empty, of printable characters of ASCII: it goes into a header."
    )


def sync_generator(dispatch: object) -> TypeError:
    return TypeError(
        f"middleware function {place(dispatch)} is a plain `def` with a `yield`.\n"
        "Write `async def`."
    )


def bad_predicate(when: object) -> TypeError:
    return TypeError(
        f"`when` must be a plain function that takes the connection and returns a bool, "
        f"got {place(when)}, a {type(when).__name__}.\n"
        "Write `when=lambda conn: ...`; what has to be awaited belongs into the middleware "
        "function."
    )


def not_initialised(owner: type) -> TypeError:
    return TypeError(
        f"{owner.__qualname__} was not initialised: its `__init__` "
        f"{place(vars_lookup(owner, '__init__'))} does not call `super().__init__(app)`.\n"
        "Call `super().__init__(app)` there."
    )


def no_add_middleware(app: object) -> TypeError:
    named = place(app) if isinstance(app, FunctionType) else f"{app!r}, a {type(app).__name__}"
    remedy = "Write `@http_middleware(app)` above the function"
    if hasattr(app, "include_router"):
        remedy += (
            "; for what is in a FastAPI router write `MiddlewareRouter(middleware=[mw])`, from "
            "`httpmw.fastapi`"
        )
    elif hasattr(app, "routes"):
        remedy += (
            "; a router takes layers where it is made, "
            "`Router(routes, middleware=[Middleware(HTTPMiddleware, dispatch=mw)])`"
        )
    return TypeError(
        "`http_middleware` needs an application with an `add_middleware` method, got "
        f"{named}.\n{remedy}; for another ASGI app write "
        "`app = HTTPMiddleware(app, dispatch=mw)`."
    )


# What the layers of a router cannot stand around.


def uncovered(router: object, what: str, remedy: str) -> TypeError:
    return TypeError(_uncovered(router, what, remedy))


def reached_uncovered(router: object, what: str, remedy: str) -> MiddlewareError:
    return MiddlewareError(_uncovered(router, what, remedy))


def _uncovered(router: Any, what: str, remedy: str) -> str:
    return (
        f"{what} in the {type(router).__name__} with prefix {router.prefix!r}, around which its "
        f"layers cannot stand.\n{remedy}"
    )


def unknown_fastapi(version: str) -> RuntimeError:
    return RuntimeError(
        f"FastAPI {version} is not known to `httpmw.fastapi`: requests come into a router that is "
        "included past what stands around it.\n"
        "Put the routes into an application of their own, add the layers there, and mount that; or "
        "see whether there is a newer httpmw."
    )


# Mistakes of a middleware function while a request runs.


def not_a_generator(dispatch: object, got: object) -> MiddlewareError:
    return MiddlewareError(
        f"middleware function {place(dispatch)} returned {got!r} instead of an async generator.\n"
        f"{_PATTERN}; to step aside for a request return None."
    )


def has_begun(dispatch: object, flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"the generator of {place(flow)} has begun already when {place(dispatch)} gives it; it "
        "would go on where another request has left it.\n"
        "Call the middleware function anew for each request, and keep nothing that it returns."
    )


def awaitable_predicate(when: object, got: object) -> MiddlewareError:
    if isinstance(got, CoroutineType):
        got.close()  # nobody will await it
    return MiddlewareError(
        f"`when` {place(when)} gave {got!r}, which has to be awaited, and counts as true.\n"
        "Write a plain function that returns a bool; what has to be awaited belongs into the "
        "middleware function."
    )


def no_yield(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"middleware function {place(flow)} ended without a yield, so the request was stopped.\n"
        "Write `response = yield` on the path that lets the request through, or "
        "`yield some_response` to answer it."
    )


def second_yield(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"middleware function {place(flow)} yielded a second time without a response; the inner "
        "app has been run already, and it runs once.\n"
        "Yield once; to answer in place of the inner app write `yield some_response`."
    )


def yield_after_response(flow: object, value: object = None) -> MiddlewareError:
    remedy = "Nothing may be yielded after `yield some_response`: one run, one answer."
    frame = getattr(flow, "ag_frame", None)
    if value is None and frame is not None:  # a bare yield, which is to run the inner app
        lines = lines_of_yields(frame.f_code, frame.f_lineno)
        where = f" (line {' or '.join(map(str, lines))})" if lines else ""
        remedy = (
            f"Write `return` after the first yield{where}, the one that gave the response: one "
            "run, one answer."
        )
    return MiddlewareError(
        f"middleware function {place(flow)} yielded again after its response was sent.\n{remedy}"
    )


def bad_yield(flow: object, got: object) -> MiddlewareError:
    remedy = (
        "Yield nothing to run the inner app, or a starlette.responses.Response, such as "
        "`yield JSONResponse(...)`, to answer."
    )
    if isinstance(got, CoroutineType):
        code = got.cr_code
        remedy = (
            f"Write `yield await {got.__name__}(...)` if it gives a response. If it is to be "
            "delegated to as a middleware function, it lacks its `yield` "
            f"({code.co_filename}:{code.co_firstlineno})."
        )
    return MiddlewareError(
        f"middleware function {place(flow)} yielded {got!r}, a {type(got).__name__}.\n{remedy}"
    )


def interim_status(flow: object, status: int) -> MiddlewareError:
    return MiddlewareError(
        f"{_kind(flow)} function {place(flow)} gave its response the status {status:d}, which is "
        f"{_INTERIM}"
    )


_INTERIM = (
    "none of a final response: the client goes on waiting for that (RFC 9110 section 15.2).\n"
    "Give a status of 200 or more; early hints are a message of the inner app's own, "
    "`http.response.early_hint`, and only that accepts a WebSocket handshake."
)


def interim_exception(exc: HTTPException) -> MiddlewareError:
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = ""
    if traceback is not None:
        code = traceback.tb_frame.f_code
        where = f" in {code.co_qualname!r} ({code.co_filename}:{traceback.tb_lineno})"
    return MiddlewareError(f"{exc!r}, raised{where}, has a status which is {_INTERIM}")


def foreign_response(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"middleware function {place(flow)} yielded a received response that is not the one it "
        "was given.\n"
        "Yield the very object that `response = yield` gave, or a new "
        "`Response(await response.read(), ...)`."
    )


def late_delegation(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"middleware function {place(flow)} yielded another middleware function's generator "
        "after the inner app has run.\n"
        "Delegate in place of the first bare yield: `response = yield other(conn)`."
    )


def swallowed(flow: object, exc: BaseException) -> MiddlewareError:
    return MiddlewareError(
        f"middleware function {place(flow)} swallowed {exc!r} and gave no response.\n"
        "After `except` either `raise`, or answer with `yield some_response`."
    )


def open_scope(flow: object) -> MiddlewareError:
    if _is_dispatch(flow):
        return MiddlewareError(
            f"dispatch function {place(flow)} holds a cancel scope, time limit or task group of "
            "anyio or trio open while it awaits `call_next`; the inner app may be running in other "
            "scopes and another task when the function goes on (PEP 789).\n"
            "For a time limit write `async with asyncio.timeout(seconds)`; close every other scope "
            "before `call_next`."
        )
    return MiddlewareError(
        f"middleware function {place(flow)} holds a cancel scope, time limit or task group of "
        "anyio or trio open across a yield; the inner app may be running in other scopes and "
        "another task when the function is resumed (PEP 789).\n"
        "For a time limit call `conn.fail_after(seconds)` before the yield or use "
        "`async with asyncio.timeout(seconds)`; close every other scope before the yield."
    )


def not_held(flow: object, exc: BaseException) -> MiddlewareError:
    kind = "middleware"
    remedy = "Release it after `yield response`, where the function is back in its own task, or use"
    if _is_dispatch(flow):
        kind, remedy = "dispatch", "Release it before `call_next`, or use"
    return MiddlewareError(
        f"{kind} function {place(flow)} was resumed in the task that sends the response and "
        f"failed there with: {exc}\n"
        "An object that belongs to one task (anyio.Lock, anyio.CapacityLimiter, a cancel scope) "
        f"cannot be released there. {remedy} an anyio.Semaphore or an asyncio.Lock."
    )


def too_late(what: str) -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} called {what} after the inner app was run, where it has no effect.\n"
        "Call it before `response = yield`."
    )


def drained(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"middleware function {place(flow)} dropped the request's body with `conn.drain()` and "
        "then ran the inner app, which would miss it.\n"
        "Write `yield some_response` and `return` after it."
    )


def no_request_body(what: str) -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} used {what} for a WebSocket handshake, which has no body.\n"
        "Look at `conn.is_websocket` first."
    )


def body_of_acceptance() -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} set the body of an accepted WebSocket handshake, which has none.\n"
        "To refuse it yield a response of your own; look at `conn.is_websocket` first."
    )


def transform_cancelled() -> MiddlewareError:
    return MiddlewareError(
        "the request body cannot be read any further: the async generator that a middleware "
        "assigned to `conn.body_iterator` was cancelled while it waited for something of its own.\n"
        "In the generator wait for nothing but its input, or shield what it waits for."
    )


def no_limit(what: str) -> TypeError:
    return TypeError(
        f"{_caller()} called {what} without a limit.\n"
        "Write `conn.fail_after(seconds)`, or `idle=` or `total=` with seconds."
    )


def request_body_taken() -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} cannot read the request body any more: the inner app has begun to, or "
        "`conn.drain()` has dropped it.\n"
        "Read it before the yield: `body = await conn.body()`; the inner app still gets it."
    )


def body_not_read() -> BodyNotRead:
    return BodyNotRead(
        f"{_caller()} looked at the body of a response that has not been read: it is still to be "
        "produced.\n"
        "Write `body = await response.read()` first."
    )


def response_body_gone() -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} cannot read or change the body of this response any more: it was already "
        "sent or replaced.\n"
        "Do it between `response = yield` and the end of the function (or `yield response`)."
    )


_TOO_LATE = (
    "Do it between `response = yield` and `yield response`, or leave the latter out where nothing "
    "is to be done afterwards."
)


def edited_after_sent() -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} changed a response that was already sent or replaced; nobody would see it.\n"
        f"{_TOO_LATE}"
    )


def status_after_sent(flow: object, status: object) -> MiddlewareError:
    return MiddlewareError(
        f"{_kind(flow)} function {place(flow)} gave its response the status {status!r} after it "
        f"was already sent or replaced; nobody has seen it.\n{_TOO_LATE}"
    )


def bad_callback(callback: object) -> TypeError:
    return TypeError(
        f"`response.on_sent` takes a plain function of the response, got {place(callback)}, a "
        f"{type(callback).__name__}; it is called in the middle of sending, where nothing can be "
        "awaited.\n"
        "Write `def done(response): ...`; what has to be awaited belongs after `yield response`."
    )


def observed_too_late() -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} called `response.on_sent()` when the response was on its way already.\n"
        "Call it between `response = yield` and the end of the function (or `yield response`)."
    )


def failed_callback(callback: object) -> str:
    return f"the callback {place(callback)} of `response.on_sent` failed; the response is unharmed"


def own_task() -> MiddlewareError:
    return MiddlewareError(
        f"{_caller()} read a body from a task of its own (`create_task`, `gather`, a task group, "
        "or `asyncio.wait_for` on Python 3.11); the inner app produces it only while the "
        "middleware function itself waits for it.\n"
        "Write `await response.read()` or `async for chunk in response.body_iterator` directly; "
        "for a time limit `async with asyncio.timeout(seconds)`."
    )


def scope_over_read() -> MiddlewareError:
    return MiddlewareError(
        "a response body was read inside a cancel scope, time limit or task group of anyio or "
        "trio; the inner app has to run on while the body is read, and its scopes would be "
        "crossed (PEP 789).\n"
        "Read the body outside of it; for a time limit `async with asyncio.timeout(seconds)`."
    )


def scope_over_request() -> MiddlewareError:
    return MiddlewareError(
        "the async generator that a middleware assigned to `conn.body_iterator` waited for its "
        "input inside a cancel scope, time limit or task group of anyio or trio; whoever reads the "
        "request body has scopes of its own, which would be crossed (PEP 789).\n"
        "Wait for the input outside of it; to limit the time of an upload read it before the "
        "yield, with `await conn.body()`."
    )


def bad_scope(got: object) -> TypeError:
    return TypeError(
        f"{_caller()} assigned {got!r}, a {type(got).__name__}, to `conn.scope`, which is a dict.\n"
        'Write `conn.scope = {**conn.scope, "path": "/new"}`, or edit it in place.'
    )


def bad_body(got: object) -> TypeError:
    return TypeError(
        f"a body must be bytes or str, got {got!r}, a {type(got).__name__}.\n"
        "Encode it first, for example `json.dumps(data).encode()`."
    )


def bad_body_iterator(got: object) -> TypeError:
    return TypeError(
        f"`body_iterator` must be an async iterable of bytes, got {got!r}, "
        f"a {type(got).__name__}.\n"
        "Write an async generator and call it: `x.body_iterator = transform(x.body_iterator)`."
    )


def assigned_headers(got: object) -> MiddlewareError:
    return MiddlewareError(
        f"`response.headers` was assigned {got!r}, a {type(got).__name__}, in a middleware "
        "function; the headers of a response are edited in place.\n"
        "Write `response.headers.update({...})`, or `response.raw_headers = [(b'name', b'value')]` "
        "to replace them all."
    )


def called_response() -> MiddlewareError:
    return MiddlewareError(
        "a received response cannot be called as an ASGI app.\n"
        "Send it with `yield response`, or by ending the middleware function."
    )


# Mistakes of a dispatch function, in `call_next` style.


def _is_dispatch(flow: object) -> bool:
    return hasattr(flow, "call_next")


def _kind(flow: object) -> str:
    return "dispatch" if _is_dispatch(flow) else "middleware"


def coroutine_has_begun(dispatch: object) -> MiddlewareError:
    return MiddlewareError(
        f"dispatch function {place(dispatch)} gave a coroutine that has begun already; it would go "
        "on where another request has left it.\n"
        "Call the function anew for each request, and keep nothing that it returns."
    )


def not_awaitable(flow: object, got: object) -> MiddlewareError:
    return MiddlewareError(
        f"dispatch function {place(flow)} returned {got!r}, a {type(got).__name__}, which cannot "
        "be awaited.\n"
        "Write `async def dispatch(request, call_next)`; an async generator is for "
        "`httpmw.HTTPMiddleware`."
    )


def no_response_returned(flow: object, got: object) -> MiddlewareError:
    return MiddlewareError(
        f"dispatch function {place(flow)} returned {got!r}, a {type(got).__name__}, instead of a "
        "response.\n"
        "Write `return response` with the one that `await call_next(request)` gave, or with "
        "another, on every path; after an `except`, too, or `raise` there."
    )


def foreign_returned(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"dispatch function {place(flow)} returned a received response that is not the one it was "
        "given.\n"
        "Return the very object that `await call_next(request)` gave, or a new "
        "`Response(await response.read(), ...)`."
    )


def raised_stop(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"dispatch function {place(flow)} raised StopAsyncIteration, which would look like its "
        "end.\n"
        "Give `anext()` a default, or catch the exception around it."
    )


def second_call_next(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"dispatch function {place(flow)} awaited `call_next` a second time; the inner app has "
        "been run already, and it runs once.\n"
        "Keep the response of the first call, or return another one."
    )


def call_next_elsewhere(flow: object) -> MiddlewareError:
    return MiddlewareError(
        f"`call_next` of dispatch function {place(flow)} was awaited outside of it: in a task of "
        "its own (`create_task`, `gather`, a task group, or `asyncio.wait_for` on Python 3.11), "
        "or after its end; the inner app runs in the task of the request.\n"
        "Write `response = await call_next(request)` in the function itself; for a time limit "
        "`async with asyncio.timeout(seconds)` around it."
    )


def unknown_starlette(version: str, why: str) -> RuntimeError:
    return RuntimeError(
        f"patch_starlette() does not know the `BaseHTTPMiddleware` of Starlette {version}: {why}.\n"
        "Nothing was changed. Import `BaseHTTPMiddleware` from `httpmw.compat` instead, or see "
        "whether there is a newer httpmw."
    )


def patched_starlette(name: str, method: object) -> RuntimeError:
    return RuntimeError(
        f"patch_starlette() found that `{name}` of Starlette's `BaseHTTPMiddleware` is not "
        f"Starlette's own: it was replaced by {place(method)}.\n"
        "Nothing was changed. Call `patch_starlette()` first, before whatever replaced it."
    )


# Mistakes in editing a stack.


def _called(target: object) -> str:
    name = getattr(target, "name", getattr(target, "__qualname__", target))
    return f"{type(target).__name__} {name!r}"


def layer_not_found(target: object, drawn: str) -> StackError:
    return StackError(
        f"there is no layer for {_called(target)} in the stack. The layers, outermost first:\n"
        f"{drawn}\n"
        "Name a layer by what `add` returned, by its class, its function or its name."
    )


def layer_found_twice(target: object, number: int, drawn: str) -> StackError:
    return StackError(
        f"there are {number} layers for {_called(target)} in the stack. The layers, outermost "
        f"first:\n{drawn}\n"
        "Name the one by what `add` returned, or give each a `name=`."
    )


def two_places() -> StackError:
    return StackError(
        "more than one of `before`, `after` and `innermost` was given.\nGive one of them, or none "
        "for the outermost place."
    )


def beside_itself(name: str) -> StackError:
    return StackError(
        f"the layer {name!r} cannot be moved to before or after itself.\nName another layer."
    )


def not_outside(name: str, drawn: str) -> StackError:
    return StackError(
        f"with `outside_errors=True` a layer cannot stand beside {name!r}, which is inside of the "
        f"error handler. The layers, outermost first:\n{drawn}\n"
        "Leave one of the two out."
    )


def no_error_handler() -> StackError:
    return StackError(
        "`outside_errors=True` is for a stack that was put into a Starlette or FastAPI "
        "application with `MiddlewareStack.install(app)`.\n"
        "In a stack around an app the outermost layer is outside of everything: leave it out."
    )


def edit_is_open() -> StackError:
    return StackError(
        "the stack is being edited in this thread already: a `with stack.edit() as draft` is "
        "open, or a layer is being made.\n"
        "Edit the `draft`, and await nothing inside of the block."
    )


def draft_over() -> StackError:
    return StackError(
        "this edit is over: its `with stack.edit() as draft` has been left.\n"
        "Edit the stack itself, or open another edit."
    )


def uninstalled() -> StackError:
    return StackError(
        "this stack was uninstalled.\n`MiddlewareStack.install(app)` gives a new one."
    )


def not_installed() -> StackError:
    return StackError(
        "this stack was not put into an application with `MiddlewareStack.install(app)`, so it "
        "cannot be uninstalled."
    )


def not_started(app: object) -> StackError:
    return StackError(
        f"the stack of {app!r} was called before its application.\nCall the application."
    )


def layers_left_out(build: object) -> StackError:
    return StackError(
        f"`build_middleware_stack`, {place(build)}, leaves `user_middleware` out, so a stack has "
        "no place in this application.\n"
        "Put the stack around it: `app = MiddlewareStack(app, [...])`."
    )


def not_a_layer(got: object) -> TypeError:
    hint = "Write `Middleware(cls, option=...)`, or pass an async generator function."
    if isinstance(got, type):
        hint = f"Write `Middleware({got.__name__})`, with its options."
    elif hasattr(got, "middleware"):
        hint = "A layer is in one stack, once: pass its `layer.middleware` to make another one."
    return TypeError(
        f"a layer must be a `Middleware` object or a middleware function, got {got!r}, "
        f"a {type(got).__name__}.\n{hint}"
    )


def no_instance(spec: object, got: object) -> TypeError:
    return TypeError(
        f"{spec!r} made {got!r}, a {type(got).__name__}, instead of an ASGI app.\n"
        "The class or factory of a middleware takes the inner app and gives an ASGI app."
    )


def not_an_application(app: object) -> TypeError:
    return TypeError(
        f"`install` needs a Starlette or FastAPI application, got {app!r}, "
        f"a {type(app).__name__}.\n"
        "Around another ASGI app write `app = MiddlewareStack(app, [...])`."
    )


# Mistakes of the inner app.


def second_start() -> RuntimeError:
    return RuntimeError("the inner app sent a second http.response.start")


def over() -> RuntimeError:
    return RuntimeError("the inner app sent a message after the request was over")


def no_response(app: object) -> NoResponseError:
    return NoResponseError(
        f"the inner app {place(app)} returned without sending a response.\n"
        "It has to send `http.response.start` and a body."
    )


def no_answer(app: object) -> NoResponseError:
    return NoResponseError(
        f"the inner app {place(app)} returned without answering a WebSocket handshake.\n"
        "It has to send `websocket.accept` or `websocket.close`."
    )


def status_of_acceptance(flow: object, status: int) -> MiddlewareError:
    return MiddlewareError(
        f"{_kind(flow)} function {place(flow)} set the status of an accepted WebSocket handshake "
        f"to {status}: an acceptance has status 101 (RFC 6455 section 4.2.2).\n"
        f"To refuse the handshake write `yield Response(status_code={status})`."
    )


def truncated(app: object) -> NoResponseError:
    return NoResponseError(
        f"the inner app {place(app)} returned in the middle of its response body."
    )
