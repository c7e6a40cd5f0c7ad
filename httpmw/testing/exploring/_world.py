# The world in which a scenario runs: a fake server, a client that may leave, pauses, a fault.
#
# Rule 1: all that the world decides comes from its own random numbers, in the order in which it
# is asked; the scenario has numbers of its own, so that its choices do not shift with the
# schedule.
# Rule 2: a request runs in a task of its own, as on a server: plain on asyncio, in a nursery on
# trio. A fault strikes that task or that server, never the scenario.
# Rule 3: what the invariants are about is looked at when the app has returned, before anything
# could be put right by the garbage collector.

from __future__ import annotations

import asyncio
import dis
import gc
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import AsyncGeneratorType
from typing import Any, Final, Literal, TypeAlias, cast

import anyio
import anyio.lowlevel
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from httpmw._body import ACCEPTED, RequestChunks, ResponseChunks
from httpmw._connection import Connection
from httpmw._response import AppResponse
from httpmw.testing.checking.rules._rule import ASGIViolation
from httpmw.testing.driving._server import Server
from httpmw.testing.driving._socket import SocketServer

SPECS: Final[tuple[str | None, ...]] = (None, "2.1", "2.3", "2.4", "2.5")

FaultKind: TypeAlias = Literal["disconnect", "cancellation", "error"]
Place: TypeAlias = Literal["app", "server", "pause", "step"]
_Expected: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


class InjectedError(Exception):
    """
    What the world raises in an app, in a server or at a `World.pause()`.
    """


@dataclass(frozen=True, slots=True)
class Fault:
    """
    What goes wrong in a schedule, and when.

    Attributes:
        kind: `"disconnect"`: the client leaves; `"cancellation"`: the request is cancelled;
            `"error"`: an `InjectedError` is raised.
        place: What is counted: `"server"` and `"app"`: each message, before and after it, where
            the server and where the inner app has it; `"pause"`: each `World.pause()`;
            `"step"`: each step that the event loop takes with a task.
        index: How many of them come before.
    """

    kind: FaultKind
    place: Place
    index: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.place} {self.index}"


@dataclass(frozen=True, slots=True)
class Conditions:
    """
    Under which conditions a scenario runs.

    Attributes:
        backend: `"asyncio"` or `"trio"`.
        spec: The `spec_version` in the scope; None: there is none.
        disconnect: How often the server tells of a disconnect.
        scope: Whether a cancellation comes from a cancel scope of anyio, which repeats it, and
            not from `Task.cancel()`. On trio it always does.
        fault: What goes wrong, if anything does.
    """

    backend: str = "asyncio"
    spec: str | None = "2.3"
    disconnect: Literal["repeated", "once"] = "repeated"
    scope: bool = False
    fault: Fault | None = None

    def __str__(self) -> str:
        scope = ", scope" if self.scope else ""
        fault = self.fault or "no fault"
        return f"{self.backend}, spec {self.spec}, told {self.disconnect}{scope}: {fault}"


class World:
    """
    What a scenario is given: a server for its requests, and whatever goes wrong.

    Attributes:
        random: Random numbers for the choices of the scenario itself.
        conditions: The event loop, the server and the fault of this run.
        error: The exception that was raised on purpose, None as long as there was none.
        struck: Whether the fault has struck.
        told: Whether an inner app has received a disconnect; noticed in `World.app()`, and to be
            set by what receives it elsewhere.
        counts: How often each place of a `Fault` was passed.
    """

    def __init__(
        self, conditions: Conditions, *, seed: int = 0, pauses: random.Random | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.conditions = conditions
        self.error: InjectedError | None = None
        self.struck = False
        self.told = False
        self.counts: dict[Place, int] = {"app": 0, "server": 0, "pause": 0, "step": 0}
        # What was found to be wrong.
        self._complaints: list[str] = []
        self._fault = conditions.fault
        self._pauses = pauses
        self._requests: list[_Request] = []

    @property
    def server(self) -> Server:
        """
        The server of the latest request.
        """
        return cast(Server, self._latest.server)  # a `SocketServer` where it is asked as one

    @property
    def raised(self) -> BaseException | None:
        """
        What the app raised in the latest request.
        """
        return self._latest.error

    @property
    def _latest(self) -> _Request:
        if not self._requests:
            raise RuntimeError("no request yet: `await world.run(app)` makes one")
        return self._requests[-1]

    @property
    def cancelled(self) -> bool:
        """
        Whether the request was cancelled from outside.
        """
        return self.struck and self._fault is not None and self._fault.kind == "cancellation"

    @property
    def disconnected(self) -> bool:
        """
        Whether the client of the latest request has left before it was answered.
        """
        return bool(self._requests) and self._requests[-1].left

    async def pause(self) -> None:
        """
        Stand in for something that is awaited and may fail, such as a database query.
        """
        self._pass("pause", None)
        await self._pause(checkpoint=True)

    @contextmanager
    def whole(self, what: str) -> Iterator[None]:
        """
        Complain when the block is cut off, although nobody had a right to.

        Who has: whoever cancels the request; an app that has learnt before the block began that
        the client is gone, as it may end its own tasks for it; an injected error, which ends a
        task group.

        Args:
            what: What was cut off, for the message.
        """
        told = self.told
        try:
            yield
        except _cut_off():
            if not (self.cancelled or told or self.error is not None):
                self._complaints.append(f"{what} was cut off")
            raise

    def app(self, app: ASGIApp) -> ASGIApp:
        """
        Put an inner app where faults can strike it, and pauses come between its messages.
        """

        async def inner(scope: Scope, receive: Receive, send: Send) -> None:
            async def paused_receive() -> Message:
                self._pass("app", None)
                await self._pause()
                message = await receive()
                gone = message["type"] in {"http.disconnect", "websocket.disconnect"}
                self.told = self.told or gone
                self._pass("app", None)
                return message

            async def paused_send(message: Message) -> None:
                self._pass("app", None)
                await self._pause()
                await send(message)
                self._pass("app", None)

            self._pass("app", None)
            await app(scope, paused_receive, paused_send)
            self._pass("app", None)

        return inner

    async def run(
        self,
        app: ASGIApp,
        *,
        expect: type[BaseException] | tuple[type[BaseException], ...] = (),
        complete: bool = True,
        leaves_at: float | None = None,
        websocket: bool = False,
        **request: Any,
    ) -> Server:
        """
        Send one request to *app*, and check the invariants when it has returned.

        Args:
            app: The whole app, as a server would get it.
            expect: What it may raise, besides what the world itself raises on purpose.
            complete: Whether a client that stays has to get a complete response, unless the app
                raises.
            leaves_at: After how many seconds the client leaves, if it has not before; the
                time is virtual.
            websocket: Whether it is the handshake of a WebSocket. It has to be answered then.
            request: The arguments of `Server`: *method*, *path*, *headers*, *body* and so on; of a
                WebSocket *path*, *headers*, *subprotocols*, *messages*, *closes* and so on, as
                `run()` has them.

        Returns:
            The server, with what it was sent.

        Raises:
            AssertionError: An invariant does not hold.
            BaseException: What *app* raised, where that was not to be expected.
        """
        conditions = self.conditions
        options: Mapping[str, Any] = {
            "spec": conditions.spec,
            "disconnect": conditions.disconnect,
            **request,
        }
        server = SocketServer(**options) if websocket else Server(**options)
        visit = _Request(self, app, server)
        self._requests.append(visit)
        await visit.run(leaves_at)
        visit.check(expect, complete=complete)
        return cast(Server, visit.server)  # see `server`

    def _report(self) -> None:
        """
        Raise an `AssertionError` if something was found to be wrong.
        """
        if self._complaints:
            raise AssertionError("; ".join(self._complaints))

    def _forget(self) -> None:
        """
        Let go of the requests, so that what only they hold is collected.
        """
        self._requests.clear()
        self.error = None

    # ------------------------------------------------------------------ faults

    def _step(self) -> None:
        """
        Note that the event loop has taken a step.
        """
        request = self._running()
        if request is not None:
            self._pass("step", request)

    def _running(self) -> _Request | None:
        for request in self._requests:
            if not request.over:
                return request
        return None

    def _pass(self, place: Place, request: _Request | None) -> None:
        count = self.counts[place]
        self.counts[place] = count + 1
        fault = self._fault
        if fault is None or fault.place != place or fault.index != count:
            return
        request = request or self._running()
        if request is None:
            return
        self.struck = True
        if fault.kind == "disconnect":
            request.disconnect()
        elif fault.kind == "cancellation":
            request.cancel()
        else:
            self.error = InjectedError(str(fault))
            raise self.error

    async def _pause(self, *, checkpoint: bool = False) -> None:
        pauses = self._pauses
        chance = 0.0 if pauses is None else pauses.random()
        if chance > 0.8:  # noqa: PLR2004 - one in five
            await anyio.sleep(chance - 0.8)
        elif checkpoint or chance > 0.5:  # noqa: PLR2004
            await anyio.lowlevel.checkpoint()


class _Request:
    # One request of a world, in a task of its own.

    def __init__(self, world: World, app: ASGIApp, server: Server | SocketServer) -> None:
        self.world = world
        self.server = server
        self.left = False
        self.over = False
        self._app = app
        self.error: BaseException | None = None
        self._refused: ASGIViolation | None = None
        self._task: Any = None
        self._scope: anyio.CancelScope | None = None
        self._asked = 0
        self._cancelling = 0

    async def run(self, leaves_at: float | None) -> None:
        conditions = self.world.conditions
        if conditions.scope or conditions.backend == "trio":
            self._scope = anyio.CancelScope()
        if conditions.backend == "trio":
            await self._run_on_trio(leaves_at)
        else:
            await self._run_on_asyncio(leaves_at)

    async def _run_on_asyncio(self, leaves_at: float | None) -> None:
        loop = asyncio.get_running_loop()
        serve = self._serve if self._scope is None else self._serve_in_scope
        self._task = loop.create_task(serve())
        if leaves_at is not None:
            timer = loop.call_later(leaves_at, self.disconnect)
            self._task.add_done_callback(lambda _: timer.cancel())
        await asyncio.wait([self._task])
        self._cancelling = self._task.cancelling()
        if not self.over:  # cancelled before it began
            self.over = True
            self.error = asyncio.CancelledError()

    async def _run_on_trio(self, leaves_at: float | None) -> None:
        import trio  # noqa: PLC0415 - only those who have it ask for it

        async def leave(seconds: float) -> None:
            await trio.sleep(seconds)
            self.disconnect()

        async with trio.open_nursery() as nursery:
            if leaves_at is not None:
                nursery.start_soon(leave, leaves_at)
            async with trio.open_nursery() as own:
                own.start_soon(self._serve_in_scope)
            nursery.cancel_scope.cancel()

    async def _serve_in_scope(self) -> None:
        with self._scope or nullcontext():
            await self._serve()

    async def _serve(self) -> None:
        world = self.world
        try:
            await self._app(self.server.scope, self._receive, self._send)
        except BaseException as error:
            self.error = error
            if isinstance(error, _cancelled()) and world.cancelled:
                raise
        finally:
            self.over = True
            world._complaints.extend(f"{flow} was not ended" for flow in _unfinished())

    async def _receive(self) -> Message:
        world = self.world
        world._pass("server", self)
        await world._pause()
        message = await self.server.receive()
        world._pass("server", self)
        return message

    async def _send(self, message: Message) -> None:
        world = self.world
        world._pass("server", self)
        await world._pause()
        try:
            await self.server.send(message)
        except ASGIViolation as error:
            self._refused = error
            raise
        world._pass("server", self)

    # What may happen to it.

    def disconnect(self) -> None:
        if not self.over:
            self.left = self.left or not self.server.complete
            self.server.disconnect()

    def cancel(self) -> None:
        if self.over:
            return
        if self._scope is not None:
            self._scope.cancel()
        elif self._task is not None and self._task.cancel():
            self._asked += 1

    # What must hold when it is over.

    def check(self, expect: _Expected, *, complete: bool) -> None:
        world = self.world
        complaints = world._complaints
        error = self.error
        if self._refused is not None and not isinstance(self._refused, expect):
            complaints.append(f"the server refused a message: {self._refused}")
        # What a scope of anyio's asks for it takes back itself, in some versions a bit less; and
        # 4.16 takes back one too many where a scope was cancelled in a child task, though what was
        # raised goes on.
        swallowed = self._cancelling < self._asked and error is None
        if self._scope is None and (self._cancelling > self._asked or swallowed):
            complaints.append(
                f"task.cancelling() is {self._cancelling} after {self._asked} cancellations"
            )
        answered = self.server.complete or (self.server.status == ACCEPTED)
        if complete and error is None and not self.left and not answered:
            complaints.append("the app returned, and the client still waits for its response")
        world._report()
        try:
            if error is not None and not self._is_expected(error, expect):
                raise error
        finally:
            error = None

    def _is_expected(self, error: BaseException, expect: _Expected) -> bool:
        if isinstance(error, BaseExceptionGroup):
            return all(self._is_expected(each, expect) for each in error.exceptions)
        if error is self.world.error or isinstance(error, expect):
            return True
        if isinstance(error, (OSError, ClientDisconnect, WebSocketDisconnect)) and self.left:
            return True
        if isinstance(error, _cancelled()) and self.world.cancelled:
            return True
        # Starlette wraps what comes after the start in a RuntimeError.
        return error.__cause__ is not None and self._is_expected(error.__cause__, expect)


def _cut_off() -> tuple[type[BaseException], ...]:
    return (*_cancelled(), GeneratorExit)


def _cancelled() -> tuple[type[BaseException], ...]:
    trio = sys.modules.get("trio")
    return (asyncio.CancelledError,) if trio is None else (asyncio.CancelledError, trio.Cancelled)


_OURS = (Connection, AppResponse, RequestChunks, ResponseChunks)


def is_ours(generator: Any) -> bool:
    """
    Whether an async generator was begun by a middleware: a flow, or the transform of a body.

    The generators of an app are its own affair: Starlette leaves one that is not exhausted to the
    garbage collector.
    """
    frame = generator.ag_frame
    if frame is None or not _has_begun(generator):
        return False
    values = frame.f_locals
    code = generator.ag_code
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return any(isinstance(values.get(name), _OURS) for name in arguments)


def _has_begun(generator: Any) -> bool:
    if sys.version_info >= (3, 12):
        return bool(generator.ag_suspended or generator.ag_running)
    operation = generator.ag_code.co_code[generator.ag_frame.f_lasti]
    return bool(dis.opname[operation] != "RETURN_GENERATOR")


def _unfinished() -> list[str]:
    # The collector is switched off while a schedule runs, so all that it has made is here.
    return [
        each.__qualname__
        for each in gc.get_objects()
        if type(each) is AsyncGeneratorType and is_ours(each)
    ]
