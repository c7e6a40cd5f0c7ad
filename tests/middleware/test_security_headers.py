"""`SecurityHeadersMiddleware`: what a browser is told that a page may do."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareError
from httpmw.middleware import CompressionMiddleware, CSPNonce, SecurityHeadersMiddleware
from httpmw.testing import Server
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import PassThrough, body, request, script, start

POLICY = "content-security-policy"
HSTS = "strict-transport-security"
ok = PlainTextResponse("ok")
page: ASGIApp = HTMLResponse("<p>")


async def headers(app: ASGIApp, *, scheme: str = "http", host: str = "a.example") -> Any:
    server = Server(headers={"host": host})
    server.scope["scheme"] = scheme
    await server.run(app)
    return server.headers


def policy(text: str) -> dict[str, list[str]]:
    return {name: sources for name, *sources in map(str.split, text.split(";"))}


# -- presets ---------------------------------------------------------------------------------


async def test_web() -> None:
    """For pages: what breaks few of them."""
    sent = await headers(SecurityHeadersMiddleware(ok), scheme="https")

    assert dict(sent) == {
        "content-length": "2",
        "content-type": "text/plain; charset=utf-8",
        "content-security-policy": (
            "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'self';"
            " object-src 'none'"
        ),
        "x-frame-options": "SAMEORIGIN",
        "cross-origin-opener-policy": "same-origin-allow-popups",
        "cross-origin-resource-policy": "same-site",
        "referrer-policy": "strict-origin-when-cross-origin",
        "x-content-type-options": "nosniff",
        "permissions-policy": ("camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
        "strict-transport-security": "max-age=31536000",
    }


async def test_api() -> None:
    """For what gives no pages: nothing may be loaded by one."""
    sent = await headers(SecurityHeadersMiddleware(ok, preset="api"), scheme="https")

    assert dict(sent) == {
        "content-length": "2",
        "content-type": "text/plain; charset=utf-8",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "strict-transport-security": "max-age=31536000",
    }


async def test_strict() -> None:
    """OWASP's list, but for what breaks caches, sign-outs and forms."""
    sent = await headers(SecurityHeadersMiddleware(ok, preset="strict"), scheme="https")

    assert policy(sent[POLICY]) == {
        "default-src": ["'self'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
        "object-src": ["'none'"],
        "frame-ancestors": ["'none'"],
        "upgrade-insecure-requests": [],
    }
    assert sent[HSTS] == "max-age=63072000; includeSubDomains"
    assert sent["referrer-policy"] == "strict-origin-when-cross-origin"
    assert {"accelerometer=()", "sync-xhr=(self)"} <= {*sent["permissions-policy"].split(", ")}
    for absent in ("cache-control", "clear-site-data", "cross-origin-embedder-policy"):
        assert absent not in sent


@pytest.mark.parametrize("preset", ["web", "api", "strict"])
async def test_the_heads_stay_small(preset: Any) -> None:
    """A proxy takes some 4 KiB of headers."""
    app = SecurityHeadersMiddleware(page, preset=preset, csp_nonce=True)
    server = Server()
    server.scope["scheme"] = "https"
    await server.run(app)

    size = sum(len(name) + len(value) + 4 for name, value in server.sent[0]["headers"])
    assert size < 3072


async def test_none_sends_what_is_asked_for_alone() -> None:
    """Without a preset the keywords are all there is."""
    app = SecurityHeadersMiddleware(ok, preset=None, frame_options="DENY", coep="require-corp")

    sent = await headers(app)

    assert {*sent} == {
        *("content-length", "content-type", "x-frame-options", "cross-origin-embedder-policy"),
    }


# -- TLS -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "host", "expected"),
    [
        ("https", "shop.example", True),
        ("https", "shop.example:8443", True),
        ("http", "shop.example", False),
        ("https", "localhost", False),
        ("https", "localhost:8000", False),
        ("https", "LOCALHOST.", False),
        ("https", "x.localhost:1", False),
        ("https", "192.168.0.1:443", False),
        ("https", "[::1]:443", False),
        ("https", "[::1]", False),
        ("https", "", False),
    ],
)
async def test_what_cannot_be_taken_back_is_said_of_names_over_tls(
    scheme: str, host: str, expected: bool
) -> None:
    """Browsers keep it for a year, for whoever has that address then (RFC 6797 section 8.1.1)."""
    app = SecurityHeadersMiddleware(ok, preset="strict")
    for _ in range(2):  # the second time it is known
        sent = await headers(app, scheme=scheme, host=host)

        assert (HSTS in sent) is expected
        assert ("upgrade-insecure-requests" in sent[POLICY]) is expected


async def test_hosts_that_are_made_up_are_forgotten() -> None:
    """Memory does not grow with the names that clients send."""
    app = SecurityHeadersMiddleware(ok)
    for number in range(1100):
        await headers(app, scheme="https", host=f"h{number}.example")

    assert len(app._hosts) <= 1024


# -- the application's own -------------------------------------------------------------------


async def test_the_application_s_own_header_wins() -> None:
    """Each name is there once."""
    app = script(
        start(headers=[(b"content-security-policy", b"img-src *"), (b"x-frame-options", b"DENY")]),
        body(),
    )
    server = await request(SecurityHeadersMiddleware(app), keep_error=True)
    sent = [(name.lower(), value) for name, value in server.sent[0]["headers"]]

    assert sent.count((b"content-security-policy", b"img-src *")) == 1
    assert [name for name, _ in sent].count(b"content-security-policy") == 1
    assert [value for name, value in sent if name == b"x-frame-options"] == [b"DENY"]


async def test_two_policies_of_its_own_both_stay() -> None:
    """Policies intersect: two fields are not the same as the first."""
    both = [(POLICY.encode(), b"img-src *"), (POLICY.encode(), b"script-src *")]
    server = await request(
        SecurityHeadersMiddleware(script(start(headers=both), body())), keep_error=True
    )

    assert server.headers.getlist(POLICY) == ["img-src *", "script-src *"]


async def test_override_puts_ours_in_their_place() -> None:
    """All of its own are dropped, then."""
    both = [(POLICY.encode(), b"img-src *"), (POLICY.encode(), b"script-src *")]
    app = SecurityHeadersMiddleware(
        script(start(headers=both), body()), csp="img-src x.example", override=True
    )
    server = await request(app, keep_error=True)

    assert server.headers.getlist(POLICY) == ["img-src x.example"]


async def test_headers_are_removed() -> None:
    """What tells strangers what runs here is taken out."""
    app = script(
        start(headers=[(b"x-powered-by", b"mine"), (b"x-runtime", b"1"), (b"x-a", b"1")]), body()
    )
    kept = await request(SecurityHeadersMiddleware(app, preset=None), keep_error=True)
    removed = await request(
        SecurityHeadersMiddleware(app, preset=None, remove=["X-Runtime"]), keep_error=True
    )

    assert [name for name, _ in kept.sent[0]["headers"]] == [b"x-runtime", b"x-a"]
    assert [name for name, _ in removed.sent[0]["headers"]] == [b"x-powered-by", b"x-a"]


# -- options ---------------------------------------------------------------------------------


async def test_directives_are_put_over_those_of_the_preset() -> None:
    """A text or a list of sources; True is a directive without any, False takes one out."""
    app = SecurityHeadersMiddleware(
        ok,
        csp={
            "img-src": ["'self'", "https://img.example"],
            "script-src": "'self' https://cdn.example",
            "sandbox": True,
            "object-src": False,
            "form-action": None,
        },
    )

    assert policy((await headers(app))[POLICY]) == {
        "default-src": ["'self'"],
        "base-uri": ["'self'"],
        "frame-ancestors": ["'self'"],
        "img-src": ["'self'", "https://img.example"],
        "script-src": ["'self'", "https://cdn.example"],
        "sandbox": [],
    }


async def test_a_text_is_the_whole_policy() -> None:
    """Of a directive that is there twice the first one counts, as in browsers."""
    app = SecurityHeadersMiddleware(ok, csp="IMG-src *; ; img-src x.example; sandbox")

    assert (await headers(app))[POLICY] == "img-src *; sandbox"


async def test_what_is_false_is_not_sent() -> None:
    """Each header of a preset can be left out."""
    app = SecurityHeadersMiddleware(
        ok,
        csp=False,
        hsts=False,
        frame_options=False,
        content_type_options=False,
        referrer_policy=False,
        permissions_policy=False,
        coop=False,
        corp=False,
    )

    assert {*await headers(app, scheme="https")} == {"content-length", "content-type"}


async def test_permissions() -> None:
    """Features are put over those of the preset."""
    app = SecurityHeadersMiddleware(
        ok, permissions_policy={"camera": "(self)", "usb": False, "fullscreen": "*"}
    )

    assert (await headers(app))["permissions-policy"] == (
        "camera=(self), microphone=(), geolocation=(), payment=(), fullscreen=*"
    )


async def test_reports() -> None:
    """A policy that is only reported on has another name, and endpoints have names."""
    app = SecurityHeadersMiddleware(
        ok,
        preset=None,
        csp={"default-src": "'self'", "report-to": "csp"},
        report_only=True,
        reporting_endpoints={"csp": "https://a.example/csp", "default": "https://a.example/d"},
    )
    sent = await headers(app)

    assert sent["content-security-policy-report-only"] == "default-src 'self'; report-to csp"
    assert sent["reporting-endpoints"] == (
        'csp="https://a.example/csp", default="https://a.example/d"'
    )
    assert POLICY not in sent


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "best"}, "one of ['web', 'api', 'strict'], or None"),
        ({"csp": 3}, "a mapping of directives, a text"),
        ({"csp": {"default-src": "self"}}, "written with quotes, \"'self'\""),
        ({"csp": "script-src nonce-abc"}, "written with quotes, \"'nonce-abc'\""),
        ({"csp": {"Default": "*"}}, "names of directives, not 'Default'"),
        ({"csp": {"img-src": ["a b"]}}, "sources without spaces"),
        ({"csp": {"img-src": "a,b"}}, "sources without spaces"),
        ({"csp": {"img-src": "ä.example"}}, "sources without spaces"),
        ({"csp_nonce": "script-src"}, "a bool, or names of directives"),
        ({"csp_nonce": ["img-src"]}, "directives of scripts or styles, not 'img-src'"),
        ({"report_only": 1}, "a bool"),
        ({"override": None}, "a bool"),
        ({"hsts": "31536000"}, "begins with `max-age=`"),
        ({"hsts": True}, "a text in printable ASCII, False or None"),
        ({"coop": "a\r\nb"}, "a text in printable ASCII, False or None"),
        ({"frame_options": " "}, "a text in printable ASCII, False or None"),
        ({"permissions_policy": {"Camera": "()"}}, "features, as in"),
        ({"permissions_policy": {"camera": ["self"]}}, "features, as in"),
        ({"reporting_endpoints": {}}, "a mapping of names to absolute URLs"),
        ({"reporting_endpoints": {"csp": "/csp"}}, "not of 'csp' to '/csp'"),
        ({"reporting_endpoints": {"csp": "https://["}}, "not of 'csp'"),
        ({"reporting_endpoints": {"csp": 'https://a"b'}}, "not of 'csp'"),
        ({"remove": "server"}, "names of headers, as in"),
        ({"remove": ["a b"]}, "names of headers, not 'a b'"),
        ({"docs": "/docs"}, '"auto", paths, or False'),
        ({"docs": ["docs"]}, "paths that begin with a slash, not 'docs'"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made."""
    with pytest.raises(TypeError, match=re.escape(words)):
        SecurityHeadersMiddleware(ok, **options)


# -- where they are --------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_they_are_on_answers_of_layers_further_in(spec: str | None, between: Any) -> None:
    """On refusals and on streams."""

    async def refuses(conn: Connection) -> Flow:
        if conn.url.path == "/refused":
            raise HTTPException(403)
        yield

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(chunks())(scope, receive, send)

    inner: ASGIApp = HTTPMiddleware(stream, dispatch=refuses)
    app = SecurityHeadersMiddleware(between(inner) if between else inner)
    for path, status in (("/refused", 403), ("/", 200)):
        server = await request(app, path=path, spec=spec)
        assert server.status == status
        assert server.headers["x-content-type-options"] == "nosniff"
        assert len(server.headers.getlist(POLICY)) == 1


async def test_an_acceptance_has_none_and_a_refusal_has_them() -> None:
    """An open socket is no page; the refusal of a handshake is a response like others."""

    async def accepts(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("no", 403)(scope, receive, send)

    accepted = await SocketServer().run(SecurityHeadersMiddleware(accepts))
    refused = await SocketServer(extensions=DENIES).run(SecurityHeadersMiddleware(refuses))

    assert not accepted.sent[0].get("headers")
    assert (b"x-content-type-options", b"nosniff") in refused.sent[0]["headers"]


# -- nonces ----------------------------------------------------------------------------------


def nonces(text: str) -> set[str]:
    return {*re.findall(r"'nonce-([\w-]+)'", text)}


async def with_nonce(scope: Scope, receive: Receive, send: Send) -> None:
    nonce = Request(scope).state.csp_nonce
    await HTMLResponse(f'<script nonce="{nonce}"></script>')(scope, receive, send)


async def test_each_page_has_its_own_nonce() -> None:
    """It is in the page and in the policy of scripts and styles, and in no other response."""
    app = SecurityHeadersMiddleware(with_nonce, csp_nonce=True)
    seen = set()
    for _ in range(2):
        server = await request(app)
        sent = policy(server.headers[POLICY])
        [nonce] = nonces(server.headers[POLICY])
        assert f'nonce="{nonce}"'.encode() in server.body
        assert sent["script-src"] == sent["style-src"] == ["'self'", f"'nonce-{nonce}'"]
        assert len(nonce) * 6 >= 128
        seen.add(nonce)

    assert len(seen) == 2


async def test_a_page_that_asks_in_its_stream_has_one_too() -> None:
    """A page is given its nonce at the start, used or not."""

    class Page:
        def __init__(self, state: Any) -> None:
            self.state = state
            self.left = 1

        def __aiter__(self) -> Page:
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return f"{self.state.csp_nonce}"

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        content = Page(Request(scope).state)
        await StreamingResponse(content, media_type="text/html")(scope, receive, send)

    server = await request(SecurityHeadersMiddleware(stream, csp_nonce=True))

    assert nonces(server.headers[POLICY]) == {server.body.decode()}


async def test_what_asks_too_late_is_told_so() -> None:
    """A response that is no page has no nonce, and its start is out."""

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)
        str(Request(scope).state.csp_nonce)

    server = await request(SecurityHeadersMiddleware(late, csp_nonce=True), keep_error=True)

    assert isinstance(server.error, MiddlewareError)
    assert "'test_what_asks_too_late_is_told_so.<locals>.late'" in str(server.error)
    assert "Ask before the response starts" in str(server.error)


async def test_what_is_no_page_and_asks_in_time_has_one() -> None:
    """Somebody has a use for it."""

    async def script_of_a_page(scope: Scope, receive: Receive, send: Send) -> None:
        text = f"{Request(scope).state.csp_nonce:>4}"
        await PlainTextResponse(text)(scope, receive, send)

    server = await request(SecurityHeadersMiddleware(script_of_a_page, csp_nonce=True))
    other = await request(SecurityHeadersMiddleware(ok, csp_nonce=True))

    assert nonces(server.headers[POLICY]) == {server.body.decode()}
    assert not nonces(other.headers[POLICY])
    assert "cache-control" not in other.headers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "private"),
        ("no-cache", "private, no-cache"),
        ("public, max-age=60, s-maxage=600", "private, max-age=60"),
        ("no-store", "no-store"),
        ("Private, max-age=5", "Private, max-age=5"),
    ],
)
async def test_no_shared_cache_keeps_a_nonce(given: str | None, expected: str) -> None:
    """It would give everybody the same one."""
    given_headers = {"cache-control": given} if given else None
    app = SecurityHeadersMiddleware(HTMLResponse("", headers=given_headers), csp_nonce=True)

    assert (await headers(app)).getlist("cache-control") == [expected]


async def test_a_304_has_no_policy() -> None:
    """The browser kept that of the page, which names the nonce that the page has."""
    its_own = [(POLICY.encode(), b"script-src 'nonce-abc'"), (b"vary", b"cookie")]
    with_one = script(start(304, headers=its_own), body())
    server = await request(SecurityHeadersMiddleware(with_one, csp_nonce=True), keep_error=True)

    assert POLICY not in server.headers
    assert server.headers["x-frame-options"] == "SAMEORIGIN"
    assert server.headers["vary"] == "cookie"


async def test_directives_with_a_nonce() -> None:
    """One that allows nothing allows the nonce, one without limit stays as it is."""
    app = SecurityHeadersMiddleware(
        page,
        preset=None,
        csp={"script-src": "'none'", "style-src": "'unsafe-inline'"},
        csp_nonce=["script-src", "style-src", "script-src-elem"],
    )
    [nonce] = nonces((await headers(app))[POLICY])

    assert policy((await headers(app))[POLICY]).keys() == {"script-src", "style-src"}
    assert policy((await headers(app))[POLICY])["style-src"] == ["'unsafe-inline'"]
    assert nonce


async def test_a_nonce_without_a_policy() -> None:
    """There is nothing to name it in."""
    app = SecurityHeadersMiddleware(with_nonce, csp=False, csp_nonce=True)

    assert POLICY not in await headers(app)


def test_a_nonce_in_a_template() -> None:
    """Jinja's escaping asks for its text as HTML, and leaves it as it is."""
    nonce = CSPNonce()
    assert not nonce.is_used
    assert nonce.__html__() == str(nonce) == f"{nonce}"
    assert nonce.is_used


# -- FastAPI's documentation -----------------------------------------------------------------


@pytest.mark.parametrize("preset", ["web", "api", "strict"])
@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_documentation_may_load_what_it_needs(preset: Any, path: str, root_path: str) -> None:
    """Each script and style of the page, and nothing else."""
    app = FastAPI()
    app.add_middleware(CompressionMiddleware, min_size=0)
    app.add_middleware(SecurityHeadersMiddleware, preset=preset)
    server = Server(path=root_path + path, headers={"accept-encoding": "br, gzip"})
    server.scope["root_path"] = root_path
    await server.run(app)
    text = server.body.decode()
    sent = policy(server.headers[POLICY])

    assert server.status == 200
    for script_text in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        if script_text.strip():
            digest = hashlib.sha256(script_text.encode()).digest()
            assert f"'sha256-{base64.b64encode(digest).decode()}'" in sent["script-src"]
    for url in re.findall(r'<script[^>]* src="(https://[^/"]+)', text):
        assert url in sent["script-src"]
    for url in re.findall(r'href="(https://[^/"]+)', text):
        assert url in sent["style-src"] + sent["img-src"]
    assert "'unsafe-inline'" not in sent["script-src"]
    assert sent["frame-ancestors"] == (["'self'"] if preset == "web" else ["'none'"])


async def test_other_pages_may_not() -> None:
    """Neither is the policy of a page changed that is none, nor that of one without a policy."""
    app = FastAPI(docs_url="/help")
    app.add_middleware(SecurityHeadersMiddleware)
    for path in ("/docs", "/help/x", "/openapi.json"):
        assert "jsdelivr" not in (await request(app, path=path)).headers[POLICY]
    assert "jsdelivr" in (await request(app, path="/help")).headers[POLICY]

    app = FastAPI()
    app.add_middleware(SecurityHeadersMiddleware, csp=False)
    assert POLICY not in (await request(app, path="/docs")).headers


async def test_documentation_of_a_mounted_application() -> None:
    """Its paths have to be said."""
    app = Starlette(routes=[Mount("/v1", FastAPI())])
    app.add_middleware(SecurityHeadersMiddleware, docs=["/v1/docs"])

    assert "jsdelivr" in (await request(app, path="/v1/docs")).headers[POLICY]
    assert "jsdelivr" not in (await request(app, path="/v1/redoc")).headers[POLICY]


async def test_documentation_like_any_other_page() -> None:
    """With `docs=False` nothing is made of it."""
    app = FastAPI()
    app.add_middleware(SecurityHeadersMiddleware, docs=False)

    assert "jsdelivr" not in (await request(app, path="/docs")).headers[POLICY]


@pytest.mark.parametrize(
    "response",
    [
        PlainTextResponse("text"),
        HTMLResponse("<script>1</script>", headers={"content-encoding": "x"}),
        HTMLResponse("<script>1</script>" + " " * 300_000),
        Response(status_code=404),
    ],
)
async def test_what_is_no_such_page_has_the_usual_policy(response: Response) -> None:
    """What cannot be read, or need not be, is not looked into."""
    routes = [Route("/docs", lambda request: response)]
    app = Starlette(routes=routes)
    app.add_middleware(SecurityHeadersMiddleware, docs=["/docs"])

    assert "sha256" not in (await request(app, path="/docs")).headers[POLICY]
