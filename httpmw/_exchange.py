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

import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from types import AsyncGeneratorType, CoroutineType
from typing import Any, Final, TypeAlias, cast

import anyio
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import _context, _errors, _handlers
from ._body import DISCONNECT, Body, Incoming, Progress, TransformedBody
from ._connection import Connection
from ._context import open_scopes, running_loop, scope_state, task_in
from ._drive import Turn
from ._response import AppResponse, Outcome
from ._travel import Discarded, Outbound, not_a_new_response

AnyFlow: TypeAlias = AsyncGenerator[Any, Any]
_new: Final = object.__new__
_set_hooks: Final = sys.set_asyncgen_hooks
_LOOK_AHEAD: Final = 16  # messages
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
    # Whether the response was lost on its way through, by a cancellation of the source's own.
    without_response = False
    # Its transform may have failed, too.
    body: Body | None = None
    # The cancellation that the flow has answered; it goes on all the same.
    cancellation: BaseException | None = None
    # What the source was told when this layer discarded it; to be dropped here.
    signal: Discarded | None = None


class Exchange:
    """
    One request in one adapter.
    """

    __slots__ = (
        "_outermost",
        "_receiving",
        "_server_receive",
        "app",
        "application",
        "body_taken",
        "disconnect",
        "entered",
        "gone",
        "handlers",
        "incoming",
        "limit",
        "limits",
        "loop",
        "paused",
        "scope",
        "scope_state",
        "server_send",
        "tails",
        "task",
        "transforms",
        "waiting",
    )

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self.app = app
        self.scope = scope
        # The application and its handlers as they are out here; an inner one puts its own there.
        self.application = scope.get("app")
        self.handlers = scope.get("starlette.exception_handlers")
        self._server_receive = receive
        self.server_send = send
        self.loop = loop = running_loop()
        self.task = task = task_in(loop)
        self.scope_state = scope_state(task)
        self.waiting: list[AnyFlow] = []
        self.tails: list[Tail] = []
        # How many seconds the flow being stepped gave the inner app: Connection.fail_after().
        self.limit: float | None = None
        # The open limits, by the flow that set them.
        self.limits: dict[AnyFlow, anyio.CancelScope] | None = None
        # Where the next layer inward gets the request from; None: straight from the server.
        self.incoming: Incoming | None = None
        self._outermost: Incoming | None = None
        self._receiving: Turn | None = None
        # Whether the inner app has begun to take the body from there.
        self.body_taken = False
        # Whether the inner app has been called, or a flow has answered in its place.
        self.entered = False
        # Whether the client is known to be gone; once seen it stays seen.
        self.gone = False
        # The ClientDisconnect that is ours to drop.
        self.disconnect: ClientDisconnect | None = None
        # The travel that waits for a message of its source.
        self.paused: Outbound | None = None
        # The transforms of users, closed at the very end.
        self.transforms: Sequence[Any] = ()

    # ------------------------------------------------------------------ the way inward

    async def inward(self, functions: Sequence[Function]) -> BaseException | None:
        """
        Take the first step of each flow, then call the app; give back what went wrong.
        """
        waiting = self.waiting
        scope = self.scope
        state = self.scope_state
        scopes = open_scopes(self.task) if state is None else state.cancel_scope
        # asyncio registers every async generator, to close it with the loop; the adapter closes
        # them itself, and the registering costs half as much as all else in a flow's life. The
        # hook is looked at when `asend` is called, not when it is awaited, so that no code of
        # the user's runs without it.
        hook = sys.get_asyncgen_hooks().firstiter
        rest = iter(functions)
        for function in rest:
            conn = _new(Connection)  # what `Connection.of` does, without the call
            conn.scope = scope
            conn._exchange = self
            if self.incoming is not None:
                conn._incoming = self.incoming
            flow: Any = None
            try:
                flow = function(conn)
                if flow is None:
                    self.limit = None
                    continue
                if type(flow) is AsyncGeneratorType:
                    _set_hooks(None)
                    step = flow.asend(None)
                    _set_hooks(hook)
                elif hasattr(flow, "asend"):
                    step = flow.asend(None)
                else:
                    return _not_a_generator(function, flow)
                value = await step
                while value is not None and hasattr(value, "asend"):
                    # Delegation: the other function runs inside of this one.
                    waiting.append(flow)
                    if self.limit is not None:
                        return await self._limited((_giving(value), *rest), scopes)
                    flow = value
                    value = await flow.asend(None)
            except StopAsyncIteration:
                return _errors.no_yield(flow or function)
            except BaseException as exc:
                return await self._raised(conn, exc)
            if value is not None:
                return await self._early_answer(flow, value, scopes)
            waiting.append(flow)
            if self.limit is not None:
                return await self._limited(tuple(rest), scopes)
        if (open_scopes(self.task) if state is None else state.cancel_scope) != scopes:
            return await self._scope_held(scopes)
        self.entered = True
        if not waiting:  # every layer stepped aside
            await self.app(self.scope, self._server_receive, self.server_send)
            return None
        # As `Outbound.run`, without another frame in every request.
        outbound = Outbound(self)
        failure: BaseException | None = None
        try:
            await self.app(self.scope, outbound.receive, outbound.send)
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure = exc
        try:
            return failure if outbound.passing else await outbound.finish(self.app, failure)
        finally:
            failure = None

    async def _scope_held(self, scopes: Any) -> BaseException:
        """
        A flow holds a scope open at its first yield: close it, and all that were begun inside.
        """
        while True:
            flow = self.waiting.pop()
            error = await self.misuse(flow, _errors.open_scope(flow))
            if not self.waiting or not open_scopes(self.task) != scopes:  # noqa: SIM202
                return error

    async def _raised(self, conn: Connection, exc: BaseException) -> BaseException | None:
        """
        A flow raised in its first step, or could not be made.
        """
        if isinstance(exc, GeneratorExit):
            raise exc
        response, failure = await self.answer(conn, exc)
        if response is None:
            return failure
        self.entered = True
        tail = self.add_tail()
        tail.failure = await Outbound(self).run(response)
        return None

    async def _early_answer(self, flow: AnyFlow, value: Any, scopes: Any) -> BaseException | None:
        """
        The first yield carried a response: the inner app is not run.
        """
        mistake = not_a_new_response(flow, value)
        if mistake is not None:
            return await self.misuse(flow, mistake)
        if open_scopes(self.task) != scopes:
            self.waiting.append(flow)
            return await self._scope_held(scopes)
        self.entered = True
        tail = self.add_tail(flow)
        tail.failure = await Outbound(self).run(value)
        return None

    async def _limited(self, functions: Sequence[Function], scopes: Any) -> BaseException | None:
        """
        Go on inward under the time limit of the innermost waiting flow.
        """
        seconds = cast(float, self.limit)
        self.limit = None
        if open_scopes(self.task) != scopes:
            return await self._scope_held(scopes)
        flow = self.waiting[-1]
        floor = len(self.waiting)
        if self.limits is None:
            self.limits = {}
        failure: BaseException | None = None
        scope = self.limits[flow] = anyio.CancelScope(deadline=anyio.current_time() + seconds)
        try:
            with scope:
                failure = await self.inward(functions)
                failure = await self.settle(failure, floor)
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

    async def end(self, failure: BaseException | None) -> BaseException | None:
        """
        End everything that was begun; give back what the adapter raises.
        """
        try:
            failure = await self.settle(failure, 0)
            for each in self.transforms:
                failure = await self._close(each) or failure
            return None if failure is self.disconnect else failure
        finally:
            # These exceptions hold this frame: do not hold them in turn.
            failure = self.disconnect = None

    async def settle(self, failure: BaseException | None, floor: int) -> BaseException | None:
        """
        End every flow that is further in than *floor*, inside out; give back what went wrong.
        """
        tails = self.tails
        waiting = self.waiting
        try:
            while True:
                while tails:
                    failure = await self.end_first(failure)
                if len(waiting) <= floor:
                    return failure
                if failure is None:
                    failure = await self._no_response()
                failure = await self._throw(waiting.pop(), failure)
        finally:
            failure = None

    async def _throw(self, flow: AnyFlow, failure: BaseException) -> BaseException | None:
        """
        Raise *failure* at the yield of a flow that waits for a response; it may answer.
        """
        traceback = failure.__traceback__
        owed = _context.cancellations(self.task)
        try:
            value = await flow.athrow(failure)
        except GeneratorExit:
            raise
        except StopAsyncIteration:
            if failure is self.disconnect or self._is_owed(failure, owed):
                return failure
            error = _errors.swallowed(flow, failure)
            error.__cause__ = failure
            return error
        except BaseException as exc:
            if exc is failure or _wrapped_stop(exc, failure):
                failure.__traceback__ = traceback
                return failure
            response, exc_or_none = await self.answer(Connection.of(self), exc)
            if response is None:
                return exc_or_none
            flow_or_none = None
        else:
            mistake = _errors.second_yield(flow) if value is None else None
            mistake = mistake or not_a_new_response(flow, value)
            if mistake is not None:
                mistake.__cause__ = failure
                return await self.misuse(flow, mistake)
            response, flow_or_none = value, flow
        tail = self.add_tail(flow_or_none)
        if self._is_owed(failure, owed):
            tail.cancellation = failure
        tail.failure = await Outbound(self).run(response)
        return None

    async def end_first(self, failure: BaseException | None) -> BaseException | None:
        """
        Do what the innermost layer has left to do; give back what goes on outward.
        """
        tail = self.tails.pop(0)
        if failure is tail.answered:
            failure = None
        if tail.signal is not None:
            failure = failure and tail.signal.taken_out_of(failure)
            tail.signal = None  # its traceback leads back here
        if tail.failure is not None:
            failure = tail.failure
        if isinstance(tail.body, TransformedBody) and tail.body.failure is not None:
            failure = failure or tail.body.failure
        try:
            if tail.without_response and failure is None:
                failure = await self._no_response()
            if failure is None and tail.background is not None:
                await tail.background()
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure = exc
        flow = tail.flow
        if flow is None:
            return failure or tail.cancellation
        tail.flow = None
        if tail.response is not None:
            await self._close_book(tail, tail.response, failure)
        traceback = None if failure is None else failure.__traceback__
        owed = _context.cancellations(self.task)
        try:
            if failure is None:
                await flow.asend(None)
            else:
                await flow.athrow(failure)
        except GeneratorExit:
            raise
        except StopAsyncIteration:
            return failure if self._is_owed(failure, owed) else tail.cancellation
        except BaseException as exc:
            if failure is not None and (exc is failure or _wrapped_stop(exc, failure)):
                failure.__traceback__ = traceback
                return failure
            return exc
        error = _errors.yield_after_response(flow)
        error.__cause__ = failure
        return await self.misuse(flow, error)

    def _is_owed(self, failure: BaseException | None, owed: int) -> bool:
        """
        Whether *failure* is a cancellation that goes on although a flow swallowed it.
        """
        return _context.is_cancellation(failure) and _context.is_cancelled(self.task, owed)

    async def _close_book(
        self, tail: Tail, response: AppResponse, failure: BaseException | None
    ) -> None:
        progress = response._progress
        if progress is None:
            progress = response._progress = Progress(trailers=False)
        progress.ended_at = progress.ended_at or time.perf_counter()
        outcome: Outcome
        if tail.replaced:
            outcome = "replaced"
        elif progress.complete and not progress.lost:
            outcome = "completed"
        elif _context.is_cancellation(failure):
            outcome = "cancelled"
        elif failure is not None and not isinstance(failure, (ClientDisconnect, OSError)):
            outcome = "failed"
        elif response._outbound.told_gone or await self._is_gone():
            outcome = "disconnected"
        else:
            outcome = "incomplete" if failure is None else "failed"
        response._outcome = outcome

    async def _no_response(self) -> BaseException:
        """
        The source returned without a start.
        """
        if await self._is_gone():
            if self.disconnect is None:
                self.disconnect = ClientDisconnect()
            return self.disconnect
        return _errors.no_response(self.app)

    async def truncated(self, source: ASGIApp) -> BaseException:
        """
        The source returned in mid-body, and somebody is still reading.
        """
        error = await self._no_response()
        return error if error is self.disconnect else _errors.truncated(source)

    async def answer(
        self, conn: Connection, exc: BaseException
    ) -> tuple[Response | None, BaseException]:
        """
        Make a response of an HTTPException that a flow raised; else give back what was raised.
        """
        if not isinstance(exc, HTTPException):
            return None, exc
        try:
            return await _handlers.answer(conn, exc, self.application, self.handlers), exc
        except GeneratorExit:
            raise
        except BaseException as raised:
            return None, raised

    async def misuse(self, flow: AnyFlow, error: BaseException) -> BaseException:
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

    async def _close(self, transform: Any) -> BaseException | None:
        try:
            await transform.aclose()
        except GeneratorExit:
            raise
        except BaseException as exc:
            return exc
        return None

    def abandon(self) -> None:
        """
        The adapter itself is closed: close all flows, without waiting for anything.
        """
        if self.paused is not None:
            self.paused.close()
        flows = [tail.flow for tail in self.tails if tail.flow is not None]
        flows += reversed(self.waiting)
        self.waiting.clear()
        for each in [*flows, *self.transforms]:
            closing = each.aclose()
            try:
                closing.send(None)
            except BaseException:  # noqa: S110 - the others are closed all the same
                pass

    def add_transform(self, transform: Any) -> None:
        self.transforms = (*self.transforms, transform)

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

    async def _is_gone(self) -> bool:
        # Look without waiting. What is not a disconnect stays for whoever reads it; a client
        # that is still sending is not gone, so there is no use in looking far.
        incoming = self.outermost_incoming()
        for _ in range(_LOOK_AHEAD):
            if self.gone:
                break
            looked = False
            try:
                # The shield keeps a cancellation of the request itself from coming up here.
                with anyio.CancelScope(shield=True) as scope:
                    scope.cancel()
                    await incoming.peek_latest()
                    looked = True
            except Exception:
                break
            if not looked:
                break
        return self.gone


def _giving(flow: AnyFlow) -> Function:
    return lambda _: flow


def _not_a_generator(function: Function, value: Any) -> BaseException:
    error = _errors.not_a_generator(function, value)
    if isinstance(value, CoroutineType):
        value.close()  # nobody will await it
    return error


def _wrapped_stop(exc: BaseException, failure: BaseException) -> bool:
    # An async generator turns a Stop(Async)Iteration that leaves it into a RuntimeError (PEP 479).
    return (
        isinstance(failure, (StopIteration, StopAsyncIteration))
        and isinstance(exc, RuntimeError)
        and exc.__cause__ is failure
    )
