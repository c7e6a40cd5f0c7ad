# Putting probes between the layers of an application that is there already.
#
# Rule 1: nothing in the engine knows of this. Where a layer has what is further in, a probe is put
# in between; of an httpmw layer the functions are put into another adapter, with the same
# functions inside of probes, so that every step of the engine is seen, and neighbours are run one
# by one, so that each has its own numbers.
# Rule 2: without a record in the context a probe hands the call on and does nothing else.
# Rule 3: what was put in place can be taken out again; where nothing can be put, the layer counts
# as a part of the one around it, and is named.

from __future__ import annotations

import functools
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw._adapter import HTTPMiddleware, layer_of
from httpmw._chain import INSIDE, Chain, Table
from httpmw._connection import Received, ReceivedHandshake
from httpmw._drive import Driven
from httpmw._exchange import Functions
from httpmw._handshake import Handshakes
from httpmw.stack import MiddlewareStack

from ._model import Node
from ._read import looked_through
from ._record import AFTER, BEFORE, CURRENT, START, Line, Passage, Record

_OURS: Final = (Received, ReceivedHandshake)


class Probe:
    """
    Stands in the place of an app, and is the app in everything but its type.
    """

    is_httpmw_probe = True

    behind: ASGIApp

    def __init__(self, behind: ASGIApp, outer: Node | None, inner: Node) -> None:
        vars(self).update(behind=behind, httpmw_outer=outer, httpmw_inner=inner)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own, where it only hands on.
        record = CURRENT.get()
        if record is None or scope["type"] == "lifespan":
            return self.behind(scope, receive, send)
        outer = record.client if self.httpmw_outer is None else record.line(self.httpmw_outer)
        inner = record.line(self.httpmw_inner)
        return Passage(record, outer, inner, scope).run(self.behind, receive, send)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self.behind.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["behind"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.behind, name, value)

    def __eq__(self, other: object) -> bool:
        return bool(self.behind == looked_through(other))

    def __hash__(self) -> int:
        return hash(self.behind)


class Flow:
    """
    A flow of the engine's, and the steps that it takes.

    It has the methods of an async generator, and is the flow in everything but its type.
    """

    def __init__(self, flow: Any, record: Record, line: Line) -> None:
        self._flow = flow
        self._record = record
        self._line = line
        self._phase = BEFORE
        self._response: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._flow, name)

    def asend(self, value: Any) -> Any:
        if value is not None:
            self._phase, self._response = START, value
        elif self._response is not None:
            self._phase = AFTER
        return self._stepped(self._flow.asend(value))

    def athrow(self, *exc: Any) -> Any:
        if self._response is not None:
            self._phase = AFTER
        return self._stepped(self._flow.athrow(*exc))

    def aclose(self) -> Any:
        return self._flow.aclose()

    @types.coroutine
    def _stepped(self, step: Any) -> Generator[Any, Any, Any]:
        # As `yield from`, with a mark where the flow is left alone: to wait for a message of the
        # app's, whose time is the app's own.
        record, frame = self._record, (self._line, self._phase)
        call, argument = step.send, None
        while True:
            strand = record.strand(*frame)
            record.mark(strand)
            strand.append(frame)
            try:
                while True:
                    try:
                        awaited = call(argument)
                    except StopIteration as stop:
                        return self._seen(stop.value)
                    if isinstance(awaited, Driven):
                        break
                    try:
                        call, argument = step.send, (yield awaited)
                    except BaseException as exc:  # noqa: BLE001 - it belongs to the flow
                        call, argument = step.throw, exc
            finally:
                record.mark(strand)
                if frame in strand:
                    del strand[len(strand) - 1 - strand[::-1].index(frame) :]
                argument = None if isinstance(argument, BaseException) else argument
            try:
                call, argument = step.send, (yield awaited)
            except BaseException as exc:  # noqa: BLE001 - see above
                call, argument = step.throw, exc

    def _seen(self, value: Any) -> Any:
        if hasattr(value, "asend"):  # delegation: the other one runs inside of this
            return Flow(value, self._record, self._line)
        if value is not None and value is not self._response:
            self._line.said = "answered" if self._phase == BEFORE else "replaced"
        return value


class Probes:
    """
    The probes in one application.

    Args:
        root: Its tree.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        # Layers that could not be looked at by themselves.
        self.merged: list[Node] = []
        self._undo: list[Callable[[], None]] = []
        self._chains: list[tuple[MiddlewareStack, Chain]] = []

    def put(self) -> ASGIApp:
        """
        Put probes everywhere; give the application with one in front.
        """
        first = entered(self.root)
        self._visit(self.root, first)
        return Probe(self.root.subject, None, first)

    def remove(self) -> None:
        """
        Take all of them out again.
        """
        for stack, chain in self._chains:
            with stack._lock:
                if stack._chain is chain:  # else it has been edited, and they are gone
                    stack._publish(stack._chain.slots)
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._chains.clear()

    @property
    def hold(self) -> bool:
        """
        Whether no stack was edited since they were put.
        """
        for stack, chain in self._chains:  # noqa: SIM110 - a generator costs time in each request
            if stack._chain is not chain:
                return False
        return True

    def _visit(self, node: Node, line: Node) -> None:
        """
        Look at what is inside of *node*, whose time goes to *line*.
        """
        stacks: dict[MiddlewareStack, list[Node]] = {}
        pending = [(node, line)]
        while pending:
            node, line = pending.pop()
            if node.slot is not None:
                stacks.setdefault(node.stack, []).append(node)
            for place, child in enumerate(node.children):
                if node.kind == "router" and not node.links:
                    pending.append((child, line))  # the router itself goes to its routes
                    continue
                inner = entered(child)
                if node.slot is not None or (child.slot is not None and not node.links):
                    seen = True  # in the chain, below
                else:
                    seen = self._put(node, place, line, inner)
                if not seen:
                    self.merged.append(inner)
                pending.append((child, inner if seen else line))
            if node.links and not node.children:  # the endpoint of a route
                self._put(node, 0, line, node)
        for stack, nodes in stacks.items():
            with stack._lock:  # an edit that is under way comes first
                self._put_into_stack(stack, nodes)

    def _put(self, node: Node, place: int, line: Node, inner: Node) -> bool:
        """
        Put a probe where *node* has what is further in.
        """
        if node.kind == "application":
            return True  # its first layer is entered where it is
        if place >= len(node.links):
            return False
        link = node.links[place]
        before = link.app
        probe = Probe(looked_through(before), line, inner)
        layer = node.subject
        try:
            link.put(probe)
        except Exception:  # noqa: BLE001 - a tuple, a partial, or whatever takes no attribute
            return False
        self._undo.append(lambda: link.put(before))
        if isinstance(layer, HTTPMiddleware):
            held = layer._httpmw
            functions, _, handshakes = held
            functions, handshakes = _watching(
                functions[:1], handshakes.first() if layer.websocket and handshakes else None, node
            )
            layer._httpmw = functions, probe, handshakes
            self._undo.append(lambda: setattr(layer, "_httpmw", held))
        return True

    def _put_into_stack(self, stack: MiddlewareStack, nodes: list[Node]) -> None:
        """
        Publish a chain with probes, as `httpmw._chain.chain` makes one without.
        """
        old = stack._chain
        by_slot = {id(each.slot): each for each in nodes}
        inside = [slot for slot in old.slots if not slot.outside]
        outside = [slot for slot in old.slots if slot.outside]

        def nest(slots: list[Any], app: ASGIApp, table: Table) -> ASGIApp:
            for slot in reversed(slots):
                node = by_slot.get(id(slot))
                if node is not None and node.children:
                    app = Probe(looked_through(app), node, entered(node.children[0]))
                table[slot.link.name] = app
                if slot.functions and node is not None:
                    functions, handshakes = _watching(slot.functions, slot.handshakes, node)
                    app = layer_of(functions, app, handshakes)
                else:
                    app = slot.instance
            return app

        table: Table = {}
        late_app = first = nest(inside, stack._inner, table)
        late_table = table
        if outside:
            late_table = table.copy()
            late_app = nest(outside, first, late_table)
            table[INSIDE] = first
        app = late_app if stack._frame is None else nest(outside, stack._frame, table)
        for slot in old.slots:
            late = late_table[slot.link.name]
            slot.link.lead(table.get(slot.link.name, late), late)
        new = Chain(old.slots, app, table, late_app, late_table)
        if stack._installation is not None:
            stack._installation.prepare(new)
        stack._chain = new
        self._chains.append((stack, new))


def entered(node: Node) -> Node:
    """
    Give the line that something belongs to: of an application its first layer, and so on.
    """
    while node.kind == "application" and node.children:
        node = node.children[0]
    return node


def _watching(
    functions: Functions, handshakes: Handshakes | None, node: Node
) -> tuple[Functions, Handshakes | None]:
    """
    Give the functions of one layer inside of probes.
    """
    seen = tuple(_watched(each, node) for each in functions)
    if handshakes is None:
        return seen, None
    return seen, Handshakes(tuple(_watched(each, node) for each in handshakes.functions))


def _watched(entry: Any, node: Node) -> Any:
    make, function, when = entry
    if make not in _OURS:
        return entry

    @functools.wraps(function, updated=())
    def begin(conn: Any) -> Any:
        flow = function(conn)
        record = CURRENT.get()
        if record is None:
            return flow
        line = record.line(node)
        if flow is None:
            line.aside = "none"
        elif hasattr(flow, "asend"):
            return Flow(flow, record, line)
        return flow

    if when is None:
        return make, begin, None

    @functools.wraps(when, updated=())
    def predicate(conn: Any) -> Any:
        meant = when(conn)
        record = CURRENT.get()
        if record is not None and not meant:
            record.line(node).aside = "when"
        return meant

    return make, begin, predicate
