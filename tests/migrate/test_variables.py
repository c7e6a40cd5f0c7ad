"""What takes back context variables does so when everything is over, or is named."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from httpmw import HTTPMiddleware
from httpmw.cli import main
from httpmw.migrate import Conversion, Project, convert
from httpmw.migrate.verifying._judge import Matrix, Module, Verdict, judge
from httpmw.migrate.verifying._matrix import REQUESTS
from httpmw.migrate.verifying._verify import verify
from httpmw.migrate.writing._late_resets import Held
from tests.docs.test_migrated import of_starlette
from tests.harness import request
from tests.migrate.verifying.test_verify import quiet_loop

HEAD = """\
import time
from contextlib import contextmanager
from contextvars import ContextVar
current = ContextVar("current", default="unset")
other = ContextVar("other", default="unset")

@contextmanager
def setting(value):
    token = current.set(value)
    try:
        yield
    finally:
        current.reset(token)
"""


def migrate(body: str, head: str = HEAD) -> Conversion:
    """Convert a middleware function with this body."""
    indented = textwrap.indent(textwrap.dedent(body).strip() + "\n", "    ")
    source = f'{head}\n@app.middleware("http")\nasync def mw(request, call_next):\n{indented}'
    conversion = convert(source)
    assert [each.qualname for each in conversion.conversions] == ["mw"], conversion.diagnostics
    return conversion


def left_as_it_is(function: Any, _: Any) -> Held:
    return Held(function.unit.node)


def body_of(conversion: Conversion) -> str:
    return textwrap.dedent(conversion.code.split("-> Flow:\n")[-1]).strip()


HELD = {
    "a finally": (
        """
        token = current.set("mine")
        try:
            response = await call_next(request)
            response.headers["a"] = "b"
            return response  # as it is
        finally:
            current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            response = yield
            response.headers["a"] = "b"
            yield response  # as it is
        finally:
            current.reset(token)
        """,
    ),
    "nothing but the call": (
        """
        token: Token = current.set("mine")
        try:
            return await call_next(request)
        finally:
            current.reset(token)
        """,
        """
        token: Token = current.set("mine")
        try:
            response = yield
            yield response
        finally:
            current.reset(token)
        """,
    ),
    "edits behind it": (
        """
        start = time.perf_counter()
        token = current.set("mine")
        try:
            response = await call_next(request)
        finally:
            current.reset(token)

        # Not in the log.
        elapsed = (time.perf_counter() - start) * 1000
        if "x-time" not in response.headers:
            response.headers["x-time"] = f"{round(elapsed)} ms {request.headers['x-id']}"
        return response
        """,
        """
        start = time.perf_counter()
        token = current.set("mine")
        try:
            response = yield

            # Not in the log.
            elapsed = (time.perf_counter() - start) * 1000
            if "x-time" not in response.headers:
                response.headers["x-time"] = f"{round(elapsed)} ms {request.headers['x-id']}"
            yield response
        finally:
            current.reset(token)
        """,
    ),
    "no try": (
        """
        token = current.set("mine")
        response = await call_next(request)

        # Back.
        current.reset(token)
        response.headers["a"] = "b"
        return response
        """,
        """
        token = current.set("mine")
        response = yield

        try:
            response.headers["a"] = "b"
            yield response
        finally:
            # Back.
            current.reset(token)
        """,
    ),
    "the old value": (
        """
        old = current.get()
        current.set("mine")
        response = await call_next(request)
        current.set(old)
        return response
        """,
        """
        old = current.get()
        current.set("mine")
        response = yield
        try:
            yield response
        finally:
            current.set(old)
        """,
    ),
    "a token that is asked for": (
        """
        token = None
        if "x-id" in request.headers:
            token = current.set("mine")
        try:
            return await call_next(request)
        finally:
            if token is not None:
                current.reset(token)
        """,
        """
        token = None
        if "x-id" in request.headers:
            token = current.set("mine")
        try:
            response = yield
            yield response
        finally:
            if token is not None:
                current.reset(token)
        """,
    ),
    "a token that is bound in a try": (
        """
        token = None
        try:
            token = current.set("mine")
        except LookupError:
            return await call_next(request)
        try:
            return await call_next(request)
        finally:
            current.reset(token)
        """,
        """
        token = None
        try:
            token = current.set("mine")
        except LookupError:
            yield
            return
        try:
            response = yield
            yield response
        finally:
            current.reset(token)
        """,
    ),
    "structlog": (
        """
        clear_contextvars()
        bind_contextvars(path=request.url.path)
        try:
            return await call_next(request)
        finally:
            clear_contextvars()
        """,
        """
        clear_contextvars()
        bind_contextvars(path=request.url.path)
        try:
            response = yield
            yield response
        finally:
            clear_contextvars()
        """,
    ),
    "a manager": (
        """
        with setting("mine"):
            response = await call_next(request)
        return response
        """,
        """
        with setting("mine"):
            response = yield
            yield response
        """,
    ),
    "a manager in a branch": (
        """
        if request.url.path == "/":
            with setting("mine"):
                return await call_next(request)
        return await call_next(request)
        """,
        """
        if request.url.path == "/":
            with setting("mine"):
                response = yield
                yield response
                return
        yield
        """,
    ),
    "an early answer": (
        """
        token = current.set("mine")
        try:
            if blocked:
                return JSONResponse({})
            return await call_next(request)
        finally:
            current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            if blocked:
                answer = JSONResponse({})
            else:
                response = yield
                yield response
                return
        finally:
            current.reset(token)
        yield answer
        """,
    ),
    "one line": (
        """
        with setting("mine"): return await call_next(request)
        """,
        """
        with setting("mine"):
            response = yield
            yield response
        """,
    ),
    "a branch on one line": (
        """
        token = current.set("mine")
        try:
            response = await call_next(request)
            if response.status_code == 200: return response
            log(response); return response
        finally: current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            response = yield
            if response.status_code == 200:
                yield response
                return
            log(response); yield response
        finally: current.reset(token)
        """,
    ),
    "handlers": (
        """
        token = current.set("mine")
        try:
            response = await call_next(request)
            log(response)
            return response
        except ValueError:
            raise RuntimeError
        except LookupError:
            return JSONResponse({}, 404)
        finally:
            current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            response = yield
            log(response)
        except ValueError:
            raise RuntimeError
        except LookupError:
            answer = JSONResponse({}, 404)
        else:
            yield response
            return
        finally:
            current.reset(token)
        yield answer
        """,
    ),
    "handlers and an else": (
        """
        token = current.set("mine")
        try:
            response = await call_next(request)
        except ValueError:
            log("failed")
            raise
        else:
            log("done")
        finally:
            current.reset(token)
        return response
        """,
        """
        token = current.set("mine")
        try:
            response = yield
        except ValueError:
            log("failed")
            raise
        else:
            log("done")
            yield response
        finally:
            current.reset(token)
        """,
    ),
    "a log in the finally": (
        """
        token = current.set("mine")
        try:
            return await call_next(request)
        finally:
            log("done")

            # Back.
            current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            try:
                response = yield
            finally:
                log("done")
            yield response
        finally:
            # Back.
            current.reset(token)
        """,
    ),
    "a log in the finally, and a handler": (
        """
        token = current.set("mine")
        try:
            response = await call_next(request)
            return response
        except ValueError:
            return JSONResponse({}, 500)
        finally:
            log("done")
            current.reset(token)
        """,
        """
        token = current.set("mine")
        answer = None
        try:
            try:
                response = yield
            except ValueError:
                answer = JSONResponse({}, 500)
            finally:
                log("done")
            if answer is None:
                yield response
                return
        finally:
            current.reset(token)
        yield answer
        """,
    ),
    "a try in a try": (
        """
        token = current.set("mine")
        try:
            try:
                return await call_next(request)
            except ValueError:
                log("failed")
                raise
        finally:
            current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            try:
                response = yield
            except ValueError:
                log("failed")
                raise
            else:
                yield response
        finally:
            current.reset(token)
        """,
    ),
    "a log in the finally, and edits behind it": (
        """
        token = current.set("mine")
        try:
            response = await call_next(request)
        finally:
            log("done")
            current.reset(token)
        response.headers["a"] = "b"
        return response
        """,
        """
        token = current.set("mine")
        try:
            try:
                response = yield
            finally:
                log("done")
            response.headers["a"] = "b"
            yield response
        finally:
            current.reset(token)
        """,
    ),
    "an else and a log in the finally": (
        """
        token = current.set("mine")
        try:
            response = await call_next(request)
        except ValueError:
            raise
        else:
            response.headers["a"] = "b"
            return response
        finally:
            log("done")
            current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            try:
                response = yield
            except ValueError:
                raise
            else:
                response.headers["a"] = "b"
            finally:
                log("done")
            yield response
        finally:
            current.reset(token)
        """,
    ),
    "branches": (
        """
        with setting("mine"):
            response = await call_next(request)
            match response.status_code:
                case 200:
                    return response
                case _:
                    log("other")
            if blocked:
                return response
            elif response.status_code == 404:
                return response
            for _ in range(3):
                return response
            return response
        """,
        """
        with setting("mine"):
            response = yield
            match response.status_code:
                case 200:
                    yield response
                    return
                case _:
                    log("other")
            if blocked:
                yield response
                return
            elif response.status_code == 404:
                yield response
                return
            for _ in range(3):
                yield response
                return
            yield response
        """,
    ),
    "handlers that only answer": (
        """
        token = current.set("mine")
        try:
            if not blocked:
                response = await call_next(request)
                if response.status_code != 200:
                    raise ValueError
            raise LookupError
        except LookupError:
            log("failed")
        finally:
            current.reset(token)
        return PlainTextResponse("late")
        """,
        """
        token = current.set("mine")
        try:
            if not blocked:
                response = yield
                if response.status_code != 200:
                    raise ValueError
            raise LookupError
        except LookupError:
            log("failed")
        finally:
            current.reset(token)
        yield PlainTextResponse("late")
        """,
    ),
    "a finally in it": (
        """
        with setting("mine"):
            try:
                return await call_next(request)
            finally:
                log("done")
        """,
        """
        with setting("mine"):
            try:
                response = yield
            finally:
                log("done")
            yield response
        """,
    ),
    "two variables": (
        """
        token = current.set("mine")
        try:
            with setting("yours"):
                response = await call_next(request)
                response.headers["a"] = "b"
                return response
        finally:
            current.reset(token)
        """,
        """
        token = current.set("mine")
        try:
            with setting("yours"):
                response = yield
                response.headers["a"] = "b"
                yield response
        finally:
            current.reset(token)
        """,
    ),
    "a body that is replaced": (
        """
        with setting("mine"):
            response = await call_next(request)
            body = b""
            async for chunk in response.body_iterator:
                body += chunk
            return Response(
                body.upper(), status_code=response.status_code, headers=dict(response.headers)
            )
        """,
        """
        with setting("mine"):
            response = yield
            body = await response.read()
            response.body = body.upper()
            yield response
        """,
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_what_takes_back_is_behind_the_response(name: str) -> None:
    """The response is yielded in what takes variables back, and all else keeps its moment."""
    before, after = HELD[name]

    conversion = migrate(before)

    assert body_of(conversion) == textwrap.dedent(after).strip()
    assert "HM218" not in [each.code for each in conversion.diagnostics]
    assert not conversion.conversions[0].forgets


LEFT = {
    "an unknown manager": "with span():\n    return await call_next(request)",
    "one of two managers": "with setting('a'), span():\n    return await call_next(request)",
    "a time limit in it": (
        "import anyio\nwith setting('a'):\n    with anyio.fail_after(3):\n"
        "        return await call_next(request)"
    ),
    "a token that is gone": (
        "token = current.set(1)\nresponse = await call_next(request)\ndel token\n"
        "current.reset(token)\nreturn response"
    ),
    "a manager in a variable": "with manager:\n    return await call_next(request)",
    "a name that is another thing here": (
        "setting = make()\nwith setting('a'):\n    return await call_next(request)"
    ),
    "a log behind it in the finally": (
        "token = current.set(1)\ntry:\n    return await call_next(request)\n"
        "finally:\n    current.reset(token)\n    log()"
    ),
    "a log behind the statement": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n"
        "finally:\n    current.reset(token)\nlog()\nreturn response"
    ),
    "a look at the variable behind it": (
        "token = current.set(1)\nresponse = await call_next(request)\ncurrent.reset(token)\n"
        "response.headers['a'] = current.get()\nreturn response"
    ),
    "an awaited edit behind it": (
        "token = current.set(1)\nresponse = await call_next(request)\ncurrent.reset(token)\n"
        "response.headers['a'] = await make()\nreturn response"
    ),
    "a handler around it": (
        "try:\n    with setting('a'):\n        return await call_next(request)\n"
        "except ValueError:\n    return JSONResponse({})"
    ),
    "a finally around it": (
        "try:\n    with setting('a'):\n        return await call_next(request)\nfinally:\n    log()"
    ),
    "an unknown manager in it": (
        "with setting('a'):\n    with span():\n        return await call_next(request)"
    ),
    "a return in a handler": (
        "response = None\ntoken = current.set(1)\ntry:\n    response = await call_next(request)\n"
        "    log()\nexcept ValueError:\n    if response:\n        return response\n    raise\n"
        "finally:\n    current.reset(token)\nreturn response"
    ),
    "an answer in the place of the response": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n"
        "except ValueError:\n    response = JSONResponse({})\nfinally:\n    current.reset(token)\n"
        "return response"
    ),
    "an early return under a handler": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n    if quick:\n"
        "        return response\n    log()\n    return response\nexcept ValueError:\n    raise\n"
        "finally:\n    current.reset(token)"
    ),
    "an early return under a handler, with an else": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n    if quick:\n"
        "        return response\nexcept ValueError:\n    raise\nelse:\n    return response\n"
        "finally:\n    current.reset(token)"
    ),
    "the same with a log in the finally": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n    if quick:\n"
        "        return response\nexcept ValueError:\n    raise\nelse:\n    return response\n"
        "finally:\n    log()\n    current.reset(token)"
    ),
    "a handler that goes on": (
        "token = current.set(1)\nresponse = await call_next(request)\ntry:\n    log()\n"
        "    return response\nexcept ValueError:\n    pass\nfinally:\n    current.reset(token)\n"
        "return response"
    ),
    "a handler that falls off the end": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n"
        "except ValueError:\n    log()\nfinally:\n    current.reset(token)\nreturn response"
    ),
    "a body that is replaced under a handler": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n"
        "    return Response(b'', status_code=response.status_code, headers=response.headers)\n"
        "except ValueError:\n    raise\nfinally:\n    current.reset(token)"
    ),
    "an answer that may be the response": (
        "with setting('a'):\n    response = make()\n    if quick:\n"
        "        response = await call_next(request)\n    return response"
    ),
    "structlog's tokens": (
        "tokens = bind_contextvars(a=1)\nresponse = await call_next(request)\n"
        "reset_contextvars(**tokens)\nreturn response"
    ),
    "a global token": (
        "global token\ntoken = current.set(1)\ntry:\n    return await call_next(request)\n"
        "finally:\n    current.reset(token)"
    ),
    "a name that the finally binds": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n"
        "    return response\nfinally:\n    response = None\n    current.reset(token)"
    ),
    "a name that a loop in the finally binds": (
        "token = current.set(1)\ntry:\n    response = await call_next(request)\n"
        "    return response\nfinally:\n    for other, [response] in made:\n        log()\n"
        "    current.reset(token)"
    ),
    "a return in the finally": (
        "token = current.set(1)\ntry:\n    return await call_next(request)\n"
        "finally:\n    if quick:\n        return JSONResponse({})\n    current.reset(token)"
    ),
    "a break": (
        "while True:\n    with setting('a'):\n        response = await call_next(request)\n"
        "        break\nreturn response"
    ),
    "a branch that goes on": (
        "if quick:\n    with setting('a'):\n        response = await call_next(request)\n"
        "else:\n    response = await call_next(request)\nreturn response"
    ),
    "a token that is bound to something else": (
        "token = current.set(1)\ntry:\n    token = request.headers.get('token')\n"
        "    return await call_next(request)\nfinally:\n    current.reset(token)"
    ),
    "a token that is bound in a pair": (
        "token = current.set(1)\ntoken, name = make()\ntry:\n"
        "    return await call_next(request)\nfinally:\n    current.reset(token)"
    ),
    "a token of another variable": (
        "token = other.set(1)\ntry:\n    return await call_next(request)\n"
        "finally:\n    current.reset(token)"
    ),
    "a token that may be missing": (
        "if quick:\n    token = current.set(1)\ntry:\n    return await call_next(request)\n"
        "finally:\n    current.reset(token)"
    ),
    "a token that may be None": (
        "token = None\nif quick:\n    token = current.set(1)\ntry:\n"
        "    return await call_next(request)\nfinally:\n    current.reset(token)"
    ),
    "a token that a handler leaves out": (
        "try:\n    token = current.set(1)\nexcept LookupError:\n    pass\ntry:\n"
        "    return await call_next(request)\nfinally:\n    current.reset(token)"
    ),
    "a token that a nested function binds": (
        "token = current.set(1)\ndef again():\n    nonlocal token\n    token = 1\ntry:\n"
        "    return await call_next(request)\nfinally:\n    current.reset(token)"
    ),
    "a token in an attribute": (
        "self.token = current.set(1)\ntry:\n    return await call_next(request)\n"
        "finally:\n    current.reset(self.token)"
    ),
    "another value behind the call": (
        "response = await call_next(request)\ncurrent.set('later')\nreturn response"
    ),
    "the end of the function": (
        "token = current.set(1)\nresponse = await call_next(request)\ncurrent.reset(token)"
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_moved_safely_is_named(name: str, monkeypatch: Any) -> None:
    """Nothing is moved, and HM218 says what is taken back."""
    conversion = migrate(LEFT[name])

    with monkeypatch.context() as patched:
        patched.setattr("httpmw.migrate.writing._version.hold", left_as_it_is)
        assert conversion.code == migrate(LEFT[name]).code
    assert "HM218" in [each.code for each in conversion.diagnostics]
    assert conversion.conversions[0].forgets


SILENT = {
    "set, and never taken back": "current.set(1)\nreturn await call_next(request)",
    "taken back before the call": (
        "token = current.set(1)\ncurrent.reset(token)\nreturn await call_next(request)"
    ),
    "taken back behind an answer": (
        "if quick:\n    return await call_next(request)\nclear_contextvars()\n"
        "return await call_next(request)"
    ),
    "taken back where the app failed": (
        "token = current.set(1)\ntry:\n    return await call_next(request)\n"
        "except ValueError:\n    current.reset(token)\n    raise"
    ),
    "another reset": "response = await call_next(request)\ncounter.reset()\nreturn response",
    "another set": "response = await call_next(request)\nready.set(1)\nreturn response",
}


@pytest.mark.parametrize("name", SILENT)
def test_what_the_app_cannot_miss_is_not_named(name: str) -> None:
    """Nothing is moved, and there is nothing to say."""
    conversion = migrate(SILENT[name])

    assert "yield response" not in body_of(conversion)
    assert conversion.diagnostics == []


def test_another_answer_behind_the_call_is_named() -> None:
    """It is sent when the variable is taken back, as before; the app it discards may miss it."""
    conversion = migrate(
        """
        with setting("mine"):
            response = await call_next(request)
            if response.status_code == 404:
                return JSONResponse({}, 404)
            return response
        """
    )

    assert "        yield response\n" in conversion.code
    assert conversion.code.endswith("    yield answer\n")
    (said,) = conversion.diagnostics
    assert (said.code, said.line) == ("HM218", 20)


MANAGERS = {
    "a try": (
        "@contextmanager\ndef held(value):\n    token = current.set(value)\n"
        "    try:\n        yield\n    finally:\n        current.reset(token)\n"
    ),
    "no try": (
        "@contextmanager\ndef held(value):\n    '''Keep it.'''\n"
        "    token: Token = current.set(value)\n    yield value\n    current.reset(token)\n"
    ),
    "a way out": (
        "@contextmanager\ndef held(value):\n    if not value:\n        yield\n        return\n"
        "    token = None\n    if value > 1:\n        token = current.set(value)\n    try:\n"
        "        yield\n    finally:\n        if token:\n            current.reset(token)\n"
    ),
    "a reset that may fail": (
        "@contextmanager\ndef held(value):\n    token = current.set(value)\n    try:\n"
        "        yield\n    finally:\n        try:\n            current.reset(token)\n"
        "        except ValueError:\n            pass\n"
    ),
    "a class": (
        "class held:\n    def __init__(self, value):\n        self.value = value\n"
        "    def __enter__(self):\n        self.token = current.set(self.value)\n"
        "    def __exit__(self, *exc):\n        current.reset(self.token)\n        return False\n"
    ),
    "structlog's": "from structlog.contextvars import bound_contextvars as held\n",
}


@pytest.mark.parametrize("name", MANAGERS)
def test_a_manager_of_another_file(name: str) -> None:
    """It is known by its definition, wherever in the run that is."""
    head = "from project.context import held\n"
    if name == "structlog's":
        head, called = "import structlog\n", "structlog.contextvars.bound_contextvars(id=1)"
    else:
        called = "held(1)"
    context = f"from contextlib import contextmanager\n{MANAGERS[name]}"
    source = (
        f'{head}@app.middleware("http")\nasync def mw(request, call_next):\n'
        f"    with {called}:\n        return await call_next(request)\n"
    )
    project = Project()
    project.add("src/project/context.py", context)
    project.add("src/project/main.py", source)

    conversion = convert(source, path="src/project/main.py", project=project)

    assert conversion.code.endswith(":\n        response = yield\n        yield response\n")
    assert conversion.diagnostics == []


OTHER_MANAGERS = {
    "a log": "    try:\n        yield\n    finally:\n        current.reset(token)\n        log()\n",
    "a handler": (
        "    try:\n        yield\n    except ValueError:\n        pass\n"
        "    finally:\n        current.reset(token)\n"
    ),
    "something behind it": "    yield\n    current.reset(token)\n    log()\n",
    "another manager in it": "    with span():\n        yield\n    current.reset(token)\n",
    "a loop": "    while value:\n        yield\n        current.reset(token)\n",
    "another branch": (
        "    if value:\n        yield\n    else:\n        yield\n        log()\n"
        "    current.reset(token)\n"
    ),
}


@pytest.mark.parametrize("name", OTHER_MANAGERS)
def test_a_manager_that_does_something_else(name: str) -> None:
    """What else it does would come too late."""
    head = (
        f"{HEAD}@contextmanager\ndef held(value):\n    token = current.set(value)\n"
        f"{OTHER_MANAGERS[name]}"
    )
    decorated = head.replace("@contextmanager\ndef held", "@traced\n@contextmanager\ndef held")
    called = "with held(1):\n    return await call_next(request)"

    for each in (head, decorated, head.replace("@contextmanager\ndef held", "def held")):
        conversion = migrate(called, each)
        assert [found.code for found in conversion.diagnostics] == ["HM218"]
        assert "yield response" not in body_of(conversion)


def test_a_manager_that_is_defined_twice() -> None:
    """Which of the two is meant is not known."""
    conversion = migrate("with setting(1):\n    return await call_next(request)", HEAD * 2)

    assert [each.code for each in conversion.diagnostics] == ["HM218"]


def test_a_manager_class_that_does_something_else() -> None:
    """The same for `__exit__`."""
    head = (
        f"{HEAD}class held:\n    def __enter__(self):\n        self.token = current.set(1)\n"
        "    def __exit__(self, *exc):\n        current.reset(self.token)\n        return True\n"
    )

    conversion = migrate("with held():\n    return await call_next(request)", head)

    assert [each.code for each in conversion.diagnostics] == ["HM218"]


def test_a_function_that_others_delegate_to_is_left() -> None:
    """What its caller does before the response is out would see the variable."""
    source = (
        f"{HEAD}\nasync def helper(request, call_next):\n"
        "    with setting('mine'):\n        return await call_next(request)\n\n"
        '@app.middleware("http")\nasync def mw(request, call_next):\n'
        "    response = await helper(request, call_next)\n    log()\n    return response\n"
    )

    conversion = convert(source)

    assert "yield response" not in conversion.code
    assert [each.code for each in conversion.diagnostics] == ["HM218"]
    assert [each.forgets for each in conversion.conversions] == [True, True]


def test_a_class_keeps_its_variables() -> None:
    """The same in a `dispatch` method, and with a helper inside of what takes back."""
    source = (
        "from starlette.middleware.base import BaseHTTPMiddleware\n" + HEAD + "\n"
        "class Base(BaseHTTPMiddleware):\n    async def dispatch(self, request, call_next):\n"
        "        return await call_next(request)\n\n"
        "class Mine(Base):\n    async def dispatch(self, request, call_next):\n"
        "        with setting('mine'):\n"
        "            return await super().dispatch(request, call_next)\n"
    )

    conversion = convert(source)

    assert conversion.code.endswith(
        "        with setting('mine'):\n"
        "            response = yield super().dispatch(request)\n"
        "            yield response\n"
    )
    assert conversion.diagnostics == []


def test_the_command_looks_for_managers(tmp_path: Path, capsys: Any) -> None:
    """A file without middleware is read where it defines a manager around a call."""
    (tmp_path / "context.py").write_text(HEAD)
    (tmp_path / "mw.py").write_text(
        'from context import setting\n@app.middleware("http")\n'
        "async def mw(request, call_next):\n"
        "    with setting(1):\n        return await call_next(request)\n"
    )

    assert main(["migrate", "--verify", "--write", str(tmp_path)]) == 0

    assert "        yield response\n" in (tmp_path / "mw.py").read_text()
    assert (tmp_path / "context.py").read_text() == HEAD
    error = capsys.readouterr().err
    assert "0 left to a person, 0 notices" in error
    assert "1 function run in" in error


# ------------------------------------------------------------------------ what the app sees of it


class Watched:
    """What is noted by a function and by the apps in it, with the value of its variable."""

    def __init__(self) -> None:
        self.variable: ContextVar[str] = ContextVar("unused")
        self.by_function: list[str] = []
        self.by_app: list[str] = []

    def log(self, what: object) -> None:
        self.by_function.append(f"{what if isinstance(what, str) else ''}: {self.variable.get()}")

    def see(self, what: str) -> None:
        self.by_app.append(f"{what}: {self.variable.get()}")

    async def streams(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamingResponse(self.chunks(), background=BackgroundTask(self.see, "task"))
        await response(scope, receive, send)

    async def chunks(self) -> AsyncIterator[bytes]:
        for each in (b"one", b"two"):
            self.see("chunk")
            yield each

    async def breaks_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        self.see("before it fails")
        raise ValueError("late")

    async def fails(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.see("before it fails")
        raise ValueError("early")


class Registering:
    """An application that takes note of nothing."""

    def middleware(self, kind: str) -> Any:
        return lambda function: function


async def observed(body: str, app: str) -> list[Any]:
    """Run old and new version of a function around an app, and tell what is seen of each."""
    conversion = migrate(body)
    now = conversion.code.replace("@http_middleware(app)\n", "")
    seen = []
    for code, layer in ((conversion.source, BaseHTTPMiddleware), (now, HTTPMiddleware)):
        watched = Watched()
        names: dict[str, Any] = {
            "JSONResponse": JSONResponse,
            "Response": Response,
            "Token": object,
            "app": Registering(),
            "blocked": False,
            "log": watched.log,
        }
        exec(code, names)  # noqa: S102 - it is what the test is about
        watched.variable = names["current"]
        answer = await request(
            layer(getattr(watched, app), dispatch=names["mw"]),
            headers={"x-id": "1"},
            keep_error=True,
        )
        watched.see("in the end")
        seen.append((watched.by_function, watched.by_app, answer.status, repr(answer.error)))
    return seen


OTHERS = {"handlers that only answer", "structlog"}


@of_starlette
@pytest.mark.anyio
@pytest.mark.parametrize("name", [each for each in HELD if each not in OTHERS])
async def test_streams_and_background_tasks_see_the_variable(name: str) -> None:
    """As under Starlette's class; and behind the request nobody does."""
    before, after = await observed(HELD[name][0], "streams")

    assert before == after
    _, by_app, status, error = after
    assert (status, error) == (200, "None")
    value = by_app[0].removeprefix("chunk: ")
    assert value in {"mine", "yours"}
    assert by_app == [f"chunk: {value}"] * 2 + [f"task: {value}", "in the end: unset"]


async def test_layers_further_out_see_the_variable_now() -> None:
    """When the response starts it is not taken back yet."""
    watched = Watched()
    names: dict[str, Any] = {"app": Registering()}
    code = migrate("with setting('mine'):\n    return await call_next(request)").code
    exec(code.replace("@http_middleware(app)\n", ""), names)  # noqa: S102 - as above
    watched.variable = names["current"]
    inner = HTTPMiddleware(watched.streams, dispatch=names["mw"])

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_log(message: Message) -> None:
            watched.log(message["type"])
            await send(message)

        await inner(scope, receive, send_and_log)

    await request(outer)

    assert watched.by_function[0] == "http.response.start: mine"


HANDLER = """
token = current.set("mine")
try:
    response = await call_next(request)
    return response
except Exception:
    log("handler")
    return JSONResponse({}, 500)
finally:
    log("finally")
    current.reset(token)
"""


@of_starlette
@pytest.mark.anyio
@pytest.mark.parametrize("app", ["breaks_off", "fails", "streams"])
async def test_a_handler_sees_what_it_saw_before(app: str) -> None:
    """What goes wrong behind the response start does not come to the handlers around the call."""
    before, after = await observed(HANDLER, app)

    assert before == after
    by_function, by_app, status, error = after
    assert by_function == ["handler: mine"] * (app == "fails") + ["finally: mine"]
    assert by_app[-1] == "in the end: unset"
    assert (status, error) == (
        500 if app == "fails" else 200,
        "ValueError('late')" if app == "breaks_off" else "None",
    )


# ------------------------------------------------------------------------------- the paired runs

OLD = """
token = current.set("mine")
try:
    response = await call_next(request)
    tell("done")
    return response
finally:
    current.reset(token)
"""
WRONG = {
    "taken back at the response start": (
        """
        token = current.set("mine")
        try:
            response = yield
            tell("done")
        finally:
            current.reset(token)
        """,
        "behind its call the app saw",
    ),
    "never taken back": (
        """
        token = current.set("mine")
        response = yield
        tell("done")
        """,
        "context variables left set: {} before, {'current': \"'mine'\"} now",
    ),
    "a side effect that comes too late": (
        """
        token = current.set("mine")
        try:
            response = yield
            yield response
            tell("done")
        finally:
            current.reset(token)
        """,
        "side effects: `tell('done')` before, `- the response starts -` now",
    ),
}
KNOWN = "from contextvars import ContextVar\nfrom project import tell\ncurrent = ContextVar('c')\n"
UNKNOWN = "from project import current, tell\n"


@pytest.mark.parametrize("head", [KNOWN, UNKNOWN], ids=["known", "unknown"])
@pytest.mark.parametrize("name", WRONG)
def test_the_paired_runs_see_a_wrong_moment(name: str, head: str) -> None:
    """Also where the variable is that of another file, for which a stub stands."""
    new, what = WRONG[name]

    verdict = judged(OLD, new, head)

    assert verdict.differing > 0
    told = [each.what for each in verdict.differences]
    assert any(what.partition(": {}")[0] in each for each in told), told


@pytest.mark.parametrize("head", [KNOWN, UNKNOWN], ids=["known", "unknown"])
def test_the_paired_runs_accept_the_right_moment(head: str) -> None:
    """Taking a variable back has no moment of its own, as long as nobody can see it."""
    new = """
        token = current.set("mine")
        try:
            response = yield
            tell("done")
            yield response
        finally:
            current.reset(token)
    """

    verdict = judged(OLD, new, head)

    assert (verdict.differences, verdict.problem) == ([], "")


def test_what_is_known_to_be_lost_is_no_difference() -> None:
    """A function with HM218 stays converted."""
    new, _ = WRONG["taken back at the response start"]

    assert judged(OLD, new, KNOWN, forgets=True).differences == []


STUBS = {
    "structlog": (
        """
        bind_contextvars(a=1)
        try:
            response = await call_next(request)
            return response
        finally:
            clear_contextvars()
        """,
        """
        bind_contextvars(a=1)
        try:
            response = yield
            yield response
        finally:
            clear_contextvars()
        """,
    ),
    "a manager": (
        """
        with held(1):
            response = await call_next(request)
            return response
        """,
        """
        with held(1):
            response = yield
            yield response
        """,
    ),
    "the old value": (
        """
        old = current.get()
        current.set(1)
        response = await call_next(request)
        current.set(old)
        return response
        """,
        """
        old = current.get()
        current.set(1)
        try:
            response = yield
            yield response
        finally:
            current.set(old)
        """,
    ),
}


@pytest.mark.parametrize("name", STUBS)
def test_the_paired_runs_know_what_stands_for_a_variable(name: str) -> None:
    """Stubs that are used like one are one: the app sees whether it is set."""
    old, new = STUBS[name]
    managers = frozenset({"held"})

    right = judged(old, new, UNKNOWN, managers=managers)
    wrong = judged(old, new.replace("yield response", ""), UNKNOWN, managers=managers)

    assert right.differences == []
    assert any("behind its call the app saw" in each.what for each in wrong.differences)


def test_a_manager_that_is_not_known_keeps_its_moment() -> None:
    """What leaving it does may be anything."""
    old, new = STUBS["a manager"]

    verdict = judged(old, new, UNKNOWN)

    assert any("`exit held(): None` before" in each.what for each in verdict.differences)


def test_a_wrong_moment_leaves_the_function(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """With `--verify` it is HM180."""
    monkeypatch.setattr("httpmw.migrate.writing._version.hold", left_as_it_is)
    path = tmp_path / "mw.py"
    path.write_text(migrate(OLD, KNOWN).source)
    before = path.read_text()

    assert main(["migrate", "--verify", "--write", str(path)]) == 0

    assert path.read_text() == before
    assert "HM180 [mw] old and new version differ: behind its call" in capsys.readouterr().err


@of_starlette
@pytest.mark.parametrize("part", range(4))
def test_the_shapes_are_run_in_pairs(part: int) -> None:
    """Each of them does the same afterwards."""
    shapes = list(HELD.values())[part::4]
    functions = []
    for index, (before, _) in enumerate(shapes):
        body = textwrap.indent(textwrap.dedent(before).strip(), "    ")
        functions.append(
            f'@app.middleware("http")\nasync def mw{index}(request, call_next):\n{body}\n'
        )
    imports = (
        "from starlette.responses import JSONResponse, PlainTextResponse, Response\n"
        "from project import log\n"
    )
    conversion = convert(imports + HEAD + "\n".join(functions))

    verdicts = verify(conversion.source, conversion.code, conversion.conversions)

    assert len(verdicts) == len(shapes)
    assert [each.differences for each in verdicts] == [[]] * len(shapes)
    assert {each.problem for each in verdicts} == {""}


def judged(old: str, new: str, head: str, **options: Any) -> Verdict:
    """Run two versions of `mw` against a few apps and requests."""
    matrix = Matrix(
        apps=("json", "ValueError", "stream", "breaks off"),
        requests=REQUESTS[:2],
        paths=0,
        failures=2,
    )
    indented = (textwrap.indent(textwrap.dedent(each).strip(), "    ") for each in (old, new))
    before, after = (
        f"{head}async def mw({parameters}):\n{body}\n"
        for parameters, body in zip(("request, call_next", "request"), indented, strict=True)
    )
    line = head.count("\n") + 1
    with quiet_loop() as loop:
        modules = Module(before, "starlette"), Module(after, "generator")
        return judge(*modules, "mw", line, loop, matrix, **options)


HARMLESS = {
    "a time limit": "async with asyncio.timeout(3):",
    "a lock of the class": "async with self.lock:",
    "a private lock": "async with self._rate_lock:",
    "a lock by its key": "async with locks[request.url.path]:",
    "a lock that is looked up": "async with self.get_lock(request):",
    "a semaphore": "async with self._semaphore:",
    "a semaphore that is made here": "async with asyncio.Semaphore(3):",
    "a file": 'with open("log") as log:',
    "an object that is closed": "with closing(connect()) as connection:",
    "nothing": "with nullcontext():",
    "two of them": "async with self.lock, asyncio.timeout(3):",
}


@pytest.mark.parametrize("line", HARMLESS.values(), ids=list(HARMLESS))
def test_what_has_nothing_to_do_with_variables_gets_no_notice(line: str) -> None:
    """A lock, a time limit or a file around the call takes no context variable back."""
    conversion = convert(
        "import asyncio\nfrom contextlib import closing, nullcontext\n"
        "from starlette.middleware.base import BaseHTTPMiddleware\n"
        "class M(BaseHTTPMiddleware):\n    async def dispatch(self, request, call_next):\n"
        f"        {line}\n            return await call_next(request)\n"
    )

    assert conversion.diagnostics == []
    assert conversion.changed


@pytest.mark.parametrize(
    "line",
    ["with decimal.localcontext():", "with self.block:", "with flock(request):", "with span():"],
)
def test_what_may_have_to_do_with_variables_gets_a_notice(line: str) -> None:
    """What is not known to leave them alone is named."""
    conversion = convert(
        f'@app.middleware("http")\nasync def mw(request, call_next):\n    {line}\n'
        "        return await call_next(request)\n"
    )

    assert [each.code for each in conversion.diagnostics] == ["HM218"]


CONTEXT = """\
from contextvars import ContextVar, Token

_current: ContextVar[str | None] = ContextVar("current", default=None)
_other = ContextVar[str]("other")

def put(value):
    '''Keep it.'''
    return _current.set(value)

def store(value: str) -> None:
    _current.set(value)

def read():
    return _current.get()

def take_back(token: Token) -> None:
    _current.reset(token)

def clear() -> None:
    _current.set(None)

def clear_all():
    clear()
    _other.set("")

def clear_and_log():
    _current.set(None)
    print("cleared")

def clear_cache():
    cache.pop("a", None)

class Context:
    def __init__(self):
        self.mine = ContextVar("mine")

    def put(self, value):
        self.mine.set(value)

    def clear(self):
        self.mine.set({})

context = Context()
"""
THROUGH = {
    "set and cleared": (
        "ctx.store('mine')\ntry:\n    return await call_next(request)\nfinally:\n    ctx.clear()",
        (
            "ctx.store('mine')\ntry:\n    response = yield\n    yield response\n"
            "finally:\n    ctx.clear()"
        ),
    ),
    "cleared alone": (
        "try:\n    return await call_next(request)\nfinally:\n    log()\n    ctx.clear_all()",
        (
            "try:\n    try:\n        response = yield\n    finally:\n        log()\n"
            "    yield response\nfinally:\n    ctx.clear_all()"
        ),
    ),
    "a token": (
        (
            "token = ctx.put('mine')\ntry:\n    return await call_next(request)\n"
            "finally:\n    ctx.take_back(token)"
        ),
        (
            "token = ctx.put('mine')\ntry:\n    response = yield\n    yield response\n"
            "finally:\n    ctx.take_back(token)"
        ),
    ),
    "the old value": (
        (
            "old = ctx.read()\nctx.store('mine')\ntry:\n    return await call_next(request)\n"
            "finally:\n    ctx.store(old)"
        ),
        (
            "old = ctx.read()\nctx.store('mine')\ntry:\n    response = yield\n    yield response\n"
            "finally:\n    ctx.store(old)"
        ),
    ),
    "a method": (
        (
            "ctx.context.put('mine')\ntry:\n    return await call_next(request)\n"
            "finally:\n    ctx.context.clear()"
        ),
        (
            "ctx.context.put('mine')\ntry:\n    response = yield\n    yield response\n"
            "finally:\n    ctx.context.clear()"
        ),
    ),
    "no finally": (
        "ctx.store('mine')\nresponse = await call_next(request)\nctx.clear()\nreturn response",
        "ctx.store('mine')\nresponse = yield\ntry:\n    yield response\nfinally:\n    ctx.clear()",
    ),
}


def through(body: str) -> tuple[Conversion, str, str]:
    """Convert a function whose variables are in another file."""
    source = (
        "from app import ctx\n@app.middleware('http')\nasync def mw(request, call_next):\n"
        + textwrap.indent(f"{body}\n", "    ")
    )
    project = Project()
    project.add("app/ctx.py", CONTEXT)
    project.add("app/main.py", source)
    conversion = convert(source, path="app/main.py", project=project)
    return conversion, source, body_of(conversion)


@pytest.mark.parametrize("name", THROUGH)
def test_helpers_that_only_set_variables_are_seen_through(name: str) -> None:
    """What a function of the run takes back is taken back when everything is over."""
    before, after = THROUGH[name]
    conversion, source, body = through(before)

    assert body == after
    assert conversion.diagnostics == []
    (verdict,) = verify(source, conversion.code, conversion.conversions)
    assert (verdict.problem, verdict.differences) == ("", [])


TOLD = {
    "a helper that does more": (
        "try:\n    return await call_next(request)\nfinally:\n    ctx.clear_and_log()"
    ),
    "a helper behind the call": (
        "response = await call_next(request)\nctx.store('later')\nreturn response"
    ),
    "a token of another call": (
        "try:\n    return await call_next(request)\n"
        "finally:\n    ctx.take_back(request.state.token)"
    ),
    "an unknown function": (
        "try:\n    return await call_next(request)\nfinally:\n    clear_request_id()"
    ),
    "an unknown function that resets": (
        "try:\n    return await call_next(request)\nfinally:\n    await tenants.reset_tenant()"
    ),
    "an unknown function that pops": (
        "try:\n    return await call_next(request)\nfinally:\n    stack.pop_context(1)"
    ),
    "an unknown function that detaches": (
        "token = attach(span)\ntry:\n    return await call_next(request)\n"
        "finally:\n    detach(token)"
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_may_take_variables_back_is_named(name: str) -> None:
    """It is converted as it stands, and HM218 names what may be gone."""
    conversion, _, body = through(TOLD[name])

    assert "yield response" not in body
    if name != "a token of another call":
        assert [each.code for each in conversion.diagnostics] == ["HM218"]


QUIET_CALLS = {
    "a function of the run that sets none": "ctx.clear_cache()",
    "a dictionary": "seen.pop(request.url.path, None)",
    "a list": "self.stack.pop()",
    "an event": "ready.clear()",
}


@pytest.mark.parametrize("call", QUIET_CALLS.values(), ids=list(QUIET_CALLS))
def test_what_takes_something_else_back_is_not_named(call: str) -> None:
    """What is no context variable keeps its moment, and there is nothing to say."""
    conversion, _, body = through(
        f"try:\n    return await call_next(request)\nfinally:\n    {call}"
    )

    assert body == f"try:\n    yield\nfinally:\n    {call}"
    assert conversion.diagnostics == []


def test_the_command_looks_for_helpers(tmp_path: Path) -> None:
    """A file without `call_next` is read where it defines a function that sets a variable."""
    (tmp_path / "ctx.py").write_text(CONTEXT)
    (tmp_path / "mw.py").write_text(
        "import ctx\n@app.middleware('http')\nasync def mw(request, call_next):\n"
        + textwrap.indent(THROUGH["set and cleared"][0] + "\n", "    ")
    )

    assert main(["migrate", "--write", "--verify", str(tmp_path)]) == 0

    assert "        yield response\n" in (tmp_path / "mw.py").read_text()
