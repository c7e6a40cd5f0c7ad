# The files of one run, and what becomes of their units.
#
# Rule 1: a *unit* is one function that takes `call_next`. Units that need each other are
# converted together or not at all.
# Rule 2: a registration is rewritten with the unit that it registers, and only then.
# Rule 3: what is not known is left alone, with a word on it.

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .following._delegations import follow_all
from .following._function import Function
from .reading._classes import find_in_classes
from .reading._lookup import Lookup
from .reading._module import Module, Unit
from .reading._problem import Problem, snippet
from .reading._read import read
from .reading._registrations import (
    find_decorated,
    find_registered,
    find_unregistered,
    say_doubts,
)
from .reading._together import group, hold_back, settle, settle_groups
from .reading._units import Units
from .reading._uses import Uses
from .writing._version import Version

__all__ = ["Project"]


class Project:
    """
    The files of one run.
    """

    def __init__(self) -> None:
        self.lookup = Lookup()
        self.units = Units(self.lookup)
        # What each unit does, and what becomes of those that are converted.
        self.functions: dict[Unit, Function] = {}
        self.versions: dict[Unit, Version] = {}
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
        names = set()
        for each in self._converted():
            unit = each.unit
            names |= unit.aliases
            if unit.owner is None and "<locals>" not in unit.qualname:
                names.add(unit.node.name.value)
        return names

    def entered(self) -> set[str]:
        """
        Give the names of the context managers in which the app is called.
        """
        lost = (each for each in self._converted() if self.versions[each.unit].held.lost)
        return {name for each in lost for name in each.entered()}

    def called_back(self) -> set[str]:
        """
        Give the names of functions that may set a context variable, or take it back.
        """
        return {name for each in self._converted() for name in each.called_back()}

    def given_request(self) -> set[str]:
        """
        Give the names of the functions that a request is handed to.
        """
        return {name for each in self._converted() for name in each.given_request()}

    def _converted(self) -> Iterator[Function]:
        self.resolve()
        return (self.functions[unit] for unit in self.units if unit.converts())

    def reject(self, module: Module, qualname: str, code: str, what: str, remedy: str = "") -> None:
        """
        Leave a function as it was, and all that belongs to it.
        """
        for unit in module.units.values():
            if qualname in {"", unit.qualname} and unit.converts():
                unit.say(code, unit.node, what=what, remedy=remedy)
                self.rejected += 1
        settle_groups(self.units)

    def resolve(self) -> None:
        """
        Find out what is converted.
        """
        if self._resolved:
            return
        self._resolved = True
        units = self.units
        every = self.modules.values()
        for module in every:
            module.forget()
        find_in_classes(units)
        for module in every:
            find_decorated(units, module)
        for module in every:
            find_registered(units, module)
        doubts = [doubt for module in every for doubt in find_unregistered(units, module)]
        self.functions = follow_all(units)
        say_doubts(doubts)
        delegations = {
            id(site.call) for each in self.functions.values() for site in each.delegations()
        }
        uses = Uses(units.objects, list(units), delegations)
        uses.find()
        hold_back(units)
        settle(units, self.frozen)
        self._called_by_hand(uses)
        self.versions = {
            unit: Version(self.functions[unit], self.lookup) for unit in units if unit.converts()
        }

    def _called_by_hand(self, uses: Uses) -> None:
        if any(each.node.name.value == "dispatch" and each.converts() for each in self.units):
            for module, call in uses.unknown:
                module.problems.append((Problem("HM212", call, {"what": snippet(call)}), ""))

    def forgets(self, unit: Unit) -> bool:
        """
        Tell whether a unit, or one that it belongs together with, loses context variables.
        """
        return any(self.versions[each].held.lost is not None for each in group(unit))
