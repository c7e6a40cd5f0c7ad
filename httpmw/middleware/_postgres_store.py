# What is kept in PostgreSQL, through a pool of psycopg's or asyncpg's.
#
# Rule 1: the pool is the user's; nothing of its package is imported.
# Rule 2: one statement for each thing to do, which commits at once: a claim that is held open has
# all others wait for the end of its transaction.
# Rule 3: a claim is an insert that always gives a row, that of who has the key; and none where it
# comes too late by the server's own clock.
# Rule 4: a connection whose statement was given up is closed: neither package hands it back in
# time when the server does not answer.

from __future__ import annotations

import re
import time
from typing import Any, Final

from httpmw import _errors

from ._idempotency_store import Claim
from ._stores import Clock, StoreError, is_like

_TABLE: Final = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    key text PRIMARY KEY,
    fingerprint text NOT NULL,
    claim text NOT NULL,
    token bigint NOT NULL,
    lease_until timestamptz NOT NULL,
    answer text,
    expires_at timestamptz NOT NULL
)
"""
# 1 key, 2 claim, 3 fingerprint, 4 lease, 5 expiry, 6 to run again, 7 last moment.
# `excluded.lease_until` less the lease is the moment of the insert.
_CLAIM: Final = """
INSERT INTO {table} AS h (key, fingerprint, claim, token, lease_until, expires_at)
SELECT $1::text, $3::text, $2::text, (extract(epoch FROM t.now) * 1000000)::bigint,
    t.now + make_interval(secs => $4::float8), t.now + make_interval(secs => $5::float8)
FROM (SELECT clock_timestamp() AS now) AS t
WHERE t.now < to_timestamp($7::float8)
ON CONFLICT (key) DO UPDATE SET (fingerprint, claim, token, lease_until, answer, expires_at) = (
    SELECT v.fingerprint, v.claim, v.token, v.lease_until, v.answer, v.expires_at
    FROM (VALUES
        (true, excluded.fingerprint, excluded.claim,
            CASE WHEN h.claim = excluded.claim THEN h.token
            ELSE greatest(excluded.token, h.token + 1) END,
            excluded.lease_until, NULL::text, excluded.expires_at),
        (false, h.fingerprint, h.claim, h.token, h.lease_until, h.answer, h.expires_at)
    ) AS v (is_free, fingerprint, claim, token, lease_until, answer, expires_at)
    WHERE v.is_free = (
        h.expires_at <= excluded.lease_until - make_interval(secs => $4::float8)
        OR (h.answer IS NULL AND h.fingerprint = excluded.fingerprint AND (
            h.claim = excluded.claim
            OR ($6::boolean AND
                h.lease_until <= excluded.lease_until - make_interval(secs => $4::float8))
        ))
    )
)
RETURNING fingerprint, claim, token, answer, lease_until > clock_timestamp(),
    extract(epoch FROM clock_timestamp())::float8
"""
_NOW: Final = "SELECT extract(epoch FROM clock_timestamp())::float8"
# 1 key, 2 claim, 3 lease.
_RENEW: Final = """
UPDATE {table} SET lease_until = clock_timestamp() + make_interval(secs => $3::float8),
    expires_at = greatest(expires_at, clock_timestamp() + make_interval(secs => $3::float8))
WHERE key = $1::text AND claim = $2::text AND answer IS NULL RETURNING token
"""
# 1 key, 2 claim, 3 answer, 4 expiry.
_COMPLETE: Final = """
UPDATE {table} SET answer = $3::text,
    expires_at = clock_timestamp() + make_interval(secs => $4::float8)
WHERE key = $1::text AND claim = $2::text RETURNING token
"""
_RELEASE: Final = "DELETE FROM {table} WHERE key = $1::text AND claim = $2::text RETURNING token"
_PURGE: Final = "DELETE FROM {table} WHERE expires_at <= clock_timestamp()"

_SERIALIZATION: Final = "40001"


class PostgresStore:
    """
    A store in PostgreSQL, for the keys of `IdempotencyMiddleware`.

    Make its table with `await store.create_table()`, or with the statement `store.schema` in a
    migration, and have `await store.purge()` run now and then: what has expired is not deleted by
    itself.

    Args:
        pool: A `psycopg_pool.AsyncConnectionPool` (psycopg 3.2 or later) or an `asyncpg.Pool`. It
            stays yours: you open and close it. It runs on asyncio.
        table: The name of the table, with its schema where that is not the first in the path.

    Raises:
        TypeError: *pool* is no such pool, or *table* is no plain name.
    """

    asyncio_only = True

    def __init__(self, pool: Any, *, table: str = "httpmw_idempotency") -> None:
        if callable(getattr(pool, "connection", None)):
            self._fetch = self._fetch_psycopg
        elif callable(getattr(pool, "acquire", None)) and callable(getattr(pool, "release", None)):
            self._fetch = self._fetch_asyncpg
        else:
            expected = "a `psycopg_pool.AsyncConnectionPool` or an `asyncpg.Pool`"
            raise _errors.bad_option(type(self), "pool", pool, expected)
        if type(pool).__module__.startswith("psycopg_pool") and "Async" not in type(pool).__name__:
            raise _errors.bad_option(
                type(self), "pool", pool, "an `AsyncConnectionPool`: this one blocks the loop"
            )
        if not is_like(_TABLE, table):
            raise _errors.bad_option(type(self), "table", table, "a plain name in lower case")
        self._pool = pool
        self._table = table
        self._clock = Clock()
        self.schema = _CREATE.format(table=table).strip()

    async def create_table(self) -> None:
        """
        Make the table where it is not there.
        """
        await self._run(_CREATE)

    async def purge(self) -> None:
        """
        Delete what has expired.
        """
        await self._run(_PURGE)

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
        Claim a key in one statement, as `IdempotencyStore` has it.
        """
        refused = False
        expires = max(expires, lease)  # what runs is not forgotten
        while True:
            last = self._clock.at(deadline)
            asked = time.monotonic()
            row = await self._run(_CLAIM, key, claim, fingerprint, lease, expires, rerun, last)
            answered = time.monotonic()
            if row is not None:
                break
            if refused or answered >= deadline:
                raise StoreError("The server did it too late, that is, not at all.")
            refused = True
            asked = time.monotonic()
            now = await self._run(_NOW)
            self._clock.learn(asked, time.monotonic(), now[0])
        had, holder, token, answer, is_held, now = row
        self._clock.learn(asked, answered, now)
        if had != fingerprint:
            return Claim("other")
        if answer is not None:
            return Claim("done", answer=answer)
        if holder == claim:
            return Claim("mine", token)
        return Claim("running" if is_held or rerun else "unknown")

    async def renew(self, key: str, claim: str, *, lease: float, deadline: float) -> bool:  # noqa: ARG002
        """
        Hold a key for longer, as `IdempotencyStore` has it.
        """
        return await self._run(_RENEW, key, claim, lease) is not None

    async def complete(
        self,
        key: str,
        claim: str,
        answer: str,
        *,
        expires: float,
        deadline: float,  # noqa: ARG002 - for a claim that nobody else has it is never too late
    ) -> bool:
        """
        Store an answer in one statement, as `IdempotencyStore` has it.
        """
        return await self._run(_COMPLETE, key, claim, answer, expires) is not None

    async def release(self, key: str, claim: str, *, deadline: float) -> None:  # noqa: ARG002
        """
        Forget a key, as `IdempotencyStore` has it.
        """
        await self._run(_RELEASE, key, claim)

    def abandon(self, key: str, claim: str) -> None:
        """
        Do nothing: the lease ends.
        """

    # ------------------------------------------------------------------ one statement

    async def _run(self, statement: str, *arguments: Any) -> Any:
        statement = statement.format(table=self._table)
        tries = 0
        while True:
            try:
                return await self._fetch(statement, arguments)
            except Exception as exc:
                tries += 1
                # Of two at once, where transactions are serializable by default.
                if getattr(exc, "sqlstate", None) == _SERIALIZATION:
                    continue
                if tries > 1 or not _is_lost(exc):
                    raise
                check = getattr(self._pool, "check", None)
                if check is not None:  # psycopg's: drops all connections that are dead
                    await check()

    async def _fetch_psycopg(self, statement: str, arguments: tuple[Any, ...]) -> Any:
        text = re.sub(r"\$(\d)", r"%(p\1)s", statement)
        parameters = {f"p{place}": each for place, each in enumerate(arguments, 1)} or None
        async with self._pool.connection() as connection:
            is_set = connection.autocommit
            if not is_set:
                await connection.set_autocommit(True)
            try:
                # Not prepared: behind PgBouncer the next one may go to another server.
                cursor = await connection.execute(text, parameters, prepare=False)
                row = await cursor.fetchone() if cursor.description else None
            except BaseException as exc:
                if getattr(exc, "sqlstate", None) is None:
                    connection.pgconn.finish()  # rule 4
                raise
            finally:
                if not is_set and not connection.closed:
                    await connection.set_autocommit(False)
            return row

    async def _fetch_asyncpg(self, statement: str, arguments: tuple[Any, ...]) -> Any:
        connection = await self._pool.acquire()
        try:
            return await connection.fetchrow(statement, *arguments)
        except BaseException as exc:
            if getattr(exc, "sqlstate", None) is None:
                connection.terminate()  # rule 4
            raise
        finally:
            await self._pool.release(connection)


def _is_lost(exc: Exception) -> bool:
    """
    Whether it is the connection that failed.
    """
    names = {cls.__name__ for cls in type(exc).__mro__}
    if "PoolTimeout" in names:
        return False
    return isinstance(exc, OSError) or not names.isdisjoint(
        ("OperationalError", "InterfaceError", "InternalClientError", "PostgresConnectionError")
    )
