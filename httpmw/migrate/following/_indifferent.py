# Which statements cannot tell whether a context variable has been taken back already.
#
# Rule: only what is known to look at no context variable: names of the function, constants, the
# request and the response, and a few functions. What is not known may log, and the variable may
# be in each line of the log.

from __future__ import annotations

from typing import Any

import libcst as cst

from httpmw.migrate.reading._names import Names, children, dotted

__all__ = ["Quiet"]

_TRANSPARENT = (
    *(cst.SimpleStatementLine, cst.SimpleStatementSuite, cst.IndentedBlock, cst.If, cst.Else),
    *(cst.Assign, cst.AssignTarget, cst.AugAssign, cst.Expr, cst.Pass, cst.Return),
    *(cst.BaseNumber, cst.BaseString, cst.FormattedStringText, cst.FormattedStringExpression),
    *(cst.Tuple, cst.List, cst.Dict, cst.Element, cst.DictElement, cst.Subscript),
    *(cst.SubscriptElement, cst.Index, cst.LeftSquareBracket, cst.RightSquareBracket),
    *(cst.LeftCurlyBrace, cst.RightCurlyBrace, cst.Comparison, cst.ComparisonTarget),
    *(cst.UnaryOperation, cst.BinaryOperation, cst.BooleanOperation, cst.IfExp),
)
_CONSTANTS = {"False", "None", "True"}
_FUNCTIONS = {
    *("bool", "float", "int", "len", "max", "min", "repr", "round", "str"),
    *("time.monotonic", "time.perf_counter", "time.time"),
}
_OF_REQUEST = {"cookies", "headers", "method", "path_params", "query_params", "url"}
_OF_RESPONSE = {"delete_cookie", "headers", "raw_headers", "set_cookie", "status_code"}


class Quiet:
    """
    What one function does without looking at context variables.

    Args:
        names: The imports of its module.
        request: Its request.
        responses: The names of the received response.
        bound: The names that it binds.
    """

    def __init__(self, names: Names, request: str, responses: set[str], bound: set[str]) -> None:
        self.names = names
        self.request = request
        self.responses = responses
        self.bound = bound | responses | {request} | _CONSTANTS

    def is_quiet(self, node: Any) -> bool:
        """
        Tell whether a statement or an expression cannot see a context variable.
        """
        if isinstance(node, cst.Call):
            known = self.names.qualified(node.func) in _FUNCTIONS or self._is_known(node.func)
            return known and all(self.is_quiet(each.value) for each in node.args)
        if isinstance(node, cst.Attribute):
            return self._is_known(node) or dotted(node.value) == "self"
        if isinstance(node, cst.Name):
            return node.value in self.bound or node.value.isupper()
        return isinstance(node, _TRANSPARENT) and all(map(self.is_quiet, children(node)))

    def _is_known(self, node: cst.BaseExpression) -> bool:
        first, _, rest = dotted(node).partition(".")
        known = rest.partition(".")[0]
        if first == self.request:
            return known in _OF_REQUEST
        return first in self.responses and known in _OF_RESPONSE
