# A module with its units rewritten: functions, bases, registrations, imports.

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import libcst as cst

from ._build import without
from ._classes import repeated_init
from ._edit import replaced
from ._module import ORIGINS, Class, Module, imports_base, is_base_init
from ._names import (
    IMPORT_FROM,
    IMPORTS,
    children,
    dotted,
    find,
    is_http_decorator,
    is_lazy,
)
from ._project import Project
from ._rewrite import Spelling

__all__ = ["apply"]

_PUBLIC = ("Connection", "Flow", "HTTPMiddleware", "http_middleware")
# What lets a test go on calling `dispatch(request, call_next)`.
_IN_TESTS = "as_call_next"
_EXPRESSION = re.compile(r"[\w.\[\], |'\"]{1,120}")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")


def apply(project: Project, module: Module) -> str:
    """
    Give the new source of a module.
    """
    spelling = _spelling(module)
    mapping: dict[int, Any] = {}
    nodes: list[cst.CSTNode] = []
    for each in module.classes.values():
        if each.derives and project.converts_class(each):
            nodes.append(each.node)
            _bases(module, each, spelling, mapping)
    for registration in module.registrations:
        if registration.unit is not None and project.converts(registration.unit):
            nodes.append(registration.call)
            _registration(module, registration.call, spelling, mapping)
    for unit in module.units.values():
        if project.converts(unit):
            nodes.append(unit.node)
            mapping[id(unit.node)] = _decorated(unit.rewritten(spelling), spelling)
    for call, unit in module.by_hand:
        if project.converts(unit):
            nodes.append(call)
            mapping[id(call.func)] = cst.Call(cst.Name(_IN_TESTS), [cst.Arg(call.func)])
    if not mapping:
        return module.source
    on_top = _edit_imports(module, nodes, spelling, mapping)
    tree = replaced(module.tree, mapping)
    code: str = tree.with_changes(body=[*on_top, *tree.body]).code
    return code


# ---------------------------------------------------------------------- changed nodes


def _spelling(module: Module) -> Spelling:
    imports = module.names.imports
    bound = {name.rpartition(".")[2] for name in (*module.functions, *module.classes)}
    used = used_names(module.tree).keys() | bound | imports.keys()
    taken = any(name in used and imports.get(name) != f"httpmw.{name}" for name in _PUBLIC)
    return Spelling("httpmw." if taken else "")


def _bases(module: Module, each: Class, spelling: Spelling, mapping: dict[int, Any]) -> None:
    for base in each.node.bases:
        if module.is_base(base.value):
            mapping[id(base.value)] = spelling("HTTPMiddleware")
    if (again := repeated_init(each)) is not None:
        (first, *others), call = again
        mapping.update((id(line), []) for line in others)
        leading = getattr(first, "leading_lines", ())
        mapping[id(first)] = cst.parse_statement(call).with_changes(leading_lines=leading)
    for call in find(each.node.body, cst.Call):
        if not is_base_init(module, call):
            continue
        func: Any = call.func
        if module.is_base(func.value):
            mapping[id(func.value)] = spelling("HTTPMiddleware")
        for position, arg in enumerate(call.args):
            if dotted(arg.value) == "self.dispatch":
                args = without(call.args, position)
                mapping[id(call)] = replaced(call, mapping).with_changes(args=args)
                break


def _registration(
    module: Module, call: cst.Call, spelling: Spelling, mapping: dict[int, Any]
) -> None:
    if is_http_decorator(call.func):
        mapping[id(call.func)] = _http_middleware(call.func, spelling)
        return
    for node in (call.func, *(arg.value for arg in call.args)):
        if module.is_base(node):
            mapping[id(node)] = spelling("HTTPMiddleware")


def _http_middleware(decorator: Any, spelling: Spelling) -> cst.Call:
    return cst.Call(spelling("http_middleware"), [cst.Arg(decorator.func.value)])


def _decorated(node: cst.FunctionDef, spelling: Spelling) -> cst.FunctionDef:
    return node.with_changes(
        decorators=[
            each.with_changes(decorator=_http_middleware(each.decorator, spelling))
            if is_http_decorator(each.decorator)
            else each
            for each in node.decorators
        ]
    )


# ---------------------------------------------------------------------- the import statements


def _edit_imports(
    module: Module,
    nodes: Sequence[cst.CSTNode],
    spelling: Spelling,
    mapping: dict[int, Any],
) -> list[Any]:
    """
    Drop imports and add others; give those that have no other place than the top of the file.
    """
    before, after = used_names(module.tree), used_names(replaced(module.tree, mapping))
    gone = {name for name in before if not after[name]}
    for block in (module.tree, *find(module.tree, cst.IndentedBlock)):
        _drop_gone(block.body, gone, mapping)
    home = _home(module, nodes)
    body = module.tree.body if home is None else home.body.body
    anchor = _anchor(body)
    lazy = anchor is not None and any(is_lazy(each) for each in anchor.body)
    new = _new_imports(module, after, spelling, "lazy " * lazy)
    if not new:
        return []
    if anchor is None:
        return new
    kept = mapping.get(id(anchor), anchor)
    if kept == []:
        new[0] = new[0].with_changes(
            leading_lines=anchor.leading_lines, trailing_whitespace=anchor.trailing_whitespace
        )
        _give_back(body, anchor, mapping)
        mapping[id(anchor)] = new
    else:
        mapping[id(anchor)] = [kept, *new]
    return []


def _give_back(body: Sequence[Any], anchor: Any, mapping: dict[int, Any]) -> None:
    # The place of the anchor is taken, with its comment: the next statement keeps its own only.
    following = body[body.index(anchor) + 1 :][:1]
    for line in following:
        changed = mapping.get(id(line))
        if changed is not None and changed != [] and not isinstance(changed, list):
            mapping[id(line)] = changed.with_changes(leading_lines=line.leading_lines)


def _anchor(body: Sequence[Any]) -> Any:
    """
    Find the statement that the new imports follow, or whose place they take.
    """
    imports = [
        line
        for line in body
        if isinstance(line, cst.SimpleStatementLine)
        and any(isinstance(small, IMPORTS) for small in line.body)
    ]
    for line in imports:
        if any(isinstance(each, IMPORT_FROM) and imports_base(each) for each in line.body):
            return line
    for line in reversed(imports):
        if any(_comes_from_a_framework(each) for each in line.body):
            return line
    if imports:
        return imports[-1]
    first = body[0] if body else None
    if isinstance(first, cst.SimpleStatementLine) and _is_docstring(first):
        return first
    return None


def _comes_from_a_framework(node: cst.CSTNode) -> bool:
    return (
        isinstance(node, IMPORT_FROM)
        and not node.relative
        and (dotted(node.module).partition(".")[0] in ORIGINS)
    )


def _is_docstring(line: cst.SimpleStatementLine) -> bool:
    small = line.body[0]
    return isinstance(small, cst.Expr) and isinstance(small.value, cst.SimpleString)


def _new_imports(module: Module, after: Counter[str], spelling: Spelling, how: str) -> list[Any]:
    imports = module.names.imports
    new: list[Any] = []
    if after["asyncio"] and "asyncio" not in imports:
        new.append(cst.parse_statement(f"{how}import asyncio"))
    if after[_IN_TESTS] and _IN_TESTS not in imports:
        new.append(cst.parse_statement(f"{how}from httpmw.testing import {_IN_TESTS}"))
    if spelling.prefix:
        if "httpmw" not in imports and after["httpmw"]:
            new.append(cst.parse_statement(f"{how}import httpmw"))
        return new
    names = [name for name in _PUBLIC if after[name] and name not in imports]
    if names:
        new.append(cst.parse_statement(f"{how}from httpmw import {', '.join(names)}"))
    return new


def used_names(tree: cst.CSTNode) -> Counter[str]:
    """
    Count the uses of every name, also in the strings of annotations and of `__all__`.
    """
    counter: Counter[str] = Counter()
    stack: list[cst.CSTNode] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, cst.Name):
            counter[node.value] += 1
        elif isinstance(node, IMPORTS):
            continue
        elif isinstance(node, (cst.Attribute, cst.Arg)):
            stack.append(node.value)
        elif isinstance(node, cst.SimpleString):
            text = node.raw_value
            if _EXPRESSION.fullmatch(text):
                counter.update(_IDENTIFIER.findall(text))
        else:
            stack.extend(children(node))
    return counter


def _drop_gone(body: Sequence[Any], gone: set[str], mapping: dict[int, Any]) -> None:
    # The comment above a statement that goes, often that of a whole group, is for the next one.
    comments: list[cst.EmptyLine] = []
    for line in body:
        if not isinstance(line, cst.SimpleStatementLine):
            comments = []
            continue
        smalls = [_without_gone(small, gone) for small in line.body]
        changed = any(one is not other for one, other in zip(smalls, line.body, strict=True))
        smalls = [each for each in smalls if each is not None]
        if not smalls:
            mapping[id(line)] = []
            if any(each.comment is not None for each in line.leading_lines):
                comments = [*comments, *line.leading_lines]
        elif changed or comments:
            kept = line.with_changes(body=smalls) if changed else replaced(line, mapping)
            mapping[id(line)] = kept.with_changes(leading_lines=[*comments, *line.leading_lines])
            comments = []


def _without_gone(node: Any, gone: set[str]) -> Any:
    if not isinstance(node, IMPORTS) or isinstance(node.names, cst.ImportStar):
        return node
    if isinstance(node, IMPORT_FROM) and dotted(node.module) == "__future__":
        return node
    names = list(node.names)
    for alias in node.names:
        here = dotted(alias.name if alias.asname is None else alias.asname.name)
        if here.partition(".")[0] in gone:
            names = without(
                names, next(i for i, each in enumerate(names) if each.name is alias.name)
            )
    if len(names) == len(node.names):
        return node
    return node.with_changes(names=names) if names else None


def _home(module: Module, nodes: Sequence[cst.CSTNode]) -> cst.FunctionDef | None:
    """
    Find the function in which Starlette's class is imported and everything is defined, if any.
    """
    for function in module.functions.values():
        if not any(imports_base(each) for each in find(function.body, *IMPORT_FROM)):
            continue
        inside = {id(each) for each in find(function.body, cst.CSTNode)}
        if all(id(each) in inside for each in nodes):
            return function
    return None
