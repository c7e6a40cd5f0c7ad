# The new version of one function: its parameters, its annotations, and its body.

from __future__ import annotations

from typing import Any

import libcst as cst

from httpmw.migrate.following._function import Function
from httpmw.migrate.reading._lookup import Lookup
from httpmw.migrate.reading._names import last_name
from httpmw.migrate.reading._problem import snippet

from ._build import first_line, with_first_line, without
from ._late_resets import hold
from ._rewrite import Rewriter, Spelling
from ._tidy import is_type, tidied, without_type

__all__ = ["Version"]


class Version:
    """
    What becomes of one function.

    Attributes:
        held: The function, rearranged so that context variables are taken back behind
            `yield response`.
    """

    def __init__(self, function: Function, lookup: Lookup) -> None:
        self.function = function
        self.unit = function.unit
        self.node = function.unit.node
        self.held = hold(function, lookup)
        if self.held.lost is not None:
            node, taken = self.held.lost
            what = taken.items[0].item if isinstance(taken, cst.With) else taken
            self.unit.say("HM218", node, what=snippet(what))

    def rewritten(self, spelling: Spelling) -> cst.FunctionDef:
        changes: dict[str, Any] = {
            "params": self._parameters(spelling),
            "returns": cst.Annotation(spelling("Flow")),
        }
        if self.node.returns is not None:
            changes["returns"] = self.node.returns.with_changes(annotation=spelling("Flow"))
        if self.unit.is_abstract():
            changes["asynchronous"] = None
        else:
            rewriter = Rewriter(self.held, self.function)
            changes["body"] = rewriter.body()
            if self.node.asynchronous is None:
                changes["asynchronous"] = cst.Asynchronous()
        return tidied(self.node.with_changes(**changes))

    def _parameters(self, spelling: Spelling) -> cst.Parameters:
        params = self.node.params
        changes: dict[str, Any] = {}
        for group in ("posonly_params", "params", "kwonly_params"):
            members = list(getattr(params, group))
            # First, while the comment behind the request is the request's.
            members = [
                self._as_connection(each, spelling)
                if each.name.value == self.unit.request
                else each
                for each in members
            ]
            changed = members
            for position, each in enumerate(members):
                if each.name.value == self.unit.call_next:
                    changed = without(members, position)
                    break
            changes[group] = changed
        was_last = params.kwonly_params and not changes["kwonly_params"]
        if was_last and not isinstance(params.star_arg, cst.Param):
            changes["star_arg"] = cst.MaybeSentinel.DEFAULT
        return params.with_changes(**changes)

    def _as_connection(self, param: cst.Param, spelling: Spelling) -> cst.Param:
        annotation = param.annotation
        connection = spelling("Connection")
        line = first_line(param)
        is_typed = line is not None and is_type(line.comment)
        if line is not None and is_typed:
            param = with_first_line(param, without_type(line))
        if annotation is None:
            if self.unit.registered == "delegation" and not is_typed:
                return param
            return param.with_changes(annotation=cst.Annotation(connection))
        if not _is_request(annotation.annotation):
            return param
        return param.with_changes(annotation=annotation.with_changes(annotation=connection))


def _is_request(annotation: cst.BaseExpression) -> bool:
    if isinstance(annotation, cst.SimpleString):
        text = annotation.evaluated_value
        return isinstance(text, str) and text.split("[")[0].rpartition(".")[2].endswith("Request")
    if isinstance(annotation, cst.Subscript):
        annotation = annotation.value
    return last_name(annotation) in {"Request", "_CachedRequest", "HTTPConnection", "Any"}
