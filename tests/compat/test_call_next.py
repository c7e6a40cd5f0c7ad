"""
The drop-in for `call_next`: what dispatch functions do with it, and what they are told.

Each function stands between two others, fused with them or nested, unless the test says otherwise.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.background import BackgroundTask
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import AppResponse, Connection, Flow, HTTPMiddleware, MiddlewareError, NoResponseError
from httpmw._call_next import DispatchFlow
from httpmw.compat import BaseHTTPMiddleware, RequestResponseEndpoint
from tests.harness import (
    Inner,
    PassThrough,
    Server,
    body,
    explained,
    left_to_the_collector,
    plain_inner,
    script,
    start,
    stream_inner,
)
from tests.harness import request as ask

Next = RequestResponseEndpoint
Dispatch = Callable[[Any, Any], Any]


async def passing(request: Request, call_next: Next) -> Response:
    return await call_next(request)


def around(app: ASGIApp, *functions: Dispatch, fused: bool = True) -> ASGIApp:
    """Put a layer for each of *functions* around *app*, the first one outermost."""
    for index, function in enumerate(reversed(functions)):
        if index and not fused:
            app = PassThrough(app)
        app = BaseHTTPMiddleware(app, dispatch=function)
    return app


@pytest.fixture
def wrap(*, fused: bool) -> Callable[[ASGIApp, Dispatch], ASGIApp]:
    """Put one function around an app, between two that do nothing."""
    return lambda app, function: around(app, passing, function, passing, fused=fused)


Wrap = Callable[[ASGIApp, Dispatch], ASGIApp]


# -- what a dispatch function is -------------------------------------------------------------


async def test_received_response_is_edited_and_sent(
    wrap: Wrap, inner: Inner, spec: str | None
) -> None:
    """Headers, cookies and status of the response that is returned are what the client gets."""

    async def edit(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        assert isinstance(response, Response)
        response.headers["x-edited"] = response.headers["x-inner"]
        response.set_cookie("a", "1")
        response.status_code = 203
        return response

    server = await ask(wrap(inner, edit), spec=spec)

    assert server.status == 203
    assert server.headers["x-edited"] == "yes"
    assert server.headers["set-cookie"].startswith("a=1")
    assert server.body == Inner.BODY
    assert server.complete
    assert inner.ended == [None]


async def test_early_answer(wrap: Wrap) -> None:
    """A response that is returned before `call_next` is the answer; the app is not run."""

    async def answer(request: Request, call_next: Next) -> Response:
        return PlainTextResponse("no", 403)

    app = plain_inner()
    server = await ask(wrap(app, answer))

    assert (server.status, server.body) == (403, b"no")
    assert app.runs == 0


async def test_early_answer_after_a_wait(wrap: Wrap) -> None:
    """The same, where the function waited for something before."""

    async def answer(request: Request, call_next: Next) -> Response:
        await anyio.lowlevel.checkpoint()
        return PlainTextResponse("no", 403)

    assert (await ask(wrap(plain_inner(), answer))).status == 403


async def test_waiting_before_and_after(wrap: Wrap, inner: Inner, spec: str | None) -> None:
    """What else the function awaits goes to the event loop."""

    async def wait(request: Request, call_next: Next) -> Response:
        await anyio.lowlevel.checkpoint()
        response = await call_next(request)
        await anyio.lowlevel.checkpoint()
        response.headers["x-waited"] = "yes"
        return response

    server = await ask(wrap(inner, wait), spec=spec)

    assert server.headers["x-waited"] == "yes"
    assert server.body == Inner.BODY


async def test_finally_after_return_edits_the_response(wrap: Wrap, inner: Inner) -> None:
    """The response goes out when the function has ended, not at its `return`."""

    async def edit(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        try:
            return response
        finally:
            response.headers["x-late"] = "yes"

    assert (await ask(wrap(inner, edit))).headers["x-late"] == "yes"


async def test_statements_around_the_call(wrap: Wrap, inner: Inner) -> None:
    """`try`, `else`, `finally`, `with` and `async with` around the call do what they say."""
    events = []

    @contextmanager
    def managed() -> Any:
        events.append("with")
        yield
        events.append("without")

    @asynccontextmanager
    async def managed_async() -> AsyncGenerator[None]:
        events.append("async with")
        yield
        events.append("async without")

    async def layer(request: Request, call_next: Next) -> Response:
        try:
            with managed():
                async with managed_async():
                    response = await call_next(request)
                    events.append(response.status_code)
        except Exception:
            events.append("except")
            raise
        else:
            events.append("else")
        finally:
            events.append("finally")
        return response

    await ask(wrap(inner, layer))

    assert events == ["with", "async with", 200, "async without", "without", "else", "finally"]


class CallableObject:
    async def __call__(self, request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        response.headers["x-called"] = "yes"
        return response

    def plain(self, request: Request, call_next: Next) -> Awaitable[Response]:
        return self(request, call_next)

    async def with_option(self, option: str, request: Request, call_next: Next) -> Response:
        return await self(request, call_next)


class Waiting:
    """An awaitable that is no coroutine."""

    def __init__(self, request: Request, call_next: Next) -> None:
        self.coroutine = CallableObject()(request, call_next)

    def __await__(self) -> Any:
        return self.coroutine.__await__()


@pytest.mark.parametrize(
    "function",
    [
        CallableObject(),
        CallableObject().plain,
        partial(CallableObject().with_option, "option"),
        Waiting,
    ],
    ids=["object", "plain def", "partial", "awaitable"],
)
async def test_kinds_of_dispatch_functions(wrap: Wrap, inner: Inner, function: Dispatch) -> None:
    """Whatever takes a request and `call_next` and gives an awaitable will do."""
    server = await ask(wrap(inner, function))

    assert server.headers["x-called"] == "yes"
    assert server.body == Inner.BODY


async def test_plain_function_that_only_forwards() -> None:
    """`call_next(request)` itself may be what is returned to be awaited."""
    app = around(plain_inner(), lambda request, call_next: call_next(request), passing)

    assert (await ask(app)).body == Inner.BODY


async def test_subclass_with_options_and_super(inner: Inner) -> None:
    """A subclass takes options, and a subclass of it calls `super().dispatch`."""

    class Header(BaseHTTPMiddleware):
        def __init__(self, app: ASGIApp, value: str) -> None:
            super().__init__(app)
            self.value = value

        async def dispatch(self, request: Request, call_next: Next) -> Response:
            response = await call_next(request)
            response.headers["x-value"] = self.value
            return response

    class Louder(Header):
        async def dispatch(self, request: Request, call_next: Next) -> Response:
            response = await super().dispatch(request, call_next)
            response.headers["x-value"] += "!"
            return response

    assert (await ask(Louder(inner, value="a"))).headers["x-value"] == "a!"


async def test_call_next_is_handed_on(wrap: Wrap, inner: Inner) -> None:
    """`call_next` may be passed to helpers and to other dispatch functions."""

    async def helper(call: Callable[[], Awaitable[Response]]) -> Response:
        return await call()

    async def other(request: Request, call_next: Next) -> Response:
        response = await helper(lambda: call_next(request))
        response.headers["x-other"] = "yes"
        return response

    async def layer(request: Request, call_next: Next) -> Response:
        async def wrapped(request: Request) -> Response:
            response = await call_next(request)
            response.headers["x-wrapped"] = "yes"
            return response

        return await other(request, wrapped)

    server = await ask(wrap(inner, layer))

    assert (server.headers["x-other"], server.headers["x-wrapped"]) == ("yes", "yes")


async def test_dispatch_that_is_not_overridden(inner: Inner) -> None:
    """Without a dispatch function there is what Starlette has: a `NotImplementedError`."""
    server = await ask(BaseHTTPMiddleware(inner), keep_error=True)

    assert isinstance(server.error, NotImplementedError)
    assert inner.runs == 0


async def test_dispatch_is_an_ordinary_coroutine_function() -> None:
    """A unit test calls `dispatch` with a `call_next` of its own."""

    class Header(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Next) -> Response:
            response = await call_next(request)
            response.headers["x-header"] = "yes"
            return response

    async def call_next(request: Request) -> Response:
        return Response()

    layer = Header(plain_inner())
    response = await layer.dispatch(Request({"type": "http"}), call_next)

    assert response.headers["x-header"] == "yes"


# -- responses made of the received one ------------------------------------------------------


async def upper(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


async def joined(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)
    chunks = [chunk async for chunk in response.body_iterator]
    return Response(b"".join(chunks).upper(), response.status_code, media_type="text/plain")


async def transformed(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)
    return StreamingResponse(upper(response.body_iterator), response.status_code)


async def assigned(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)
    response.body_iterator = upper(response.body_iterator)
    return response


async def assigned_again(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)
    chunks = [chunk.upper() async for chunk in response.body_iterator]
    response.body_iterator = iterate_in_threadpool(iter(chunks))
    return response


async def read_when_it_runs(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)

    async def chunks() -> AsyncGenerator[bytes]:
        async for chunk in response.body_iterator:
            yield chunk.upper()

    return StreamingResponse(chunks())


async def read_by_a_generator_in_a_generator(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)

    async def chunks() -> AsyncGenerator[bytes]:
        async for chunk in response.body_iterator:
            yield chunk

    return StreamingResponse(upper(chunks()))


async def read_by_an_object(request: Request, call_next: Next) -> Response:
    class Upper:
        def __init__(self, response: Any) -> None:
            self.response = response

        async def __aiter__(self) -> AsyncGenerator[bytes]:
            async for chunk in self.response.body_iterator:
                yield chunk.upper()

    return StreamingResponse(Upper(await call_next(request)))


async def first_chunk_apart(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)
    first = await anext(response.body_iterator)

    async def chunks() -> AsyncGenerator[bytes]:
        yield first.upper()
        async for chunk in response.body_iterator:
            yield chunk.upper()

    return StreamingResponse(chunks())


async def first_chunk_apart_and_assigned(request: Request, call_next: Next) -> Response:
    response: Any = await call_next(request)

    async def chunks(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        yield first.upper()
        async for chunk in rest:
            yield chunk.upper()

    first = await anext(response.body_iterator)
    response.body_iterator = chunks(first, response.body_iterator)
    return response


async def read_and_set(request: Request, call_next: Next) -> Response:
    response = await call_next(request)
    assert isinstance(response, AppResponse)
    response.body = (await response.read()).upper()
    return response


@pytest.mark.parametrize(
    "function",
    [
        joined,
        transformed,
        assigned,
        assigned_again,
        read_when_it_runs,
        read_by_a_generator_in_a_generator,
        read_by_an_object,
        first_chunk_apart,
        first_chunk_apart_and_assigned,
        read_and_set,
    ],
)
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_body_of_the_received_response(
    wrap: Wrap, inner: Inner, spec: str, function: Dispatch
) -> None:
    """Every way in which a response is made of the body of the received one."""
    server = await ask(wrap(inner, function), spec=spec)

    assert server.body == Inner.BODY.upper()
    assert server.complete
    assert server.violations == []
    assert int(server.headers.get("content-length", len(Inner.BODY))) == len(Inner.BODY)


async def test_body_that_was_iterated_is_still_sent(wrap: Wrap, inner: Inner) -> None:
    """Where the received response is returned, the client gets the whole body."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        response: Any = await call_next(request)
        seen.append(b"".join([chunk async for chunk in response.body_iterator]))
        return response

    server = await ask(wrap(inner, look))

    assert seen == [Inner.BODY]
    assert server.body == Inner.BODY


async def test_body_iterator_is_one_iterator() -> None:
    """`response.body_iterator` goes on where it was left, as Starlette's does."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        response: Any = await call_next(request)
        async for chunk in response.body_iterator:
            seen.append(chunk)
            break
        async for chunk in response.body_iterator:
            seen.append(chunk)
        return response

    server = await ask(around(stream_inner(), look))

    assert b"".join(seen) == Inner.BODY
    assert server.body == Inner.BODY


async def test_body_iterator_of_a_generator_further_out_is_its_own(fused: bool) -> None:
    """To a middleware function `body_iterator` is a new iterator each time, also around this."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        for _ in range(2):
            async for chunk in response.body_iterator:
                seen.append(chunk)
                break

    app: ASGIApp = around(stream_inner(), passing)
    app = HTTPMiddleware(app if fused else PassThrough(app), dispatch=outer)
    server = await ask(app)

    assert seen == [b"first, ", b"first, "]
    assert server.body == Inner.BODY


async def test_response_has_no_body_until_it_is_read() -> None:
    """`hasattr(response, "body")` is false, as with Starlette."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        seen.append(hasattr(response, "body"))
        return response

    await ask(around(plain_inner(), look))

    assert seen == [False]


async def test_background_of_the_response(wrap: Wrap, inner: Inner) -> None:
    """A background task that is set on a response runs when the app has ended."""
    ran = []

    async def layer(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        assert response.background is None
        response.background = BackgroundTask(lambda: ran.append(list(inner.ended)))
        return response

    server = await ask(wrap(inner, layer))

    assert ran == [[None]]
    assert server.complete


async def test_any_asgi_app_can_be_returned(wrap: Wrap) -> None:
    """What is returned is run as an ASGI app, as Starlette does, before the call and after it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("an app")(scope, receive, send)

    async def early(request: Request, call_next: Next) -> Any:
        return app

    async def late(request: Request, call_next: Next) -> Any:
        await call_next(request)
        return app

    for function in (early, late):
        assert (await ask(wrap(plain_inner(), function))).body == b"an app"


# -- exceptions ------------------------------------------------------------------------------


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    raise LookupError("in the app")


async def test_exception_of_the_app_is_raised_at_the_call(wrap: Wrap) -> None:
    """It is the very object, and goes on as that where nobody catches it."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        try:
            return await call_next(request)
        except LookupError as error:
            seen.append(error)
            raise

    server = await ask(wrap(failing, look), keep_error=True)

    assert seen == [server.error]
    assert server.error is not None
    assert (server.error.__cause__, server.error.__context__) == (None, None)


async def test_exception_is_answered(wrap: Wrap) -> None:
    """A response that is returned from an `except` is the answer, for outer layers too."""

    async def answer(request: Request, call_next: Next) -> Response:
        try:
            return await call_next(request)
        except LookupError as error:
            await anyio.lowlevel.checkpoint()
            return JSONResponse({"error": str(error)}, 400)

    server = await ask(wrap(failing, answer))

    assert (server.status, server.json()) == (400, {"error": "in the app"})


async def test_exception_of_the_function(wrap: Wrap, inner: Inner, spec: str | None) -> None:
    """What the function raises goes through the outer layers, before the call and after it."""

    async def before(request: Request, call_next: Next) -> Response:
        raise LookupError("before")

    async def after(request: Request, call_next: Next) -> Response:
        await call_next(request)
        raise LookupError("after")

    for function in (before, after):
        server = await ask(wrap(inner, function), spec=spec, keep_error=True)
        assert isinstance(server.error, LookupError)
        assert server.sent == []


async def test_http_exception_of_the_function_is_answered(wrap: Wrap, inner: Inner) -> None:
    """An `HTTPException` of a dispatch function is the answer that it names."""

    async def refuse(request: Request, call_next: Next) -> Response:
        raise HTTPException(403, "members only")

    server = await ask(wrap(inner, refuse))

    assert (server.status, server.body) == (403, b"members only")


async def test_second_call_after_an_exception_raises_it_again(wrap: Wrap) -> None:
    """As Starlette does: trying again does not run the app again."""
    seen = []

    async def retry(request: Request, call_next: Next) -> Response:
        for _ in range(3):
            try:
                return await call_next(request)
            except LookupError as error:
                seen.append(error)
        return Response(status_code=502)

    server = await ask(wrap(failing, retry))

    assert server.status == 502
    assert len(seen) == 3
    assert len(set(seen)) == 1


async def test_missing_response_is_raised_at_the_call(wrap: Wrap) -> None:
    """An app that returns without a response is a `RuntimeError`, which can be answered."""

    async def answer(request: Request, call_next: Next) -> Response:
        with pytest.raises(RuntimeError) as raised:
            await call_next(request)
        assert isinstance(raised.value, NoResponseError)
        return Response(status_code=204)

    assert (await ask(wrap(script(), answer))).status == 204


async def test_failure_after_the_start_is_past_the_function(wrap: Wrap) -> None:
    """The function has ended then; the exception goes out, and the body is not completed."""
    seen = []

    async def look(request: Request, call_next: Next) -> Response:
        try:
            return await call_next(request)
        finally:
            seen.append("ended")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"part", more=True))
        raise LookupError("in the body")

    server = await ask(wrap(app, look), keep_error=True)

    assert isinstance(server.error, LookupError)
    assert seen == ["ended"]
    assert not server.complete


# -- mistakes --------------------------------------------------------------------------------


async def test_second_call_is_refused(wrap: Wrap, inner: Inner) -> None:
    """The app runs once; the message says so, and where the mistake is."""

    async def twice(request: Request, call_next: Next) -> Response:
        await call_next(request)
        return await call_next(request)

    server = await ask(wrap(inner, twice), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, twice, "a second time", "Keep the response of the first call")
    assert inner.runs == 1


@pytest.mark.parametrize("when", ["early", "late", "caught"])
async def test_none_is_no_response(wrap: Wrap, when: str) -> None:
    """A function that returns None is told so, and what it swallowed is the cause."""

    async def forgetful(request: Request, call_next: Next) -> Any:
        if when == "early":
            return
        with suppress(LookupError):
            await call_next(request)

    app = failing if when == "caught" else plain_inner()
    server = await ask(wrap(app, forgetful), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, forgetful, "returned None", "return response")
    assert isinstance(server.error.__cause__, LookupError) == (when == "caught")
    assert server.sent == []


async def test_other_values_are_no_responses(wrap: Wrap) -> None:
    """A dict is not made a response, as a FastAPI endpoint would do."""

    async def fastapi_like(request: Request, call_next: Next) -> Any:
        return {"hello": "world"}

    server = await ask(wrap(plain_inner(), fastapi_like), keep_error=True)

    explained(server.error, fastapi_like, "{'hello': 'world'}, a dict")


async def test_response_of_another_request_is_refused() -> None:
    """A received response that was kept from another request has no body any more."""
    kept: list[Response] = []

    async def cache(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        kept.append(response)
        return kept[0]

    app = around(plain_inner(), cache)
    assert (await ask(app)).status == 200
    server = await ask(app, keep_error=True)

    explained(server.error, cache, "not the one it was given", "await response.read()")


async def test_function_that_cannot_be_awaited(wrap: Wrap, inner: Inner) -> None:
    """A plain function that returns a response, and an async generator, are named."""

    def plain(request: Request, call_next: Next) -> Response:
        return Response()

    async def generator(request: Request, call_next: Next) -> AsyncGenerator[Any]:
        yield

    for function in (plain, generator):
        server = await ask(wrap(inner, function), keep_error=True)
        assert isinstance(server.error, MiddlewareError)
        explained(server.error, function, "cannot be awaited", "async def dispatch")


async def in_a_group(call: Callable[[], Any]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)


async def test_call_in_a_task_group_is_refused(wrap: Wrap, inner: Inner) -> None:
    """`call_next` in a task of its own is refused at its `await`, whatever the event loop."""
    errors: list[MiddlewareError] = []

    async def own_task(request: Request, call_next: Next) -> Response:
        async def call() -> None:
            with pytest.raises(MiddlewareError) as raised:
                await call_next(request)
            errors.append(raised.value)

        await in_a_group(call)
        return await call_next(request)

    server = await ask(wrap(inner, own_task))

    explained(errors[0], own_task, "in a task of its own", "asyncio.timeout(seconds)")
    assert server.body == Inner.BODY


def eager(coroutine: Any) -> Any:
    return asyncio.Task(coroutine, eager_start=True, loop=asyncio.get_running_loop())


STARTERS = [asyncio.create_task, asyncio.gather, asyncio.shield]
if sys.version_info >= (3, 12):
    STARTERS.append(eager)
else:
    STARTERS.append(partial(asyncio.wait_for, timeout=60))


@pytest.mark.parametrize(
    "starter", STARTERS, ids=["create_task", "gather", "shield", "eager or wait_for"]
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_call_in_a_task_of_asyncio_is_refused(
    wrap: Wrap, inner: Inner, starter: Callable[[Any], Any]
) -> None:
    """`create_task`, `gather`, `shield`, an eager task, and `wait_for` where it makes one."""

    async def own_task(request: Request, call_next: Next) -> Response:
        return await starter(call_next(request))

    server = await ask(wrap(inner, own_task), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, own_task, "in a task of its own", "asyncio.timeout(seconds)")
    assert inner.runs == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_call_after_one_in_an_eager_task(wrap: Wrap, inner: Inner) -> None:
    """The mistake can be caught, and made good."""

    async def careful(request: Request, call_next: Next) -> Response:
        with pytest.raises(MiddlewareError, match="in a task of its own"):
            await eager(call_next(request))
        return await call_next(request)

    assert (await ask(wrap(inner, careful))).status == 200


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
async def test_request_that_is_returned_is_no_response(
    wrap: Wrap, inner: Inner, *, waits: bool
) -> None:
    """It is a mistake, and not the way to the inner app."""

    async def forgetful(request: Request, call_next: Next) -> Any:
        if waits:
            await anyio.lowlevel.checkpoint()
        return request

    server = await ask(wrap(inner, forgetful), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, forgetful, "a Request, instead of a response")
    assert (server.sent, inner.runs) == ([], 0)


async def test_call_next_of_a_function_that_failed_is_refused(wrap: Wrap, inner: Inner) -> None:
    """Also where the function is a plain one, and has never become a coroutine."""
    kept: list[tuple[Next, Request]] = []

    def failing(request: Request, call_next: Next) -> Any:
        kept.append((call_next, request))
        raise ZeroDivisionError

    assert isinstance((await ask(wrap(inner, failing), keep_error=True)).error, ZeroDivisionError)
    call_next, request = kept.pop()
    with pytest.raises(MiddlewareError, match="was awaited outside of it") as caught:
        await call_next(request)
    assert caught.value.__context__ is None
    assert inner.runs == 0


async def test_stop_of_a_plain_function_is_explained(wrap: Wrap, inner: Inner) -> None:
    """What would look like the end of a generator is named as what it is."""

    def stops(request: Request, call_next: Next) -> Any:
        raise StopAsyncIteration

    server = await ask(wrap(inner, stops), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, stops, "raised StopAsyncIteration")
    assert inner.runs == 0


async def test_call_after_the_end_is_refused(wrap: Wrap, inner: Inner) -> None:
    """A `call_next` that got out of its function does nothing but say so."""
    kept: list[Next] = []

    async def leaking(request: Request, call_next: Next) -> Response:
        kept.append(call_next)
        return Response()

    await ask(wrap(inner, leaking))

    with pytest.raises(MiddlewareError, match="outside of it") as raised:
        await kept[0](Request({"type": "http"}))
    explained(raised.value, leaking)


async def test_call_of_another_flow_is_refused(inner: Inner) -> None:
    """The inner function cannot call the `call_next` of the outer one."""

    async def outer(request: Request, call_next: Next) -> Response:
        request.state.call_next = call_next
        return await call_next(request)

    async def thief(request: Request, call_next: Next) -> Response:
        return await request.state.call_next(request)

    server = await ask(around(inner, outer, thief), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, outer, "outside of it")


@pytest.mark.parametrize(
    "scope", [partial(anyio.fail_after, 60), anyio.CancelScope], ids=["fail_after", "CancelScope"]
)
async def test_open_scope_is_refused(
    wrap: Wrap, inner: Inner, scope: Callable[[], anyio.CancelScope]
) -> None:
    """A cancel scope held open around the call is refused on the first request."""

    async def limited(request: Request, call_next: Next) -> Response:
        with scope():
            return await call_next(request)

    server = await ask(wrap(inner, limited), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, limited, "dispatch function", "asyncio.timeout(seconds)")
    assert inner.runs == 0


async def test_lock_that_belongs_to_a_task(wrap: Wrap) -> None:
    """A lock that cannot be released in the task of a stream is named."""
    lock = anyio.Lock()

    async def locked(request: Request, call_next: Next) -> Response:
        await lock.acquire()
        response = await call_next(request)
        lock.release()
        return response

    server = await ask(wrap(stream_inner(), locked), spec="2.3", keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    explained(server.error, locked, "dispatch function", "anyio.Semaphore")


async def test_body_read_in_a_task_is_refused(wrap: Wrap) -> None:
    """The body is read in the function itself, as everywhere in httpmw."""
    errors = []

    async def reading(request: Request, call_next: Next) -> Response:
        response: Any = await call_next(request)

        async def read() -> None:
            with pytest.raises(MiddlewareError, match="task of its own") as raised:
                await anext(response.body_iterator)
            errors.append(raised.value)

        await in_a_group(read)
        return response

    server = await ask(wrap(plain_inner(), reading))

    assert len(errors) == 1
    assert server.body == Inner.BODY


# -- tasks, contexts, cancellation -----------------------------------------------------------

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


async def test_token_is_reset_after_the_call(wrap: Wrap, inner: Inner, spec: str | None) -> None:
    """A context variable is set and reset around the call, whichever task sends."""
    seen = []

    async def layer(request: Request, call_next: Next) -> Response:
        token = VARIABLE.set("in the layer")
        try:
            return await call_next(request)
        finally:
            VARIABLE.reset(token)
            seen.append(VARIABLE.get())

    await ask(wrap(inner, layer), spec=spec)

    assert seen == ["unset"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_task_is_created(wrap: Wrap) -> None:
    """The app runs in the task of the request, and so do the layers."""
    tasks = []
    loop = asyncio.get_running_loop()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        tasks.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    server = Server()
    app = wrap(stream_inner(), assigned)
    loop.set_task_factory(factory)
    try:
        await app({**server.scope, "asgi": {"spec_version": "2.4"}}, server.receive, server.send)
    finally:
        loop.set_task_factory(None)

    assert server.complete
    assert tasks == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_time_limit_stops_the_app(wrap: Wrap) -> None:
    """When `asyncio.timeout` is over the endpoint is cancelled, and the function answers."""
    ended = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("app")

    async def limited(request: Request, call_next: Next) -> Response:
        try:
            async with asyncio.timeout(0.01):
                return await call_next(request)
        except TimeoutError:
            ended.append("limit")
            return Response(status_code=504)

    server = await ask(wrap(slow, limited))

    assert server.status == 504
    assert ended == ["app", "limit"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="wait_for makes a task of its own")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_wait_for_is_a_time_limit(wrap: Wrap, inner: Inner) -> None:
    """From Python 3.12 on `asyncio.wait_for` awaits in the same task."""

    async def limited(request: Request, call_next: Next) -> Response:
        return await asyncio.wait_for(call_next(request), 60)

    assert (await ask(wrap(inner, limited))).body == Inner.BODY


async def test_cancelled_request(wrap: Wrap) -> None:
    """The clean-up of the function runs, and the cancellation goes on."""
    events = []
    waiting = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waiting.set()
        await anyio.sleep_forever()

    async def layer(request: Request, call_next: Next) -> Response:
        try:
            return await call_next(request)
        except anyio.get_cancelled_exc_class():
            events.append("cancelled")
            raise
        finally:
            events.append("cleaned up")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, wrap(app, layer))
        await waiting.wait()
        tasks.cancel_scope.cancel()

    assert events == ["cancelled", "cleaned up"]


async def test_request_that_is_closed_ends_the_function() -> None:
    """A request whose coroutine is closed from outside leaves no function behind."""
    events = []

    async def layer(request: Request, call_next: Next) -> Response:
        try:
            return await call_next(request)
        finally:
            events.append("ended")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    server = Server()
    coroutine: Any = around(app, layer, layer)(server.scope, server.receive, server.send)
    coroutine.send(None)
    coroutine.close()

    assert events == ["ended", "ended"]


async def test_refused_function_may_wait_in_its_clean_up(wrap: Wrap, inner: Inner) -> None:
    """A function that is closed for a mistake of its own comes to its end first."""
    events = []

    async def layer(request: Request, call_next: Next) -> Response:
        try:
            with anyio.CancelScope():
                return await call_next(request)
        finally:
            await anyio.lowlevel.checkpoint()
            events.append("ended")

    server = await ask(wrap(inner, layer), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    assert events == ["ended"]


async def flows_left(app: ASGIApp) -> list[DispatchFlow]:
    """Give the flows that a request leaves to the garbage collector."""
    return await left_to_the_collector(DispatchFlow, lambda: ask(app))


@pytest.mark.parametrize("app", [plain_inner(), failing], ids=["plain", "failing"])
async def test_nothing_is_left_to_the_garbage_collector(app: ASGIApp) -> None:
    """A request leaves no cycle behind, be it answered by the app or by the function."""

    async def answer(request: Request, call_next: Next) -> Response:
        try:
            return await call_next(request)
        except LookupError:
            return Response(status_code=500)

    assert await flows_left(around(app, passing, answer, passing)) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_failing_future_leaves_nothing_to_the_garbage_collector() -> None:
    """Where the function catches what a future raised, no frame is held by it."""

    async def fails() -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError

    async def caught() -> None:
        with suppress(LookupError):
            await asyncio.create_task(fails())

    async def layer(request: Request, call_next: Next) -> Response:
        await caught()
        response = await call_next(request)
        await caught()
        return response

    assert await flows_left(around(plain_inner(), layer)) == []


@pytest.mark.parametrize("when", ["before", "after", "later", "instead"])
async def test_stop_of_an_iterator_is_not_the_end_of_the_function(when: str, wrap: Wrap) -> None:
    """StopAsyncIteration out of a dispatch function is a failure, and lets no response through."""

    async def layer(request: Request, call_next: Next) -> Response:
        if when == "before":
            raise StopAsyncIteration
        try:
            await call_next(request)
        except LookupError:
            raise StopAsyncIteration from None
        if when == "later":
            await anyio.lowlevel.checkpoint()
        raise StopAsyncIteration

    app = failing if when == "instead" else plain_inner()
    server = await ask(wrap(app, layer), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    assert "raised StopAsyncIteration" in str(server.error)
    assert isinstance(server.error.__cause__, StopAsyncIteration)
    assert server.sent == []


async def test_stop_of_an_iterator_in_the_app(wrap: Wrap) -> None:
    """What the app raised goes through as the object it is."""
    error = StopAsyncIteration()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    assert (await ask(wrap(app, passing), keep_error=True)).error is error


class Odd:
    # As an array of numpy: equal to nothing and everything.

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise ValueError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("make", [Odd, list])
async def test_context_variable_with_a_value_of_its_own_equality(make: Callable[[], Any]) -> None:
    """A variable is kept for the app by the identity of its value."""
    variable: ContextVar[Any] = ContextVar("variable")
    seen = []

    async def layer(request: Request, call_next: Next) -> Response:
        token = variable.set(make())
        try:
            return await call_next(request)
        finally:
            variable.reset(token)

    async def chunks() -> AsyncIterator[bytes]:
        seen.append(variable.get())
        yield b"x"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        await StreamingResponse(chunks())(scope, receive, send)

    token = variable.set(make())
    server = await ask(around(app, layer))
    variable.reset(token)

    assert server.status == 200
    assert seen[0] is seen[1]


async def test_property_that_fails_is_what_is_told(wrap: Wrap) -> None:
    """An AttributeError of a layer's own `app` is not taken for a missing `super().__init__()`."""

    class Layer(BaseHTTPMiddleware):
        is_broken = False

        @property
        def app(self) -> ASGIApp:
            if self.is_broken:
                raise AttributeError("no app today")
            return plain_inner()

        @app.setter
        def app(self, app: ASGIApp) -> None:
            pass

        async def dispatch(self, request: Request, call_next: Next) -> Response:
            return await call_next(request)

    layer = Layer(plain_inner())
    for _ in range(20):
        await ask(layer)
    layer.is_broken = True

    with pytest.raises(AttributeError, match="no app today"):
        await ask(layer)


async def test_one_layer_serves_many_requests(inner: Inner, wrap: Wrap) -> None:
    """Requests that run at the same time share nothing."""
    answers = {}
    entered = []
    all_in = anyio.Event()

    async def layer(request: Request, call_next: Next) -> Response:
        entered.append(request.url.path)
        if len(entered) == 5:
            all_in.set()
        await all_in.wait()
        response = await call_next(request)
        response.headers["x-path"] = request.url.path
        return response

    app = wrap(inner, layer)

    async def one(path: str) -> None:
        answers[path] = (await ask(app, path=path)).headers["x-path"]

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(one, f"/{number}")

    assert answers == {f"/{number}": f"/{number}" for number in range(5)}


# -- streaming -------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [passing, assigned, transformed, read_when_it_runs])
async def test_chunks_go_out_one_by_one(wrap: Wrap, function: Dispatch) -> None:
    """A chunk is with the client before the app makes the next one; nothing is kept back."""
    server = Server()
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for chunk in (b"A", b"B", b"C"):
            await send(body(chunk, more=True))
            seen.append(server.body)
        await send(body(b""))

    await server.run(wrap(app, function))

    assert seen == [b"A", b"AB", b"ABC"]
    assert server.complete


@pytest.mark.parametrize("function", [passing, assigned, transformed, read_when_it_runs])
async def test_slow_client_holds_the_app_back(wrap: Wrap, function: Dispatch) -> None:
    """The app is not ahead of the client by more than the chunk that is being sent."""
    made = []
    ahead = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for number in range(5):
            made.append(number)
            await send(body(b"x", more=True))
        await send(body(b""))

    taken = []

    async def send(message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if message.get("body"):
            taken.append(message)
            ahead.append(len(made) - len(taken))

    server = Server()
    await wrap(app, function)(server.scope, server.receive, send)

    assert ahead == [0] * 5


async def test_endless_stream_stays_endless(wrap: Wrap) -> None:
    """A stream that ends only with its client passes, and ends with it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def chunks() -> AsyncGenerator[bytes]:
            while True:
                yield b"tick"
                await anyio.lowlevel.checkpoint()

        await StreamingResponse(chunks())(scope, receive, send)

    server = await ask(wrap(app, assigned), leaves_after=20, keep_error=True)

    assert server.error is None
    assert server.chunks == [b"TICK"] * 19


# -- layers ----------------------------------------------------------------------------------


def depth() -> int:
    """Count the frames of the package, without the fake server, that are above the caller."""
    frame, count = sys._getframe(1), 0
    while frame is not None:
        package = frame.f_globals.get("__name__", "").split(".")[:2]
        count += package[0] == "httpmw" and package != ["httpmw", "testing"]
        frame = frame.f_back
    return count


async def waiting(conn: Connection) -> Flow:
    response = yield
    yield response


def generator(app: ASGIApp) -> ASGIApp:
    return HTTPMiddleware(app, dispatch=waiting)


def call_next_style(app: ASGIApp) -> ASGIApp:
    return BaseHTTPMiddleware(app, dispatch=passing)


@pytest.mark.parametrize(
    "layers",
    [
        [call_next_style] * 3,
        [call_next_style, generator, call_next_style],
        [generator, call_next_style, generator],
        [generator, generator, call_next_style],
        [call_next_style, call_next_style, generator],
    ],
)
async def test_neighbours_become_one(layers: list[Callable[[ASGIApp], ASGIApp]]) -> None:
    """Layers of both kinds, in any order, are one adapter."""
    depths = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        depths.append(depth())
        await Response()(scope, receive, send)

    alone = layers[0](app)
    together: ASGIApp = app
    for layer in reversed(layers):
        together = layer(together)
    await ask(alone)
    await ask(together)

    assert depths[0] == depths[1]


@pytest.mark.parametrize("outermost", [generator, call_next_style])
async def test_order_of_layers_of_both_kinds(
    outermost: Callable[[ASGIApp], ASGIApp], fused: bool
) -> None:
    """The outermost is the first on the way in and the last on the way out."""
    events = []

    def noted(name: str) -> Callable[[ASGIApp], ASGIApp]:
        async def generator(conn: Connection) -> Flow:
            events.append(name)
            yield
            events.append(name)

        async def call_next_style(request: Request, call_next: Next) -> Response:
            events.append(name)
            response = await call_next(request)
            events.append(name)
            return response

        def layer(app: ASGIApp) -> ASGIApp:
            app = app if fused else PassThrough(app)
            if name.startswith("g"):
                return HTTPMiddleware(app, dispatch=generator)
            return BaseHTTPMiddleware(app, dispatch=call_next_style)

        return layer

    app: ASGIApp = plain_inner()
    for layer in (noted("g1"), noted("c2"), noted("g3"), noted("c4")):
        app = layer(app)
    await ask(outermost(app))

    assert events == ["c4", "g3", "c2", "g1", "g1", "c2", "g3", "c4"]


async def test_app_and_dispatch_func_may_be_set_at_any_time() -> None:
    """A layer is what it is when the request comes, also one that has become one with others."""

    async def other(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        response.headers["x-other"] = "yes"
        return response

    inner = BaseHTTPMiddleware(script(start(201), body()), dispatch=passing)
    outer = BaseHTTPMiddleware(inner, dispatch=passing)
    assert (await ask(outer)).status == 201

    inner.app = script(start(202), body())
    inner.dispatch_func = other
    server = await ask(outer)
    assert (server.status, server.headers["x-other"]) == (202, "yes")

    outer.app = script(start(203), body())
    server = await ask(outer)
    assert (server.status, "x-other" in server.headers) == (203, False)


async def test_init_that_does_not_call_super(inner: Inner) -> None:
    """A subclass that sets the two attributes itself works, as with Starlette."""

    class Own(BaseHTTPMiddleware):
        def __init__(self, app: ASGIApp) -> None:
            self.app = app
            self.dispatch_func = passing

    assert (await ask(Own(inner))).body == Inner.BODY


async def test_subclass_that_overrides_call(inner: Inner) -> None:
    """A layer with a `__call__` of its own stays a layer of its own, and may call super."""
    events = []

    class Noting(BaseHTTPMiddleware):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            events.append(scope["type"])
            await super().__call__(scope, receive, send)

        async def dispatch(self, request: Request, call_next: Next) -> Response:
            events.append("dispatch")
            return await call_next(request)

    server = await ask(BaseHTTPMiddleware(Noting(inner), dispatch=passing))

    assert server.body == Inner.BODY
    assert events == ["http", "dispatch"]


@pytest.mark.unchecked("the very same `receive` and `send` are looked for")
async def test_other_scopes_pass() -> None:
    """WebSocket and lifespan scopes go to the inner app as they are."""
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    server = Server()
    for kind in ("websocket", "lifespan"):
        scope = {"type": kind}
        await around(app, passing, passing)(scope, server.receive, server.send)
        assert seen.pop() == (scope, server.receive, server.send)
