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

from ._names import Names, dotted, last_name

__all__ = ["Collected", "Rebuilt", "body_of", "collected", "joined_chunks", "put_back", "rebuilt"]

IsReceived = Callable[[str], bool]


@dataclass(frozen=True)
class Collected:
    """
    `async for chunk in response.body_iterator: name += chunk`, or `name.append(chunk)`.
    """

    response: str
    name: str
    in_chunks: bool


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
    Recognise a loop that does nothing but collect the body.
    """
    if not isinstance(node, cst.For) or node.asynchronous is None or node.orelse is not None:
        return None
    response = body_of(node.iter, is_received)
    chunk = dotted(node.target)
    if not response or not chunk or len(node.body.body) != 1:
        return None
    small: Any = node.body.body[0]
    if isinstance(small, cst.SimpleStatementLine):
        if len(small.body) != 1:
            return None
        small = small.body[0]
    if isinstance(small, cst.AugAssign):
        if isinstance(small.operator, cst.AddAssign) and dotted(small.value) == chunk:
            name = dotted(small.target)
            return Collected(response, name, in_chunks=False) if "." not in name else None
    elif isinstance(small, cst.Expr) and isinstance(small.value, cst.Call):
        call = small.value
        name, _, method = dotted(call.func).rpartition(".")
        if method == "append" and len(call.args) == 1 and dotted(call.args[0].value) == chunk:
            return Collected(response, name, in_chunks=True) if name and "." not in name else None
    return None


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


def put_back(node: cst.CSTNode) -> cst.BaseExpression | None:
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


def only_element(node: cst.CSTNode | None) -> cst.BaseExpression | None:
    """
    Recognise `[content]`.
    """
    if isinstance(node, (cst.List, cst.Tuple)) and len(node.elements) == 1:
        element = node.elements[0]
        return element.value if isinstance(element, cst.Element) else None
    return None


def rebuilt(node: cst.CSTNode, is_received: IsReceived, names: Names) -> Rebuilt | None:
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
        content = _streamed(content)
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


def _streamed(content: cst.BaseExpression | None) -> cst.BaseExpression | None:
    if isinstance(content, cst.Call) and dotted(content.func) == "iter" and len(content.args) == 1:
        return only_element(content.args[0].value)
    return only_element(put_back(content)) if content is not None else None
