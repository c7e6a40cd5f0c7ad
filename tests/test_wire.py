"""The plain client takes what HTTP allows, and no more; the plain server corrects nothing."""

from __future__ import annotations

import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.harness import body, script, start
from tests.wire import Answer, Closed, PlainServer, WireError, get, parse, post

pytestmark = pytest.mark.anyio

GET, HEAD = get("/"), get("/", method="HEAD")
OLD = get("/", version="1.0")
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "data", "expected"),
    [
        (GET, OK + b"content-length: 3\r\n\r\nabc", b"abc"),
        (GET, OK + b"Content-Length: 0\r\n\r\n", b""),
        (GET, OK + CHUNKED + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789"),
        (GET, OK + b"\r\nuntil the end", b"until the end"),
        (HEAD, OK + b"content-length: 3\r\n\r\n", b""),
        (HEAD, OK + b"transfer-encoding: chunked\r\n\r\n", b""),
        (GET, b"HTTP/1.1 204 \r\n\r\n", b""),
        (GET, b"HTTP/1.1 304 -\r\ncontent-length: 3\r\n\r\n", b""),
        (GET, b"HTTP/1.1 205 -\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b""),
        (GET, b"HTTP/1.1 103 -\r\nlink: </a>\r\n\r\n" + OK + b"content-length: 1\r\n\r\na", b"a"),
    ],
)  # fmt: skip
def test_an_answer_is_taken_apart(request_: bytes, data: bytes, expected: bytes) -> None:
    """Each framing of RFC 9112 section 6.3 is read to its end, and not farther."""
    (answer,) = parse(data, request_)

    assert answer.body == expected
    assert data.endswith(answer.head + answer.raw)


@pytest.mark.parametrize(
    ("request_", "data", "words"),
    [
        (GET, OK + b"content-length: 3\r\n\r\nabcd", "belong to no answer: b'd'"),
        (HEAD, OK + b"content-length: 3\r\n\r\nabc", "belong to no answer"),
        (GET, b"HTTP/1.1 204 -\r\n\r\nabc", "belong to no answer"),
        (GET, b"HTTP/1.1 304 -\r\n\r\nabc", "belong to no answer"),
        (GET, b"HTTP/1.1 205 -\r\ncontent-length: 3\r\n\r\nabc", "with a 205"),
        (GET, b"HTTP/1.1 205 -\r\n\r\nabc", "with a 205"),
        (GET, b"HTTP/1.1 204 -\r\ncontent-length: 0\r\n\r\n", "content-length with a 204"),
        (GET, b"HTTP/1.1 204 -\r\ntransfer-encoding: chunked\r\n\r\n", "transfer-encoding with"),
        (GET, b"HTTP/1.1 103 -\r\ncontent-length: 0\r\n\r\n", "content-length with a 103"),
        (OLD, OK + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", "to HTTP/1.0"),
        (GET, OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", "both"),
        (GET, OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc", "content-length: "),
        (GET, OK + b"content-length: -1\r\n\r\n", "content-length: "),
        (GET, OK + b"transfer-encoding: chunked\r\n\r\nx\r\n", "no chunk size"),
        (GET, OK + b"transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n", "longer than its size"),
        (GET, OK + b"a : b\r\n\r\n", "no field line"),
        (GET, OK + b" folded: b\r\n\r\n", "no field line"),
        (GET, b"HTTP/1.1 200 OK\n\n", "a bare CR or LF"),
        (GET, b"abc" + OK + b"content-length: 0\r\n\r\n", "not the beginning of an answer"),
    ],
)
def test_what_http_forbids_is_refused(request_: bytes, data: bytes, words: str) -> None:
    """Bytes too many, two framings, or one that the status does not have, are errors."""
    with pytest.raises(WireError, match=words):
        parse(data, request_)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        OK,
        OK + b"content-length: 3\r\n\r\nab",
        OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 103 -\r\n\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_refused(data: bytes) -> None:
    """A connection that ends within an answer is told from an answer that is over."""
    with pytest.raises(Closed):
        parse(data, GET)


@pytest.mark.parametrize(
    ("request_", "head", "persistent"),
    [
        (GET, b"", True),
        (GET, b"connection: close\r\n", False),
        (get("/", "connection: close"), b"", False),
        (OLD, b"", False),
        (get("/", "connection: keep-alive", version="1.0"), b"connection: keep-alive\r\n", True),
    ],
)
def test_whether_another_request_may_follow(request_: bytes, head: bytes, persistent: bool) -> None:
    """A connection persists as RFC 9112 section 9.3 says."""
    (answer,) = parse(OK + head + b"content-length: 0\r\n\r\n", request_)

    assert answer.persistent is persistent


async def served(app, *requests: bytes) -> list[Answer]:
    return parse(await PlainServer(app).answer(b"".join(requests)), *requests)


async def test_the_server_frames_what_the_app_leaves_open() -> None:
    """Chunks for HTTP/1.1, the end of the connection for 1.0, nothing for HEAD."""
    app = script(start(), body(b"first ", more=True), body(b"second"))

    first, head, old = await served(app, GET, HEAD, OLD)

    assert (first.body, first.get("transfer-encoding")) == (b"first second", b"chunked")
    assert (head.raw, head.get("transfer-encoding")) == (b"", b"chunked")
    assert (old.body, old.get("connection"), old.persistent) == (b"first second", b"close", False)


@pytest.mark.parametrize("status", [204, 304])
async def test_the_server_sends_a_body_that_it_is_given(status: int) -> None:
    """What an app sends behind a status that allows no body is read as the next answer."""
    with pytest.raises(WireError, match="not the beginning of an answer: b'abcHTTP"):
        await served(script(start(status), body(b"abc")), GET, GET)


async def test_the_server_decides_by_the_method_in_its_own_scope() -> None:
    """An app that changes the server's scope has the body of a HEAD sent."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["method"] = "GET"
        await script(start(200, [(b"content-length", b"3")]), body(b"abc"))(scope, receive, send)

    with pytest.raises(WireError, match="belong to no answer: b'abc'"):
        await served(app, HEAD)


async def test_the_app_gets_the_body_of_its_own_request() -> None:
    """Requests that follow each other at once do not run into each other."""
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())
        await script(start(200, [(b"content-length", b"0")]), body())(scope, receive, send)

    chunked = get("/", "transfer-encoding: chunked", method="POST") + b"2\r\ncd\r\n0\r\n\r\n"
    answers = await served(app, post("/", b"ab"), chunked, GET)

    assert [message["body"] for message in got] == [b"ab", b"cd", b""]
    assert len(answers) == 3


async def test_an_app_that_breaks_off_ends_the_connection() -> None:
    """A body that is not ended is not ended by the server, and no request is answered after it."""
    server = PlainServer(script(start(), body(b"abc", more=True)))

    data = await server.answer(GET + GET)

    assert data.count(b"HTTP/1.1 200") == 1
    with pytest.raises(Closed):
        parse(data, GET)


async def test_an_app_that_fails_before_its_start_is_a_500() -> None:
    """The exception is kept for the test."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("oh")

    server = PlainServer(app)
    (answer,) = parse(await server.answer(GET), GET)

    assert answer.status == 500
    assert [str(error) for error in server.errors] == ["oh"]
