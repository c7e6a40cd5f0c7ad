# The classes that derive from Starlette's, and what in them is a unit.
#
# Rule: a class and all that are related to it are converted together or not at all.

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import libcst as cst

from ._http import doubt
from ._lookup import ancestors
from ._module import Class, dispatch_argument, is_base_init
from ._names import dotted, find, is_none
from ._parameters import takes_call_next
from ._scan import Problem, snippet

if TYPE_CHECKING:
    from ._project import Project

__all__ = ["families", "find_units"]


def find_units(project: Project) -> None:
    """
    Find out what derives from Starlette's class, and which methods are units.
    """
    lookup = project.lookup
    for each in lookup.all_classes():
        for base in each.node.bases:
            if each.module.is_base(base.value):
                each.direct = True
            elif (parent := lookup.find_class(each.module, base.value)) is not None:
                each.parents.append(parent)
    for each in lookup.all_classes():
        if _derives(each, set()):
            # With the mixins among its bases, whose methods are those of the middleware.
            for one in (each, *ancestors(each)):
                one.derives = True
    for each in list(lookup.all_classes()):
        if each.derives:
            _class_units(project, each)
            _given_to_init(project, each)
        elif "dispatch" in each.methods and takes_call_next(each.methods["dispatch"]):
            _outside(project, each)


def _class_units(project: Project, each: Class) -> None:
    dispatch = each.methods.get("dispatch")
    if dispatch is not None:
        unit = project.unit(each.module, dispatch, "class")
        unit.registered = "class"
    elif "__call__" in each.methods and each.direct:
        each.problems.append(Problem("HM111", each.methods["__call__"]))
    for node in find(each.node, cst.Attribute):
        what = dotted(node)
        if what in {"self.dispatch_func", "self._functions", "self._inner"}:
            each.problems.append(Problem("HM118", node, {"what": what}))
    if each.direct and (guarded := each.module.guarded_import()) is not None:
        each.problems.append(Problem("HM119", guarded))


def _given_to_init(project: Project, each: Class) -> None:
    # `super().__init__(app, dispatch=self.handle)`
    init = each.methods.get("__init__")
    for call in find(init, cst.Call) if init is not None else ():
        if not is_base_init(each.module, call):
            continue
        given = dispatch_argument(
            call.args[2:] if each.module.is_base(call.func.value) else call.args[1:]
        )
        if given is None or dotted(given) in {"self.dispatch", "None"}:
            continue
        name = dotted(given).partition("self.")[2]
        if name in each.methods:
            unit = project.unit(each.module, each.methods[name], "class")
            unit.registered = "dispatch="
            unit.uses.update(id(node) for node in find(given, cst.Name))
        elif "dispatch" in each.methods and not _is_none_by_default(init, given):
            each.problems.append(Problem("HM118", call, {"what": snippet(call)}))


def _outside(project: Project, each: Class) -> None:
    # A dispatch in a class whose base is not here: a middleware of somebody else's.
    bases = [base.value for base in each.node.bases]
    foreign = [base for base in bases if project.lookup.find_class(each.module, base) is None]
    if doubt(project.lookup, each.module, each.methods["dispatch"]) == "":
        return  # it is nothing of HTTP
    if not foreign or dotted(foreign[0]) in {"object", "ABC", "Protocol", "Generic"}:
        return
    unit = project.unit(each.module, each.methods["dispatch"], "class")
    unit.registered = "class"
    unit.problems.append(Problem("HM112", each.node, {"what": snippet(foreign[0])}))


def _derives(each: Class, seen: set[int]) -> bool:
    if id(each) in seen:
        return False
    seen.add(id(each))
    return each.direct or any(_derives(parent, seen) for parent in each.parents)


def _is_none_by_default(init: cst.FunctionDef | None, given: cst.BaseExpression) -> bool:
    # Whoever passes one as well is told by httpmw that there are two.
    return init is not None and any(
        each.name.value == dotted(given) and each.default is not None and is_none(each.default)
        for each in find(init.params, cst.Param)
    )


def families(classes: Iterable[Class]) -> list[list[Class]]:
    """
    Put classes that are related together.
    """
    related: dict[int, list[Class]] = {}
    for each in classes:
        merged = [each]
        for parent in each.parents:
            other = related.get(id(parent), [parent])
            merged += [one for one in other if one not in merged]
        merged += [one for one in related.get(id(each), []) if one not in merged]
        for one in merged:
            related[id(one)] = merged
    unique = {id(family): family for family in related.values()}
    return list(unique.values())
