# A function rearranged, so that what takes back context variables does so behind `yield response`.
# It is one walk over the statements, in which each kind of them calls the others.
#
# Starlette's class runs the app in a context of its own: what a function set before the call
# stays set for streams and background tasks. A middleware function shares the context of the app,
# so it has to keep what it set until everything is over.
#
# Rule 1: what is rearranged is the old function, into one that does the same on every path; the
# returns of the received response that then stand right in what takes variables back are *held*:
# `yield response` is written for them.
# Rule 2: a held return stands in no `except`, and in no `try` with handlers or `with` that does
# anything else: behind the response start those would see what they did not see before. So it is
# moved into `else`, or behind the statement.
# Rule 3: what ran behind the taking back may be moved before it if it cannot tell the difference.
# Rule 4: all or nothing: where one place cannot be rearranged the function is left as it is.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from httpmw.migrate.following._context_variables import bound
from httpmw.migrate.following._endings import can_end, statement_can_end
from httpmw.migrate.following._function import Function
from httpmw.migrate.following._state import CALLED, FAILED, RECEIVED, Returned
from httpmw.migrate.following._taken_back import Taken
from httpmw.migrate.reading._lookup import Lookup
from httpmw.migrate.reading._names import dotted, find, own_scope

from ._build import as_block, as_line, assigned, split_leading, unused

__all__ = ["Held", "hold"]


@dataclass
class Held:
    """
    What became of one function.

    Attributes:
        function: The function, rearranged.
        returns: The ids of the returns for which `yield response` is written.
        lost: Where variables are taken back at the response start all the same, or another
            response is returned behind which they are; and what takes them back.
        managers: The context managers of other files that take variables back at the end.
    """

    function: cst.FunctionDef
    returns: set[int] = field(default_factory=set)
    lost: tuple[cst.CSTNode, cst.CSTNode] | None = None
    managers: tuple[str, ...] = ()


class _Unsafe(Exception):  # noqa: N818 - it says what is the case
    pass


def hold(function: Function, lookup: Lookup) -> Held:
    """
    Rearrange a function.
    """
    run = _Arranging(function, lookup)
    node = function.unit.node
    taking = run.taking_back()
    if not taking:
        return Held(node)
    left = Held(node, lost=(taking[0], taking[0]))
    # What runs in a caller before the response is out would see the variables.
    if node.asynchronous is None or function.unit.callers:
        return left
    try:
        body = run.block(as_block(node.body).body, held=False, called=False)
    except _Unsafe:
        return left
    if any(id(each) not in run.handled for each in taking):
        return left
    changed = node.with_changes(body=as_block(node.body).with_changes(body=body))
    lost = None if run.lost is None else (run.lost, taking[0])
    return Held(changed, run.returns, lost, tuple(sorted(run.surroundings.elsewhere)))


class _Arranging(Taken):
    def __init__(self, function: Function, lookup: Lookup) -> None:
        super().__init__(function, lookup)
        # The ids of what takes back variables, and is behind `yield response` now.
        self.handled: set[int] = set()
        # The names that hold what variables are taken back with.
        self.sure: set[str] = set()
        # The ids of the rearranged `with` statements; they swallow nothing, and end the function.
        self.ending: set[int] = set()
        self.returns: set[int] = set()
        self.lost: cst.CSTNode | None = None
        self.name = "response"
        if self.name not in self.flow.received or self.name in self.flow.rebound:
            self.name = unused(self.name, function.unit.node)

    # ------------------------------------------------------------------ blocks

    def block(self, statements: Iterable[Any], *, held: bool, called: bool) -> list[Any]:
        """
        Rearrange statements around which nothing, or only what takes back variables, stands.
        """
        before: list[Any] = []
        rest = list(statements)
        outside = set(self.sure)
        while rest:
            statement = rest.pop(0)
            if called and self.taking.only([statement], self.sure):
                before.append(self.closed([statement, *rest]))
                break
            if self.takes_back(statement, called=called):
                around, rest = self.around(statement, rest)
                before.append(around)
            else:
                before += self.inner(statement, held=held, called=called)
            called |= self.goes_on(statement)
            self.sure |= self.bound([statement])
        self.sure = outside
        return before

    def suite(self, node: Any, *, held: bool, called: bool) -> Any:
        """
        Give a clause, or a compound statement, with its suite rearranged.
        """
        if node is None:
            return None
        body = as_block(node.body)
        inside = self.block(body.body, held=held, called=called)
        same = list(map(id, inside)) == list(map(id, body.body))
        # What was on one line has been written anew, with the returns that are marked.
        if same and (body is node.body or not self.sends(node.body)):
            return node
        return node.with_changes(body=body.with_changes(body=inside))

    def inner(self, node: Any, *, held: bool, called: bool) -> list[Any]:
        if isinstance(node, cst.SimpleStatementLine):
            return self.line(node) if held else [node]
        if isinstance(node, (cst.If, cst.For, cst.While)):
            called |= isinstance(node, (cst.For, cst.While)) and self.goes_on(node)
            changed = self.suite(node, held=held, called=called)
            orelse: Any = node.orelse
            if isinstance(orelse, cst.If):
                (orelse,) = self.inner(orelse, held=held, called=called)
            else:
                orelse = self.suite(orelse, held=held, called=called)
            return [changed if orelse is node.orelse else changed.with_changes(orelse=orelse)]
        if isinstance(node, cst.Match):
            cases = [self.suite(each, held=held, called=called) for each in node.cases]
            same = all(one is other for one, other in zip(cases, node.cases, strict=True))
            return [node if same else node.with_changes(cases=cases)]
        if held and self.sends(node):
            if isinstance(node, cst.Try) and node.finalbody is None:
                return [self.with_else(node)]
            if isinstance(node, cst.Try):
                return self.behind(node)
            raise _Unsafe
        return [node]

    def line(self, line: cst.SimpleStatementLine) -> list[Any]:
        """
        Mark the return of a line that is in what takes back variables.
        """
        small = line.body[-1]
        if not isinstance(small, cst.Return):
            return [line]
        if not self.is_sent(small.value):
            if self.may_send(small.value):
                raise _Unsafe
            return [line]
        lines = self.parts(line, small) if id(small.value) in self.sites else [line]
        self.returns.add(id(lines[-1].body[-1]))
        return lines

    # ------------------------------------------------------------------ what takes back variables

    def takes_back(self, node: Any, *, called: bool) -> bool:
        """
        Tell whether the end of a statement takes back variables behind the call.
        """
        if isinstance(node, cst.With):
            limited = id(node) in self.limited
            return not limited and self.runs_app(node.body) and self.is_manager(node)
        if not isinstance(node, cst.Try) or node.finalbody is None:
            return False
        return (called or self.runs_app(node)) and bool(self.parts_of(node)[1])

    def parts_of(self, node: cst.Try) -> tuple[list[Any], list[Any]]:
        """
        Split a `finally`.
        """
        assert node.finalbody is not None
        sure = self.sure | self.bound(as_block(node.body).body)
        return self.taking.split(as_block(node.finalbody.body).body, sure)

    def bound(self, statements: Iterable[Any]) -> set[str]:
        # What is kept in an attribute may be that of another request by then.
        return {each for each in self.taking.bound(statements) if "." not in each}

    def note(self, *nodes: cst.CSTNode) -> None:
        """
        Take note of another response that is returned while the app may go on.
        """
        for each in (each for node in nodes for each in (node, *own_scope(node))):
            if isinstance(each, cst.Return) and not self.may_send(each.value):
                info = self.flow.returned.get(id(each if each.value is None else each.value))
                calls = frozenset() if info is None else info.calls
                over = FAILED in calls and id(each) in self.handlers
                if CALLED in calls and not over and self.lost is None:
                    self.lost = each

    def around(self, node: Any, rest: list[Any]) -> tuple[Any, list[Any]]:
        """
        Rearrange a statement that takes back variables; give what is left to follow it as well.
        """
        if any(isinstance(each, (cst.Break, cst.Continue)) for each in own_scope(node)):
            raise _Unsafe
        self.note(node)
        if isinstance(node, cst.With):
            self.handled.add(id(node))
            body, rest = self.absorbing(node.body, rest)
            node = node.with_changes(body=body)
            self.ending.add(id(node))
            return node, rest
        return self.around_try(node, rest)

    def around_try(self, node: Any, rest: list[Any]) -> tuple[Any, list[Any]]:
        final = as_block(node.finalbody.body)
        others, closing = self.parts_of(node)
        self.close(closing)
        if others:
            closing[0] = _without_blank(closing[0])
        if not others and not node.handlers:
            body, rest = self.absorbing(node.body, rest)
            return node.with_changes(body=body), rest
        if not others:
            return self.around_with_else(node, rest)
        inner = node.with_changes(
            leading_lines=(),
            finalbody=node.finalbody.with_changes(body=final.with_changes(body=others, footer=())),
        )
        inside = self.behind(inner)
        if statement_can_end(inside[-1]):
            inside += self.block(self.absorbed(rest), held=True, called=True)
            rest = []
        self.ended(inside)
        finalbody = node.finalbody.with_changes(body=final.with_changes(body=closing))
        return _tried(inside, finalbody, node.leading_lines), rest

    def closed(self, statements: list[Any]) -> Any:
        """
        Let the response be sent before variables are taken back without a `try`.
        """
        count = next(
            (i for i, s in enumerate(statements) if not self.taking.only([s], self.sure)), None
        )
        if count is None:
            raise _Unsafe
        closing, rest = statements[:count], statements[count:]
        self.close(closing)
        body = self.block(self.absorbed(rest), held=True, called=True)
        self.ended(body)
        blank, comments = split_leading(closing[0].leading_lines)
        closing[0] = closing[0].with_changes(leading_lines=comments)
        final = cst.Finally(cst.IndentedBlock(closing))
        return _tried(body, final, blank)

    def close(self, closing: Iterable[cst.CSTNode]) -> None:
        self.handled |= {id(call) for each in closing for call in find(each, cst.Call)}

    def absorbing(self, suite: Any, rest: list[Any]) -> tuple[cst.IndentedBlock, list[Any]]:
        """
        Give a suite with what follows its statement, which ends the function.
        """
        block = as_block(suite)
        follows = can_end(block)
        body = self.block(
            [*block.body, *(self.absorbed(rest) if follows else [])], held=True, called=False
        )
        self.ended(body)
        return block.with_changes(body=body), [] if follows else rest

    def absorbed(self, rest: list[Any]) -> list[Any]:
        if not all(map(self.quiet.is_quiet, rest)):
            raise _Unsafe
        self.note(*rest)
        return rest

    def ended(self, body: Sequence[Any]) -> None:
        # What would come to run behind the taking back is not known here.
        if all(statement_can_end(each) and id(each) not in self.ending for each in body):
            raise _Unsafe

    # ------------------------------------------------------------------ out of `try`

    def with_else(self, node: cst.Try) -> cst.Try:
        """
        Let the response be sent in the `else` of a `try` with handlers.
        """
        self.checked(node)
        body, tail = self.parted(node)
        tail = self.block(tail, held=True, called=True)
        return node.with_changes(body=body, orelse=_else(node, tail))

    def around_with_else(self, node: cst.Try, rest: list[Any]) -> tuple[cst.Try, list[Any]]:
        """
        Do the same, and run there what follows the statement.
        """
        self.checked(node)
        body, tail = self.parted(node)
        handled = not any(can_end(each.body) for each in node.handlers)
        if can_end(cst.IndentedBlock([*body.body, *tail])):
            tail, rest = [*tail, *self.absorbed(rest)], []
            if not handled:
                raise _Unsafe
        elif not handled and self.sends(*rest):
            raise _Unsafe
        elif not tail:
            return node, rest
        tail = self.block(tail, held=True, called=True)
        self.ended(tail)
        return node.with_changes(body=body, orelse=_else(node, tail)), rest

    def behind(self, node: cst.Try) -> list[Any]:
        """
        Let the response be sent behind a `try` with a `finally`.
        """
        assert node.finalbody is not None
        self.checked(node)
        if node.orelse is not None and self.sends(node.body):
            raise _Unsafe
        body, tail = self.lifted(node.body if node.orelse is None else node.orelse.body)
        if tail:
            final = list(own_scope(node.finalbody.body))
            if any(isinstance(each, cst.Return) for each in final) or any(
                can_end(each.body) for each in node.handlers
            ):
                raise _Unsafe
            sent = dotted(tail[0].body[-1].value)
            if any(sent in bound(each) for each in final):
                raise _Unsafe
        if node.orelse is None:
            node = node.with_changes(body=body)
        else:
            node = node.with_changes(orelse=node.orelse.with_changes(body=body))
        return [node, *self.block(tail, held=True, called=True)]

    def checked(self, node: cst.Try) -> None:
        clauses: list[Any] = [*node.handlers, *([node.finalbody] if node.finalbody else [])]
        if self.sends(*(each.body for each in clauses)):
            raise _Unsafe

    def parted(self, node: cst.Try) -> tuple[cst.IndentedBlock, list[Any]]:
        """
        Give what stays under the handlers, and what does not.
        """
        if node.orelse is None:
            return self.lifted(node.body)
        if self.sends(node.body):
            raise _Unsafe
        return as_block(node.body), list(as_block(node.orelse.body).body)

    def lifted(self, suite: cst.BaseSuite) -> tuple[cst.IndentedBlock, list[Any]]:
        """
        Take the return of the received response from the end of a suite.
        """
        block = as_block(suite)
        kept: list[Any]
        *kept, last = block.body
        tail = []
        small = last.body[-1] if isinstance(last, cst.SimpleStatementLine) else last
        if isinstance(small, cst.Return) and self.is_sent(small.value):
            assert isinstance(last, cst.SimpleStatementLine)
            *before, line = self.parts(last, small)
            kept += before
            tail = [_without_blank(line)]
            if not isinstance(line.body[0].value, cst.Name) or not kept:
                raise _Unsafe
        else:
            kept.append(last)
        if self.sends(*kept):
            raise _Unsafe
        return block.with_changes(body=kept), tail

    def parts(self, line: cst.SimpleStatementLine, small: cst.Return) -> list[Any]:
        """
        Split the return off its line, and the call off the return.
        """
        before = list(line.body[:-1])
        if small.value is not None and id(small.value) in self.sites:
            before.append(assigned(self.name, small.value))
            name = cst.Name(self.name)
            self.flow.returned[id(name)] = Returned(frozenset({RECEIVED}), frozenset({CALLED}))
            small = cst.Return(name)
        if not before:
            return [line]
        before[-1] = before[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        return [line.with_changes(body=before), as_line(small)]


def _without_blank(node: Any) -> Any:
    return node.with_changes(leading_lines=split_leading(node.leading_lines)[1])


def _tried(body: list[Any], final: cst.Finally, leading: Sequence[cst.EmptyLine]) -> cst.Try:
    return cst.Try(cst.IndentedBlock(body), finalbody=final, leading_lines=leading)


def _else(node: cst.Try, tail: list[Any]) -> cst.Else | None:
    if node.orelse is not None:
        return node.orelse.with_changes(body=as_block(node.orelse.body).with_changes(body=tail))
    return cst.Else(cst.IndentedBlock(tail)) if tail else None
