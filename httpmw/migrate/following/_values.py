# What an expression may be, and what evaluating it and assigning it changes.
#
# Rule 1: a problem is said once for each node, however often a loop leads to it.
# Rule 2: of a name that a nested function assigns to nothing is known.

from __future__ import annotations

from typing import Any

import libcst as cst

from httpmw.migrate.reading._names import children, dotted, is_none
from httpmw.migrate.reading._problem import Problem, snippet

from . import _body_shapes as shapes
from ._call_sites import Scan, Site
from ._never_none import Certain
from ._state import (
    BODY,
    CALLED,
    CHUNKS,
    EMPTY,
    FAILED,
    NONE,
    NOT,
    OTHER,
    PLAIN,
    READ,
    RECEIVED,
    UNKNOWN,
    Flow,
    State,
    Tags,
    join,
    not_none,
)

__all__ = ["Values"]

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


class Values:
    """
    The expressions of one function.
    """

    def __init__(self, request: str, call_next: str, found: Scan, certain: Certain) -> None:
        self.request = request
        self.call_next = call_next
        self.sites = found.sites
        self.certain = certain
        self.result = Flow()
        # The ids of the statements that give `call_next`, or its coroutine, another name.
        self.renaming: set[int] = set()
        # The functions that are defined in it.
        self.functions: dict[str, cst.FunctionDef] = {}
        # Those that do no more than to give the chunks of a body.
        self.giving: set[str] = set()
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
                left = not_none(left)
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
            if self.is_certain(node, state):
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
        return frozenset({OTHER if self.is_certain(call, state, awaited=True) else UNKNOWN})

    def is_certain(self, call: cst.Call, state: State, *, awaited: bool = False) -> bool:
        # What a variable of the function holds is another thing than what the file names so.
        is_variable = dotted(call.func).partition(".")[0] in state.names
        return not is_variable and self.certain.gives_a_value(call, awaited=awaited)

    def called(self, call: cst.Call, state: State) -> None:
        if isinstance(call.func, cst.Name) and state.get(call.func.value) == {RECEIVED}:
            self.say("HM116", call, name=call.func.value)
        if state.body != {"yes"} and self.certain.patches(call, self.request):
            self.say("HM108", call, what=snippet(call))
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
        if isinstance(test, cst.Call) and dotted(test.func) == "isinstance" and truth:
            name = test.args[0].value
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
                tags = not_none(tags)
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
        given = self.chunks(statement.value)
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

    def chunks(self, node: cst.CSTNode | None) -> cst.BaseExpression | None:
        """
        Give the chunks of a call that does no more than to give them one by one.
        """
        given = shapes.put_back(node)
        if given is None and isinstance(node, cst.Call):
            name = dotted(node.func)
            function = self.functions.get(name) or self.certain.function(node.func)
            given = None if function is None else shapes.generated(node, function)
            if given is not None:
                self.giving.add(name)
        return given

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
