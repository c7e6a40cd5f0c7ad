# One scenario, once for each thing that can go wrong at each moment.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Literal, get_args

from ._schedule import Scenario, ScenarioFailure, watching
from ._world import Conditions, Fault, FaultKind, Place, World

# A server of today, one that tells of a disconnect only once, and one that raises from `send`.
_SERVERS: Final[tuple[tuple[str, Literal["repeated", "once"]], ...]] = (
    ("2.3", "repeated"),
    ("2.1", "once"),
    ("2.5", "repeated"),
)
_MOST_SHOWN: Final = 10


def every_fault(
    scenario: Scenario, *, backend: str = "asyncio", only: str | None = None
) -> Counter[str]:
    """
    Run *scenario* once for each fault at each moment.

    It is run once without a fault, to count the moments: each message, before and after it,
    where the server and where the inner app has it; each `World.pause()`; each step that the
    event loop takes. Then it is run once for each of them with a disconnect, with a cancellation
    and, where something is called, with an `InjectedError`. All of that on a server of ASGI 2.3,
    one of 2.1 that tells of a disconnect only once, and one of 2.5. After each request the
    invariants are checked (see `World.run`). Tasks run in a fixed order; time is virtual.

    Args:
        scenario: `async def scenario(world)`, which awaits `world.run(app)`. It is called anew
            for each fault, and must do the same each time. What it asserts has to hold with a
            fault as well; `world.struck` says whether there was one.
        backend: `"asyncio"` or `"trio"`.
        only: The one case to run, as the message of a failure names it.

    Returns:
        How many runs there were, by what went wrong in them.

    Raises:
        ScenarioFailure: The scenario failed at least once; the message names the cases.
    """
    struck: Counter[str] = Counter()
    failures: list[tuple[Conditions, BaseException]] = []
    for world, error in _runs(scenario, backend, only):
        fault = world.conditions.fault
        if error is not None:
            failures.append((world.conditions, error))
        if fault is None or world.struck:
            struck["nothing" if fault is None else fault.kind] += 1
    if failures:
        raise _failed(failures) from failures[0][1]
    if not struck:
        raise ValueError(f"there is no case {only!r} in this scenario")
    return struck


def _runs(
    scenario: Scenario, backend: str, only: str | None
) -> Iterator[tuple[World, BaseException | None]]:
    with watching() as watch:
        for base in _bases(backend):
            calm = World(base)
            error = watch.run(scenario, calm, None)
            if only is None or only == str(base):
                yield calm, error
            if error is not None:
                continue  # its moments are not to be known
            for conditions in _cases(base, calm.counts):
                if only is None or only == str(conditions):
                    world = World(conditions)
                    yield world, watch.run(scenario, world, None)


def _bases(backend: str) -> Iterator[Conditions]:
    for spec, disconnect in _SERVERS:
        yield Conditions(backend=backend, spec=spec, disconnect=disconnect)


def _cases(base: Conditions, counts: dict[Place, int]) -> Iterator[Conditions]:
    for place in get_args(Place):
        for index in range(counts[place]):
            for kind in get_args(FaultKind):
                if kind == "error" and place == "step":
                    continue  # a step is nothing that could raise
                conditions = replace(base, fault=Fault(kind, place, index))
                yield conditions
                if kind == "cancellation" and base.backend == "asyncio":
                    yield replace(conditions, scope=True)


def _failed(failures: list[tuple[Conditions, BaseException]]) -> ScenarioFailure:
    lines = [
        f"{conditions}: {type(error).__name__}: {error}"
        for conditions, error in failures[:_MOST_SHOWN]
    ]
    if len(failures) > _MOST_SHOWN:
        lines.append(f"and {len(failures) - _MOST_SHOWN} more")
    first = failures[0][0]
    lines.append(
        f"Replay one with every_fault(..., backend={first.backend!r}, only={str(first)!r})."
    )
    return ScenarioFailure("\n".join(lines), first)
