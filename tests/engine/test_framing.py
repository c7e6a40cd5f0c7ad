"""
What goes out over the wire is one answer, framed as RFC 9110 and 9112 have it.

The servers here take every message at its word, so that nothing is mended behind our backs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import AppResponse, Connection, Flow, MiddlewareError
from httpmw.compat import BaseHTTPMiddleware, DispatchFunction, RequestResponseEndpoint
from tests.harness import Chunks, Server, body, explained, request, script, stack, start, waiting
from tests.wire import Answer, PlainServer, get, parse

pytestmark = pytest.mark.anyio

Layer = Callable[[int], Callable[[Connection], Flow]]
Wrap = Callable[[ASGIApp, Callable[..., Any]], ASGIApp]

LENGTH = (b"content-length", b"5")
CHUNKED = (b"transfer-encoding", b"chunked")


async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    await StreamingResponse(Chunks(b"hel", b"lo"))(scope, receive, send)


# An app each: a body whole, one in several messages, one that the app says is in chunks.
APPS = {
    "whole": script(start(headers=[LENGTH]), body(b"hello")),
    "several": script(
        start(headers=[LENGTH]), body(b"hel", more=True), body(b"l", more=True), body(b"o")
    ),
    "chunked": script(start(headers=[CHUNKED]), body(b"hello")),
    "stream": streaming,
}

# How a layer may come to send a status that allows no body, in the place of the app's 200.
WAYS: dict[str, Layer] = {}


def way(make: Layer) -> Layer:
    WAYS[make.__name__] = make
    return make


def concerns(conn: Connection) -> bool:
    return bool(conn.scope["path"] == "/")


@way
def set_it(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            response.status_code = status

    return mw


@way
def set_it_and_wait(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            response.status_code = status
        yield response
        if concerns(conn):
            assert (response.outcome, response.bytes_sent) == ("completed", 0)

    return mw


@way
def set_it_after_a_read(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            assert await response.read() == b"hello"
            response.status_code = status

    return mw


@way
def set_it_before_a_read(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            response.status_code = status
            assert await response.read() == b"hello"
            yield response
            assert (response.outcome, response.bytes_sent) == ("completed", 0)

    return mw


@way
def set_it_in_the_middle_of_the_body(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            async for _ in response.body_iterator:
                response.status_code = status
                break

    return mw


async def doubled(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk * 2


@way
def set_it_with_a_transform(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            response.body_iterator = doubled(response.body_iterator)
            response.status_code = status

    return mw


@way
def set_it_with_another_body(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            response.status_code = status
            response.body = b"another body"
            yield response
            assert (response.outcome, response.bytes_sent) == ("completed", 0)

    return mw


@way
def stream_it_on(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            headers = dict(response.headers)
            yield StreamingResponse(doubled(response.body_iterator), status, headers)

    return mw


@way
def answer_whole(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            yield JSONResponse("another body", status, dict(response.headers))

    return mw


@way
def answer_in_pieces(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        if concerns(conn):
            yield StreamingResponse(Chunks(b"another ", b"body"), status, dict(response.headers))

    return mw


@way
def answer_early(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        if concerns(conn):
            yield JSONResponse("another body", status)
            return
        yield

    return mw


@way
def answer_early_in_pieces(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        if concerns(conn):
            yield StreamingResponse(Chunks(b"another ", b"body"), status)
            return
        yield

    return mw


@way
def raise_it(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        yield
        if concerns(conn):
            raise HTTPException(status, "a detail")

    return mw


async def served(app: ASGIApp, *requests: bytes, spec: str = "2.3") -> list[Answer]:
    """Serve *requests* on one connection; the answers and nothing but them went out."""
    server = PlainServer(app, spec_version=spec)
    data = await server.answer(b"".join(requests))
    assert server.errors == []
    answers = parse(data, *requests)
    assert len(answers) == len(requests)
    return answers


def check_silent(answer: Answer, status: int) -> None:
    """Check the framing of an answer that has no body (RFC 9110 sections 8.6 and 15.3.6)."""
    assert (answer.status, answer.body) == (status, b"")
    length = answer.get("content-length")
    if status == 205:
        assert length in (None, b"0")
    else:
        assert length is None
        assert answer.all("transfer-encoding") == []


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("app", APPS.values(), ids=list(APPS))
@pytest.mark.parametrize("make", WAYS.values(), ids=list(WAYS))
async def test_no_byte_of_a_body_goes_out_where_the_status_allows_none(
    make: Layer, app: ASGIApp, status: int, layers: Wrap
) -> None:
    """Whatever way a layer has to such a status, the next answer on the connection is intact."""
    first, second = await served(layers(app, make(status)), get("/"), get("/other"))

    check_silent(first, status)
    assert (second.status, second.body) == (200, b"hello")


@pytest.mark.parametrize("spec", ["2.1", "2.4"])
@pytest.mark.parametrize("make", WAYS.values(), ids=list(WAYS))
async def test_no_byte_of_a_stream_goes_out_under_each_spec(make: Layer, spec: str) -> None:
    """A stream of Starlette's is sent from a child task before 2.4, and from its own since."""
    app = stack(APPS["stream"], make(204), fused=True)

    first, second = await served(app, get("/"), get("/other"), spec=spec)

    check_silent(first, 204)
    assert (second.status, second.body) == (200, b"hello")


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("make", WAYS.values(), ids=list(WAYS))
async def test_no_body_to_head_either(make: Layer, status: int, layers: Wrap) -> None:
    """The framing of the status holds for HEAD as well."""
    app = layers(APPS["whole"], make(status))

    first, second = await served(app, get("/", method="HEAD"), get("/other"))

    check_silent(first, status)
    assert (second.status, second.body) == (200, b"hello")


# In call_next style.


async def dispatch_sets(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.status_code = int(request.headers["x-status"])
    return response


async def dispatch_reads(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response: Any = await call_next(request)
    data = [chunk async for chunk in response.body_iterator]
    status = int(request.headers["x-status"])
    return Response(b"".join(data), status, dict(response.headers))


async def dispatch_streams(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response: Any = await call_next(request)
    status = int(request.headers["x-status"])
    return StreamingResponse(response.body_iterator, status, dict(response.headers))


async def dispatch_transforms(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response: Any = await call_next(request)
    response.body_iterator = doubled(response.body_iterator)
    response.status_code = int(request.headers["x-status"])
    return response


async def dispatch_answers(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return JSONResponse("another body", int(request.headers["x-status"]))


async def dispatch_answers_with_an_app(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    return script(start(int(request.headers["x-status"])), body(b"a body"))  # type: ignore[return-value]


DISPATCHES = [
    dispatch_sets,
    dispatch_reads,
    dispatch_streams,
    dispatch_transforms,
    dispatch_answers,
    dispatch_answers_with_an_app,
]


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("app", ["whole", "several", "chunked", "stream"])
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("beside", [None, "inside", "outside"])
async def test_no_byte_of_a_body_goes_out_of_the_drop_in(
    dispatch: DispatchFunction, app: str, status: int, beside: str | None
) -> None:
    """The same in `call_next` style, alone and beside another layer."""
    inner = APPS[app]
    if beside == "inside":
        inner = BaseHTTPMiddleware(inner, dispatch=dispatch_passes)
    layer: ASGIApp = BaseHTTPMiddleware(inner, dispatch=dispatch)
    if beside == "outside":
        layer = stack(layer, waiting, fused=True)

    asked = get("/", f"x-status: {status}")
    first, second = await served(layer, asked, asked)

    check_silent(first, status)
    check_silent(second, status)


async def dispatch_passes(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


# The other layers, and the app itself.


def setting(status: int) -> Callable[[Connection], Flow]:
    async def mw(conn: Connection) -> Flow:
        response = yield
        response.status_code = status

    return mw


@pytest.mark.parametrize("app", APPS.values(), ids=list(APPS))
@pytest.mark.parametrize("status", [204, 205, 304])
async def test_layer_further_out_has_no_body_either(app: ASGIApp, status: int, fused: bool) -> None:
    """Behind a layer that took the body away it is away, whatever status is set further out."""
    read: list[bytes] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        read.append(await response.read())
        response.status_code = 200

    (answer,) = await served(stack(app, outer, setting(status), fused=fused), get("/"))

    assert read == [b""]
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_layer_further_out_may_give_a_body_again(status: int, fused: bool) -> None:
    """What is silent is the body of the source, not one that somebody gives in its place."""

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.status_code = 200
        response.body = b"another body"
        yield response
        assert response.bytes_sent == 12

    app = stack(APPS["whole"], outer, setting(status), fused=fused)
    first, second = await served(app, get("/"), get("/"))

    assert (first.body, first.get("content-length")) == (b"another body", b"12")
    assert second.body == b"another body"


@pytest.mark.parametrize("app", APPS.values(), ids=list(APPS))
async def test_layer_further_in_counts_what_it_sent(app: ASGIApp, fused: bool) -> None:
    """A status set further out is none of its business."""
    counts: dict[str, int | str | None] = {}

    def counting(name: str) -> Callable[[Connection], Flow]:
        async def mw(conn: Connection) -> Flow:
            response = yield
            yield response
            counts[name] = response.bytes_sent
            counts[f"{name} ended"] = response.outcome

        return mw

    layers = [counting("outer"), setting(304), counting("inner")]
    await served(stack(app, *layers, fused=fused), get("/"))

    assert counts == {
        "outer": 0,
        "outer ended": "completed",
        "inner": 5,
        "inner ended": "completed",
    }


@pytest.mark.unchecked("the app breaks the rule that is tested")
@pytest.mark.parametrize("status", [204, 205, 304])
async def test_body_of_an_app_under_such_a_status_of_its_own(status: int, layers: Wrap) -> None:
    """An app that has mistaken itself does not have its body read as the next answer."""
    headers = [] if status == 304 else [LENGTH]
    app = script(start(status, headers), body(b"hel", more=True), body(b"lo"))

    for answer in await served(layers(app, setting(status)), get("/"), get("/")):
        check_silent(answer, status)


@pytest.mark.unchecked("a length of 0 with a 204 is one too many, and harms nobody")
@pytest.mark.parametrize("length", [b"0", b"5", None])
@pytest.mark.parametrize("status", [204, 205, 304])
async def test_head_of_an_app_that_nobody_touched_is_its_own(
    status: int, length: bytes | None, layers: Wrap
) -> None:
    """A 304 may say the length of its 200; a length of nothing is the app's to say."""
    if length == b"5" and status != 304:
        pytest.skip("no app may send this")
    headers = [] if length is None else [(b"content-length", length)]
    app = script(start(status, headers), body())

    async def mw(conn: Connection) -> Flow:
        yield

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await layers(app, mw)(Server().scope, Server().receive, send)

    assert sent == [start(status, headers), body()]


async def test_files_and_trailers_under_such_a_status(layers: Wrap, body_file: Path) -> None:
    """A file that the server would send is not sent; trailers are the server's business."""
    trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
    app = script(
        start(trailers=True),
        body(b"a", more=True),
        {"type": "http.response.pathsend", "path": str(body_file)},
        trailers,
    )
    extensions: dict[str, Any] = {f"http.response.{name}": {} for name in ("pathsend", "trailers")}

    server = await request(layers(app, set_it(204)), extensions=extensions)

    assert server.sent == [start(204, trailers=True), body(more=True), body(), trailers]


# No final response.


@pytest.mark.parametrize("status", [101, 199])
@pytest.mark.parametrize("make", WAYS.values(), ids=list(WAYS))
async def test_status_of_no_final_response_is_refused(
    make: Layer, status: int, layers: Wrap
) -> None:
    """A layer that sets a status below 200 is told so, and nothing goes out."""
    server = await request(layers(APPS["several"], make(status)), keep_error=True)

    assert server.sent == []
    assert isinstance(server.error, MiddlewareError)
    explained(server.error, make, "RFC 9110 section 15.2", "Give a status of 200 or more")


# One framing, and the right length.


async def early_with_a_wrong_length(conn: Connection) -> Flow:
    yield PlainTextResponse("another body", headers={"content-length": "5"})


async def early_with_two_framings(conn: Connection) -> Flow:
    yield PlainTextResponse("another body", headers={"transfer-encoding": "chunked"})


async def early_with_a_body_set_later(conn: Connection) -> Flow:
    response = PlainTextResponse("hello")
    response.body = b"another body"
    yield response


async def early_with_two_lengths(conn: Connection) -> Flow:
    response = PlainTextResponse("another body")
    response.headers.append("content-length", "5")
    yield response


async def late_with_the_old_headers(conn: Connection) -> Flow:
    response = yield
    yield PlainTextResponse("another body", headers=dict(response.headers))


async def raised_with_a_wrong_length(conn: Connection) -> Flow:
    raise HTTPException(400, "another body", {"content-length": "5"})
    yield


async def raised_late_with_the_old_headers(conn: Connection) -> Flow:
    response = yield
    raise HTTPException(400, "another body", dict(response.headers))


async def set_body(conn: Connection) -> Flow:
    response = yield
    response.body = b"another body"


async def set_body_and_wait(conn: Connection) -> Flow:
    response = yield
    response.body = b"another body"
    yield response


async def set_length(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = replaced(response.body_iterator)
    response.headers["Content-Length"] = "12"


async def set_length_by_default(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = replaced(response.body_iterator)
    response.headers.setdefault("content-length", "12")


async def set_length_with_others(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = replaced(response.body_iterator)
    response.headers.update({"x-a": "b", "content-length": "12"})


async def appended_length(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = replaced(response.body_iterator)
    response.headers.append("content-length", "12")


async def streamed_with_a_length(conn: Connection) -> Flow:
    response = yield
    headers = {**response.headers, "content-length": "12"}
    yield StreamingResponse(replaced(response.body_iterator), 200, headers)


async def streamed_anew_with_a_length(conn: Connection) -> Flow:
    response = yield
    headers = {**response.headers, "content-length": "12"}
    yield StreamingResponse(Chunks(b"another ", b"body"), 200, headers)


async def replaced(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for _ in chunks:
        pass
    yield b"another body"


@pytest.mark.parametrize("app", APPS.values(), ids=list(APPS))
@pytest.mark.parametrize(
    "function",
    [
        early_with_a_wrong_length,
        early_with_two_framings,
        early_with_a_body_set_later,
        early_with_two_lengths,
        late_with_the_old_headers,
        raised_with_a_wrong_length,
        raised_late_with_the_old_headers,
        set_body,
        set_body_and_wait,
        set_length,
        set_length_by_default,
        set_length_with_others,
        appended_length,
        streamed_with_a_length,
        streamed_anew_with_a_length,
    ],
)
async def test_whoever_gives_a_body_or_its_length_gives_one_framing(
    function: Callable[[Connection], Flow], app: ASGIApp, layers: Wrap
) -> None:
    """The length is that of the body, and no `transfer-encoding` contradicts it."""
    first, second = await served(layers(app, function), get("/"), get("/"))

    assert first.body == second.body == b"another body"
    assert first.get("content-length") == b"12"
    assert first.all("transfer-encoding") == []


@pytest.mark.parametrize("app", APPS.values(), ids=list(APPS))
@pytest.mark.parametrize("beside", [False, True])
async def test_drop_in_gives_one_framing(app: ASGIApp, beside: bool) -> None:
    """A response made of the old headers in `call_next` style is framed anew, too."""

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        return JSONResponse("another body", headers=dict(response.headers))

    layer: ASGIApp = BaseHTTPMiddleware(app, dispatch=dispatch)
    if beside:
        layer = stack(layer, waiting, fused=True)

    first, second = await served(layer, get("/"), get("/"))

    assert first.body == second.body == b'"another body"'
    assert first.get("content-length") == b"14"


async def test_length_of_an_answer_to_head_is_that_of_get(layers: Wrap) -> None:
    """A layer that answers HEAD without a body may say which one GET would give."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        yield Response(headers=dict(response.headers))

    app = layers(APPS["whole"], mw)
    first, second = await served(app, get("/", method="HEAD"), get("/"))

    assert first.get("content-length") == b"5"
    assert (second.get("content-length"), second.body) == (b"0", b"")


async def test_response_that_is_framed_anew_stays_as_it_is(layers: Wrap) -> None:
    """A response object may be sent many times; what is corrected is what goes out."""
    shared = JSONResponse("another body", 204, {"content-length": "5"})
    headers = list(shared.raw_headers)

    async def mw(conn: Connection) -> Flow:
        yield shared

    for answer in await served(layers(APPS["whole"], mw), get("/"), get("/")):
        check_silent(answer, 204)
    assert (shared.raw_headers, shared.body) == (headers, b'"another body"')


def another_status(response: AppResponse) -> None:
    response.status_code = 404


async def read_and_another_status(response: AppResponse) -> None:
    await response.read()
    response.status_code = 404


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("edit", [another_status, read_and_another_status])
async def test_length_of_a_304_is_not_that_of_what_it_becomes(
    layers: Wrap, edit: Callable[[AppResponse], Any], waits: bool
) -> None:
    """A 304 says the length of the 200 that it stands for (RFC 9110 section 8.6)."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        done = edit(response)
        if done is not None:
            await done
        if waits:
            yield response

    app = script(start(304, [LENGTH]), body())

    for answer in await served(layers(app, mw), get("/"), get("/")):
        assert (answer.status, answer.body) == (404, b"")


async def test_length_of_a_304_goes_for_the_layer_further_out_too(fused: bool) -> None:
    """What it sees is the response that goes on, with layers fused and nested."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append((response.status_code, response.headers.get("content-length")))

    async def inner(conn: Connection) -> Flow:
        response = yield
        response.status_code = 404

    await served(stack(script(start(304, [LENGTH]), body()), outer, inner, fused=fused), get("/"))

    assert seen == [(404, None)]


async def test_length_of_a_304_stays_where_nothing_is_changed(layers: Wrap) -> None:
    """What no layer touches goes out as the app sent it."""
    app = layers(script(start(304, [LENGTH]), body()), waiting)

    for answer in await served(app, get("/"), get("/")):
        assert (answer.status, answer.get("content-length")) == (304, b"5")


@pytest.mark.parametrize("status", [204, 304])
async def test_body_of_nothing_has_no_length_where_the_status_allows_none(
    layers: Wrap, status: int
) -> None:
    """An empty body set on an app's own 204 or 304 is no more to be declared than another one."""

    async def mw(conn: Connection) -> Flow:
        response = yield
        response.body = b""

    for answer in await served(layers(script(start(status), body()), mw), get("/"), get("/")):
        check_silent(answer, status)
