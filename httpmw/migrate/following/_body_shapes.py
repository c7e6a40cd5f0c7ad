# The shapes in which a response body is read, put back and replaced through `body_iterator`.
#
# Only what is known to mean the same is named here; everything else is left as it stands, which
# is right as well: to iterate over the body of a received response reads it and takes nothing
# away, and what is assigned to `body_iterator` is sent.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import libcst as cst

from httpmw.migrate.reading._names import Names, dotted, find, last_name, own_scope

__all__ = [
    "Collected",
    "Rebuilt",
    "body_of",
    "collected",
    "generated",
    "joined_chunks",
    "only_element",
    "put_back",
    "rebuilt",
]

IsReceived = Callable[[str], bool]
# Gives the chunks of a call that does no more than to give them one by one.
PutBack = Callable[[cst.CSTNode | None], cst.BaseExpression | None]


@dataclass(frozen=True)
class Collected:
    """
    `async for chunk in response.body_iterator: name += chunk`, or `name.append(chunk)`.

    `alone` is whether the loop does nothing else.
    """

    response: str
    name: str
    in_chunks: bool
    alone: bool


@dataclass(frozen=True)
class Rebuilt:
    """
    `Response(content, status_code=response.status_code, headers=dict(response.headers))`.
    """

    response: str
    content: cst.BaseExpression


def body_of(node: cst.CSTNode, is_received: IsReceived) -> str:
    """
    Give the name of the received response whose `body_iterator` it is.
    """
    if isinstance(node, cst.Attribute) and node.attr.value == "body_iterator":
        name = dotted(node.value)
        if name and is_received(name):
            return name
    return ""


def collected(node: cst.CSTNode, is_received: IsReceived) -> Collected | None:
    """
    Recognise a loop that collects the body, and may do something else with each part.
    """
    if not isinstance(node, cst.For) or node.asynchronous is None or node.orelse is not None:
        return None
    response = body_of(node.iter, is_received)
    chunk = dotted(node.target)
    if not response or not chunk:
        return None
    smalls = _smalls(node.body)
    found = [
        one
        for each in smalls
        if (one := _collecting(each, chunk, response, alone=len(smalls) == 1))
    ]
    if len(found) != 1:
        return None
    for each in own_scope(node.body):
        if isinstance(each, (cst.Break, cst.Continue, cst.Return)):
            return None
        if isinstance(each, (cst.AssignTarget, cst.AnnAssign, cst.NamedExpr, cst.AugAssign)):
            if dotted(each.target) == chunk:
                return None
            is_other = isinstance(each, cst.AugAssign) and each in smalls
            if dotted(each.target) == found[0].name and not is_other:
                return None
    return found[0]


def _collecting(small: Any, chunk: str, response: str, *, alone: bool) -> Collected | None:
    if isinstance(small, cst.AugAssign):
        if isinstance(small.operator, cst.AddAssign) and dotted(small.value) == chunk:
            name = dotted(small.target)
            if "." not in name:
                return Collected(response, name, in_chunks=False, alone=alone)
    elif isinstance(small, cst.Expr) and isinstance(small.value, cst.Call):
        call = small.value
        name, _, method = dotted(call.func).rpartition(".")
        given = [dotted(each.value) for each in call.args]
        if method == "append" and given == [chunk] and name and "." not in name:
            return Collected(response, name, in_chunks=True, alone=alone)
    return None


def _smalls(suite: cst.BaseSuite) -> list[Any]:
    return [
        small
        for each in suite.body
        for small in (each.body if isinstance(each, cst.SimpleStatementLine) else [each])
    ]


def chunks_of(node: cst.CSTNode, is_received: IsReceived) -> str:
    """
    Recognise `[chunk async for chunk in response.body_iterator]`; give the response.
    """
    if not isinstance(node, (cst.ListComp, cst.GeneratorExp)):
        return ""
    loop = node.for_in
    if loop.asynchronous is None or loop.ifs or loop.inner_for_in is not None:
        return ""
    if dotted(node.elt) != dotted(loop.target) or not dotted(node.elt):
        return ""
    return body_of(loop.iter, is_received)


def joined_chunks(node: cst.CSTNode) -> cst.BaseExpression | None:
    """
    Recognise `b"".join(chunks)`; give the chunks.
    """
    if (
        isinstance(node, cst.Call)
        and len(node.args) == 1
        and isinstance(node.func, cst.Attribute)
        and node.func.attr.value == "join"
        and isinstance(node.func.value, cst.SimpleString)
        and node.func.value.evaluated_value == b""
    ):
        return node.args[0].value
    return None


def put_back(node: cst.CSTNode | None) -> cst.BaseExpression | None:
    """
    Recognise `iterate_in_threadpool(iter(chunks))`; give the chunks.
    """
    if not (isinstance(node, cst.Call) and last_name(node.func) == "iterate_in_threadpool"):
        return None
    if len(node.args) != 1:
        return None
    inner = node.args[0].value
    if isinstance(inner, cst.Call) and dotted(inner.func) == "iter" and len(inner.args) == 1:
        inner = inner.args[0].value
    return inner


def generated(call: cst.Call, function: cst.FunctionDef) -> cst.BaseExpression | None:
    """
    Give the chunks of `function(...)`, an async generator that gives them one by one.

    It is `yield body`, or `for chunk in chunks: yield chunk`.
    """
    statements = [
        each
        for each in _smalls(function.body)
        if not (isinstance(each, cst.Expr) and isinstance(each.value, cst.SimpleString))
    ]
    if function.asynchronous is None or function.decorators or len(statements) != 1:
        return None
    (node,) = statements
    given: cst.BaseExpression | None = None
    if isinstance(node, cst.Expr) and isinstance(node.value, cst.Yield):
        given = _as_list(_meant(node.value.value, call, function))
    elif isinstance(node, cst.For) and node.asynchronous is None and node.orelse is None:
        inside = _smalls(node.body)
        if len(inside) == 1 and isinstance(inside[0], cst.Expr):
            value = inside[0].value
            if isinstance(value, cst.Yield) and dotted(value.value) == dotted(node.target) != "":
                given = _meant(node.iter, call, function)
    return given


def _as_list(node: cst.BaseExpression | None) -> cst.BaseExpression | None:
    return None if node is None else cst.List([cst.Element(node)])


def _meant(node: Any, call: cst.Call, function: cst.FunctionDef) -> cst.BaseExpression | None:
    """
    Give what an expression in a function is for who calls it.
    """
    parameters = [*function.params.posonly_params, *function.params.params]
    names = [each.name.value for each in parameters if each.name.value not in {"self", "cls"}]
    inside = {each.value for each in find(node, cst.Name)} if node is not None else set()
    if not inside & set(names):
        return node if node is not None and not call.args else None
    if not isinstance(node, cst.Name):
        return None
    for position, arg in enumerate(call.args):
        keyword = arg.keyword.value if arg.keyword is not None else ""
        if not arg.star and node.value == (keyword or dict(enumerate(names)).get(position)):
            return arg.value
    return None


def only_element(node: cst.CSTNode | None) -> cst.BaseExpression | None:
    """
    Recognise `[content]`.
    """
    if isinstance(node, (cst.List, cst.Tuple)) and len(node.elements) == 1:
        element = node.elements[0]
        return element.value if isinstance(element, cst.Element) else None
    return None


def rebuilt(
    node: cst.CSTNode, is_received: IsReceived, names: Names, chunks: PutBack
) -> Rebuilt | None:
    """
    Recognise a response that is built from the received one, with other content.
    """
    if not isinstance(node, cst.Call):
        return None
    kind = (names.qualified(node.func) or last_name(node.func)).rpartition(".")[2]
    if kind not in {"Response", "StreamingResponse"} or not node.args:
        return None
    given = {each.keyword.value: each.value for each in node.args if each.keyword is not None}
    if any(each.star for each in node.args):
        return None
    positional = [each.value for each in node.args if each.keyword is None]
    if len(positional) > 1 or (positional and "content" in given):
        return None
    content = positional[0] if positional else given.pop("content", None)
    if kind == "StreamingResponse":
        content = _streamed(content, chunks)
    response = dotted(given.get("status_code")).removesuffix(".status_code")
    if content is None or not response or not is_received(response):
        return None
    expected = {
        "status_code": f"{response}.status_code",
        "headers": f"{response}.headers",
        "media_type": f"{response}.media_type",
    }
    for name, value in given.items():
        if name == "headers" and isinstance(value, cst.Call) and dotted(value.func) == "dict":
            value = value.args[0].value if len(value.args) == 1 else value  # noqa: PLW2901
        if dotted(value) != expected.get(name):
            return None
    return Rebuilt(response, content) if "headers" in given else None


def _streamed(content: cst.BaseExpression | None, chunks: PutBack) -> cst.BaseExpression | None:
    if isinstance(content, cst.Call) and dotted(content.func) == "iter" and len(content.args) == 1:
        return only_element(content.args[0].value)
    return only_element(chunks(content)) if content is not None else None
