"""What the adapter does when something happens, and what the middleware function sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import AppResponse, Connection, Flow, MiddlewareError, NoResponseError, _context
from httpmw.testing import ASGIViolation
from tests.harness import (
    DISCONNECT,
    Inner,
    Server,
    body,
    explained,
    passing,
    plain_inner,
    request,
    script,
    stack,
    start,
    stream_inner,
    waiting,
)

Layers = Callable[[ASGIApp, Callable[..., Any]], ASGIApp]


class Stop(BaseException):
    """An exception that `except Exception` does not catch."""


def raising(error: BaseException, *messages: Message) -> ASGIApp:
    """Return an app that sends *messages* and raises *error*."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        raise error

    return app


def functions_in(error: BaseException) -> list[str]:
    """Return the names of the functions in the traceback of *error*."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


# The inner app sends its start.


async def test_order_of_the_steps(inner: Inner, spec: str | None, fused: bool) -> None:
    """Functions start from the outside in, and are resumed from the inside out, twice."""
    server = Server(spec=spec)
    order: list[str] = []

    def step(name: str) -> Callable[[Connection], Flow]:
        async def mw(conn: Connection) -> Flow:
            order.append(f"{name} in")
            response = yield
            order.append(f"{name} out")
            trail = response.headers.get("x-trail", "app")
            response.headers["x-trail"] = f"{trail} {name}"
            assert server.sent == []
            yield response
            order.append(f"{name} end")
            assert server.complete
            assert inner.ended == [None]

        return mw

    await server.run(stack(inner, step("a"), step("b"), step("c"), fused=fused))
    assert order == [
        *("a in", "b in", "c in"),
        *("c out", "b out", "a out"),
        *("c end", "b end", "a end"),
    ]
    assert server.headers["x-trail"] == "app c b a"
    assert (server.status, server.body) == (200, Inner.BODY)


async def test_outer_edits_what_the_inner_left(inner: Inner, spec: str | None, fused: bool) -> None:
    """An outer layer sees the status and the headers as the inner ones left them."""

    async def outer(conn: Connection) -> Flow:
        response = yield
        assert response.status_code == 202
        del response.headers["x-inner"]

    async def middle(conn: Connection) -> Flow:
        response = yield
        response.status_code += 1
        yield response

    async def innermost(conn: Connection) -> Flow:
        response = yield
        response.status_code += 1

    server = await request(stack(inner, outer, middle, innermost, fused=fused), spec=spec)
    assert (server.status, server.body) == (202, Inner.BODY)
    assert "x-inner" not in server.headers


async def test_step_that_waits(inner: Inner, spec: str | None, layers: Layers) -> None:
    """A function may await whatever it likes between its yields."""
    event = anyio.Event()

    async def mw(conn: Connection) -> Flow:
        await anyio.lowlevel.checkpoint()
        response = yield
        with anyio.fail_after(20):
            await event.wait()
        yield response
        await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(release_when_blocked, event)
        server = await request(layers(inner, mw), spec=spec)
    assert (server.body, server.complete) == (Inner.BODY, True)


async def release_when_blocked(event: anyio.Event) -> None:
    """Set *event* when every other task waits for something."""
    await anyio.wait_all_tasks_blocked()
    event.set()


# A flow yields another response.


async def test_replacement_is_sent_at_once(spec: str | None, layers: Layers) -> None:
    """When the app's `send` of the start returns, the other response is out in full."""
    server = Server(spec=spec)
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        seen.append((server.status, server.body, server.complete))
        await send(body(b"dropped"))

    async def mw(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("instead", 418)

    await server.run(layers(app, mw))
    assert seen == [(418, b"instead", True)]


async def test_replacement_passes_the_outer_layers(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """An outer layer gets the replacement as its response; the layer that gave it knows."""
    seen: dict[str, Any] = {}

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.headers["x-outer"] = str(response.status_code)
        yield response
        seen["outer"] = response.outcome

    async def middle(conn: Connection) -> Flow:
        response = yield
        assert response.status_code == 200
        yield PlainTextResponse("instead", 418)
        seen["middle"] = response.outcome

    async def innermost(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        finally:
            seen["innermost"] = response.outcome != "replaced"

    server = await request(stack(inner, outer, middle, innermost, fused=fused), spec=spec)
    assert (server.status, server.body) == (418, b"instead")
    assert server.headers["x-outer"] == "418"
    assert seen == {"innermost": True, "middle": "replaced", "outer": "completed"}


async def test_each_layer_replaces(inner: Inner, spec: str | None, fused: bool) -> None:
    """Where several layers replace, the outermost wins; each is resumed when all is over."""
    ended: list[str] = []

    def replace(name: str) -> Callable[[Connection], Flow]:
        async def mw(conn: Connection) -> Flow:
            response = yield
            yield PlainTextResponse(name, response.status_code + 1)
            ended.append(name)

        return mw

    app = stack(inner, replace("a"), replace("b"), replace("c"), fused=fused)
    server = await request(app, spec=spec)
    assert (server.status, server.body) == (203, b"a")
    assert ended == ["c", "b", "a"]


async def test_replacement_that_fails(spec: str | None, layers: Layers) -> None:
    """What the replacement raises while it is sent is raised at the yield that gave it."""
    error = LookupError("in the replacement")
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"dropped"))

    class Broken(PlainTextResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await raising(error, start(503), body(b"some", more=True))(scope, receive, send)

    async def replaces(conn: Connection) -> Flow:
        yield
        try:
            yield Broken("")
        except LookupError as caught:
            seen.append(caught)
            raise

    server = await request(layers(app, replaces), spec=spec, keep_error=True)
    assert seen == [error]
    assert server.error is error
    assert server.types == ["start", "body"]
    assert not server.complete


async def test_early_answer_that_fails(layers: Layers) -> None:
    """What an early answer raises while it is sent is raised at the yield that gave it."""
    error = LookupError("in the answer")
    seen: list[BaseException] = []

    class Broken(PlainTextResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await raising(error, start(503), body(b"some", more=True))(scope, receive, send)

    async def answers(conn: Connection) -> Flow:
        try:
            yield Broken("")
        except LookupError as caught:
            seen.append(caught)
            raise

    server = await request(layers(plain_inner(), answers), keep_error=True)
    assert seen == [error]
    assert server.error is error
    assert server.types == ["start", "body"]


# A flow raises after it got the response.


async def lets_go(send: Send) -> None:
    await send(start())
    await send(body(b"data"))


async def swallows(send: Send) -> None:
    with contextlib.suppress(BaseException):
        await send(start())


async def wraps(send: Send) -> None:
    try:
        await send(start())
    except BaseException as error:
        raise RuntimeError("caught, but the response already started") from error


async def wraps_without_cause(send: Send) -> None:
    try:
        await send(start())
    except BaseException:
        raise RuntimeError("something else") from None


async def groups(send: Send) -> None:
    try:
        await send(start())
    except BaseException as error:
        raise BaseExceptionGroup("several", [error, ValueError("mine")]) from None


async def goes_on(send: Send) -> None:
    for message in (start(), body(b"a", more=True), body(b"b")):
        with contextlib.suppress(BaseException):
            await send(message)


async def answers_the_error(send: Send) -> None:
    for message in (start(), start(500), body(b"sorry")):
        with contextlib.suppress(BaseException):
            await send(message)


async def sends_from_a_child(send: Send) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lets_go, send)


REACTIONS = [
    lets_go,
    swallows,
    wraps,
    wraps_without_cause,
    groups,
    goes_on,
    answers_the_error,
    sends_from_a_child,
]


@pytest.mark.parametrize("reaction", REACTIONS)
@pytest.mark.parametrize("kind", [LookupError, Stop])
async def test_function_raises_after_the_yield(
    spec: str | None,
    layers: Layers,
    kind: type[BaseException],
    reaction: Callable[[Send], Awaitable[None]],
) -> None:
    """Whatever the app makes of it, the function's own exception comes out, and nothing is sent."""
    error = kind("of the middleware")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reaction(send)

    async def mw(conn: Connection) -> Flow:
        yield
        raise error

    server = await request(layers(app, mw), spec=spec, keep_error=True)
    assert server.error is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert server.sent == []


async def test_every_send_raises_the_exception(spec: str | None, layers: Layers) -> None:
    """After a function has raised nothing can be sent; the body raises the same exception."""
    error = LookupError("of the middleware")
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in (start(), body(b"a", more=True), start(500), body(b"b")):
            try:
                await send(message)
            except Exception as caught:
                raised.append(caught)

    async def mw(conn: Connection) -> Flow:
        yield
        raise error

    server = await request(layers(app, mw), spec=spec, keep_error=True)
    assert len(raised) == 4
    assert raised[:2] == [error] * 2
    assert server.error is error


@pytest.mark.parametrize("reaction", REACTIONS)
async def test_outer_function_answers_the_exception_of_an_inner_one(
    spec: str | None, fused: bool, reaction: Callable[[Send], Awaitable[None]]
) -> None:
    """An outer function gets the very exception of an inner one, and may answer it."""
    error = LookupError("of the middleware")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reaction(send)

    async def outer(conn: Connection) -> Flow:
        try:
            yield
        except LookupError as caught:
            assert caught is error
            yield PlainTextResponse("sorry", 503)

    async def mw(conn: Connection) -> Flow:
        yield
        raise error

    functions = (waiting, outer, passing, mw, passing)
    server = await request(stack(app, *functions, fused=fused), spec=spec)
    assert (server.status, server.body) == (503, b"sorry")


async def test_inner_functions_are_told_of_the_exception(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """A function that waits at `yield response` gets what went wrong further out."""
    error = LookupError("of the outer middleware")
    seen: list[BaseException] = []

    async def outer(conn: Connection) -> Flow:
        yield
        raise error

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except LookupError as caught:
            seen.append(caught)
            raise

    server = await request(stack(inner, outer, mw, fused=fused), spec=spec, keep_error=True)
    assert server.error is error
    assert seen == [error]


async def test_function_raises_at_the_end(inner: Inner, spec: str | None, layers: Layers) -> None:
    """What a function raises after `yield response` comes out; the response is intact."""
    error = LookupError("at the end")

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        raise error

    server = await request(layers(inner, mw), spec=spec, keep_error=True)
    assert server.error is error
    assert (server.body, server.complete) == (Inner.BODY, True)


async def test_exception_at_the_end_reaches_the_outer_functions(
    inner: Inner, spec: str | None, fused: bool
) -> None:
    """What an inner function raises at the end is raised at `yield response` further out."""
    error = LookupError("at the end")
    seen: list[BaseException] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except LookupError as caught:
            seen.append(caught)

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        raise error

    server = await request(stack(inner, waiting, outer, mw, fused=fused), spec=spec)
    assert seen == [error]
    assert (server.body, server.complete) == (Inner.BODY, True)


# The inner app raises before its start.


@pytest.mark.parametrize("kind", [LookupError, Stop, StopAsyncIteration])
async def test_app_raises_before_the_start(
    spec: str | None, fused: bool, kind: type[BaseException]
) -> None:
    """Every kind of exception is raised at the yields, inside out, and can be answered."""
    error = kind("of the app")
    seen: list[tuple[str, BaseException]] = []

    async def answers(conn: Connection) -> Flow:
        try:
            yield
        except BaseException as caught:
            seen.append(("outer", caught))
            yield PlainTextResponse("sorry", 500)
            seen.append(("end", caught))

    async def lets_pass(conn: Connection) -> Flow:
        try:
            yield
        except BaseException as caught:
            seen.append(("inner", caught))
            raise

    functions = (waiting, answers, passing, lets_pass, passing)
    server = await request(stack(raising(error), *functions, fused=fused), spec=spec)
    assert (server.status, server.body, server.complete) == (500, b"sorry", True)
    assert seen == [("inner", error), ("outer", error), ("end", error)]


async def reraises(conn: Connection) -> Flow:
    try:
        yield
    except BaseException:  # noqa: TRY203 - users write it, and it adds to the traceback
        raise


async def cleans_up(conn: Connection) -> Flow:
    try:
        yield
    finally:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("function", [passing, waiting, reraises, cleans_up])
@pytest.mark.parametrize("kind", [LookupError, Stop, StopAsyncIteration])
async def test_exception_of_the_app_is_unchanged(
    layers: Layers, kind: type[BaseException], function: Callable[..., Any]
) -> None:
    """An unanswered exception comes out as it is: same object, traceback, cause and context."""
    bare, error = kind("of the app"), kind("of the app")
    for each in (bare, error):
        each.__cause__ = KeyError("cause")
        each.__context__ = ValueError("context")
    before = (error.__cause__, error.__context__, error.__suppress_context__)

    expected = await request(raising(bare), keep_error=True)
    server = await request(layers(raising(error), function), keep_error=True)
    assert server.error is error
    assert (error.__cause__, error.__context__, error.__suppress_context__) == before
    assert expected.error is not None
    names = functions_in(error)
    assert names[-1] == functions_in(expected.error)[-1] == "app"
    assert names.count("app") == 1
    assert not {"passing", "waiting", "reraises", "cleans_up"} & set(names)


@pytest.mark.parametrize("function", [waiting, reraises])
async def test_exception_in_the_body_is_unchanged(
    layers: Layers, function: Callable[..., Any]
) -> None:
    """The same holds for what the app raises in mid-body."""
    error = LookupError("in the body")
    app = raising(error, start(), body(b"x", more=True))
    server = await request(layers(app, function), keep_error=True)
    assert server.error is error
    assert (error.__cause__, error.__context__) == (None, None)
    names = functions_in(error)
    assert (names[-1], names.count("app")) == ("app", 1)
    assert not {"passing", "waiting", "reraises"} & set(names)


async def test_stop_iteration_of_the_app(layers: Layers) -> None:
    """A `StopIteration` that leaves the app comes out as the `RuntimeError` Python makes of it."""
    error = StopIteration("of the app")
    server = await request(layers(raising(error), passing), keep_error=True)
    assert isinstance(server.error, RuntimeError)
    assert server.error.__cause__ is error
    assert server.error.__context__ is error


async def test_generator_exit_of_the_app(layers: Layers) -> None:
    """A `GeneratorExit` closes the functions; it is not theirs to answer."""
    error = GeneratorExit()
    ended: list[str] = []

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        finally:
            ended.append("closed")

    server = await request(layers(raising(error), mw), keep_error=True)
    assert server.error is error
    assert ended == ["closed"]
    assert server.sent == []


async def test_function_raises_another_exception(layers: Layers) -> None:
    """An exception that a function makes of the app's comes out, with the cause it was given."""
    cause = LookupError("of the app")

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except LookupError as caught:
            raise ValueError("of the middleware") from caught

    server = await request(layers(raising(cause), mw), keep_error=True)
    assert isinstance(server.error, ValueError)
    assert server.error.__cause__ is cause
    assert server.error.__context__ is cause
    assert cause.__context__ is None


async def test_exceptions_are_not_tied_together(fused: bool) -> None:
    """An exception is not put into the context of another one that has nothing to do with it."""
    first, second = LookupError("first"), ValueError("second")

    async def outer(conn: Connection) -> Flow:
        with contextlib.suppress(LookupError):
            yield
        raise second

    server = await request(stack(raising(first), outer, passing, fused=fused), keep_error=True)
    assert server.error is second
    assert (second.__context__, second.__cause__) == (None, None)
    assert (first.__context__, first.__cause__) == (None, None)


async def test_answer_that_is_edited_further_out(spec: str | None, fused: bool) -> None:
    """An outer function gets the answer to an exception as the response."""

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.headers["x-outer"] = str(response.status_code)

    async def answers(conn: Connection) -> Flow:
        try:
            yield
        except LookupError:
            yield PlainTextResponse("sorry", 500)

    app = stack(raising(LookupError("x")), outer, answers, passing, fused=fused)
    server = await request(app, spec=spec)
    assert (server.status, server.headers["x-outer"], server.body) == (500, "500", b"sorry")


# A flow swallows it and gives no response.


async def test_function_swallows_the_exception(spec: str | None, layers: Layers) -> None:
    """A function that swallows an exception and answers nothing is an error, made from it."""
    error = LookupError("of the app")

    async def swallows_it(conn: Connection) -> Flow:
        with contextlib.suppress(LookupError):
            yield

    server = await request(layers(raising(error), swallows_it), spec=spec, keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    assert server.error.__cause__ is error
    explained(server.error, swallows_it, "raise", "yield", repr(error))
    assert server.sent == []


async def test_bare_yield_after_an_exception(layers: Layers) -> None:
    """A function cannot run the app again after it failed."""
    ended: list[str] = []

    async def tries_again(conn: Connection) -> Flow:
        try:
            try:
                yield
            except LookupError:
                yield
        finally:
            ended.append("closed")

    server = await request(layers(raising(LookupError("x")), tries_again), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, tries_again)
    assert ended == ["closed"]
    assert server.sent == []


# The inner app raises after the start.


@pytest.mark.parametrize("kind", [LookupError, Stop, StopAsyncIteration])
async def test_app_raises_after_the_start(
    spec: str | None, fused: bool, kind: type[BaseException]
) -> None:
    """It is raised at the second yields, inside out; no closing frame is invented."""
    error = kind("in the body")
    seen: list[Any] = []

    def watch(name: str) -> Callable[[Connection], Flow]:
        async def mw(conn: Connection) -> Flow:
            response = yield
            try:
                yield response
            except BaseException as caught:
                seen.append((name, caught, response.outcome, response.bytes_sent))
                raise

        return mw

    app = raising(error, start(), body(b"some", more=True))
    functions = (watch("outer"), passing, watch("inner"), passing)
    server = await request(stack(app, *functions, fused=fused), spec=spec, keep_error=True)
    assert server.error is error
    assert seen == [("inner", error, "failed", 4), ("outer", error, "failed", 4)]
    assert server.types == ["start", "body"]
    assert not server.complete


async def test_exception_in_the_body_without_a_waiting_function(
    spec: str | None, fused: bool
) -> None:
    """Where all functions are over, an exception in mid-body just comes out."""
    error = LookupError("in the body")
    app = raising(error, start(), body(b"some", more=True))
    server = await request(stack(app, passing, passing, fused=fused), spec=spec, keep_error=True)
    assert server.error is error
    assert server.types == ["start", "body"]


async def test_exception_in_the_body_is_swallowed(spec: str | None, fused: bool) -> None:
    """A function may swallow what was raised in mid-body; the body stays cut off."""
    seen: list[Any] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.append(response.outcome)

    async def swallows_it(conn: Connection) -> Flow:
        response = yield
        with contextlib.suppress(LookupError):
            yield response

    app = raising(LookupError("x"), start(), body(b"some", more=True))
    server = await request(stack(app, outer, swallows_it, passing, fused=fused), spec=spec)
    assert server.types == ["start", "body"]
    assert not server.complete
    assert seen == ["incomplete"]


async def test_exception_between_start_and_body(spec: str | None, layers: Layers) -> None:
    """An exception after the start and before any body is one after the start."""
    error = LookupError("x")
    server = await request(layers(raising(error, start()), waiting), spec=spec, keep_error=True)
    assert server.error is error
    assert server.types == ["start"]


async def test_exception_of_a_background_task(spec: str | None, layers: Layers) -> None:
    """What the app's background task raises is raised at `yield response`; the response is out."""
    error = LookupError("in the background")
    seen: list[BaseException] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except LookupError as caught:
            seen.append(caught)
            raise

    app = raising(error, start(), body(b"data"))
    server = await request(layers(app, mw), spec=spec, keep_error=True)
    assert server.error is error
    assert seen == [error]
    assert (server.body, server.complete) == (b"data", True)


@pytest.mark.parametrize("messages", [(start(), start()), (start(), body(), body()), (body(),)])
async def test_app_breaks_the_protocol(layers: Layers, messages: tuple[Message, ...]) -> None:
    """What the server says to a broken app reaches the app, as without middleware."""
    bare = await request(script(*messages), keep_error=True)
    server = await request(layers(script(*messages), waiting), keep_error=True)
    assert isinstance(server.error, RuntimeError)
    assert server.sent == bare.sent


# The inner app returns without a start.


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Return without a response."""


async def test_app_returns_without_a_response(spec: str | None, layers: Layers) -> None:
    """An app that sends nothing is an error that names it, raised at the yield."""
    seen: list[BaseException] = []

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except NoResponseError as caught:
            seen.append(caught)
            raise

    server = await request(layers(silent, mw), spec=spec, keep_error=True)
    assert seen == [server.error]
    explained(server.error, silent)
    assert server.sent == []


async def test_missing_response_is_answered(spec: str | None, fused: bool) -> None:
    """A function may answer for an app that did not."""

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except NoResponseError:
            yield PlainTextResponse("nothing there", 502)

    server = await request(stack(silent, waiting, mw, passing, fused=fused), spec=spec)
    assert (server.status, server.body) == (502, b"nothing there")


async def test_app_returns_after_a_message_that_is_no_start(layers: Layers) -> None:
    """Messages before the start go out at once; without a start there is no response."""
    hint: Message = {"type": "http.response.early_hint", "links": []}
    app = layers(script(hint), passing)
    server = await request(app, extensions={hint["type"]: {}}, keep_error=True)
    assert isinstance(server.error, NoResponseError)
    assert server.sent == [hint]


async def until_disconnect(scope: Scope, receive: Receive, send: Send) -> None:
    """Return without a response when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.parametrize("app", [silent, until_disconnect])
@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_client_that_left_needs_no_response(
    spec: str | None, layers: Layers, app: ASGIApp, disconnect: str
) -> None:
    """If the client is gone the yield raises `ClientDisconnect`, which is dropped silently."""
    seen: list[BaseException] = []

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except ClientDisconnect as caught:
            seen.append(caught)
            raise

    server = Server(spec=spec, disconnect=disconnect)  # type: ignore[arg-type]
    server.disconnect()
    await server.run(layers(app, mw))
    assert len(seen) == 1
    assert server.sent == []


async def test_client_disconnect_is_answered(spec: str | None, layers: Layers) -> None:
    """A function that answers a client that left does no harm."""

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except ClientDisconnect:
            yield PlainTextResponse("too late", 499)

    server = Server(spec=spec)
    server.disconnect()
    await server.run(layers(silent, mw), keep_error=True)
    assert server.sent == []
    # From 2.4 on it is the server that says so.
    assert server.error is None or isinstance(server.error, OSError)


# The inner app returns in mid-body.


async def outcome_of(app: ASGIApp, server: Server, layers: Layers) -> str | None:
    """Return the outcome that a middleware function sees."""
    seen: list[AppResponse] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.append(response)

    await server.run(layers(app, mw))
    assert len(seen) == 1
    return seen[0].outcome


async def test_header_set_after_the_end_is_not_sent(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """What was sent is what there was at `yield response`, also for those who keep the message."""
    kept: list[Message] = []
    seen: list[list[bytes]] = []

    async def late(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.append([name for name, _ in response.raw_headers])
        with suppress(MiddlewareError):
            response.headers["x-late"] = "yes"
        with suppress(MiddlewareError):
            response.headers["content-type"] = "text/late"

    app = layers(inner, late)

    async def adding(scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-added", b"yes"))
                kept.append(message)
            await send(message)

        await app(scope, receive, add)

    server = await request(adding, spec=spec)

    assert "x-late" not in server.headers
    assert server.headers["content-type"] != "text/late"
    assert b"x-added" not in seen[0]
    assert b"x-late" not in [name for name, _ in kept[0]["headers"]]


async def test_outcome_completed(inner: Inner, spec: str | None, layers: Layers) -> None:
    """The outcome of a response that was sent in full is `completed`."""
    assert await outcome_of(inner, Server(spec=spec), layers) == "completed"


async def test_app_returns_in_mid_body(spec: str | None, layers: Layers) -> None:
    """The outcome of a body that was cut off by the app is `incomplete`."""
    server = Server(spec=spec)
    app = script(start(), body(b"x", more=True))
    assert await outcome_of(app, server, layers) == "incomplete"
    assert server.types == ["start", "body"]


@pytest.mark.parametrize("asks", [True, False], ids=["told", "not told"])
async def test_client_leaves_in_mid_body(spec: str | None, layers: Layers, asks: bool) -> None:
    """The outcome of a body that was cut off because the client left is `disconnected`."""
    server = Server(spec=spec)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x", more=True))
        server.disconnect()
        if asks:
            await until_disconnect(scope, receive, send)

    assert await outcome_of(app, server, layers) == "disconnected"
    assert server.types == ["start", "body"]


@pytest.mark.parametrize("spec", [None, "2.1", "2.3"])
async def test_client_leaves_an_endless_stream(spec: str | None, layers: Layers) -> None:
    """When the client leaves an endless stream the function is resumed."""
    server = Server(spec=spec)

    class Endless:
        sent = 0

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            self.sent += 1
            if self.sent == 3:
                server.disconnect()
            return b"x"

    response = StreamingResponse(Endless())
    assert await outcome_of(response, server, layers) == "disconnected"


@pytest.mark.parametrize("spec", ["2.4", "2.5"])
async def test_server_that_raises_when_the_client_has_left(spec: str, layers: Layers) -> None:
    """What a server of ASGI 2.4 raises out of `send` is raised at `yield response`."""
    server = Server(spec=spec)
    seen: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x", more=True))
        server.disconnect()
        await send(body(b"y"))

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except OSError as caught:
            seen.append(caught)
            raise

    await server.run(layers(app, mw), keep_error=True)
    assert seen == [server.error]


# The request is cancelled.


class Ticker:
    """A checkpoint that cancels the request when it is passed for the nth time."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.cancel: Callable[[], Any] = lambda: None

    async def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.cancel()
        await anyio.lowlevel.checkpoint()


class TickingServer(Server):
    """A server with a checkpoint of the `Ticker` in `send` and in `receive`."""

    def __init__(self, tick: Ticker, **options: Any) -> None:
        super().__init__(**options)
        self.tick = tick

    async def receive(self) -> Message:
        await self.tick()
        return await super().receive()

    async def send(self, message: Message) -> None:
        await self.tick()
        await super().send(message)


async def run_cancelled(server: Server, app: ASGIApp, mode: str, tick: Ticker) -> bool:
    """Run *app* and let *tick* cancel it; return whether the cancellation came out."""
    if mode == "scope":
        with anyio.CancelScope() as scope:
            tick.cancel = scope.cancel
            await server.run(app)
        return scope.cancelled_caught
    task = asyncio.create_task(server.run(app))
    tick.cancel = task.cancel
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


MODES = pytest.mark.parametrize(
    ("anyio_backend", "mode"),
    [("asyncio", "scope"), ("trio", "scope"), ("asyncio", "task")],
    ids=["asyncio-scope", "trio-scope", "asyncio-task"],
)


@MODES
@pytest.mark.parametrize("kind", ["passes", "waits", "answers", "replaces", "reads", "looks"])
async def test_cancelled_at_every_point(
    inner: Inner, spec: str | None, layers: Layers, mode: str, kind: str
) -> None:
    """Wherever a request is cancelled, clean-up runs and the cancellation goes on."""
    for at in range(1, 100):
        tick = Ticker(at)
        trail: list[str] = []

        async def app(scope: Scope, receive: Receive, send: Send, tick: Ticker = tick) -> None:
            await tick()
            await inner(scope, receive, send)
            await tick()

        async def mw(conn: Connection, tick: Ticker = tick, trail: list[str] = trail) -> Flow:
            trail.append("in")
            try:
                await tick()
                if kind == "answers":
                    yield PlainTextResponse("early")
                else:
                    response = yield
                    await tick()
                    if kind == "reads":
                        await response.read()
                    if kind == "looks":
                        async for _ in response.body_iterator:
                            await tick()
                    if kind == "waits":
                        yield response
                    if kind == "replaces":
                        yield PlainTextResponse("instead")
                await tick()
            finally:
                trail.append("out")

        server = TickingServer(tick, spec=spec)
        cancelled = await run_cancelled(server, layers(app, mw), mode, tick)
        assert trail in ([], ["in", "out"])
        assert cancelled == (tick.count >= at)
        if mode == "scope" and (task := native_task()) is not None:
            assert task.cancelling() == 0
        if not cancelled:
            assert at > 3
            return
    pytest.fail("the request never ended by itself")


def native_task() -> asyncio.Task[Any] | None:
    """Return the running task of asyncio, `None` on trio."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def test_app_makes_an_error_of_the_cancellation(spec: str | None, layers: Layers) -> None:
    """The error comes to the functions and out, and no cancellation is put in its place."""
    error = ConnectionError("the database did not like to be interrupted")
    server = Server(spec=spec)
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"x", more=True))
        around.cancel()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise error from None

    async def mw(conn: Connection) -> Flow:
        response = yield
        try:
            yield response
        except BaseException as caught:
            seen.extend([caught, response.outcome])
            raise

    with anyio.CancelScope() as around:
        await server.run(layers(app, mw), keep_error=True)
    assert seen == [error, "failed"]
    assert server.error is error


@MODES
@pytest.mark.parametrize("how", ["nothing", "answers", "at the end"])
async def test_swallowed_cancellation_goes_on(
    spec: str | None, layers: Layers, mode: str, how: str
) -> None:
    """A cancellation that a function swallowed is raised again, as it is still owed."""
    tick = Ticker(1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "at the end":
            await send(start())
            await send(body(b"x", more=True))
        await tick()

    async def swallows_it(conn: Connection) -> Flow:
        try:
            response = yield
            if how == "at the end":
                yield response
        except BaseException:
            if how == "answers":
                yield PlainTextResponse("bye", 503)

    server = Server(spec=spec)
    assert await run_cancelled(server, layers(app, swallows_it), mode, tick)
    if how == "answers" and mode == "task":
        assert (server.status, server.body) == (503, b"bye")


@MODES
@pytest.mark.parametrize("how", ["nothing", "answers", "at the end"])
async def test_swallowed_cancellation_reaches_the_outer_functions(
    spec: str | None, fused: bool, mode: str, how: str
) -> None:
    """An outer function gets the cancellation that an inner one swallowed, and is ended."""
    tick = Ticker(1)
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "at the end":
            await send(start())
            await send(body(b"x", more=True))
        await tick()

    async def outer(conn: Connection) -> Flow:
        try:
            response = yield
            yield response
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            raise
        finally:
            seen.append("ended")

    async def swallows_it(conn: Connection) -> Flow:
        try:
            response = yield
            if how == "at the end":
                yield response
        except BaseException:
            if how == "answers":
                yield PlainTextResponse("bye", 503)

    wrapped = stack(app, outer, swallows_it, passing, fused=fused)
    assert await run_cancelled(Server(spec=spec), wrapped, mode, tick)
    assert seen == ["cancelled", "ended"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancellation_that_is_answered_for_is_not_raised_again(
    spec: str | None, layers: Layers
) -> None:
    """A function that takes its own cancellation back is done with it."""
    task = asyncio.current_task()
    assert task is not None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        task.cancel()
        await anyio.lowlevel.checkpoint()

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        except asyncio.CancelledError:
            task.uncancel()
            yield PlainTextResponse("mine", 504)

    server = await request(layers(app, mw), spec=spec)
    assert (server.status, server.body) == (504, b"mine")
    assert task.cancelling() == 0


async def test_clean_up_may_await(layers: Layers) -> None:
    """A shielded clean-up runs to its end when the request is cancelled."""
    done: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes[0].cancel()
        await anyio.sleep_forever()

    async def mw(conn: Connection) -> Flow:
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                done.append("clean")

    scopes = [anyio.CancelScope()]
    with scopes[0]:
        await request(layers(app, mw))
    assert scopes[0].cancelled_caught
    assert done == ["clean"]


@pytest.mark.parametrize("late", [False, True], ids=["start", "more"])
async def test_app_cancels_its_own_send(spec: str | None, layers: Layers, late: bool) -> None:
    """A start that the app cancelled in the middle of a step never goes out unprocessed."""
    ended: list[str] = []
    refused: list[BaseException] = []
    scopes: list[anyio.CancelScope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as own:
            scopes.append(own)
            await send(start())
        if late:
            for message in (start(500), body(b"sorry")):
                try:
                    await send(message)
                except Exception as error:
                    refused.append(error)

    async def mw(conn: Connection) -> Flow:
        try:
            yield
            scopes[0].cancel()
            await anyio.sleep_forever()
        finally:
            ended.append("closed")

    server = await request(layers(app, mw), spec=spec, keep_error=True)
    assert ended == ["closed"]
    assert server.sent == []
    assert isinstance(server.error, Exception)
    assert len(refused) == (2 if late else 0)


@pytest.mark.parametrize("when", ["before the first step", "in the server"])
async def test_app_cancels_its_own_send_and_tries_again(
    spec: str | None, layers: Layers, when: str
) -> None:
    """Whatever became of the first start, no start reaches the server that no function has seen."""
    scopes: list[anyio.CancelScope] = []

    class Strict(Server):
        async def send(self, message: Message) -> None:
            if when == "in the server" and not scopes[0].cancel_called:
                scopes[0].cancel()
            await super().send(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as own:
            scopes.append(own)
            async with anyio.create_task_group() as group:
                group.start_soon(send, start())
                if when == "before the first step":
                    own.cancel()
        for message in (start(500), body(b"sorry")):
            with contextlib.suppress(Exception):
                await send(message)

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers["x-mw"] = "yes"

    server = await Strict(spec=spec).run(layers(app, mw), keep_error=True)
    if server.sent:
        assert server.headers["x-mw"] == "yes"
    else:
        assert isinstance(server.error, Exception)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_orphan_inside_a_step(layers: Layers) -> None:
    """When the app returns while a task it left behind is inside a step, the step is finished."""
    release = asyncio.Event()
    orphans: list[asyncio.Task[None]] = []
    entered = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def orphan() -> None:
            await send(start())
            await send(body(b"late"))

        orphans.append(asyncio.create_task(orphan()))
        await entered.wait()

    async def mw(conn: Connection) -> Flow:
        response = yield
        entered.set()
        await release.wait()
        response.headers["x-mw"] = "yes"

    async with anyio.create_task_group() as group:
        group.start_soon(release_when_blocked, release)  # type: ignore[arg-type]
        server = await request(layers(app, mw))
    await orphans[0]
    assert server.headers["x-mw"] == "yes"
    assert server.body == b"late"


# A flow holds a scope open at a yield.


async def enter_task_group(holder: contextlib.AsyncExitStack) -> None:
    await holder.enter_async_context(anyio.create_task_group())


async def enter_nursery(holder: contextlib.AsyncExitStack) -> None:
    await holder.enter_async_context(trio.open_nursery())


def enter(make: Callable[[], Any]) -> Callable[[contextlib.AsyncExitStack], Awaitable[None]]:
    async def enter_scope(holder: contextlib.AsyncExitStack) -> None:
        holder.enter_context(make())

    return enter_scope


BOTH = ("asyncio", "trio")
SCOPES = [
    pytest.param(backend, enter_it, id=f"{backend}-{name}")
    for name, backends, enter_it in [
        ("anyio.CancelScope", BOTH, enter(anyio.CancelScope)),
        ("anyio.fail_after", BOTH, enter(lambda: anyio.fail_after(60))),
        ("anyio.move_on_after", BOTH, enter(lambda: anyio.move_on_after(60))),
        ("anyio.task_group", BOTH, enter_task_group),
        ("trio.CancelScope", ("trio",), enter(trio.CancelScope)),
        ("trio.fail_after", ("trio",), enter(lambda: trio.fail_after(60))),
        ("trio.move_on_after", ("trio",), enter(lambda: trio.move_on_after(60))),
        ("trio.nursery", ("trio",), enter_nursery),
    ]
    for backend in backends
]


@pytest.mark.parametrize(("anyio_backend", "enter_it"), SCOPES)
async def test_scope_held_open_at_the_first_yield(
    inner: Inner,
    spec: str | None,
    layers: Layers,
    enter_it: Callable[[contextlib.AsyncExitStack], Awaitable[None]],
) -> None:
    """It is refused at the first request, before the app is run; the scope ends in order."""
    ended: list[str] = []

    async def holds_a_scope(conn: Connection) -> Flow:
        async with contextlib.AsyncExitStack() as holder:
            await enter_it(holder)
            try:
                yield
            finally:
                await anyio.lowlevel.cancel_shielded_checkpoint()
                ended.append("closed")
        ended.append("not reached")

    with anyio.CancelScope() as around:
        server = await request(layers(inner, holds_a_scope), spec=spec, keep_error=True)
    assert not around.cancelled_caught
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, holds_a_scope, "conn.fail_after", "asyncio.timeout", "PEP 789")
    assert ended == ["closed"]
    assert (server.sent, inner.runs) == ([], 0)


@pytest.mark.parametrize(("anyio_backend", "enter_it"), SCOPES)
@pytest.mark.parametrize("early", [True, False], ids=["early answer", "response"])
async def test_scope_held_open_at_a_later_yield(
    inner: Inner,
    spec: str | None,
    layers: Layers,
    enter_it: Callable[[contextlib.AsyncExitStack], Awaitable[None]],
    early: bool,
) -> None:
    """It is refused at any yield, before anything is sent."""
    ended: list[str] = []

    async def holds_a_scope(conn: Connection) -> Flow:
        response: Any = PlainTextResponse("early")
        if not early:
            response = yield
        async with contextlib.AsyncExitStack() as holder:
            await enter_it(holder)
            try:
                yield response
            finally:
                ended.append("closed")

    server = await request(layers(inner, holds_a_scope), spec=spec, keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, holds_a_scope)
    assert ended == ["closed"]
    assert server.sent == []


async def test_scope_held_by_a_delegate(layers: Layers) -> None:
    """The function that holds the scope is the one that is named."""

    async def holds_a_scope(conn: Connection) -> Flow:
        with anyio.CancelScope():
            yield

    async def mw(conn: Connection) -> Flow:
        yield holds_a_scope(conn)

    server = await request(layers(plain_inner(), mw), keep_error=True)
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, holds_a_scope)


async def test_outer_function_answers_a_held_scope(spec: str | None, fused: bool) -> None:
    """The error is raised at the yield of the functions further out, which may answer."""

    async def outer(conn: Connection) -> Flow:
        try:
            yield
        except MiddlewareError:
            yield PlainTextResponse("sorry", 500)

    async def holds_a_scope(conn: Connection) -> Flow:
        with anyio.move_on_after(60):
            yield

    app = stack(plain_inner(), outer, passing, holds_a_scope, fused=fused)
    assert (await request(app, spec=spec)).status == 500


async def test_scopes_between_the_yields(inner: Inner, spec: str | None, layers: Layers) -> None:
    """Scopes and task groups that are closed before each yield are fine, everywhere."""
    done: list[int] = []

    async def work() -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.lowlevel.checkpoint)
            await anyio.lowlevel.checkpoint()
        done.append(1)

    async def mw(conn: Connection) -> Flow:
        await work()
        response = yield
        await work()
        yield response
        await work()

    server = await request(layers(inner, mw), spec=spec)
    assert (server.body, len(done)) == (Inner.BODY, 3)


async def test_request_inside_a_scope(inner: Inner, spec: str | None, layers: Layers) -> None:
    """Scopes that were open before the request are not the function's."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response

    with anyio.CancelScope():
        async with anyio.create_task_group():
            server = await request(layers(inner, mw), spec=spec)
    assert server.body == Inner.BODY


async def test_scope_closed_when_the_function_raises(layers: Layers) -> None:
    """A scope that ended because the function raised is no scope held open."""
    error = LookupError("mine")

    async def mw(conn: Connection) -> Flow:
        with anyio.fail_after(60):
            await anyio.lowlevel.checkpoint()
            raise error
        yield

    assert (await request(layers(plain_inner(), mw), keep_error=True)).error is error


# Siblings send while a flow is being stepped.


async def test_sibling_sends_while_a_flow_is_stepped(spec: str | None, layers: Layers) -> None:
    """A message that a sibling sends meanwhile waits for the step; the order is kept."""
    release = anyio.Event()
    server = Server(spec=spec)
    before: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(send, start())
            await anyio.wait_all_tasks_blocked()
            group.start_soon(send, body(b"a", more=True))
            await anyio.wait_all_tasks_blocked()
            before.append(server.sent[:])
            release.set()
            await anyio.wait_all_tasks_blocked()
            await send(body(b"b"))

    async def mw(conn: Connection) -> Flow:
        response = yield
        await release.wait()
        response.headers["x-mw"] = "yes"

    await server.run(layers(app, mw))
    assert before == [[]]
    assert server.chunks == [b"a", b"b"]
    assert server.headers["x-mw"] == "yes"


def held_start(app: ASGIApp, gate: anyio.Event) -> ASGIApp:
    """Wrap *app* in a layer that holds its start back until the gate is open."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                await gate.wait()
            await send(message)

        await app(scope, receive, hold)

    return layer


def noting(app: ASGIApp, types: list[str]) -> ASGIApp:
    """Wrap *app* in a layer that notes the types of its messages."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            types.append(message["type"])
            await send(message)

        await app(scope, receive, note)

    return layer


@pytest.mark.parametrize("function", [passing, waiting])
async def test_sibling_sends_a_second_start_while_the_first_is_on_its_way(
    function: Callable[[Connection], Flow],
) -> None:
    """It never goes out past the functions."""
    gate = anyio.Event()
    errors: list[Exception] = []
    out: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def second() -> None:
            try:
                await send(start(201))
            except Exception as error:  # ours, or the server's
                errors.append(error)

        async def sibling() -> None:
            await anyio.wait_all_tasks_blocked()
            group.start_soon(second)
            await anyio.wait_all_tasks_blocked()
            out.extend(on_their_way)
            gate.set()

        async with anyio.create_task_group() as group:
            group.start_soon(sibling)
            await send(start())
        await send(body(b"a"))

    on_their_way: list[str] = []
    server = await request(held_start(noting(stack(app, function, fused=True), on_their_way), gate))

    assert out == ["http.response.start"]
    assert [message.get("status") for message in server.sent] == [200, None]
    assert len(errors) == 1


async def test_sibling_sends_a_body_while_the_start_is_on_its_way() -> None:
    """Where a function waits for the end of the response, it waits for the start."""
    gate = anyio.Event()
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def sibling() -> None:
            await anyio.wait_all_tasks_blocked()
            group.start_soon(send, body(b"a"))
            await anyio.wait_all_tasks_blocked()
            order.append("open")
            gate.set()

        async with anyio.create_task_group() as group:
            group.start_soon(sibling)
            await send(start())

    await request(held_start(noting(stack(app, waiting, fused=True), order), gate))

    assert order == ["http.response.start", "open", "http.response.body"]


async def test_client_leaves_while_the_start_is_on_its_way() -> None:
    """The app learns of it when the start is out; what waits for its end is not cut off."""
    gate = anyio.Event()
    seen: list[AppResponse] = []
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                await receive()
                heard.append("gone")
                group.cancel_scope.cancel()

            async def open_gate() -> None:
                await anyio.wait_all_tasks_blocked()
                heard.append("open")
                gate.set()

            group.start_soon(listen)
            group.start_soon(open_gate)
            await send(start())
            await send(body(b"data"))

    async def mw(conn: Connection) -> Flow:
        response = yield
        seen.append(response)
        yield response

    async def leaves() -> Message:
        return DISCONNECT

    held = held_start(stack(app, mw, fused=True), gate)
    server = Server()

    async def without_client(scope: Scope, receive: Receive, send: Send) -> None:
        await held(scope, leaves, send)

    await server.run(without_client)

    assert heard == ["open", "gone"]
    assert server.types[0] == "start"
    assert seen[0].started_at is not None


@pytest.mark.parametrize("waits", [False, True])
async def test_start_that_cannot_be_made(waits: bool) -> None:
    """Another start is refused: the functions have had their turn."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(AttributeError):
            await send(start())
        await send(start(500))

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.headers = {"x": "y"}  # type: ignore[assignment]
        if waits:
            yield response

    server = await request(stack(app, mw, fused=True), keep_error=True)

    assert isinstance(server.error, RuntimeError)
    assert server.sent == []


@pytest.mark.parametrize("mistake", ["status", "headers"])
async def test_function_that_waits_with_a_response_that_cannot_be_sent(
    mistake: str, layers: Layers
) -> None:
    """It is told so at its `yield response`, and is ended."""
    seen: list[BaseException | str] = []

    async def mw(conn: Connection) -> Flow:
        response = yield
        if mistake == "status":
            response.body = b"other"
            response.status_code = "404"  # type: ignore[assignment]
        else:
            response.headers = {"x": "y"}  # type: ignore[assignment]
        try:
            yield response
        except Exception as error:
            seen.append(error)
            raise
        finally:
            seen.append("ended")

    server = await request(layers(plain_inner(), mw), keep_error=True)

    assert seen == [server.error, "ended"]
    # Of a status the server is the judge.
    assert isinstance(server.error, ASGIViolation if mistake == "status" else MiddlewareError)


# The client leaves while a flow is being stepped.


async def test_client_leaves_while_a_flow_is_stepped(
    inner: Inner, spec: str | None, layers: Layers
) -> None:
    """Code after the yield is not cut off when the client leaves meanwhile."""
    server = Server(spec=spec)
    done: list[str] = []

    async def mw(conn: Connection) -> Flow:
        yield
        server.disconnect()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        done.append("all")

    await server.run(layers(inner, mw), keep_error=True)
    assert done == ["all"]


async def test_app_learns_of_the_disconnect_after_the_step(
    spec: str | None, layers: Layers
) -> None:
    """The app's listener is told when the step is over, not before."""
    server = Server(spec=spec)
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(listen, receive)
            await send(start())

    async def listen(receive: Receive) -> None:
        while (await receive()) != DISCONNECT:
            pass
        events.append("app was told")

    async def mw(conn: Connection) -> Flow:
        response = yield
        server.disconnect()
        await anyio.wait_all_tasks_blocked()
        events.append("step is over")
        yield response

    await server.run(layers(app, mw), keep_error=True)
    assert events == ["step is over", "app was told"]


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
@pytest.mark.parametrize("function", [passing, waiting])
async def test_everyone_is_told_of_the_disconnect(
    spec: str | None, layers: Layers, disconnect: Any, function: Callable[..., Any]
) -> None:
    """Everyone who asks is told, again and again; the server is asked by one at a time, once."""
    server = Server(spec=spec, disconnect=disconnect)
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            told.extend([await receive(), await receive()])

        assert (await receive())["type"] == "http.request"
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await send(start())
            await send(body(b"x", more=True))
            server.disconnect()

    await server.run(layers(app, function))
    assert told == [DISCONNECT] * 6
    assert server.most_receivers == 1


@pytest.mark.parametrize("mode", ["early", "replaced"])
async def test_client_leaves_while_a_streamed_answer_is_sent(
    spec: str | None, layers: Layers, mode: str
) -> None:
    """A streamed answer of a middleware ends when the client leaves, and its tail runs."""
    server = Server(spec=spec)
    done: list[str] = []

    class Endless:
        sent = 0

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            self.sent += 1
            if self.sent == 3:
                server.disconnect()
            await anyio.lowlevel.checkpoint()
            return b"x"

    async def mw(conn: Connection) -> Flow:
        try:
            if mode == "replaced":
                yield
            yield StreamingResponse(Endless())
        finally:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            done.append("all")

    await server.run(layers(stream_inner(), mw), keep_error=True)
    assert done == ["all"]
    assert server.status == 200
    assert not server.complete
    # As without middleware: Starlette tells the disconnect of a 2.4 server by an exception.
    expected = spec in ("2.4", "2.5")
    assert isinstance(server.error, ClientDisconnect) if expected else server.error is None


# The client is gone, and the app begins anew: as `mcp` does at the end of its `sse_app`.


async def begins_anew(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start())
    await send(body(b"data", more=True))
    while (await receive())["type"] != "http.disconnect":
        pass
    with contextlib.suppress(OSError):  # of a server of ASGI 2.4
        await PlainTextResponse("another")(scope, receive, send)


async def iterates(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = each(response.body_iterator)


async def each(chunks: Any) -> Any:
    async for chunk in chunks:
        yield chunk


async def iterates_and_waits(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = each(response.body_iterator)
    yield response
    assert response.outcome == "disconnected"


async def streams_on(conn: Connection) -> Flow:
    response = yield
    yield StreamingResponse(each(response.body_iterator))


async def reads_all(conn: Connection) -> Flow:
    response = yield
    with pytest.raises(ClientDisconnect) as raised:
        await response.read()
    raise raised.value


async def replaces(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse("replaced")


@pytest.mark.parametrize(
    "function",
    [passing, waiting, iterates, iterates_and_waits, streams_on, reads_all, replaces],
)
async def test_app_that_begins_anew_when_its_client_is_gone(
    function: Callable[[Connection], Flow], layers: Layers, spec: str | None
) -> None:
    """What it sends is the server's to judge; nothing is raised, and it is no part of the body."""
    outcomes: list[str | None] = []

    async def log(conn: Connection) -> Flow:
        response = yield
        yield response
        outcomes.append(response.outcome)

    expected = {replaces: ["completed"]}.get(function, ["disconnected"])
    app = stack(layers(begins_anew, function), log, fused=True)

    server = await request(app, spec=spec, leaves_after=0 if function is reads_all else 2)

    assert b"another" not in server.body
    # Where the first start was held back, nested layers may get the second one for it.
    assert outcomes == expected or (function is reads_all and outcomes == [])


async def test_cancellation_that_comes_up_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that has an order of its own may deliver it some steps later."""
    steps = 0

    async def checkpoint() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(_context, "checkpoint", checkpoint)
    with anyio.CancelScope() as scope:
        assert await _context.pending_cancellation() is None
        scope.cancel()
        found = await _context.pending_cancellation()

    assert isinstance(found, anyio.get_cancelled_exc_class())
    assert steps == 3
