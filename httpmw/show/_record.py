# What one request does on its way through the layers, and where its time goes.
#
# Words: a *line* is what one layer did in one request; a *passage* is where one layer hands the
# request to the next one, with what passes there; a *strand* is what one task of the request is in
# the middle of: a stack of lines, innermost last.
#
# Rule 1: at every moment one line has the time, so the own times of all lines are the whole.
# Rule 2: the time between two events belongs to the line on top of the strand in which the second
# one happens: whoever acts next is the one that was waited for. But who waits for the client waits
# beside the others, as a listener for disconnects does, and has the time only where nobody else is
# there.
# Rule 3: a passage hands on what it gets: no message is copied, changed or held.
# Rule 4: what a request can make long is bounded: spans here, bodies and values of headers are
# not kept.

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw._context import current_task

from ._model import Node

BEFORE: Final = 0  # the app further in has not been called, or has not answered
START: Final = 1  # its response start is in hand
BODY: Final = 2  # its body passes
AFTER: Final = 3  # it has ended
PHASES: Final = ("before", "start", "body", "after")

_MOST_SPANS: Final = 400

Pairs = Sequence[tuple[bytes, bytes]]


class Line:
    """
    What one layer did in one request.
    """

    __slots__ = (
        "aside", "name", "node", "raised", "said", "threw", "times", "within", "without",
    )  # fmt: skip

    def __init__(self, node: Node | None, name: str) -> None:
        self.node = node
        self.name = name
        # Seconds in each phase.
        self.times = [0.0, 0.0, 0.0, 0.0]
        # Where it was called, and where it called further in.
        self.without: Passage | None = None
        self.within: Passage | None = None
        # Why its function was not there: "when" or "none".
        self.aside: str | None = None
        # What its function did: "answered", "replaced".
        self.said: str | None = None
        # What came out of it, and what it has raised itself.
        self.raised: BaseException | None = None
        self.threw: BaseException | None = None


class Record:
    """
    One request, from the call of the outermost layer that is looked at to its return.
    """

    def __init__(self) -> None:
        self.client = Line(None, "client")
        # In the order in which they were reached.
        self.lines: dict[Node, Line] = {}
        # Line, phase, from and to, in seconds since the beginning.
        self.spans: list[tuple[Line, int, float, float]] = []
        self.began = self.last = perf_counter()
        self.took: float | None = None
        self._strands: dict[Any, list[tuple[Line, int]]] = {}
        self._active: list[tuple[Line, int]] | None = None
        self._seen: list[BaseException] = []

    def line(self, node: Node) -> Line:
        line = self.lines.get(node)
        if line is None:
            line = self.lines[node] = Line(node, node.name)
        return line

    def strand(self, line: Line, phase: int) -> list[tuple[Line, int]]:
        """
        Give what the running task is in the middle of; of a new one, that it is in *line*.
        """
        task = current_task()
        strand = self._strands.get(task)
        if strand is None:
            strand = self._strands[task] = [(line, phase)]
        return strand

    def mark(self, strand: list[tuple[Line, int]]) -> None:
        """
        Something happens in a strand: the time until now is that of the line on top of it.
        """
        now = perf_counter()
        top = strand[-1]
        if top[0] is not self.client:
            self._active = strand
        elif self._active is not None and self._active[-1][0] is not self.client:
            top = self._active[-1]
        line, phase = top
        if phase == BEFORE and (inner := line.within) is not None and inner.started:
            # It runs the app in another task, and waits for it.
            phase = AFTER if inner.ended else BODY
        took = now - self.last
        line.times[phase] += took
        spans = self.spans
        begin = self.last - self.began
        if spans and spans[-1][0] is line and spans[-1][1] == phase:
            spans[-1] = (line, phase, spans[-1][2], begin + took)
        elif len(spans) < _MOST_SPANS:
            spans.append((line, phase, begin, begin + took))
        self.last = now

    def note(self, exc: BaseException, line: Line) -> None:
        """
        An exception is seen; who is the nearest to the first one to see it has raised it.
        """
        if not any(exc is each for each in self._seen):
            self._seen.append(exc)
            line.threw = exc

    def end(self) -> None:
        """
        The outermost layer has returned.
        """
        self.took = self.last - self.began
        self._strands.clear()
        self._seen.clear()
        self._active = None


CURRENT: ContextVar[Record | None] = ContextVar("httpmw.show.record", default=None)


class Passage:
    """
    Where one layer hands a request to the next one.
    """

    __slots__ = (
        "_phase", "_receive", "_send", "body_in", "body_out", "ended", "headers", "inner", "outer",
        "record", "scope", "start", "started",
    )  # fmt: skip

    def __init__(self, record: Record, outer: Line, inner: Line, scope: Scope) -> None:
        self.record = record
        self.outer = outer
        self.inner = inner
        self.scope = scope
        # The headers of the request as they are handed on.
        self.headers: Pairs = list(scope.get("headers") or ())
        self.start: tuple[int, Pairs] | None = None
        self.started = self.ended = False
        # Bytes of the request that went in here, of the response that came out.
        self.body_in = self.body_out = 0
        self._phase = BEFORE

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        """
        Run the inner layer.
        """
        record, inner = self.record, self.inner
        self._receive, self._send = receive, send
        self.outer.within = self
        inner.without = self
        strand = record.strand(self.outer, BEFORE)
        record.mark(strand)
        place = len(strand)
        strand.append((inner, BEFORE))
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as exc:
            inner.raised = exc
            record.note(exc, inner)
            raise
        finally:
            record.mark(strand)
            del strand[place:]
            if strand[-1][0] is self.outer:
                strand[-1] = (self.outer, AFTER)

    async def receive(self) -> Message:
        """
        What the inner layer has as `receive`.
        """
        record = self.record
        strand = record.strand(self.inner, self._phase)
        record.mark(strand)
        place = len(strand)
        strand.append((self.outer, BODY if self.started else BEFORE))
        try:
            message = await self._receive()
        finally:
            record.mark(strand)
            del strand[place:]
        data = message.get("body") or message.get("bytes") or message.get("text")
        if data:
            self.body_in += len(data)
        return message

    async def send(self, message: Message) -> None:
        """
        What the inner layer has as `send`.
        """
        record = self.record
        phase = self._note(message)
        strand = record.strand(self.inner, self._phase)
        record.mark(strand)
        place = len(strand)
        strand.append((self.outer, phase))
        try:
            await self._send(message)
        except BaseException as exc:
            record.note(exc, self.outer)
            raise
        finally:
            record.mark(strand)
            del strand[place:]
            self._phase = AFTER if self.ended else BODY
            # In its own frame, unless that is what was stepped by somebody further in.
            if strand[-1][0] is self.inner and self.inner.within is None:
                strand[-1] = (self.inner, self._phase)

    def _note(self, message: Message) -> int:
        kind = message["type"]
        if kind.endswith((".start", ".accept", ".close")):
            if not self.started:
                self.started = True
                default = 101 if kind.endswith("accept") else 403
                self.start = message.get("status", default), list(message.get("headers") or ())
            return START
        data = message.get("body") or message.get("bytes") or message.get("text")
        if data:
            self.body_out += len(data)
        is_last = kind.endswith(".body") and not message.get("more_body", False)
        if is_last or kind == "http.response.pathsend":
            self.ended = True
        return BODY
