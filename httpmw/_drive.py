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
from ._context import task_of

PAUSED: Final = object()
CLOSING: Final = object()


class Turn:
    """
    Lets one caller in at a time; costs an attribute where nobody else comes.
    """

    # What is always set is in slots, all else has a default of the class; see `Outbound`.
    __slots__ = ("__dict__",)

    taken = False
    free: Any = None  # an event, where somebody waits

    async def wait(self) -> None:
        """
        Return as soon as nobody is in; at once, without a checkpoint, where nobody is.
        """
        while self.taken:
            if self.free is None:
                self.free = _context.new_event()
            await self.free.wait()

    def leave(self) -> None:
        self.taken = False
        if self.free is not None:
            self.free.set()
            self.free = None


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
    # The event loop, where it is known.
    loop: Any = None

    _runner: Any = None
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
        return self._run(coroutine.send, None, begun=begun)

    def enter(self) -> Any:
        """
        Note who steps from now on; give what calls in the right context, None where we are in it.
        """
        loop = self.loop
        self.stepper = task = _context.current_task() if loop is None else task_of(loop)
        looks = loop is None or _context.states
        self.scopes = _context.open_scopes(task) if looks else None
        return None if task is self.task else self.runner()

    def resume(self, message: Any) -> Awaitable[Any]:
        return self._run(self._coroutine.send, message)

    def fail(self, exc: BaseException) -> Awaitable[Any]:
        """
        Raise *exc* where the coroutine waits.
        """
        return self._run(self._coroutine.throw, exc)

    def give_up(self) -> Awaitable[Any]:
        """
        Raise `GeneratorExit` where the coroutine waits.

        Thrown in from here it would only close what is awaited there: until Python 3.13 the
        `asend()` of an async generator, which then counts as running for ever.
        """
        return self.resume(CLOSING)

    def close(self) -> None:
        """
        End the coroutine where it waits, without waiting for anything.
        """
        try:
            self._coroutine.send(CLOSING)
            self._coroutine.close()
        except BaseException:  # noqa: BLE001, S110 - it is over, or would have waited
            pass

    @types.coroutine
    def _run(self, call: Any, argument: Any, *, begun: bool = False) -> Generator[Any, Any, Any]:
        scopes = self.scopes
        run = self.enter()
        if begun:
            self.scopes = scopes
        self._paused = False
        try:
            awaited = call(argument) if run is None else run(call, argument)
            return (yield from self._drive(awaited))  # pyrefly: ignore[invalid-yield]
        except StopIteration as stop:
            return stop.value
        finally:
            self.stepper = None
            call = argument = awaited = None  # see `_drive`

    @types.coroutine
    def _drive(self, awaited: Any) -> Generator[Any, Any, Any]:
        """
        Hand on to the event loop what the coroutine awaits, until it ends or waits for a message.
        """
        coroutine = self._coroutine
        run = None if self.stepper is self.task else self.runner()
        self._paused = False
        try:
            while True:
                if awaited is not self:
                    try:
                        call, argument = coroutine.send, (yield awaited)
                    except BaseException as exc:  # noqa: BLE001 - it belongs to the coroutine
                        call, argument = coroutine.throw, exc
                elif self.has_crossed():
                    call, argument = coroutine.throw, self.crossed()
                else:
                    self._paused = True
                    return PAUSED
                awaited = call(argument) if run is None else run(call, argument)
        except StopIteration as stop:
            return stop.value
        finally:
            # What is left here would hold this frame by its traceback, and this frame it.
            call = argument = awaited = None

    def has_crossed(self) -> bool:
        """
        Whether the coroutine holds another scope open than when it was last resumed.
        """
        if self.loop is not None and not _context.states:
            return False
        return bool(_context.open_scopes(self.stepper) != self.scopes)

    def runner(self) -> Any:
        """
        What calls something in the context of the coroutine's task; None where there is none.
        """
        if self._runner is None:
            context = _context.context_of(self.task)
            self._runner = False if context is None else _context.runner_in(context)
        return self._runner or None

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

    def check(self) -> None:
        """
        Refuse who is not driven and wants to wait for a message.
        """
        loop = self.loop
        if self.stepper is None or self.stepper is not (
            _context.current_task() if loop is None else task_of(loop)
        ):
            raise _errors.own_task()

    @types.coroutine
    def _message(self) -> Generator[Any, Any, Any]:
        self.check()
        message = yield self
        if message is CLOSING:
            raise GeneratorExit
        return message


class Begun:
    """
    A step of a flow, of which the first part was taken by hand; await it for the rest.
    """

    __slots__ = ("_awaited", "_exc", "_value", "flow", "response", "step")

    def __init__(  # noqa: PLR0913, PLR0917 - nearly always the first four
        self,
        flow: Any,
        response: Any,
        step: Any = None,
        awaited: Any = None,
        value: Any = None,
        exc: BaseException | None = None,
    ) -> None:
        self.flow = flow
        self.response = response  # that the flow got
        self.step = step
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
        if self.step is None:
            return self._value
        step, awaited, self._awaited = self.step, self._awaited, None
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
