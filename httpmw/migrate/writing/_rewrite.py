# One function, rewritten: `call_next` becomes `yield`, and what was returned is yielded.
#
# Rule 1: a bare `return` sends the received response as edited, after every `finally` and every
# `__exit__`. It is what `return response` was, and so it is written wherever the received
# response is returned.
# Rule 2: `yield other` sends at once and comes back when everything is over. It is written only
# where no `finally`, no `except` and no context manager of the function stands around it; out of
# those the answer is carried in a variable (`_answers`). So each piece of code keeps its moment,
# and no `except` sees an exception that it did not see before.
# A held return (`_late_resets`) is the exception: what it stands in takes back context variables,
# and does nothing else, when everything is over.
# Rule 3: what may be None is not yielded before the app was called: None would run it.
# Rule 4: nodes are told apart by identity; what nothing is to be done about is not built anew.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import libcst as cst

from httpmw.migrate.following._body_shapes import Collected, Rebuilt
from httpmw.migrate.following._function import Function
from httpmw.migrate.reading._names import find, own_scope

from ._answers import Guard, Place
from ._build import (
    Piece,
    Small,
    Statement,
    as_block,
    as_line,
    as_lines,
    assigned,
    attribute,
    has_comment,
    in_parentheses,
    is_empty,
    joined,
    space,
    split_leading,
)
from ._late_resets import Held
from ._yields import Sites

__all__ = ["Rewriter", "Spelling"]

_RETURN = cst.Return()


@dataclass(frozen=True)
class Spelling:
    """
    How the names of httpmw are written in one module.
    """

    prefix: str = ""

    def __call__(self, name: str) -> cst.BaseExpression:
        return cst.parse_expression(self.prefix + name)


class Rewriter:
    def __init__(self, held: Held, known: Function) -> None:
        self.function = function = held.function
        # The returns of the received response for which `yield` is written.
        self.held = held.returns
        self.request = known.unit.request
        self.sites = known.found.sites
        self.flow = known.flow
        # The `with fail_after(...)` statements that become a call.
        self.limited = known.limited
        self.sync = function.asynchronous is None
        self.guard = Guard(self)
        # Blank lines to put above a statement.
        self.blank: dict[int, list[Any]] = {}

    # ------------------------------------------------------------------ the function

    def body(self) -> cst.BaseSuite:
        suite = self.suite(self.function.body, Place(tail=True))
        if not any(isinstance(each, cst.Yield) for each in own_scope(suite)):
            # It answers by raising only, or not at all: the yield makes it a generator, and is
            # never come to, as it would let the request through.
            block = as_block(suite)
            *_, last = block.body
            over = isinstance(last, cst.SimpleStatementLine) and isinstance(
                last.body[-1], cst.Raise | cst.Return
            )
            ends = [] if over else [as_line(_RETURN)]
            ending = as_line(cst.Expr(cst.Yield()))
            suite = block.with_changes(body=[*block.body, *ends, ending])
        return suite

    # ------------------------------------------------------------------ suites

    def suite(self, suite: cst.BaseSuite, place: Place) -> cst.BaseSuite:
        if isinstance(suite, cst.SimpleStatementSuite):
            pieces = [piece for small in suite.body for piece in self.pieces(small, place)]
            if len(pieces) == len(suite.body) and all(isinstance(p, Small) for p in pieces):
                return suite.with_changes(body=joined(pieces, suite.body))
            return as_block(suite, as_lines(pieces or [cst.Pass()]))
        statements = self.block(suite.body, place)
        return suite.with_changes(body=statements or [self._nothing(suite)])

    def _nothing(self, suite: cst.BaseSuite) -> Statement:
        # What is left of a suite that only returned the response, or only did what has no effect.
        last = next((each for each in reversed(suite.body)), None)
        returned = isinstance(last, cst.SimpleStatementLine) and isinstance(
            last.body[-1], cst.Return
        )
        return as_line(_RETURN if returned else cst.Pass())

    def block(self, statements: Sequence[Any], place: Place) -> list[Statement]:
        result: list[Statement] = []
        for position, statement in enumerate(statements):
            last = position == len(statements) - 1
            here = place if last else place.inner()
            if isinstance(statement, cst.SimpleStatementLine):
                lines = self.line(statement, here)
                if not lines and not last and not statements[position + 1].leading_lines:
                    # The blank line above what is dropped is for what follows.
                    blank = split_leading(statement.leading_lines)[0]
                    self.blank[id(statements[position + 1])] = blank
                result.extend(self._spaced(statement, lines))
            elif id(statement) in self.flow.dropped:
                continue
            elif (body := self.flow.collected.get(id(statement))) is not None:
                self.read_at_once(statement, body, result)
            elif self.guard.needed(statement):
                result.extend(self.guard.rewritten(statement, here))
            else:
                result.extend(self.compound(statement, here))
        return result

    def read_at_once(self, loop: cst.For, body: Collected, before: list[Statement]) -> None:
        # The `name = b""` right before the loop has no use any more.
        leading = loop.leading_lines
        last = before[-1] if before else None
        if isinstance(last, cst.SimpleStatementLine) and is_empty(last, body.name):
            leading = [*last.leading_lines, *leading]
            before.pop()
        read = cst.Await(cst.Call(attribute(body.response, "read")))
        before.append(as_line(assigned(body.name, read)).with_changes(leading_lines=leading))

    def _spaced(self, statement: Any, lines: list[Statement]) -> list[Statement]:
        blank = self.blank.get(id(statement))
        if blank and lines and hasattr(lines[0], "leading_lines"):
            lines[0] = lines[0].with_changes(leading_lines=blank)
        return lines

    def line(self, line: cst.SimpleStatementLine, place: Place) -> list[Statement]:
        pieces: list[Piece] = []
        for small in line.body:
            last = small is line.body[-1]
            pieces.extend(self.pieces(small, place if last else place.inner()))
        if not pieces:
            if has_comment(line) and isinstance(line.body[-1], cst.Return):
                pieces = [_RETURN]
            else:
                return []
        if len(pieces) == len(line.body) and all(isinstance(p, Small) for p in pieces):
            return [line.with_changes(body=joined(pieces, line.body))]
        if len(line.body) > 1 and all(isinstance(p, Small) for p in pieces):
            return [line.with_changes(body=joined(pieces, ()))]
        return as_lines(pieces, line)

    # ------------------------------------------------------------------ small statements

    def pieces(self, node: Small, place: Place) -> list[Piece]:
        if id(node) in self.flow.dropped:
            return []
        if isinstance(node, cst.Return):
            return self.returned(node, node.value, place)
        if isinstance(node, cst.Assign) and id(node) in self.flow.replaced:
            replace_body = attribute(self.request, "replace_body")
            return [cst.Expr(cst.Call(replace_body, [cst.Arg(self.expression(node.value))]))]
        again = self.flow.rebuilt.get(id(node))
        if again is not None:
            return [self.with_body(again)]
        value = getattr(node, "value", None)
        site = self.sites.get(id(value))
        if site is not None and isinstance(node, (cst.Assign, cst.AnnAssign, cst.Expr)):
            statement: Any = node.with_changes(value=self.expression(value, bare=True))
            if isinstance(node, cst.AnnAssign) and self._is_received_only(node.target):
                statement = cst.Assign([cst.AssignTarget(node.target)], statement.value)
            if site.limit is not None:
                return [self.timed(site.limit, statement)]
            return [statement]
        return [self.expression(node)]

    def with_body(self, again: Rebuilt) -> cst.Assign:
        target = attribute(again.response, "body")
        return cst.Assign([cst.AssignTarget(target)], self.expression(again.content))

    def _is_received_only(self, target: cst.BaseExpression) -> bool:
        return isinstance(target, cst.Name) and target.value not in self.flow.rebound

    def timed(self, limit: cst.BaseExpression, statement: Small) -> cst.With:
        call = cst.Call(attribute("asyncio", "timeout"), [cst.Arg(limit)])
        return cst.With(
            [cst.WithItem(call)],
            cst.IndentedBlock([as_line(statement)]),
            asynchronous=cst.Asynchronous(),
        )

    def returned(
        self, node: cst.Return, value: cst.BaseExpression | None, place: Place
    ) -> list[Piece]:
        end: list[Piece] = [] if place.tail else [_RETURN]
        if value is None:
            return end
        if isinstance(value, cst.IfExp) and self.has_site(value):
            return [
                cst.If(
                    self.expression(value.test),
                    as_block(as_lines(self.returned(node, value.body, place) or [_RETURN])),
                    cst.Else(
                        as_block(as_lines(self.returned(node, value.orelse, place) or [_RETURN]))
                    ),
                )
            ]
        site = self.sites.get(id(value))
        if site is not None:
            statement = cst.Expr(self.expression(value, bare=True))
            if site.limit is not None:
                return [self.timed(site.limit, statement), *end]
            return [statement, *end]
        info = self.flow.returned.get(id(value))
        if info is not None and info.is_none:
            return end
        given = self.expression(value)
        again = self.flow.rebuilt.get(id(value))
        if info is not None and info.is_received:
            return [*self.received(node, given, again), *end]
        if self.sync:
            given = cst.Await(in_parentheses(given))
        if not place.guarded:
            if info is not None and info.may_let_through:
                return [*self.guard.checked(given), *end]
            return [cst.Expr(cst.Yield(given, whitespace_after_yield=space(node))), *end]
        return self.guard.put_aside(given, info, place)

    def received(
        self, node: cst.Return, given: cst.BaseExpression, again: Rebuilt | None
    ) -> list[Piece]:
        pieces: list[Piece] = []
        if again is not None:
            if id(node.value) not in self.flow.read:
                pieces.append(self.with_body(again))
            given = cst.Name(again.response)
        if id(node) in self.held:
            pieces.append(cst.Expr(cst.Yield(given, whitespace_after_yield=space(node))))
        elif not isinstance(given, cst.Name):
            pieces.append(cst.Expr(given))
        return pieces

    # ------------------------------------------------------------------ expressions

    def has_site(self, node: cst.CSTNode) -> bool:
        return any(
            id(each) in self.sites or id(each) in self.flow.read
            for each in find(node, cst.BaseExpression)
        )

    def expression(self, node: Any, *, bare: bool = False) -> Any:
        if not self.has_site(node):
            return node
        return node.visit(Sites(self.sites, self.flow.read, node if bare else None))

    # ------------------------------------------------------------------ compound statements

    def compound(self, node: Any, place: Place) -> list[Statement]:
        if id(node) in self.limited:
            return self.limit(node, place)
        inner = place.inner()
        if isinstance(node, cst.If):
            return [self.if_(node, place)]
        if isinstance(node, (cst.Try, cst.TryStar)):
            body = place if node.orelse is None else inner
            return [
                node.with_changes(
                    body=self.suite(node.body, body),
                    handlers=[
                        each.with_changes(body=self.suite(each.body, place))
                        for each in node.handlers
                    ],
                    orelse=self.clause(node.orelse, place),
                    finalbody=self.clause(node.finalbody, inner),
                )
            ]
        if isinstance(node, cst.With):
            return [
                node.with_changes(
                    items=[self.expression(each) for each in node.items],
                    body=self.suite(node.body, place),
                )
            ]
        if isinstance(node, (cst.For, cst.While)):
            head = "iter" if isinstance(node, cst.For) else "test"
            changes: dict[str, Any] = {
                head: self.expression(getattr(node, head)),
                "body": self.suite(node.body, inner),
                "orelse": self.clause(node.orelse, place),
            }
            return [node.with_changes(**changes)]
        if isinstance(node, cst.Match):
            return [
                node.with_changes(
                    subject=self.expression(node.subject),
                    cases=[
                        each.with_changes(
                            guard=each.guard and self.expression(each.guard),
                            body=self.suite(each.body, place),
                        )
                        for each in node.cases
                    ],
                )
            ]
        return [node]

    def if_(self, node: cst.If, place: Place) -> cst.If:
        orelse = node.orelse
        if isinstance(orelse, cst.If):
            orelse = self.if_(orelse, place)
        else:
            orelse = self.clause(orelse, place)
        return node.with_changes(
            test=self.expression(node.test), body=self.suite(node.body, place), orelse=orelse
        )

    def clause(self, clause: Any, place: Place) -> Any:
        if clause is None:
            return None
        return clause.with_changes(body=self.suite(clause.body, place))

    def limit(self, node: cst.With, place: Place) -> list[Statement]:
        call: Any = node.items[0].item
        set_limit = cst.Expr(
            cst.Call(attribute(self.request, "fail_after"), [cst.Arg(call.args[0].value)])
        )
        first = as_line(set_limit).with_changes(leading_lines=node.leading_lines)
        if isinstance(node.body, cst.SimpleStatementSuite):
            block: list[Any] = list(as_block(self.suite(node.body, place)).body)
            return [first, *block]
        return [first, *self.block(node.body.body, place)]
