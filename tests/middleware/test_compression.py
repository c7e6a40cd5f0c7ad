"""`CompressionMiddleware`: the same content in fewer bytes, and nothing else changed."""

from __future__ import annotations

import builtins
import importlib
import random
import re
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import brotli
import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import CompressionMiddleware, ETagMiddleware, _codings
from httpmw.testing import Server
from tests.harness import EXTENSIONS, Chunks, PassThrough, body, request, script, start

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODINGS = ["gzip", "br", "zstd"]
ALL: dict[str, Any] = {name: {} for name in EXTENSIONS}
TEXT = b"some text that is said again and again " * 100


def ungzip(data: bytes) -> bytes:
    decoder = zlib.decompressobj(31)
    decoded = decoder.decompress(data)
    # One member, whole, and nothing behind it: browsers stop there.
    assert decoder.eof
    assert not decoder.unused_data
    return decoded


def unzstd(data: bytes) -> bytes:
    decoder = zstd.ZstdDecompressor()
    decoded = decoder.decompress(data)
    assert decoder.eof
    assert not decoder.unused_data
    return decoded


DECODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": ungzip,
    "br": brotli.decompress,
    "zstd": unzstd,
}


def plain(data: bytes = TEXT, **headers: str) -> Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(data, media_type="text/plain", headers=given)


def streamed(*chunks: bytes, media_type: str = "text/plain", **keys: Any) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamingResponse(Chunks(*chunks), media_type=media_type, **keys)
        await response(scope, receive, send)

    return app


async def ask(app: ASGIApp, accept: str | None = None, **options: Any) -> Server:
    headers = [*options.pop("headers", ())]
    if accept is not None:
        headers.append(("accept-encoding", accept))
    return await request(app, headers=headers, **options)


# -- what comes out --------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_a_whole_body(coding: str, spec: str | None, between: Any) -> None:
    """One coded message, with its length; layers further out see that."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append((response.headers["content-encoding"], await response.read()))

    inner: ASGIApp = CompressionMiddleware(plain())
    app = HTTPMiddleware(between(inner) if between else inner, dispatch=outer)
    server = await ask(app, coding, spec=spec)

    assert DECODE[coding](server.body) == TEXT
    assert server.headers["content-encoding"] == coding
    assert server.headers["content-length"] == str(len(server.body))
    assert server.headers["vary"] == "Accept-Encoding"
    assert seen == [(coding, server.body)]


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_stream(coding: str, spec: str | None) -> None:
    """It has no length, and is one stream of its coding."""
    chunks = [TEXT, b"", b"a", TEXT, b"end"]
    server = await ask(CompressionMiddleware(streamed(*chunks)), coding, spec=spec)

    assert DECODE[coding](server.body) == b"".join(chunks)
    assert "content-length" not in server.headers


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("flush", ["auto", "always", "never"])
async def test_random_bodies(coding: str, flush: Any) -> None:
    """Whatever the sizes of the chunks, the bytes are those of the application."""
    chance = random.Random(7)
    for number in range(8):
        chunks = [
            chance.choice([chance.randbytes, lambda size: b"ab" * (size // 2)])(
                int(chance.expovariate(1 / chance.choice([3, 300, 30_000])))
            )
            for _ in range(chance.randrange(6))
        ]
        size = {} if number % 2 else {"content-length": str(sum(map(len, chunks)))}
        app = CompressionMiddleware(streamed(*chunks, headers=size), flush=flush, min_size=0)
        server = await ask(app, coding)
        assert DECODE[coding](server.body) == b"".join(chunks)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [1000, 300_000])
async def test_files(tmp_path: Path, coding: str, size: int) -> None:
    """By messages, and by `pathsend`, where the file is read."""
    path = tmp_path / "file.txt"
    path.write_bytes(b"x" * size)
    app = CompressionMiddleware(FileResponse(path))
    for extensions in ({}, {"http.response.pathsend": {}}, ALL):
        server = await ask(app, coding, extensions=extensions)
        assert DECODE[coding](server.body) == b"x" * size
        assert "accept-ranges" not in server.headers
        assert server.headers["etag"].endswith(f'-{coding}"')


async def test_trailers_follow() -> None:
    """What stands behind a body stays there."""
    app = script(
        start(headers=[(b"content-type", b"text/plain")], trailers=True),
        body(TEXT),
        {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False},
    )
    server = await ask(CompressionMiddleware(app), "br", extensions=ALL)

    assert DECODE["br"](server.body) == TEXT
    assert server.sent[-1]["type"] == "http.response.trailers"


# -- what the client takes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("gzip, deflate", "gzip"),
        ("deflate", None),
        ("*", "zstd"),
        ("*;q=0.1, br;q=0.2", "br"),
        ("zstd;q=0, *", "br"),
        ("br;q=0", None),
        ("gzip;q=0.000", None),
        ("gzip;q=0.8, br;q=0.7, zstd;q=0.1", "gzip"),
        ("gzip;q=0.5, identity;q=0.6", None),
        ("gzip;q=0.5, identity;q=0.5", "gzip"),
        ("gzip;q=1.000 , br ; Q=0.3", "gzip"),
        ("br;q=2, gzip", "gzip"),
        ("br;q=, gzip", "gzip"),
        ("br;q=0.1234", None),
        ("br;level=3, gzip;q=0.1", "gzip"),
        ("gzipped, brr", None),
        (",, ,gzip,", "gzip"),
        ("gzip\x00", None),
        ("ü, gzip", "gzip"),
    ],
)
async def test_the_coding_that_is_wanted_most(accept: str | None, expected: str | None) -> None:
    """By weight, and of equal weight by what codes best (RFC 9110 section 12.5.3)."""
    server = await ask(CompressionMiddleware(plain()), accept)

    assert server.headers.get("content-encoding") == expected
    assert server.headers["vary"] == "Accept-Encoding"
    assert DECODE[expected](server.body) if expected else server.body == TEXT


async def test_several_lines_are_one_list() -> None:
    """As of any list field."""
    server = await ask(
        CompressionMiddleware(plain()),
        headers=[("accept-encoding", "br;q=0.5"), ("accept-encoding", "gzip")],
    )

    assert server.headers["content-encoding"] == "gzip"


async def test_the_order_is_that_of_the_codings() -> None:
    """What is not offered is not given."""
    app = CompressionMiddleware(plain(), codings=["gzip", "br"])

    assert (await ask(app, "*")).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in (await ask(app, "zstd")).headers


@pytest.mark.parametrize("accept", ["identity;q=0", "*;q=0", "deflate, identity;q=0.0"])
async def test_who_takes_nothing_is_refused_before_the_application_runs(accept: str) -> None:
    """Without a coding of ours, and not uncoded: 406, for what reads."""

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    for method in ("GET", "HEAD"):
        server = await ask(CompressionMiddleware(never), accept, method=method)
        assert server.status == 406
        assert server.headers["vary"] == "Accept-Encoding"

    server = await ask(CompressionMiddleware(plain()), accept, method="POST")
    assert (server.status, server.body) == (200, TEXT)


@pytest.mark.parametrize(
    "response", [Response(b"ab", media_type="image/png"), Response(b"ab", media_type="text/plain")]
)
async def test_who_takes_it_coded_only_gets_it_coded(response: Response) -> None:
    """Whatever the size and the type."""
    server = await ask(CompressionMiddleware(response), "br, identity;q=0")

    assert DECODE["br"](server.body) == b"ab"


# -- what is coded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "is_coded"),
    [
        ("text/html; charset=utf-8", True),
        ("TEXT/CSS", True),
        ("application/json", True),
        ("application/problem+json", True),
        ("application/atom+xml;q=1", True),
        ("image/svg+xml", True),
        ("application/wasm", True),
        ("font/ttf", True),
        ("image/png", False),
        ("application/octet-stream", False),
        ("font/woff2", False),
        ("application/zip", False),
        ("multipart/x-mixed-replace; boundary=a", False),
        ("text", False),
    ],
)
async def test_types(content_type: str, is_coded: bool) -> None:
    """What is small already stays as it is, and varies with nothing."""
    app = CompressionMiddleware(Response(TEXT, headers={"content-type": content_type}))
    for _ in range(2):  # the second time it is known
        server = await ask(app, "gzip")
        assert ("content-encoding" in server.headers) is is_coded
        assert ("vary" in server.headers) is is_coded


async def test_types_of_ones_own() -> None:
    """They take the place of the others."""
    types = ["application/*", "*+cbor", "x/y"]
    for media_type, is_coded in (
        ("application/pdf", True),
        ("a/b+cbor", True),
        ("X/Y", True),
        ("text/html", False),
        ("x/yz", False),
    ):
        app = CompressionMiddleware(Response(TEXT, media_type=media_type), types=types)
        assert ("content-encoding" in (await ask(app, "gzip")).headers) is is_coded


@pytest.mark.parametrize(
    "response",
    [
        plain(b"x" * 499),
        plain(content_encoding="deflate"),
        plain(cache_control="max-age=5, No-Transform"),
        plain(content_range="bytes 0-1/2"),
        Response(TEXT, 206, media_type="text/plain"),
        Response(b"", 204),
        Response(b"", 304),
        Response(b"", 205),
        Response(TEXT),
    ],
)
async def test_what_is_left_alone(response: Response) -> None:
    """Neither body nor headers are changed, but for the `Vary` of a 304."""
    for accept in ("gzip", None):
        before = await ask(response, accept)
        server = await ask(CompressionMiddleware(response), accept)
        assert server.body == before.body
        added = {"vary": "Accept-Encoding"} if response.status_code == 304 else {}
        assert dict(server.headers) == dict(before.headers) | added


async def test_a_length_that_is_not_known_is_coded() -> None:
    """Nobody knows how much is to come."""
    server = await ask(CompressionMiddleware(streamed(b"ab")), "gzip")

    assert DECODE["gzip"](server.body) == b"ab"


@pytest.mark.parametrize(
    ("vary", "expected"),
    [
        ("Cookie", "Cookie, Accept-Encoding"),
        ("accept-encoding", "accept-encoding"),
        ("Cookie, Accept-Encoding", "Cookie, Accept-Encoding"),
        ("*", "*"),
        ("Accept-Encoding-Not", "Accept-Encoding-Not, Accept-Encoding"),
    ],
)
async def test_vary(vary: str, expected: str) -> None:
    """It is said once, coded or not."""
    for accept in ("gzip", None):
        server = await ask(CompressionMiddleware(plain(vary=vary)), accept)
        assert server.headers.getlist("vary") == [expected]


async def test_a_head_has_the_headers_of_the_get() -> None:
    """But for the length, which nobody knows without the coding."""
    app = CompressionMiddleware(plain(etag='"v1"', content_digest="sha-256=:AA==:"))
    get = await ask(app, "br")
    head = await ask(app, "br", method="HEAD")

    assert head.body == b""
    assert {**head.headers, "content-length": get.headers["content-length"]} == {**get.headers}


async def test_what_describes_other_bytes_is_taken_out() -> None:
    """Digests are of what is sent (RFC 9530), and no range of it can be asked for."""
    app = CompressionMiddleware(
        plain(
            content_digest="x",
            repr_digest="x",
            content_md5="x",
            accept_ranges="bytes",
            last_modified="x",
        )
    )
    coded = await ask(app, "gzip")
    uncoded = await ask(app)

    assert {*coded.headers} == {
        *("content-type", "last-modified", "vary", "content-encoding", "content-length"),
    }
    assert {"content-digest", "accept-ranges"} <= {*uncoded.headers}


# -- tags ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ('"v1"', {}, '"v1-br"'),
        ('W/"v1"', {}, 'W/"v1"'),
        ('"v1"', {"etag": "weaken"}, 'W/"v1"'),
        ("v1", {}, "v1"),
    ],
)
async def test_a_coded_response_has_a_tag_of_its_own(
    given: str, options: Any, expected: str
) -> None:
    """A strong one is of these bytes (RFC 9110 section 8.8.3.3)."""
    app = CompressionMiddleware(plain(etag=given), **options)

    assert (await ask(app, "br")).headers["etag"] == expected
    assert (await ask(app)).headers["etag"] == given


def tagged(seen: list[Any], **headers: str) -> ASGIApp:
    """Give an app that answers 304 to its tag, byte by byte, and notes what it was asked with."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told = dict(scope["headers"])
        seen.append((told.get(b"if-none-match"), told.get(b"if-match")))
        tags = told.get(b"if-none-match", b"").decode().split(", ")
        status = 304 if headers["etag"] in tags else 200
        response = Response(TEXT, status, media_type="text/plain", headers=headers)
        await response(scope, receive, send)

    return app


@pytest.mark.parametrize(
    ("accept", "asked", "status", "named"),
    [
        ("br", '"v1-br"', 304, '"v1-br"'),
        ("br", 'W/"v1-br"', 200, '"v1-br"'),
        ("br", '"v0", "v1-br"', 304, '"v1-br"'),
        ("br", '"v1"', 304, '"v1"'),
        ("br", '"v1-gzip"', 200, '"v1-br"'),
        ("gzip", '"v1-gzip"', 304, '"v1-gzip"'),
        (None, '"v1"', 304, '"v1"'),
        (None, '"v1-br"', 200, '"v1"'),
    ],
)
async def test_a_second_visit_is_a_304_that_names_what_the_client_has(
    accept: str | None, asked: str, status: int, named: str
) -> None:
    """The suffix of the coding that this request would get is taken off inward."""
    app = CompressionMiddleware(tagged([], etag='"v1"'))
    server = await ask(app, accept, headers=[("if-none-match", asked)])

    assert (server.status, server.headers["etag"]) == (status, named)
    assert server.headers["vary"] == "Accept-Encoding"


async def test_a_304_of_a_weak_tag_names_that() -> None:
    """A weak tag has no suffix."""
    app = CompressionMiddleware(tagged([], etag='W/"v1"'))
    server = await ask(app, "br", headers=[("if-none-match", 'W/"v1"')])

    assert (server.status, server.headers["etag"]) == (304, 'W/"v1"')


async def test_a_304_names_the_weakened_tag() -> None:
    """With the strong one the client could not use what it has (RFC 9111 section 4.3.4)."""
    app = CompressionMiddleware(ETagMiddleware(plain(etag='"v1"')), etag="weaken")
    for asked, named in (('W/"v1"', 'W/"v1"'), ('"v1"', '"v1"')):
        server = await ask(app, "br", headers=[("if-none-match", asked)])
        assert (server.status, server.headers["etag"]) == (304, named)


async def test_what_is_to_be_changed_is_named_without_the_coding() -> None:
    """Whatever coding it had: the application has one tag for all of them."""
    seen: list[Any] = []
    app = CompressionMiddleware(tagged(seen, etag='"v1"'))
    for told in ('"v1-zstd"', '"v1-gzip", "x"', "*", '"v1"'):
        await ask(app, None, method="PUT", headers=[("if-match", told)])

    assert [if_match for _, if_match in seen] == [
        b'"v1-zstd", "v1"',
        b'"v1-gzip", "x", "v1"',
        b"*",
        b'"v1"',
    ]


@pytest.mark.parametrize("accept", [*CODINGS, None])
async def test_with_tags_of_ours_a_second_visit_is_a_304(accept: str | None) -> None:
    """Weak and strong, coded and not."""
    for weak in (True, False):
        app = CompressionMiddleware(ETagMiddleware(plain(), weak=weak))
        first = await ask(app, accept)
        given = first.headers["etag"]
        second = await ask(app, accept, headers=[("if-none-match", given)])
        assert (second.status, second.headers["etag"]) == (304, given)


# -- when it arrives -------------------------------------------------------------------------


class Arrivals:
    """An app that sends a chunk when the one before was decoded at the client."""

    def __init__(self, coding: str, chunks: Sequence[bytes], media_type: str) -> None:
        self.chunks = chunks
        self.media_type = media_type
        self.arrived: list[bytes] = []
        self.decoder: Any = {
            "gzip": lambda: zlib.decompressobj(31),
            "br": brotli.Decompressor,
            "zstd": zstd.ZstdDecompressor,
        }[coding]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self.media_type.encode())]
        await send(start(headers=headers))
        for number, chunk in enumerate(self.chunks):
            await send(body(chunk, more=True))
            if len(self.arrived) != number + 1:
                break
        await send(body())

    def arrive(self, message: Message) -> None:
        decode = getattr(self.decoder, "decompress", None) or self.decoder.process
        if (coded := message.get("body")) and (decoded := decode(coded)):
            self.arrived.append(decoded)


class Client(Server):
    """A client that decodes what it gets, at once."""

    def __init__(self, app: Arrivals, **options: Any) -> None:
        super().__init__(**options)
        self.app = app

    async def send(self, message: Message) -> None:
        await super().send(message)
        if message["type"] == "http.response.body":
            self.app.arrive(message)


LIVE = [
    "text/event-stream",
    "application/x-ndjson; charset=utf-8",
    "application/jsonl",
    "application/json-seq",
    "multipart/x-mixed-replace; boundary=a",
]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("media_type", LIVE)
async def test_events_arrive_when_they_are_sent(coding: str, media_type: str) -> None:
    """Each for itself, and past a proxy that would hold them back."""
    app = Arrivals(coding, [b"data: %d\n\n" % number for number in range(20)], media_type)
    types = ["text/*", "application/*", "multipart/*"]
    client = Client(app, headers={"accept-encoding": coding})
    await client.run(CompressionMiddleware(app, types=types))

    assert app.arrived == app.chunks
    assert client.headers["x-accel-buffering"] == "no"
    assert client.headers["content-encoding"] == coding


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(("flush", "arrived"), [("always", 20), ("never", 1), ("auto", 1)])
async def test_other_streams_arrive_by_the_rule(coding: str, flush: Any, arrived: int) -> None:
    """By `flush=`; by default the first chunk, and what comes after a while."""
    app = Arrivals(coding, [b"%02d" % number for number in range(20)], "text/plain")
    client = Client(app, headers={"accept-encoding": coding})
    await client.run(CompressionMiddleware(app, flush=flush))

    assert len(app.arrived) >= arrived
    assert app.arrived[0][:2] == b"00"
    assert ("x-accel-buffering" in client.headers) is (flush == "always")


async def test_what_comes_after_a_while_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 50 ms, or after 32 KiB."""
    now = 100.0
    monkeypatch.setattr("httpmw.middleware._compression.time.monotonic", lambda: now)
    sizes = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal now
        await send(start(headers=[(b"content-type", b"text/plain")]))
        for seconds, chunk in (
            (0, b"a"),
            (0.02, b"b"),
            (0.04, b"c"),
            (0.01, bytes(40_000)),
            (0, b""),
        ):
            now += seconds
            sizes.append(len(server.sent))
            await send(body(chunk, more=True))
        await send(body())

    server = Server(headers={"accept-encoding": "gzip"})
    await server.run(CompressionMiddleware(app))

    assert sizes == [1, 2, 2, 3, 4]


async def test_an_application_that_says_so_is_buffered() -> None:
    """Its own word on proxies stays."""
    app = streamed(
        b"data: 1\n\n", media_type="text/event-stream", headers={"x-accel-buffering": "yes"}
    )

    assert (await ask(CompressionMiddleware(app), "br")).headers["x-accel-buffering"] == "yes"


# -- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_body_that_fails_is_not_ended(coding: str, spec: str | None) -> None:
    """Neither its coding nor its framing: clients would take a part for the whole."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", b"text/event-stream")]))
        await send(body(b"data: 1\n\n", more=True))
        raise LookupError

    server = await ask(CompressionMiddleware(app), coding, spec=spec, keep_error=True)

    assert isinstance(server.error, LookupError)
    assert server.sent[-1].get("more_body", True)
    with pytest.raises((AssertionError, brotli.error, EOFError)):
        DECODE[coding](server.body)


async def test_a_client_that_leaves_is_no_error(spec: str | None) -> None:
    """The coder is dropped, and the application told."""
    app = streamed(*[TEXT] * 10, media_type="text/event-stream")
    options: Any = {"spec": spec, "leaves_after": 3, "keep_error": True}
    server = await ask(CompressionMiddleware(app), "zstd", **options)
    plainly = await ask(app, **options)

    # Starlette's own stream raises it from ASGI 2.4 on.
    assert type(server.error) is type(plainly.error)
    assert isinstance(server.error, ClientDisconnect | None)


# -- threads and secrets ---------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[TEXT], [TEXT, b"x"]])
@pytest.mark.parametrize("coding", CODINGS)
async def test_large_parts_are_coded_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, coding: str, chunks: list[bytes]
) -> None:
    """From `thread_size` on."""
    threads = []
    original = anyio.to_thread.run_sync

    async def noted(function: Any, *args: Any, **options: Any) -> Any:
        threads.append(len(args[0]))
        return await original(function, *args, **options)

    monkeypatch.setattr("httpmw.middleware._compression.anyio.to_thread.run_sync", noted)
    app = streamed(*chunks) if len(chunks) > 1 else plain()
    server = await ask(CompressionMiddleware(app, thread_size=len(TEXT)), coding)

    assert DECODE[coding](server.body) == b"".join(chunks)
    assert threads == [len(TEXT)]


@pytest.mark.parametrize(
    ("headers", "is_coded"),
    [
        ({}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"cookie": "a=b", "sec-fetch-site": "cross-site"}, False),
        ({"cookie": "a=b", "sec-fetch-site": "same-site"}, False),
        ({"cookie": "a=b", "sec-fetch-site": "same-origin"}, True),
        ({"cookie": "a=b", "sec-fetch-site": "none"}, True),
        ({"cookie": "a=b"}, False),
        ({"cookie": "a=b", "host": "a.example", "referer": "http://a.example/x"}, True),
        ({"cookie": "a=b", "host": "a.example", "referer": "http://b.example/x"}, False),
        ({"cookie": "a=b", "host": "a.example", "origin": "http://a.example"}, True),
    ],
)
async def test_secrets_are_not_coded_for_other_sites(headers: Any, is_coded: bool) -> None:
    """Their pages could guess them by the length (RFC 9110 section 17.6)."""
    app = CompressionMiddleware(plain(), breach_protection=True)
    server = await ask(app, "gzip", headers=headers.items())

    assert ("content-encoding" in server.headers) is is_coded
    assert server.headers["vary"] == "Accept-Encoding"


# -- libraries -------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Take libraries away."""
    original = importlib.import_module

    def take(*names: str) -> None:
        def import_module(name: str, package: str | None = None) -> Any:
            if name in names:
                raise ImportError(name)
            return original(name, package)

        monkeypatch.setattr(_codings.importlib, "import_module", import_module)

    return take


async def test_what_is_not_installed_is_not_offered(without: Any) -> None:
    """By default; what is asked for by name is an error that names the extra."""
    without("brotli", "brotlicffi", "compression.zstd", "backports.zstd", "zstandard")
    app = CompressionMiddleware(plain())

    assert (await ask(app, "zstd, br, gzip")).headers["content-encoding"] == "gzip"
    for name in ("br", "zstd"):
        with pytest.raises(ImportError, match=r"pip install 'httpmw\[compression\]'"):
            CompressionMiddleware(plain(), codings=[name])


@pytest.mark.parametrize("level", [-7, 3, 19, 20])
@pytest.mark.parametrize("library", ["zstd", "zstandard"])
def test_the_window_is_one_that_browsers_take(without: Any, level: int, library: str) -> None:
    """8 MiB at most at every level (RFC 9659), of a stream and of a whole."""
    if library == "zstandard":
        pytest.importorskip("zstandard")
        without("compression.zstd", "backports.zstd")
    coding = _codings.zstd(level)
    assert coding is not None
    coder = coding.coder(True)
    stream = coder.flush(TEXT) + coder.add(b"x") + coder.finish()

    for coded, decoded in ((stream, TEXT + b"x"), (coding.whole(TEXT, True), TEXT)):
        assert unzstd(coded) == decoded
        assert window(coded) <= 8 * 1024 * 1024


def window(frame: bytes) -> int:
    """Read the size of the window (RFC 8878 section 3.1.1)."""
    assert frame[:4] == b"\x28\xb5\x2f\xfd"
    if frame[4] & 0x20:  # a single segment: the window is the content
        return len(TEXT)
    exponent, mantissa = frame[5] >> 3, frame[5] & 7
    base = 1 << (10 + exponent)
    return base + base // 8 * mantissa


def test_nothing_is_imported_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """To import the class loads no library of a coding."""
    before = builtins.__import__
    loaded = []

    def noted(name: str, *args: Any) -> Any:
        loaded.append(name)
        return before(name, *args)

    monkeypatch.setattr(builtins, "__import__", noted)
    importlib.reload(importlib.import_module("httpmw.middleware._codings"))

    assert not {"brotli", "zstandard", "backports.zstd"} & {*loaded}


def test_coders_are_not_shared_between_threads() -> None:
    """One that is in use is not given to somebody else."""
    coding = _codings.zstd(3)
    assert coding is not None
    failed = []

    def code(number: int) -> None:
        data = bytes([number]) * 200_000
        for _ in range(20):
            if unzstd(coding.whole(data, False)) != data:
                failed.append(number)

    threads = [threading.Thread(target=code, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failed


def test_what_is_remembered_of_clients_is_bounded() -> None:
    """Memory does not grow with the fields that they make up."""
    app = CompressionMiddleware(plain())
    for number in range(1100):
        app._choice(b"gzip, x%d" % number)
    app._choice(b"gzip," * 500)

    assert len(app._choices) <= 1024
    assert max(map(len, app._choices)) <= 1024


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codings": "br"}, "a collection of some of"),
        ({"codings": []}, "a collection of some of"),
        ({"codings": ["deflate"]}, "a collection of some of"),
        ({"gzip_level": 10}, "0 to 9"),
        ({"brotli_quality": 12}, "0 to 11"),
        ({"zstd_level": 23}, "-131072 to 22"),
        ({"min_size": -1}, "a number of bytes"),
        ({"thread_size": True}, "a number of bytes"),
        ({"types": "text/html"}, "media types, as in"),
        ({"types": ["text"]}, "not 'text'"),
        ({"types": ["text/html; a=b"]}, "not 'text/html; a=b'"),
        ({"flush": True}, '"auto", "always" or "never"'),
        ({"etag": "strong"}, '"suffix" or "weaken"'),
        ({"breach_protection": 1}, "a bool"),
        ({"response": 3}, "a plain function"),
        ({"drain": 3}, "a bool, or a mapping"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made."""
    with pytest.raises(TypeError, match=re.escape(words)):
        CompressionMiddleware(plain(), **options)
