# Uses of a unit that are neither its registration nor a delegation to it.
#
# Rule 1: a function that became a generator cannot be awaited: any use that is not understood
# leaves it as it was.
# Rule 2: in a file of tests a call by hand, `middleware.dispatch(request, call_next)`, is kept
# working.

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, Final

import libcst as cst

from ._lookup import ancestors, inherited, is_super
from ._module import Class, Module, Place, Unit, targets
from ._names import children, dotted, find, last_name, own_scope
from ._objects import Objects
from ._references import references

__all__ = ["Uses", "is_test"]


_REQUEST = re.compile(r"(?:^|_)(?:req|request)\d*$")
_FOLLOWING = re.compile(r"(?:^|_)next(?:_|$)")
# What calls, and what gives names to what was made.
_MAKING: Final = frozenset({cst.Call, cst.Assign, cst.AnnAssign, cst.Return, cst.Yield})


class Uses:
    """
    The other uses of the units of a run.
    """

    def __init__(self, objects: Objects, units: Sequence[Unit], delegations: set[int]) -> None:
        self.objects = objects
        self.lookup = objects.lookup
        self.units = units
        # The ids of the calls that hand `call_next` on.
        self.delegations = delegations
        # The calls of some `dispatch` of which no more is known.
        self.unknown: list[tuple[Module, cst.Call]] = []

    def find(self) -> None:
        """
        Go through the uses of each unit.
        """
        for unit in self.units:
            name = unit.node.name.value
            if unit.owner is not None and name == "__call__":
                self._uses_of_instances(unit)
            if unit.registered == "class" or name in {"dispatch", "__call__"}:
                continue
            if unit.owner is not None:
                self._uses_of_attribute(unit, name)
            elif "<locals>" in unit.qualname:
                self._uses_of_local(unit, name)
            else:
                for module in self.lookup.modules.values():
                    self._uses_of_name(unit, name, module)
        self._calls_by_hand()

    def _uses_of_name(self, unit: Unit, name: str, module: Module) -> None:
        if module is not unit.module:
            found = (
                self.lookup.find(module, cst.Name(name)) if name in module.names.imports else None
            )
            if not isinstance(found, tuple) or found[0] is not unit.node:
                return
        elif name in module.ambiguous:
            return
        self._each_use(unit, module.references(name), module, unit.uses)

    def _uses_of_local(self, unit: Unit, name: str) -> None:
        module = unit.module
        around = module.places[id(unit.node)].scopes
        # What a function returns is registered by who calls that.
        understood = unit.uses | module.returned()
        found = references(around[-1].body).get(name, ()) if around else ()
        self._each_use(unit, found, module, understood)

    def _uses_of_instances(self, unit: Unit) -> None:
        # `middleware = TokenScoping()` at module level, and who imports it.
        for home in self.lookup.modules.values():
            for name, value in home.values.items():
                if self.objects.instance(Place(home), value) is not unit.owner:
                    continue
                unit.aliases.add(name)
                for module in self.lookup.modules.values():
                    if module is home or self.lookup.find(module, cst.Name(name)) == (value, home):
                        understood = unit.uses | _bindings(module)
                        self._each_use(unit, module.references(name), module, understood)

    def _each_use(
        self, unit: Unit, found: Sequence[cst.Name], module: Module, understood: set[int]
    ) -> None:
        calls: dict[int, cst.Call] = {}
        if is_test(module.path) and found:
            calls = {
                id(call.func): call
                for call in find(module.tree, cst.Call)
                if len(call.args) == 2  # noqa: PLR2004
            }
        for node in found:
            if id(node) in understood:
                continue
            if id(node) in calls:
                module.by_hand.append((calls[id(node)], unit))
                continue
            unit.say("HM113", unit.node, name=node.value, what=module.where(node))
            return

    def _uses_of_attribute(self, unit: Unit, name: str) -> None:
        used = {use for each in self.units if each.node.name.value == name for use in each.uses}
        for module in self.lookup.modules.values():
            if f".{name}" not in module.source:
                continue
            for node, call, place in _attributes(module, name):
                if id(node.attr) not in used and self._is_use(unit, node, call, place):
                    unit.say("HM113", unit.node, name=name, what=module.where(node))
                    return

    def _is_use(self, unit: Unit, node: cst.Attribute, call: cst.Call | None, place: Place) -> bool:
        owner = self.objects.instance(place, node.value)
        if owner is not None:
            return unit.owner in {owner, *ancestors(owner)}
        if dotted(node).partition(".")[0] in {"self", "cls", *place.module.names.imports}:
            return False
        # Of some object: what could be a call with a request and `call_next`, or is handed on.
        return call is None or len(call.args) == 2  # noqa: PLR2004

    def _calls_by_hand(self) -> None:
        """
        Find `middleware.dispatch(request, call_next)` where nothing else is known of it.
        """
        entries = [unit for unit in self.units if unit.owner is not None]
        if not entries:
            return
        for module in self.lookup.modules.values():
            if "dispatch(" not in module.source and "call_next)" not in module.source:
                continue
            everywhere: dict[str, list[Class | None]] = {}
            scopes: list[tuple[list[cst.Call], dict[str, list[Class | None]]]] = []
            for scope in (module.tree, *find(module.tree, cst.FunctionDef)):
                calls, instances = self._called_in(module, scope)
                scopes.append((calls, instances))
                for name, made in instances.items():
                    everywhere.setdefault(name, []).extend(made)
            for calls, instances in scopes:
                for call in calls:
                    if id(call) not in self.delegations:
                        self._call_by_hand(module, call, {**everywhere, **instances})

    def _called_in(
        self, module: Module, scope: cst.CSTNode
    ) -> tuple[list[cst.Call], dict[str, list[Class | None]]]:
        """
        Find the calls in a scope that may be of a middleware, and what its variables are.
        """
        calls: list[cst.Call] = []
        instances: dict[str, list[Class | None]] = {}

        def note(name: str, value: Any) -> None:
            if isinstance(value, cst.Call):
                each = self.lookup.find_class(module, value.func)
                if each is not None or name in {"middleware", "mw"}:
                    instances.setdefault(name, []).append(each)

        for node in own_scope(scope):
            if type(node) not in _MAKING:
                continue
            if isinstance(node, cst.Call):
                by_name = last_name(node.func) == "dispatch" and isinstance(
                    node.func, cst.Attribute
                )
                if len(node.args) == 2 and (  # noqa: PLR2004
                    by_name or last_name(node.args[1].value) == "call_next"
                ):
                    calls.append(node)
            elif isinstance(node, (cst.Assign, cst.AnnAssign)):
                for target in targets(node):
                    note(last_name(target), node.value)
            elif isinstance(node, (cst.Return, cst.Yield)) and isinstance(scope, cst.FunctionDef):
                note(scope.name.value, node.value)
                # What a fixture has made and put into a variable.
                if made := instances.get(dotted(node.value)):
                    instances.setdefault(scope.name.value, []).extend(made)
        return calls, instances

    def _call_by_hand(
        self, module: Module, call: cst.Call, instances: dict[str, list[Class | None]]
    ) -> None:
        func: Any = call.func
        by_name = last_name(func) == "dispatch" and isinstance(func, cst.Attribute)
        receiver = func.value if by_name else func
        if isinstance(receiver, cst.Call):
            made = [self.lookup.find_class(module, receiver.func)]
        else:
            made = instances.get(last_name(receiver), [])
        methods = {self._entry(each, "dispatch" if by_name else "__call__") for each in made}
        unit = methods.pop() if len(methods) == 1 else None
        if unit is not None and is_test(module.path):
            module.by_hand.append((call, unit))
        elif unit is not None:
            unit.say("HM113", unit.node, name=unit.node.name.value, what=module.where(call))
        elif by_name and not any(made) and _looks_like_one(call):
            self.unknown.append((module, call))

    def _entry(self, each: Class | None, name: str) -> Unit | None:
        if each is None:
            return None
        method = each.methods.get(name)
        found = (method, each.module) if method is not None else inherited(each, name)
        return None if found is None else found[1].units.get(id(found[0]))


def _looks_like_one(call: cst.Call) -> bool:
    """
    Tell by its arguments whether a call of some `dispatch` may be one of a middleware.
    """
    if is_super(call.func) or dotted(call.func) == "self.dispatch":
        return False
    request, following = (last_name(each.value) for each in call.args)
    return bool(_REQUEST.search(request) or _FOLLOWING.search(following))


def _bindings(module: Module) -> set[int]:
    """
    Give the ids of the names that are bound or looked into, and of those that get another name.
    """
    found = {id(each.value) for each in find(module.tree, cst.Attribute)}
    for node in find(module.tree, cst.AnnAssign, cst.AssignTarget):
        found.add(id(node.target))
    for node in find(module.tree, cst.NameItem):
        found.add(id(node.name))
    return found | {id(each) for each in module.values.values()}


def _attributes(
    module: Module, name: str
) -> Iterator[tuple[cst.Attribute, cst.Call | None, Place]]:
    """
    Find the attributes of a name, with the calls of them, and where they stand.
    """
    stack: list[tuple[cst.CSTNode, cst.Call | None, Place]] = [(module.tree, None, Place(module))]
    while stack:
        node, call, place = stack.pop()
        if isinstance(node, cst.Attribute) and node.attr.value == name:
            yield node, call, place
        if isinstance(node, cst.FunctionDef):
            place = Place(module, place.owner, (*place.scopes, node))
        elif isinstance(node, cst.ClassDef):
            place = Place(module, module.classes_by_node[id(node)], place.scopes)
        for each in children(node):
            called = node if isinstance(node, cst.Call) and each is node.func else None
            stack.append((each, called, place))


def is_test(path: str) -> bool:
    """
    Tell by its name whether a file is one of tests.
    """
    parts = PurePath(path).parts
    return bool(
        {"test", "tests"} & set(parts)
        or parts[-1].startswith(("test_", "conftest"))
        or parts[-1].endswith("_test.py")
    )
