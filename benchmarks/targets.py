"""
The promises about speed and memory, and whether the last run kept them.

A target is the bound of one figure in one row of a benchmark's document. The bounds marked
"at first" are those that the first engine was built to; they stay as a floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.document import Document, find


@dataclass(frozen=True)
class Target:
    """
    A promise.

    Args:
        says: What is measured, in words.
        benchmark: Whose figure it is.
        where: The row, by the values that name it.
        figure: The figure, as a path into the row.
        at_least: The lower bound.
        at_most: The upper bound.
        unit: What is measured in; `x` is a ratio.
        floor: The same figure of what keeps none of the rules of httpmw.
    """

    says: str
    benchmark: str
    where: Mapping[str, Any]
    figure: Sequence[str]
    at_least: float = -math.inf
    at_most: float = math.inf
    unit: str = "x"
    floor: Target | None = None

    def measured(self, documents: Mapping[str, Document]) -> float | None:
        """
        Look the figure up; None where its benchmark was not run.
        """
        if self.benchmark not in documents:
            return None
        value: Any = find(documents[self.benchmark]["rows"], **self.where)
        for key in self.figure:
            value = None if value is None else value[key]
        return value["median"] if isinstance(value, dict) else value

    def above(self, style: str) -> Target:
        """
        Give the same target with its floor, which is of that style.
        """
        if self.where["style"] == "BaseHTTP":  # compared with it
            return replace(self, floor=replace(self, figure=(*self.figure[:-1], style)))
        return replace(self, floor=replace(self, where={**self.where, "style": style}))

    def holds(self, measured: float) -> bool:
        return self.at_least <= measured <= self.at_most

    @property
    def bound(self) -> str:
        if self.at_most == math.inf:
            return f"at least {self.at_least:g} {self.unit}"
        return f"at most {self.at_most:g} {self.unit}"


def layers(
    says: str, number: int, at_most: float, body: str = "one message", style: str = "one yield"
) -> Target:
    """
    Bound what layers cost, where as many layers written by hand cost 1.
    """
    where = {"series": "by hand", "style": style, "layers": number, "body": body}
    return Target(says, "grid", where, ("times", "asgi"), at_most=at_most)


def base_http(says: str, number: int, against: str, at_least: float) -> Target:
    """
    Bound what layers of Starlette's `BaseHTTPMiddleware` cost, where others cost 1.
    """
    where = {"series": "asyncio", "style": "BaseHTTP", "layers": number, "body": "one message"}
    return Target(says, "grid", where, ("times", against), at_least=at_least)


def aside(says: str, style: str, number: int) -> Target:
    """
    Bound the µs that a layer adds which steps aside.
    """
    where = {"series": "by hand", "style": style, "layers": number, "body": "one message"}
    return Target(says, "grid", where, ("added per layer",), at_most=0.3, unit="µs")


def stack(says: str, kind: str, number: int) -> Target:
    """
    Bound what an editable stack costs, where the same layers built by Starlette cost 1.
    """
    where = {"application": "Starlette", "kind": kind, "layers": number}
    return Target(says, "stack", where, ("times",), at_most=1.05)


def memory(says: str, style: str) -> Target:
    """
    Bound the memory of an open event stream, where that of layers written by hand is 1.
    """
    return Target(says, "memory", {"style": style}, ("times", "asgi"), at_most=1.0)


def served(says: str, against: str, at_least: float) -> Target:
    """
    Bound the requests per second under layers of httpmw, where those under others are 1.
    """
    where = {"framework": "starlette", "route": "json", "layers": 5, "style": "one yield"}
    return Target(says, "servers", where, ("times", against), at_least=at_least)


def websocket(says: str, what: str, at_most: float) -> Target:
    """
    Bound what layers cost a WebSocket, where a request or the bare application is 1.
    """
    return Target(says, "handshakes", {"what": what}, ("times",), at_most=at_most)


def job(name: str, size: str, at_most: float) -> Target:
    """
    Bound what a job costs, where the same by hand is 1: what holds today, not yet the goal.
    """
    return Target(
        f"{name}, {size}", "jobs", {"job": name, "size": size}, ("times",), at_most=at_most
    )


def budget(layer: str, figure: str, at_most: float, phase: str = "whole") -> Target:
    """
    Bound what one layer costs in one phase: a budget of `httpmw.testing.overhead`.
    """
    says, unit = {
        "times": ("over 20 chunks, no-op layer = 1", "x"),
        "extra us": (f"per {phase}, beyond a no-op layer", "µs"),
        "peak bytes": ("over 20 chunks, most memory", "bytes"),
    }[figure]
    where = {"layer": layer, "phase": phase}
    return Target(f"{layer} {says}", "budget", where, (figure,), at_most=at_most, unit=unit)


TARGETS = [
    *(
        job(name, size, at_most)
        for name, bounds in {
            "access log": (15, 5.5, 2.3),
            "access log, on_sent": (20, 6, 2.5),
            "five access logs": (7, 2, 0.7),
            "transform": (24, 11, 6.5),
            "transform, child": (26, 13, 8.5),
            "read": (7.5, 4.5, 2.8),
            "request body": (22, 8, 5),
        }.items()
        for size, at_most in zip(("one message", "20 chunks", "200 chunks"), bounds, strict=True)
    ),
    layers("1 layer, hand-written = 1", 1, 2.0).above("bare generator"),
    layers("2 layers", 2, 1.5),
    layers("5 layers", 5, 1.1),
    layers("10 layers", 10, 1.0),
    layers("20 layers", 20, 0.95),
    layers("5 layers over 20 chunks", 5, 0.6, "20 chunks"),
    layers("5 layers over 1,000 chunks", 5, 0.3, "1,000 chunks"),
    layers("1 layer, at first", 1, 2.6),
    layers("5 layers, at first", 5, 1.4),
    layers("10 layers, at first", 10, 1.2),
    layers("5 layers over 20 chunks, at first", 5, 0.7, "20 chunks"),
    Target(
        "early answer, hand-written = 1",
        "grid",
        {"series": "by hand", "style": "httpmw: early answer", "layers": 1},
        ("times", "asgi: early answer"),
        at_most=1.0,
    ).above("bare: early answer"),
    aside("1 layer that steps aside by `when=`", "when false", 1).above("bare predicate"),
    aside("each of 20 that step aside by `when=`", "when false", 20),
    aside("1 layer that steps aside by None", "returns None", 1).above("bare predicate"),
    aside("each of 20 that step aside by None", "returns None", 20),
    base_http("1 layer of BaseHTTPMiddleware, httpmw = 1", 1, "one yield", 25).above(
        "bare generator"
    ),
    base_http("5 layers of BaseHTTPMiddleware, httpmw = 1", 5, "one yield", 40),
    base_http("1 layer of BaseHTTPMiddleware, drop-in = 1", 1, "drop-in", 15).above(
        "bare dispatch"
    ),
    base_http("5 layers of BaseHTTPMiddleware, drop-in = 1", 5, "drop-in", 15),
    stack("stack of 5 hand-written layers, Starlette's = 1", "asgi", 5),
    stack("stack of 10 hand-written layers", "asgi", 10),
    stack("stack of 5 layers of httpmw", "one yield", 5),
    stack("stack of 10 layers of httpmw", "one yield", 10),
    memory("bytes per open stream and layer, hand-written = 1", "one yield"),
    memory("bytes per open stream and layer, two yields", "two yields").above("bare two yields"),
    budget("one yield", "times", 3.5),
    budget("two yields", "times", 14),
    budget("drop-in", "times", 6),
    budget("one yield", "extra us", 0.1, "chunk"),
    budget("one yield", "peak bytes", 2048),
    budget("two yields", "peak bytes", 4096),
    served("requests per second, 5 layers, hand-written = 1", "asgi", 0.97).above("bare generator"),
    served("requests per second, 5 layers, BaseHTTPMiddleware = 1", "BaseHTTP", 8),
    websocket("a WebSocket handshake through 1 layer, a request = 1", "handshake", 1.2),
    websocket("1,000 messages each way through 5 layers, without = 1", "messages", 1.01),
]


def of_grid(series: str) -> list[Target]:
    """
    Give the targets that rest on one series of the grid, each with its floor.
    """
    found = [t for t in TARGETS if t.benchmark == "grid" and t.where["series"] == series]
    return found + [t.floor for t in found if t.floor is not None]


def table(documents: Mapping[str, Document], targets: Sequence[Target]) -> tuple[bool, str]:
    """
    Hold the targets against what was measured; one that was not measured is not missed.
    """
    kept = True
    lines = [f"{'':<8}{'figure':<56}{'measured':>10}   target"]
    for target in targets:
        measured = target.measured(documents)
        holds = measured is None or target.holds(measured)
        kept = kept and holds
        word = "not run" if measured is None else "ok" if holds else "MISSED"
        number = "" if measured is None else f"{measured:.2f}"
        lines.append(f"{word:<8}{target.says:<56}{number:>10}   {target.bound}")
    return kept, "\n".join(lines)
