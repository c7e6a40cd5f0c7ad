"""The fake server of `tests/harness.py` refuses what real servers refuse, and takes the rest."""

from __future__ import annotations

import tempfile
from typing import Any

import anyio
import pytest
from starlette.types import Message

from httpmw.testing import ASGIViolation
from tests.harness import EXTENSIONS, Inner, Server, request, script

ALL: dict[str, dict[str, str]] = {name: {} for name in EXTENSIONS}

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
TRAILED: Message = {**START, "trailers": True}
BODY: Message = {"type": "http.response.body", "body": b"data"}
MORE: Message = {**BODY, "more_body": True}
PATHSEND: Message = {"type": "http.response.pathsend", "path": "/a/file"}
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"a", b"b")]}
HINT: Message = {"type": "http.response.early_hint", "links": []}
DEBUG: Message = {"type": "http.response.debug", "info": {}}
PUSH: Message = {"type": "http.response.push", "path": "/x", "headers": []}


def start(status: Any = 200, **headers: Any) -> Message:
    """Return a response start with *headers*."""
    pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


@pytest.mark.parametrize(
    "messages",
    [
        (BODY,),
        (START, START),
        (START, BODY, BODY),
        (START, BODY, START),
        (PATHSEND,),
        (START, PATHSEND, BODY),
        (START, MORE, PATHSEND),
        (START, {"type": "http.response.pathsend", "path": b"/a"}),
        (TRAILERS,),
        (START, BODY, TRAILERS),
        (START, MORE, TRAILERS),
        (TRAILED, TRAILERS),
        (TRAILED, MORE, TRAILERS),
        (TRAILED, BODY, BODY),
        (TRAILED, BODY, TRAILERS, TRAILERS),
        (TRAILED, BODY, HINT),
        (PUSH,),
        (TRAILED, BODY, PUSH),
        (START, DEBUG),
        (DEBUG, DEBUG),
        (START, BODY, DEBUG),
        (START, BODY, PUSH),
        (START, {"type": "http.response.unknown"}),
        (start("200"),),
        (start(True),),
        (start(20),),
        (start(x="text"),),
        (start(X=b"upper case"),),
        (START, {"type": "http.response.body", "body": "text"}),
        (start(content_length=b"3"), BODY),
        (start(content_length=b"5"), BODY),
        (start(content_length=b"5"), MORE, MORE),
        (start(204), BODY),
        (start(304), BODY),
    ],
)
async def test_refused(messages: tuple[Message, ...]) -> None:
    """Each of these sequences breaks the protocol with its last message."""
    server = Server(extensions=ALL)
    with pytest.raises(ASGIViolation):
        await server.run(script(*messages))
    assert len(server.sent) == len(messages) - 1


@pytest.mark.parametrize(
    ("messages", "complete"),
    [
        ((), False),
        ((START,), False),
        ((START, BODY), True),
        (({"type": "http.response.start", "status": 200}, {"type": BODY["type"]}), True),
        ((START, MORE), False),
        ((START, MORE, MORE, BODY), True),
        ((START, {**BODY, "body": memoryview(b"data")}), True),
        ((START, PATHSEND), True),
        ((TRAILED, BODY), False),
        ((TRAILED, BODY, TRAILERS), True),
        ((TRAILED, BODY, {**TRAILERS, "more_trailers": True}), False),
        ((TRAILED, BODY, {**TRAILERS, "more_trailers": True}, TRAILERS), True),
        ((TRAILED, PATHSEND, TRAILERS), True),
        ((HINT, DEBUG, HINT, START, HINT, PUSH, MORE, HINT, PUSH, BODY), True),
        ((start(content_length=b"4"), BODY), True),
        ((start(content_length=b"4"), PATHSEND), True),
        ((start(204), {**BODY, "body": b""}), True),
        ((start(304, content_length=b"4"), {**BODY, "body": b""}), True),
        ((start(content_length=b"9"), {**BODY, "body": b""}), None),
    ],
)
async def test_taken(messages: tuple[Message, ...], complete: bool | None) -> None:
    """Each of these sequences is legal, and the server knows whether the response is over."""
    method = "HEAD" if complete is None else "GET"
    server = await request(script(*messages), extensions=ALL, method=method)
    assert server.sent == list(messages)
    assert server.complete is (complete is not False)


async def test_zerocopysend() -> None:
    """A body out of a file descriptor ends with the message that has no `more_body`."""
    with tempfile.TemporaryFile() as file:
        part = {"type": "http.response.zerocopysend", "file": file, "more_body": True}
        last = {"type": "http.response.zerocopysend", "file": file}
        server = await request(script(START, part), extensions=ALL)
        assert not server.complete
        server = await request(script(START, MORE, part, last), extensions=ALL)
        assert server.complete


@pytest.mark.parametrize("message", [PATHSEND, HINT, DEBUG, PUSH, TRAILERS])
async def test_extension_that_was_not_announced(message: Message) -> None:
    """An extension that is not in the scope is refused."""
    with pytest.raises(match="not announced"):
        await request(script(message))


async def test_unknown_type_that_was_announced() -> None:
    """A message type that the scope announces passes, whatever it is."""
    custom = {"type": "custom.message", "key": object()}
    server = await request(script(custom, START, BODY), extensions={"custom.message": {}})
    assert server.sent[0] is custom


async def test_record() -> None:
    """What was sent can be read as a client reads it; headers are listed, pairs untouched."""
    pairs = [(b"a", b"1"), (b"a", b"2")]
    message = {**START, "status": 201, "headers": iter(pairs)}
    server = await request(script(message, MORE, BODY))
    assert server.sent[0]["headers"] == pairs
    assert server.starts == 1
    assert server.status == 201
    assert server.headers.getlist("a") == ["1", "2"]
    assert server.chunks == [b"data", b"data"]
    assert server.body == b"datadata"
    assert server.types == ["start", "body", "body"]


async def test_head_has_no_body() -> None:
    """The client of a HEAD request gets no body, whatever the app sends."""
    server = await request(script(START, BODY), method="HEAD")
    assert server.complete
    assert server.body == b""


def test_scope() -> None:
    """The scope carries the request and, if asked for, the spec version."""
    server = Server(method="POST", path="/x", query=b"q=1", headers={"X-A": "b"}, body=b"abc")
    assert server.scope["headers"] == [(b"x-a", b"b"), (b"content-length", b"3")]
    assert server.scope["asgi"] == {"version": "3.0", "spec_version": "2.3"}
    assert (server.scope["method"], server.scope["path"]) == ("POST", "/x")
    assert server.scope["query_string"] == b"q=1"
    assert "spec_version" not in Server(spec=None).scope["asgi"]
    assert Server(body=[b"a"]).scope["headers"] == [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", [(b"", False)]),
        (b"abc", [(b"abc", False)]),
        ([], [(b"", False)]),
        ([b"a", b"", b"b"], [(b"a", True), (b"", True), (b"b", False)]),
    ],
)
async def test_request_body(body: Any, expected: list[tuple[bytes, bool]]) -> None:
    """The request body comes in the chunks it was given in."""
    server = Server(body=body)
    messages = [await server.receive() for _ in expected]
    assert [(message["body"], message["more_body"]) for message in messages] == expected


@pytest.mark.parametrize("leave", [True, False], ids=["left", "complete"])
@pytest.mark.parametrize("waiters", [1, 2])
@pytest.mark.parametrize("disconnect", ["repeated", "once"])
async def test_receive_after_the_end(disconnect: Any, waiters: int, leave: bool) -> None:
    """A blocked `receive` is woken at the end; some servers wake one waiter, once."""
    server = Server(disconnect=disconnect)
    await server.receive()
    got: list[Message] = []

    async def listen() -> None:
        got.append(await server.receive())

    async with anyio.create_task_group() as group:
        for _ in range(waiters):
            group.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert got == []
        if leave:
            server.disconnect()
        else:
            await script(START, BODY)(server.scope, server.receive, server.send)
        await anyio.wait_all_tasks_blocked()
        assert got == [{"type": "http.disconnect"}] * (1 if disconnect == "once" else waiters)
        group.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert len(got) == (1 if disconnect == "once" else waiters + 1)
        group.cancel_scope.cancel()
    assert server.most_receivers == waiters


async def test_client_leaves_in_mid_request() -> None:
    """When the client has left uvicorn drops the rest of the body, hypercorn gives it first."""
    server = Server(body=[b"a", b"b"])
    server.disconnect()
    assert (await server.receive())["type"] == "http.disconnect"
    server = Server(body=[b"a", b"b"], disconnect="once")
    server.disconnect()
    types = [(await server.receive())["type"] for _ in range(3)]
    assert types == ["http.request", "http.request", "http.disconnect"]


async def test_send_after_the_client_left(spec: str | None) -> None:
    """From spec 2.4 on `send` raises `OSError` once the client is gone; before, it is silent."""
    server = Server(spec=spec)
    server.disconnect()
    if spec in ("2.4", "2.5"):
        with pytest.raises(OSError, match="client has left"):
            await server.send(START)
    else:
        await server.send(START)
        await server.send(START)
    assert server.sent == []


async def test_error_of_the_app() -> None:
    """An error of the app is kept; it is raised unless the test asked to keep it."""
    error = LookupError("no such thing")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    server = Server()
    with pytest.raises(LookupError):
        await server.run(app)
    assert server.error is error
    assert (await request(app, keep_error=True)).error is error


async def test_inner_apps(inner: Inner, spec: str | None) -> None:
    """Each inner app of the matrix gives the same answer, on every spec version."""
    server = await request(inner, spec=spec)
    assert server.complete
    assert (server.status, server.body) == (Inner.STATUS, Inner.BODY)
    assert server.headers["x-inner"] == "yes"
    assert (inner.runs, inner.ended) == (1, [None])
