# The classes that derive from Starlette's, and what in them is a unit.
#
# Rule: a class and all that are related to it are converted together or not at all.

from __future__ import annotations

from collections.abc import Iterable, Sequence

import libcst as cst

from ._is_http import doubt
from ._lookup import ancestors
from ._module import Class, is_base_init
from ._names import dotted, find, is_none
from ._parameters import takes_call_next
from ._problem import Problem, snippet
from ._read import dispatch_argument
from ._units import Units

__all__ = ["families", "find_in_classes", "repeated_init"]


def find_in_classes(units: Units) -> None:
    """
    Find out what derives from Starlette's class, and which methods are units.
    """
    lookup = units.lookup
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
            _class_units(units, each)
            _given_to_init(units, each)
        elif "dispatch" in each.methods and takes_call_next(each.methods["dispatch"]):
            _outside(units, each)


def _class_units(units: Units, each: Class) -> None:
    dispatch = each.methods.get("dispatch")
    if dispatch is not None:
        unit = units.unit(each.module, dispatch, "class")
        unit.registered = "class"
    elif "__call__" in each.methods and each.direct:
        each.problems.append(Problem("HM111", each.methods["__call__"]))
    again = repeated_init(each)
    for node in find(each.node, cst.Attribute):
        what = dotted(node)
        if again is not None and what == "self.dispatch_func":
            continue
        if what in {"self.dispatch_func", "self._functions", "self._inner"}:
            each.problems.append(Problem("HM118", node, {"what": what}))
    if each.direct and (guarded := each.module.guarded_import()) is not None:
        each.problems.append(Problem("HM119", guarded))


def repeated_init(each: Class) -> tuple[Sequence[cst.CSTNode], str] | None:
    """
    Find the statements that do what Starlette's constructor does, and the call for them.

    That is `self.dispatch_func = self.dispatch`, and `self.app = app` before or behind it.
    """
    uses = [n for n in find(each.node, cst.Attribute) if dotted(n) == "self.dispatch_func"]
    for name in ("__init__", "__post_init__"):
        method = each.methods.get(name)
        if method is None or any(is_base_init(each.module, c) for c in find(method, cst.Call)):
            continue
        lines: dict[str, tuple[cst.CSTNode, cst.BaseExpression]] = {}
        for line in method.body.body:
            if not isinstance(line, cst.SimpleStatementLine) or len(line.body) != 1:
                continue
            small = line.body[0]
            if isinstance(small, cst.Assign) and len(small.targets) == 1:
                lines[dotted(small.targets[0].target)] = line, small.value
        if "self.dispatch_func" not in lines or len(uses) != 1:
            continue
        function, given = lines["self.dispatch_func"]
        app, value = lines.get("self.app", (None, cst.parse_expression("self.app")))
        option = _option(method, given)
        if option is None or not isinstance(value, (cst.Name, cst.Attribute)):
            continue
        if app is None and name == "__init__":
            continue
        found = [each for each in method.body.body if each in {function, app}]
        return found, f"super().__init__({', '.join(filter(None, [dotted(value), option]))})"
    return None


def _option(method: cst.FunctionDef, given: cst.BaseExpression) -> str | None:
    # `self.dispatch`, or a parameter in its place where that is not None.
    names = {each.value for each in find(given, cst.Name)} - {"self", "None"}
    plain = isinstance(given, (cst.Attribute, cst.BooleanOperation, cst.IfExp))
    options = names - {"dispatch"} or (set() if dotted(given) == "self.dispatch" else names)
    if not plain or len(options) > 1 or next(find(given, cst.Call), None) is not None:
        return None
    option = "".join(options)
    return option if not option or _is_none_by_default(method, cst.Name(option)) else None


def _given_to_init(units: Units, each: Class) -> None:
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
            unit = units.unit(each.module, each.methods[name], "class")
            unit.registered = "dispatch="
            unit.uses.update(id(node) for node in find(given, cst.Name))
        elif "dispatch" in each.methods and not _is_none_by_default(init, given):
            each.problems.append(Problem("HM118", call, {"what": snippet(call)}))


def _outside(units: Units, each: Class) -> None:
    # A dispatch in a class whose base is not here: a middleware of somebody else's.
    bases = [base.value for base in each.node.bases]
    foreign = [base for base in bases if units.lookup.find_class(each.module, base) is None]
    if doubt(units.lookup, each.module, each.methods["dispatch"]) == "":
        return  # it is nothing of HTTP
    if not foreign or dotted(foreign[0]) in {"object", "ABC", "Protocol", "Generic"}:
        return
    unit = units.unit(each.module, each.methods["dispatch"], "class")
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
