"""A diff of `httpmw migrate` that a maintainer merges as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from httpmw.cli import main
from httpmw.migrate import convert

HEAD = "from starlette.middleware.base import BaseHTTPMiddleware\n"
BODY = """
class Mine(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        {}
"""


def converted(source: str) -> str:
    """Convert a file, and give what is in it."""
    result = convert(source)
    assert result.changed, result.diagnostics
    return result.code


def codes(source: str) -> list[str]:
    """Convert a file, and give what is said of it."""
    return [each.code for each in convert(source).diagnostics]


def function(body: str) -> str:
    return f"@app.middleware('http')\nasync def mw(request, call_next):\n{body}"


# ------------------------------------------------------------------------- what nobody reads


def test_a_response_that_nobody_reads_has_no_name() -> None:
    """`response = yield` is written where `response` is read."""
    unread = "    response = await call_next(request)\n    print('done')\n    return response\n"

    assert "    yield\n    print('done')\n" in converted(function(unread))
    read = unread.replace("'done'", "response.status_code")
    assert "    response = yield\n" in converted(function(read))


def test_a_name_that_a_nested_function_reads_stays() -> None:
    """A function inside of the middleware may read it."""
    body = "    response = await call_next(request)\n    later(lambda: response)\n"

    assert "    response = yield\n" in converted(function(f"{body}    return response\n"))


# ------------------------------------------------------------------------------ the imports


def test_comments_and_blank_lines_of_removed_imports_stay() -> None:
    """What separates or names a group of imports is there afterwards."""
    source = (
        "import os\n\n# the framework\nfrom starlette.requests import Request\n"
        "from starlette.responses import Response\n\n"
        "from starlette.middleware.base import BaseHTTPMiddleware\n"
        "from starlette.types import ASGIApp\n"
        "x: ASGIApp\n"
        f"{BODY.format('return Response(os.name)').replace('request,', 'request: Request,')}"
    )

    assert converted(source).startswith(
        "import os\n\n# the framework\nfrom starlette.responses import Response\n\n"
        "from httpmw import Connection, Flow, HTTPMiddleware\n"
        "from starlette.types import ASGIApp\n"
    )


def test_a_blank_line_is_handed_on_to_the_next_import() -> None:
    """A group whose first import goes is still a group."""
    source = (
        "import os\n\nfrom starlette.requests import Request\n"
        "from starlette.responses import Response\n"
        "@app.middleware('http')\nasync def mw(request: Request, call_next):\n"
        "    return Response(os.name)\n"
    )

    assert "import os\n\nfrom starlette.responses import Response\n" in converted(source)


def test_the_place_of_an_import_is_taken_with_its_blank_line() -> None:
    """What follows does not get it as well, also where more imports go."""
    source = (
        "import os\n\nfrom starlette.middleware.base import BaseHTTPMiddleware\n"
        "from starlette.requests import Request\nfrom starlette.responses import Response\n\n"
        f"{BODY.format('return Response(os.name)').replace('request,', 'request: Request,')}"
    )

    assert converted(source).startswith(
        "import os\n\nfrom httpmw import Connection, Flow, HTTPMiddleware\n"
        "from starlette.responses import Response\n"
    )


def test_httpmw_does_not_stand_among_the_standard_library() -> None:
    """Where only that is imported a group of its own begins."""
    source = f"import os\nimport re\n\n{function('    return await call_next(request)')}\n"

    assert "import re\n\nfrom httpmw import " in converted(source)


@pytest.mark.parametrize("text", ['"Connection"', '"asyncio"', '"Request"'])
def test_a_string_is_no_name(text: str) -> None:
    """A header called like a class brings no import, keeps none and takes no name."""
    source = (
        f"from starlette.requests import Request\nfrom app import app\nNAME = {text}\n"
        "@app.middleware('http')\nasync def mw(request: Request, call_next):\n"
        f"    response = await call_next(request)\n    response.headers[{text}] = 'x'\n"
        "    return response\n"
    )

    code = converted(source)

    assert "import asyncio" not in code
    assert "Request" not in code.replace('"Request"', "")
    assert "from httpmw import Connection, Flow, http_middleware\n" in code


@pytest.mark.parametrize(
    "use",
    [
        'x: "Request"',
        'def f(r: "Request | None"): ...',
        'x = cast("Request", None)',
        'X = Optional["Request"]',
        'X: TypeAlias = "Request"',
        '__all__ = ["Request"]',
        '__all__ += ["Request"]',
    ],
)
def test_the_string_of_a_type_is_a_name(use: str) -> None:
    """An import that only a quoted annotation needs stays."""
    source = f"from starlette.requests import Request\n{use}\n"
    source += "@app.middleware('http')\nasync def mw(request: Request, call_next):\n"
    source += "    return await call_next(request)\n"

    assert "from starlette.requests import Request\n" in converted(source)


def test_an_empty_block_for_types_goes() -> None:
    """`if TYPE_CHECKING:` goes with its last import, and so does the name."""
    source = (
        "from typing import TYPE_CHECKING\n"
        f"{HEAD}"
        "if TYPE_CHECKING:\n    from starlette.requests import Request\n\n"
        f"{BODY.format('return await call_next(request)').replace('request,', 'request: Request,')}"
    )

    code = converted(source)

    assert "TYPE_CHECKING" not in code
    assert "pass" not in code
    compile(code, "mw.py", "exec")
    kept = source.replace("import Request\n", "import Request, Other\nx: Other\n")
    assert "if TYPE_CHECKING:\n    from starlette.requests import Other\n" in converted(kept)


# ------------------------------------------------------------------------------ what is told


@pytest.mark.parametrize("where", ["function", "class"])
def test_a_docstring_that_describes_call_next_gets_a_notice(where: str) -> None:
    """Only a person can say what it should say now."""
    text = '"""Calls call_next, and more."""\n'
    source = HEAD + BODY.format(
        f"{text}        return await call_next(request)"
        if where == "function"
        else "return await call_next(request)"
    )
    if where == "class":
        source = source.replace("(BaseHTTPMiddleware):\n", f"(BaseHTTPMiddleware):\n    {text}")

    assert "HM222" in codes(source)
    assert text in converted(source)


def test_a_type_comment_that_is_wrong_goes() -> None:
    """Those of the signature and of the received response; `type: ignore` stays."""
    source = (
        "@app.middleware('http')\n"
        "async def mw(request, call_next):  # type: (Request, Callable) -> Response\n"
        "    response = await call_next(request)  # type: Response\n"
        "    response.headers['a'] = b'x'  # type: ignore\n"
        "    return response\n"
    )

    code = converted(source)

    assert "# type: (" not in code
    assert "    response = yield\n" in code
    assert "# type: ignore\n" in code
    below = source.replace("  # type: (", "\n    # type: (")
    assert "# type: (" not in converted(below)


@pytest.mark.parametrize("comma", [",", ""])
def test_a_comment_stays_with_its_parameter(comma: str) -> None:
    """That of `call_next` goes with it, and none of them is put behind another one."""
    source = (
        '@app.middleware("http")\n'
        "async def mw(\n"
        "    request,  # the request\n"
        f"    call_next{comma}  # what is further in\n"
        "):\n"
        "    return await call_next(request)\n"
    )
    code = converted(source)
    assert f"    request: Connection{comma}  # the request\n) -> Flow:\n" in code
    assert "further in" not in code
    before = source.replace(f"    call_next{comma}  # what is further in\n", "    call_next\n")
    assert "  # the request\n" in converted(before)


def test_a_type_comment_of_a_parameter_is_its_annotation() -> None:
    """That of the request is dropped; that of another parameter of a helper stays."""
    source = (
        '@app.middleware("http")\n'
        "async def mw(\n"
        "    request,  # type: Request\n"
        "    call_next,  # type: Callable\n"
        "):\n"
        "    # type: (...) -> Response\n"
        "    return await helper(request, 3, call_next)\n"
        "async def helper(\n"
        "    request,  # type: Request\n"
        "    limit,  # type: int\n"
        "    call_next,  # type: Callable\n"
        "):\n"
        "    return await call_next(request)\n"
    )
    code = converted(source)
    assert "mw(\n    request: Connection,\n) -> Flow:\n" in code
    assert "helper(\n    request: Connection,\n    limit,  # type: int\n) -> Flow:\n" in code
    assert code.count("# type:") == 1


def test_a_body_on_the_line_of_its_def_has_no_path_without_a_response() -> None:
    """`async def mw(request, call_next): return ...` always answers."""
    source = (
        "@app.middleware('http')\n"
        "async def mw(request, call_next): return await call_next(request)\n"
    )

    assert "HM206" not in codes(source)
    assert "Flow: yield" in converted(source)


# ----------------------------------------------------------------- the project's own formatter

CLEAN = """\
import os

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from zlib_ng import nothing


class AMiddlewareWithALongName(BaseHTTPMiddleware):
    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint, /
    ) -> Response:
        response = await call_next(request)
        print(os.name, nothing)
        return response
"""
RUFF = ("ruff check --select I,F401,F841", "ruff format --check")
OTHERS = "[tool.black]\nline-length = 88\n[tool.isort]\nprofile = 'black'\n"
CONFIGURED = {
    "ruff": ("pyproject.toml", "[tool.ruff]\nline-length = 88\n", RUFF),
    "a file of ruff": ("ruff.toml", "line-length = 88\n", RUFF),
    "black and isort": ("pyproject.toml", OTHERS, ("black --check", "isort --check-only")),
}


def complaint(folder: Path, command: str) -> str:
    """Run a tool over a folder, and give what it says where it complains."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


@pytest.mark.parametrize("how", CONFIGURED)
def test_a_tree_that_was_clean_is_clean(how: str, tmp_path: Path) -> None:
    """The project's own formatter sorts and formats what was written."""
    name, text, checks = CONFIGURED[how]
    (tmp_path / name).write_text(text)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "mw.py").write_text(CLEAN)
    assert [""] * 2 == [complaint(tmp_path, each) for each in checks]

    assert main(["migrate", "--write", str(tmp_path)]) == 0

    assert [""] * 2 == [complaint(tmp_path, each) for each in checks]
    code = (tmp_path / "src" / "mw.py").read_text()
    assert "    async def dispatch(self, request: Connection, /) -> Flow:\n        yield\n" in code


def test_a_file_that_was_not_clean_is_only_converted(tmp_path: Path) -> None:
    """A formatter that would change more than what was written is not run."""
    (tmp_path / "ruff.toml").write_text("")
    source = CLEAN.replace("import os\n", "import os\nx = {  1:2}\n")
    (tmp_path / "mw.py").write_text(source)

    main(["migrate", "--write", str(tmp_path)])

    code = (tmp_path / "mw.py").read_text()
    assert "x = {  1:2}\n" in code
    assert "HTTPMiddleware" in code


def test_a_file_that_was_clean_in_part_is_sorted(tmp_path: Path) -> None:
    """An import that nothing needed before is left to the project, and the others are sorted."""
    (tmp_path / "ruff.toml").write_text("line-length = 88\n")
    source = CLEAN.replace("import os\n\n", "import os\nimport sys\n\nfrom jinja2 import nobody\n")
    (tmp_path / "mw.py").write_text(source)
    sorts = "ruff check --select I"
    assert complaint(tmp_path, sorts) == ""

    main(["migrate", "--write", str(tmp_path)])

    assert complaint(tmp_path, sorts) == ""
    code = (tmp_path / "mw.py").read_text()
    assert "import sys\n" in code
    assert "HTTPMiddleware" in code


def test_without_a_configuration_nothing_is_formatted(tmp_path: Path, monkeypatch: Any) -> None:
    """Nobody's style is pressed on a project that has none."""

    def fail(*_: Any) -> None:
        raise AssertionError("it was run")

    monkeypatch.setattr("httpmw.migrate.writing._formatters._run", fail)
    (tmp_path / ".git").mkdir()
    (tmp_path / "mw.py").write_text(CLEAN)

    assert main(["migrate", "--write", str(tmp_path)]) == 0


@pytest.mark.parametrize("output", [None, "def broken(:\n", ""])
def test_a_formatter_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: Any, output: str | None
) -> None:
    """What was written stays as it was written."""
    (tmp_path / "ruff.toml").write_text("")
    (tmp_path / "mw.py").write_text(CLEAN)
    monkeypatch.setattr("httpmw.migrate.writing._formatters._program", lambda _: "ruff")
    monkeypatch.setattr(
        "httpmw.migrate.writing._formatters._run",
        lambda command, folder, source: source if source == CLEAN else output,
    )

    assert main(["migrate", "--write", str(tmp_path)]) == 0
    assert (tmp_path / "mw.py").read_text() == convert(CLEAN).code


def test_a_formatter_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Whoever has it runs it over the changes."""
    (tmp_path / "pyproject.toml").write_text("[tool.black]\n")
    (tmp_path / "mw.py").write_text(CLEAN)
    monkeypatch.setattr("httpmw.migrate.writing._formatters._program", lambda _: None)

    assert main(["migrate", str(tmp_path)]) == 0
    assert "black is configured and not installed here" in capsys.readouterr().err
