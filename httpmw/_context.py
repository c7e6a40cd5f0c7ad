# Which task and context a flow belongs to, and which scopes are open there.
#
# Rule 1: everything here is native to asyncio or trio; `anyio.get_current_task()` costs more
# than the whole start of a flow.
# Rule 2: data that is private to anyio, trio or CPython is read in this file only, each time
# with a public or harmless fall-back: a check must never fail a request by its own fault.
# `tests/` holds a canary that fails when one of them moves.
# Rule 3: trio is never imported here, only looked up: a task of trio's exists only where
# somebody else has imported it.

from __future__ import annotations

import asyncio
import gc
import math
import sys
from collections.abc import Callable
from contextvars import Context
from types import MethodType
from typing import Any, Final
from weakref import ref

import anyio
import anyio.lowlevel

from . import _errors

running_loop: Final = asyncio._get_running_loop
task_of: Callable[[Any], Any] = asyncio.current_task
if sys.version_info < (3, 12):
    # What `current_task` looks into, at a third of its price.
    task_of = vars(asyncio.tasks)["_current_tasks"].get


def current_task() -> Any:
    """
    The running task of asyncio or trio, None where there is neither.

    Whoever asks more than once keeps the loop: to find it costs a system call before Python 3.12.
    """
    loop = running_loop()
    task = None if loop is None else task_of(loop)
    # A trio run in guest mode lives inside an asyncio loop, outside of its tasks.
    return task or trio_task()


def trio_task() -> Any:
    try:
        return sys.modules["trio"].lowlevel.current_task()
    except (KeyError, RuntimeError):
        return None


def context_of(task: Any) -> Context | None:
    """
    The context in which *task* runs, None where it cannot be told.
    """
    if isinstance(task, asyncio.Task) and sys.version_info < (3, 12):
        # `Task.get_context()` is new in 3.12, and the C task shows its context to the garbage
        # collector only: first its own, then those of its callbacks.
        contexts = (each for each in gc.get_referents(task) if isinstance(each, Context))
        return next(contexts, None)
    get_context = getattr(task, "get_context", None)
    if get_context is not None:
        context = get_context()
    else:
        context = getattr(task, "context", None)
    return context if isinstance(context, Context) else None


class runner_in:  # noqa: N801 - used like a function
    # Calls in one context. Where that context is entered already (it is the running one, or an
    # eager task is started from inside of it), the running context has to do.

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        # An exception that is thrown in would be held by this frame, and hold it by its traceback.
        given = [arguments]
        del arguments

        def call() -> Any:
            return function(*given.pop())

        try:
            return self._context.run(call)
        except RuntimeError:
            if not given:
                raise
        return call()


# Open scopes. anyio keeps the innermost scope of a task in `_task_states`; trio in
# `Task._cancel_status`, and the nurseries of a task are public.

states: Any = None


def find_states() -> None:
    """
    Find what anyio knows of the tasks of asyncio; to be called before the first request.

    Where its backend cannot be imported (Pyodide before 314, as long as its `ssl` is not loaded)
    nobody holds a scope of anyio, and it is looked for again when the next layer is made.
    """
    global states  # noqa: PLW0603 - looked up once, and read in every request
    if states is None:
        try:
            from anyio._backends import _asyncio  # noqa: PLC0415 - anyio too imports it that late
        except ImportError:
            return
        states = states_in(_asyncio)


def states_in(backend: Any) -> Any:
    try:
        found = backend._task_states.data  # of a WeakKeyDictionary, without a call in between
        if type(found) is dict and hasattr(backend.TaskState, "cancel_scope"):
            return found
    except AttributeError:
        pass
    return NoStates()


class TrioStates:
    # The same for tasks of trio, which know their scopes themselves.

    def get(self, key: ref[Any]) -> TrioState:
        return TrioState(key())


class TrioState:
    def __init__(self, task: Any) -> None:
        self.cancel_scope = open_scopes(task)


trio_states: Final = TrioStates()


class NoStates:
    # In the place of the states, and of each of them, where anyio has moved them.

    def get(self, _: Any) -> Any:
        return self

    @property
    def cancel_scope(self) -> Any:
        return _Deadline()


def open_scopes(task: Any) -> Any:
    """
    A fingerprint of the scopes that *task*, the running one, holds open; compare with `!=`.
    """
    if task is None:
        return None
    try:
        state = states and states.get(ref(task))
        if state:
            return state.cancel_scope
        if isinstance(task, asyncio.Task):
            return None
        return (task._cancel_status, len(task.child_nurseries))
    except Exception:  # noqa: BLE001 - rule 2
        return _Deadline()


class _Deadline:
    # The public fall-back: a deadline that is finite and earlier than before betrays a time
    # limit. An outer scope may move its own deadline, so later is no proof.

    def __init__(self) -> None:
        try:
            self.deadline = anyio.current_effective_deadline()
        except Exception:  # noqa: BLE001 - rule 2
            self.deadline = math.inf

    def __ne__(self, other: object) -> bool:
        return (
            isinstance(other, _Deadline)
            and math.isfinite(self.deadline)
            and self.deadline < other.deadline
        )

    __hash__ = None  # type: ignore[assignment]


# What the engine itself asks of anyio has to work where its backend cannot be imported, see
# `find_states`: nothing runs there but asyncio.


async def checkpoint() -> None:
    """
    Let others run, and a cancellation come up.
    """
    try:
        await anyio.lowlevel.checkpoint()
    except ImportError:
        await asyncio.sleep(0)


def new_event() -> anyio.Event | asyncio.Event:
    """
    An event of the running loop.
    """
    try:
        return anyio.Event()
    except ImportError:
        return asyncio.Event()


# Cancellation.


def is_cancellation(exc: BaseException | None) -> bool:
    if isinstance(exc, asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")
    return trio is not None and isinstance(exc, trio.Cancelled)


def without_cancellations(exc: BaseException | None) -> BaseException | None:
    """
    What is left of *exc* without the cancellations in it, None where that is nothing.
    """
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(is_cancellation)[1]
    return None if is_cancellation(exc) else exc


def holds_expired_limit(coroutine: Any) -> bool:
    """
    Whether *coroutine*, or what it waits for, is inside of an `asyncio.timeout` that is over.

    A block that is entered is held by its frame, and that is shown to the garbage collector only:
    as the method that leaves the block, and from Python 3.14 on as the limit itself. So may a
    variable hold one that has been left.
    """
    found = {id(coroutine)}
    looked_at = [coroutine]
    for each in looked_at:  # it grows
        for referent in gc.get_referents(each):
            limit = referent.__self__ if isinstance(referent, MethodType) else referent
            if isinstance(limit, asyncio.Timeout):
                if limit.expired() and not _is_left(limit):
                    return True
            elif id(referent) not in found and type(referent).__name__ in _AWAITED:
                found.add(id(referent))
                looked_at.append(referent)
    return False


def _is_left(limit: asyncio.Timeout) -> bool:
    # "expiring" becomes "expired" when the block is left; both count as expired.
    return getattr(getattr(limit, "_state", None), "value", None) == "expired"


# What a chain of coroutines is made of; most of these types have no name that can be imported.
_AWAITED: Final = frozenset(
    {
        "async_generator",
        "async_generator_asend",
        "async_generator_athrow",
        "coroutine",
        "coroutine_wrapper",
        "generator",
        "anext_awaitable",
    }
)


def cancellations(task: Any) -> int:
    """
    How many cancellation requests *task* has not yet answered for (asyncio only).
    """
    return task.cancelling() if isinstance(task, asyncio.Task) else 0


def is_cancelled(task: Any, before: int) -> bool:
    """
    Whether a cancellation is still owed by *task*, the running one.

    It is if nobody has taken back, by `Task.uncancel()`, one of the requests there were *before*
    the cancellation was swallowed; and anyio and trio have them as long as the scope is open.
    """
    return 0 < before <= cancellations(task) or _is_scope_cancelled()


def _is_scope_cancelled() -> bool:
    try:
        return anyio.current_effective_deadline() == -math.inf
    except Exception:  # noqa: BLE001 - outside of asyncio and trio nothing is cancelled
        return False


_DELIVERED_WITHIN: Final = 10  # steps of the event loop


async def pending_cancellation() -> BaseException | None:
    """
    Let a cancellation by a scope around the running task come up, and give it.
    """
    # anyio has the loop deliver it: by the next step with asyncio's order of callbacks, a few steps
    # later with another one.
    for _ in range(_DELIVERED_WITHIN):
        if not _is_scope_cancelled():
            break
        try:
            await checkpoint()
        except BaseException as exc:  # noqa: BLE001 - it is handed on
            return exc
    return None


# Things that belong to one task and say so only in words.
_OWNED_BY_A_TASK = (
    "cancel scope",
    "different Context",
    "not held",
    "not holding this lock",
    "a Lock you don't own",
    "not the owner",
    "not the borrower",
    "isn't holding",
    "does not own",
)


def explain(flow: object, exc: BaseException, *, foreign: bool) -> BaseException:
    """
    Put our explanation before an error that comes from resuming *flow* in another task.
    """
    if not foreign or not isinstance(exc, (RuntimeError, ValueError)):
        return exc
    if not any(words in str(exc) for words in _OWNED_BY_A_TASK):
        return exc
    error = _errors.not_held(flow, exc)
    error.__cause__ = exc
    return error
