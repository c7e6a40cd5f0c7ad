"""`httpmw explain`: what happens to one request at each layer, and where its time goes."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack, compat
from httpmw.cli import main
from httpmw.fastapi import MiddlewareRouter
from httpmw.show import Explanation, StartupError, Step, explain, tree
from httpmw.show._probe import Probes
from httpmw.show._read import read
from tests.harness import passing, request, waiting

pytestmark = pytest.mark.unchecked("explain is no test of these apps")

ok = PlainTextResponse("ok")


async def members_only(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


async def marked(conn: Connection) -> Flow:
    response = yield
    response.headers["x-marked"] = "yes"


async def replacing(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse("another", 201)


async def failing(conn: Connection) -> Flow:
    yield
    raise KeyError("late")


async def refusing(conn: Connection) -> Flow:
    raise HTTPException(401)
    yield


async def answering(conn: Connection) -> Flow:
    try:
        yield
    except ValueError:
        yield PlainTextResponse("an error", 503)


async def shouting(conn: Connection) -> Flow:
    response = yield

    async def louder(chunks: Any) -> Any:
        async for chunk in chunks:
            yield chunk.upper() + b"!"

    response.body_iterator = louder(response.body_iterator)


async def reading(conn: Connection) -> Flow:
    conn.replace_body(await conn.body() + b"more")
    response = yield
    await response.read()


def absent(conn: Connection) -> Any:
    return None


class Plain:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Base(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-base"] = "yes"
        return response


async def stream(request: Request) -> StreamingResponse:
    async def chunks() -> Any:
        yield b"a" * 10
        yield b"b" * 10

    return StreamingResponse(chunks())


async def fresh(request: Request) -> Response:
    # Not one for all: Starlette's class edits the very list of its headers.
    return PlainTextResponse("ok")


async def broken(request: Request) -> Response:
    raise ValueError("broken")


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive()


ROUTES = [
    Route("/", fresh),
    Route("/stream", stream),
    Route("/broken", broken),
    Route("/users/{name}", echo, methods=["POST"]),
    Mount("/in", routes=[Route("/side/{number}", echo)]),
    WebSocketRoute("/chat", chat),
]


def layer(function: Any, **options: Any) -> Middleware:
    return Middleware(HTTPMiddleware, dispatch=function, **options)


def app_of(*layers: Middleware, kind: Any = Starlette) -> Any:
    return kind(routes=ROUTES, middleware=layers)


def step(found: Explanation, name: str) -> Step:
    return next(each for each in found.steps if each.name == name)


def adds_up(found: Explanation) -> bool:
    own = sum(each.own for each in found.steps) + found.client_seconds
    return own == pytest.approx(found.seconds, rel=0.05)


EVERY = [
    layer(waiting),
    Middleware(Plain),
    layer(marked),
    layer(passing),
    Middleware(Base),
    Middleware(GZipMiddleware),
]


# The oldest Starlette leaves the stream of a request to the collector; see `Base`.
LEFT = pytest.mark.filterwarnings(
    "ignore:.*starlette.requests.Request.stream", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@LEFT
@pytest.mark.parametrize("path", ["/", "/stream", "/in/side/7", "/nothing", "/broken"])
@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_own_times_add_up_to_the_whole(path: str, kind: Any) -> None:
    """Each moment is one layer's own, the route's or the client's, whatever way a request takes."""
    found = await explain(app_of(*EVERY, kind=kind), "GET", path)

    assert adds_up(found)
    assert found.seconds > 0


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_layers_are_told_in_the_order_in_which_they_are_reached(kind: Any) -> None:
    """The steps are the layers, outermost first, fused ones one by one, and then the route."""
    found = await explain(app_of(*EVERY, kind=kind), "GET", "/")
    names = [each.name for each in found.steps if each.name in {
        "waiting", "Plain", "marked", "passing", "Base", "GZipMiddleware"
    }]  # fmt: skip

    assert names == ["waiting", "Plain", "marked", "passing", "Base", "GZipMiddleware"]
    assert found.steps[-1].kind in {"route", "app"}


@pytest.mark.parametrize(
    ("function", "path", "happened"),
    [
        (waiting, "/", "ran"),
        (marked, "/stream", "ran"),
        (members_only, "/", "answered 403"),
        (refusing, "/", "answered 401"),
        (replacing, "/", "replaced 200 by 201"),
        (failing, "/", "raised KeyError: 'late'"),
        (answering, "/broken", "answered 503 for ValueError"),
        (waiting, "/broken", "ValueError passed"),
        (absent, "/", "stood aside: its function gave None"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("neighbours", [True, False], ids=["fused", "alone"])
async def test_what_a_function_did(
    function: Any, path: str, happened: str, neighbours: bool
) -> None:
    """Each way that a function can go is told, fused or alone."""
    around = [layer(waiting)] if neighbours else []
    found = await explain(app_of(*around, layer(function), *around), "GET", path)

    assert [each.happened for each in found.steps if each.name == function.__name__][
        1 if function is waiting and neighbours else 0
    ] == happened
    assert adds_up(found)


async def test_a_predicate_that_is_false() -> None:
    """A layer whose `when=` says no stood aside, and says so."""
    found = await explain(app_of(layer(marked, when=lambda conn: False)))

    assert step(found, "marked").happened == "stood aside: its predicate is false"


@pytest.mark.parametrize(
    "kind", [compat.BaseHTTPMiddleware, BaseHTTPMiddleware], ids=["ours", "starlette"]
)
async def test_dispatch_functions(kind: Any) -> None:
    """Layers in `call_next` style are told by what passes in and out of them."""

    async def old(request: Any, call_next: Any) -> Response:
        if request.url.path == "/stream":
            return PlainTextResponse("no", 418)
        response: Response = await call_next(request)
        response.headers["x-base"] = "yes"
        return response

    app = app_of(Middleware(kind, dispatch=old), Middleware(kind, dispatch=old))
    found = await explain(app)
    assert [each.changed for each in found.steps if each.name == "old"][1] == ("response +x-base",)
    assert step(await explain(app, "GET", "/stream"), "old").happened == "answered 418"


async def test_plain_layers_and_the_frame() -> None:
    """What answers an exception, and what lets it pass, is told of layers that are not ours."""
    found = await explain(app_of(Middleware(Plain)), "GET", "/broken")

    assert step(found, "ServerErrorMiddleware").happened == (
        "answered 500 for ValueError, then raised on"
    )
    assert step(found, "Plain").happened == "ValueError passed"
    assert found.exception == "ValueError: broken"
    assert found.status == 500


async def test_what_changes_and_how_many_bytes() -> None:
    """Headers are told by their names, bodies by their lengths, on both sides of a layer."""
    app = app_of(layer(marked), layer(shouting), layer(reading))
    found = await explain(app, "POST", "/users/ann", headers={"x-a": "secret"}, body=b"hello ")

    assert step(found, "marked").changed == ("response +x-marked",)
    assert step(found, "shouting").response_bytes == (10, 11)
    assert "response -content-length" in step(found, "shouting").changed
    assert step(found, "reading").request_bytes == (6, 10)
    assert "request ~content-length" in step(found, "reading").changed
    assert "secret" not in json.dumps(found.as_json())
    assert found.bytes_sent == 11


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_the_route_is_named(kind: Any) -> None:
    """The route that was matched is told, with mounts; its time is a step of its own."""
    app = app_of(layer(waiting), kind=kind)

    assert (await explain(app, "GET", "/in/side/7")).route == "/in/side/{number}"
    assert (await explain(app, "POST", "/users/ann")).steps[-1].name == "POST /users/{name}"
    assert (await explain(app, "GET", "/nothing")).route is None


async def test_the_layers_of_a_router() -> None:
    """Layers of a `MiddlewareRouter` of FastAPI are steps at their place."""
    members = MiddlewareRouter(prefix="/members", middleware=[marked, waiting])
    members.add_api_route("/news", lambda: "news")
    app = FastAPI()
    app.include_router(members)
    found = await explain(app, "GET", "/members/news")
    names = [each.name for each in found.steps]

    assert names.index("marked") < names.index("waiting")
    assert found.steps[-1].name == "GET /members/news"
    assert step(found, "marked").changed == ("response +x-marked",)


async def test_what_was_not_reached() -> None:
    """Layers inside of one that answers are named as not reached."""
    found = await explain(app_of(layer(members_only), Middleware(Plain)))

    assert "Plain" in found.not_reached


@pytest.mark.parametrize("path", ["/chat", "/nothing"])
async def test_handshakes(path: str) -> None:
    """A WebSocket's handshake is a request; a layer that sees HTTP only is passed by."""
    app = app_of(layer(marked, websocket=True), Middleware(Plain), layer(waiting))
    found = await explain(app, "WEBSOCKET", path)

    assert found.status == (101 if path == "/chat" else 403)
    assert step(found, "marked").happened == "ran"
    assert step(found, "waiting").happened == "was passed by: it sees HTTP only"
    assert adds_up(found)


@pytest.mark.parametrize("installed", [True, False])
async def test_a_stack(installed: bool) -> None:
    """Layers of a `MiddlewareStack` are steps, those around the error page too, in every style."""
    app: Any = Starlette(routes=ROUTES)
    stack = MiddlewareStack.install(app) if installed else MiddlewareStack(app)
    for each in (waiting, marked, Middleware(Plain), passing):
        stack.add(each, innermost=True)
    if installed:
        stack.add(members_only, outside_errors=True)
    target = app if installed else stack
    found = await explain(target, headers={"x-member": "1"})
    names = [each.name for each in found.steps]

    assert [each for each in names if each in {"waiting", "marked", "Plain", "passing"}] == [
        "waiting", "marked", "Plain", "passing"
    ]  # fmt: skip
    assert ("members_only" in names) is installed
    assert step(found, "marked").changed == ("response +x-marked",)
    assert adds_up(found)


def test_an_edit_that_is_under_way_comes_first() -> None:
    """Probes wait for an edit of a stack in another thread, so that none is lost."""
    stack = MiddlewareStack(fresh, [waiting])
    probes = Probes(read(stack))
    putting = threading.Thread(target=probes.put)
    with stack.edit() as draft:
        putting.start()
        putting.join(0.1)
        assert putting.is_alive()
        draft.add(marked)
    putting.join()

    assert [each.name for each in stack] == ["marked", "waiting"]
    probes.remove()
    assert [each.name for each in stack] == ["marked", "waiting"]


async def test_nothing_is_left_behind() -> None:
    """Afterwards the application is as it was: every layer, route and stack."""
    app = app_of(*EVERY)
    MiddlewareStack.install(app)
    before = [(node.name, [link.app for link in node.links]) for node in read(app).walk()]
    await explain(app)
    after = [(node.name, [link.app for link in node.links]) for node in read(app).walk()]

    assert all(
        not getattr(type(each), "is_httpmw_probe", False) for _, links in after for each in links
    )
    assert [name for name, _ in before] == [name for name, _ in after]
    assert (await request(app)).status == 200


@LEFT
async def test_answers_are_the_same_with_probes() -> None:
    """A probe hands on what it gets: the messages of an application are those without it."""
    app = app_of(*EVERY, layer(shouting))
    for path in ("/", "/stream", "/nothing"):
        plain = (await request(app, path=path)).sent
        probes = Probes(read(app))
        try:
            probed = (await request(probes.put(), path=path)).sent
        finally:
            probes.remove()
        assert probed == plain


async def test_a_layer_that_cannot_be_parted_is_named() -> None:
    """Where no probe can be put, the layer counts as part of the one around it."""
    import functools

    async def around(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    found = await explain(Plain(functools.partial(around, Plain(ok))))

    assert found.merged == ("Plain",)
    assert adds_up(found)


async def test_repeat() -> None:
    """With *repeat* it is sent as often; the run in the middle is told, so that times add up."""
    asked = []

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["type"])
        await ok(scope, receive, send)

    found = await explain(Plain(counting), repeat=5, run_lifespan=False)

    assert asked == ["http"] * 5
    assert found.repeated == 5
    assert adds_up(found)
    with pytest.raises(ValueError, match="from 1 on"):
        await explain(ok, repeat=0)


@pytest.mark.parametrize(
    ("path", "words"),
    [("/", "no route was asked for"), ("/open", "route /open"), ("/else", "no route was matched")],
)
async def test_what_is_said_of_the_route(path: str, words: str) -> None:
    """A route that a layer in front did not ask for is none that does not exist."""

    async def gate(conn: Connection) -> Flow:
        if conn.url.path == "/":
            yield PlainTextResponse("no", 403)
        else:
            yield

    app = Starlette(
        routes=[Route("/", PlainTextResponse("all")), Route("/open", PlainTextResponse("open"))],
        middleware=[Middleware(HTTPMiddleware, dispatch=gate)],
    )

    assert words in str(await explain(app, "GET", path))


async def test_a_route_is_named_as_in_the_tree() -> None:
    """Starlette answers HEAD where it answers GET: neither command says so."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("1"))])
    found = await explain(app)

    assert "GET /" in [each.name for each in found.steps]
    assert "GET /  " in str(tree(app))
    assert "1 byte," in str(found)


async def test_time_spent_waiting_belongs_to_the_one_that_waits() -> None:
    """A layer that sleeps has that time, before, at the start and after; nobody else has it."""
    naps: list[float] = []

    async def nap() -> None:
        began = anyio.current_time()
        await anyio.sleep(0.02)
        naps.append(anyio.current_time() - began)

    async def sleeping(conn: Connection) -> Flow:
        await nap()
        response = yield
        await nap()
        yield response
        await nap()

    found = await explain(app_of(layer(marked), layer(sleeping), Middleware(Base)))
    times = step(found, "sleeping").seconds

    for phase, took in zip(("before", "start", "after"), naps, strict=True):
        assert times[phase] >= took * 0.9
    assert step(found, "marked").own < sum(naps)


async def test_a_body_that_is_awaited_is_the_apps_time() -> None:
    """While a function waits for a body, the time is that of the app that makes it."""
    took = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        began = anyio.current_time()
        await anyio.sleep(0.03)
        took.append(anyio.current_time() - began)
        await send({"type": "http.response.body", "body": b"x"})

    found = await explain(HTTPMiddleware(slow, dispatch=reading), run_lifespan=False)

    assert step(found, "slow").own >= took[0] * 0.9
    assert step(found, "reading").own < found.seconds - took[0] * 0.9


@pytest.mark.parametrize("answers", [True, False])
async def test_the_application_is_started_and_shut_down(answers: bool) -> None:
    """Its lifespan runs around the request, and its state is there; a failure is an error."""
    events = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            events.append(scope["state"]["seen"])
            await ok(scope, receive, send)
            return
        scope["state"]["seen"] = "state"
        message: Message = await receive()
        events.append(message["type"])
        if not answers:
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        await send({"type": "lifespan.startup.complete"})
        events.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    if not answers:
        with pytest.raises(StartupError, match="no database"):
            await explain(app)
        return
    await explain(app)
    assert events == ["lifespan.startup", "state", "lifespan.shutdown"]


def test_the_table_and_the_json_say_the_same() -> None:
    """`str()` of an explanation is a table; `as_json` has every number."""
    found = anyio.run(explain, app_of(layer(members_only)))
    text = str(found)

    assert re.search(r"^GET / → 403, 12 bytes, [\d.]+ ms$", text, re.MULTILINE)
    assert "members_only" in text
    assert "not reached: ExceptionMiddleware" in text
    written = json.loads(json.dumps(found.as_json()))
    assert written["steps"][1]["happened"] == "answered 403"
    assert written["spans"]


# ---------------------------------------------------------------------- the command

APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def echo(request):
    body = await request.body()
    return PlainTextResponse(body + request.headers.get("x-a", "").encode())

async def broken(request):
    raise ValueError("</script><b>broken")

app = Starlette(routes=[Route("/", echo, methods=["GET", "POST"]), Route("/broken", broken)])
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an application in `explained_app.py`, which is the current one."""
    (tmp_path / "explained_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "explained_app", raising=False)
    return tmp_path


def test_the_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Method, path, headers and body are those of the command line; a file can be the body."""
    (project / "body").write_bytes(b"1234567")
    command = ["explain", "explained_app", "post", "/", "-H", "X-A: b", "--json"]

    assert main([*command, "-d", "abc"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes_sent"] == 4
    assert main([*command, "-d", "@body", "--repeat", "3"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["bytes_sent"], written["repeated"]) == (8, 3)
    assert main(["explain", "explained_app", "GET", "/broken"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing_here", "GET", "/"], "--app-dir"),
        (["explained_app", "GET", "users"], "begins with a slash"),
        (["explained_app", "GET", "/", "-H", "x"], "NAME: VALUE"),
        (["explained_app", "GET", "/", "-d", "@nothing"], "nothing"),
        (["explained_app", "GET", "/", "--repeat", "0"], "from 1 on"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what to write instead."""
    assert main(["explain", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_html(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--html` is one file: nothing is loaded, its policy forbids it, and text stays text."""
    main(["explain", "explained_app", "GET", "/broken", "--html", "page.html"])
    page = (project / "page.html").read_text()

    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert page.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["request"]["exception"] == "ValueError: </script><b>broken"
