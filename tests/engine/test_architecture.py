"""The map for new readers: its driver does what the engine does, and its order is the imports'."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import httpmw
from httpmw import Connection, Flow, HTTPMiddleware
from tests.harness import request

PACKAGE = Path(httpmw.__file__).parent
MAP = PACKAGE.parent / "ARCHITECTURE.md"

# Names of types that are looked up against the order: from where, and whence.
AGAINST = {
    ("_body", "_exchange"),
    ("_body", "_observe"),
    ("_connection", "_exchange"),
    ("_exchange", "_call_next"),
    ("_exchange", "_handshake"),
    ("_handlers", "_connection"),
    ("_limit", "_exchange"),
    ("_observe", "_response"),
    ("_response", "_call_next"),
    ("_response", "_travel"),
    ("_scope", "_exchange"),
    ("_travel", "_exchange"),
}


def rooms() -> list[str]:
    """Return the names of the files in the order of the map."""
    rows = re.findall(r"^\| (`_.*?) \|", MAP.read_text(encoding="utf-8"), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports of the package, and whether only types are looked up by that."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    of_types = {
        id(node)
        for each in ast.walk(tree)
        if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING"
        for node in ast.walk(each)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield name, id(node) in of_types


def test_map_is_short() -> None:
    """It is read in a few minutes."""
    assert len(MAP.read_text(encoding="utf-8").splitlines()) <= 80


def test_map_has_all_rooms() -> None:
    """Every file of the core is on it once, and no other."""
    files = {file.stem for file in PACKAGE.glob("_*.py")} - {"__init__", "__main__"}

    assert sorted(rooms()) == sorted({*files, "stack", "compat"})


def test_imports_run_one_way() -> None:
    """At run time a room imports from earlier ones; for types there are a few exceptions."""
    order = rooms()
    against = set()
    for name in order:
        for imported, of_types in imports(PACKAGE / f"{name}.py"):
            if imported in order and order.index(imported) >= order.index(name):
                assert of_types, f"{name} imports {imported}"
                against.add((name, imported))

    assert against == AGAINST


# -- the naive driver ---------------------------------------------------------------------------


def naive() -> Any:
    """Return the driver of the map."""
    (code,) = re.findall(r"```python\n(.*?)```", MAP.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 25
    names: dict[str, Any] = {"Connection": Request, "Response": Response}
    exec(code, names)  # noqa: S102 - the map's own
    return names["Naive"]


events: list[str] = []


async def sets_a_header(conn: Connection) -> Flow:
    response = yield
    response.headers["x-method"] = conn.method


async def changes_the_status(conn: Connection) -> Flow:
    response = yield
    response.status_code = 418
    del response.headers["content-type"]


async def answers(conn: Connection) -> Flow:
    if conn.method == "GET":
        yield PlainTextResponse("mine", 403)
        return
    yield


async def waits(conn: Connection) -> Flow:
    response = yield
    response.headers["x-first"] = "1"
    yield response
    events.append("over")


async def app(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello", headers={"x-app": "1"})(scope, receive, send)
    events.append("app")


@pytest.mark.parametrize("dispatch", [sets_a_header, changes_the_status, answers, waits])
async def test_naive_driver_does_the_same(dispatch: Any) -> None:
    """On a fine day the engine sends what the driver of the map sends, and in the same order."""
    events.clear()
    real = await request(HTTPMiddleware(app, dispatch=dispatch))
    in_order = events.copy()
    events.clear()
    simple = await request(naive()(app, dispatch))

    assert real.sent == simple.sent
    assert in_order == events
