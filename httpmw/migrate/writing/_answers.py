# Answers out of `try` and `with` statements, which are yielded behind them.
#
# Rule 1: in the statement the answer is put into a variable, and every way on is one that was
# there: nothing is run that was not run before, and no `except` sees another exception.
# Rule 2: None in that variable stands for no answer. Where an answer may be None itself, another
# variable says whether there is one.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import libcst as cst

from httpmw.migrate.following._body_shapes import Collected
from httpmw.migrate.following._call_sites import Site
from httpmw.migrate.following._endings import can_end, statement_can_end
from httpmw.migrate.following._state import Flow, Returned
from httpmw.migrate.reading._names import own_scope

from ._build import (
    Piece,
    Small,
    Statement,
    as_block,
    as_line,
    as_lines,
    assigned,
    check,
    compared,
    split_leading,
    unused,
)

__all__ = ["Guard", "Place"]

_RETURN = cst.Return()
_BREAK = cst.Break()


@dataclass(frozen=True)
class Place:
    """
    Where a statement stands.

    Attributes:
        tail: Whether the function ends where the statement ends.
        guarded: Whether an answer has to be put into the variable.
        in_loop: Whether that is inside of a loop, which is then left with `break`.
    """

    tail: bool = False
    guarded: bool = False
    in_loop: bool = False

    def inner(self) -> Place:
        return replace(self, tail=False)


@dataclass(frozen=True)
class Ways:
    """
    How guarded statements may be left to what follows them: with an answer, without one.
    """

    answered: bool
    open: bool


class Rewriting(Protocol):
    """
    Who rewrites the statements in which there is no answer, and asks for those in which there is.
    """

    function: cst.FunctionDef
    sites: dict[int, Site]
    flow: Flow
    limited: set[int]

    def suite(self, suite: cst.BaseSuite, place: Place) -> cst.BaseSuite: ...
    def line(self, line: cst.SimpleStatementLine, place: Place) -> list[Statement]: ...
    def compound(self, node: Any, place: Place) -> list[Statement]: ...
    def clause(self, clause: Any, place: Place) -> Any: ...
    def expression(self, node: Any) -> Any: ...
    def has_site(self, node: cst.CSTNode) -> bool: ...
    def read_at_once(self, loop: cst.For, body: Collected, before: list[Statement]) -> None: ...


class Guard:
    """
    The answers of one function.
    """

    def __init__(self, rewriter: Rewriting) -> None:
        self.rewriter = rewriter
        self.answer = unused("answer", rewriter.function)
        self.flag = unused("answered", rewriter.function)
        self.begin()

    def begin(self, *, flagged: bool = False) -> None:
        """
        Begin with a statement.
        """
        self.flagged = flagged
        # Whether it is asked inside of the statement if there is an answer.
        self.tested = False
        # Whether an answer may be None, and whether the app may not have been called then.
        self.uncertain = False
        self.unchecked = False

    def put_aside(
        self, given: cst.BaseExpression, info: Returned | None, place: Place
    ) -> list[Piece]:
        """
        Put an answer into the variable, and leave the loop around.
        """
        if info is not None:
            self.uncertain |= info.may_be_none
            self.unchecked |= info.may_let_through
        pieces: list[Piece] = [assigned(self.answer, given)]
        if self.flagged:
            pieces.append(assigned(self.flag, cst.Name("True")))
        return [*pieces, _BREAK] if place.in_loop else pieces

    def checked(self, given: cst.BaseExpression) -> list[Piece]:
        """
        Yield what may be None where a bare `yield` would run the app.
        """
        if isinstance(given, cst.Name):
            return [check(given), cst.Expr(cst.Yield(given))]
        return [assigned(self.answer, given), *self.checked(cst.Name(self.answer))]

    def answers(self, node: cst.CSTNode | None) -> bool:
        """
        Tell whether something else than the received response is returned in there.
        """
        if node is None or isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            return False
        return any(
            isinstance(each, cst.Return) and self._is_answer(each.value) for each in own_scope(node)
        )

    def _is_answer(self, value: cst.BaseExpression | None) -> bool:
        if value is None or id(value) in self.rewriter.sites:
            return False
        if isinstance(value, cst.IfExp) and self.rewriter.has_site(value):
            return self._is_answer(value.body) or self._is_answer(value.orelse)
        info = self.rewriter.flow.returned.get(id(value))
        return info is None or not (info.is_received or info.is_none)

    def needed(self, node: Any) -> bool:
        if isinstance(node, cst.With):
            return id(node) not in self.rewriter.limited and self.answers(node.body)
        if isinstance(node, (cst.Try, cst.TryStar)):
            protected: list[cst.CSTNode] = [node.body]
            if node.finalbody is not None:
                protected += [*node.handlers, *([node.orelse] if node.orelse else [])]
            return any(self.answers(each) for each in protected)
        return False

    def rewritten(self, node: Any, place: Place) -> list[Statement]:
        outer = self.flagged, self.tested, self.uncertain, self.unchecked
        self.begin()
        guarded, ways = self._guarded(node, place)
        if self.uncertain and (ways.open or self.tested):
            self.begin(flagged=True)
            guarded, ways = self._guarded(node, place)
        send: list[Piece] = [cst.Expr(cst.Yield(cst.Name(self.answer)))]
        if self.unchecked:
            send = self.checked(cst.Name(self.answer))
        if not place.tail:
            send.append(_RETURN)
        result: list[Statement] = []
        if ways.open:
            test = cst.If(self._answered(), cst.IndentedBlock(as_lines(send)))
            result = [guarded, test]
        else:
            result = [guarded, *as_lines(send)]
        if ways.open or self.tested:
            flag, value = (self.flag, "False") if self.flagged else (self.answer, "None")
            unset = as_line(assigned(flag, cst.Name(value)))
            blank, comments = split_leading(guarded.leading_lines)
            result[0] = guarded.with_changes(leading_lines=comments)
            result.insert(0, unset.with_changes(leading_lines=blank))
        self.flagged, self.tested, self.uncertain, self.unchecked = outer
        return result

    def _guarded(self, node: Any, place: Place) -> tuple[Any, Ways]:
        guarded, ways = self.guarded_compound(node, Place(guarded=True), outermost=True)
        if isinstance(node, cst.With) and place.tail:
            # Whether it swallows an exception or not, nothing is left to do behind it.
            ways = self.guarded_suite(node.body, Place(guarded=True))[1]
        return guarded, ways

    def _answered(self) -> cst.BaseExpression:
        if self.flagged:
            return cst.Name(self.flag)
        return compared(cst.Name(self.answer), cst.IsNot())

    def _unanswered(self) -> cst.BaseExpression:
        if self.flagged:
            return cst.UnaryOperation(cst.Not(), cst.Name(self.flag))
        return compared(cst.Name(self.answer), cst.Is())

    def guarded_suite(self, suite: cst.BaseSuite, place: Place) -> tuple[cst.BaseSuite, Ways]:
        if isinstance(suite, cst.SimpleStatementSuite):
            ways = Ways(answered=False, open=True)
            for small in suite.body:
                if isinstance(small, (cst.Return, cst.Raise, cst.Break, cst.Continue)):
                    ways = self._ways_of(small, place)
                    break
            return self.rewriter.suite(suite, place), ways
        statements, ways = self.guarded_block(suite.body, place)
        return suite.with_changes(body=statements or [as_line(cst.Pass())]), ways

    def _ways_of(self, node: Small, place: Place) -> Ways:
        answer = isinstance(node, cst.Return) and self._is_answer(node.value)
        return Ways(answered=answer and not place.in_loop, open=False)

    def guarded_block(
        self, statements: Sequence[Any], place: Place
    ) -> tuple[list[Statement], Ways]:
        result: list[Statement] = []
        for position, statement in enumerate(statements):
            rest = statements[position + 1 :]
            if isinstance(statement, cst.SimpleStatementLine):
                result.extend(self.rewriter.line(statement, place))
                for small in statement.body:
                    if isinstance(small, (cst.Return, cst.Raise, cst.Break, cst.Continue)):
                        return result, self._ways_of(small, place)
                continue
            if id(statement) in self.rewriter.flow.dropped:
                continue
            if (body := self.rewriter.flow.collected.get(id(statement))) is not None:
                self.rewriter.read_at_once(statement, body, result)
                continue
            if not self.answers(statement):
                result.extend(self.rewriter.compound(statement, place))
                if not statement_can_end(statement):
                    return result, Ways(answered=False, open=False)
                continue
            guarded, ways = self.guarded_compound(statement, place)
            if ways.answered and place.in_loop:
                # An inner loop was left with the answer.
                self.tested = True
                leave = cst.If(self._answered(), cst.IndentedBlock([as_line(_BREAK)]))
                result += [guarded, leave]
                ways = replace(ways, answered=False)
            elif ways.answered and ways.open and rest:
                after, after_ways = self.guarded_block(rest, place)
                result.extend(self._otherwise(guarded, after))
                return result, Ways(answered=True, open=after_ways.open)
            else:
                result.append(guarded)
            if ways.answered or not ways.open:
                return result, ways
        return result, Ways(answered=False, open=True)

    def _otherwise(self, guarded: Any, after: list[Statement]) -> list[Statement]:
        """
        Let what follows a statement run only if there was no answer in it.
        """
        if not after:
            return [guarded]
        if isinstance(guarded, cst.If) and (extended := self._with_else(guarded, after)):
            return [extended]
        self.tested = True
        return [guarded, cst.If(self._unanswered(), cst.IndentedBlock(after))]

    def _with_else(self, node: cst.If, after: list[Statement]) -> cst.If | None:
        # Only where each branch ends with the answer, so that `else` is "no answer".
        if _can_end_answered(node.body, {self.answer, self.flag}):
            return None
        if node.orelse is None:
            first = after[0]
            if isinstance(first, cst.SimpleStatementLine) or hasattr(first, "leading_lines"):
                blank, comments = split_leading(first.leading_lines)
                del blank
                after = [first.with_changes(leading_lines=comments), *after[1:]]
            return node.with_changes(orelse=cst.Else(cst.IndentedBlock(after)))
        if isinstance(node.orelse, cst.If):
            orelse = self._with_else(node.orelse, after)
            return None if orelse is None else node.with_changes(orelse=orelse)
        return None

    def guarded_compound(
        self, node: Any, place: Place, *, outermost: bool = False
    ) -> tuple[Any, Ways]:
        if isinstance(node, cst.If):
            return self.guarded_if(node, place)
        if isinstance(node, (cst.Try, cst.TryStar)):
            return self.guarded_try(node, place, outermost=outermost)
        if isinstance(node, cst.With):
            body, ways = self.guarded_suite(node.body, place)
            items = [self.rewriter.expression(each) for each in node.items]
            # A context manager may swallow an exception.
            return node.with_changes(items=items, body=body), replace(ways, open=True)
        if isinstance(node, (cst.For, cst.While)):
            body, _ = self.guarded_suite(node.body, replace(place, in_loop=True))
            changes: dict[str, Any] = {"body": body}
            if node.orelse is not None:
                orelse, _ = self.guarded_suite(node.orelse.body, place)
                changes["orelse"] = node.orelse.with_changes(body=orelse)
            head = "iter" if isinstance(node, cst.For) else "test"
            changes[head] = self.rewriter.expression(getattr(node, head))
            # With `break`, the answer is found behind the loop.
            return node.with_changes(**changes), Ways(answered=True, open=True)
        cases = []
        ways = Ways(answered=False, open=True)
        for case in node.cases:
            body, one = self.guarded_suite(case.body, place)
            ways = Ways(ways.answered or one.answered, open=True)
            guard = case.guard and self.rewriter.expression(case.guard)
            cases.append(case.with_changes(body=body, guard=guard))
        return node.with_changes(subject=self.rewriter.expression(node.subject), cases=cases), ways

    def guarded_if(self, node: cst.If, place: Place) -> tuple[cst.If, Ways]:
        body, ways = self.guarded_suite(node.body, place)
        orelse: Any = node.orelse
        other = Ways(answered=False, open=True)
        if isinstance(orelse, cst.If):
            orelse, other = self.guarded_if(orelse, place)
        elif orelse is not None:
            inside, other = self.guarded_suite(orelse.body, place)
            orelse = orelse.with_changes(body=inside)
        changed = node.with_changes(
            test=self.rewriter.expression(node.test), body=body, orelse=orelse
        )
        return changed, _either(ways, other)

    def guarded_try(self, node: Any, place: Place, *, outermost: bool) -> tuple[Any, Ways]:
        free = outermost and node.finalbody is None
        body, ways = self.guarded_suite(node.body, place)
        orelse = node.orelse
        if orelse is not None:
            inside, after = self._part(orelse.body, place, free=free)
            if ways.answered:
                self.tested = True
                block = cst.IndentedBlock(as_block(inside).body)
                inside = cst.IndentedBlock([cst.If(self._unanswered(), block)])
            orelse = orelse.with_changes(body=inside)
            ways = Ways(ways.answered or after.answered, open=ways.open and after.open)
        handlers = []
        for handler in node.handlers:
            inside, after = self._part(handler.body, place, free=free)
            handlers.append(handler.with_changes(body=inside))
            ways = _either(ways, after)
        changed = node.with_changes(
            body=body,
            handlers=handlers,
            orelse=orelse,
            finalbody=self.rewriter.clause(node.finalbody, Place()),
        )
        return changed, ways

    def _part(
        self, suite: cst.BaseSuite, place: Place, *, free: bool
    ) -> tuple[cst.BaseSuite, Ways]:
        # Nothing stands around a handler of a `try` without `finally`.
        if free:
            return self.rewriter.suite(suite, Place()), Ways(answered=False, open=can_end(suite))
        return self.guarded_suite(suite, place)


def _either(one: Ways, other: Ways) -> Ways:
    return Ways(one.answered or other.answered, one.open or other.open)


def _can_end_answered(suite: cst.BaseSuite, variables: set[str]) -> bool:
    """
    Tell whether a guarded branch can be left without the answer.
    """
    block = as_block(suite)
    last = block.body[-1]
    if not isinstance(last, cst.SimpleStatementLine):
        return True
    small = last.body[-1]
    if isinstance(small, cst.Assign):
        target = small.targets[0].target
        return not (isinstance(target, cst.Name) and target.value in variables)
    return not isinstance(small, (cst.Return, cst.Raise, cst.Break, cst.Continue))
