#!/usr/bin/env bash
# A time limit of anyio around `to_thread.run_sync` is over when the thread is, and not before.
#
# FastAPI and Starlette run each `def` endpoint so. `move_on_after(0.2)` cancels, but the wait for the
# thread is shielded: the block is left when the thread has ended, however long that takes.
# `asyncio.timeout()` around the same call comes back in time, and leaves the thread to itself.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="anyio.move_on_after: thread ended, block left
asyncio.timeout: block left, thread ended"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check anyio==4.16.0

cat >ask.py <<'PY'
import asyncio
import time

import anyio

events = []


def work():
    time.sleep(1.5)
    events.append("thread ended")


async def by_anyio():
    with anyio.move_on_after(0.2):
        await anyio.to_thread.run_sync(work)
    events.append("block left")


async def by_asyncio():
    try:
        async with asyncio.timeout(0.2):
            await anyio.to_thread.run_sync(work)
    except TimeoutError:
        events.append("block left")
    while len(events) < 2:
        await asyncio.sleep(0.05)


for name, run in (("anyio.move_on_after", by_anyio), ("asyncio.timeout", by_asyncio)):
    events.clear()
    asyncio.run(run())
    print(f"{name}:", ", ".join(events))
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
