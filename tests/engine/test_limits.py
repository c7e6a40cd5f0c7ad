"""Time limits of a connection, and an app that is cancelled when its client leaves."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import httpmw
from httpmw import Connection, DeadlineExceeded, Flow, HTTPMiddleware, _limit
from httpmw.testing import Server
from tests.harness import Chunks, body, explained, request, script, stack, start

Dispatch = Callable[[Connection], Any]

SOON = 0.03  # seconds; a limit that is to strike
WHILE = 0.25  # one that is to strike, but not before something else has happened
LATE = 60.0  # one that is not


async def quiet(conn: Connection) -> Flow:
    yield


async def waits(conn: Connection) -> Flow:
    response = yield
    yield response


def limited(*args: float, answer: int = 504, **options: float) -> Dispatch:
    """Return a layer with a limit; where it strikes before the start, it answers."""

    async def layer(conn: Connection) -> Flow:
        conn.fail_after(*args, **options)
        try:
            yield
        except DeadlineExceeded:
            yield PlainTextResponse("too slow", answer)

    return layer


class Seen:
    """What became of a response: what was raised at its yield, and its outcome."""

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self.outcomes: list[Any] = []

    def layer(self, prepare: Callable[[Connection], None]) -> Dispatch:
        async def function(conn: Connection) -> Flow:
            prepare(conn)
            response = None
            try:
                response = yield
                yield response
            except Exception as error:
                self.raised.append(error)
                raise
            finally:
                self.outcomes.append(response and response.outcome)

        return function


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """All deadlines that a limit has had, the one that holds last."""
    noted: list[float] = []

    def noting(cut: type[Any]) -> None:
        move = cut.move

        def note(self: Any, deadline: float) -> None:
            noted.append(deadline)
            move(self, deadline)

        monkeypatch.setattr(cut, "move", note)

    noting(_limit.TaskCut)
    noting(_limit.ScopeCut)
    return noted


# -- until the start -------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("where", ["endpoint", "dependency", "starlette"])
async def test_thread_of_the_app_is_not_waited_for(where: str, fused: bool) -> None:
    """On asyncio the answer is given while the thread of a `def` endpoint still runs."""
    go_on = threading.Event()
    done = threading.Event()

    def wait() -> str:
        go_on.wait(20)
        done.set()
        return "late"

    app: Any
    if where == "starlette":
        app = Starlette(routes=[Route("/", lambda request: PlainTextResponse(wait()))])
    else:
        app = FastAPI()
        if where == "endpoint":

            @app.get("/")
            def index() -> str:
                return wait()
        else:

            @app.get("/")
            async def index(it: str = Depends(wait)) -> str:  # noqa: FAST002 - a local name
                return it

    try:
        server = await request(stack(app, quiet, limited(0.3), fused=fused))
        assert (server.status, server.body) == (504, b"too slow")
        assert not done.is_set()
    finally:
        go_on.set()
    assert done.wait(20)


async def test_other_timeout_errors_are_the_apps(fused: bool) -> None:
    """The app's own `TimeoutError` is no `DeadlineExceeded`, and not answered as one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("the pool of connections")

    server = await request(stack(app, quiet, limited(LATE), fused=fused), keep_error=True)

    assert type(server.error) is TimeoutError
    assert server.sent == []


async def test_each_limit_is_raised_at_its_own_layer(fused: bool) -> None:
    """Of two limits the one that strikes is raised where it was set."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    inner, outer = limited(SOON, answer=503), limited(LATE, answer=504)
    assert (await request(stack(app, outer, inner, fused=fused))).status == 503
    inner, outer = limited(LATE, answer=503), limited(SOON, answer=504)
    assert (await request(stack(app, outer, inner, fused=fused))).status == 504


async def test_what_the_error_says() -> None:
    """The error says which limit it was, how long, and is a `TimeoutError`."""
    seen = Seen()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    layer = seen.layer(lambda conn: conn.fail_after(SOON, idle=LATE))
    await request(HTTPMiddleware(app, dispatch=layer), keep_error=True)

    (error,) = seen.raised
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, TimeoutError | httpmw.HTTPMWError)
    assert (error.limit, error.seconds) == ("start", SOON)
    assert str(error) == f"the inner app did not start its response within {SOON} seconds"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clean_up_of_the_app_may_wait(fused: bool) -> None:
    """On asyncio the app is cancelled once: what its clean-up awaits is not."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("cleaned up")

    server = await request(stack(app, quiet, limited(SOON), fused=fused))

    assert server.status == 504
    assert log == ["cleaned up"]


async def test_other_cancellations_go_on(fused: bool) -> None:
    """Where the request is cancelled as well, that is not swallowed."""
    with anyio.CancelScope() as scope:

        async def app(_: Scope, receive: Receive, send: Send) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                scope.cancel()
                await anyio.lowlevel.checkpoint()

        await request(stack(app, quiet, limited(SOON), fused=fused))

    assert scope.cancelled_caught


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancellation_by_the_server_goes_on(fused: bool) -> None:
    """A server that cancels the request while a limit strikes gets no answer, but its way."""
    server = Server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            running.cancel()
            await asyncio.sleep(0)  # there it comes

    running = asyncio.create_task(server.run(stack(app, quiet, limited(SOON), fused=fused)))
    await asyncio.wait((running,))

    assert running.cancelled()
    assert server.sent == []


async def test_no_limit_is_refused(fused: bool) -> None:
    """A call without a limit is refused, with what to write."""

    async def layer(conn: Connection) -> Flow:
        with pytest.raises(TypeError, match=r"fail_after\(\) without a limit") as caught:
            conn.fail_after()
        explained(caught.value, layer, "`conn.fail_after(seconds)`")
        with pytest.raises(TypeError, match=r"fail_upload_after\(\) without a limit"):
            conn.fail_upload_after()
        yield

    server = await request(stack(script(start(), body(b"x")), quiet, layer, fused=fused))
    assert server.body == b"x"


# -- the body that follows -------------------------------------------------------------------


class Stalling(Chunks):
    """Some chunks, then nothing more."""

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await anyio.sleep_forever()
            raise


def stalling() -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Stalling(b"a", b"b"))(scope, receive, send)

    return app


class Trickling(Chunks):
    """Chunks for ever, each of them in time."""

    async def __anext__(self) -> bytes:
        await anyio.sleep(SOON / 10)
        return b"x"


async def test_idle(spec: str | None, fused: bool) -> None:
    """An app that falls silent is cut off; it is raised at `yield response`, and nothing sent."""
    seen = Seen()
    layer = seen.layer(lambda conn: conn.fail_after(idle=WHILE))
    server = await request(stack(stalling(), waits, layer, fused=fused), spec=spec, keep_error=True)

    assert isinstance(server.error, DeadlineExceeded)
    assert seen.raised == [server.error]
    assert server.error.limit == "idle"
    assert str(server.error) == (
        f"the inner app did not go on with its response within {WHILE} seconds"
    )
    assert server.body == b"ab"
    assert not server.complete
    assert seen.outcomes == ["failed"]


async def test_total(spec: str | None, fused: bool) -> None:
    """An app that goes on for ever is cut off, too."""
    seen = Seen()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Trickling())(scope, receive, send)

    layer = seen.layer(lambda conn: conn.fail_after(idle=LATE, total=SOON))
    server = await request(stack(app, quiet, layer, fused=fused), spec=spec, keep_error=True)

    assert isinstance(server.error, DeadlineExceeded)
    assert seen.raised == [server.error]
    assert server.error.limit == "total"
    assert not server.complete


async def slow_server(
    app: ASGIApp, taking: Callable[[Message], Awaitable[None]], spec: str = "2.3"
) -> list[Message]:
    """Run *app* on a server that takes each message as *taking* says; give what it took."""
    sent: list[Message] = []
    scope = Server(spec=spec).scope

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        await taking(message)
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_idle_stands_still_while_the_server_sends(
    fused: bool, spec: str, deadlines: list[float]
) -> None:
    """A client that is slower than the app does not count as a silent app."""
    app_has: list[bool] = []
    server_has: list[bool] = []

    class Looking(Chunks):
        async def __anext__(self) -> bytes:
            app_has.append(math.isfinite(deadlines[-1]))
            return await super().__anext__()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Looking(b"a", b"b"))(scope, receive, send)

    async def taking(message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        server_has.append(math.isfinite(deadlines[-1]))

    def prepare(conn: Connection) -> None:
        conn.fail_after(idle=LATE)

    await slow_server(stack(app, quiet, Seen().layer(prepare), fused=fused), taking, spec)

    assert app_has == [True] * 3
    assert server_has == [False] * 4


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_total_strikes_at_a_client_that_takes_nothing(fused: bool, spec: str) -> None:
    """A client that reads nothing does not hold the app for ever."""
    seen = Seen()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(Chunks(b"a", b"b"))(scope, receive, send)

    async def taking(message: Message) -> None:
        if message.get("body"):
            await anyio.sleep_forever()

    layer = seen.layer(lambda conn: conn.fail_after(total=SOON))
    with pytest.raises(DeadlineExceeded):
        await slow_server(stack(app, quiet, layer, fused=fused), taking, spec)
    assert len(seen.raised) == 1


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.unchecked(reason="a checker's own `receive` hides the layers further out")
async def test_total_does_not_cut_layers_further_out(spec: str, fused: bool) -> None:
    """A layer further out that has a message in hand comes to the end of its work."""
    log: list[str] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        async for chunk in response.body_iterator:
            log.append("begins")
            await anyio.sleep(WHILE * 2)  # the time itself is what is tested
            log.append(f"has {chunk.decode()}")
            break

    async def layer(conn: Connection) -> Flow:
        conn.fail_after(total=WHILE)
        yield

    app = stack(stalling(), outer, layer, fused=fused)
    server = await request(app, spec=spec, keep_error=True)

    assert log == ["begins", "has a"]
    assert isinstance(server.error, DeadlineExceeded)
    assert not server.complete


@pytest.mark.parametrize("limit", ["idle", "total"])
async def test_background_tasks_are_not_limited(
    limit: str, spec: str | None, fused: bool, deadlines: list[float]
) -> None:
    """What the app does behind its last message has no deadline."""
    found: list[bool] = []

    class Looking(Chunks):
        async def __anext__(self) -> bytes:
            found.append(math.isfinite(deadlines[-1]))
            return await super().__anext__()

    def background() -> None:
        found.append(math.isfinite(deadlines[-1]))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamingResponse(Looking(b"ab"), background=BackgroundTask(background))
        await response(scope, receive, send)

    def prepare(conn: Connection) -> None:
        conn.fail_after(**{limit: LATE})

    server = await request(stack(app, quiet, Seen().layer(prepare), fused=fused), spec=spec)

    assert server.body == b"ab"
    assert found == [True, True, False]


async def test_nothing_of_an_app_that_swallows_it_is_sent(fused: bool) -> None:
    """An app that makes the best of its cancellation is not heard any more."""
    seen = Seen()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await send(body(b"the end"))

    layer = seen.layer(lambda conn: conn.fail_after(idle=SOON))
    server = await request(stack(app, quiet, layer, fused=fused), keep_error=True)

    assert isinstance(server.error, DeadlineExceeded)
    assert server.body == b"a"
    assert not server.complete


@pytest.mark.unchecked(reason="a checker's own `receive` hides the layers further out")
async def test_app_that_was_discarded_is_not_limited(fused: bool) -> None:
    """Where another response was sent, the limits on the first are over."""

    async def replacing(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("other")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await anyio.sleep(SOON * 2)  # the time itself is what is tested
        await send(body(b"late"))

    layers = [replacing, limited(LATE, idle=SOON, total=SOON)]
    server = await request(stack(app, *layers, fused=fused))

    assert server.body == b"other"


async def test_trailers_are_limited(fused: bool) -> None:
    """A response with trailers is not over with its body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(trailers=True))
        await send(body(b"a"))
        await anyio.sleep_forever()

    server = await request(
        stack(app, quiet, limited(idle=SOON), fused=fused),
        extensions={"http.response.trailers": {}},
        keep_error=True,
    )

    assert isinstance(server.error, DeadlineExceeded)


# -- the request's body ----------------------------------------------------------------------


class Uploading:
    """A client that sends some chunks of a body, and then no more; or goes on as *then* says."""

    def __init__(self, *chunks: bytes, http: str = "1.1", every: float = 0) -> None:
        self.scope: Scope = Server(method="POST", spec="2.3").scope
        self.scope["http_version"] = http
        self.chunks = list(chunks)
        self.every = every
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await anyio.sleep(self.every)
        if self.chunks:
            return {"type": "http.request", "body": self.chunks.pop(0), "more_body": True}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self, app: ASGIApp) -> tuple[int, dict[bytes, bytes], bytes]:
        await app(self.scope, self.receive, self.send)
        first = self.sent[0]
        data = b"".join(message.get("body", b"") for message in self.sent)
        return first["status"], dict(first["headers"]), data


def uploads(**options: float) -> Dispatch:
    async def layer(conn: Connection) -> Flow:
        conn.fail_upload_after(**options)
        response = yield
        yield response

    return layer


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, as an app without a framework does."""
    while (await receive()).get("more_body"):
        pass
    await PlainTextResponse("read")(scope, receive, send)


async def careless(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200 whatever happens."""
    try:
        await raw(scope, receive, send)
    except Exception:
        await PlainTextResponse("never mind")(scope, receive, send)


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    """Raise something of its own for it."""
    try:
        await raw(scope, receive, send)
    except Exception as error:
        raise LookupError from error


async def grouped(scope: Scope, receive: Receive, send: Send) -> None:
    """Read in a task of its own."""
    async with anyio.create_task_group() as group:
        group.start_soon(raw, scope, receive, send)


def starlette_app() -> ASGIApp:
    async def index(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    return Starlette(routes=[Route("/", index, methods=["POST"])])


def fastapi_app() -> ASGIApp:
    app = FastAPI()

    @app.post("/")
    async def index(it: dict[str, int]) -> dict[str, int]:
        return it

    return app


UPLOAD_APPS: dict[str, ASGIApp] = {
    "raw": raw,
    "careless": careless,
    "failing": failing,
    "grouped": grouped,
    "starlette": starlette_app(),
    "fastapi": fastapi_app(),
}


@pytest.mark.parametrize("app", UPLOAD_APPS.values(), ids=UPLOAD_APPS)
@pytest.mark.parametrize("http", ["1.0", "1.1", "2"])
async def test_upload_that_stops(app: ASGIApp, http: str, fused: bool) -> None:
    """An upload that stops is answered with 408; HTTP/1 connections are closed."""
    client = Uploading(b"a", b"b", http=http)
    status, headers, data = await client.run(
        stack(app, waits, uploads(idle=SOON), quiet, fused=fused)
    )

    assert status == 408
    assert headers.get(b"connection") == (None if http == "2" else b"close")
    assert b"too long" in data


async def test_upload_limit_of_a_layer_that_stepped_aside() -> None:
    """A function that sets a limit and then steps aside limits nobody."""

    def aside(conn: Connection) -> Any:
        if conn.method == "POST":
            conn.fail_upload_after(idle=0)
            return None
        return quiet(conn)

    async def late() -> Message:
        await anyio.sleep(SOON)
        return {"type": "http.request", "body": b"", "more_body": False}

    client = Uploading()
    client.receive = late  # type: ignore[method-assign]
    status, *_ = await client.run(stack(raw, aside, quiet, fused=True))

    assert status == 200


async def test_upload_that_trickles(fused: bool) -> None:
    """`total` limits an upload of which each part is in time."""
    client = Uploading(*[b"x"] * 1000, every=SOON / 5)
    status, *_ = await client.run(stack(raw, quiet, uploads(idle=LATE, total=SOON), fused=fused))

    assert status == 408
    assert client.chunks


async def test_upload_read_by_the_layer_itself(fused: bool) -> None:
    """The function that reads the body gets a `DeadlineExceeded`, which answers 408."""
    raised: list[DeadlineExceeded] = []

    async def layer(conn: Connection) -> Flow:
        conn.fail_upload_after(idle=SOON)
        try:
            await conn.body()
        except DeadlineExceeded as error:
            raised.append(error)
            raise
        yield

    status, headers, _ = await Uploading(b"a").run(stack(raw, quiet, layer, fused=fused))

    assert (status, headers[b"connection"]) == (408, b"close")
    assert (raised[0].limit, raised[0].seconds) == ("idle", SOON)
    assert str(raised[0]) == (
        f"the client did not go on with the request body within {SOON} seconds"
    )


async def test_handler_of_the_application_answers() -> None:
    """A handler for HTTPException gives the 408 its own words."""

    async def handler(request: Request, exc: Any) -> Response:
        return PlainTextResponse("in our words", exc.status_code)

    async def index(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/", index, methods=["POST"])], exception_handlers={408: handler})
    app.add_middleware(HTTPMiddleware, dispatch=uploads(idle=SOON))
    status, headers, data = await Uploading(b"a").run(app)

    assert (status, headers[b"connection"], data) == (408, b"close", b"in our words")


async def test_response_that_has_begun_is_cut(fused: bool) -> None:
    """Where the response has begun, its body breaks off."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        while (message := await receive()).get("more_body"):
            await send(body(message["body"], more=True))
        await send(body())

    client = Uploading(b"a", b"b")
    with pytest.raises(DeadlineExceeded):
        await client.run(stack(app, quiet, uploads(idle=SOON), fused=fused))

    assert [message.get("body") for message in client.sent] == [None, b"a", b"b"]


async def test_time_of_the_app_does_not_count(fused: bool) -> None:
    """Only who waits for the client is waited with."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            await receive()
            await anyio.sleep(WHILE * 2)  # the time itself is what is tested
        await receive()
        await send(start())
        await send(body(b"read"))

    assert await uploaded(app, fused=fused) == b"read"


async def uploaded(app: ASGIApp, *, fused: bool) -> bytes:
    """Run *app* with two chunks that are there, and a client that stays for a while."""
    sent: list[Message] = []
    messages: list[Message] = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
    ]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await anyio.sleep(WHILE * 2)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = Server(method="POST").scope
    await stack(app, quiet, uploads(idle=WHILE, total=WHILE), fused=fused)(scope, receive, send)
    return b"".join(message.get("body", b"") for message in sent)


# -- a client that leaves --------------------------------------------------------------------


def cancelling(seen: Seen) -> Dispatch:
    return seen.layer(lambda conn: conn.cancel_on_disconnect())


class Leaving:
    """A server whose client leaves when it is told to; `receive` then says so, once or always."""

    def __init__(
        self, *, method: str = "GET", spec: str = "2.3", chunks: tuple[bytes, ...] = (b"",)
    ) -> None:
        self.scope: Scope = Server(method=method, spec=spec).scope
        self.left = anyio.Event()
        self.messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks)}
            for index, chunk in enumerate(chunks, 1)
        ]
        self.sent: list[Message] = []
        self.complete = anyio.Event()

    async def receive(self) -> Message:
        await anyio.lowlevel.checkpoint()
        if self.messages:
            return self.messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(message)

    async def run(self, app: ASGIApp) -> None:
        await app(self.scope, self.receive, self.send)


@pytest.mark.parametrize("outer", [quiet, waits])
async def test_app_that_does_not_listen_is_cancelled(fused: bool, outer: Dispatch) -> None:
    """An app that never asks for the client is cancelled when that leaves; its clean-up runs."""
    client, seen, log = Leaving(), Seen(), list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            client.left.set()
            await anyio.sleep_forever()
        finally:
            log.append("cleaned up")

    await client.run(stack(app, outer, cancelling(seen), fused=fused))

    assert log == ["cleaned up"]
    assert [type(error) for error in seen.raised] == [ClientDisconnect]
    assert client.sent == []


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_body_that_its_client_leaves(fused: bool, spec: str) -> None:
    """In the middle of a body the outcome is `disconnected`, inside and outside."""
    client, seen, log = Leaving(spec=spec), Seen(), list[str]()

    class Waiting(Chunks):
        async def __anext__(self) -> bytes:
            try:
                return await super().__anext__()
            except StopAsyncIteration:
                client.left.set()
                await anyio.sleep_forever()
                raise
            finally:
                log.append("chunk")

    outer = Seen()
    app = stack(
        StreamingResponse(Waiting(b"a")),
        outer.layer(lambda _: None),
        cancelling(seen),
        fused=fused,
    )
    await client.run(app)

    assert log == ["chunk", "chunk"]
    assert seen.outcomes == ["disconnected"]
    assert outer.outcomes == ["disconnected"]


async def test_background_task_of_a_complete_response(fused: bool) -> None:
    """What the app does behind its response is left alone, whatever the client does."""
    client, seen, log = Leaving(), Seen(), list[str]()

    async def background() -> None:
        client.left.set()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        log.append("background")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = PlainTextResponse("x", background=BackgroundTask(background))
        await response(scope, receive, send)

    await client.run(stack(app, quiet, cancelling(seen), fused=fused))

    assert log == ["background"]
    assert (seen.raised, seen.outcomes) == ([], ["completed"])


async def test_end_that_is_told_within_the_last_send(fused: bool) -> None:
    """A server that tells of the end within its last `send` cancels nothing."""
    client, seen, log = Leaving(), Seen(), list[str]()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            client.left.set()
            for _ in range(10):
                await anyio.lowlevel.checkpoint()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("x")(scope, receive, send)
        await anyio.lowlevel.checkpoint()
        log.append("ended")

    client.send = send  # type: ignore[method-assign]
    await client.run(stack(app, quiet, cancelling(seen), fused=fused))

    assert log == ["ended"]
    assert seen.outcomes == ["completed"]


async def test_the_app_gets_the_whole_request(fused: bool) -> None:
    """What is taken ahead of the app is given to it, in order, and the disconnect after it."""
    chunks = tuple(b"%d" % index * 1000 for index in range(10))
    client, seen = Leaving(method="POST", chunks=chunks), Seen()
    got: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        message = await receive()
        while message["type"] == "http.request":
            got.append(message["body"])
            if not message["more_body"]:
                break
            message = await receive()
        await PlainTextResponse("x")(scope, receive, send)
        client.left.set()
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"

    await client.run(stack(app, quiet, cancelling(seen), fused=fused))

    assert tuple(got) == chunks
    assert seen.outcomes == ["completed"]


async def test_back_pressure_is_kept(fused: bool) -> None:
    """A client that uploads for ever is held after 64 KiB, where the app reads nothing."""
    client, seen = Leaving(method="POST"), Seen()
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        await anyio.lowlevel.checkpoint()
        taken += 1024
        return {"type": "http.request", "body": b"x" * 1024, "more_body": True}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(500):
            await anyio.lowlevel.checkpoint()
        await PlainTextResponse("x")(scope, receive, send)

    client.receive = receive  # type: ignore[method-assign]
    await client.run(stack(app, quiet, cancelling(seen), fused=fused))

    assert taken == 64 * 1024
    assert seen.outcomes == ["completed"]


async def test_what_the_app_raises_is_raised(fused: bool) -> None:
    """An exception of the app comes out as it is, in no group."""
    client, seen = Leaving(), Seen()
    error = LookupError("of the app")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await client.run(stack(app, quiet, cancelling(seen), fused=fused))
    assert caught.value is error
    assert seen.raised == [error]


async def test_what_the_server_raises_is_the_apps(fused: bool) -> None:
    """An exception of the server's `receive` is raised where the app asks."""
    client, seen, caught = Leaving(), Seen(), list[BaseException]()
    error = LookupError("of the server")

    async def receive() -> Message:
        raise error

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
        except LookupError as raised:
            caught.append(raised)
        await PlainTextResponse("x")(scope, receive, send)

    client.receive = receive  # type: ignore[method-assign]
    await client.run(stack(app, quiet, cancelling(seen), fused=fused))

    assert caught == [error]
    assert seen.outcomes == ["completed"]


async def test_cancelled_request(fused: bool) -> None:
    """A cancellation of the request itself stays one."""
    client, seen = Leaving(), Seen()
    with anyio.CancelScope() as scope:

        async def app(_: Scope, receive: Receive, send: Send) -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await client.run(stack(app, quiet, cancelling(seen), fused=fused))

    assert scope.cancelled_caught
    assert seen.raised == []


async def test_flow_may_answer(fused: bool) -> None:
    """A function that handles the `ClientDisconnect` may still do something of its own."""
    client, log = Leaving(), list[str]()

    async def layer(conn: Connection) -> Flow:
        conn.cancel_on_disconnect()
        try:
            yield
        except ClientDisconnect:
            log.append("stopped")
            yield Response(status_code=499)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        client.left.set()
        await anyio.sleep_forever()

    await client.run(stack(app, quiet, layer, fused=fused))

    assert log == ["stopped"]
    assert client.sent[0]["status"] == 499


async def test_layers_further_in_are_cancelled(fused: bool) -> None:
    """To layers further in it is a cancellation, as they belong to what is cancelled."""
    client, seen = Leaving(), Seen()
    log: list[BaseException] = []

    async def inner(conn: Connection) -> Flow:
        try:
            yield
        except BaseException as error:
            log.append(error)
            raise

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        client.left.set()
        await anyio.sleep_forever()

    await client.run(stack(app, quiet, cancelling(seen), inner, fused=fused))

    assert [isinstance(error, Exception) for error in log] == [False]
    assert len(seen.raised) == 1


async def test_told_at_once(fused: bool) -> None:
    """`response.on_sent` is told when the client has left, before the app has cleaned up."""
    client, log = Leaving(), list[Any]()

    async def layer(conn: Connection) -> Flow:
        conn.cancel_on_disconnect()
        response = yield
        response.on_sent(lambda sent: log.append(sent.outcome))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        client.left.set()
        try:
            await anyio.sleep_forever()
        finally:
            log.append("app")

    await client.run(stack(app, quiet, layer, fused=fused))

    assert log == ["disconnected", "app"]
