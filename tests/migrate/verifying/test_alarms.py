"""What is different each time, or before and after a conversion, and no difference for a user."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Iterator

import pytest

from httpmw.migrate import Project, convert
from httpmw.migrate.verifying._compare import remedy
from httpmw.migrate.verifying._judge import Matrix, Module, Verdict, judge
from httpmw.migrate.verifying._matrix import APPS, REQUESTS
from tests.migrate.verifying.test_verify import quiet_loop

HEAD = """\
import asyncio, datetime, email.utils, inspect, logging, random, sys, time, timeit, traceback
from app import compute, logger, save, settings
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse


async def set_body(request, body):
    async def receive():
        return {"type": "http.request", "body": body}

    request._receive = receive
"""
MATRIX = Matrix(
    apps=tuple(name for name in APPS if name != "file"),
    requests=(REQUESTS[0], REQUESTS[2]),
    paths=0,
    failures=2,
    failing_requests=REQUESTS[:1],
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with quiet_loop() as loop:
        yield loop


def converted_and_judged(loop: asyncio.AbstractEventLoop, body: str) -> Verdict:
    """Convert a middleware function with this body, and run both versions."""
    indented = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    source = f"{HEAD}\n\n@app.middleware('http')\nasync def mw(request, call_next):\n{indented}\n"
    conversion = convert(source)
    (found,) = conversion.conversions
    modules = Module(source, "starlette"), Module(conversion.code, "generator")
    return judge(*modules, "mw", found.line, loop, MATRIX)


SAME = {
    "a header by a name of the project": """
        response = await call_next(request)
        response.headers[settings.header] = "1"
        return response
        """,
    "a header by a name of the project, with a default": """
        response = await call_next(request)
        response.headers.setdefault(settings.header, request.headers.get(settings.header, ""))
        return response
        """,
    "a traceback in a log and in a body": """
        try:
            return await call_next(request)
        except Exception:
            logger.error(traceback.format_exc())
            return JSONResponse({"trace": traceback.format_exc()}, 500)
        """,
    "the frames of a traceback": """
        try:
            return await call_next(request)
        except Exception as exc:
            frames = traceback.extract_tb(exc.__traceback__)
            logger.error("%s %s", frames[-1].lineno, exc.__traceback__.tb_lineno)
            logger.error("".join(traceback.format_exception(type(exc), exc, exc.__traceback__)))
            return JSONResponse({"trace": traceback.format_tb(exc.__traceback__)}, 500)
        """,
    "its own line": """
        logger.info(inspect.currentframe().f_lineno, inspect.stack(), sys._getframe().f_lineno)
        return await call_next(request)
        """,
    "timeit's clock": """
        start = timeit.default_timer()
        response = await call_next(request)
        response.headers["x-time"] = str(timeit.default_timer() - start)
        return response
        """,
    "the clock of the loop": """
        start = asyncio.get_running_loop().time()
        response = await call_next(request)
        response.headers["x-time"] = str(asyncio.get_event_loop().time() - start)
        return response
        """,
    "the calendar": """
        logger.info(time.strftime("%H:%M:%S"), time.ctime(), time.asctime(), str(time.gmtime()))
        logger.info(datetime.date.today().isoformat(), email.utils.formatdate())
        return await call_next(request)
        """,
    "chance": """
        logger.info(random.Random().random(), random.SystemRandom().random())
        return await call_next(request)
        """,
    "addresses": """
        logger.info("%s %s", id(request), repr(object()))
        return await call_next(request)
        """,
    "a thread that nobody waits for": """
        asyncio.get_running_loop().run_in_executor(None, save, request.url.path)
        response = await call_next(request)
        logger.info("done")
        asyncio.get_event_loop().run_in_executor(None, logger.info, "in a thread")
        return response
        """,
    "a thread that is awaited": """
        response = await call_next(request)
        logger.info(await asyncio.to_thread(compute, 1))
        return response
        """,
    "a task that nobody waits for": """
        async def work():
            await save(1)
            await save(2)

        asyncio.create_task(work())
        response = await call_next(request)
        logger.info("done")
        asyncio.ensure_future(save(3))
        return response
        """,
    "the class of the response": """
        response = await call_next(request)
        logger.info("%s", type(response))
        logger.info(f"{type(response).__name__} {response.__class__} {response!r}")
        return response
        """,
    "a background task": """
        response = await call_next(request)
        response.background = BackgroundTask(print, "done")
        return response
        """,
    "a background task of the project": """
        response = await call_next(request)
        if response.background is None:
            response.background = BackgroundTask(save, request.url.path, response.status_code)
        return response
        """,
    "a receive that a helper sets": """
        body = await request.body()
        await set_body(request, body)
        logger.info(body)
        return await call_next(request)
        """,
}


@pytest.mark.parametrize("name", SAME)
def test_it_is_no_difference(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """Both versions are run, and none is blamed."""
    verdict = converted_and_judged(loop, SAME[name])

    assert verdict.problem == ""
    assert verdict.differences == []
    assert verdict.pairs > 20


SEEN = {
    "another task": (
        (
            "async def work():\n    await save(1)\nasyncio.create_task(work())\n"
            "return await call_next(request)"
        ),
        "async def work():\n    await save(2)\nasyncio.create_task(work())\nyield",
        "side effects in other tasks: `save(1)` before, `save(2)` now",
    ),
    "another header": (
        "response = await call_next(request)\nresponse.headers[settings.a] = '1'\nreturn response",
        "response = yield\nresponse.headers[settings.b] = '1'",
        "headers [('<settings.a>', '1')] before, [('<settings.b>', '1')] now",
    ),
    "another exception in a traceback": (
        (
            "try:\n    raise KeyError(1)\nexcept KeyError:\n"
            "    logger.info(traceback.format_exc())\nreturn await call_next(request)"
        ),
        (
            "try:\n    raise KeyError(2)\nexcept KeyError:\n"
            "    logger.info(traceback.format_exc())\nyield"
        ),
        "KeyError: 1",
    ),
    "another thread": (
        (
            "asyncio.get_running_loop().run_in_executor(None, save, 1)\n"
            "return await call_next(request)"
        ),
        "asyncio.get_running_loop().run_in_executor(None, save, 2)\nyield",
        "side effects: `save(1)` before, `save(2)` now",
    ),
    "a task of its own around something else": (
        "await asyncio.gather(save(1))\nreturn await call_next(request)",
        "await asyncio.gather(save(2))\nyield",
        "side effects: `save(1)` before, `save(2)` now",
    ),
}


@pytest.mark.parametrize("name", list(SEEN))
def test_a_difference_behind_it_is_seen(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """What is evened out hides nothing else."""
    old, new, words = SEEN[name]
    before = f"{HEAD}\nasync def mw(request, call_next):\n{textwrap.indent(old, '    ')}"
    now = f"{HEAD}\nasync def mw(request):\n{textwrap.indent(new, '    ')}"
    modules = Module(before, "starlette"), Module(now, "generator")

    verdict = judge(*modules, "mw", HEAD.count("\n") + 2, loop, MATRIX)

    assert any(words in each.what for each in verdict.differences), verdict.differences


def test_a_receive_that_a_helper_sets_before_the_body_was_read() -> None:
    """It is honoured by Starlette, so it is left, as where it is set in the function itself."""
    source = (
        f"{HEAD}\n@app.middleware('http')\nasync def mw(request, call_next):\n"
        "    await set_body(request, b'x')\n    return await call_next(request)\n"
    )

    assert [each.code for each in convert(source).diagnostics] == ["HM108"]


def test_a_receive_that_a_helper_of_another_file_sets() -> None:
    """The same, wherever in the run the helper is."""
    main = (
        "from app.helpers import set_body\n@app.middleware('http')\n"
        "async def mw(request, call_next):\n"
        "    set_body(body=b'x', request=request)\n    return await call_next(request)\n"
    )
    project = Project()
    project.add("app/main.py", main)
    project.add("app/helpers.py", HEAD)

    found = convert(main, path="app/main.py", project=project).diagnostics

    assert [each.code for each in found] == ["HM108"]


@pytest.mark.parametrize(
    "what",
    [
        "raised nothing before, 'x' now",
        "status 200 before, 500 now",
        "headers [] before, [] now",
        "body [] before, [] now",
        "last message sent: True before, False now",
        "the app saw `a` before, `b` now",
        "side effects: `a` before, `b` now",
        "side effects in other tasks: `a` before, `b` now",
        "behind its call the app saw `a` before, `b` now",
        "context variables left set: {} before, {} now",
    ],
)
def test_each_difference_says_what_to_do(what: str) -> None:
    """Whatever differs, the user is told what to look at."""
    assert remedy(what)
