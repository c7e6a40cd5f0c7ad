# `--to drop-in`: imports of Starlette's class become imports of `httpmw.compat`, and no more.

from __future__ import annotations

from typing import Any

import libcst as cst

from ._build import without
from ._edit import replaced
from ._module import Module
from ._names import Names, dotted, find, is_http_decorator
from ._scan import Problem, snippet

__all__ = ["drop_in"]

_HOME = "starlette.middleware.base"
_NAMES = {"BaseHTTPMiddleware", "DispatchFunction", "RequestResponseEndpoint"}


def drop_in(module: Module) -> tuple[str, list[cst.CSTNode], list[Problem]]:
    """
    Swap the imports of a module.

    Returns:
        The new source, what was swapped, and what is left to say.
    """
    mapping: dict[int, Any] = {}
    swapped: list[cst.CSTNode] = []
    for block in (module.tree, *find(module.tree, cst.IndentedBlock)):
        for line in block.body:
            if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1:
                changed = _import(line, line.body[0], module.names)
                if changed is not None:
                    mapping[id(line)] = changed
                    swapped.append(line.body[0])
    attributes = [
        node
        for node in find(module.tree, cst.Attribute)
        if node.attr.value in _NAMES and module.names.qualified(node.value) == _HOME
    ]
    for node in attributes:
        mapping[id(node)] = node.with_changes(value=cst.parse_expression("httpmw.compat"))
        swapped.append(node)
    if attributes and "httpmw" not in module.names.imports:
        _import_compat(module.tree, mapping)
    problems = [
        Problem("HM216", node, {"what": snippet(node)})
        for node in find(module.tree, cst.Call)
        if is_http_decorator(node)
    ]
    code = replaced(module.tree, mapping).code if mapping else module.source
    return code, swapped, problems


def _import(line: cst.SimpleStatementLine, node: Any, names: Names) -> Any:
    if (
        not isinstance(node, cst.ImportFrom)
        or isinstance(node.names, cst.ImportStar)
        or names.origin(node) != _HOME
    ):
        return None
    moved = [each for each in node.names if dotted(each.name) in _NAMES]
    if not moved:
        return None
    compat = cst.Attribute(cst.Name("httpmw"), cst.Name("compat"))
    if len(moved) == len(node.names):
        return line.with_changes(body=[node.with_changes(module=compat)])
    stay = list(node.names)
    for each in moved:
        stay = without(stay, next(i for i, one in enumerate(stay) if one.name is each.name))
    moved[-1] = moved[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    taken = cst.ImportFrom(compat, moved)
    return [
        cst.SimpleStatementLine([taken], leading_lines=line.leading_lines),
        line.with_changes(body=[node.with_changes(names=stay)], leading_lines=[]),
    ]


def _import_compat(tree: cst.Module, mapping: dict[int, Any]) -> None:
    last = next(
        line
        for line in reversed(tree.body)
        if isinstance(line, cst.SimpleStatementLine)
        and any(isinstance(small, (cst.Import, cst.ImportFrom)) for small in line.body)
    )
    changed = mapping.get(id(last), last)
    changed = changed if isinstance(changed, list) else [changed]
    mapping[id(last)] = [*changed, cst.parse_statement("import httpmw.compat")]
