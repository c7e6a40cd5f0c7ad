# How many requests may pass: the generic cell rate algorithm (ITU-T I.371), the same in every
# store.
#
# Of each key and policy one number is kept: the moment at which all that was taken is paid back,
# the *theoretical arrival time*. A unit is paid back each `interval`; what is not paid back yet
# must not be more than `room`. So at most burst + t * quota / window units pass in any span t.
#
# Rule 1: whole microseconds, in Python as in Lua, where a number above 2**53 is none: then two
# stores give the same answer to the same history.
# Rule 2: intervals are rounded up, so that the bound holds.
# Rule 3: all policies of a request are looked at first, and then taken together or not at all.

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

SECOND: Final = 1_000_000  # microseconds
_WORDS: Final = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "month": 30 * 86_400,
    "year": 360 * 86_400,
}
# The notation of the package `limits`.
_LIMIT: Final = re.compile(
    rf"\s*(\d+)\s*(?:/|per)\s*(\d*)\s*({'|'.join(_WORDS)})s?\s*", re.ASCII | re.IGNORECASE
)
# Above that an interval of whole microseconds is far from what was meant.
_FASTEST: Final = 100_000  # in a second


class RatePolicy(NamedTuple):
    """
    So many units in so long a time.

    Attributes:
        quota: How many.
        window: In how many seconds.
        burst: How many of them at once, after a while without any.
        interval: How long it takes for one to come back, in microseconds.
        name: What it is called in header fields.
        id: What a store calls it.
    """

    quota: int
    window: int
    burst: int
    interval: int
    name: str
    id: str

    @property
    def room(self) -> int:
        return self.interval * self.burst


class RateLevel(NamedTuple):
    """
    How it stands with one policy after a request.

    Attributes:
        remaining: How many units could be taken at once now; None: the store does not know.
        reset: Until all can be taken again, or until one can where none remains; in seconds.
        wait: How long until a refused request would not be, in seconds; infinite: it never would,
            0: by this policy it was not refused.
    """

    remaining: int | None
    reset: float
    wait: float


class RateStore(Protocol):
    """
    What `RateLimitMiddleware` needs of a store.

    Whatever it raises has the layer do without it. A store whose attribute `asyncio_only` is true
    is never asked on trio. The suite of tests for one is `httpmw.testing.check_rate_store`.
    """

    def check(self, policies: Sequence[RatePolicy], *, refunds: bool) -> str | None:
        """
        Say what it cannot do of what will be asked for, None: nothing; when a layer is made.

        Args:
            policies: All policies of the layer.
            refunds: Whether units will be given back.
        """

    async def take(
        self, key: str, policies: Sequence[RatePolicy], cost: int, deadline: float
    ) -> list[RateLevel]:
        """
        Take *cost* units of each of the *policies*, or nothing where one has not so many left.

        Args:
            key: Whose units they are; at most 64 characters of ASCII.
            policies: The policies.
            cost: How many units, 0 or more.
            deadline: When the layer will have given up, in seconds of `time.monotonic()`. What is
                taken later was taken from somebody who did not get anything.

        Returns:
            How it stands with each policy. All that have a `wait` of 0 have let it pass.
        """

    async def give_back(
        self, key: str, policies: Sequence[RatePolicy], cost: int, deadline: float
    ) -> None:
        """
        Give *cost* units back that were taken; never more than there is room for.
        """


# ---------------------------------------------------------------------- what is written


def policies_of(limit: object, burst: object, name: str) -> tuple[RatePolicy, ...]:
    """
    Read `"100/minute"`, `"10/second; 1000/hour"`, or several such texts.

    Raises:
        ValueError: They say something else; the text says what is expected.
    """
    texts = [limit] if isinstance(limit, str) else limit
    if not isinstance(texts, Sequence) or not texts:
        raise ValueError('a text such as "100/minute", or several of them')
    read: list[tuple[int, int]] = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(  # noqa: TRY004 - the caller says which option it is
                'a text such as "100/minute", or several of them'
            )
        for part in re.split("[;,|]", text):
            match = _LIMIT.fullmatch(part)
            if match is None:
                raise ValueError(
                    '"100/minute", "5 per hour" or "10/10 minutes", with the words'
                    f" {', '.join(_WORDS)}; not {part!r}"
                )
            quota = int(match[1])
            window = (int(match[2]) if match[2] else 1) * _WORDS[match[3].lower()]
            if not quota or not window:
                raise ValueError(f"more than 0 in more than no time, not {part!r}")
            if quota > window * _FASTEST:
                raise ValueError(f"at most {_FASTEST} in a second, not {part!r}")
            read.append((quota, window))
    windows = [window for _, window in read]
    if len(set(windows)) < len(windows):
        raise ValueError("limits with different windows: of two with one window one is enough")
    bursts = [burst] * len(read) if burst is None or isinstance(burst, int) else burst
    if not isinstance(bursts, Sequence) or len(bursts) != len(read):
        raise ValueError(f"one burst for each of the {len(read)} limits")
    return tuple(
        _policy(quota, window, quota if each is None else each, name)
        for (quota, window), each in zip(read, bursts, strict=True)
    )


def is_count(value: object, *, least: int = 0) -> bool:
    """
    Whether *value* is a number of things, and no less than that.
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _policy(quota: int, window: int, burst: Any, name: str) -> RatePolicy:
    if not is_count(burst, least=1):
        raise ValueError("a burst of 1 or more")
    interval = -(-window * SECOND // quota)  # rule 2
    return RatePolicy(
        quota, window, burst, interval, f"{name}-{window}", f"{quota}/{window}/{burst}"
    )


# ---------------------------------------------------------------------- what is computed


def taken(
    policies: Sequence[RatePolicy], stored: Sequence[int], now: int, cost: int
) -> tuple[bool, list[int]]:
    """
    Say whether *cost* units can be taken, and give the arrival times afterwards.

    Args:
        policies: The policies.
        stored: What is kept of each, 0 where nothing is.
        now: The time, in microseconds.
        cost: How many units; below 0 they are given back.
    """
    before, after = [], []
    passes = True
    for policy, kept in zip(policies, stored, strict=True):
        # A clock that was set back leaves times that cannot be. They are mended in a refusal, too:
        # else each one would find them again, and nobody would pass until they are over.
        begin = min(max(kept, now), now + policy.room)
        moment = max(begin + cost * policy.interval, now)
        before.append(begin)
        after.append(moment)
        if cost > 0 and moment - policy.room > now:
            passes = False
    return passes, after if passes else before


def levels(
    policies: Sequence[RatePolicy], after: Sequence[int], now: int, cost: int, *, passes: bool
) -> list[RateLevel]:
    """
    Say how it stands with each policy, from what is kept after a request.
    """
    found = []
    for policy, moment in zip(policies, after, strict=True):
        room = policy.room
        begin = min(max(moment, now), now + room)
        remaining = (now + room - begin) // policy.interval
        wait = 0.0
        if not passes:
            too_early = begin + cost * policy.interval - room - now
            if too_early > 0:
                wait = too_early / SECOND if cost <= policy.burst else math.inf
        left = begin - now if remaining else begin + policy.interval - room - now
        found.append(RateLevel(remaining, left / SECOND, wait))
    return found
