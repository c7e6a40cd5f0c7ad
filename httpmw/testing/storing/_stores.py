# What a store has to do, asked of a real one.
#
# Rule 1: each question has keys of its own, so that a store can be asked twice.
# Rule 2: nothing is asked about time but what its deadline means.

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import anyio
import anyio.lowlevel

from httpmw._context import current_task
from httpmw.middleware._gcra import RateLevel, RatePolicy, RateStore, policies_of
from httpmw.middleware._idempotency_store import Claim, IdempotencyStore

# Enough for a client to connect, to send and to receive, each with a few turns of the loop.
_TURNS: Final = 30
_SOON: Final = 5.0  # seconds
_AT_ONCE: Final = 12
_HOUR: Final = 3600


def _deadline() -> float:
    return time.monotonic() + _SOON


def _expect(question: str, found: object, expected: object = True) -> None:  # noqa: FBT002 - as it reads
    if found != expected:
        raise AssertionError(f"{question}: {found!r}, and it should be {expected!r}")


async def check_rate_store(
    store: RateStore, *, refunds: bool = True, exact: bool = True, fenced: bool = True
) -> None:
    """
    See whether a store does what `RateStore` says, also where calls are cancelled at every await.

    It asks under keys that nobody else has, and takes about a second.

    Args:
        store: The store. It is called as often at once as its client has to bear with.
        refunds: Whether it can give units back, and has bursts.
        exact: Whether it takes units of all limits or of none, and says how many are left.
        fenced: Whether it does nothing for a call that comes after its deadline.

    Raises:
        AssertionError: It does not; with what was asked, what it did, and what it should have done.
    """

    def policies(limit: str) -> tuple[RatePolicy, ...]:
        return policies_of(limit, None, "checked")

    async def passes(key: str, limit: str, cost: int = 1) -> bool:
        levels = await store.take(key, policies(limit), cost, _deadline())
        return not any(level.wait for level in levels)

    one = policies("3/hour")
    key = uuid4().hex
    found = [await passes(key, "3/hour") for _ in range(4)]
    _expect("four requests at 3 an hour", found, [True, True, True, False])
    _expect("another key passes", await passes(uuid4().hex, "3/hour"))
    refused = (await store.take(key, one, 1, _deadline()))[0]
    _expect("the wait of a refused one is in the hour", 0 < refused.wait <= _HOUR)
    _expect("more at once than there can be is refused", not await passes(uuid4().hex, "3/hour", 4))

    key = uuid4().hex
    at_once: list[bool] = []

    async def take() -> None:
        at_once.append(await passes(key, f"{_AT_ONCE // 2}/hour"))

    async with anyio.create_task_group() as group:
        for _ in range(_AT_ONCE):
            group.start_soon(take)
    _expect(f"how many of {_AT_ONCE} at once pass", at_once.count(True), _AT_ONCE // 2)

    if exact:
        await _check_exact(store, policies, passes)
    if refunds:
        key = uuid4().hex
        await store.take(key, one, 3, _deadline())
        await store.give_back(key, one, 2, _deadline())
        _expect("what was given back", await _left(store, key, one), 2)
        await store.give_back(key, one, 50, _deadline())
        _expect("what was given back too much", await _left(store, key, one), 3)
    if fenced:
        key = uuid4().hex
        with suppress(Exception):  # it may say so as it likes
            await store.take(key, one, 1, time.monotonic() - 1)
        _expect("what is left after a call that came too late", await _left(store, key, one), 3)
    await _check_cancelled(store, policies)


async def _check_exact(
    store: RateStore,
    policies: Callable[[str], tuple[RatePolicy, ...]],
    passes: Callable[..., Awaitable[bool]],
) -> None:
    key = uuid4().hex
    both = "2/hour; 9/day"
    found = [await passes(key, both) for _ in range(4)]
    _expect("four requests at 2 an hour and 9 a day", found, [True, True, False, False])
    left = [level.remaining for level in await store.take(key, policies(both), 0, _deadline())]
    _expect("what is left when two were refused", left, [0, 7])


async def _left(store: RateStore, key: str, policies: tuple[RatePolicy, ...]) -> int | None:
    levels: list[RateLevel] = await store.take(key, policies, 0, _deadline())
    return levels[0].remaining


async def _check_cancelled(
    store: RateStore, policies: Callable[[str], tuple[RatePolicy, ...]]
) -> None:
    """
    Cancel calls at every await, each followed by one of another key: nobody gets another's answer.
    """
    many = policies("50/hour")
    one, other = uuid4().hex, uuid4().hex
    await store.take(one, many, 10, _deadline())
    await store.take(other, many, 30, _deadline())
    expected = await _standing(store, other, many)
    for turns in range(_TURNS):
        await cancelled_after(turns, lambda: store.take(one, many, 0, _deadline()))
        _expect(
            f"another key, after a call that was cancelled at turn {turns}",
            await _standing(store, other, many),
            expected,
        )


async def _standing(
    store: RateStore, key: str, policies: tuple[RatePolicy, ...]
) -> tuple[int | None, bool]:
    level = (await store.take(key, policies, 0, _deadline()))[0]
    return level.remaining, bool(level.wait)


async def cancelled_after(turns: int, make: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """
    Cancel a call after so many turns of the event loop; True where it was over by then.
    """
    if isinstance(current_task(), asyncio.Task):
        task = asyncio.ensure_future(make())
        for _ in range(turns):
            await asyncio.sleep(0)
        over = task.done()
        # A client may lose a cancellation.
        while not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=0.02)
        if not task.cancelled():
            task.exception()
        return over
    over = False

    async def run() -> None:
        nonlocal over
        await make()
        over = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return over


async def check_idempotency_store(
    store: IdempotencyStore, *, leases: bool = True, fenced: bool = True
) -> None:
    """
    See whether a store does what `IdempotencyStore` says, also where calls are cancelled.

    Args:
        store: The store.
        leases: Whether leases end by themselves; else what was abandoned is unknown at once.
        fenced: Whether it claims nothing for a call that comes after its deadline.

    Raises:
        AssertionError: It does not; with what was asked, what it did, and what it should have done.
    """

    async def claim(key: str, who: str, *, of: str = "f", late: bool = False, **how: Any) -> Claim:
        how = {"lease": 60, "expires": 600, "rerun": True, **how}
        return await store.claim(
            key,
            who,
            of,
            **how,
            deadline=time.monotonic() - 1 if late else _deadline(),
        )

    async def states(key: str, *others: str, **options: Any) -> list[str]:
        return [(await claim(key, each, **options)).state for each in others]

    key = uuid4().hex
    first = await claim(key, "a")
    _expect("a first claim", first.state, "mine")
    again = await claim(key, "a")
    _expect("the same claim again", again, first)
    _expect("claims of others", await states(key, "b", "c"), ["running", "running"])
    _expect("a claim for another request", await states(key, "b", of="g"), ["other"])
    renewed = await store.renew(key, "a", lease=60, deadline=_deadline())
    _expect("a lease that is renewed", renewed)
    renewed = await store.renew(key, "b", lease=60, deadline=_deadline())
    _expect("a lease of another's is not renewed", not renewed)
    answer = "an answer in ASCII " * 100
    for who, expected in (("b", False), ("a", True)):
        done = await store.complete(key, who, answer, expires=600, deadline=_deadline())
        _expect(f"an answer of {who}, whose key is a's", done, expected)
    _expect("a claim of what is answered", await claim(key, "b"), Claim("done", 0, answer))
    _expect("one for another request", await states(key, "b", of="g"), ["other"])

    key = uuid4().hex
    await claim(key, "a")
    await store.release(key, "b", deadline=_deadline())
    _expect("a claim of what another has released", await states(key, "c"), ["running"])
    await store.release(key, "a", deadline=_deadline())
    _expect("a claim of what was released", await states(key, "c"), ["mine"])

    await _check_unknown(store, claim, leases=leases)
    key = uuid4().hex
    won: list[str] = []

    async def try_to() -> None:
        won.append((await claim(key, uuid4().hex)).state)

    async with anyio.create_task_group() as group:
        for _ in range(_AT_ONCE):
            group.start_soon(try_to)
    _expect(f"how many of {_AT_ONCE} claims at once are given", won.count("mine"), 1)
    if fenced:
        key = uuid4().hex
        with suppress(Exception):  # it may say so as it likes
            await claim(key, "a", late=True)
        _expect("a claim after one that came too late", await states(key, "b"), ["mine"])
    await _check_claims_cancelled(store, claim)


async def _check_unknown(store: IdempotencyStore, claim: Any, *, leases: bool) -> None:
    key = uuid4().hex
    first = await claim(key, "a", lease=0.05)
    store.abandon(key, "a")
    if leases:
        await anyio.sleep(0.1)
    unknown = await claim(key, "b", rerun=False)
    _expect("a claim of a run that has ended without an answer", unknown.state, "unknown")
    second = await claim(key, "b")
    _expect("one that may run again", second.state, "mine")
    _expect("its token is greater", second.token > first.token)
    late = await store.complete(key, "a", "late", expires=600, deadline=_deadline())
    _expect("an answer of the run before is not taken", not late)
    if leases:
        await store.renew(key, "b", lease=0.05, deadline=_deadline())
        await anyio.sleep(0.1)
        _expect("a lease that was renewed ends as well", (await claim(key, "c")).state, "mine")


async def _check_claims_cancelled(store: IdempotencyStore, claim: Any) -> None:
    """
    Cancel claims at every await, each followed by one of another key: nobody gets another's answer.
    """
    one, other = uuid4().hex, uuid4().hex
    for key, answer in ((one, "of one"), (other, "of the other")):
        await claim(key, "a")
        await store.complete(key, "a", answer, expires=600, deadline=_deadline())
    for turns in range(_TURNS):
        await cancelled_after(turns, lambda: claim(one, "b"))
        _expect(
            f"another key, after a claim that was cancelled at turn {turns}",
            await claim(other, "b"),
            Claim("done", 0, "of the other"),
        )
