# What belongs together in the files of one run: classes and their bases, functions and their
# registrations, callers and the helpers that they hand `call_next` to.
#
# Rule 1: a *unit* is one function that takes `call_next`. Units that need each other are
# converted together or not at all.
# Rule 2: a registration is rewritten with the unit that it registers, and only then.
# Rule 3: what is not known is left alone, with a word on it.

from __future__ import annotations

from collections.abc import Iterable, Iterator

import libcst as cst

from .following._call_sites import Problem, Site, snippet
from .following._function import Unit
from .reading._classes import families, find_units
from .reading._is_http import doubt
from .reading._lookup import Lookup, ancestors, is_super
from .reading._module import Class, Module, Registration, read
from .reading._names import dotted, find, is_http_decorator, last_name
from .reading._objects import Objects
from .reading._parameters import is_middleware, takes_call_next
from .reading._uses import Uses, is_test

__all__ = ["Project"]


class Project:
    """
    The files of one run.
    """

    def __init__(self) -> None:
        self.lookup = Lookup()
        self.objects = Objects(self.lookup)
        # The files that cannot be written, and why.
        self.frozen: dict[str, str] = {}
        # How many functions have been rejected since.
        self.rejected = 0
        self._resolved = False

    @property
    def modules(self) -> dict[str, Module]:
        """
        The files, by their paths.
        """
        return self.lookup.modules

    def add(self, path: str, source: str) -> Module:
        """
        Parse a file of the run.

        Raises:
            libcst.ParserSyntaxError: It is no Python.
        """
        module = read(path, source)
        self.lookup.add(module)
        self._resolved = False
        return module

    def know(self, paths: Iterable[str]) -> None:
        """
        Take note of the files of the run that are not parsed, as far as is known by now.
        """
        self.lookup.paths = paths

    def freeze(self, path: str, what: str) -> None:
        """
        Take note that a file cannot be written, so that what belongs together is left together.
        """
        self.frozen[path] = what

    def wanted(self) -> set[str]:
        """
        Give the names of functions that may be used in files without `call_next` as well.
        """
        self.resolve()
        names = set()
        for each in self.all_units():
            if self.converts(each):
                names |= each.aliases
                if each.owner is None and "<locals>" not in each.qualname:
                    names.add(each.node.name.value)
        return names

    def entered(self) -> set[str]:
        """
        Give the names of the context managers in which the app is called.
        """
        self.resolve()
        every = (each for each in self.all_units() if self.converts(each))
        return {name for each in every if each.held.lost is not None for name in each.entered()}

    def called_back(self) -> set[str]:
        """
        Give the names of functions that may set a context variable, or take it back.
        """
        self.resolve()
        every = (each for each in self.all_units() if self.converts(each))
        return {name for each in every for name in each.called_back()}

    def given_request(self) -> set[str]:
        """
        Give the names of the functions that a request is handed to.
        """
        self.resolve()
        every = (each for each in self.all_units() if self.converts(each))
        return {name for each in every for name in each.given_request()}

    def reject(self, module: Module, qualname: str, code: str, what: str, remedy: str = "") -> None:
        """
        Leave a function as it was, and all that belongs to it.
        """
        for unit in module.units.values():
            if qualname in {"", unit.qualname} and self.converts(unit):
                unit.say(code, unit.node, what=what, remedy=remedy)
                self.rejected += 1
        self._settle_groups()

    def resolve(self) -> None:
        """
        Find out what is converted.
        """
        if self._resolved:
            return
        self._resolved = True
        self._doubts: list[tuple[Module, cst.FunctionDef, str]] = []
        for module in self.modules.values():
            module.forget()
        find_units(self)
        for module in self.modules.values():
            self._decorated(module)
        for module in self.modules.values():
            self._registered(module)
        for module in self.modules.values():
            self._unregistered(module)
        self._analyse()
        self._doubted()
        uses = Uses(self.objects, list(self.all_units()))
        uses.find()
        self._held_back()
        self._settle()
        self._called_by_hand(uses)

    def all_units(self) -> Iterator[Unit]:
        """
        Give the units of all files.
        """
        for module in self.modules.values():
            yield from module.units.values()

    # ------------------------------------------------------------------ units

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

    def _decorated(self, module: Module) -> None:
        for node in module.functions.values():
            if any(is_http_decorator(each.decorator) for each in node.decorators):
                self.unit(module, node, "decorator").registered = "decorator"

    def _registered(self, module: Module) -> None:
        for registration in module.registrations:
            target = registration.target
            unit = None if target is None else self.target(registration)
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
            self._with_overriding(unit)

    def _with_overriding(self, unit: Unit) -> list[Unit]:
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

    def _unregistered(self, module: Module) -> None:
        if is_test(module.path):
            return  # what looks like a middleware there is a stub
        for node in list(module.functions.values()):
            if id(node) in module.units or not is_middleware(node):
                continue
            owner = module.owners[id(node)]
            if owner is not None and owner.derives and node.name.value == "dispatch":
                continue
            what = doubt(self.lookup, module, node)
            if what is None:
                self.unit(module, node, "function" if owner is None else "object")
            elif what:
                self._doubts.append((module, node, what))

    def _doubted(self) -> None:
        for module, node, what in self._doubts:
            if id(node) not in module.units:  # which it is where `call_next` is handed to it
                qualname = module.qualnames[id(node)]
                problem = Problem("HM122", node, {"name": node.name.value, "what": what})
                module.problems.append((problem, qualname))

    def _called_by_hand(self, uses: Uses) -> None:
        names = (each.node.name.value for each in self.all_units() if self.converts(each))
        if "dispatch" in names:
            for module, call in uses.unknown:
                module.problems.append((Problem("HM212", call, {"what": snippet(call)}), ""))

    def _held_back(self) -> None:
        """
        Leave what a registration that is not understood may mean.
        """
        for module in self.modules.values():
            for registration in module.registrations:
                if registration.unit is not None:
                    continue
                target = registration.target
                what = snippet(registration.call if target is None else target)
                where = f"HM114 at {module.where(registration.call)}"
                for unit in self.all_units():
                    if self._may_mean(registration, module, unit):
                        unit.say("HM115", unit.node, name=what, what=where)

    def _may_mean(self, registration: Registration, module: Module, unit: Unit) -> bool:
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
            if imported and not self.lookup.is_near(module, func):
                return False
        return unit.registered == "elsewhere"

    def _analyse(self) -> None:
        waiting = list(self.all_units())
        while waiting:
            unit = waiting.pop()
            if unit.analysed:
                continue
            unit.analyse(self.objects)
            for site in unit.delegations():
                callee = self._callee(unit, site)
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
                if not callee.analysed:
                    waiting.append(callee)
                if not is_super(site.call.func):
                    for other in self._with_overriding(callee):
                        if not other.analysed:
                            other.handed = callee.handed and other.parameter_of(site)
                            waiting.append(other)
                if id(site.node) in unit.flow.guarded and callee.raises_http():
                    what = "an HTTPException of the callee would not be caught here any more"
                    unit.say("HM101", site.call, name=unit.call_next, what=what)
        for unit in self.all_units():
            if not unit.errors():
                unit.hold(self.lookup)

    def _callee(self, unit: Unit, site: Site) -> Unit | None:
        function, where = self.objects.function(unit.inside(), site.call.func)
        if function is None:
            return None
        callee = where.units.get(id(function))
        if callee is None:
            callee = self.unit(where, function, "helper")
        handed = callee.parameter_of(site)
        if handed is None:
            return None
        if callee.handed is None and callee.kind in {"helper", "function", "object"}:
            if callee.registered == "elsewhere":
                callee.kind = "helper"
                callee.registered = "delegation"
            if not callee.analysed:
                callee.handed = handed
        return callee if handed == callee.expects() else None

    # ------------------------------------------------------------------ all or nothing

    def _settle(self) -> None:
        for family in families(each for each in self.lookup.all_classes() if each.derives):
            units = [unit for each in family for unit in each.units if unit.kind == "class"]
            for unit in units[1:]:
                unit.link(units[0])
            for each in family:
                each.family = family
                for problem in each.problems:
                    own = [unit for unit in each.units if unit.kind == "class"]
                    for unit in own:
                        unit.problems.append(problem)
                    if not own:
                        each.module.problems.append((problem, each.qualname))
                        for unit in units:
                            what = f"{problem.code} in {each.module.path}"
                            unit.say("HM115", unit.node, name=each.qualname, what=what)
        for path, what in self.frozen.items():
            if path in self.modules:
                for unit in self.modules[path].units.values():
                    unit.say("HM192", unit.node, what=what)
        self._settle_groups()

    def _settle_groups(self) -> None:
        groups: list[set[Unit]] = []
        seen: set[int] = set()
        for unit in self.all_units():
            if id(unit) not in seen:
                group = _group(unit)
                seen |= {id(each) for each in group}
                groups.append(group)
        for group in groups:
            blocked = sorted((u for u in group if u.errors()), key=lambda u: u.qualname)
            if not blocked:
                continue
            culprit = blocked[0]
            code = culprit.errors()[0].code
            for unit in group:
                if not unit.errors():
                    what = f"{code} in {culprit.module.path}"
                    unit.say("HM115", unit.node, name=culprit.qualname, what=what)

    def converts(self, unit: Unit) -> bool:
        """
        Tell whether a unit is converted.
        """
        return not unit.errors()

    def forgets(self, unit: Unit) -> bool:
        """
        Tell whether a unit, or one that it belongs together with, loses context variables.
        """
        return any(each.held.lost is not None for each in _group(unit))

    def converts_class(self, each: Class) -> bool:
        """
        Tell whether a class gets httpmw's base in place of Starlette's.
        """
        family = each.family
        units = [unit for one in family for unit in one.units if unit.kind == "class"]
        return (
            bool(units)
            and all(self.converts(unit) for unit in units)
            and not any(one.problems for one in family)
        )


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


def _outside_bases(unit: Unit) -> str:
    owner = unit.owner
    return "" if owner is None else ", ".join(snippet(each.value) for each in owner.node.bases)


def _group(unit: Unit) -> set[Unit]:
    group = {unit}
    stack = [unit]
    while stack:
        for other in stack.pop().links:
            if other not in group:
                group.add(other)
                stack.append(other)
    return group
