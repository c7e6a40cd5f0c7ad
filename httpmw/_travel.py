# The way outward: what a source gets as `send` and `receive`, and how its response travels.
#
# At the response start one ordinary coroutine, the *travel*, carries the response outward: it
# steps each waiting flow, the innermost first, and at last sends the start. It is driven by hand
# from within the source's `send` (see `_drive`), so that it may wait for the body's messages.
#
# Rule 1: while the travel is being driven no other message of the source is looked at, and the
# source is not told of a disconnect.
# Rule 2: when a flow gives another response, that response is a source of its own with a travel
# of its own through the flows further out, run to its end inside of this travel. The source is
# discarded from then on: to it, it looks exactly like a client that left, as the ASGI version in
# its scope defines it. Nothing is cancelled.
# Rule 3: when a flow fails, its exception goes out through the source's `send`, and is kept:
# whatever the source makes of it, it is what the flows further out get.
# Rule 4: a body that nobody has asked for goes straight to the server's own `send`.
# Rule 5: behind a layer that gives a response a status which allows no body it has none, for the
# layers further out as for the client. The source is not told; it goes on as it would for HEAD.

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard
from weakref import ref

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Scope, Send

from . import _context, _errors
from ._body import (
    BODILESS,
    DISCONNECT,
    FINAL,
    Body,
    CountedBody,
    FixedBody,
    LiveBody,
    Progress,
    SilentBody,
    TransformedBody,
    as_bytes,
    sized,
    without_bytes,
)
from ._context import checkpoint, open_scopes, task_of, trio_task
from ._drive import Begun, Driven
from ._observe import Callback, Observer, outcome_of
from ._phases import (
    COUNTED,
    DISCARDED,
    PASSING,
    REFUSED,
    TRAILERS_ONLY,
    TRAVELLING,
    WAITING,
    Phase,
)
from ._response import AppResponse, Headers, frame, frame_nothing, framed, is_framed, received

if TYPE_CHECKING:
    from ._exchange import AnyFlow, Exchange, Tail


class Discarded(OSError):
    # What a body message of a discarded app raises, as a server of ASGI 2.4 does when the
    # client is gone.

    def taken_out_of(self, exc: BaseException) -> BaseException | None:
        """
        Take this signal out of what the app raised; None when nothing else is left.
        """
        if isinstance(exc, BaseExceptionGroup):
            return exc.split(
                lambda each: not isinstance(each, BaseExceptionGroup) and self._is_behind(each)
            )[1]
        return None if self._is_behind(exc) else exc

    def _is_behind(self, exc: BaseException | None) -> bool:
        if exc is None or exc is self:
            return exc is self
        # Starlette raises ClientDisconnect while it handles an OSError, without a `from`.
        context = exc.__context__ if isinstance(exc, (ClientDisconnect, OSError)) else None
        return self._is_behind(exc.__cause__) or self._is_behind(context)


_BODY: Final = "http.response.body"


class Outbound(Driven):
    """
    The way of one source's messages outward: its `send` and its `receive`.

    Of the inner app's it is the `Exchange` itself, of another response a `Replacement`.
    """

    # What every request comes to is set when the object is made. All else has its default here:
    # most requests never look at it, and to set it would cost them.
    __slots__ = (
        "loop",
        "outgoing",
        "phase",
        "plain",
        "server_send",
        "started",
        "states",
        "waiting",
    )

    phase: Phase
    # What the source gets as scope.
    scope: Scope
    # The flows that wait for a response, the outermost first.
    waiting: list[AnyFlow]
    server_send: Send
    # Whether nothing stands between the source and the server but the flows that wait, and nothing
    # is left to be done when the source has ended but to come back to those that wait for that.
    # None where it is a body that is read besides.
    plain: bool | None
    # The event loop of the request; None on trio.
    loop: Any
    # Where the scopes are known that tasks hold open; false as long as there are none.
    states: Any
    # What sends the last message that is counted, begun or over; unset before the first.
    outgoing: Any
    # Set when the travel has sent a start; unset before.
    started: bool

    # What was raised where the travel waited for a message that never came.
    thrown: BaseException | None = None
    # Whether a discarded source was made to believe that the client is gone.
    told_gone = False
    _failure: BaseException | None = None
    _signal: Discarded | None = None
    _replacer: Tail | None = None
    # Of the flow that gave this response in place of another.
    giver: Tail | None = None
    # Left behind by a start of which nobody knows whether the server has it.
    _lost: Tail | None = None
    _body: LiveBody | None = None
    # Whether no byte of that passes the layers that had the response so far (rule 5).
    _silent = False
    # Of the body as the source sends it, and of all bodies that its messages become, the outermost
    # first.
    _progress: Progress | None = None
    _progresses: Sequence[Progress] = ()
    # Whether the start that was sent is another one than the source's.
    _cut = False
    # What counts the chunks as the server gets them, and how the last one is sent, with its size.
    # False where it is known only afterwards whether they count, None before the first.
    tally: Progress | Literal[False] | None = None
    _tallied: tuple[Any, int] = (None, 0)
    # The step of a flow that waits for the body, and needs no driver so far.
    _waiter: Begun | None = None
    # The body that is read whole: its messages are kept without anybody being told.
    collecting: LiveBody | None = None
    # Whether the source has begun anew for a client that is known to be gone: what it sends is the
    # server's to judge, and no part of the response that is on its way outward.
    _astray = False

    @property
    def exchange(self) -> Exchange:
        raise NotImplementedError

    # A method, as a property costs more where it is asked in many requests.
    def is_head(self) -> bool:
        # To those who are told of it, the flow in hand and those further out.
        exchange = self.exchange
        scope = exchange.scope
        if exchange.inwards:
            scope = exchange.scope_given_to(len(self.waiting))
        return bool(scope.get("method") == "HEAD")

    def send(self, message: Message) -> Awaitable[None]:
        """
        What the source gets as `send`.
        """
        phase = self.phase
        if phase is PASSING:
            return self.server_send(message)
        if phase is WAITING:
            if message["type"] == "http.response.start":
                return self._start(message)
        elif phase is COUNTED:
            tally = self.tally
            if tally and message.get("more_body") and message["type"] == _BODY and not self.taken:
                size = len(message.get("body", b""))
                tally.bytes_sent += size
                sending = self.server_send(message)
                self._tallied = sending, size
                return sending
            if not self.taken and message["type"] != "http.response.start":
                if tally is None and message.get("more_body"):
                    self.tally = self._make_tally()
                    return self.send(message)
                self.outgoing = outgoing = self._to_server(message, counted=True)
                return outgoing
        elif phase is TRAVELLING:
            body = self.collecting
            if body is None or not body.keep(message):
                return self._feed(message)
            if self._progress is not None:
                self._progress.count(message)
            return _kept()
        return self._send(message)

    async def receive(self) -> Message:
        """
        What the source gets as `receive`.
        """
        if self.phase is DISCARDED or self.phase is TRAILERS_ONLY:
            self.told_gone = True
            self._lose()
            return DISCONNECT
        message = await self.exchange.receive_inward()
        if message["type"] == "http.disconnect":
            await self._all_quiet()
            # What is on its way may be the end: it is looked at when it is there.
            outgoing = getattr(self, "outgoing", None)
            if getattr(outgoing, "cr_frame", None) is None:
                self._lose()
        return message

    def _lose(self) -> None:
        """
        The client is known to be gone.
        """
        for progress in self._progresses:
            progress.lose()

    def observe(self, response: AppResponse, callback: Callback) -> None:
        """
        Call *callback* when *response*, which a flow has in its hands, is over.
        """
        if self.phase is not TRAVELLING or not response._open:
            raise _errors.observed_too_late()
        observer = response._observer
        if observer is None:
            observer = response._observer = Observer(response, callback)
            self.waiting.append(observer)
        else:
            observer.callbacks = (*observer.callbacks, callback)

    def _further_out(self) -> Outbound | None:
        """
        The way of these messages through the next adapter further out.

        It is found where nobody else has put a `receive` of his own in between.
        """
        outbound = getattr(self.exchange.server_receive, "__self__", None)
        return outbound if isinstance(outbound, Outbound) else None

    async def _all_quiet(self) -> None:
        """
        Wait until nothing that the source has sent is being worked on, here or further out.
        """
        outbound: Outbound | None = self
        while outbound is not None:
            if outbound.taken:
                await outbound.wait()
                outbound = self  # what is done here may be in hand there by now
            else:
                outbound = outbound._further_out()

    def is_straight(self) -> bool:
        """
        Whether the messages go straight to the server, so that no function has them in hand.
        """
        outbound: Outbound | None = self
        while outbound is not None and outbound.phase in (PASSING, COUNTED):
            outbound = outbound._further_out()
        return outbound is None

    def is_discarded(self) -> bool:
        """
        Whether another response was sent in place of this one, here or further out.
        """
        outbound: Outbound | None = self
        while outbound is not None and outbound.phase not in (DISCARDED, TRAILERS_ONLY):
            outbound = outbound._further_out()
        return outbound is not None

    # ------------------------------------------------------------------ send, by state

    async def _send(self, message: Message) -> None:
        if self.taken:
            await self.wait()
        phase = self.phase
        if phase is TRAVELLING:
            if message["type"] == "http.response.start":
                if not self.exchange.gone:
                    raise _errors.second_start()
                self._astray = True
            if not self._astray:
                await self._feed(message)
            elif hasattr(self, "started"):
                await self.exchange.server_send(message)
            else:  # nothing goes out past the flows
                await checkpoint()
        elif phase is COUNTED:
            await self._to_server(message, counted=True)
        elif phase is REFUSED:
            raise self._failure or _errors.over()
        elif phase is DISCARDED or phase is TRAILERS_ONLY:
            await self._drop(message)
        elif message["type"] != "http.response.start" or self.exchange.gone:
            # Early hints, debug and whatever else may come before the start; or what follows a
            # start of which nobody knows whether the server has it.
            await self.server_send(message)
            if self._lost is not None:
                self._lost.without_response = False
        else:
            raise _errors.second_start()

    async def _drop(self, message: Message) -> None:
        if self.phase is TRAILERS_ONLY:
            if message["type"] == "http.response.trailers":
                await self.server_send(message)
                return
        elif (
            message["type"] == "http.response.body"
            and message.get("more_body", False)
            and self._spec_version() >= (2, 4)
        ):
            raise self._told_gone(Discarded)
        await checkpoint()
        for progress in self._progresses:
            if not progress.made or message["type"] == "http.response.trailers":
                progress.count(message)

    def _make_tally(self) -> Progress | Literal[False]:
        progress = self._progresses[0]
        if len(self._progresses) > 1 or type(progress) is not Progress or progress.silent:
            return False
        # From ASGI 2.4 on `send` may raise for any message, and the app may go on.
        return False if self._spec_version() >= (2, 4) else progress

    def _spec_version(self) -> tuple[int, ...]:
        return _version(self.scope.get("asgi", {}).get("spec_version", "2.0"))

    def _told_gone(self, signal: type[Discarded]) -> Discarded:
        self.told_gone = True
        self._lose()
        if self._signal is None:
            self._signal = signal("another response was sent in place of this one")
        return self._signal

    async def _to_server(self, message: Message, *, counted: bool = False) -> None:
        noted = message
        gone = False
        if not message.get("more_body"):
            # Who had left before the end was sent does not get it.
            gone = self.exchange.gone
            if counted and message["type"] == "http.response.pathsend":
                noted = await sized(message)
        try:
            await self.server_send(message)
        except BaseException as exc:
            # hypercorn tells of the end within its last `send`: the message is out.
            if _context.is_cancellation(exc):
                self._sent(noted, gone=gone, counted=counted)
            elif isinstance(exc, OSError):
                # ASGI 2.4, "Disconnected Client": that is how a server tells it.
                self.exchange.gone = True
            if self.exchange.gone:
                self._lose()
            raise
        if gone or not counted:
            self._sent(noted, gone=gone, counted=counted)
            return
        for progress in self._progresses:
            progress.count(noted)

    def _sent(self, message: Message, *, gone: bool, counted: bool) -> None:
        for progress in self._progresses:
            if gone:
                progress.lost = True
            if counted:
                progress.count(message)
            else:
                progress.settle()

    def _settle(self) -> None:
        for progress in self._progresses:
            progress.settle()

    # ------------------------------------------------------------------ the travel

    async def _start(self, message: Message) -> None:
        """
        The response start: step the flows, then send it.

        Most flows wait for nothing. They are stepped right here, by hand; the travel, which has
        to be driven, is only for what comes after the first one that does.
        """
        if self.phase is not WAITING:  # another one came first
            await self._send(message)
            return
        # As in `received()`, without the calls.
        try:
            given = message["headers"]
        except KeyError:
            given = ()
        headers = Headers()
        headers._list = [*given]
        if type(given) is not list and iter(given) is given:  # it has been used up
            given = headers._list.copy()
            message = {**message, "headers": given}
        response = AppResponse()
        response._outbound = self
        response._message = message
        response.status_code = message["status"]
        response.headers = headers
        self.phase = self.phase.started
        task = self.task
        loop = self.loop
        if (trio_task() if loop is None else task_of(loop)) is task:
            self.stepper = task
            if self.states:  # `open_scopes()`, without the call
                self.scopes = getattr(self.states.get(ref(task)), "cancel_scope", None)
            left: Any = self._step(response)
            self.stepper = None
            if type(left) is AppResponse and self.plain and not self._progresses:
                response = left
                if self._silent:
                    self._send_no_bytes()
                self.phase = self.phase.leaves
                start = {**message}  # as in `AppResponse._start_message`, without the call
                start["status"] = response.status_code
                raw = response.headers._list
                if type(given) is list or raw != list(given):
                    start["headers"] = raw
                try:
                    await self.server_send(start)
                except BaseException as exc:
                    self._start_failed(exc)
                    raise
                self.phase = self.phase.out
                return
        else:
            run = self.enter()
            step = self._step
            left = step(response) if run is None else run(step, response)
            self.stepper = None
        if self._paused:
            self.exchange.on_hold = self
            return
        self.taken = True
        try:
            await self._go_on(left)
        finally:
            if self.paused:
                self.exchange.on_hold = self
            left = None  # it may hold an exception, which holds this frame
            self.leave()

    async def _feed(self, message: Message) -> None:
        """
        Bring a message to who waits for it, and go on from there.
        """
        if self.taken or self._astray or message["type"] == "http.response.start":
            await self._send(message)
            return
        if self._waiter is not None or message["type"] != _BODY:
            await self._feed_flow(message)
        else:
            # A body on its way through a transform: so with as little as can be.
            loop = self.loop
            self.stepper = task = trio_task() if loop is None else task_of(loop)
            self.scopes = open_scopes(task) if self.states else None
            self.taken = True
            awaited: Any = None
            try:
                send = self._coroutine.send
                if task is self.task or (run := self.runner()) is None:
                    awaited = send(message)
                else:
                    awaited = run(send, message)
                if awaited is not self or (self.states and self.has_crossed()):
                    await self._drive(awaited)
            except BaseException as exc:
                self._paused = False
                if not isinstance(exc, StopIteration):
                    raise
            finally:
                awaited = None
                self._fed()
            if self._progress is not None:
                self._progress.count(message)
        if self._progresses:
            self._settle()

    def _fed(self) -> None:
        self.stepper = None
        if not self._paused:
            self.exchange.on_hold = None
        self.taken = False  # as in `leave`
        if self.free is not None:
            self.leave()

    async def _feed_flow(self, message: Message) -> None:
        self.taken = True
        self.collecting = None
        left: AppResponse | Begun | None = None
        noted = message
        try:
            if message["type"] == "http.response.pathsend":
                noted = await sized(message)
            if self._waiter is None:
                await self.resume(message)
            else:
                left, self._waiter = self._waiter, None
                self._paused = False
                run = self.enter()
                if run is None:
                    left = self._step(left.response, left, message)
                else:
                    left = run(self._step, left.response, left, message)
                if not self.paused:
                    self.stepper = None
                    await self._go_on(left)
        finally:
            left = None  # it may hold an exception, which holds this frame
            self._fed()
        if self._progress is not None:
            self._progress.count(noted)

    def _step(
        self, response: AppResponse, begun: Begun | None = None, message: Any = None
    ) -> AppResponse | Begun:
        """
        Step the waiting flows outward as long as they wait for nothing; the first may have begun.

        Give the response as it has become, or the step that waits for something, or went wrong. One
        that waits for the body is left as it is until the source's next message.
        """
        waiting = self.waiting
        status = response._message["status"]
        was_empty = status in BODILESS
        flow: Any = None
        while True:
            try:
                if begun is not None:
                    flow, step, begun = begun.flow, begun.step, None
                    awaited = step.send(message)
                elif waiting:
                    flow = waiting.pop()
                    step = flow.asend(response)
                    awaited = step.send(None)
                else:
                    return response
            except StopAsyncIteration:
                # One that nobody has set is the very object.
                if was_empty or ((now := response.status_code) is not status and now in BODILESS):
                    mistake = self._silence(flow, response)
                    if mistake is not None:
                        return Begun(flow, response, exc=mistake)
                if not self.plain:
                    response = self._left(response)
                    continue
                try:
                    raw = response.headers._list
                except AttributeError:
                    error = _errors.assigned_headers(response.headers)
                    return Begun(flow, response, exc=error)
                if waiting:  # nobody but the next one has a use for it
                    response._received = raw.copy()
            except StopIteration as stop:
                if stop.value is response and not (
                    (
                        self.states
                        or was_empty
                        or ((now := response.status_code) is not status and now in BODILESS)
                    )
                    and self._mistake(flow, response, response)
                ):
                    response = self._wait(flow, response)
                else:
                    return Begun(flow, response, value=stop.value)
            except BaseException as exc:
                return Begun(flow, response, exc=exc)
            else:
                begun = Begun(flow, response, step, awaited)
                if awaited is self and not self.has_crossed():
                    self._paused = True
                    self._waiter = begun
                awaited = None
                return begun

    def _go_on(self, left: AppResponse | Begun) -> Awaitable[Any]:
        """
        Do what is left of the travel when flows were stepped by hand, as far as it can be done.
        """
        if isinstance(left, Begun):
            return self.start(self._travel(left.response, left), begun=True)
        # What is kept for the app is set in the context of the request.
        if (left._body is None or type(left._body) in _WHOLE) and not self.exchange.kept:
            return self._deliver(left)
        return self.start(self._deliver(left))

    def _thaw(self) -> None:
        """
        Let what waits be driven, also where it has been stepped by hand so far.
        """
        self.collecting = None
        if self._waiter is not None:
            begun, self._waiter = self._waiter, None
            self._coroutine = travel = self._travel(begun.response, begun)
            travel.send(None)  # to where the flow waits

    def close(self) -> None:
        self._thaw()
        super().close()

    async def _travel(self, response: AppResponse, begun: Begun | None) -> None:
        """
        Carry a response outward through the waiting flows, and send it.
        """
        exchange = self.exchange
        waiting = self.waiting
        while begun is not None or waiting:
            step = begun
            flow = waiting.pop() if begun is None else begun.flow
            begun = None  # it may hold an exception
            try:
                value = await (step or flow.asend(response))
            except StopAsyncIteration:
                if response.status_code in BODILESS or response._message["status"] in BODILESS:
                    mistake = self._silence(flow, response)
                    if mistake is not None:
                        raise self._fail(mistake) from None
                response = self._left(response)
            except BaseException as exc:
                given = await self._raised(flow, exc)
                await self._replace(None, response, given)
                return
            else:
                mistake = self._mistake(flow, response, value)
                if mistake is not None:
                    raise self._fail(await exchange.misuse(flow, mistake))
                if value is response:
                    response = self._wait(flow, response)
                elif self._streams_on(value, response):
                    response = self._streamed(flow, response, value)
                else:
                    await self._replace(flow, response, value)
                    return
        await self._deliver(response)

    async def _deliver(self, response: AppResponse) -> None:
        """
        Send a response that is through all flows, with what there is of its body.
        """
        exchange = self.exchange
        if exchange.kept:
            exchange.keep_variables()
        body = response._body
        if self._silent and body is None:
            self._send_no_bytes()
        send = self.server_send
        try:
            await send(response._start_message())
        except BaseException as exc:
            self._start_failed(exc)
            raise
        self.started = True
        progresses = self._progresses
        if progresses or exchange.tails:
            self._note_start()
        sending = False
        try:
            # The two that are met most, without a call for each message: that costs most.
            if type(body) is LiveBody and not progresses:
                sending = True
                ahead = body.ahead
                while ahead:
                    await send(ahead.popleft())
            elif type(body) is TransformedBody and not body.ahead:
                async for made in body.iterator:
                    chunk = made if type(made) is bytes else as_bytes(made, body.charset)
                    if body.inner.aside:
                        body.hand_on(chunk)
                        break
                    if chunk:
                        message = {"type": _BODY, "body": chunk, "more_body": True}
                        sending = True
                        await send(message)
                        sending = False
                else:
                    body.hand_on(b"", more_body=False)
        except BaseException as exc:
            try:
                if not sending and type(body) is TransformedBody:
                    body.fail(exc)
                elif isinstance(exc, OSError):
                    # ASGI 2.4, "Disconnected Client": that is how a server tells it.
                    exchange.gone = True
                    self._lose()
                elif _context.is_cancellation(exc):
                    self._settle()
                raise
            finally:
                self._let_pass()
        try:
            if body is not None:
                await self._pump(body, trailers=response._has_trailers())
            if progresses:
                self._settle()
        finally:
            if self.phase is TRAVELLING:
                self._let_pass()

    def _note_start(self) -> None:
        now = time.perf_counter()
        for progress in self._progresses:
            progress.started_at = now
        for tail in self.exchange.tails:  # of a response that this one replaces
            if tail.response is not None and tail.response._progress is not None:
                tail.response._progress.started_at = now

    async def _raised(self, flow: AnyFlow, exc: BaseException | None) -> Response:
        """
        A flow raised: give the answer that an HTTPException becomes, or fail.
        """
        exchange = self.exchange
        failure: BaseException | None = None
        try:
            assert exc is not None
            scope = exchange.scope_of_answers(len(self.waiting))
            response, failure = await exchange.answer(exchange.connection(scope), exc)
            if response is None:
                foreign = self.stepper is not exchange.task
                raise self._fail(_context.explain(flow, failure, foreign=foreign))
            return response
        finally:
            exc = failure = None  # they hold this frame: do not hold them in turn

    def _mistake(
        self, flow: AnyFlow, response: AppResponse, value: Any
    ) -> _errors.MiddlewareError | None:
        if self.states and open_scopes(self.stepper) != self.scopes:
            return _errors.open_scope(flow)
        if value is response:
            is_empty = response.status_code in BODILESS or response._message["status"] in BODILESS
            return self._silence(flow, response) if is_empty else None
        if value is None:
            return _errors.second_yield(flow)
        return not_a_new_response(flow, value)

    def _silence(self, flow: AnyFlow, response: AppResponse) -> _errors.MiddlewareError | None:
        """
        A flow lets go of a response that has no body, or had none: see to its framing.
        """
        status = response.status_code
        received = response._message["status"]
        if status not in BODILESS:
            # The length that it declares is that of another response (RFC 9110 section 8.6).
            if received in BODILESS and not isinstance(response._body, FixedBody):
                frame(response.raw_headers, None)
            response._message = {**response._message, "status": status}
            return None
        if status != received:
            if status < FINAL:
                return _errors.interim_status(flow, status)
            frame_nothing(response.raw_headers, status)
            response._message = {**response._message, "status": status}  # as received further out
        elif response._has_wrong_length():
            frame_nothing(response.raw_headers, status)
        if response._body is None:
            self._silent = True
        return None

    def _left(self, response: AppResponse) -> AppResponse:
        """
        A flow has ended; give the response that goes on.
        """
        if response._background is None:
            body = response._body
            if body is None:
                # Nobody but the next flow has a use for the very same object.
                response._received = response.raw_headers.copy()
                return response
            if type(body) is LiveBody:  # it has been read
                response._close()
                return self._outward(response)
        tail = self.exchange.add_tail()
        tail.background = response._background
        response._close()
        tail.body = response._body
        return self._outward(response)

    def _outward(self, response: AppResponse) -> AppResponse:
        """
        A flow is through with a response; give it as it goes on outward.
        """
        # Where nobody is further out, nobody needs one of his own.
        if self.waiting or response.status_code in BODILESS or self.is_head():
            return response._outward()
        return response

    def _wait(self, flow: AnyFlow, response: AppResponse) -> AppResponse:
        """
        A flow waits for the end of its response; give the response that goes on.
        """
        exchange = self.exchange
        if self.plain:
            exchange.waits = [*exchange.waits, (flow, response)]
            response._close()
        else:
            tail = exchange.add_tail(flow)
            tail.response = response
            response._close()
            tail.background = response.background
            tail.body = response._body
        # Where nobody is further out, nobody needs one of his own.
        same = not self.waiting and response._body is None
        outward = response if same else response._outward()
        progress = self._progress
        if progress is None or outward._body is not None or self._silent:
            progress = self._progress_of(outward)
        response._progress = progress
        if type(flow) is Observer:
            flow.observe(progress)
        return outward

    def _progress_of(self, outward: AppResponse) -> Progress:
        """
        Count what goes on outward.
        """
        body = outward._body
        if body is None and self._progress is not None:
            if self._progress.silent or not self._silent:
                return self._progress
            body = outward._body = self.body()  # it is another one from here on
        trailers = bool(outward._message.get("trailers"))
        if body is None:
            silent = self._silent or self.is_head()
            progress = self._progress = Progress(trailers=trailers, silent=silent)
        else:
            trailers = trailers and isinstance(body.source, LiveBody)
            progress = Progress(trailers=trailers, made=body.is_made(), silent=self.is_head())
            outward._body = CountedBody(body, progress)
        self._progresses = (progress, *self._progresses)
        return progress

    def _fail(self, failure: BaseException) -> BaseException:
        # Raised out of the source's `send`, and kept: whatever the source makes of it, it is
        # what the outer flows get, when the source has ended. But a cancellation belongs to the
        # source: it may be a limit of its own, and a stale one must never be raised.
        waiting = self.waiting
        if waiting and isinstance(observer := waiting[-1], Observer):  # of the flow that fails
            waiting.pop()
            observer.tell(outcome_of(failure))
        tail = self.exchange.add_tail()
        kept = _context.without_cancellations(failure)
        if kept is None:
            self._failure = RuntimeError("the response was cancelled while it was being sent")
            tail.without_response = True
        else:
            self._failure = tail.failure = kept
        self.phase = self.phase.failed
        return failure

    def _streams_on(self, value: Any, response: AppResponse) -> TypeGuard[StreamingResponse]:
        # StreamingResponse(transform(response.body_iterator)): the source has to go on while it
        # streams, so it is driven here instead of being called as an app of its own.
        return (
            isinstance(value, StreamingResponse)
            and type(value).__call__ is StreamingResponse.__call__
            and type(value).stream_response is StreamingResponse.stream_response
            and response._is_being_read()
        )

    def _streamed(
        self, flow: AnyFlow, response: AppResponse, value: StreamingResponse
    ) -> AppResponse:
        if not is_framed(value):
            value = framed(value, is_head=self.is_head())
        start = {
            "type": "http.response.start",
            "status": value.status_code,
            "headers": value.raw_headers,
        }
        given = received(self, start, value.status_code, list(value.raw_headers))
        given._take_body(response, value.body_iterator, value.charset)
        given._close()
        self._cut = True
        response._outcome = "replaced"
        tail = self.exchange.add_tail(flow)
        tail.response = response
        tail.replaced = True
        tail.background = value.background
        tail.body = given._body
        response._close()
        outward = given._outward()
        response._progress = self._progress_of(outward)
        return outward

    async def _replace(self, flow: AnyFlow | None, response: AppResponse, value: Response) -> None:
        """
        Send *value* through the flows further out; the source is discarded.
        """
        if response._observer is not None:
            response._observer.tell("replaced")
        tail = self.exchange.add_tail(flow)
        tail.response = response
        tail.replaced = True
        tail.answered = self.thrown
        self._replacer = tail
        self.exchange.keep_variables()
        response._close()
        if response._body is not None:
            response._body.drop()
        if value.background is not None:
            # It is to run when the source has ended, not in here. The response itself may be
            # shared between requests.
            tail.background = value.background
            value = copy.copy(value)
            value.background = None
        failure = await Replacement(self.exchange, tail).run(value)
        self.phase = self.phase.replaced
        try:
            tail.failure = _context.without_cancellations(failure)  # see `_fail`
            if failure is not None and not isinstance(failure, Exception):
                raise failure
        finally:
            failure = None  # it holds this frame: do not hold it in turn

    # ------------------------------------------------------------------ out to the server

    async def _pump(self, body: Body, *, trailers: bool) -> None:
        """
        Send a body that somebody has read, changed or given.
        """
        live = self.live_body()
        while not (body.ended and not body.ahead):
            if body is live and not body.ahead and self.thrown is None:
                self._let_pass()
                return
            await self._to_server(await body.take())
        if body.source is not live:
            self.phase = self.phase.replaced
        elif live.ended and not self._cut:
            self._let_pass()
            if body is live and self.plain is None:  # nothing else is left to be done
                self.plain = True
                self._body = None
        else:
            self.phase = self.phase.body_replaced if trailers else self.phase.replaced

    def _send_no_bytes(self) -> None:
        send = self.server_send
        self.server_send = lambda message: send(without_bytes(message))

    def _start_failed(self, exc: BaseException) -> None:
        # The server did not take the start, or nobody knows. What follows is the server's to
        # refuse, but another start must not go out past the flows.
        if isinstance(exc, OSError):
            self.exchange.gone = True
            self._lose()
        elif _context.is_cancellation(exc):
            self._lost = self.exchange.add_tail()
            self._lost.without_response = True
        self.phase = self.phase.lost

    def _let_pass(self) -> None:
        progresses = self._progresses
        if not progresses:
            self.phase = self.phase.out
            return
        self.phase = self.phase.out_counted

    def body(self) -> Body:
        """
        The body as it is out here, where nobody has asked for it yet.
        """
        live = self.live_body()
        return SilentBody(live) if self._silent else live

    def live_body(self) -> LiveBody:
        """
        The body that the source is producing.
        """
        if self._body is None:
            self._body = LiveBody(self)
            if self.plain and not self.exchange.waits:
                self.plain = None
            else:
                self.exchange.complicate()
        return self._body

    # ------------------------------------------------------------------ the end of the source

    async def finish(self, source: ASGIApp, failure: BaseException | None) -> BaseException | None:
        if self.taken and not _context.is_cancellation(failure):
            await self.wait()  # an orphan of the source is inside a step
        self.exchange.on_hold = None
        if self.tally and failure is not None and not self.tally.complete:
            # A chunk is counted when the server gets it, also one that it has failed with.
            sending, size = self._tallied
            if not _context.is_cancellation(failure) and _came_out_of(sending, failure):
                self.tally.bytes_sent -= size
                if isinstance(failure, OSError):  # as in `_to_server`
                    self.exchange.gone = True
                    self._lose()
        if self.phase is TRAVELLING and self.paused:
            failure = await self._end_travel(source, failure)
        if self._signal is not None:
            # To be dropped by the layer that discarded the source: those further in see what a
            # client that left would show them.
            self._discarder().signal = self._signal
            self._signal = self._replacer = None
        return failure

    def forget(self) -> None:
        """
        Let go of what leads back here, so that nothing is left to the garbage collector.
        """
        self._failure = self.thrown = self._body = self._replacer = self.giver = None

    def _discarder(self) -> Tail:
        tails = self.exchange.tails
        if self.giver in tails:  # those up to there are further in than this response
            tails = tails[tails.index(self.giver) + 1 :]
        for tail in tails:
            given = tail.body is not None and isinstance(tail.body.source, FixedBody)
            if given or tail is self._replacer:
                return tail
        for tail in tails:  # a transform that has ended early
            if tail.body is not None and tail.body.is_made():
                return tail
        return self.exchange.add_tail()

    async def _end_travel(
        self, source: ASGIApp, failure: BaseException | None
    ) -> BaseException | None:
        self._thaw()
        # Somebody still waits for the body. First the flows further in than that come to their
        # end, as they may have a word on it.
        exchange = self.exchange
        while exchange.tails and not isinstance(exchange.tails[0].body, TransformedBody):
            failure = await exchange.end_first(failure)
        # Whoever waits again is told the same again.
        thrown: BaseException | None = failure
        if thrown is None:
            thrown = await exchange.truncated(source)
            if _context.is_cancellation(thrown):
                failure = thrown
            elif not exchange.gone and self.is_out_of_time():
                thrown = asyncio.CancelledError()
        self.thrown = thrown
        try:
            while self.paused:
                await self.fail(self.thrown)
        except GeneratorExit:
            raise
        except BaseException as exc:
            # A flow's own failure is kept already; a body that was cut off on its way to the
            # server just looks cut off, as it would without us.
            if self.phase is not REFUSED and exc is not thrown:
                failure = failure or exc
        try:
            return failure
        finally:
            failure = thrown = None  # they hold this frame: do not hold them in turn


class Replacement(Outbound):
    """
    The way outward of a response that a flow gave.
    """

    __slots__ = ("_exchange", "scope")

    def __init__(self, exchange: Exchange, giver: Tail) -> None:
        self._exchange = exchange
        # As the layer hands it inward that gives the response.
        self.scope = exchange.scope_of_answers(len(exchange.waiting))
        self.giver = giver
        self.task = exchange.task
        self.phase = WAITING
        self.waiting = exchange.waiting
        self.server_send = exchange.server_send
        self.plain = False
        self.loop = exchange.loop
        self.states = exchange.states

    @property
    def exchange(self) -> Exchange:
        return self._exchange

    def __repr__(self) -> str:
        return f"<Replacement {self.phase!r} in {self._exchange!r}>"

    async def run(self, source: Response) -> BaseException | None:
        """
        Run *source* to its end; give back what it failed with.
        """
        failure: BaseException | None = None
        if not is_framed(source):
            source = framed(source, is_head=self.is_head())
            self._silent = source.status_code in BODILESS
        try:
            await source(self.exchange.as_http(self.scope), self.receive, self.send)
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure = exc
        try:
            return await self.finish(source, failure)
        finally:
            failure = None
            self.forget()


@lru_cache(maxsize=16)
def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _came_out_of(coroutine: Any, failure: BaseException) -> bool:
    """
    Whether *failure* has been raised in *coroutine*, which is over.
    """
    if isinstance(failure, BaseExceptionGroup):
        return any(_came_out_of(coroutine, each) for each in failure.exceptions)
    code = getattr(coroutine, "cr_code", None)
    traceback = failure.__traceback__
    while traceback is not None and traceback.tb_frame.f_code is not code:
        traceback = traceback.tb_next
    return traceback is not None


# Bodies that are sent without a wait for the source.
_WHOLE: Final = (LiveBody, FixedBody)


async def _kept() -> None:
    # What a `send` comes to that has nothing to wait for.
    pass


def not_a_new_response(flow: AnyFlow, value: Any) -> _errors.MiddlewareError | None:
    """
    What is wrong with *value* as a response of the flow's own, None when nothing is.
    """
    if isinstance(value, AppResponse):
        return _errors.foreign_response(flow)
    if isinstance(value, Response):
        status = value.status_code
        return _errors.interim_status(flow, status) if status < FINAL else None
    if hasattr(value, "asend"):
        return _errors.late_delegation(flow)
    if isinstance(value, CoroutineType):
        value.close()  # nobody will await it
    return _errors.bad_yield(flow, value)
