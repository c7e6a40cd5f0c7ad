"""
The arms of the benchmarks: one layer written in every style, and the applications inside.

Every style of `STYLES` does the same work, it sets one header on the response; those of `ASIDE` do
none. Every job of `JOBS` is written twice, by hand and with httpmw. The floors do the same without
a rule of httpmw kept, and show what the rules cost.
A style is a function that puts one layer of it around an application.
"""

from __future__ import annotations

import sys
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Sequence,
)
from typing import Any, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw._response import Headers as FastHeaders
from httpmw.compat import BaseHTTPMiddleware as DropIn

NAME, VALUE = "x-layer", "1"
RAW_NAME, RAW_VALUE = NAME.encode(), VALUE.encode()

App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
Style = Callable[[App], App]


# ---------------------------------------------------------------------- one header, by hand


class HandWritten:
    """
    The layer that httpmw is measured against, as Starlette's documentation writes it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[NAME] = VALUE
            await send(message)

        await self.app(scope, receive, send_with_header)


class RawBytes:
    """
    The same without `MutableHeaders`: the list of pairs is edited as it is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != RAW_NAME]
                headers.append((RAW_NAME, RAW_VALUE))
                message["headers"] = headers
            await send(message)

        await self.app(scope, receive, send_with_header)


# ---------------------------------------------------------------------- one header, httpmw


async def one_yield(conn: Connection) -> Flow:
    response = yield
    response.headers[NAME] = VALUE


async def two_yields(conn: Connection) -> Flow:
    response = yield
    response.headers[NAME] = VALUE
    yield response


class Subclass(HTTPMiddleware):
    async def dispatch(self, conn: Connection) -> Flow:  # noqa: ARG002 - the header is always set
        response = yield
        response.headers[NAME] = VALUE


def always(conn: Connection) -> bool:
    return True


def never(conn: Connection) -> bool:
    return False


def steps_aside(conn: Connection) -> None:
    """
    A `dispatch` that returns None.
    """


async def call_next_style(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.headers[NAME] = VALUE
    return response


# ---------------------------------------------------------------------- the floors

# What is left when no rule of httpmw is kept: the generators of all layers are made at once,
# whatever becomes of the first; what they yield, raise or hold open goes unseen; what they get is
# one object for all of them, with what their code asks for and no more; and messages are edited
# where they are. Each is one way to write that, and no bound: it could be written with less.


class Bare(HandWritten):
    """
    Neighbouring layers, which become one.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app.app if isinstance(app, type(self)) else app)
        self.number: int = app.number + 1 if isinstance(app, type(self)) else 1


class Held:
    """
    A request or a response: what its function asks for.
    """

    __slots__ = ("headers", "scope")

    headers: Any
    scope: Scope


class BareGenerator(Bare):
    """
    Generators are begun, and resumed with the headers of the start.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        flows = [bare_generator() for _ in range(self.number)]
        for step in begun(flows):
            await step

        def send_resumed(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = headers_of(message)
                while flows:
                    try:  # noqa: SIM105 - `suppress` costs time in a request
                        flows.pop().asend(headers).send(None)
                    except StopAsyncIteration:
                        pass
            return send(message)

        await self.app(scope, receive, send_resumed)


async def bare_generator() -> AsyncGenerator[None, MutableHeaders]:
    headers = yield
    headers[NAME] = VALUE


def begun(flows: Sequence[AsyncGenerator[Any, Any]]) -> list[Awaitable[Any]]:
    """
    Begin generators without registering them with the loop, which would cost more.
    """
    hook = (sys.get_asyncgen_hooks().firstiter,)
    sys.set_asyncgen_hooks(*NO_HOOK)
    steps = [flow.asend(None) for flow in flows]
    sys.set_asyncgen_hooks(*hook)
    return steps


NO_HOOK = (None,)


def headers_of(message: Message) -> MutableHeaders:
    """
    Give the headers of a start, as httpmw has them: to be edited in place.
    """
    headers: MutableHeaders = FastHeaders()
    headers._list = message["headers"]  # noqa: SLF001 - as httpmw does
    return headers


class BareTwoYields(Bare):
    """
    Generators that get a response, and wait with it until all has been sent.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        flows = [two_yields(NOTHING) for _ in range(self.number)]
        for step in begun(flows):
            await step

        def send_resumed(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                response = Held()
                response.headers = headers_of(message)
                for flow in reversed(flows):
                    try:  # noqa: SIM105 - see above
                        flow.asend(response).send(None)
                    except StopIteration:
                        pass
            return send(message)

        await self.app(scope, receive, send_resumed)
        for flow in flows:
            try:  # noqa: SIM105 - see above
                flow.asend(None).send(None)
            except StopAsyncIteration:
                pass


NOTHING: Any = Held()


class BarePredicate(HandWritten):
    """
    A predicate is asked about an object that holds the scope, and the layer is not there.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            conn: Any = Held()
            conn.scope = scope
            if never(conn):
                return
        await self.app(scope, receive, send)


class BareDispatch(HandWritten):
    """
    The coroutine of a dispatch function is begun, left at `call_next`, and resumed with a response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        coroutine = call_next_style(NOTHING, mark)
        coroutine.send(None)

        def send_resumed(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                response: Any = Held()
                response.headers = headers_of(message)
                try:  # noqa: SIM105 - see above
                    coroutine.send(response)
                except StopIteration:
                    pass
            return send(message)

        await self.app(scope, receive, send_resumed)


@types.coroutine
def mark(request: Request) -> Generator[Any, Any, Response]:
    return (yield)


STYLES: dict[str, Style] = {
    "raw bytes": RawBytes,
    "asgi": HandWritten,
    "bare generator": BareGenerator,
    "bare two yields": BareTwoYields,
    "bare predicate": BarePredicate,
    "bare dispatch": BareDispatch,
    "one yield": lambda app: HTTPMiddleware(app, dispatch=one_yield),
    "two yields": lambda app: HTTPMiddleware(app, dispatch=two_yields),
    "subclass": Subclass,
    "when true": lambda app: HTTPMiddleware(app, dispatch=one_yield, when=always),
    "when false": lambda app: HTTPMiddleware(app, dispatch=one_yield, when=never),
    "returns None": lambda app: HTTPMiddleware(app, dispatch=steps_aside),
    "drop-in": lambda app: DropIn(app, dispatch=call_next_style),
    "BaseHTTP": lambda app: BaseHTTPMiddleware(app, dispatch=call_next_style),
}
ASIDE = ("when false", "returns None", "bare predicate")


# ---------------------------------------------------------------------- other jobs, by hand


class AnswerByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "x-member" not in Headers(scope=scope):
            response = PlainTextResponse("members only", 403)
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)


class ReplaceByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_replacement(message: Message) -> None:
            # What else the application sends is dropped.
            if message["type"] == "http.response.start":
                response = PlainTextResponse("replaced")
                await response(scope, receive, send)

        await self.app(scope, receive, send_replacement)


class ReadByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def send_when_read(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.start" or message.get("more_body", False):
                return
            size = len(b"".join([each["body"] for each in held[1:]]))
            headers = MutableHeaders(scope=held[0])
            headers["x-size"] = str(size)
            for each in held:
                await send(each)

        await self.app(scope, receive, send_when_read)


class SetByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_other_body(message: Message) -> None:
            # What else the application sends is dropped.
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-length"] = str(len(OTHER_BODY))
                await send(message)
                await send({"type": "http.response.body", "body": OTHER_BODY})

        await self.app(scope, receive, send_other_body)


class TransformByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_upper(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                del headers["content-length"]
            else:
                message["body"] = message["body"].upper()
            await send(message)

        await self.app(scope, receive, send_upper)


# ---------------------------------------------------------------------- other jobs, httpmw

OTHER_BODY = b"another body"


async def answers(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


async def replaces(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse("replaced")


async def reads(conn: Connection) -> Flow:
    response = yield
    response.headers["x-size"] = str(len(await response.read()))


async def sets_body(conn: Connection) -> Flow:
    response = yield
    response.body = OTHER_BODY


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


async def transforms(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = upper(response.body_iterator)


class BareAnswer(HandWritten):
    """
    The floor: a generator gets the request's headers, and what it yields at first is sent.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        conn: Any = Held()
        conn.headers = Headers(scope=scope)
        flow: AsyncGenerator[Any, Any] = answers(conn)
        [step] = begun([flow])
        response = await step
        if response is None:
            await self.app(scope, receive, send)
        else:
            start: Message = {"type": "http.response.start", "status": response.status_code}
            start["headers"] = response.raw_headers
            await send(start)
            await send({"type": "http.response.body", "body": response.body})
        try:  # noqa: SIM105 - see above
            await flow.asend(None)
        except StopAsyncIteration:
            pass


class Job(NamedTuple):
    asgi: Style
    httpmw: Style
    bare: Style | None = None


JOBS: dict[str, Job] = {
    "early answer": Job(
        AnswerByHand, lambda app: HTTPMiddleware(app, dispatch=answers), BareAnswer
    ),
    "response replaced": Job(ReplaceByHand, lambda app: HTTPMiddleware(app, dispatch=replaces)),
    "body read": Job(ReadByHand, lambda app: HTTPMiddleware(app, dispatch=reads)),
    "body set": Job(SetByHand, lambda app: HTTPMiddleware(app, dispatch=sets_body)),
    "body transformed": Job(TransformByHand, lambda app: HTTPMiddleware(app, dispatch=transforms)),
}


# ---------------------------------------------------------------------- the applications inside


def one_message() -> App:
    """
    An application that answers as Starlette's `Response` does: a start and one body message.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": response_headers()})
        await send({"type": "http.response.body", "body": b"hello, world"})

    return app


def chunks(number: int) -> App:
    """
    An application that answers as Starlette's `StreamingResponse` does: chunks and an empty end.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": response_headers()})
        for _ in range(number):
            await send({"type": "http.response.body", "body": b"hello, world", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


BODIES: dict[str, App] = {
    "one message": one_message(),
    "20 chunks": chunks(20),
    "1,000 chunks": chunks(1000),
}


def response_headers() -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"12"),
        (b"cache-control", b"no-store"),
    ]


def request_scope() -> Scope:
    """
    A new scope, as a server makes one for every request.
    """
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": REQUEST_HEADERS,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }


REQUEST_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"benchmark"),
    (b"accept", b"*/*"),
]


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Message) -> None:
    pass


# ---------------------------------------------------------------------- stacks


def layered(app: App, style: str, layers: int) -> App:
    """
    Put that many layers of a style around an application; none for `bare`.
    """
    for _ in range(layers):
        app = STYLES[style](app)
    return app


def at_work(app: App, job: str, kind: str, layers: int) -> App:
    """
    Put one layer that does a job around an application, and header layers around that.

    Args:
        app: The application.
        job: A name in `JOBS`.
        kind: `asgi`, `httpmw` or `bare`; the header layers are of the same kind.
        layers: How many layers, the one at work counted.
    """
    inner = getattr(JOBS[job], kind)(app)
    return layered(inner, AROUND_JOBS[kind], layers - 1)


AROUND_JOBS = {"asgi": "asgi", "httpmw": "one yield", "bare": "bare generator"}
