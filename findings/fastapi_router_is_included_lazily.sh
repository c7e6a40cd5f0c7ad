#!/usr/bin/env bash
# `app.routes` does not hold the routes of an included router in FastAPI 0.137 and later.
#
# `include_router()` used to copy each route into the application at once; code that walks
# `app.routes` for an `APIRoute` (metrics, permissions, generated clients) found them all. Now the
# router is kept as it is: one entry stands for it, its routes are not in the list, and a route that
# is added to the router afterwards is served too.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="fastapi 0.136.0: APIRoute in app.routes ['/items/early'], added later 404
fastapi 0.137.0: APIRoute in app.routes [], added later 200
fastapi 0.165.0: APIRoute in app.routes [], added later 200"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat >ask.py <<'PY'
import asyncio
import sys

import fastapi
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

router = APIRouter(prefix="/items")


@router.get("/early")
def early() -> str:
    return "early"


app = FastAPI(openapi_url=None)
app.include_router(router)


@router.get("/late")
def late() -> str:
    return "late"


async def status(path):
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return sent[0]["status"]


found = [route.path for route in app.routes if isinstance(route, APIRoute)]
late_status = asyncio.run(status("/items/late"))
print(f"fastapi {fastapi.__version__}: APIRoute in app.routes {found}, added later {late_status}")
PY

seen=$(
    for version in 0.136.0 0.137.0 0.165.0; do
        python3 -m venv "venv-$version"
        "venv-$version/bin/pip" install --quiet --disable-pip-version-check "fastapi==$version"
        "venv-$version/bin/python" ask.py
    done
)
diff <(echo "$expected") <(echo "$seen")
