# Small pieces of syntax, with the layout that was there.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import libcst as cst

from httpmw.migrate.reading._names import find

__all__ = [
    "Piece",
    "Small",
    "Statement",
    "as_block",
    "as_line",
    "as_lines",
    "assigned",
    "attribute",
    "check",
    "compared",
    "first_line",
    "has_comment",
    "in_parentheses",
    "is_empty",
    "joined",
    "space",
    "split_leading",
    "unused",
    "with_first_line",
    "without",
]

Statement: TypeAlias = cst.SimpleStatementLine | cst.BaseCompoundStatement
Small: TypeAlias = cst.BaseSmallStatement
Piece: TypeAlias = cst.BaseSmallStatement | cst.BaseCompoundStatement

# Where an argument or a parameter without a comma has what is behind it.
_AFTER = ("whitespace_after_arg", "whitespace_after_param")


def without(items: Sequence[Any], position: int) -> list[Any]:
    """
    Take an argument or a parameter out, so that the layout of the list stays.
    """
    rest = [*items[:position], *items[position + 1 :]]
    if position == len(items) - 1 and rest:
        # The new last one ends as the old last one did, and keeps the comment that is its own.
        rest[-1] = _ended(rest[-1], items[position], first_line(rest[-1]))
    return rest


def first_line(item: Any) -> cst.TrailingWhitespace | None:
    """
    Give what is behind an item of a list on its line, where the line ends there.
    """
    after = _after(item)
    return after.first_line if isinstance(after, cst.ParenthesizedWhitespace) else None


def with_first_line(item: Any, line: cst.TrailingWhitespace) -> Any:
    """
    Put something else behind an item whose line ends there.
    """
    return _with_after(item, _after(item).with_changes(first_line=line))


def _ended(item: Any, old: Any, own: cst.TrailingWhitespace | None) -> Any:
    changes: dict[str, Any] = {"comma": old.comma}
    for name in _AFTER:
        if hasattr(old, name):
            changes[name] = getattr(old, name)
    ended = item.with_changes(**changes)
    if own is None:
        return ended
    if first_line(ended) is not None:
        return with_first_line(ended, own)
    # Behind a comment the line has to end.
    return item if own.comment is not None else ended


def _after(item: Any) -> Any:
    if isinstance(item.comma, cst.Comma):
        return item.comma.whitespace_after
    return next((getattr(item, name) for name in _AFTER if hasattr(item, name)), None)


def _with_after(item: Any, after: cst.BaseParenthesizableWhitespace) -> Any:
    if isinstance(item.comma, cst.Comma):
        return item.with_changes(comma=item.comma.with_changes(whitespace_after=after))
    return item.with_changes(**{name: after for name in _AFTER if hasattr(item, name)})


def attribute(value: str, name: str) -> cst.Attribute:
    """
    Give `value.name`.
    """
    return cst.Attribute(cst.Name(value), cst.Name(name))


def assigned(name: str, value: cst.BaseExpression) -> cst.Assign:
    """
    Give `name = value`.
    """
    return cst.Assign([cst.AssignTarget(cst.Name(name))], value)


def compared(node: cst.BaseExpression, operator: cst.BaseCompOp) -> cst.Comparison:
    """
    Compare with None.
    """
    return cst.Comparison(node, [cst.ComparisonTarget(operator, cst.Name("None"))])


def check(node: cst.Name) -> cst.If:
    """
    Raise where a variable is None.
    """
    fail = cst.parse_statement('raise TypeError("no response")')
    return cst.If(compared(node, cst.Is()), cst.IndentedBlock([fail]))


def as_line(*small: Small) -> cst.SimpleStatementLine:
    """
    Put small statements on a line.
    """
    return cst.SimpleStatementLine(list(small))


def as_lines(
    pieces: Sequence[Piece], line: cst.SimpleStatementLine | None = None
) -> list[Statement]:
    """
    Put each piece on a line of its own; the first one keeps the comments of *line*.
    """
    result: list[Any] = []
    for piece in pieces:
        if isinstance(piece, Small):
            result.append(as_line(piece.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)))
        else:
            result.append(piece)
    if line is not None and result:
        changes: dict[str, Any] = {"leading_lines": line.leading_lines}
        if isinstance(result[0], cst.SimpleStatementLine):
            changes["trailing_whitespace"] = line.trailing_whitespace
        elif line.trailing_whitespace.comment is not None:
            comment = cst.EmptyLine(comment=line.trailing_whitespace.comment)
            changes["leading_lines"] = [*line.leading_lines, comment]
        result[0] = result[0].with_changes(**changes)
    return result


def joined(pieces: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """
    Put statements on one line, with the semicolons of another.
    """
    if like:
        return [p.with_changes(semicolon=o.semicolon) for p, o in zip(pieces, like, strict=True)]
    return [p.with_changes(semicolon=cst.MaybeSentinel.DEFAULT) for p in pieces]


def as_block(suite: Any, statements: Sequence[Statement] | None = None) -> cst.IndentedBlock:
    """
    Give a suite as an indented block.
    """
    if isinstance(suite, list):
        return cst.IndentedBlock(suite)
    if isinstance(suite, cst.IndentedBlock):
        return suite
    body = as_lines(suite.body) if statements is None else list(statements)
    return cst.IndentedBlock(body, header=suite.trailing_whitespace)


def is_empty(line: cst.SimpleStatementLine, name: str) -> bool:
    """
    Tell whether a line is `name = b""`.
    """
    small = line.body[0]
    return (
        len(line.body) == 1
        and isinstance(small, cst.Assign)
        and len(small.targets) == 1
        and isinstance(small.targets[0].target, cst.Name)
        and small.targets[0].target.value == name
        and isinstance(small.value, cst.SimpleString)
        and not small.value.raw_value
    )


def in_parentheses(node: Any) -> Any:
    """
    Put what `await` cannot stand in front of into parentheses.
    """
    if node.lpar or isinstance(node, (cst.Name, cst.Attribute, cst.Call, cst.Subscript)):
        return node
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def space(node: cst.Return) -> Any:
    """
    Give the space behind `return`.
    """
    space = node.whitespace_after_return
    return space if isinstance(space, cst.BaseParenthesizableWhitespace) else _MAYBE


_MAYBE = cst.MaybeSentinel.DEFAULT


def has_comment(line: cst.SimpleStatementLine) -> bool:
    """
    Tell whether there is a comment above or behind a line.
    """
    return line.trailing_whitespace.comment is not None or any(
        each.comment is not None for each in line.leading_lines
    )


def split_leading(lines: Sequence[cst.EmptyLine]) -> tuple[list[Any], list[Any]]:
    """
    Split the lines above a statement into blank ones, and what follows from the first comment on.
    """
    position = next((i for i, each in enumerate(lines) if each.comment is not None), len(lines))
    return list(lines[:position]), list(lines[position:])


def unused(name: str, function: cst.FunctionDef) -> str:
    """
    Give a name that is not used in a function.
    """
    used = {each.value for each in find(function, cst.Name)}
    while name in used:
        name += "_"
    return name
