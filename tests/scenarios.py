"""
Random middleware functions around random inner apps, for the schedules of `explore`.

A `Plan` is drawn from the random numbers of a world: a request, an inner app, one to four layers,
fused or nested.
It knows what may come out of it: which exceptions, whether the response must be complete, and,
where nothing goes wrong, which response it must be.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import (
    AppResponse,
    Connection,
    DeadlineExceeded,
    Flow,
    HTTPMiddleware,
    MiddlewareError,
    NoResponseError,
    ResponseTooLarge,
)
from httpmw.testing import ASGIViolation, World
from tests import harness
from tests.harness import Chunks, PassThrough, body, start

Function = Callable[[Connection], Any]
Effect = Callable[["Answer"], "Answer"]
Make = TypeVar("Make", bound=Callable[..., Any])

OUTCOME = "outcome"
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


class Planned(Exception):
    """What an app or a layer raises because the plan says so."""


@dataclass(frozen=True)
class Answer:
    """A response as the model has it: status, body, and which layers left their mark."""

    status: int
    body: bytes
    marks: tuple[str, ...] = ()


@dataclass
class Plan:
    """One request, the layers and the inner app, and what is known of them beforehand."""

    world: World
    expect: set[type[BaseException]] = field(default_factory=lambda: {Planned})
    # Whether the client gets a complete response if nothing is raised.
    complete: bool = True
    # Whether the app cancels what it sends, or a limit or a client that leaves ends the app with
    # the layers around it, so that a layer may be cut off in its name.
    cuts: bool = False
    # Whether things go on in more than one task, or by the clock.
    concurrent: bool = False
    # Whether the app stands where faults strike.
    wrapped: bool = True
    # The model; `None`: there is none for this plan.
    model: list[Effect] | None = field(default_factory=list)
    leaves_at: float | None = None
    extensions: dict[str, Any] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    # What the app should read of the request.
    request: bytes = b""
    # What happened, in order.
    log: list[str] = field(default_factory=list)
    open: int = 0
    # How many callbacks of `on_sent` are still to be called.
    owed: int = 0
    names: list[str] = field(default_factory=list)

    @property
    def random(self) -> Any:
        return self.world.random

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def effect(self, effect: Effect) -> None:
        if self.model is not None:
            self.model.append(effect)

    def unpredictable(self) -> None:
        self.model = None

    @contextlib.contextmanager
    def life(self, name: str) -> Iterator[None]:
        """Count a flow as open until it has ended."""
        self.open += 1
        self.log.append(f"{name} begins")
        try:
            yield
        except BaseException as error:
            self.log.append(f"{name} ends with {type(error).__name__}")
            raise
        else:
            self.log.append(f"{name} ends")
        finally:
            self.open -= 1

    @contextlib.contextmanager
    def whole(self, what: str) -> Iterator[None]:
        """Complain when the block is cut off although nobody had a right to."""
        if self.cuts:
            yield
        else:
            with self.world.whole(what):
                yield
        self.log.append(what)

    async def in_hand(self, name: str) -> None:
        """Pause while a layer has the response in hand."""
        with self.whole(f"{name} in hand"):
            await self.world.pause()


def mark(response: Any, name: str) -> None:
    """Leave the mark of a layer in a response."""
    marks = response.headers.get("x-marks")
    response.headers["x-marks"] = f"{marks} {name}" if marks else name


def marking(name: str, **changes: Any) -> Effect:
    """Return the effect of leaving a mark, and of *changes*."""

    def effect(answer: Answer) -> Answer:
        return Answer(
            changes.get("status", answer.status),
            changes.get("body", answer.body),
            (*changes.get("marks", answer.marks), name),
        )

    return effect


class Streamed(StreamingResponse):
    """A streamed response that notes when it has learnt that the client is gone."""

    def __init__(self, plan: Plan, chunks: Chunks, status: int = 200) -> None:
        super().__init__(chunks, status)
        self.plan = plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.plan.world.told = True
            return message

        await super().__call__(scope, told, send)


class Choice(Generic[Make]):
    """What can be drawn: `@choice(3)` registers a function that makes it, with its weight."""

    def __init__(self) -> None:
        self.weights: list[int] = []
        self.makers: list[Make] = []

    def __call__(self, weight: int) -> Callable[[Make], Make]:
        def register(make: Make) -> Make:
            self.weights.append(weight)
            self.makers.append(make)
            return make

        return register

    def draw(self, plan: Plan) -> Make:
        """Draw one, and note its name."""
        make: Make = plan.random.choices(self.makers, self.weights)[0]
        plan.names.append(make.__name__)
        return make


# ---------------------------------------------------------------------- layers

layer = Choice[Callable[[Plan, str], Function]]()


@layer(3)
def passing(plan: Plan, name: str) -> Function:
    async def passing(conn: Connection) -> Flow:
        with plan.life(name):
            yield

    return passing


@layer(4)
def header(plan: Plan, name: str) -> Function:
    pauses = plan.chance(0.5)
    plan.effect(marking(name))

    async def header(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            if pauses:
                await plan.in_hand(name)
            mark(response, name)

    return header


@layer(2)
def rewriting(plan: Plan, name: str) -> Function:
    pauses = plan.chance(0.5)
    plan.effect(marking(name))

    async def rewriting(conn: Connection) -> Flow:
        with plan.life(name):
            path = conn.scope["path"] = f"{conn['path']}/{name}"
            conn.set_header("x-rewritten", name)
            if pauses:
                await plan.world.pause()
            try:
                response = yield
            finally:
                # Whatever a layer further in has made of it.
                seen = conn["path"], conn.scope["path"], conn.headers["x-rewritten"]
                if seen != (path, path, name):
                    message = f"{name} sees {seen} of its request, not {path}"
                    raise AssertionError(message)
            mark(response, name)

    return rewriting


@layer(6)
def waiting(plan: Plan, name: str) -> Function:
    before, after = plan.chance(0.3), plan.chance(0.5)
    plan.effect(marking(name))

    async def waiting(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            if before:
                await plan.in_hand(name)
            mark(response, name)
            yield response
            with plan.whole(f"{name} at the end"):
                if after:
                    await plan.world.pause()
            plan.log.append(f"{name} {OUTCOME} {response.outcome} {response.bytes_sent}")

    return waiting


@layer(4)
def replacing(plan: Plan, name: str) -> Function:
    streams, ends, background, pauses = (plan.chance(0.4) for _ in range(4))
    plan.concurrent = plan.concurrent or streams
    plan.effect(marking(name, status=503, body=b"replaced", marks=()))

    async def task() -> None:
        await plan.world.pause()
        plan.log.append(f"{name} background")

    async def replacing(conn: Connection) -> Flow:
        with plan.life(name):
            yield
            if pauses:
                await plan.in_hand(name)
            response: Response
            if streams:
                response = Streamed(plan, Chunks(b"repl", b"aced"), 503)
            else:
                response = PlainTextResponse("replaced", 503)
            mark(response, name)
            if background:
                response.background = BackgroundTask(task)
            yield response
            with plan.world.whole(f"{name} after its replacement"):
                if ends:
                    await plan.world.pause()

    return replacing


@layer(2)
def early(plan: Plan, name: str) -> Function:
    streams, pauses = plan.chance(0.4), plan.chance(0.5)
    plan.concurrent = plan.concurrent or streams
    plan.effect(marking(name, status=401, body=b"early", marks=()))

    async def early(conn: Connection) -> Flow:
        with plan.life(name):
            if pauses:
                await plan.world.pause()
            response: Response
            if streams:
                response = Streamed(plan, Chunks(b"ear", b"ly"), 401)
            else:
                response = PlainTextResponse("early", 401)
            mark(response, name)
            yield response
            with plan.world.whole(f"{name} after its answer"):
                if pauses:
                    await plan.world.pause()

    return early


@layer(3)
def reading(plan: Plan, name: str) -> Function:
    limited, ends = plan.chance(0.2), plan.chance(0.3)
    if limited:
        plan.unpredictable()
        plan.expect.add(ResponseTooLarge)
    plan.effect(marking(name))

    async def reading(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            data = await response.read(max_size=4 if limited else None)
            plan.log.append(f"{name} read {data!r}")
            mark(response, name)
            if ends:
                yield response

    return reading


@layer(2)
def setting(plan: Plan, name: str) -> Function:
    reads, ends = plan.chance(0.4), plan.chance(0.3)
    plan.effect(marking(name, body=b"set"))

    async def setting(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            if reads:
                await response.read()
            response.body = b"set"
            mark(response, name)
            if ends:
                yield response

    return setting


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass chunks on in capitals."""
    async for chunk in chunks:
        yield chunk.upper()


async def held(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give everything at the end."""
    data = b"".join([chunk async for chunk in chunks])
    yield data.upper()


async def first(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give the first chunk only."""
    async for chunk in chunks:
        yield chunk
        return


async def failing(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Fail at the second chunk."""
    count = 0
    async for chunk in chunks:
        count += 1
        if count > 1:
            raise Planned("transform")
        yield chunk


def some_transform(plan: Plan) -> Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]:
    """Draw a transform, and write its effect into the model."""
    transform = plan.random.choice((upper, upper, held, first, failing))
    if transform in {first, failing}:
        plan.unpredictable()
    plan.effect(lambda answer: Answer(answer.status, answer.body.upper(), answer.marks))
    return transform  # type: ignore[no-any-return]


@layer(4)
def transforming(plan: Plan, name: str) -> Function:
    ends = plan.chance(0.4)
    transform = some_transform(plan)
    plan.effect(marking(name))

    async def transforming(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            response.body_iterator = transform(response.body_iterator)
            mark(response, name)
            if ends:
                yield response
                with plan.whole(f"{name} after its transform"):
                    await plan.world.pause()

    return transforming


@layer(2)
def streaming(plan: Plan, name: str) -> Function:
    transform = some_transform(plan)
    plan.effect(marking(name, status=203, marks=()))

    async def streaming(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            given = StreamingResponse(transform(response.body_iterator), 203)
            mark(given, name)
            yield given

    return streaming


@layer(2)
def iterating(plan: Plan, name: str) -> Function:
    most = plan.random.randrange(4)
    then = plan.random.choice(("send", "send", "replace", "raise"))
    if then == "raise":
        plan.unpredictable()
    elif then == "replace":
        plan.effect(marking(name, status=502, body=b"instead", marks=()))

    async def iterating(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            count = 0
            async for _ in response.body_iterator:
                count += 1
                if count > most:
                    break
            if then == "raise":
                raise Planned("after reading")
            if then == "replace":
                given = PlainTextResponse("instead", 502)
                mark(given, name)
                yield given

    return iterating


@layer(4)
def raising(plan: Plan, name: str) -> Function:
    where = plan.random.choice(("before", "in hand", "at the end", "while it waits"))
    kind = plan.random.choice((Planned, HTTPException))
    plan.unpredictable()
    if where in {"at the end", "while it waits"}:
        plan.expect.add(kind)

    def error() -> Exception:
        return HTTPException(418) if kind is HTTPException else Planned(where)

    async def raising(conn: Connection) -> Flow:
        with plan.life(name):
            if where == "before":
                raise error()
            try:
                response = yield
            except Exception:
                if where == "while it waits":
                    raise error() from None
                raise
            if where == "in hand":
                raise error()
            yield response
            if where == "at the end":
                raise error()

    return raising


@layer(4)
def catching(plan: Plan, name: str) -> Function:
    answers, last = plan.chance(0.8), plan.chance(0.5)
    plan.unpredictable()
    if not answers:
        plan.expect.add(MiddlewareError)
    if last:
        plan.complete = False
        plan.expect.add(NoResponseError)  # further out, where somebody reads on

    async def catching(conn: Connection) -> Flow:
        with plan.life(name):
            try:
                response = yield
            except Exception:
                if answers:
                    yield PlainTextResponse("caught", 500)
                return
            if last:
                try:
                    yield response
                except Exception as error:
                    plan.log.append(f"{name} caught {type(error).__name__}")

    return catching


@layer(2)
def delegating(plan: Plan, name: str) -> Function:
    plan.effect(marking(name))
    other = layer.draw(plan)(plan, f"{name}+")

    async def delegating(conn: Connection) -> Flow:
        with plan.life(name):
            value = other(conn)
            response = yield value
            mark(response, name)

    return delegating


@layer(1)
def aside(plan: Plan, name: str) -> Function:
    return lambda conn: None


@layer(3)
def requesting(plan: Plan, name: str) -> Function:
    how = plan.random.choice(("body", "limit", "stream", "replace", "transform", "poll", "poll"))
    if how == "limit":
        plan.unpredictable()
    elif how == "replace":
        plan.request = b"from " + name.encode()
    elif how == "transform":
        plan.request = plan.request.upper()

    async def requesting(conn: Connection) -> Flow:
        with plan.life(name):
            if how == "body":
                await conn.body()
            elif how == "limit":
                await conn.body(max_size=6)
            elif how == "stream":
                async for _ in conn.stream():
                    break
            elif how == "replace":
                conn.replace_body(b"from " + name.encode())
            elif how == "transform":
                conn.body_iterator = upper(conn.body_iterator)
            else:
                await conn.is_disconnected()
            response = yield
            if how == "poll":
                await conn.is_disconnected()
                yield response

    return requesting


@layer(3)
def observing(plan: Plan, name: str) -> Function:
    waits = plan.chance(0.5)
    plan.effect(marking(name))

    def done(response: AppResponse) -> None:
        plan.owed -= 1
        plan.log.append(f"{name} told, {OUTCOME} {response.outcome}")
        assert response.ended_at is not None

    async def observing(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            mark(response, name)
            plan.owed += 1
            response.on_sent(done)
            if waits:
                yield response

    return observing


@layer(1)
def cancelling(plan: Plan, name: str) -> Function:
    waits = plan.chance(0.5)
    plan.unpredictable()
    plan.concurrent = True
    plan.cuts = True

    async def cancelling(conn: Connection) -> Flow:
        with plan.life(name):
            conn.cancel_on_disconnect()
            response = yield
            if waits:
                yield response

    return cancelling


@layer(2)
def limiting(plan: Plan, name: str) -> Function:
    limit = plan.random.choice(("seconds", "seconds", "idle", "total"))
    seconds = plan.random.choice((0.1, 1.0, 30.0))
    answers = plan.chance(0.5)
    plan.unpredictable()
    plan.concurrent = True
    plan.cuts = True
    plan.expect.add(TimeoutError)

    async def limiting(conn: Connection) -> Flow:
        with plan.life(name):
            conn.fail_after(**{limit: seconds})
            try:
                response = yield
            except DeadlineExceeded:
                if not answers:
                    raise
                yield PlainTextResponse("late", 504)
                return
            yield response

    return limiting


@layer(2)
def remembering(plan: Plan, name: str) -> Function:
    ends = plan.chance(0.5)
    plan.effect(marking(name))

    async def remembering(conn: Connection) -> Flow:
        with plan.life(name):
            token = variable.set(name)
            try:
                response = yield
                mark(response, name)
                if ends:
                    yield response
            finally:
                variable.reset(token)

    return remembering


@layer(2)
def with_background(plan: Plan, name: str) -> Function:
    fails, ends = plan.chance(0.3), plan.chance(0.5)
    plan.effect(marking(name))

    async def task() -> None:
        await plan.world.pause()
        plan.log.append(f"{name} background")
        if fails:
            raise Planned("background")

    async def with_background(conn: Connection) -> Flow:
        with plan.life(name):
            response = yield
            response.background = BackgroundTask(task)
            mark(response, name)
            if ends:
                yield response

    return with_background


@layer(1)
def misusing(plan: Plan, name: str) -> Function:
    how = plan.random.choice(("no yield", "twice", "rubbish", "scope", "too many", "late"))
    plan.unpredictable()
    plan.expect.add(MiddlewareError)
    plan.concurrent = plan.concurrent or how == "scope"  # fused layers begin before it is seen

    async def misusing(conn: Connection) -> Flow:
        with plan.life(name):
            if how == "no yield":
                return
            if how == "rubbish":
                yield 42
            if how == "scope":
                with anyio.CancelScope():
                    yield
                return
            response = yield
            if how == "twice":
                yield
            if how == "late":
                yield other(conn)
            yield response
            if how == "too many":
                yield response

    async def other(conn: Connection) -> Flow:
        yield

    return misusing


# ---------------------------------------------------------------------- inner apps

app = Choice[Callable[[Plan], ASGIApp]]()


def some_chunks(plan: Plan) -> list[bytes]:
    """Draw the body of a response."""
    count = plan.random.randrange(5)
    return [plan.random.choice((b"", b"a", b"bc", b"def")) for _ in range(count)]


def answers(plan: Plan, data: bytes, status: int = 200) -> None:
    """Say which response the app sends."""
    plan.effect(lambda answer: Answer(status, data))


async def send_all(send: Send, chunks: list[bytes]) -> None:
    """Send a body chunk by chunk, and an empty end."""
    for chunk in chunks:
        await send(body(chunk, more=True))
    await send(body())


@app(6)
def plain(plan: Plan) -> ASGIApp:
    answers(plan, b"plain")
    fails, later = plan.chance(0.1), plan.chance(0.3)

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-length", b"5")]))
        await send(body(b"plain"))
        if later:
            await plan.world.pause()
            plan.log.append("app background")
        if fails:
            raise Planned("background task")

    return plain


@app(6)
def stream(plan: Plan) -> ASGIApp:
    chunks = some_chunks(plan)
    answers(plan, b"".join(chunks))

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send_all(send, chunks)

    return stream


async def listen(plan: Plan, receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    plan.world.told = True  # unless faults do not strike it, the world knows already


@app(6)
def child(plan: Plan) -> ASGIApp:
    chunks = some_chunks(plan)
    collapses = plan.chance(0.6)
    answers(plan, b"".join(chunks))
    plan.concurrent = True

    async def child(scope: Scope, receive: Receive, send: Send) -> None:
        async def produce() -> None:
            await send(start())
            await send_all(send, chunks)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            await listen(plan, receive)
            group.cancel_scope.cancel()

    async def collapsing(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await child(scope, receive, send)
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None

    return collapsing if collapses else child


@app(3)
def of_starlette(plan: Plan) -> ASGIApp:
    chunks = some_chunks(plan)
    kind = plan.random.choice(("stream", "plain", "background"))
    plan.concurrent = plan.concurrent or kind == "stream"
    answers(plan, b"".join(chunks))

    async def task() -> None:
        await plan.world.pause()
        plan.log.append("app background")

    async def of_starlette(scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        if kind == "stream":
            response = Streamed(plan, Chunks(*chunks))
        else:
            response = Response(b"".join(chunks))
        if kind == "background":
            response.background = BackgroundTask(task)
        await response(scope, receive, send)

    return of_starlette


@app(3)
def siblings(plan: Plan) -> ASGIApp:
    # The one that ends first cancels the other, which may be sending.
    chunks = some_chunks(plan)
    plan.concurrent = True
    plan.complete = False
    plan.cuts = True
    # A layer that works on a ping is cancelled with it: what is sent after that is refused.
    plan.expect.update({NoResponseError, ASGIViolation, RuntimeError})
    plan.unpredictable()

    async def siblings(scope: Scope, receive: Receive, send: Send) -> None:
        lock = anyio.Lock()
        started = anyio.Event()

        async def ping() -> None:
            await started.wait()
            while True:
                async with lock:
                    await send(body(b"ping", more=True))
                await plan.world.pause()
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as group:
            group.start_soon(ping)
            await send(start())
            started.set()
            for chunk in chunks:
                await anyio.sleep(0.1)
                async with lock:
                    await send(body(chunk, more=True))
            group.cancel_scope.cancel()
        await send(body())

    return siblings


@app(2)
def pushing(plan: Plan) -> ASGIApp:
    # A sibling that does not wait for the start to be out.
    plan.concurrent = True
    plan.unpredictable()
    plan.wrapped = False
    plan.complete = False
    # Where no layer works on the start, nothing keeps a server that pauses from mixing them up.
    plan.expect.add(RuntimeError)

    async def pushing(scope: Scope, receive: Receive, send: Send) -> None:
        called = anyio.Event()

        async def push() -> None:
            await called.wait()
            await send(body(b"pushed", more=True))

        async with anyio.create_task_group() as group:
            group.start_soon(push)
            called.set()
            await send(start())
        await send(body())

    return pushing


@app(4)
def failing_app(plan: Plan) -> ASGIApp:
    where = plan.random.choice(("before", "start", "middle", "group"))
    plan.unpredictable()

    async def failing_app(scope: Scope, receive: Receive, send: Send) -> None:
        await plan.world.pause()
        if where == "before":
            raise Planned(where)
        if where == "group":
            raise ExceptionGroup("two", [Planned("one"), Planned("other")])
        await send(start())
        if where == "start":
            raise Planned(where)
        await send(body(b"some", more=True))
        raise Planned(where)

    return failing_app


@app(2)
def silent(plan: Plan) -> ASGIApp:
    where = plan.random.choice(("before", "start", "middle"))
    plan.unpredictable()
    plan.complete = False
    plan.expect.add(NoResponseError)

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        if where != "before":
            await send(start())
        if where == "middle":
            await send(body(b"some", more=True))

    return silent


@app(3)
def endless(plan: Plan) -> ASGIApp:
    listens = plan.chance(0.5)
    plan.unpredictable()
    plan.concurrent = True

    async def produce(send: Send) -> None:
        await send(start())
        for _ in range(30):
            await send(body(b"more", more=True))
            await anyio.sleep(0.1)
        await send(body())

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        if not listens:
            await produce(send)
            return
        async with anyio.create_task_group() as group:

            async def listener() -> None:
                await listen(plan, receive)
                group.cancel_scope.cancel()

            group.start_soon(listener)
            await produce(send)
            group.cancel_scope.cancel()

    return endless


@app(2)
def patient(plan: Plan) -> ASGIApp:
    # Waits for the client to leave, before or after its response.
    before = plan.chance(0.5)
    plan.concurrent = True
    plan.unpredictable()
    if before:
        plan.leaves_at = 5.0

    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        if not before:
            await send(start())
            await send(body(b"patient"))
        await listen(plan, receive)

    return patient


@app(4)
def echo(plan: Plan) -> ASGIApp:
    # Reads the request body slowly and sends it back.
    polls = plan.chance(0.4)
    plan.effect(lambda answer: Answer(201, plan.request))

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        data = b""
        try:
            async for chunk in request.stream():
                data += chunk
                await plan.world.pause()
        except ClientDisconnect:
            return
        if polls:
            await request.is_disconnected()
        await send(start(201))
        await send(body(data))

    return echo


@app(2)
def polling(plan: Plan) -> ASGIApp:
    plan.unpredictable()

    async def polling(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            data = await request.body()
        except ClientDisconnect:
            return
        for _ in range(3):
            if await request.is_disconnected():
                return
            await plan.world.pause()
        await send(start())
        await send(body(data))

    return polling


@app(2)
def resending(plan: Plan) -> ASGIApp:
    # Answers whatever comes out of `send` with a second start.
    wraps = plan.chance(0.5)
    plan.unpredictable()
    plan.complete = False
    plan.expect.update({NoResponseError, RuntimeError})

    async def resending(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(start())
            await send(body(b"sent"))
        except Exception as error:
            with contextlib.suppress(Exception):
                await send(start(500))
                await send(body(b"error page"))
            if wraps:
                raise RuntimeError("wrapped") from error

    return resending


@app(2)
def hasty(plan: Plan) -> ASGIApp:
    # Has a limit of its own around its messages.
    seconds = plan.random.choice((0.0, 0.01, 0.2, 5.0))
    plan.unpredictable()
    plan.complete = False
    plan.cuts = True
    plan.concurrent = True
    plan.expect.update({NoResponseError, RuntimeError})

    async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.move_on_after(seconds) as limit:
            await send(start())
            await send(body(b"in time"))
        if limit.cancelled_caught:
            await send(start(504))
            await send(body(b"late"))

    return hasty


@app(2)
def hinting(plan: Plan) -> ASGIApp:
    answers(plan, b"hinted")
    plan.extensions = {"http.response.early_hint": {}, "http.response.trailers": {}}

    async def hinting(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]})
        await send(start(trailers=True))
        await send(body(b"hinted"))
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": False})

    return hinting


# ---------------------------------------------------------------------- the scenarios


def draw(world: World, *, fused: bool | None = None) -> tuple[Plan, ASGIApp]:
    """
    Draw a plan and build its app.

    The layers are drawn from the outside in; neighbours are *fused*, nested, or either.
    """
    plan = Plan(world)
    plan.chunks = some_chunks(plan)
    plan.request = b"".join(plan.chunks)
    count = plan.random.choice((1, 1, 2, 2, 3, 4))
    functions = [layer.draw(plan)(plan, name) for name in "abcd"[:count]]
    if set(plan.names) == {"aside"}:  # `pushing` needs a layer that is there
        functions.append(waiting(plan, "e"))
    inner = app.draw(plan)(plan)
    apart = [plan.chance(0.5) for _ in functions]
    stack = world.app(inner) if plan.wrapped else inner
    for function, nests in zip(reversed(functions), apart, strict=True):
        if nests if fused is None else not fused:
            stack = PassThrough(stack)
        stack = HTTPMiddleware(stack, dispatch=function)
    return plan, stack


async def run(plan: Plan, stack: ASGIApp) -> None:
    """Send the request of *plan*, and check what is known of it."""
    world = plan.world
    server = await world.run(
        stack,
        expect=tuple(plan.expect),
        complete=plan.complete,
        leaves_at=plan.leaves_at,
        method="POST" if plan.chunks else "GET",
        body=plan.chunks or b"",
        extensions=plan.extensions,
    )
    assert plan.open == 0, f"{plan.open} layers are still open"
    assert plan.owed == 0, f"{plan.owed} callbacks were not called"
    if plan.model is None or world.struck or not server.complete:
        return
    answer = Answer(0, b"")
    for effect in reversed(plan.model):
        answer = effect(answer)
    marks = tuple(server.headers.get("x-marks", "").split())
    assert Answer(server.status or 0, server.body, marks) == answer, plan.names


async def engine(world: World) -> None:
    """Run a random plan, in one schedule in eight both fused and nested."""
    if world.random.random() < 0.125:
        await twins(world)
        return
    await run(*draw(world))


COMPARABLE = {
    ("disconnect", "app"),
    ("disconnect", "pause"),
    ("error", "app"),
    ("error", "pause"),
}


# What leaves a layer may be dropped further out, or one layer knows sooner that nobody is there.
DISCARDING = {"iterating", "raising", "replacing", "requesting", "setting", "catching"}


async def twins(world: World) -> None:
    """Run a random plan fused and nested: messages, exception and order of events are equal."""
    seed = world.random.getrandbits(32)
    # From 2.4 on, a nested layer further in is told by an `OSError` that its response was replaced.
    conditions = replace(world.conditions, spec=world.random.choice((None, "2.1", "2.3")))
    # How many steps it takes, and how often the server is asked, is not the same.
    fault = conditions.fault
    if fault is not None and (fault.kind, fault.place) not in COMPARABLE:
        conditions = replace(conditions, fault=None)
    seen = []
    for fused in (True, False):
        twin = World(conditions, seed=seed)
        plan, stack = draw(twin, fused=fused)
        if plan.concurrent or {"transforming", "streaming"} & set(plan.names):
            return  # in between, an end may come earlier or later
        await run(plan, stack)
        log = plan.log
        if DISCARDING & set(plan.names):
            log = [line for line in log if OUTCOME not in line]
        elif fault is not None and fault.kind == "disconnect":
            # A nested layer further in asks those further out whether the client is still there,
            # and they tell their observers before it has its answer.
            told = sorted(line for line in log if " told, " in line)
            log = [line for line in log if " told, " not in line] + told
        seen.append((twin.server.sent, type(twin.raised), log))
        names = plan.names
        twin._forget()
    assert seen[0] == seen[1], names


async def unseen(
    world: World, *, layers: Sequence[Function] = (harness.passing, harness.waiting)
) -> None:
    """
    Run a random app without a layer and inside of some *layers*: nobody can tell the difference.

    Equal are the messages that the server gets, to the last key, what is raised, and what the app
    has seen. An app that returns without a response is a `NoResponseError` inside of a layer.
    """
    seed = world.random.getrandbits(32)
    fused = world.random.random() < 0.5
    some = world.random.choices(layers, k=world.random.choice((1, 2, 3)))
    conditions = world.conditions
    fault = conditions.fault
    if fault is not None and (fault.kind, fault.place) not in COMPARABLE:
        conditions = replace(conditions, fault=None)
    seen = []
    for functions in ([], some):
        twin = World(conditions, seed=seed)
        plan = Plan(twin)
        plan.chunks = some_chunks(plan)
        plan.request = b"".join(plan.chunks)
        inner = app.draw(plan)(plan)
        if plan.concurrent:
            return  # a layer takes what siblings send one by one
        plan.model = None
        plan.expect.add(NoResponseError)
        await run(plan, harness.stack(twin.app(inner), *functions, fused=fused))
        seen.append((twin.server.sent, twin.raised, plan.log))
        twin._forget()
    (sent, raised, log), (sent_inside, raised_inside, log_inside) = seen
    assert (sent, log) == (sent_inside, log_inside), plan.names
    silent = not sent and raised is None and isinstance(raised_inside, NoResponseError)
    assert silent or type(raised) is type(raised_inside), plan.names
