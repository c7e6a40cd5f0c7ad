"""What belongs together in several files, and what is left to a person."""

from __future__ import annotations

import textwrap

import pytest

from httpmw.migrate import CODES, Conversion, Project, convert
from tests import ROOT
from tests.codemod import run
from tools.migrate_codes import page

CLASS = "from starlette.middleware.base import BaseHTTPMiddleware\n"


def passing(name: str) -> str:
    """Give a class that does nothing but run the app."""
    return (
        f"{CLASS}class {name}(BaseHTTPMiddleware):\n"
        "    async def dispatch(self, request, call_next):\n"
        "        return await call_next(request)\n"
    )


def errors(conversion: Conversion) -> list[tuple[str, int]]:
    return [(each.code, each.line) for each in conversion.diagnostics if each.severity == "error"]


def test_registration_in_another_file() -> None:
    """A registration is rewritten where it stands."""
    done = run(
        app__mw="""
            async def mw(request, call_next):
                return await call_next(request)
            """,
        app__main="""
            from .mw import mw as log
            app.middleware("http")(log)
            """,
    )

    assert "yield" in done["app/mw"].code
    assert "http_middleware(app)(log)" in done["app/main"].code
    assert done["app/mw"].diagnostics == done["app/main"].diagnostics == []


def test_base_class_in_another_file() -> None:
    """A class and its base are converted together, and only one of them changes its base."""
    done = run(
        app__base=passing("Base"),
        app__mw="""
            from app.base import Base

            class M(Base):
                async def dispatch(self, request, call_next):
                    return await super().dispatch(request, call_next)
            """,
    )

    assert "class Base(HTTPMiddleware):" in done["app/base"].code
    assert "class M(Base):" in done["app/mw"].code
    assert "yield super().dispatch(request)" in done["app/mw"].code


def test_family_is_left_together() -> None:
    """Where one class of a family cannot be converted, all are left."""
    done = run(
        base=passing("Base"),
        mw="""
            from base import Base

            class M(Base):
                async def dispatch(self, request, call_next):
                    return await asyncio.create_task(call_next(request))
            """,
    )

    assert not any(each.changed for each in done.values())
    assert [code for code, _ in errors(done["base"])] == ["HM115"]
    assert [code for code, _ in errors(done["mw"])] == ["HM102"]


def test_helper_in_another_file() -> None:
    """A helper is converted with its caller, wherever it is."""
    done = run(
        helpers="""
            async def run(call_next, request):
                return await call_next(request)
            """,
        mw="""
            import helpers

            @app.middleware("http")
            async def mw(request, call_next):
                return await helpers.run(call_next, request)
            """,
    )

    assert "async def run(request) -> Flow:\n    yield\n" in done["helpers"].code
    assert "yield helpers.run(request)" in done["mw"].code


def test_file_that_cannot_be_written() -> None:
    """What belongs to a frozen file is left with it."""
    project = Project()
    source = "async def mw(request, call_next):\n    return await call_next(request)\n"
    main = 'from mw import mw\napp.middleware("http")(mw)\n'
    project.add("mw.py", source)
    project.add("main.py", main)
    project.freeze("mw.py", "cannot write it: it is read-only")

    assert convert(source, path="mw.py", project=project).code == source
    assert convert(main, path="main.py", project=project).code == main


def test_call_by_hand_in_a_test() -> None:
    """A test that calls `dispatch` goes on doing so through `as_call_next`."""
    done = run(
        mw=passing("M"),
        tests__test_mw="""
            from mw import M

            async def test_mw():
                middleware = M(app=None)
                call_next = AsyncMock()
                await middleware.dispatch(request, call_next)
                await M(app=None).dispatch(request, call_next)
            """,
    )

    code = done["tests/test_mw"].code
    assert "from httpmw.testing import as_call_next\n" in code
    assert "await as_call_next(middleware.dispatch)(request, call_next)" in code
    assert "await as_call_next(M(app=None).dispatch)(request, call_next)" in code


def test_call_by_hand_of_what_a_fixture_yields() -> None:
    """A fixture is known by the variable that it yields."""
    done = run(
        mw=passing("M"),
        tests__test_mw="""
            from mw import M

            @pytest.fixture
            def disabled():
                with patch("mw.settings"):
                    made = M(app=None)
                    yield made

            async def test_mw(disabled):
                await disabled.dispatch(request, call_next)
            """,
    )

    code = done["tests/test_mw"].code
    assert "await as_call_next(disabled.dispatch)(request, call_next)" in code
    assert done["tests/test_mw"].diagnostics == []


def test_call_by_hand_of_something_unknown() -> None:
    """A call of a `dispatch` of which nothing is known is named."""
    done = run(
        mw=passing("M"),
        test_mw="async def test(mw):\n    await mw.dispatch(request, call_next)\n",
    )

    assert not done["test_mw"].changed
    assert [each.code for each in done["test_mw"].diagnostics] == ["HM212"]


@pytest.mark.parametrize(
    "call",
    [
        "bus.dispatch(event, payload)",
        "self.dispatch(action, state)",
        "store.dispatch(request_id, 3)",
        "Bus().dispatch(request, call_next)",
    ],
)
def test_dispatch_of_something_else(call: str) -> None:
    """A `dispatch` that has nothing to do with middleware gets no notice."""
    bus = "class Bus:\n    def dispatch(self, event, payload): ...\n"
    done = run(mw=passing("M"), main=f"{CLASS}{bus}def main(bus, store):\n    {call}\n")

    assert done["mw"].changed
    assert done["main"].diagnostics == []


def test_dispatch_by_hand_where_nothing_was_converted() -> None:
    """What is a coroutine function still may be called as before."""
    left = passing("M").replace("await call_next(request)", "await shield(call_next(request))")
    done = run(mw=left, test_mw="async def test(mw):\n    await mw.dispatch(request, call_next)\n")

    assert done["test_mw"].diagnostics == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return await asyncio.wait_for(call_next(r), 3)", "HM203"),
        ("return await call_next(Request(r.scope))", "HM201"),
    ],
)
def test_a_remedy_names_the_parameter(body: str, code: str) -> None:
    """What to write instead is written with the name that the request has in what was converted."""
    source = f'import asyncio\n@app.middleware("http")\nasync def mw(r, call_next):\n    {body}\n'

    (found,) = convert(source).diagnostics

    assert found.code == code
    assert "`r." in found.remedy
    assert "conn" not in found.remedy


def test_object_that_is_called_elsewhere() -> None:
    """An object that is also called by hand in the program is left."""
    done = run(
        mw="""
            class M:
                async def __call__(self, request, call_next):
                    return await call_next(request)

            mw = M()
            """,
        main="""
            from starlette.middleware.base import BaseHTTPMiddleware
            from mw import mw

            app.add_middleware(BaseHTTPMiddleware, dispatch=mw)

            async def other(request, call_after):
                return await mw(request, call_after)
            """,
    )

    assert not any(each.changed for each in done.values())
    assert [code for code, _ in errors(done["mw"])] == ["HM113"]


LEFT = {
    "HM101": "helpers = [call_next]\n",
    "HM102": "return await asyncio.create_task(call_next(request))\n",
    "HM103": (
        "for _ in range(3):\n"
        "    response = await call_next(request)\n"
        "    if response.status_code < 500:\n"
        "        break\n"
        "return response\n"
    ),
    "HM104": "async def run():\n    return await call_next(request)\nreturn await run()\n",
    "HM107": "async with anyio.create_task_group():\n    return await call_next(request)\n",
    "HM108": "request._receive = other\nreturn await call_next(request)\n",
    "HM109": (
        "with span():\n"
        "    try:\n"
        "        return await call_next(request)\n"
        "    finally:\n"
        "        return JSONResponse({})\n"
    ),
    "HM110": (
        "response = None\n"
        "if bad:\n"
        "    response = JSONResponse({})\n"
        "if worse:\n"
        "    return response\n"
        "return await call_next(request)\n"
    ),
    "HM116": (
        "response = await call_next(request)\n"
        "await response(request.scope, receive, send)\n"
        "return response\n"
    ),
    "HM117": "yield\nreturn await call_next(request)\n",
    "HM118": (
        "response = await call_next(request)\n"
        "assert isinstance(response, _StreamingResponse)\n"
        "return response\n"
    ),
    "HM121": "return await call_next(wrap(request))\n",
}


@pytest.mark.parametrize(("code", "body"), LEFT.items(), ids=list(LEFT))
def test_left_to_a_person(code: str, body: str) -> None:
    """What cannot be rewritten is left as it was, with the reason, and where."""
    indented = textwrap.indent(body, "    ")
    source = f'import anyio\n@app.middleware("http")\nasync def mw(request, call_next):\n{indented}'

    conversion = convert(source, path="mw.py")

    assert conversion.code == source
    assert conversion.conversions == []
    assert [each for each, _ in errors(conversion)] == [code]
    found = conversion.diagnostics[0]
    assert (found.path, found.function, found.severity) == ("mw.py", "mw", "error")
    assert found.line > 2
    assert found.remedy


FILES = {
    "HM105": '@app.middleware("http")\nasync def mw(*args):\n    return await args[1](args[0])\n',
    "HM106": (
        '@app.middleware("http")\n@timed\nasync def mw(request, call_next):\n'
        "    return await call_next(request)\n"
    ),
    "HM111": f"{CLASS}class M(BaseHTTPMiddleware):\n    async def __call__(self, *args): ...\n",
    "HM112": (
        "from other import SlowAPIMiddleware\nclass M(SlowAPIMiddleware):\n"
        "    async def dispatch(self, request, call_next):\n"
        "        return await super().dispatch(request, call_next)\n"
    ),
    "HM113": (
        "async def mw(request, call_next):\n    return await call_next(request)\n"
        'app.middleware("http")(mw)\nmws = [mw]\n'
    ),
    "HM114": f"{CLASS}app.add_middleware(BaseHTTPMiddleware, dispatch=mws[0])\n",
    "HM119": (
        f"try:\n    {CLASS}except ImportError:\n    BaseHTTPMiddleware = object\n"
        "class M(BaseHTTPMiddleware):\n    async def dispatch(self, request, call_next):\n"
        "        return await call_next(request)\n"
    ),
    "HM190": "async def mw(request, call_next:\n",
}


@pytest.mark.parametrize(("code", "source"), FILES.items(), ids=list(FILES))
def test_left_in_a_module(code: str, source: str) -> None:
    """What stands around a function can be the reason as well."""
    conversion = convert(source)

    assert conversion.code == source
    assert code in [each for each, _ in errors(conversion)]


NOTICES = {
    "HM218": "with span():\n    return await call_next(request)\n",
    "HM201": "return await call_next(Request(request.scope))\n",
    "HM202": "body = await request.body()\nrequest._receive = x\nreturn await call_next(request)\n",
    "HM203": "return await asyncio.wait_for(call_next(request), 3)\n",
    "HM204": "if bad:\n    raise HTTPException(403)\nreturn await call_next(request)\n",
    "HM205": (
        "try:\n    check()\n    return await call_next(request)\nexcept KeyError:\n    pass\n"
        "return await call_next(request)\n"
    ),
    "HM206": "if bad:\n    return await call_next(request)\n",
    "HM208": (
        "response = await call_next(request)\n"
        "response.body_iterator = upper(response.body_iterator)\nreturn response\n"
    ),
    "HM209": "response = await call_next(request)\nlog(response.media_type)\nreturn response\n",
    "HM210": "async for _ in request.stream():\n    pass\nreturn await call_next(request)\n",
    "HM211": "request._body = b''\nreturn await call_next(request)\n",
    "HM213": "with anyio.fail_after(3):\n    return await call_next(request)\n",
}


@pytest.mark.parametrize(("code", "body"), NOTICES.items(), ids=list(NOTICES))
def test_notice(code: str, body: str) -> None:
    """What is converted and changes its meaning, or leaves something to do, is named."""
    indented = textwrap.indent(body, "    ")
    source = (
        f'import anyio\nimport asyncio\n@app.middleware("http")\n'
        f"async def mw(request, call_next):\n{indented}"
    )

    conversion = convert(source)

    assert [each.qualname for each in conversion.conversions] == ["mw"]
    assert [(each.code, each.severity) for each in conversion.diagnostics] == [(code, "notice")]
    compile(conversion.code, "mw.py", "exec")


def test_function_that_nobody_registers() -> None:
    """A function that is registered elsewhere is converted, with a word on the registration."""
    source = "async def mw(request, call_next):\n    return await call_next(request)\n"

    conversion = convert(source)

    assert [each.registered for each in conversion.conversions] == ["elsewhere"]
    assert [each.code for each in conversion.diagnostics] == ["HM207"]


def test_file_without_middleware_is_not_parsed() -> None:
    """A file in which the text does not point to middleware may be anything."""
    assert convert("this is no Python (").diagnostics == []


def test_page_of_the_codes_is_current() -> None:
    """docs/migrate-codes.md is what tools/migrate_codes.py makes of the codes."""
    assert (ROOT / "docs" / "migrate-codes.md").read_text() == page()


def test_every_code_says_what_to_do() -> None:
    """Each code has words, and the first digit tells errors from notices."""
    assert all(each.message and each.remedy and each.why for each in CODES.values())
    assert {each.severity for each in CODES.values()} == {"error", "notice"}
    assert all((each.severity == "error") == (name[2] == "1") for name, each in CODES.items())
