# Whether a layer refuses requests in place of the app, as far as its source says so.
#
# Rule 1: what is not plainly a refusal is none: a warning that is wrong costs more than one that
# is missing.
# Rule 2: where an answer is made by a function or a method of its own, that is read too; what that
# calls is not.

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from httpmw._adapter import HTTPMiddleware

from ._model import Node
from ._where import unwrapped

# Of httpmw's own, by their kinds: where they refuse is not in their own source.
_GATES: Final = frozenset({"cross_origin"})
_REFUSALS: Final = range(400, 500)
_NOT_THOSE: Final = {404, 405, 413, 422}
_LOGIN: Final = ("login", "signin", "sign-in")  # where a redirect refuses
_NAMES: Final = (
    "UNAUTHORIZED", "FORBIDDEN", "TOO_MANY_REQUESTS", "PROXY_AUTHENTICATION_REQUIRED",
    "HTTP_401", "HTTP_403", "HTTP_429", "PermissionDenied", "NotAuthenticated", "Unauthorized",
)  # fmt: skip


def refuses(node: Node) -> bool:
    """
    Say whether a layer answers some requests with a refusal, without running the app.
    """
    if node.role in _GATES:
        return True
    function = _function_of(node)
    tree = _parsed(function)
    if tree is None:
        return False
    if str(getattr(function, "__module__", "")).startswith(("starlette.", "fastapi.")):
        return False
    first = min((each.lineno for each in _calls_inward(tree, node)), default=None)
    for each in _answers(tree, node):
        if first is not None and each.lineno >= first:
            continue
        if _is_refusal(each) or any(map(_is_refusal, _made_by(each, function, node))):
            return True
    return False


def lets_preflights_pass(node: Node) -> bool:
    """
    Say whether the source of a gate speaks of `OPTIONS`, as one does that lets preflights pass.
    """
    tree = _parsed(_function_of(node))
    return tree is not None and any(
        isinstance(each, ast.Constant) and each.value == "OPTIONS" for each in ast.walk(tree)
    )


def _function_of(node: Node) -> Any:
    subject = node.subject
    if node.style == "asgi":
        call = subject if inspect.isroutine(subject) else getattr(type(subject), "__call__", None)  # noqa: B004
        return unwrapped(call)
    if isinstance(subject, HTTPMiddleware):
        return unwrapped(vars(subject).get("dispatch") or type(subject).dispatch)
    return unwrapped(getattr(subject, "dispatch_func", None))


def _parsed(function: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None


def _calls_inward(tree: ast.AST, node: Node) -> Iterator[Any]:
    """
    Where the app is run.
    """
    for each in ast.walk(tree):
        if node.style == "httpmw" and isinstance(node.subject, HTTPMiddleware):
            if isinstance(each, ast.Yield) and (each.value is None or _is_delegation(each, tree)):
                yield each
        elif node.style == "asgi":
            # That for other scopes comes first, and with a `return`.
            continue
        elif isinstance(each, ast.Call) and "call_next" in ast.unparse(each.func):
            yield each


def _is_delegation(each: ast.Yield, tree: ast.AST) -> bool:
    assigned = {node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    return each in assigned


def _made_by(statement: ast.AST, function: Any, node: Node) -> Iterator[ast.AST]:
    """
    Give the functions and the methods of its own that are called in an answer (rule 2).
    """
    for each in ast.walk(statement):
        if not isinstance(each, ast.Call):
            continue
        made: Any = None
        if isinstance(each.func, ast.Name):
            made = getattr(function, "__globals__", {}).get(each.func.id)
        elif isinstance(each.func, ast.Attribute) and ast.unparse(each.func.value) == "self":
            made = inspect.getattr_static(type(node.subject), each.func.attr, None)
        if inspect.isroutine(made) and (tree := _parsed(unwrapped(made))) is not None:
            yield tree


def _answers(tree: ast.AST, node: Node) -> Iterator[Any]:
    for each in ast.walk(tree):
        if isinstance(each, ast.Raise):
            yield each
        elif node.style == "httpmw" and isinstance(node.subject, HTTPMiddleware):
            if isinstance(each, ast.Yield) and each.value is not None:
                yield each
        elif node.style == "asgi":
            if isinstance(each, ast.Assign) or (
                isinstance(each, (ast.Expr, ast.Return)) and isinstance(each.value, ast.Await)
            ):
                yield each
        elif isinstance(each, ast.Return) and each.value is not None:
            yield each


def _is_refusal(statement: ast.AST) -> bool:
    for each in ast.walk(statement):
        if isinstance(each, ast.Constant) and type(each.value) is int:
            if each.value in _REFUSALS and each.value not in _NOT_THOSE:
                return True
        elif isinstance(each, ast.Call) and ast.unparse(each.func).endswith("RedirectResponse"):
            if any(word in ast.unparse(each).lower() for word in _LOGIN):
                return True
        elif isinstance(each, (ast.Name, ast.Attribute)):
            name = each.id if isinstance(each, ast.Name) else each.attr
            if any(word in name for word in _NAMES):
                return True
    return False
