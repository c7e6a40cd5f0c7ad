"""`httpmw show`: an application as a tree, and what is said of it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

import httpmw.middleware
from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack, compat
from httpmw.cli import main
from httpmw.fastapi import MiddlewareRouter
from httpmw.middleware import (
    AccessLogMiddleware,
    ProblemDetailsMiddleware,
    RequestIDMiddleware,
    recommended,
)
from httpmw.show import Node, tree
from httpmw.show._mask import MASK, shown
from httpmw.show._read import looked_through
from tests import ROOT
from tests.harness import passing, request, waiting

ok = PlainTextResponse("ok")


async def members_only(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    yield


async def raising(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        raise HTTPException(401)
    yield


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()


@asynccontextmanager
async def life(app: Any) -> AsyncIterator[None]:
    yield


class Plain:
    """A layer of pure ASGI."""

    def __init__(self, app: ASGIApp, level: int = 1, api_key: str = "") -> None:
        self.app = app
        self.level = level
        self.api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def closing_over(app: ASGIApp) -> ASGIApp:
    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return wrapper


@dataclass(frozen=True, slots=True)
class Slotted:
    inner: Any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.inner(scope, receive, send)


class Base(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Response:
        return await call_next(request)


class BaseGate(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Response:
        if "x-member" not in request.headers:
            return PlainTextResponse("members only", status_code=403)
        return await call_next(request)


class PlainGate:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not any(name == b"x-member" for name, _ in scope["headers"]):
            await PlainTextResponse("members only", 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class ReturningGate(PlainGate):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not scope["headers"]:
            return await PlainTextResponse("members only", 403)(scope, receive, send)
        return await self.app(scope, receive, send)


class AskingGate(PlainGate):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["headers"]:
            return await self.refuse(scope, receive, send)
        return await self.app(scope, receive, send)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("members only", 403)(scope, receive, send)


def refusal() -> Response:
    return PlainTextResponse("members only", 403)


async def asks_a_function(request: Any, call_next: Any) -> Response:
    if "x-member" not in request.headers:
        return refusal()
    return await call_next(request)


async def sends_to_login(request: Any, call_next: Any) -> Response:
    if "x-member" not in request.headers:
        return RedirectResponse("/login")
    return await call_next(request)


async def lets_preflights_pass(request: Any, call_next: Any) -> Response:
    if request.method != "OPTIONS" and "x-member" not in request.headers:
        return refusal()
    return await call_next(request)


class WholeGate(PlainGate):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        await PlainTextResponse("members only", 403)(scope, receive, send)


class CompressionMiddleware(Plain):
    """Named as it would be."""


class ETagMiddleware(Plain):
    """Named as it would be."""


def layers(app: Any) -> list[str]:
    """Name the layers of *app*, as far as every request meets them, but for those of the frame."""
    own = ("ServerError", "Exception", "AppBodyLimit", "AsyncExitStack")
    found, node = [], tree(app).root
    while node is not None:
        if node.kind == "layer" and not node.name.startswith(own):
            found.append(node.name)
        node = node.children[0] if len(node.children) == 1 else None
    return found


def find(app: Any, name: str) -> Node:
    return next(each for each in tree(app).root.walk() if each.name == name)


def codes(app: Any) -> list[str]:
    return [each.code for each in tree(app).warnings]


# ---------------------------------------------------------------------- the tree


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_layers_of_every_style_stand_in_their_order(kind: Any) -> None:
    """Starlette's, httpmw's and plain ASGI layers are drawn outermost first."""
    app = kind()
    for layer in (Plain, closing_over, GZipMiddleware, Base):
        app.add_middleware(layer)
    app.add_middleware(HTTPMiddleware, dispatch=waiting)

    assert layers(app) == ["waiting", "Base", "GZipMiddleware", "closing_over", "Plain"]


def test_the_frame_is_drawn() -> None:
    """Where Starlette answers errors stands in the tree, with what that means."""
    drawn = str(tree(Starlette(middleware=[Middleware(Plain)])))

    assert drawn.index("ServerErrorMiddleware") < drawn.index("Plain")
    assert drawn.index("Plain") < drawn.index("ExceptionMiddleware")
    assert "answers unhandled exceptions with 500; no layer further in sees that answer" in drawn


@pytest.mark.parametrize(
    "wrap",
    [closing_over, Slotted, functools.partial(functools.partial, None), Plain],
    ids=["closure", "slots", "partial", "attribute"],
)
def test_what_is_inside_of_a_plain_layer_is_found(wrap: Any) -> None:
    """The inner app is found in an attribute, a slot, a closure and the arguments of a partial."""

    async def around(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    app = functools.partial(around, ok) if wrap.__class__ is functools.partial else wrap(ok)

    assert [each.subject for each in tree(app).root.walk()][-1] is ok


def test_fused_layers_are_marked() -> None:
    """Neighbours that are one adapter have one number; a layer between them parts them."""
    app: Any = HTTPMiddleware(ok, dispatch=waiting)
    app = compat.BaseHTTPMiddleware(app, dispatch=Base.dispatch)
    app = HTTPMiddleware(app, dispatch=passing)
    app = HTTPMiddleware(Plain(app), dispatch=passing)

    assert [node.run for node in tree(app).root.walk()] == [None, None, 1, 1, 1, None]


def test_patched_layers_fuse_with_their_like() -> None:
    """Layers of Starlette's class are fused while it is patched, and not into `HTTPMiddleware`."""
    app = HTTPMiddleware(Base(Base(HTTPMiddleware(ok, dispatch=waiting))), dispatch=waiting)

    assert [node.run for node in tree(app).root.walk()] == [None] * 5
    with compat.patch_starlette():
        assert [node.run for node in tree(app).root.walk()] == [None, 1, 1, 1, None]


def test_layers_of_routes_routers_and_mounts_are_at_their_places() -> None:
    """What a route, a router, a mount or a host has around it stands below it."""
    some = [Middleware(Plain)]
    app = Starlette(
        routes=[
            Route("/route", ok, middleware=some, methods=["POST"]),
            Mount("/mount", Router([Route("/x", ok)], middleware=some), middleware=some),
            Host("api.example", Starlette(middleware=some)),
            WebSocketRoute("/chat", chat, middleware=some),
        ]
    )
    root = tree(app).root

    for name, number in {"/route": 1, "/mount": 2, "api.example": 1, "/chat": 1}.items():
        node = next(each for each in root.walk() if each.name == name)
        assert sum(each.name == "Plain" for each in node.walk()) == number
    drawn = str(tree(app))
    assert "POST /route" in drawn
    assert "WebSocket /chat" in drawn
    assert "host api.example" in drawn


def test_fastapis_routers_are_followed() -> None:
    """Included routers are drawn with whole paths, and the layers of a `MiddlewareRouter`."""
    inner = APIRouter(prefix="/in")
    inner.add_api_route("/route", lambda: None)
    outer = APIRouter(prefix="/out")
    outer.include_router(inner)
    members = MiddlewareRouter(prefix="/members", middleware=[waiting])
    members.add_api_route("/news", lambda: None)
    app = FastAPI()
    app.include_router(outer)
    app.include_router(members)
    drawn = str(tree(app))

    assert "GET /out/in/route" in drawn
    assert drawn.index("waiting") < drawn.index("GET /members/news")


def test_lifespans_are_marked() -> None:
    """A lifespan is named where it runs; that of a mounted application does not run by itself."""
    app = Starlette(routes=[Mount("/sub", Starlette(lifespan=life))], lifespan=life)
    root = tree(app).root

    assert any("lifespan life (" in note for note in root.notes)
    mount = next(each for each in root.walk() if each.kind == "mount")
    assert any("is not run by the application that mounts it" in note for note in mount.notes)
    assert not tree(Starlette()).root.notes


@pytest.mark.parametrize(
    ("layer", "scopes"),
    [
        (Middleware(HTTPMiddleware, dispatch=waiting), "http"),
        (Middleware(HTTPMiddleware, dispatch=waiting, websocket=True), "http, websocket"),
        (Middleware(Base), "http"),
        (Middleware(GZipMiddleware), "http"),
        (Middleware(SessionMiddleware, secret_key="s"), "http, websocket"),
        (Middleware(Plain), "all"),
    ],
)
def test_scopes(layer: Middleware, scopes: str) -> None:
    """Each layer says whether it looks at WebSocket scopes."""
    assert find(Starlette(middleware=[layer]), layers(Starlette(middleware=[layer]))[0]).scopes == (
        scopes
    )


def test_classes_have_their_file_and_line() -> None:
    """A layer says where its class or its function was defined."""
    app = Plain(HTTPMiddleware(ok, dispatch=members_only))
    lines = Path(__file__).read_text().splitlines()

    for node, text in zip(
        tree(app).root.walk(), ["class Plain:", "async def members_only"], strict=False
    ):
        assert node.where is not None
        file, _, line = node.where.rpartition(":")
        assert file.endswith("test_show.py")
        assert lines[int(line) - 1].startswith(text)


def test_options_are_shown_by_their_names() -> None:
    """Options are those of the registration, positional ones too; else what the layer has kept."""
    app = Starlette(middleware=[Middleware(Plain, 3, api_key="abc")])

    assert find(app, "Plain").options == {"level": "3", "api_key": MASK}
    assert find(Plain(ok, 3, "abc"), "Plain").options == {"level": "3", "api_key": MASK}


def test_a_stack_is_followed_through_its_edits() -> None:
    """The tree of a stack has the layers that there are now, those around the error page too."""
    app = Starlette()
    stack = MiddlewareStack.install(app)
    stack.add(waiting)
    assert layers(app) == ["waiting"]
    stack.add(Middleware(Plain), after=waiting, name="mine")
    stack.add(passing, outside_errors=True)
    names = [each.name for each in tree(app).root.walk()]
    assert names.index("passing") < names.index("ServerErrorMiddleware") < names.index("waiting")
    assert "named 'mine'" in find(app, "Plain").notes
    stack.remove(waiting)
    assert layers(app) == ["passing", "Plain"]
    assert layers(MiddlewareStack(ok, [waiting, Middleware(Plain)])) == ["waiting", "Plain"]


async def test_reading_changes_nothing() -> None:
    """An application answers as before after it was read, also through a stack."""
    app = Starlette(routes=[Route("/", ok)], middleware=[Middleware(Plain)])
    MiddlewareStack.install(app).add(waiting, outside_errors=True)
    tree(app)
    first = app.middleware_stack
    tree(app)

    assert app.middleware_stack is first
    assert (await request(app)).status == 200


def test_what_leads_back_to_itself_ends() -> None:
    """A cycle is named, not followed."""
    layer = Plain(ok)
    layer.app = Plain(layer)

    assert [each.notes for each in tree(layer).root.walk()] == [[], [], ["again"]]


def test_what_cannot_be_looked_at_is_a_leaf() -> None:
    """An object whose attributes raise is drawn all the same."""

    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            if name in {"__class__", "__dict__"}:
                return object.__getattribute__(self, name)
            raise RuntimeError(name)

        async def __call__(self, *_: Any) -> None: ...

    root = tree(Plain(Hostile())).root
    assert [each.name for each in root.walk()] == ["Plain", "Hostile"]


def test_no_app_is_refused() -> None:
    """What is not callable is a TypeError."""
    with pytest.raises(TypeError, match="int is no ASGI app"):
        tree(7)


def test_nothing_is_looked_through_without_probes() -> None:
    """An app without a probe is what it is."""
    assert looked_through(ok) is ok


# ---------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("secret_key", "x", MASK),
        ("SECRET", b"x", MASK),
        ("jwt-token", "x", MASK),
        ("password", 7, MASK),
        ("api_keys", ["x"], MASK),
        ("key", "x", MASK),
        ("dsn", "https://abc@sentry.example/1", MASK),
        ("config", {"password": "x", "level": 3}, f"{{'password': {MASK}, 'level': 3}}"),
        ("url", "postgres://u:pw@db/x", "'postgres://u:***@db/x'"),
        ("origin", "https://abc@sentry.example/1?k=v", "'https://***@sentry.example/1?***'"),
        ("value", "eyJhbGciOiJIUzI1NiJ9.e30.x", MASK),
        ("values", ["sk_live_abc"], f"[{MASK}]"),
        ("raw", b"abc", "3 bytes"),
        ("header_name", "x-api-key", "'x-api-key'"),
        ("cookie_name", "token", "'token'"),
        ("secure", True, "True"),
        ("token", None, "None"),
        ("minimum_size", 500, "500"),
        ("allow_origins", ["a", "b", "c", "d", "e"], "['a', 'b', 'c', 'd', … 1 more]"),
        ("dispatch", members_only, "members_only"),
        ("client", ok, "<PlainTextResponse>"),
        ("text", "x" * 99 + " ", None),
    ],
)
def test_options_without_secrets(name: str, value: Any, text: str | None) -> None:
    """What has the name of a secret or looks like one is masked; all else is short."""
    drawn = shown(value, name)

    assert drawn == text if text is not None else len(drawn) <= 60


# ---------------------------------------------------------------------- warnings


def test_base_http_middleware_and_its_cost() -> None:
    """A `BaseHTTPMiddleware` is named with what it takes here; not where the class is patched."""
    app = Starlette(middleware=[Middleware(Base)])
    (warning,) = tree(app).warnings

    assert warning.code == "base-http"
    assert warning.layer == "Base"
    assert "µs of each request" in warning.message
    assert "patch_starlette()" in warning.remedy
    with compat.patch_starlette():
        assert codes(app) == []


def test_a_layer_that_splits_a_run() -> None:
    """What stands between two httpmw layers is named with both; the frame of Starlette is not."""
    run = [Middleware(HTTPMiddleware, dispatch=each) for each in (waiting, passing)]
    app = Starlette(middleware=[run[0], Middleware(Plain), run[1]])
    (warning,) = tree(app).warnings

    assert warning.code == "split-run"
    assert "Plain stands between waiting and passing" in warning.message
    assert codes(Starlette(middleware=[*run, Middleware(Plain)])) == []
    outside = Starlette(middleware=run[:1])
    MiddlewareStack.install(outside).add(passing, outside_errors=True)
    assert codes(outside) == []


def test_cors_inside_of_the_error_page() -> None:
    """CORS of an application is inside of what answers 500; it is not where it is put around."""
    cors = Middleware(CORSMiddleware, allow_origins=["*"])
    (warning,) = tree(Starlette(middleware=[cors])).warnings

    assert warning.code == "cors-inside"
    assert "a 500 has no CORS headers" in warning.message
    assert codes(CORSMiddleware(Starlette(), allow_origins=["*"])) == []
    app = Starlette()
    MiddlewareStack.install(app).add(cors, outside_errors=True)
    assert codes(app) == []


def test_cors_and_problem_details() -> None:
    """CORS around what answers all exceptions is right, and inside of it is wrong."""
    cors = Middleware(CORSMiddleware, allow_origins=["*"])
    problems = Middleware(ProblemDetailsMiddleware)

    assert codes(Starlette(middleware=[cors, problems])) == []
    with pytest.warns(UserWarning, match="CORS"):
        (warning,) = tree(Starlette(middleware=[problems, cors])).warnings
    assert "inside of ProblemDetailsMiddleware" in warning.message


def test_the_recommended_order_has_no_warning() -> None:
    """What `recommended()` gives is as it should be."""
    assert codes(Starlette(middleware=recommended(cors={}, server_timing=True))) == []


@pytest.mark.parametrize("outer", [GZipMiddleware, CompressionMiddleware])
def test_compression_outside_of_etag(outer: Any) -> None:
    """Compression around ETags is named; the other way round is right."""
    wrong = Starlette(middleware=[Middleware(outer), Middleware(ETagMiddleware)])
    right = Starlette(middleware=[Middleware(ETagMiddleware), Middleware(outer)])

    assert codes(wrong) == ["compression-outside-etag"]
    assert codes(right) == []


def test_compression_of_ours_knows_of_tags() -> None:
    """The compression of httpmw belongs outside of its tags, and is warned of inside."""
    names = ("CompressionMiddleware", "ETagMiddleware")
    own = [Middleware(getattr(httpmw.middleware, name)) for name in names]

    assert codes(Starlette(middleware=own)) == []
    with pytest.warns(UserWarning, match="coded bytes"):
        assert codes(Starlette(middleware=own[::-1])) == ["order"]


@pytest.mark.parametrize(
    "gate",
    [
        Middleware(HTTPMiddleware, dispatch=members_only),
        Middleware(HTTPMiddleware, dispatch=raising),
        Middleware(BaseGate),
        Middleware(PlainGate),
        Middleware(ReturningGate),
        Middleware(AskingGate),
        Middleware(BaseHTTPMiddleware, dispatch=asks_a_function),
        Middleware(BaseHTTPMiddleware, dispatch=sends_to_login),
    ],
    ids=["yields", "raises", "call_next", "asgi", "returns", "method", "function", "login"],
)
def test_a_gate_that_does_not_see_websockets(gate: Middleware) -> None:
    """What refuses requests before WebSocket routes without seeing handshakes is named."""
    routes = [Mount("/in", routes=[WebSocketRoute("/chat", chat)])]
    found = [
        each
        for each in tree(Starlette(routes=routes, middleware=[gate])).warnings
        if each.code == "http-only-gate"
    ]

    assert len(found) == 1
    assert "/in/chat" in found[0].message
    assert "http-only-gate" not in codes(Starlette(routes=[Route("/", ok)], middleware=[gate]))


def test_a_gate_in_the_call_next_style_is_converted_first() -> None:
    """The drop-in is HTTP only: `websocket=True` is no remedy before it is converted."""
    gate = Middleware(compat.BaseHTTPMiddleware, dispatch=asks_a_function)
    app = Starlette(routes=[WebSocketRoute("/chat", chat)], middleware=[gate])
    (warning,) = tree(app).warnings

    assert warning.code == "http-only-gate"
    assert warning.remedy.startswith("Run `httpmw migrate --write`")


@pytest.mark.parametrize(
    ("dispatch", "number"), [(asks_a_function, 1), (lets_preflights_pass, 0), (None, 0)]
)
def test_cors_inside_of_a_gate(dispatch: Any, number: int) -> None:
    """A gate outside of CORS refuses preflights, unless it speaks of `OPTIONS`."""
    cors = Middleware(CORSMiddleware, allow_origins=["*"])
    gate = Middleware(Base) if dispatch is None else Middleware(BaseHTTPMiddleware, dispatch)
    orders = ([gate, cors], [cors, gate])
    found = [tree(Starlette(middleware=each)).warnings for each in orders]

    told = [sum("preflight" in each.message for each in warnings) for warnings in found]
    assert told == [number, 0]


def test_cors_inside_of_cors() -> None:
    """Where CORS stands around the application, nothing is said of another one in it."""
    inner = Starlette(middleware=[Middleware(CORSMiddleware, allow_origins=["*"])])

    assert codes(CORSMiddleware(inner, allow_origins=["*"])) == []


def test_what_is_open_is_told_first() -> None:
    """Warnings come by what is the worst, whatever the order of the layers."""
    app = Starlette(
        routes=[WebSocketRoute("/chat", chat)], middleware=[Middleware(Base), Middleware(PlainGate)]
    )

    assert codes(app) == ["http-only-gate", "base-http"]


@pytest.mark.parametrize(
    "layer",
    [
        Middleware(HTTPMiddleware, dispatch=members_only, websocket=True),
        Middleware(HTTPMiddleware, dispatch=waiting),
        Middleware(WholeGate),
        Middleware(GZipMiddleware),
        Middleware(Base),
    ],
)
def test_what_is_no_gate_or_sees_websockets(layer: Middleware) -> None:
    """A layer that refuses nothing, or sees handshakes, is no such gate."""
    app = Starlette(routes=[WebSocketRoute("/chat", chat)], middleware=[layer])

    assert "http-only-gate" not in codes(app)


def test_orders_that_layers_of_ours_warn_of() -> None:
    """What an `OrderWarning` says is a warning here as well."""
    order = [Middleware(ProblemDetailsMiddleware), Middleware(AccessLogMiddleware)]
    with pytest.warns(UserWarning, match="logged"):
        (warning,) = tree(Starlette(middleware=order)).warnings

    assert warning.code == "order"
    assert "AccessLogMiddleware" in warning.remedy


# ---------------------------------------------------------------------- the command

APP = """
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

class Site:
    app = Starlette()

app = Starlette(middleware=[Middleware(CORSMiddleware)])

def make():
    return Starlette()

number = 7
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an application in `shown_app.py`, which is the current one."""
    (tmp_path / "shown_app.py").write_text(APP)
    (tmp_path / "shown_broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "shown_layer.py").write_text(f"{APP}\napp.add_middleware(CORSMiddleware, no=1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("shown_app", "shown_broken", "shown_layer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["shown_app:app"], 0),
        (["shown_app"], 0),
        (["shown_app.py"], 0),
        (["shown_app:app", "--check"], 1),
        (["shown_app:Site.app", "--check"], 0),
        (["shown_app:make", "--factory", "--check"], 0),
    ],
)
def test_show_and_check(
    arguments: list[str], code: int, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It draws the application; with `--check` a warning is exit code 1."""
    assert main(["show", *arguments]) == code
    assert "ServerErrorMiddleware" in capsys.readouterr().out


def test_app_dir(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--app-dir` says where modules are."""
    monkeypatch.chdir("/")

    assert main(["show", "shown_app", "--app-dir", str(project)]) == 0


def test_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` is the tree and the warnings, for tools."""
    main(["show", "shown_app", "--json"])
    written = json.loads(capsys.readouterr().out)

    assert written["root"]["kind"] == "application"
    assert written["root"]["children"][0]["name"] == "ServerErrorMiddleware"
    assert [each["code"] for each in written["warnings"]] == ["cors-inside"]


def test_ignore(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--ignore` leaves warnings of a code out, for `--check` too; another code is refused."""
    assert main(["show", "shown_app", "--check", "--ignore", "cors-inside"]) == 0
    assert "no warnings" in capsys.readouterr().out
    assert main(["show", "shown_app", "--ignore", "cors"]) == 2
    assert "cors-inside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shown_layer:app", "a layer could not be made"),
        ("shown_nothing:app", "--app-dir"),
        ("shown_app:nope", "ASGI apps in it: app"),
        ("shown_app:make", "--factory"),
        ("shown_app:number", "int, no ASGI app"),
        ("shown_broken:app", "no_such_module_at_all"),
        ("nothing.py", "there is no file"),
    ],
)
def test_what_cannot_be_loaded(
    name: str, words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and the message says what to write instead."""
    assert main(["show", name]) == 2
    assert words in capsys.readouterr().err


def test_import_httpmw_loads_none_of_it() -> None:
    """Neither `import httpmw` nor its middleware package loads `httpmw.show`."""
    code = "import httpmw, httpmw.middleware, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert "httpmw.show" not in loaded


def test_a_request_id_is_no_gate() -> None:
    """The layers that are ready to import are known, by their class."""
    app = Starlette(routes=[WebSocketRoute("/chat", chat)])
    app.add_middleware(RequestIDMiddleware, websocket=False)

    assert codes(app) == []
