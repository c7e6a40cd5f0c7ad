"""
How the benchmarks take time.

1. All arms are measured in interleaved rounds: one sample of each arm, in an order that is
   shuffled for each round. A drift of the machine hits all arms alike.
2. A ratio is computed from the samples of one round. The figure is the median over the rounds,
   the spread is their quartiles.
3. A sample is CPU time of this process, so that another process does not count. Nothing that is
   measured here waits for anything.
4. The garbage collector is on, as users have it. Between two rounds it is run outside the samples.
5. Each sample runs in an asyncio task of its own, so that there is a current task and no sample
   finds what another one left behind. The loop's hooks for async generators are on, also where
   requests are stepped by hand.
6. anyio has its backend loaded, as in every application that has sent a file or a stream.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, TypeVar

import anyio.lowlevel

from benchmarks.styles import App, receive, request_scope, send

Arm = TypeVar("Arm")
Driver = Callable[[App, int], Coroutine[Any, Any, float]]  # seconds for that many requests
Samples = Mapping[Arm, list[float]]

clock = time.process_time

WARM_UP = 20  # requests; what is imported or cached by the first ones is in no sample


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
    started = clock()
    for _ in range(requests):
        step(app(request_scope(), receive, send))
    return clock() - started


async def under_asyncio(app: App, requests: int) -> float:
    """
    Time requests that run as a server runs them, each in a task of its own.
    """
    create_task = asyncio.create_task
    started = clock()
    for _ in range(requests):
        await create_task(app(request_scope(), receive, send))
    return clock() - started


async def measure(
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
    await anyio.lowlevel.checkpoint()  # loads the backend
    requests = {arm: await calibrate(app, driver, seconds) for arm, app in arms.items()}
    samples: dict[Arm, list[float]] = {arm: [] for arm in arms}
    order = list(arms)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        gc.collect()
        shuffle(order)
        for arm in order:
            taken = await asyncio.create_task(driver(arms[arm], requests[arm]))
            samples[arm].append(taken / requests[arm])
    return samples


async def calibrate(app: App, driver: Driver, seconds: float) -> int:
    """
    Find how many requests fill one sample.
    """
    await asyncio.create_task(driver(app, WARM_UP))
    requests = 1
    while (taken := await asyncio.create_task(driver(app, requests))) < seconds / 4:
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
    def of(cls, values: list[float]) -> Figure:
        low, _, high = quantiles(values, n=4)
        return cls(median(values), low, high)


def ratio(samples: Samples[Arm], arm: Arm, other: Arm, bare: Arm) -> Figure:
    """
    Compute what the layers of *arm* cost, as a multiple of what those of *other* cost.

    The cost of layers is the time of a request with them less the time of one without.
    """
    rounds = zip(samples[arm], samples[other], samples[bare], strict=True)
    return Figure.of(
        [(with_arm - none) / (with_other - none) for with_arm, with_other, none in rounds]
    )
