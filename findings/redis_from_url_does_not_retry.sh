#!/usr/bin/env bash
# redis-py tries again ten times or not at all, by how the client was made.
#
# `Redis(host=..., port=...)` has had a retry policy of its own since 6.0; the same address through
# `Redis.from_url()`, or through a pool, has none, as the default stands in `Redis.__init__` only.
# No server is needed: nothing listens on the port, and the tries are counted.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="Redis(port=...): 11 tries, ConnectionError
Redis.from_url(...): 1 tries, ConnectionError
Redis(connection_pool=ConnectionPool(...)): 1 tries, ConnectionError"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check redis==8.1.0

cat >ask.py <<'PY'
import asyncio
import socket

from redis import asyncio as aioredis

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]

CLIENTS = {
    "Redis(port=...)": lambda: aioredis.Redis(port=PORT),
    "Redis.from_url(...)": lambda: aioredis.Redis.from_url(f"redis://127.0.0.1:{PORT}"),
    "Redis(connection_pool=ConnectionPool(...))": lambda: aioredis.Redis(
        connection_pool=aioredis.ConnectionPool(host="127.0.0.1", port=PORT)
    ),
}


async def main():
    tries = 0
    connect = asyncio.open_connection

    async def counted(*args, **options):
        nonlocal tries
        tries += 1
        return await connect(*args, **options)

    asyncio.open_connection = counted
    for name, make in CLIENTS.items():
        tries = 0
        client = make()
        try:
            await client.get("key")
        except Exception as error:
            print(f"{name}: {tries} tries, {type(error).__name__}")
        await client.aclose()


asyncio.run(main())
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
