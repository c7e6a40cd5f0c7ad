# One run of one version of a function, and what can be observed of it.
#
# Rule 1: a run is over within its time limit, and leaves no task behind.
# Rule 2: what is compared is what a client sees, what the app sees, what is raised, and the
# trace: the side effects of the function, in their order, and between them the moments at which
# the app is called, the response starts and the response ends.

from __future__ import annotations

import asyncio
import contextvars
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._matrix import APPS, Asked, OwnError
from ._stubs import World, described

__all__ = ["Outcome", "Runner"]


@dataclass(slots=True)
class Outcome:
    """
    What came of one run.

    Attributes:
        status: The status, None where there was no response.
        headers: The headers, in their order.
        chunks: The parts of the body that are not empty.
        complete: Whether the last message came.
        broke_off: Whether the app raised after it had started its response.
        hangs: Whether it was ended at its time limit.
        method: The method of the request.
        error: What was raised: type, message, and whether it is the very object the app raised.
        raised: The exception itself.
        seen: What the app saw of each request it got.
        trace: The side effects in their order.
        beside: The side effects in tasks that the function has started.
        offered: The headers with which the app started its responses.
        parts: The parts of the bodies that the app sent.
        own: Whether it was such a response that was sent, not one in its place.
        later: What the app saw of the context variables behind its call: with each message that
            it sent, and where its background tasks run.
        left: The context variables that the function left set.
    """

    method: str
    status: int | str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False
    broke_off: bool = False
    hangs: bool = False
    error: tuple[str, str, bool] | None = None
    raised: BaseException | None = None
    seen: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    offered: list[Any] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    own: bool = False
    later: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def unchanged(self) -> bool:
        """
        Whether the body is the one that the app sent.
        """
        return self.body == b"".join(self.parts)

    def header(self, name: str) -> list[str]:
        """
        Give the values of a header.
        """
        return [value for key, value in self.headers if key.lower() == name]


# Of the event loop, in which tasks that were started beside the request can end.
_TURNS: Final = 50
_UNSET: Final = described(None)
_Made: TypeAlias = Callable[[ASGIApp], ASGIApp]


class Runner:
    """
    Runs one version of a function.

    Args:
        make: Puts it around an app.
        world: Its world.
        variables: Context variables of which the app tells what it sees.
    """

    def __init__(
        self, make: _Made, world: World, variables: Mapping[str, contextvars.ContextVar[Any]]
    ) -> None:
        self._world = world
        self._variables = variables
        self._inner: ASGIApp = APPS["json"]
        self._outcome = Outcome("")
        self._app_error: BaseException | None = None
        self._sent_error: BaseException | None = None
        self._app = make(self._call_inner)
        world.loading = False

    async def run(self, inner: ASGIApp, asked: Asked, seconds: float) -> Outcome:
        """
        Send one request.

        Args:
            inner: The inner app.
            asked: The request.
            seconds: The time limit.
        """
        world = self._world
        world.reset()
        outcome = self._outcome = Outcome(asked.method, trace=world.trace)
        self._inner = inner
        self._app_error = self._sent_error = None
        server = _Server(asked, outcome)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coroutines that are given to stubs
            # What one run leaves set is not seen by the next one.
            context = contextvars.copy_context()
            run = self._run(asked.scope(world), server, seconds)
            await asyncio.create_task(run, context=context)
            await _end_other_tasks()
        outcome.trace = list(world.trace)
        outcome.beside = sorted(world.others)
        return outcome

    async def _run(self, scope: Scope, server: _Server, seconds: float) -> None:
        outcome = self._outcome
        before = self._seen_variables()
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._app(scope, server.receive, server.send)
        except BaseException as error:  # noqa: BLE001 - it is what is compared
            outcome.raised = error
            outcome.error = (type(error).__name__, described(error), self._is_own(error))
        outcome.hangs = limit.expired()
        now = self._seen_variables()
        outcome.left = {name: now[name] for name in now if now[name] != before.get(name, _UNSET)}

    async def _call_inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._world.record("- the app is called -")
        outcome = self._outcome
        at = len(outcome.seen)
        outcome.seen.append(self._view(scope))
        answered = False

        async def receive_and_tell() -> Message:
            # Of a streamed response it is Starlette's watch for a disconnect that reads.
            message = await receive()
            if message["type"] == "http.request" and self._inner is APPS["json"]:
                outcome.seen[at] += f" {message.get('body', b'')!r}"
            return message

        async def send_and_note(message: Message) -> None:
            # What a middleware raises comes to the app out of its `send`.
            nonlocal answered
            answered = True
            if message["type"] == "http.response.start":
                outcome.offered.append(message.get("headers"))
            outcome.parts.append(message.get("body", b""))
            outcome.later.append(f"{message['type']}: {self._seen_variables()}")
            try:
                await send(message)
            except BaseException as error:
                self._sent_error = error
                raise

        try:
            await self._inner(scope, receive_and_tell, send_and_note)
        except BaseException as error:
            self._app_error = error
            outcome.broke_off = answered and isinstance(error, OwnError)
            raise
        outcome.later.append(f"background: {self._seen_variables()}")

    def _is_own(self, error: BaseException) -> bool:
        return error is self._app_error and error is not self._sent_error

    def _view(self, scope: Scope) -> str:
        view = {
            **{name: scope[name] for name in ("method", "path", "scheme", "root_path")},
            "query": described(scope["query_string"]),
            "headers": described(scope["headers"]),
            "state": described(dict(scope["state"])),
            "variables": self._seen_variables(),
        }
        return json.dumps(view, default=str)

    def _seen_variables(self) -> dict[str, str]:
        seen = {name: each.get(None) for name, each in self._variables.items()}
        known = {name: each.get(None) for name, each in self._world.variables.known.items()}
        seen |= {name: value for name, value in known.items() if value is not None}
        return {name: described(value) for name, value in seen.items()}


class _Server:
    def __init__(self, asked: Asked, outcome: Outcome) -> None:
        self._outcome = outcome
        last = len(asked.chunks) - 1
        self._messages = [
            {"type": "http.request", "body": chunk, "more_body": index < last}
            for index, chunk in enumerate(asked.chunks)
        ]
        self._messages.reverse()
        self._ended = asyncio.Event()

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self._ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        outcome = self._outcome
        if message["type"] == "http.response.start":
            status = message["status"]
            outcome.status = status if type(status) is int else described(status)
            outcome.own = any(each is message.get("headers") for each in outcome.offered)
            outcome.headers = [(_text(k), _text(v)) for k, v in message.get("headers", ())]
            outcome.trace.append("- the response starts -")
        elif message["type"] == "http.response.body":
            if message.get("body"):
                outcome.chunks.append(bytes(message["body"]))
            if not message.get("more_body", False):
                outcome.complete = True
                outcome.trace.append("- the response ends -")
                self._ended.set()


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else described(value)


async def _end_other_tasks() -> None:
    others: set[asyncio.Task[Any]] = set()
    for _ in range(_TURNS):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if not others:
            return
        await asyncio.sleep(0)
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
