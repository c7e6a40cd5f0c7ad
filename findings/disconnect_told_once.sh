#!/usr/bin/env bash
# `receive()` after `http.disconnect` blocks for ever on hypercorn and daphne.
#
# uvicorn and granian tell `http.disconnect` to whoever asks, as often as it is asked for. The other
# two tell it once, to one waiter: where a framework's listener has taken it, a second task of the
# application that waits for the client to leave waits for ever.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="uvicorn: http.disconnect, then http.disconnect
hypercorn: http.disconnect, then nothing in 2 s
granian: http.disconnect, then http.disconnect
daphne: http.disconnect, then nothing in 2 s"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 hypercorn==0.18.0 granian==2.8.9 daphne==4.2.3

cat >app.py <<'PY'
import asyncio
import os


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    await receive()
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    first = (await receive())["type"]
    task = asyncio.ensure_future(receive())
    await asyncio.wait({task}, timeout=2)
    second = task.result()["type"] if task.done() else "nothing in 2 s"
    task.cancel()
    with open("told.new", "w") as told:
        told.write(f"{first}, then {second}")
    os.rename("told.new", "told")
PY

cat >ask.py <<'PY'
import pathlib
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


def connect(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise SystemExit("the server does not come up")


told = pathlib.Path("told")
for name, command in COMMANDS.items():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [f"{sys.prefix}/bin/{command.split()[0]}", *command.format(port=port).split()[1:]]
    log = open("server.log", "w")
    server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        with connect(port) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = b""
            while b"one" not in answer:
                answer += client.recv(4096)
        for _ in range(200):
            if told.exists():
                break
            time.sleep(0.05)
        print(f"{name}: {told.read_text()}")
        told.unlink()
    finally:
        server.terminate()
        server.wait()
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
