# What takes back context variables: calls, statements, and context managers.
#
# Rule 1: a variable is known by how it is used: what `set()` gave is handed to `reset()`, what
# `get()` gave is handed to `set()`. structlog's are known by the names of its functions. What
# functions of the run do with variables is looked up (`_variable_calls`).
# Rule 2: a context manager takes back variables and does nothing else where its definition is in
# this run, and nothing but that stands behind its `yield` or in its `__exit__`.

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterable, Sequence
from typing import Any

import libcst as cst

from httpmw.migrate.reading._lookup import Lookup
from httpmw.migrate.reading._module import Class, Module, Place, targets
from httpmw.migrate.reading._names import dotted, find, is_none, last_name, own_scope
from httpmw.migrate.reading._objects import Objects

from ._endings import can_end
from ._variable_calls import Calls

__all__ = ["CLEARING", "Surroundings", "Taking", "bound"]

_LOCKS = ("BoundedSemaphore", "Condition", "Lock", "RLock", "Semaphore")
# Of structlog.
CLEARING = {"clear_contextvars", "reset_contextvars", "unbind_contextvars"}
_BOUND = "bound_contextvars"
_MANAGERS = {"contextlib.asynccontextmanager", "contextlib.contextmanager"}
# What has nothing to do with context variables, of the standard library and by its name.
_HARMLESS = {
    *(f"asyncio.{name}" for name in ("Runner", "timeout", "timeout_at")),
    *(f"contextlib.{name}" for name in ("aclosing", "closing", "nullcontext", "suppress")),
    *("open", "io.open", "tempfile.TemporaryDirectory", "tempfile.TemporaryFile"),
    *(f"{library}.{name}" for library in ("asyncio", "threading") for name in _LOCKS),
}
_LOCK = re.compile(r"(?:.*_)?(?:r?lock|mutex|sem|semaphore)s?", re.IGNORECASE)
# What sounds like taking back what was set.
_TAKES = re.compile(r"(?:clear|detach|pop|reset|restore|unbind|unset)_|detach$")
_TAKES_IF_IMPORTED = {"clear", "pop", "reset", "restore", "unset"}


class Taking:
    """
    What takes back variables in one scope.

    Args:
        calls: What calls do with context variables.
        scopes: The bodies in which tokens and values are kept.
    """

    def __init__(self, calls: Calls, *scopes: cst.CSTNode) -> None:
        self.calls = calls
        # The variables that are set, and the names in which what takes them back is kept.
        self.variables: set[str] = set()
        self.names: set[str] = set()
        # By its name, the variable that is taken back with it, of what is bound to nothing else.
        self.kept: dict[str, str] = {}
        # What of that may be None, or is not bound on every path.
        self.unsure: set[str] = set()
        others: set[str] = set()
        for node in (each for scope in scopes for each in own_scope(scope)):
            names = bound(node)
            if isinstance(node, (cst.Assign, cst.AnnAssign)) and len(names) == 1:
                others |= self._keep(names.pop(), node.value)
            else:
                others |= names
        for name in others:
            self.kept.pop(name, None)

    def _keep(self, name: str, value: cst.BaseExpression | None) -> set[str]:
        done = self.calls.done(value) if isinstance(value, cst.Call) else None
        if done is not None and done.kind == "set":
            self.variables.add(done.variable)
        elif done is None or done.kind != "get":
            if is_none(value):
                self.unsure.add(name)
                return set()
            return {name}
        self.names.add(name.rpartition(".")[2])
        known = self.kept.setdefault(name, done.variable)
        return {name} if known != done.variable else set()

    def is_taking(self, call: cst.Call) -> bool:
        """
        Tell whether a call takes back variables.
        """
        name = last_name(call.func)
        if name in CLEARING:
            return True
        if name == "reset" and {last_name(each.value) for each in call.args} & self.names:
            return True
        done = self.calls.done(call)
        if done is None:
            return False
        if done.kind == "reset":
            return last_name(done.given) in self.names if done.given is not None else False
        return done.kind in {"clear", "more"} or self.taken_with(call) is not None

    def taken_with(self, call: cst.Call) -> str | None:
        """
        Give the name of what a call takes a variable back with; nothing where it is another one.
        """
        if last_name(call.func) in {"clear_contextvars", "unbind_contextvars"}:
            return "" if all(isinstance(e.value, cst.SimpleString) for e in call.args) else None
        done = self.calls.done(call)
        if done is not None and done.kind == "clear":
            return ""
        if done is None or done.kind not in {"reset", "set"}:
            return None
        given = dotted(done.given)
        return given if given and self.kept.get(given) == done.variable else None

    def only(self, statements: Iterable[cst.CSTNode], sure: Container[str] = ()) -> bool:
        """
        Tell whether statements take back variables, do nothing else, and cannot fail.

        Args:
            statements: The statements.
            sure: The names that hold what they should.
        """
        return all(self._only(each, sure) for each in statements)

    def _only(self, node: Any, sure: Container[str]) -> bool:
        if isinstance(node, cst.SimpleStatementLine):
            return self.only(node.body, sure)
        if isinstance(node, cst.Expr):
            name = self.taken_with(node.value) if isinstance(node.value, cst.Call) else None
            return name is not None and (not name or name in sure)
        if isinstance(node, cst.If):
            name = _asked(node.test)
            known = name in self.unsure or name in sure
            return node.orelse is None and known and self.only(node.body.body, {name})
        if isinstance(node, cst.Try):
            passed = all(_passes(each.body) for each in node.handlers)
            bare = node.orelse is None and node.finalbody is None
            return passed and bare and self.only(node.body.body, sure)
        return False

    def split(self, statements: Sequence[Any], sure: Container[str]) -> tuple[list[Any], list[Any]]:
        """
        Split statements into what comes first, and the last ones that only take back variables.
        """
        position = len(statements)
        while position and self._only(statements[position - 1], sure):
            position -= 1
        return list(statements[:position]), list(statements[position:])

    def bound(self, statements: Iterable[Any]) -> set[str]:
        """
        Give the names that hold what they should behind some statements.
        """
        names: set[str] = set()
        for node in statements:
            if isinstance(node, cst.SimpleStatementLine):
                names |= self.bound(node.body)
            elif isinstance(node, (cst.Assign, cst.AnnAssign)):
                if isinstance(node.value, cst.Call):
                    names |= self.kept.keys() & bound(node)
            elif isinstance(node, cst.Try) and not any(can_end(h.body) for h in node.handlers):
                names |= self.bound(node.body.body)
        return names


def bound(node: Any) -> set[str]:
    """
    Give the names that a node binds, not those of nodes inside of it.
    """
    if isinstance(node, (cst.Assign, cst.AnnAssign)):
        given: list[Any] = targets(node)
    elif isinstance(node, (cst.Global, cst.Nonlocal)):
        given = [each.name for each in node.names]
    elif isinstance(node, cst.FunctionDef):
        inside = find(node.body, cst.Nonlocal)
        given = [node.name, *(each.name for one in inside for each in one.names)]
    elif isinstance(node, (cst.AsName, cst.ClassDef)):
        given = [node.name]
    elif isinstance(node, (cst.AugAssign, cst.Del, cst.For, cst.NamedExpr)):
        given = [node.target]
    else:
        return set()
    names: set[str] = set()
    while given:
        target = given.pop()
        if isinstance(target, (cst.List, cst.Tuple)):
            given += [each.value for each in target.elements]
        else:
            names.add(dotted(target))
    return names - {""}


def _asked(test: cst.BaseExpression) -> str:
    # `if token:`, `if token is not None:`
    if isinstance(test, cst.Comparison) and is_none(test.comparisons[0].comparator):
        return dotted(test.left) if isinstance(test.comparisons[0].operator, cst.IsNot) else ""
    return dotted(test)


def _passes(suite: cst.BaseSuite) -> bool:
    return all(isinstance(each, cst.Pass) for each in _statements(suite))


class Surroundings:
    """
    What the names in one function stand for.

    Args:
        lookup: The files of the run.
        place: The inside of the function.
        bound: The names that stand for something of the function itself.
    """

    def __init__(self, lookup: Lookup, place: Place, bound: set[str]) -> None:
        self.lookup = lookup
        self.objects = Objects(lookup)
        self.calls = Calls(self.objects, place, bound - {"self", "cls"})
        self.place = place
        self.module = place.module
        self.bound = bound
        # The names of the managers that are defined in other files.
        self._elsewhere: set[str] = set()

    @property
    def elsewhere(self) -> set[str]:
        """
        Give what is defined in other files: managers by their names, functions with what they do.
        """
        return self._elsewhere | self.calls.elsewhere

    def is_set(self, call: cst.Call, taking: Taking) -> bool:
        """
        Tell whether a call sets a context variable.
        """
        done = self.calls.done(call)
        if done is None or done.kind != "set":
            return False
        return done.known or done.variable in taking.variables

    def may_take(self, call: cst.Call) -> bool:
        """
        Tell by its name whether a function that is not in the run may take back variables.
        """
        name = last_name(call.func)
        if self.calls.function(call) is not None:
            return False
        if _TAKES.match(name):
            return True
        root = dotted(call.func).partition(".")[0]
        known = root in sys.stdlib_module_names
        return name in _TAKES_IF_IMPORTED and root in self.module.names.imports and not known

    def is_harmless(self, item: cst.CSTNode) -> bool:
        """
        Tell whether a context manager has nothing to do with context variables.
        """
        while isinstance(item, (cst.Call, cst.Subscript)):
            if self.module.names.qualified(_entered(item)) in _HARMLESS:
                return True
            item = _entered(item)
        return _LOCK.fullmatch(last_name(item)) is not None

    def is_manager(self, item: cst.CSTNode) -> bool:
        """
        Tell whether leaving a context manager takes back variables, and does nothing else.
        """
        if not isinstance(item, cst.Call):
            return False
        func = item.func
        if last_name(func) == _BOUND:
            return True
        if dotted(func).partition(".")[0] in self.bound - {"self", "cls"}:
            return False
        found = self.lookup.find_class(self.module, func)
        if found is not None:
            where, known = found.module, _class_only_takes(found, self.objects)
        else:
            function, where = self.objects.function(self.place, func)
            known = (
                function is not None
                and where.named(function.name.value) == 1
                and _function_only_takes(function, where, self.objects)
            )
        if known and where is not self.module:
            self._elsewhere.add(last_name(func))
        return known


def _entered(item: cst.Call | cst.Subscript) -> cst.BaseExpression:
    return item.func if isinstance(item, cst.Call) else item.value


def _class_only_takes(found: Class, objects: Objects) -> bool:
    methods = [found.methods.get(name) for name in ("__exit__", "__aexit__")]
    bodies = [each.body for each in found.methods.values()]
    taking = Taking(Calls(objects, Place(found.module, found), set()), *bodies)
    sure = taking.bound(line for body in bodies for line in body.body)
    return any(methods) and all(
        taking.only((each for each in _statements(method.body) if not _gives_nothing(each)), sure)
        for method in methods
        if method is not None
    )


def _function_only_takes(function: cst.FunctionDef, where: Module, objects: Objects) -> bool:
    if [where.names.qualified(d.decorator) in _MANAGERS for d in function.decorators] != [True]:
        return False
    yields = [each for each in own_scope(function.body) if isinstance(each, cst.Yield)]
    taking = Taking(Calls(objects, objects.inside(function, where), set()), function.body)
    sure = taking.bound(function.body.body)
    return bool(yields) and len(yields) == _quiet_yields(_statements(function.body), taking, sure)


def _quiet_yields(statements: Sequence[Any], taking: Taking, sure: set[str]) -> int:
    """
    Count the yields of a block behind which variables are taken back, and nothing else is done.
    """
    count = 0
    for position, node in enumerate(statements):
        inside = 0
        if isinstance(node, cst.Expr):
            inside = isinstance(node.value, cst.Yield)
        elif isinstance(node, cst.If):
            inside = _quiet_yields(_statements(node.body), taking, sure)
            if isinstance(node.orelse, cst.Else):
                inside += _quiet_yields(_statements(node.orelse.body), taking, sure)
        elif isinstance(node, cst.Try) and not node.handlers and node.finalbody is not None:
            inside = _quiet_yields(_statements(node.body), taking, sure)
            inside *= taking.only(_statements(node.finalbody.body), sure)
        rest = statements[position + 1 :]
        if inside and not taking.only((e for e in rest if not _gives_nothing(e)), sure):
            # Another branch goes on with what stands there.
            ended = isinstance(node, cst.If) and _returns(node.body) and node.orelse is None
            inside *= ended
        count += inside
    return count


def _statements(suite: cst.BaseSuite) -> list[Any]:
    return [
        small
        for each in suite.body
        for small in (each.body if isinstance(each, cst.SimpleStatementLine) else [each])
    ]


def _returns(suite: cst.BaseSuite) -> bool:
    return isinstance(_statements(suite)[-1], cst.Return)


def _gives_nothing(node: Any) -> bool:
    """
    Tell whether it is a docstring, `pass`, or a `return` of nothing that is true.
    """
    if isinstance(node, cst.Return):
        return is_none(node.value) or dotted(node.value) == "False"
    if isinstance(node, cst.Expr):
        return isinstance(node.value, cst.SimpleString)
    return isinstance(node, cst.Pass)
