# Cross-site requests, refused without a token: Go 1.25's `net/http.CrossOriginProtection`.
#
# Rule 1: what a browser says of itself decides; who sends neither `Sec-Fetch-Site` nor `Origin` is
# no browser, and cannot be made to send somebody else's cookies.
# Rule 2: a handshake is a GET, whose answer a page of any origin can read: there `Origin` decides
# alone, as browsers send no `Sec-Fetch-Site` with it.
# Rule 3: doubt refuses: several fields, an origin that is none.

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection

from ._draining import Drain
from ._ready import Exclude, Ready, view_of
from ._refuse import Refusal, Respond

_log: Final = logging.getLogger("httpmw.cross_origin")

_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
# RFC 6454 section 6.2: how an origin is written, in which a port of its scheme's own is left out.
_ORIGIN: Final = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#@\s\x00-\x20]+)")
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class CrossOriginProtectionMiddleware(Ready):
    """
    Refuse requests that pages of other origins have a browser send (CSRF), without any token.

    GET, HEAD and OPTIONS pass, so they must change nothing. Of others `Sec-Fetch-Site` has to be
    `same-origin` or `none`; where it is absent, `Origin` has to be absent too, or to name the host
    of the request. That is the algorithm of Go 1.25. What is refused gets a 403.

    A WebSocket handshake passes where `Origin` names the host of the request, or is absent.

    Args:
        app: The inner app.
        trusted_origins: Origins whose pages may send any request: `https://app.example`, with a
            port where it is not that of the scheme, without a path; other alphabets in punycode.
        allow_same_site: Whether `Sec-Fetch-Site: same-site` passes as well: all subdomains are
            trusted then, those that somebody else has taken over, too.
        require_origin: Whether a handshake without `Origin` is refused.
        report_only: Whether what would be refused is only logged.
        response: Makes the response in place of a problem document (RFC 9457): called with the
            connection and the `Problem`. The status is its own.
        drain: Whether the body of a refused request is received, and up to which bounds; a mapping
            has `max_size` (bytes, by default 1 MiB) and `seconds` (by default 1).
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True.

    Raises:
        TypeError: An option is not what it has to be.
    """

    kind = "cross_origin"

    def __init__(
        self,
        app: ASGIApp,
        *,
        trusted_origins: Collection[str] = (),
        allow_same_site: bool = False,
        require_origin: bool = False,
        report_only: bool = False,
        response: Respond | None = None,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = True,
    ) -> None:
        self._check_flags(
            allow_same_site=allow_same_site, require_origin=require_origin, report_only=report_only
        )
        self._check_callables(response=response)
        if isinstance(trusted_origins, str) or not isinstance(trusted_origins, Collection):
            raise self._bad(
                "trusted_origins", trusted_origins, 'origins, as in `["https://app.example"]`'
            )
        for origin in trusted_origins:
            if (wrong := _what_is_wrong(origin)) is not None:
                raise self._bad("trusted_origins", trusted_origins, f"origins: {origin!r} {wrong}")
        self._trusted = frozenset(origin.encode() for origin in trusted_origins)
        self._sites = frozenset(
            (b"same-origin", b"none", *((b"same-site",) if allow_same_site else ()))
        )
        self._require_origin = require_origin
        self._report_only = report_only
        self._refusal = Refusal(type(self), response, drain)
        self._has_seen_upgrade = False
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)

    def dispatch(self, conn: Connection[Any], /) -> Flow | None:
        """
        Refuse the request, or step aside.
        """
        if conn.is_websocket:
            reason = self._against_handshake(conn)
        elif view_of(conn)["method"] in _SAFE:
            if not self._has_seen_upgrade:
                self._look_for_upgrade(conn)
            return None
        else:
            reason = self._against(conn)
        if reason is None:
            return None
        self._report(conn, reason)
        return None if self._report_only else self._refuse(conn)

    async def _refuse(self, conn: Connection[Any]) -> Flow:
        yield await self._refusal.response(
            conn, 403, "The request came from a page of another origin.", "cross-origin"
        )

    def _against(self, conn: Connection[Any]) -> str | None:
        """
        Say what speaks against a request; None: nothing.
        """
        origins, hosts, sites = _told(conn)
        if sites:
            if len(sites) == 1 and sites[0] in self._sites:
                return None
            return None if self._is_trusted(origins) else "Sec-Fetch-Site"
        if not origins or _is_same(origins, hosts) or self._is_trusted(origins):
            return None
        return "Origin"

    def _against_handshake(self, conn: Connection[Any]) -> str | None:
        origins, hosts, sites = _told(conn)
        if not origins:
            return "no Origin" if self._require_origin else None
        if self._is_trusted(origins):
            return None
        if sites and not (len(sites) == 1 and sites[0] in self._sites):
            return "Sec-Fetch-Site"
        return None if _is_same(origins, hosts) else "Origin"

    def _is_trusted(self, origins: list[bytes]) -> bool:
        return len(origins) == 1 and origins[0] in self._trusted

    def _look_for_upgrade(self, conn: Connection[Any]) -> None:
        """
        Say once that a proxy makes plain requests of handshakes: `Upgrade` ends at each hop.
        """
        names = {name for name, _ in conn.headers.raw}
        if b"sec-websocket-key" in names and b"upgrade" not in names:
            self._has_seen_upgrade = True
            _log.warning(
                "%s was asked for by a WebSocket handshake that came without `Upgrade`: a proxy has"
                " taken it out; have it pass that on: `proxy_set_header Upgrade $http_upgrade` and"
                " `Connection upgrade` (nginx), `upgrade=websocket` (Apache)",
                ascii(conn["path"])[1:-1],
            )

    def _report(self, conn: Connection[Any], reason: str) -> None:
        origins, hosts, sites = _told(conn)
        hint = ""
        if reason == "Origin" and any(map(_is_behind_a_proxy, hosts)):
            hint = (
                "; where a proxy has put its own address there, let it pass the client's:"
                " `proxy_set_header Host $host` (nginx), `ProxyPreserveHost On` (Apache)"
            )
        _log.warning(
            "%s %s %s by %s: Origin %s, Host %s, Sec-Fetch-Site %s%s",
            "WebSocket" if conn.is_websocket else ascii(conn["method"])[1:-1],
            ascii(conn["path"])[1:-1],
            "would be refused" if self._report_only else "refused",
            reason,
            _shown(origins),
            _shown(hosts),
            _shown(sites),
            hint,
        )


def _told(conn: Connection[Any]) -> tuple[list[bytes], list[bytes], list[bytes]]:
    origins, hosts, sites = [], [], []
    for name, value in conn.headers.raw:
        if not value:  # as if it were not there
            continue
        if name == b"origin":
            origins.append(value)
        elif name == b"host":
            hosts.append(value)
        elif name == b"sec-fetch-site":
            sites.append(value)
    return origins, hosts, sites


def _is_same(origins: list[bytes], hosts: list[bytes]) -> bool:
    """
    Whether the origin names the host; of the scheme nothing is known behind a proxy.
    """
    if len(origins) != 1 or len(hosts) != 1:
        return False
    match = _ORIGIN.fullmatch(origins[0])
    return match is not None and match[1] == hosts[0].lower()


def _is_behind_a_proxy(host: bytes) -> bool:
    name = re.sub(r":\d*$", "", host.decode("latin-1")).strip("[]")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return address.is_private or address.is_loopback


def _shown(values: list[bytes]) -> str:
    return ", ".join(ascii(value.decode("latin-1")[:200])[1:-1] for value in values) or "-"


def _what_is_wrong(origin: Any) -> str | None:  # noqa: PLR0911 - one for each mistake
    """
    Say what is wrong with an origin that is to be compared byte by byte; None: nothing.
    """
    if not isinstance(origin, str):
        return "is no text"
    if not origin.isascii():
        return "has to be in punycode, as browsers send it (`xn--...`)"
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return "is no URL"
    if not parts.scheme or not parts.netloc:
        return "has to begin with a scheme, as `https://app.example` does"
    if parts.path or parts.query or parts.fragment or origin[-1] in "/?#" or "@" in parts.netloc:
        return "must have nothing but a scheme, a host and a port"
    if origin != origin.lower():
        return "has to be in lower case, as browsers send it"
    if "*" in origin or not _ORIGIN.fullmatch(origin.encode()):
        return "is no single origin"
    if parts.netloc.endswith(":") or (port is not None and port == _PORTS.get(parts.scheme)):
        return "must not name the port of its scheme, as browsers leave it out"
    return None
