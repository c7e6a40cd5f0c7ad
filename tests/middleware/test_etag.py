"""`ETagMiddleware`: conditional requests, against an oracle written from RFC 9110 alone."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import etag as of_pypi
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import ETagMiddleware, SecurityHeadersMiddleware
from httpmw.middleware._conditions import Conditions, Tag, date_of, tag_of, tags_of, verdict
from httpmw.testing.driving._socket import SocketServer
from tests import conditions_oracle as oracle
from tests.harness import Chunks, PassThrough, body, request, script, start

ok = PlainTextResponse("ok")
AT = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"

# -- the table of RFC 9110 section 13.2.2 -----------------------------------------------------

TAGS = (
    [],
    ["*"],
    ['"v1"'],
    ['W/"v1"'],
    ['"v2"'],
    ['"v2", "v1"'],
    ['"v2"', ',, W/"v1" ,'],
    ["v1"],
    ['"a,b"'],
)
DATES = ([], [BEFORE], [AT], [AFTER], ["yesterday"], [AT, AT])
FIELDS = ("if-match", "if-unmodified-since", "if-none-match", "if-modified-since")
CURRENT = (None, (False, "v1"), (True, "v1"), (False, "a,b"))


COMBINATIONS = [*itertools.product(TAGS, DATES, TAGS, DATES)]


@pytest.mark.parametrize("tag", CURRENT)
@pytest.mark.parametrize("last_modified", [None, AT])
@pytest.mark.parametrize(("method", "exists"), [("GET", True), ("PUT", True), ("PUT", False)])
def test_every_combination_of_preconditions(
    tag: oracle.EntityTag | None, last_modified: str | None, method: str, exists: bool
) -> None:
    """All of them, for methods that read and that change, with and without what there is."""
    if not exists:
        tag = last_modified = None
    ours = Tag(tag[1], tag[0]) if tag is not None else None
    for lines in COMBINATIONS:
        found = verdict(
            Conditions(lines[0], lines[2], lines[3], lines[1]),
            is_get=method == "GET",
            tag=ours,
            last_modified=last_modified,
            exists=exists,
        )
        fields = dict(zip(FIELDS, lines, strict=True))
        current = {"tag": tag, "last_modified": last_modified, "exists": exists}
        assert found == oracle.decide(method, fields, **current), (fields, current)


def test_the_package_of_that_name_agrees() -> None:
    """The package `etag` knows no dates; with tags alone it decides in the same way."""
    for fields in itertools.product(TAGS, TAGS):
        for tag, method in itertools.product(CURRENT, ("GET", "PUT")):
            if_match, if_none_match = (", ".join(lines) or None for lines in fields)
            theirs = of_pypi.evaluate_preconditions(
                method,
                etag=None if tag is None else str(Tag(tag[1], tag[0])),
                exists=True,
                if_match=if_match,
                if_none_match=if_none_match,
            )
            ours = oracle.decide(
                method,
                dict(zip(FIELDS, (fields[0], [], fields[1], []), strict=True)),
                tag=tag,
                last_modified=None,
            )
            assert (theirs or 200) == ours, (method, fields, tag)


@pytest.mark.parametrize("status", [200, 206, 204, 301, 404, 412, 500])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_comes_of_it_in_a_response(status: int, method: str) -> None:
    """A sample of the table, through the layer: only of a 200, and of a 206 with a tag."""
    chance = random.Random(status)
    for _ in range(40):
        fields = dict(zip(FIELDS, chance.choice(COMBINATIONS), strict=True))
        tag, last_modified = chance.choice(CURRENT), chance.choice([None, AT])
        told = {} if last_modified is None else {"last-modified": last_modified}
        if tag is not None:
            told["etag"] = str(Tag(tag[1], tag[0]))
        else:
            told["cache-control"] = "no-store"  # or a tag would be made
        app = ETagMiddleware(Response(b"" if status == 204 else b"body", status, headers=told))
        headers = [(name, line) for name, lines in fields.items() for line in lines]
        server = await request(app, method=method, headers=headers)

        looks = status == 200 or (status == 206 and tag is not None)
        expected = oracle.decide(method, fields, tag=tag, last_modified=last_modified)
        assert server.status == (expected if looks and expected != 200 else status)


# -- entity tags and dates --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"v1"', Tag("v1")),
        ('W/"v1"', Tag("v1", is_weak=True)),
        ('""', Tag("")),
        (' "a b" ', None),
        ('"a\\"', Tag("a\\")),
        ('"\xe4"', Tag("\xe4")),
        ("v1", None),
        ('w/"v1"', None),
        ('"v1', None),
        ('"a"b"', None),
        (None, None),
    ],
)
def test_one_tag(text: str | None, expected: Tag | None) -> None:
    """RFC 9110 section 8.8.3, to the letter."""
    assert tag_of(text) == expected


def test_a_list_of_tags_like_the_oracle_s() -> None:
    """Random lists: what is well-formed is read, and what is not is never read as more."""
    chance = random.Random(21)
    parts = ('"a"', 'W/"a"', ",", " ", "\t", '"', "W/", "a", "*", '"b,c"', ", ")
    for _ in range(5000):
        value = "".join(chance.choices(parts, k=chance.randrange(7))).strip(" \t")
        expected = oracle.entity_tags(value)
        found = tags_of([value])
        if value == "*":
            assert found == "*"
        elif expected is not None:
            assert [(tag.is_weak, tag.opaque) for tag in found] == expected
        else:
            every = {match[1] for match in re.finditer(r'(?=((?:W/)?"[^"]*"))', value)}
            assert {str(tag) for tag in found} <= every


@pytest.mark.parametrize("opaque", ["v1", "v1-gzip"])
@pytest.mark.parametrize("suffix", ["-gzip", "-br", "-zstd", ";br"])
def test_the_tag_of_what_was_coded_further_out(opaque: str, suffix: str) -> None:
    """Apache puts the coding behind the tag, and clients come back with that."""
    for name, status in (("if_none_match", 304), ("if_match", 200)):
        conditions = Conditions(**{name: [f'"{opaque}{suffix}"']})
        assert verdict(conditions, is_get=True, tag=Tag(opaque)) == status
    assert verdict(Conditions(if_none_match=['"v1-lz4"']), is_get=True, tag=Tag("v1")) == 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", (1994, 11, 6, 8, 49, 37)),
        ("Sunday, 06-Nov-94 08:49:37 GMT", (1994, 11, 6, 8, 49, 37)),
        ("Sun Nov  6 08:49:37 1994", (1994, 11, 6, 8, 49, 37)),
        ("Sat, 31 Dec 2016 23:59:60 GMT", (2017, 1, 1, 0, 0, 0)),
        ("Fri, 31 Dec 9999 23:59:60 GMT", None),
        ("sun, 06 nov 1994 08:49:37 gmt", None),
        ("Sun, 06 Nov 1994 08:49:37 +0000", None),
        ("Sun, 6 Nov 1994 08:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 24:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT", None),
        ("٠٦", None),
        ("", None),
        ("0", None),
    ],
)
def test_dates(text: str, expected: Any) -> None:
    """All three forms of RFC 9110 section 5.6.7, and nothing else."""
    assert date_of([text]) == (None if expected is None else dt.datetime(*expected, tzinfo=dt.UTC))


def test_a_year_of_two_digits() -> None:
    """One that would be more than 50 years ahead is in the past."""
    this = dt.datetime.now(dt.UTC).year
    for year in (this + 50, this + 51 - 100, this):
        date = date_of([f"Sunday, 01-Jan-{year % 100:02} 00:00:00 GMT"])
        assert date is not None
        assert date.year == year


# -- tags that are made ----------------------------------------------------------------------


async def tag(app: ASGIApp, **options: Any) -> str | None:
    headers = (await request(ETagMiddleware(app, **options))).headers
    return headers.get("etag")


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_a_second_visit_is_a_304(spec: str | None, between: Any) -> None:
    """The tag of the first one is enough; layers further out see the 304."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        seen.append(response.status_code)

    inner: ASGIApp = ETagMiddleware(JSONResponse({"a": 1}))
    app = HTTPMiddleware(between(inner) if between else inner, dispatch=outer)
    first = await request(app, spec=spec)
    given = first.headers["etag"]
    second = await request(app, headers={"if-none-match": given}, spec=spec)

    assert re.fullmatch(r'W/"[0-9a-f]{32}"', given)
    assert (first.status, first.body) == (200, b'{"a":1}')
    assert (second.status, second.body, second.headers["etag"]) == (304, b"", given)
    assert seen == [200, 304]


async def test_a_tag_is_that_of_the_bytes() -> None:
    """The same for the same ones."""
    one, same, other = [await tag(PlainTextResponse(text)) for text in ("a", "a", "b")]

    assert one == same != other


async def test_a_head_has_the_tag_of_the_get() -> None:
    """Where the application gives the body; without one nobody knows it."""
    get = await request(ETagMiddleware(ok))
    head = await request(ETagMiddleware(ok), method="HEAD")
    empty = script(start(headers=[(b"content-length", b"2")]), body())

    assert head.headers["etag"] == get.headers["etag"]
    assert "etag" not in (await request(ETagMiddleware(empty), method="HEAD")).headers
    again = {"if-none-match": get.headers["etag"]}
    assert (await request(ETagMiddleware(ok), method="HEAD", headers=again)).status == 304


@pytest.mark.parametrize(
    ("response", "options", "made"),
    [
        (PlainTextResponse("a"), {}, True),
        (PlainTextResponse("a", headers={"cache-control": "no-cache"}), {}, True),
        (PlainTextResponse("a", headers={"cache-control": "private, No-Store"}), {}, False),
        (PlainTextResponse("a", headers={"set-cookie": "a=b"}), {}, False),
        (PlainTextResponse("a", headers={"set-cookie": "a=b"}), {"cookies": True}, True),
        (PlainTextResponse("a", media_type="text/event-stream"), {}, False),
        (PlainTextResponse("a", 201), {}, False),
        (PlainTextResponse("a", 404), {}, False),
        (PlainTextResponse("abc"), {"max_size": 2}, False),
        (PlainTextResponse("ab"), {"max_size": 2}, True),
        (lambda: StreamingResponse(Chunks(b"ab")), {}, False),
        (lambda: StreamingResponse(Chunks(b"ab")), {"streams": True}, True),
        (lambda: StreamingResponse(Chunks(b"ab", b"c")), {"streams": True, "max_size": 2}, False),
        (lambda: StreamingResponse(Chunks(b"ab"), headers={"content-length": "2"}), {}, True),
        (PlainTextResponse(""), {}, True),
    ],
)
async def test_of_what_a_tag_is_made(
    response: Response | Callable[[], Response], options: Any, made: bool
) -> None:
    """Of what is whole and at hand, and neither new each time nor for one client alone."""
    given = response if isinstance(response, Response) else response()
    server = await request(ETagMiddleware(given, **options))

    assert ("etag" in server.headers) is made
    assert server.body in (getattr(given, "body", b"ab"), b"abc")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_left_alone(method: str) -> None:
    """What they answer is not what is there."""
    server = await request(ETagMiddleware(ok), method=method, headers={"if-none-match": "*"})

    assert (server.status, "etag" in server.headers) == (200, False)


async def test_a_page_with_a_nonce_has_no_tag() -> None:
    """It would come back from a cache, and a nonce that comes back is none."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        text = str(Request(scope).state.csp_nonce) if scope["path"] == "/used" else "none"
        await HTMLResponse(text)(scope, receive, send)

    layers = SecurityHeadersMiddleware(ETagMiddleware(app), csp_nonce=True)

    assert "etag" not in (await request(layers, path="/used")).headers
    assert "etag" in (await request(layers, path="/unused")).headers


async def test_the_application_s_own_tag_is_the_tag(tmp_path: Path) -> None:
    """Nothing is made where there is one, and a file is not read for it."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    app = ETagMiddleware(FileResponse(path))
    first = await request(app)
    given = first.headers["etag"]

    assert given.startswith('"')
    assert (await request(app, headers={"if-none-match": f"W/{given}"})).status == 304
    late = {"if-modified-since": first.headers["last-modified"]}
    assert (await request(app, headers=late)).status == 304
    part = await request(app, headers={"range": "bytes=0-2", "if-none-match": given})
    assert part.status == 304
    part = await request(app, headers={"range": "bytes=0-2", "if-match": given})
    assert (part.status, part.body) == (206, b"con")


async def test_a_tag_that_is_none_is_left_alone() -> None:
    """Neither is it corrected, nor does anything match it."""
    app = ETagMiddleware(PlainTextResponse("a", headers={"etag": "v1"}))
    server = await request(app, headers={"if-none-match": '"v1", v1'})

    assert (server.status, server.headers["etag"]) == (200, "v1")


async def test_strong_tags_and_a_hash_of_ones_own() -> None:
    """The text of a tag is what the function makes of the bytes."""
    app = ETagMiddleware(ok, weak=False, hash=lambda data: f"n{len(data)}")

    assert (await request(app)).headers["etag"] == '"n2"'


async def test_a_hash_that_is_no_tag_is_an_error() -> None:
    """It names the function."""
    app = ETagMiddleware(ok, hash=lambda data: 'a"b')

    with pytest.raises(TypeError, match=r"(?s)`hash`, .*printable ASCII"):
        await request(app)


async def test_cache_control() -> None:
    """It is said of what has a tag, where the application says nothing."""
    layer: Any = lambda response: ETagMiddleware(response, cache_control="no-cache")  # noqa: E731

    for response, expected in (
        (PlainTextResponse("a"), "no-cache"),
        (PlainTextResponse("a", headers={"cache-control": "max-age=5"}), "max-age=5"),
        (StreamingResponse(Chunks(b"a")), None),
    ):
        assert (await request(layer(response))).headers.get("cache-control") == expected


# -- the 304 ---------------------------------------------------------------------------------


async def test_what_a_304_has() -> None:
    """All that the 200 has, but for what describes the content (RFC 9110 section 15.4.5)."""
    content = {
        "content-language": "en",
        "content-digest": "sha-256=:AA==:",
        "content-md5": "x",
        "accept-ranges": "bytes",
        "trailer": "x",
        "last-modified": AT,
    }
    kept = {
        "etag": '"v1"',
        "cache-control": "max-age=5",
        "content-location": "/a",
        "date": AT,
        "expires": AT,
        "vary": "cookie",
        "access-control-allow-origin": "*",
        "set-cookie": "a=b",
        "x-mine": "1",
    }
    app = ETagMiddleware(PlainTextResponse("text", headers=content | kept))
    server = await request(app, headers={"if-none-match": '"v1"'})

    assert server.status == 304
    assert dict(server.headers) == kept


async def test_a_304_by_the_date_alone_has_the_date() -> None:
    """It is the only validator then."""
    headers = {"last-modified": AT, "cache-control": "no-store"}
    app = ETagMiddleware(PlainTextResponse("text", headers=headers))
    server = await request(app, headers={"if-modified-since": AT})

    assert (server.status, dict(server.headers)) == (304, headers)


@pytest.mark.parametrize("size", [10, 3000])
async def test_what_belongs_to_the_response_is_done(spec: str | None, size: int) -> None:
    """The background task of a short one runs; the rest of a long one is not asked for."""
    done = []
    chunks = Chunks(*[b"x" * (size // 10)] * 10)
    response = StreamingResponse(
        chunks,
        headers={"etag": '"v1"', "content-length": str(size)},
        background=BackgroundTask(done.append, "background"),
    )
    app = ETagMiddleware(response, max_size=1000)
    server = await request(app, headers={"if-none-match": '"v1"'}, spec=spec, keep_error=True)

    assert (server.status, server.body, server.error) == (304, b"", None)
    if size < 1000:
        assert done == ["background"]


async def test_the_412_of_a_read() -> None:
    """What is there is not what was asked for; it has the tag of what is."""
    app = ETagMiddleware(PlainTextResponse("text", headers={"etag": '"v2"'}))
    server = await request(app, headers={"if-match": '"v1"'})

    assert (server.status, server.headers["etag"]) == (412, '"v2"')
    assert server.json()["code"] == "precondition-failed"


# -- changes, in a route ---------------------------------------------------------------------


class Document:
    """A route with a version, that counts its changes."""

    def __init__(self, version: int | None = 7, **options: Any) -> None:
        self.version = version
        self.named: list[Any] = []
        layer = Middleware(ETagMiddleware, current=self.current, **options)
        methods = ["GET", "PUT", "PATCH", "DELETE", "POST"]
        self.app = Starlette(routes=[Route("/", self.change, methods=methods, middleware=[layer])])

    async def current(self, conn: Connection) -> str | None:
        return None if self.version is None else f'"v{self.version}"'

    async def change(self, request: Request) -> Response:
        self.named.append(getattr(request.state, "if_match", "unset"))
        return Response(status_code=204)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
@pytest.mark.parametrize(
    ("version", "headers", "status", "named"),
    [
        (7, {"if-match": '"v7"'}, 204, '"v7"'),
        (7, {"if-match": '"v6", "v7"'}, 204, '"v7"'),
        (7, {"if-match": '"v7-br"'}, 204, '"v7"'),
        (7, {"if-match": "*"}, 204, '"v7"'),
        (7, {"if-match": '"v6"'}, 412, None),
        (7, {"if-match": 'W/"v7"'}, 412, None),
        (7, {"if-none-match": "*"}, 412, None),
        (7, {"if-none-match": '"v7"'}, 412, None),
        (7, {"if-none-match": '"v6"'}, 204, None),
        (None, {"if-none-match": "*"}, 204, None),
        (None, {"if-match": "*"}, 412, None),
        (None, {"if-match": '"v7"'}, 412, None),
        (7, {"if-match": "v7"}, 412, None),
        (7, {}, 204, None),
    ],
)
async def test_a_change_is_done_where_nobody_else_was_faster(
    method: str, version: int | None, headers: Any, status: int, named: str | None
) -> None:
    """The application is not run for a 412, and knows else which version was named."""
    document = Document(version)
    server = await request(document.app, method=method, headers=headers, body=b"x")

    assert server.status == status
    assert document.named == ([named] if status == 204 else [])
    if status == 412:
        assert server.headers.get("etag") == (None if version is None else f'"v{version}"')
        assert server.receives == 1


async def test_what_current_raises_is_the_answer() -> None:
    """A 404 or a 403 comes before any precondition (RFC 9110 section 13.2.1)."""

    async def current(conn: Connection) -> str | None:
        raise HTTPException(404)

    app = ETagMiddleware(ok, current=current)
    server = await request(app, method="PUT", headers={"if-match": '"v1"'})

    assert server.status == 404


async def test_current_is_asked_where_it_matters() -> None:
    """For a change with a condition, and for nothing else."""

    async def current(conn: Connection) -> str | None:
        raise AssertionError

    app = ETagMiddleware(ok, current=current)
    for method, headers in (
        ("PUT", {}),
        ("GET", {"if-match": '"v1"'}),
        ("OPTIONS", {"if-match": "*"}),
    ):
        await request(app, method=method, headers=headers)


@pytest.mark.parametrize("given", ['W/"v1"', "v1", 3])
async def test_current_has_to_give_a_strong_tag(given: Any) -> None:
    """A weak one never matches (RFC 9110 section 13.1.1), so that every change would fail."""

    async def current(conn: Connection) -> Any:
        return given

    app = ETagMiddleware(ok, current=current)
    with pytest.raises(TypeError, match=r"(?s)`current`, .*a strong tag, such as"):
        await request(app, method="PUT", headers={"if-match": '"v1"'})


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_change_without_a_condition_can_be_refused(method: str) -> None:
    """With 428 (RFC 6585 section 3)."""
    document = Document(require_condition=True)
    refused = await request(document.app, method=method, body=b"x")
    done = await request(document.app, method=method, headers={"if-match": '"v7"'})

    assert (refused.status, refused.json()["code"]) == (428, "precondition-required")
    assert done.status == 204
    assert document.named == ['"v7"']


async def test_what_reads_or_creates_needs_no_condition() -> None:
    """A POST names nothing that is there."""
    document = Document(require_condition=True)
    for method in ("GET", "POST"):
        assert (await request(document.app, method=method)).status == 204


async def test_a_handshake_has_no_conditions() -> None:
    """It is left alone."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    server = await SocketServer(headers={"if-none-match": "*"}).run(
        ETagMiddleware(app, websocket=True)
    )

    assert server.sent[0]["type"] == "websocket.accept"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weak": 1}, "a bool"),
        ({"streams": None}, "a bool"),
        ({"cookies": "no"}, "a bool"),
        ({"require_condition": 0}, "a bool"),
        ({"max_size": -1}, "a number of bytes"),
        ({"max_size": True}, "a number of bytes"),
        ({"hash": "md5"}, "a plain function"),
        ({"cache_control": ""}, "a text, or None"),
        ({"current": '"v1"'}, "an `async def`, or None"),
        ({"response": 3}, "a plain function"),
        ({"drain": None}, "a bool, or a mapping"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong option is refused where the layer is made."""
    with pytest.raises(TypeError, match=re.escape(words)):
        ETagMiddleware(ok, **options)
