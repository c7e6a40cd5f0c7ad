#!/usr/bin/env bash
# Starlette's GZipMiddleware leaves a strong ETag on the compressed bytes.
#
# RFC 9110 section 8.8.3.3: other bytes of a representation need another strong entity tag. One tag
# for both means that `If-Range` and `If-Match` take one for the other: a client that has the
# beginning of the plain body is given the end of the compressed one. A weak tag would be right.
# Seen on 2026-12-01 with CPython 3.11.7 and the versions that are installed below.
set -euo pipefail

expected="identity: 2000 bytes, etag \"v1\"
gzip: fewer bytes, etag \"v1\""

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check starlette==1.10.0

cat >ask.py <<'PY'
import asyncio

from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse

app = GZipMiddleware(PlainTextResponse("x" * 2000, headers={"etag": '"v1"'}))


async def ask(coding):
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"accept-encoding", coding.encode())],
    }
    await app(scope, receive, send)
    headers = dict(sent[0]["headers"])
    size = sum(len(each.get("body", b"")) for each in sent[1:])
    assert headers.get(b"content-encoding", b"identity").decode() == coding
    words = f"{size} bytes" if size >= 2000 else "fewer bytes"
    print(f"{coding}: {words}, etag {headers[b'etag'].decode()}")


for each in ("identity", "gzip"):
    asyncio.run(ask(each))
PY

seen=$(venv/bin/python ask.py)
diff <(echo "$expected") <(echo "$seen")
