# What is kept in Redis or Valkey, through a client of redis-py's or valkey-py's.
#
# Rule 1: the client is the user's, and is only called: `evalsha` and `eval`. Nothing of it is
# imported, so that any version will do.
# Rule 2: one call of a script for each thing to do, on one key, with the server's time. So it is
# one step, in a cluster too.
# Rule 3: a script that comes too late does nothing, and says what the time is: where only our idea
# of the server's clock was wrong, it is asked again.
# Rule 4: a connection that was lost is tried once more, in the time that is left: idle ones are
# found dead one by one after a restart. What is repeated must do no harm if it was done already:
# units may be taken twice, and then fewer pass; to give them back twice would let more pass, so the
# last call that did is known by a name. Clients repeat calls by themselves, too.

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from httpmw import _errors

from ._gcra import RateLevel, RatePolicy, levels
from ._idempotency_store import Claim, ClaimState
from ._stores import Clock, StoreError

# Times in whole microseconds, as text: `tostring` of Lua 5.1 has 14 digits.
_HEAD: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if now > tonumber(ARGV[1]) then return {-1, now} end
local function text(number) return string.format('%.0f', number) end
"""

# As `_gcra.taken` has it. A key is a hash with the arrival time of each policy, by its id: several
# layers and dependencies may have one key with policies of their own; and `back`, the call that has
# given back last. ARGV: last moment, cost, the name of a call that gives back, then id, interval
# and room of each policy. Gives whether it passes, the time, and the arrival times afterwards.
_TAKE: Final = (
    _HEAD
    + """
local cost = tonumber(ARGV[2])
local gives_back = cost < 0
if gives_back and redis.call('HGET', KEYS[1], 'back') == ARGV[3] then
    cost, gives_back = 0, false
end
local fields = {}
for i = 4, #ARGV, 3 do fields[#fields + 1] = ARGV[i] end
local stored = redis.call('HMGET', KEYS[1], unpack(fields))
local passes, before, after = 1, {}, {}
for i, kept in ipairs(stored) do
    local interval, room = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
    before[i] = math.min(math.max(tonumber(kept or 0), now), now + room)
    after[i] = math.max(before[i] + cost * interval, now)
    if cost > 0 and after[i] - room > now then passes = 0 end
end
if passes == 0 then after = before end
local last, changed, gone = now, {}, {}
for i, moment in ipairs(after) do
    last = math.max(last, moment)
    if moment == now then
        if stored[i] then gone[#gone + 1] = fields[i] end
    elseif text(moment) ~= stored[i] then
        changed[#changed + 1] = fields[i]
        changed[#changed + 1] = text(moment)
    end
end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
if #changed > 0 then
    redis.call('HSET', KEYS[1], unpack(changed))
    -- Other policies may be in it, of which this call does not know: it is never kept for less.
    local left = math.ceil((last - now) / 1000) + 1
    if redis.call('PTTL', KEYS[1]) < left then redis.call('PEXPIRE', KEYS[1], text(left)) end
end
if gives_back then
    redis.call('HDEL', KEYS[1], 'back')
    if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'back', ARGV[3]) end
end
return {passes, now, unpack(after)}
"""
)


# A key is a hash: f, its fingerprint; c, the claim that has it; t, its token; l, when the lease
# ends; a, the answer. ARGV: last moment, claim, fingerprint, lease, expiry (ms), 1 to run again.
_CLAIM: Final = (
    _HEAD
    + """
local claim, fingerprint = ARGV[2], ARGV[3]
local kept = redis.call('HMGET', KEYS[1], 'f', 'c', 't', 'l', 'a')
local token = now
if kept[2] then
    if kept[1] ~= fingerprint then return {5, now} end
    if kept[5] then return {2, now, 0, kept[5]} end
    if kept[2] == claim then
        token = tonumber(kept[3])
    elseif tonumber(kept[4]) > now then
        return {3, now}
    elseif ARGV[6] ~= '1' then
        return {4, now}
    else
        token = math.max(now, tonumber(kept[3]) + 1)
    end
end
redis.call('HSET', KEYS[1], 'f', fingerprint, 'c', claim, 't', text(token),
    'l', text(now + tonumber(ARGV[4])))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, now, token}
"""
)
# ARGV: last moment, claim, lease.
_RENEW: Final = (
    _HEAD
    + """
local kept = redis.call('HMGET', KEYS[1], 'c', 'a')
if kept[1] ~= ARGV[2] or kept[2] then return {0, now} end
local lease = tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'l', text(now + lease))
if redis.call('PTTL', KEYS[1]) < lease / 1000 then
    redis.call('PEXPIRE', KEYS[1], text(math.ceil(lease / 1000)))
end
return {1, now}
"""
)
# ARGV: last moment, claim, answer, expiry (ms).
_COMPLETE: Final = (
    _HEAD
    + """
if redis.call('HGET', KEYS[1], 'c') ~= ARGV[2] then return {0, now} end
redis.call('HSET', KEYS[1], 'a', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {1, now}
"""
)
# ARGV: last moment, claim.
_RELEASE: Final = (
    _HEAD
    + """
if redis.call('HGET', KEYS[1], 'c') == ARGV[2] then redis.call('DEL', KEYS[1]) end
return {1, now}
"""
)
# In the order of what `_CLAIM` gives.
_STATES: Final[tuple[ClaimState, ...]] = ("mine", "done", "running", "unknown", "other")


class Script:
    # A script and the name that a server has for it.

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


TAKE: Final = Script(_TAKE)
CLAIM: Final = Script(_CLAIM)
RENEW: Final = Script(_RENEW)
COMPLETE: Final = Script(_COMPLETE)
RELEASE: Final = Script(_RELEASE)


# A number that Lua has exactly.
_FOREVER: Final = 2**53


class RedisStore:
    """
    A store in Redis (5 or later) or Valkey, for any number of workers.

    Args:
        client: A `redis.asyncio.Redis` (redis-py 5 or later) or `valkey.asyncio.Valkey` (6 or
            later). It stays yours: you make it, with its time limits and its pool, and you close
            it. It runs on asyncio.
        prefix: What the names of all keys begin with.

    Raises:
        TypeError: *client* is no such client, or *prefix* is no text.

    A server that drops keys when its memory is full (`maxmemory-policy allkeys-*`), or that is
    replaced by a replica, forgets what it had acknowledged.
    """

    asyncio_only = True

    def __init__(self, client: Any, *, prefix: str = "httpmw:") -> None:
        module = type(client).__module__.partition(".")[0]
        if not all(callable(getattr(client, name, None)) for name in ("evalsha", "eval")):
            raise _errors.bad_option(
                type(self), "client", client, "a `redis.asyncio.Redis` or a `valkey.asyncio.Valkey`"
            )
        if module in ("redis", "valkey") and ".asyncio" not in type(client).__module__:
            raise _errors.bad_option(
                type(self), "client", client, f"of `{module}.asyncio`: this one blocks the loop"
            )
        if not isinstance(prefix, str):
            raise _errors.bad_option(type(self), "prefix", prefix, "a text")
        self._client = client
        self._prefix = prefix
        self._clock = Clock()

    # ------------------------------------------------------------------ rate limits

    def check(self, policies: Sequence[RatePolicy], *, refunds: bool) -> str | None:  # noqa: ARG002
        """
        Say that nothing is missing.
        """
        return None

    async def take(
        self, key: str, policies: Sequence[RatePolicy], cost: int, deadline: float
    ) -> list[RateLevel]:
        """
        Take units in one round trip, as `RateStore` has it.
        """
        arguments = [str(cost), uuid4().hex if cost < 0 else ""]
        for policy in policies:
            arguments += policy.id, str(policy.interval), str(policy.room)
        reply = await self._run(TAKE, f"rate:{key}", arguments, deadline)
        passes, now, *after = (int(each) for each in reply)
        return levels(policies, after, now, cost, passes=bool(passes))

    async def give_back(
        self, key: str, policies: Sequence[RatePolicy], cost: int, deadline: float
    ) -> None:
        """
        Give units back in one round trip, as `RateStore` has it.
        """
        await self.take(key, policies, -cost, deadline)

    # ------------------------------------------------------------------ idempotency
    #
    # What is done for a claim that nobody else has had since is right at any time: only the claim
    # itself has a last moment.

    async def claim(
        self,
        key: str,
        claim: str,
        fingerprint: str,
        *,
        lease: float,
        expires: float,
        rerun: bool,
        deadline: float,
    ) -> Claim:
        """
        Claim a key in one round trip, as `IdempotencyStore` has it.
        """
        kept = _milli(max(expires, lease))  # what runs is not forgotten
        arguments = [claim, fingerprint, _micro(lease), kept, "1" if rerun else "0"]
        reply = await self._run(CLAIM, f"key:{key}", arguments, deadline)
        state = _STATES[int(reply[0]) - 1]
        token = int(reply[2]) if state == "mine" else 0
        answer = reply[3] if state == "done" else ""
        return Claim(state, token, answer if isinstance(answer, str) else answer.decode("ascii"))

    async def renew(self, key: str, claim: str, *, lease: float, deadline: float) -> bool:
        """
        Hold a key for longer, as `IdempotencyStore` has it.
        """
        reply = await self._run(RENEW, f"key:{key}", [claim, _micro(lease)], deadline, late=True)
        return bool(int(reply[0]))

    async def complete(
        self, key: str, claim: str, answer: str, *, expires: float, deadline: float
    ) -> bool:
        """
        Store an answer in one round trip, as `IdempotencyStore` has it.
        """
        arguments = [claim, answer, _milli(expires)]
        reply = await self._run(COMPLETE, f"key:{key}", arguments, deadline, late=True)
        return bool(int(reply[0]))

    async def release(self, key: str, claim: str, *, deadline: float) -> None:
        """
        Forget a key, as `IdempotencyStore` has it.
        """
        await self._run(RELEASE, f"key:{key}", [claim], deadline, late=True)

    def abandon(self, key: str, claim: str) -> None:
        """
        Do nothing: the lease ends.
        """

    # ------------------------------------------------------------------ one script

    async def _run(
        self,
        script: Script,
        name: str,
        arguments: Sequence[str],
        deadline: float,
        *,
        late: bool = False,
    ) -> Any:
        """
        Run a script; *late*, whenever the server does it.
        """
        lost = refused = False
        while True:
            last = _FOREVER if late else int(self._clock.at(deadline) * 1_000_000)
            asked = time.monotonic()
            try:
                reply = await self._call(script, self._prefix + name, str(last), *arguments)
            except Exception as exc:
                if lost or not _is_lost(exc):
                    raise
                lost = True  # rule 4
                continue
            answered = time.monotonic()
            self._clock.learn(asked, answered, int(reply[1]) / 1_000_000)
            if int(reply[0]) != -1:
                return reply
            if refused or answered >= deadline:
                raise StoreError("The server did it too late, that is, not at all.")
            refused = True  # rule 3

    async def _call(self, script: Script, *arguments: str) -> Any:
        client = self._client
        try:
            return await client.evalsha(script.sha, 1, *arguments)
        except Exception as exc:
            if not _is_named(exc, "NoScriptError"):
                raise
        # A server that has been restarted, or flushed of its scripts.
        return await client.eval(script.text, 1, *arguments)


def _micro(seconds: float) -> str:
    return str(int(seconds * 1_000_000))


def _milli(seconds: float) -> str:
    return str(max(int(seconds * 1000), 1))


def _is_lost(exc: Exception) -> bool:
    """
    Whether it is the connection that failed; the exceptions of redis-py are none of Python's.
    """
    return isinstance(exc, OSError | EOFError) or _is_named(exc, "ConnectionError")


def _is_named(exc: Exception, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(exc).__mro__)
