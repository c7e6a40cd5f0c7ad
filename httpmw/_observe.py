# `response.on_sent(callback)`: who wants to know the moment at which a response is over.
#
# Rule 1: an observer is a layer of its own, directly outside of the function that asked for it: a
# flow that waits for the end and has no code. So a failure, a disconnect, a cancellation and an app
# that ends early come to it in the turn of its layer, and who does not use it pays nothing.
# Rule 2: it is told once: by the `Progress` of what left its layer, as soon as the server has the
# last message or the client is known to be gone; by its function, as soon as that gives another
# response or fails; and else in its turn when everything is over.
# Rule 3: a callback runs in the context of the request, and what it raises goes into the log.

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from starlette.requests import ClientDisconnect

from . import _context, _errors
from ._body import Progress

if TYPE_CHECKING:
    from ._response import AppResponse, Outcome

Callback: TypeAlias = Callable[["AppResponse"], object]

_log = logging.getLogger("httpmw")


class Observer:
    # With the methods of an async generator, for the engine.

    __slots__ = ("_outward", "_response", "callbacks")

    def __init__(self, response: AppResponse, callback: Callback) -> None:
        self.callbacks: tuple[Callback, ...] = (callback,)
        # None once it was told.
        self._response: AppResponse | None = response
        # The same response as it goes on outward from the function.
        self._outward: AppResponse | None = None

    def observe(self, progress: Progress) -> None:
        """
        Be told of the end of what leaves the layer; those further out are told first.
        """
        others = progress.observers
        progress.observers = (self, *others) if others else (self,)

    def tell(self, outcome: Outcome | None) -> None:
        """
        Call the callbacks, unless that was done.
        """
        response, self._response = self._response, None
        outward, self._outward = self._outward, None
        if response is None:
            return
        if outward is not response and outward is not None:
            outward._outcome = outcome if response._outcome is None else response._outcome
        response._observer = None
        # What left the function, also where that waits for the end and has counted it itself.
        progress = (outward and outward._progress) or response._progress
        if progress is None:  # nothing of it was sent
            progress = Progress(trailers=False)
        response._progress = progress
        if progress.ended_at is None:
            progress.over()
        if progress.observers:  # told in its turn
            progress.observers = tuple(each for each in progress.observers if each is not self)
        if response._outcome is None:
            response._outcome = outcome
        outbound = response._outbound
        task, loop = outbound.task, outbound.loop
        running = _context.trio_task() if loop is None else _context.task_of(loop)
        context = None if running is task else _context.context_of(task)
        if context is None:
            self._call(response)
        else:
            _context.runner_in(context)(self._call, response)

    def _call(self, response: AppResponse) -> None:
        for callback in self.callbacks:
            try:
                value: Any = callback(response)
                if iscoroutine(value):
                    value.close()  # nobody will await it
                    raise _errors.bad_callback(callback)
            except BaseException as exc:
                # A result that was cancelled raises that here, too; it is not this request's.
                if not isinstance(exc, Exception) and not _context.is_cancellation(exc):
                    raise
                _log.error(_errors.failed_callback(callback), exc_info=exc)

    def _found(self) -> Outcome | None:
        return None if self._outward is None else self._outward._outcome

    async def asend(self, response: AppResponse | None) -> AppResponse:
        if response is None:
            self.tell(self._found())
        if self._response is None:
            raise StopAsyncIteration
        assert response is not None
        self._outward = response
        return response

    async def athrow(self, failure: BaseException) -> NoReturn:
        try:
            self.tell(self._found() or outcome_of(failure))
            raise failure
        finally:
            del failure  # it holds this frame

    async def aclose(self) -> None:
        self.tell("cancelled")


def outcome_of(failure: BaseException) -> Outcome:
    """
    Say how a response ended that was never sent because of *failure*.
    """
    if _context.is_cancellation(failure):
        return "cancelled"
    return "disconnected" if isinstance(failure, ClientDisconnect) else "failed"
