#!/usr/bin/env bash
# A 304 that announces the length of its 200 closes the connection on uvicorn with httptools.
#
# RFC 9110 section 8.6 lets a 304 carry the `content-length` that the 200 would have had. uvicorn's
# h11 takes such a response; with httptools, which `uvicorn[standard]` brings and prefers, it counts
# the bytes, logs "Response content shorter than Content-Length", and closes the connection.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="h11: answers on one connection 2, no error
httptools: answers on one connection 1, RuntimeError: Response content shorter than Content-Length"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check uvicorn==0.54.0 h11==0.16.0 httptools==0.9.0

cat >app.py <<'PY'
async def app(scope, receive, send):
    headers = [(b"etag", b'"v1"'), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body"})
PY

cat >ask.py <<'PY'
import pathlib
import re
import socket
import subprocess
import sys
import time


def connect(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise SystemExit("the server does not come up")


for name in ("h11", "httptools"):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["uvicorn", "--http", name, "--lifespan", "off", "--port", str(port), "app:app"]
    log = open("server.log", "w")
    server = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log)
    answers = 0
    try:
        with connect(port) as client:
            for _ in range(2):
                answer = b""
                try:
                    client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                    while b"\r\n\r\n" not in answer:
                        piece = client.recv(4096)
                        if not piece:
                            break
                        answer += piece
                except ConnectionError:
                    break
                answers += answer.startswith(b"HTTP/1.1 304")
    finally:
        server.terminate()
        server.wait()
    errors = re.findall(r"RuntimeError: .+", pathlib.Path("server.log").read_text())
    print(f"{name}: answers on one connection {answers}, {errors[0] if errors else 'no error'}")
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
