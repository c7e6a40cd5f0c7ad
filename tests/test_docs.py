"""
Every Python block of the README and the docs does what the page says.

1. A block runs in a namespace of its own, after the prelude below.
2. Each middleware function in it stands around an app, and the requests below are answered.
3. An `app` in it answers them as well.
4. Under the title "Refused: words" it is the other way round: a `TypeError` when the block runs,
   or an error of httpmw from a request, with those words in its message.
5. What is not httpmw's, such as the code before a migration, is fenced as `py` and only compiled.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from httpmw import HTTPMiddleware, HTTPMWError
from tests.harness import request

ROOT = Path(__file__).parent.parent

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]

BLOCK = re.compile(
    r'^```(?P<fence>python|py)(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")

REQUESTS: list[dict[str, Any]] = [
    {},
    {
        "method": "POST",
        "headers": [(b"content-type", b"application/json"), (b"x-member", b"1")],
        "body": b'{"data": {"hello": "world"}}',
    },
]

PRELUDE = """
import asyncio, gzip, hashlib, json, logging, time, zlib
from collections.abc import AsyncIterator
from contextvars import ContextVar

import anyio
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

from httpmw import *
"""


def blocks(fence: str) -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            name = f"{page.relative_to(ROOT)}:{line}"
            if match["fence"] == fence:
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
            if not required:
                yield value(inner)
        elif name == "app":
            yield value


@pytest.mark.parametrize(("name", "title", "code"), list(blocks("python")))
async def test_block(name: str, title: str | None, code: str, anyio_backend: str) -> None:
    """The block runs, and what it defines answers a request, or is refused as the page says."""
    if anyio_backend == "trio" and "asyncio." in code:
        pytest.skip("the block is about asyncio")
    namespace: dict[str, Any] = {"__name__": "block"}
    exec(PRELUDE, namespace)  # noqa: S102
    before = set(namespace)
    compiled = compile(code, name, "exec", dont_inherit=True)
    if title is not None:
        words = title.removeprefix("Refused: ")
        assert words != title
        with pytest.raises((TypeError, HTTPMWError), match=re.escape(words)):
            await run(compiled, namespace, before)
    else:
        await run(compiled, namespace, before)


async def run(compiled: Any, namespace: dict[str, Any], before: set[str]) -> None:
    exec(compiled, namespace)  # noqa: S102
    for layer in layers(namespace, before):
        for each in REQUESTS:
            server = await request(layer, **each)
            assert server.complete


@pytest.mark.parametrize(("name", "title", "code"), list(blocks("py")))
def test_shown_block(name: str, title: str | None, code: str) -> None:
    """A block that is only shown is Python."""
    compile(code, name, "exec", dont_inherit=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_fences_are_found(page: Path) -> None:
    """Every Python fence has the form that the runner looks for."""
    text = page.read_text()

    assert len(re.findall(r"^\s*```py", text, re.MULTILINE)) == len(BLOCK.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    missing = [
        target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()
    ]

    assert missing == []


def test_every_page_is_found() -> None:
    """The pages with blocks are found from wherever the suite is run."""
    assert all(page.exists() for page in PAGES)


def test_readme_is_short() -> None:
    """The README has at most 150 lines, and code within the first 15."""
    lines = (ROOT / "README.md").read_text().splitlines()

    assert len(lines) <= 150
    assert any(line.startswith("```python") for line in lines[:15])
