"""
Random headers and random bodies through the layers that answer as the web wants it.

    python -m tools.answers                              1,000,000 headers, 100,000 bodies
    python -m tools.answers --headers 20000 --bodies 500 --first 7

Headers: whatever a client says in `Accept-Encoding`, `If-None-Match`, `If-Match`, the dates,
`Range`, `If-Range`, `Origin`, `Host`, `Sec-Fetch-Site`, `Referer` and `Cookie`, nothing is raised,
no answer is a 500, and a 200 has the bytes of the application in the coding that it names.

Bodies: random ones in random chunks, with and without a length, in each coding and with each rule
of flushing, decoded by others' libraries, in one stream that ends where the body does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import brotli
from starlette.datastructures import Headers
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw.middleware import (
    CompressionMiddleware,
    CrossOriginProtectionMiddleware,
    ETagMiddleware,
    ProblemDetailsMiddleware,
    SecurityHeadersMiddleware,
    TimeoutMiddleware,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b"some text that is said again and again " * 40
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"

# What values are made of: parts of valid ones, and what is none.
PARTS = (
    *("gzip", "br", "zstd", "identity", "*", "deflate", "x-gzip", ";q=", "0", "1", "0.5", "0.001"),
    *('"v1"', 'W/"v1"', '"v1-br"', '"v1-gzip"', "W/", '"', "v1", '"a,b"', "-zstd", '""'),
    *(",", ", ", " ", "\t", ";", "=", "/", ":", "?", "#", "@", "%", "\\", "\x7f", "\xe4", "\xff"),
    *("bytes=", "0-", "-5", "5-2", "0-0,2-3", "99999999999999999999", "bytes", "-"),
    *(
        "https://",
        "http://",
        "a.example",
        "evil.example",
        "null",
        "[::1]",
        ":80",
        ":x",
        "localhost",
    ),
    *("same-origin", "same-site", "cross-site", "none", "GMT", DATE, "Sun, ", "06 Nov", "1994"),
)
WHOLE = {
    "accept-encoding": ("gzip, deflate, br, zstd", "br;q=0.5, *;q=0", "identity;q=0", ""),
    "if-none-match": ('"v1"', 'W/"v1"', '"v1-br"', "*"),
    "if-match": ('"v1"', "*", '"v1-gzip"'),
    "if-modified-since": (DATE,),
    "if-unmodified-since": (DATE,),
    "if-range": ('"v1"', DATE),
    "range": ("bytes=0-9", "bytes=5-"),
    "origin": ("https://a.example", "https://evil.example", "null"),
    "host": ("a.example", "127.0.0.1:80", ""),
    "sec-fetch-site": ("same-origin", "cross-site", "none"),
    "referer": ("https://a.example/x",),
    "cookie": ("a=b",),
    "accept": ("text/event-stream", "*/*"),
}
STATUSES = frozenset((200, 206, 304, 400, 403, 406, 412, 416, 428))


def unzstd(data: bytes) -> bytes:
    decoder = zstd.ZstdDecompressor()
    decoded = decoder.decompress(data)
    if not decoder.eof or decoder.unused_data:
        raise ValueError("not one frame")
    return decoded


def ungzip(data: bytes) -> bytes:
    decoder = zlib.decompressobj(31)
    decoded = decoder.decompress(data)
    if not decoder.eof or decoder.unused_data:
        raise ValueError("not one member")
    return decoded


DECODE: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": ungzip,
    "br": brotli.decompress,
    "zstd": unzstd,
}


class Asked:
    """One request and its answer, without a server."""

    def __init__(self, method: str, headers: list[tuple[str, str]]) -> None:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": raw,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
            "extensions": {},
        }
        self.status = 0
        self.body = b""
        self.headers = Headers()

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = Headers(raw=message["headers"])
        else:
            self.body += message.get("body", b"")

    async def run(self, app: ASGIApp) -> Asked:
        await app(self.scope, self.receive, self.send)
        return self


def value_of(rng: random.Random, name: str) -> str:
    if rng.random() < 0.3:
        return rng.choice(WHOLE[name])
    return "".join(rng.choices(PARTS, k=rng.randrange(9)))


async def headers(count: int, first: int) -> Counter[int]:
    """Ask with *count* random requests."""
    plain = PlainTextResponse(TEXT, headers={"etag": '"v1"', "last-modified": DATE})
    page = HTMLResponse(TEXT)
    file = FileResponse(__file__, media_type="text/plain")
    inner: list[tuple[Any, bytes]] = [(plain, TEXT), (page, TEXT), (file, b"")]

    async def current(conn: Any) -> str | None:
        return '"v1"' if conn["method"] != "DELETE" else None

    def layers(app: ASGIApp, **etag: Any) -> ASGIApp:
        app = ETagMiddleware(app, **etag)
        app = TimeoutMiddleware(CompressionMiddleware(app, breach_protection=True))
        app = ProblemDetailsMiddleware(CrossOriginProtectionMiddleware(app))
        return SecurityHeadersMiddleware(app, csp_nonce=True)

    stacks = [(layers(app), whole) for app, whole in inner]
    stacks += [(layers(plain, current=current, require_condition=True), TEXT)]
    statuses: Counter[int] = Counter()
    for seed in range(first, first + count):
        rng = random.Random(seed)
        names = rng.choices([*WHOLE], k=rng.randrange(6))
        told = [(name, value_of(rng, name)) for name in names]
        method = rng.choice(("GET", "GET", "HEAD", "POST", "PUT", "DELETE"))
        app, whole = rng.choices(stacks, weights=(10, 10, 1, 10))[0]
        try:
            asked = await Asked(method, told).run(app)
            assert asked.status in STATUSES, asked.status
            if asked.status == 200 and method != "HEAD" and whole:
                coding = asked.headers.get("content-encoding")
                assert DECODE[coding](asked.body) == whole, coding
        except BaseException:
            print(f"request {seed}: {method} {told}", file=sys.stderr)
            raise
        statuses[asked.status] += 1
    return statuses


async def bodies(count: int, first: int) -> Counter[str]:
    """Code *count* random bodies."""
    seen: Counter[str] = Counter()
    chunks: list[bytes] = []
    start: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*start]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    made = {
        (coding, flush): CompressionMiddleware(
            app, codings=[coding], flush=flush, min_size=0, thread_size=50_000
        )
        for coding in ("gzip", "br", "zstd")
        for flush in ("auto", "always", "never")
    }
    for seed in range(first, first + count):
        rng = random.Random(seed)
        coding, flush = rng.choice([*made])
        scale = rng.choice((1, 10, 300, 5_000, 60_000))
        chunks[:] = [
            rng.choice((rng.randbytes, lambda size: b"ab" * (size // 2), bytes))(
                int(rng.expovariate(1 / scale))
            )
            for _ in range(rng.randrange(8))
        ]
        whole = b"".join(chunks)
        start[:] = [(b"content-type", rng.choice((b"text/plain", b"text/event-stream")))]
        if rng.random() < 0.5:
            start.append((b"content-length", b"%d" % len(whole)))
        asked = await Asked("GET", [("accept-encoding", coding)]).run(made[coding, flush])
        assert asked.headers["content-encoding"] == coding, seed
        assert DECODE[coding](asked.body) == whole, f"body {seed}: {coding}, {flush}"
        seen[coding] += 1
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--headers", type=int, default=1_000_000, metavar="COUNT")
    parser.add_argument("--bodies", type=int, default=100_000, metavar="COUNT")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    options = parser.parse_args()
    logging.disable()
    for what, run, count in (
        ("headers", headers, options.headers),
        ("bodies", bodies, options.bodies),
    ):
        began = time.perf_counter()
        seen: Any = asyncio.run(run(count, options.first))
        seconds = time.perf_counter() - began
        print(f"{what}: {count:,} in {seconds:.0f} s, all right; {dict(sorted(seen.items()))}")


if __name__ == "__main__":
    main()
