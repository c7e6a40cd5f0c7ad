# Where the response of one source stands, and what leads from there to where.
#
# Rule 1: which phase follows is said here and nowhere else. Who notes an event takes what follows
# from the phase, `self.phase = self.phase.started`; where an event cannot be, that is an error of
# ours: "'PASSING' object has no attribute 'started'". An attribute is what is found fastest, and
# some are looked up in every request.
# Rule 2: nothing leads back, and nothing out of the last five: what went out is out.

from __future__ import annotations

from typing import Final


class Phase:
    """
    Where the response of one source stands.

    It has an attribute for each event that may be in it: the phase that follows.
    """

    called: Phase
    started: Phase
    leaves: Phase
    lost: Phase
    out: Phase
    out_counted: Phase
    replaced: Phase
    body_replaced: Phase
    failed: Phase

    def __repr__(self) -> str:
        return type(self).__name__


def _phase(name: str) -> Phase:
    # Each is of a class of its own, for that name in the error; a `__getattr__` that raises another
    # one would make every look-up slower.
    phase: Phase = type(name, (Phase,), {})()
    return phase


INWARD: Final = _phase("INWARD")  # the source is still to be called
WAITING: Final = _phase("WAITING")  # it runs, and its start is still to come
TRAVELLING: Final = _phase("TRAVELLING")  # the start is with the flows, or waits for a body
IN_FLIGHT: Final = _phase("IN_FLIGHT")  # the server is getting the start, or has failed to
PASSING: Final = _phase("PASSING")  # messages go straight to the server
COUNTED: Final = _phase("COUNTED")  # the same, and somebody wants to know how many bytes
DISCARDED: Final = _phase("DISCARDED")  # another response was sent: messages are dropped
TRAILERS_ONLY: Final = _phase("TRAILERS_ONLY")  # the body is dropped, trailers are not
REFUSED: Final = _phase("REFUSED")  # a flow failed: sending raises its exception

PHASES: Final = (
    *(INWARD, WAITING, TRAVELLING, IN_FLIGHT),
    *(PASSING, COUNTED, DISCARDED, TRAILERS_ONLY, REFUSED),
)

EVENTS: Final = {
    "called": "the source is called",
    "started": "it sends its start",
    "leaves": "the start leaves for the server",
    "lost": "the server fails with the start",
    "out": "the start is out, and what was held of the body",
    "out_counted": "the same, and a flow waits for the end",
    "replaced": "a flow gave another response, or another body",
    "body_replaced": "the same, and the trailers go on",
    "failed": "a flow failed",
}

TABLE: Final = (
    (INWARD, "called", WAITING),
    (WAITING, "started", TRAVELLING),
    (TRAVELLING, "leaves", IN_FLIGHT),
    (TRAVELLING, "lost", IN_FLIGHT),
    (IN_FLIGHT, "lost", IN_FLIGHT),
    (TRAVELLING, "out", PASSING),
    (IN_FLIGHT, "out", PASSING),
    (TRAVELLING, "out_counted", COUNTED),
    (TRAVELLING, "replaced", DISCARDED),
    (TRAVELLING, "body_replaced", TRAILERS_ONLY),
    (TRAVELLING, "failed", REFUSED),
)
for phase, event, follows in TABLE:
    setattr(phase, event, follows)


def as_text() -> str:
    """
    Give the table for the page that shows it.
    """
    lines = ["| phase | event | | leads to |", "| --- | --- | --- | --- |"]
    lines += [f"| `{a!r}` | `{event}` | {EVENTS[event]} | `{b!r}` |" for a, event, b in TABLE]
    return "\n".join(lines) + "\n"
