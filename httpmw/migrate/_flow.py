# What a function's variables may hold, and whether the app was called, at each of its returns.
#
# An abstract run of the statements: each variable holds a set of tags, the app has been called
# or not, and what is not known stays not known. Loops are run twice, which is enough: tags only
# join, and a second turn adds whatever the first one can add.
#
# Rule 1: `RECEIVED` stands for the response that this function was given; what may be something
# else has another tag beside it, so that a bare `return` is only written where nothing else can
# be meant.
# Rule 2: an exception may leave a statement before anything in it has been assigned; a statement
# that does nothing but call the app raises with the call made.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import libcst as cst

from . import _body_shapes as shapes
from ._names import Names, children, dotted, find, is_none, last_name, own_scope
from ._scan import Problem, Scan, Site, snippet

__all__ = ["Flow", "Returned", "follow"]

RECEIVED: Final = "received"
OTHER: Final = "other"  # not None
UNKNOWN: Final = "unknown"  # may be None
NONE: Final = "none"
PLAIN: Final = "plain"  # cannot be a response: a tuple, a number, a str
BODY: Final = "body"  # what was read of the request
READ: Final = "read"  # the whole body of the received response
CHUNKS: Final = "chunks"  # the same, as a list
EMPTY: Final = "empty"  # b"" or []

NO_RESPONSE: Final = frozenset({PLAIN, BODY, READ, CHUNKS, EMPTY})

# Whether the app was called.
NOT: Final = "not called"
CALLED: Final = "called"
FAILED: Final = "it raised"

Tags: TypeAlias = frozenset[str]
_READ = {"body", "json", "form"}
_LITERALS = (
    cst.SimpleString,
    cst.FormattedString,
    cst.ConcatenatedString,
    cst.Integer,
    cst.Float,
    cst.Tuple,
    cst.List,
    cst.Dict,
    cst.Set,
    cst.ListComp,
    cst.DictComp,
    cst.SetComp,
    cst.Comparison,
)


@dataclass
class State:
    calls: Tags
    # Whether the request body has been read: "yes", "no".
    body: Tags
    names: dict[str, Tags] = field(default_factory=dict)

    def copy(self) -> State:
        return State(self.calls, self.body, dict(self.names))

    def get(self, name: str) -> Tags:
        return self.names.get(name, frozenset({UNKNOWN}))


def join(states: Iterable[State | None]) -> State | None:
    result: State | None = None
    for state in states:
        if state is None:
            continue
        if result is None:
            result = state.copy()
            continue
        result.calls |= state.calls
        result.body |= state.body
        for name in result.names.keys() | state.names.keys():
            # What is bound on one way only is what it is there: on the other it raises.
            result.names[name] = result.names.get(name, frozenset()) | state.names.get(
                name, frozenset()
            )
    return result


@dataclass
class Returned:
    """
    What one return gives: every tag and every state of the calls with which it was reached.
    """

    tags: Tags = frozenset()
    calls: Tags = frozenset()

    @property
    def is_received(self) -> bool:
        return self.tags == {RECEIVED}

    @property
    def is_none(self) -> bool:
        return self.tags == {NONE}


@dataclass
class Flow:
    """
    What was found out about one function.

    Attributes:
        returned: By the id of the returned expression, or of the return where there is none.
        reached: The calls that may have been made when a site is reached, by the site's id.
        ending: The calls that may have been made where the function ends without a return.
        problems: What speaks against a conversion, and the notices.
        guarded: The ids of the sites that stand in a `try` with handlers.
        dropped: The ids of statements without an effect.
        rebound: The names that hold something else than the received response at some time.
    """

    returned: dict[int, Returned] = field(default_factory=dict)
    reached: dict[int, Tags] = field(default_factory=dict)
    ending: Tags = frozenset()
    problems: list[Problem] = field(default_factory=list)
    guarded: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    rebound: set[str] = field(default_factory=set)
    # The ids of the statements that replace the request body.
    replaced: set[int] = field(default_factory=set)
    # What reads the body of the response, and what sends another one, by the id of the node.
    collected: dict[int, shapes.Collected] = field(default_factory=dict)
    read: dict[int, str] = field(default_factory=dict)
    rebuilt: dict[int, shapes.Rebuilt] = field(default_factory=dict)
    received: set[str] = field(default_factory=set)


def follow(
    function: cst.FunctionDef, request: str, call_next: str, found: Scan, names: Names
) -> Flow:
    """
    Run a function in the abstract.
    """
    run = _Run(request, call_next, found, names)
    for node in find(function.body, cst.Nonlocal, cst.Global):
        run.shared |= {each.name.value for each in node.names}
    start = State(frozenset({NOT}), frozenset({"no"}))
    end = run.block(function.body.body, start)
    run.result.ending = frozenset() if end is None else end.calls
    return run.result


class _Run:
    def __init__(self, request: str, call_next: str, found: Scan, names: Names) -> None:
        self.request = request
        self.call_next = call_next
        self.sites = found.sites
        self.names = names
        self.result = Flow()
        # Names that nested functions assign to.
        self.shared: set[str] = set()
        # The states in which something may raise, by the `try` statements around.
        self.raising: list[list[State]] = [[]]
        self.breaks: list[list[State]] = []
        self.continues: list[list[State]] = []
        # How many `try` with handlers, and how many `try` and `with` at all, stand around.
        self.handlers = 0
        self.around = 0
        self.said: set[tuple[str, int]] = set()

    def say(self, code: str, node: cst.CSTNode, **details: str) -> None:
        if (code, id(node)) not in self.said:
            self.said.add((code, id(node)))
            self.result.problems.append(Problem(code, node, details))

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
            if isinstance(node, (cst.Import, cst.ImportFrom)):
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
        elif not body.in_chunks:
            self.result.collected[id(node)] = body
        self.bind(dotted(node.target), frozenset({UNKNOWN}), state)
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
            again = shapes.rebuilt(value, lambda name: state.get(name) == {RECEIVED})
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

    # ------------------------------------------------------------------ expressions

    def value(self, node: cst.CSTNode, state: State) -> Tags:
        """
        Evaluate an expression: what it may be, and what it does to the state.
        """
        site = self.sites.get(id(node))
        if site is not None:
            return self.run_app(site, state)
        if isinstance(node, cst.Name):
            if node.value == "_StreamingResponse":
                self.say("HM118", node, what=node.value)
            return frozenset({NONE}) if node.value == "None" else state.get(node.value)
        if isinstance(node, cst.NamedExpr):
            tags = self.value(node.value, state)
            self.assign(node.target, tags, state, node)
            return tags
        if isinstance(node, cst.IfExp):
            self.value(node.test, state)
            yes, no = state.copy(), state.copy()
            tags = self.value(node.body, yes) | self.value(node.orelse, no)
            self.become(state, join((yes, no)))
            return tags
        if isinstance(node, cst.BooleanOperation):
            left = self.value(node.left, state)
            right = state.copy()
            tags = self.value(node.right, right)
            self.become(state, join((state, right)))
            if isinstance(node.operator, cst.Or):
                left = left - {NONE}
            return left | tags
        body = self.body_value(node, state)
        if body:
            return frozenset({body})
        if isinstance(node, (cst.Lambda, cst.ListComp, cst.SetComp, cst.DictComp)):
            return frozenset({OTHER if isinstance(node, cst.Lambda) else PLAIN})
        if isinstance(node, cst.Attribute):
            self.look(node, state)
        if isinstance(node, cst.Await) and isinstance(node.expression, cst.Call):
            return self.awaited(node.expression, state)
        for each in children(node):
            self.value(each, state)
        if isinstance(node, _LITERALS):
            return frozenset({PLAIN})
        if isinstance(node, cst.Call):
            self.called(node, state)
            last = last_name(node.func)
            if last.endswith("Response") and last[:1].isupper():
                return frozenset({OTHER})
        return frozenset({UNKNOWN})

    def body_value(self, node: cst.CSTNode, state: State) -> str:
        """
        Tell whether it is the body of the received response, or a place to collect it in.
        """

        def is_received(name: str) -> bool:
            return state.get(name) == {RECEIVED}

        if isinstance(node, cst.SimpleString) and node.evaluated_value == b"":
            return EMPTY
        if isinstance(node, cst.List) and not node.elements:
            return EMPTY
        if shapes.chunks_of(node, is_received) and isinstance(node, cst.ListComp):
            return CHUNKS
        inside = shapes.joined_chunks(node)
        if inside is None:
            return ""
        response = shapes.chunks_of(inside, is_received)
        if response:
            self.result.read[id(node)] = response
            return READ
        if isinstance(inside, cst.Name) and state.get(inside.value) == {CHUNKS}:
            return READ
        return ""

    def become(self, state: State, other: State | None) -> None:
        if other is not None:
            state.calls, state.body, state.names = other.calls, other.body, other.names

    def run_app(self, site: Site, state: State) -> Tags:
        for arg in site.call.args:
            self.value(arg.value, state)
        node = id(site.node)
        self.result.reached[node] = self.result.reached.get(node, frozenset()) | state.calls
        if self.handlers:
            self.result.guarded.add(node)
        if NOT not in state.calls:
            self.say("HM103", site.node, name=self.call_next)
        elif state.calls != {NOT}:
            self.say("HM205", site.node, name=self.call_next)
        self.raising[-1].append(State(frozenset({FAILED}), state.body, dict(state.names)))
        state.calls = frozenset({CALLED})
        return frozenset({RECEIVED})

    def awaited(self, call: cst.Call, state: State) -> Tags:
        self.value(call, state)
        if isinstance(call.func, cst.Attribute) and dotted(call.func.value) == self.request:
            name = call.func.attr.value
            if name in _READ:
                state.body = frozenset({"yes"})
                return frozenset({BODY})
        last = last_name(call.func)
        if last.endswith("Response") and last[:1].isupper():
            return frozenset({OTHER})
        return frozenset({UNKNOWN})

    def called(self, call: cst.Call, state: State) -> None:
        if isinstance(call.func, cst.Name) and state.get(call.func.value) == {RECEIVED}:
            self.say("HM116", call, name=call.func.value)
        if (
            isinstance(call.func, cst.Attribute)
            and dotted(call.func.value) == self.request
            and call.func.attr.value == "stream"
            and "no" in state.body
        ):
            self.say("HM210", call)

    def look(self, node: cst.Attribute, state: State) -> None:
        if node.attr.value == "_StreamingResponse":
            self.say("HM118", node, what=snippet(node))
        if not isinstance(node.value, cst.Name):
            return
        if node.attr.value == "media_type" and RECEIVED in state.get(node.value.value):
            self.say("HM209", node, what=snippet(node))

    def where(self, test: cst.BaseExpression, state: State, *, truth: bool) -> State:
        """
        Narrow the state to where *test* is true, or false.
        """
        if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
            return self.where(test.expression, state, truth=not truth)
        if isinstance(test, cst.BooleanOperation):
            if isinstance(test.operator, cst.And) is truth:
                state = self.where(test.left, state, truth=truth)
                return self.where(test.right, state, truth=truth)
            return state
        name: Any = test.target if isinstance(test, cst.NamedExpr) else test
        is_not_none = truth
        if isinstance(test, cst.Comparison) and len(test.comparisons) == 1:
            other = test.comparisons[0]
            name = test.left.target if isinstance(test.left, cst.NamedExpr) else test.left
            if not is_none(other.comparator):
                return state
            if isinstance(other.operator, (cst.Is, cst.Equal)):
                is_not_none = not truth
            elif not isinstance(other.operator, (cst.IsNot, cst.NotEqual)):
                return state
        if isinstance(name, cst.Name) and name.value in state.names:
            tags = state.names[name.value]
            if is_not_none:
                tags = frozenset(OTHER if each == UNKNOWN else each for each in tags - {NONE})
            elif isinstance(test, cst.Comparison):
                tags = tags & {NONE, UNKNOWN}
            else:
                tags = tags - {RECEIVED}
            state.names[name.value] = tags or frozenset({UNKNOWN})
        return state

    # ------------------------------------------------------------------ assignments

    def assign(self, target: cst.CSTNode, tags: Tags, state: State, statement: cst.CSTNode) -> None:
        if isinstance(target, cst.Name):
            self.bind(target.value, tags, state)
        elif isinstance(target, (cst.Tuple, cst.List)):
            for element in target.elements:
                self.assign(element.value, frozenset({UNKNOWN}), state, statement)
        elif isinstance(target, cst.StarredElement):
            self.assign(target.value, frozenset({UNKNOWN}), state, statement)
        else:
            for each in children(target):
                self.value(each, state)
            if isinstance(target, cst.Attribute) and dotted(target.value) == self.request:
                self.patched(target, state, statement)
            elif shapes.body_of(target, lambda name: state.get(name) == {RECEIVED}):
                self.sent(target, state, statement)

    def patched(self, target: cst.Attribute, state: State, statement: cst.CSTNode) -> None:
        if target.attr.value == "_body" and isinstance(statement, cst.Assign):
            self.result.replaced.add(id(statement))
            value = statement.value
            if isinstance(value, cst.Name) and state.get(value.value) <= {BODY, EMPTY}:
                self.result.dropped.add(id(statement))
                self.say("HM202", target, what=snippet(statement))
            else:
                self.say("HM211", statement, what=snippet(statement))
        if target.attr.value != "_receive":
            return
        if state.body == {"yes"}:
            self.result.dropped.add(id(statement))
            self.say("HM202", target, what=snippet(statement))
        else:
            self.say("HM108", target, what=snippet(statement))

    def sent(self, target: cst.CSTNode, state: State, statement: cst.CSTNode) -> None:
        if not isinstance(statement, cst.Assign):
            return
        given = shapes.put_back(statement.value)
        content = shapes.only_element(given)
        is_all = isinstance(given, cst.Name) and state.get(given.value) == {CHUNKS}
        if is_all or (content is not None and self.is_read(content, state)):
            self.result.dropped.add(id(statement))
            what = "what was read of the body is still sent, so putting it back was dropped"
        elif content is not None:
            name = shapes.body_of(target, lambda _: True)
            self.result.rebuilt[id(statement)] = shapes.Rebuilt(name, content)
            what = "`response.body = data` takes the place of `body_iterator`"
        else:
            what = "the content-length of the old body is dropped with the old body"
        self.say("HM208", statement, what=what)

    def is_read(self, node: cst.BaseExpression, state: State) -> bool:
        return isinstance(node, cst.Name) and state.get(node.value) == {READ}

    def bind(self, name: str, tags: Tags, state: State) -> None:
        if name in self.shared:
            tags = tags | {UNKNOWN}
        if RECEIVED in tags:
            self.result.received.add(name)
        if tags != {RECEIVED}:
            self.result.rebound.add(name)
        state.names[name] = tags
