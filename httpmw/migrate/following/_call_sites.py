# Where a function uses its `call_next`, by the syntax alone.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from httpmw.migrate.reading._names import Names, children, dotted, find, last_name
from httpmw.migrate.reading._problem import Problem, snippet

__all__ = ["Scan", "Site", "scan"]

# What runs a coroutine in a task of its own, or on a loop of its own.
_OWN_TASK = {
    "create_task",
    "ensure_future",
    "gather",
    "run_coroutine_threadsafe",
    "shield",
    "start_soon",
    "wait_for",
}
_OWN_TASK_OF_A_LIBRARY = {
    f"{library}.{name}"
    for library in ("anyio", "asyncio", "trio")
    for name in ("Task", "as_completed", "run", "wait")
}
_COMPREHENSIONS = (cst.ListComp, cst.SetComp, cst.DictComp, cst.GeneratorExp)


@dataclass(eq=False)
class Site:
    """
    One place where the app is run.

    `kind` is `"call"`, `"timed"` (with *limit* seconds) or `"delegate"` (*call* is that of the
    function that is handed `call_next`, as its argument *handed*).
    """

    kind: str
    node: cst.BaseExpression
    call: cst.Call
    limit: cst.BaseExpression | None = None
    handed: cst.Arg | None = None


@dataclass
class Scan:
    """
    What was found in one function.
    """

    sites: dict[int, Site] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    parents: dict[int, cst.CSTNode] = field(default_factory=dict)
    # The ids of the statements that give `call_next`, or its coroutine, another name.
    dropped: set[int] = field(default_factory=set)


def scan(function: cst.FunctionDef, call_next: str, names: Names) -> Scan:
    """
    Find every use of *call_next* in a function.
    """
    result = Scan()
    sync = function.asynchronous is None
    uses = list(_uses(function.body, {call_next}, result.parents))
    for name in uses:  # which grows
        other = _another_name(name, function, result.parents)
        if other is not None:
            statement, alias = other
            result.dropped.add(id(statement))
            found_again = _uses(function.body, {alias.value}, result.parents)
            uses += [each for each in found_again if each is not alias]
            continue
        coroutine = _coroutine(name, function, result.parents)
        if coroutine is not None:
            statement, at = coroutine
            call: Any = result.parents[id(name)]
            found = _called(at, call, result.parents, names, sync=sync)
            if isinstance(found, Site):
                result.dropped.add(id(statement))
        else:
            found = _classify(name, function, result.parents, names, sync=sync)
        if isinstance(found, Site):
            result.sites[id(found.node)] = found
        else:
            result.problems.append(found)
    for node in _own_yields(function):
        result.problems.append(Problem("HM117", node))
        break
    return result


def _another_name(
    name: cst.Name, function: cst.FunctionDef, parents: dict[int, cst.CSTNode]
) -> tuple[cst.CSTNode, cst.Name] | None:
    """
    Recognise `handler = call_next`, right in the function; give the statement and the name.
    """
    statement = parents[id(name)]
    target = _only_target(statement)
    if target is None or getattr(statement, "value", None) is not name:
        return None
    line = parents[id(statement)]
    if parents.get(id(line)) is not function.body or not _is_bound_once(target.value, function):
        return None
    return statement, target


def _coroutine(
    name: cst.Name, function: cst.FunctionDef, parents: dict[int, cst.CSTNode]
) -> tuple[cst.CSTNode, cst.Name] | None:
    """
    Recognise `coroutine = call_next(request)` that is used once, behind it in the same block.

    Gives the statement and the use: until it is awaited nothing happens.
    """
    call = parents[id(name)]
    if not isinstance(call, cst.Call) or call.func is not name:
        return None
    statement = parents[id(call)]
    target = _only_target(statement)
    if target is None or getattr(statement, "value", None) is not call:
        return None
    uses = [each for each in _uses(function.body, {target.value}, parents) if each is not target]
    if len(uses) != 1 or not _is_bound_once(target.value, function):
        return None
    block = parents[id(parents[id(statement)])]
    node: cst.CSTNode = uses[0]
    while node is not block:
        if isinstance(node, (cst.For, cst.While, cst.FunctionDef, cst.Lambda, *_COMPREHENSIONS)):
            return None
        if node is function.body:
            return None
        node = parents[id(node)]
    return statement, uses[0]


def _only_target(statement: cst.CSTNode) -> cst.Name | None:
    if isinstance(statement, cst.AnnAssign):
        target: cst.BaseExpression = statement.target
    elif isinstance(statement, cst.Assign) and len(statement.targets) == 1:
        target = statement.targets[0].target
    else:
        return None
    return target if isinstance(target, cst.Name) else None


def _is_bound_once(name: str, function: cst.FunctionDef) -> bool:
    targets = (cst.AssignTarget, cst.AnnAssign, cst.AugAssign, cst.CompFor, cst.Del, cst.For)
    names = (cst.AsName, cst.ClassDef, cst.FunctionDef, cst.NameItem, cst.Param)
    bound = [
        *(each.target for each in find(function, *targets, cst.NamedExpr)),
        *(each.name for each in find(function, *names)),
    ]
    return [name for one in bound for each in find(one, cst.Name) if each.value == name] == [name]


def _uses(
    body: cst.CSTNode, wanted: set[str], parents: dict[int, cst.CSTNode]
) -> Iterator[cst.Name]:
    stack = [body]
    while stack:
        node = stack.pop()
        inside = children(node)
        for each in inside:
            parents[id(each)] = node
        if isinstance(node, (cst.Attribute, cst.Arg)):
            inside = [node.value]
        elif isinstance(node, (cst.FunctionDef, cst.Lambda)) and _shadows(node.params, wanted):
            continue
        elif isinstance(node, cst.Name) and node.value in wanted:
            yield node
        stack.extend(reversed(inside))


def _shadows(parameters: cst.Parameters, wanted: set[str]) -> bool:
    every = (*parameters.posonly_params, *parameters.params, *parameters.kwonly_params)
    return any(each.name.value in wanted for each in every)


def _own_yields(function: cst.FunctionDef) -> Iterator[cst.CSTNode]:
    stack: list[cst.CSTNode] = [function.body]
    while stack:
        node = stack.pop()
        if isinstance(node, cst.Yield):
            yield node
        if not isinstance(node, (cst.FunctionDef, cst.Lambda, cst.ClassDef)):
            stack.extend(children(node))


def _classify(
    name: cst.Name,
    function: cst.FunctionDef,
    parents: dict[int, cst.CSTNode],
    names: Names,
    *,
    sync: bool,
) -> Site | Problem:
    nested = _nested_in(name, function, parents)
    if nested:
        return Problem("HM104", name, {"name": name.value, "what": nested})
    parent = parents[id(name)]
    if isinstance(parent, cst.Call) and parent.func is name:
        return _called(parent, parent, parents, names, sync=sync)
    if isinstance(parent, cst.Arg):
        return _handed_on(name, parent, parents, names, sync=sync)
    what = f"in `{snippet(parent)}`" if not isinstance(parent, cst.IndentedBlock) else "it stands"
    if isinstance(parent, (cst.AssignTarget, cst.AnnAssign)):
        what = "another value is assigned to it"
    return Problem("HM101", name, {"name": name.value, "what": what})


def _nested_in(name: cst.Name, function: cst.FunctionDef, parents: dict[int, cst.CSTNode]) -> str:
    node: cst.CSTNode = name
    while node is not function.body:
        node = parents[id(node)]
        if isinstance(node, cst.FunctionDef):
            return f"the function `{node.name.value}`"
        if isinstance(node, cst.Lambda):
            return "a lambda"
        if isinstance(node, cst.ClassDef):
            return f"the class `{node.name.value}`"
        if isinstance(node, _COMPREHENSIONS):
            return "a comprehension"
    return ""


def _called(
    at: cst.BaseExpression,
    call: cst.Call,
    parents: dict[int, cst.CSTNode],
    names: Names,
    *,
    sync: bool,
) -> Site | Problem:
    # What is at *at*: the call itself, or the variable that holds its coroutine.
    name: Any = call.func
    around = parents[id(at)]
    if isinstance(around, cst.Await):
        return Site("call", around, call)
    if sync and isinstance(around, cst.Return):
        return Site("call", at, call)
    if isinstance(around, cst.Arg):
        outer = parents[id(around)]
        if isinstance(outer, cst.Call):
            awaited = parents[id(outer)]
            if names.qualified(outer.func) == "asyncio.wait_for" and isinstance(awaited, cst.Await):
                limit = _limit(outer, around)
                if limit is not None and _is_value_of_a_statement(awaited, parents):
                    return Site("timed", awaited, call, limit=limit)
            if _is_own_task(outer, names):
                what = dotted(outer.func) or last_name(outer.func)
                return Problem("HM102", call, {"name": name.value, "what": what})
            while isinstance(awaited, (cst.Arg, cst.Call)):
                awaited = parents[id(awaited)]
    what = f"what it gives is not awaited in place, in `{snippet(around)}`"
    return Problem("HM101", call, {"name": name.value, "what": what})


def _limit(wait_for: cst.Call, coroutine: cst.Arg) -> cst.BaseExpression | None:
    if len(wait_for.args) != 2 or any(each.star for each in wait_for.args):  # noqa: PLR2004
        return None
    other = next(each for each in wait_for.args if each is not coroutine)
    known = {"fut", "timeout"}
    if any(each.keyword is not None and each.keyword.value not in known for each in wait_for.args):
        return None
    if coroutine is not wait_for.args[0] and coroutine.keyword is None:
        return None
    return other.value


def _is_value_of_a_statement(node: cst.CSTNode, parents: dict[int, cst.CSTNode]) -> bool:
    around = parents[id(node)]
    while isinstance(around, cst.IfExp) and around.test is not node:
        node, around = around, parents[id(around)]
        if not isinstance(around, (cst.IfExp, cst.Return)):
            return False
    return isinstance(around, (cst.Assign, cst.AnnAssign, cst.Expr, cst.Return))


def _is_own_task(call: cst.Call, names: Names) -> bool:
    return last_name(call.func) in _OWN_TASK or names.qualified(call.func) in _OWN_TASK_OF_A_LIBRARY


def _handed_on(
    name: cst.Name,
    arg: cst.Arg,
    parents: dict[int, cst.CSTNode],
    names: Names,
    *,
    sync: bool,
) -> Site | Problem:
    call: Any = parents[id(arg)]
    if isinstance(call, cst.Call):
        if _is_own_task(call, names):
            what = dotted(call.func) or last_name(call.func)
            return Problem("HM102", arg, {"name": name.value, "what": what})
        around = parents[id(call)]
        if not arg.star:
            if isinstance(around, cst.Await):
                return Site("delegate", around, call, handed=arg)
            if sync and isinstance(around, cst.Return):
                return Site("delegate", call, call, handed=arg)
        while isinstance(around, cst.Arg):
            outer: Any = parents[id(around)]
            if isinstance(outer, cst.Call) and _is_own_task(outer, names):
                what = dotted(outer.func) or last_name(outer.func)
                return Problem("HM102", arg, {"name": name.value, "what": what})
            around = parents[id(outer)]
    what = f"it is handed on in `{snippet(call)}`"
    return Problem("HM101", arg, {"name": name.value, "what": what})
