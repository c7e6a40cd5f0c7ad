# Driving a coroutine by hand.
#
# The inner app calls `send` when it has a message; a middleware function waits for a message in
# `await response.read()` or in an `async for`. Both run in one task. So whoever has to wait for
# the inner app is a coroutine that is advanced by hand from within the app's `send`: where it
# awaits the marker below it is left alone, `send` returns, the app produces its next message,
# and with that message the coroutine is resumed. A request body that streams through a
# transform is the same thing seen from the other side, driven from within `receive`.
#
# Rule 1: only `drive` understands the marker; everything else that is awaited goes through to
# the event loop unchanged.
# Rule 2: a coroutine is driven by one caller at a time, and `stepper` is the task that drives it
# right now. The marker refuses every other task at its `await`, where the mistake was made.
# Rule 3: a coroutine that waits at the marker holds no scope open that it did not hold when it
# was last resumed, because the app's own scopes come and go meanwhile.

from __future__ import annotations

import types
from collections.abc import Awaitable, Generator
from typing import Any, Final

from . import _context, _errors

PAUSED: Final = object()
_CLOSING: Final = object()


class Turn:
    """
    Lets one caller in at a time; costs an attribute where nobody else comes.
    """

    # What is always set is in slots, all else has a default of the class; see `Outbound`.
    __slots__ = ("__dict__",)

    taken = False
    _free: Any = None  # an event, where somebody waits

    async def wait(self) -> None:
        """
        Return as soon as nobody is in; at once, without a checkpoint, where nobody is.
        """
        while self.taken:
            if self._free is None:
                self._free = _context.new_event()
            await self._free.wait()

    def leave(self) -> None:
        self.taken = False
        if self._free is not None:
            self._free.set()
            self._free = None


class Driven(Turn):
    """
    A coroutine that may wait for messages which its own driver brings.

    Its turn is taken while one of the messages is being worked on.
    """

    __slots__ = ("stepper", "task")

    # The task in whose context the coroutine runs, whoever drives it.
    task: Any
    # The task that drives it right now; of an inner app not known before its start.
    stepper: Any
    # What that task held open when it began to.
    scopes: Any = None

    _coroutine: Any = None
    _paused = False

    @property
    def paused(self) -> bool:
        """
        Whether the coroutine waits for a message.
        """
        return self._paused

    def is_out_of_time(self) -> bool:
        """
        Whether a time limit inside of the coroutine, which waits, is over.

        `asyncio.timeout` cancels the task in which it was entered. That may be one that the source
        had made to send its messages, which has ended by that, and nobody else has heard of it.
        """
        return _context.holds_expired_limit(self._coroutine)

    def start(self, coroutine: Any, *, begun: bool = False) -> Awaitable[Any]:
        """
        Advance *coroutine* until it ends or waits for a message; give its value or `PAUSED`.

        Something has *begun* already if `scopes` is known.
        """
        self._coroutine = coroutine
        return self._drive(coroutine.send, None, begun=begun)

    def resume(self, message: Any) -> Awaitable[Any]:
        return self._drive(self._coroutine.send, message)

    def fail(self, exc: BaseException) -> Awaitable[Any]:
        """
        Raise *exc* where the coroutine waits.
        """
        return self._drive(self._coroutine.throw, exc)

    def give_up(self) -> Awaitable[Any]:
        """
        Raise `GeneratorExit` where the coroutine waits.

        Thrown in from here it would only close what is awaited there: until Python 3.13 the
        `asend()` of an async generator, which then counts as running for ever.
        """
        return self.resume(_CLOSING)

    def close(self) -> None:
        """
        End the coroutine where it waits, without waiting for anything.
        """
        try:
            self._coroutine.send(_CLOSING)
            self._coroutine.close()
        except BaseException:  # noqa: BLE001, S110 - it is over, or would have waited
            pass

    @types.coroutine
    def _drive(self, call: Any, argument: Any, *, begun: bool = False) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        task = _context.current_task()
        run = None
        if task is not self.task and (context := _context.context_of(self.task)) is not None:
            run = _context.runner_in(context)
        self.stepper = task
        self._paused = False
        try:
            if not begun:
                self.scopes = _context.open_scopes(task)
            while True:
                awaited = call(argument) if run is None else run(call, argument)
                if awaited is not self:
                    try:
                        call, argument = coroutine.send, (yield awaited)
                    except BaseException as exc:  # noqa: BLE001 - it belongs to the coroutine
                        call, argument = coroutine.throw, exc
                elif _context.open_scopes(task) != self.scopes:
                    call, argument = coroutine.throw, self.crossed()
                else:
                    self._paused = True
                    return PAUSED
        except StopIteration as stop:
            return stop.value
        finally:
            self.stepper = None
            # What is left here would hold this frame by its traceback, and this frame it.
            call = argument = awaited = None

    def crossed(self) -> BaseException:
        """
        What is raised where the coroutine waits inside of a scope of its own.
        """
        return _errors.scope_over_read()

    def message(self) -> Awaitable[Any]:
        """
        Wait for the next message that the driver brings.
        """
        return self._message()

    @types.coroutine
    def _message(self) -> Generator[Any, Any, Any]:
        if self.stepper is None or self.stepper is not _context.current_task():
            raise _errors.own_task()
        message = yield self
        if message is _CLOSING:
            raise GeneratorExit
        return message


class Begun:
    """
    A step of a flow, of which the first part was taken by hand; await it for the rest.
    """

    def __init__(
        self,
        flow: Any,
        step: Any = None,
        awaited: Any = None,
        value: Any = None,
        exc: BaseException | None = None,
    ) -> None:
        self.flow = flow
        self._step = step
        self._awaited = awaited
        self._value = value
        self._exc = exc

    def __await__(self) -> Generator[Any, Any, Any]:
        exc, self._exc = self._exc, None
        if exc is not None:
            try:
                raise exc
            finally:
                exc = None
        if self._step is None:
            return self._value
        step, awaited, self._awaited = self._step, self._awaited, None
        try:
            while True:
                try:
                    call, argument = step.send, (yield awaited)
                except BaseException as thrown:  # noqa: BLE001 - it belongs to the step
                    call, argument = step.throw, thrown
                awaited = call(argument)
        except StopIteration as stop:
            return stop.value
        finally:
            call = argument = awaited = None
