"""An answer that turns out to be None never lets a request through."""

from __future__ import annotations

import contextlib
import textwrap
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse

from httpmw import HTTPMiddleware
from httpmw.migrate import convert
from httpmw.migrate.verifying._judge import Matrix, Module, Verdict, judge
from httpmw.migrate.verifying._matrix import REQUESTS
from tests.harness import request
from tests.migrate.verifying.test_verify import quiet_loop

NAMED = """
from fastapi.responses import Response as _Response
from starlette.responses import Response as R
import starlette.responses as r
from answers import json_answer as JSONAnswerResponse

Refused = R

def short(request) -> R:
    return make(request)
"""

DEFINED = """
class Denied(JSONResponse):
    pass

def plain():
    return PlainTextResponse("no", 403)

def annotated(request) -> JSONResponse:
    answer = make(request)
    return answer

async def awaited(request):
    if request:
        return JSONResponse({})
    else:
        return plain()

def either() -> "JSONResponse | Response":
    return make()

def optional(request) -> Response | None:
    return make(request)

def falls_off() -> Response:
    if bad:
        return PlainTextResponse("no")

def gives_none() -> Response:
    return None

def generates() -> Response:
    yield make()
    raise ValueError

@cached
def decorated():
    return PlainTextResponse("no")

def twice():
    return PlainTextResponse("no")

def twice():
    return None

def calls_itself():
    return calls_itself()

def DenyResponse():
    return make()

class Helpers:
    def refuse(self):
        return PlainTextResponse("no", 403)

    async def dispatch_by(self): ...
"""


def body_of(body: str, helpers: str = DEFINED) -> str:
    """Give the body of a middleware function of a module after the conversion."""
    indented = textwrap.indent(textwrap.dedent(body).strip() + "\n", "    ")
    source = f'{helpers}\n@app.middleware("http")\nasync def mw(request, call_next):\n{indented}'
    conversion = convert(source)
    assert [each.qualname for each in conversion.conversions] == ["mw"], conversion.diagnostics
    return textwrap.dedent(conversion.code.split("-> Flow:\n")[-1]).strip()


def notices(body: str) -> list[str]:
    """Give the codes that a body gets."""
    indented = textwrap.indent(textwrap.dedent(body).strip() + "\n", "    ")
    source = f'{NAMED}{DEFINED}\n@app.middleware("http")\nasync def mw(request, call_next):\n'
    source += indented
    return [each.code for each in convert(source).diagnostics]


CERTAIN = {
    "a response class": "JSONResponse({})",
    "a response class of a module": "responses.JSONResponse({})",
    "a template": "templates.TemplateResponse(request)",
    "a class of the file": "Denied({})",
    "a function that returns responses": "plain()",
    "a function that is annotated": "annotated(request)",
    "a coroutine function": "await awaited(request)",
    "an annotation in quotes": "either()",
    "one of two": "plain() if bad else JSONResponse({})",
    "with a default": "make() or JSONResponse({})",
    "no response at all": '"text"',
    "FastAPI's handler": "await http_exception_handler(request, exc)",
    "a class under another name": "_Response(status_code=403)",
    "a class under a short name": "R(status_code=403)",
    "a class of a module under a short name": "r.JSONResponse({})",
    "another name in the file": "Refused({})",
    "a function that is annotated with a short name": "short(request)",
}


@pytest.mark.parametrize("answer", CERTAIN.values(), ids=list(CERTAIN))
def test_a_certain_answer_is_yielded_as_it_is(answer: str) -> None:
    """What cannot be None needs no check."""
    body = f"if bad:\n    return {answer}\nreturn await call_next(request)"
    helpers = f"from fastapi.exception_handlers import http_exception_handler\n{NAMED}{DEFINED}"

    assert body_of(body, helpers) == f"if bad:\n    yield {answer}\n    return\nyield"


UNCERTAIN = {
    "a function of another file": "make(request)",
    "a coroutine function of another file": "await make(request)",
    "an optional answer": "optional(request)",
    "a function that can fall off its end": "falls_off()",
    "a function that returns None": "gives_none()",
    "a generator": "generates()",
    "a decorated function": "decorated()",
    "a function that is defined twice": "twice()",
    "a function that only calls itself": "calls_itself()",
    "a function that is named like a class": "DenyResponse()",
    "a function that is imported under the name of a class": "JSONAnswerResponse({})",
    "an awaited class": "await JSONResponse({})",
    "an awaited function that is not async": "await plain()",
    "the request's JSON": "await request.json()",
    "something looked up": "answers[request.url.path]",
    "an attribute": "self.refused",
    "one of two": "plain() if bad else make()",
}


@pytest.mark.parametrize("answer", UNCERTAIN.values(), ids=list(UNCERTAIN))
def test_an_uncertain_answer_is_checked(answer: str) -> None:
    """What may be None raises where a bare yield would run the app."""
    body = f"if bad:\n    return {answer}\nreturn await call_next(request)"

    assert body_of(body, f"{NAMED}{DEFINED}") == (
        f"if bad:\n    answer = {answer}\n    if answer is None:\n"
        '        raise TypeError("no response")\n    yield answer\n    return\nyield'
    )
    assert "HM217" in notices(body)


SHAPES = {
    "a name": (
        """
        response = check(request)
        if bad:
            return response
        return await call_next(request)
        """,
        """
        response = check(request)
        if bad:
            if response is None:
                raise TypeError("no response")
            yield response
            return
        yield
        """,
    ),
    "either": (
        """
        if bad:
            response = make()
        else:
            response = await call_next(request)
        return response
        """,
        """
        if bad:
            response = make()
        else:
            response = yield
        if response is None:
            raise TypeError("no response")
        yield response
        """,
    ),
    "a name that was compared": (
        """
        response = check(request)
        if response is not None:
            return response
        return await call_next(request)
        """,
        """
        response = check(request)
        if response is not None:
            yield response
            return
        yield
        """,
    ),
    "a name whose class was asked": (
        """
        result = check(request)
        if isinstance(result, Response):
            return result
        return await call_next(request)
        """,
        """
        result = check(request)
        if isinstance(result, Response):
            yield result
            return
        yield
        """,
    ),
    "on one line": (
        """
        if bad: return make()
        return await call_next(request)
        """,
        """
        if bad:
            answer = make()
            if answer is None:
                raise TypeError("no response")
            yield answer
            return
        yield
        """,
    ),
    "after the call": (
        """
        response = await call_next(request)
        return wrap(response)
        """,
        """
        response = yield
        yield wrap(response)
        """,
    ),
    "after the call failed": (
        """
        try:
            return await call_next(request)
        except Exception as exc:
            return make(exc)
        """,
        """
        try:
            yield
        except Exception as exc:
            yield make(exc)
        """,
    ),
    "in a try that goes on": (
        """
        try:
            if bad:
                return make(request)
            check(request)
        except Denied:
            return JSONResponse({})
        return await call_next(request)
        """,
        """
        answered = False
        try:
            if bad:
                answer = make(request)
                answered = True
            else:
                check(request)
        except Denied:
            yield JSONResponse({})
            return
        if answered:
            if answer is None:
                raise TypeError("no response")
            yield answer
            return
        yield
        """,
    ),
    "in a loop in a try": (
        """
        try:
            for each in request.headers:
                if bad: return make(each)
            check(request)
        finally:
            done()
        return await call_next(request)
        """,
        """
        answered = False
        try:
            for each in request.headers:
                if bad:
                    answer = make(each)
                    answered = True
                    break
            if not answered:
                check(request)
        finally:
            done()
        if answered:
            if answer is None:
                raise TypeError("no response")
            yield answer
            return
        yield
        """,
    ),
    "behind a finally": (
        """
        try:
            check(request)
            return make(request)
        finally:
            done()
        """,
        """
        try:
            check(request)
            answer = make(request)
        finally:
            done()
        if answer is None:
            raise TypeError("no response")
        yield answer
        """,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str) -> None:
    """The check stands where the app was not called, and nowhere else."""
    before, after = SHAPES[name]

    assert body_of(before) == textwrap.dedent(after).strip()


GATES = {
    "a return": "return make(request)",
    "a name": "response = make(request)\nreturn response",
    "either": "response = make(request)\nif bad:\n    response = await call_next(request)\n"
    "return response",
    "in a handler": "try:\n    fail()\n    return await call_next(request)\n"
    "except ValueError:\n    return make(request)",
    "behind a finally": "try:\n    return make(request)\nfinally:\n    log()",
    "behind a with": "with scope():\n    return make(request)",
    "in a loop": "for _ in range(2):\n    return make(request)",
    "in a loop in a try": "try:\n    for _ in range(2):\n        return make(request)\n"
    "    raise ValueError\nfinally:\n    log()",
    "in a try that goes on": "try:\n    if not bad:\n        return make(request)\n    fail()\n"
    "except ValueError:\n    pass\nreturn await call_next(request)",
    "in both branches": "with scope():\n    if bad:\n        return make(request)\n"
    "    return make(request)",
    "one of two": "return make(request) if not bad else await call_next(request)",
    "not async": "return make_later(request)",
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", GATES)
async def test_a_gate_that_answers_none_stays_shut(name: str) -> None:
    """The app is not run where `dispatch` returned None, before and after."""
    body = textwrap.indent(GATES[name], "    ")
    define = "def" if name == "not async" else "async def"
    source = f"{define} mw(request, call_next):\n{body}\napp.middleware('http')(mw)\n"
    conversion = convert(source)
    assert conversion.changed, conversion.diagnostics
    reached = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await PlainTextResponse("secret")(scope, receive, send)

    for app in (
        BaseHTTPMiddleware(inner, dispatch=function(source)),
        HTTPMiddleware(inner, dispatch=function(conversion.code)),
    ):
        with pytest.raises((TypeError, RuntimeError)):
            await request(app)
    assert reached == []


class Registering:
    """An application that only takes note of nothing."""

    def middleware(self, kind: str) -> Any:
        return lambda function: function

    def add_middleware(self, *args: Any, **options: Any) -> None:
        pass


def function(source: str) -> Any:
    """Execute the module of `mw` among helpers that give None."""

    def fail() -> None:
        raise ValueError

    async def make_later(_: Any) -> None:
        return None

    names: dict[str, Any] = {
        "app": Registering(),
        "bad": False,
        "fail": fail,
        "log": lambda: None,
        "make": lambda _: None,
        "make_later": make_later,
        "scope": contextlib.nullcontext,
    }
    exec(source, names)  # noqa: S102 - it is what the test is about
    return names["mw"]


OPEN = {
    "a call": ("return make(request)", "yield make(request)\nreturn"),
    "an awaited call": ("return await make(request)", "yield await make(request)\nreturn"),
    "a name": (
        "response = make(request)\nreturn response",
        "response = make(request)\nyield response\nreturn",
    ),
    "after other calls": (
        "log(1)\nlog(2)\nlog(3)\nlog(4)\nlog(5)\nlog(6)\nlog(7)\nreturn self.make(request)",
        "log(1)\nlog(2)\nlog(3)\nlog(4)\nlog(5)\nlog(6)\nlog(7)\nyield self.make(request)\nreturn",
    ),
}


@pytest.mark.parametrize("condition", ["blocked(request)", "not allowed(request)"])
@pytest.mark.parametrize("name", OPEN)
def test_the_paired_runs_see_a_gate_that_opens(name: str, condition: str) -> None:
    """Helpers whose answer is returned give None once, so that `yield None` is found out."""
    before, after = (textwrap.indent(each, "        ") for each in OPEN[name])
    old = f"async def mw(request, call_next):\n    if {condition}:\n{before}\n"
    new = f"async def mw(request):\n    if {condition}:\n{after}\n"

    verdict = judged(f"{old}    return await call_next(request)\n", f"{new}    yield\n")

    assert verdict.differing > 0
    assert all("give None" in each.world for each in verdict.differences)
    assert any("the app saw" in each.what for each in verdict.differences)


@pytest.mark.parametrize("name", OPEN)
def test_the_paired_runs_accept_the_check(name: str) -> None:
    """Both versions raise a `TypeError` where there is no response."""
    body = textwrap.indent(OPEN[name][0], "        ")
    old = f"async def mw(request, call_next):\n    if blocked(request):\n{body}\n"
    old += "    return await call_next(request)\napp.middleware('http')(mw)\n"
    new = convert(old).code

    verdict = judged(old, new)

    assert verdict.differing == 0, verdict.differences
    assert verdict.improvements["clear-error"] > 0


def judged(old: str, new: str) -> Verdict:
    """Run two versions of `mw` against a few apps and requests."""
    matrix = Matrix(apps=("json", "ValueError"), requests=REQUESTS[:2], paths=0, failures=2)
    modules = Module(old, "starlette"), Module(new, "generator")
    with quiet_loop() as loop:
        return judge(*modules, "mw", 1, loop, matrix)
