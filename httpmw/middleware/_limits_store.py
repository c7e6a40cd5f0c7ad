# What is counted by the package `limits`: memcached and MongoDB.
#
# Rule 1: it is given the storage, and nothing is taken on trust of it: its clients raise what they
# like, and keys are joined there unescaped, so they come hashed.

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final, Literal

from httpmw import _errors

from ._gcra import RateLevel, RatePolicy

_STRATEGIES: Final = {
    "moving-window": "MovingWindowRateLimiter",
    "sliding-window-counter": "SlidingWindowCounterRateLimiter",
    "fixed-window": "FixedWindowRateLimiter",
}


class LimitsStore:
    """
    A store of the package `limits`, for memcached and MongoDB.

    Its rules are those of its strategy: of a `fixed-window` twice the limit passes in one window,
    and nearly that of a `sliding-window-counter`. There is no `burst=` and no `refund=`, what a
    shed request took stays taken, and clients are not told how much is left. Several limits are
    looked at, and then counted one after another: two requests at once may both count in the first
    of them and be refused by the second. A request that was given up is counted.

    Args:
        storage: A storage of `limits.aio.storage`, such as `MemcachedStorage`. Its client runs on
            asyncio.
        strategy: `"moving-window"`, which memcached does not have, `"sliding-window-counter"` or
            `"fixed-window"`.

    Raises:
        TypeError: *storage* is none, or does not have the strategy.
        ImportError: `limits` is not installed.
    """

    asyncio_only = True

    def __init__(
        self,
        storage: Any,
        *,
        strategy: Literal[
            "moving-window", "sliding-window-counter", "fixed-window"
        ] = "moving-window",
    ) -> None:
        try:
            import limits  # noqa: PLC0415 - only who has a storage has it
            from limits.aio import storage as storages  # noqa: PLC0415 - as above
            from limits.aio import strategies  # noqa: PLC0415 - as above
        except ImportError as exc:
            raise _errors.missing_extra(type(self), "limits", "limits") from exc
        if not isinstance(storage, storages.Storage):
            raise _errors.bad_option(
                type(self), "storage", storage, "a storage of `limits.aio.storage`"
            )
        if strategy not in _STRATEGIES:
            raise _errors.bad_option(type(self), "strategy", strategy, f"one of {[*_STRATEGIES]}")
        try:
            self._limiter: Any = getattr(strategies, _STRATEGIES[strategy])(storage)
        except NotImplementedError as exc:
            raise _errors.bad_option(
                type(self), "strategy", strategy, f"one that {type(storage).__name__} has"
            ) from exc
        self._item = limits.RateLimitItemPerSecond

    def check(self, policies: Sequence[RatePolicy], *, refunds: bool) -> str | None:
        """
        Say that it has neither bursts nor refunds.
        """
        if any(policy.burst != policy.quota for policy in policies):
            return "LimitsStore has no `burst=`"
        return "LimitsStore has no `refund=`" if refunds else None

    async def take(
        self,
        key: str,
        policies: Sequence[RatePolicy],
        cost: int,
        deadline: float,  # noqa: ARG002 - there is no way to tell a server
    ) -> list[RateLevel]:
        """
        Take units, one round trip for one limit, as `RateStore` has it.
        """
        items = [self._item(policy.quota, policy.window) for policy in policies]
        refused = [cost > policy.quota for policy in policies]
        if len(items) > 1 and not any(refused):
            refused = [not await self._limiter.test(item, key, cost=cost) for item in items]
        if not any(refused) and cost:
            for place, item in enumerate(items):
                if not await self._limiter.hit(item, key, cost=cost):
                    refused[place] = True
                    break
        return [
            await self._refused(item, key, policy, cost) if is_refused else RateLevel(None, 0, 0)
            for item, policy, is_refused in zip(items, policies, refused, strict=True)
        ]

    async def _refused(self, item: Any, key: str, policy: RatePolicy, cost: int) -> RateLevel:
        if cost > policy.quota:
            return RateLevel(None, policy.window, math.inf)
        stats = await self._limiter.get_window_stats(item, key)
        wait = min(max(stats.reset_time - time.time(), 0.001), policy.window)
        return RateLevel(None, wait, wait)

    async def give_back(
        self,
        key: str,
        policies: Sequence[RatePolicy],
        cost: int,
        deadline: float,
    ) -> None:
        """
        Do nothing: what was taken stays taken.
        """
