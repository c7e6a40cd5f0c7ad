# Content codings for responses, as RFC 9110 sections 8.4 and 12.5.3 have them.
#
# Rule 1: a coded response is another representation: it has a tag of its own, and no digest of the
# bytes that it had. What the client says of such a tag is told to the application as of its own.
# Rule 2: whatever could have been coded says so in `Vary`, coded or not.
# Rule 3: what the application sends at once arrives at once, where it is sent to be seen; see
# `_Flusher`.
# Rule 4: where the application fails within a body, that is not ended: its coder is dropped.

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Collection
from typing import Any, Final, Literal, NamedTuple

import anyio.to_thread
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._response import AppResponse

from ._codings import Coder, Coding, brotli, gzip, zstd
from ._conditions import Tag, tag_of, tags_of
from ._draining import Drain
from ._ready import Exclude, Ready, headers_of, view_of
from ._refuse import Refusal, Respond

TYPES: Final = (
    *("text/*", "*+json", "*+xml", "application/json", "application/javascript"),
    *("application/xml", "application/wasm", "application/x-ndjson", "application/jsonl"),
    *("application/manifest+json", "image/svg+xml", "font/ttf", "font/otf"),
)
# Of which each chunk is an event, or a document, of its own.
_LIVE: Final = frozenset(
    (
        *("text/event-stream", "application/x-ndjson", "application/jsonl"),
        *("application/json-seq", "multipart/x-mixed-replace"),
    )
)
# RFC 9110 sections 15.3 and 15.4; a 206 has a part of the bytes of another representation.
_NEVER: Final = frozenset((*range(100, 200), 204, 205, 206, 304))
_OF_THE_BYTES: Final = frozenset(
    (
        *(b"content-length", b"content-digest", b"repr-digest", b"digest", b"content-md5"),
        b"accept-ranges",
    )
)
_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - of HTTP
# Section 12.4.2: of what is no weight the element is left out.
_ELEMENT: Final = re.compile(
    rf"[ \t]*({_TOKEN})[ \t]*(?:;[ \t]*[qQ]=(0(?:\.\d{{0,3}})?|1(?:\.0{{0,3}})?)[ \t]*)?", re.ASCII
)
_MOST: Final = 1024  # different values that are remembered
_LONGEST: Final = 1024  # characters of a field that is remembered
_WHOLE: Final = 128 * 1024  # bytes: shorter ones are coded at once
# When bytes that are on their way are shown: after so many seconds, or so many bytes.
_SECONDS: Final = 0.05
_BYTES: Final = 32 * 1024


class _Choice(NamedTuple):
    """What a client takes."""

    # None: none of ours, or none.
    coding: Coding | None
    takes_identity: bool


class _Asked(NamedTuple):
    """What a request says that is of use here."""

    choice: _Choice
    if_none_match: list[str]
    if_match: list[str]
    is_cross_site: bool


class CompressionMiddleware(Ready):
    """
    Compress responses with zstd, br or gzip, whichever the client takes.

    A body is coded where its type is among *types* and it is not known to be smaller than
    *min_size*; what has a `content-encoding` already, a part of something (206), or `no-transform`,
    is left alone. Events arrive when they are sent. A strong tag gets the name of the coding as a
    suffix, which is taken off again where the client asks with it.

    Args:
        app: The inner app.
        codings: What is offered, the most wanted first: `"zstd"`, `"br"` and `"gzip"`. By default
            those of them for which there is a library; `pip install 'httpmw[compression]'` brings
            all.
        gzip_level: 0 to 9.
        brotli_quality: 0 to 11.
        zstd_level: Up to 22; the window is 8 MiB at most whatever the level (RFC 9659).
        min_size: The smallest body, in bytes, that is coded where its length is known.
        types: Media types: `"text/html"`, all of a kind, `"text/*"`, or of a suffix, `"*+json"`.
        flush: When coded bytes are passed on that are not the end. `"auto"`: of event streams,
            NDJSON, JSON lines and multipart/x-mixed-replace with each chunk; of other bodies
            without a length when 50 ms or 32 KiB have passed since the last time. `"always"` or
            `"never"`.
        etag: What becomes of a strong tag: `"suffix"`, or `"weaken"`.
        breach_protection: Whether what another site has a browser ask for with cookies is left
            uncoded: an attacker who can put text into a page, and see its length, guesses what else
            is in it (RFC 9110 section 17.6).
        thread_size: The smallest part, in bytes, that is coded in a thread, beside the event loop.
        response: Makes the response to who takes nothing that there is (406) in place of a problem
            document: called with the connection and the `Problem`.
        drain: Whether the body of a refused request is received, and up to which bounds; a mapping
            has `max_size` (bytes, by default 1 MiB) and `seconds` (by default 1).
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default False.

    Raises:
        TypeError: An option is not what it has to be.
        ImportError: A coding is asked for by name whose library is not installed.
    """

    kind = "compression"

    def __init__(
        self,
        app: ASGIApp,
        *,
        codings: Collection[str] | None = None,
        gzip_level: int = 6,
        brotli_quality: int = 4,
        zstd_level: int = 3,
        min_size: int = 500,
        types: Collection[str] = TYPES,
        flush: Literal["auto", "always", "never"] = "auto",
        etag: Literal["suffix", "weaken"] = "suffix",
        breach_protection: bool = False,
        thread_size: int = 128 * 1024,
        response: Respond | None = None,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        self._check_integer("gzip_level", gzip_level, 0, 9, "0 to 9")
        self._check_integer("brotli_quality", brotli_quality, 0, 11, "0 to 11")
        self._check_integer("zstd_level", zstd_level, -131072, 22, "-131072 to 22")
        self._check_integer("min_size", min_size, 0, None, "a number of bytes")
        self._check_integer("thread_size", thread_size, 0, None, "a number of bytes")
        if flush not in ("auto", "always", "never"):
            raise self._bad("flush", flush, '"auto", "always" or "never"')
        if etag not in ("suffix", "weaken"):
            raise self._bad("etag", etag, '"suffix" or "weaken"')
        self._check_flags(breach_protection=breach_protection)
        self._check_callables(response=response)
        self._types, self._main_types, self._suffixes = self._sorted_types(types)
        made = {
            "zstd": lambda: zstd(zstd_level),
            "br": lambda: brotli(brotli_quality),
            "gzip": lambda: gzip(gzip_level),
        }
        self._codings = self._made_codings(codings, made)
        self._names = ", ".join(each.name for each in self._codings)
        self._min_size = min_size
        self._flush = flush
        self._etag = etag
        self._breach_protection = breach_protection
        self._thread_size = thread_size
        self._refusal = Refusal(type(self), response, drain)
        self._choices: dict[bytes, _Choice] = {}
        self._kinds: dict[bytes, tuple[bool, bool, bool]] = {}
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)

    # ------------------------------------------------------------------ options

    def _made_codings(self, names: Any, made: dict[str, Any]) -> list[Coding]:
        if names is None:
            return [coding for make in made.values() if (coding := make()) is not None]
        if isinstance(names, str) or not isinstance(names, Collection) or not names:
            raise self._bad("codings", names, f"a collection of some of {[*made]}, or None")
        codings = []
        for name in names:
            if name not in made:
                raise self._bad("codings", names, f"a collection of some of {[*made]}")
            coding = made[name]()
            if coding is None:
                needed = "brotli" if name == "br" else "backports.zstd"
                raise _errors.missing_extra(type(self), needed, "compression")
            codings.append(coding)
        return codings

    def _sorted_types(self, types: Any) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
        if isinstance(types, str) or not isinstance(types, Collection):
            raise self._bad("types", types, 'media types, as in `types=["text/*"]`')
        for each in types:
            if not isinstance(each, str) or not re.fullmatch(
                rf"{_TOKEN}/{_TOKEN}|\*\+{_TOKEN}", each, re.ASCII
            ):
                raise self._bad("types", types, f'media types, "text/*" or "*+json", not {each!r}')
        lower = [each.lower() for each in types]
        exact = frozenset(each for each in lower if "*" not in each)
        main = tuple(each[:-1] for each in lower if each.endswith("/*"))
        return exact, main, tuple(each[1:] for each in lower if each.startswith("*+"))

    # ------------------------------------------------------------------ requests

    def dispatch(self, conn: Connection[Any], /) -> Flow | None:
        """
        Code the response in a way that the client takes.
        """
        return None if conn.is_websocket else self._code(conn)

    async def _code(self, conn: Connection[Any]) -> Flow:
        asked = self._asked(conn)
        coding, takes_identity = asked.choice
        method = view_of(conn)["method"]
        if coding is None and not takes_identity and method in ("GET", "HEAD"):
            response = await self._refusal.response(
                conn,
                406,
                f"There is no coding that is taken: {self._names}, or none.",
                "no-acceptable-coding",
            )
            response.headers["vary"] = "Accept-Encoding"
            yield response
            return
        if asked.if_none_match or asked.if_match:
            self._tell_tags(conn, asked)
        response = yield
        if not self._may_code(response, is_forced=coding is not None and not takes_identity):
            if response.status_code == 304:  # noqa: PLR2004
                _add_vary(response)
                self._give_back_tag(response, asked)
            return
        _add_vary(response)
        if coding is None or (asked.is_cross_site and takes_identity):
            return
        is_text, is_live = self._kind(response)[1:]
        length = response.headers.get("content-length", "")
        size = int(length) if length.isdecimal() else None
        self._describe(response, coding)
        if method == "HEAD":
            return
        if size is not None and size <= _WHOLE:
            await self._code_whole(response, coding, size, is_text=is_text)
            return
        each = self._flush == "always" or (self._flush == "auto" and is_live)
        if each:
            response.headers.setdefault("x-accel-buffering", "no")
        never = self._flush == "never" or (size is not None and not each)
        flusher = _Flusher(coding.coder(is_text), each=each, never=never)
        response.body_iterator = _coded(response.body_iterator, flusher, self._thread_size)

    def _asked(self, conn: Connection[Any]) -> _Asked:
        accepted = []
        if_none_match, if_match = [], []
        cookie = False
        site = referer = origin = host = b""
        for name, value in headers_of(conn):
            if name == b"accept-encoding":
                accepted.append(value)
            elif name == b"if-none-match":
                if_none_match.append(value.decode("latin-1"))
            elif name == b"if-match":
                if_match.append(value.decode("latin-1"))
            elif not self._breach_protection:
                continue
            elif name == b"cookie":
                cookie = True
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"referer":
                referer = value
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        choice = self._choice(accepted[0] if len(accepted) == 1 else b",".join(accepted))
        is_cross_site = cookie and not _is_own(site, origin or referer, host)
        return _Asked(choice, if_none_match, if_match, is_cross_site)

    def _choice(self, accepted: bytes) -> _Choice:
        choice = self._choices.get(accepted)
        if choice is None:
            choice = self._negotiate(accepted.decode("latin-1"))
            if len(accepted) <= _LONGEST:
                if len(self._choices) >= _MOST:  # somebody makes them up
                    self._choices.clear()
                self._choices[accepted] = choice
        return choice

    def _negotiate(self, accepted: str) -> _Choice:
        weights: dict[str, float] = {}
        for element in accepted.split(","):
            match = _ELEMENT.fullmatch(element)
            if match is not None:
                weights[match[1].lower()] = float(match[2] or 1)
        if "x-gzip" in weights:  # section 8.4.1.3
            weights.setdefault("gzip", weights["x-gzip"])
        rest = weights.get("*", 0.0)
        best, weight = None, 0.0
        for coding in self._codings:
            its_own = weights.get(coding.name, rest)
            if its_own > weight:
                best, weight = coding, its_own
        identity = weights.get("identity")
        takes_identity = identity > 0 if identity is not None else weights.get("*") != 0
        if identity is not None and identity > weight:
            best = None
        return _Choice(best, takes_identity)

    # ------------------------------------------------------------------ tags

    def _tell_tags(self, conn: Connection[Any], asked: _Asked) -> None:
        """
        Say the tags of coded responses as the application knows them, beside what the client says.
        """
        if self._etag != "suffix":
            return
        coding = asked.choice.coding
        names = [coding.name] if coding is not None else []
        for field, lines, suffixes in (
            ("if-none-match", asked.if_none_match, names),
            ("if-match", asked.if_match, [each.name for each in self._codings]),
        ):
            tags = tags_of(lines)
            if tags == "*":
                continue
            plain = [
                Tag(tag.opaque.removesuffix(f"-{name}"), tag.is_weak)
                for tag in tags
                for name in suffixes
                if tag.opaque.endswith(f"-{name}")
            ]
            if plain:
                conn.set_header(field, ", ".join(map(str, [*tags, *plain])))

    def _give_back_tag(self, response: AppResponse, asked: _Asked) -> None:
        """
        Name in a 304 what the client has: the tag of the coded response.
        """
        tag = tag_of(response.headers.get("etag"))
        coding = asked.choice.coding
        if tag is None or tag.is_weak or coding is None or not asked.if_none_match:
            return
        coded = self._tag_of_coded(tag, coding)
        tags = tags_of(asked.if_none_match)
        if tags != "*" and any(
            each.opaque == coded.opaque and coded.is_weak <= each.is_weak for each in tags
        ):
            response.headers["etag"] = str(coded)

    def _tag_of_coded(self, tag: Tag, coding: Coding) -> Tag:
        if self._etag == "weaken":
            return Tag(tag.opaque, is_weak=True)
        return Tag(f"{tag.opaque}-{coding.name}")

    # ------------------------------------------------------------------ responses

    def _may_code(self, response: AppResponse, *, is_forced: bool) -> bool:
        if response.status_code in _NEVER:
            return False
        length = None
        for name, value in response.raw_headers:
            if name == b"content-encoding" or name == b"content-range":  # noqa: PLR1714 - quicker
                return False
            if name == b"content-length":
                length = value
            elif name == b"cache-control" and b"no-transform" in value.lower():
                return False
        if is_forced:
            return True
        if length is not None and length.isdigit() and int(length) < self._min_size:
            return False
        return self._kind(response)[0]

    def _kind(self, response: AppResponse) -> tuple[bool, bool, bool]:
        """
        Say of a type whether it is coded, is text, and is live.
        """
        raw = b""
        for name, value in response.raw_headers:
            if name == b"content-type":
                raw = value
                break
        kind = self._kinds.get(raw)
        if kind is None:
            media_type = raw.partition(b";")[0].strip().lower().decode("latin-1")
            is_coded = (
                media_type in self._types
                or media_type.startswith(self._main_types)
                or media_type.endswith(self._suffixes)
            )
            is_text = not media_type.startswith(("font/", "application/wasm", "image/"))
            kind = is_coded, is_text, media_type in _LIVE
            if len(self._kinds) >= _MOST:
                self._kinds.clear()
            self._kinds[raw] = kind
        return kind

    def _describe(self, response: AppResponse, coding: Coding) -> None:
        """
        Have the headers say what is sent then.
        """
        headers = []
        for pair in response.raw_headers:
            name, value = pair
            if name in _OF_THE_BYTES:
                continue
            if name == b"etag":
                tag = tag_of(value.decode("latin-1"))
                if tag is not None and not tag.is_weak:
                    headers.append((name, str(self._tag_of_coded(tag, coding)).encode("latin-1")))
                    continue
            headers.append(pair)
        headers.append((b"content-encoding", coding.name.encode()))
        response.raw_headers[:] = headers

    async def _code_whole(
        self, response: AppResponse, coding: Coding, size: int, *, is_text: bool
    ) -> None:
        described = [*response.raw_headers]
        body = await response.read()
        if size >= self._thread_size:
            coded = await anyio.to_thread.run_sync(coding.whole, body, is_text)
        else:
            coded = coding.whole(body, is_text)
        response.body = coded
        described.append((b"content-length", b"%d" % len(coded)))
        response.raw_headers[:] = described


class _Flusher:
    # When a coder gives what it has kept.

    def __init__(self, coder: Coder, *, each: bool, never: bool) -> None:
        self.coder = coder
        self._each = each
        self._never = never
        self._last = 0.0
        self._size = 0

    def next(self, size: int) -> Any:
        """
        Say which of the coder's functions takes the next chunk, of *size* bytes.
        """
        if self._never:
            return self.coder.add
        if not self._each:
            now = time.monotonic()
            self._size += size
            if now - self._last < _SECONDS and self._size < _BYTES:
                return self.coder.add
            self._last, self._size = now, 0
        return self.coder.flush


async def _coded(
    chunks: AsyncIterator[bytes], flusher: _Flusher, thread_size: int
) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        size = len(chunk)
        code = flusher.next(size)
        if size >= thread_size:
            yield await anyio.to_thread.run_sync(code, chunk)
        else:
            yield code(chunk)
    yield flusher.coder.finish()


def _add_vary(response: AppResponse) -> None:
    given = [value for name, value in response.raw_headers if name == b"vary"]
    if not given:
        response.raw_headers.append((b"vary", b"Accept-Encoding"))
        return
    named = {each.strip().lower() for each in b",".join(given).split(b",")}
    if not named & {b"*", b"accept-encoding"}:
        response.headers["vary"] = b", ".join((*given, b"Accept-Encoding")).decode("latin-1")


def _is_own(site: bytes, source: bytes, host: bytes) -> bool:
    """
    Whether a page of the same site asks, or nobody but the user does.
    """
    if site:
        return site in {b"same-origin", b"none"}
    # Plain HTTP, where browsers say nothing of it: the page is named, or nobody knows.
    return bool(host) and source.partition(b"://")[2].partition(b"/")[0] == host
