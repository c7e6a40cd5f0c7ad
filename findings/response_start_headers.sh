#!/usr/bin/env bash
# Two forms of `headers` that ASGI allows do not pass everywhere: none at all, and an iterator.
#
# ASGI (HTTP, "Response Start"): `headers` is an iterable, "Optional; if missing defaults to an empty
# list". granian answers 500 to a start without the key; daphne sends a start whose headers are a
# generator without any of them, as it looks at the iterable more than once.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="uvicorn: without 200, iterator 200 with x-id
hypercorn: without 200, iterator 200 with x-id
granian: without 500, iterator 200 with x-id
daphne: without 200, iterator 200 and no x-id"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 hypercorn==0.18.0 granian==2.8.9 daphne==4.2.3

cat >app.py <<'PY'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    start = {"type": "http.response.start", "status": 200}
    if scope["path"] == "/iterator":
        start["headers"] = (pair for pair in [(b"x-id", b"7"), (b"x-other", b"8")])
    await send(start)
    await send({"type": "http.response.body", "body": b"hello"})
PY

cat >ask.py <<'PY'
import http.client
import socket
import subprocess
import sys
import time

COMMANDS = {
    "uvicorn": "uvicorn --port {port} app:app",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} app:app",
    "granian": "granian --interface asgi --port {port} app:app",
    "daphne": "daphne --port {port} app:app",
}


def get(port, path):
    for _ in range(200):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            client.request("GET", path)
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return client.getresponse()
    raise SystemExit("the server does not come up")


for name, command in COMMANDS.items():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [f"{sys.prefix}/bin/{command.split()[0]}", *command.format(port=port).split()[1:]]
    log = open("server.log", "w")
    server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        without, iterator = get(port, "/without"), get(port, "/iterator")
    finally:
        server.terminate()
        server.wait()
    there = "with x-id" if iterator.getheader("x-id") else "and no x-id"
    print(f"{name}: without {without.status}, iterator {iterator.status} {there}")
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
