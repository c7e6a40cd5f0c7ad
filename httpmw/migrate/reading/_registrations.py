# Which functions are registered, and how, and which are units without a registration.

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from ._is_http import doubt
from ._module import Module
from ._names import find, is_http_decorator
from ._parameters import is_middleware
from ._problem import Problem, snippet
from ._units import Units
from ._uses import is_test

__all__ = ["Doubt", "find_decorated", "find_registered", "find_unregistered", "say_doubts"]

# A function that nobody registers, and why it may be nothing of HTTP.
Doubt = tuple[Module, cst.FunctionDef, str]


def find_decorated(units: Units, module: Module) -> None:
    """
    Find the functions below `@app.middleware("http")`.
    """
    for node in module.functions.values():
        if any(is_http_decorator(each.decorator) for each in node.decorators):
            units.unit(module, node, "decorator").registered = "decorator"


def find_registered(units: Units, module: Module) -> None:
    """
    Find the functions that the registrations of a file name.
    """
    for registration in module.registrations:
        target = registration.target
        unit = None if target is None else units.target(registration)
        if unit is None:
            what = snippet(registration.call if target is None else target)
            problem = Problem("HM114", registration.call, {"what": what})
            module.problems.append((problem, ""))
            continue
        registration.unit = unit
        unit.registered = registration.how
        if unit.owner is not None:
            unit.kind = "object"
        unit.registrations.append(registration)
        if target is not None:
            unit.uses.update(id(each) for each in find(target, cst.Name))
        units.with_overriding(unit)


def find_unregistered(units: Units, module: Module) -> list[Doubt]:
    """
    Find the functions that show by themselves what they are; give those of which it is doubtful.
    """
    if is_test(module.path):
        return []  # what looks like a middleware there is a stub
    doubts = []
    for node in list(module.functions.values()):
        if id(node) in module.units or not is_middleware(node):
            continue
        owner = module.owners[id(node)]
        if owner is not None and owner.derives and node.name.value == "dispatch":
            continue
        what = doubt(units.lookup, module, node)
        if what is None:
            units.unit(module, node, "function" if owner is None else "object")
        elif what:
            doubts.append((module, node, what))
    return doubts


def say_doubts(doubts: Iterable[Doubt]) -> None:
    """
    Say why a function that nobody registers, and nobody hands `call_next` to, is left alone.
    """
    for module, node, what in doubts:
        if id(node) not in module.units:  # which it is where `call_next` is handed to it
            qualname = module.qualnames[id(node)]
            problem = Problem("HM122", node, {"name": node.name.value, "what": what})
            module.problems.append((problem, qualname))
