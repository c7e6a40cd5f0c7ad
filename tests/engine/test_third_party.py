"""Other people's middleware and apps, inside and outside of a middleware function."""

from __future__ import annotations

import gc
import gzip
import random
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
import starlette._utils
from a2wsgi import WSGIMiddleware
from fastapi import BackgroundTasks, Depends, FastAPI, Form, HTTPException
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import BodyTooLarge, Connection, Flow, HTTPMiddleware
from tests.harness import Inner, Server, request, stack, waiting

if not hasattr(starlette._utils, "create_collapsing_task_group"):
    # Such an old Starlette leaves generators and files of its own to the garbage collector.
    pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

    @pytest.fixture(scope="module", autouse=True)
    def collected() -> Iterator[None]:
        """Nothing of this module is left for the tests that follow."""
        yield
        gc.collect()


on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
old_and_new_specs = pytest.mark.parametrize("spec", [None, "2.3", "2.4"])


# Four middlewares of Starlette.


class Marking(BaseHTTPMiddleware):
    """Set a header."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-marked"] = "yes"
        return response


class Reading(BaseHTTPMiddleware):
    """Read the upload before the layers inside do."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        assert await request.body() == b"the upload"
        return await call_next(request)


@dataclass(frozen=True)
class Party:
    """A middleware of somebody else, and the header by which its work is seen."""

    wrap: Callable[[ASGIApp], ASGIApp]
    header: str


PARTIES = {
    "gzip": Party(lambda app: GZipMiddleware(app, minimum_size=5), "content-encoding"),
    "cors": Party(lambda app: CORSMiddleware(app, ["*"]), "access-control-allow-origin"),
    "session": Party(lambda app: SessionMiddleware(app, "secret"), "set-cookie"),
    "base": Party(Marking, "x-marked"),
}
REQUEST = {"accept-encoding": "gzip", "origin": "https://elsewhere.example"}


@pytest.fixture(params=PARTIES)
def party(request: pytest.FixtureRequest) -> Party:
    """A middleware of Starlette."""
    return PARTIES[request.param]


@pytest.fixture(params=["inside", "outside"])
def inside(request: pytest.FixtureRequest) -> bool:
    """Whether the other middleware is inside of ours."""
    return request.param == "inside"


class Visit:
    """An app that notes in the session that it ran, where there is one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "session" in scope:
            scope["session"]["visits"] = 1
        await self.app(scope, receive, send)


def combine(app: ASGIApp, function: Callable[..., Any], party: Party, *, inside: bool) -> ASGIApp:
    """Wrap *app* in *function* and *party*, in one order or the other."""
    if inside:
        return HTTPMiddleware(party.wrap(Visit(app)), dispatch=function)
    return party.wrap(HTTPMiddleware(Visit(app), dispatch=function))


def decoded(headers: Headers, body: bytes) -> bytes:
    return gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body


async def upper(
    chunks: AsyncIterable[bytes], decode: Callable[[bytes], bytes] = bytes
) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield decode(chunk).upper()


async def edit(conn: Connection) -> Flow:
    response = yield
    response.status_code = 202
    response.headers["x-edited"] = "yes"


async def replace(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse("replaced", 503)


async def answer(conn: Connection) -> Flow:
    yield PlainTextResponse("replaced", 503)


async def transform(conn: Connection) -> Flow:
    """Change the text of a response, whether it is compressed or not."""
    response = yield
    if response.headers.get("content-encoding") == "gzip":
        del response.headers["content-encoding"]
        gunzip = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
        response.body_iterator = upper(response.body_iterator, gunzip)
    else:
        response.body_iterator = upper(response.body_iterator)


@old_and_new_specs
async def test_header_edit(party: Party, inside: bool, inner: Inner, spec: str | None) -> None:
    """A header edit and the other middleware's work are both there."""
    app = combine(inner, edit, party, inside=inside)

    server = await request(app, headers=REQUEST, spec=spec)

    assert server.status == 202
    assert server.headers["x-edited"] == "yes"
    assert party.header in server.headers
    assert decoded(server.headers, server.body) == Inner.BODY
    assert inner.ended == [None]


@old_and_new_specs
async def test_reading(party: Party, inside: bool, inner: Inner, spec: str | None) -> None:
    """A middleware that reads the response gets it as the layer inside made it."""
    bodies = []

    async def read(conn: Connection) -> Flow:
        response = yield
        bodies.append(decoded(response.headers, await response.read()))

    app = combine(inner, read, party, inside=inside)

    server = await request(app, headers=REQUEST, spec=spec)

    assert bodies == [Inner.BODY]
    assert party.header in server.headers
    assert decoded(server.headers, server.body) == Inner.BODY
    assert inner.ended == [None]


@old_and_new_specs
async def test_transforming(party: Party, inside: bool, inner: Inner, spec: str | None) -> None:
    """A body that is transformed arrives transformed, with the other middleware's work."""
    app = combine(inner, transform, party, inside=inside)

    server = await request(app, headers=REQUEST, spec=spec)

    assert (party.header in server.headers) != (party is PARTIES["gzip"] and inside)
    assert decoded(server.headers, server.body) == Inner.BODY.upper()
    assert server.complete
    assert inner.ended == [None]


@old_and_new_specs
async def test_replacing(party: Party, inside: bool, inner: Inner, spec: str | None) -> None:
    """A replacement keeps the work of the other middleware outside, not that of the one inside."""
    app = combine(inner, replace, party, inside=inside)

    server = await request(app, headers=REQUEST, spec=spec)

    assert server.status == 503
    assert (party.header in server.headers) != inside
    assert decoded(server.headers, server.body) == b"replaced"
    assert inner.runs == 1


@old_and_new_specs
async def test_early_answer(party: Party, inside: bool, inner: Inner, spec: str | None) -> None:
    """An early answer passes the other middleware outside, and does not run what is inside."""
    app = combine(inner, answer, party, inside=inside)

    server = await request(app, headers=REQUEST, spec=spec)

    assert server.status == 503
    # No app ran that could have written to the session.
    assert (party.header in server.headers) != (inside or party is PARTIES["session"])
    assert decoded(server.headers, server.body) == b"replaced"
    assert inner.runs == 0


@old_and_new_specs
async def test_exception_of_the_app(party: Party, inside: bool, spec: str | None) -> None:
    """The app's very exception arrives at the yield, and travels on outward."""
    seen: list[Exception] = []
    broken = ValueError("broken")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise broken

    async def look(conn: Connection) -> Flow:
        try:
            yield
        except Exception as error:
            seen.append(error)
            raise

    server = await request(
        combine(app, look, party, inside=inside), headers=REQUEST, spec=spec, keep_error=True
    )

    assert seen == [broken]
    assert server.error is broken
    assert server.sent == []


@old_and_new_specs
async def test_exception_in_the_middle_of_a_body(
    party: Party, inside: bool, spec: str | None
) -> None:
    """The app's very exception arrives at `yield response`; only Starlette's base ends the body."""
    outcomes = []
    ends_the_body = party is PARTIES["base"]
    broken = ValueError("broken")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"the beginning"
        raise broken

    async def look(conn: Connection) -> Flow:
        response = yield
        with pytest.raises(ValueError, match="broken") as caught:
            yield response
        outcomes.append((response.outcome, caught.value is broken))
        raise broken

    app = combine(StreamingResponse(chunks()), look, party, inside=inside)

    server = await request(app, headers=REQUEST, spec=spec, keep_error=True)

    assert server.error is broken
    assert server.complete == ends_the_body
    assert outcomes == [("completed" if ends_the_body and inside else "failed", True)]


# Streams are objects where they are left before their end: a generator would be left to the garbage
# collector then, by Starlette.


class Endless:
    """A stream that never ends, of chunks that cannot be compressed."""

    CHUNK = random.Random(0).randbytes(50_000)

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        return self.CHUNK


@old_and_new_specs
async def test_endless_stream_is_replaced(party: Party, inside: bool, spec: str | None) -> None:
    """An endless stream ends when it is replaced, whatever is around it."""
    app = combine(StreamingResponse(Endless()), replace, party, inside=inside)

    server = await request(app, headers=REQUEST, spec=spec)

    assert server.status == 503
    assert decoded(server.headers, server.body) == b"replaced"


class Leaving(Server):
    """The client of this server leaves when it has got a piece of the body."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message.get("body"):
            self.disconnect()


@pytest.mark.parametrize("function", [edit, transform, waiting])
@old_and_new_specs
async def test_client_leaves_an_endless_stream(
    party: Party, inside: bool, function: Callable[..., Any], spec: str | None
) -> None:
    """An endless stream ends when its client leaves, and the server hears of no error."""
    app = combine(StreamingResponse(Endless()), function, party, inside=inside)

    # A server of 2.4 gets back what it raised, in the form that Starlette gives it.
    raises = spec == "2.4"
    server = await Leaving(headers=REQUEST, spec=spec).run(app, keep_error=raises)

    assert not server.complete
    assert server.body != b""


async def test_upload_is_read_three_times(inside: bool) -> None:
    """An upload reaches the app when our middleware and `BaseHTTPMiddleware` read it before."""

    async def read(conn: Connection) -> Flow:
        assert await conn.body() == b"the upload"
        yield

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    app: ASGIApp = Route("/", endpoint, methods=["POST"])
    app = combine(app, read, Party(Reading, ""), inside=inside)

    server = await request(app, method="POST", body=[b"the ", b"upload"])

    assert server.body == b"the upload"


async def test_session_is_read_and_written() -> None:
    """A middleware function inside of `SessionMiddleware` shares the session with the app."""

    async def visit(conn: Connection) -> Flow:
        conn.session["before"] = 1
        yield
        conn.session["after"] = 3

    async def endpoint(request: Request) -> Response:
        request.session["within"] = 2
        return JSONResponse(request.session)

    async def show(request: Request) -> Response:
        return JSONResponse(request.session)

    routes = [Route("/", endpoint), Route("/show", show)]
    app = SessionMiddleware(HTTPMiddleware(Starlette(routes=routes), dispatch=visit), "secret")

    first = await request(app)
    cookie = first.headers["set-cookie"].partition(";")[0]
    second = await request(app, path="/show", headers={"cookie": cookie})

    assert first.body == b'{"before":1,"within":2}'
    assert second.body == b'{"before":1,"within":2,"after":3}'


async def test_preflight_request_does_not_reach_a_middleware_inside() -> None:
    """`CORSMiddleware` outside answers a preflight request by itself."""
    app = PARTIES["cors"].wrap(HTTPMiddleware(Inner(Response), dispatch=edit))
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "GET"}

    server = await request(app, method="OPTIONS", headers=headers)

    assert server.status == 200
    assert "x-edited" not in server.headers


async def test_preflight_request_passes_a_middleware_outside() -> None:
    """A middleware around `CORSMiddleware` sees the answer to a preflight request."""
    app = HTTPMiddleware(PARTIES["cors"].wrap(Inner(Response)), dispatch=edit)
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "GET"}

    server = await request(app, method="OPTIONS", headers=headers)

    assert server.status == 202
    assert server.headers["x-edited"] == "yes"


# sse-starlette sends from a child task, beside three siblings, whatever the spec version is.


class Ticks(Endless):
    """A stream of events that never ends."""

    CHUNK = b"tick"


EVENTS = [b"data: one\n\n", b"data: two\n\n", b"data: three\n\n"]


def event_source(content: Any = None, **options: Any) -> ASGIApp:
    """Return an app that sends *content*, or else three events, by `EventSourceResponse`."""

    async def three_events() -> AsyncIterator[dict[str, str]]:
        for data in ("one", "two", "three"):
            yield {"data": data}

    # Version 2 keeps an event of the loop that it first ran in.
    AppStatus.should_exit_event = None
    return EventSourceResponse(content or three_events(), sep="\n", **options)


async def test_event_source_response(fused: bool, spec: str | None) -> None:
    """The events arrive one by one under an edited start."""
    app = stack(event_source(), waiting, edit, fused=fused)

    server = await request(app, spec=spec)

    assert server.status == 202
    assert server.headers["x-edited"] == "yes"
    assert server.chunks == [*EVENTS, b""]


async def test_event_source_response_is_read(spec: str | None) -> None:
    """A middleware can read all events of a stream that ends."""

    async def read(conn: Connection) -> Flow:
        response = yield
        assert await response.read() == b"".join(EVENTS)

    server = await request(HTTPMiddleware(event_source(), dispatch=read), spec=spec)

    assert server.body == b"".join(EVENTS)


async def test_event_source_response_is_transformed(spec: str | None) -> None:
    """The events arrive one by one, each transformed."""
    server = await request(HTTPMiddleware(event_source(), dispatch=transform), spec=spec)

    assert [chunk for chunk in server.chunks if chunk] == [event.upper() for event in EVENTS]
    assert server.complete


async def test_endless_event_source_response_is_replaced(fused: bool, spec: str | None) -> None:
    """The event source ends when its response is replaced; its background task runs below 2.4."""
    ran = anyio.Event()
    app = event_source(Ticks(), background=BackgroundTask(ran.set))

    server = await request(stack(app, waiting, replace, fused=fused), spec=spec)

    assert (server.status, server.body) == (503, b"replaced")
    # From 2.4 on it depends on which of its tasks hears of it first: the listener, or the sender,
    # whose send raises.
    assert ran.is_set() or spec in ("2.4", "2.5")


@pytest.mark.parametrize("spec", [None, "2.1", "2.3"])
async def test_client_leaves_an_endless_event_source_response(
    fused: bool, spec: str | None
) -> None:
    """The event source ends when its client leaves, and the middleware learns of it."""
    outcomes = []

    async def look(conn: Connection) -> Flow:
        response = yield
        yield response
        outcomes.append(response.outcome)

    app = stack(event_source(Ticks()), look, edit, fused=fused)

    await Leaving(spec=spec).run(app)

    assert outcomes == ["disconnected"]


# a2wsgi sends from a task of its own and receives in a new task each time. It needs asyncio. With
# a server of 2.4 it hangs by itself when the client leaves: a send that raises ends its sender.

LINES = [b"line %d\n" % number for number in range(60)]


def mounted(application: Callable[..., Any]) -> ASGIApp:
    """Return a router with a WSGI application under `/wsgi`."""
    return Router(routes=[Mount("/wsgi", WSGIMiddleware(application))])


def plain_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", "5")])
    return [b"plain"]


def streaming_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    yield from LINES


def echoing_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    return [environ["wsgi.input"].read()]


def failing_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    raise ValueError("broken")


wsgi_apps = pytest.mark.parametrize(
    ("application", "body"), [(plain_wsgi, b"plain"), (streaming_wsgi, b"".join(LINES))]
)


@on_asyncio
@wsgi_apps
async def test_wsgi_response_is_edited(
    application: Callable[..., Any], body: bytes, fused: bool, spec: str | None
) -> None:
    """The response of a mounted WSGI app arrives under an edited start."""
    app = stack(mounted(application), waiting, edit, fused=fused)

    server = await request(app, path="/wsgi/", spec=spec)

    assert (server.status, server.headers["x-edited"]) == (202, "yes")
    assert server.body == body


@on_asyncio
@wsgi_apps
async def test_wsgi_response_is_read_and_transformed(
    application: Callable[..., Any], body: bytes, fused: bool, spec: str | None
) -> None:
    """The response of a mounted WSGI app can be read, and transformed by the next layer."""

    async def read(conn: Connection) -> Flow:
        response = yield
        assert await response.read() == body

    app = stack(mounted(application), transform, read, fused=fused)

    server = await request(app, path="/wsgi/", spec=spec)

    assert server.body == body.upper()


@on_asyncio
@wsgi_apps
@pytest.mark.parametrize("spec", [None, "2.1", "2.3"])
async def test_wsgi_response_is_replaced(
    application: Callable[..., Any], body: bytes, fused: bool, spec: str | None
) -> None:
    """A replacement does not leave a mounted WSGI app waiting for its chunks to be sent."""
    app = stack(mounted(application), waiting, replace, fused=fused)

    server = await request(app, path="/wsgi/", spec=spec)

    assert (server.status, server.body) == (503, b"replaced")


@on_asyncio
async def test_wsgi_app_gets_an_upload_that_was_read(fused: bool, spec: str | None) -> None:
    """A mounted WSGI app gets the upload that a middleware has read."""

    async def read(conn: Connection) -> Flow:
        assert await conn.body() == b"the upload"
        yield

    app = stack(mounted(echoing_wsgi), edit, read, fused=fused)

    server = await request(app, method="POST", path="/wsgi/", body=[b"the ", b"upload"], spec=spec)

    assert server.body == b"the upload"


@on_asyncio
async def test_exception_of_a_wsgi_app_is_answered(fused: bool, spec: str | None) -> None:
    """A middleware can answer an exception of a mounted WSGI app."""

    async def rescue(conn: Connection) -> Flow:
        with pytest.raises(ValueError, match="broken"):
            yield
        yield PlainTextResponse("rescued", 500)

    app = stack(mounted(failing_wsgi), waiting, rescue, fused=fused)

    server = await request(app, path="/wsgi/", spec=spec)

    assert (server.status, server.body) == (500, b"rescued")


# FastAPI.


class Item(BaseModel):
    """What is posted."""

    name: str


class Numbers:
    """A stream that tells when it has ended."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.chunks = [b"one ", b"two ", b"three"]

    def __aiter__(self) -> Numbers:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.chunks:
            self.events.append("streamed")
            raise StopAsyncIteration
        return self.chunks.pop(0)


class Story:
    """A FastAPI application whose parts tell in `events` what they did."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.app = FastAPI()
        self.app.get("/sync", dependencies=[Depends(self.sync_dependency)])(self.plain)
        self.app.get("/async", dependencies=[Depends(self.async_dependency)])(self.plain)
        self.app.get("/sync/stream", dependencies=[Depends(self.sync_dependency)])(self.stream)
        self.app.get("/async/stream", dependencies=[Depends(self.async_dependency)])(self.stream)
        self.app.get("/task")(self.task)
        self.app.post("/item")(self.item)
        self.app.post("/form")(self.form)

    def sync_dependency(self) -> Iterator[None]:
        self.events.append("opened")
        try:
            yield
        finally:
            self.events.append("closed")

    async def async_dependency(self) -> AsyncIterator[None]:
        self.events.append("opened")
        try:
            yield
        finally:
            self.events.append("closed")

    async def plain(self) -> dict[str, str]:
        return {"message": "hello"}

    async def stream(self) -> StreamingResponse:
        return StreamingResponse(Numbers(self.events))

    async def task(self, tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(self.events.append, "background")
        return {"message": "hello"}

    async def item(self, item: Item) -> Item:
        return item

    async def form(self, name: Annotated[str, Form()]) -> Item:
        return Item(name=name)

    def add(self, function: Callable[..., Any]) -> None:
        self.app.add_middleware(HTTPMiddleware, dispatch=function)


@pytest.fixture
def story() -> Story:
    """A FastAPI application that tells what it did."""
    return Story()


dependencies = pytest.mark.parametrize("kind", ["sync", "async"])


@dependencies
@pytest.mark.parametrize("function", [edit, waiting, transform])
async def test_dependency_with_yield(
    story: Story, kind: str, function: Callable[..., Any], spec: str | None
) -> None:
    """A dependency is closed after the response that it was opened for."""
    story.add(function)

    server = await request(story.app, path=f"/{kind}", spec=spec)

    assert server.body.lower() == b'{"message":"hello"}'
    assert story.events == ["opened", "closed"]


@dependencies
@pytest.mark.parametrize("function", [edit, waiting, transform])
async def test_dependency_with_yield_of_a_stream(
    story: Story, kind: str, function: Callable[..., Any], spec: str | None
) -> None:
    """A dependency stays open until the stream has ended."""
    story.add(function)

    server = await request(story.app, path=f"/{kind}/stream", spec=spec)

    assert server.body.lower() == b"one two three"
    assert story.events == ["opened", "streamed", "closed"]


@dependencies
@pytest.mark.parametrize("what", ["", "/stream"], ids=["plain", "stream"])
async def test_dependency_with_yield_of_a_replaced_response(
    story: Story, kind: str, what: str, spec: str | None
) -> None:
    """A dependency is closed when the response that it was opened for is replaced."""
    story.add(replace)

    server = await request(story.app, path=f"/{kind}{what}", spec=spec)

    assert (server.status, server.body) == (503, b"replaced")
    assert (story.events[0], story.events[-1]) == ("opened", "closed")


async def test_tail_runs_after_the_dependency(story: Story, spec: str | None) -> None:
    """Code after `yield response` runs when dependencies are closed and background tasks done."""

    async def tail(conn: Connection) -> Flow:
        response = yield
        story.events.append("start")
        yield response
        story.events.append("tail")

    story.add(tail)

    await request(story.app, path="/task", spec=spec)
    await request(story.app, path="/async/stream", spec=spec)

    assert story.events == [
        *("start", "background", "tail"),
        *("opened", "start", "streamed", "closed", "tail"),
    ]


@pytest.mark.parametrize("function", [edit, waiting, transform, replace])
async def test_background_task(
    story: Story, function: Callable[..., Any], spec: str | None
) -> None:
    """A background task of FastAPI runs, also when the response is replaced."""
    story.add(function)

    server = await request(story.app, path="/task", spec=spec)

    assert server.complete
    assert story.events == ["background"]


async def read_request(conn: Connection) -> Flow:
    """Read the request in the way that its media type asks for."""
    if conn.headers["content-type"] == "application/json":
        assert await conn.json() == {"name": "tea"}
    else:
        assert (await conn.form())["name"] == "tea"
    yield


@pytest.mark.parametrize(
    ("path", "media_type", "body"),
    [
        ("/item", "application/json", b'{"name": "tea"}'),
        ("/form", "application/x-www-form-urlencoded", b"name=tea"),
    ],
    ids=["json", "form"],
)
async def test_parsed_request_is_parsed_again(
    story: Story, path: str, media_type: str, body: bytes
) -> None:
    """FastAPI validates a request that a middleware has parsed before."""
    story.add(read_request)

    server = await request(
        story.app, method="POST", path=path, headers={"content-type": media_type}, body=body
    )

    assert (server.status, server.body) == (200, b'{"name":"tea"}')


# Rule 9: an `HTTPException` of a middleware function is answered by the application's handlers.


async def forbid_before(conn: Connection) -> Flow:
    raise HTTPException(403, "not today", {"x-reason": "closed"})
    yield


async def forbid_after(conn: Connection) -> Flow:
    yield
    raise HTTPException(403, "not today", {"x-reason": "closed"})


async def forbid_by_starlette(conn: Connection) -> Flow:
    raise StarletteHTTPException(403, "not today", {"x-reason": "closed"})
    yield


forbidding = pytest.mark.parametrize("function", [forbid_before, forbid_after, forbid_by_starlette])


@forbidding
async def test_http_exception_without_a_handler(
    story: Story, function: Callable[..., Any], spec: str | None
) -> None:
    """FastAPI's own handler answers an `HTTPException` of a middleware function."""
    story.add(function)

    server = await request(story.app, path="/async", spec=spec)

    assert (server.status, server.body) == (403, b'{"detail":"not today"}')
    assert server.headers["x-reason"] == "closed"


@forbidding
@pytest.mark.parametrize(
    "key", [HTTPException, StarletteHTTPException, 403], ids=["fastapi", "starlette", "status"]
)
async def test_http_exception_with_a_handler(
    story: Story, function: Callable[..., Any], key: Any
) -> None:
    """The application's handler answers an `HTTPException` of a middleware function."""
    if key is HTTPException and function is forbid_by_starlette:
        pytest.skip("FastAPI's class is the narrower one")

    async def handler(request: Request, error: Any) -> Response:
        return PlainTextResponse(f"{request.url.path}: {error.detail}", error.status_code)

    story.app.exception_handler(key)(handler)
    story.add(function)

    server = await request(story.app, path="/async")

    assert (server.status, server.body) == (403, b"/async: not today")


async def test_http_exception_with_a_sync_handler(story: Story) -> None:
    """A handler that is a plain function answers as well."""

    def handler(request: Request, error: Any) -> Response:
        return PlainTextResponse(f"sync: {error.detail}", error.status_code)

    story.app.exception_handler(403)(handler)
    story.add(forbid_before)

    server = await request(story.app, path="/async")

    assert (server.status, server.body) == (403, b"sync: not today")


@forbidding
async def test_outer_layers_see_the_answer_to_an_http_exception(
    story: Story, function: Callable[..., Any], spec: str | None
) -> None:
    """A layer outside sees the handler's answer as a response, and can edit it."""
    statuses = []

    async def look(conn: Connection) -> Flow:
        response = yield
        statuses.append(response.status_code)
        response.headers["x-edited"] = "yes"

    story.add(function)
    story.add(look)

    server = await request(story.app, path="/async", spec=spec)

    assert statuses == [403]
    assert server.headers["x-edited"] == "yes"
    assert server.body == b'{"detail":"not today"}'


async def test_body_too_large_is_answered(story: Story) -> None:
    """A body over a middleware's limit is answered with 413 by FastAPI's handler."""

    async def limit(conn: Connection) -> Flow:
        await conn.body(max_size=5)
        yield

    story.add(limit)

    server = await request(story.app, method="POST", path="/item", body=b'{"name": "tea"}')

    assert server.status == 413
    assert server.headers["content-type"] == "application/json"


async def test_body_too_large_is_handled(story: Story) -> None:
    """An application can have a handler for `BodyTooLarge`."""

    async def limit(conn: Connection) -> Flow:
        await conn.body(max_size=5)
        yield

    async def handler(request: Request, error: BodyTooLarge) -> Response:
        return PlainTextResponse(f"at most {error.max_size}", 413)

    story.app.add_exception_handler(BodyTooLarge, handler)
    story.add(limit)

    server = await request(story.app, method="POST", path="/item", body=b'{"name": "tea"}')

    assert (server.status, server.body) == (413, b"at most 5")


async def test_other_exceptions_are_not_answered_by_the_handlers_for_http(story: Story) -> None:
    """Any other exception of a middleware function goes to the server as it is."""
    broken = ValueError("broken")

    async def fail(conn: Connection) -> Flow:
        yield
        raise broken

    story.add(fail)

    server = await request(story.app, path="/async", keep_error=True)

    assert server.error is broken
    assert server.status == 500
    assert story.events == ["opened", "closed"]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"state": "of the lifespan"}


async def test_lifespan_passes() -> None:
    """The lifespan of an application runs through its middleware."""
    app = FastAPI(lifespan=lifespan)
    app.add_middleware(HTTPMiddleware, dispatch=edit)
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []
    state: dict[str, str] = {}

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert state == {"state": "of the lifespan"}


class Hypercorn(Server):
    """hypercorn on trio tells of the end while the `send` of the last message is under way."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()


async def test_end_that_the_server_tells_before_its_send_returns(fused: bool) -> None:
    """A response that went out whole is completed, though its last `send` is cancelled."""
    told = []

    async def look(conn: Connection) -> Flow:
        response = yield
        yield response
        told.append((response.outcome, response.bytes_sent))

    app = stack(StreamingResponse(Numbers([])), look, edit, fused=fused)

    server = await Hypercorn(spec="2.1").run(app)

    assert server.body == b"one two three"
    assert told == [("completed", len(b"one two three"))]
