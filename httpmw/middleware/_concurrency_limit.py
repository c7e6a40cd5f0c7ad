# How many requests at once.
#
# Rule 1: a slot is given back once, on every way out.
# Rule 2: who leaves the queue leaves it at once: a client that is gone, a request that is
# cancelled. A slot that was given to him meanwhile goes on to the next.
# Rule 3: what stays open is no work: streams of events and sockets give their slot back at the
# start, and have a limit of their own.
# Rule 4: of an adaptive limit only answers are samples that the application itself has worked for.

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal

import anyio
from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._context import running_loop, task_of
from httpmw._errors import DeadlineExceeded
from httpmw._response import AppResponse

from ._draining import Drain
from ._gcra import is_count
from ._gradient import AdaptiveLimit, Gradient
from ._ready import Exclude, Ready
from ._refuse import (
    COUNTED,
    STREAMS,
    Counted,
    Refusal,
    Respond,
    tell_shed,
)
from ._stores import is_seconds

_log: Final = logging.getLogger("httpmw.concurrency")

_SERVER_ERROR: Final = 500
_NOT_MODIFIED: Final = 304
# How often who waits in the queue asks whether its client is still there, in seconds.
_LOOK: Final = 0.25
# How often the delay of the loop is measured.
_TICK: Final = 0.05
# How often refusals are told.
_TELL: Final = 10.0


class ConcurrencyLimitMiddleware(Ready):
    """
    Limit how many requests are worked on at once; who comes beyond that waits, or gets a 503.

    An application that takes on more than it can do answers everybody too late. With a limit it
    answers as many as it can, and tells the others at once, with `Retry-After`. It is a limit of
    this process: with four workers there are four.

    Args:
        app: The inner app.
        limit: How many at once; or an `AdaptiveLimit`, which finds it out by the time to the
            response.
        max_queue: How many may wait for a slot.
        queue_timeout: For how long, in seconds.
        queue: Who is next: `"lifo"`, who came last, whose client is still there most likely; or
            `"fifo"`.
        hold: Until when a slot is held: `"app"`, until the application has ended, background tasks
            included; `"body"`, until the response is out; `"start"`, until it begins.
        max_streams: How many event streams, other streams of messages and WebSockets at once; None:
            as many as there are. They give their slot back where they begin.
        partition: A function of the connection that names the limit a request counts in, such as a
            group of routes; each has *limit* and *max_queue* of its own. There should be few.
        max_loop_delay: How late the event loop may be, in seconds; while it is later, requests are
            refused. On asyncio only.
        event_stream: What an `EventSource` gets in place of a 503, with which a browser would never
            ask again: `"retry"`, an empty stream after which it does; or `"status"`.
        response: Makes the response in place of a problem document (RFC 9457): called with the
            connection and the `Problem`.
        drain: Whether the body of a refused request is received, and up to which bounds; a mapping
            has `max_size` (bytes, by default 1 MiB) and `seconds` (by default 1).
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate: checks of health, say.
        websocket: As in `HTTPMiddleware`; by default True: a handshake has a slot to its answer.

    Raises:
        TypeError: An option is not what it has to be.
    """

    kind = "concurrency_limit"

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit: int | AdaptiveLimit,
        max_queue: int = 0,
        queue_timeout: float = 1.0,
        queue: Literal["lifo", "fifo"] = "lifo",
        hold: Literal["app", "body", "start"] = "app",
        max_streams: int | None = None,
        partition: Callable[[Connection[Any]], str] | None = None,
        max_loop_delay: float | None = None,
        event_stream: Literal["retry", "status"] = "retry",
        response: Respond | None = None,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = True,
    ) -> None:
        if not isinstance(limit, AdaptiveLimit) and not is_count(limit, least=1):
            raise self._bad("limit", limit, "a number above 0, or an `AdaptiveLimit`")
        self._check_integer("max_queue", max_queue, 0, None, "a number, 0 or more")
        if not is_seconds(queue_timeout):
            raise self._bad("queue_timeout", queue_timeout, "seconds, more than 0")
        if queue not in ("lifo", "fifo"):
            raise self._bad("queue", queue, '"lifo" or "fifo"')
        if hold not in ("app", "body", "start"):
            raise self._bad("hold", hold, '"app", "body" or "start"')
        if max_streams is not None and not is_count(max_streams):
            raise self._bad("max_streams", max_streams, "a number, 0 or more, or None")
        if max_loop_delay is not None and not is_seconds(max_loop_delay):
            raise self._bad("max_loop_delay", max_loop_delay, "seconds, more than 0, or None")
        if event_stream not in ("retry", "status"):
            raise self._bad("event_stream", event_stream, '"retry" or "status"')
        self._check_callables(partition=partition, response=response)
        self.is_adaptive = isinstance(limit, AdaptiveLimit)
        self._limit = limit
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._is_lifo = queue == "lifo"
        self._hold = hold
        self._max_streams = max_streams
        self._streams = 0
        self._partition = partition
        self._rooms: dict[str, _Room] = {}
        self._delay = None if max_loop_delay is None else _LoopDelay(max_loop_delay)
        self._retries = event_stream == "retry"
        self._refusal = Refusal(type(self), response, drain)
        self._refused = 0
        self._told = -_TELL
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Have the request wait for a slot, and refuse it where there is none.
        """
        room = self._room_of(conn)
        is_late = self._delay is not None and self._delay.is_over()
        if is_late or not (room.enter() or await self._wait(conn, room)):
            yield await self._shed(conn, room)
            return
        began, in_flight = time.perf_counter(), room.in_flight
        request = conn.scope[COUNTED] = Counted(self, conn.scope.get(COUNTED))
        slot = _Slot(room)
        try:
            try:
                response = yield
            except DeadlineExceeded:
                room.drop()
                raise
            self._sample(conn, room, request, response, time.perf_counter() - began, in_flight)
            if _stays_open(response):
                slot.leave()
                if self._max_streams is not None and self._streams >= self._max_streams:
                    yield await self._shed(conn, room)
                    return
                self._streams += 1
                try:
                    yield response
                finally:
                    self._streams -= 1
            elif self._hold == "app":
                yield response
            elif self._hold == "body":
                response.on_sent(slot.leave_after)
                slot = _Slot(None)  # it is the callback's
        finally:
            slot.leave()

    def _room_of(self, conn: Connection[Any]) -> _Room:
        name = "" if self._partition is None else self._partition(conn)
        room = self._rooms.get(name)
        if room is None:
            if not isinstance(name, str):
                raise _errors.bad_result("partition", self._partition, name, "a text")
            room = self._rooms[name] = _Room(self._limit, self._delay, is_lifo=self._is_lifo)
        return room

    async def _wait(self, conn: Connection[Any], room: _Room) -> bool:
        """
        Wait for a slot; False where there is none in time, or nobody for whom.
        """
        if len(room.waiting) >= self._max_queue:
            return False
        waiter = _Waiter()
        room.waiting.append(waiter)
        end = anyio.current_time() + self._queue_timeout
        try:
            while not waiter.has_slot:
                left = end - anyio.current_time()
                if left <= 0 or await conn.is_disconnected():
                    break
                with anyio.move_on_after(min(left, _LOOK)):
                    await waiter.event.wait()
        except BaseException:
            room.give_up(waiter)  # rule 2
            raise
        if waiter.has_slot:
            return True
        room.give_up(waiter)
        return False

    def _sample(
        self,
        conn: Connection[Any],
        room: _Room,
        request: Counted,
        response: AppResponse,
        seconds: float,
        in_flight: int,
    ) -> None:
        gradient = room.gradient
        if gradient is None:
            return
        status = response.status_code
        if request.is_refused:
            if status >= _SERVER_ERROR and not request.is_shed:
                room.drop()  # a time limit further in
        elif (
            status < _SERVER_ERROR
            and status != _NOT_MODIFIED
            and not conn.is_websocket
            and conn["method"] not in ("HEAD", "OPTIONS")
        ):
            gradient.sample(seconds, in_flight)

    async def _shed(self, conn: Connection[Any], room: _Room) -> Response:
        self._refused += 1
        now = time.monotonic()
        if now - self._told >= _TELL:
            self._told = now
            _log.warning(
                "%d requests were refused: %d are in flight, the limit is %d, %d wait, %d streams",
                self._refused,
                room.in_flight,
                room.limit,
                len(room.waiting),
                self._streams,
            )
            self._refused = 0
        tell_shed(conn)
        # Not all of them at once again.
        wait = random.randint(1, 3)  # noqa: S311 - no secret
        return await self._refusal.unavailable(
            conn,
            "Too many requests are being processed.",
            "overloaded",
            wait,
            retries=self._retries,
        )


def _stays_open(response: AppResponse) -> bool:
    if response.is_acceptance:
        return True
    for name, value in response.raw_headers:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower() in STREAMS
    return False


class _Waiter:
    __slots__ = ("event", "has_slot")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.has_slot = False


class _Room:
    # The slots of one partition.

    def __init__(
        self, limit: int | AdaptiveLimit, delay: _LoopDelay | None, *, is_lifo: bool
    ) -> None:
        self.gradient = Gradient(limit) if isinstance(limit, AdaptiveLimit) else None
        self._fixed = limit if isinstance(limit, int) else 0
        self._delay = delay
        self._is_lifo = is_lifo
        self.in_flight = 0
        self.waiting: deque[_Waiter] = deque()

    @property
    def limit(self) -> int:
        return self._fixed if self.gradient is None else int(self.gradient.limit)

    def enter(self) -> bool:
        if self.in_flight >= self.limit:
            return False
        self._take()
        return True

    def _take(self) -> None:
        self.in_flight += 1
        if self._delay is not None:
            self._delay.enter()

    def leave(self) -> None:
        self.in_flight -= 1
        if self._delay is not None:
            self._delay.leave()
        while self.waiting and self.in_flight < self.limit:
            waiter = self.waiting.pop() if self._is_lifo else self.waiting.popleft()
            self._take()
            waiter.has_slot = True
            waiter.event.set()

    def give_up(self, waiter: _Waiter) -> None:
        if waiter.has_slot:
            self.leave()
        else:
            self.waiting.remove(waiter)

    def drop(self) -> None:
        if self.gradient is not None:
            self.gradient.drop()


class _Slot:
    __slots__ = ("_room",)

    def __init__(self, room: _Room | None) -> None:
        self._room = room

    def leave(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.leave()

    def leave_after(self, response: AppResponse) -> None:  # noqa: ARG002 - what `on_sent` calls
        self.leave()


class _LoopDelay:
    # How late the loop is: by a timer that is set again and again while there are requests.

    def __init__(self, most: float) -> None:
        self._most = most
        self._users = 0
        self._due = 0.0
        self._late = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def is_over(self) -> bool:
        loop = running_loop()
        if loop is None or task_of(loop) is None:
            raise RuntimeError(
                "`max_loop_delay=` measures the loop of asyncio, and this is another event loop.\n"
                "Leave it out, or serve the application on asyncio."
            )
        if self._timer is None:
            return False
        return max(self._late, loop.time() - self._due) > self._most

    def enter(self) -> None:
        self._users += 1
        if self._timer is None:
            self._set(asyncio.get_running_loop())

    def leave(self) -> None:
        self._users -= 1
        if not self._users and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._late = 0.0

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + _TICK
        self._timer = loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        # One turn of a loop that keeps up halves what was late.
        self._late = max(loop.time() - self._due, self._late / 2)
        self._set(loop)
