#!/usr/bin/env bash
# On uvicorn and daphne a pipelined request begins with the context variables of the one before it.
#
# Each request has a task of its own, so a variable that is set in one looks private to it. But the
# task of the second is made by a callback that runs in the context of the first (CPython #140947).
# uvicorn's `--reset-contextvars`, which is off by default, makes each begin afresh; so does hypercorn.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="uvicorn: request 1 sees 'unset', request 2 sees 'set by 1'
uvicorn --reset-contextvars: request 1 sees 'unset', request 2 sees 'unset'
hypercorn: request 1 sees 'unset', request 2 sees 'unset'
daphne: request 1 sees 'unset', request 2 sees 'set by 1'"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 h11==0.16.0 hypercorn==0.18.0 daphne==4.2.3

cat >app.py <<'PY'
from contextvars import ContextVar

variable = ContextVar("variable", default="unset")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    number = scope["path"].strip("/")
    body = f"request {number} sees '{variable.get()}';".encode()
    variable.set(f"set by {number}")
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
PY

cat >ask.py <<'PY'
import re
import socket
import subprocess
import sys
import time

COMMANDS = {
    "uvicorn": "uvicorn --port {port} app:app",
    "uvicorn --reset-contextvars": "uvicorn --reset-contextvars --port {port} app:app",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} app:app",
    "daphne": "daphne --port {port} app:app",
}


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
            asked = b"GET /%d HTTP/1.1\r\nhost: localhost\r\n\r\n"
            client.sendall(asked % 1 + asked % 2)
            answer = b""
            while answer.count(b";") < 2:
                answer += client.recv(4096)
    finally:
        server.terminate()
        server.wait()
    print(f"{name}:", ", ".join(re.findall(r"request \d sees '[^']*'", answer.decode())))
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
