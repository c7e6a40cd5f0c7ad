#!/usr/bin/env bash
# A client that unpacks gzip can lose half of a body, with status 200 and without an error.
#
# RFC 1952 section 2.2 lets a body be several members in a row, as `cat a.gz b.gz` makes them, and RFC
# 9110 section 8.4.1.3 takes it as it is. httpx stops after the first. And of a body that was cut off
# before its end, but came with the right `content-length`, all four give what was there: so whoever
# has to break off a compressed response must break its framing, and never end it properly.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="urllib3: of two members b'one two'; of a cut body a part, no error
requests: of two members b'one two'; of a cut body a part, no error
httpx: of two members b'one '; of a cut body a part, no error
aiohttp: of two members b'one two'; of a cut body a part, no error"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    urllib3==2.8.0 requests==2.34.2 httpx==0.28.1 aiohttp==3.14.5

cat >ask.py <<'PY'
import asyncio
import gzip
import http.server
import random
import threading

import aiohttp
import httpx
import requests
import urllib3

LINES = bytes(random.Random(1).choices(b"abcdefghij", k=20_000))
BODIES = {
    "/members": gzip.compress(b"one ") + gzip.compress(b"two"),
    "/cut": gzip.compress(LINES)[:-5000],
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = BODIES[self.path]
        self.send_response(200)
        self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


async def by_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()


CLIENTS = {
    "urllib3": lambda url: urllib3.request("GET", url).data,
    "requests": lambda url: requests.get(url).content,
    "httpx": lambda url: httpx.get(url).content,
    "aiohttp": lambda url: asyncio.run(by_aiohttp(url)),
}

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}"
for name, get in CLIENTS.items():
    cut = get(f"{base}/cut")
    how = "a part, no error" if LINES.startswith(cut) and 0 < len(cut) < len(LINES) else repr(cut)
    print(f"{name}: of two members {get(f'{base}/members')!r}; of a cut body {how}")
server.shutdown()
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
