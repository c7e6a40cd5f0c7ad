"""What `httpmw migrate --to drop-in` writes, and what it says of what will be refused."""

from __future__ import annotations

import textwrap

import pytest

from httpmw.migrate import Conversion, convert
from httpmw.migrate import _convert as converting

BASE = "starlette.middleware.base"


def drop_in(source: str) -> Conversion:
    """Swap the imports of a file; what comes out compiles, and a second run changes nothing."""
    source = textwrap.dedent(source).lstrip("\n")
    done = convert(source, path="mw.py", to="drop-in")
    compile(done.code, "mw.py", "exec", dont_inherit=True)
    assert convert(done.code, path="mw.py", to="drop-in").code == done.code
    return done


IMPORTS = {
    "one of several, in parentheses on several lines": (
        f"""
        from {BASE} import (
            ASGIApp,
            BaseHTTPMiddleware,
            RequestResponseEndpoint,
        )
        """,
        f"""
        from httpmw.compat import (
            BaseHTTPMiddleware,
            RequestResponseEndpoint,
        )
        from {BASE} import (
            ASGIApp,
        )
        """,
    ),
    "the names that stay are the last ones": (
        f"""
        from {BASE} import (
            BaseHTTPMiddleware,  # the class
            RequestResponseEndpoint,
            _StreamingResponse,
        )
        """,
        f"""
        from httpmw.compat import (
            BaseHTTPMiddleware,  # the class
            RequestResponseEndpoint,
        )
        from {BASE} import (
            _StreamingResponse,
        )
        """,
    ),
    "no comma behind the last name": (
        f"""
        from {BASE} import (
            ASGIApp, BaseHTTPMiddleware,
            RequestResponseEndpoint
        )
        """,
        f"""
        from httpmw.compat import (
            BaseHTTPMiddleware,
            RequestResponseEndpoint
        )
        from {BASE} import (
            ASGIApp
        )
        """,
    ),
    "all names, in parentheses": (
        f"from {BASE} import (  # both\n    BaseHTTPMiddleware as B,\n    DispatchFunction,\n)\n",
        (
            "from httpmw.compat import (  # both\n"
            "    BaseHTTPMiddleware as B,\n    DispatchFunction,\n)\n"
        ),
    ),
    "a backslash": (
        f"from {BASE} import ASGIApp, \\\n    BaseHTTPMiddleware, \\\n    DispatchFunction\n",
        (
            "from httpmw.compat import BaseHTTPMiddleware, \\\n    DispatchFunction\n"
            f"from {BASE} import ASGIApp\n"
        ),
    ),
    "several statements on the line": (
        f"import time; from {BASE} import ASGIApp, BaseHTTPMiddleware; x = 1\n",
        (
            "import time; from httpmw.compat import BaseHTTPMiddleware; "
            f"from {BASE} import ASGIApp; x = 1\n"
        ),
    ),
    "on the line of its block": (
        f"if True: from {BASE} import BaseHTTPMiddleware\n",
        "if True: from httpmw.compat import BaseHTTPMiddleware\n",
    ),
    "with a comment behind": (
        f"# both\nfrom {BASE} import ASGIApp, BaseHTTPMiddleware  # noqa: I001\nx = 1\n",
        (
            f"# both\nfrom httpmw.compat import BaseHTTPMiddleware\n"
            f"from {BASE} import ASGIApp  # noqa: I001\nx = 1\n"
        ),
    ),
    "by an attribute, imported in a function": (
        (
            f'"""A file."""\nfrom __future__ import annotations\ndef make():\n    import {BASE}\n'
            f"    return {BASE}.BaseHTTPMiddleware(None, None)\n"
        ),
        (
            '"""A file."""\nfrom __future__ import annotations\nimport httpmw.compat\n'
            f"def make():\n    import {BASE}\n"
            "    return httpmw.compat.BaseHTTPMiddleware(None, None)\n"
        ),
    ),
    "by an attribute, with an import behind the class": (
        f"import {BASE} as base\nclass A(base.BaseHTTPMiddleware): ...\nimport time\n",
        (
            f"import {BASE} as base\nimport httpmw.compat\n"
            "class A(httpmw.compat.BaseHTTPMiddleware): ...\nimport time\n"
        ),
    ),
}


@pytest.mark.parametrize(("before", "after"), IMPORTS.values(), ids=list(IMPORTS))
def test_an_import_is_swapped(before: str, after: str) -> None:
    """The names that moved come from the drop-in, laid out as they were."""
    assert drop_in(before).code == textwrap.dedent(after).lstrip("\n")


def test_what_does_not_compile_is_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of the codemod leaves the file as it was, with a code."""
    source = f"from {BASE} import BaseHTTPMiddleware\n"
    monkeypatch.setattr(converting, "drop_in", lambda module: ("from x import (\n", [], []))

    done = convert(source, to="drop-in")

    assert done.code == source
    assert done.conversions == []
    assert [each.code for each in done.diagnostics] == ["HM195"]


def test_a_failure_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong within the codemod is said of the file."""

    def fail(module: object) -> None:
        raise StopIteration

    monkeypatch.setattr(converting, "drop_in", fail)

    done = convert(f"from {BASE} import BaseHTTPMiddleware\n", to="drop-in")

    assert [each.code for each in done.diagnostics] == ["HM195"]


REFUSED = {
    "a second call": (
        "HM220",
        4,
        """
        @app.middleware("http")
        async def mw(request, call_next):
            first = await call_next(request)
            return await call_next(request)
        """,
    ),
    "a call in a loop": (
        "HM220",
        7,
        f"""
        from {BASE} import BaseHTTPMiddleware

        class Retry(BaseHTTPMiddleware):
            async def dispatch(self, request, call_next):
                for _ in range(3):
                    # again
                    response = await call_next(request)
                return response
        """,
    ),
    "wait_for": (
        "HM219",
        3,
        """
        @app.middleware("http")
        async def mw(request, call_next):
            return await asyncio.wait_for(call_next(request), 3)
        """,
    ),
    "a task of its own": (
        "HM219",
        3,
        """
        @app.middleware("http")
        async def mw(request, call_next):
            return await asyncio.create_task(call_next(request))
        """,
    ),
    "a task group": (
        "HM221",
        3,
        """
        @app.middleware("http")
        async def mw(request, call_next):
            async with anyio.create_task_group():
                return await call_next(request)
        """,
    ),
}


@pytest.mark.parametrize(("code", "line", "source"), REFUSED.values(), ids=list(REFUSED))
def test_what_the_drop_in_refuses_is_named(code: str, line: int, source: str) -> None:
    """What fails at run time with the drop-in gets a notice at its line."""
    found = drop_in("import anyio\nimport asyncio\n" + textwrap.dedent(source).lstrip("\n"))

    notices = [each for each in found.diagnostics if each.code != "HM216"]
    assert [(each.code, each.line, each.severity) for each in notices] == [
        (code, line + 2, "notice")
    ]


FINE = {
    "a second call where the first one raised": """
        try:
            return await call_next(request)
        except KeyError:
            return await call_next(request)
        """,
    "a time limit": """
        async with asyncio.timeout(3):
            return await call_next(request)
        """,
    "two ways": """
        if request.method == "GET":
            return await call_next(request)
        return await call_next(request)
        """,
}


@pytest.mark.parametrize("body", FINE.values(), ids=list(FINE))
def test_what_the_drop_in_takes_has_no_notice(body: str) -> None:
    """What works with the drop-in as it did is not talked about."""
    body = textwrap.indent(textwrap.dedent(body).lstrip("\n"), "    ")
    source = f'@app.middleware("http")\nasync def mw(request, call_next):\n{body}'

    assert [each.code for each in drop_in(source).diagnostics] == ["HM216"]
