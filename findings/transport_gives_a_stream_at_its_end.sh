#!/usr/bin/env bash
# `httpx2.ASGITransport` hands out a stream when it is over; Starlette's TestClient does not.
#
# `AsyncClient.stream()` on the transport looks as if it streamed. It runs the application to its end
# first, background tasks included, and gives head and chunks then: a test of an endless stream, of a
# heartbeat, or of what happens between two chunks cannot be written with it. The test client, which
# used to do the same, gives each chunk as it is sent.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="TestClient: app sends 1, head, chunk, app sends 2, chunk, background task runs
ASGITransport: app sends 1, app sends 2, background task runs, head, chunk"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check starlette==1.10.0 httpx2==2.16.2

cat >ask.py <<'PY'
import asyncio

import httpx2
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

events = []


async def lines():
    for each in ("1", "2"):
        events.append(f"app sends {each}")
        yield each
        await asyncio.sleep(0.1)


async def endpoint(request):
    after = BackgroundTask(events.append, "background task runs")
    return StreamingResponse(lines(), background=after)


app = Starlette(routes=[Route("/", endpoint)])


def by_test_client():
    with TestClient(app).stream("GET", "/") as response:
        events.append("head")
        for _ in response.iter_raw():
            events.append("chunk")


async def by_transport():
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
        async with client.stream("GET", "/") as response:
            events.append("head")
            async for _ in response.aiter_raw():
                events.append("chunk")


by_test_client()
print("TestClient:", ", ".join(events))
events.clear()
asyncio.run(by_transport())
print("ASGITransport:", ", ".join(events))
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
