"""
What docs/migrating.md and docs/migrated.md show side by side does the same.

The code before runs on Starlette's own class, and again under `patch_starlette()`; the code
after is registered in the same place with the same options. Responses, exceptions and side
effects are compared. Where the two sides differ, a test of its own says how.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
from collections import Counter
from contextlib import nullcontext
from typing import Any

import anyio
import pytest
import starlette
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from docs_src.migrated import patterns_after, patterns_before
from httpmw import HTTPMiddleware
from httpmw.compat import patch_starlette
from httpmw.migrate import convert
from httpmw.testing import run
from tests import ROOT
from tests.harness import Chunks

SOURCES = ROOT / "docs_src" / "migrated"

STATE = ("user", "csp_nonce", "request_id", "tenant")


async def document(request: Request) -> Response:
    """Tell what the app sees of the request."""
    state = {name: getattr(request.state, name, None) for name in STATE}
    body = (await request.body()).decode()
    return JSONResponse(
        {"state": state, "body": body}, headers={"server": "app", "x-from": request.url.path}
    )


async def cookies(request: Request) -> Response:
    response = PlainTextResponse("cookies")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def stream(request: Request) -> Response:
    return StreamingResponse(Chunks(b"one, ", b"two"), media_type="text/plain")


async def lost(request: Request) -> Response:
    raise LookupError("lost")


async def broken(request: Request) -> Response:
    raise ValueError("broken")


async def late(request: Request) -> Response:
    await anyio.sleep_forever()


ROUTES = {
    "/": document,
    "/login": document,
    "/cookies": cookies,
    "/stream": stream,
    "/lost": lost,
    "/broken": broken,
    "/late": late,
}

REQUESTS: list[dict[str, Any]] = [
    {},
    {"headers": {"x-member": "1", "x-request-id": "abc", "x-tenant": "acme"}},
    {"headers": {"cookie": "session=s1", "host": "acme.example", "accept": "text/html"}},
    {"headers": {"accept": "text/html"}},
    {"method": "POST", "body": b"a body of some bytes"},
    {"path": "/login", "scope": {"scheme": "https", "client": ("10.0.0.1", 1)}},
    {"path": "/cookies", "headers": {"cookie": "session=s1", "x-tenant": "acme"}},
    {"path": "/stream", "headers": {"cookie": "session=s1", "x-tenant": "acme"}},
    {"path": "/lost", "headers": {"cookie": "session=s1", "x-tenant": "acme"}},
    {"path": "/broken", "headers": {"cookie": "session=s1", "x-tenant": "acme"}},
    {"path": "/nowhere", "headers": {"cookie": "session=s1", "x-tenant": "acme"}},
]


def with_routes(app: Any) -> Any:
    for path, endpoint in ROUTES.items():
        app.router.add_route(path, endpoint, methods=["GET", "POST"])
    return app


async def observe(app: Any, caplog: Any, requests: list[dict[str, Any]] = REQUESTS) -> list[Any]:
    """Everything that can be seen of each request from outside, and what was logged."""
    seen = []
    for each in requests:
        caplog.clear()
        result = await run(app=app, keep_error=True, **each)
        logged = [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if record.name in LOGGERS
        ]
        seen.append(
            (
                each,
                result.status,
                sorted(result.headers.raw),
                result.body,
                repr(result.exception),
                logged,
            )
        )
    return seen


LOGGERS = {"patterns", "shop.access", "shop.errors"}


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: Any) -> None:
    """Keep what the examples log."""
    for name in LOGGERS:
        caplog.set_level(logging.INFO, logger=name)


def before(name: str) -> Any:
    """An application with the pattern as it was."""
    return made(getattr(patterns_before, name), BaseHTTPMiddleware)


def after(name: str) -> Any:
    """The same application with the pattern as it is now."""
    return made(getattr(patterns_after, name), HTTPMiddleware)


def made(value: Any, base: Any) -> Any:
    """An application with a class, or with a function on *base*."""
    app = with_routes(Starlette())
    if inspect.isclass(value):
        app.add_middleware(value)
    else:
        app.add_middleware(base, dispatch=value)
    return app


def engine(*, patched: bool) -> Any:
    """Run Starlette's class on its own engine, or on that of httpmw."""
    return patch_starlette() if patched else nullcontext()


# Before 1.0 Starlette's own class raises what was answered once more, and leaves streams open.
RECENT = int(starlette.__version__.split(".")[0]) >= 1
ENGINES = [False, True] if RECENT else [True]
ENGINE = ["starlette", "patched"][-len(ENGINES) :]
of_starlette = pytest.mark.skipif(not RECENT, reason="Starlette's class is another one today")


def is_pattern(name: str, value: Any) -> bool:
    return value.__module__ == patterns_after.__name__ and (
        inspect.isasyncgenfunction(value) or inspect.isclass(value)
    )


PATTERNS = sorted(
    name
    for name, value in vars(patterns_after).items()
    if callable(value) and is_pattern(name, value)
)

# What the two sides do differently, each with a test of its own below.
ON_PURPOSE = {
    "after_the_last_byte",
    "change_request",
    "change_response",
    "limit",
    "read_request",
    "read_response",
    "refused",
    "transform",
}
# Starlette's `wait_for` is asyncio's; on Python 3.11 it makes a task, which is refused.
OF_ASYNCIO = {"deadline"}


@pytest.mark.parametrize("patched", ENGINES, ids=ENGINE)
@pytest.mark.parametrize("name", [each for each in PATTERNS if each not in ON_PURPOSE | OF_ASYNCIO])
async def test_pattern(name, patched, caplog):
    """Before and after, a client, a server and a log see the same."""
    with engine(patched=patched):
        expected = await observe(before(name), caplog)

    assert expected == await observe(after(name), caplog)


def test_every_pattern_has_two_sides():
    """Each name that is there after the migration was there before."""
    missing = [name for name in PATTERNS if not hasattr(patterns_before, name)]

    assert missing == []
    assert len(PATTERNS) >= 20


@of_starlette
async def test_deadline(anyio_backend, caplog):
    """Both answer 504; and leave alone what is quick."""
    if anyio_backend == "trio":
        pytest.skip("asyncio.wait_for() is asyncio's")
    requests = [{}, {"path": "/stream"}, {"path": "/broken"}]

    expected = await observe(before("deadline"), caplog, requests)
    assert expected == await observe(after("deadline"), caplog, requests)
    assert (await run(app=after("deadline"), path="/late")).status == 504


SMALL = {"method": "POST", "body": b"abc"}
LARGE = {"method": "POST", "body": b"more than ten bytes"}


@of_starlette
async def test_limit_limits_now(caplog):
    """Starlette ignores the argument of `call_next`: the large body got through."""
    expected = await observe(before("limit"), caplog, [SMALL])
    assert expected == await observe(after("limit"), caplog, [SMALL])
    assert (await run(app=before("limit"), **LARGE)).status == 200
    with patch_starlette():
        assert (await run(app=before("limit"), **LARGE)).status == 413
    assert (await run(app=after("limit"), **LARGE)).status == 413


@of_starlette
async def test_changed_request_is_changed_now():
    """The same for a body that is replaced; the drop-in honours it as well."""
    assert (await run(app=before("change_request"), **SMALL)).json()["body"] == "abc"
    with patch_starlette():
        assert (await run(app=before("change_request"), **SMALL)).json()["body"] == "ABC"
    assert (await run(app=after("change_request"), **SMALL)).json()["body"] == "ABC"


@pytest.mark.parametrize("patched", ENGINES, ids=ENGINE)
@pytest.mark.parametrize("name", ["after_the_last_byte", "transform"])
async def test_transformed_response(name, patched, caplog):
    """All is the same but the length, which Starlette keeps where it may be wrong."""
    with engine(patched=patched):
        expected = await observe(before(name), caplog)
    now = await observe(after(name), caplog)

    def without_length(seen: list[Any]) -> list[Any]:
        return [
            (each, status, [pair for pair in headers if pair[0] != b"content-length"], *rest)
            for each, status, headers, *rest in seen
        ]

    assert without_length(expected) == without_length(now)
    assert (b"content-length" in dict(expected[0][2])) != patched
    assert (b"content-length" in dict(now[0][2])) == (name == "after_the_last_byte")


@pytest.mark.parametrize("patched", ENGINES, ids=ENGINE)
async def test_read_request(patched, caplog):
    """A replayed body is the body; a `receive` that never ends fails with a stream."""
    requests = [each for each in REQUESTS if each.get("path") != "/stream"]
    with engine(patched=patched):
        expected = await observe(before("read_request"), caplog, requests)
        stream = await run(app=before("read_request"), path="/stream", keep_error=True)

    assert expected == await observe(after("read_request"), caplog, requests)
    assert (stream.exception is None) == patched
    assert (await run(app=after("read_request"), path="/stream")).body == b"one, two"


ONE_COOKIE_AT_MOST = [each for each in REQUESTS if each.get("path") not in ("/cookies", "/stream")]


@pytest.mark.parametrize("patched", ENGINES, ids=ENGINE)
@pytest.mark.parametrize("name", ["read_response", "change_response"])
async def test_rebuilt_response(name, patched, caplog):
    """A response that is made anew has the same status, headers and body."""
    with engine(patched=patched):
        expected = await observe(before(name), caplog, ONE_COOKIE_AT_MOST)

    assert expected == await observe(after(name), caplog, ONE_COOKIE_AT_MOST)


@of_starlette
@pytest.mark.parametrize("name", ["read_response", "change_response"])
async def test_repeated_headers_are_kept_now(name):
    """`dict(response.headers)` loses the second cookie."""
    lost = await run(app=before(name), path="/cookies")
    kept = await run(app=after(name), path="/cookies")

    assert len(lost.headers.getlist("set-cookie")) == 1
    assert len(kept.headers.getlist("set-cookie")) == 2
    assert kept.body == lost.body


async def test_read_stream_stays_a_stream():
    """A body that was only read is sent in its chunks, without a length of its own."""
    result = await run(app=after("read_response"), path="/stream")

    assert result.chunks[:2] == [b"one, ", b"two"]
    assert "content-length" not in result.headers


@of_starlette
async def test_http_exception_answers_now():
    """Raised in a middleware it was a 500."""
    refused = await run(app=before("refused"), keep_error=True)

    assert refused.status == 500
    with patch_starlette():
        assert (await run(app=before("refused"))).status == 403
    assert (await run(app=after("refused"))).status == 403
    assert (await run(app=after("refused"), headers={"x-member": "1"})).status == 200


# The command


@pytest.mark.parametrize("file", sorted(SOURCES.glob("*_before.py")), ids=lambda file: file.stem)
def test_command(file):
    """`httpmw migrate` converts everything, and has nothing to say of the ten."""
    conversion = convert(file.read_text(), path=str(file))

    said = {each.code for each in conversion.diagnostics}
    assert len(conversion.conversions) == (24 if file.stem == "patterns_before" else 1)
    assert not [code for code in said if code.startswith("HM1")]
    assert said == set() or file.stem == "patterns_before"


# The ten purposes


def purpose(name: str, module_name: str, options: dict[str, Any]) -> Any:
    def make(side: str, framework: Any, patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
        module = importlib.import_module(f"docs_src.migrated.{module_name}_{side}")
        for each in ("perf_counter", "monotonic"):
            if hasattr(module, each):
                patch.setattr(module, each, itertools.count().__next__)
        if hasattr(module, "uuid4"):
            patch.setattr(module, "uuid4", lambda: type("UUID", (), {"hex": "0" * 32}))
        if hasattr(module, "token_urlsafe"):
            patch.setattr(module, "token_urlsafe", lambda size: "n" * size)
        # Each side has objects of its own, such as counters.
        own = {key: value() if callable(value) else value for key, value in options.items()}
        app = with_routes(framework())
        app.add_middleware(getattr(module, name), **own)
        return app, own

    return pytest.param(make, id=module_name)


PURPOSES = [
    purpose("AccessLog", "access_log", {"quiet": frozenset({"/login"})}),
    purpose("LoginRequired", "auth_gate", {"users": {"s1": "me"}}),
    purpose("SecurityHeaders", "security_headers", {"hsts": 9}),
    purpose("ErrorsAsJSON", "error_handling", {}),
    purpose("RequestID", "request_id", {}),
    purpose("RateLimit", "rate_limit", {"requests": 4, "seconds": 1000}),
    purpose("Metrics", "metrics", {"counts": Counter}),
    purpose("TenantContext", "tenant", {"tenants": frozenset({"acme"})}),
]


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
@pytest.mark.parametrize("make", PURPOSES)
async def test_purpose(make, framework, monkeypatch, caplog):
    """On Starlette's class, under the patch, and as a generator it does the same."""
    now, options = make("after", framework, monkeypatch)
    seen = await observe(now, caplog)

    for patched in ENGINES:
        app, options_before = make("before", framework, monkeypatch)
        with engine(patched=patched):
            assert await observe(app, caplog) == seen
        assert options_before == options


async def test_timing_header(monkeypatch, caplog):
    """The function under FastAPI's decorator does the same, under `http_middleware`."""
    seen = []
    for side, patched in [("before", each) for each in ENGINES] + [("after", True)]:
        module = importlib.import_module(f"docs_src.migrated.timing_header_{side}")
        monkeypatch.setattr(module, "perf_counter", itertools.count().__next__)
        app = module.app
        monkeypatch.setattr(app, "middleware_stack", None)
        monkeypatch.setattr(app.router, "routes", list(app.router.routes))
        with engine(patched=patched):
            seen.append(await observe(with_routes(app), caplog))

    assert all(each == seen[0] for each in seen)
    assert any(name == b"x-process-time" for name, _ in seen[0][0][2])


ETAG = purpose("ETag", "etag", {"max_age": 9}).values[0]


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_etag(framework, monkeypatch, caplog):
    """The same etags and the same 304, on Starlette's class and under the patch as well."""
    first = await run(app=ETAG("after", framework, monkeypatch)[0])
    matching = {"headers": {"if-none-match": first.headers["etag"]}}
    requests = [*ONE_COOKIE_AT_MOST, matching]

    now = await observe(ETAG("after", framework, monkeypatch)[0], caplog, requests)

    for patched in ENGINES:
        app, _ = ETAG("before", framework, monkeypatch)
        with engine(patched=patched):
            assert await observe(app, caplog, requests) == now
    assert now[-1][1] == 304


@of_starlette
async def test_etag_keeps_cookies_now(monkeypatch):
    """The response that was made anew lost the second cookie."""
    lost = await run(app=ETAG("before", Starlette, monkeypatch)[0], path="/cookies")
    kept = await run(app=ETAG("after", Starlette, monkeypatch)[0], path="/cookies")

    assert len(lost.headers.getlist("set-cookie")) == 1
    assert len(kept.headers.getlist("set-cookie")) == 2


async def test_rate_limit_refuses_and_counts(monkeypatch, caplog):
    """The requests of the comparison come to the limit, and another client does not."""
    make = next(each.values[0] for each in PURPOSES if each.id == "rate_limit")
    app, _ = make("after", Starlette, monkeypatch)

    statuses = [each[1] for each in await observe(app, caplog)]

    assert 429 in statuses
    assert 200 in statuses[5:6]


@pytest.mark.parametrize("side", ["before", "after"])
async def test_rate_limit_forgets_who_does_not_come_back(side, monkeypatch):
    """Who was counted in a window that is over is not kept."""
    module = importlib.import_module(f"docs_src.migrated.rate_limit_{side}")
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    layer = module.RateLimit(with_routes(Starlette()), requests=1, seconds=10)

    with engine(patched=not RECENT):
        for number in range(5):
            await run(app=layer, scope={"client": (f"10.0.0.{number}", 1)})
        assert len(layer.windows) == 5
        now = 10.0
        await run(app=layer, scope={"client": ("10.0.0.9", 1)})

    assert list(layer.windows) == ["10.0.0.9"]
