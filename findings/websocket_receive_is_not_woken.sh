#!/usr/bin/env bash
# A `receive()` that waits when the app itself ends a WebSocket is not ended by every server.
#
# ASGI's WebSocket specification has `websocket.disconnect` sent when the connection is lost or
# closed, and says nothing of who waits while the app closes it. An app that listens in a task of
# its own is left waiting by hypercorn after a close or a denial that refuses, and by granian after a
# denial (`websocket.http.response.*`); uvicorn and daphne, which has no denials, end the wait at once.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="uvicorn: close woken, denial woken, accept and close woken
uvicorn --ws websockets: close woken, denial woken, accept and close woken
uvicorn --ws wsproto: close woken, denial woken, accept and close woken
hypercorn: close waits, denial waits, accept and close woken
granian: close woken, denial waits, accept and close woken
daphne: close woken, denial not offered, accept and close woken"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 websockets==17.4 wsproto==1.3.2 hypercorn==0.18.0 granian==2.8.9 daphne==4.2.3

cat >app.py <<'PY'
import asyncio

DENIAL = "websocket.http.response"


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    how = scope["path"].strip("/")
    told = "not offered"
    if how != "denial" or DENIAL in (scope.get("extensions") or {}):
        await receive()
        told = await ended(how, receive, send)
    else:
        await receive()
        await send({"type": "websocket.close"})
    with open("told", "w") as file:
        file.write(told)


async def ended(how, receive, send):
    async def listen():
        await receive()

    waiting = asyncio.create_task(listen())
    await asyncio.sleep(0.2)
    if how == "denial":
        await send({"type": f"{DENIAL}.start", "status": 403, "headers": [(b"content-length", b"2")]})
        await send({"type": f"{DENIAL}.body", "body": b"no"})
    else:
        if how == "accepted":
            await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
    done, _ = await asyncio.wait([waiting], timeout=2)
    if not done:
        waiting.cancel()
        await asyncio.wait([waiting])
    return "woken" if done else "waits"
PY

cat >ask.py <<'PY'
import pathlib
import socket
import struct
import subprocess
import sys
import time

COMMANDS = {
    "uvicorn": "uvicorn --port {port} app:app",
    "uvicorn --ws websockets": "uvicorn --ws websockets --port {port} app:app",
    "uvicorn --ws wsproto": "uvicorn --ws wsproto --port {port} app:app",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} app:app",
    "granian": "granian --interface asgi --port {port} app:app",
    "daphne": "daphne --port {port} app:app",
}
HANDSHAKE = (
    "GET /{how} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
# A close frame with code 1000, and a masked one; its mask is zeros.
CLOSE = b"\x88\x02" + struct.pack("!H", 1000)
CLOSE_BACK = b"\x88\x82\0\0\0\0" + struct.pack("!H", 1000)


def connect(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise SystemExit("the server does not come up")


def told(port, how):
    told = pathlib.Path("told")
    told.unlink(missing_ok=True)
    with connect(port) as client:
        client.sendall(HANDSHAKE.format(how=how).encode())
        if how == "accepted":
            answer = b""
            while CLOSE not in answer:
                answer += client.recv(4096)
            client.sendall(CLOSE_BACK)
        for _ in range(200):
            if told.exists() and (words := told.read_text()):
                return words
            time.sleep(0.05)
    return "nothing"


for name, command in COMMANDS.items():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [f"{sys.prefix}/bin/{command.split()[0]}", *command.format(port=port).split()[1:]]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        close, denial, accepted = (told(port, how) for how in ("close", "denial", "accepted"))
        print(f"{name}: close {close}, denial {denial}, accept and close {accepted}")
    finally:
        server.terminate()
        server.wait()
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
