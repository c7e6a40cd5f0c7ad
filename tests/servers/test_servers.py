"""What must come of a request on a real server, over a real connection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import starlette._utils

from tests import wire
from tests.servers.apps import CHUNKS, FILE, FILE_SIZE, PLAIN, digest
from tests.servers.conftest import Server, eventually
from tests.wire import get, post

STREAM = b"".join(CHUNKS)
UPLOAD = bytes(range(256)) * 4096  # one MiB

clean_tracebacks = pytest.mark.skipif(
    not hasattr(starlette._utils, "create_collapsing_task_group"),
    reason="such an old Starlette logs an exception group of its own with the exception",
)


@dataclass
class Ask:
    """One request to the server, and what the server's ledger says about it."""

    client: httpx2.Client
    server: Server
    prefix: str

    def __post_init__(self) -> None:
        self.id = self.server.new_id()

    def request(self, path: str, *do: str, method: str = "GET", **options: Any) -> httpx2.Response:
        with self.stream(path, *do, method=method, **options) as response:
            response.read()
        return response

    def stream(self, path: str, *do: str, method: str = "GET", **options: Any) -> Any:
        params = {"id": self.id, "do": do}
        return self.client.stream(method, f"{self.prefix}{path}", params=params, **options)

    def ledger(self) -> dict[str, Any]:
        """Wait until nothing of the request is left inside, and return what was noted."""
        notes = self.server.ledger(self.id)
        # The audit is the last of the stack to leave.
        assert notes.pop("inside at the end", ["stack"]) == ["stack"]
        return notes


@pytest.fixture(params=["/fused", "/nested"])
def ask(request: pytest.FixtureRequest, server: Server, client: httpx2.Client) -> Ask:
    """A request to ask, of layers that are fused and of layers that are not."""
    return Ask(client, server, request.param)


def test_plain_response(ask: Ask) -> None:
    """A plain response arrives as edited, and its background task runs."""
    response = ask.request("/plain")

    assert (response.status_code, response.content) == (200, PLAIN)
    assert response.headers["x-stamp"] == ask.id
    assert response.headers["x-signature"] == "httpmw"
    notes = ask.ledger()
    assert notes["outcome"] == "completed"
    assert notes["bytes_sent"] == len(PLAIN)
    assert notes["background"] == "ran"


def test_streamed_response(ask: Ask) -> None:
    """A stream arrives as edited and whole."""
    response = ask.request("/stream")

    assert (response.status_code, response.content) == (200, STREAM)
    assert response.headers["x-stamp"] == ask.id
    notes = ask.ledger()
    assert notes["outcome"] == "completed"
    assert notes["bytes_sent"] == len(STREAM)


@pytest.mark.parametrize("pipelined", [False, True])
def test_head_answered_by_get_routes(server: Server, pipelined: bool) -> None:
    """A HEAD has no body, so that the next response on the connection is read as it is."""
    requests = [
        get(f"/head{path}", method=method)
        for path in ("/plain", "/stream", "/file")
        for method in ("HEAD", "GET", "HEAD", "GET")
    ]
    if pipelined and server.kind.module == "hypercorn":
        pytest.skip("hypercorn does not answer pipelined requests in order")

    answers = wire.ask(server.address, *requests, pipelined=pipelined)

    assert len(answers) == len(requests)
    assert {answer.status for answer in answers} == {200}
    bodies = [PLAIN, STREAM, FILE.read_bytes()]
    assert [answer.body for answer in answers] == [
        body for each in bodies for body in (b"", each, b"", each)
    ]
    for head, got in zip(answers[::2], answers[1::2], strict=True):
        assert head.get("content-length") == got.get("content-length")


def test_upload_that_breaks_off_is_no_error(ask: Ask) -> None:
    """A layer reads a body whose client leaves: nothing is logged, and the app is not run."""
    path = f"{ask.prefix}/digest?id={ask.id}&do=read_request"
    with ask.server.connect() as raw:
        raw.sendall(post(path, b"x" * 1000)[:-500])
    eventually(lambda: "raised" in ask.server.notes(ask.id))
    notes = ask.ledger()

    assert notes["raised"] == "ClientDisconnect()"
    assert "sent by app" not in notes
    assert ask.server.tracebacks() == len(ask.server.intended)


def test_transformed_stream(ask: Ask) -> None:
    """A stream that a middleware transforms arrives transformed."""
    response = ask.request("/stream", "transform_response")

    assert (response.status_code, response.content) == (200, STREAM.swapcase())
    assert ask.ledger()["outcome"] == "completed"


@pytest.mark.parametrize("do", ["", "&do=begin_afresh"], ids=["as it is", "set first"])
def test_context_variables_of_the_request_before(ask: Ask, do: str) -> None:
    """On uvicorn a pipelined request sees them, unless a layer sets them first."""
    head = "GET {}/variable?id={}{} HTTP/1.1\r\nhost: testserver\r\n\r\n"
    ids = [ask.id, ask.server.new_id()]
    answer = b""
    with ask.server.connect() as connection:
        heads = [head.format(ask.prefix, each, do) for each in ids]
        connection.sendall("".join(heads).encode())
        while answer.count(b"!") < len(ids):
            answer += connection.recv(4096)

    leaks = ask.server.kind.module == "uvicorn" and not do
    assert re.findall(rb"sees (\w+)!", answer) == [
        b"nothing",
        b"something" if leaks else b"nothing",
    ]


@pytest.fixture(params=["/file", "/path"])
def file(request: pytest.FixtureRequest, server: Server) -> str:
    """A file response of Starlette, and one that uses `pathsend` where the server has it."""
    if request.param == "/path" and not server.kind.has_pathsend:
        pytest.skip("the server has no pathsend")
    return request.param


def test_file(ask: Ask, file: str) -> None:
    """A file arrives as edited and whole, and passes in the way that the app sent it."""
    response = ask.request(file)

    assert (response.status_code, response.content) == (200, FILE.read_bytes())
    assert response.headers["x-stamp"] == ask.id
    notes = ask.ledger()
    assert notes["sent by stack"] == notes["sent by app"]
    assert file == "/file" or notes["sent by app"] == ["start", "pathsend"]
    assert notes["outcome"] == "completed"
    assert notes["bytes_sent"] == FILE_SIZE


def test_file_that_is_read(ask: Ask, file: str) -> None:
    """A middleware that reads a file response gets its bytes, and so does the client."""
    response = ask.request(file, "read_response")

    assert (response.status_code, response.content) == (200, FILE.read_bytes())
    notes = ask.ledger()
    assert notes["response read"] == digest(FILE.read_bytes())
    assert notes["outcome"] == "completed"


def test_file_that_is_transformed(ask: Ask, file: str) -> None:
    """A file response that a middleware transforms arrives transformed, and whole."""
    response = ask.request(file, "transform_response")

    assert (response.status_code, response.content) == (200, FILE.read_bytes().swapcase())
    assert ask.ledger()["outcome"] == "completed"


def test_head_of_a_file(ask: Ask) -> None:
    """The answer to HEAD has the headers of the file, and no body."""
    response = ask.request("/file", method="HEAD")

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(FILE_SIZE)
    assert response.headers["x-stamp"] == ask.id
    assert ask.ledger()["outcome"] == "completed"


@pytest.mark.parametrize("path", ["/events", "/idle", "/sse"])
def test_client_leaves_an_endless_stream(ask: Ask, path: str) -> None:
    """When the client leaves, the app ends and the middleware learns of it."""
    with ask.stream(path) as response:
        first = next(response.iter_raw())

    assert first.startswith(b"data: tick")
    assert response.headers["x-stamp"] == ask.id
    assert ask.ledger()["outcome"] == "disconnected"


def test_client_leaves_a_transformed_stream(ask: Ask) -> None:
    """When the client leaves a stream that is transformed, the app ends all the same."""
    with ask.stream("/events", "transform_response") as response:
        first = next(response.iter_raw())

    assert first.startswith(b"DATA: TICK")
    assert ask.ledger()["outcome"] == "disconnected"


@pytest.mark.parametrize("path", ["/stream", "/events"])
def test_client_leaves_while_a_middleware_works_on_the_response(ask: Ask, path: str) -> None:
    """The app hears that the client left when the middleware is done, which is not cut off."""
    with ask.server.connect() as connection:
        connection.sendall(f"GET {ask.prefix}{path}?id={ask.id}&do=hold HTTP/1.1\r\n".encode())
        connection.sendall(b"host: testserver\r\n\r\n")
        eventually(lambda: "held" in ask.server.notes(ask.id))
    eventually(lambda: "stack was told" in ask.server.notes(ask.id))
    ask.server.release(ask.id)

    notes = ask.ledger()
    assert notes["app was told while held"] is False
    assert notes["outcome"] == "disconnected"
    assert "raised" not in notes


@pytest.mark.parametrize(
    "path",
    ["/plain", "/stream", "/file", "/events", "/busy", "/idle", "/sse", "/wsgi/"],
)
def test_replaced_response(ask: Ask, path: str) -> None:
    """A replacement arrives whole, the app ends, and the connection serves the next request."""
    if path == "/wsgi/" and not ask.server.kind.runs_asyncio:
        pytest.skip("a2wsgi needs asyncio")
    response = ask.request(path, "replace")

    assert (response.status_code, response.content) == (503, b"replaced")
    assert response.headers["x-stamp"] == ask.id
    notes = ask.ledger()
    assert notes["replaced"] == "replaced"
    assert (notes["status"], notes["outcome"]) == (503, "completed")
    assert notes["bytes_sent"] == len(b"replaced")
    assert "raised" not in notes

    again = Ask(ask.client, ask.server, ask.prefix).request("/plain")
    assert (again.status_code, again.content) == (200, PLAIN)
    assert port(again) == port(response)


@pytest.mark.parametrize("path", ["/idle", "/events"])
@pytest.mark.parametrize("function", ["small_wait", "small_loop"])
def test_time_limit_around_a_body(ask: Ask, server: Server, path: str, function: str) -> None:
    """A body that does not come in time is answered by the function that waits for it."""
    if not server.kind.runs_asyncio:
        pytest.skip("asyncio.timeout() is asyncio's")
    response = ask.request(path, function)

    assert (response.status_code, response.text) == (504, "the body took too long")
    notes = ask.ledger()
    assert (notes["status"], notes["outcome"]) == (504, "completed")


def test_time_limit_of_a_thread(ask: Ask, server: Server) -> None:
    """On asyncio a `def` endpoint is answered while its thread still runs."""
    if not server.kind.runs_asyncio:
        pytest.skip("trio waits for threads")
    response = ask.request("/thread", "deadline")

    assert (response.status_code, response.text) == (504, "too slow")
    assert server.notes(ask.id)["thread"] == "began"
    server.release(ask.id)
    assert ask.ledger()["status"] == 504
    eventually(lambda: server.notes(ask.id)["thread"] == "ended")


def test_stream_that_falls_silent(ask: Ask, server: Server) -> None:
    """A stream that falls silent is cut off, and looks so."""
    with (
        ask.stream("/idle", "deadline") as response,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        response.read()

    assert ask.ledger()["outcome"] == "failed"
    server.expect(ask.id)


def test_upload_that_stops(ask: Ask, server: Server) -> None:
    """An upload that stops is answered with 408, and the connection closed."""
    query = f"?id={ask.id}&do=upload_limit"
    with server.connect() as connection:
        connection.sendall(
            f"POST {ask.prefix}/upload{query} HTTP/1.1\r\nhost: a\r\n"
            "content-length: 100\r\n\r\nhalf".encode()
        )
        answer = connection.makefile("rb").read()  # to the end of the connection

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert ask.ledger()["status"] == 408


def test_refused_upload_leaves_the_connection_as_it_is(ask: Ask, server: Server) -> None:
    """Who has sent all of an upload gets the refusal, and then the answer to its next request."""
    refused = post(f"{ask.prefix}/upload?id={ask.id}&do=refuse", UPLOAD + UPLOAD)

    first, second = wire.ask(server.address, refused, get("/head/plain", "connection: close"))

    assert (first.status, first.body, first.get("connection")) == (403, b"refused", None)
    assert (second.status, second.body) == (200, PLAIN)
    assert "sent by app" not in ask.ledger()


def test_refused_upload_that_is_too_large_ends_the_connection(ask: Ask, server: Server) -> None:
    """Nobody waits for the rest of an upload over the bound."""
    with server.connect() as connection:
        connection.sendall(
            f"POST {ask.prefix}/upload?id={ask.id}&do=refuse HTTP/1.1\r\nhost: a\r\n"
            "content-length: 2097153\r\n\r\n".encode()
        )
        answer = connection.makefile("rb").read()  # to the end of the connection

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    ask.ledger()


def test_app_that_does_not_listen_is_cancelled(ask: Ask, server: Server) -> None:
    """An app that waits for somebody else is cancelled when its client leaves."""
    with server.connect() as connection:
        target = f"{ask.prefix}/silent?id={ask.id}&do=cancelling"
        connection.sendall(f"GET {target} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        eventually(lambda: server.notes(ask.id).get("waits"))

    notes = ask.ledger()
    assert notes["cancelled"] in ("CancelledError", "Cancelled")
    assert notes["at the yield"] == "ClientDisconnect"


def test_early_answer(ask: Ask) -> None:
    """An early answer arrives, and the app is not run."""
    response = ask.request("/events", "answer")

    assert (response.status_code, response.content) == (403, b"answered early")
    notes = ask.ledger()
    assert "sent by app" not in notes
    assert notes["outcome"] == "completed"


def test_wsgi_app(ask: Ask) -> None:
    """The response of a mounted WSGI app arrives as edited and whole."""
    if not ask.server.kind.runs_asyncio:
        pytest.skip("a2wsgi needs asyncio")
    response = ask.request("/wsgi/")

    assert (response.status_code, response.content) == (200, STREAM * 3)
    assert response.headers["x-stamp"] == ask.id
    assert ask.ledger()["outcome"] == "completed"


def in_pieces() -> Iterator[bytes]:
    for start in range(0, len(UPLOAD), 10_000):
        yield UPLOAD[start : start + 10_000]


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_upload_is_read_by_a_middleware_and_again_by_the_app(ask: Ask, chunked: bool) -> None:
    """An upload that a middleware has read reaches the app in full."""
    content = in_pieces() if chunked else UPLOAD
    response = ask.request("/upload", "read_request", method="POST", content=content)

    assert response.json() == {
        "digest": digest(UPLOAD),
        "size": len(UPLOAD),
        "content-length": None if chunked else str(len(UPLOAD)),
    }
    notes = ask.ledger()
    assert notes["request read"] == digest(UPLOAD)
    assert notes["outcome"] == "completed"


def test_upload_is_transformed(ask: Ask) -> None:
    """An upload that a middleware transforms reaches the app transformed."""
    response = ask.request("/upload", "transform_request", method="POST", content=UPLOAD)

    assert response.json()["digest"] == digest(UPLOAD.swapcase())
    assert ask.ledger()["outcome"] == "completed"


def test_upload_is_read_by_a_middleware_only(ask: Ask) -> None:
    """An upload that a middleware has read may be left alone by the app."""
    response = ask.request("/unread", "read_request", method="POST", content=UPLOAD)

    assert (response.status_code, response.content) == (200, PLAIN)
    notes = ask.ledger()
    assert notes["request read"] == digest(UPLOAD)
    assert notes["outcome"] == "completed"


def test_exception_before_the_response(ask: Ask) -> None:
    """An exception passes the middleware and becomes a 500; it is logged once."""
    response = ask.request("/fail_before")

    assert response.status_code == 500
    ask.server.expect(ask.id)
    notes = ask.ledger()
    assert notes["raised"] == f"Intended('{ask.id}')"
    assert "outcome" not in notes


def test_exception_before_the_response_is_answered(ask: Ask) -> None:
    """An exception that a middleware answers is not logged by the server."""
    response = ask.request("/fail_before", "rescue")

    assert (response.status_code, response.content) == (500, b"rescued")
    notes = ask.ledger()
    assert notes["outcome"] == "completed"
    assert "raised" not in notes


@clean_tracebacks
def test_exception_in_the_middle_of_the_body(ask: Ask) -> None:
    """An exception after the start cuts the body off; it is logged once."""
    with ask.stream("/fail_within") as response, pytest.raises(httpx2.RemoteProtocolError):
        response.read()

    assert response.status_code == 200
    assert response.headers["x-stamp"] == ask.id
    ask.server.expect(ask.id)
    notes = ask.ledger()
    assert notes["raised"] == f"Intended('{ask.id}')"
    assert notes["outcome"] == "failed"
    assert notes["bytes_sent"] == len(CHUNKS[0])


@clean_tracebacks
@pytest.mark.parametrize("path", ["/plain", "/stream", "/file", "/events"])
def test_exception_of_the_middleware_itself(ask: Ask, path: str) -> None:
    """An exception of a middleware that has the response becomes a 500; the app ends."""
    response = ask.request(path, "fail")

    assert response.status_code == 500
    ask.server.expect(ask.id)
    notes = ask.ledger()
    assert notes["raised"] == f"Intended('{ask.id}')"
    assert "outcome" not in notes


def port(response: httpx2.Response) -> int:
    """Return the client's port, which tells one connection from another."""
    return response.extensions["network_stream"].get_extra_info("client_addr")[1]
