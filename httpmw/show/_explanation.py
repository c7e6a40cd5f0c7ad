# What happened to one request: the figures, and the table that they are written down in.

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ._record import PHASES

_NAME: Final = 34
_WHAT: Final = 36
_WIDTH: Final = 100


@dataclass(frozen=True)
class Step:
    """
    What one layer, or the route, did in one request.

    Attributes:
        name: Its name, as in the tree.
        kind: "layer", "router", "route", "websocket" or "app".
        where: The file and line where it was defined; None where it cannot be told.
        happened: What it did, in words.
        changed: What it changed of the request and of the response, by names.
        seconds: Its own time in each phase: "before" the response, at its "start", in the "body",
            and "after" it; what is further in is not in it.
        request_bytes: Bytes of the request that reached it, and that it handed on.
        response_bytes: Bytes of the response that reached it, and that it handed on.
    """

    name: str
    kind: str
    where: str | None
    happened: str
    changed: tuple[str, ...]
    seconds: Mapping[str, float]
    request_bytes: tuple[int, int]
    response_bytes: tuple[int, int]

    @property
    def own(self) -> float:
        """
        Its own time in all phases, in seconds.
        """
        return sum(self.seconds.values())

    def as_json(self) -> dict[str, Any]:
        """
        Give it as what `json.dumps` takes.
        """
        return {
            "name": self.name,
            "kind": self.kind,
            "where": self.where,
            "happened": self.happened,
            "changed": list(self.changed),
            "seconds": dict(self.seconds),
            "own": self.own,
            "request_bytes": list(self.request_bytes),
            "response_bytes": list(self.response_bytes),
        }


@dataclass(frozen=True)
class Explanation:
    """
    What happened to one request on its way; `str()` of it is a table.

    Attributes:
        method: The method of the request.
        path: Its path.
        status: The status of the response; None where there was none.
        exception: What the application raised; None where nothing was.
        bytes_sent: How many bytes of the body were sent.
        route: The route that was matched; None where none was.
        seconds: The time of the whole request, in seconds.
        client_seconds: How much of that was spent in the client of this process.
        steps: The layers that it reached, the outermost first, and the route.
        not_reached: Layers further in that it did not reach.
        merged: Layers that cannot be looked at by themselves: they are part of the one around.
        spans: The waterfall: number of the step, -1 for the client; phase, from and to, in seconds.
        repeated: How often it was sent; all is of the run whose time is the median.
    """

    method: str
    path: str
    status: int | None
    exception: str | None
    bytes_sent: int
    route: str | None
    seconds: float
    client_seconds: float
    steps: tuple[Step, ...]
    not_reached: tuple[str, ...]
    merged: tuple[str, ...]
    spans: tuple[tuple[int, str, float, float], ...]
    repeated: int

    def as_json(self) -> dict[str, Any]:
        """
        Give it as what `json.dumps` takes.
        """
        return {
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "exception": self.exception,
            "bytes_sent": self.bytes_sent,
            "route": self.route,
            "seconds": self.seconds,
            "client_seconds": self.client_seconds,
            "steps": [each.as_json() for each in self.steps],
            "not_reached": list(self.not_reached),
            "merged": list(self.merged),
            "spans": [list(each) for each in self.spans],
            "repeated": self.repeated,
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(found: Explanation) -> Iterator[str]:
    status = found.exception or "no response" if found.status is None else str(found.status)
    head = f"{found.method} {found.path} → {status}"
    if found.status is not None and found.exception is not None:
        head += f", then {found.exception}"
    yield f"{head}, {_bytes(found.bytes_sent)}, {_ms(found.seconds)} ms{_times(found)}"
    if found.route:
        yield f"route {found.route}"
    elif any(each.kind == "router" for each in found.steps):
        yield "no route was matched"
    else:
        yield "no route was asked for"
    yield ""
    names = [each.name for each in found.steps]
    name = min(max([len(each) for each in [*names, "in the client"]]), _NAME)
    what = min(max([len(each.happened) for each in found.steps], default=0), _WHAT)
    numbers = "".join(f"{each:>9}" for each in (*PHASES, "own ms"))
    yield f"{'':<{name}}  {'':<{what}}{numbers}"
    for each in found.steps:
        yield from _step(each, name, what)
    blank = f"{'':<{what}}" + " " * 9 * len(PHASES)
    yield f"{'in the client':<{name}}  {blank}{_ms(found.client_seconds):>9}"
    yield f"{'in all':<{name}}  {blank}{_ms(found.seconds):>9}"
    if found.not_reached:
        yield f"\nnot reached: {', '.join(found.not_reached)}"
    if found.merged:
        yield f"\npart of the layer around them: {', '.join(found.merged)}"


def _step(step: Step, name: int, what: int) -> Iterator[str]:
    times = "".join(f"{_ms(step.seconds[each]):>9}" for each in PHASES)
    said = f"{_cut(step.name, name):<{name}}  {_cut(step.happened, what):<{what}}"
    yield f"{said}{times}{_ms(step.own):>9}"
    notes = list(step.changed)
    if len(step.happened) > what:
        notes.insert(0, step.happened)
    if step.kind == "layer":
        for title, (before, after) in (
            ("request", step.request_bytes),
            ("response", step.response_bytes),
        ):
            if before != after and before:
                notes.append(f"{title} {before} → {_bytes(after)}")
    if notes:
        yield from textwrap.wrap(
            "; ".join(notes), _WIDTH, initial_indent="    ", subsequent_indent="    "
        )


def _times(found: Explanation) -> str:
    return f", median of {found.repeated}" if found.repeated > 1 else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _bytes(number: int) -> str:
    return "1 byte" if number == 1 else f"{number} bytes"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"
