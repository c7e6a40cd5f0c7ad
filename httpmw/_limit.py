# What ends the inner app from outside: time limits, and a client that leaves.
#
# Rule 1: an app is ended by cancelling the task that runs it. On asyncio that is `Task.cancel()`,
# once, as `asyncio.timeout` does it: a scope of anyio would wait for a thread that the app waits
# for, and would cancel the app's clean-up as well. On trio it is a cancel scope, which waits for
# threads as everything there does.
# Rule 2: nothing strikes while a response is on its way through the functions further out, as their
# work would be cut off.
# Rule 3: what the app says after a limit has struck is dropped: no closing frame is sent.

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import anyio
import anyio.lowlevel
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import _context, _errors
from ._body import DISCONNECT, as_bytes, is_last

if TYPE_CHECKING:
    from ._exchange import Exchange

REQUEST_TIMEOUT: Final = 408  # RFC 9110 section 15.5.9


# ---------------------------------------------------------------------- what cancels


class Cut(Protocol):
    """
    Ends what runs inside of it, at a deadline or at once.

    It swallows the cancellation that it has caused, and nothing else.
    """

    @property
    def struck(self) -> bool: ...

    def move(self, deadline: float) -> None:
        """
        Strike at *deadline*, in seconds of `anyio.current_time()`.
        """

    def strike(self) -> None: ...

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...


class TaskCut:
    """
    On asyncio: of a task. Its deadline can be moved as often as one likes: the timer stays.
    """

    def __init__(self, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.struck = False
        self._task = task
        self._loop = loop
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._before = 0
        self._over = False

    def __enter__(self) -> None:
        self._before = self._task.cancelling()

    def move(self, deadline: float) -> None:
        self._deadline = deadline
        timer = self._timer
        if deadline < math.inf and (timer is None or deadline < timer.when()):
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline < math.inf:
            self.move(self._deadline)
        elif self._deadline < math.inf:
            self.strike()

    def strike(self) -> None:
        if not self.struck and not self._over:
            self.struck = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        # As in `asyncio.Timeout`: where somebody else cancels the task as well, that goes on.
        return (
            self.struck
            and self._task.uncancel() <= self._before
            and isinstance(exc, asyncio.CancelledError)
        )


class ScopeCut:
    """
    On trio: a cancel scope.
    """

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()

    @property
    def struck(self) -> bool:
        return self._scope.cancel_called

    def move(self, deadline: float) -> None:
        self._scope.deadline = deadline

    def strike(self) -> None:
        self._scope.cancel()

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._scope.__exit__(kind, exc, traceback)


def cut_in(exchange: Exchange) -> Cut:
    if exchange.loop is None:
        return ScopeCut()
    return TaskCut(exchange.task, exchange.loop)


# ---------------------------------------------------------------------- the response


class Limit:
    # `Connection.fail_after`: how long an app may take to start its response, and to go on with it.

    def __init__(
        self,
        app: ASGIApp,
        exchange: Exchange,
        seconds: float | None,
        idle: float | None,
        total: float | None,
    ) -> None:
        self.app = app
        self._exchange = exchange
        self._seconds = seconds
        self._idle = math.inf if idle is None else idle
        self._total = math.inf if total is None else total

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange
        cut = cut_in(exchange)
        now = anyio.current_time
        # Which limit would strike next; None: none any more.
        kind: _errors.LimitKind | None = "start"
        trailers = False
        sending = 0
        end = math.inf

        def go_on() -> None:
            # The app is asked for its next message.
            nonlocal kind
            idle = now() + self._idle
            kind = "total" if end <= idle else "idle"
            cut.move(min(idle, end))

        async def send_in_time(message: Message) -> None:
            nonlocal kind, trailers, sending, end
            if cut.struck and kind is not None:
                await anyio.lowlevel.checkpoint()
                return
            starts = message["type"] == "http.response.start"
            if kind is None or (kind == "start" and not starts):
                await send(message)
                return
            last = not starts and is_last(message, trailers=trailers)
            if starts:
                trailers = bool(message.get("trailers"))
                kind = "total"
                cut.move(math.inf)
            elif end < math.inf and exchange.is_straight():
                kind = "total"  # also for a client that takes nothing
                cut.move(end)
            else:
                cut.move(math.inf)
            sending += 1
            try:
                await send(message)
            finally:
                sending -= 1
                if starts:
                    end = now() + self._total
                if last or exchange.is_discarded():
                    if not cut.struck:
                        kind = None
                    cut.move(math.inf)
                elif not sending and kind is not None:
                    go_on()

        with cut:
            if self._seconds is not None:
                cut.move(now() + self._seconds)
            await self.app(scope, receive, send_in_time)
        if cut.struck and kind is not None:
            seconds = {"start": self._seconds, "idle": self._idle, "total": self._total}[kind]
            raise _errors.deadline_exceeded(kind, seconds or 0)


class _Explaining:
    # What `fail_after` and its like return, for those who write `with` before them.

    def __enter__(self) -> NoReturn:
        raise _errors.no_context_manager()

    def __exit__(self, *_: object) -> None:
        pass

    __aenter__ = __enter__
    __aexit__ = __exit__


NO_CONTEXT_MANAGER: Final[Any] = _Explaining()


# ---------------------------------------------------------------------- the request


class UploadLimit:
    # `Connection.fail_upload_after`: how long the server may take to bring the request's body.
    #
    # It is in the place of the server's `receive` in one exchange, and around the app for the
    # answer. Only the time in which somebody waits for the client counts.

    def __init__(self, receive: Receive, idle: float | None, total: float | None) -> None:
        self._receive = receive
        self._idle = math.inf if idle is None else idle
        self._left = math.inf if total is None else total
        self._complete = False
        self._headers: dict[str, str] | None = None
        self.struck: _errors.LimitKind | None = None
        # Whoever looks for the exchange further out finds it behind this.
        self.__self__ = getattr(receive, "__self__", None)

    def answering(self, scope: Scope) -> UploadLimit:
        # Connection-specific headers are a malformed message from HTTP/2 on (RFC 9113 section
        # 8.2.2); with HTTP/1 the rest of the body would be read as the next request.
        if scope.get("http_version", "1.1").startswith("1"):
            self._headers = {"connection": "close"}
        return self

    def failure(self) -> _errors.UploadDeadlineExceeded:
        assert self.struck is not None
        return _errors.UploadDeadlineExceeded(self.struck, self._headers)

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        if self.struck is not None:
            raise self.failure()
        message: Message | None = None
        seconds = min(self._idle, self._left)
        began = anyio.current_time()
        try:
            with anyio.move_on_after(seconds):
                message = await self._receive()
        finally:
            self._left -= anyio.current_time() - began
        if message is None:
            self.struck = "idle" if self._idle < seconds or seconds == self._idle else "total"
            raise self.failure()
        self._complete = message["type"] != "http.request" or not message.get("more_body")
        return message

    def around(self, app: ASGIApp) -> ASGIApp:
        """
        Answer 408 in place of *app* where it has not begun to answer when the limit strikes.
        """

        async def answering(scope: Scope, receive: Receive, send: Send) -> None:
            started = False

            async def send_unless_late(message: Message) -> None:
                nonlocal started
                starts = message["type"] == "http.response.start"
                if self.struck is not None and not started:
                    if not starts or message["status"] != REQUEST_TIMEOUT:
                        await anyio.lowlevel.checkpoint()
                        return
                    message = {**message, "headers": self._closing(message.get("headers", ()))}
                started = started or starts
                await send(message)

            try:
                await app(scope, receive, send_unless_late)
            except Exception as exc:
                if started or self.struck is None or not _is_behind(exc):
                    raise
            if self.struck is not None and not started:
                failure = self.failure()
                late = PlainTextResponse(failure.detail, failure.status_code, failure.headers)
                await late(scope, receive, send)

        return answering

    def _closing(self, headers: Any) -> list[tuple[bytes, bytes]]:
        kept = [pair for pair in headers if pair[0].lower() != b"connection"]
        return kept + [(b"connection", b"close")] * (self._headers is not None)


def _is_behind(exc: BaseException | None) -> bool:
    """
    Whether *exc* comes from an upload that took too long.
    """
    if exc is None:
        return False
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_behind, exc.exceptions))
    if isinstance(exc, _errors.UploadDeadlineExceeded):
        return True
    return _is_behind(exc.__cause__ or exc.__context__)


# ---------------------------------------------------------------------- the client


class Watch:
    # `Connection.cancel_on_disconnect`: one task beside the app, which takes what the server has to
    # say, and keeps it for the app; so much of it at most.

    AHEAD: Final = 64 * 1024  # bytes

    def __init__(self, app: ASGIApp, exchange: Exchange) -> None:
        self.app = app
        self._exchange = exchange
        self._ahead: deque[Message] = deque()
        self._size = 0
        self._error: Exception | None = None
        # Whether the app asks the server itself again, as nobody watches any more.
        self._over = False
        self._changed = anyio.Event()
        self._watching = anyio.CancelScope()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._cut = cut = cut_in(self._exchange)
        trailers = False

        async def send_watched(message: Message) -> None:
            nonlocal trailers
            if message["type"] == "http.response.start":
                trailers = bool(message.get("trailers"))
            elif not self._over and is_last(message, trailers=trailers):
                # From here on the app does what nobody waits for.
                self._end()
            await send(message)

        failure: BaseException | None = None
        complete = False
        with cut:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch)
                try:
                    await self.app(scope, self.receive, send_watched)
                except BaseException as exc:
                    if isinstance(exc, GeneratorExit) or _context.is_cancellation(exc):
                        raise
                    failure = exc  # not in a group
                self._end()
        try:
            if failure is not None:
                raise failure
        finally:
            failure = None  # it holds this frame: do not hold it in turn
        if cut.struck:
            raise self._exchange.client_gone()

    def _end(self) -> None:
        self._over = True
        self._watching.cancel()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _watch(self) -> None:
        with self._watching:
            while True:
                while self._size >= self.AHEAD:
                    await self._changed.wait()
                try:
                    message = await self._receive()
                except Exception as exc:
                    self._error = exc
                    break
                self._ahead.append(message)
                if message["type"] == "http.disconnect":
                    if not self._over:
                        self._cut.strike()
                    break
                self._size += len(as_bytes(message.get("body", b"")))
                self._tell()
        self._over = True
        self._tell()

    async def receive(self) -> Message:
        """
        What the app receives.
        """
        while not self._ahead:
            if self._error is not None:
                raise self._error
            if self._over:
                return await self._receive()
            await self._changed.wait()
        message = self._ahead.popleft()
        if message["type"] != "http.disconnect":
            self._size -= len(as_bytes(message.get("body", b"")))
            self._tell()
        return message
