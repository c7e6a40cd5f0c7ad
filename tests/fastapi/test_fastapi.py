"""`httpmw.fastapi.MiddlewareRouter`: layers around everything in a router."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastapi
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

import httpmw.fastapi
from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError
from httpmw.fastapi import MiddlewareRouter
from tests.harness import PassThrough, request

STAYS = httpmw.fastapi._STAYS

before = pytest.mark.skipif(STAYS, reason="FastAPI before 0.137")
since = pytest.mark.skipif(not STAYS, reason="FastAPI 0.137 or later")

# The checker looks for nothing that a router does.
pytestmark = pytest.mark.unchecked("FastAPI finds routers by the scope that it has made itself")


async def only_members(conn: Connection) -> Flow:
    if "x-member" not in conn.headers:
        yield PlainTextResponse("members only", 403)
        return
    response = yield
    response.headers.append("x-layer", "members")


async def second(conn: Connection) -> Flow:
    response = yield
    response.headers.append("x-layer", "second")


def news() -> str:
    return "news"


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


MEMBER = {"x-member": "yes"}


async def is_gated(app: Any, path: str, method: str = "GET") -> bool:
    """Whether strangers are refused, and members let in."""
    stranger = await request(app, path=path, method=method)
    member = await request(app, path=path, method=method, headers=MEMBER)
    assert member.status == (200 if method == "GET" else 405)
    if method == "GET":  # else it is an exception on its way out, for the application to answer
        assert (member.headers.get("x-layer") == "members") == (stranger.status == 403)
    return stranger.status == 403


Include = Callable[[APIRouter], Any]


def into_an_application(router: APIRouter) -> FastAPI:
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    return app


def into_a_router(router: APIRouter) -> FastAPI:
    app, between = FastAPI(), APIRouter()
    between.include_router(router, prefix="/v1")
    app.include_router(between)
    return app


def into_a_router_that_is_there_already(router: APIRouter) -> FastAPI:
    app, between = FastAPI(), APIRouter()
    if STAYS:
        app.include_router(between)
    between.include_router(router, prefix="/v1")
    if not STAYS:
        app.include_router(between)
    return app


@pytest.fixture(
    params=[into_an_application, into_a_router, into_a_router_that_is_there_already],
    ids=lambda each: each.__name__,
)
def include(request: pytest.FixtureRequest) -> Include:
    """The ways of a router into an application, below `/v1`."""
    return request.param


# -- what is covered ---------------------------------------------------------------------------


async def test_its_own_routes(include: Include) -> None:
    """Path operations of the router are behind its layers, by every method."""
    router = MiddlewareRouter(prefix="/members", middleware=[only_members])
    router.get("/news")(news)
    app = include(router)
    app.get("/")(news)

    assert await is_gated(app, "/v1/members/news")
    assert await is_gated(app, "/v1/members/news", "POST")
    assert (await request(app)).body == b'"news"'


async def test_routes_of_routers_within(include: Include) -> None:
    """A router that is included into it, at any depth, is behind its layers."""
    router = MiddlewareRouter(prefix="/members", middleware=[only_members])
    inner, innermost = APIRouter(prefix="/inner"), APIRouter()
    innermost.get("/news")(news)
    inner.include_router(innermost)
    inner.get("/more")(news)
    router.include_router(inner)
    app = include(router)

    assert await is_gated(app, "/v1/members/inner/news")
    assert await is_gated(app, "/v1/members/inner/more")


async def test_a_router_within_is_free_elsewhere(include: Include) -> None:
    """The layers belong to the router, not to those that are included into it."""
    router = MiddlewareRouter(prefix="/members", middleware=[only_members])
    inner = APIRouter()
    inner.get("/news")(news)
    router.include_router(inner)
    app = include(router)
    app.include_router(inner, prefix="/free")

    assert await is_gated(app, "/v1/members/news")
    assert not await is_gated(app, "/free/news")


async def test_routers_with_layers_in_one_another(include: Include) -> None:
    """Each stands around what is in it, the outer one's layers outermost."""
    outer = MiddlewareRouter(middleware=[second])
    inner = MiddlewareRouter(prefix="/members", middleware=[only_members])
    inner.get("/news")(news)
    outer.include_router(inner)
    server = await request(include(outer), path="/v1/members/news", headers=MEMBER)

    assert server.headers.getlist("x-layer") == ["members", "second"]


async def test_several_layers_are_fused_or_not(include: Include) -> None:
    """The first is the outermost; any ASGI middleware can be among them."""
    layers = [second, Middleware(PassThrough), Middleware(HTTPMiddleware, dispatch=only_members)]
    router = MiddlewareRouter(middleware=layers)
    router.get("/news")(news)
    server = await request(include(router), path="/v1/news", headers=MEMBER)

    assert server.headers.getlist("x-layer") == ["members", "second"]


async def test_a_route_class_of_ones_own(include: Include) -> None:
    """A custom `route_class` stays what it is."""
    seen: list[str] = []

    class Own(APIRoute):
        def get_route_handler(self) -> Any:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                seen.append(request.url.path)
                return await handler(request)

            return handle

    router = MiddlewareRouter(middleware=[only_members], route_class=Own)
    router.get("/news")(news)

    assert await is_gated(include(router), "/v1/news")
    assert seen == ["/v1/news"]


@since
async def test_what_is_added_later(include: Include) -> None:
    """Routes that come after the router was included, there and within, and after requests."""
    router, inner = MiddlewareRouter(middleware=[only_members]), APIRouter()
    router.get("/news")(news)
    router.include_router(inner)
    app = include(router)
    assert await is_gated(app, "/v1/news")
    router.get("/late")(news)
    inner.get("/later")(news)
    late = APIRouter()
    inner.include_router(late)
    late.get("/latest")(news)

    for path in ("late", "later", "latest"):
        assert await is_gated(app, f"/v1/{path}")


@since
async def test_what_is_no_path_operation(include: Include) -> None:
    """Routes of Starlette, mounts and what is in the list of routes."""
    router = MiddlewareRouter(middleware=[only_members])
    router.add_route("/plain", plain)
    router.mount("/mounted", Starlette(routes=[Route("/plain", plain)]))
    router.routes.append(Route("/by-hand", plain))
    router.routes.append(APIRoute("/operation", news))
    app = include(router)

    for path in ("plain", "mounted/plain", "by-hand", "operation"):
        assert await is_gated(app, f"/v1/{path}")


@since
@pytest.mark.parametrize("mount", [False, True], ids=["served", "mounted"])
async def test_a_router_that_is_an_app_by_itself(mount: bool) -> None:
    """It is behind its layers, once."""
    router = MiddlewareRouter(middleware=[only_members])
    router.add_route("/plain", plain)
    app = Starlette(routes=[Mount("/v1", app=router)]) if mount else router

    assert await is_gated(app, "/v1/plain" if mount else "/plain")


def test_the_schema_and_the_names_of_routes() -> None:
    """They are those of an `APIRouter`."""
    app, same = FastAPI(), FastAPI()
    for application, router in (
        (app, MiddlewareRouter(prefix="/members", tags=["m"], middleware=[only_members])),
        (same, APIRouter(prefix="/members", tags=["m"])),
    ):
        router.get("/news/{number}", name="news")(news)
        application.include_router(router, prefix="/v1")

    assert app.openapi() == same.openapi()
    assert app.url_path_for("news", number="1") == "/v1/members/news/1"


async def test_a_path_that_matches_nothing() -> None:
    """It is not in the router, so its layers do not see it."""
    router = MiddlewareRouter(prefix="/members", middleware=[only_members])
    router.get("/news")(news)

    assert (await request(into_an_application(router), path="/v1/members/no")).status == 404


def test_a_request_body_and_dependencies() -> None:
    """What FastAPI does for a path operation works behind the layers."""

    async def twice(conn: Connection) -> Flow:
        body = await conn.body()
        response = yield
        response.headers["x-length"] = str(len(body))

    router = MiddlewareRouter(middleware=[twice], dependencies=[fastapi.Depends(news)])

    @router.post("/items/{item}")
    def add(item: int, data: dict[str, int], found: str = fastapi.Depends(news)) -> Any:
        return {"item": item, "data": data, "found": found}

    client = TestClient(into_an_application(router))
    response = client.post("/v1/items/7", json={"a": 1})

    assert response.json() == {"item": 7, "data": {"a": 1}, "found": "news"}
    assert response.headers["x-length"] == "7"


# -- what is refused ---------------------------------------------------------------------------


def nested_socket(router: APIRouter) -> None:
    inner = APIRouter()
    inner.websocket("/socket")(socket)
    router.include_router(inner)


SOCKETS = [
    lambda router: router.websocket("/socket")(socket),
    lambda router: router.add_api_websocket_route("/socket", socket),
    lambda router: router.add_websocket_route("/socket", socket),
    lambda router: router.websocket_route("/socket")(socket),
    nested_socket,
]


@pytest.mark.parametrize("add", SOCKETS, ids=["decorator", "method", "starlette", "old", "nested"])
def test_websocket_routes(add: Any) -> None:
    """A layer sees HTTP only, so what it guards has no WebSocket routes."""
    router = MiddlewareRouter(prefix="/members", middleware=[only_members])
    with pytest.raises(TypeError) as caught:
        add(router)

    assert "a WebSocket route" in str(caught.value)
    assert "'/members'" in str(caught.value)


def by_the_list_of_routes(app: FastAPI, router: APIRouter, inner: APIRouter) -> None:
    router.routes.append(WebSocketRoute("/socket", socket))


def by_a_router_within(app: FastAPI, router: APIRouter, inner: APIRouter) -> None:
    inner.websocket("/socket")(socket)


def by_a_mounted_application(app: FastAPI, router: APIRouter, inner: APIRouter) -> None:
    router.mount("/", Starlette(routes=[WebSocketRoute("/socket", socket)]))


@since
@pytest.mark.parametrize(
    "add", [by_the_list_of_routes, by_a_router_within, by_a_mounted_application]
)
def test_websocket_routes_that_are_not_seen_when_they_come(add: Any) -> None:
    """The handshake is an error, and not let in."""
    router, inner, app = MiddlewareRouter(middleware=[only_members]), APIRouter(), FastAPI()
    router.include_router(inner)
    app.include_router(router, prefix="/v1")
    add(app, router, inner)

    with (
        pytest.raises((MiddlewareError, WebSocketDisconnect), match="a WebSocket route"),
        TestClient(app).websocket_connect("/v1/socket", headers=MEMBER),
    ):
        pass


@since
def test_websocket_routes_behind_layers_that_see_them() -> None:
    """Where every layer is an ASGI middleware that sees handshakes, they are covered."""

    class Refusing:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "websocket.close", "code": 4403})

    router = MiddlewareRouter(middleware=[Middleware(Refusing)])
    router.websocket("/socket")(socket)
    client = TestClient(into_an_application(router))

    with (
        pytest.raises(WebSocketDisconnect) as caught,
        client.websocket_connect("/v1/socket"),
    ):
        pass
    assert caught.value.code == 4403


@since
@pytest.mark.parametrize(
    "layers",
    [
        {"middleware": [second, only_members], "websocket": True},
        {"middleware": [Middleware(HTTPMiddleware, dispatch=only_members, websocket=True)]},
    ],
    ids=["functions", "Middleware"],
)
def test_websocket_routes_behind_layers_that_run_around_handshakes(layers: Any) -> None:
    """With `websocket=True` a gate covers them: in the router, in those within, and mounted."""
    inner = APIRouter()
    inner.websocket("/inner")(socket)
    router = MiddlewareRouter(**layers)
    router.websocket("/socket")(socket)
    router.include_router(inner)
    router.mount("/mounted", Starlette(routes=[WebSocketRoute("/socket", socket)]))
    client = TestClient(into_an_application(router))
    for path in ("/v1/socket", "/v1/inner", "/v1/mounted/socket"):
        with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect(path):
            pass
        assert (caught.value.status_code, caught.value.text) == (403, "members only")
        with client.websocket_connect(path, headers=MEMBER) as accepted:
            assert "members" in str(accepted.extra_headers)


frontends = pytest.mark.skipif(
    not hasattr(APIRouter, "frontend"), reason="a FastAPI without frontends"
)


@frontends
def test_a_frontend() -> None:
    """FastAPI serves it past its routers."""
    router, inner = MiddlewareRouter(middleware=[only_members]), APIRouter()
    with pytest.raises(TypeError, match="a frontend"):
        router.frontend("/", directory=".", check_dir=False)
    inner.frontend("/", directory=".", check_dir=False)
    with pytest.raises(TypeError, match="a frontend"):
        router.include_router(inner)


@frontends
async def test_a_frontend_that_comes_later(tmp_path: Path) -> None:
    """One in a router within is not served."""
    (tmp_path / "secret.txt").write_text("secret")
    router, inner = MiddlewareRouter(middleware=[only_members]), APIRouter()
    router.include_router(inner)
    app = into_an_application(router)
    assert (await request(app, path="/v1/secret.txt")).status == 404
    inner.frontend("/", directory=str(tmp_path), check_dir=False)
    server = await request(app, path="/v1/secret.txt", keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    assert b"secret" not in server.body


@before
def test_what_an_old_fastapi_would_lose() -> None:
    """Refused, or an error where the router is included."""
    router = MiddlewareRouter(middleware=[only_members])
    with pytest.raises(TypeError, match="a route of Starlette"):
        router.add_route("/plain", plain)
    with pytest.raises(TypeError, match="a mounted application"):
        router.mount("/mounted", Starlette())
    router.routes.append(APIRoute("/news", news))
    with pytest.raises(TypeError, match="cannot stand"):
        FastAPI().include_router(router)


@pytest.mark.parametrize("wrong", [Starlette(), "mw", HTTPMiddleware, lambda: None])
def test_what_is_no_middleware(wrong: Any) -> None:
    """It is refused where the router is made."""
    with pytest.raises(TypeError):
        MiddlewareRouter(middleware=[wrong])


def test_a_fastapi_that_goes_past_its_routers() -> None:
    """It is refused by the first router, and not found out by a stranger."""
    program = """
import fastapi
from fastapi import routing
from httpmw.fastapi import MiddlewareRouter

if hasattr(fastapi.APIRouter, "handle"):
    async def handle(self, scope, receive, send):  # past the router
        await self._handle_selected(scope, receive, send)
    routing._IncludedRouter.handle = handle
else:
    original = fastapi.APIRouter.add_api_route
    def add(self, *args, route_class_override=None, **options):
        original(self, *args, **options)
    fastapi.APIRouter.add_api_route = add
for _ in range(2):
    try:
        MiddlewareRouter(middleware=[])
    except RuntimeError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.count(f"FastAPI {fastapi.__version__} is not known") == 2
