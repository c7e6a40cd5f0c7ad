#!/usr/bin/env bash
# A cancel scope that ends in a child task has anyio take back a cancellation of the parent's.
#
# `Task.cancel()` and `Task.uncancel()` are counted, and a scope takes back what it has asked of its
# own task. One that is left while the task group around it is being cancelled hands its count to
# the group, whose task is another one: the group then takes back a `cancel()` that somebody else
# has asked for, and `cancelling()` is 0 in a task that was cancelled. Whoever counts, as
# `asyncio.timeout()` and `asyncio.TaskGroup` do, takes that cancellation for its own. It needs
# nothing but the common poll `with CancelScope() as scope: scope.cancel(); await ...` in a child; a
# shielded scope does not do it.
# Seen on 2026-12-01 with CPython 3.11.7 and the version that is installed below.
set -euo pipefail

expected="no scope in the child: cancelled, cancelling() is 1
a scope in the child: cancelled, cancelling() is 0
a shielded scope in the child: cancelled, cancelling() is 1"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check anyio==4.16.0

cat >count.py <<'PY'
import asyncio
from contextlib import nullcontext

import anyio


async def parent(scope, started):
    async def child():
        with scope or nullcontext():
            started.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(child)
        await anyio.sleep_forever()


async def main():
    kinds = {
        "no scope": None,
        "a scope": anyio.CancelScope(),
        "a shielded scope": anyio.CancelScope(shield=True),
    }
    for name, scope in kinds.items():
        started = asyncio.Event()
        task = asyncio.create_task(parent(scope, started))
        await started.wait()
        task.cancel()  # once, from outside
        if scope:
            scope.cancel()
        await asyncio.wait([task])
        how = "cancelled" if task.cancelled() else "returned"
        print(f"{name} in the child: {how}, cancelling() is {task.cancelling()}")


asyncio.run(main())
PY

seen=$(venv/bin/python count.py)
diff <(echo "$expected") <(echo "$seen")
