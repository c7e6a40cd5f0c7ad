"""
The tree of an application. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from typing import Any, assert_type

from fastapi import FastAPI
from starlette.applications import Starlette

from httpmw import MiddlewareStack
from httpmw.show import Kind, Node, Remark, Scopes, Tree, tree

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
