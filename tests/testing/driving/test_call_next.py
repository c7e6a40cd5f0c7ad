"""`as_call_next` runs a middleware function as the `dispatch(request, call_next)` it once was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message

from httpmw import BodyTooLarge, Connection, Flow, HTTPMiddleware, MiddlewareError
from httpmw.testing import as_call_next
from tests.harness import Chunks, plain_inner

NOTES: list[Any] = []


@pytest.fixture(autouse=True)
def no_notes() -> None:
    NOTES.clear()


async def headers(conn: Connection) -> Flow:
    conn.state.user = "me"
    response = yield
    response.headers["X-Server"] = "mine"


async def gate(conn: Connection) -> Flow:
    if conn.url.path.startswith("/private"):
        task = BackgroundTask(NOTES.append, "background")
        yield JSONResponse({"detail": "no"}, 403, background=task)
        return
    yield


async def upper(conn: Connection) -> Flow:
    response = yield
    response.body = (await response.read()).upper()


async def streaming(conn: Connection) -> Flow:
    async def doubled(chunks: Any) -> Any:
        async for chunk in chunks:
            yield chunk * 2

    response = yield
    yield StreamingResponse(doubled(response.body_iterator), 201)


class Named(HTTPMiddleware):
    def __init__(self, app: ASGIApp, name: str = "class") -> None:
        super().__init__(app)
        self.name = name

    async def dispatch(self, conn: Connection) -> Flow:
        response = yield
        response.headers["X-Server"] = self.name


def request_to(path: str = "/", body: bytes = b"", **keys: Any) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], **keys}
    return Request(scope, receive)


async def chunks_of(response: Any) -> list[bytes]:
    return [chunk async for chunk in response.body_iterator]


async def test_response_that_passes() -> None:
    """What comes back is the very response that `call_next` gave, with the edits."""
    given = Response("data", 201, {"x-given": "yes"})
    call_next = AsyncMock(return_value=given)
    request = request_to()

    response = await as_call_next(headers)(request, call_next)

    assert response is given
    assert (response.headers["x-server"], response.headers["x-given"]) == ("mine", "yes")
    assert response.body == b"data"
    assert request.state.user == "me"
    call_next.assert_awaited_once_with(request)


async def test_early_answer() -> None:
    """A response of the function's own comes back as the object it is, and was not run."""
    call_next = AsyncMock()

    response = await as_call_next(gate)(request_to("/private"), call_next)

    assert isinstance(response, JSONResponse)
    assert response.status_code == 403
    call_next.assert_not_awaited()
    assert NOTES == []


async def test_replacement() -> None:
    """So does one that is given in place of the response of `call_next`."""
    answer = PlainTextResponse("instead")

    async def replaces(conn: Connection) -> Flow:
        yield
        yield answer

    assert await as_call_next(replaces)(request_to(), AsyncMock(return_value=Response())) is answer


async def test_status_and_cookies() -> None:
    """Every edit arrives: the status, cookies, headers that are taken away, a background task."""
    task = BackgroundTask(NOTES.append, "background")

    async def edits(conn: Connection) -> Flow:
        response = yield
        response.status_code = 202
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        del response.headers["x-given"]
        response.background = task

    given = Response("data", headers={"x-given": "yes"})
    response = await as_call_next(edits)(request_to(), AsyncMock(return_value=given))

    assert response.status_code == 202
    assert len(response.headers.getlist("set-cookie")) == 2
    assert "x-given" not in response.headers
    assert response.background is task
    assert NOTES == []


async def test_body_that_was_read_and_replaced() -> None:
    """A new body is in the response that comes back, with its length."""
    response = await as_call_next(upper)(request_to(), AsyncMock(return_value=Response("data+")))

    assert response.body == b"DATA+"
    assert response.headers["content-length"] == "5"


async def test_body_at_hand() -> None:
    """The body of a plain response can be had without reading, as the test has it."""

    async def length(conn: Connection) -> Flow:
        response = yield
        response.headers["x-length"] = str(len(response.body))

    response = await as_call_next(length)(request_to(), AsyncMock(return_value=Response("data")))

    assert response.headers["x-length"] == "4"


async def test_stream_that_passes() -> None:
    """A stream that nobody asked for is not touched."""
    stream = Chunks(b"a", b"b")
    given = StreamingResponse(stream)

    response = await as_call_next(headers)(request_to(), AsyncMock(return_value=given))

    assert response is given
    assert response.body_iterator is stream
    assert await chunks_of(response) == [b"a", b"b"]


async def test_stream_that_is_read() -> None:
    """A stream that was read can be read again by the test."""

    async def reads(conn: Connection) -> Flow:
        response = yield
        NOTES.append(await response.read())

    given = StreamingResponse(Chunks(b"a", b"b"))
    response = await as_call_next(reads)(request_to(), AsyncMock(return_value=given))

    assert response is given
    assert NOTES == [b"ab"]
    assert await chunks_of(response) == [b"a", b"b"]


async def test_stream_that_is_transformed() -> None:
    """A transform of the body is in what comes back, as an assignment and as a new response."""

    async def assigns(conn: Connection) -> Flow:
        async def upper(chunks: Any) -> Any:
            async for chunk in chunks:
                yield chunk.upper()

        response = yield
        response.body_iterator = upper(response.body_iterator)

    async def call_next(request: Any) -> Response:
        return StreamingResponse(Chunks(b"a", b"b"))

    response = await as_call_next(assigns)(request_to(), call_next)
    assert await chunks_of(response) == [b"A", b"B"]

    response = await as_call_next(streaming)(request_to(), call_next)
    assert response.status_code == 201
    assert await chunks_of(response) == [b"aa", b"bb"]


@pytest.mark.parametrize("cached", [False, True])
async def test_request_body(cached: bool) -> None:
    """The body of the request can be read, also where the test has read it before."""

    async def reads(conn: Connection) -> Flow:
        NOTES.append(await conn.body())
        yield

    request = request_to(body=b"data")
    if cached:
        await request.body()
    await as_call_next(reads)(request, AsyncMock(return_value=Response()))

    assert NOTES == [b"data"]


async def test_request_with_a_mocked_method() -> None:
    """What a test has put onto a real request is what the function gets."""

    async def reads(conn: Connection) -> Flow:
        NOTES.append(await conn.body())
        yield

    request = request_to()
    request.body = AsyncMock(return_value=b"mocked")  # type: ignore[method-assign]
    await as_call_next(reads)(request, AsyncMock(return_value=Response()))

    assert NOTES == [b"mocked"]


@pytest.mark.parametrize("spec", [None, Request])
async def test_mock_of_a_request(spec: type | None) -> None:
    """A mock of a request is what the function gets, attributes and all."""
    request = MagicMock(spec=spec)
    request.method = "POST"
    request.url.path = "/private/x"
    call_next = AsyncMock(return_value=Response())

    assert (await as_call_next(gate)(request, call_next)).status_code == 403

    request.url.path = "/"
    request.state = SimpleNamespace()
    await as_call_next(headers)(request, call_next)
    assert request.state.user == "me"
    call_next.assert_awaited_once_with(request)


async def test_mock_of_a_response() -> None:
    """A mock of a response is what the function gets, and what comes back."""
    given = MagicMock()
    given.headers = {}

    response = await as_call_next(headers)(request_to(), AsyncMock(return_value=given))

    assert response is given
    assert given.headers == {"X-Server": "mine"}


async def test_mock_that_is_sent() -> None:
    """A function may yield the mock that it received, or one of its own."""
    given, other = MagicMock(), MagicMock(spec=Response)

    async def yields(conn: Connection) -> Flow:
        response = yield
        NOTES.append(response)
        yield response if conn.url.path == "/" else other

    dispatch = as_call_next(yields)

    assert await dispatch(request_to(), AsyncMock(return_value=given)) is given
    assert await dispatch(request_to("/other"), AsyncMock(return_value=given)) is other
    assert NOTES == [given, given]


async def test_exception_of_call_next() -> None:
    """What `call_next` raises is raised at the yield, and comes out if it is not handled."""

    async def answers(conn: Connection) -> Flow:
        try:
            yield
        except LookupError:
            yield PlainTextResponse("none", 404)

    error = ZeroDivisionError()
    dispatch = as_call_next(answers)

    assert (await dispatch(request_to(), AsyncMock(side_effect=LookupError))).status_code == 404
    with pytest.raises(ZeroDivisionError) as raised:
        await dispatch(request_to(), AsyncMock(side_effect=error))
    assert raised.value is error


async def test_http_exception() -> None:
    """An `HTTPException` is raised, as `dispatch` would, and becomes no response."""

    async def refuses(conn: Connection) -> Flow:
        if conn.url.path == "/":
            raise HTTPException(401)
        await conn.body(max_size=1)
        yield

    dispatch = as_call_next(refuses)

    with pytest.raises(HTTPException) as raised:
        await dispatch(request_to(), AsyncMock())
    assert raised.value.status_code == 401
    with pytest.raises(BodyTooLarge):
        await dispatch(request_to("/x", b"data"), AsyncMock())
    with pytest.raises(HTTPException):
        await as_call_next(headers)(request_to(), AsyncMock(side_effect=HTTPException(418)))


async def test_exception_that_is_handled_outside() -> None:
    """A function that runs another one inside may handle what that raises."""

    async def inner(conn: Connection) -> Flow:
        raise LookupError
        yield

    async def outer(conn: Connection) -> Flow:
        try:
            yield inner(conn)
        except LookupError:
            yield PlainTextResponse("none", 404)

    assert (await as_call_next(outer)(request_to(), AsyncMock())).status_code == 404


async def test_error_in_the_clean_up() -> None:
    """What is raised after the response was given is raised."""

    async def broken(conn: Connection) -> Flow:
        yield
        yield PlainTextResponse("instead")
        raise LookupError

    with pytest.raises(LookupError):
        await as_call_next(broken)(request_to(), AsyncMock(return_value=Response()))


async def test_misuse() -> None:
    """A breach of the contract is the same error as under a server."""

    async def silent(conn: Connection) -> Flow:
        if conn.url.path == "/none":
            yield

    async def wrong(conn: Connection) -> Flow:
        yield "text"

    with pytest.raises(MiddlewareError, match="ended without a yield"):
        await as_call_next(silent)(request_to(), AsyncMock())
    with pytest.raises(MiddlewareError, match="yielded 'text'"):
        await as_call_next(wrong)(request_to(), AsyncMock())


async def test_second_phase() -> None:
    """A function that waits for the end learns that all was sent."""

    async def log(conn: Connection) -> Flow:
        response = yield
        yield response
        NOTES.append((response.outcome, response.bytes_sent))

    await as_call_next(log)(request_to(), AsyncMock(return_value=Response("data")))

    assert NOTES == [("completed", 4)]


@pytest.mark.parametrize(
    ("mw", "name"),
    [
        (headers, "mine"),
        (Named, "class"),
        (Named(plain_inner(), "instance"), "instance"),
        (Named(HTTPMiddleware(plain_inner(), dispatch=gate), "fused"), "fused"),
        (Middleware(Named, name="options"), "options"),
        (HTTPMiddleware(plain_inner(), dispatch=headers), "mine"),
        (HTTPMiddleware(plain_inner(), dispatch=headers, when=lambda conn: False), None),
        (lambda conn: None, None),
    ],
)
async def test_forms_of_middleware(mw: Any, name: str | None) -> None:
    """A middleware function is taken out of whatever it is in."""
    response = await as_call_next(mw)(request_to(), AsyncMock(return_value=Response()))

    assert response.headers.get("x-server") == name


async def test_state_of_a_class() -> None:
    """A class is made once, so that what it keeps on itself stays from call to call."""

    class Counting(HTTPMiddleware):
        calls = 0

        async def dispatch(self, conn: Connection) -> Flow:
            self.calls += 1
            NOTES.append(self.calls)
            yield

    dispatch = as_call_next(Counting)
    for _ in range(2):
        await dispatch(request_to(), AsyncMock(return_value=Response()))

    assert NOTES == [1, 2]


def test_no_middleware_function() -> None:
    """What has no middleware function is refused at once."""

    async def old(request: Request, call_next: Any) -> Response:
        return Response()

    with pytest.raises(TypeError, match="Test another ASGI middleware with `await run"):
        as_call_next(GZipMiddleware)
    with pytest.raises(TypeError, match="`call_next` style"):
        as_call_next(old)  # type: ignore[arg-type]


async def test_stepping_aside_with_an_error() -> None:
    """Where the function steps aside an error of `call_next` is still raised."""
    with pytest.raises(LookupError):
        await as_call_next(lambda conn: None)(request_to(), AsyncMock(side_effect=LookupError))
