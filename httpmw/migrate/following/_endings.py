# Where statements can end, as far as their shape says so.

from __future__ import annotations

from typing import Any

import libcst as cst

__all__ = ["can_end", "statement_can_end"]


def can_end(suite: cst.BaseSuite) -> bool:
    """
    Tell whether what follows a suite may be reached.
    """
    return all(statement_can_end(each) for each in suite.body)


def statement_can_end(node: Any) -> bool:
    """
    Tell whether what follows a statement may be reached.
    """
    if isinstance(node, cst.SimpleStatementLine):
        return all(statement_can_end(each) for each in node.body)
    if isinstance(node, (cst.Return, cst.Raise, cst.Break, cst.Continue)):
        return False
    if isinstance(node, cst.If):
        if node.orelse is None:
            return True
        other = node.orelse
        return can_end(node.body) or (
            statement_can_end(other) if isinstance(other, cst.If) else can_end(other.body)
        )
    if isinstance(node, (cst.Try, cst.TryStar)):
        if node.finalbody is not None and not can_end(node.finalbody.body):
            return False
        ends = can_end(node.body)
        if node.orelse is not None:
            ends = ends and can_end(node.orelse.body)
        return ends or any(can_end(each.body) for each in node.handlers)
    return True
