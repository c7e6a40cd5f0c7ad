#!/usr/bin/env bash
# Headers of `websocket.accept` do not reach the client on granian and daphne.
#
# ASGI (WebSocket, "Accept") has `headers` in the message since 2.1, so a cookie or a request id set
# there looks safe. Two servers take the message and leave the headers out, without an error.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="uvicorn: set-cookie: a=1, set-cookie: b=2, x-request-id: 7
hypercorn: set-cookie: a=1, set-cookie: b=2, x-request-id: 7
granian: none
daphne: none"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 websockets==17.4 hypercorn==0.18.0 granian==2.8.9 daphne==4.2.3

cat >app.py <<'PY'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    await receive()
    headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-request-id", b"7")]
    await send({"type": "websocket.accept", "headers": headers})
    await send({"type": "websocket.close"})
PY

cat >ask.py <<'PY'
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
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def connect(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise SystemExit("the server does not come up")


for name, command in COMMANDS.items():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [f"{sys.prefix}/bin/{command.split()[0]}", *command.format(port=port).split()[1:]]
    log = open("server.log", "w")
    server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        with connect(port) as client:
            client.sendall(HANDSHAKE)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += client.recv(4096)
    finally:
        server.terminate()
        server.wait()
    head, _, _ = answer.decode("latin-1").lower().partition("\r\n\r\n")
    assert head.startswith("http/1.1 101"), head
    kept = [line for line in head.split("\r\n") if line.startswith(("set-cookie", "x-request"))]
    print(f"{name}:", ", ".join(kept) or "none")
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
