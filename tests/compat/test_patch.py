"""
`patch_starlette()`: whatever stands on Starlette's `BaseHTTPMiddleware` runs on this engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import starlette
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware import base as starlette_base
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import AppResponse, Connection, Flow, HTTPMiddleware, compat
from httpmw.compat import patch_starlette
from tests.harness import Server, body, plain_inner, script, start
from tests.harness import request as ask

Next = RequestResponseEndpoint
OWN = BaseHTTPMiddleware.__call__


@pytest.fixture(autouse=True)
def starlette_is_as_it_was() -> Iterator[None]:
    """No test leaves Starlette's class patched."""
    yield
    assert BaseHTTPMiddleware.__call__ is OWN


class Noting(BaseHTTPMiddleware):
    """A layer as another package defines it: it notes which engine it runs on."""

    async def dispatch(self, request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        response.headers["x-engine"] = "httpmw" if isinstance(response, AppResponse) else "its own"
        return response


async def engine(app: ASGIApp) -> str:
    return (await ask(app)).headers["x-engine"]


async def test_class_and_instance_that_were_there_before() -> None:
    """Both run on this engine in the block, and on Starlette's before it and after it."""
    app = Noting(plain_inner())
    assert await engine(app) == "its own"

    with patch_starlette():
        assert await engine(app) == "httpmw"
        assert await engine(Noting(plain_inner())) == "httpmw"

    assert await engine(app) == "its own"


async def test_plain_call_and_restore() -> None:
    """Without a block, until `restore()`; to call that twice is the same as once."""
    app = Noting(plain_inner())
    patch = patch_starlette()
    assert await engine(app) == "httpmw"

    patch.restore()
    patch.restore()

    assert await engine(app) == "its own"


async def test_calls_are_counted() -> None:
    """It may be patched again, inside and overlapping; the last one to be taken back restores."""
    app = Noting(plain_inner())
    first = patch_starlette()
    second = patch_starlette()
    with patch_starlette():
        assert await engine(app) == "httpmw"
    first.restore()
    first.restore()
    assert await engine(app) == "httpmw"

    second.restore()

    assert await engine(app) == "its own"


async def test_block_that_fails_restores() -> None:
    """An exception leaves the block, and Starlette's class is as before."""
    with pytest.raises(LookupError), patch_starlette():
        raise LookupError
    assert await engine(Noting(plain_inner())) == "its own"


async def test_fastapi_decorator() -> None:
    """`@app.middleware("http")` of an application that was made before."""
    seen: list[type] = []
    app = FastAPI()

    @app.middleware("http")
    async def noting(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        seen.append(type(response))
        return response

    @app.get("/")
    async def endpoint() -> dict[str, str]:
        return {"hello": "world"}

    await ask(app)
    with patch_starlette():
        server = await ask(app)

    assert server.json() == {"hello": "world"}
    assert seen[0] is not AppResponse
    assert seen[1] is AppResponse


async def test_dispatch_argument_in_an_application() -> None:
    """`Middleware(BaseHTTPMiddleware, dispatch=...)`, twice, around a route."""
    seen: list[type] = []

    async def noting(request: Request, call_next: Next) -> Response:
        response = await call_next(request)
        seen.append(type(response))
        return response

    def endpoint(request: Request) -> Response:
        return PlainTextResponse("hello")

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=noting)] * 2,
    )
    with patch_starlette():
        server = await ask(app)

    assert server.body == b"hello"
    assert seen == [AppResponse, AppResponse]


async def test_class_that_overrides_call_is_left_alone() -> None:
    """It runs as it is written; where it calls super it gets what is there."""
    called = []

    class Own(Noting):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            called.append("own")
            await self.app(scope, receive, send)

    class Super(Noting):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            called.append("super")
            await super().__call__(scope, receive, send)

    with patch_starlette():
        assert "x-engine" not in (await ask(Own(plain_inner()))).headers
        assert await engine(Super(plain_inner())) == "httpmw"
        assert await engine(Noting(Super(plain_inner()))) == "httpmw"

    assert called == ["own", "super", "super"]


async def nothing(conn: Connection) -> Flow:
    yield


@pytest.mark.parametrize(
    "make",
    [
        lambda app: Noting(Noting(app)),
        lambda app: compat.BaseHTTPMiddleware(Noting(app), dispatch=Noting(app).dispatch),
        lambda app: Noting(compat.BaseHTTPMiddleware(app, dispatch=Noting(app).dispatch)),
        lambda app: HTTPMiddleware(Noting(app), dispatch=nothing),
        lambda app: Noting(HTTPMiddleware(app, dispatch=nothing)),
    ],
    ids=["two", "in the drop-in", "around the drop-in", "in a generator", "around a generator"],
)
async def test_neighbours_of_a_patched_layer(make: Callable[[ASGIApp], ASGIApp]) -> None:
    """Layers of all kinds next to it work, while it is patched and when it is restored."""
    app = make(plain_inner())
    engines = []
    for patched in (True, False, True):
        patch = patch_starlette() if patched else None
        engines.append(await engine(app))
        assert (await ask(app)).body == b"first, second and third"
        if patch is not None:
            patch.restore()

    assert engines[0] == engines[2] == "httpmw"


async def test_app_may_be_set_at_any_time() -> None:
    """Instances are looked at when a request comes, as Starlette does."""
    inner = Noting(script(start(201), body()))
    outer = Noting(inner)
    with patch_starlette():
        assert (await ask(outer)).status == 201
        inner.app = script(start(202), body())
        assert (await ask(outer)).status == 202


@pytest.mark.unchecked("the very same `receive` and `send` are looked for")
async def test_other_scopes_pass() -> None:
    """WebSocket and lifespan scopes go to the inner app as they are."""
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    server = Server()
    with patch_starlette():
        await Noting(app)({"type": "websocket"}, server.receive, server.send)

    assert seen == [({"type": "websocket"}, server.receive, server.send)]


async def test_request_that_runs_ends_as_it_was_begun() -> None:
    """To restore in the middle of a request does not touch that request."""
    in_app = anyio.Event()
    restored = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        in_app.set()
        await restored.wait()
        await Response()(scope, receive, send)

    engines = []

    async def run() -> None:
        engines.append(await engine(Noting(app)))

    async with anyio.create_task_group() as tasks:
        with patch_starlette():
            tasks.start_soon(run)
            await in_app.wait()
        restored.set()

    assert engines == ["httpmw"]


async def test_wrapper_that_was_put_around_the_patched_call() -> None:
    """Who wraps `__call__` meanwhile, as monitoring does, keeps a function that goes on working."""
    calls = []
    patch = patch_starlette()
    patched = BaseHTTPMiddleware.__call__

    async def monitored(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["path"])
        await patched(self, scope, receive, send)

    BaseHTTPMiddleware.__call__ = monitored  # type: ignore[method-assign]
    try:
        assert await engine(Noting(plain_inner())) == "httpmw"
        patch.restore()
        assert BaseHTTPMiddleware.__call__ is monitored
        assert await engine(Noting(plain_inner())) == "its own"
    finally:
        BaseHTTPMiddleware.__call__ = OWN  # type: ignore[method-assign]
    assert calls == ["/", "/"]


def test_threads() -> None:
    """Many threads at a time patch and restore; in the end nothing is patched."""
    failures = []
    together = threading.Barrier(8)

    def patch_and_restore() -> None:
        together.wait()
        for _ in range(50):
            with patch_starlette():
                if BaseHTTPMiddleware.__call__ is OWN:
                    failures.append("not patched")

    threads = [threading.Thread(target=patch_and_restore) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


# -- what is refused -------------------------------------------------------------------------


def refused(*words: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        patch_starlette()
    for word in ("Nothing was changed", *words):
        assert word in str(raised.value)


@pytest.mark.parametrize("version", ["0.45.3", "2.0.0", "2.1.0a1", "0.9"])
def test_version_that_is_not_known(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A Starlette that nobody has looked at is refused, with its version."""
    monkeypatch.setattr(starlette, "__version__", version)
    refused(f"Starlette {version}", "httpmw.compat")


@pytest.mark.parametrize("version", ["0.46.0", "0.52.1", "1.0.0rc1", "1.10.0", "1.99.9"])
def test_versions_that_are_known(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """From the oldest that httpmw supports to the end of 1.x."""
    monkeypatch.setattr(starlette, "__version__", version)
    patch_starlette().restore()


def changed(source: str) -> type:
    """A class like Starlette's, from a file of that name, with *source* as its body."""
    namespace: dict[str, Any] = {}
    code = "class BaseHTTPMiddleware:\n" + source
    exec(compile(code, starlette_base.__file__, "exec"), namespace)  # noqa: S102 - our own text
    cls: type = namespace["BaseHTTPMiddleware"]
    return cls


AS_IT_IS = """
    def __init__(self, app, dispatch=None): ...
    async def __call__(self, scope, receive, send): self.app, self.dispatch_func
    async def dispatch(self, request, call_next): ...
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (AS_IT_IS.replace("dispatch=None", "dispatch=None, *, limit=1"), "`__init__` takes other"),
        (AS_IT_IS.replace("request, call_next", "conn"), "`dispatch` takes other"),
        (AS_IT_IS.replace("dispatch_func", "handler"), "works with other attributes"),
        (AS_IT_IS + "    def finish(self): ...\n", "there is a method `finish`"),
    ],
)
def test_class_that_is_not_known(monkeypatch: pytest.MonkeyPatch, source: str, words: str) -> None:
    """Other parameters, methods or attributes than those relied on are refused."""
    monkeypatch.setattr(starlette_base, "BaseHTTPMiddleware", changed(source))
    refused(words)


def test_class_as_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above changes is what is accepted."""
    cls = changed(AS_IT_IS)
    monkeypatch.setattr(starlette_base, "BaseHTTPMiddleware", cls)
    call = vars(cls)["__call__"]

    with patch_starlette():
        assert vars(cls)["__call__"] is not call
    assert vars(cls)["__call__"] is call


def test_class_that_somebody_else_has_patched() -> None:
    """Whose function stands there is said, and to call `patch_starlette()` before."""

    async def monitored(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        await OWN(self, scope, receive, send)

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(BaseHTTPMiddleware, "__call__", monitored)
        refused("monitored", __file__, "Call `patch_starlette()` first")


def test_import_alone_patches_nothing() -> None:
    """`httpmw.compat` is imported here, and Starlette's class is its own."""
    assert compat.BaseHTTPMiddleware is not BaseHTTPMiddleware
    assert BaseHTTPMiddleware.__call__.__module__ == "starlette.middleware.base"
