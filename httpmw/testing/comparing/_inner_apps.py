# The inner apps that `check_transparent` puts into a middleware.
# It is long because it is a list: an app and its name for each thing that is compared.
#
# Rule 1: an app does one thing that real apps do, and does it in the same way each time: whatever
# comes out differently inside of a middleware was changed by the middleware.
# Rule 2: what an app learns it writes into `run.notes`, under words that read as a sentence
# with the value behind them; what it sends and raises is noted by those who run it.
# Rule 3: nothing waits for time to pass. `settle()` gives everybody else who is ready a turn.

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from httpmw.testing.driving._server import Server


class Run(Protocol):
    """
    One run of an inner app, and what it may use.
    """

    notes: dict[str, Any]
    scope: Scope
    receive: Receive

    @property
    def server(self) -> Server: ...

    async def send(self, *messages: Message) -> None: ...

    def cancel(self) -> None: ...


App = Callable[[Run], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """
    An inner app, and the request that it gets.
    """

    name: str
    app: App
    # What the server is made with.
    options: Mapping[str, Any] = field(default_factory=dict)
    # Whether the server tells of a disconnect in both ways that there are.
    leaves: bool = False
    # Whether the server takes its time for every message.
    slow: bool = False
    # Whether an exception may come out where none came out of the app.
    may_raise: bool = False
    # What the server adds to each message of the request.
    keys: Mapping[str, Any] = field(default_factory=dict)
    # The type of the scope, and what the server sends where it is another than HTTP.
    kind: str = "http"
    messages: Sequence[Message] = ()


CASES: list[Case] = []


def case(name: str, **options: Any) -> Callable[[App], App]:
    known = {each: options.pop(each) for each in list(options) if each in Case.__annotations__}

    def register(app: App) -> App:
        CASES.append(Case(name, app, options, **known))
        return app

    return register


TEXT = (b"content-type", b"text/plain")


def start(status: int = 200, headers: Any = (TEXT,), **keys: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **keys}


def body(data: bytes = b"", *, more: bool = False, **keys: Any) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more, **keys}


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


# ---------------------------------------------------------------------- responses


def stream(*chunks: bytes) -> list[Message]:
    chunks = chunks or (b"first, ", b"second, ", b"and third")
    return [start(), *(body(chunk, more=True) for chunk in chunks), body()]


async def flush(run: Run, messages: Sequence[Message]) -> None:
    arrived = []
    for message in messages:
        await run.send(message)
        await settle()
        arrived.append(len(run.server.sent))
    run.notes["messages at the server after each that was sent"] = arrived


@case("plain response")
async def plain(run: Run) -> None:
    await run.send(start(201, [TEXT, (b"content-length", b"5")]), body(b"plain"))


@case("stream")
async def streamed(run: Run) -> None:
    await run.send(*stream())


@case("stream with an empty chunk")
async def empty_chunk(run: Run) -> None:
    # As a stream says that it is alive.
    await flush(run, stream(b"", b"first", b"", b"second"))


@case("stream from a child task")
async def child(run: Run) -> None:
    # As Starlette does where the ASGI version is below 2.4, with a listener beside it.
    async with anyio.create_task_group() as group:

        async def produce() -> None:
            await run.send(*stream())
            group.cancel_scope.cancel()

        group.start_soon(produce)
        while (await run.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()


@case("start and body from different tasks")
async def two_tasks(run: Run) -> None:
    first, *rest = stream()
    await run.send(first)
    async with anyio.create_task_group() as group:
        group.start_soon(run.send, *rest)


@case("two tasks that take turns")
async def siblings(run: Run) -> None:
    # As an event stream that pings.
    lock = anyio.Lock()
    await run.send(start())

    async def ping() -> None:
        async with lock:
            await run.send(body(b"ping", more=True))

    async with anyio.create_task_group() as group:
        group.start_soon(ping)
        await settle()
        async with lock:
            await run.send(body(b"event", more=True))
        group.start_soon(ping)
    await run.send(body())


@case("repeated headers")
async def repeated(run: Run) -> None:
    cookies = [(b"set-cookie", b"a=1"), (b"x-odd", b"\xe9\xff"), (b"set-cookie", b"b=2")]
    await run.send(start(headers=[*cookies, TEXT]), body(b"cookies"))


@case("start without headers")
async def headless(run: Run) -> None:
    # ASGI gives the key a default, as it does for those of the body.
    await run.send({"type": "http.response.start", "status": 200}, {"type": "http.response.body"})


@case("headers in a tuple")
async def in_a_tuple(run: Run) -> None:
    # ASGI asks for an iterable of two-item iterables.
    first = {"type": "http.response.start", "status": 200, "headers": (list(TEXT), [b"x-a", b"b"])}
    await run.send(first, body(b"a tuple of lists"))


@case("body in a memoryview")
async def view(run: Run) -> None:
    await run.send(start(), {**body(more=True), "body": memoryview(b"view")}, body())


@case("keys of a later version")
async def keys(run: Run) -> None:
    await run.send(start(later=1), body(b"one", more=True, later=2), body(later=3))


@case("HEAD", method="HEAD")
async def head(run: Run) -> None:
    await run.send(start(headers=[TEXT, (b"content-length", b"1000")]), body())


@case("204 and 304")
async def bodiless(run: Run) -> None:
    await run.send(start(204, []), body())


@case("204 and 304", headers={"if-none-match": '"1"'})
async def not_modified(run: Run) -> None:
    await run.send(start(304, [(b"etag", b'"1"')]), body())


@case("partial content", headers={"range": "bytes=0-2"})
async def partial(run: Run) -> None:
    headers = [TEXT, (b"content-range", b"bytes 0-2/9"), (b"content-length", b"3")]
    await run.send(start(206, headers), body(b"abc"))


# ---------------------------------------------------------------------- extensions


def announced(*names: str) -> dict[str, Any]:
    return {"extensions": {f"http.response.{name}": {} for name in names}}


HINT: Message = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}


@case("trailers", **announced("trailers"))
async def trailers(run: Run) -> None:
    kind = "http.response.trailers"
    await run.send(
        start(trailers=True),
        body(b"before the trailers"),
        {"type": kind, "headers": [(b"x-sum", b"1")], "more_trailers": True},
        {"type": kind, "headers": [(b"x-end", b"2")], "more_trailers": False},
    )


@case("early hints before the start", **announced("early_hint"))
async def early_hints(run: Run) -> None:
    await run.send(HINT, start(), body(b"hinted"))


@case("early hints after the start", **announced("early_hint"))
async def late_hints(run: Run) -> None:
    # Where the text of the specification has them.
    await run.send(start(), HINT, body(b"hinted"))


@case("debug", **announced("debug"))
async def debug(run: Run) -> None:
    info = {"type": "http.response.debug", "info": {"template": "a.html"}}
    await run.send(info, start(), body(b"debugged"))


@case("push", **announced("push"))
async def push(run: Run) -> None:
    promise = {"type": "http.response.push", "path": "/a.css", "headers": [(b"accept", b"*/*")]}
    await run.send(start(), promise, body(b"pushed"))


@case("pathsend", **announced("pathsend"))
async def pathsend(run: Run) -> None:
    await run.send(start(), {"type": "http.response.pathsend", "path": __file__})


@case("zerocopysend", **announced("zerocopysend"))
async def zerocopysend(run: Run) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"copied by the kernel")
        kind = "http.response.zerocopysend"
        await run.send(
            start(),
            {"type": kind, "file": file, "offset": 0, "count": 6, "more_body": True},
            {"type": kind, "file": file, "offset": 6, "more_body": False},
        )


@case("message of a later version", **announced("later"))
async def later(run: Run) -> None:
    unknown = {"type": "http.response.later", "value": 1}
    await run.send(unknown, start(), unknown, body(b"later"))


# ---------------------------------------------------------------------- pace


@case("start is not held back")
async def idle(run: Run) -> None:
    # As an event stream that waits for its first event.
    await run.send(start())
    await settle()
    run.notes["messages at the server while the app waits after its start"] = len(run.server.sent)
    await run.send(body(b"an event"))


@case("chunks are not held back")
async def flushed(run: Run) -> None:
    await flush(run, stream())


@case("a slow client holds the app back", slow=True)
async def slow(run: Run) -> None:
    ahead = []
    for number, message in enumerate(stream()):
        # Those before it have been taken, if `send` came back no sooner than the server's own.
        ahead.append(number - len(run.server.sent))
        await run.send(message)
    run.notes["messages that the app was ahead of the server"] = max(ahead)


# ---------------------------------------------------------------------- requests

UPLOAD = (b"one, ", b"two, ", b"", b"three")


@case("request body", method="POST", body=UPLOAD)
async def upload(run: Run) -> None:
    messages = [await run.receive()]
    while messages[-1].get("more_body"):
        messages.append(await run.receive())
    run.notes["the app received"] = [message.get("body") for message in messages]
    await run.send(start(), body(b"read"))


@case("request keys of a later version", method="POST", body=b"all of it", keys={"later": 1})
@case("request body of one message", method="POST", body=b"all of it")
async def short_upload(run: Run) -> None:
    run.notes["the app received"] = await run.receive()
    await run.send(start(), body(b"read"))


@case("answer while the request comes in", method="POST", body=UPLOAD[:2])
async def echo(run: Run) -> None:
    await run.send(start())
    more, passed = True, []
    while more:
        message = await run.receive()
        # A client may wait for the answer to one chunk before it sends the next.
        passed.append((run.server.receives, len(run.server.sent)))
        more = message.get("more_body", False)
        await run.send(body(message.get("body", b""), more=more))
    run.notes["messages received and sent, at each of the request"] = passed


@case("request that is not read", method="POST", body=UPLOAD)
async def unread(run: Run) -> None:
    # The first receive() makes a server answer `expect: 100-continue`.
    await run.send(start(413), body(b"too large"))
    run.notes["calls of the server's receive()"] = run.server.receives


# ---------------------------------------------------------------------- disconnects


async def reach_end_of_request(run: Run) -> None:
    while (await run.receive()).get("more_body"):
        pass


@case("client leaves, the app asks", leaves=True)
async def asked(run: Run) -> None:
    await reach_end_of_request(run)
    await run.send(start(), body(b"first", more=True))
    await settle()
    run.server.disconnect()
    run.notes["the app received"] = (await run.receive())["type"]


@case("client leaves, the app listens", leaves=True)
async def listening(run: Run) -> None:
    await reach_end_of_request(run)
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            run.notes["the app received"] = (await run.receive())["type"]

        group.start_soon(listen)
        await run.send(start(), body(b"first", more=True))
        await settle()
        run.server.disconnect()


@case("client leaves in the middle of its request", leaves=True, method="POST", body=UPLOAD)
async def half_read(run: Run) -> None:
    messages = [await run.receive()]
    run.server.disconnect()
    while messages[-1]["type"] == "http.request":
        messages.append(await run.receive())
    run.notes["the app received"] = [message.get("body", message["type"]) for message in messages]


@case("Request.is_disconnected()", leaves=True)
async def is_disconnected(run: Run) -> None:
    request = Request(run.scope, run.receive)
    await request.body()
    answers = [await request.is_disconnected()]
    run.server.disconnect()
    run.notes["is_disconnected() before and after the client left"] = (
        *answers,
        await request.is_disconnected(),
    )
    await run.send(start(), body(b"for nobody"))


@case("quiet end after a disconnect", leaves=True)
async def quiet(run: Run) -> None:
    run.server.disconnect()
    while (await run.receive())["type"] != "http.disconnect":
        pass


@case("app that sends to a client that left", leaves=True)
async def to_nobody(run: Run) -> None:
    # From ASGI 2.4 on `send` raises, before that it does nothing.
    await run.send(start(), body(b"first", more=True))
    await settle()
    run.server.disconnect()
    raised = []
    for message in (body(b"second", more=True), body(b"third", more=True), body()):
        try:
            await run.send(message)
        except OSError as error:
            raised.append(type(error).__name__)
        else:
            raised.append("nothing")
    run.notes["send() raised"] = raised


@case("disconnect after the response")
async def listening_on(run: Run) -> None:
    await reach_end_of_request(run)
    await run.send(*stream())
    run.notes["the app received"] = (await run.receive())["type"]


# ---------------------------------------------------------------------- ends


class Intended(Exception):  # noqa: N818 - an end of an app, no error of anybody's
    pass


class Unusual(BaseException):
    pass


@case("exception before the start")
async def fail_before(_run: Run) -> None:
    raise Intended("before the start")


@case("exception with a cause")
async def fail_with_cause(_run: Run) -> None:
    raise Intended("with a cause") from KeyError("the cause")


@case("exception with a context")
async def fail_with_context(_run: Run) -> None:
    try:
        raise KeyError("the context")
    except KeyError:
        raise Intended("with a context")  # noqa: B904 - this is the case


@case("exception group")
async def fail_in_group(_run: Run) -> None:
    raise ExceptionGroup("two", [Intended("one"), Intended("another")])


@case("exception that is no Exception")
async def fail_unusually(_run: Run) -> None:
    raise Unusual("no Exception")


@case("exception after the start")
async def fail_after(run: Run) -> None:
    await run.send(start())
    raise Intended("after the start")


@case("exception within the body")
async def fail_within(run: Run) -> None:
    await run.send(start(), body(b"first", more=True))
    raise Intended("within the body")


@case("exception after the response")
async def fail_at_last(run: Run) -> None:
    await run.send(start(), body(b"all"))
    raise Intended("in a background task")


@case("no response", may_raise=True)
async def silent(_run: Run) -> None:
    # An error may be made of it, a response may not.
    pass


@case("end within the body")
async def cut(run: Run) -> None:
    # A truncated body has to look truncated: nobody may close it in the app's place.
    await run.send(start(), body(b"first", more=True))


@case("background task")
async def background(run: Run) -> None:
    await run.send(start(), body(b"all"))
    await settle()
    run.notes["the response was complete when the background task began"] = run.server.complete
    await settle()
    run.notes["the background task ran to its end"] = True


@case("time limit in the app")
async def own_limit(run: Run) -> None:
    await reach_end_of_request(run)
    with anyio.move_on_after(0) as limit:
        await run.receive()
    run.notes["the time ran out"] = limit.cancelled_caught
    await run.send(start(504), body(b"too late"))


@case("cancelled request")
async def cancelled(run: Run) -> None:
    await run.send(start(), body(b"first", more=True))
    await settle()
    run.cancel()
    try:
        await anyio.lowlevel.checkpoint()
    except anyio.get_cancelled_exc_class():
        run.notes["the app was cancelled"] = True
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await settle()
            run.notes["the app could clean up"] = True


# ---------------------------------------------------------------------- other scopes

FRAMES: tuple[Message, ...] = (
    {"type": "websocket.connect"},
    {"type": "websocket.receive", "text": "text"},
    {"type": "websocket.receive", "bytes": b"bytes"},
    {"type": "websocket.disconnect", "code": 1001, "reason": "gone"},
)


@case("websocket", kind="websocket", messages=FRAMES)
async def websocket(run: Run) -> None:
    run.notes["the app received"] = received = [await run.receive()]
    await run.send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"x-a", b"b")]})
    while received[-1]["type"] != "websocket.disconnect":
        received.append(await run.receive())
        await run.send({"type": "websocket.send", "text": received[-1]["type"]})


@case("websocket that is denied", kind="websocket", messages=FRAMES[:1])
async def denied(run: Run) -> None:
    await run.receive()
    kind = "websocket.http.response"
    await run.send({"type": f"{kind}.start", "status": 403, "headers": [TEXT]})
    await run.send({"type": f"{kind}.body", "body": b"members only"})


@case("websocket that is denied in parts", kind="websocket", messages=FRAMES[:1])
async def denied_in_parts(run: Run) -> None:
    await run.receive()
    kind = "websocket.http.response"
    await run.send({"type": f"{kind}.start", "status": 404, "headers": [TEXT, (b"x-a", b"1")]})
    for chunk in (b"no such ", b"", b"room"):
        await run.send({"type": f"{kind}.body", "body": chunk, "more_body": True})
    await run.send({"type": f"{kind}.body"})


@case("websocket that is refused", kind="websocket", messages=FRAMES[:1])
@case(
    "websocket that is refused, where nothing else is understood",
    kind="websocket",
    messages=FRAMES[:1],
    extensions={},
)
async def refused(run: Run) -> None:
    await run.receive()
    await run.send({"type": "websocket.close", "code": 4401, "reason": "who?"})


@case("websocket that the app closes", kind="websocket", messages=FRAMES[:1])
async def closed(run: Run) -> None:
    await run.receive()
    await run.send({"type": "websocket.accept", "headers": [(b"set-cookie", b"a=1")] * 2})
    await run.send({"type": "websocket.send", "text": None, "bytes": b"bye"})
    await run.send({"type": "websocket.close", "code": 4000, "reason": "done"})


@case("client leaves before the acceptance", kind="websocket", messages=(FRAMES[0], FRAMES[-1]))
async def gone(run: Run) -> None:
    run.notes["the app received"] = [await run.receive(), await run.receive()]


@case("exception in a websocket", kind="websocket", messages=FRAMES[:1])
async def broken(run: Run) -> None:
    await run.receive()
    raise Intended("in a websocket")


@case("exception in an open websocket", kind="websocket", messages=FRAMES[:1])
async def broken_open(run: Run) -> None:
    await run.receive()
    await run.send({"type": "websocket.accept"})
    await run.send({"type": "websocket.send", "text": "a"})
    raise Intended("in an open websocket")


@case(
    "lifespan",
    kind="lifespan",
    messages=({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}),
)
async def lifespan(run: Run) -> None:
    run.notes["the app received"] = received = [await run.receive()]
    run.scope["state"]["started"] = True
    await run.send({"type": "lifespan.startup.complete"})
    received.append(await run.receive())
    await run.send({"type": "lifespan.shutdown.complete"})


@case("exception at startup", kind="lifespan", messages=({"type": "lifespan.startup"},))
async def no_startup(_run: Run) -> None:
    # A server takes it as "lifespan is not supported".
    raise Intended("at startup")
