# The units of the files of one run: which functions take `call_next`.
#
# Rule: a function is one unit, whoever finds it, and as often as it is found.

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from ._lookup import Lookup, ancestors
from ._module import Class, Module, Registration, Unit
from ._names import last_name
from ._objects import Objects
from ._parameters import takes_call_next

__all__ = ["Units"]


class Units:
    """
    The units of a run.
    """

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self.objects = Objects(lookup)

    def __iter__(self) -> Iterator[Unit]:
        for module in self.lookup.modules.values():
            yield from module.units.values()

    def unit(self, module: Module, node: cst.FunctionDef, kind: str) -> Unit:
        """
        Give the unit of a function.
        """
        unit = module.units.get(id(node))
        if unit is None:
            owner = module.owners[id(node)]
            unit = Unit(module, node, module.qualnames[id(node)], owner, kind)
            module.units[id(node)] = unit
            if owner is not None:
                owner.units.append(unit)
        return unit

    def target(self, registration: Registration) -> Unit | None:
        """
        Find the unit that a registration names.
        """
        function, where = self.objects.function(registration.place, registration.target)
        if function is None:
            return None
        owner = where.owners[id(function)]
        # What follows a protocol is not known by its bases.
        if owner is not None and _is_protocol(owner):
            return None
        return self.unit(where, function, "function")

    def with_overriding(self, unit: Unit) -> list[Unit]:
        """
        Take the methods that may be called in the place of one together with it.
        """
        found = []
        if unit.owner is not None and unit.registered != "class":
            for method, owner in _overriding(self.lookup, unit.owner, unit.node.name.value):
                other = self.unit(owner.module, method, unit.kind)
                if other.registered == "elsewhere":
                    other.registered, other.kind = unit.registered, unit.kind
                unit.link(other)
                found.append(other)
        return found


def _is_protocol(owner: Class) -> bool:
    return any(
        last_name(each.value.value if isinstance(each.value, cst.Subscript) else each.value)
        == "Protocol"
        for each in owner.node.bases
    )


def _overriding(lookup: Lookup, owner: Class, name: str) -> list[tuple[cst.FunctionDef, Class]]:
    """
    Find the methods of a name in the classes that are related to one.
    """
    related = {id(owner), *(id(each) for each in ancestors(owner))}
    return [
        (each.methods[name], each)
        for each in lookup.all_classes()
        if name in each.methods
        and each is not owner
        and takes_call_next(each.methods[name])
        and (id(each) in related or related & {id(one) for one in ancestors(each)})
    ]
