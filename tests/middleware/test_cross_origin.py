"""`CrossOriginProtectionMiddleware`: what pages of other origins have a browser send."""

from __future__ import annotations

import itertools
import logging
import re
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import MiddlewareStack, _order
from httpmw.middleware import CrossOriginProtectionMiddleware, OrderWarning, recommended
from httpmw.testing import Server
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import PassThrough, request

HOST = "shop.example"
OWN = f"https://{HOST}"
EVIL = "https://evil.example"
ok = PlainTextResponse("ok")


def layer(app: ASGIApp = ok, **options: Any) -> CrossOriginProtectionMiddleware:
    return CrossOriginProtectionMiddleware(app, **options)


async def status(app: ASGIApp, *told: tuple[str, str], method: str = "POST") -> int | None:
    headers = [("host", HOST), *told]
    return (await request(app, method=method, headers=headers, body=b"x")).status


# -- requests, as Go 1.25 has it (net/http/csrf.go) -------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_safe_methods_pass(method: str) -> None:
    """Whoever asks: they change nothing."""
    told = ("sec-fetch-site", "cross-site"), ("origin", EVIL)

    assert await status(layer(), *told, method=method) == 200


@pytest.mark.parametrize("method", ["POST", "QUERY"])
@pytest.mark.parametrize(
    ("site", "origin", "expected"),
    [
        ("same-origin", None, 200),
        ("none", None, 200),
        ("cross-site", None, 403),
        ("same-site", None, 403),
        ("nonsense", None, 403),
        (None, None, 200),
        (None, OWN, 200),
        (None, f"http://{HOST}", 200),
        (None, EVIL, 403),
        (None, f"{OWN}:8443", 403),
        (None, "null", 403),
        (None, HOST, 403),
        # What the browser says of itself comes first.
        ("same-origin", EVIL, 200),
        ("same-origin", "null", 200),
        ("cross-site", OWN, 403),
        # As if it were not there.
        ("", EVIL, 403),
        ("", "", 200),
    ],
)
async def test_what_a_browser_says_decides(
    method: str, site: str | None, origin: str | None, expected: int
) -> None:
    """`Sec-Fetch-Site`, then whether `Origin` names the host."""
    told = [("sec-fetch-site", site)] if site is not None else []
    told += [("origin", origin)] if origin is not None else []

    assert await status(layer(), *told, method=method) == expected


@pytest.mark.parametrize(
    "told",
    [
        [("origin", OWN), ("origin", EVIL)],
        [("origin", OWN), ("origin", OWN)],
        [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none")],
        [("origin", OWN), ("host", "other.example")],
        [("origin", f"{OWN}/path")],
        [("origin", f"{OWN}?")],
        [("origin", f"https://me@{HOST}")],
        [("origin", f"//{HOST}")],
        [("origin", "https://")],
    ],
)
async def test_doubt_refuses(told: Any) -> None:
    """Several fields, and what is no origin."""
    assert await status(layer(), *told) == 403


async def test_trusted_origins_pass() -> None:
    """Byte by byte, with what the browser says and without."""
    app = layer(trusted_origins=["https://app.example", "http://app.example:8080"])
    for site, origin in itertools.product(
        ("cross-site", None), ("https://app.example", "http://app.example:8080")
    ):
        told = [("sec-fetch-site", site)] if site else []
        assert await status(app, *told, ("origin", origin)) == 200
    for origin in ("http://app.example", "https://app.example:8080", "https://app.example."):
        assert await status(app, ("origin", origin)) == 403


async def test_the_same_site_where_it_is_allowed() -> None:
    """All subdomains are trusted then."""
    assert await status(layer(allow_same_site=True), ("sec-fetch-site", "same-site")) == 200
    assert await status(layer(allow_same_site=True), ("sec-fetch-site", "cross-site")) == 403


async def test_the_port_is_part_of_the_host() -> None:
    """Another port is another origin."""
    for host, origin, expected in (
        ("localhost:8000", "http://localhost:8000", 200),
        ("localhost:8000", "http://localhost:9000", 403),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("SHOP.example", "https://shop.example", 200),
    ):
        headers = {"host": host, "origin": origin}
        server = await request(layer(), method="POST", headers=headers)
        assert server.status == expected


# -- the refusal -----------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_the_refusal(spec: str | None, between: Any) -> None:
    """A problem document, when the upload was received; the app is not run."""

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    server = await request(
        layer(between(layer(never)) if between else layer(never)),
        method="POST",
        headers={"host": HOST, "origin": EVIL},
        body=[b"x" * 1000] * 10,
        spec=spec,
    )

    assert server.status == 403
    assert server.headers["content-type"] == "application/problem+json"
    assert server.json()["code"] == "cross-origin"
    assert server.receives == 10
    assert "connection" not in server.headers


@pytest.mark.parametrize(
    ("drain", "receives", "closes"),
    [(True, 2, False), (False, 0, False), ({"max_size": 3}, 0, True), ({"seconds": 9}, 2, False)],
)
async def test_how_much_of_an_upload_is_received(drain: Any, receives: int, closes: bool) -> None:
    """Beyond the bound the connection ends."""
    headers = {"host": HOST, "origin": EVIL, "content-length": "4"}
    server = await request(layer(drain=drain), method="POST", headers=headers, body=[b"ab", b"cd"])

    assert (server.status, server.receives) == (403, receives)
    assert ("connection" in server.headers) is closes


@pytest.mark.parametrize("version", ["1.0", "1", "2", "3"])
async def test_from_http_2_on_a_connection_is_not_ended(version: str) -> None:
    """There the field is malformed (RFC 9113 section 8.2.2); granian calls 1.0 "1"."""
    server = Server(method="POST", headers={"host": HOST, "origin": EVIL}, body=b"abcd")
    server.scope["http_version"] = version
    await server.run(layer(drain={"max_size": 3}))

    assert ("connection" in server.headers) is version.startswith("1")


async def test_a_response_of_ones_own() -> None:
    """It is made of the connection and of the problem."""

    def sorry(conn: Any, problem: Any) -> PlainTextResponse:
        return PlainTextResponse(f"{conn.url.path} {problem.code}", 418)

    server = await request(
        layer(response=sorry), method="POST", headers={"host": HOST, "origin": EVIL}
    )

    assert (server.status, server.body) == (418, b"/ cross-origin")


async def test_what_is_no_response_is_an_error() -> None:
    """The error names the function."""

    def sorry(conn: Any, problem: Any) -> Any:
        return "no"

    with pytest.raises(TypeError, match=r"`response`, .*sorry.* gave 'no'"):
        await request(layer(response=sorry), method="POST", headers={"origin": EVIL})


async def test_what_would_be_refused_is_reported(caplog: Any) -> None:
    """It passes, and the line says why it would not."""
    app = layer(report_only=True)
    with caplog.at_level(logging.WARNING):
        assert await status(app, ("origin", EVIL), ("sec-fetch-site", "cross-site")) == 200

    [line] = caplog.messages
    assert line == (
        f"POST / would be refused by Sec-Fetch-Site: Origin {EVIL}, Host {HOST},"
        " Sec-Fetch-Site cross-site"
    )


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "10.0.0.7", "[::1]:80", "localhost:1"])
async def test_the_line_names_the_proxy_that_hides_the_host(caplog: Any, host: str) -> None:
    """A proxy that puts its own address into `Host` is the usual cause."""
    headers = {"host": host, "origin": OWN}
    with caplog.at_level(logging.WARNING):
        await request(layer(), method="POST", headers=headers)

    assert f"refused by Origin: Origin {OWN}, Host {host}, Sec-Fetch-Site -" in caplog.text
    assert "proxy_set_header Host $host" in caplog.text


async def test_the_line_has_no_bytes_of_the_client_s_own(caplog: Any) -> None:
    """What a client sends is escaped, and cut."""
    with caplog.at_level(logging.WARNING):
        await request(
            layer(), method="POST", path="/a%0Ab", headers={"origin": "\x1b[2J" + "x" * 500}
        )

    [line] = caplog.messages
    assert line.startswith("POST /a\\nb refused by Origin: Origin \\x1b[2Jxxx")
    assert len(line) < 400


async def test_a_handshake_that_lost_its_upgrade_is_reported_once(caplog: Any) -> None:
    """A proxy that does not pass `Upgrade` on makes a plain GET of it."""
    app = layer()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            headers = {"sec-websocket-key": "x", "host": HOST}
            assert (await request(app, path="/ws", headers=headers)).status == 200
        await request(app, headers={"sec-websocket-key": "x", "upgrade": "websocket"})

    [line] = caplog.messages
    assert line.startswith("/ws was asked for by a WebSocket handshake that came without `Upgrade`")


# -- handshakes ------------------------------------------------------------------------------


async def accepts(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close"})


async def accepted(app: ASGIApp, *told: tuple[str, str]) -> bool:
    server = await SocketServer(headers=[("host", HOST), *told], extensions=DENIES).run(app)
    first = server.sent[0]
    assert first["type"] == "websocket.accept" or first["status"] == 403
    return bool(first["type"] == "websocket.accept")


@pytest.mark.parametrize(
    ("origins", "site", "expected"),
    [
        ([], None, True),
        ([OWN], None, True),
        ([OWN], "same-origin", True),
        ([OWN], "none", True),
        ([OWN], "cross-site", False),
        ([OWN], "same-site", False),
        ([EVIL], None, False),
        ([EVIL], "same-origin", False),
        (["null"], None, False),
        ([OWN, OWN], None, False),
        ([f"{OWN}:8443"], None, False),
        (["https://app.example"], None, True),
        (["https://app.example"], "cross-site", True),
    ],
)
async def test_a_handshake_is_decided_by_its_origin(
    origins: list[str], site: str | None, expected: bool
) -> None:
    """It is a GET whose answer any page can read; browsers send no `Sec-Fetch-Site` with it."""
    told = [("origin", origin) for origin in origins]
    told += [("sec-fetch-site", site)] if site else []

    assert (
        await accepted(layer(accepts, trusted_origins=["https://app.example"]), *told) is expected
    )


async def test_a_handshake_without_an_origin_where_it_has_to_have_one() -> None:
    """No browser sends that."""
    assert await accepted(layer(accepts, require_origin=True), ("origin", OWN))
    assert not await accepted(layer(accepts, require_origin=True))


async def test_handshakes_can_be_left_alone() -> None:
    """With `websocket=False` they pass."""
    assert await accepted(layer(accepts, websocket=False), ("origin", EVIL))


async def test_a_refused_handshake_is_reported(caplog: Any) -> None:
    """The client learns nothing of the reason; the log does."""
    with caplog.at_level(logging.WARNING):
        await accepted(layer(accepts), ("origin", EVIL))

    assert caplog.messages == [
        f"WebSocket / refused by Origin: Origin {EVIL}, Host {HOST}, Sec-Fetch-Site -"
    ]


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("app.example", "has to begin with a scheme"),
        ("https://", "has to begin with a scheme"),
        ("https://app.example/", "nothing but a scheme, a host and a port"),
        ("https://app.example?", "nothing but a scheme, a host and a port"),
        ("https://me@app.example", "nothing but a scheme, a host and a port"),
        ("https://App.example", "in lower case"),
        ("https://*.app.example", "no single origin"),
        ("https://app.example:443", "must not name the port"),
        ("http://app.example:80", "must not name the port"),
        ("https://app.example:", "must not name the port"),
        ("https://app.example:x", "is no URL"),
        ("https://bücher.example", "punycode"),
        ("null", "has to begin with a scheme"),
        (3, "is no text"),
    ],
)
def test_origins_are_checked_where_they_are_given(origin: Any, words: str) -> None:
    """One that no browser ever sends would trust nobody."""
    with pytest.raises(TypeError, match=re.escape(words)):
        layer(trusted_origins=[origin])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trusted_origins": OWN}, "origins, as in"),
        ({"allow_same_site": "yes"}, "a bool"),
        ({"require_origin": 1}, "a bool"),
        ({"report_only": None}, "a bool"),
        ({"response": 3}, "a plain function"),
        ({"drain": 5}, "a bool, or a mapping with `max_size` and `seconds`"),
        ({"drain": {"size": 5}}, "a bool, or a mapping with `max_size` and `seconds`"),
        ({"drain": {"seconds": -1}}, "a bool, or a mapping with `max_size` and `seconds`"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made."""
    with pytest.raises(TypeError, match=re.escape(words)):
        layer(**options)


# -- beside CORS -----------------------------------------------------------------------------


async def test_origins_of_cors_that_are_not_trusted_are_warned_about() -> None:
    """Their pages may read, and everything they write would be a 403."""
    before = set(_order._said)
    _order._said.clear()
    try:
        cors = {"allow_origins": ["https://app.example", "https://x.example", "*"]}
        trusted = {"trusted_origins": ["https://app.example"]}
        layers = recommended(cors=cors, cross_origin=trusted)
        with pytest.warns(OrderWarning, match="lets pages of https://x.example ask"):
            stack = MiddlewareStack(ok, layers)
        with stack.edit():
            pass  # it was said
        _order._said.clear()
        MiddlewareStack(ok, recommended(cors={"allow_origins": ["*"]}, cross_origin=True))
        MiddlewareStack(
            ok,
            [
                Middleware(CORSMiddleware, allow_origins=["https://app.example"]),
                Middleware(CrossOriginProtectionMiddleware, **trusted),
            ],
        )
    finally:
        _order._said.update(before)
