"""Each rule of the checker is broken by an example, and by nothing that is allowed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from httpmw.testing import ASGIChecker, ASGIViolation, Server
from httpmw.testing.checking._checker import rules
from tests import ROOT
from tests.harness import EXTENSIONS, request, script
from tools import asgi_rules

RULES = {rule.id: rule for rule in rules()}

HTTP: dict[str, Any] = Server(extensions={name: {} for name in EXTENSIONS}).scope
SOCKET = {**HTTP, "type": "websocket", "scheme": "ws", "subprotocols": ["chat"]}
DENIABLE = {**SOCKET, "extensions": {"websocket.http.response": {}}}
LIFE = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}

# What happens between an app and its server: a message with a prefix is sent or received.
Play = Sequence[Any]


def sends(kind: str, **keys: Any) -> tuple[str, Any]:
    return "send", {"type": kind, **keys}


def gets(kind: str, **keys: Any) -> tuple[str, Any]:
    return "receive", {"type": kind, **keys}


RETURN = ("return", None)
GONE = gets("http.disconnect")
ASKED = gets("http.request", body=b"", more_body=False)


def begin(status: Any = 200, *headers: Any, **keys: Any) -> tuple[str, Any]:
    return sends("http.response.start", status=status, headers=list(headers), **keys)


def part(data: Any = b"data", **keys: Any) -> tuple[str, Any]:
    return sends("http.response.body", body=data, **keys)


START = begin()
TRAILED = begin(trailers=True)
BODY = part()
MORE = part(more_body=True)
PATHSEND = sends("http.response.pathsend", path="/a/file")
TRAILERS = sends("http.response.trailers", headers=[(b"a", b"b")])
HINT = sends("http.response.early_hint", links=[b"</a>"])
DEBUG = sends("http.response.debug", info={"a": object()})
PUSH = sends("http.response.push", path="/x", headers=[])

CONNECT = gets("websocket.connect")
ACCEPT = sends("websocket.accept")
CLOSE = sends("websocket.close")
DATA = sends("websocket.send", text="a", bytes=None)
DENY = sends("websocket.http.response.start", status=401, headers=[])
STARTUP = gets("lifespan.startup")
STARTED = sends("lifespan.startup.complete")
SHUTDOWN = gets("lifespan.shutdown")

# Every step but the last one is fine; the last one breaks the rule.
BROKEN: list[tuple[str, dict[str, Any], Play]] = [
    ("A01", HTTP, [("send", "http.response.start")]),
    ("A01", HTTP, [("send", {"status": 200})]),
    ("A01", LIFE, [STARTUP, ("send", {"type": 1})]),
    ("A02", HTTP, [START, BODY, RETURN, BODY]),
    ("A11", HTTP, [("receive", None)]),
    ("A11", SOCKET, [("receive", {})]),
    ("S01", {**HTTP, "asgi": {"version": 3}}, []),
    ("S01", {**LIFE, "asgi": None}, []),
    ("S02", {**HTTP, "extensions": {"x": True}}, []),
    ("S02", {**HTTP, "extensions": ["x"]}, []),
    ("S02", {**LIFE, "state": None}, []),
    ("S03", {**HTTP, "path": b"/"}, []),
    ("S03", {**HTTP, "raw_path": "/"}, []),
    ("S03", {**SOCKET, "root_path": None}, []),
    ("S04", {**HTTP, "query_string": ""}, []),
    ("S05", {**HTTP, "headers": {b"a": b"b"}}, []),
    ("S05", {**HTTP, "headers": [("a", "b")]}, []),
    ("S05", {**HTTP, "headers": [(b":path", b"/")]}, []),
    ("S06", {**HTTP, "scheme": ""}, []),
    ("S07", {**HTTP, "http_version": 2}, []),
    ("S07", {**HTTP, "http_version": "HTTP/1.1"}, []),
    ("S08", {**HTTP, "client": "10.0.0.1"}, []),
    ("S08", {**HTTP, "server": ("localhost", "80")}, []),
    ("S09", {**HTTP, "method": "get"}, []),
    ("S10", {**SOCKET, "subprotocols": "chat"}, []),
    ("H01", HTTP, [sends("http.response.begin")]),
    ("H01", {**HTTP, "extensions": {}}, [HINT]),
    ("H02", HTTP, [START, BODY, BODY]),
    ("H02", HTTP, [TRAILED, BODY, TRAILERS, TRAILERS]),
    ("H03", HTTP, [START, START]),
    ("H04", HTTP, [begin("200")]),
    ("H04", HTTP, [begin(True)]),
    ("H04", HTTP, [begin(20)]),
    ("H04", HTTP, [sends("http.response.start")]),
    ("H05", HTTP, [sends("http.response.start", status=200, headers={b"a": b"b"})]),
    ("H05", HTTP, [sends("http.response.start", status=200, headers=None)]),
    ("H05", HTTP, [begin(200, ("a", "b"))]),
    ("H05", HTTP, [begin(200, (b"a", b"b", b"c"))]),
    ("H06", HTTP, [begin(200, (b"Server", b"x"))]),
    ("H06", HTTP, [begin(200, (b":status", b"200"))]),
    ("H06", HTTP, [TRAILED, BODY, sends("http.response.trailers", headers=[(b"a b", b"")])]),
    ("H07", HTTP, [begin(200, (b"location", b"/\r\nset-cookie: a=b"))]),
    ("H08", HTTP, [begin(200, (b"content-length", b"4"), (b"content-length", b"4"))]),
    ("H08", HTTP, [begin(200, (b"content-length", b"+4"))]),
    ("H09", HTTP, [begin(204, (b"content-length", b"0"))]),
    ("H10", HTTP, [begin(trailers=1)]),
    ("H11", {**HTTP, "extensions": {}}, [TRAILED]),
    ("H12", HTTP, [BODY]),
    ("H12", HTTP, [PATHSEND]),
    ("H12", HTTP, [TRAILERS]),
    ("H12", HTTP, [PUSH]),
    ("H13", HTTP, [TRAILED, BODY, BODY]),
    ("H13", HTTP, [TRAILED, BODY, HINT]),
    ("H14", HTTP, [START, part("text")]),
    ("H14", HTTP, [START, part(None)]),
    ("H15", HTTP, [START, part(more_body=1)]),
    ("H16", HTTP, [begin(204), BODY]),
    ("H16", HTTP, [begin(304), BODY]),
    ("H17", HTTP, [begin(200, (b"content-length", b"3")), BODY]),
    ("H17", HTTP, [begin(200, (b"content-length", b"7")), MORE, MORE]),
    ("H18", HTTP, [begin(200, (b"content-length", b"5")), BODY]),
    ("H19", HTTP, [ASKED, RETURN]),
    ("H19", HTTP, [ASKED, START, MORE, RETURN]),
    ("H31", HTTP, [gets("http.response.start")]),
    ("H32", HTTP, [gets("http.request", body="text")]),
    ("H32", HTTP, [gets("http.request", more_body=None)]),
    ("H33", HTTP, [ASKED, ASKED]),
    ("H34", HTTP, [gets("http.request", more_body=True), GONE, ASKED]),
    ("H35", HTTP, [START, ("fail", OSError("gone"))]),
    ("X01", HTTP, [START, sends("http.response.pathsend", path=b"/a")]),
    ("X01", HTTP, [START, sends("http.response.pathsend", path="a")]),
    ("X02", HTTP, [START, MORE, PATHSEND]),
    ("X03", HTTP, [START, sends("http.response.zerocopysend", file=b"data")]),
    ("X04", HTTP, [START, MORE, TRAILERS]),
    ("X05", HTTP, [TRAILED, MORE, TRAILERS]),
    ("X06", HTTP, [TRAILED, BODY, sends("http.response.trailers", more_trailers=0)]),
    ("X07", HTTP, [sends("http.response.early_hint", links=["</a>"])]),
    ("X07", HTTP, [sends("http.response.early_hint", links=b"</a>")]),
    ("X08", HTTP, [START, sends("http.response.push", path=b"/x")]),
    ("X09", HTTP, [sends("http.response.debug", info=[])]),
    ("X10", HTTP, [START, DEBUG]),
    ("X10", HTTP, [DEBUG, DEBUG]),
    ("W01", SOCKET, [CONNECT, sends("websocket.open")]),
    ("W01", SOCKET, [CONNECT, DENY]),
    ("W02", SOCKET, [CONNECT, CLOSE, CLOSE]),
    ("W03", SOCKET, [CONNECT, ACCEPT, ACCEPT]),
    ("W03", DENIABLE, [CONNECT, ACCEPT, DENY]),
    ("W04", SOCKET, [CONNECT, DATA]),
    ("W05", SOCKET, [CONNECT, sends("websocket.accept", subprotocol="soap")]),
    ("W06", SOCKET, [CONNECT, sends("websocket.accept", headers=[("a", "b")])]),
    ("W06", SOCKET, [CONNECT, sends("websocket.accept", headers=[(b"A", b"b")])]),
    ("W06", SOCKET, [CONNECT, sends("websocket.accept", headers=[(b"a", b"\n")])]),
    (
        "W07",
        SOCKET,
        [CONNECT, sends("websocket.accept", headers=[(b"sec-websocket-protocol", b"chat")])],
    ),
    ("W08", SOCKET, [CONNECT, ACCEPT, sends("websocket.send")]),
    ("W08", SOCKET, [CONNECT, ACCEPT, sends("websocket.send", text="a", bytes=b"b")]),
    ("W08", SOCKET, [CONNECT, ACCEPT, sends("websocket.send", text=b"a")]),
    ("W09", SOCKET, [CONNECT, sends("websocket.close", code=1006)]),
    ("W09", SOCKET, [CONNECT, sends("websocket.close", code="1000")]),
    ("W09", SOCKET, [CONNECT, sends("websocket.close", reason=b"no")]),
    ("W10", DENIABLE, [CONNECT, sends("websocket.http.response.start", status="401")]),
    ("W11", DENIABLE, [CONNECT, sends("websocket.http.response.body", body=b"")]),
    ("W11", DENIABLE, [CONNECT, DENY, sends("websocket.http.response.body", body="no")]),
    ("W12", DENIABLE, [CONNECT, DENY, CLOSE]),
    ("W13", SOCKET, [CONNECT, RETURN]),
    ("W31", SOCKET, [gets("websocket.accept")]),
    ("W32", SOCKET, [gets("websocket.receive", text="a")]),
    ("W32", SOCKET, [CONNECT, CONNECT]),
    ("W33", SOCKET, [CONNECT, gets("websocket.receive", text="a")]),
    ("W34", SOCKET, [CONNECT, ACCEPT, gets("websocket.receive")]),
    (
        "W35",
        SOCKET,
        [CONNECT, ACCEPT, gets("websocket.disconnect"), gets("websocket.receive", text="a")],
    ),
    ("W36", SOCKET, [CONNECT, gets("websocket.disconnect", code=None)]),
    ("L01", LIFE, [STARTUP, sends("lifespan.startup")]),
    ("L02", LIFE, [STARTED]),
    ("L02", LIFE, [STARTUP, sends("lifespan.shutdown.complete")]),
    ("L03", LIFE, [STARTUP, STARTED, STARTED]),
    ("L04", LIFE, [STARTUP, sends("lifespan.startup.failed", message=None)]),
    ("L31", LIFE, [gets("lifespan.begin")]),
    ("L31", LIFE, [STARTUP, STARTUP]),
    ("L32", LIFE, [SHUTDOWN]),
    ("L32", LIFE, [STARTUP, sends("lifespan.startup.failed"), SHUTDOWN]),
]

ALLOWED: list[tuple[dict[str, Any], Play]] = [
    (HTTP, [ASKED, START, BODY, RETURN]),
    (HTTP, [START, sends("http.response.body"), GONE, GONE, RETURN]),
    (HTTP, [sends("http.response.start", status=200), BODY, RETURN]),
    (HTTP, [gets("http.request", more_body=True), gets("http.request"), GONE, RETURN]),
    (HTTP, [HINT, DEBUG, HINT, START, HINT, PUSH, MORE, PUSH, HINT, BODY, RETURN]),
    (HTTP, [TRAILED, BODY, sends("http.response.trailers", more_trailers=True), TRAILERS, RETURN]),
    (HTTP, [TRAILED, PATHSEND, TRAILERS, RETURN]),
    (HTTP, [begin(200, (b"content-length", b"9")), PATHSEND, RETURN]),
    (HTTP, [START, part(memoryview(b"x"), more_body=True), part(bytearray(b"y")), RETURN]),
    (HTTP, [begin(200, [b"a", b"b"]), BODY, RETURN]),
    (HTTP, [begin(304, (b"content-length", b"9")), part(b""), RETURN]),
    ({**HTTP, "method": "HEAD"}, [begin(200, (b"content-length", b"9")), part(b""), RETURN]),
    ({**HTTP, "method": "HEAD"}, [START, BODY, RETURN]),
    ({**HTTP, "extensions": {"custom.message": {}}}, [sends("custom.message", key=object())]),
    ({**HTTP, "extensions": None}, [START, BODY, RETURN]),
    ({**HTTP, "server": ("/run/socket", None), "client": None}, [START, BODY, RETURN]),
    ({**HTTP, "headers": iter([(b"Host", b"x")])}, [START, BODY, RETURN]),
    ({**HTTP, "headers": [[b"host", b"x"]]}, [START, BODY, RETURN]),
    ({**HTTP, "asgi": {"version": "3.0", "spec_version": "2.4"}}, [START, ("fail", OSError())]),
    (HTTP, [START, ("fail", RuntimeError())]),
    (SOCKET, [CONNECT, ACCEPT, gets("websocket.receive", text="a"), DATA, CLOSE, RETURN]),
    (SOCKET, [CONNECT, sends("websocket.accept", subprotocol="chat"), RETURN]),
    (SOCKET, [CONNECT, CLOSE, gets("websocket.disconnect", code=1006), RETURN]),
    (SOCKET, [CONNECT, gets("websocket.disconnect"), RETURN]),
    (DENIABLE, [CONNECT, DENY, sends("websocket.http.response.body", body=b"no"), RETURN]),
    (LIFE, [STARTUP, STARTED, SHUTDOWN, sends("lifespan.shutdown.complete"), RETURN]),
    (LIFE, [STARTUP, sends("lifespan.startup.failed", message="no"), RETURN]),
    (LIFE, [RETURN]),
    ({"type": "other"}, [sends("anything"), gets("anything"), RETURN]),
]


async def play(scope: Scope, steps: Play, **options: Any) -> None:
    """Let an app and a server in the checker do *steps*."""
    incoming = [message for kind, message in steps if kind == "receive"]
    failures = [message for kind, message in steps if kind == "fail"]
    late: list[Message] = []
    kept: list[Send] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(send)
        over = False
        for kind, message in steps:
            if over:
                late.append(message)
            elif kind == "send":
                await send(message)
            elif kind == "receive":
                await receive()
            over = over or kind == "return"
        if failures:
            with pytest.raises(type(failures[0])):
                await send({"type": "http.response.body"})
        elif not over:
            raise NotImplementedError

    async def server_receive() -> Message:
        return incoming.pop(0)

    async def server_send(message: Message) -> None:
        if failures and message["type"] == "http.response.body":
            raise failures[0]

    with contextlib.suppress(NotImplementedError):
        await ASGIChecker(app, **options)(scope, server_receive, server_send)
    for message in late:
        await kept[0](message)


@pytest.mark.parametrize(
    ("id_", "scope", "steps"),
    [pytest.param(*each, id=f"{each[0]}-{i}") for i, each in enumerate(BROKEN)],
)
async def test_broken(id_: str, scope: Scope, steps: Play) -> None:
    """The example breaks its rule with its last step, and no rule before that."""
    violations: list[ASGIViolation] = []
    await play(scope, steps[:-1], violations=violations)
    if steps:
        assert violations == []

    with pytest.raises(ASGIViolation) as raised:
        await play(scope, steps)

    assert raised.value.rule is RULES[id_]
    text = str(raised.value)
    assert id_ in text
    assert RULES[id_].sentence in text
    assert RULES[id_].source in text
    assert "play.<locals>.app" in text
    assert "test_checker.py" in text


@pytest.mark.parametrize(("scope", "steps"), ALLOWED)
async def test_allowed(scope: Scope, steps: Play) -> None:
    """What the specification allows breaks no rule."""
    await play(dict(scope), steps)


def test_every_rule_is_broken_by_an_example() -> None:
    """No rule is without an example that breaks it."""
    assert {id_ for id_, _, _ in BROKEN} == set(RULES)


def test_rules_are_sentences() -> None:
    """A rule has one sentence, a source, and an id that is its own."""
    found = rules()

    assert len({rule.id for rule in found}) == len(found)
    assert len({rule.sentence for rule in found if rule.id != "W34"}) == len(found) - 1
    for rule in found:
        assert rule.sentence[0].isupper() or rule.sentence[0] == "`"
        assert rule.sentence.endswith(".")
        assert rule.source


@pytest.mark.parametrize("side", ["app", "server"])
async def test_one_side(side: Any) -> None:
    """Only the rules of the side that was asked for count."""
    for id_, scope, steps in BROKEN:
        violations: list[ASGIViolation] = []
        # A message that is none, or a scope that is none, may confuse whoever gets it.
        with contextlib.suppress(TypeError, AttributeError):
            await play(scope, steps, side=side, violations=violations)

        assert [each.rule.id for each in violations] == [id_] * (RULES[id_].side == side)


async def test_swallowed_violation_is_raised_again() -> None:
    """An app that catches what `send` raises does not hide it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.body"})
        except ASGIViolation:
            await PlainTextResponse("sorry")(scope, receive, send)

    with pytest.raises(ASGIViolation, match="H12"):
        await request(ASGIChecker(app))


async def test_violation_behind_another_error() -> None:
    """An app that makes another error of it does not hide it either."""
    wrong = LookupError()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.body"})
        except ASGIViolation:
            raise wrong from None

    with pytest.raises(ASGIViolation, match="H12") as raised:
        await request(ASGIChecker(app))

    assert raised.value.__cause__ is wrong


async def test_error_of_the_app_is_its_own() -> None:
    """What an app raises passes as the object it is, and is no violation."""
    error = LookupError()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    server = await request(ASGIChecker(app), keep_error=True)

    assert server.error is error


async def test_nothing_is_changed() -> None:
    """Messages pass as the objects they are; only iterables of headers become lists."""
    got: list[Message] = []
    pairs = [(b"a", b"b")]
    first = {"type": "http.response.start", "status": 200, "headers": iter(pairs)}
    second = {"type": "http.response.body", "other": object()}

    async def send(message: Message) -> None:
        got.append(message)

    await ASGIChecker(script(first, second))(HTTP, Server().receive, send)

    assert got[0] == {**first, "headers": pairs}
    assert got[1] is second


async def test_collected_violations_are_not_raised() -> None:
    """With a list the app goes on, and the server decides."""
    violations: list[ASGIViolation] = []
    hint = {"type": "http.response.early_hint", "links": []}
    with pytest.raises(ASGIViolation):
        await request(ASGIChecker(script(hint), violations=violations))

    assert [each.rule.id for each in violations] == ["H01"]
    assert violations[0].message is not None
    assert violations[0].message["type"] == hint["type"]


def application(**options: Any) -> ASGIApp:
    async def plain(request: Any) -> PlainTextResponse:
        return PlainTextResponse("plain " * 200)

    async def stream(request: Any) -> StreamingResponse:
        return StreamingResponse(iter([b"a", b"b"]))

    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json(await socket.receive_json())
        await socket.close()

    routes = [Route("/", plain), Route("/stream", stream), WebSocketRoute("/ws", socket)]
    return Starlette(routes=routes, **options)


def test_starlette_keeps_the_rules(anyio_backend: Any) -> None:
    """Starlette and its test client keep the rules of all three protocols."""
    stack = [Middleware(ASGIChecker), Middleware(GZipMiddleware), Middleware(ASGIChecker)]
    app = ASGIChecker(application(middleware=stack))
    with TestClient(app, backend=anyio_backend) as client:
        assert client.get("/").text == "plain " * 200
        assert client.get("/stream").content == b"ab"
        assert client.head("/").status_code == 200
        assert client.get("/none").status_code == 404
        with client.websocket_connect("/ws") as socket:
            socket.send_json({"a": 1})
            assert socket.receive_json() == {"a": 1}


async def test_broken_response_of_starlette() -> None:
    """A mistake that Starlette does not see is found: a length that is not that of the body."""
    response = JSONResponse({"a": 1}, headers={"content-length": "3"})

    with pytest.raises(ASGIViolation, match="H17: A body is not longer than its content-length"):
        await request(ASGIChecker(response))


async def test_zerocopysend_of_a_file() -> None:
    """A file with a descriptor is sent, in parts."""
    with tempfile.TemporaryFile() as file:
        messages = [
            {"type": "http.response.start", "status": 200},
            {"type": "http.response.zerocopysend", "file": file, "count": 1, "more_body": True},
            {"type": "http.response.zerocopysend", "file": file, "offset": 1},
        ]
        await request(ASGIChecker(script(*messages)), extensions={"http.response.zerocopysend": {}})
        messages[2]["offset"] = "1"
        with pytest.raises(ASGIViolation, match="X03"):
            await request(
                ASGIChecker(script(*messages)), extensions={"http.response.zerocopysend": {}}
            )


def test_page_is_fresh() -> None:
    """The page of the docs is the one that `tools/asgi_rules.py` makes of the rules."""
    page = ROOT / "docs" / "asgi-rules.md"

    assert page.read_text() == asgi_rules.page()


def test_every_rule_is_on_the_page() -> None:
    """No group of rules is left out of the page."""
    assert all(f"| {id_} |" in asgi_rules.page() for id_ in RULES)
