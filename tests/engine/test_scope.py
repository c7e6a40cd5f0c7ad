"""
Whose scope it is.

What a layer changes of the request is seen further in, and by nobody else; what the app writes into
its scope is seen by all who are further out.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError
from httpmw.compat import BaseHTTPMiddleware
from tests.harness import Inner, PassThrough, Server, explained, request, stack

HEADERS = [("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("host", "testserver")]
EXTENSIONS = {"http.response.pathsend": {}, "test.other": {}}


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


def keys_of(scope: Scope) -> dict[str, Any]:
    """Return what a scope holds now; what is shared by all is left out."""
    return {
        key: copy.copy(value) if isinstance(value, dict | list) else value
        for key, value in scope.items()
        if key != "state"
    }


class Outside:
    """A plain ASGI layer that looks at its scope before, at the response start, and afterwards."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.before: Scope = {}
        self.at_start: Scope = {}
        self.after: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.before = keys_of(scope)

        async def look(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.at_start = keys_of(scope)
            await send(message)

        try:
            await self.app(scope, receive, look)
        finally:
            self.after = keys_of(scope)


# -- what a layer changes --------------------------------------------------------------------


def set_key(key: str, value: Any) -> Callable[[Any], None]:
    def change(conn: Any) -> None:
        conn.scope[key] = value

    return change


def replaced_scope(conn: Any) -> None:
    conn.scope = {**conn.scope, "method": "PUT", "path": "/new"}


def smaller_scope(conn: Any) -> None:
    conn.scope = {key: value for key, value in conn.scope.items() if key != "client"}


def deleted_key(conn: Any) -> None:
    del conn.scope["client"]


def appended_header(conn: Any) -> None:
    conn.scope["headers"].append((b"x-new", b"1"))


def appended_header_after_a_look(conn: Any) -> None:
    assert "x-new" not in conn.headers
    conn.scope["headers"].append((b"x-new", b"1"))
    assert conn.headers["x-new"] == "1"


def mapping_in_place(conn: Any) -> None:
    conn["headers"].append((b"x-new", b"1"))


def removed_header(conn: Any) -> None:
    del conn.scope["headers"][0]


def removed_extension(conn: Any) -> None:
    del conn.scope["extensions"]["http.response.pathsend"]


def path_parameter(conn: Any) -> None:
    conn.path_params["id"] = "2"


def older_version(conn: Any) -> None:
    conn.scope["asgi"]["spec_version"] = "2.1"


CHANGES: list[Any] = [
    pytest.param(set_key(key, value), id=f"scope[{key!r}]")
    for key, value in [
        ("method", "PUT"),
        ("path", "/new"),
        ("raw_path", b"/new"),
        ("query_string", b"a=1"),
        ("root_path", "/root"),
        ("scheme", "https"),
        ("client", ("10.0.0.1", 1)),
        ("headers", [(b"x-new", b"1")]),
        ("test.own", 1),
        ("user", "somebody"),
    ]
]
CHANGES += [
    replaced_scope,
    smaller_scope,
    deleted_key,
    appended_header,
    appended_header_after_a_look,
    mapping_in_place,
    removed_header,
    removed_extension,
    path_parameter,
    older_version,
]


def changed_headers(conn: Connection) -> None:
    conn.set_header("x-a", "new")
    conn.delete_header("x-b")


def replaced_body(conn: Connection) -> None:
    conn.replace_body(b"{}")


def transformed_body(conn: Connection) -> None:
    async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk.upper()

    conn.body_iterator = upper(conn.body_iterator)


def server_of_all(**options: Any) -> Server:
    server = Server(headers=HEADERS, body=b"body", extensions=EXTENSIONS, **options)
    server.scope["path_params"] = {"id": "1"}
    return server


@pytest.mark.parametrize("change", [*CHANGES, changed_headers, replaced_body, transformed_body])
async def test_changes_are_seen_further_in_and_nowhere_else(
    change: Callable[[Any], None], fused: bool
) -> None:
    """By the app and a layer further in; not by the server, nor by layers further out."""
    seen: dict[str, Scope] = {}

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen["outer"] = keys_of(conn.scope)
        seen["outer, read"] = {"method": conn.method, "headers": conn.headers.raw}
        yield response
        seen["outer, afterwards"] = keys_of(conn.scope)

    async def changing(conn: Connection) -> Flow:
        change(conn)
        seen["itself"] = keys_of(conn.scope)
        response = yield
        seen["itself, after"] = keys_of(conn.scope)
        yield response

    async def inner(conn: Connection) -> Flow:
        seen["inner"] = keys_of(conn.scope)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen["app"] = keys_of(scope)
        await Request(scope, receive).body()
        await hello(scope, receive, send)

    server = server_of_all()
    given = keys_of(server.scope)
    outside = Outside(stack(app, outer, changing, inner, fused=fused))
    await server.run(outside)

    assert seen["app"] != given
    assert seen["itself"] == seen["itself, after"] == seen["inner"] == seen["app"]
    assert outside.before == outside.at_start == outside.after == given
    assert seen["outer"] == seen["outer, afterwards"] == given
    assert seen["outer, read"] == {"method": given["method"], "headers": given["headers"]}
    assert keys_of(server.scope) == given


@pytest.mark.parametrize("change", CHANGES)
async def test_changes_of_a_dispatch_function(change: Callable[[Any], None], fused: bool) -> None:
    """The same holds in `call_next` style."""
    seen: dict[str, Scope] = {}

    async def outer(conn: Connection) -> Flow:
        yield
        seen["outer"] = keys_of(conn.scope)

    async def changing(request: Request, call_next: Any) -> Response:
        change(request)
        response: Response = await call_next(request)
        seen["itself"] = keys_of(request.scope)
        return response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen["app"] = keys_of(scope)
        await hello(scope, receive, send)

    between = (lambda app: app) if fused else PassThrough
    layers = HTTPMiddleware(
        between(BaseHTTPMiddleware(between(app), dispatch=changing)), dispatch=outer
    )
    server = server_of_all()
    given = keys_of(server.scope)
    outside = Outside(layers)
    await server.run(outside)

    assert seen["app"] != given
    assert seen["itself"] == seen["app"]
    assert outside.before == outside.at_start == outside.after == seen["outer"] == given
    assert keys_of(server.scope) == given


async def test_app_gets_the_servers_own_scope_where_nothing_was_changed(fused: bool) -> None:
    """Also where layers have looked at everything."""
    scopes = []

    async def look(conn: Connection) -> Flow:
        assert conn.scope["path"] == conn.url.path == conn["path"]
        assert conn.headers["x-b"] == "2"
        assert dict(conn) == conn.scope
        assert len(conn) == len(conn.scope)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await hello(scope, receive, send)

    server = server_of_all()
    headers = server.scope["headers"]
    await server.run(stack(app, look, look, fused=fused))

    assert scopes == [server.scope]
    assert scopes[0] is server.scope
    assert server.scope["headers"] is headers


async def test_list_behind_the_headers(fused: bool) -> None:
    """What is often advised, for want of another way, still changes the headers further in."""
    seen = []

    async def mw(conn: Connection) -> Flow:
        conn.headers.__dict__["_list"].append((b"x-new", b"1"))
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope).headers["x-new"])
        await hello(scope, receive, send)

    await request(stack(app, mw, fused=fused))

    assert seen == ["1"]


async def test_lists_that_were_not_changed_are_handed_on(fused: bool) -> None:
    """So that what the app appends to them is seen outside, as it is without the layer."""

    async def rewrite(conn: Connection) -> Flow:
        conn.scope["path"] = "/new"
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"].append((b"x-inner", b"1"))
        await hello(scope, receive, send)

    server = server_of_all()
    outside = Outside(stack(app, rewrite, fused=fused))
    await server.run(outside)

    assert (b"x-inner", b"1") in outside.at_start["headers"]


async def test_headers_of_a_scope_that_can_be_read_once(fused: bool) -> None:
    """The headers are an iterable by the specification: they are there for everybody."""
    seen = []

    async def look(conn: Connection) -> Flow:
        seen.append(conn.headers["x-b"])
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope).headers["x-b"])
        await hello(scope, receive, send)

    server = server_of_all()
    server.scope["headers"] = iter(server.scope["headers"])
    await server.run(stack(app, look, look, fused=fused))

    assert seen == ["2", "2", "2"]


async def test_a_scope_without_headers_has_none(fused: bool) -> None:
    """Tests that call an app by hand leave `headers` out, Starlette's own among them."""
    seen: list[Any] = []

    async def look(conn: Connection) -> Flow:
        seen.append((dict(conn.headers), conn.scope["path"]))
        yield

    async def dispatch(request: Request, call_next: Any) -> Response:
        seen.append((dict(request.headers), request.scope["path"]))
        return await call_next(request)

    server = Server()
    del server.scope["headers"]
    await server.run(stack(BaseHTTPMiddleware(hello, dispatch), look, look, fused=fused))

    assert seen == [({}, "/")] * 3
    assert server.body == b"hello"


async def test_what_is_left_is_received_where_a_scope_has_no_headers(fused: bool) -> None:
    """`conn.drain()` looks for a length and an expectation, and finds none."""
    server = Server(body=[b"a", b"b"])
    del server.scope["headers"]

    async def refuse(conn: Connection) -> Flow:
        await conn.drain()
        yield PlainTextResponse("no", 403)

    await server.run(stack(hello, refuse, fused=fused))

    assert server.status == 403


async def test_change_by_a_layer_that_steps_aside_is_seen_by_nobody(fused: bool) -> None:
    """It is not there, whatever it did before."""
    seen = []

    def aside(conn: Connection) -> Any:
        conn.scope["path"] = "/new"
        return None

    async def look(conn: Connection) -> Flow:
        seen.append(conn.scope["path"])
        yield

    await request(stack(hello, aside, look, fused=fused), path="/old")

    assert seen == ["/old"]


async def test_change_under_a_time_limit(fused: bool) -> None:
    """What stands around the app changes nothing about it."""
    seen = []

    async def limit(conn: Connection) -> Flow:
        conn.fail_after(10)
        conn.scope["path"] = "/new"
        yield

    async def look(conn: Connection) -> Flow:
        seen.append(conn.url.path)
        conn.scope["path"] = "/newer"
        yield
        seen.append(conn.url.path)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        scope["test.app"] = True
        await hello(scope, receive, send)

    server = Server(path="/old")
    await server.run(stack(app, limit, look, fused=fused))

    assert seen == ["/new", "/newer", "/new"]
    assert server.scope["path"] == "/old"
    assert server.scope["test.app"] is True


async def test_change_in_a_delegated_function(fused: bool) -> None:
    """It is one layer with the function that delegates to it."""
    seen = []

    async def other(conn: Connection) -> Flow:
        conn.scope["path"] += "/other"
        yield

    async def mw(conn: Connection) -> Flow:
        conn.scope["path"] = "/new"
        yield other(conn)
        seen.append(conn.scope["path"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await hello(scope, receive, send)

    server = Server(path="/old")
    await server.run(stack(app, mw, fused=fused))

    assert seen == ["/new/other", "/new/other"]
    assert server.scope["path"] == "/old"


async def test_answer_is_run_in_the_scope_of_its_layer(body_file: Any, fused: bool) -> None:
    """A file that a layer answers with does not see the range that the layer has deleted."""

    async def outer(conn: Connection) -> Flow:
        yield
        assert conn.headers["range"] == "bytes=0-1"

    async def whole(conn: Connection) -> Flow:
        conn.delete_header("range")
        yield FileResponse(body_file)

    server = Server(headers={"range": "bytes=0-1"})
    await server.run(stack(hello, outer, whole, fused=fused))

    assert server.status == 200
    assert server.body == Inner.BODY


async def test_answer_in_place_of_the_response_is_run_in_the_scope_of_its_layer(
    body_file: Any, fused: bool
) -> None:
    """Not in that of a layer further in."""

    async def part(conn: Connection) -> Flow:
        yield
        yield FileResponse(body_file)

    async def whole(conn: Connection) -> Flow:
        conn.delete_header("range")
        yield

    server = Server(headers={"range": "bytes=0-1"})
    await server.run(stack(hello, part, whole, fused=fused))

    assert server.status == 206
    assert server.body == Inner.BODY[:2]


# -- too late --------------------------------------------------------------------------------


async def test_edits_after_the_yield_are_seen_by_nobody(fused: bool) -> None:
    """There is nobody further in any more; the layer itself sees them."""
    seen = []

    async def late(conn: Connection) -> Flow:
        response = yield
        conn.scope["method"] = "GET"
        conn.scope["headers"].clear()
        assert (conn.method, conn.scope["headers"]) == ("GET", [])
        yield response
        assert (conn.method, conn.scope["headers"]) == ("GET", [])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        seen.append(keys_of(scope))

    server = server_of_all(method="HEAD")
    given = keys_of(server.scope)
    await server.run(stack(app, late, late, fused=fused))

    assert seen == [given]
    assert keys_of(server.scope) == given


async def test_scope_that_is_held_over_the_yield_is_the_layers_own(fused: bool) -> None:
    """The app has a dict of its own."""
    seen = []

    async def late(conn: Connection) -> Flow:
        scope = conn.scope
        scope["path"] = "/new"
        response = yield
        scope["path"] = "/newer"
        scope["test.late"] = True
        scope["headers"].clear()
        yield response

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)
        seen.append(keys_of(scope))

    server = server_of_all()
    given = keys_of(server.scope)
    await server.run(stack(app, late, fused=fused))

    assert seen == [{**given, "path": "/new"}]
    assert keys_of(server.scope) == given


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced_scope, "conn.scope = ..."),
        (lambda conn: conn.set_header("x-a", "1"), "conn.set_header()"),
        (lambda conn: conn.delete_header("x-a"), "conn.delete_header()"),
    ],
)
async def test_change_that_comes_too_late(
    change: Callable[[Any], None], words: str, fused: bool
) -> None:
    """It is refused, and the message says what to write instead."""

    async def late(conn: Connection) -> Flow:
        yield
        change(conn)

    server = await request(stack(hello, late, fused=fused), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    assert words in str(server.error)
    assert "before `response = yield`" in str(server.error)


async def test_scope_that_is_no_dict() -> None:
    """It is refused where it is assigned."""

    async def wrong(conn: Connection) -> Flow:
        conn.scope = [("path", "/new")]  # type: ignore[assignment]
        yield

    server = await request(stack(hello, wrong, fused=True), keep_error=True)

    assert isinstance(server.error, TypeError)
    explained(server.error, wrong, "conn.scope = {**conn.scope")


# -- what the app writes ---------------------------------------------------------------------


def nothing_changed(conn: Connection) -> None:
    pass


def own_key(conn: Connection) -> None:
    conn.scope["test.layer"] = 1


def key_of_the_app(conn: Connection) -> None:
    conn.scope["test.app"] = "from the layer"


def looked(conn: Connection) -> None:
    assert "test.app" not in conn.scope


WRITING = pytest.mark.parametrize(
    "change", [nothing_changed, looked, own_key, key_of_the_app, replaced_scope, appended_header]
)


@WRITING
async def test_what_the_app_writes_is_outside_at_the_start(
    change: Callable[[Connection], None], fused: bool
) -> None:
    """In every layer, and for the server; what it deletes and writes later is there at the end."""
    seen: list[Any] = []

    async def look(conn: Connection) -> Flow:
        change(conn)
        response = yield
        seen.append((conn.scope.get("test.app"), conn.get("test.app"), "test.late" in conn))
        yield response
        seen.append((conn.scope.get("test.app"), conn.get("test.app"), conn["test.late"]))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["test.app"] = "from the app"
        del scope["test.before"]
        await hello(scope, receive, send)
        scope["test.app"] = "later"
        scope["test.late"] = "late"

    server = server_of_all()
    server.scope["test.before"] = True
    outside = Outside(stack(app, look, look, fused=fused))
    await server.run(outside)

    assert seen[:2] == [("from the app", "from the app", False)] * 2
    assert seen[2:] == [("later", "later", "late")] * 2
    assert outside.at_start["test.app"] == "from the app"
    assert outside.after["test.app"] == "later"
    assert "test.before" not in outside.at_start
    assert "test.layer" not in outside.after


@WRITING
async def test_what_the_app_has_written_when_it_fails(
    change: Callable[[Connection], None], fused: bool
) -> None:
    """It is there at the yield where the exception is raised."""
    seen = []

    async def look(conn: Connection) -> Flow:
        change(conn)
        try:
            yield
        except LookupError:
            seen.append(conn.scope["test.app"])
            raise

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["test.app"] = "from the app"
        raise LookupError

    outside = Outside(stack(app, look, look, fused=fused))
    server = Server()
    await server.run(outside, keep_error=True)

    assert isinstance(server.error, LookupError)
    assert seen == ["from the app"] * 2
    assert outside.after["test.app"] == "from the app"


async def test_what_a_router_finds_is_outside_although_the_path_was_rewritten(fused: bool) -> None:
    """`route`, `endpoint`, `path_params`: as for access logs and tracers without the layer."""

    async def page(request: Request) -> Response:
        request.scope["session"] = {"id": 1}
        request.scope["user"] = "somebody"
        return PlainTextResponse("page")

    async def rewrite(conn: Connection) -> Flow:
        conn.scope["path"] = "/in/7"
        yield
        assert conn.path_params == {"number": "7"}

    router = Starlette(routes=[Mount("/in", routes=[Route("/{number}", page)])])
    outside = Outside(stack(router, rewrite, fused=fused))
    server = Server(path="/old")
    await server.run(outside)

    assert server.body == b"page"
    assert server.scope["path"] == "/old"
    assert server.scope["path_params"] == {"number": "7"}
    assert server.scope["endpoint"] is page
    assert server.scope["session"] == {"id": 1}
    assert server.scope["user"] == "somebody"


async def test_root_path_that_a_layer_has_set_stays_inside(fused: bool) -> None:
    """Also where a mount has made it longer."""
    seen = []

    async def page(request: Request) -> Response:
        seen.append(request.scope["root_path"])
        return PlainTextResponse("page")

    async def prefix(conn: Connection) -> Flow:
        conn.scope["root_path"] = "/api"
        conn.scope["path"] = "/api" + conn.scope["path"]
        yield

    router = Starlette(routes=[Mount("/in", routes=[Route("/page", page)])])
    server = Server(path="/in/page")
    await server.run(stack(router, prefix, fused=fused))

    assert seen == ["/api/in"]
    assert server.scope["root_path"] == ""


@pytest.mark.parametrize("has_state", [True, False])
@pytest.mark.parametrize("first", [nothing_changed, own_key, replaced_scope])
async def test_state_is_shared(
    first: Callable[[Connection], None], has_state: bool, fused: bool
) -> None:
    """By layers, app and server, whether there was one and whatever else was changed."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        yield
        seen.append(conn.state.inner)

    async def inner(conn: Connection) -> Flow:
        first(conn)
        conn.state.inner = 1
        yield
        seen.append(conn.state.app)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope).state.inner)
        Request(scope).state.app = 2
        await hello(scope, receive, send)

    server = server_of_all()
    if not has_state:
        del server.scope["state"]
    await server.run(stack(app, outer, inner, fused=fused))

    assert seen == [1, 2, 1]
    assert server.scope["state"] == {"inner": 1, "app": 2}


# -- one way to set and delete a header ------------------------------------------------------


@pytest.mark.parametrize("looked_first", [True, False])
async def test_header_that_is_set(looked_first: bool, fused: bool) -> None:
    """It takes the place of all of its name; others stay, in their order and repeated."""
    seen = []

    async def mw(conn: Connection) -> Flow:
        if looked_first:
            assert conn.headers["x-b"] == "2"
            assert conn.cookies == {}
            assert conn.url.hostname == "testserver"
        conn.set_header("X-B", "new")
        conn.set_header("x-c", "é")
        conn.set_header("cookie", "a=1")
        conn.set_header("host", "other")
        seen.append((conn.headers["x-b"], conn.headers["x-c"], conn.cookies, conn.url.hostname))
        yield
        seen.append(conn.headers["x-b"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])
        await hello(scope, receive, send)

    await request(stack(app, mw, fused=fused), headers=[*HEADERS, ("x-b", "4")])

    assert seen == [
        ("new", "é", {"a": "1"}, "other"),
        [
            (b"x-a", b"1"),
            (b"x-b", b"new"),
            (b"x-a", b"3"),
            (b"host", b"other"),
            (b"x-c", b"\xe9"),
            (b"cookie", b"a=1"),
        ],
        "new",
    ]


@pytest.mark.parametrize("looked_first", [True, False])
async def test_header_that_is_deleted(looked_first: bool, fused: bool) -> None:
    """As often as it is there, in any case of letters; one that is not there is no error."""
    seen = []

    async def mw(conn: Connection) -> Flow:
        if looked_first:
            assert conn.headers["x-b"] == "2"
        conn.delete_header("X-A")
        conn.delete_header("x-missing")
        assert "x-a" not in conn.headers
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])
        await hello(scope, receive, send)

    server = Server(headers=HEADERS)
    server.scope["headers"].append((b"X-A", b"4"))
    await server.run(stack(app, mw, fused=fused))

    assert seen == [[(b"x-b", b"2"), (b"host", b"testserver")]]


async def test_header_of_a_connection_that_was_made_by_hand() -> None:
    """In a unit test it is set in the scope that was given."""
    scope = {**server_of_all().scope, "headers": [(b"x-a", b"1")]}
    conn = Connection(scope)
    with pytest.raises(MiddlewareError):
        conn.set_header("x-a", "2")
    conn.scope["headers"].append((b"x-b", b"2"))

    assert Connection(scope).headers["x-b"] == "2"


# -- HEAD answered by GET routes -------------------------------------------------------------


async def head_as_get(conn: Connection) -> Flow:
    if conn.method == "HEAD":
        conn.scope["method"] = "GET"
    yield


async def test_head_as_get(fused: bool) -> None:
    """The app is asked by GET; the layer outside has a HEAD, without a body."""
    seen: list[Any] = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        yield response
        seen.append((conn.method, response.bytes_sent, response.outcome))

    async def page(request: Request) -> Response:
        seen.append(request.method)
        return PlainTextResponse("page")

    app = Starlette(
        routes=[Route("/", page, methods=["GET"])],
        middleware=[
            Middleware(HTTPMiddleware, dispatch=outer),
            *([] if fused else [Middleware(PassThrough)]),
            Middleware(HTTPMiddleware, dispatch=head_as_get),
        ],
    )
    server = Server(method="HEAD")
    await server.run(app)

    assert server.headers["content-length"] == "4"
    assert seen == ["GET", ("HEAD", 0, "completed")]


async def test_layer_inside_of_head_as_get_has_a_body(fused: bool) -> None:
    """It stands further in, so its request is a GET."""
    seen = []

    async def read(conn: Connection) -> Flow:
        response = yield
        seen.append((conn.method, await response.read()))
        response.headers["x-length"] = str(len(response.body))

    server = Server(method="HEAD")
    await server.run(stack(hello, head_as_get, read, fused=fused))

    assert seen == [("GET", b"hello")]
    assert server.headers["x-length"] == "5"


async def test_exception_handler_sees_the_request_of_the_layer(fused: bool) -> None:
    """An `HTTPException` is answered for the request that the layer has changed."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        yield

    async def raising(conn: Connection) -> Flow:
        conn.scope["path"] = "/new"
        yield
        raise HTTPException(418)

    async def inner(conn: Connection) -> Flow:
        conn.scope["path"] = "/newer"
        yield

    async def handler(request: Request, exc: Exception) -> Response:
        seen.append(request.scope["path"])
        return PlainTextResponse("teapot", 418)

    async def page(request: Request) -> Response:
        return PlainTextResponse("page")

    between = [] if fused else [Middleware(PassThrough)]
    app = Starlette(
        routes=[Route("/{rest:path}", page)],
        middleware=[
            Middleware(HTTPMiddleware, dispatch=outer),
            *between,
            Middleware(HTTPMiddleware, dispatch=raising),
            *between,
            Middleware(HTTPMiddleware, dispatch=inner),
        ],
        exception_handlers={418: handler},
    )
    server = Server(path="/old")
    await server.run(app)

    assert server.body == b"teapot"
    assert seen == ["/new"]


async def test_requests_at_the_same_time_have_scopes_of_their_own(fused: bool) -> None:
    """Nothing is kept in the layer."""
    seen = []
    both = anyio.Event()

    async def rewrite(conn: Connection) -> Flow:
        conn.scope["path"] += "/new"
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        if len(seen) == 2:
            both.set()
        await both.wait()
        await hello(scope, receive, send)

    layers = stack(app, rewrite, fused=fused)
    servers = [Server(path="/a"), Server(path="/b")]
    async with anyio.create_task_group() as group:
        for server in servers:
            group.start_soon(server.run, layers)

    assert sorted(seen) == ["/a/new", "/b/new"]
    assert [server.scope["path"] for server in servers] == ["/a", "/b"]
