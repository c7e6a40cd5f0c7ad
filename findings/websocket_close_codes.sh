#!/usr/bin/env bash
# The code of `websocket.disconnect` is not the client's on every server.
#
# RFC 6455 section 7.1.5 has 1006 for a connection that ends without a close frame, 1005 for a close
# frame without a code. uvicorn's default says 1005 for a dropped one (its `--ws websockets` 1006),
# and hypercorn says 1006 for a client that closed in order with a code of its own.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="uvicorn: dropped 1005, closed with 4000 4000
uvicorn --ws websockets: dropped 1006, closed with 4000 4000
uvicorn --ws wsproto: dropped 1005, closed with 4000 4000
hypercorn: dropped 1006, closed with 4000 1006
granian: dropped 1005, closed with 4000 4000
daphne: dropped 1006, closed with 4000 4000"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 websockets==17.4 wsproto==1.3.2 hypercorn==0.18.0 granian==2.8.9 daphne==4.2.3

cat >app.py <<'PY'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        pass
    with open("codes", "a") as codes:
        codes.write(f"{message.get('code')}\n")
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
    b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
# A masked close frame; its mask is zeros.
CLOSE_4000 = b"\x88\x82\0\0\0\0" + struct.pack("!H", 4000)


def connect(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise SystemExit("the server does not come up")


def code(port, last_words):
    told = pathlib.Path("codes")
    told.write_text("")
    with connect(port) as client:
        client.sendall(HANDSHAKE)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += client.recv(4096)
        if last_words:
            client.sendall(last_words)
            client.recv(4096)  # the close frame of the server
    for _ in range(200):
        if told.read_text():
            return told.read_text().strip()
        time.sleep(0.05)
    return "nothing"


for name, command in COMMANDS.items():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [f"{sys.prefix}/bin/{command.split()[0]}", *command.format(port=port).split()[1:]]
    log = open("server.log", "w")
    server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        print(f"{name}: dropped {code(port, b'')}, closed with 4000 {code(port, CLOSE_4000)}")
    finally:
        server.terminate()
        server.wait()
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
