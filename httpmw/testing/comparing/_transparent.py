# Does a middleware change what it does not mean to change?
# Here are the two runs, what is seen of them, and the report that says where it differs.
#
# Rule 1: the measure is the same inner app without the middleware. Each case of `_inner_apps` is
# run twice, alone and inside, and what the server, the app and a layer outside saw is compared;
# nothing is expected that a server without middleware would not have seen.
# Rule 2: what can be looked at in every case has a row of its own (`EVERYWHERE`), so
# that one habit of a middleware does not hide the others.
# Rule 3: a run never hangs and never raises: what it does instead is what is reported.

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import Any, Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw._context import current_task
from httpmw.testing.checking.rules._http import START
from httpmw.testing.checking.rules._websocket import ACCEPT, CLOSE, DENIAL_START
from httpmw.testing.driving._layers import AnyMiddleware, around
from httpmw.testing.driving._server import Server
from httpmw.testing.driving._socket import DENIES

from ._inner_apps import CASES, Case, settle

__all__ = ["TransparencyReport", "TransparencyRow", "check_transparent"]

SPECS: Final = (None, "2.1", "2.3", "2.4", "2.5")

IS_RUN: Final = "the app is run"
BOUNDARIES: Final = "message boundaries"
TASKS: Final = "no task is made"
SAME_TASK: Final = "the app runs in the task of the request"
CONTEXT: Final = "context variables, both ways"
SCOPE: Final = "the scope that the app sees"
UNTOUCHED: Final = "the messages that the app keeps"
EVERYWHERE: Final = (IS_RUN, BOUNDARIES, TASKS, SAME_TASK, CONTEXT, SCOPE, UNTOUCHED)

# Headers that say how long a body is and how it is coded.
BODY_HEADERS: Final = frozenset({b"content-length", b"content-encoding"})


@dataclass(frozen=True)
class TransparencyRow:
    """
    One thing that a middleware keeps as it is, or does not.

    Attributes:
        name: What it is.
        passed: Whether it was the same inside of the middleware as without it, in every run.
        allowed: Whether the caller allowed it to be different.
        detail: What was different, and where; empty if nothing was.
    """

    name: str
    passed: bool
    allowed: bool
    detail: str

    def __str__(self) -> str:
        mark = "ok" if self.passed else "allowed" if self.allowed else "NO"
        return f"{mark:<8}{self.name:<46}{self.detail}".rstrip()


@dataclass(frozen=True)
class TransparencyReport:
    """
    What `check_transparent` found; `str(report)` is a table.

    Attributes:
        rows: Everything that was looked at.
        runs: How many times an inner app was run inside of the middleware.
    """

    rows: tuple[TransparencyRow, ...]
    runs: int

    @property
    def failures(self) -> tuple[TransparencyRow, ...]:
        """
        The rows that did not pass and were not allowed to; empty for a transparent middleware.
        """
        return tuple(row for row in self.rows if not row.passed and not row.allowed)

    def raise_for_failures(self) -> None:
        """
        Fail a test.

        Raises:
            AssertionError: There are failures; the message has a line for each.
        """
        if self.failures:
            lines = "\n".join(map(str, self.failures))
            raise AssertionError(f"the middleware is not transparent\n{lines}")

    def __str__(self) -> str:
        passed = sum(row.passed for row in self.rows)
        title = f"{passed} of {len(self.rows)} are as without the middleware, in {self.runs} runs"
        return "\n".join([title, *map(str, self.rows)])


async def check_transparent(  # noqa: PLR0913 - options, each by its name
    mw: AnyMiddleware | Sequence[AnyMiddleware],
    *,
    headers: Mapping[str, str] | None = None,
    ignore_headers: Collection[str] = (),
    ignore_body: bool = False,
    allow: Collection[str] = (),
    specs: Sequence[str | None] = SPECS,
    timeout: float = 5,  # noqa: ASYNC109 - of each run, not of the call
    websocket: bool = False,
) -> TransparencyReport:
    """
    Run inner apps of many kinds alone and inside of a middleware, and compare.

    Compared are the messages at the server one for one, what the app receives, exceptions with
    their traceback, cause and context, context variables in both directions, the tasks that are
    made, whether a disconnect is seen, and whether anything is held back or runs ahead of a slow
    client. It needs no server and no test framework, and runs on asyncio and trio. While it runs
    on asyncio it replaces the loop's task factory.

        report = await check_transparent(RequestId, ignore_headers={"x-id"})
        report.raise_for_failures()

    Args:
        mw: A middleware function, an ASGI middleware class, a Starlette `Middleware`, or a
            function that takes an `app` and returns it wrapped; or a sequence of them, the
            outermost first.
        headers: Headers of every request, for a middleware that does nothing without them.
        ignore_headers: The names of the headers that the middleware sets, changes or removes on
            purpose, in requests or responses.
        ignore_body: Whether it changes the bytes of response bodies on purpose. Lost messages,
            trailers and endings are found all the same.
        allow: The names of rows that may fail.
        specs: The versions of the ASGI HTTP specification that the server announces; None is a
            server that announces none.
        timeout: After how many seconds a run counts as hanging.
        websocket: Whether middleware functions in *mw* run around WebSocket handshakes, too; a
            layer has to say so itself.

    Returns:
        The report; nothing is raised for what it says.

    Raises:
        ValueError: There is no row of a name in *allow*, or *specs* is empty.
    """
    names = list(dict.fromkeys([*EVERYWHERE, *(case.name for case in CASES)]))
    if unknown := sorted(set(allow) - set(names)):
        message = f"no row has the name {unknown[0]!r}; there are: {', '.join(names)}"
        raise ValueError(message)
    if not specs:
        message = "specs is empty: nothing would be looked at; None is a server that announces none"
        raise ValueError(message)
    compare = _Comparison({name.lower().encode() for name in ignore_headers}, ignore_body)
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    runs = 0
    for variant in _variants(specs, headers or {}):
        alone = await _run(variant, None, timeout)
        inside = await _run(variant, mw, timeout, websocket=websocket)
        runs += 1
        for name, detail in compare.differences(alone, inside):
            found[name].append((str(variant), detail))
    rows = (
        TransparencyRow(name, not details, name in allow, _detail(name, details))
        for name, details in found.items()
    )
    return TransparencyReport(tuple(rows), runs)


def _detail(name: str, found: list[tuple[str, str]]) -> str:
    if not found:
        return ""
    where, detail = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    # A row that looks at every case says in which.
    place = where if name in EVERYWHERE else where.partition("; ")[2]
    return f"{detail} ({place}{more})"


# ---------------------------------------------------------------------- one run


@dataclass(frozen=True)
class _Variant:
    case: Case
    spec: str | None
    once: bool
    headers: Mapping[str, str]

    def __str__(self) -> str:
        told = ", disconnect told once" if self.once else ""
        return f"{self.case.name}; ASGI {self.spec or 'version absent'}{told}"

    def server(self) -> _Server:
        options = dict(self.case.options)
        options["headers"] = {**self.headers, **options.get("headers", {})}
        options["disconnect"] = "once" if self.once else "repeated"
        return _Server(**options, spec=self.spec, case=self.case)


def _variants(specs: Sequence[str | None], headers: Mapping[str, str]) -> Iterator[_Variant]:
    for case in CASES:
        for spec in specs:
            for once in (False, True) if case.leaves else (False,):
                yield _Variant(case, spec, once, headers)


# The keys of an HTTP scope that others have as well.
_SCOPES: Final = {
    "websocket": (
        *("asgi", "http_version", "path", "raw_path", "root_path", "query_string", "headers"),
        *("client", "server", "state"),
    ),
    "lifespan": ("asgi", "state"),
}


# What answers a request or a handshake.
_ANSWERS: Final = frozenset({START, ACCEPT, CLOSE, DENIAL_START})


class _Server(Server):
    # A server that a case can make slow or make another one than of HTTP.

    def __init__(self, *, case: Case, **options: Any) -> None:
        super().__init__(**options)
        self._slow = case.slow
        self._keys = case.keys
        self._other = case.kind != "http"
        self._messages = list(case.messages)
        if self._other:
            kept = _SCOPES[case.kind]
            self.scope = {key: self.scope[key] for key in kept} | {"type": case.kind}
        if case.kind == "websocket":
            self.scope |= {"scheme": "ws", "subprotocols": ["chat"]}
            self.scope["extensions"] = dict(options.get("extensions", DENIES))
        # As far as a layer outside can see when the response starts.
        self.context_at_start: str | None = None

    async def receive(self) -> Message:
        if self._other and self._messages:
            return dict(self._messages.pop(0))
        if self.scope["type"] == "websocket":  # whoever asks for more than the app does
            return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        return {**await super().receive(), **self._keys}

    async def send(self, message: Message) -> None:
        if self._slow:
            await settle()
        if message["type"] in _ANSWERS and self.context_at_start is None:
            self.context_at_start = _of_the_app.get()
        if self._other:
            self.sent.append(dict(message))
            return
        await super().send(message)


class _Tally:
    tasks = 0


_of_the_server: ContextVar[str | None] = ContextVar("of_the_server", default=None)
_of_the_app: ContextVar[str | None] = ContextVar("of_the_app", default=None)
_tally: ContextVar[_Tally | None] = ContextVar("tally", default=None)


class _Run:
    # One run of an inner app, alone or inside of the middleware, and what was seen of it.

    def __init__(self, variant: _Variant) -> None:
        self.case = variant.case
        self.server = variant.server()
        self.notes: dict[str, Any] = {}
        self.limit = anyio.CancelScope()
        self.cancelled = False
        # What came out of the app, and what came out of the middleware in the end.
        self.left: _Raised | None = None
        self.raised: _Raised | None = None
        self.hung = False
        self.tally = _Tally()
        # Of asyncio: how many cancellations the task still owes afterwards.
        self.owed = 0
        self.task: Any = None
        self.app_task: Any = None
        self.context_inside: str | None = None
        self.context_after: str | None = None
        self.scope_inside: Scope = {}
        self._kept: list[tuple[Message, Message]] = []

    def cancel(self) -> None:
        self.cancelled = True
        self.limit.cancel()

    async def request(self, app: ASGIApp, timeout: float) -> None:  # noqa: ASYNC109 - see _run
        self.task = current_task()
        _of_the_server.set("set by the server")
        _tally.set(self.tally)
        is_asyncio = isinstance(self.task, asyncio.Task)
        try:
            with _counted_by_asyncio() if is_asyncio else _counted_by_trio(), self.limit:
                self.limit.deadline = anyio.current_time() + timeout
                await app(self.server.scope, self.server.receive, self.server.send)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - this is what is reported
            self.raised = _Raised(error)
        self.context_after = _of_the_app.get()
        self.hung = self.limit.cancelled_caught and not self.cancelled
        self.owed = self.task.cancelling() if is_asyncio else 0

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.app_task = current_task()
        self.scope, self.receive, self._send = scope, receive, send
        self.scope_inside = dict(scope)
        self.context_inside = _of_the_server.get()
        _of_the_app.set("set by the app")
        try:
            await self.case.app(self)
        except BaseException as error:
            self.left = _Raised(error)
            raise

    async def send(self, *messages: Message) -> None:
        for message in messages:
            self._kept.append((message, _copy(message)))
            await self._send(message)

    @property
    def changed(self) -> list[str]:
        return [before["type"] for now, before in self._kept if _copy(now) != before]


class _Raised:
    # An exception, with what it had when it was seen; the first frame is that of who sees it.

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.cause = error.__cause__
        self.context = error.__context__
        self.suppresses = error.__suppress_context__
        self.frames = list(_frames(error.__traceback__))[1:]


def _frames(traceback: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    while traceback is not None:
        yield traceback.tb_frame.f_code, traceback.tb_lineno
        traceback = traceback.tb_next


def _copy(message: Message) -> Message:
    return {
        key: list(map(tuple, value)) if key == "headers" else value
        for key, value in message.items()
    }


async def _run(
    variant: _Variant,
    mw: AnyMiddleware | Sequence[AnyMiddleware] | None,
    timeout: float,  # noqa: ASYNC109 - what it ends is noted, not raised
    *,
    websocket: bool = False,
) -> _Run:
    run = _Run(variant)
    app = around(mw, run.app, websocket=websocket)
    # In a task of its own, so that nothing is left behind: no context, no cancellation.
    async with anyio.create_task_group() as group:
        group.start_soon(run.request, app, timeout)
    return run


# Tasks are counted that are made in the context of a run, or in one that was copied from it.


def _count(tally: _Tally | None) -> None:
    if tally is not None:
        tally.tasks += 1


@contextmanager
def _counted_by_asyncio() -> Iterator[None]:
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()

    def make(loop: Any, coroutine: Any, **options: Any) -> Any:
        context = options.get("context")
        # The loop makes a task of something else than a coroutine to close a generator that was
        # left to the garbage collector, whoever did that, and in whatever context stands then.
        if inspect.iscoroutine(coroutine):
            _count(_tally.get() if context is None else context.get(_tally))
        if factory is None:
            return asyncio.Task(coroutine, loop=loop, **options)
        return factory(loop, coroutine, **options)

    loop.set_task_factory(make)
    try:
        yield
    finally:
        loop.set_task_factory(factory)


class _Instrument:
    # As much of `trio.abc.Instrument` as it takes.

    def task_spawned(self, task: Any) -> None:
        _count(task.context.get(_tally))


@contextmanager
def _counted_by_trio() -> Iterator[None]:
    lowlevel = sys.modules["trio"].lowlevel
    instrument = _Instrument()
    lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        lowlevel.remove_instrument(instrument)


# ---------------------------------------------------------------------- the comparison


class _Comparison:
    def __init__(self, ignored: Collection[bytes], ignore_body: bool) -> None:  # noqa: FBT001
        self._ignored = frozenset(ignored) | (BODY_HEADERS if ignore_body else frozenset())
        self._ignore_body = ignore_body

    def differences(self, alone: _Run, inside: _Run) -> Iterator[tuple[str, str]]:
        """
        Tell what is different, each with the row that it belongs to.
        """
        name = inside.case.name
        if inside.hung:
            yield name, "it hangs"
        elif inside.app_task is None:
            yield name if inside.case.kind != "http" else IS_RUN, _without_app(inside)
        else:
            for detail in self._in_this_case(alone, inside):
                yield name, detail
                break
            yield from self._in_every_case(alone, inside)

    def _in_this_case(self, alone: _Run, inside: _Run) -> Iterator[str]:
        if detail := _other_end(alone, inside):
            yield detail
        expected, arrived = (self._joined(run.server.sent) for run in (alone, inside))
        if expected != arrived:
            yield _lost(expected, arrived)
        for words, value in alone.notes.items():
            if (note := inside.notes.get(words)) != value:
                yield f"{words}: {note!r}, not {value!r}"

    def _in_every_case(self, alone: _Run, inside: _Run) -> Iterator[tuple[str, str]]:
        expected, arrived = (self._comparable(run.server.sent) for run in (alone, inside))
        # Where more than the boundaries is different, the row of the case says so.
        if _joined(expected) == _joined(arrived) and expected != arrived and not self._ignore_body:
            yield BOUNDARIES, f"{_sizes(arrived)}, not {_sizes(expected)}"
        if (more := inside.tally.tasks - alone.tally.tasks) > 0:
            yield TASKS, f"{more} more than without it"
        if inside.app_task is not inside.task:
            yield SAME_TASK, "it runs in another one"
        if inside.context_inside != alone.context_inside:
            yield CONTEXT, "what was set outside is not seen by the app"
        if inside.context_after != alone.context_after:
            yield CONTEXT, "what the app set is not seen afterwards"
        at_start = inside.server.context_at_start
        if inside.server.starts and at_start != alone.server.context_at_start:
            yield CONTEXT, "what the app set is not seen when the response starts"
        if keys := [*self._changed_keys(alone.scope_inside, inside.scope_inside)]:
            yield SCOPE, f"changed: {', '.join(keys)}"
        if inside.server.scope["state"] != alone.server.scope["state"]:
            yield SCOPE, "what the app wrote into its state is not seen outside"
        if inside.changed:
            yield UNTOUCHED, f"{inside.changed[0]} was changed in place"

    def _changed_keys(self, alone: Scope, inside: Scope) -> Iterator[str]:
        # What a middleware adds under keys of its own is what scopes are for.
        for key, value in alone.items():
            here = inside.get(key)
            if key == "headers":
                same = self._kept_headers(value) == self._kept_headers(here or [])
            else:
                same = value == here
            if not same:
                yield key

    def _kept_headers(self, headers: Iterable[Any]) -> list[tuple[bytes, bytes]]:
        pairs = ((bytes(name).lower(), bytes(value)) for name, value in headers)
        return [pair for pair in pairs if pair[0] not in self._ignored]

    def _comparable(self, messages: list[Message]) -> list[Message]:
        return [
            {**_DEFAULTS.get(each["type"], {}), **dict(self._values(each))} for each in messages
        ]

    def _values(self, message: Message) -> Iterator[tuple[str, Any]]:
        for key, value in message.items():
            if key == "headers":
                yield key, self._kept_headers(value)
            elif key == "body":
                yield key, bytes(value)
            elif key != "file":  # each run has its own
                yield key, value

    def _joined(self, messages: list[Message]) -> list[Message]:
        comparable = self._comparable(messages)
        if self._ignore_body:
            comparable = [_no_bytes(message) for message in comparable]
        return _joined(comparable)


_BODY: Final = "http.response.body"
_DEFAULTS: Final[dict[str, Message]] = {
    "http.response.start": {"headers": []},
    _BODY: {"body": b"", "more_body": False},
}


def _no_bytes(message: Message) -> Message:
    if message["type"] in {_BODY, "http.response.pathsend", "http.response.zerocopysend"}:
        return {"type": _BODY, "body": b"", "more_body": message.get("more_body", False)}
    return message


def _joined(messages: list[Message]) -> list[Message]:
    # Body messages in a row as one: what the client gets.
    joined: list[Message] = []
    for message in messages:
        if joined and message["type"] == joined[-1]["type"] == _BODY:
            data = joined[-1]["body"] + message["body"]
            joined[-1] = {**joined[-1], **message, "body": data}
        else:
            joined.append(message)
    return joined


def _without_app(inside: _Run) -> str:
    if inside.raised is not None:
        return f"it is not, {inside.raised.error!r} is raised"
    kinds = [str(message.get("status", _kind(message))) for message in inside.server.sent]
    return f"it is not, the server gets {_list(kinds)}"


def _lost(expected: list[Message], arrived: list[Message]) -> str:
    kinds, others = ([_kind(message) for message in each] for each in (expected, arrived))
    if kinds != others:
        return f"the server gets {_list(others)}, not {_list(kinds)}"
    one, other = next(pair for pair in zip(expected, arrived, strict=True) if pair[0] != pair[1])
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    changes = (f"{key} {other.get(key)!r}, not {one.get(key)!r}" for key in keys)
    return f"{_kind(one)} has {'; '.join(changes)}"


def _kind(message: Message) -> str:
    kind: str = message["type"].removeprefix("http.response.")
    # Of a joined body this says whether it is complete.
    return f"{kind} without end" if message.get("more_body") else kind


def _list(kinds: list[str]) -> str:
    return " + ".join(kinds) or "nothing"


def _sizes(messages: list[Message]) -> str:
    sizes = (str(len(message["body"])) for message in messages if "body" in message)
    return f"bodies of {' + '.join(sizes)} bytes"


def _other_end(alone: _Run, inside: _Run) -> str:
    if inside.limit.cancelled_caught != alone.limit.cancelled_caught:
        return "it swallows the cancellation"
    if inside.owed != alone.owed:
        return f"task.cancelling() is {inside.owed} afterwards, not {alone.owed}"
    raised, left, expected = inside.raised, inside.left, alone.raised
    if raised is None:
        return f"{expected.error!r} is lost" if expected else ""
    if expected is None or type(raised.error) is not type(expected.error):
        return "" if inside.case.may_raise else f"it raises {raised.error!r}"
    if left is None or raised.error is not left.error:
        return f"{expected.error!r} arrives as another object"
    return _changed(left, raised)


def _changed(left: _Raised, raised: _Raised) -> str:
    for name in ("cause", "context", "suppresses"):
        now, before = getattr(raised, name), getattr(left, name)
        if now is not before:
            return f"the exception's {name} is {now!r}, not {before!r}"
    if raised.frames[-len(left.frames) :] != left.frames:
        return "the exception's traceback is cut"
    return ""
