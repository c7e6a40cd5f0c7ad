# `--to drop-in`: imports of Starlette's class become imports of `httpmw.compat`, and no more.
#
# Rule 1: what moved is laid out as it was: in parentheses, on several lines, with its comments.
# Rule 2: what the drop-in refuses when it runs is named here already.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import libcst as cst

from httpmw.migrate.following._function import Function
from httpmw.migrate.following._state import CALLED
from httpmw.migrate.reading._module import Module
from httpmw.migrate.reading._names import (
    IMPORT_FROM,
    IMPORTS,
    Names,
    dotted,
    find,
    is_http_decorator,
    own_scope,
)
from httpmw.migrate.reading._problem import Problem, snippet
from httpmw.migrate.reading._replaced import replaced

from ._build import without

__all__ = ["drop_in", "refused"]

_HOME = "starlette.middleware.base"
_NAMES = {"BaseHTTPMiddleware", "DispatchFunction", "RequestResponseEndpoint"}
_COMPAT = cst.Attribute(cst.Name("httpmw"), cst.Name("compat"))


def drop_in(module: Module) -> tuple[str, list[cst.CSTNode], list[Problem]]:
    """
    Swap the imports of a module.

    Returns:
        The new source, what was swapped, and what is left to say.
    """
    mapping: dict[int, Any] = {}
    swapped: list[cst.CSTNode] = []
    for line in find(module.tree, cst.SimpleStatementLine, cst.SimpleStatementSuite):
        for small in line.body:
            imports = _imports(small, module.names)
            if not imports:
                continue
            swapped.append(small)
            if len(imports) > 1 and len(line.body) == 1 and isinstance(line, _LINE):
                mapping[id(line)] = _lines(line, imports)
            else:
                mapping[id(small)] = _on_one_line(small, imports)
    attributes = [
        node
        for node in find(module.tree, cst.Attribute)
        if node.attr.value in _NAMES and module.names.qualified(node.value) == _HOME
    ]
    for node in attributes:
        mapping[id(node)] = node.with_changes(value=_COMPAT)
        swapped.append(node)
    tree = replaced(module.tree, mapping) if mapping else module.tree
    if attributes and "httpmw" not in module.names.imports:
        tree = _with_import(tree)
    problems = [
        Problem("HM216", node, {"what": snippet(node)})
        for node in find(module.tree, cst.Call)
        if is_http_decorator(node)
    ]
    return (tree.code if mapping else module.source), swapped, problems


_LINE = cst.SimpleStatementLine


def _imports(node: Any, names: Names) -> list[cst.ImportFrom]:
    """
    Give the imports that take the place of one of Starlette's class, the drop-in's first.
    """
    if (
        not isinstance(node, IMPORT_FROM)
        or isinstance(node.names, cst.ImportStar)
        or names.origin(node) != _HOME
    ):
        return []
    moved = [each for each in node.names if dotted(each.name) in _NAMES]
    if not moved:
        return []
    if len(moved) == len(node.names):
        return [node.with_changes(module=_COMPAT, relative=())]
    ours = node.with_changes(module=_COMPAT, relative=(), names=_chosen(node.names, moved))
    if len(moved) == 1 and "#" not in snippet(ours):
        alias = moved[0].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        ours = type(node)(_COMPAT, [alias])
    stay = [each for each in node.names if dotted(each.name) not in _NAMES]
    return [ours, node.with_changes(names=_chosen(node.names, stay))]


def _chosen(names: Sequence[cst.ImportAlias], wanted: Sequence[cst.ImportAlias]) -> list[Any]:
    chosen: list[Any] = list(names)
    for each in names:
        if each not in wanted:
            position = next(i for i, one in enumerate(chosen) if one.name is each.name)
            chosen = without(chosen, position)
    return chosen


def _lines(line: cst.SimpleStatementLine, imports: Sequence[cst.ImportFrom]) -> list[Any]:
    # The comments above stay above, and one behind the line stays behind it.
    above = [
        cst.SimpleStatementLine([each], leading_lines=line.leading_lines if not index else ())
        for index, each in enumerate(imports[:-1])
    ]
    return [*above, line.with_changes(body=[imports[-1]], leading_lines=())]


def _on_one_line(small: Any, imports: Sequence[cst.ImportFrom]) -> list[cst.ImportFrom]:
    semicolon = cst.Semicolon(whitespace_after=cst.SimpleWhitespace(" "))
    first = [each.with_changes(semicolon=semicolon) for each in imports[:-1]]
    return [*first, imports[-1].with_changes(semicolon=small.semicolon)]


def _with_import(tree: cst.Module) -> cst.Module:
    """
    Import the drop-in: behind the first import of the module, or on its top.
    """
    new = cst.parse_statement("import httpmw.compat")
    body: list[Any] = list(tree.body)
    top = 0
    for position, line in enumerate(body):
        if not isinstance(line, _LINE):
            break
        small = line.body[0]
        if isinstance(small, IMPORTS):
            top = position + 1
            if not _is_future(small):
                break
        elif not position and isinstance(small, cst.Expr):
            top = 1  # the docstring
        else:
            break
    return tree.with_changes(body=[*body[:top], new, *body[top:]])


def _is_future(node: cst.Import | cst.ImportFrom) -> bool:
    return isinstance(node, cst.ImportFrom) and dotted(node.module) == "__future__"


def refused(function: Function) -> Iterator[Problem]:
    """
    Give what the drop-in refuses of a function when it runs.
    """
    for problem in function.found.problems:
        if problem.code == "HM102":
            yield Problem("HM219", problem.node, problem.details)
    for site in function.found.sites.values():
        details = {"name": function.unit.call_next}
        if site.kind == "timed":
            yield Problem("HM219", site.call, {**details, "what": "asyncio.wait_for"})
        if CALLED in function.flow.reached.get(id(site.node), ()):
            yield Problem("HM220", site.node, details)
    for node in own_scope(function.unit.node.body):
        if isinstance(node, cst.With) and function.runs_app(node.body):
            for item in node.items:
                if function.is_scope(item.item):
                    yield Problem("HM221", node, {"what": snippet(item.item)})
