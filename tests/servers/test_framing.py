"""Two requests on one connection of a real server, read byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from tests.servers.apps import CHUNKS, FILE, PLAIN
from tests.servers.conftest import Server
from tests.wire import Answer, ask, ask_http2, get

BODIES = {"/plain": PLAIN, "/stream": b"".join(CHUNKS), "/file": FILE.read_bytes()}
OVERRIDES = {
    "set_status",
    "set_status_and_wait",
    "set_status_of_a_body_that_was_read",
    "set_status_of_a_transform",
    "answer_with_old_headers",
}

Twice: TypeAlias = Callable[..., list[Answer]]


@pytest.fixture(params=["one by one", "pipelined", "http2"])
def twice(request: pytest.FixtureRequest, server: Server) -> Twice:
    """Ask for two targets on one connection, in one of three ways."""
    if request.param == "http2":
        if not server.kind.has_http2:
            pytest.skip("the server has no HTTP/2")
        return lambda first, second, method="GET": ask_http2(
            server.address, (method, first), ("GET", second)
        )
    return lambda first, second, method="GET": ask(
        server.address,
        get(first, method=method),
        get(second, "connection: close"),
        pipelined=request.param == "pipelined",
    )


@pytest.fixture(params=["/fused", "/nested"])
def prefix(request: pytest.FixtureRequest, server: Server) -> str:
    """The beginning of a target whose request nobody else has."""
    return str(request.param)


def target(server: Server, prefix: str, path: str, *options: str) -> str:
    return f"{prefix}{path}?" + "&".join([f"id={server.new_id()}", *options])


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("how", [*sorted(OVERRIDES), "in_call_next_style"])
def test_no_byte_of_a_body_under_a_status_that_allows_none(
    how: str, path: str, status: int, twice: Twice, server: Server, prefix: str
) -> None:
    """The answer is framed as its status wants it, and the next one is intact."""
    options = [f"do={how}", f"status={status}"]
    if how == "in_call_next_style":
        options = [f"last_status={status}"]

    first, second = twice(target(server, prefix, path, *options), target(server, prefix, path))

    assert (first.status, first.body) == (status, b"")
    assert first.get("content-length") in ([None, b"0"] if status == 205 else [None])
    assert first.persistent
    assert (second.status, second.body) == (200, BODIES[path])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("how", [None, "read_response", "transform_response", "replace"])
def test_no_byte_of_a_body_to_head(
    request: pytest.FixtureRequest,
    how: str | None,
    path: str,
    twice: Twice,
    server: Server,
    prefix: str,
) -> None:
    """The answer to HEAD has no body, whatever a layer does with it, and the next is intact."""
    if server.kind.module == "granian" and "http2" in request.node.callspec.id:
        pytest.skip("granian 2.8.9 sends what it is given as the body of HEAD over HTTP/2")
    options = [] if how is None else [f"do={how}"]

    first, second = twice(
        target(server, prefix, path, *options), target(server, prefix, path), method="HEAD"
    )

    assert (first.status, first.body) == (503 if how == "replace" else 200, b"")
    assert (second.status, second.body) == (200, BODIES[path])


@pytest.mark.parametrize("path", BODIES)
def test_response_made_of_the_old_headers(
    path: str, twice: Twice, server: Server, prefix: str
) -> None:
    """It has the length of its own body."""
    first, second = twice(
        target(server, prefix, path, "do=answer_with_old_headers", "status=200"),
        target(server, prefix, path),
    )

    assert (first.status, first.body) == (200, b'"another body"')
    assert first.get("content-length") == b"14"
    assert second.body == BODIES[path]
