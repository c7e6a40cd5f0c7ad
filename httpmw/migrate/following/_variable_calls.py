# What a call does with context variables, by itself or by way of functions of the run.
#
# Rule 1: a function is seen through where all that it does is to set, reset or read variables;
# one that does something else as well is said to do more.
# Rule 2: a variable that the run defines is the same by whatever name; any other is known by how
# it is written.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import libcst as cst

from httpmw.migrate.reading._module import Module, Place
from httpmw.migrate.reading._names import dotted, find, is_none, last_name, own_scope
from httpmw.migrate.reading._objects import Objects
from httpmw.migrate.reading._parameters import own_parameters

__all__ = ["Calls", "Done"]

_DIRECT = {"get", "reset", "set"}
_HARMLESS = {"classmethod", "staticmethod"}
_DEPTH = 4
_EMPTY = {"bytes", "dict", "frozenset", "list", "set", "str", "tuple"}


@dataclass(frozen=True)
class Done:
    """
    What is done with a context variable.

    Attributes:
        kind: `"get"`, `"set"`, `"reset"`, `"clear"` (set to what is no value of a request), or
            `"more"`: variables are set or reset, and something else happens.
        variable: The variable, or several.
        given: The value or the token.
        known: Whether it is certainly a context variable.
    """

    kind: str
    variable: str
    given: cst.BaseExpression | None = None
    known: bool = False


class Calls:
    """
    The calls in one place.

    Args:
        objects: The objects of the run.
        place: The place.
        bound: The names that stand for something that is not looked up.
    """

    def __init__(self, objects: Objects, place: Place, bound: set[str]) -> None:
        self.objects = objects
        self.place = place
        self.bound = bound
        # What the functions of other files do, as `name=kind:variable`.
        self.elsewhere: set[str] = set()
        self._known: dict[int, Done | None] = {}

    def done(self, call: cst.Call) -> Done | None:
        """
        Tell what a call does with context variables, if anything.
        """
        if id(call) not in self._known:
            self._known[id(call)] = self._done(self.place, call, 0)
        return self._known[id(call)]

    def function(self, call: cst.Call) -> Any:
        """
        Find the function of the run that is called, and its module; nothing where it is no one.
        """
        return self._function(self.place, call)

    def _function(self, place: Place, call: cst.Call) -> Any:
        if place is self.place and dotted(call.func).partition(".")[0] in self.bound:
            return None
        function, where = self.objects.function(place, call.func)
        return None if function is None else (function, where)

    def _done(self, place: Place, call: cst.Call, depth: int) -> Done | None:
        found = self._function(place, call)
        if found is None:
            return self._directly(place, call)
        if depth > _DEPTH:
            return None
        function, where = found
        inside = self._within(function, where, depth)
        if inside is not None and inside.given is not None:
            inside = replace(inside, given=_argument(function, call, dotted(inside.given)))
        if inside is not None and place is self.place and where is not place.module:
            name = dotted(call.func).removeprefix("self.").removeprefix("cls.")
            self.elsewhere.add(f"{name}={inside.kind}:{inside.variable.partition('-')[0]}")
        return inside

    def _directly(self, place: Place, call: cst.Call) -> Done | None:
        func = call.func
        if not isinstance(func, cst.Attribute) or func.attr.value not in _DIRECT:
            return None
        kind = func.attr.value
        if kind != "get" and len(call.args) != 1:
            return None
        variable, known = self._variable(place, func.value)
        return Done(kind, variable, call.args[0].value if call.args else None, known)

    def _variable(self, place: Place, node: cst.BaseExpression) -> tuple[str, bool]:
        value = self.objects.value_of(place, node)
        known = isinstance(value, cst.Call) and last_name(_plain(value.func)) == "ContextVar"
        # Of two variables of one name it does not matter which is which: they are two calls.
        return (f"{last_name(node)}-{id(value)}" if known else dotted(node)), known

    def _within(self, function: cst.FunctionDef, where: Module, depth: int) -> Done | None:
        """
        Tell what a function does with context variables.
        """
        place = self.objects.inside(function, where)
        if any(isinstance(each, cst.Yield) for each in own_scope(function.body)):
            return None  # to call it does nothing yet
        touched = [
            done
            for each in own_scope(function.body)
            if isinstance(each, cst.Call)
            and (done := self._done(place, each, depth + 1)) is not None
            and done.known
        ]
        changed = [each for each in touched if each.kind != "get"]
        every = ",".join(sorted({each.variable.partition("-")[0] for each in touched}))
        more = Done("more", every, known=True) if changed else None
        if function.asynchronous is not None or any(
            last_name(each.decorator) not in _HARMLESS for each in function.decorators
        ):
            return more
        one = self._only(function, place, depth)
        if one is None:
            return more
        if len(one) == 1:
            return self._single(function, one[0])
        clears = all(_is_clearing(function, each) for each in one)
        return Done("clear", every, known=True) if clears else more

    def _only(self, function: cst.FunctionDef, place: Place, depth: int) -> list[Done] | None:
        """
        Give what the statements do where they all set, reset or read variables; else nothing.
        """
        found = []
        statements = _statements(function.body)
        names: set[str] = set()
        for node in statements:
            value = getattr(node, "value", None)
            if isinstance(node, (cst.Pass, cst.Global)) or isinstance(value, cst.SimpleString):
                continue
            if isinstance(node, cst.Return) and (is_none(value) or dotted(value) in names):
                continue
            if isinstance(node, cst.Assign) and len(node.targets) == 1:
                names.add(dotted(node.targets[0].target))
            elif not isinstance(node, (cst.Expr, cst.Return)):
                return None
            done = self._done(place, value, depth + 1) if isinstance(value, cst.Call) else None
            if done is None or not done.known or done.kind == "more":
                return None
            found.append(done)
        return found or None

    def _single(self, function: cst.FunctionDef, done: Done) -> Done | None:
        name = done.variable.partition("-")[0]
        if _is_clearing(function, done):
            return Done("clear", name if done.kind == "clear" else done.variable, known=True)
        parameters = {each.name.value for each in own_parameters(function)}
        if done.kind == "reset" and dotted(done.given) not in parameters:
            # A token that is kept elsewhere may be that of another request by then.
            return Done("more", name, known=True)
        given = done.given if dotted(done.given) in parameters else None
        return replace(done, given=given)


def _is_clearing(function: cst.FunctionDef, done: Done) -> bool:
    if done.kind != "set" or done.given is None:
        return done.kind == "clear"
    if any(
        isinstance(each, cst.Return) and not is_none(each.value)
        for each in _statements(function.body)
    ):
        return False  # who calls it takes the variable back with what it gives
    names = {each.name.value for each in find(function.params, cst.Param)}
    for each in find(done.given, cst.Name, cst.Call):
        if isinstance(each, cst.Name) and each.value in names:
            return False
        if isinstance(each, cst.Call) and (dotted(each.func) not in _EMPTY or each.args):
            return False
    return True


def _argument(
    function: cst.FunctionDef, call: cst.Call, parameter: str
) -> cst.BaseExpression | None:
    names = [each.name.value for each in own_parameters(function)]
    for position, each in enumerate(call.args):
        if each.star:
            return None
        name = each.keyword.value if each.keyword is not None else ""
        if name == parameter or (not name and names[position : position + 1] == [parameter]):
            return each.value
    return None


def _plain(node: cst.BaseExpression) -> cst.BaseExpression:
    # `ContextVar[str]("name")`
    return node.value if isinstance(node, cst.Subscript) else node


def _statements(suite: cst.BaseSuite) -> Sequence[Any]:
    return [
        small
        for each in suite.body
        for small in (each.body if isinstance(each, cst.SimpleStatementLine) else [each])
    ]
