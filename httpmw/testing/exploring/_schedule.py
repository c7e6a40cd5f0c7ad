# Many schedules of one scenario, each decided by its seed.

from __future__ import annotations

import gc
import random
import sys
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, get_args

from . import _loops
from ._world import SPECS, Conditions, Fault, FaultKind, Place, World, is_ours

Scenario: TypeAlias = Callable[[World], Awaitable[Any]]

# Not every scenario pauses; an error can only come from something that is called.
_PLACES: Final[tuple[Place, ...]] = ("app", "app", "server", "server", "step", "step", "pause")
_ERROR_PLACES: Final = tuple(place for place in _PLACES if place != "step")

# Where a fault strikes that strikes in an average request.
_MEAN: Final[dict[Place, float]] = {"app": 4.0, "server": 4.0, "pause": 1.0, "step": 10.0}


class ScenarioFailure(AssertionError):  # noqa: N818 - a test fails
    """
    A scenario failed under conditions that can be made again.

    Attributes:
        seed: The seed of the schedule, None where it was not a random one.
        conditions: The conditions, for reading.
    """

    def __init__(self, message: str, conditions: Conditions, seed: int | None = None) -> None:
        super().__init__(message)
        self.conditions = conditions
        self.seed = seed


def explore(
    scenario: Scenario, *, seeds: int | Iterable[int] = 1000, backend: str = "asyncio"
) -> Counter[str]:
    """
    Run *scenario* in many schedules, each decided by a seed.

    A seed decides in which order tasks run and how long they pause, which ASGI version the
    server speaks, how it tells of a disconnect, and what goes wrong at which moment: nothing,
    the client leaves, the request is cancelled, the app or the server raises. After each request
    the invariants are checked (see `World.run`). Time is virtual.

    Args:
        scenario: `async def scenario(world)`, which awaits `world.run(app)`. It is called anew
            for each seed, and must do the same each time.
        seeds: How many schedules, or the seeds themselves.
        backend: `"asyncio"` or `"trio"`.

    Returns:
        How many schedules there were, by what went wrong in them.

    Raises:
        ScenarioFailure: The scenario failed, from what it failed with. The message has the seed;
            `explore(scenario, seeds=[seed])` replays the schedule exactly, with the same versions
            of Python and of the packages.
    """
    struck: Counter[str] = Counter()
    for seed, world, error in runs(scenario, seeds, backend):
        if error is not None:
            text = (
                f"seed {seed} ({world.conditions}): {type(error).__name__}: {error}\n"
                f"Replay it with explore(..., seeds=[{seed}], backend={backend!r})."
            )
            raise ScenarioFailure(text, world.conditions, seed) from error
        fault = world.conditions.fault
        struck[fault.kind if fault is not None and world.struck else "nothing"] += 1
    return struck


def runs(
    scenario: Scenario, seeds: int | Iterable[int], backend: str
) -> Iterator[tuple[int, World, BaseException | None]]:
    """
    Run *scenario* once for each seed; give it, the world, and what the scenario failed with.
    """
    with watching() as watch:
        for seed in range(seeds) if isinstance(seeds, int) else seeds:
            world = world_of(seed, backend)
            yield seed, world, watch.run(scenario, world, 3 * seed + 2)


def world_of(seed: int, backend: str) -> World:
    """
    Make the world that *seed* decides on.
    """
    rng = random.Random(3 * seed)
    conditions = Conditions(
        backend=backend,
        spec=rng.choice(SPECS),
        disconnect=rng.choice(("repeated", "once")),
        scope=rng.random() < 0.2,  # noqa: PLR2004 - one in five
        fault=_some_fault(rng),
    )
    return World(conditions, seed=3 * seed + 1, pauses=rng)


def _some_fault(rng: random.Random) -> Fault | None:
    if rng.random() < 0.2:  # noqa: PLR2004 - one in five
        return None
    kind: FaultKind = rng.choice(get_args(FaultKind))
    place: Place = rng.choice(_ERROR_PLACES if kind == "error" else _PLACES)
    return Fault(kind, place, int(rng.expovariate(1 / _MEAN[place])))


# ---------------------------------------------------------------------- one run


@contextmanager
def watching() -> Iterator[Watch]:
    """
    Switch the garbage collector to one run at a time, and listen for what it complains about.
    """
    watch = Watch()
    was_enabled = gc.isenabled()
    hook, sys.unraisablehook = sys.unraisablehook, watch.unraisable
    gc.disable()
    gc.freeze()  # so that a collection costs what the run has made, and finds nothing older
    try:
        with warnings.catch_warnings():
            # "coroutine ... was never awaited"
            warnings.simplefilter("error", RuntimeWarning)
            yield watch
    finally:
        sys.unraisablehook = hook
        # All of it, as Python 3.12 begins with objects that are frozen: what the runs have left
        # there would never be freed, nor found by `gc.get_referrers()`.
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class Watch:
    """
    Runs scenarios, and sees what they leave behind.
    """

    def __init__(self) -> None:
        self._complaints: list[str] = []

    def run(self, scenario: Scenario, world: World, seed: int | None) -> BaseException | None:
        """
        Run *scenario* in *world*, in the schedule of *seed*; give what it failed with.
        """
        self._complaints = world._complaints

        async def main() -> None:
            await scenario(world)

        try:
            _loops.run(
                main,
                backend=world.conditions.backend,
                seed=seed,
                on_step=world._step,
                on_left=self._left,
                on_error=self._unheard,
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the failure
            return error
        else:
            return self._left_behind(world)
        finally:
            gc.freeze()  # what is left belongs to caches, modules and the failure

    def _left_behind(self, world: World) -> BaseException | None:
        world._forget()
        gc.collect()
        try:
            world._report()
        except AssertionError as error:
            return error
        return None

    def unraisable(self, event: Any) -> None:
        self._complaints.append(f"{event.err_msg or 'exception ignored'}: {event.exc_value!r}")

    def _left(self, generator: Any) -> None:
        if is_ours(generator):
            self._complaints.append(f"{generator.__qualname__} was left to the garbage collector")

    def _unheard(self, error: BaseException | str) -> None:
        self._complaints.append(f"unheard of: {error!r}")
