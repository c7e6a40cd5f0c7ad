# The last requests of a running application, for the inspector.
#
# Rule 1: what is kept is bounded: so many requests, so many spans in each; and so is what it takes:
# of all that come in only so many in a second are looked at layer by layer, some more are listed,
# and the others are counted and pass as if nobody were there.
# Rule 2: a request that has ended is kept as what the page draws: names, numbers and words. No
# object of the application is held, no body and no value of a header but of those that were named.
# Rule 3: nobody is told anything: whoever watches comes and asks for what is new since the last
# time. So a request never waits for a page.

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection
from typing import Any, Final

from httpmw._connection import Connection

from ._explain import not_reached, route_of, spans_of, step
from ._model import Node, Tree
from ._probe import Probes
from ._read import looked_through, read
from ._record import AFTER, BEFORE, Line, Record
from ._warn import warnings_of

# How many in a second, and how many at once after a pause.
_LOOKED_AT: Final = (5.0, 50.0)
_LISTED: Final = (20.0, 200.0)
_MOST_SPANS: Final = 200
_AT_A_TIME: Final = 40


class _Share:
    """
    Lets so many through in a second, and some more at once after a pause.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._left = burst
        self._filled = self._again = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        if now < self._again:
            return False
        self._left = min(self._burst, self._left + (now - self._filled) * self._rate)
        self._filled = now
        if self._left < 1:
            self._again = now + (1 - self._left) / self._rate
            return False
        self._left -= 1
        return True


class Entry:
    """
    One request, while it runs and afterwards.
    """

    __slots__ = ("_bytes", "data", "line", "number", "record", "seen")

    def __init__(self, number: int, data: dict[str, Any], record: Record | None) -> None:
        self.number = number
        self.data = data
        self.record = record
        # That of the layer that looks: what is not further in is the server's and the client's.
        self.line: Line | None = None
        # The number of its last change.
        self.seen = number
        self._bytes = 0

    def grow(self) -> bool:
        """
        Look how far a response is that is on its way; whether there is something new.
        """
        inner = None if self.line is None else self.line.within
        record = self.record
        if inner is None or record is None:
            return False
        self.data["seconds"] = time.perf_counter() - record.began
        self.data["bytes_sent"] = inner.body_out
        self.data["status"] = None if inner.start is None else inner.start[0]
        before, self._bytes = self._bytes, inner.body_out
        return before != self._bytes


class Hub:
    """
    Keeps the last requests of one application.

    Args:
        keep: How many requests it keeps.
        headers: Of which headers of the request the values are kept.
    """

    def __init__(self, keep: int, headers: Collection[str]) -> None:
        self.total = 0
        # Of all, those that were not listed.
        self.passed = 0
        self._headers = frozenset(each.lower() for each in headers)
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._changes = itertools.count(1)
        self._looked_at = _Share(*_LOOKED_AT)
        self._listed = _Share(*_LISTED)
        self._app: Any = None
        self._probes: Probes | None = None
        self._node: Node | None = None

    # ------------------------------------------------------------------ the application

    def follow(self, app: Any, layer: Any) -> bool:
        """
        See to it that there are probes in *app*, which has *layer* in it; say whether there were.
        """
        probes = self._probes
        if probes is not None and app is self._app and probes.hold:
            return True
        self._app = app
        self._put(read(app), layer)
        return False

    def _put(self, root: Node, layer: Any) -> None:
        if self._probes is not None:
            self._probes.remove()
        self._probes = Probes(root)
        self._probes.put()
        self._node = next((each for each in root.walk() if _is(each, layer)), None)

    def read(self) -> Tree:
        """
        Read the application as it is now; this may be done in another thread.
        """
        root = read(self._app)
        return Tree(root, warnings_of(root))

    @property
    def is_edited(self) -> bool:
        """
        Whether a stack was edited since the application was read.
        """
        return self._probes is None or not self._probes.hold

    def renew(self, tree: Tree, layer: Any) -> None:
        """
        Put probes where something is new in *tree*.
        """
        known = self._probes
        if known is None or known.root.as_json() != tree.root.as_json():
            self._put(tree.root, layer)

    # ------------------------------------------------------------------ requests

    def count(self) -> bool:
        """
        A request comes in; say whether it is to be listed.
        """
        self.total += 1
        if self._listed.take():
            return True
        self.passed += 1
        return False

    def begin(self, conn: Connection[Any], *, whole: bool) -> Entry:
        """
        It is; whether the *whole* of it meets the probes.
        """
        node = self._node
        record = Record() if whole and node is not None and self._looked_at.take() else None
        number = next(self._changes)
        entry = Entry(number, self._data(conn, number), record)
        if record is not None and node is not None:
            entry.line = record.line(node)
            record.strand(entry.line, BEFORE)
        self._entries.append(entry)
        return entry

    def _named(self, conn: Connection[Any]) -> dict[str, str]:
        return {name: value for name, value in conn.headers.items() if name in self._headers}

    def _data(self, conn: Connection[Any], number: int) -> dict[str, Any]:
        return {
            "id": number,
            "method": "WebSocket" if conn.is_websocket else conn.method,
            "path": conn["path"],
            "headers": self._named(conn) if self._headers else {},
            "state": "running",
            "status": None,
            "exception": None,
            "bytes_sent": 0,
            "route": None,
            "seconds": 0.0,
        }

    def end(
        self,
        entry: Entry,
        began: float,
        response: Any,
        raised: BaseException | None,
    ) -> None:
        """
        A request is over.
        """
        data = entry.data
        data["seconds"] = time.perf_counter() - began
        data["state"] = "failed"
        if response is not None:
            data["status"] = response.status_code
            data["bytes_sent"] = response.bytes_sent
            data["state"] = response.outcome
        if raised is not None:
            data["exception"] = type(raised).__name__
        record, line = entry.record, entry.line
        if record is not None and line is not None:
            record.mark(record.strand(line, AFTER))
            record.end()
            data["seconds"] = record.took
            data |= _detail(record, line, self._probes)
            data["route"] = route_of(list(record.lines.values()))
            data["bytes_sent"] = max(data["bytes_sent"], line.within.body_out if line.within else 0)
        entry.record = entry.line = None
        entry.seen = next(self._changes)

    def news(self, since: int) -> tuple[int, dict[str, Any]]:
        """
        Give what has changed since the change of this number, the newest only where it is much.
        """
        for entry in self._entries:
            if entry.line is not None and entry.grow():
                entry.seen = next(self._changes)
        changed = [each for each in self._entries if each.seen > since]
        last = max((each.seen for each in changed), default=since)
        shown = sorted(changed, key=lambda each: each.number)[-_AT_A_TIME:]
        return last, {
            "total": self.total,
            "left_out": self.total - len(self._entries),
            "requests": [each.data for each in shown],
        }


def _is(node: Node, layer: Any) -> bool:
    instance = node.subject if node.slot is None else node.slot.instance
    return looked_through(instance) is layer


def _detail(record: Record, line: Line, probes: Probes | None) -> dict[str, Any]:
    """
    Write down what a record says; what is not further in than *line* is the client's.
    """
    lines = [each for each in record.lines.values() if each is not line]
    steps = [step(each, messages=False) for each in lines]
    return {
        "client_seconds": sum(line.times) + sum(record.client.times),
        "steps": [each.as_json() for each in steps],
        "spans": [list(each) for each in spans_of(record, lines)[:_MOST_SPANS]],
        "not_reached": list(not_reached(lines)),
        "merged": [] if probes is None else [each.name for each in probes.merged],
        "repeated": 1,
    }
