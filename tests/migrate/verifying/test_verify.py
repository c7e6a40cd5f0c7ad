"""
The paired runs of `httpmw migrate --verify`: what they call the same, an improvement, a difference.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from httpmw.migrate import convert
from httpmw.migrate.verifying._compare import IMPROVEMENTS
from httpmw.migrate.verifying._judge import Matrix, Module, Verdict, judge
from httpmw.migrate.verifying._matrix import APPS, REQUESTS
from httpmw.migrate.verifying._verify import verify
from tests import ROOT

HEAD = """
import asyncio
import contextlib
import logging
import time
import uuid
from contextvars import ContextVar

from fastapi import HTTPException
from starlette.background import BackgroundTask
from starlette.concurrency import iterate_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from httpmw import HTTPMiddleware, http_middleware
from project import Denied, app, context, find_user, settings, store

logger = logging.getLogger(__name__)
current = ContextVar("current", default=None)
"""

# One middleware of each shape, as real code writes it.
SAMPLE = """
class Timing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        start = time.perf_counter()
        response = await call_next(request)
        response.headers["x-process-time"] = f"{time.perf_counter() - start:.4f}"
        return response


class Gate(BaseHTTPMiddleware):
    def __init__(self, app, public=("/health",)):
        super().__init__(app)
        self.public = public

    async def dispatch(self, request: Request, call_next) -> Response:
        if request.url.path in self.public:
            return await call_next(request)
        token = request.headers.get("authorization")
        if not token:
            return JSONResponse({"detail": "no token"}, status_code=401)
        try:
            request.state.user = await find_user(token)
        except Denied as exc:
            return self._refused(exc)
        return await call_next(request)

    def _refused(self, exc):
        return JSONResponse({"detail": str(exc)}, status_code=403)


class Errors(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        try:
            return await call_next(request)
        except HTTPException:
            raise
        except Exception as exc:
            logger.exception("failed: %s", exc)
            return JSONResponse({"detail": "internal"}, status_code=500)
        finally:
            await store.close()


@app.middleware("http")
async def request_id(request: Request, call_next):
    token = current.set(request.headers.get("x-request-id") or str(uuid.uuid4()))
    try:
        response = await call_next(request)
    finally:
        current.reset(token)
    response.headers["x-request-id"] = "known"
    return response


async def session(request, call_next):
    async with store.session() as session:
        request.state.session = session
        with context("request"):
            response = await call_next(request)
    if response.status_code >= 400:
        logger.warning("%s %d", request.url.path, response.status_code)
    return response

app.add_middleware(BaseHTTPMiddleware, dispatch=session)


def install(app, prefix):
    @app.middleware("http")
    async def prefixed(request, call_next):
        if request.method == "POST":
            body = await request.body()
            logger.info("body %s", body)
        request.scope["path"] = "/api" + request.url.path
        return await call_next(request)

install(app, "/api")


class Counter:
    def __init__(self):
        self.count = 0

    async def __call__(self, request, call_next):
        self.count += 1
        response = await call_next(request)
        response.set_cookie("count", str(self.count))
        return response

app.add_middleware(BaseHTTPMiddleware, dispatch=Counter())


class Body(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        body = b""
        async for chunk in response.body_iterator:
            body += chunk
        logger.info("answered %s", body)
        return Response(
            content=body,
            status_code=response.status_code,
            headers=dict(response.headers),
            media_type=response.media_type,
        )
"""
FUNCTIONS = [
    *("Timing.dispatch", "Gate.dispatch", "Errors.dispatch", "request_id", "session"),
    *("install.<locals>.prefixed", "Counter.__call__", "Body.dispatch"),
]
FEW = (REQUESTS[0], REQUESTS[1], REQUESTS[2], REQUESTS[6])
SMALL = Matrix(paths=0, failures=1, requests=REQUESTS[:2])


@contextlib.contextmanager
def quiet_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop on which apps may be discarded without a word."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of all runs in this file."""
    with quiet_loop() as loop:
        yield loop


def judged(loop: asyncio.AbstractEventLoop, old: str, new: str, **options: Any) -> Verdict:
    """Run the bodies of two versions of `mw` in pairs."""
    before = f"async def mw(request, call_next):\n{textwrap.indent(textwrap.dedent(old), '    ')}"
    now = f"async def mw(request):\n{textwrap.indent(textwrap.dedent(new), '    ')}"
    return judged_files(loop, before, now, "mw", **options)


def judged_files(
    loop: asyncio.AbstractEventLoop, old: str, new: str, qualname: str, **options: Any
) -> Verdict:
    """Run two versions of a function in pairs."""
    style = options.pop("style", "generator")
    # An app that sends from a thread may get through a second call to Starlette.
    apps = tuple(name for name in APPS if name != "file")
    matrix = Matrix(**{"apps": apps, "paths": 2, "failures": 2, "requests": FEW, **options})
    modules = Module(HEAD + old, "starlette"), Module(HEAD + new, style)
    line = HEAD.count("\n") + 1 + old[: old.index("def ")].count("\n") if qualname == "mw" else None
    index = modules[0].find(qualname, line)
    assert index is not None
    first = modules[0].function(qualname, index)
    assert isinstance(first, (ast.AsyncFunctionDef, ast.FunctionDef))
    return judge(*modules, qualname, first.lineno, loop, matrix)


# ------------------------------------------------------------------------------- what is the same


@pytest.fixture(scope="module")
def sample() -> dict[str, Verdict]:
    """The sample, converted, and run in a process of its own."""
    conversion = convert(HEAD + SAMPLE, path="sample.py")
    verdicts = verify(conversion.source, conversion.code, conversion.conversions)
    return {each.qualname: each for each in verdicts}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_sample_behaves_the_same_after_the_conversion(
    sample: dict[str, Verdict], function: str
) -> None:
    """Each shape of middleware is converted, run, and not found to differ."""
    verdict = sample[function]

    assert ("", [], 0) == (verdict.problem, verdict.differences, verdict.differing)
    assert verdict.pairs > 150
    assert verdict.identical + sum(verdict.improvements.values()) >= verdict.pairs


@pytest.mark.parametrize("function", FUNCTIONS[:-1])
def test_only_an_app_that_breaks_off_is_answered_otherwise(
    sample: dict[str, Verdict], function: str
) -> None:
    """A middleware that leaves the body alone has one improvement, in the runs of one app."""
    verdict = sample[function]

    assert {"no-invented-end"} >= set(verdict.improvements)
    assert verdict.identical > verdict.pairs * 0.9


def test_the_drop_in_behaves_the_same(loop: asyncio.AbstractEventLoop) -> None:
    """The original on Starlette's class is compared with itself on the drop-in."""
    module = Module(HEAD + SAMPLE, "starlette")
    drop_in = Module(HEAD + SAMPLE, "drop-in")
    for name in FUNCTIONS:
        index = module.find(name)
        assert index is not None
        line: int = module.function(name, index).lineno  # type: ignore[attr-defined]
        verdict = judge(module, drop_in, name, line, loop, SMALL)

        assert ("", []) == (verdict.problem, verdict.differences), name


# ------------------------------------------------------------------------------ what is different

DIFFERENT = {
    "a header that is not set": (
        """
        response = await call_next(request)
        response.headers["x-a"] = "1"
        return response
        """,
        "response = yield",
        "headers [('x-a', '1')] before, [] now",
    ),
    "a cookie that is set before the others": (
        """
        response = await call_next(request)
        response.set_cookie("a", "1")
        return response
        """,
        """
        response = yield
        response.raw_headers.insert(0, (b"set-cookie", b"a=1; Path=/; SameSite=lax"))
        """,
        "in another order",
    ),
    "another status": (
        "return JSONResponse({}, status_code=401)",
        "yield JSONResponse({}, status_code=403)",
        "status 401 before, 403 now",
    ),
    "another body": (
        "return PlainTextResponse('one')",
        "yield PlainTextResponse('two')",
        "body [b'one'] before, [b'two'] now",
    ),
    "a gate that stands open": (
        """
        if "x-key" not in request.headers:
            return PlainTextResponse("no", 403)
        return await call_next(request)
        """,
        "yield",
        "the app saw",
    ),
    "an exception of another type": (
        "raise Denied('no')",
        "raise ValueError('no')\nyield",
        "before, 'ValueError: no' now",
    ),
    "an exception that is swallowed": (
        "return await call_next(request)",
        """
        try:
            yield
        except ValueError:
            yield PlainTextResponse("fine")
        """,
        "(the object that the app raised) before, nothing now",
    ),
    "the app's exception in a copy": (
        "return await call_next(request)",
        """
        try:
            yield
        except ValueError as exc:
            raise type(exc)(*exc.args) from exc
        """,
        "(the object that the app raised) before, 'OwnError: the app fails' now",
    ),
    "a log line that is lost": (
        """
        response = await call_next(request)
        logger.info("answered %d", response.status_code)
        return response
        """,
        "yield",
        "side effects: `logging.getLogger().info('answered %d', ",
    ),
    "a log line after the response instead of before": (
        """
        response = await call_next(request)
        logger.info("answered")
        return response
        """,
        """
        response = yield
        yield response
        logger.info("answered")
        """,
        "`logging.getLogger().info('answered')` before, `- the response starts -` now",
    ),
    "a context that is left too early": (
        """
        with context("all"):
            return await call_next(request)
        """,
        """
        with context("all"):
            pass
        yield
        """,
        "`- the app is called -` before, `exit context(): None` now",
    ),
    "something set for the app": (
        """
        request.state.user = "me"
        return await call_next(request)
        """,
        "yield",
        "the app saw",
    ),
    "a context variable set for the app": (
        """
        current.set("me")
        return await call_next(request)
        """,
        "yield",
        "the app saw",
    ),
    "an attribute set on the project's object": (
        """
        settings.last = request.url.path
        return await call_next(request)
        """,
        "yield",
        "side effects: `settings.last = '/'` before",
    ),
    "a branch that depends on the project": (
        """
        if settings.closed:
            return PlainTextResponse("closed", 503)
        return await call_next(request)
        """,
        "yield",
        "stubs true",
    ),
    "a branch that only a failure reaches": (
        """
        try:
            user = await find_user(request)
        except Denied:
            return PlainTextResponse("denied", 403)
        return await call_next(request)
        """,
        """
        try:
            user = await find_user(request)
        except Denied:
            yield PlainTextResponse("denied", 401)
            return
        yield
        """,
        "status 403 before, 401 now (app `json`, request `GET /`, stubs true, call 1 fails)",
    ),
    "a branch that only one path reaches": (
        """
        if request.url.path == "/only/here":
            return PlainTextResponse("here")
        return await call_next(request)
        """,
        "yield",
        "request `GET /only/here`",
    ),
    "a body that is gathered": (
        "return await call_next(request)",
        """
        response = yield
        response.body = await response.read()
        """,
        "body [b'data: 0\\n\\n', b'data: 1\\n\\n', b'data: 2\\n\\n'] before",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_wrong_conversion_is_seen(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """Whatever a client, the app, the caller or the project can see is compared."""
    old, new, words = DIFFERENT[name]

    verdict = judged(loop, old, new)

    assert verdict.differing, verdict
    assert any(words in str(each) for each in verdict.differences), verdict.differences
    assert verdict.pairs == verdict.identical + verdict.differing + sum(
        verdict.improvements.values()
    )


# ------------------------------------------------------------------------------ what is better now

IMPROVED = {
    "length-unknown": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])
        response.body_iterator = iterate_in_threadpool(iter([body]))
        return response
        """,
        """
        response = yield
        body = await response.read()
        async def again():
            yield body
        response.body_iterator = again()
        """,
    ),
    "no-task-behind-a-half": (
        """
        response = await call_next(request)
        response.background = BackgroundTask(logger.info, "done")
        return response
        """,
        """
        response = yield
        response.background = BackgroundTask(logger.info, "done")
        """,
    ),
    "app-not-cancelled": (
        """
        response = await call_next(request)
        response.background = BackgroundTask(logger.info, "done")
        return response
        """,
        """
        response = yield
        response.background = BackgroundTask(logger.info, "done")
        """,
    ),
    "patched-receive-harmless": (
        """
        body = await request.body()
        async def receive():
            return {"type": "http.request", "body": body}
        request._receive = receive
        return await call_next(request)
        """,
        """
        body = await request.body()
        yield
        """,
    ),
    "http-exception-answers": (
        "raise HTTPException(403, 'no')",
        "raise HTTPException(403, 'no')\nyield",
    ),
    "no-invented-end": ("return await call_next(request)", "yield"),
    "content-length-corrected": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator]) + b"more"
        return Response(body, response.status_code, dict(response.headers))
        """,
        """
        response = yield
        response.body = await response.read() + b"more"
        """,
    ),
    "repeated-headers-kept": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])
        return Response(body, response.status_code, dict(response.headers))
        """,
        """
        response = yield
        response.body = await response.read()
        """,
    ),
    "stale-headers-dropped": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])
        response.body_iterator = iterate_in_threadpool(iter([body.upper()]))
        return response
        """,
        """
        response = yield
        response.body = (await response.read()).upper()
        """,
    ),
    "chunks-kept": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])
        response.body_iterator = iterate_in_threadpool(iter([body]))
        return response
        """,
        """
        response = yield
        body = await response.read()
        """,
    ),
    "reading-never-steals": (
        """
        response = await call_next(request)
        async for chunk in response.body_iterator:
            pass
        return response
        """,
        """
        response = yield
        async for chunk in response.body_iterator:
            pass
        """,
    ),
    "stream-delivered": (
        """
        async for chunk in request.stream():
            logger.info(chunk)
        return await call_next(request)
        """,
        """
        async for chunk in request.stream():
            logger.info(chunk)
        yield
        """,
    ),
    "clear-error": (
        """
        await call_next(request)
        return await call_next(request)
        """,
        "yield\nyield",
    ),
    "no-body-where-none-may-be": (
        """
        response = await call_next(request)
        body = b"".join([chunk async for chunk in response.body_iterator])
        response.body_iterator = iterate_in_threadpool(iter([body + b"more"]))
        return response
        """,
        """
        response = yield
        response.body = await response.read() + b"more"
        """,
    ),
    "media-type-known": (
        """
        response = await call_next(request)
        if response.media_type == "application/json":
            response.headers["x-json"] = "yes"
        return response
        """,
        """
        response = yield
        if response.media_type == "application/json":
            response.headers["x-json"] = "yes"
        """,
    ),
    "variables-reset": (
        """
        token = current.set("me")
        try:
            return await call_next(request)
        finally:
            logger.info("done")
            current.reset(token)
        """,
        """
        token = current.set("me")
        try:
            try:
                response = yield
            finally:
                logger.info("done")
            yield response
        finally:
            current.reset(token)
        """,
    ),
}


@pytest.mark.parametrize("name", IMPROVED)
def test_an_improvement_is_named(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """A listed improvement is no difference, and is counted under its name."""
    old, new = IMPROVED[name]

    verdict = judged(loop, old, new)

    assert [] == verdict.differences
    assert name in verdict.improvements


@pytest.mark.parametrize("name", IMPROVED)
def test_an_improvement_hides_nothing_else(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """Where something else differs as well, it is a difference."""
    old, new = IMPROVED[name]

    verdict = judged(loop, old, f'settings.seen = "now"\n{textwrap.dedent(new).lstrip()}')

    assert verdict.differing > verdict.pairs * 0.8


# Improvements that take more than one function, or the drop-in.
FILES_IMPROVED = {
    "discarded-app-is-told": (
        """
async def helper(request, call_next):
    await call_next(request)
    raise LookupError

async def mw(request, call_next):
    try:
        return await helper(request, call_next)
    except LookupError:
        return PlainTextResponse("other")
""",
        """
async def helper(request):
    yield
    raise LookupError

async def mw(request):
    try:
        response = yield helper(request)
    except LookupError:
        yield PlainTextResponse("other")
""",
        "generator",
    ),
    "own-response-readable": (
        """
async def helper(request, call_next):
    return PlainTextResponse("early")

async def mw(request, call_next):
    response = await helper(request, call_next)
    body = b"".join([chunk async for chunk in response.body_iterator])
    return Response(body)
""",
        """
async def helper(request):
    yield PlainTextResponse("early")

async def mw(request):
    response = yield helper(request)
    yield Response(await response.read())
""",
        "generator",
    ),
    "other-request-honoured": (
        """
async def mw(request, call_next):
    return await call_next(Request({**request.scope, "path": "/other"}, request.receive))
""",
        None,
        "drop-in",
    ),
    "task-of-its-own-refused": (
        """
async def mw(request, call_next):
    return await asyncio.create_task(call_next(request))
""",
        None,
        "drop-in",
    ),
}


@pytest.mark.parametrize("name", FILES_IMPROVED)
def test_an_improvement_of_several_functions_or_of_the_drop_in_is_named(
    loop: asyncio.AbstractEventLoop, name: str
) -> None:
    """As above."""
    old, new, style = FILES_IMPROVED[name]

    verdict = judged_files(loop, old, new or old, "mw", style=style)

    assert [] == verdict.differences
    assert name in verdict.improvements


def test_a_length_that_is_lost_is_no_stale_one(loop: asyncio.AbstractEventLoop) -> None:
    """It is counted under a name of its own."""
    verdict = judged(loop, *IMPROVED["length-unknown"])

    assert "stale-headers-dropped" not in verdict.improvements


def test_every_improvement_has_a_test() -> None:
    """No rule explains anything of which there is no example."""
    assert set(IMPROVEMENTS) == {*IMPROVED, *FILES_IMPROVED}


def test_every_improvement_is_listed_in_the_docs() -> None:
    """The page has a row for each, and no other."""
    page = ROOT / "docs" / "migrate-verify.md"
    rows = re.findall(r"^\| `([a-z-]+)` \|", page.read_text("utf-8"), re.MULTILINE)

    assert list(IMPROVEMENTS) == rows
