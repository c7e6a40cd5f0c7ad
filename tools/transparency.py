"""
The table of docs/comparison.md, made by `check_transparent`.

    python tools/transparency.py            writes the table
    python tools/transparency.py --check    says whether it is stale
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import HTTPMiddleware, compat
from httpmw.testing import TransparencyReport, check_transparent
from tests.harness import passing, waiting

PAGE = Path(__file__).parent.parent / "docs" / "comparison.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of the table -->)", re.DOTALL)
# Objects are others in each run, and how many runs there are is not the point.
OBJECT = re.compile(r"<[^<>]* [^<>]*>")
MORE = re.compile(r", and \d+ more\)$")


async def dispatch(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """
    Do nothing, in the other style.
    """
    return await call_next(request)


@dataclass(frozen=True)
class Column:
    """
    A middleware, and what it may change.
    """

    title: str
    make: Callable[[ASGIApp], ASGIApp]
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: bool = False


COLUMNS = [
    Column("httpmw, `yield`", lambda app: HTTPMiddleware(app, dispatch=passing), ours=True),
    Column(
        "httpmw, `yield response`", lambda app: HTTPMiddleware(app, dispatch=waiting), ours=True
    ),
    Column(
        "httpmw `compat.BaseHTTPMiddleware`",
        lambda app: compat.BaseHTTPMiddleware(app, dispatch=dispatch),
        ours=True,
    ),
    Column("Starlette `BaseHTTPMiddleware`", lambda app: BaseHTTPMiddleware(app, dispatch)),
    Column(
        "Starlette `GZipMiddleware`",
        GZipMiddleware,
        {
            "headers": {"accept-encoding": "gzip"},
            "ignore_body": True,
            "ignore_headers": {"vary"},
        },
    ),
    Column(
        "Starlette `CORSMiddleware`",
        lambda app: CORSMiddleware(app, allow_origins=["*"]),
        {
            "headers": {"origin": "https://example.org"},
            "ignore_headers": {"access-control-allow-origin", "vary"},
        },
    ),
]


async def reports() -> list[TransparencyReport]:
    """
    Run the matrix on every column, on the event loop that runs.
    """
    return [await check_transparent(column.make, **column.options) for column in COLUMNS]


def table() -> str:
    """
    Make the table, on both event loops.
    """
    on_asyncio = anyio.run(reports)
    on_trio = anyio.run(reports, backend="trio")
    made = f"Made with Starlette {version('starlette')}, in {on_asyncio[0].runs} runs on asyncio"
    both = zip(*(report.rows for report in on_asyncio + on_trio), strict=True)
    lines = [
        "",
        f"{made} and as many on trio for each column.",
        "",
        f"| | {' | '.join(column.title for column in COLUMNS)} |",
        f"|---{'|:---:' * len(COLUMNS)}|",
        *map(_line, both),
        "",
    ]
    for column, report in zip(COLUMNS, on_asyncio, strict=True):
        if report.failures:
            lines += [f"What {column.title} changes, and the first case of it:", ""]
            lines += [f"* {row.name}: {_clean(row.detail)}" for row in report.failures]
            lines += [""]
    return "\n".join(lines)


def _line(rows: Any) -> str:
    both = zip(rows[: len(COLUMNS)], rows[len(COLUMNS) :], strict=True)
    marks = ("yes" if one.passed and other.passed else "**no**" for one, other in both)
    return f"| {rows[0].name} | {' | '.join(marks)} |"


def _clean(detail: str) -> str:
    # As code, in which Markdown sees no markup.
    return f"`{MORE.sub(')', OBJECT.sub('<...>', detail)).replace('`', '')}`"


def main() -> None:
    """
    Write the table, or compare it.
    """
    parser = argparse.ArgumentParser(description="The table of docs/comparison.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is stale")
    page = PAGE.read_text()
    fresh = TABLE.sub(lambda _: table(), page)
    if not parser.parse_args().check:
        PAGE.write_text(fresh)
    elif fresh != page:
        message = f"{PAGE} is stale: python tools/transparency.py"
        raise SystemExit(message)


if __name__ == "__main__":
    main()
