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
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.lowlevel
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import _context, _errors
from ._body import ACCEPTED, as_bytes, is_last

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
    # One is made for each request.

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
        self._seconds: dict[_errors.LimitKind, float] = {
            "start": math.inf if seconds is None else seconds,
            "idle": math.inf if idle is None else idle,
            "total": math.inf if total is None else total,
        }
        # The limit that strikes next; None: none any more.
        self._next: _errors.LimitKind | None = "start"
        # When the whole response has to be out.
        self._end = math.inf
        self._trailers = False
        self._sending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._cut = cut = cut_in(self._exchange)
        with cut:
            cut.move(anyio.current_time() + self._seconds["start"])
            await self.app(scope, receive, self._send_in_time)
        if cut.struck and self._next is not None:
            raise _errors.DeadlineExceeded(self._next, self._seconds[self._next])

    async def _send_in_time(self, message: Message) -> None:
        if self._cut.struck and self._next is not None:
            await anyio.lowlevel.checkpoint()  # rule 3
            return
        starts = message["type"] == "http.response.start"
        if self._next is None or (self._next == "start" and not starts):
            await self._send(message)
            return
        if starts:
            last = message["status"] == ACCEPTED  # what follows is no response
            self._trailers = bool(message.get("trailers"))
        else:
            last = is_last(message, trailers=self._trailers)
        self._hold()
        self._sending += 1
        try:
            await self._send(message)
        finally:
            self._sending -= 1
            if starts:
                self._end = anyio.current_time() + self._seconds["total"]
            self._go_on(over=last or self._exchange.is_discarded())

    def _hold(self) -> None:
        """
        A message is on its way out, which is not the app's time.
        """
        self._next = "total"
        # Rule 2; but a client that takes nothing does not hold the app for ever.
        self._cut.move(self._end if self._exchange.is_straight() else math.inf)

    def _go_on(self, *, over: bool) -> None:
        """
        The app is asked for its next message, or *over* is all that is limited.
        """
        if over:
            if not self._cut.struck:
                self._next = None
            self._cut.move(math.inf)
        elif not self._sending and not self._cut.struck:
            idle = anyio.current_time() + self._seconds["idle"]
            self._next = "total" if self._end <= idle else "idle"
            self._cut.move(min(idle, self._end))


# ---------------------------------------------------------------------- the request


class UploadLimit:
    # `Connection.fail_upload_after`: how long the server may take to bring the request's body.
    #
    # It is in the place of the server's `receive` in one exchange, and around the app for the
    # answer. Only the time in which somebody waits for the client counts.

    def __init__(self, exchange: Exchange, idle: float | None, total: float | None) -> None:
        self._receive = exchange.server_receive
        self._idle = math.inf if idle is None else idle
        self._total = self._left = math.inf if total is None else total
        self._complete = False
        # Connection-specific headers are malformed from HTTP/2 on (RFC 9113 section 8.2.2); with
        # HTTP/1 the rest of the body would have to be read before the next request.
        self._closes = exchange.scope.get("http_version", "1.1").startswith("1")
        self._struck: _errors.LimitKind | None = None
        # Whoever looks for the exchange further out finds it behind this.
        self.__self__ = getattr(self._receive, "__self__", None)

    def _failure(self, limit: _errors.LimitKind) -> _errors.UploadDeadlineExceeded:
        seconds = self._idle if limit == "idle" else self._total
        headers = {"connection": "close"} if self._closes else None
        return _errors.UploadDeadlineExceeded(limit, seconds, headers)

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._struck is not None:
            raise self._failure(self._struck)
        message: Message | None = None
        seconds = min(self._idle, self._left)
        began = anyio.current_time()
        try:
            with anyio.move_on_after(seconds):
                message = await self._receive()
        finally:
            self._left -= anyio.current_time() - began
        if message is None:
            self._struck = "idle" if seconds == self._idle else "total"
            raise self._failure(self._struck)
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
                if self._struck is not None and not started:
                    if not starts or message["status"] != REQUEST_TIMEOUT:
                        await anyio.lowlevel.checkpoint()
                        return
                    message = {**message, "headers": self._closing(message.get("headers", ()))}
                started = started or starts
                await send(message)

            try:
                await app(scope, receive, send_unless_late)
            except Exception as exc:
                if started or self._struck is None or not _is_behind(exc):
                    raise
            if self._struck is not None and not started:
                failure = self._failure(self._struck)
                late = PlainTextResponse(failure.detail, failure.status_code, failure.headers)
                await late(scope, receive, send)

        return answering

    def _closing(self, headers: Any) -> list[tuple[bytes, bytes]]:
        kept = [pair for pair in headers if pair[0].lower() != b"connection"]
        return kept + [(b"connection", b"close")] * self._closes


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


class Beside(Protocol):
    """
    Runs something beside what is inside of it, until that ends or `stop` is called.
    """

    def stop(self) -> None: ...

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...


class TaskBeside:
    """
    On asyncio: in a plain task.

    A task group of anyio (4.16.0) was seen to swallow a cancellation of the request that came up
    while layers further in dealt with one of their own.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        if isinstance(exc, GeneratorExit):
            return  # nothing can be waited for
        interrupted: BaseException | None = None
        while not self._task.done():
            try:
                await asyncio.wait((self._task,))
            except asyncio.CancelledError as cancelled:
                interrupted = cancelled
        try:
            if interrupted is not None:
                raise interrupted
        finally:
            interrupted = None  # it holds this frame: do not hold it in turn


class GroupBeside:
    """
    On trio: in a task group; what is raised inside does not come out in a group.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._group = anyio.create_task_group()
        self._scope = anyio.CancelScope()

    def stop(self) -> None:
        self._scope.cancel()

    async def _run_in_scope(self) -> None:
        with self._scope:
            await self._run()

    async def __aenter__(self) -> None:
        await self._group.__aenter__()
        self._group.start_soon(self._run_in_scope)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self.stop()
        if exc is None or _context.is_cancellation(exc) or isinstance(exc, GeneratorExit):
            return await self._group.__aexit__(kind, exc, traceback)
        await self._group.__aexit__(None, None, None)
        return False


def beside(exchange: Exchange, run: Callable[[], Coroutine[Any, Any, None]]) -> Beside:
    return GroupBeside(run) if exchange.loop is None else TaskBeside(run)


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
        self._watching = beside(exchange, self._watch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._cut = cut = cut_in(self._exchange)
        trailers = False

        async def send_watched(message: Message) -> None:
            nonlocal trailers
            if message["type"] == "http.response.start":
                trailers = bool(message.get("trailers"))
                last = message["status"] == ACCEPTED
            else:
                last = is_last(message, trailers=trailers)
            if last and not self._over:
                # From here on the app does what nobody waits for, or what is no response.
                self._end()
            await send(message)

        with cut:
            async with self._watching:
                await self.app(scope, self.receive, send_watched)
        if cut.struck:
            raise self._exchange.client_gone()

    def _end(self) -> None:
        self._over = True
        self._watching.stop()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _watch(self) -> None:
        while True:
            while self._size >= self.AHEAD:
                await self._changed.wait()
            try:
                message = await self._receive()
            except Exception as exc:  # noqa: BLE001 - it is the app's, which asks for it
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
