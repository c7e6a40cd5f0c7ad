# The way of a dispatch function in `call_next` style through the engine.
#
# A dispatch coroutine is driven by hand, and looks to the engine like the generator of a
# middleware function: `await call_next(request)` is its bare `yield`, what it returns before that
# is an early answer, and what it returns afterwards is `yield other` or, where it is the response
# that it was given, the end of the generator.
#
# Rule 1: only the flow whose `call_next` is awaited understands the marker; whatever else the
# coroutine awaits goes through unchanged, to the event loop or to a driver of the engine.
# Rule 2: the coroutine is driven by its flow and by nobody else. `call_next` may be awaited from
# within, once; everyone else is refused at the `await`, where the mistake was made.
# Rule 3: the coroutine is always ended by its flow, and never touched after its end.
# Rule 4: the request body is nobody's business as long as the dispatch function leaves it alone:
# only one that has had a hand in it stands between the server and the inner app.

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import Context, copy_context
from functools import partial
from inspect import isasyncgen, isawaitable
from io import BytesIO
from types import CodeType, CoroutineType, FrameType
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import HTTPConnection, Request, empty_receive
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import _errors
from ._body import BODILESS, DISCONNECT, Incoming, without_bytes
from ._connection import Connection
from ._response import AppResponse, frame_nothing
from ._scope import LayerRequest

if TYPE_CHECKING:
    from ._exchange import Exchange


# ---------------------------------------------------------------------- the request


class CachedRequest(LayerRequest[Any]):
    # The request as a dispatch function gets it. What it takes of the body is gone for the inner
    # app, as with Starlette, unless it was read whole by `body()`.

    _stream_consumed = False
    _is_disconnected = False
    _form = None
    _exchange: Exchange  # pyrefly: ignore[bad-override-mutable-attribute]
    # As in `Connection`, where its body comes from.
    _incoming: Incoming | None = None
    # Whether the dispatch function has had a hand in the body.
    _taken = False

    def as_conn(self) -> Connection[Any]:
        """
        Give the same request to somebody who may look ahead, but not take.
        """
        conn = Connection._of(self._exchange, self._view())
        conn._incoming = self._open()
        return conn

    def _open(self) -> Incoming:
        if self._incoming is None:
            self._incoming = self._exchange.outermost_incoming()
        return self._incoming

    @property
    def _receive(self) -> Receive:
        given: Receive | None = self.__dict__.get("_receive")
        return self._take if given is None else given

    @_receive.setter
    def _receive(self, receive: Receive) -> None:
        self.__dict__["_receive"] = receive
        self._taken = True

    @property
    def _body(self) -> bytes:
        try:
            body: bytes = self.__dict__["_body"]
        except KeyError:
            raise AttributeError("_body") from None
        return body

    @_body.setter
    def _body(self, body: bytes) -> None:
        self.__dict__["_body"] = body
        self._taken = True

    async def body(self) -> bytes:
        """
        Read the whole body, as Starlette does, but without a list of its chunks (issue 26, A5).
        """
        if "_body" not in self.__dict__:
            whole = BytesIO()
            async for chunk in self.stream():
                whole.write(chunk)
            self._body = whole.getvalue()
        return self._body

    async def _take(self) -> Message:
        self._taken = True
        return await self.rest()

    async def rest(self) -> Message:
        """
        Take the next message of those that come from outside.
        """
        return await self._open().receive()

    async def _send(  # pyrefly: ignore[bad-override-mutable-attribute]
        self, message: Message
    ) -> None:
        await self._exchange.server_send(message)

    def stream(self) -> AsyncGenerator[bytes, None]:
        if not self._taken and self._open().taken:
            self._stream_consumed = True  # by the inner app
        return super().stream()

    async def is_disconnected(self) -> bool:
        if "_receive" in self.__dict__:
            return await super().is_disconnected()
        if not self._is_disconnected:
            # Looks ahead, where Starlette takes a message and loses it.
            self._is_disconnected = await self.as_conn().is_disconnected()
        return self._is_disconnected


# ---------------------------------------------------------------------- the flow


def beginning_of(layer: Any) -> Callable[[DispatchFlow], DispatchFlow]:
    """
    Give what begins the flow of one request in one layer: it takes the first part of a step.
    """

    def begin(flow: DispatchFlow) -> DispatchFlow:
        flow._layer = layer
        flow._outcome = None
        try:
            coroutine = layer.dispatch_func(flow, flow.call_next)
        except StopAsyncIteration as exc:
            raise _errors.raised_stop(flow) from exc
        if type(coroutine) is not CoroutineType:
            coroutine = _coroutine_of(layer, coroutine)
        elif coroutine.cr_suspended:  # it would go on behind the checks made for another request
            raise _errors.coroutine_has_begun(layer.dispatch_func)
        flow._coroutine = coroutine
        flow._outcome = _MAY_CALL
        try:
            awaited = coroutine.send(None)
        except StopIteration as stop:
            flow._forbid_call()
            flow._step = flow._returned(stop.value, None)
        except BaseException as exc:
            flow._forbid_call()
            flow._refuse_stop(exc)
            raise
        else:
            if awaited is not flow:
                flow._forbid_call()
                flow._step = flow._rest(awaited, None, None)
        return flow

    return begin


def _coroutine_of(layer: Any, given: Any) -> Any:
    if not isawaitable(given):
        raise _errors.not_awaitable(layer.dispatch_func, given)

    async def waiting() -> Any:
        return await given

    return waiting()


# What became of `call_next`, as long as it has not raised. None before it is awaited, when the
# coroutine waits for something else.
_MAY_CALL: Final = object()  # the coroutine is being driven right now
_WAITING: Final = object()
_GIVEN: Final = object()

# What a step comes to that waits there.
_AT_CALL_NEXT: Final = object()


class DispatchFlow(CachedRequest):
    # One running dispatch coroutine, with the methods of an async generator; it is its own request,
    # as a second object would cost as much as all that is done with it. The first part of a step
    # is taken at once, the very first when it is made: most wait for nothing but `call_next`.

    _coroutine: Any
    _layer: Any
    # One of the above, or what `call_next` raised. Not the response itself: that holds the flow,
    # and would be held in turn.
    _outcome: Any
    # The rest of the first step, until it is awaited; None where that was all of it.
    _step: Awaitable[Any] | None = None

    async def call_next(self, request: Request) -> Response:
        if self._outcome is not _MAY_CALL:
            raise self._refusal()
        self._outcome = _WAITING
        if request is self and not self._taken:
            return await self._mark()
        self._pass(request)
        return await self._mark()

    @types.coroutine
    def _mark(self) -> Generator[Any, Any, Response]:
        try:
            response: Response = yield self
        except RuntimeError:
            if self._outcome is _WAITING:
                # An eager task got the marker, within a step of ours, and cannot make sense of it.
                self._outcome = None
                raise _errors.call_next_elsewhere(self) from None
            raise
        return response

    def _pass(self, request: Any) -> None:
        # Further in it is the given request that counts; further out nothing has changed.
        exchange = self._exchange
        given = request if isinstance(request, HTTPConnection) else self
        source = given if _has_body_of_its_own(given, self) else self
        if source is not self or self._taken:
            exchange.send_inward(Incoming(Replay(source, self).receive))
        if given is not self:
            self._other = given.scope
            self._touched = exchange.touched = True

    def _refusal(self) -> BaseException:
        outcome = self._outcome
        if isinstance(outcome, BaseException):
            return outcome  # raised again, as Starlette does
        if outcome is None or outcome is _WAITING:
            return _errors.call_next_elsewhere(self)
        return _errors.second_call_next(self)

    def asend(self, response: Any) -> Awaitable[Any]:
        """
        Take the first part of a further step; give the rest of it.
        """
        if response is None:  # what it returned has been sent
            raise StopAsyncIteration
        self._outcome = _GIVEN
        response._reader = self
        context = copy_context()
        try:
            awaited = self._coroutine.send(response)
        except StopIteration as stop:
            value = stop.value
        except BaseException as exc:
            if context:
                _keep(context, response)
            self._refuse_stop(exc)
            raise
        else:
            return self._rest(awaited, response, context)
        if context:
            _keep(context, response)
        if value is response:
            self._coroutine = _OVER
            raise StopAsyncIteration
        return self._returned(value, response)

    def _forbid_call(self) -> None:
        if self._outcome is _MAY_CALL:
            self._outcome = None

    def _refuse_stop(self, exc: BaseException) -> None:
        # It would count as the end of the flow.
        if isinstance(exc, StopAsyncIteration):
            raise _errors.raised_stop(self) from exc

    @types.coroutine
    def _rest(
        self, awaited: Any, response: Any, context: Context | None
    ) -> Generator[Any, Any, Any]:
        try:
            driving = self._drive(self._coroutine, awaited)
            awaited = None
            value = yield from driving
        finally:
            if context:
                _keep(context, response)
        if value is _AT_CALL_NEXT:
            return None
        if value is response is not None:
            self._coroutine = _OVER
            raise StopAsyncIteration
        return (yield from self._returned(value, response).__await__())

    async def _returned(self, value: Any, response: AppResponse | None) -> Response:
        if response is not None and isinstance(value, StreamingResponse):
            _read_by(value, response)
        return self._answer(value, None)

    @types.coroutine
    def athrow(self, exc: BaseException) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        if coroutine is _OVER:
            raise exc
        self._outcome = exc
        traceback = exc.__traceback__
        try:
            try:
                value = coroutine.throw(exc)
            except StopIteration as stop:
                value = stop.value
            except StopAsyncIteration as raised:
                raise _errors.raised_stop(self) from raised
            else:
                value = yield from self._drive(coroutine, value)
            # What was added to it leads back, by way of frames, to those who hold the exception.
            exc.__traceback__ = traceback
            return self._answer(value, exc)
        finally:
            self._coroutine = _OVER
            self._outcome = None
            del exc, traceback

    @types.coroutine
    def aclose(self) -> Generator[Any, Any, None]:
        coroutine, self._coroutine = self._coroutine, _OVER
        try:
            yield from self._drive(coroutine, coroutine.throw(GeneratorExit()))
        except (GeneratorExit, StopIteration):
            pass

    def _drive(self, coroutine: Any, awaited: Any) -> Generator[Any, Any, Any]:
        # The rest of a step; tells where the coroutine waits at `call_next`.
        try:
            while awaited is not self:
                try:
                    call, argument = coroutine.send, (yield awaited)
                except BaseException as exc:  # noqa: BLE001 - it belongs to the coroutine
                    call, argument = coroutine.throw, exc
                if self._outcome is None:
                    self._outcome = _MAY_CALL
                try:
                    awaited = call(argument)
                finally:
                    self._forbid_call()
        except StopIteration as stop:
            return stop.value
        except StopAsyncIteration as exc:
            raise _errors.raised_stop(self) from exc
        finally:
            # What is left here would hold this frame by its traceback, and this frame it.
            call = argument = awaited = None
        return _AT_CALL_NEXT

    def _answer(self, value: Any, failure: BaseException | None) -> Response:
        """
        Make a response of what the coroutine returned.
        """
        try:
            if isinstance(value, AppResponse):
                raise _errors.foreign_returned(self)
            if isinstance(value, Response):
                return value
            if callable(value):
                return _App(value)
            raise _errors.no_response_returned(self, value) from failure
        finally:
            self._coroutine = _OVER
            failure = None

    def is_over(self) -> bool:
        return self._coroutine is _OVER

    # As in a generator, for messages.

    @property
    def ag_code(self) -> CodeType | None:
        code: CodeType | None = getattr(getattr(self, "_coroutine", None), "cr_code", None)
        if code is None or code.co_filename == __file__:
            code = getattr(self._layer.dispatch_func, "__code__", None)
        return code

    @property
    def ag_frame(self) -> FrameType | None:
        frame: FrameType | None = getattr(self._coroutine, "cr_frame", None)
        return None if frame is None or frame.f_code is not self.ag_code else frame


# Without `Request.__init__`, which is still there for whoever makes another one of its class.
make_flow: Final = partial(object.__new__, DispatchFlow)


# In messages it is what users know it as.
DispatchFlow.__name__ = DispatchFlow.__qualname__ = "Request"


class _Over:
    # In the place of a coroutine that has ended.

    def throw(self, exc: BaseException) -> Any:
        raise exc


_OVER: Final = _Over()


def _keep(context: Context, response: AppResponse) -> None:
    """
    Keep for the app the variables of *context* that are different by now.
    """
    changed = {var: value for var, value in context.items() if var.get(_GIVEN) is not value}
    if changed:
        response._outbound.exchange.keep(changed)


def _read_by(streaming: StreamingResponse, response: AppResponse) -> None:
    """
    See to it that *response* streams on where a generator will look at its body only when it runs.
    """
    if _refers_to(streaming.body_iterator, response):
        response.body_iterator  # noqa: B018 - from now on it counts as being read


def _refers_to(iterator: Any, response: AppResponse) -> bool:
    frame = getattr(iterator, "ag_frame", None)
    held = getattr(iterator, "__dict__", {}) if frame is None else frame.f_locals
    return any(
        each is response or (isasyncgen(each) and _refers_to(each, response))
        for each in held.values()
    )


class _App(Response):
    # Starlette runs whatever is returned as an ASGI app.

    background = None
    # Not known before it starts.
    status_code = 200
    raw_headers = ()  # type: ignore[assignment]  # pyrefly: ignore[bad-override]

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        silent = False

        async def framed(message: Message) -> None:
            nonlocal silent
            if message["type"] == "http.response.start" and message["status"] in BODILESS:
                silent = True
                headers = [*message.get("headers", ())]
                frame_nothing(headers, message["status"])
                message = {**message, "headers": headers}
            await send(without_bytes(message) if silent else message)

        await self._app(scope, receive, framed)


# ---------------------------------------------------------------------- the body


def _has_body_of_its_own(request: Any, own: CachedRequest) -> bool:
    if getattr(request, "_body", None) is not None or getattr(request, "_stream_consumed", False):
        return True
    receive = getattr(request, "_receive", empty_receive)
    return receive is not empty_receive and getattr(receive, "__self__", None) is not own


class Replay:
    # What the inner app receives where the dispatch function has had a hand in the body.

    __slots__ = ("_ended", "_own", "_request")

    def __init__(self, request: Any, own: CachedRequest) -> None:
        self._request = request
        self._own = own
        self._ended = False

    async def receive(self) -> Message:
        request = self._request
        if not self._ended:
            body = getattr(request, "_body", None)
            if body is not None or request._stream_consumed:
                self._ended = True
                return {"type": "http.request", "body": body or b"", "more_body": False}
        if request._is_disconnected:
            return DISCONNECT
        message: Message = await request._receive()
        if self._ended:
            # A `receive` that was made for one body gives it time and again.
            while message["type"] == "http.request":
                message = await self._own.rest()
        elif message["type"] == "http.request" and not message.get("more_body", False):
            self._ended = request._stream_consumed = True
        if message["type"] == "http.disconnect":
            request._is_disconnected = True
        return message
