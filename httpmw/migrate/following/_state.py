# What is known at one point of a function, and what of it is kept.
#
# Rule 1: `RECEIVED` stands for the response that this function was given; what may be something
# else has another tag beside it, so that a bare `return` is only written where nothing else can
# be meant.
# Rule 2: what is not known stays not known: it may be None.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from httpmw.migrate.reading._problem import Problem

from . import _body_shapes as shapes

__all__ = [
    "BODY",
    "CALLED",
    "CHUNKS",
    "EMPTY",
    "FAILED",
    "NONE",
    "NOT",
    "NO_RESPONSE",
    "OTHER",
    "PLAIN",
    "READ",
    "RECEIVED",
    "UNKNOWN",
    "Flow",
    "Returned",
    "State",
    "Tags",
    "join",
    "not_none",
]

RECEIVED: Final = "received"
OTHER: Final = "other"  # not None
UNKNOWN: Final = "unknown"  # may be None
NONE: Final = "none"
PLAIN: Final = "plain"  # cannot be a response: a tuple, a number, a str
BODY: Final = "body"  # what was read of the request
READ: Final = "read"  # the whole body of the received response
CHUNKS: Final = "chunks"  # the same, as a list
EMPTY: Final = "empty"  # b"" or []

MAY_BE_NONE: Final = frozenset({UNKNOWN, NONE, BODY})  # a body in JSON may be null
NO_RESPONSE: Final = frozenset({PLAIN, BODY, READ, CHUNKS, EMPTY})

# Whether the app was called.
NOT: Final = "not called"
CALLED: Final = "called"
FAILED: Final = "it raised"

Tags: TypeAlias = frozenset[str]


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

    @property
    def may_be_none(self) -> bool:
        return bool(self.tags & MAY_BE_NONE)

    @property
    def may_let_through(self) -> bool:
        """
        Whether it may be None before the app was called, when to yield None runs the app.
        """
        return NOT in self.calls and self.may_be_none


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


def not_none(tags: Tags) -> Tags:
    """
    Give what a value may be that is not None.
    """
    return frozenset(OTHER if each == UNKNOWN else each for each in tags - {NONE})
