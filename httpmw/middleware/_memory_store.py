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

from ._gcra import SECOND, RateLevel, RatePolicy, is_count, levels, taken
from ._idempotency_store import Claim
from ._stores import StoreError

# How many of the oldest are looked at for each one that comes.
_SWEEP: Final = 2
_SWEEP_WHEN_FULL: Final = 50


class _Record:
    # What is known of a key of idempotency.

    __slots__ = ("answer", "claim", "expires", "fingerprint", "is_unknown", "token")

    def __init__(self, claim: str, fingerprint: str, token: int, expires: int) -> None:
        self.claim = claim
        self.fingerprint = fingerprint
        self.token = token
        self.expires = expires
        self.answer: str | None = None
        self.is_unknown = False

    def is_over(self, now: int) -> bool:
        # What runs is not forgotten.
        is_running = self.answer is None and not self.is_unknown
        return not is_running and self.expires <= now


class MemoryStore:
    """
    A store in the memory of this process.

    Every worker has its own: where there are four, a limit is four times as high.

    Args:
        max_keys: How many keys of rate limits, and how many of idempotency, it has at most. A
            client that has come to rest makes room for another; where none has, all that are new
            share one. Keys of idempotency that do not find room are refused.
        max_bytes: How many bytes of answers it has at most; then new keys are refused until some
            have expired.

    Raises:
        TypeError: One of them is no number above 0.
    """

    asyncio_only = False

    def __init__(self, *, max_keys: int = 100_000, max_bytes: int = 64 * 1024 * 1024) -> None:
        for option, value in (("max_keys", max_keys), ("max_bytes", max_bytes)):
            if not is_count(value, least=1):
                raise _errors.bad_option(type(self), option, value, "a number above 0")
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        # Arrival times by key and policy, those first that were looked at longest ago.
        self._times: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._bytes = 0
        self._token = 0

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
        # Of one policy there may be nothing left to say, while another refuses.
        if not any(map(times.__contains__, names)):
            self._sweep(now, _SWEEP)
            if len(times) + len(names) > self._max_keys:
                self._sweep(now, _SWEEP_WHEN_FULL)
                if len(times) + len(names) > self._max_keys:
                    names = [("", policy.id) for policy in policies]  # rule 2
        stored = [times.get(name, 0) for name in names]
        passes, after = taken(policies, stored, now, cost)
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

    # ------------------------------------------------------------------ idempotency
    #
    # Of a run in this process it is known when it ends: there are no leases.

    async def claim(
        self,
        key: str,
        claim: str,
        fingerprint: str,
        *,
        lease: float = 0,  # noqa: ARG002 - see above
        expires: float,
        rerun: bool,
        deadline: float = 0,  # noqa: ARG002 - it does not take any time
    ) -> Claim:
        """
        Claim a key, as `IdempotencyStore` has it.
        """
        now = self._now()
        records = self._records
        self._sweep_records(now, _SWEEP)
        record = records.get(key)
        if record is not None and record.is_over(now):
            self._forget(key)
            record = None
        if record is None:
            if self._is_full():
                self._sweep_records(now, _SWEEP_WHEN_FULL)
                if self._is_full():
                    raise StoreError("MemoryStore is full.")
            record = records[key] = _Record(claim, fingerprint, self._next_token(), 0)
        elif record.fingerprint != fingerprint:
            return Claim("other")
        elif record.answer is not None:
            return Claim("done", answer=record.answer)
        elif record.is_unknown:
            if not rerun:
                return Claim("unknown")
            record.token = self._next_token()
            record.claim = claim
            record.is_unknown = False
        elif record.claim != claim:
            return Claim("running")
        record.expires = now + int(expires * SECOND)
        records.move_to_end(key)
        return Claim("mine", record.token)

    async def renew(
        self,
        key: str,
        claim: str,
        *,
        lease: float = 0,  # noqa: ARG002 - see above
        deadline: float = 0,  # noqa: ARG002 - see above
    ) -> bool:
        """
        Say whether a key is still this claim's.
        """
        record = self._records.get(key)
        return record is not None and record.claim == claim and record.answer is None

    async def complete(
        self,
        key: str,
        claim: str,
        answer: str,
        *,
        expires: float,
        deadline: float = 0,  # noqa: ARG002 - see above
    ) -> bool:
        """
        Store an answer, as `IdempotencyStore` has it.
        """
        record = self._records.get(key)
        if record is None or record.claim != claim:
            return False
        self._bytes += len(answer) - len(record.answer or "")
        record.answer = answer
        record.expires = self._now() + int(expires * SECOND)
        self._records.move_to_end(key)
        return True

    async def release(self, key: str, claim: str, *, deadline: float = 0) -> None:  # noqa: ARG002
        """
        Forget a key that is still this claim's.
        """
        record = self._records.get(key)
        if record is not None and record.claim == claim:
            self._forget(key)

    def abandon(self, key: str, claim: str) -> None:
        """
        Take note that a run has ended without an answer.
        """
        record = self._records.get(key)
        if record is not None and record.claim == claim and record.answer is None:
            record.is_unknown = True

    def _next_token(self) -> int:
        """
        Give a greater number than ever before, also in the processes before this one.
        """
        self._token = max(self._token + 1, time.time_ns() // 1000)
        return self._token

    def _is_full(self) -> bool:
        return len(self._records) >= self._max_keys or self._bytes >= self._max_bytes

    def _sweep_records(self, now: int, count: int) -> None:
        records = self._records
        for _ in range(min(count, len(records))):
            key = next(iter(records))
            if records[key].is_over(now):
                self._forget(key)
            else:
                records.move_to_end(key)

    def _forget(self, key: str) -> None:
        record = self._records.pop(key)
        self._bytes -= len(record.answer or "")
