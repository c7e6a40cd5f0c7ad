# One function, rewritten: `call_next` becomes `yield`, and what was returned is yielded.
#
# Rule 1: a bare `return` sends the received response as edited, after every `finally` and every
# `__exit__`. It is what `return response` was, and so it is written wherever the received
# response is returned.
# Rule 2: `yield other` sends at once and comes back when everything is over. It is written only
# where no `finally`, no `except` and no context manager of the function stands around it. In
# there the answer is put into a variable, the statement is left on the way it would have been
# left, and the variable is yielded behind it. So each piece of code keeps its moment, and no
# `except` sees an exception that it did not see before.
# Rule 3: nodes are told apart by identity; what nothing is to be done about is not built anew.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import libcst as cst

from ._body_shapes import Collected, Rebuilt
from ._flow import Flow
from ._names import find, own_scope
from ._scan import Scan

__all__ = ["Rewriter", "Spelling", "without"]

Statement: TypeAlias = cst.SimpleStatementLine | cst.BaseCompoundStatement
Small: TypeAlias = cst.BaseSmallStatement
Piece: TypeAlias = cst.BaseSmallStatement | cst.BaseCompoundStatement

_RETURN = cst.Return()
_BREAK = cst.Break()


@dataclass(frozen=True)
class Spelling:
    """
    How the names of httpmw are written in one module.
    """

    prefix: str = ""

    def __call__(self, name: str) -> cst.BaseExpression:
        return cst.parse_expression(self.prefix + name)


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


class Rewriter:
    def __init__(
        self, function: cst.FunctionDef, request: str, found: Scan, flow: Flow, limited: set[int]
    ) -> None:
        self.function = function
        self.request = request
        self.sites = found.sites
        self.flow = flow
        # The `with fail_after(...)` statements that become a call.
        self.limited = limited
        self.sync = function.asynchronous is None
        self.answer = _unused("answer", function)
        self.tested = False
        # Blank lines to put above a statement.
        self.blank: dict[int, list[Any]] = {}

    # ------------------------------------------------------------------ the function

    def body(self) -> cst.BaseSuite:
        suite = self.suite(self.function.body, Place(tail=True))
        if not any(isinstance(each, cst.Yield) for each in own_scope(suite)):
            # It answers by raising only, or not at all: the yield makes it a generator, and is
            # never come to, as it would let the request through.
            block = _as_block(suite)
            *_, last = block.body
            over = isinstance(last, cst.SimpleStatementLine) and isinstance(
                last.body[-1], cst.Raise | cst.Return
            )
            ends = [] if over else [_line(_RETURN)]
            ending = _line(cst.Expr(cst.Yield()))
            suite = block.with_changes(body=[*block.body, *ends, ending])
        return suite

    # ------------------------------------------------------------------ suites

    def suite(self, suite: cst.BaseSuite, place: Place) -> cst.BaseSuite:
        if isinstance(suite, cst.SimpleStatementSuite):
            pieces = [piece for small in suite.body for piece in self.pieces(small, place)]
            if len(pieces) == len(suite.body) and all(isinstance(p, Small) for p in pieces):
                return suite.with_changes(body=_joined(pieces, suite.body))
            return _as_block(suite, _lines(pieces or [cst.Pass()]))
        statements = self.block(suite.body, place)
        return suite.with_changes(body=statements or [self._nothing(suite)])

    def _nothing(self, suite: cst.BaseSuite) -> Statement:
        # What is left of a suite that only returned the response, or only did what has no effect.
        last = next((each for each in reversed(suite.body)), None)
        returned = isinstance(last, cst.SimpleStatementLine) and isinstance(
            last.body[-1], cst.Return
        )
        return _line(_RETURN if returned else cst.Pass())

    def block(self, statements: Sequence[Any], place: Place) -> list[Statement]:
        result: list[Statement] = []
        for position, statement in enumerate(statements):
            last = position == len(statements) - 1
            here = place if last else place.inner()
            if isinstance(statement, cst.SimpleStatementLine):
                lines = self.line(statement, here)
                if not lines and not last and not statements[position + 1].leading_lines:
                    # The blank line above what is dropped is for what follows.
                    blank = _split_leading(statement.leading_lines)[0]
                    self.blank[id(statements[position + 1])] = blank
                result.extend(self._spaced(statement, lines))
            elif (body := self.flow.collected.get(id(statement))) is not None:
                self.read_at_once(statement, body, result)
            elif self.needs_guard(statement):
                result.extend(self.guard(statement, here))
            else:
                result.extend(self.compound(statement, here))
        return result

    def read_at_once(self, loop: cst.For, body: Collected, before: list[Statement]) -> None:
        # The `name = b""` right before the loop has no use any more.
        leading = loop.leading_lines
        last = before[-1] if before else None
        if isinstance(last, cst.SimpleStatementLine) and _is_empty(last, body.name):
            leading = [*last.leading_lines, *leading]
            before.pop()
        read = cst.Await(cst.Call(_attribute(body.response, "read")))
        assign = cst.Assign([cst.AssignTarget(cst.Name(body.name))], read)
        before.append(_line(assign).with_changes(leading_lines=leading))

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
            if _has_comment(line) and isinstance(line.body[-1], cst.Return):
                pieces = [_RETURN]
            else:
                return []
        if len(pieces) == len(line.body) and all(isinstance(p, Small) for p in pieces):
            return [line.with_changes(body=_joined(pieces, line.body))]
        if len(line.body) > 1 and all(isinstance(p, Small) for p in pieces):
            return [line.with_changes(body=_joined(pieces, ()))]
        return _lines(pieces, line)

    # ------------------------------------------------------------------ small statements

    def pieces(self, node: Small, place: Place) -> list[Piece]:
        if id(node) in self.flow.dropped:
            return []
        if isinstance(node, cst.Return):
            return self.returned(node, node.value, place)
        if isinstance(node, cst.Assign) and id(node) in self.flow.replaced:
            replace_body = _attribute(self.request, "replace_body")
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
        target = _attribute(again.response, "body")
        return cst.Assign([cst.AssignTarget(target)], self.expression(again.content))

    def _is_received_only(self, target: cst.BaseExpression) -> bool:
        return isinstance(target, cst.Name) and target.value not in self.flow.rebound

    def timed(self, limit: cst.BaseExpression, statement: Small) -> cst.With:
        call = cst.Call(_attribute("asyncio", "timeout"), [cst.Arg(limit)])
        return cst.With(
            [cst.WithItem(call)],
            cst.IndentedBlock([_line(statement)]),
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
                    _as_block(_lines(self.returned(node, value.body, place) or [_RETURN])),
                    cst.Else(
                        _as_block(_lines(self.returned(node, value.orelse, place) or [_RETURN]))
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
        if info is not None and info.is_received and again is not None:
            return end if id(value) in self.flow.read else [self.with_body(again), *end]
        if info is not None and info.is_received:
            return end if isinstance(value, cst.Name) else [cst.Expr(given), *end]
        if self.sync:
            given = cst.Await(_in_parentheses(given))
        if not place.guarded:
            return [cst.Expr(cst.Yield(given, whitespace_after_yield=_space(node))), *end]
        answer = cst.Assign([cst.AssignTarget(cst.Name(self.answer))], given)
        return [answer, _BREAK] if place.in_loop else [answer]

    # ------------------------------------------------------------------ expressions

    def has_site(self, node: cst.CSTNode) -> bool:
        return any(
            id(each) in self.sites or id(each) in self.flow.read
            for each in find(node, cst.BaseExpression)
        )

    def expression(self, node: Any, *, bare: bool = False) -> Any:
        if not self.has_site(node):
            return node
        return node.visit(_Sites(self.sites, self.flow.read, node if bare else None))

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
        if isinstance(node, cst.For):
            return [
                node.with_changes(
                    iter=self.expression(node.iter),
                    body=self.suite(node.body, inner),
                    orelse=self.clause(node.orelse, place),
                )
            ]
        if isinstance(node, cst.While):
            return [
                node.with_changes(
                    test=self.expression(node.test),
                    body=self.suite(node.body, inner),
                    orelse=self.clause(node.orelse, place),
                )
            ]
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
            cst.Call(_attribute(self.request, "fail_after"), [cst.Arg(call.args[0].value)])
        )
        first = _line(set_limit).with_changes(leading_lines=node.leading_lines)
        if isinstance(node.body, cst.SimpleStatementSuite):
            block: list[Any] = list(_as_block(self.suite(node.body, place)).body)
            return [first, *block]
        return [first, *self.block(node.body.body, place)]

    # ------------------------------------------------------------------ answers behind a statement

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
        if value is None or id(value) in self.sites:
            return False
        if isinstance(value, cst.IfExp) and self.has_site(value):
            return self._is_answer(value.body) or self._is_answer(value.orelse)
        info = self.flow.returned.get(id(value))
        return info is None or not (info.is_received or info.is_none)

    def needs_guard(self, node: Any) -> bool:
        if isinstance(node, cst.With):
            return id(node) not in self.limited and self.answers(node.body)
        if isinstance(node, (cst.Try, cst.TryStar)):
            protected: list[cst.CSTNode] = [node.body]
            if node.finalbody is not None:
                protected += [*node.handlers, *([node.orelse] if node.orelse else [])]
            return any(self.answers(each) for each in protected)
        return False

    def guard(self, node: Any, place: Place) -> list[Statement]:
        tested, self.tested = self.tested, False
        guarded, ways = self.guarded_compound(node, Place(guarded=True), outermost=True)
        if isinstance(node, cst.With) and place.tail:
            # Whether it swallows an exception or not, nothing is left to do behind it.
            ways = replace(ways, open=self._body_ends(node))
        send: list[Piece] = [cst.Expr(cst.Yield(cst.Name(self.answer)))]
        if not place.tail:
            send.append(_RETURN)
        result: list[Statement] = []
        if ways.open:
            test = cst.If(self._answered(no=False), cst.IndentedBlock(_lines(send)))
            result = [guarded, test]
        else:
            result = [guarded, *_lines(send)]
        if ways.open or self.tested:
            unset = _line(cst.Assign([cst.AssignTarget(cst.Name(self.answer))], cst.Name("None")))
            blank, comments = _split_leading(guarded.leading_lines)
            result[0] = guarded.with_changes(leading_lines=comments)
            result.insert(0, unset.with_changes(leading_lines=blank))
        self.tested = tested
        return result

    def _body_ends(self, node: cst.With) -> bool:
        return self.guarded_suite(node.body, Place(guarded=True))[1].open

    def _answered(self, *, no: bool) -> cst.BaseExpression:
        operator = cst.Is() if no else cst.IsNot()
        target = cst.ComparisonTarget(operator, cst.Name("None"))
        return cst.Comparison(cst.Name(self.answer), [target])

    def guarded_suite(self, suite: cst.BaseSuite, place: Place) -> tuple[cst.BaseSuite, Ways]:
        if isinstance(suite, cst.SimpleStatementSuite):
            ways = Ways(answered=False, open=True)
            for small in suite.body:
                if isinstance(small, (cst.Return, cst.Raise, cst.Break, cst.Continue)):
                    ways = self._ways_of(small, place)
                    break
            return self.suite(suite, place), ways
        statements, ways = self.guarded_block(suite.body, place)
        return suite.with_changes(body=statements or [_line(cst.Pass())]), ways

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
                result.extend(self.line(statement, place))
                for small in statement.body:
                    if isinstance(small, (cst.Return, cst.Raise, cst.Break, cst.Continue)):
                        return result, self._ways_of(small, place)
                continue
            if (body := self.flow.collected.get(id(statement))) is not None:
                self.read_at_once(statement, body, result)
                continue
            if not self.answers(statement):
                result.extend(self.compound(statement, place))
                if not _can_end(statement):
                    return result, Ways(answered=False, open=False)
                continue
            guarded, ways = self.guarded_compound(statement, place)
            if ways.answered and place.in_loop:
                # An inner loop was left with the answer.
                self.tested = True
                leave = cst.If(self._answered(no=False), cst.IndentedBlock([_line(_BREAK)]))
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
        return [guarded, cst.If(self._answered(no=True), cst.IndentedBlock(after))]

    def _with_else(self, node: cst.If, after: list[Statement]) -> cst.If | None:
        # Only where each branch ends with the answer, so that `else` is "no answer".
        if _can_end_answered(node.body, self.answer):
            return None
        if node.orelse is None:
            first = after[0]
            if isinstance(first, cst.SimpleStatementLine) or hasattr(first, "leading_lines"):
                blank, comments = _split_leading(first.leading_lines)
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
            items = [self.expression(each) for each in node.items]
            # A context manager may swallow an exception.
            return node.with_changes(items=items, body=body), replace(ways, open=True)
        if isinstance(node, (cst.For, cst.While)):
            body, _ = self.guarded_suite(node.body, replace(place, in_loop=True))
            changes: dict[str, Any] = {"body": body}
            if node.orelse is not None:
                orelse, _ = self.guarded_suite(node.orelse.body, place)
                changes["orelse"] = node.orelse.with_changes(body=orelse)
            head = "iter" if isinstance(node, cst.For) else "test"
            changes[head] = self.expression(getattr(node, head))
            # With `break`, the answer is found behind the loop.
            return node.with_changes(**changes), Ways(answered=True, open=True)
        cases = []
        ways = Ways(answered=False, open=True)
        for case in node.cases:
            body, one = self.guarded_suite(case.body, place)
            ways = Ways(ways.answered or one.answered, open=True)
            guard = case.guard and self.expression(case.guard)
            cases.append(case.with_changes(body=body, guard=guard))
        return node.with_changes(subject=self.expression(node.subject), cases=cases), ways

    def guarded_if(self, node: cst.If, place: Place) -> tuple[cst.If, Ways]:
        body, ways = self.guarded_suite(node.body, place)
        orelse: Any = node.orelse
        other = Ways(answered=False, open=True)
        if isinstance(orelse, cst.If):
            orelse, other = self.guarded_if(orelse, place)
        elif orelse is not None:
            inside, other = self.guarded_suite(orelse.body, place)
            orelse = orelse.with_changes(body=inside)
        changed = node.with_changes(test=self.expression(node.test), body=body, orelse=orelse)
        return changed, _either(ways, other)

    def guarded_try(self, node: Any, place: Place, *, outermost: bool) -> tuple[Any, Ways]:
        free = outermost and node.finalbody is None
        body, ways = self.guarded_suite(node.body, place)
        orelse = node.orelse
        if orelse is not None:
            inside, after = self._part(orelse.body, place, free=free)
            if ways.answered:
                self.tested = True
                block = cst.IndentedBlock(_as_block(inside).body)
                inside = cst.IndentedBlock([cst.If(self._answered(no=True), block)])
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
            finalbody=self.clause(node.finalbody, Place()),
        )
        return changed, ways

    def _part(
        self, suite: cst.BaseSuite, place: Place, *, free: bool
    ) -> tuple[cst.BaseSuite, Ways]:
        # Nothing stands around a handler of a `try` without `finally`.
        if free:
            return self.suite(suite, Place()), Ways(answered=False, open=_suite_can_end(suite))
        return self.guarded_suite(suite, place)


class _Sites(cst.CSTTransformer):
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
            read = cst.Call(_attribute(response, "read"))
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


def without(items: Sequence[Any], position: int) -> list[Any]:
    """
    Take an argument or a parameter out, so that the layout of the list stays.
    """
    rest = [*items[:position], *items[position + 1 :]]
    if position == len(items) - 1 and rest:
        # The new last one ends as the old last one did.
        last: dict[str, Any] = {"comma": items[position].comma}
        for name in ("whitespace_after_arg", "whitespace_after_param"):
            if hasattr(items[position], name):
                last[name] = getattr(items[position], name)
        rest[-1] = rest[-1].with_changes(**last)
    return rest


# ---------------------------------------------------------------------- small builders


def _attribute(value: str, name: str) -> cst.Attribute:
    return cst.Attribute(cst.Name(value), cst.Name(name))


def _line(*small: Small) -> cst.SimpleStatementLine:
    return cst.SimpleStatementLine(list(small))


def _lines(pieces: Sequence[Piece], line: cst.SimpleStatementLine | None = None) -> list[Statement]:
    """
    Put each piece on a line of its own; the first one keeps the comments of *line*.
    """
    result: list[Any] = []
    for piece in pieces:
        if isinstance(piece, Small):
            result.append(_line(piece.with_changes(semicolon=cst.MaybeSentinel.DEFAULT)))
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


def _joined(pieces: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    if like:
        return [p.with_changes(semicolon=o.semicolon) for p, o in zip(pieces, like, strict=True)]
    return [p.with_changes(semicolon=cst.MaybeSentinel.DEFAULT) for p in pieces]


def _as_block(suite: Any, statements: Sequence[Statement] | None = None) -> cst.IndentedBlock:
    if isinstance(suite, list):
        return cst.IndentedBlock(suite)
    if isinstance(suite, cst.IndentedBlock):
        return suite
    body = _lines(suite.body) if statements is None else list(statements)
    return cst.IndentedBlock(body, header=suite.trailing_whitespace)


def _is_empty(line: cst.SimpleStatementLine, name: str) -> bool:
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


def _in_parentheses(node: Any) -> Any:
    if node.lpar or isinstance(node, (cst.Name, cst.Attribute, cst.Call, cst.Subscript)):
        return node
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _space(node: cst.Return) -> Any:
    space = node.whitespace_after_return
    return space if isinstance(space, cst.BaseParenthesizableWhitespace) else _MAYBE


_MAYBE = cst.MaybeSentinel.DEFAULT


def _has_comment(line: cst.SimpleStatementLine) -> bool:
    return line.trailing_whitespace.comment is not None or any(
        each.comment is not None for each in line.leading_lines
    )


def _split_leading(lines: Sequence[cst.EmptyLine]) -> tuple[list[Any], list[Any]]:
    position = next((i for i, each in enumerate(lines) if each.comment is not None), len(lines))
    return list(lines[:position]), list(lines[position:])


def _unused(name: str, function: cst.FunctionDef) -> str:
    used = {each.value for each in find(function, cst.Name)}
    while name in used:
        name += "_"
    return name


def _either(one: Ways, other: Ways) -> Ways:
    return Ways(one.answered or other.answered, one.open or other.open)


def _can_end_answered(suite: cst.BaseSuite, answer: str) -> bool:
    """
    Tell whether a guarded branch can be left without the answer.
    """
    block = _as_block(suite)
    last = block.body[-1]
    if not isinstance(last, cst.SimpleStatementLine):
        return True
    small = last.body[-1]
    if isinstance(small, cst.Assign):
        target = small.targets[0].target
        return not (isinstance(target, cst.Name) and target.value == answer)
    return not isinstance(small, (cst.Return, cst.Raise, cst.Break, cst.Continue))


def _suite_can_end(suite: cst.BaseSuite) -> bool:
    return all(_can_end(each) for each in suite.body)


def _can_end(node: Any) -> bool:
    """
    Tell whether what follows a statement may be reached, as far as its shape says so.
    """
    if isinstance(node, cst.SimpleStatementLine):
        return all(_can_end(each) for each in node.body)
    if isinstance(node, (cst.Return, cst.Raise, cst.Break, cst.Continue)):
        return False
    if isinstance(node, cst.If):
        if node.orelse is None:
            return True
        other = node.orelse
        return _suite_can_end(node.body) or (
            _can_end(other) if isinstance(other, cst.If) else _suite_can_end(other.body)
        )
    if isinstance(node, (cst.Try, cst.TryStar)):
        if node.finalbody is not None and not _suite_can_end(node.finalbody.body):
            return False
        ends = _suite_can_end(node.body)
        if node.orelse is not None:
            ends = ends and _suite_can_end(node.orelse.body)
        return ends or any(_suite_can_end(each.body) for each in node.handlers)
    return True
