# One request's life in one adapter.
#
# Words: the *inner app* is what the adapter wraps; a *flow* is one running generator made from a
# middleware function; a *source* is whatever produces a response, the inner app or a response
# that a flow gave in its place; the *travel* carries a response outward through the flows.
#
#              flows, outermost first                    Exchange.waiting: flows that wait for a
#     ┌───────────────┬───────────────┐                  response, the outermost first
#     │      a        │      b        │   inner app      Exchange.tails:  what is still to be done
#  ── step ────────── step ────────── call ──▶           when everything is over, the innermost
#  ◀─ step ────────── step ────────── send(start)        first
#  ── end  ◀───────── end  ◀───────── return
#
# Rule 1: a flow is stepped by one caller at a time, and it is always ended by the adapter, in
# the request's own task where possible. It is in `waiting`, or in `tails`, or being stepped;
# never in two of them, so its state is known before it is touched (a finished generator would
# swallow an exception that is thrown in).
# Rule 2: the start is sent exactly once, before any body, and nothing follows the last message:
# `waiting` is empty when the start is sent, and one source at a time is not discarded.
# Rule 3: a source learns of a disconnect only while none of its messages is being worked on;
# otherwise its listener would cancel the very task that runs the middleware.
# Rule 4: fused layers are told from nested ones by nothing but speed. Where the order of two
# things is in doubt, it is the order that nested adapters would have.
# Rule 5: an exception is handed on as the object it is, with the traceback it had.

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from types import AsyncGeneratorType
from typing import Any, TypeAlias, cast

import anyio
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import _context, _errors, _handlers
from ._body import DISCONNECT, Body, Incoming, Progress, TransformedBody
from ._connection import Connection
from ._drive import Turn
from ._response import AppResponse, Outcome
from ._travel import Outbound, not_a_new_response

AnyFlow: TypeAlias = AsyncGenerator[Any, Any]
Function: TypeAlias = Callable[[Connection], Any]


class Tail:
    """
    What one layer has still to do when everything further in is over.
    """

    # The flow that waits at `yield response`, with the response it received.
    flow: AnyFlow | None = None
    response: AppResponse | None = None
    replaced = False
    # To be run when the source has ended.
    background: BackgroundTask | None = None
    # The exception of the source that this layer has answered already.
    answered: BaseException | None = None
    # What went wrong in this layer itself; it counts more than what came from further in.
    failure: BaseException | None = None
    # Its transform may have failed, too.
    body: Body | None = None


class Exchange:
    """
    One request in one adapter.
    """

    # How many seconds the flow being stepped gave the inner app; see Connection.fail_after().
    limit: float | None = None
    # The open limits, by the flow that set them.
    limits: dict[AnyFlow, anyio.CancelScope] | None = None
    # Where the next layer inward gets the request from; None: straight from the server.
    incoming: Incoming | None = None
    _outermost: Incoming | None = None
    # Whether the inner app has been called, or a flow has answered in its place.
    entered = False
    # Whether the client is known to be gone; once seen it stays seen.
    gone = False
    # ClientDisconnect and CancelledError that are ours to drop, or to raise again.
    disconnect: ClientDisconnect | None = None
    cancellation: BaseException | None = None
    _receiving: Turn | None = None
    _to_close: list[Any] | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._server_receive = receive
        self.server_send = send
        self.task = task = _context.current_task()
        self._cancellations = _context.cancellations(task)
        self.waiting: list[AnyFlow] = []
        self.tails: list[Tail] = []

    @property
    def to_close(self) -> list[Any]:
        """
        The transforms of users, which are closed at the very end.
        """
        if self._to_close is None:
            self._to_close = []
        return self._to_close

    # ------------------------------------------------------------------ the whole life

    async def run(self, functions: Sequence[Function], app: ASGIApp) -> None:
        """
        Run *functions*, the outermost first, around *app*.
        """
        failure: BaseException | None = None
        try:
            failure = await self._inward(functions, 0, app)
            if self.tails or self.waiting:
                failure = await self._settle(failure, 0, app)
            if self._to_close is not None:
                failure = await self._close_transforms(failure)
            if failure is None and self.cancellation is not None:
                # Answered by a flow; it goes on all the same if it is still owed.
                if _context.is_cancelled(self.task, self._cancellations):
                    failure = self.cancellation
            if failure is not None and failure is not self.disconnect:
                raise failure
        except BaseException as exc:
            if exc is not failure:
                await self._abandon()
            raise
        finally:
            # The exception holds this frame: do not hold it in turn.
            failure = self.cancellation = self.disconnect = None
            self.tails.clear()

    async def _inward(
        self, functions: Sequence[Function], index: int, app: ASGIApp
    ) -> BaseException | None:
        """
        Take the first step of each flow, then call *app*; give back what went wrong.
        """
        waiting = self.waiting
        task = self.task
        scopes = _context.open_scopes(task)
        for index in range(index, len(functions)):
            conn = Connection._of(self)
            try:
                flow = functions[index](conn)
            except BaseException as exc:
                return await self._no_step(None, conn, exc)
            while flow is not None:
                if type(flow) is not AsyncGeneratorType and not hasattr(flow, "asend"):
                    return _not_a_generator(functions[index], flow)
                try:
                    value = await flow.asend(None)
                except BaseException as exc:
                    return await self._no_step(flow, conn, exc)
                if _context.open_scopes(task) != scopes:
                    return await self._misuse(flow, _errors.open_scope(flow))
                if value is None:
                    waiting.append(flow)
                    break
                if not hasattr(value, "asend"):
                    return await self._early_answer(flow, value)
                # Delegation: the other function runs inside of this one, around the inner app.
                waiting.append(flow)
                flow = value
            if self.limit is not None:
                return await self._limited(functions, index + 1, app)
        self.entered = True
        if not waiting:  # every layer stepped aside
            await app(self.scope, self._server_receive, self.server_send)
            return None
        return await Outbound(self).run(app)

    async def _no_step(
        self, flow: AnyFlow | None, conn: Connection, exc: BaseException
    ) -> BaseException | None:
        """
        A flow ended or failed in its first step.
        """
        if isinstance(exc, GeneratorExit):
            raise exc
        if isinstance(exc, StopAsyncIteration) and flow is not None:
            return _errors.no_yield(flow)
        response, exc_or_none = await self.answer(conn, exc)
        if response is None:
            return exc_or_none
        self.entered = True
        tail = self.add_tail()
        tail.failure = await Outbound(self).run(response)
        return None

    async def _early_answer(self, flow: AnyFlow, value: Any) -> BaseException | None:
        """
        The first yield carried a response: the inner app is not run.
        """
        mistake = not_a_new_response(flow, value)
        if mistake is not None:
            return await self._misuse(flow, mistake)
        self.entered = True
        tail = self.add_tail(flow)
        tail.failure = await Outbound(self).run(value)
        return None

    async def _limited(
        self, functions: Sequence[Function], index: int, app: ASGIApp
    ) -> BaseException | None:
        """
        Go on inward under the time limit of the innermost waiting flow.
        """
        seconds = cast(float, self.limit)
        self.limit = None
        if not self.waiting:
            return await self._inward(functions, index, app)
        flow = self.waiting[-1]
        floor = len(self.waiting)
        if self.limits is None:
            self.limits = {}
        failure: BaseException | None = None
        scope = self.limits[flow] = anyio.CancelScope(deadline=anyio.current_time() + seconds)
        try:
            with scope:
                failure = await self._inward(functions, index, app)
                failure = await self._settle(failure, floor, app)
                if failure is not None:
                    raise failure  # so that the scope sees its own cancellation
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure = exc
        else:
            failure = None
        # Taken out of `limits` by the travel when the response has come in time.
        if self.limits.pop(flow, None) is not None and scope.cancel_called and failure is None:
            failure = TimeoutError(f"the inner app did not respond within {seconds} seconds")
        try:
            return failure
        finally:
            failure = None

    # ------------------------------------------------------------------ the end

    async def _settle(
        self, failure: BaseException | None, floor: int, app: ASGIApp
    ) -> BaseException | None:
        """
        End every flow that is further in than *floor*, inside out; give back what went wrong.
        """
        tails = self.tails
        waiting = self.waiting
        try:
            while True:
                while tails:
                    failure = await self._end(tails.pop(0), failure)
                if len(waiting) <= floor:
                    return failure
                if failure is None:
                    failure = await self._no_response(app)
                failure = await self._throw(waiting.pop(), failure)
        finally:
            failure = None

    async def _throw(self, flow: AnyFlow, failure: BaseException) -> BaseException | None:
        """
        Raise *failure* at the yield of a flow that waits for a response; it may answer.
        """
        traceback = failure.__traceback__
        try:
            value = await flow.athrow(failure)
        except GeneratorExit:
            raise
        except StopAsyncIteration:
            if failure is self.disconnect or (
                _context.is_cancellation(failure)
                and _context.is_cancelled(self.task, self._cancellations)
            ):
                return failure
            error = _errors.swallowed(flow, failure)
            error.__cause__ = failure
            return error
        except BaseException as exc:
            if exc is failure or _wrapped_stop(exc, failure):
                failure.__traceback__ = traceback
                return failure
            response, exc_or_none = await self.answer(Connection._of(self), exc)
            if response is None:
                return exc_or_none
            flow_or_none = None
        else:
            mistake = _errors.second_yield(flow) if value is None else None
            mistake = mistake or not_a_new_response(flow, value)
            if mistake is not None:
                return await self._misuse(flow, mistake)
            response, flow_or_none = value, flow
        if _context.is_cancellation(failure):
            self.cancellation = failure
        tail = self.add_tail(flow_or_none)
        tail.failure = await Outbound(self).run(response)
        return None

    async def _end(self, tail: Tail, failure: BaseException | None) -> BaseException | None:
        """
        Do what a layer has left to do; give back what goes on outward.
        """
        if failure is tail.answered:
            failure = None
        if tail.failure is not None:
            failure = tail.failure
        if isinstance(tail.body, TransformedBody) and tail.body.failure is not None:
            failure = failure or tail.body.failure
        try:
            if failure is None and tail.background is not None:
                await tail.background()
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure = exc
        flow = tail.flow
        if flow is None:
            return failure
        tail.flow = None
        if tail.response is not None:
            self._close_book(tail.response, self._outcome(tail, failure))
        traceback = None if failure is None else failure.__traceback__
        try:
            if failure is None:
                await flow.asend(None)
            else:
                await flow.athrow(failure)
        except GeneratorExit:
            raise
        except StopAsyncIteration:
            if _context.is_cancellation(failure):
                self.cancellation = failure
            return None
        except BaseException as exc:
            if failure is not None and (exc is failure or _wrapped_stop(exc, failure)):
                failure.__traceback__ = traceback
                return failure
            return exc
        error = _errors.yield_after_response(flow)
        error.__cause__ = failure
        return await self._misuse(flow, error)

    def _outcome(self, tail: Tail, failure: BaseException | None) -> Outcome:
        assert tail.response is not None
        progress = tail.response._progress
        if tail.replaced:
            return "replaced"
        if progress is not None and progress.complete:
            return "completed"
        if failure is not None:
            return "cancelled" if _context.is_cancellation(failure) else "failed"
        return "disconnected" if self.gone else "incomplete"

    def _close_book(self, response: AppResponse, outcome: Outcome) -> None:
        response._outcome = outcome
        if response._progress is None:
            response._progress = Progress(trailers=False)
        if response._progress.ended_at is None:
            response._progress.ended_at = time.perf_counter()

    async def _no_response(self, app: ASGIApp) -> BaseException:
        """
        The source returned without a start.
        """
        if not self.gone:
            await self._poll()
        if self.gone:
            if self.disconnect is None:
                self.disconnect = ClientDisconnect()
            return self.disconnect
        return _errors.no_response(app)

    async def truncated(self, app: ASGIApp) -> BaseException:
        """
        The source returned in mid-body, and somebody is still reading.
        """
        error = await self._no_response(app)
        return error if error is self.disconnect else _errors.truncated(app)

    async def answer(
        self, conn: Connection, exc: BaseException
    ) -> tuple[Response | None, BaseException | None]:
        """
        Make a response of an HTTPException that a flow raised; else give back what was raised.
        """
        if not isinstance(exc, HTTPException):
            return None, exc
        try:
            return await _handlers.answer(conn, exc), exc
        except GeneratorExit:
            raise
        except BaseException as raised:
            return None, raised

    async def _misuse(self, flow: AnyFlow, error: BaseException) -> BaseException:
        """
        Close a flow that broke the contract.
        """
        try:
            await flow.aclose()
        except GeneratorExit:
            raise
        except BaseException as exc:
            error.__context__ = exc
        return error

    async def _close_transforms(self, failure: BaseException | None) -> BaseException | None:
        for each in self.to_close:
            try:
                await each.aclose()
            except GeneratorExit:
                raise
            except BaseException as exc:
                failure = failure or exc
        self._to_close = None
        return failure

    async def _abandon(self) -> None:
        """
        The adapter itself is closed: close all flows, without waiting for anything.
        """
        flows = [tail.flow for tail in self.tails if tail.flow is not None]
        flows += reversed(self.waiting)
        self.waiting.clear()
        for each in [*flows, *(self._to_close or ())]:
            closing = each.aclose()
            try:
                closing.send(None)
            except (StopIteration, RuntimeError):
                pass
            except GeneratorExit:
                pass

    def add_tail(self, flow: AnyFlow | None = None) -> Tail:
        tail = Tail()
        tail.flow = flow
        self.tails.append(tail)
        return tail

    # ------------------------------------------------------------------ receive

    def outermost_incoming(self) -> Incoming:
        """
        The request as the server gives it, for those who read ahead.
        """
        if self._outermost is None:
            self._outermost = Incoming(self.receive_from_server)
            self._outermost.taken = self.body_taken
            if self.incoming is None:
                self.incoming = self._outermost
        return self._outermost

    body_taken = False

    async def receive_from_server(self) -> Message:
        """
        One `receive` of the server at a time; a disconnect once seen is given to everyone.

        hypercorn and daphne tell only one waiter of a disconnect, and only once.
        """
        turn = self._receiving
        if turn is None:
            turn = self._receiving = Turn()
        elif turn.taken and not self.gone:
            await turn.wait()
        if self.gone:
            return DISCONNECT
        turn.taken = True
        try:
            message: Message = await self._server_receive()
        finally:
            turn.leave()
        if message["type"] == "http.disconnect":
            self.gone = True
        return message

    async def receive_inward(self) -> Message:
        """
        What the layer further in receives.
        """
        if self.incoming is not None:
            return await self.incoming.receive()
        message = await self.receive_from_server()
        if message["type"] == "http.request":
            self.body_taken = True
        return message

    async def _poll(self) -> None:
        # Ask once, without waiting. What is not a disconnect stays for whoever reads it.
        try:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await self.outermost_incoming().peek_latest()
        except Exception:  # noqa: BLE001 - the server's trouble is not this request's answer
            return


def _not_a_generator(function: Function, value: Any) -> BaseException:
    error = _errors.not_a_generator(function, value)
    if hasattr(value, "close"):
        value.close()  # a coroutine that nobody will await
    return error


def _wrapped_stop(exc: BaseException, failure: BaseException) -> bool:
    # An async generator turns a Stop(Async)Iteration that leaves it into a RuntimeError (PEP 479).
    return (
        isinstance(failure, (StopIteration, StopAsyncIteration))
        and isinstance(exc, RuntimeError)
        and exc.__cause__ is failure
    )
