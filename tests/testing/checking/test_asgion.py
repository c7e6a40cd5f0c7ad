"""
A second opinion: asgion, an ASGI inspector by others, which needs Python 3.12.

It stands outside of and inside of the layers, and finds no error on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp

from httpmw import Connection, Flow
from tests.harness import Inner, passing, request, script, stack, waiting
from tests.testing.checking.test_checker import ALLOWED, BROKEN, play

asgion = pytest.importorskip("asgion")

# What it calls an error and the specification allows.
OBJECTIONS = {
    "HE-001": "the body of http.request is optional",
    "HE-012": "a memoryview is what Starlette sends where it is given one",
    "HE-014": "a type that the scope announces is no unknown one",
    "EX-010": "early hints come after the start, says the text",
    "G-010": "keys beyond those of the text are no error",
}


def errors(inspector: Any) -> list[str]:
    return [each.rule_id for each in inspector.violations if str(each.severity) == "error"]


async def reads(conn: Connection) -> Flow:
    await conn.body()
    response = yield
    await response.read()


async def transforms(conn: Connection) -> Flow:
    async def upper(chunks: Any) -> Any:
        async for chunk in chunks:
            yield chunk.upper()

    response = yield
    response.body_iterator = upper(response.body_iterator)


async def sets(conn: Connection) -> Flow:
    conn.replace_body(b"other")
    response = yield
    response.body = "other"
    yield response


async def replaces(conn: Connection) -> Flow:
    yield
    yield StreamingResponse(iter([b"a", b"b"]))


async def answers(conn: Connection) -> Flow:
    yield PlainTextResponse("early")


@pytest.mark.parametrize("function", [passing, waiting, reads, transforms, sets, replaces, answers])
async def test_both_sides(
    inner: Inner, function: Callable[..., Any], spec: str | None, fused: bool
) -> None:
    """Whatever a middleware does, what comes out and what goes in is without an error."""
    inside = asgion.Inspector(inner)
    outside = asgion.Inspector(stack(inside, waiting, function, fused=fused))

    server = await request(outside, method="POST", body=[b"a", b"b"], spec=spec)

    assert server.complete
    assert errors(outside) == []
    # To a discarded app the client is gone; that it goes on is its own affair.
    assert errors(inside) == []


async def test_it_can_fail() -> None:
    """The inspector sees what is wrong where something is."""
    inspector: ASGIApp = asgion.Inspector(script({"type": "http.response.body", "body": b""}))
    with pytest.raises(RuntimeError):
        await request(inspector)

    assert errors(inspector) != []


async def judged(scope: Any, steps: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let asgion judge an example of the tests of our own checker."""
    inspectors: list[Any] = []

    def inspect(app: ASGIApp, **options: Any) -> Any:
        inspectors.append(asgion.Inspector(app))
        return inspectors[0]

    monkeypatch.setattr("tests.testing.checking.test_checker.ASGIChecker", inspect)
    try:
        await play(dict(scope), steps)
    except Exception:
        assert steps in [each for _, _, each in BROKEN]
    return errors(inspectors[0])


async def test_what_we_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our checker allows it allows as well, but for what is listed above."""
    for scope, steps in ALLOWED:
        if ("return", None) in steps:  # it wants every example to come to its end
            found = set(await judged(scope, steps, monkeypatch))

            assert found <= OBJECTIONS.keys(), steps


async def test_what_we_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what our checker refuses it refuses as well."""
    refused = [await judged(scope, steps, monkeypatch) for _, scope, steps in BROKEN]

    assert sum(map(bool, refused)) > len(BROKEN) / 2
