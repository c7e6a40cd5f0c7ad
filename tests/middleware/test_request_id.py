"""`RequestIDMiddleware`: one id for all that belongs to a request."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from fastapi import WebSocket as FastAPIWebSocket
from opentelemetry import trace as opentelemetry_trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack
from httpmw.middleware import (
    RequestIDFilter,
    RequestIDMiddleware,
    add_request_id,
    request_id,
    trace_id,
)
from httpmw.testing import run
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests import ROOT
from tests.harness import Chunks, PassThrough, request

GIVEN = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{GIVEN}-b7ad6b7169203331-01"


async def seen(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what the application finds, and set an id of its own."""
    found = {
        "variable": request_id.get(),
        "trace": trace_id.get(),
        "state": scope["state"].get("request_id"),
        "header": dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1"),
    }
    headers = {"x-request-id": "the application's"}
    await PlainTextResponse(json.dumps(found), headers=headers)(scope, receive, send)


async def ask(headers: Any = (), **options: Any) -> tuple[str, dict[str, Any]]:
    """Return the id of the response, and what the application has found."""
    result = await run(Middleware(RequestIDMiddleware, **options), seen, headers=headers)
    values = [value for name, value in result.headers.raw if name.lower() == b"x-request-id"]
    assert len(values) == 1
    return values[0].decode(), json.loads(result.body)


# -- which id --------------------------------------------------------------------------------


async def test_a_new_id() -> None:
    """Without an id that came, it is a new UUID; it is set, not appended."""
    one, found = await ask()
    other, _ = await ask()

    assert uuid.UUID(one).version == 4
    assert uuid.UUID(one).variant == uuid.RFC_4122
    assert one != other
    assert (found["variable"], found["state"], found["trace"]) == (one, one, None)


@pytest.mark.parametrize(
    "came",
    [
        "7",
        "Root=1-67891233-abcdef012345678912345678",
        "a/b+c==",
        "1f0c6b52-2f5e-4c0a-9a55-0c7f3f0a4d21",
        "x" * 200,
    ],
)
async def test_an_id_that_came_is_taken(came: str) -> None:
    """What is made elsewhere is taken as it is."""
    answered, found = await ask({"x-request-id": came})

    assert answered == found["variable"] == found["header"] == came


@pytest.mark.parametrize("came", ["", "x" * 201, "a b", "a\tb", "a\x1b[31m", "é", '"', "{}"])
async def test_an_id_that_is_none_is_replaced(came: str, caplog: Any) -> None:
    """What could not stand in a log is replaced, and logged escaped at DEBUG."""
    with caplog.at_level(logging.DEBUG, "httpmw.request_id"):
        answered, found = await ask([(b"x-request-id", came.encode("latin-1"))])

    assert uuid.UUID(answered)
    assert found["variable"] == answered
    [record] = caplog.records
    assert record.levelname == "DEBUG"
    assert record.getMessage().endswith(ascii(came))


async def test_of_two_lines_the_last_is_taken() -> None:
    """Of two header fields the nearest proxy's is the last."""
    answered, _ = await ask([(b"x-request-id", b"client"), (b"x-request-id", b"proxy")])

    assert answered == "proxy"


async def test_trust() -> None:
    """From who is not trusted no id is taken."""
    headers = {"x-request-id": "came", "x-proxy": "1"}
    trusting, _ = await ask(headers, trust=lambda conn: "x-proxy" in conn.headers)
    distrusting, _ = await ask(headers, trust=lambda conn: "x-other" in conn.headers)

    assert trusting == "came"
    assert uuid.UUID(distrusting)


async def test_generator_validator_transformer() -> None:
    """The callables make, judge and change ids, an id that came as well as a new one."""
    options: dict[str, Any] = {
        "generator": lambda: "made",
        "validator": lambda value: value.startswith("good"),
        "transformer": lambda value: value[:6] + "!",
    }

    assert (await ask(**options))[0] == "made!"
    assert (await ask({"x-request-id": "good one here"}, **options))[0] == "good o!"
    assert (await ask({"x-request-id": "bad"}, **options))[0] == "made!"


def fails(*_: object) -> Any:
    raise LookupError("no id today")


@pytest.mark.parametrize(
    "options",
    [
        {"generator": fails}, {"generator": lambda: 7}, {"generator": lambda: "a\r\nb: c"},
        {"generator": lambda: ""}, {"transformer": fails}, {"validator": fails}, {"trust": fails},
    ],
    ids=["raises", "no-str", "newline", "empty", "transformer", "validator", "trust"],
)  # fmt: skip
async def test_a_callable_that_fails_costs_its_id(options: Any, caplog: Any) -> None:
    """The request gets a new UUID, and the log says why."""
    headers = {"x-request-id": "came"} if options.keys() & {"validator", "trust"} else {}
    answered, _ = await ask(headers, **options)

    assert uuid.UUID(answered)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None


async def test_header_name() -> None:
    """The name of the header is an option, in any case of letters."""
    layer = Middleware(RequestIDMiddleware, header_name="X-Correlation-ID")
    result = await run(layer, headers={"x-correlation-id": "came"})

    assert result.headers["x-correlation-id"] == "came"
    assert "x-request-id" not in result.headers


async def test_update_request_header() -> None:
    """Where it is asked for, the application finds the id in the request's header."""
    answered, found = await ask(update_request_header=True)
    _, untouched = await ask()

    assert found["header"] == answered
    assert untouched["header"] == ""


async def test_no_response_header() -> None:
    """Where it is not wanted, the response is left alone."""
    layer = Middleware(RequestIDMiddleware, response_header=False)

    assert "x-request-id" not in (await run(layer)).headers


# -- traces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "trace"),
    [
        ([PARENT], GIVEN),
        ([PARENT.replace("00-0", "cc-0") + "-what-will-be"], GIVEN),
        ([PARENT.replace("00-0", "cc-0")], GIVEN),
        ([PARENT + "-what"], None),
        ([PARENT.replace("00-0", "cc-0") + "x"], None),
        ([PARENT.replace("00-0", "ff-0")], None),
        ([PARENT.upper()], None),
        ([PARENT.replace(GIVEN, "0" * 32)], None),
        ([PARENT.replace("b7ad6b7169203331", "0" * 16)], None),
        ([PARENT + "\n"], None),
        ([PARENT[:-1]], None),
        ([PARENT, PARENT], None),
        ([], None),
    ],
)
async def test_traceparent(lines: list[str], trace: str | None) -> None:
    """The trace is that of a valid `traceparent`, by W3C Trace Context section 3.2."""
    headers = [(b"traceparent", line.encode()) for line in lines]
    answered, found = await ask(headers)

    assert found["trace"] == trace
    assert answered != trace

    answered, _ = await ask(headers, from_traceparent=True)
    assert (answered == trace) is (trace is not None)


async def test_an_id_comes_before_a_trace() -> None:
    """With `from_traceparent` an id that came is still the id."""
    headers = {"x-request-id": "came", "traceparent": PARENT}

    assert (await ask(headers, from_traceparent=True))[0] == "came"


async def test_the_current_span() -> None:
    """Where OpenTelemetry has a span, the trace is that of the span."""
    assert "opentelemetry.trace" in sys.modules
    tracer = TracerProvider().get_tracer(__name__)
    with tracer.start_as_current_span("request") as span:
        _, found = await ask({"traceparent": PARENT})

    assert opentelemetry_trace.get_current_span().get_span_context().is_valid is False
    assert found["trace"] == f"{span.get_span_context().trace_id:032x}"


# -- as long as the request ------------------------------------------------------------------


class Inside:
    """Applications of both kinds, which note the id wherever they run."""

    def __init__(self, kind: type[Any]) -> None:
        self.ids: list[tuple[str, str | None]] = []
        self.app = kind()

    def note(self, where: str) -> None:
        self.ids.append((where, request_id.get()))

    def route(self, endpoint: Callable[..., Any]) -> None:
        self.app.router.routes.append(Route("/", endpoint))


@pytest.fixture(params=[Starlette, FastAPI])
def inside(request: pytest.FixtureRequest) -> Inside:
    return Inside(request.param)


def id_of(sent: Any) -> list[str]:
    return [value.decode() for name, value in sent.headers.raw if name == b"x-request-id"]


async def test_to_the_end_of_a_stream_and_its_background_task(
    inside: Inside, spec: str | None
) -> None:
    """A stream and its background task have the id; then the variable is as it was before."""

    async def endpoint(request: Any) -> StreamingResponse:
        async def chunks() -> Any:
            for chunk in (b"a", b"b", b"c"):
                inside.note("stream")
                yield chunk

        async def background() -> None:
            inside.note("background")

        return StreamingResponse(chunks(), background=BackgroundTask(background))

    inside.route(endpoint)
    inside.app.add_middleware(RequestIDMiddleware)
    server = await request(inside.app, spec=spec)

    [value] = id_of(server)
    assert inside.ids == [("stream", value)] * 3 + [("background", value)]
    assert request_id.get() is None


async def test_in_threads(inside: Inside) -> None:
    """A `def` endpoint, which runs in a thread, has the id."""

    def endpoint(request: Any) -> PlainTextResponse:
        inside.note("thread")
        return PlainTextResponse("ok")

    inside.route(endpoint)
    inside.app.add_middleware(RequestIDMiddleware)
    server = await request(inside.app)

    assert inside.ids == [("thread", *id_of(server))]


async def test_on_errors_and_refusals(inside: Inside) -> None:
    """A 404, a 405, an `HTTPException` and the refusal of a layer further in have it."""

    async def endpoint(request: Any) -> None:
        raise HTTPException(418)

    async def gate(conn: Connection) -> Flow:
        if conn["path"] == "/closed":
            raise HTTPException(403)
        yield

    inside.route(endpoint)
    inside.app.add_middleware(HTTPMiddleware, dispatch=gate)
    inside.app.add_middleware(RequestIDMiddleware)
    answers = {}
    for method, path in (("GET", "/"), ("GET", "/nowhere"), ("POST", "/"), ("GET", "/closed")):
        server = await request(inside.app, method=method, path=path)
        [value] = id_of(server)
        answers[server.status] = value

    assert sorted(answers) == [403, 404, 405, 418]
    assert len(set(answers.values())) == 4


async def test_on_a_422() -> None:
    """FastAPI's answer to what is not valid has it."""
    app = FastAPI()
    app.add_middleware(RequestIDMiddleware)

    @app.get("/{number}")
    async def endpoint(number: int) -> None: ...

    server = await request(app, path="/seven")

    assert server.status == 422
    assert len(id_of(server)) == 1


def broken(inside: Inside) -> None:
    async def endpoint(request: Any) -> None:
        inside.note("endpoint")
        raise RuntimeError("broken")

    inside.route(endpoint)


async def test_on_the_page_of_an_unhandled_exception(inside: Inside) -> None:
    """Outside of the error handler, in a stack or around the application, a 500 has it."""
    broken(inside)
    wrapped = RequestIDMiddleware(inside.app)
    server = await request(wrapped, keep_error=True)
    assert (server.status, id_of(server)) == (500, [inside.ids[-1][1]])

    stack = MiddlewareStack.install(inside.app)
    stack.add(Middleware(RequestIDMiddleware), outside_errors=True)
    server = await request(inside.app, keep_error=True)
    assert (server.status, id_of(server)) == (500, [inside.ids[-1][1]])


async def test_stays_for_whoever_logs_an_exception(inside: Inside) -> None:
    """An exception that passes on finds the id still set, and the next request has its own."""
    broken(inside)
    inside.app.add_middleware(RequestIDMiddleware)
    token = request_id.set(None)
    try:
        await request(inside.app, keep_error=True)
        assert request_id.get() == inside.ids[-1][1] is not None
        await request(inside.app, keep_error=True)
        assert request_id.get() == inside.ids[-1][1] != inside.ids[-2][1]
    finally:
        request_id.reset(token)


async def test_requests_at_the_same_time_have_ids_of_their_own(spec: str | None) -> None:
    """Ids are never mixed: each of twenty streams at once has its own in every chunk."""
    turn = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def chunks() -> Any:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
                yield f"{request_id.get()}\n"

        await turn.wait()
        await StreamingResponse(chunks())(scope, receive, send)

    layer = RequestIDMiddleware(app)
    servers = []

    async def one() -> None:
        servers.append(await request(layer, spec=spec))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(one)
        await anyio.wait_all_tasks_blocked()
        turn.set()

    values = []
    for server in servers:
        [value] = id_of(server)
        assert server.body.decode().split() == [value] * 3
        values.append(value)
    assert len(set(values)) == 20


@pytest.mark.parametrize("leaves_after", [0, 1, 2])
async def test_when_the_client_leaves(spec: str | None, leaves_after: int) -> None:
    """A client that leaves is no error of this layer, whatever the server says of it."""
    found = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(request_id.get())
        await StreamingResponse(Chunks(b"a", b"b"))(scope, receive, send)

    token = request_id.set(None)
    server = await request(
        RequestIDMiddleware(app), spec=spec, leaves_after=leaves_after, keep_error=True
    )
    request_id.reset(token)

    assert found[0] is not None
    assert isinstance(server.error, ClientDisconnect | None)


# -- WebSockets ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
@pytest.mark.parametrize("between", [None, PassThrough], ids=["alone", "apart"])
async def test_websocket(kind: type[Any], between: Any) -> None:
    """The acceptance, a refusal and what the socket runs have the id."""
    found = []

    async def accepts(websocket: WebSocket) -> None:
        found.append(request_id.get())
        await websocket.accept()
        found.append(await websocket.receive_text())
        found.append(request_id.get())
        await websocket.close()

    async def refuses(websocket: WebSocket) -> None:
        found.append(request_id.get())
        await websocket.send_denial_response(PlainTextResponse("no", 401))

    app = kind()
    app.router.routes += [WebSocketRoute("/in", accepts), WebSocketRoute("/out", refuses)]
    layer = RequestIDMiddleware(app if between is None else between(app))
    server = SocketServer(path="/in", messages=["hello"])
    await server.run(layer)
    [value] = [v.decode() for k, v in server.sent[0]["headers"] if k == b"x-request-id"]
    assert found == [value, "hello", value]

    found.clear()
    server = SocketServer(path="/out", extensions=DENIES)
    await server.run(layer)
    [value] = [v.decode() for k, v in server.sent[0]["headers"] if k == b"x-request-id"]
    assert server.sent[0]["status"] == 401
    assert found == [value]


async def test_not_for_handshakes() -> None:
    """With `websocket=False` handshakes pass it by."""
    app = FastAPI()
    app.add_middleware(RequestIDMiddleware, websocket=False)

    @app.websocket("/")
    async def endpoint(websocket: FastAPIWebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    server = SocketServer()
    await server.run(app)

    assert server.sent[0]["type"] == "websocket.accept"
    assert not server.sent[0].get("headers")


# -- logs ------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that the root logger writes, with the id in front."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keeper()
    handler.addFilter(RequestIDFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s %(trace_id)s %(message)s"))
    logging.root.addHandler(handler)
    yield lines
    logging.root.removeHandler(handler)


async def test_filter(lines: list[str]) -> None:
    """What is logged in a request has its ids in front, and what is logged outside has none."""
    log = logging.getLogger("tests.request_id")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        log.warning("inside")
        await PlainTextResponse("ok")(scope, receive, send)

    layer = Middleware(RequestIDMiddleware)
    await run(layer, app, headers={"x-request-id": "came", "traceparent": PARENT})
    log.warning("outside")

    assert lines == [f"came {GIVEN} inside", "- - outside"]


def test_filter_options() -> None:
    """The filter cuts an id, and has another word for none."""
    record = logging.makeLogRecord({})
    short = RequestIDFilter(default="none", length=3)

    assert short.filter(record)
    assert (record.request_id, record.trace_id) == ("none", "none")  # type: ignore[attr-defined]
    token = request_id.set("abcdef")
    short.filter(record)
    request_id.reset(token)
    assert record.request_id == "abc"  # type: ignore[attr-defined]


async def test_structlog() -> None:
    """Structlog's processor puts the ids into each event, and leaves those that it has."""
    events: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with structlog.testing.capture_logs(processors=[add_request_id]) as captured:
            structlog.get_logger().info("inside")
            structlog.get_logger().info("other", request_id="mine")
        events.extend(captured)
        await PlainTextResponse("ok")(scope, receive, send)

    headers = {"x-request-id": "came", "traceparent": PARENT}
    await run(Middleware(RequestIDMiddleware), app, headers=headers)

    assert [event["request_id"] for event in events] == ["came", "mine"]
    assert events[0]["trace_id"] == GIVEN
    assert add_request_id(None, "info", {}) == {}


# In a process of its own: what `init` patches of Starlette stays patched.
SENTRY = """
import asyncio
import json

import sentry_sdk
from fastapi import FastAPI

from httpmw.middleware import RequestIDMiddleware
from tests.harness import request

events = []
transactions = []


def keep(kept):
    def before(event, hint):
        kept.append(event)

    return before


sentry_sdk.init(
    "http://key@127.0.0.1:9/1",
    before_send=keep(events),
    before_send_transaction=keep(transactions),
    traces_sample_rate=1.0,
)
app = FastAPI()


@app.get("/")
async def endpoint() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("broken")


app.add_middleware(RequestIDMiddleware, sentry=True)


async def one(value):
    await request(app, keep_error=True, headers={"x-request-id": value})


async def both():
    await asyncio.gather(*(asyncio.create_task(one(value)) for value in ("one", "two")))


asyncio.run(both())
print(json.dumps([sorted(e["tags"]["request_id"] for e in k) for k in (events, transactions)]))
"""


def test_sentry() -> None:
    """Each event of Sentry has the tag of its own request, transactions too."""
    command = [sys.executable, "-c", SENTRY]
    seen = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert json.loads(seen.stdout.splitlines()[-1]) == [["one", "two"], ["one", "two"]]


def test_sentry_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `sentry-sdk`, `sentry=True` is an error that names the extra."""
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)

    with pytest.raises(ImportError, match=re.escape("pip install 'httpmw[sentry]'")):
        RequestIDMiddleware(PlainTextResponse("ok"), sentry=True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
def test_the_traceback_that_uvicorn_logs(
    lines: list[str], anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traceback of an unhandled exception, which uvicorn logs, has the id."""
    # Another server in this process may have set them.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "propagate", True)
    app = FastAPI()
    app.add_middleware(RequestIDMiddleware)

    @app.get("/")
    async def endpoint() -> None:
        raise RuntimeError("broken")

    config = uvicorn.Config(app, port=0, log_config=None, log_level="info", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/", headers={"x-request-id": "came"}
        )
        with pytest.raises(urllib.error.HTTPError, match="500") as raised:
            urllib.request.urlopen(asked)  # noqa: S310 - see above
        raised.value.close()
    finally:
        server.should_exit = True
        thread.join()

    [traceback] = [line for line in lines if "Exception in ASGI application" in line]
    assert traceback.startswith("came - ")


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"header_name": "x request id"}, "the name of a header"),
        ({"header_name": b"x-request-id"}, "the name of a header"),
        ({"header_name": ""}, "the name of a header"),
        ({"generator": "uuid"}, "a plain function"),
        ({"validator": "[a-z]"}, "a plain function"),
        ({"transformer": 3}, "a plain function"),
        ({"trust": True}, "a plain function"),
        ({"sentry": "dsn"}, "a bool"),
        ({"update_request_header": 1}, "a bool"),
        ({"response_header": None}, "a bool"),
        ({"from_traceparent": "yes"}, "a bool"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made, by its name."""
    with pytest.raises(TypeError, match=words) as caught:
        RequestIDMiddleware(PlainTextResponse("ok"), **options)

    [name] = options
    assert f"RequestIDMiddleware({name}=" in str(caught.value)


def test_a_coroutine_function_is_refused() -> None:
    """An id cannot be awaited."""

    async def generator() -> str:
        return "x"

    with pytest.raises(TypeError, match=r"no `async def`"):
        RequestIDMiddleware(PlainTextResponse("ok"), generator=generator)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_has_ids_of_its_own() -> None:
    """What is made in advance in one process is not used in another, too."""
    program = (
        "import os\n"
        "from httpmw.middleware._request_id import _new_uuid\n"
        "_new_uuid()\n"
        "child = os.fork()\n"
        "os.write(1, _new_uuid().encode() + b'\\n')\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert len({*done.stdout.split()}) == 2
