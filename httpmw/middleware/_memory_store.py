# What is kept in this process, on asyncio and trio alike.
#
# Rule 1: nothing is awaited between looking and changing, so there are no locks.
# Rule 2: it is bounded, and what still says something is never dropped for something new: else
# who floods it with keys would be free.

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from httpmw import _errors

from ._gcra import RateLevel, RatePolicy, is_count, levels, taken

# How many of the oldest are looked at for each one that comes.
_SWEEP: Final = 2
_SWEEP_WHEN_FULL: Final = 50


class MemoryStore:
    """
    A store in the memory of this process.

    Every worker has its own: where there are four, a limit is four times as high.

    Args:
        max_keys: How many keys it has at most. One that has come to rest makes room for another;
            where none has, all that are new share one.

    Raises:
        TypeError: *max_keys* is no number above 0.
    """

    asyncio_only = False

    def __init__(self, *, max_keys: int = 100_000) -> None:
        if not is_count(max_keys, least=1):
            raise _errors.bad_option(type(self), "max_keys", max_keys, "a number above 0")
        self._max_keys = max_keys
        # Arrival times by key and policy, those first that were looked at longest ago.
        self._times: OrderedDict[tuple[str, str], int] = OrderedDict()

    def _now(self) -> int:
        return time.monotonic_ns() // 1000

    # ------------------------------------------------------------------ rate limits

    def check(self, policies: Sequence[RatePolicy], *, refunds: bool) -> str | None:  # noqa: ARG002
        """
        Say that nothing is missing.
        """
        return None

    async def take(
        self,
        key: str,
        policies: Sequence[RatePolicy],
        cost: int,
        deadline: float = 0,  # noqa: ARG002 - it does not take any time
    ) -> list[RateLevel]:
        """
        Take units, as `RateStore` has it.
        """
        return self.take_now(key, policies, cost)

    async def give_back(
        self,
        key: str,
        policies: Sequence[RatePolicy],
        cost: int,
        deadline: float = 0,  # noqa: ARG002 - as above
    ) -> None:
        """
        Give units back, as `RateStore` has it.
        """
        self.take_now(key, policies, -cost)

    def take_now(self, key: str, policies: Sequence[RatePolicy], cost: int) -> list[RateLevel]:
        """
        Take units without a coroutine; below 0 they are given back.
        """
        now = self._now()
        times = self._times
        names = [(key, policy.id) for policy in policies]
        if names[0] not in times:
            self._sweep(now, _SWEEP)
            if len(times) + len(names) > self._max_keys:
                self._sweep(now, _SWEEP_WHEN_FULL)
                if len(times) + len(names) > self._max_keys:
                    names = [("", policy.id) for policy in policies]  # rule 2
        stored = [times.get(name, 0) for name in names]
        passes, after = taken(policies, stored, now, cost)
        if passes:
            for name, moment in zip(names, after, strict=True):
                if moment > now:
                    times[name] = moment
                else:
                    times.pop(name, None)
        return levels(policies, after, now, cost, passes=passes)

    def _sweep(self, now: int, count: int) -> None:
        times = self._times
        for _ in range(min(count, len(times))):
            name, moment = times.popitem(last=False)
            if moment > now:
                times[name] = moment
