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
#  ◀─ step ────────── step ────────── send(start)        first; `waits` as long as that is only
#  ── end  ◀───────── end  ◀───────── return             to come back to flows
#
# Rule 1: a flow is stepped by one caller at a time, and it is always ended by the adapter, in
# the request's own task where possible. It is in `waiting`, in `waits` or `tails`, or being
# stepped; never in two of them, so its phase is known before it is touched (a finished generator
# would swallow an exception that is thrown in).
# Rule 2: the start is sent exactly once, before any body, and nothing follows the last message:
# `waiting` is empty when the start is sent, and one source at a time is not discarded.
# Rule 3: a source learns of a disconnect only while none of its messages is being worked on;
# otherwise its listener would cancel the very task that runs the middleware.
# Rule 4: fused layers are told from nested ones by nothing but speed; the few plans in which they
# are told by more are in docs/limits.md. Where the order of two things is in doubt, it is the order
# that nested adapters would have.
# Rule 5: an exception is handed on as the object it is, with the traceback it had.

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import AsyncGeneratorType, CoroutineType, MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import ref

import anyio
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import _context, _errors, _handlers
from ._body import DISCONNECT, FINAL, Body, Incoming, Progress, TransformedBody
from ._code import has_begun
from ._connection import Connection, Received, ReceivedHandshake
from ._context import open_scopes, running_loop, task_of, trio_task
from ._drive import Turn
from ._errors import NoResponseError
from ._layout import lay_out
from ._observe import Observer
from ._phases import COUNTED, INWARD, PASSING, TRAVELLING
from ._response import AppResponse, Outcome, is_framed
from ._scope import Inward, LayerRequest, handing_outward, inward_of
from ._travel import Discarded, Outbound, Replacement, not_a_new_response

if TYPE_CHECKING:
    from ._call_next import DispatchFlow
    from ._handshake import Handshakes

AnyFlow: TypeAlias = AsyncGenerator[Any, Any] | Observer
_get_hooks: Final = sys.get_asyncgen_hooks
# It takes its arguments as a tuple; not to have one made for each call saves a third of it.
_set_hooks: Final = sys.set_asyncgen_hooks
_NO_HOOK: Final = (None,)
_LOOK_AHEAD: Final = 16  # messages
Function: TypeAlias = Callable[[Any], Any]
# The outermost first, each with what makes the request that it gets, and with its predicate.
Functions: TypeAlias = tuple[tuple[Callable[[], Any], Function, Function | None], ...]
# And the app that they are around, and those of them that see WebSocket handshakes, too.
Layers: TypeAlias = "tuple[Functions, ASGIApp, Handshakes | None]"


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


class RoutesWithin:
    """
    The `routes` of an inner app, for Starlette's `Mount`, which finds the names of routes by them.

    It is there where the inner app has it, and an attribute of an instance comes first.
    """

    def __init__(self, app: str) -> None:
        self._app = app

    def __get__(self, layer: Any, owner: Any = None) -> Any:
        return self if layer is None else getattr(layer, self._app).routes


class Adapter:
    """
    Middleware functions around an inner app.
    """

    # By a name that no subclass has for something else.
    # Not at run time: annotations are evaluated by those who inject by type.
    if TYPE_CHECKING:
        _httpmw: Layers
    routes = RoutesWithin("app")

    def take(
        self, functions: Functions, app: ASGIApp, handshakes: Handshakes | None = None
    ) -> None:
        """
        Put *functions* around *app*, and take over those of neighbouring layers.

        For a handshake, *handshakes* are there and nothing else.
        """
        neighbours, inner, further = fused(app)
        if handshakes is not None:
            further = handshakes.around(further)
        self._httpmw = (*functions, *neighbours), inner, further

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Run the middleware functions around the inner app, for HTTP and for handshakes.

        Where there are none for it a scope goes straight to the inner app.
        """
        layers = None
        try:
            layers = self._httpmw
        except AttributeError:
            pass  # said below, where it has no context
        functions, app, handshakes = layers or layers_of(self)
        # An `__init__` would cost as much again as all of this.
        if scope["type"] == "http":
            exchange = Exchange()
            exchange.server_receive = receive
            exchange.server_send = send
        elif scope["type"] == "websocket" and handshakes is not None:
            functions = handshakes.functions
            exchange = handshakes.begin(receive, send)
        else:
            await app(scope, receive, send)
            return
        given = scope
        exchange.app = app
        exchange.scope = scope
        if "app" in scope:
            exchange.application = scope["app"]
        if "starlette.exception_handlers" in scope:
            exchange.handlers = scope["starlette.exception_handlers"]
        exchange.plain = True
        exchange.touched = False
        exchange.phase = INWARD
        exchange.waiting = waiting = []
        exchange.loop = loop = running_loop()
        states = _context.states
        task = None if loop is None else task_of(loop)
        if task is None:
            exchange.loop = None
            task = trio_task()
            states = _context.trio_states if task is not None else None
        exchange.task = task
        exchange.states = states

        failure: BaseException | None = None
        try:
            # Inward: the first step of each flow.
            scopes = key = None
            if states:  # `open_scopes()`, without the call
                key = ref(task)
                scopes = getattr(states.get(key), "cancel_scope", None)
            incoming = hook = None
            rest = iter(functions)
            for make, function, when in rest:
                conn = make()  # the rest as in `Connection._of`, without the call
                conn._given = scope
                conn._exchange = exchange
                if incoming is not None:
                    conn._incoming = incoming
                flow: Any = None
                try:
                    if when is None:
                        flow = function(conn)
                    elif meant := when(conn):
                        if meant is not True and hasattr(type(meant), "__await__"):
                            raise _errors.awaitable_predicate(when, meant)
                        flow = function(conn)
                    if flow is None:  # it is not there, whatever it did before
                        if not exchange.plain:
                            exchange.around = None
                            if type(exchange) is Exchange:  # a handshake has no body to limit
                                exchange.server_receive = receive
                            incoming = exchange.incoming = incoming or exchange._outermost
                        continue
                    if type(flow) is AsyncGeneratorType:
                        # asyncio registers every async generator, to close it with the loop; the
                        # adapter closes them itself, and the registering costs half as much as all
                        # else in a flow's life. The hook is looked at when `asend` is called, not
                        # when it is awaited, so that no code of the user's runs without it.
                        if hook is None:
                            hook = (_get_hooks().firstiter,)
                        _set_hooks(*_NO_HOOK)
                        step = flow.asend(None)
                        _set_hooks(*hook)
                        value = await step
                    elif flow is conn and make is not Received and make is not ReceivedHandshake:
                        value = None  # a dispatch function, which has been begun already
                        if conn._step is not None:
                            step, conn._step = conn._step, None
                            value = await step
                    elif hasattr(flow, "asend"):
                        value = await flow.asend(None)
                    else:
                        failure = _not_a_generator(function, flow)
                        break
                    while value is not None and hasattr(value, "asend"):
                        # Delegation: the other function runs inside of this one.
                        waiting.append(flow)
                        if has_begun(value):
                            flow = None
                            raise _errors.has_begun(waiting[-1], value)
                        flow = value
                        value = await flow.asend(None)
                except BaseException as exc:
                    if isinstance(exc, StopAsyncIteration) and flow is not None:
                        failure = _errors.no_yield(flow)
                    else:
                        failure = await exchange.raised(conn, exc)
                    break
                waiting.append(flow)
                if exchange.touched and conn._touched:
                    scope = exchange.pass_on(conn)
                if value is not None:
                    failure = await exchange.early_answer(value, scopes)
                    break
                if not exchange.plain:
                    if exchange.drained:
                        failure = await exchange.misuse(waiting.pop(), _errors.drained(flow))
                        break
                    incoming = exchange.incoming
                    if exchange.around is not None:
                        exchange.enclose(tuple(rest))
            else:
                if states and getattr(states.get(key or ref(task)), "cancel_scope", None) != scopes:
                    failure = await exchange.scope_held(scopes)
                elif not waiting:  # every layer stepped aside
                    await app(scope, receive, send)
                    return
                else:
                    exchange.phase = exchange.phase.called
                    inner = exchange.app
                    if scope is not given:
                        inner = handing_outward(inner, exchange.inwards)
                    try:
                        await inner(scope, exchange.receive, exchange.send)
                    except GeneratorExit:
                        raise
                    except BaseException as exc:
                        failure = exc
                    else:
                        if exchange.phase is PASSING and exchange.plain:
                            return
                    ended = exchange.phase
                    if ended is not PASSING and (
                        failure is not None or ended is not COUNTED or exchange.taken
                    ):
                        failure = await exchange.finish(exchange.source, failure)
            if waiting or exchange.waits or not exchange.plain:
                failure = await exchange.end(failure)
        except BaseException:
            # Closed from outside, or an error of our own: every flow is ended all the same.
            exchange.abandon()
            raise
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # it holds this frame: do not hold it in turn


def fused(app: Any) -> Layers:
    """
    Give the functions of the neighbouring layers that *app* is made of, and what is inside of them.
    """
    _context.find_states()
    # A class that overrides `__call__` is left alone.
    return layers_of(app) if runs_as_adapter(app) else ((), app, None)


def layers_of(adapter: Adapter) -> Layers:
    """
    Give what an adapter is made of; an error where its `__init__` has not been called.
    """
    # In `compat` it is a property, which may fail for reasons of its own.
    if "_httpmw" not in vars(adapter) and not hasattr(type(adapter), "_httpmw"):
        raise _errors.not_initialised(type(adapter))
    return adapter._httpmw


def runs_as_adapter(app: object) -> bool:
    return getattr(type(app), "__call__", None) is Adapter.__call__  # noqa: B004 - which one it is


class Exchange(Outbound):
    """
    One request in one adapter; and the way of its inner app's response.
    """

    __slots__ = (
        "app",
        "scope",
        "server_receive",
        "touched",
    )

    app: ASGIApp
    scope: Scope
    # The application and its handlers as they are out here; an inner one puts its own there.
    application: Any = None
    handlers: Any = None
    server_receive: Receive
    # Whether a layer may have changed something of its request.
    touched: bool

    # As in `Outbound`: what only some requests come to.

    # What a flow wants around all that is further in: `Connection.fail_after` and its like.
    around: Callable[[ASGIApp], ASGIApp] | None = None
    # Where the next layer inward gets the request from; None: straight from the server.
    incoming: Incoming | None = None
    # What layers have changed of the scope, the outermost first.
    inwards: Sequence[Inward] = ()
    # The inner app, where something of ours is around it.
    enclosed: ASGIApp | None = None
    # See the rules above; the innermost first.
    waits: list[tuple[AnyFlow, AppResponse]] | tuple[()] = ()
    tails: Sequence[Tail] = ()
    # The transforms of users, closed at the very end.
    transforms: Sequence[Any] = ()
    # The travel that waits for a message of its source.
    on_hold: Outbound | None = None
    _outermost: Incoming | None = None
    _receiving: Turn | None = None
    # Whether more of the body is to come than the inner app took from there; None: it took nothing.
    body_left: bool | None = None
    # Whether a flow that has not come to its first yield dropped the body.
    drained = False
    # Of a handshake: with what the inner app has answered it.
    answered = ""
    # Whether the client is known to be gone; once seen it stays seen.
    gone = False
    # What everyone is told then.
    farewell: Message = DISCONNECT
    # The ClientDisconnect that is ours to drop.
    disconnect: ClientDisconnect | None = None
    # The context variables that the app shall see as they were, and how to take them back.
    kept: Mapping[ContextVar[Any], Any] = MappingProxyType({})
    _tokens: Sequence[tuple[ContextVar[Any], Token[Any]]] = ()

    @property
    def exchange(self) -> Exchange:
        return self

    def __repr__(self) -> str:
        waiting = len(self.waiting)
        ending = len(self.waits) + len(self.tails)
        path = self.scope.get("path", "")
        return (
            f"<{type(self).__name__} {path!r} {self.phase!r}: {waiting} wait for the response, "
            f"{ending} for the end>"
        )

    @property
    def entered(self) -> bool:
        """
        Whether the inner app has been called, or a flow has answered in its place.
        """
        return self.phase is not INWARD

    # ------------------------------------------------------------------ the way inward

    def pass_on(self, conn: LayerRequest) -> Scope:
        """
        Give the scope that goes inward from the layer that has just come to its first yield.
        """
        inward = inward_of(conn, len(self.waiting) - 1)
        if inward is not None:
            self.inwards = (*self.inwards, inward)
            self.scope = inward.scope
        return self.scope

    def scope_given_to(self, depth: int) -> Scope:
        """
        The scope that was given to the layer inside of *depth* flows.
        """
        inwards = self.inwards
        for inward in reversed(inwards):
            if inward.depth < depth:
                return inward.scope
        return inwards[0].given if inwards else self.scope

    def scope_of_answers(self, depth: int) -> Scope:
        """
        The scope in which an answer of the layer inside of *depth* flows is run.
        """
        for inward in self.inwards:
            if inward.depth == depth:
                return inward.for_answers
        return self.scope_given_to(depth)

    def enclose(self, functions: Functions) -> None:
        """
        Run all that is further in as an adapter of its own, inside of what a flow wants around it.
        """
        self.enclosed = self.app
        if functions:
            self.app = self.inside(functions, self.app)
        if self.around is not None:
            self.app = self.surround(self.app, self.around)

    def inside(self, functions: Functions, app: ASGIApp) -> Adapter:
        adapter = Adapter()
        adapter.take(functions, app)
        return adapter

    def surround(self, app: ASGIApp, around: Callable[[ASGIApp], ASGIApp]) -> ASGIApp:
        return around(app)

    def put_around(self, around: Callable[[ASGIApp], ASGIApp]) -> None:
        """
        Put something around all that is further in, outside of which stands what is there already.
        """
        outer = self.around
        self.around = around if outer is None else lambda app: outer(around(app))
        self.complicate()

    def send_inward(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self.complicate()

    def connection(self, scope: Scope) -> Connection:
        return Connection._of(self, scope)

    def as_http(self, scope: Scope) -> Scope:
        """
        Give the scope in which a response is run that a flow gave.
        """
        return scope

    @property
    def source(self) -> ASGIApp:
        """
        The inner app, for messages.
        """
        return self.enclosed or self.app

    async def scope_held(self, scopes: Any) -> BaseException:
        """
        A flow holds a scope open at its first yield: close it, and all that were begun inside.
        """
        while True:
            flow = self.waiting.pop()
            error = await self.misuse(flow, _errors.open_scope(flow))
            if not self.waiting or not open_scopes(self.task) != scopes:  # noqa: SIM202
                return error

    async def raised(
        self, conn: Connection | DispatchFlow, exc: BaseException
    ) -> BaseException | None:
        """
        A flow raised in its first step, or could not be made.
        """
        if isinstance(exc, GeneratorExit):
            raise exc
        if not isinstance(conn, Connection):
            conn = conn.as_conn()
        response, failure = await self.answer(conn, exc)
        if response is None:
            return failure
        self.phase = self.phase.called
        tail = self.add_tail()
        tail.failure = await Replacement(self, tail).run(response)
        return None

    async def early_answer(self, value: Any, scopes: Any) -> BaseException | None:
        """
        The first yield carried a response: the inner app is not run.
        """
        mistake = not_a_new_response(self.waiting[-1], value)
        if mistake is not None:
            return await self.misuse(self.waiting.pop(), mistake)
        if self.states and open_scopes(self.task) != scopes:
            return await self.scope_held(scopes)
        self.phase = self.phase.called
        if len(self.waiting) > 1 or self.incoming is not None or not is_framed(value):
            tail = self.add_tail(self.waiting.pop())
            tail.failure = await Replacement(self, tail).run(value)
            return None
        failure: BaseException | None = None
        try:  # nobody further out wants to see it
            scope = self.scope_of_answers(0) if self.inwards else self.scope
            await value(self.as_http(scope), self.server_receive, self.server_send)
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure = exc
        try:
            return await self._resume(self.waiting.pop(), failure)
        finally:
            failure = None  # it holds this frame: do not hold it in turn

    # ------------------------------------------------------------------ the end

    async def end(self, failure: BaseException | None) -> BaseException | None:
        """
        End everything that was begun; give back what the adapter raises.
        """
        waiting = self.waiting
        try:
            if failure is None and self.waits:
                progress = self._progress
                assert progress is not None
                if not progress.complete or progress.lost:
                    self.complicate()
                # As long as all is well, and nothing else is to be done.
                while self.waits:
                    flow, response = self.waits.pop(0)
                    if type(flow) is Observer:  # it has been told
                        continue
                    response._outcome = "completed"
                    try:
                        value = await flow.asend(None)
                    except StopAsyncIteration:
                        if response.status_code == response._sent_status:
                            continue
                        failure = _errors.status_after_sent(flow, response.status_code)
                    except GeneratorExit:
                        raise
                    except BaseException as exc:
                        failure = exc
                    else:
                        error = _errors.yield_after_response(flow, value)
                        failure = await self.misuse(flow, error)
                    break
                if failure is None and self.plain:
                    return None
            self.complicate()
            self._let_variables_go()
            while self.tails or waiting:
                if self.tails:
                    failure = await self.end_first(failure)
                else:
                    failure = failure or await self._no_response()
                    failure = await self._throw(waiting.pop(), failure)
            for each in self.transforms:
                if not each.is_closed:
                    failure = await self._close(each) or failure
            if failure is self.disconnect:
                failure = None
            self.forget()
            return failure
        finally:
            failure = None  # it holds this frame: do not hold it in turn

    def forget(self) -> None:
        super().forget()
        self.tails = self.transforms = ()
        self.disconnect = self.incoming = self._outermost = None

    # A dispatch function in `call_next` style that ends at the response start takes back the
    # context variables it had set, and Starlette's class runs the app in a context of its own,
    # where they stay: the app's streams and background tasks count on it. So they are set again
    # for the rest of the app, and taken back when it has ended.

    def keep(self, variables: dict[ContextVar[Any], Any]) -> None:
        self.kept = {**variables, **self.kept}
        self.complicate()

    def keep_variables(self) -> None:
        kept, self.kept = self.kept, {}
        for variable, value in kept.items():
            self._tokens = ((variable, variable.set(value)), *self._tokens)

    def _let_variables_go(self) -> None:
        for variable, token in self._tokens:
            variable.reset(token)

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
            scope = self.scope_of_answers(len(self.waiting))
            response, exc_or_none = await self.answer(self.connection(scope), exc)
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
        tail.failure = await Replacement(self, tail).run(response)
        return None

    async def end_first(self, failure: BaseException | None) -> BaseException | None:
        """
        Do what the innermost layer has left to do; give back what goes on outward.
        """
        tail, *self.tails = self.tails
        if failure is tail.answered:
            failure = None
        tail.answered = None
        if tail.signal is not None:
            failure = failure and tail.signal.taken_out_of(failure)
            tail.signal = None  # its traceback leads back here
        if tail.failure is not None:
            failure, tail.failure = tail.failure, None  # its traceback leads back here
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
        response = tail.response
        if response is not None:
            self._close_book(tail, response)
            if response._outcome is None:
                failure = await self._find_outcome(response, failure)
            if response._observer is not None:
                response._observer.tell(response._outcome)
        return await self._resume(flow, failure, response, tail.cancellation)

    async def _resume(
        self,
        flow: AnyFlow,
        failure: BaseException | None,
        response: AppResponse | None = None,
        answered: BaseException | None = None,
    ) -> BaseException | None:
        """
        Come back to a flow that has sent a response, in place of *response* where it had one.

        A cancellation *answered* by it goes on.
        """
        traceback = None if failure is None else failure.__traceback__
        owed = 0 if failure is None else _context.cancellations(self.task)
        try:
            if failure is None:
                value = await flow.asend(None)
            else:
                value = await flow.athrow(failure)
        except GeneratorExit:
            raise
        except StopAsyncIteration:
            if failure is not None and self._is_owed(failure, owed):
                return failure
            if response is not None and response.status_code != response._sent_status:
                answered = answered or _errors.status_after_sent(flow, response.status_code)
            return answered
        except BaseException as exc:
            if failure is not None and (exc is failure or _wrapped_stop(exc, failure)):
                failure.__traceback__ = traceback
                return failure
            return exc
        error = _errors.yield_after_response(flow, value)
        error.__cause__ = failure
        return await self.misuse(flow, error)

    def _is_owed(self, failure: BaseException, owed: int) -> bool:
        """
        Whether *failure* is a cancellation that goes on although a flow swallowed it.
        """
        return _context.is_cancellation(failure) and _context.is_cancelled(self.task, owed)

    def _close_book(self, tail: Tail, response: AppResponse) -> None:
        progress = response._progress
        if progress is None:
            progress = response._progress = Progress(trailers=False)
        progress.over()
        if tail.replaced:
            response._outcome = "replaced"
        elif progress.complete and not progress.lost:
            response._outcome = "completed"

    async def _find_outcome(
        self, response: AppResponse, failure: BaseException | None
    ) -> BaseException | None:
        """
        Find out why a response was not completed; a cancellation may come up meanwhile.
        """
        outcome: Outcome = "failed"
        if failure is None or isinstance(failure, (ClientDisconnect, OSError)):
            gone, cancellation = response._outbound.told_gone, None
            if not gone:
                gone, cancellation = await self._is_gone()
            failure = cancellation or failure
            if gone:
                outcome = "disconnected"
            elif failure is None:
                outcome = "incomplete"
        if _context.is_cancellation(failure):
            outcome = "cancelled"
        response._outcome = outcome
        return failure

    async def _no_response(self) -> BaseException:
        """
        The source returned without a start.
        """
        gone, cancellation = await self._is_gone()
        if cancellation is None and not gone:
            cancellation = await _context.pending_cancellation()
        if cancellation is not None:
            return cancellation
        return self.client_gone() if gone else _errors.no_response(self.source)

    def client_gone(self) -> ClientDisconnect:
        """
        Give what is raised for a client that has left, and dropped where nobody handles it.
        """
        if self.disconnect is None:
            self.disconnect = ClientDisconnect()
        return self.disconnect

    async def truncated(self, source: ASGIApp) -> BaseException:
        """
        The source returned in mid-body, and somebody is still reading.
        """
        error = await self._no_response()
        return _errors.truncated(source) if isinstance(error, NoResponseError) else error

    async def answer(
        self, conn: Connection, exc: BaseException
    ) -> tuple[Response | None, BaseException]:
        """
        Make a response of an HTTPException that a flow raised; else give back what was raised.
        """
        alone: BaseException = exc
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]  # of a task group of the flow's own
        if not isinstance(alone, HTTPException):
            return None, exc
        try:
            response = await _handlers.answer(conn, alone, self.application, self.handlers)
        except GeneratorExit:
            raise
        except BaseException as raised:
            return None, raised
        if response is not None and response.status_code < FINAL:
            error = _errors.interim_exception(alone)
            error.__cause__ = exc
            return None, error
        return response, exc

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
        if self.on_hold is not None:
            self.on_hold.close()
        self.complicate()
        flows = [tail.flow for tail in self.tails if tail.flow is not None]
        flows += reversed(self.waiting)
        self.waiting.clear()
        for each in [*flows, *self.transforms]:
            closing = each.aclose()
            try:
                closing.send(None)
            except BaseException:  # noqa: S110 - the others are closed all the same
                pass
        self.forget()

    def add_transform(self, transform: Any) -> None:
        self.complicate()
        self.transforms = (*self.transforms, transform)

    def complicate(self) -> None:
        """
        Note that there is more to be done than to come back to flows.
        """
        self.plain = False
        if self.waits:
            waits, self.waits = self.waits, ()
            for flow, response in waits:
                self.add_tail(flow).response = response

    def add_tail(self, flow: AnyFlow | None = None) -> Tail:
        self.complicate()
        tail = Tail()
        tail.flow = flow
        self.tails = [*self.tails, tail]
        return tail

    # ------------------------------------------------------------------ receive

    def outermost_incoming(self) -> Incoming:
        """
        The request as the server gives it, for those who read ahead.
        """
        if self._outermost is None:
            self._outermost = Incoming(self.receive_from_server, self)
            self._outermost.taken = self.body_left is not None
            self._outermost.complete = self.body_left is False
            if self.incoming is None:
                self.send_inward(self._outermost)
        return self._outermost

    def may_drain(self, incoming: Incoming) -> bool:
        """
        Whether a flow may drop the rest of the body: not where the inner app runs and reads it.
        """
        if self.phase is TRAVELLING:
            turn = self._receiving
            return not incoming.taken and (turn is None or not turn.taken)
        self.drained = self.phase is INWARD
        return True

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
            return self.farewell
        turn.taken = True
        try:
            message: Message = await self.server_receive()
        finally:
            turn.leave()
        if message["type"] == "http.disconnect":
            self.gone = True
            self.farewell = message
        return message

    async def receive_inward(self) -> Message:
        """
        What the layer further in receives.
        """
        incoming = self.incoming
        if incoming is not None:
            return incoming.take_ahead() or await incoming.receive()
        message = await self.receive_from_server()
        if message["type"] == "http.request":
            self.body_left = message.get("more_body", False)
        return message

    async def _is_gone(self) -> tuple[bool, BaseException | None]:
        """
        Look, without waiting, whether the client has left; and give a cancellation that came up.
        """
        # What is not a disconnect stays for whoever reads it; a client that is still sending is
        # not gone, so there is no use in looking far.
        incoming = self.outermost_incoming()
        for _ in range(_LOOK_AHEAD):
            if self.gone:
                break
            looked = False
            try:
                # The shield keeps a cancellation by a scope further out from coming up in here;
                # one of asyncio's own comes all the same.
                with anyio.CancelScope(shield=True) as scope:
                    scope.cancel()
                    await incoming.peek_latest()
                    looked = True
            except GeneratorExit:
                raise
            except BaseException as exc:
                return self.gone, None if isinstance(exc, Exception) else exc
            if not looked:
                break
        return self.gone, None


LAYOUT: Final = (
    "taken",
    "scopes",
    "application",
    "handlers",
    "waits",
    "tails",
    "_progress",
    "_progresses",
    "_body",
    "_coroutine",
    "_paused",
    "on_hold",
    "collecting",
    "_waiter",
    "_runner",
    "tally",
    "_tallied",
    "transforms",
    "incoming",
    "_outermost",
    "inwards",
)
lay_out(Exchange(), *LAYOUT)


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
