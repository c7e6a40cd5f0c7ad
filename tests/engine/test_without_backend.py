"""Where anyio cannot import its backend: Pyodide before 314, as long as its `ssl` is not loaded."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from httpmw import HTTPMiddleware
from tests import ROOT

# In a fresh interpreter, because here the backend has been imported long ago.
SCRIPT = """
import asyncio, json, sys
sys.modules["anyio._backends._asyncio"] = None
from tests.engine import test_without_backend
print(json.dumps(asyncio.run(test_without_backend.answers())))
"""


async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for chunk in (b"a", b"b"):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


async def sends_from_two_tasks(scope, receive, send):
    def part(name):
        return send({"type": "http.response.body", "body": name, "more_body": True})

    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.gather(part(b"a"), part(b"b"))
    await send({"type": "http.response.body"})


async def one_yield(conn):
    response = yield
    response.headers["x-seen"] = "yes"


async def two_yields(conn):
    response = yield
    yield response


async def reads_both_bodies(conn):
    await conn.body()
    response = yield
    await response.read()


async def transform(conn):
    async def upper(chunks):
        async for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk.upper()

    response = yield
    response.body_iterator = upper(response.body_iterator)


async def answers_early(conn):
    yield PlainTextResponse("no", 403)


async def replaces(conn):
    yield
    yield PlainTextResponse("other", 201)


async def catches(conn):
    try:
        yield
    except ZeroDivisionError:
        yield PlainTextResponse("caught", 500)


async def fails(scope, receive, send):
    raise ZeroDivisionError


CASES: dict[str, tuple[Any, Callable[..., Any], int, str]] = {
    "one yield": (app, one_yield, 200, "ab"),
    "two yields": (app, two_yields, 200, "ab"),
    "bodies read": (app, reads_both_bodies, 200, "ab"),
    "a transform": (app, transform, 200, "AB"),
    "an early answer": (app, answers_early, 403, "no"),
    "a replaced response": (app, replaces, 201, "other"),
    "an app that fails": (fails, catches, 500, "caught"),
    "two tasks that send": (sends_from_two_tasks, transform, 200, "AB"),
}


async def answer(wrapped: Any) -> tuple[int, str]:
    """Ask an app by hand: the fake server of the tests needs anyio's backend."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await wrapped({**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent).decode()


async def answers() -> dict[str, Any]:
    """Tell, for each case, what was answered, or what was raised instead."""
    found: dict[str, Any] = {}
    for name, (inner, function, *_) in CASES.items():
        alone = HTTPMiddleware(inner, dispatch=function)
        fused = HTTPMiddleware(alone, dispatch=two_yields)
        for how, wrapped in (("alone", alone), ("fused", fused)):
            try:
                found[f"{name}, {how}"] = await answer(wrapped)
            except Exception as exc:
                found[f"{name}, {how}"] = repr(exc)
    return found


@pytest.fixture(scope="module")
def without_backend() -> Any:
    """What is answered where the backend cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["alone", "fused"])
def test_requests_are_answered_without_the_backend_of_anyio(
    without_backend: Any, case: str, how: str
) -> None:
    """A check that cannot be made fails no request, and the engine needs nothing of anyio's."""
    *_, status, body = CASES[case]

    assert without_backend[f"{case}, {how}"] == [status, body]
