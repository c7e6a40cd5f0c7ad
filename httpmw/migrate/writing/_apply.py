# A module with its units rewritten: functions, bases, registrations, imports.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import libcst as cst

from httpmw.migrate.reading._classes import repeated_init
from httpmw.migrate.reading._module import Class, Module, Unit, is_base_init
from httpmw.migrate.reading._names import (
    dotted,
    find,
    is_http_decorator,
)
from httpmw.migrate.reading._replaced import replaced

from ._build import without
from ._imports import IN_TESTS, PUBLIC, edit_imports, used_names
from ._rewrite import Spelling
from ._version import Version

__all__ = ["apply"]


def apply(module: Module, versions: Mapping[Unit, Version]) -> str:
    """
    Give the new source of a module, from the new versions of the units that are converted.
    """
    spelling = _spelling(module)
    mapping: dict[int, Any] = {}
    nodes: list[cst.CSTNode] = []
    for each in module.classes.values():
        if each.derives and each.converts():
            nodes.append(each.node)
            _bases(module, each, spelling, mapping)
    for registration in module.registrations:
        if registration.unit is not None and registration.unit.converts():
            nodes.append(registration.call)
            _registration(module, registration.call, spelling, mapping)
    for unit in module.units.values():
        if unit.converts():
            nodes.append(unit.node)
            mapping[id(unit.node)] = _decorated(versions[unit].rewritten(spelling), spelling)
    for call, unit in module.by_hand:
        if unit.converts():
            nodes.append(call)
            mapping[id(call.func)] = cst.Call(cst.Name(IN_TESTS), [cst.Arg(call.func)])
    if not mapping:
        return module.source
    on_top = edit_imports(module, nodes, spelling, mapping)
    tree = replaced(module.tree, mapping)
    code: str = tree.with_changes(body=[*on_top, *tree.body]).code
    return code


def _spelling(module: Module) -> Spelling:
    imports = module.names.imports
    bound = {name.rpartition(".")[2] for name in (*module.functions, *module.classes)}
    used = used_names(module.tree).keys() | bound | imports.keys()
    taken = any(name in used and imports.get(name) != f"httpmw.{name}" for name in PUBLIC)
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
