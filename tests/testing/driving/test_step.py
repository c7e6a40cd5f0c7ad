"""`step` drives one request through a middleware, while the test plays the inner app."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError, NoResponseError
from httpmw._context import current_task
from httpmw.testing import ASGIViolation, step
from tests.harness import explained

NOTES: list[Any] = []


@pytest.fixture(autouse=True)
def no_notes() -> None:
    NOTES.clear()


async def served_by(conn: Connection) -> Flow:
    response = yield
    response.headers["x-served-by"] = "mine"


async def noting(conn: Connection) -> Flow:
    NOTES.append("begin")
    try:
        response = yield
        NOTES.append("response")
        yield response
        NOTES.append(response.outcome)
    except BaseException as error:
        NOTES.append(type(error))
        raise
    finally:
        NOTES.append("end")


async def gate(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


async def upper(conn: Connection) -> Flow:
    response = yield
    response.body = (await response.read()).upper()


async def answers_errors(conn: Connection) -> Flow:
    try:
        yield
    except LookupError as error:
        yield JSONResponse({"error": str(error)}, 404)


async def limited(conn: Connection) -> Flow:
    conn.fail_after(0.001)
    try:
        yield
    except TimeoutError:
        yield PlainTextResponse("late", 504)


async def test_point_by_point() -> None:
    """At each point it can be seen where the middleware is and what it has done."""
    async with step(noting, path="/x?a=1", headers={"X-A": "b"}) as flow:
        assert (flow.state, NOTES) == ("waiting", ["begin"])
        assert flow.conn is not None
        assert (flow.conn.url.path, flow.conn.headers["x-a"]) == ("/x", "b")
        assert flow.request is not None
        assert dict(flow.request.query_params) == {"a": "1"}
        assert (flow.status, flow.sent, flow.response) == (None, [], None)

        await flow.respond(201, {"X-App": "yes"})
        assert (flow.state, NOTES) == ("sending", ["begin", "response"])
        assert (flow.status, flow.headers["x-app"]) == (201, "yes")
        assert flow.response is not None
        assert flow.response.status_code == 201

        await flow.chunk(b"a")
        assert flow.chunks == [b"a"]
        assert not flow.ended

        await flow.finish(b"b")
        assert (flow.state, flow.ended) == ("ended", True)
        assert flow.body == b"ab"
        assert NOTES[2:] == ["completed", "end"]
        assert flow.answer is None


def plain(conn: Connection) -> Flow:
    return served_by(conn)


class Named(HTTPMiddleware):
    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        response.headers["x-served-by"] = "mine"


@pytest.mark.parametrize(
    "mw",
    [
        served_by,
        plain,
        Named,
        Named(PlainTextResponse("elsewhere")),
        Middleware(HTTPMiddleware, dispatch=served_by),
    ],
)
async def test_forms_of_middleware_functions(mw: Any) -> None:
    """A middleware function can be watched in all of its forms."""
    async with step(mw) as flow:
        await flow.respond()
        assert flow.headers["x-served-by"] == "mine"
        assert flow.conn is not None
        assert flow.response is not None


async def test_other_middleware() -> None:
    """Another ASGI middleware can be stepped, with less to be seen."""
    async with step(GZipMiddleware, headers={"accept-encoding": "gzip"}) as flow:
        await flow.respond(200, {"content-type": "text/plain"})
        assert flow.state == "reading"
        await flow.finish(b"data " * 500)
        assert flow.headers["content-encoding"] == "gzip"
        assert (flow.conn, flow.response, flow.answer) == (None, None, None)


async def test_middleware_that_makes_a_task() -> None:
    """One that runs its app in another task cannot be stepped, and the error says what can."""

    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    with pytest.raises(RuntimeError, match=r"this one makes another.\nTest it with `await run"):
        async with step(Middleware(BaseHTTPMiddleware, dispatch=dispatch)):
            pass


async def test_early_answer() -> None:
    """A middleware that answers by itself is done when the block is entered."""
    async with step(gate) as flow:
        assert (flow.state, flow.ended, flow.app_ran) == ("answered", True, False)
        assert (flow.status, flow.text) == (403, "members only")
        assert isinstance(flow.answer, PlainTextResponse)
        with pytest.raises(RuntimeError, match="the app was never called"):
            await flow.respond()


async def test_reading() -> None:
    """While the middleware reads the body nothing is sent."""
    async with step(upper) as flow:
        await flow.respond()
        await flow.chunk(b"a")
        assert (flow.state, flow.sent) == ("reading", [])
        await flow.finish(b"b")
        assert flow.body == b"AB"


async def test_replaced() -> None:
    """After a replacement the app goes on, and is not heard any more."""

    async def replaces(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("instead")

    async with step(replaces) as flow:
        await flow.respond()
        assert (flow.state, flow.text) == ("answered", "instead")
        assert not flow.ended
        assert isinstance(flow.answer, PlainTextResponse)
        await flow.chunk(b"a")
        assert await flow.receive() == {"type": "http.disconnect"}
        await flow.finish()
        assert flow.ended
        assert flow.text == "instead"


async def test_replaced_with_a_stream_of_the_body() -> None:
    """A stream made of the app's body grows with it."""

    async def doubled(chunks: Any) -> Any:
        async for chunk in chunks:
            yield chunk * 2

    async def streams(conn: Connection) -> Flow:
        response = yield
        yield StreamingResponse(doubled(response.body_iterator))

    async with step(streams) as flow:
        await flow.respond()
        await flow.chunk(b"a")
        assert flow.chunks == [b"aa"]
        await flow.finish(b"b")
        assert flow.body == b"aabb"


async def test_failure_that_is_answered() -> None:
    """An error of the app is raised at the yield."""
    async with step(answers_errors) as flow:
        await flow.fail(LookupError("none"))
        assert (flow.state, flow.status, flow.json()) == ("answered", 404, {"error": "none"})


async def test_failure_that_is_not() -> None:
    """What the middleware lets pass is raised by the call that provoked it."""
    error = ZeroDivisionError()
    async with step(answers_errors) as flow:
        with pytest.raises(ZeroDivisionError) as raised:
            await flow.fail(error)
        assert raised.value is error
        assert flow.ended


async def test_failure_in_mid_body() -> None:
    """An error after the start is raised at `yield response`."""
    async with step(noting) as flow:
        await flow.respond()
        await flow.chunk(b"a")
        with pytest.raises(LookupError):
            await flow.fail(LookupError())
    assert NOTES == ["begin", "response", LookupError, "end"]


async def test_error_of_the_middleware() -> None:
    """An error of the middleware is raised where it happened."""

    async def broken(conn: Connection) -> Flow:
        yield
        raise LookupError

    async with step(broken) as flow:
        with pytest.raises(LookupError):
            await flow.respond()

    async def at_once(conn: Connection) -> Flow:
        raise LookupError
        yield

    with pytest.raises(LookupError):
        async with step(at_once):
            pytest.fail("it was entered")


async def test_misuse() -> None:
    """A breach of the contract is raised by the step that is one."""

    async def twice(conn: Connection) -> Flow:
        yield
        yield

    async with step(twice) as flow:
        with pytest.raises(MiddlewareError, match="yielded a second time"):
            await flow.respond()


async def test_no_response() -> None:
    """An app that returns without a response is an error at the yield."""
    async with step(noting) as flow:
        with pytest.raises(NoResponseError):
            await flow.end()
    assert NOTES == ["begin", NoResponseError, "end"]


@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_disconnect(disconnect: Any) -> None:
    """The client can leave at any point; who looks learns of it."""
    async with step(noting, disconnect=disconnect, body=[b"a", b"b"]) as flow:
        assert await flow.receive() == {"type": "http.request", "body": b"a", "more_body": True}
        flow.disconnect()
        if disconnect == "once":
            assert (await flow.receive())["body"] == b"b"
        assert await flow.receive() == {"type": "http.disconnect"}
        assert flow.conn is not None
        assert await flow.conn.is_disconnected()
        await flow.end()
    assert NOTES == ["begin", ClientDisconnect, "end"]


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_send_after_the_disconnect(spec: str) -> None:
    """What the app sends then is lost, or fails, as the version of the server has it."""
    async with step(noting, spec=spec) as flow:
        await flow.respond()
        await flow.receive()
        flow.disconnect()
        assert await flow.receive() == {"type": "http.disconnect"}
        if spec == "2.4":
            with pytest.raises(OSError, match="client has left"):
                await flow.chunk(b"a")
        else:
            await flow.chunk(b"a")
            await flow.finish()
            assert NOTES[2:] == ["disconnected", "end"]
        assert flow.chunks == []


@pytest.mark.parametrize("responded", [False, True])
async def test_cancel(responded: bool) -> None:
    """A cancelled request runs the clean-up, and the test goes on."""
    async with step(noting) as flow:
        if responded:
            await flow.respond()
        await flow.cancel()
        assert flow.ended
        await anyio.lowlevel.checkpoint()
    assert NOTES[-2:] == [anyio.get_cancelled_exc_class(), "end"]


async def test_cancellation_leaves_nothing_behind() -> None:
    """After a cancellation the task of the test is not being cancelled."""
    async with step(noting) as flow:
        await flow.cancel()
    task = asyncio.current_task() if asyncio._get_running_loop() else None
    assert task is None or task.cancelling() == 0
    with anyio.move_on_after(0) as scope:
        await anyio.sleep(1)
    assert scope.cancelled_caught


async def test_time_limit() -> None:
    """A time limit strikes while the app hangs."""
    async with step(limited) as flow:
        assert flow.state == "waiting"
        await flow.hang()
        assert (flow.state, flow.text) == ("answered", "late")


async def test_time_limit_that_is_kept() -> None:
    """A time limit does not strike where the app responds, and not later either."""

    async def half_a_second(conn: Connection) -> Flow:
        conn.fail_after(0.5)
        yield

    async with step(half_a_second, body=b"data") as flow:
        await flow.respond(204)
        await anyio.sleep(0.51)
        await flow.finish()
    assert flow.status == 204


async def test_cancel_under_a_time_limit(anyio_backend: str) -> None:
    """On trio a time limit is a scope, which a cancellation would cross: it is refused."""

    async def long(conn: Connection) -> Flow:
        conn.fail_after(3600)
        yield

    async with step(long) as flow:
        if anyio_backend == "trio":
            with pytest.raises(RuntimeError, match="while a time limit of its middleware is run"):
                await flow.cancel()
            await flow.respond()
            await flow.finish()
        else:
            await flow.cancel()
            assert flow.ended


async def test_block_that_is_left() -> None:
    """When the block is left the client leaves, and the app returns."""
    async with step(noting):
        pass
    assert NOTES == ["begin", ClientDisconnect, "end"]
    NOTES.clear()
    async with step(noting) as flow:
        await flow.respond()
    assert flow.ended
    assert NOTES == ["begin", "response", "disconnected", "end"]


async def test_block_that_fails() -> None:
    """An error of the test goes on as it is, and the flow is closed."""
    error = AssertionError("the test failed")
    with pytest.raises(AssertionError) as raised:
        async with step(noting) as flow:
            raise error
    assert raised.value is error
    assert NOTES == ["begin", GeneratorExit, "end"]
    assert flow.ended


async def test_error_in_the_end() -> None:
    """What the middleware raises when the block is left is not lost."""

    async def broken(conn: Connection) -> Flow:
        try:
            yield
        finally:
            raise LookupError

    with pytest.raises(LookupError):
        async with step(broken):
            pass


async def test_awaiting() -> None:
    """What the middleware awaits is awaited by the loop of the test."""
    event = anyio.Event()

    async def waits(conn: Connection) -> Flow:
        await anyio.lowlevel.checkpoint()
        response = yield
        await event.wait()
        response.headers["x-served-by"] = "mine"

    async with anyio.create_task_group() as group, step(waits) as flow:
        group.start_soon(_set, event)
        await flow.respond()
        assert flow.headers["x-served-by"] == "mine"


async def _set(event: anyio.Event) -> None:
    event.set()


async def test_scopes_of_the_test() -> None:
    """A time limit of the test may stand around a step that ends the exchange."""
    async with step(noting) as flow:
        await flow.respond()
        with anyio.fail_after(60):
            await flow.finish()
    assert NOTES[-2:] == ["completed", "end"]


async def test_limit_of_the_test() -> None:
    """A time limit of the test around a step cancels the request."""

    async def forever(conn: Connection) -> Flow:
        try:
            yield
            await anyio.sleep_forever()
        finally:
            NOTES.append("end")

    async with step(forever) as flow:
        with anyio.move_on_after(0.001) as scope:
            await flow.respond()
        assert scope.cancelled_caught
        assert flow.ended
    assert NOTES == ["end"]


async def test_context_variables() -> None:
    """The middleware runs in the context of the test."""
    user: ContextVar[str] = ContextVar("user")

    async def sets(conn: Connection) -> Flow:
        token = user.set("me")
        response = yield
        yield response
        user.reset(token)

    async with step(sets) as flow:
        assert user.get() == "me"
        await flow.respond()
        await flow.finish()
        assert user.get(None) is None


async def test_no_task_is_made() -> None:
    """The middleware runs in the task of the test, and in no other."""
    tasks = []

    async def notes_tasks(conn: Connection) -> Flow:
        tasks.append(current_task())
        response = yield
        tasks.append(current_task())
        yield response
        tasks.append(current_task())

    async with step(notes_tasks) as flow:
        await flow.respond()
        await flow.finish()
    assert tasks == [current_task()] * 3


async def test_app_that_breaks_a_rule() -> None:
    """The server refuses what breaks a rule, whoever sent it."""
    async with step(served_by) as flow:
        with pytest.raises(ASGIViolation, match="H12"):
            await flow.chunk(b"a")


async def test_middleware_that_breaks_a_rule() -> None:
    """What the middleware gives to the app is checked."""

    def wrong(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "method": "get"}, receive, send)

        return middleware

    with pytest.raises(ASGIViolation, match="S09"):
        async with step(wrong):
            pass


async def test_head_and_trailers() -> None:
    """Requests and messages of any kind can be made."""
    async with step(served_by, method="HEAD", extensions={"http.response.trailers": {}}) as flow:
        await flow.respond(200, [(b"x-a", b"1"), ("X-A", "2")], trailers=True)
        await flow.chunk(b"data")
        await flow.send({"type": "http.response.body"})
        assert flow.state == "sending"
        await flow.send({"type": "http.response.trailers", "headers": [(b"t", b"1")]})
        await flow.end()
        assert flow.headers.getlist("x-a") == ["1", "2"]
        assert flow.body == b""
        assert flow.types == ["start", "body", "body", "trailers"]


async def test_delegation() -> None:
    """A function that runs inside of another is watched as well."""

    async def outer(conn: Connection) -> Flow:
        response = yield gate(conn)
        response.headers["x-served-by"] = "outer"

    async with step(outer) as flow:
        assert isinstance(flow.answer, PlainTextResponse)
    async with step(outer, headers={"x-member": "1"}) as flow:
        await flow.respond()
        assert flow.headers["x-served-by"] == "outer"


async def test_stepping_aside() -> None:
    """A middleware that steps aside leaves everything to the app."""
    async with step(Middleware(HTTPMiddleware, dispatch=gate, when=lambda conn: False)) as flow:
        await flow.respond(204)
        await flow.finish()
        assert flow.status == 204


async def test_error_of_a_function_under_a_predicate() -> None:
    """An error names the function, not what is between it and its predicate."""

    def five(conn: Connection) -> Any:
        return 5

    layer = Middleware(HTTPMiddleware, dispatch=five, when=lambda conn: True)
    with pytest.raises(MiddlewareError, match="five") as raised:
        async with step(layer):
            pass
    explained(raised.value, five, "returned 5", "async generator")


async def test_without_async_with() -> None:
    """Without a block there is nothing to step."""
    with pytest.raises(RuntimeError, match=r"Write `async with step\(mw\) as flow:`"):
        await step(served_by).respond()


# Handshakes.


async def test_a_handshake_step_by_step() -> None:
    async with step(noting, websocket=True, path="/x", subprotocols=["chat"]) as flow:
        assert flow.state == "waiting"
        assert flow.conn is not None
        assert flow.conn.is_websocket
        await flow.accept(subprotocol="chat", headers={"x-a": "1"})
        assert (flow.state, flow.status, flow.headers["x-a"]) == ("open", 101, "1")
        assert NOTES == ["begin", "response"]
        flow.message("ping")
        flow.message(b"\x00")
        assert (await flow.receive())["text"] == "ping"
        assert (await flow.receive())["bytes"] == b"\x00"
        await flow.say("pong")
        await flow.say(b"\x01")
        await flow.close(4000, "bye")
        assert (flow.state, flow.ended) == ("ended", True)
    assert (flow.messages, flow.close_code) == (["pong", b"\x01"], 4000)
    assert NOTES == ["begin", "response", "completed", "end"]


async def test_the_client_of_a_handshake_closes() -> None:
    async with step(noting, websocket=True) as flow:
        await flow.accept()
        flow.disconnect(1001)
        assert (await flow.receive())["code"] == 1001
        await flow.end()
    assert NOTES == ["begin", "response", "completed", "end"]


async def test_leaving_the_block_breaks_the_websocket_off() -> None:
    async with step(noting, websocket=True) as flow:
        await flow.accept()
    assert flow.ended
    assert NOTES == ["begin", "response", "disconnected", "end"]


async def test_a_handshake_that_the_app_refuses() -> None:
    async with step(served_by, websocket=True) as flow:
        await flow.close(4401)
    assert (flow.status, flow.headers["x-served-by"]) == (403, "mine")


async def test_a_handshake_that_the_app_denies() -> None:
    async with step(upper, websocket=True) as flow:
        await flow.respond(404, {"content-type": "text/plain"})
        assert (flow.state, flow.sent) == ("reading", [])
        await flow.chunk(b"no such ")
        await flow.finish(b"room")
    assert (flow.status, flow.text) == (404, "NO SUCH ROOM")


async def test_a_handshake_that_a_layer_refuses() -> None:
    async with step(gate, websocket=True) as flow:
        assert (flow.state, flow.app_ran, flow.ended) == ("answered", False, True)
        assert flow.answer is not None
    assert (flow.status, flow.text) == (403, "members only")


async def test_an_acceptance_that_a_layer_replaces() -> None:
    async def mw(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("not you", 401)

    async with step(mw, websocket=True) as flow:
        await flow.accept()
        assert (flow.state, flow.status, flow.app_ran) == ("answered", 401, True)
        assert (await flow.receive())["type"] == "websocket.disconnect"


async def test_a_layer_that_is_not_there_for_handshakes() -> None:
    async with step(Middleware(HTTPMiddleware, dispatch=noting), websocket=True) as flow:
        await flow.accept()
        assert (flow.conn, flow.state) == (None, "open")
    assert NOTES == []


async def test_a_client_without_a_websocket_sends_no_message() -> None:
    async with step(served_by) as flow:
        with pytest.raises(RuntimeError, match="websocket=True"):
            flow.message("a")
        with pytest.raises(RuntimeError, match="websocket=True"):
            flow.disconnect(1000)
