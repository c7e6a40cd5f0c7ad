# What a middleware costs: the time and the memory of each phase of a request.
#
# Rule 1: three stacks answer the same requests in turn: the app alone, the app under a layer that
# is written by hand and does nothing, and the app under the middleware. A drift of the machine
# hits them alike.
# Rule 2: the marks stand in the app and around the call, not in what is measured. What the app
# alone takes between two marks, the marks themselves counted, is taken off the other two.
# Rule 3: time and memory are taken in different requests, as tracing memory takes time.
# Rule 4: no assertion is made here. Whoever wants a budget compares the figures with it.

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final, Literal, TypeAlias

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Overhead", "Phase", "overhead"]

_MEMORY_REQUESTS: Final = 30
_WARM_UP: Final = 5

# One reading at a mark: seconds; blocks and bytes in use, and the most bytes since the last mark.
_Reading: TypeAlias = tuple[float, ...]
_Read: TypeAlias = Callable[[], _Reading]


@dataclass(frozen=True)
class Phase:
    """
    What a middleware costs in one phase of a request, and what a layer that does nothing costs.

    What the inner app alone takes is in neither.

    Attributes:
        seconds: The time of the middleware, in seconds.
        noop_seconds: The time of the layer that does nothing, in seconds.
        blocks: How many memory blocks more are in use at the end of the phase than at its
            beginning; fewer, where it is negative.
        noop_blocks: The same of the layer that does nothing.
        peak_bytes: How many bytes more than at its beginning are in use during the phase, at most.
        noop_peak_bytes: The same of the layer that does nothing.
    """

    seconds: float
    noop_seconds: float
    blocks: int
    noop_blocks: int
    peak_bytes: int
    noop_peak_bytes: int

    @property
    def extra_seconds(self) -> float:
        """
        The time beyond that of the layer that does nothing, in seconds.
        """
        return self.seconds - self.noop_seconds

    @property
    def times(self) -> float:
        """
        The time as a multiple of that of the layer that does nothing; NaN where that has none.
        """
        return self.seconds / self.noop_seconds if self.noop_seconds > 0 else float("nan")


@dataclass(frozen=True)
class Overhead:
    """
    What a middleware costs, phase by phase; `str()` of it is a table.

    Attributes:
        before: From the call of the middleware to the call of the inner app. Where the inner app
            is not called, this is the whole request.
        start: While the inner app sends its response start.
        chunk: While it sends one message of its body, on the average.
        after: From the return of the inner app to the return of the middleware.
        whole: The whole request.
        chunks: How many messages the body of the request had.
    """

    before: Phase
    start: Phase
    chunk: Phase
    after: Phase
    whole: Phase
    chunks: int

    def __str__(self) -> str:
        names = {
            "before": self.before,
            "at the start": self.start,
            "per chunk": self.chunk,
            "after": self.after,
            f"whole, {self.chunks} chunks": self.whole,
        }
        head = f"{'':<20}{'time':>12}{'no-op':>12}{'times':>8}"
        head += f"{'blocks':>8}{'no-op':>8}{'peak':>10}{'no-op':>10}"
        lines = [
            f"{name:<20}{each.seconds * 1e6:>9.2f} µs{each.noop_seconds * 1e6:>9.2f} µs"
            f"{each.times:>7.1f}x{each.blocks:>8}{each.noop_blocks:>8}"
            f"{each.peak_bytes:>8} B{each.noop_peak_bytes:>8} B"
            for name, each in names.items()
        ]
        return "\n".join([head, *lines])


def overhead(  # noqa: PLR0913 - what the request is, and how often it is sent; by name only
    make_middleware: Callable[[ASGIApp], ASGIApp],
    *,
    scope: Mapping[str, Any] | None = None,
    body: bytes = b"",
    chunks: int = 20,
    requests: int = 1000,
    backend: Literal["asyncio", "trio"] = "asyncio",
) -> Overhead:
    """
    Measure what a middleware adds to a request, in time and memory, phase by phase.

    The same requests are sent through a layer that is written by hand and does nothing, in turn
    with those through the middleware; its figures stand beside the others, so that a budget can
    be a multiple and hold on any machine:

        result = overhead(lambda app: HTTPMiddleware(app, dispatch=mw))
        print(result)
        assert result.whole.times < 10

    Time is the median over the requests; what the middleware waits for is in it. It runs in a
    thread of its own, with an event loop of its own, so it can be called from anywhere; the
    caller waits for it.

    Args:
        make_middleware: Puts the middleware around an app: any ASGI middleware class that needs
            nothing else, or a `lambda app: ...`.
        scope: What is to be other in the scope of the requests, a GET of `/` by default.
        body: The body of the requests, which comes in one message.
        chunks: How many messages of body the inner app sends, at least 1.
        requests: How many requests are timed through each stack, at least 1.
        backend: The event loop, `asyncio` or `trio`.

    Returns:
        The figures.

    Raises:
        ValueError: *chunks* or *requests* is less than 1.
        Exception: Whatever the middleware raises.
    """
    for name, number in (("chunks", chunks), ("requests", requests)):
        if number < 1:
            raise ValueError(f"overhead({name}={number}): expected 1 or more")
    probe = _Probe(make_middleware, {**_SCOPE, **(scope or {})}, body, chunks)
    measure = partial(anyio.run, probe.run, requests, backend=backend)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(measure).result()


_SCOPE: Final[Scope] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"localhost"), (b"accept", b"*/*")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
}


class _NoOp:
    # What a layer that wraps `send` cannot do without.

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            await send(message)

        await self.app(scope, receive, send_on)


@dataclass(frozen=True)
class _Costs:
    # Of one request: a number for each of `_PHASES`.
    before: float
    start: float
    chunk: float
    after: float
    whole: float


@dataclass(frozen=True)
class _Answered(_Costs):
    # The app had no part in it, so there is nothing of it to take off.
    before: float
    start: float = 0.0
    chunk: float = 0.0
    after: float = 0.0
    whole: float = 0.0


_PHASES: Final = ("before", "start", "chunk", "after", "whole")


class _Probe:
    """
    The inner app, the server, and the marks in both.
    """

    def __init__(
        self, make_middleware: Callable[[ASGIApp], ASGIApp], scope: Scope, body: bytes, chunks: int
    ) -> None:
        self._scope = scope
        self._body = body
        self._chunks = chunks
        self._stacks: dict[str, ASGIApp] = {
            "bare": self._app,
            "noop": _NoOp(self._app),
            "middleware": make_middleware(self._app),
        }
        self._marks: list[_Reading] = []
        self._read: _Read = _seconds

    async def run(self, requests: int) -> Overhead:
        await self._measure(_seconds, _WARM_UP, _difference(0))
        seconds = (await self._measure(_seconds, requests, _difference(0)))[0]
        with _tracing():
            await self._measure(_memory, _WARM_UP, _difference(0))
            blocks, peak = await self._measure(
                _memory, _MEMORY_REQUESTS, _difference(0), _highest_above
            )
        phases = {
            name: Phase(
                seconds["middleware"][name],
                seconds["noop"][name],
                round(blocks["middleware"][name]),
                round(blocks["noop"][name]),
                round(peak["middleware"][name]),
                round(peak["noop"][name]),
            )
            for name in _PHASES
        }
        return Overhead(**phases, chunks=self._chunks)

    async def _measure(
        self, read: _Read, requests: int, *costs: Callable[[Sequence[_Reading]], float]
    ) -> list[dict[str, dict[str, float]]]:
        """
        Send requests through all stacks; give what two of them cost beyond the app alone.
        """
        self._read = read
        order = list(self._stacks)
        taken: list[dict[str, list[_Costs]]] = [{name: [] for name in order} for _ in costs]
        for _ in range(requests):
            order.append(order.pop(0))
            for name in order:
                await self._request(self._stacks[name])
                for of_cost, cost in zip(taken, costs, strict=True):
                    of_cost[name].append(self._costs(cost))
        return [_beyond_bare(of_cost) for of_cost in taken]

    async def _request(self, app: ASGIApp) -> None:
        scope = {**self._scope, "headers": list(self._scope["headers"])}
        self._marks = []
        self._mark()
        await app(scope, self._receive, self._send)
        self._mark()

    def _mark(self) -> None:
        self._marks.append(self._read())

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        mark = self._mark
        mark()
        try:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no")]
            start = {"type": "http.response.start", "status": 200, "headers": headers}
            mark()
            await send(start)
            mark()
            for number in range(1, self._chunks + 1):
                more_body = number < self._chunks
                chunk = {"type": "http.response.body", "body": b"hello", "more_body": more_body}
                mark()
                await send(chunk)
                mark()
        finally:
            mark()

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Message) -> None:
        pass

    def _costs(self, cost: Callable[[Sequence[_Reading]], float]) -> _Costs:
        marks = self._marks
        whole = cost(marks)
        if len(marks) < 6:  # noqa: PLR2004 - the app was not called, or failed at its start
            return _Answered(before=whole, whole=whole)
        sends = [cost(marks[at : at + 2]) for at in range(4, len(marks) - 2, 2)]
        return _Costs(
            before=cost(marks[0:2]),
            start=cost(marks[2:4]),
            chunk=sum(sends) / len(sends) if sends else 0.0,
            after=cost(marks[-2:]),
            whole=whole,
        )


def _seconds() -> _Reading:
    return (time.perf_counter(),)


def _memory() -> _Reading:
    size, peak = tracemalloc.get_traced_memory()
    reading = (sys.getallocatedblocks(), size, peak)
    tracemalloc.reset_peak()
    return reading


def _difference(index: int) -> Callable[[Sequence[_Reading]], float]:
    return lambda marks: marks[-1][index] - marks[0][index]


def _highest_above(marks: Sequence[_Reading]) -> float:
    return max(peak for _, _, peak in marks[1:]) - marks[0][1]


@contextmanager
def _tracing() -> Iterator[None]:
    # What the collector frees would be taken for what the middleware frees.
    was_enabled = gc.isenabled()
    was_tracing = tracemalloc.is_tracing()
    gc.disable()
    if not was_tracing:
        tracemalloc.start()
    try:
        yield
    finally:
        if not was_tracing:
            tracemalloc.stop()
        if was_enabled:
            gc.enable()


def _beyond_bare(taken: Mapping[str, Sequence[_Costs]]) -> dict[str, dict[str, float]]:
    bare = _medians(taken["bare"])
    beyond = {}
    for stack in ("noop", "middleware"):
        of_stack = _medians(taken[stack])
        if not isinstance(taken[stack][-1], _Answered):
            of_stack = {name: of_stack[name] - bare[name] for name in _PHASES}
        beyond[stack] = of_stack
    return beyond


def _medians(taken: Sequence[_Costs]) -> dict[str, float]:
    return {name: median(getattr(each, name) for each in taken) for name in _PHASES}
