# What is converted together or not at all: classes and their bases, functions and what registers
# them, callers and the helpers that they hand `call_next` to.
#
# Rule: where one of them cannot be converted, the others are left with a word on it (HM115).

from __future__ import annotations

from collections.abc import Mapping

import libcst as cst

from ._classes import families
from ._module import Module, Registration, Unit
from ._names import dotted, find, last_name
from ._problem import snippet
from ._units import Units

__all__ = ["group", "hold_back", "settle", "settle_groups"]


def hold_back(units: Units) -> None:
    """
    Leave what a registration that is not understood may mean.
    """
    for module in units.lookup.modules.values():
        for registration in module.registrations:
            if registration.unit is not None:
                continue
            target = registration.target
            what = snippet(registration.call if target is None else target)
            where = f"HM114 at {module.where(registration.call)}"
            for unit in units:
                if _may_mean(units, registration, module, unit):
                    unit.say("HM115", unit.node, name=what, what=where)


def _may_mean(units: Units, registration: Registration, module: Module, unit: Unit) -> bool:
    if unit.kind == "class":
        return False  # a class of middleware is registered as it is
    name, target = unit.node.name.value, registration.target
    if target is not None:
        if name in {each.value for each in find(target, cst.Name)}:
            return True
        func = target.func if isinstance(target, cst.Call) else target
        if unit.qualname.startswith(f"{last_name(func)}.<locals>."):
            return True
        if isinstance(func, cst.Attribute) and func is target and name != "__call__":
            return False
        imported = dotted(func).partition(".")[0] in module.names.imports
        if imported and not units.lookup.is_near(module, func):
            return False
    return unit.registered == "elsewhere"


def settle(units: Units, frozen: Mapping[str, str]) -> None:
    """
    Leave what belongs to a class, or to a file, that cannot be converted.
    """
    for family in families(each for each in units.lookup.all_classes() if each.derives):
        related = [unit for each in family for unit in each.units if unit.kind == "class"]
        for unit in related[1:]:
            unit.link(related[0])
        for each in family:
            each.family = family
            for problem in each.problems:
                own = [unit for unit in each.units if unit.kind == "class"]
                for unit in own:
                    unit.problems.append(problem)
                if not own:
                    each.module.problems.append((problem, each.qualname))
                    for unit in related:
                        what = f"{problem.code} in {each.module.path}"
                        unit.say("HM115", unit.node, name=each.qualname, what=what)
    for path, what in frozen.items():
        if path in units.lookup.modules:
            for unit in units.lookup.modules[path].units.values():
                unit.say("HM192", unit.node, what=what)
    settle_groups(units)


def settle_groups(units: Units) -> None:
    """
    Leave what belongs to a unit that cannot be converted.
    """
    groups: list[set[Unit]] = []
    seen: set[int] = set()
    for unit in units:
        if id(unit) not in seen:
            one = group(unit)
            seen |= {id(each) for each in one}
            groups.append(one)
    for one in groups:
        blocked = sorted((u for u in one if u.errors()), key=lambda u: u.qualname)
        if not blocked:
            continue
        culprit = blocked[0]
        code = culprit.errors()[0].code
        for unit in one:
            if not unit.errors():
                what = f"{code} in {culprit.module.path}"
                unit.say("HM115", unit.node, name=culprit.qualname, what=what)


def group(unit: Unit) -> set[Unit]:
    """
    Give the units that are converted together with one, and that one.
    """
    found = {unit}
    stack = [unit]
    while stack:
        for other in stack.pop().links:
            if other not in found:
                found.add(other)
                stack.append(other)
    return found
