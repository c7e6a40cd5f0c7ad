# The places where the app is run, in an expression: each becomes a `yield`.

from __future__ import annotations

from typing import Any

import libcst as cst

from ._build import attribute, without

__all__ = ["Sites"]


class Sites(cst.CSTTransformer):
    """
    Puts the yields into an expression.

    Args:
        sites: Where the app is run, by the ids of the expressions.
        read: The responses whose bodies are read, by the ids of the expressions.
        bare: The expression that needs no parentheses.
    """

    def __init__(
        self, sites: dict[int, Any], read: dict[int, str], bare: cst.CSTNode | None
    ) -> None:
        super().__init__()
        self.sites = sites
        self.read = read
        self.bare = bare

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:  # noqa: N802, ARG002
        return False

    def visit_Lambda(self, node: cst.Lambda) -> bool:  # noqa: N802, ARG002
        return False

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        updated: Any = super().on_leave(original_node, updated_node)
        response = self.read.get(id(original_node))
        if response is not None:
            read = cst.Call(attribute(response, "read"))
            return cst.Await(read, lpar=updated.lpar, rpar=updated.rpar)
        site = self.sites.get(id(original_node))
        if site is None:
            return updated
        value = None
        if site.kind == "delegate":
            call: Any = updated.expression if isinstance(updated, cst.Await) else updated
            position = next(i for i, each in enumerate(site.call.args) if each is site.handed)
            value = call.with_changes(args=without(call.args, position), lpar=(), rpar=())
        lpar, rpar = updated.lpar, updated.rpar
        if not lpar and original_node is not self.bare:
            lpar, rpar = [cst.LeftParen()], [cst.RightParen()]
        return cst.Yield(value, lpar=lpar, rpar=rpar)
