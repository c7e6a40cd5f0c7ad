"""The stores that workers share: real servers, and what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from fastapi import Depends, FastAPI
from starlette.responses import PlainTextResponse

from httpmw.middleware import (
    IdempotencyMiddleware,
    LimitsStore,
    MemoryStore,
    PostgresStore,
    RateLimitMiddleware,
    RedisStore,
    rate_limit,
)
from httpmw.middleware._gcra import policies_of
from httpmw.testing import check_idempotency_store, check_rate_store
from httpmw.testing.storing._stores import cancelled_after
from tests.harness import request
from tests.stores import StoreServer, client_of, dsn, serving, serving_postgresql

ok = PlainTextResponse("ok")
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
of_both = pytest.mark.parametrize("name", ["redis", "valkey"])


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, StoreServer]]:
    """Servers for all tests that do them no harm; each starts with its first test."""
    started: dict[str, StoreServer] = {}
    contexts = []

    def start(name: str) -> StoreServer:
        if name not in started:
            context = serving(name)
            started[name] = context.__enter__()
            contexts.append(context)
        return started[name]

    yield type("Servers", (dict,), {"__missing__": lambda self, name: start(name)})()
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.fixture
def own(request: pytest.FixtureRequest, name: str) -> Iterator[StoreServer]:
    """A server that the test may do anything to."""
    with serving(name) as server:
        yield server


@pytest.fixture
async def connect() -> AsyncIterator[Any]:
    """Make clients, and close them in the end."""
    clients = []

    def connect(name: str, port: int, **options: Any) -> Any:
        clients.append(client_of(name, port, **options))
        return clients[-1]

    yield connect
    for client in clients:
        await client.connection_pool.disconnect()


# -- what each has to do ---------------------------------------------------------------------


async def test_memory() -> None:
    """`MemoryStore` does what a store has to; it takes no time, so nothing comes late."""
    await check_rate_store(MemoryStore(), fenced=False)


@on_asyncio
@of_both
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}])
async def test_redis(name: str, servers: Any, options: Any, connect: Any) -> None:
    """`RedisStore` does, with Redis and Valkey, whatever its client makes of replies."""
    client = connect(name, servers[name].port, **options)
    await check_rate_store(RedisStore(client))


@on_asyncio
@pytest.mark.parametrize("strategy", ["fixed-window", "moving-window", "sliding-window-counter"])
async def test_limits(strategy: Any) -> None:
    """`LimitsStore` does, as far as it says."""
    from limits.aio.storage import MemoryStorage

    store = LimitsStore(MemoryStorage(), strategy=strategy)
    await check_rate_store(store, refunds=False, exact=False, fenced=False)


@on_asyncio
async def test_memcached(servers: Any) -> None:
    """And with a server behind it."""
    from limits.aio.storage import MemcachedStorage

    storage = MemcachedStorage(f"async+memcached://127.0.0.1:{servers['memcached'].port}")
    store = LimitsStore(storage, strategy="fixed-window")
    await check_rate_store(store, refunds=False, exact=False, fenced=False)


class Wrong(MemoryStore):
    """A store with a fault in one place."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    async def take(self, key: str, policies: Any, cost: int, deadline: float = 0) -> Any:
        if self.fault == "keys":
            key = "all"
        if self.fault == "one by one":
            return [self.take_now(key, [policy], cost)[0] for policy in policies]
        if self.fault == "pause" and cost:
            level = self.take_now(key, policies, 0)[0]
            await asyncio.sleep(0)
            if level.remaining is not None and level.remaining >= cost:
                self.take_now(key, policies, cost)
                return [level]
        return self.take_now(key, policies, cost)

    async def give_back(self, key: str, policies: Any, cost: int, deadline: float = 0) -> None:
        if self.fault != "refunds":
            self.take_now(key, policies, -cost)


@on_asyncio
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("keys", "another key passes"),
        ("one by one", "what is left when two were refused"),
        ("pause", "at once pass"),
        ("refunds", "what was given back"),
        ("none", "a call that came too late"),
    ],
)
async def test_the_suite_finds_faults(fault: str, words: str) -> None:
    """A store that mixes keys, takes one by one, pauses, keeps or is late is told so."""
    with pytest.raises(AssertionError, match=words):
        await check_rate_store(Wrong(fault))


@on_asyncio
async def test_the_suite_finds_answers_of_others() -> None:
    """A pool that hands on a connection whose answer was not read yet."""

    class Pool(MemoryStore):
        unread: Any = None

        async def take(self, key: str, policies: Any, cost: int, deadline: float = 0) -> Any:
            answer = self.take_now(key, policies, cost)
            unread, self.unread = self.unread, None
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.unread = answer
                raise
            return answer if unread is None else unread

    with pytest.raises(AssertionError, match="another key, after a call that was cancelled"):
        await check_rate_store(Pool(), fenced=False)


# -- idempotency -----------------------------------------------------------------------------


async def test_keys_in_memory() -> None:
    """`MemoryStore` knows when a run ends, and has no leases."""
    await check_idempotency_store(MemoryStore(), leases=False, fenced=False)


@on_asyncio
@of_both
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}])
async def test_keys_in_redis(name: str, servers: Any, options: Any, connect: Any) -> None:
    """`RedisStore` does what a store of keys has to."""
    client = connect(name, servers[name].port, **options)
    await check_idempotency_store(RedisStore(client))


@on_asyncio
@of_both
async def test_a_lease_that_is_renewed_outlives_expires(
    name: str, servers: Any, connect: Any
) -> None:
    """What runs is not forgotten, however short `expires` is."""
    client = connect(name, servers[name].port)
    store, last = RedisStore(client, prefix="short:"), time.monotonic() + 9
    await store.claim("k", "a", "f", lease=60, expires=0.001, rerun=True, deadline=last)
    assert await client.pttl("short:key:k") > 50_000
    await client.pexpire("short:key:k", 10_000)
    await store.renew("k", "a", lease=60, deadline=last)
    assert await client.pttl("short:key:k") > 50_000


@pytest.fixture(scope="module")
def postgresql() -> Iterator[int]:
    """The port of a server of PostgreSQL."""
    with serving_postgresql() as port:
        yield port


@asynccontextmanager
async def pool_of(kind: str, port: int, **options: Any) -> AsyncIterator[Any]:
    if kind == "asyncpg":
        import asyncpg

        async with asyncpg.create_pool(dsn(port), min_size=1, max_size=5, **options) as pool:
            yield pool
    else:
        from psycopg_pool import AsyncConnectionPool

        pool = AsyncConnectionPool(dsn(port), min_size=1, max_size=5, open=False, **options)
        async with pool:
            yield pool


@on_asyncio
@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
async def test_keys_in_postgresql(kind: str, postgresql: int) -> None:
    """`PostgresStore` does, with both pools, and leaves their connections as they were."""
    async with pool_of(kind, postgresql) as pool:
        store = PostgresStore(pool, table=f"keys_{kind}")
        await store.create_table()
        await store.create_table()
        await check_idempotency_store(store)
        await store.purge()
        if kind == "psycopg":
            async with pool.connection() as connection:
                assert not connection.autocommit


@on_asyncio
@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
async def test_expired_keys_in_postgresql(kind: str, postgresql: int) -> None:
    """What has expired is as if it were not there, and is deleted by a purge."""
    async with pool_of(kind, postgresql) as pool:
        store = PostgresStore(pool, table=f"public.expired_{kind}")
        await store.create_table()
        given: dict[str, Any] = {"lease": 60, "rerun": False, "deadline": time.monotonic() + 9}
        assert (await store.claim("k", "a", "f", expires=0.05, **given)).state == "mine"
        await store.complete("k", "a", "answer", expires=0.05, deadline=time.monotonic() + 9)
        await asyncio.sleep(0.1)
        assert (await store.claim("k", "b", "g", expires=0.05, **given)).state == "mine"
        await store.complete("k", "b", "answer", expires=0.05, deadline=time.monotonic() + 9)
        await asyncio.sleep(0.1)
        await store.purge()
        count = await store._run("SELECT count(*) FROM {table}")
        assert count[0] == 0


@on_asyncio
async def test_a_row_whose_lease_is_renewed_outlives_expires(postgresql: int) -> None:
    """What runs is not forgotten, however short `expires` is."""
    async with pool_of("psycopg", postgresql) as pool:
        store, last = PostgresStore(pool, table="short"), time.monotonic() + 9
        await store.create_table()
        await store.claim("k", "a", "f", lease=1, expires=0.001, rerun=True, deadline=last)
        await store.renew("k", "a", lease=60, deadline=last)
        left = await store._run(
            "SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM {table}"
        )
        assert left[0] > 50


@on_asyncio
@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
async def test_transactions_that_are_serializable_by_default(kind: str, postgresql: int) -> None:
    """Of claims at once one is given, and none fails."""
    settings = "-c default_transaction_isolation=serializable"
    options: dict[str, Any] = (
        {"kwargs": {"options": settings}}
        if kind == "psycopg"
        else {"server_settings": {"default_transaction_isolation": "serializable"}}
    )
    async with pool_of(kind, postgresql, **options) as pool:
        store = PostgresStore(pool, table=f"serial_{kind}")
        await store.create_table()
        given: dict[str, Any] = {"lease": 60, "expires": 60, "rerun": True}
        claims = await asyncio.gather(
            *(
                store.claim("k", str(n), "f", deadline=time.monotonic() + 9, **given)
                for n in range(5)
            )
        )
    assert sorted(each.state for each in claims) == ["mine", *["running"] * 4]


@pytest.mark.parametrize("pool", ["postgresql://localhost", None, "blocking"])
def test_what_is_no_pool_is_refused(pool: Any) -> None:
    """A URL, nothing, or a pool that would block the loop."""
    if pool == "blocking":
        from psycopg_pool import ConnectionPool

        pool = ConnectionPool("", open=False)
    with pytest.raises(TypeError, match="PostgresStore"):
        PostgresStore(pool)


def test_the_table_has_a_plain_name() -> None:
    """It becomes part of statements."""
    from psycopg_pool import AsyncConnectionPool

    pool = AsyncConnectionPool("", open=False)
    with pytest.raises(TypeError, match="plain name"):
        PostgresStore(pool, table="keys; DROP TABLE users")
    assert PostgresStore(pool).schema.startswith("CREATE TABLE IF NOT EXISTS httpmw_idempotency (")


# -- what a server goes through --------------------------------------------------------------


async def statuses(app: Any, count: int) -> list[int]:
    return [(await request(app)).status for _ in range(count)]


def limited(client: Any, **options: Any) -> RateLimitMiddleware:
    options = {"limit": "3/hour", "store_timeout": 5, "retry_store": 0.05, **options}
    return RateLimitMiddleware(ok, store=RedisStore(client), **options)


@on_asyncio
@of_both
async def test_workers_count_together(name: str, servers: Any, connect: Any) -> None:
    """Layers with clients of their own, on one server."""
    clients = [connect(name, servers[name].port) for _ in range(4)]
    apps = [limited(client, name="together") for client in clients]
    answers = [await statuses(app, 2) for app in apps]

    assert [status for each in answers for status in each] == [200] * 3 + [429] * 5


@on_asyncio
@of_both
async def test_round_trips(name: str, own: StoreServer, connect: Any) -> None:
    """A limit takes one a request, several limits as well; a key takes two, and a replay one."""
    client = connect(name, own.port)

    async def calls() -> int:
        found = await client.info("commandstats")
        return sum(
            found.get(f"cmdstat_{each}", {"calls": 0})["calls"] for each in ("evalsha", "eval")
        )

    store = RedisStore(client)
    app = limited(client, limit="9/second; 99/hour")
    kept = IdempotencyMiddleware(
        PlainTextResponse("ok"), store=store, partition=lambda conn: "somebody", lease=60
    )

    async def post(key: str) -> None:
        await request(kept, method="POST", headers={"idempotency-key": key})

    await request(app)  # the server gets to know the scripts
    await post("first")
    before = await calls()
    for _ in range(5):
        await request(app)
    after = await calls()
    assert after - before == 5
    await post("a")
    assert await calls() - after == 2
    await post("a")
    assert await calls() - after == 3


@on_asyncio
@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
async def test_statements(kind: str, postgresql: int) -> None:
    """In PostgreSQL a key takes two statements, and a replay one."""
    async with pool_of(kind, postgresql) as pool:
        store = PostgresStore(pool, table=f"counted_{kind}")
        await store.create_table()
        fetch, statements = store._fetch, []

        async def counted(statement: str, arguments: Any) -> Any:
            statements.append(statement.split(maxsplit=1)[0])
            return await fetch(statement, arguments)

        store._fetch = counted  # type: ignore[method-assign]
        kept = IdempotencyMiddleware(
            PlainTextResponse("ok"), store=store, partition=lambda conn: "somebody", lease=60
        )
        bodies = [
            (await request(kept, method="POST", headers={"idempotency-key": "k"})).body
            for _ in range(2)
        ]

    assert bodies == [b"ok", b"ok"]
    assert statements == ["INSERT", "UPDATE", "INSERT"]


@on_asyncio
@of_both
async def test_a_server_that_is_flushed(name: str, own: StoreServer, connect: Any) -> None:
    """It forgets its scripts and its keys, and goes on with new ones."""
    client = connect(name, own.port)
    app = limited(client)
    assert await statuses(app, 4) == [200, 200, 200, 429]

    await client.script_flush()
    assert await statuses(app, 1) == [429]
    await client.flushall()
    assert await statuses(app, 4) == [200, 200, 200, 429]


@on_asyncio
@of_both
async def test_a_server_that_stops(name: str, own: StoreServer, caplog: Any, connect: Any) -> None:
    """Nobody waits longer than the deadline; what was given up is not carried out later."""
    client = connect(name, own.port)
    app = limited(client, limit="9/hour", store_timeout=0.5, retry_store=0.6)
    assert await statuses(app, 2) == [200, 200]

    own.stop()
    assert await statuses(app, 3) == [200, 200, 200]
    assert "RedisStore has failed: StoreError: There was no answer in 0.5 s" in caplog.messages[0]
    own.go_on()
    await asyncio.sleep(0.65)
    server = await request(app)
    assert "RedisStore is back" in caplog.messages[1]
    assert ";r=6;" in server.headers["ratelimit"]  # the third that it has counted


@on_asyncio
@of_both
@pytest.mark.parametrize("made", ["pool", "client"])
async def test_a_server_that_is_restarted(
    name: str, own: StoreServer, caplog: Any, made: str, connect: Any
) -> None:
    """It is told once that it is gone, and once that it is back; all goes on."""
    client = connect(name, own.port, made=made)
    app = limited(client, limit="99/hour", store_timeout=1)
    # As many connections as there are requests at once.
    await asyncio.gather(*(request(app) for _ in range(5)))

    own.kill()
    assert await statuses(app, 3) == [200, 200, 200]
    own.start()
    await asyncio.sleep(0.06)
    answers = await asyncio.gather(*(request(app) for _ in range(5)))
    assert [each.status for each in answers] == [200] * 5
    await asyncio.sleep(0.06)
    assert await statuses(app, 3) == [200, 200, 200]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


@on_asyncio
@of_both
@pytest.mark.parametrize("why", ["full", "read-only"])
async def test_a_server_that_takes_nothing(
    name: str, own: StoreServer, why: str, caplog: Any, connect: Any
) -> None:
    """Full, or a replica: limits are counted here."""
    client = connect(name, own.port)
    if why == "full":
        await client.config_set("maxmemory", 1)
    else:
        await client.replicaof("127.0.0.1", 1)
        await client.config_set("replica-serve-stale-data", "yes")
    app = limited(client, retry_store=30)

    assert await statuses(app, 4) == [200, 200, 200, 429]
    assert ("OutOfMemory" if why == "full" else "ReadOnly") in caplog.messages[0]


@on_asyncio
@of_both
async def test_a_call_that_is_cancelled_at_any_turn_is_not_counted_twice(
    name: str, servers: Any, connect: Any
) -> None:
    """Each was carried out or was not; the server has counted no more than were sent."""
    client = connect(name, servers[name].port)
    app = limited(client, limit="100/hour", name=f"cancelled-{name}")
    for turns in range(0, 40, 2):
        await cancelled_after(turns, lambda: request(app))
    server = await request(app)

    left = int(server.headers["ratelimit"].split("r=")[1].split(";")[0])
    assert 79 <= left <= 99


@on_asyncio
@of_both
async def test_policies_of_one_key_do_not_shorten_each_other(
    name: str, servers: Any, connect: Any
) -> None:
    """An hour is not forgotten with the second that another layer of that name counts."""
    client = connect(name, servers[name].port)
    store = RedisStore(client)
    key = uuid4().hex
    await store.take(key, policies_of("3/hour", None, "x"), 3, time.monotonic() + 5)
    await store.take(key, policies_of("5/second", None, "x"), 1, time.monotonic() + 5)

    assert await client.pttl(f"httpmw:rate:{key}") > 3_500_000


@on_asyncio
@of_both
async def test_what_is_given_back_to_one_policy_leaves_the_others(
    name: str, servers: Any, connect: Any
) -> None:
    """The key goes when nothing is in it any more."""
    client = connect(name, servers[name].port)
    store = RedisStore(client)
    key = uuid4().hex
    hour, day = (policies_of(limit, None, "x") for limit in ("3/hour", "9/day"))
    for policies in (hour, day):
        await store.take(key, policies, 1, time.monotonic() + 5)
    await store.give_back(key, day, 1, time.monotonic() + 5)

    assert (await store.take(key, hour, 0, time.monotonic() + 5))[0].remaining == 2
    await store.give_back(key, hour, 1, time.monotonic() + 5)
    assert not await client.exists(f"httpmw:rate:{key}")


@on_asyncio
@of_both
async def test_a_server_s_clock_that_was_set_back_locks_nobody_out(
    name: str, servers: Any, connect: Any
) -> None:
    """What is kept is mended by the first refusal, so that the next ones wait for less."""
    client = connect(name, servers[name].port)
    key = uuid4().hex
    policies = policies_of("2/minute", None, "x")
    ahead = (int(time.time()) + 3600) * 1_000_000
    await client.hset(f"httpmw:rate:{key}", policies[0].id, ahead)
    levels = await RedisStore(client).take(key, policies, 1, time.monotonic() + 5)

    assert levels[0].wait == 30
    kept = int(await client.hget(f"httpmw:rate:{key}", policies[0].id))
    assert kept < ahead - 3000 * 1_000_000


class Losing:
    """A client that loses the first answer of its server to each call."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.lost = False

    async def evalsha(self, *arguments: Any) -> Any:
        reply = await self.client.evalsha(*arguments)
        self.lost = not self.lost
        if self.lost:
            raise ConnectionError("The answer is lost.")
        return reply

    async def eval(self, *arguments: Any) -> Any:
        return await self.client.eval(*arguments)


@on_asyncio
@of_both
async def test_nothing_is_given_back_twice(name: str, servers: Any, connect: Any) -> None:
    """Where the answer is lost, it is asked again, and the server knows the call."""
    client = connect(name, servers[name].port)
    store = RedisStore(Losing(client))
    key = uuid4().hex
    policies = policies_of("10/hour", None, "x")
    await RedisStore(client).take(key, policies, 10, time.monotonic() + 5)
    await store.give_back(key, policies, 1, time.monotonic() + 5)
    assert (await store.take(key, policies, 0, time.monotonic() + 5))[0].remaining == 1

    await store.give_back(key, policies, 1, time.monotonic() + 5)
    assert (await store.take(key, policies, 0, time.monotonic() + 5))[0].remaining == 2


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_client_of_asyncio_is_refused_on_trio() -> None:
    """In words, at the first request, and not by a limit that never limits."""
    import redis.asyncio

    app = limited(redis.asyncio.Redis())
    server = await request(app, keep_error=True)

    assert isinstance(server.error, RuntimeError)
    assert "RedisStore has a client that runs on asyncio only" in str(server.error)
    assert "MemoryStore()" in str(server.error)


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["redis://localhost", None, "blocking"])
def test_what_is_no_client_is_refused(client: Any) -> None:
    """A URL, nothing, or a client that would block the loop."""
    if client == "blocking":
        import redis

        client = redis.Redis()
    with pytest.raises(TypeError, match="RedisStore"):
        RedisStore(client)


def test_the_prefix_is_a_text() -> None:
    """It is put before all names."""
    import redis.asyncio

    with pytest.raises(TypeError, match="prefix"):
        RedisStore(redis.asyncio.Redis(), prefix=b"x")  # type: ignore[arg-type]


@on_asyncio
async def test_what_limits_cannot_do_is_said_when_a_layer_is_made() -> None:
    """Bursts, refunds, and a strategy that the storage does not have."""
    from limits.aio.storage import MemcachedStorage, MemoryStorage

    store = LimitsStore(MemoryStorage())
    with pytest.raises(TypeError, match="no `burst=`"):
        RateLimitMiddleware(ok, limit="2/minute", burst=1, store=store)
    with pytest.raises(TypeError, match="no `refund=`"):
        RateLimitMiddleware(ok, limit="2/minute", refund=lambda response: True, store=store)
    with pytest.raises(TypeError, match="storage"):
        LimitsStore("memory://")
    with pytest.raises(TypeError, match="strategy"):
        LimitsStore(MemoryStorage(), strategy="leaky")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one that MemcachedStorage has"):
        LimitsStore(MemcachedStorage("async+memcached://127.0.0.1:1"))


@on_asyncio
async def test_what_limits_cannot_do_is_said_by_the_dependency() -> None:
    """With its first request, as it has no store before."""
    from limits.aio.storage import MemoryStorage

    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limit="9/hour", store=LimitsStore(MemoryStorage()))
    app.get("/", dependencies=[Depends(rate_limit("5/minute", burst=1))])(lambda: "ok")
    server = await request(app, keep_error=True)

    assert "LimitsStore has no `burst=`" in str(server.error)


@on_asyncio
async def test_limits_limits() -> None:
    """Several limits, a cost, and no word of what is left."""
    from limits.aio.storage import MemoryStorage

    app = RateLimitMiddleware(
        ok, limit="4/second; 5/hour", cost=2, store=LimitsStore(MemoryStorage())
    )
    first, second, third = [await request(app) for _ in range(3)]

    assert [each.status for each in (first, second, third)] == [200, 200, 429]
    assert "ratelimit" not in first.headers
    assert first.headers["ratelimit-policy"].startswith('"default-1";q=4;w=1')
    assert int(third.headers["retry-after"]) > 3000
