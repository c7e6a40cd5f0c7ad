# What one function does: where it runs the app, what it may give, and what speaks against a
# conversion.

from __future__ import annotations

import re
from typing import Any

import libcst as cst

from httpmw.migrate.reading._module import Unit
from httpmw.migrate.reading._names import dotted, find, is_http_decorator, last_name, own_scope
from httpmw.migrate.reading._objects import Objects
from httpmw.migrate.reading._parameters import own_parameters
from httpmw.migrate.reading._problem import snippet

from . import _state
from ._call_sites import Scan, Site, scan
from ._flow import follow
from ._never_none import Certain

__all__ = ["Function"]

# Decorators that leave the function what it is.
_HARMLESS = {"abstractmethod", "final", "no_type_check", "override", "staticmethod"}
_SCOPES = {
    f"{library}.{name}"
    for library in ("anyio", "trio")
    for name in (
        "CancelScope",
        "create_task_group",
        "fail_after",
        "fail_at",
        "move_on_after",
        "move_on_at",
        "open_nursery",
    )
} | {"asyncio.TaskGroup"}


# What a function is called that sets a context variable, or takes it back.
_SETS = re.compile(
    r"_?(?:bind|clear|detach|pop|push|put|remove|reset|restore|set|store|unbind|unset|use)(?:_|$)"
)


class Function:
    """
    What a unit does.

    Attributes:
        unit: The unit; what there is to say of it is said there.
        found: Where it uses its `call_next`.
        flow: What its variables hold, and whether the app was called, at each of its returns.
        limited: The ids of the `with` statements that become a time limit.
    """

    def __init__(self, unit: Unit, objects: Objects) -> None:
        self.unit = unit
        self.node = unit.node
        self.found = Scan()
        self.flow = _state.Flow()
        self.limited: set[int] = set()
        self._analyse(objects)

    def delegations(self) -> list[Site]:
        return [site for site in self.found.sites.values() if site.kind == "delegate"]

    def _analyse(self, objects: Objects) -> None:
        unit = self.unit
        if not self._knows_parameters():
            self.unit.say("HM105", self.node, what=snippet(self.node.params))
            return
        self._decorators()
        self.found = scan(self.node, unit.call_next, unit.module.names)
        given = Certain(
            unit.module, unit.owner, lambda func: objects.function(unit.inside(), func)[0]
        )
        self.flow = follow(self.node, unit.request, unit.call_next, self.found, given)
        unit.problems += self.found.problems
        unit.problems += self.flow.problems
        if unit.errors():
            return
        self._arguments()
        self._answers()
        self._scopes()
        self._described()
        if any(site.kind == "timed" for site in self.found.sites.values()):
            unit.say("HM203", self.node)

    def _knows_parameters(self) -> bool:
        """
        Find out which parameter is the request, and which is `call_next`.
        """
        unit = self.unit
        parameters = own_parameters(self.node)
        names = [each.name.value for each in parameters]
        if unit.handed is None:
            if len(names) != 2 or not self._plain_parameters(parameters):  # noqa: PLR2004
                return False
            unit.request, unit.call_next = names
            return True
        if unit.handed not in [*names, *(p.name.value for p in self.node.params.kwonly_params)]:
            return False
        unit.call_next = unit.handed
        unit.request = self._request_of_a_helper(names)
        return True

    def _described(self) -> None:
        of_it: list[cst.FunctionDef | cst.ClassDef] = [self.node]
        if self.unit.owner is not None and self.unit.kind == "class":
            of_it.append(self.unit.owner.node)
        for node in of_it:
            if self.unit.call_next in (node.get_docstring() or ""):
                self.unit.say("HM222", self.node, name=self.unit.call_next)
                return

    def _request_of_a_helper(self, names: list[str]) -> str:
        # What it gives to `call_next`, where that is one of its parameters.
        for call in find(self.node.body, cst.Call):
            if isinstance(call.func, cst.Name) and call.func.value == self.unit.call_next:
                given = dotted(call.args[0].value) if call.args else ""
                if given in names:
                    return given
        return ""

    def _plain_parameters(self, parameters: list[cst.Param]) -> bool:
        params = self.node.params
        return (
            not params.kwonly_params
            and not isinstance(params.star_arg, cst.Param)
            and params.star_kwarg is None
            and all(each.default is None for each in parameters)
        )

    def _decorators(self) -> None:
        for each in self.node.decorators:
            decorator = each.decorator
            if is_http_decorator(decorator) and self.unit.kind == "decorator":
                continue
            name = decorator.func if isinstance(decorator, cst.Call) else decorator
            if last_name(name) not in _HARMLESS:
                self.unit.say("HM106", each, what=snippet(decorator))

    def _arguments(self) -> None:
        for site in self.found.sites.values():
            if site.kind == "delegate":
                continue
            for arg in site.call.args:
                value = arg.value
                if isinstance(value, cst.Name) and value.value == self.unit.request:
                    if value.value in self.flow.rebound:
                        self._dropped(value)
                    continue
                name = last_name(value.func) if isinstance(value, cst.Call) else ""
                if (name and not name.endswith("Request")) or any(
                    isinstance(each, (cst.Await, cst.NamedExpr)) for each in own_scope(value)
                ):
                    self.unit.say("HM121", value, name=self.unit.call_next, what=snippet(value))
                else:
                    self._dropped(value)

    def _dropped(self, value: cst.BaseExpression) -> None:
        self.unit.say("HM201", value, name=self.unit.call_next, what=snippet(value))

    def _answers(self) -> None:
        returns = [each for each in own_scope(self.node.body) if isinstance(each, cst.Return)]
        for node in returns:
            for value in _leaves(node.value, self.found):
                info = self.flow.returned.get(id(node if value is None else value))
                if info is None:
                    continue
                # A helper that gives None says so to its caller; a generator cannot.
                helper = self.unit.registered == "delegation"
                if helper and info.tags & _state.NO_RESPONSE:
                    what = f"`{snippet(node)}` does not return a response"
                    self.unit.say("HM101", node, name=self.unit.call_next, what=what)
                elif info.is_none:
                    self._none(node, helper=helper)
                elif _state.NONE in info.tags and _state.NOT in info.calls:
                    self.unit.say("HM110", node, what=snippet(node))
                elif info.may_let_through:
                    self.unit.say("HM217", node, what=snippet(node))
        if self.flow.ending and not self.unit.is_abstract():
            self._none(self.node, helper=self.unit.registered == "delegation")

    def _none(self, node: cst.CSTNode, *, helper: bool) -> None:
        if helper:
            what = "the function can end without a response"
            self.unit.say("HM101", node, name=self.unit.call_next, what=what)
        else:
            self.unit.say("HM206", node)

    def _scopes(self) -> None:
        for node in own_scope(self.node.body):
            if not isinstance(node, cst.With) or not self.runs_app(node.body):
                continue
            for item in node.items:
                call = item.item
                if not self.is_scope(call):
                    continue
                if self._becomes_a_limit(node):
                    self.limited.add(id(node))
                    self.unit.say("HM213", node, what=snippet(call))
                else:
                    self.unit.say("HM107", node, what=snippet(call))

    def is_scope(self, item: cst.CSTNode) -> bool:
        """
        Tell whether what is entered is a scope or a lock that belongs to a task.
        """
        name = self.unit.module.names.qualified(item.func if isinstance(item, cst.Call) else item)
        return name in _SCOPES or last_name(item) in self.unit.module.locks()

    def runs_app(self, node: cst.CSTNode) -> bool:
        """
        Tell whether the app is called in there.
        """
        return any(id(each) in self.found.sites for each in own_scope(node))

    def entered(self) -> set[str]:
        """
        Give the names of the context managers in which the app is called.
        """
        return {
            last_name(item.item.func)
            for node in own_scope(self.node.body)
            if isinstance(node, cst.With) and self.runs_app(node.body)
            for item in node.items
            if isinstance(item.item, cst.Call)
        } - {""}

    def called_back(self) -> set[str]:
        """
        Give the names of the functions that are called in it, and may do that to a variable.
        """
        return {
            last_name(node.func)
            for node in own_scope(self.node.body)
            if isinstance(node, cst.Call) and _SETS.match(last_name(node.func))
        }

    def given_request(self) -> set[str]:
        """
        Give the names of the functions that the request is handed to.
        """
        return {
            last_name(node.func)
            for node in own_scope(self.node.body)
            if isinstance(node, cst.Call)
            and any(dotted(each.value) == self.unit.request for each in node.args)
        } - {"", self.unit.call_next}

    def _becomes_a_limit(self, node: cst.With) -> bool:
        call: Any = node.items[0].item
        if (
            not isinstance(call, cst.Call)
            or self.unit.module.names.qualified(call.func) != "anyio.fail_after"
            or len(node.items) != 1
            or node.items[0].asname is not None
            or len(call.args) != 1
            or call.args[0].keyword is not None
            or self.unit.request in self.flow.rebound
            or self.limited
            or len(node.body.body) != 1
        ):
            return False
        line = node.body.body[0]
        small: Any = line
        if isinstance(line, cst.SimpleStatementLine):
            if len(line.body) != 1:
                return False
            small = line.body[0]
        return isinstance(small, (cst.Assign, cst.Expr, cst.Return)) and (
            id(small.value) in self.found.sites
        )


def _leaves(value: cst.BaseExpression | None, found: Scan) -> list[cst.BaseExpression | None]:
    if isinstance(value, cst.IfExp) and any(
        id(each) in found.sites for each in find(value, cst.BaseExpression)
    ):
        return [*_leaves(value.body, found), *_leaves(value.orelse, found)]
    return [value]
