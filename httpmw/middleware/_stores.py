# What the kinds have in common that keep something in a store.
#
# Rule 1: a call has a deadline, whatever its client makes of a cancellation: it runs in a task of
# its own. When that is given up nobody waits for it, and it is cancelled again and again until it
# is gone: clients lose a cancellation, or obey it seconds later.
# Rule 2: a call that was given up changes nothing later, though the server carries it out when it
# goes on. What it changes has a last moment in the server's own time (`Clock`), or the token of a
# claim that somebody else has by then.
# Rule 3: whatever a client raises is a `StoreError`; which exceptions those are nobody can list.
# Rule 4: a store that has failed is left alone for a while, then asked by one call, and then by
# all: else each request of an outage would wait, and open a connection.
# Rule 5: keys are hashed before they get there. They come from clients, may be long, and may have
# characters that mean something to a store.

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import anyio

from httpmw._context import running_loop, task_of
from httpmw._errors import HTTPMWError

T = TypeVar("T")

# Seconds between two cancellations of a call that was given up: they double, since one that never
# ends must not keep the loop busy.
_AGAIN: Final = 0.02
_AGAIN_AT_MOST: Final = 5.0


class StoreError(HTTPMWError):
    """
    A store did not do what it was asked for, or not in time.

    The exception of its client, where there was one, is the cause.
    """


def is_seconds(value: Any) -> bool:
    """
    Whether *value* is a time that can pass.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def is_like(pattern: re.Pattern[str], value: Any) -> bool:
    """
    Whether *value* is a text, and all of it what the pattern says.
    """
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def hashed(*parts: str) -> str:
    """
    Give the name that a store has for *parts*: 128 bits in hexadecimal.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))  # so that no two lists are the same bytes
        digest.update(data)
    return digest.hexdigest()


# ---------------------------------------------------------------------- one call


async def within(seconds: float, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """
    Await what *make* gives, for so many seconds at most (rule 1).

    Raises:
        StoreError: The time is over; or the client cancels itself.
        Exception: What was raised in it.
    """
    loop = running_loop()
    if loop is None or task_of(loop) is None:  # trio, whose scopes hold
        with anyio.move_on_after(seconds):
            return await make()
        raise _too_late(seconds)
    task = loop.create_task(make())
    try:
        await asyncio.wait((task,), timeout=seconds)
    finally:
        if not task.done():
            _give_up(task, loop)
    if not task.done():
        raise _too_late(seconds)
    if task.cancelled():
        raise StoreError("The client has cancelled its own call.")
    return task.result()


def _too_late(seconds: float) -> StoreError:
    return StoreError(f"There was no answer in {seconds:g} s.")


# A task that nobody refers to may be collected while it runs.
_given_up: Final[set[asyncio.Task[Any]]] = set()


def _give_up(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
    _given_up.add(task)
    task.add_done_callback(_ended)
    _cancel(task, loop, _AGAIN)


def _cancel(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop, pause: float) -> None:
    if not task.done():
        task.cancel()
        loop.call_later(pause, _cancel, task, loop, min(pause * 2, _AGAIN_AT_MOST))


def _ended(task: asyncio.Task[Any]) -> None:
    _given_up.discard(task)
    if not task.cancelled():
        task.exception()  # it is known that it failed


def aside(made: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """
    Run a coroutine whose end nobody waits for, and whose failure nobody asks for; on asyncio.
    """
    task = asyncio.get_running_loop().create_task(made)
    _given_up.add(task)
    task.add_done_callback(_ended)
    return task


# ---------------------------------------------------------------------- all calls


class Caller:
    """
    How one layer calls its store.

    Args:
        store: The store.
        timeout: The deadline of each call, in seconds.
        retry: For how long a store that has failed is left alone, in seconds; 0: not at all.
        log: Where an outage is told, once, and its end.
        meanwhile: What the layer does without the store, for the log.
    """

    def __init__(
        self, store: object, *, timeout: float, retry: float, log: logging.Logger, meanwhile: str
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._retry = retry
        self._log = log
        self._meanwhile = meanwhile
        # When it was lost; None: it is there.
        self._lost: float | None = None
        self._ask_at = -math.inf
        self._failed = 0

    async def call(self, make: Callable[[float], Coroutine[Any, Any, T]]) -> T:
        """
        Give what the store gives; *make* is told the deadline, in seconds of `time.monotonic()`.

        Raises:
            StoreError: It does not, or is left alone.
            RuntimeError: It cannot be asked on this event loop.
        """
        if getattr(self._store, "asyncio_only", False):
            check_loop(self._store)
        if self._lost is not None and self._retry:
            now = time.monotonic()
            if now < self._ask_at:
                self._failed += 1
                raise StoreError("The store is left alone for a while after it has failed.")
            self._ask_at = now + max(self._retry, self._timeout)  # this one asks
        try:
            deadline = time.monotonic() + self._timeout
            given = await within(self._timeout, lambda: make(deadline))
        except StoreError as exc:
            self._lose(exc)
            raise
        except Exception as exc:
            self._lose(exc)
            raise StoreError(f"{type(exc).__name__}: {exc}") from exc
        if self._lost is not None:
            self._find()
        return given

    def start(self, make: Callable[[float], Coroutine[Any, Any, T]]) -> None:
        """
        Have something done whose end nobody waits for; on asyncio.
        """
        _ = aside(self._run(make))

    async def call_aside(self, make: Callable[[float], Coroutine[Any, Any, T]]) -> None:
        """
        Do so on asyncio; on trio it is waited for.
        """
        loop = running_loop()
        if loop is None or task_of(loop) is None:
            await self._run(make)
        else:
            self.start(make)

    async def _run(self, make: Callable[[float], Coroutine[Any, Any, T]]) -> None:
        with suppress(StoreError):  # it is in the log
            await self.call(make)

    def _lose(self, exc: Exception) -> None:
        now = time.monotonic()
        self._failed += 1
        self._ask_at = now + self._retry
        if self._lost is not None:
            return
        self._lost = now
        self._log.error(
            "%s has failed: %s: %s; %s%s",
            type(self._store).__name__,
            type(exc).__name__,
            exc,
            self._meanwhile,
            f", and it is asked again each {self._retry:g} s" if self._retry else "",
            exc_info=exc if exc.__cause__ is None and not isinstance(exc, StoreError) else None,
        )

    def _find(self) -> None:
        lost, self._lost = self._lost, None
        failed, self._failed = self._failed, 0
        assert lost is not None  # noqa: S101 - asked before
        self._log.warning(
            "%s is back after %.1f s, in which %d calls went without it",
            type(self._store).__name__,
            time.monotonic() - lost,
            failed,
        )


def check_loop(store: object) -> None:
    """
    Refuse to ask a client of asyncio's anywhere else.

    Its error would look like that of a store that is gone, and who lets requests pass without the
    store would never limit anything.
    """
    loop = running_loop()
    if loop is None or task_of(loop) is None:
        raise RuntimeError(
            f"{type(store).__name__} has a client that runs on asyncio only, and this is another"
            " event loop.\nServe the application on asyncio, or take MemoryStore(), which counts"
            " in one process."
        )


# ---------------------------------------------------------------------- the server's time


class Clock:
    """
    What is known of the clock of a server: how far it is ahead of `time.monotonic()`.

    Each answer says what the time was there, at some moment between question and answer; so it is
    ahead by at least *at the answer* and at most *at the question*. Of what is known the greatest
    lower bound counts, so that a last moment is never late.
    """

    def __init__(self) -> None:
        # Until something is known: as if its clock were ours.
        self._ahead: float | None = None

    def at(self, moment: float) -> float:
        """
        Give the server's time at a moment of `time.monotonic()`, or a little before it.
        """
        ahead = time.time() - time.monotonic() if self._ahead is None else self._ahead
        return moment + ahead

    def learn(self, asked: float, answered: float, server: float) -> None:
        """
        Take into account that it was *server* there between two moments of ours.
        """
        least, most = server - answered, server - asked
        if self._ahead is None or not self._ahead <= most or least > self._ahead:
            self._ahead = least
