# What takes back context variables in one function, and where it returns the received response.

from __future__ import annotations

import libcst as cst

from httpmw.migrate.reading._lookup import Lookup
from httpmw.migrate.reading._names import own_scope
from httpmw.migrate.reading._parameters import own_parameters

from ._context_variables import Surroundings, Taking
from ._endings import can_end
from ._function import Function
from ._indifferent import Quiet
from ._state import RECEIVED

__all__ = ["Taken"]


class Taken:
    """
    One function.
    """

    def __init__(self, function: Function, lookup: Lookup) -> None:
        unit = function.unit
        self.function = unit.node
        self.sites = function.found.sites
        self.apps = {id(each.call) for each in self.sites.values()}
        self.runs_app = function.runs_app
        self.flow = function.flow
        # The ids of the `with` statements that become a time limit.
        self.limited = function.limited
        received = self.flow.received
        bound = {each.name.value for each in own_parameters(unit.node)}
        bound |= self.flow.rebound | received
        self.surroundings = Surroundings(lookup, unit.inside(), bound)
        self.taking = Taking(self.surroundings.calls, unit.node.body)
        self.is_harmless = self.surroundings.is_harmless
        self.quiet = Quiet(unit.module.names, unit.request, received, self.flow.rebound)
        # The calls of the app behind which the function ends.
        self.answers = {
            id(each)
            for node in own_scope(unit.node.body)
            if isinstance(node, cst.Return)
            for each in own_scope(node)
        }
        self.handlers = {
            id(each)
            for node in own_scope(unit.node.body)
            if isinstance(node, cst.ExceptHandler)
            for each in own_scope(node.body)
        }

    def taking_back(self) -> list[cst.CSTNode]:
        """
        Find what takes back context variables after the call.
        """
        found: list[cst.CSTNode] = []
        over, last = self._of_failures(), self._in_finally()
        behind = False
        for node in own_scope(self.function.body):
            behind |= id(node) in self.sites and id(node) not in self.answers
            # In a loop everything comes after everything.
            behind |= isinstance(node, (cst.For, cst.While)) and self.goes_on(node)
            if isinstance(node, cst.With):
                items = (each.item for each in node.items)
                harmless = id(node) in self.limited or all(map(self.is_harmless, items))
                if self.runs_app(node.body) and not harmless:
                    found.append(node)
            elif (
                isinstance(node, cst.Call)
                and (behind or id(node) in last)
                and id(node) not in self.apps
            ):
                is_taking = self.taking.is_taking(node) and id(node) not in over
                may_take = id(node) in last and self.surroundings.may_take(node)
                if is_taking or may_take or self.surroundings.is_set(node, self.taking):
                    found.append(node)
        return found

    def _in_finally(self) -> set[int]:
        return {
            id(each)
            for node in own_scope(self.function.body)
            if isinstance(node, (cst.Try, cst.TryStar)) and node.finalbody and self.runs_app(node)
            for each in own_scope(node.finalbody)
        }

    def _of_failures(self) -> set[int]:
        # Where a handler does not end the app has failed, or is discarded.
        return {
            id(each)
            for node in own_scope(self.function.body)
            if isinstance(node, cst.ExceptHandler)
            and not can_end(node.body)
            and not self.sends(node.body)
            for each in own_scope(node.body)
        }

    def goes_on(self, node: cst.CSTNode) -> bool:
        """
        Tell whether something may follow a call of the app in there.
        """
        every = (id(each) for each in own_scope(node))
        return any(each in self.sites and each not in self.answers for each in every)

    def is_sent(self, value: cst.BaseExpression | None) -> bool:
        """
        Tell whether what is returned is the received response.
        """
        if id(value) in self.sites:
            return True
        info = self.flow.returned.get(id(value))
        return info is not None and info.is_received

    def is_manager(self, node: cst.With) -> bool:
        return all(self.surroundings.is_manager(each.item) for each in node.items)

    def sends(self, *nodes: cst.CSTNode) -> bool:
        """
        Tell whether the received response may be returned in there.
        """
        every = (each for node in nodes for each in (node, *own_scope(node)))
        return any(isinstance(each, cst.Return) and self.may_send(each.value) for each in every)

    def may_send(self, value: cst.BaseExpression | None) -> bool:
        info = self.flow.returned.get(id(value))
        return (
            self.is_sent(value)
            or (info is not None and RECEIVED in info.tags)
            or (
                isinstance(value, cst.IfExp) and any(map(self.may_send, (value.body, value.orelse)))
            )
        )
