"""
Every Python block of the README and the docs does what the page says.

1. A block runs in a namespace of its own, after the prelude below.
2. Each middleware function in it stands around an app, and the requests below are answered.
3. An `app` in it answers them as well.
4. Before that, each `test_` function without parameters in it passes.
5. Under the title "Refused: words" it is the other way round: a `SyntaxError`, a `TypeError`, an
   error of httpmw from a request, or a test that fails, with those words in its message.
6. What is not httpmw's, such as the code before a migration, is fenced as `py` and only compiled.
7. A block that stands in a file of docs_src as well is equal to it; the file has tests of its own.
8. On a page whose blocks are titled with names of files, these are the files of one project: a
   block replaces its file, "add to NAME" appends to it, and what the page shows of `curl`, of the
   log and of a test file is compared with what the project does.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import logging
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import anyio.to_thread
import fastapi  # noqa: F401 - a project imports it while `sys.modules` is another one
import pytest
from starlette.types import Receive, Scope, Send

import httpmw
from httpmw import HTTPMiddleware, HTTPMWError
from tests import ROOT
from tests.harness import request
from tools.docs_code import COPY, filled

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
PICTURES = sorted((ROOT / "docs" / "img").glob("*.svg"))

PUBLIC_MODULES = [
    "httpmw",
    "httpmw.compat",
    "httpmw.migrate",
    "httpmw.show",
    "httpmw.stack",
    "httpmw.testing",
]

BLOCK = re.compile(
    r'^```(?P<fence>python|py)(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
# Of any kind, in the order of a page.
FENCE = re.compile(
    r'^ *```(?P<fence>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^ *```$',
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"(?P<add>add to )?(?P<name>\w+\.py)")
SPEED = re.compile(r"\b(costs?|fast(er|est)?|slower|cheap(er|ly)?|speed|worth)\b|µs")
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")

REFUSALS = (SyntaxError, TypeError, HTTPMWError, AssertionError)

REQUESTS: list[dict[str, Any]] = [
    {},
    {
        "method": "POST",
        "headers": [(b"content-type", b"application/json"), (b"x-member", b"1")],
        "body": b'{"data": {"hello": "world"}}',
    },
]

# What the examples leave out is said on the first page, and taken from there.
PRELUDE = re.search(
    r"^## What the examples leave out$.*?^```python\n(.*?)^```$",
    (ROOT / "docs" / "index.md").read_text(),
    re.MULTILINE | re.DOTALL,
)[1]


def blocks(fence: str) -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text()
        copies = {match.end("close") - 1 for match in COPY.finditer(text)}
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            name = f"{page.relative_to(ROOT)}:{line}"
            kind = "py" if match.end() in copies else match["fence"]
            if kind == fence and not FILE.fullmatch(match["title"] or ""):
                yield pytest.param(name, match["title"], match["code"], id=name)


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"etag", b'"1"')]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"hello": ', "more_body": True})
    await send({"type": "http.response.body", "body": b'"world"}', "more_body": False})


def is_middleware(value: object) -> bool:
    if not inspect.isasyncgenfunction(value):
        return False
    parameters = list(inspect.signature(value).parameters.values())
    return [each.name for each in parameters if each.default is each.empty] == ["conn"]


def layers(namespace: dict[str, Any], before: set[str]) -> Iterator[Any]:
    for name, value in namespace.items():
        if name in before:
            continue
        if is_middleware(value):
            yield HTTPMiddleware(inner, dispatch=value)
        elif isinstance(value, type) and issubclass(value, HTTPMiddleware):
            required = [
                each
                for each in inspect.signature(value).parameters.values()
                if each.default is each.empty and each.name != "app"
            ]
            # That one refuses to stand around anything but a debug application.
            if not required and value.__name__ != "InspectorMiddleware":
                yield value(inner)
        elif name == "app":
            yield value


# Starlette leaves a stream that is not sent to its end to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette:ResourceWarning")
@pytest.mark.parametrize(("name", "title", "code"), list(blocks("python")))
async def test_block(name: str, title: str | None, code: str, anyio_backend: str) -> None:
    """The block runs, and what it defines answers a request, or is refused as the page says."""
    if anyio_backend == "trio" and "asyncio." in code:
        pytest.skip("the block is about asyncio")
    namespace: dict[str, Any] = {"__name__": "block"}
    exec(PRELUDE, namespace)  # noqa: S102
    before = set(namespace)
    if title is not None:
        words = title.removeprefix("Refused: ")
        assert words != title
        with pytest.raises(REFUSALS, match=re.escape(words)):
            await run(code, name, namespace, before)
    else:
        await run(code, name, namespace, before)


async def run(code: str, name: str, namespace: dict[str, Any], before: set[str]) -> None:
    exec(compile(code, name, "exec", dont_inherit=True), namespace)  # noqa: S102
    for defined, value in list(namespace.items()):
        if defined.startswith("test_") and not inspect.signature(value).parameters:
            if inspect.iscoroutinefunction(value):
                await value()
            else:  # it may run event loops of its own
                await anyio.to_thread.run_sync(value)
    for layer in layers(namespace, before):
        for each in REQUESTS:
            server = await request(layer, **each)
            assert server.complete


def after_refusals() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            said = FENCE.match(text[match.end() :].lstrip("\n"))
            if said is not None and said["title"] == "The error":
                line = text.count("\n", 0, match.start()) + 1
                name = f"{page.relative_to(ROOT)}:{line}"
                yield pytest.param(match["code"], said["code"], id=name)


@pytest.mark.parametrize(("code", "said"), list(after_refusals()))
async def test_error_is_shown_as_it_is(code: str, said: str, anyio_backend: str) -> None:
    """A block titled "The error", behind one that is refused, is what is really said."""
    namespace: dict[str, Any] = {"__name__": "block"}
    exec(PRELUDE, namespace)  # noqa: S102
    before = set(namespace)
    with pytest.raises((TypeError, HTTPMWError)) as raised:
        await run(code, "layers.py", namespace, before)

    assert f"{raised.type.__name__}: {raised.value}\n" == said


class Project:
    """The files of a page, as they are at one place of it, and what was said last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served = "app"
        self.answer = ""

    def write(self, title: re.Match[str], code: str) -> None:
        """Replace a file, or append to it."""
        with (self.folder / title["name"]).open("a" if title["add"] else "w") as file:
            file.write(code)

    def late_imports(self) -> list[str]:
        """Name the files that import something below their first definition."""
        late = []
        for file in self.folder.glob("*.py"):
            nodes = ast.parse(file.read_text()).body
            kinds = [isinstance(node, ast.Import | ast.ImportFrom) for node in nodes]
            if kinds != sorted(kinds, reverse=True):
                late.append(file.name)
        return late

    def load(self, name: str) -> Any:
        """Import a file anew, and all that it imports."""
        importlib.invalidate_caches()
        for file in self.folder.glob("*.py"):
            sys.modules.pop(file.stem, None)
        return importlib.import_module(name)

    async def command(self, line: str) -> None:
        """Do what a command of a console does, if it is one that is known."""
        program, *words = shlex.split(line)
        if program == "uvicorn":
            self.served = words[-1].removesuffix(":app")
            assert (self.folder / f"{self.served}.py").exists()
        elif program == "curl":
            await self.curl(words)

    async def curl(self, words: list[str]) -> None:
        headers = [words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H"]
        server = await request(
            self.load(self.served).app,
            path=urlsplit(words[-1]).path,
            headers=[(name.encode(), value.encode()) for name, value in headers],
        )
        self.answer = ""
        if "-i" in words:
            lines = [f"HTTP/1.1 {server.status} {HTTPStatus(server.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in server.headers.items()]
            self.answer = "\n".join(lines) + "\n\n"
        self.answer += server.body.decode()


def projects() -> list[Path]:
    return [
        page
        for page in PAGES
        if any(FILE.fullmatch(match["title"] or "") for match in FENCE.finditer(page.read_text()))
    ]


@pytest.mark.parametrize("page", projects(), ids=lambda page: page.stem)
async def test_project(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    anyio_backend: str,
) -> None:
    """A page that builds a project shows what its files answer, log and test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    caplog.set_level(logging.INFO)
    project = Project(tmp_path)
    shown = 0
    for match in FENCE.finditer(page.read_text()):  # noqa: ASYNC240 - nobody else runs
        title = FILE.fullmatch(match["title"] or "")
        if title is not None:
            project.write(title, match["code"])
            loaded = vars(project.load(title["name"].removesuffix(".py")))
            for name in [each for each in loaded if each.startswith("test_")]:
                await loaded[name]()
        elif match["fence"] == "console":
            for line in match["code"].splitlines():
                if line.startswith("$ "):
                    await project.command(line.removeprefix("$ "))
            answer = re.sub(r"^\$ .*\n", "", match["code"], flags=re.MULTILINE)
            if answer:
                shown += 1
                assert project.answer.rstrip("\n") == answer.rstrip("\n")
        elif match["title"] == "In the log":
            lines = [f"{each.levelname}:{each.name}:{each.message}" for each in caplog.records]
            expected = match["code"].splitlines()
            shown += 1
            assert lines[-len(expected) :] == expected

    assert shown
    assert project.late_imports() == []


@pytest.mark.parametrize(("name", "title", "code"), list(blocks("py")))
def test_shown_block(name: str, title: str | None, code: str) -> None:
    """A block that is only shown is Python."""
    ast.parse(code, name)  # which takes a `return` or a `yield` out of its function


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fences_are_found(page: Path) -> None:
    """Every Python fence has the form that the runner looks for."""
    text = page.read_text()

    assert len(re.findall(r"^\s*```py", text, re.MULTILINE)) == len(BLOCK.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_that_of_the_files(page: Path) -> None:
    """The code of docs_src stands in the page itself, as the suite runs it."""
    text = page.read_text()

    assert "--8<--" not in text
    assert text.count("<!-- code: ") == len(COPY.findall(text))
    assert text == filled(text), "python -m tools.docs_code"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and a heading that is in it."""
    dead = []
    for link in LINK.finditer(FENCE.sub("", page.read_text())):
        target = page.parent / link["path"] if link["path"] else page
        anchor = link["anchor"]
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link[0])

    assert dead == []


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of *page*, as `toc` of Python-Markdown makes them of its headings."""
    text = FENCE.sub("", page.read_text())
    found: set[str] = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        words = re.sub(r"[^\w\s-]", "", words).strip().lower()
        anchor = name = re.sub(r"[-\s]+", "-", words)
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{name}_{number}"
        found.add(anchor)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_other_blocks_are_what_they_say(page: Path) -> None:
    """JSON and TOML can be parsed, and a `make` or `python -m` names something that is there."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for match in FENCE.finditer(page.read_text()):
        if match["fence"] == "json":
            json.loads(match["code"])
        elif match["fence"] == "toml":
            tomllib.loads(match["code"])
        elif match["fence"] == "console":
            for line in re.findall(r"^\$ (.+)$", match["code"], re.MULTILINE):
                words = shlex.split(line, comments=True)
                if words[0] == "make" and len(words) > 1:
                    assert words[1] in targets, line
                if words[:2] == ["python", "-m"] and words[2] != "venv":
                    path = ROOT / words[2].replace(".", "/")
                    assert path.is_dir() or path.with_suffix(".py").exists(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_speed_is_measured(page: Path) -> None:
    """A sentence about speed names the benchmark behind it, or stands on the page of those."""
    if page.stem == "performance":
        return
    text = FENCE.sub("", page.read_text())
    # `cost=` is a name, and no word.
    spoken = [line for line in text.splitlines() if SPEED.search(re.sub("`[^`]*`", "", line))]

    assert [line for line in spoken if "bench" not in line] == []


def test_no_example_sets_the_header_that_servers_set() -> None:
    """Servers send a `server` header themselves, so an example would put a second one there."""
    files = [*PAGES, *(ROOT / "httpmw").glob("**/*.py"), *(ROOT / "docs_src").glob("**/*.py")]

    assert [file for file in files if re.search(r'"server"\] = ', file.read_text())] == []


def test_every_page_is_found() -> None:
    """The pages with blocks are found from wherever the suite is run, and so is the tutorial."""
    assert {ROOT / "README.md", ROOT / "docs" / "index.md"} <= set(PAGES)
    assert ROOT / "docs" / "tutorial.md" in projects()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda file: file.stem)
def test_a_picture_is_on_a_page_and_can_be_read_on_light_and_dark(picture: Path) -> None:
    """It is well-formed, has a title, and follows the reader's colour scheme."""
    root = ET.parse(picture).getroot()  # noqa: S314 - our own

    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in picture.read_text()
    assert any(f"img/{picture.name})" in page.read_text() for page in PAGES)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_reference_is_complete(module: str) -> None:
    """Every public name has an entry in the reference, under the path that it is imported from."""
    entries = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    names = importlib.import_module(module).__all__
    missing = {
        name
        for name in names
        # What the package itself exports has its entry there.
        if f"{module}.{name}" not in entries and f"httpmw.{name}" not in entries
    }

    assert missing == set()


def test_error_tree_is_the_real_one() -> None:
    """The tree of the errors page has every exception class, with its bases."""
    text = (ROOT / "docs" / "errors.md").read_text()
    tree = dict(re.findall(r"(\w+)\((\w+)\)", text[: text.index("## ")]))

    assert tree.keys() == {name for name in httpmw.__all__ if issubclass_of(name, HTTPMWError)}
    for name, base in tree.items():
        assert base in [each.__name__ for each in getattr(httpmw, name).__mro__]


def issubclass_of(name: str, base: type) -> bool:
    value = getattr(httpmw, name)
    return isinstance(value, type) and issubclass(value, base)


def test_changelog_fragments_are_of_a_known_kind() -> None:
    """Each fragment is named as towncrier wants it, and CHANGELOG.md has the place for them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = "|".join(each["directory"] for each in settings["type"])
    fragments = sorted(each.name for each in (ROOT / settings["directory"]).glob("[!.]*"))

    assert settings["start_string"] in (ROOT / settings["filename"]).read_text()
    assert [
        name for name in fragments if not re.fullmatch(rf"\+?[\w-]+\.({kinds})\.md", name)
    ] == []


def test_readme_is_short() -> None:
    """The README has at most 150 lines, and code within the first 15."""
    lines = (ROOT / "README.md").read_text().splitlines()

    assert len(lines) <= 150
    assert any(line.startswith("```python") for line in lines[:15])
