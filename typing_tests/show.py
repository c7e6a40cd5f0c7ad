"""
The tree of an application, and what happens to a request. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from fastapi import FastAPI
from starlette.applications import Starlette

from httpmw import MiddlewareStack
from httpmw.show import (
    Explanation,
    Kind,
    Node,
    Remark,
    Scopes,
    StartupError,
    Step,
    Tree,
    explain,
    tree,
)

app = FastAPI()

found = tree(app)
assert_type(found, Tree)
assert_type(found.root, Node)
assert_type(found.warnings, tuple[Remark, ...])
assert_type(found.as_json(), dict[str, Any])
assert_type(str(found), str)
tree(Starlette())
tree(MiddlewareStack(app))

for node in found.root.walk():
    assert_type(node.kind, Kind)
    assert_type(node.scopes, Scopes | None)
    assert_type(node.where, str | None)
    assert_type(node.options, dict[str, str])
    assert_type(node.children, list[Node])


async def explains() -> None:
    try:
        said = await explain(app, "POST", "/users", headers={"x-a": "b"}, body="{}", repeat=9)
    except StartupError:
        return
    assert_type(said, Explanation)
    assert_type(said.steps, tuple[Step, ...])
    assert_type(said.steps[0].seconds, Mapping[str, float])
    assert_type(said.steps[0].own, float)
    assert_type(said.status, int | None)
    await explain(app, headers=[("x-a", "b")], body=b"", run_lifespan=False)
    await explain(app, headers=["x-a"])  # type: ignore[list-item]  # pyrefly: ignore[bad-argument-type]
