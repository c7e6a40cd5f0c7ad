"""`InspectorMiddleware`: who may see it, what it keeps, and the page in a real browser."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import anyio
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack
from httpmw.middleware import InspectorMiddleware
from httpmw.show._hub import Hub
from httpmw.show._record import Record
from httpmw.testing import run
from tests.browser import CHROMIUM, Page
from tests.harness import request, waiting

pytestmark = pytest.mark.unchecked("it takes the checkers out where it looks")

LOCAL = {"client": ("127.0.0.1", 50000)}
HOST = {"host": "localhost:8000"}


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def broken(request: Request) -> Response:
    raise ValueError("a secret body")


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


ROUTES = [
    Route("/", hello),
    Route("/users/{name}", echo, methods=["GET", "POST"]),
    Route("/broken", broken),
    WebSocketRoute("/chat", chat),
]


def app_of(*layers: Any, kind: Any = Starlette, debug: bool = True, **options: Any) -> Any:
    layers = (Middleware(InspectorMiddleware, **options), *layers)
    return kind(routes=ROUTES, middleware=layers, debug=debug)


async def asked(app: Any, path: str, headers: Any = HOST, **options: Any) -> Any:
    scope = {**LOCAL, **options.pop("scope", {})}
    return await run(None, app, path=path, headers=headers, scope=scope, keep_error=True, **options)


def hub_of(app: Any) -> Hub:
    """Find what the inspector of an application has kept."""
    layer = app.middleware_stack
    while not isinstance(layer, InspectorMiddleware):
        layer = layer.app
    return layer._hub


async def told(app: Any, *paths: str, **options: Any) -> list[dict[str, Any]]:
    """Send requests, and give what is told of them; before them one that sets it up."""
    await asked(app, "/")
    for path in paths:
        await asked(app, path, **options)
    return hub_of(app).news(0)[1]["requests"][1:]


# ---------------------------------------------------------------------- who may see it


async def test_the_page() -> None:
    """In a debug application a client on this machine gets the page, which loads nothing."""
    result = await asked(app_of(), "/_httpmw")

    assert result.status == 200
    assert "<title>httpmw inspector</title>" in result.text
    assert "default-src 'none'" in result.headers["content-security-policy"]
    assert "'sha256-" in result.headers["content-security-policy"]
    assert result.headers["cache-control"] == "no-store"
    assert result.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("203.0.113.7", {}),
        ("testclient", {}),
        ("127.0.0.1", {"x-forwarded-for": "203.0.113.7"}),
        ("127.0.0.1", {"forwarded": "for=203.0.113.7"}),
        ("127.0.0.1", {"host": "evil.example"}),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}),
        ("127.0.0.1", {"sec-fetch-site": "cross-site"}),
    ],
)
async def test_strangers_see_nothing(client: str, headers: dict[str, str]) -> None:
    """Another machine, a proxy, another name or another site: the page is not there."""
    for path in ("/_httpmw", "/_httpmw/events"):
        scope = {"client": (client, 1)}
        assert (await asked(app_of(), path, {**HOST, **headers}, scope=scope)).status == 404


@pytest.mark.parametrize(
    ("client", "host"),
    [("::1", "[::1]:8000"), ("::ffff:127.0.0.1", "localhost"), ("127.8.9.1", "shop.localhost:80")],
)
async def test_this_machine_by_other_names(client: str, host: str) -> None:
    """Loopback addresses of every kind are this machine."""
    result = await asked(app_of(), "/_httpmw", {"host": host}, scope={"client": (client, 1)})

    assert result.status == 200


async def test_allow_takes_the_place_of_that_rule() -> None:
    """*allow* alone says who may see it."""
    app = app_of(allow=lambda conn: conn.headers.get("x-me") == "1")
    elsewhere = {"client": ("203.0.113.7", 1)}

    assert (await asked(app, "/_httpmw", {**HOST, "x-me": "1"}, scope=elsewhere)).status == 200
    assert (await asked(app, "/_httpmw")).status == 404


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_it_refuses_to_start_outside_of_a_debug_application(kind: Any) -> None:
    """Without `debug=True` the layers cannot be built; in a stack the first request fails."""
    with pytest.raises(RuntimeError, match="no `debug=True`"):
        app_of(kind=kind, debug=False).build_middleware_stack()
    app = kind(routes=ROUTES)
    MiddlewareStack.install(app).add(Middleware(InspectorMiddleware))
    assert isinstance((await asked(app, "/")).exception, RuntimeError)
    with pytest.raises(RuntimeError, match="no `debug=True`"):
        await run(Middleware(InspectorMiddleware))


async def test_enabled() -> None:
    """`enabled=True` has it anywhere, `enabled=False` nowhere."""
    assert (await asked(app_of(debug=False, enabled=True), "/_httpmw")).status == 200
    assert (await asked(app_of(enabled=False), "/_httpmw")).status == 404
    assert (await asked(app_of(debug=False, enabled=False), "/")).status == 200
    around = InspectorMiddleware(Starlette(routes=ROUTES, debug=True))
    assert (await asked(around, "/_httpmw")).status == 200
    with pytest.raises(RuntimeError, match="no `debug=True`"):
        InspectorMiddleware(Starlette())


async def test_paths_and_methods() -> None:
    """The page is at *path*, also behind a mount, and takes GET only."""
    app = app_of(path="/look/")
    assert (await asked(app, "/look")).status == 200
    assert (await asked(app, "/_httpmw")).status == 404
    assert (await asked(app, "/look/nothing")).status == 404
    assert (await asked(app, "/look", method="POST")).status == 405
    mounted = Starlette(routes=[Mount("/sub", app)])
    assert (await asked(mounted, "/sub/look")).status == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "x"}, "path="),
        ({"path": "/"}, "path="),
        ({"enabled": 1}, "enabled=1"),
        ({"allow": 3}, "allow=3"),
        ({"keep": 0}, "keep=0"),
        ({"headers": "x"}, "headers='x'"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is a TypeError that names it."""
    with pytest.raises(TypeError, match=words):
        InspectorMiddleware(hello, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- what it keeps


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_requests_are_told_layer_by_layer(kind: Any) -> None:
    """Of a request it keeps the layers that it reached, what they did, the route and the bytes."""

    async def marked(conn: Connection) -> Flow:
        response = yield
        response.headers["x-marked"] = "yes"

    layers = [Middleware(HTTPMiddleware, dispatch=marked), Middleware(GZipMiddleware)]
    (entry,) = await told(app_of(*layers, kind=kind), "/users/ann", method="POST", body="abc")

    names = [each["name"] for each in entry["steps"]]
    assert names[:2] == ["marked", "GZipMiddleware"]
    assert entry["steps"][0]["changed"] == ["response +x-marked"]
    assert entry["route"] == "/users/{name}"
    assert (entry["status"], entry["state"], entry["bytes_sent"]) == (200, "completed", 3)
    own = sum(each["own"] for each in entry["steps"]) + entry["client_seconds"]
    assert own == pytest.approx(entry["seconds"], rel=0.05)


async def test_no_secret_is_kept() -> None:
    """No body, no query and no header is kept but those that were named, and no message."""
    headers = {**HOST, "authorization": "secret", "x-request-id": "7"}
    app = app_of(headers=["X-Request-ID"])
    found = await told(app, "/users/a?token=secret", headers=headers, method="POST", body="secret")
    found += await told(app, "/broken")
    written = json.dumps(found)

    assert "secret" not in written
    assert found[0]["headers"] == {"x-request-id": "7"}
    assert found[-1]["exception"] == "ValueError"
    assert found[-1]["steps"][-1]["happened"] == "raised ValueError"


async def test_handshakes_are_told() -> None:
    """A WebSocket is a request, until the socket is over."""
    (entry,) = await told(app_of(), "/chat", websocket=True)

    assert (entry["method"], entry["status"], entry["state"]) == ("WebSocket", 101, "completed")
    assert entry["route"] == "/chat"


async def test_a_client_that_leaves() -> None:
    """A response that was cut off is told as disconnected."""

    async def long(request: Request) -> Response:
        async def chunks() -> Any:
            for _ in range(9):
                yield b"x"

        return StreamingResponse(chunks())

    app = app_of()
    app.add_route("/long", long)
    (entry,) = await told(app, "/long", leaves_after=2, spec="2.4")

    assert entry["state"] == "disconnected"


async def test_the_tree_follows_the_edits_of_a_stack() -> None:
    """A layer that is added to a running stack is looked at from the next request on."""
    app = Starlette(routes=ROUTES, debug=True)
    stack = MiddlewareStack.install(app)
    stack.add(Middleware(InspectorMiddleware))
    await asked(app, "/")
    hub = next(iter(stack._read())).instance._hub  # type: ignore[attr-defined]
    stack.add(waiting, innermost=True)
    await asked(app, "/")
    await asked(app, "/")
    steps = hub.news(0)[1]["requests"][-1]["steps"]

    assert steps[0]["name"] == "waiting"
    assert "waiting" in json.dumps(hub.read().as_json())
    stack.remove(waiting)
    assert "waiting" not in json.dumps(hub.read().as_json())
    assert (await asked(app, "/")).status == 200


async def test_what_is_kept_is_bounded() -> None:
    """It keeps as many requests as it was told to, looks at a part of many, and holds no record."""
    app = app_of(keep=50)
    for _ in range(300):
        await request(app)
    total, news = hub_of(app).news(0)
    gc.collect()

    assert len(hub_of(app)._entries) == 50
    assert news["total"] == 300
    assert news["left_out"] == 250
    assert [each for each in gc.get_objects() if type(each) is Record] == []
    seen = [each for each in news["requests"] if "steps" in each]
    assert len(seen) < 50
    assert hub_of(app).news(total)[1]["requests"] == []


async def test_requests_are_as_without_it() -> None:
    """What an application sends is the same with the inspector, from the first request on."""
    plain = Starlette(routes=ROUTES, middleware=[Middleware(GZipMiddleware)])
    app = app_of(Middleware(GZipMiddleware))
    for path in ("/", "/", "/users/ann", "/nothing"):
        expected = (await request(plain, path=path)).sent
        assert (await asked(app, path)).sent == expected


# ---------------------------------------------------------------------- on a server, in a browser


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on uvicorn, in a thread of its own."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        started = threading.Event()

        class Server(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                started.set()

        config = uvicorn.Config(app, log_level="critical", lifespan="off", http="h11", ws="none")
        server = Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        started.wait()
        try:
            yield f"http://localhost:{listening.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture
def live() -> Iterator[tuple[str, Callable[[], None]]]:
    """A served application, with a stream that ends when it is told to."""
    over = threading.Event()

    async def stream(request: Request) -> Response:
        async def chunks() -> Any:
            while not over.is_set():
                yield b"x" * 1000
                await anyio.sleep(0.02)

        return StreamingResponse(chunks())

    app = app_of(Middleware(HTTPMiddleware, dispatch=waiting))
    app.add_route("/stream", stream)
    with served(app) as address:
        try:
            yield address, over.set
        finally:
            over.set()


def events(address: str, until: str) -> list[Any]:
    """Read what the page reads, until one of the events has these words in it."""
    found = []
    with urlopen(f"{address}/_httpmw/events", timeout=20) as stream:  # noqa: S310 - our own
        name = ""
        for line in stream:
            text = line.decode().strip()
            name = text.removeprefix("event: ") if text.startswith("event: ") else name
            if text.startswith("data: "):
                found.append((name, json.loads(text.removeprefix("data: "))))
                if until in text:
                    return found
    return found


def test_events(live: Any) -> None:
    """The tree comes first, then the requests as they are."""
    address, _ = live
    for _ in range(2):
        urlopen(f"{address}/users/ann").read()  # noqa: S310 - our own
    found = events(address, "/users/ann")

    assert found[0][0] == "tree"
    assert "InspectorMiddleware" in json.dumps(found[0][1])
    assert found[-1][1]["requests"][-1]["status"] == 200


NEWEST = "document.querySelector('#requests button').textContent"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_page_in_a_browser(live: Any) -> None:
    """Requests appear while they run, a stream grows, one that is left is shown as disconnected."""
    address, _ = live
    urlopen(f"{address}/").read()  # noqa: S310 - our own
    with Page() as page:
        page.size(1200, 800)
        page.open(f"{address}/_httpmw")
        page.until("document.getElementById('status').textContent", lambda text: text == "live")
        urlopen(f"{address}/users/ann").read()  # noqa: S310 - our own
        page.until(NEWEST, lambda text: "/users/{name}" in text)
        page.run("document.querySelector('#requests button').click()")
        shown = page.run("document.querySelector('#request').textContent")
        assert "waiting" in shown
        assert "answered 200" in shown
        client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        client.send(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        page.until(NEWEST, lambda text: "running" in text and " kB" in text)
        before = page.run(NEWEST)
        page.until(NEWEST, lambda text: text != before)
        client.close()
        page.until(NEWEST, lambda text: "disconnected" in text)
        page.size(390, 800, dark=True)
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.errors == []
        if folder := os.environ.get("HTTPMW_PICTURES"):
            take_pictures(page, Path(folder))


def take_pictures(page: Page, folder: Path) -> None:
    """For somebody to look at."""
    for width, height in ((1200, 800), (390, 844)):
        for dark in (False, True):
            page.size(width, height, dark=dark)
            time.sleep(0.1)
            page.picture(folder / f"inspector-{width}{'-dark' * dark}.png")
