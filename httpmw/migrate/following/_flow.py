# What a function's variables may hold, and whether the app was called, at each of its returns.
#
# An abstract run of the statements: each variable holds a set of tags, the app has been called
# or not, and what is not known stays not known. Loops are run twice, which is enough: tags only
# join, and a second turn adds whatever the first one can add.
#
# Rule: an exception may leave a statement before anything in it has been assigned; a statement
# that does nothing but call the app raises with the call made.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import libcst as cst

from httpmw.migrate.reading._names import IMPORTS, children, dotted, find, last_name, own_scope

from . import _body_shapes as shapes
from ._call_sites import Scan
from ._never_none import Certain
from ._state import (
    CHUNKS,
    EMPTY,
    NONE,
    NOT,
    OTHER,
    READ,
    RECEIVED,
    UNKNOWN,
    Flow,
    Returned,
    State,
    Tags,
    join,
)
from ._values import Values

__all__ = ["follow"]


def follow(
    function: cst.FunctionDef, request: str, call_next: str, found: Scan, certain: Certain
) -> Flow:
    """
    Run a function in the abstract.
    """
    run = _Statements(request, call_next, found, certain)
    run.renaming = found.dropped
    run.result.dropped |= found.dropped
    for node in find(function.body, cst.Nonlocal, cst.Global):
        run.shared |= {each.name.value for each in node.names}
    for node in own_scope(function.body):
        if isinstance(node, cst.FunctionDef):
            run.functions[node.name.value] = node
    start = State(frozenset({NOT}), frozenset({"no"}))
    end = run.suite(function.body, start)
    run.result.ending = frozenset() if end is None else end.calls
    _drop_unused(function, run)
    return run.result


def _drop_unused(function: cst.FunctionDef, run: _Statements) -> None:
    """
    Drop a nested function whose only use was to give the chunks of a body.
    """
    used: Counter[str] = Counter()
    stack: list[cst.CSTNode] = [function.body]
    while stack:
        node = stack.pop()
        if id(node) in run.result.dropped:
            continue
        if (again := run.result.rebuilt.get(id(node))) is not None:
            node = again.content
        if isinstance(node, cst.Name):
            used[node.value] += 1
        stack.extend(children(node))
    for name in run.giving & run.functions.keys():
        if used[name] == 1:  # where it is defined
            run.result.dropped.add(id(run.functions[name]))


class _Statements(Values):
    # ------------------------------------------------------------------ statements

    def block(self, statements: Sequence[cst.CSTNode], state: State | None) -> State | None:
        for statement in statements:
            if state is None:
                return None
            if isinstance(statement, cst.SimpleStatementLine):
                for small in statement.body:
                    if state is not None:
                        state = self.small(small, state)
            else:
                state = self.compound(statement, state)
        return state

    def suite(self, suite: cst.BaseSuite, state: State | None) -> State | None:
        if isinstance(suite, cst.SimpleStatementSuite):
            for small in suite.body:
                if state is not None:
                    state = self.small(small, state)
            return state
        return self.block(suite.body, state)

    def small(self, node: cst.CSTNode, state: State) -> State | None:
        if id(node) in self.renaming:
            return state
        if not self._only_runs_the_app(node):
            self.raising[-1].append(state.copy())
        if isinstance(node, cst.Return):
            self.returns(node, node.value, state)
            return None
        if isinstance(node, cst.Raise):
            self.raises(node, state)
            return None
        if isinstance(node, cst.Break):
            self.breaks[-1].append(state)
            return None
        if isinstance(node, cst.Continue):
            self.continues[-1].append(state)
            return None
        if isinstance(node, cst.Assign):
            tags = self.value(node.value, state)
            for target in node.targets:
                self.assign(target.target, tags, state, node)
        elif isinstance(node, cst.AnnAssign):
            if node.value is not None:
                self.assign(node.target, self.value(node.value, state), state, node)
        elif isinstance(node, cst.AugAssign):
            self.value(node.value, state)
            self.assign(node.target, frozenset({UNKNOWN}), state, node)
        elif isinstance(node, cst.Assert):
            self.value(node.test, state)
            state = self.where(node.test, state, truth=True)
        else:
            for each in children(node):
                self.value(each, state)
            if isinstance(node, IMPORTS):
                return state
        return state

    def _only_runs_the_app(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.Break, cst.Continue, cst.Pass)):
            return True
        value = getattr(node, "value", None)
        if isinstance(node, cst.Assign) and not all(
            isinstance(each.target, cst.Name) for each in node.targets
        ):
            return False
        if isinstance(node, cst.AnnAssign) and not isinstance(node.target, cst.Name):
            return False
        if isinstance(node, (cst.Assign, cst.AnnAssign, cst.Expr, cst.Return)):
            if isinstance(value, (cst.Name, cst.BaseNumber, cst.SimpleString)):
                return not isinstance(node, cst.Expr)
            site = self.sites.get(id(value))
            return site is not None and site.kind == "call"
        return False

    def compound(self, node: cst.CSTNode, state: State) -> State | None:
        if isinstance(node, cst.If):
            return self.if_(node, state)
        if isinstance(node, (cst.Try, cst.TryStar)):
            return self.try_(node, state)
        if isinstance(node, cst.With):
            return self.with_(node, state)
        if isinstance(node, (cst.For, cst.While)):
            return self.loop(node, state)
        if isinstance(node, cst.Match):
            return self.match(node, state)
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            self.raising[-1].append(state.copy())
            self.bind(node.name.value, frozenset({OTHER}), state)
        return state

    def if_(self, node: cst.If, state: State) -> State | None:
        self.raising[-1].append(state.copy())
        self.value(node.test, state)
        yes = self.suite(node.body, self.where(node.test, state.copy(), truth=True))
        no: State | None = self.where(node.test, state.copy(), truth=False)
        if isinstance(node.orelse, cst.If):
            no = self.if_(node.orelse, no) if no is not None else None
        elif node.orelse is not None:
            no = self.suite(node.orelse.body, no)
        return join((yes, no))

    def try_(self, node: cst.Try | cst.TryStar, state: State) -> State | None:
        if node.finalbody is not None:
            self._returns_in_finally(node)
        self.around += 1
        self.raising.append([])
        self.handlers += bool(node.handlers)
        body = self.suite(node.body, state.copy())
        self.handlers -= bool(node.handlers)
        raised = join(self.raising.pop())
        if raised is not None:
            self.raising[-1].append(raised.copy())
        if node.finalbody is not None:
            self.raising.append([])
        if node.orelse is not None:
            body = self.suite(node.orelse.body, body)
        ends = [body]
        for handler in node.handlers:
            if raised is None:
                break
            caught = raised.copy()
            if handler.name is not None:
                self.bind(dotted(handler.name.name), frozenset({OTHER}), caught)
            ends.append(self.suite(handler.body, caught))
        end = join(ends)
        self.around -= 1
        if node.finalbody is not None:
            abrupt = self.raising.pop()
            every = join([end, raised, *abrupt])
            if every is not None:
                self.suite(node.finalbody.body, every)
                self.raising[-1].append(every)
            end = self.suite(node.finalbody.body, end)
        return end

    def _returns_in_finally(self, node: cst.Try | cst.TryStar) -> None:
        # Inside of another `try` or `with` there is no place to yield that answer at.
        assert node.finalbody is not None
        if self.around:
            for each in own_scope(node.finalbody):
                if isinstance(each, cst.Return) and each.value is not None:
                    self.say("HM109", each, what="in a `finally` inside of another statement")

    def with_(self, node: cst.With, state: State) -> State | None:
        self.raising[-1].append(state.copy())
        swallows = False
        for item in node.items:
            self.value(item.item, state)
            if isinstance(item.item, cst.Call):
                swallows |= last_name(item.item.func) in {"suppress", "move_on_after"}
            if item.asname is not None:
                self.assign(item.asname.name, frozenset({OTHER}), state, node)
        self.around += 1
        if not swallows:
            state_or_none = self.suite(node.body, state)
            self.around -= 1
            return state_or_none
        self.raising.append([])
        body = self.suite(node.body, state.copy())
        self.around -= 1
        raised = join(self.raising.pop())
        if raised is not None:
            self.raising[-1].append(raised.copy())
        return join((body, raised))

    def loop(self, node: cst.For | cst.While, state: State) -> State | None:
        self.raising[-1].append(state.copy())
        if isinstance(node, cst.For):
            self.value(node.iter, state)
            body = shapes.collected(node, lambda name: state.get(name) == {RECEIVED})
            if body is not None:
                return self.collect(node, body, state)
        before = {id(site.node) for site in self.sites.values()} & self.result.reached.keys()
        out: list[State | None] = []
        turn: State | None = state
        first: dict[int, Tags] = {}
        for again in (False, True):
            if turn is None:
                break
            self.breaks.append([])
            self.continues.append([])
            end = self.turn(node, turn.copy())
            breaks, continues = self.breaks.pop(), self.continues.pop()
            out.extend(breaks)
            if again:
                self._called_in_each_turn(first)
            else:
                first = {k: v for k, v in self.result.reached.items() if k not in before}
            turn = join((turn, end, *continues))
        endless = isinstance(node, cst.While) and dotted(node.test) == "True"
        exhausted = None if endless else turn
        if node.orelse is not None:
            exhausted = self.suite(node.orelse.body, exhausted)
        return join((*out, exhausted))

    def collect(self, node: cst.For, body: shapes.Collected, state: State) -> State:
        tags = frozenset({CHUNKS if body.in_chunks else READ})
        if state.get(body.name) != {EMPTY}:
            tags = frozenset({UNKNOWN})
        elif not body.in_chunks and body.alone:
            self.result.collected[id(node)] = body
        self.bind(dotted(node.target), frozenset({UNKNOWN}), state)
        if not body.alone:
            end = self.suite(node.body, state.copy())
            state = join((state, end)) or state
        self.bind(body.name, tags, state)
        return state

    def turn(self, node: cst.For | cst.While, state: State) -> State | None:
        if isinstance(node, cst.For):
            self.assign(node.target, frozenset({UNKNOWN}), state, node)
            return self.suite(node.body, state)
        self.value(node.test, state)
        return self.suite(node.body, self.where(node.test, state, truth=True))

    def _called_in_each_turn(self, first: dict[int, Tags]) -> None:
        for site in self.sites.values():
            reached = self.result.reached.get(id(site.node))
            before = first.get(id(site.node))
            if reached is not None and before is not None and reached - before:
                self.say("HM103", site.node, name=self.call_next)

    def match(self, node: cst.Match, state: State) -> State | None:
        self.raising[-1].append(state.copy())
        self.value(node.subject, state)
        ends: list[State | None] = []
        rest: State | None = state
        for case in node.cases:
            inside = state.copy()
            for capture in find(case.pattern, cst.Name):
                self.bind(capture.value, frozenset({UNKNOWN}), inside)
            if case.guard is not None:
                self.value(case.guard, inside)
            elif isinstance(case.pattern, cst.MatchAs) and case.pattern.pattern is None:
                rest = None
            ends.append(self.suite(case.body, inside))
        return join((*ends, rest))

    # ------------------------------------------------------------------ ways out

    def returns(self, node: cst.Return, value: cst.BaseExpression | None, state: State) -> None:
        if isinstance(value, cst.IfExp) and self.has_site(value):
            self.value(value.test, state)
            self.returns(node, value.body, state.copy())
            self.returns(node, value.orelse, state.copy())
            return
        calls = state.calls
        again = None
        if value is not None:
            names = self.certain.module.names
            again = shapes.rebuilt(
                value, lambda name: state.get(name) == {RECEIVED}, names, self.chunks
            )
        if value is None:
            tags = frozenset({NONE})
        elif again is not None and NONE not in self.value(again.content, state):
            tags = self.again(value, again, state)
        else:
            tags = self.value(value, state)
        returned = self.result.returned.setdefault(id(node if value is None else value), Returned())
        returned.tags |= tags
        # What may be None is asked of the state after the value has been made.
        returned.calls |= state.calls if value is not None else calls
        if value is not None and not self._only_runs_the_app(node):
            self.raising[-1].append(state.copy())

    def again(self, value: cst.BaseExpression, again: shapes.Rebuilt, state: State) -> Tags:
        what = "the received response is sent with its body read or replaced"
        self.say("HM208", value, what=what)
        self.result.rebuilt[id(value)] = again
        if self.is_read(again.content, state):
            self.result.read[id(value)] = again.response
        return frozenset({RECEIVED})

    def has_site(self, node: cst.CSTNode) -> bool:
        return any(id(each) in self.sites for each in find(node, cst.BaseExpression))

    def raises(self, node: cst.Raise, state: State) -> None:
        if node.exc is not None:
            self.value(node.exc, state)
            raised = node.exc.func if isinstance(node.exc, cst.Call) else node.exc
            if last_name(raised) == "HTTPException" and not self.handlers:
                self.say("HM204", node)
        self.raising[-1].append(state.copy())
