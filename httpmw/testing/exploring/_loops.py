# Event loops whose schedule is decided by a number.
#
# Rule 1: the same number gives the same schedule. Nothing here asks a clock, a file descriptor
# or the address of an object; only threads are outside of it.
# Rule 2: time is virtual. It stands still while a task can run, and jumps to the next timer when
# none can, so nothing sleeps. Where there is no timer either, nothing would ever happen again:
# that is a `Stuck`, at once.
# Rule 3: each schedule gets a loop of its own, so that nothing is carried from one to the next.

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, Final

MOST_STEPS: Final = 50_000
LAST_MOMENT: Final = 1e9  # seconds
_THREAD_SECONDS: Final = 10.0  # real ones, where nothing else can happen
_THREAD_MOMENT: Final = 0.05
_THREAD_TICK: Final = 0.001
_NOT_A_TASK: Final = 1 << 60
_EAGER: Final = 0.2  # of the loops start their tasks eagerly

Main = Callable[[], Coroutine[Any, Any, None]]
OnStep = Callable[[], None]
OnLeft = Callable[[Any], None]


class _Threads:
    # Those that were started since.

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def are_new(self) -> bool:
        if threading.active_count() == 1:
            return False
        return not self._before.issuperset(threading.enumerate())


class Stuck(AssertionError):  # noqa: N818 - a state of the schedule
    """
    A schedule came to a point from which it would never end.
    """


def run(  # noqa: PLR0913 - whoever listens to a schedule
    main: Main,
    *,
    backend: str,
    seed: int | None,
    on_step: OnStep,
    on_left: OnLeft,
    on_error: Callable[[BaseException | str], None],
) -> None:
    """
    Run *main* to its end, in the schedule of *seed*; None: in the order of a plain loop.

    *on_step* is called after each step of a task, *on_left* with each async generator that was
    left to the garbage collector, *on_error* with what nobody else would hear of.
    """
    if backend == "trio":
        _run_on_trio(main, seed, on_step, on_left)
    elif backend == "asyncio":
        # What of a loop is abstract here, no schedule asks for: sockets, signals, processes.
        Loop(seed, on_step, on_left, on_error).run(main())  # type: ignore[abstract]
    else:
        msg = f"backend is {backend!r}; it can be 'asyncio' or 'trio'"
        raise ValueError(msg)


# ---------------------------------------------------------------------- asyncio


class _Handle(asyncio.Handle):
    # Where it stands in a plain order, which must not be the order in which a set was iterated:
    # anyio keeps the tasks that it cancels in one.
    __slots__ = ("place",)
    place: int


class Loop(asyncio.AbstractEventLoop):
    """
    An event loop for one schedule: no file descriptors, no clock, one callback at a time.
    """

    def __init__(
        self,
        seed: int | None,
        on_step: OnStep,
        on_left: OnLeft,
        on_error: Callable[[BaseException | str], None],
    ) -> None:
        self._random = None if seed is None else random.Random(seed).random
        self._factory: Any = None
        if self._random is not None and sys.version_info >= (3, 12) and self._random() < _EAGER:
            self._factory = asyncio.eager_task_factory
        self._on_step = on_step
        self._on_left = on_left
        self._on_error = on_error
        self._ready: list[_Handle] = []
        self._timers: list[tuple[float, int, Any]] = []
        self._count = itertools.count().__next__
        self._tasks: dict[Any, int] = {}
        self._now = 0.0
        self._steps = 0
        self._closed = False
        self._threads = _Threads()
        self._from_threads = threading.Condition()

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """
        Run *main*, then end the tasks that it left.
        """
        if asyncio._get_running_loop() is not None:
            main.close()
            raise RuntimeError(
                "a schedule runs in a loop of its own: start it outside of any other"
            )
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._left)
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main)
            try:
                self._run_until(task)
            finally:
                self._end_tasks()
            task.result()
        finally:
            self._closed = True
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _run_until(self, task: asyncio.Task[None]) -> None:
        done = task.done
        while not done():
            self._step()

    def _end_tasks(self) -> None:
        self._steps = 0
        for _ in range(10):
            left = self._tasks_left()
            if not left:
                return
            for each in left:
                each.cancel()
            try:
                for each in left:
                    self._run_until(each)
            except Stuck:
                continue  # whoever swallowed it is cancelled again

    def _step(self) -> None:
        ready = self._ready
        if not ready:
            self._wait()
        if len(ready) == 1 or self._random is None:
            handle = ready.pop(0)
        else:
            ready.sort(key=_place_of)
            handle = ready.pop(int(self._random() * len(ready)))
        if not handle.cancelled():
            handle._run()
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise Stuck(f"it did not end within {MOST_STEPS} steps; {self._where()}")
            self._on_step()

    def _wait(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if self._threads.are_new() and self._wait_for_thread(
            _THREAD_MOMENT if timers else _THREAD_SECONDS
        ):
            return
        if not timers or timers[0][0] > LAST_MOMENT:
            raise Stuck(f"nothing can happen any more; {self._where()}")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            _, place, timer = heapq.heappop(timers)
            if not timer.cancelled():
                self._add(timer._callback, timer._args, timer._context, place)

    def _wait_for_thread(self, seconds: float) -> bool:
        # Whether a thread works or idles is not to be known from here: where there are timers,
        # it gets a moment.
        with self._from_threads:
            if not self._ready:
                self._from_threads.wait(seconds)
            return bool(self._ready)

    def _where(self) -> str:
        places = []
        for task in self._tasks_left():
            frames = task.get_stack()
            if frames:
                code = frames[-1].f_code
                places.append(f"{code.co_qualname} ({code.co_filename}:{frames[-1].f_lineno})")
        return "waiting: " + (", ".join(places) or "nobody")

    def _place(self, task: Any) -> int:
        # A task is scheduled for the first time before it is known to whoever makes it.
        place = self._tasks.get(task)
        if place is None:
            place = self._tasks[task] = self._count()
        return place

    def _tasks_left(self) -> list[asyncio.Task[Any]]:
        return [task for task in self._tasks if not task.done()]

    def _left(self, generator: Any) -> None:
        self._on_left(generator)
        if not self._closed:
            self.create_task(generator.aclose())

    def _add(self, callback: Any, args: Any, context: Any, place: int) -> _Handle:
        handle = _Handle(callback, args, self, context)
        handle.place = place
        self._ready.append(handle)
        return handle

    # What asyncio and anyio ask of a loop.

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        owner = getattr(callback, "__self__", None)
        is_task = type(owner) is asyncio.Task
        place = self._place(owner) if is_task else _NOT_A_TASK + self._count()
        return self._add(callback, args, context, place)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        with self._from_threads:
            handle = self.call_soon(callback, *args, context=context)
            self._from_threads.notify_all()
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, _NOT_A_TASK + self._count(), timer))
        return timer

    def time(self) -> float:
        return self._now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None, **rest: Any) -> Any:
        if self._factory is not None:
            task = self._factory(self, coro, name=name, context=context, **rest)
        else:
            task = asyncio.Task(coro, loop=self, name=name, context=context, **rest)
        self._place(task)
        return task

    def get_task_factory(self) -> Any:
        return self._factory

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002 - one thread is as good as the other
        func: Any,
        *args: Any,
    ) -> Any:
        # Here and now: when a thread comes back is not for a seed to decide.
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._on_error(context.get("exception") or context["message"])

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def _timer_handle_cancelled(self, handle: Any) -> None:
        # It is skipped when its time comes.
        pass


def _place_of(handle: _Handle) -> int:
    return handle.place


# ---------------------------------------------------------------------- trio


class _InOrder:
    # In place of trio's random numbers: tasks in the order in which they were made.

    @staticmethod
    def shuffle(batch: list[Any]) -> None:
        batch.reverse()  # trio takes them from the end

    @staticmethod
    def random() -> float:
        return 0.0


def _run_on_trio(main: Main, seed: int | None, on_step: OnStep, on_left: OnLeft) -> None:
    import trio.testing  # noqa: PLC0415 - only those who have it ask for it
    from trio._core import _run as scheduler  # noqa: PLC0415

    steps = 0
    guard = trio.CancelScope()
    reason = "nothing can happen any more"

    class Steps(trio.abc.Instrument):
        def after_task_step(self, task: Any) -> None:  # noqa: ARG002
            nonlocal steps, reason
            steps += 1
            if steps == MOST_STEPS:
                reason = f"it did not end within {MOST_STEPS} steps"
                guard.cancel()
            on_step()

    async def guarded() -> None:
        ours = _on_trio_left(on_left)
        sys.set_asyncgen_hooks(finalizer=ours)
        guard.deadline = trio.current_time() + LAST_MOMENT
        try:
            with guard:
                await main()
        finally:
            sys.set_asyncgen_hooks(finalizer=ours.close())
            if guard.cancel_called:
                raise Stuck(reason)

    clock: Any = trio.testing.MockClock(autojump_threshold=0)
    jump = clock._autojump
    patience = _THREAD_SECONDS

    def jump_unless_a_thread_works() -> None:
        nonlocal patience
        works = threading.active_count() > 1 and (
            trio.to_thread.current_default_thread_limiter().borrowed_tokens
        )
        if works and patience > 0:
            time.sleep(_THREAD_TICK)
            patience -= _THREAD_TICK
        else:
            jump()

    clock._autojump = jump_unless_a_thread_works
    names: Any = scheduler
    before = names._r, names._ALLOW_DETERMINISTIC_SCHEDULING
    names._r = _InOrder if seed is None else random.Random(seed)
    names._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        trio.run(guarded, clock=clock, instruments=[Steps()])
    finally:
        names._r, names._ALLOW_DETERMINISTIC_SCHEDULING = before


class _on_trio_left:  # noqa: N801 - used like a function
    # trio closes an abandoned generator as well, and warns of it.

    def __init__(self, on_left: OnLeft) -> None:
        self._on_left = on_left
        self._before = sys.get_asyncgen_hooks().finalizer

    def __call__(self, generator: Any) -> None:
        self._on_left(generator)
        if self._before is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                self._before(generator)

    def close(self) -> Any:
        before, self._before = self._before, None
        return before
