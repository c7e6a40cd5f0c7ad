"""
How the benchmarks take time.

1. All arms are measured in interleaved rounds: one sample of each arm, in an order that is
   shuffled for each round. A drift of the machine hits all arms alike.
2. A ratio is computed from the samples of one round. The figure is the median over the rounds,
   the spread is their quartiles.
3. A sample is CPU time of this process, so that another process does not count. Nothing that is
   measured here waits for anything.
4. The garbage collector is on, as users have it. Between two rounds it is run outside the samples.
5. Each sample runs in a task of its own, so that there is a current task and no sample finds what
   another one left behind. The loop's hooks for async generators are on, also where requests are
   stepped by hand.
6. anyio has its backend loaded, as in every application that has sent a file or a stream. It knows
   the scopes of no task, as long as a server runs nothing but plain coroutines; where it does, a
   layer has to look for those of its own request. That is measured under `anyio.run()`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any, TypeVar

import anyio
import trio

from benchmarks.styles import App, receive, request_scope, send

try:
    import uvloop
except ImportError:  # not made for every platform, nor for a Python that is new
    uvloop = None  # type: ignore[assignment]

Arm = TypeVar("Arm")
T = TypeVar("T")
Take = Callable[[App, int], Coroutine[Any, Any, float]]  # seconds for that many requests
Samples = Mapping[Arm, list[float]]

clock = time.process_time

WARM_UP = 3  # requests; what is imported or cached by the first ones is in no sample


def step(coro: Coroutine[Any, Any, object]) -> None:
    """
    Run *coro* without the event loop; it must never suspend.
    """
    try:
        coro.send(None)
    except StopIteration:
        return
    msg = "suspended: this benchmark must not touch the event loop"
    raise AssertionError(msg)


async def by_hand(app: App, requests: int) -> float:
    """
    Time requests that are stepped by hand: the code alone, nothing of the event loop.
    """

    async def take() -> float:
        started = clock()
        for _ in range(requests):
            step(app(request_scope(), receive, send))
        return clock() - started

    return await asyncio.create_task(take())


async def under_asyncio(app: App, requests: int) -> float:
    """
    Time requests that run as a server runs them, each in a task of its own.
    """
    create_task = asyncio.create_task
    started = clock()
    for _ in range(requests):
        await create_task(app(request_scope(), receive, send))
    return clock() - started


async def under_trio(app: App, requests: int) -> float:
    """
    The same under trio: a request is started in the next turn of the loop.
    """
    checkpoint = trio.lowlevel.checkpoint
    started = clock()
    async with trio.open_nursery() as nursery:
        for _ in range(requests):
            nursery.start_soon(app, request_scope(), receive, send)
            await checkpoint()
    return clock() - started


Run = Callable[[Callable[[], Coroutine[Any, Any, T]]], T]


@dataclass(frozen=True)
class Driver:
    """
    How one sample is taken, and what runs the event loop that it is taken in.
    """

    take: Take
    run: Run[Any]


def as_server(
    main: Callable[[], Coroutine[Any, Any, T]],
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """
    Run *main* as uvicorn runs a server.
    """
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())


BY_HAND = Driver(by_hand, as_server)
ASYNCIO = Driver(under_asyncio, as_server)
ANYIO = Driver(under_asyncio, anyio.run)
UVLOOP = uvloop and Driver(under_asyncio, partial(as_server, loop=uvloop.new_event_loop))
TRIO = Driver(under_trio, partial(anyio.run, backend="trio"))


def measure(
    arms: Mapping[Arm, App], driver: Driver, *, rounds: int, seconds: float
) -> dict[Arm, list[float]]:
    """
    Measure all arms, each in as many samples as there are rounds.

    Args:
        arms: The applications to measure.
        driver: How one sample is taken.
        rounds: How many samples to take of each arm.
        seconds: How long one sample takes, about.

    Returns:
        The seconds that one request took, for each arm and round.
    """
    taking = partial(_measure, arms, driver.take, rounds=rounds, seconds=seconds)
    samples: dict[Arm, list[float]] = driver.run(taking)
    return samples


async def _measure(
    arms: Mapping[Arm, App], take: Take, *, rounds: int, seconds: float
) -> dict[Arm, list[float]]:
    await anyio.lowlevel.checkpoint()  # loads the backend
    requests = {arm: await _calibrate(app, take, seconds) for arm, app in arms.items()}
    samples: dict[Arm, list[float]] = {arm: [] for arm in arms}
    for order in interleaved(arms, rounds):
        for arm in order:
            taken = await take(arms[arm], requests[arm])
            samples[arm].append(taken / requests[arm])
    return samples


def interleaved(arms: Iterable[Arm], rounds: int) -> Iterable[list[Arm]]:
    """
    Give the arms in a shuffled order for each round, after a run of the garbage collector.
    """
    order = list(arms)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        gc.collect()
        shuffle(order)
        yield order


async def _calibrate(app: App, take: Take, seconds: float) -> int:
    """
    Find how many requests fill one sample.
    """
    await take(app, WARM_UP)
    requests = 1
    while (taken := await take(app, requests)) < seconds / 4:
        requests *= 2
    return max(1, round(requests * seconds / taken))


@dataclass(frozen=True)
class Figure:
    """
    A median over rounds, with the quartiles around it.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        values = list(values)
        low, _, high = quantiles(values, n=4)
        return cls(median(values), low, high)

    def rounded(self, digits: int) -> dict[str, float]:
        return {key: round(value, digits) for key, value in asdict(self).items()}


def added(samples: Samples[Arm], arm: Arm, bare: Arm) -> Figure:
    """
    Compute what the layers of *arm* add to a request, in µs.
    """
    rounds = zip(samples[arm], samples[bare], strict=True)
    return Figure.of((with_arm - none) * 1e6 for with_arm, none in rounds)


def ratio(samples: Samples[Arm], arm: Arm, other: Arm, bare: Arm | None) -> Figure:
    """
    Compute what the layers of *arm* cost, as a multiple of what those of *other* cost.

    The cost of layers is the time of a request with them less the time of one without; where
    there is no *bare*, because the layers answer themselves, it is the whole time.
    """
    nothing = [0.0] * len(samples[arm])
    rounds = zip(samples[arm], samples[other], samples.get(bare, nothing), strict=True)
    return Figure.of((one - none) / (two - none) for one, two, none in rounds)
