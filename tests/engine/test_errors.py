"""
What httpmw says when it is used wrongly.

Each message names the function, its file and a line in it, what it did, and what to write instead.
What can be known when a layer is made is refused there, the rest with the first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import pickle
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import httpmw
from httpmw import (
    AppResponse,
    BodyTooLarge,
    Connection,
    DeadlineExceeded,
    Flow,
    HTTPMiddleware,
    HTTPMWError,
    MiddlewareError,
    NoResponseError,
    ResponseTooLarge,
)
from httpmw.testing import step
from tests.harness import Inner, Server, body, explained, plain_inner, request, script, stack, start

Layers = Callable[[ASGIApp, Callable[..., Any]], ASGIApp]


async def nothing(conn: Connection) -> Flow:
    yield


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(await Request(scope, receive).body())(scope, receive, send)


def failing(error: BaseException) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


async def misuse(app: ASGIApp, **options: Any) -> tuple[MiddlewareError, Server]:
    """Run *app*; return the `MiddlewareError` that comes out of it, and the server."""
    server = await request(app, keep_error=True, **options)
    assert isinstance(server.error, MiddlewareError), repr(server.error)
    return server.error, server


# -- the tree --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (HTTPMWError, Exception),
        (MiddlewareError, HTTPMWError),
        (MiddlewareError, RuntimeError),
        (NoResponseError, HTTPMWError),
        (NoResponseError, RuntimeError),
        (BodyTooLarge, HTTPMWError),
        (BodyTooLarge, HTTPException),
        (ResponseTooLarge, HTTPMWError),
        (DeadlineExceeded, HTTPMWError),
        (DeadlineExceeded, TimeoutError),
    ],
)
def test_tree(error: type[Exception], base: type[Exception]) -> None:
    """Every exception of the package has one base, and the one that it is a kind of."""
    assert issubclass(error, base)


def test_tree_is_whole() -> None:
    """The package has these seven exceptions and no other public one."""
    public = {
        name
        for name in httpmw.__all__
        if inspect.isclass(getattr(httpmw, name)) and issubclass(getattr(httpmw, name), Exception)
    }

    assert public == {
        "BodyTooLarge",
        "DeadlineExceeded",
        "HTTPMWError",
        "MiddlewareError",
        "NoResponseError",
        "ResponseTooLarge",
        "StackError",
    }


def test_traceback_names_the_public_place() -> None:
    """What a traceback calls the exception is what can be imported."""
    assert traceback.format_exception_only(MiddlewareError("no"))[0] == (
        "httpmw.MiddlewareError: no\n"
    )
    assert isinstance(pickle.loads(pickle.dumps(NoResponseError("no"))), NoResponseError)  # noqa: S301


def test_middleware_error_is_no_http_exception() -> None:
    """A mistake in a function is a 500 of the server, and no answer of its own."""
    assert not issubclass(MiddlewareError, HTTPException)
    assert not issubclass(NoResponseError, MiddlewareError)


def test_body_too_large_is_a_413() -> None:
    """`BodyTooLarge` carries the status, and says the limit."""
    error = BodyTooLarge(1000)

    assert error.status_code == 413
    assert "1000" in error.detail


def test_response_too_large_is_no_answer() -> None:
    """`ResponseTooLarge` is the server's own failure, and says the limit and what to write."""
    error = pickle.loads(pickle.dumps(ResponseTooLarge(1000)))  # noqa: S301

    assert not issubclass(ResponseTooLarge, HTTPException)
    assert error.max_size == 1000
    assert "1000 bytes" in str(error)
    assert "Write `except ResponseTooLarge:`" in str(error)


# -- refused when the layer is made ----------------------------------------------------------


async def no_yield(conn: Connection) -> None:
    return None


async def returns_response(conn: Connection) -> Response:
    return PlainTextResponse("x")


def sync_generator(conn: Connection) -> Iterator[None]:
    yield


class Callee:
    """Methods that are no middleware functions."""

    async def __call__(self, conn: Connection) -> None:
        return None

    async def method(self, conn: Connection) -> None:
        return None

    def sync_method(self, conn: Connection) -> Iterator[None]:
        yield


def refused(*args: Any, cls: type = HTTPMiddleware, **options: Any) -> str:
    """Make a layer; return the message of the `TypeError`."""
    with pytest.raises(TypeError) as caught:
        cls(plain_inner(), *args, **options)
    assert type(caught.value) is TypeError
    return str(caught.value)


@pytest.mark.parametrize("function", [no_yield, returns_response])
def test_coroutine_function(function: Any) -> None:
    """An `async def` without a `yield` is refused."""
    message = refused(dispatch=function)

    explained(TypeError(message), function, "without a `yield`", "`response = yield`")


def test_sync_generator_function() -> None:
    """A plain `def` with a `yield` is refused."""
    message = refused(dispatch=sync_generator)

    explained(TypeError(message), sync_generator, "`async def`")


@pytest.mark.parametrize(
    ("dispatch", "name"),
    [
        (Callee(), "Callee.__call__"),
        (Callee().method, "Callee.method"),
        (functools.partial(no_yield), "no_yield"),
        (functools.partial(Callee.method, Callee()), "Callee.method"),
        (Callee().sync_method, "Callee.sync_method"),
        (functools.partial(sync_generator), "sync_generator"),
    ],
    ids=["object", "method", "partial", "partial-method", "sync-method", "partial-sync"],
)
def test_unfit_function_behind_something(dispatch: Any, name: str) -> None:
    """The function inside an object, a method or a partial is found, and named."""
    message = refused(dispatch=dispatch)

    assert name in message
    assert "test_errors.py:" in message


@pytest.mark.parametrize("thing", ["mw", 1, {}, object()])
def test_not_callable(thing: Any) -> None:
    """Something that cannot be called is refused, shown with its type."""
    message = refused(dispatch=thing)

    assert repr(thing) in message
    assert type(thing).__name__ in message
    assert "response = yield" in message


def test_generator_instead_of_the_function() -> None:
    """`dispatch=mw(conn)` is refused: the function itself is wanted."""
    message = refused(dispatch=nothing(None))

    explained(TypeError(message), nothing, "without calling it")


def test_class_instead_of_an_instance() -> None:
    """A class of callable objects is refused: an instance is wanted."""

    class Fit:
        async def __call__(self, conn: Connection) -> Flow:
            yield

    message = refused(dispatch=Fit)

    assert "Fit" in message
    assert "instance" in message


def test_middleware_class_as_dispatch() -> None:
    """A subclass of `HTTPMiddleware` given as `dispatch` is told to be registered by itself."""

    class Mine(HTTPMiddleware):
        async def dispatch(self, conn: Connection) -> Flow:
            yield

    message = refused(dispatch=Mine)

    assert "`Middleware(Mine)`" in message


def test_coroutine_instead_of_the_function() -> None:
    """A coroutine object is refused, and not left to be warned about."""
    coroutine = no_yield(None)
    message = refused(dispatch=coroutine)
    coroutine.close()

    assert "coroutine" in message


def test_no_dispatch_at_all() -> None:
    """`HTTPMiddleware(app)` is refused, and says the two ways to give the function."""
    message = refused()

    assert "HTTPMiddleware" in message
    assert "`Middleware(HTTPMiddleware, dispatch=mw)`" in message
    assert "`async def dispatch(self, conn)`" in message


def test_dispatch_is_none() -> None:
    """`dispatch=None` is the same as none at all."""
    assert refused(dispatch=None) == refused()


def test_subclass_without_dispatch() -> None:
    """A subclass that overrides nothing is named, and told to override `dispatch`."""

    class Forgot(HTTPMiddleware):
        """It forgot its `dispatch`."""

    message = refused(cls=Forgot)

    assert Forgot.__qualname__ in message
    assert "`async def dispatch(self, conn)`" in message


def test_dispatch_given_twice() -> None:
    """A subclass with a `dispatch` of its own is given no other one; both are named."""

    class Twice(HTTPMiddleware):
        async def dispatch(self, conn: Connection) -> Flow:
            yield

    message = refused(cls=Twice, dispatch=nothing)

    explained(TypeError(message), Twice.dispatch, "Twice.dispatch", "Keep one")
    explained(TypeError(message[message.index("dispatch=") :]), nothing)


@pytest.mark.parametrize("kind", ["coroutine", "sync"])
def test_unfit_dispatch_in_a_subclass(kind: str) -> None:
    """An overridden `dispatch` is looked at like a function."""

    class NoYield(HTTPMiddleware):
        async def dispatch(self, conn: Connection) -> None:
            return None

    class NotAsync(HTTPMiddleware):
        def dispatch(self, conn: Connection) -> Iterator[None]:
            yield

    cls = NoYield if kind == "coroutine" else NotAsync
    message = refused(cls=cls)

    explained(TypeError(message), cls.dispatch, f"{cls.__name__}.dispatch")


@pytest.mark.parametrize("when", ["/path", True, 1, {"path": "/"}])
def test_when_that_cannot_be_called(when: Any) -> None:
    """`when=` must be a function; the message shows what came, and a lambda to write."""
    message = refused(dispatch=nothing, when=when)

    assert repr(when) in message
    assert "`when=lambda conn: ...`" in message


def test_when_that_is_async() -> None:
    """An `async def` predicate is refused: its coroutine would always be true."""

    async def predicate(conn: Connection) -> bool:
        return False

    message = refused(dispatch=nothing, when=predicate)

    explained(TypeError(message), predicate, "plain function")


def test_refused_with_the_first_request_of_an_application() -> None:
    """An application makes its layers late; the error names the function just the same."""
    app = Starlette(middleware=[Middleware(HTTPMiddleware, dispatch=no_yield)])

    with pytest.raises(TypeError) as caught:
        app.build_middleware_stack()

    explained(caught.value, no_yield)


class Forgetful(HTTPMiddleware):
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def dispatch(self, conn: Connection) -> Flow:
        yield


async def test_constructor_that_forgets_the_base() -> None:
    """A subclass that does not call `super().__init__(app)` is told so, with the place."""
    with pytest.raises(TypeError) as caught:
        await request(Forgetful(plain_inner()))

    explained(caught.value, Forgetful.__init__, "Forgetful", "`super().__init__(app)`")


async def test_constructor_that_forgets_the_base_inside_another_layer() -> None:
    """The same is said where such a layer is wrapped by another one."""
    with pytest.raises(TypeError) as caught:
        await request(HTTPMiddleware(Forgetful(plain_inner()), dispatch=nothing))

    explained(caught.value, Forgetful.__init__, "`super().__init__(app)`")


async def test_constructor_that_forgets_the_base_in_a_test() -> None:
    """The tools of `httpmw.testing` say the same."""
    with pytest.raises(TypeError) as caught:
        async with step(Forgetful(plain_inner())):
            pass

    explained(caught.value, Forgetful.__init__, "`super().__init__(app)`")


async def test_error_about_the_base_stands_alone() -> None:
    """It is not told as something that went wrong in the handling of something else."""
    with pytest.raises(TypeError) as caught:
        await request(Forgetful(plain_inner()))

    assert caught.value.__context__ is None


# -- yields ----------------------------------------------------------------------------------


async def test_end_before_any_yield(layers: Layers) -> None:
    """A function that ends without a yield stops the request: the app is not run."""

    async def forgetful(conn: Connection) -> Flow:
        if conn.method == "POST":
            yield

    inner = plain_inner()
    error, server = await misuse(layers(inner, forgetful))

    explained(error, forgetful, "without a yield", "`response = yield`", "`yield some_response`")
    assert inner.runs == 0
    assert server.sent == []


async def test_second_bare_yield(layers: Layers) -> None:
    """A second bare yield is an error: the app runs once."""

    async def twice(conn: Connection) -> Flow:
        yield
        yield

    inner = plain_inner()
    error, server = await misuse(layers(inner, twice))

    explained(error, twice, "second time", "`yield some_response`")
    assert inner.runs == 1
    assert server.sent == []


async def test_function_under_a_predicate_returns_something_else() -> None:
    """The error names the function, not what is between it and its predicate."""

    def five(conn: Connection) -> Any:
        return 5

    inner = plain_inner()
    error, _ = await misuse(HTTPMiddleware(inner, dispatch=five, when=lambda conn: True))

    explained(error, five, "returned 5", "async generator")
    assert inner.runs == 0


async def test_second_bare_yield_after_a_failure(layers: Layers) -> None:
    """A retry after the app failed is an error that keeps the failure as its context."""
    failure = ValueError("failure")

    async def retry(conn: Connection) -> Flow:
        try:
            yield
        except ValueError:
            yield

    error, server = await misuse(layers(failing(failure), retry))

    explained(error, retry, "runs once")
    assert failure in (error.__cause__, error.__context__)
    assert server.sent == []


async def test_response_yielded_twice(inner: Inner, layers: Layers) -> None:
    """A response that was sent cannot be sent again; the one that is out stays intact."""

    async def doubled(conn: Connection) -> Flow:
        response = yield
        yield response
        yield response

    error, server = await misuse(layers(inner, doubled))

    explained(error, doubled, "after its response was sent", "one run, one answer")
    assert (server.body, server.complete) == (Inner.BODY, True)


async def test_bare_yield_after_the_response(inner: Inner, layers: Layers) -> None:
    """A bare yield after `yield response` is an error; the response stays intact."""

    async def late(conn: Connection) -> Flow:
        response = yield
        yield response
        yield

    error, server = await misuse(layers(inner, late))

    explained(error, late, "after its response was sent")
    assert (server.body, server.complete) == (Inner.BODY, True)


@pytest.mark.parametrize("second", [None, PlainTextResponse("second")], ids=["bare", "response"])
async def test_yield_after_an_early_answer(second: Response | None, layers: Layers) -> None:
    """Falling through after an early answer is an error; the app is not run after all."""

    async def fall_through(conn: Connection) -> Flow:
        yield PlainTextResponse("first")
        yield second

    inner = plain_inner()
    error, server = await misuse(layers(inner, fall_through))

    explained(error, fall_through, "after its response was sent")
    assert (server.body, server.complete) == (b"first", True)
    assert inner.runs == 0


async def test_yield_after_a_replacement(inner: Inner, layers: Layers) -> None:
    """A second replacement is an error; the first one stays intact."""

    async def undecided(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("first")
        yield PlainTextResponse("second")

    error, server = await misuse(layers(inner, undecided))

    explained(error, undecided, "after its response was sent")
    assert (server.body, server.complete) == (b"first", True)


NO_RESPONSES: list[Any] = [
    pytest.param("text", id="text"),
    pytest.param(b"bytes", id="bytes"),
    pytest.param({"a": 1}, id="dict"),
    pytest.param(404, id="int"),
    pytest.param(False, id="false"),
    pytest.param(Response, id="class"),
    pytest.param(HTTPException(403), id="exception"),
]


@pytest.mark.parametrize("value", NO_RESPONSES)
@pytest.mark.parametrize("after", [False, True], ids=["first", "second"])
async def test_yield_of_something_else(value: Any, after: bool, layers: Layers) -> None:
    """A yielded value that is no response is an error that shows the value and its type."""

    async def wrong(conn: Connection) -> Flow:
        if after:
            yield
        yield value

    inner = plain_inner()
    error, server = await misuse(layers(inner, wrong))

    explained(error, wrong, repr(value), type(value).__name__, "Response", "`yield JSONResponse(")
    assert inner.runs == int(after)
    assert server.sent == []


async def test_yield_of_a_coroutine(layers: Layers) -> None:
    """`yield other(conn)` of a coroutine function is an error, and the coroutine is closed."""

    async def wrong(conn: Connection) -> Flow:
        yield no_yield(conn)

    error, server = await misuse(layers(plain_inner(), wrong))

    explained(error, wrong, "coroutine", "`yield await no_yield(...)`")
    explained(str(error).partition("lacks its `yield`")[2] + " no_yield", no_yield)
    assert server.sent == []


async def test_swallowed_failure(layers: Layers) -> None:
    """A function that hides the app's failure and answers nothing is named, from that failure."""
    failure = ValueError("the failure")

    async def hide(conn: Connection) -> Flow:
        with contextlib.suppress(ValueError):
            yield

    error, server = await misuse(layers(failing(failure), hide))

    explained(error, hide, "swallowed", "the failure", "`raise`", "`yield some_response`")
    assert error.__cause__ is failure
    assert server.sent == []


async def test_swallowed_missing_response(layers: Layers) -> None:
    """An app without a response is not passed over in silence either."""

    async def hide(conn: Connection) -> Flow:
        with contextlib.suppress(NoResponseError):
            yield

    error, server = await misuse(layers(script(), hide))

    explained(error, hide, "swallowed")
    assert isinstance(error.__cause__, NoResponseError)
    assert server.sent == []


async def test_missing_response_names_the_app(fused: bool) -> None:
    """`NoResponseError` names the app that gave none, and what an app has to send."""

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    server = await request(stack(silent, nothing, nothing, fused=fused), keep_error=True)

    assert isinstance(server.error, NoResponseError)
    explained(server.error, silent, "http.response.start")


async def test_mistake_is_an_exception_for_outer_layers(fused: bool) -> None:
    """A layer further out gets the `MiddlewareError` at its yield, and may answer."""

    async def twice(conn: Connection) -> Flow:
        yield
        yield

    async def guard(conn: Connection) -> Flow:
        try:
            yield
        except MiddlewareError as error:
            explained(error, twice)
            yield PlainTextResponse("guarded", 500)

    server = await request(stack(plain_inner(), guard, twice, fused=fused))

    assert (server.status, server.body) == (500, b"guarded")


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_mistake_is_a_500_of_the_application(framework: type[Starlette]) -> None:
    """The client gets the application's own 500, and the error is raised to the server."""

    async def twice(conn: Connection) -> Flow:
        yield
        yield

    app = framework()
    app.router.routes.append(Route("/", lambda request: PlainTextResponse("x")))
    app.add_middleware(HTTPMiddleware, dispatch=twice)
    error, server = await misuse(app)

    explained(error, twice)
    assert (server.status, server.complete) == (500, True)


# -- what dispatch returns -------------------------------------------------------------------


async def test_dispatch_that_returns_a_coroutine(layers: Layers) -> None:
    """A plain function that returns a coroutine is an error; the coroutine is closed."""

    def disguised(conn: Connection) -> Any:
        return no_yield(conn)

    inner = plain_inner()
    error, _ = await misuse(layers(inner, disguised))

    explained(error, disguised, "coroutine", "async generator", "None")
    assert inner.runs == 0


@pytest.mark.parametrize(
    "value",
    [PlainTextResponse("x"), "text", True, False, 0, iter([])],
    ids=["response", "text", "true", "false", "zero", "iterator"],
)
async def test_dispatch_that_returns_something_else(value: Any, layers: Layers) -> None:
    """A plain function that returns anything but a generator or `None` is an error."""

    def odd(conn: Connection) -> Any:
        return value

    inner = plain_inner()
    error, server = await misuse(layers(inner, odd))

    explained(error, odd, repr(value), "async generator", "step aside", "None")
    assert inner.runs == 0
    assert server.sent == []


async def test_dispatch_that_returns_a_generator_twice(fused: bool) -> None:
    """One generator serves one request; giving it again is an error, not an empty pass."""
    made: list[Any] = []

    def saving(conn: Connection) -> Flow:
        if not made:
            made.append(nothing(conn))
        return made[0]

    inner = plain_inner()
    app = stack(inner, nothing, saving, fused=fused)
    await request(app)
    await misuse(app)

    assert inner.runs == 1


# -- delegation ------------------------------------------------------------------------------


async def test_delegation_after_the_app_ran(inner: Inner, layers: Layers) -> None:
    """Another function's generator cannot be run around an app that ran already."""
    ran = []

    async def other(conn: Connection) -> Flow:
        ran.append(1)
        yield

    async def late(conn: Connection) -> Flow:
        yield
        yield other(conn)

    error, server = await misuse(layers(inner, late))

    explained(error, late, "after the inner app has run", "`response = yield other(conn)`")
    assert ran == []
    assert server.sent == []


async def test_delegation_after_the_answer(layers: Layers) -> None:
    """Another function's generator cannot be yielded after an answer either."""

    async def late(conn: Connection) -> Flow:
        yield PlainTextResponse("first")
        yield nothing(conn)

    error, server = await misuse(layers(plain_inner(), late))

    explained(error, late)
    assert (server.body, server.complete) == (b"first", True)


async def test_second_delegation(layers: Layers) -> None:
    """The app runs once, so a function can delegate once."""

    async def doubled(conn: Connection) -> Flow:
        yield nothing(conn)
        yield nothing(conn)

    inner = plain_inner()
    error, _ = await misuse(layers(inner, doubled))

    explained(error, doubled)
    assert inner.runs == 1


async def test_mistake_in_a_delegate_names_the_delegate(layers: Layers) -> None:
    """Where the other function is at fault, it is the one that is named."""

    async def delegate(conn: Connection) -> Flow:
        yield
        yield

    async def fine(conn: Connection) -> Flow:
        yield delegate(conn)

    error, _ = await misuse(layers(plain_inner(), fine))

    explained(error, delegate)


# -- received responses ----------------------------------------------------------------------


async def test_received_response_called_as_an_app(layers: Layers) -> None:
    """A received response cannot be sent by calling it."""

    async def calling(conn: Connection) -> Flow:
        response = yield
        await response(conn.scope, conn.receive, conn._send)

    error, server = await misuse(layers(plain_inner(), calling))

    assert "`yield response`" in str(error)
    assert server.sent == []


async def test_response_of_another_request(layers: Layers) -> None:
    """A response that was received for another request cannot be yielded."""
    kept: list[Any] = []

    async def keeping(conn: Connection) -> Flow:
        response = yield
        kept.append(response)
        if len(kept) == 2:
            yield kept[0]

    app = layers(plain_inner(), keeping)
    await request(app)
    error, server = await misuse(app)

    explained(error, keeping)
    assert server.sent == []


async def test_unread_body() -> None:
    """`response.body` before `read()` says to read first; `hasattr` is simply false."""
    messages = []

    async def look(conn: Connection) -> Flow:
        response = yield
        assert not hasattr(response, "body")
        with pytest.raises(MiddlewareError) as caught:
            _ = response.body
        messages.append(caught.value)

    await request(HTTPMiddleware(plain_inner(), dispatch=look))

    explained(messages[0], look, "`body = await response.read()`")


@pytest.mark.parametrize("value", [{"a": 1}, 7, ["a"]], ids=["dict", "int", "list"])
async def test_body_of_a_wrong_type(value: Any, layers: Layers) -> None:
    """A body that is not bytes or text is refused at the assignment, in the function itself."""

    async def wrong(conn: Connection) -> Flow:
        response = yield
        response.body = value

    server = await request(layers(plain_inner(), wrong), keep_error=True)

    assert isinstance(server.error, TypeError)
    assert repr(value) in str(server.error)
    assert "bytes" in str(server.error)
    assert server.sent == []


@pytest.mark.parametrize(
    "value", [b"bytes", "text", 7, sync_generator], ids=["bytes", "text", "int", "function"]
)
async def test_body_iterator_of_a_wrong_type(value: Any, layers: Layers) -> None:
    """A `body_iterator` that cannot be iterated asynchronously is refused at the assignment."""

    async def wrong(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = value

    server = await request(layers(plain_inner(), wrong), keep_error=True)

    assert isinstance(server.error, TypeError)
    assert "`x.body_iterator = transform(x.body_iterator)`" in str(server.error)
    assert server.sent == []


async def test_transform_that_yields_something_else(fused: bool) -> None:
    """A chunk that is not bytes or text is refused; the body stays cut."""

    async def numbers(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Any]:
        async for chunk in chunks:
            yield chunk
            yield 7

    async def wrong(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = numbers(response.body_iterator)

    app = script(start(), body(b"a", more=True), body(b"b"))
    server = await request(stack(app, nothing, wrong, fused=fused), keep_error=True)

    assert isinstance(server.error, TypeError)
    assert "bytes" in str(server.error)
    assert not server.complete


@pytest.mark.parametrize("how", ["read", "iterate", "body", "body_iterator"])
async def test_body_after_the_response_was_sent(how: str, inner: Inner, layers: Layers) -> None:
    """Reading or changing the body after `yield response` is a clear error, never a hang."""
    errors: list[Any] = []

    async def late(conn: Connection) -> Flow:
        response = yield
        yield response
        try:
            if how == "read":
                await response.read()
            elif how == "iterate":
                async for _ in response.body_iterator:
                    pass
            elif how == "body":
                response.body = b"late"
            else:
                response.body_iterator = iter([])
        except MiddlewareError as error:
            errors.append(error)

    server = await request(layers(inner, late))

    assert len(errors) == 1
    explained(errors[0], late, "`response = yield`")
    assert (server.body, server.complete) == (Inner.BODY, True)


@pytest.mark.parametrize("what", ["fail_after", "replace_body", "body_iterator", "stream"])
async def test_request_after_the_app_was_run(what: str, layers: Layers) -> None:
    """What has an effect before the yield only is refused after it, by function and line."""
    errors: list[MiddlewareError] = []

    async def late(conn: Connection) -> Flow:
        yield
        with pytest.raises(MiddlewareError) as caught:
            if what == "fail_after":
                conn.fail_after(1)
            elif what == "replace_body":
                conn.replace_body(b"late")
            elif what == "body_iterator":
                conn.body_iterator = iter([])  # type: ignore[assignment]
            else:
                await anext(conn.stream())
        errors.append(caught.value)

    await request(layers(echo, late), body=b"body")

    explained(errors[0], late, "yield")


# -- a body read elsewhere -------------------------------------------------------------------


async def in_an_asyncio_task(response: AppResponse) -> None:
    await asyncio.create_task(response.read())


async def in_gather(response: AppResponse) -> None:
    await asyncio.gather(response.read())


async def in_wait_for(response: AppResponse) -> None:
    await asyncio.wait_for(response.read(), 60)


async def in_a_task_group(response: AppResponse) -> None:
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(response.read)
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None


async def in_a_task_iterating(response: AppResponse) -> None:
    async def iterate() -> None:
        async for _ in response.body_iterator:
            pass

    await asyncio.create_task(iterate())


@pytest.mark.parametrize(
    "read",
    [
        in_an_asyncio_task,
        in_gather,
        in_a_task_iterating,
        pytest.param(
            in_wait_for,
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="stays in its task"),
        ),
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_body_read_from_a_task_of_its_own(
    read: Callable[[AppResponse], Any], inner: Inner, layers: Layers
) -> None:
    """A body read from another asyncio task is refused at once, where it is read."""

    async def wrong(conn: Connection) -> Flow:
        response = yield
        await read(response)

    error, server = await misuse(layers(inner, wrong))

    assert "task of its own" in str(error)
    assert "`await response.read()`" in str(error)
    # Where the task runs nothing but `response.read()`, only the traceback knows who made it.
    who = "iterate" if read is in_a_task_iterating else "a middleware function"
    assert who in str(error).partition(" read a body ")[0]
    assert server.sent == []


async def test_body_read_from_a_task_group(inner: Inner, layers: Layers) -> None:
    """A body read from a task group is refused at once, on both event loops."""

    async def wrong(conn: Connection) -> Flow:
        response = yield
        await in_a_task_group(response)

    error, server = await misuse(layers(inner, wrong))

    assert "task of its own" in str(error)
    assert server.sent == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="runs in a task of its own before 3.12")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_wait_for_works_where_it_stays_in_its_task(inner: Inner, layers: Layers) -> None:
    """`asyncio.wait_for(response.read(), ...)` works from Python 3.12 on."""
    seen = []

    async def limited(conn: Connection) -> Flow:
        response = yield
        seen.append(await asyncio.wait_for(response.read(), 60))

    server = await request(layers(inner, limited))

    assert seen == [Inner.BODY]
    assert server.body == Inner.BODY


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_timeout_around_a_read_works(inner: Inner, layers: Layers) -> None:
    """`async with asyncio.timeout(...)` may be held while a body is read."""
    seen = []

    async def limited(conn: Connection) -> Flow:
        response = yield
        async with asyncio.timeout(60):
            seen.append(await response.read())

    server = await request(layers(inner, limited))

    assert seen == [Inner.BODY]
    assert server.body == Inner.BODY


async def test_body_read_inside_a_cancel_scope(layers: Layers, spec: str | None) -> None:
    """A body that is still to come cannot be awaited inside a scope of anyio or trio."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(iter(["a", "b"]))(scope, receive, send)

    async def wrong(conn: Connection) -> Flow:
        response = yield
        with anyio.fail_after(60):
            await response.read()

    error, server = await misuse(layers(app, wrong), spec=spec)

    assert "cancel scope" in str(error)
    assert "asyncio.timeout" in str(error)
    assert server.sent == []


async def test_transform_that_holds_a_cancel_scope(fused: bool) -> None:
    """A transform cannot wait for the next chunk inside a scope of anyio or trio either."""

    async def limited(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        with anyio.CancelScope():
            async for chunk in chunks:
                yield chunk

    async def wrong(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = limited(response.body_iterator)

    app = script(start(), body(b"a", more=True), body(b"b"))
    error, server = await misuse(stack(app, nothing, wrong, fused=fused))

    assert "cancel scope" in str(error)
    assert not server.complete


async def test_request_body_read_after_the_app_read_it(layers: Layers) -> None:
    """A request body that the app consumed is gone; the error says to read it before the yield."""
    errors = []

    async def late(conn: Connection) -> Flow:
        yield
        with pytest.raises(MiddlewareError) as caught:
            await conn.body()
        errors.append(str(caught.value))

    server = await request(layers(echo, late), method="POST", body=b"abc")

    assert server.body == b"abc"
    assert "before the yield" in errors[0]
    assert "`body = await conn.body()`" in errors[0]


# -- the connection, too late ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda conn: conn.replace_body(b"x"), "replace_body"),
        (lambda conn: conn.fail_after(1), "fail_after"),
        (lambda conn: setattr(conn, "body_iterator", iter([])), "body_iterator"),
    ],
    ids=["replace_body", "fail_after", "body_iterator"],
)
async def test_called_after_the_yield(
    call: Callable[[Connection], Any], name: str, layers: Layers
) -> None:
    """What only works before the yield is refused after it, by name."""

    async def late(conn: Connection) -> Flow:
        yield
        call(conn)

    error, server = await misuse(layers(plain_inner(), late))

    assert name in str(error)
    assert "before `response = yield`" in str(error)
    assert server.sent == []


@pytest.mark.parametrize("value", [{"a": 1}, None, 7], ids=["dict", "none", "int"])
async def test_request_body_of_a_wrong_type(value: Any, layers: Layers) -> None:
    """`replace_body` takes bytes."""

    async def wrong(conn: Connection) -> Flow:
        conn.replace_body(value)
        yield

    server = await request(layers(plain_inner(), wrong), keep_error=True)

    assert isinstance(server.error, TypeError)
    assert repr(value) in str(server.error)
    assert "bytes" in str(server.error)


# -- scopes held across the yield ------------------------------------------------------------


@contextlib.asynccontextmanager
async def anyio_group() -> AsyncIterator[None]:
    async with anyio.create_task_group():
        yield


@contextlib.asynccontextmanager
async def sync_scope(make: Callable[[], Any]) -> AsyncIterator[None]:
    with make():
        yield


@contextlib.asynccontextmanager
async def trio_nursery() -> AsyncIterator[None]:
    async with trio.open_nursery():
        yield


ANYIO_SCOPES: list[Any] = [
    pytest.param(lambda: sync_scope(anyio.CancelScope), id="CancelScope"),
    pytest.param(lambda: sync_scope(lambda: anyio.CancelScope(shield=True)), id="shield"),
    pytest.param(lambda: sync_scope(lambda: anyio.fail_after(60)), id="fail_after"),
    pytest.param(lambda: sync_scope(lambda: anyio.fail_after(None)), id="fail_after-none"),
    pytest.param(lambda: sync_scope(lambda: anyio.move_on_after(60)), id="move_on_after"),
    pytest.param(anyio_group, id="task_group"),
]
TRIO_SCOPES: list[Any] = [
    pytest.param(lambda: sync_scope(trio.CancelScope), id="trio.CancelScope"),
    pytest.param(lambda: sync_scope(lambda: trio.fail_after(60)), id="trio.fail_after"),
    pytest.param(trio_nursery, id="trio.open_nursery"),
]


def holding(open_scope: Callable[[], Any], log: list[str]) -> Callable[[Connection], Flow]:
    async def held(conn: Connection) -> Flow:
        try:
            async with open_scope():
                yield
        finally:
            log.append("closed")

    return held


@pytest.mark.parametrize("open_scope", ANYIO_SCOPES)
async def test_anyio_scope_across_the_yield(
    open_scope: Callable[[], Any], spec: str | None, layers: Layers
) -> None:
    """A scope of anyio that is open at the first yield is refused; the app is not run."""
    log: list[str] = []
    function = holding(open_scope, log)
    inner = plain_inner()
    error, server = await misuse(layers(inner, function), spec=spec)

    explained(error, function, "cancel scope", "`conn.fail_after(seconds)`", "asyncio.timeout")
    assert inner.runs == 0
    assert server.sent == []
    assert log == ["closed"]


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("open_scope", TRIO_SCOPES)
async def test_trio_scope_across_the_yield(open_scope: Callable[[], Any], layers: Layers) -> None:
    """A scope or nursery of trio that is open at the first yield is refused."""
    log: list[str] = []
    function = holding(open_scope, log)
    inner = plain_inner()
    error, _ = await misuse(layers(inner, function))

    explained(error, function, "cancel scope", "`conn.fail_after(seconds)`")
    assert inner.runs == 0
    assert log == ["closed"]


@pytest.mark.parametrize("open_scope", ANYIO_SCOPES)
async def test_scope_across_the_second_yield(
    open_scope: Callable[[], Any], inner: Inner, fused: bool
) -> None:
    """A scope that is opened after the first yield and held over the second one is refused."""
    log: list[str] = []

    async def held(conn: Connection) -> Flow:
        response = yield
        try:
            async with open_scope():
                yield response
        finally:
            log.append("closed")

    error, _ = await misuse(stack(inner, nothing, held, fused=fused))

    explained(error, held, "cancel scope")
    assert log == ["closed"]


async def test_scope_that_is_closed_before_the_yield(inner: Inner, spec: str | None) -> None:
    """Scopes that do not reach over a yield are nobody's business."""

    async def fine(conn: Connection) -> Flow:
        with anyio.fail_after(60):
            await anyio.lowlevel.checkpoint()
        response = yield
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.lowlevel.checkpoint)
        yield response
        with anyio.move_on_after(60):
            await anyio.lowlevel.checkpoint()

    server = await request(HTTPMiddleware(inner, dispatch=fine), spec=spec)

    assert server.body == Inner.BODY


async def test_scope_around_the_whole_request(inner: Inner, spec: str | None, fused: bool) -> None:
    """Scopes that outer, plain layers hold around the adapter are nobody's business either."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.fail_after(60):
            await stack(inner, nothing, nothing, fused=fused)(scope, receive, send)

    server = await request(limited, spec=spec)

    assert server.body == Inner.BODY


async def test_request_after_a_refused_scope() -> None:
    """A refused function leaves the task's scopes as they were: a time limit still works."""
    log: list[str] = []
    function = holding(anyio_group, log)

    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    await misuse(HTTPMiddleware(plain_inner(), dispatch=function))
    with anyio.move_on_after(0) as scope:
        await request(hang)

    assert scope.cancelled_caught


async def test_lock_of_a_task_across_the_yield(fused: bool) -> None:
    """A lock that belongs to a task fails where another task sends; the error says what to use."""
    lock = anyio.Lock()

    async def locked(conn: Connection) -> Flow:
        async with lock:
            yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(iter(["a"]))(scope, receive, send)

    error, _ = await misuse(stack(app, nothing, locked, fused=fused), spec="2.3")

    explained(error, locked, "anyio.Lock", "anyio.Semaphore")
    assert isinstance(error.__cause__, RuntimeError)


def test_function_in_call_next_style_is_shown_the_way() -> None:
    """Who comes from `call_next` is told of the drop-in and of the codemod."""

    async def timing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    with pytest.raises(TypeError) as caught:
        HTTPMiddleware(plain_inner(), dispatch=timing)

    explained(caught.value, timing, "httpmw.compat.BaseHTTPMiddleware", "httpmw migrate")
