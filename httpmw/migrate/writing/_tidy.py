# What a rewritten function no longer needs: a name that nobody reads, a type comment that is wrong.

from __future__ import annotations

from collections import Counter
from typing import Any

import libcst as cst

from httpmw.migrate.reading._names import find
from httpmw.migrate.reading._replaced import replaced

__all__ = ["is_type", "tidied", "without_type"]


def tidied(function: cst.FunctionDef) -> cst.FunctionDef:
    """
    Write `yield` for `response = yield` where nobody reads it, and drop wrong type comments.

    A type comment is one of the function (PEP 484), or that of the received response.
    """
    names = Counter(each.value for each in find(function.body, cst.Name))
    mapping: dict[int, Any] = {}
    for line in find(function.body, cst.SimpleStatementLine):
        smalls = [_unread(small, names) for small in line.body]
        if any(one is not other for one, other in zip(smalls, line.body, strict=True)):
            mapping[id(line)] = line.with_changes(body=smalls)
        if any(_receives(small) for small in line.body):
            kept = mapping.get(id(line), line)
            mapping[id(line)] = kept.with_changes(
                trailing_whitespace=without_type(kept.trailing_whitespace)
            )
    new: cst.FunctionDef = replaced(function, mapping) if mapping else function
    body = new.body
    if isinstance(body, cst.IndentedBlock):
        lines = list(body.body)
        header = without_type(body.header)
        # The comment may stand on a line of its own.
        first: Any = lines[0] if lines else None
        above = getattr(first, "leading_lines", ())
        if above and is_type(above[0].comment):
            lines[0] = first.with_changes(leading_lines=above[1:])
        if header is not body.header or lines != list(body.body):
            new = new.with_changes(body=body.with_changes(header=header, body=lines))
    return new


def _receives(small: cst.BaseSmallStatement) -> bool:
    return isinstance(small, (cst.Assign, cst.Expr)) and isinstance(small.value, cst.Yield)


def _unread(small: Any, names: Counter[str]) -> Any:
    if not isinstance(small, cst.Assign) or not isinstance(small.value, cst.Yield):
        return small
    targets = [each.target for each in small.targets]
    if len(targets) != 1 or not isinstance(targets[0], cst.Name):
        return small
    if names[targets[0].value] > 1 or names["locals"]:
        return small
    return cst.Expr(small.value, semicolon=small.semicolon)


def without_type(space: cst.TrailingWhitespace) -> cst.TrailingWhitespace:
    """
    Drop a type comment from the end of a line.
    """
    if not is_type(space.comment):
        return space
    return space.with_changes(comment=None, whitespace=cst.SimpleWhitespace(""))


def is_type(comment: cst.Comment | None) -> bool:
    """
    Tell whether it is a type comment (PEP 484), and not `type: ignore`.
    """
    if comment is None:
        return False
    text = comment.value[1:].lstrip()
    return text.startswith("type:") and not text[5:].lstrip().startswith("ignore")
