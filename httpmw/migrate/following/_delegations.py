# From the units that were found to all of them: to which helpers each hands its `call_next`.
#
# Rule: a helper is followed as its callers call it, with `call_next` in the parameter in which
# they hand it over; where they do not agree, it is none.

from __future__ import annotations

import libcst as cst

from httpmw.migrate.reading._lookup import is_super
from httpmw.migrate.reading._module import Unit
from httpmw.migrate.reading._names import find
from httpmw.migrate.reading._problem import snippet
from httpmw.migrate.reading._units import Units

from ._call_sites import Site
from ._function import Function

__all__ = ["follow_all"]


def follow_all(units: Units) -> dict[Unit, Function]:
    """
    Find out what each unit does, and each function that it hands `call_next` to.
    """
    functions: dict[Unit, Function] = {}
    waiting = list(units)
    while waiting:
        unit = waiting.pop()
        if unit in functions:
            continue
        function = functions[unit] = Function(unit, units.objects)
        for site in function.delegations():
            callee = _callee(units, functions, unit, site)
            if callee is None:
                what = f"it is handed on to `{snippet(site.call.func)}`"
                if is_super(site.call.func):
                    unit.say("HM112", site.call, what=_outside_bases(unit))
                else:
                    unit.say("HM101", site.call, name=unit.call_next, what=what)
                continue
            callee.callers.append(unit)
            unit.link(callee)
            callee.uses.update(id(each) for each in find(site.call.func, cst.Name))
            if callee not in functions:
                waiting.append(callee)
            if not is_super(site.call.func):
                for other in units.with_overriding(callee):
                    if other not in functions:
                        other.handed = callee.handed and _parameter(other, site)
                        waiting.append(other)
            if id(site.node) in function.flow.guarded and callee.raises_http():
                what = "an HTTPException of the callee would not be caught here any more"
                unit.say("HM101", site.call, name=unit.call_next, what=what)
    return functions


def _callee(units: Units, functions: dict[Unit, Function], unit: Unit, site: Site) -> Unit | None:
    function, where = units.objects.function(unit.inside(), site.call.func)
    if function is None:
        return None
    callee = where.units.get(id(function))
    if callee is None:
        callee = units.unit(where, function, "helper")
    handed = _parameter(callee, site)
    if handed is None:
        return None
    if callee.handed is None and callee.kind in {"helper", "function", "object"}:
        if callee.registered == "elsewhere":
            callee.kind = "helper"
            callee.registered = "delegation"
        if callee not in functions:
            callee.handed = handed
    return callee if handed == callee.expects() else None


def _parameter(callee: Unit, site: Site) -> str | None:
    assert site.handed is not None
    return callee.parameter_of(site.call, site.handed)


def _outside_bases(unit: Unit) -> str:
    owner = unit.owner
    return "" if owner is None else ", ".join(snippet(each.value) for each in owner.node.bases)
