# Headers that tell a browser what a page may do.
#
# Rule 1: the application's own header wins; a name is never there two times by our doing.
# Rule 2: what browsers remember and nobody can take back (Strict-Transport-Security) is said over
# TLS alone, and never of localhost or an address, which others use as well.
# Rule 3: a nonce is in one response and no other: a 304 has no policy, as the one that the browser
# kept with the page names the nonce of that page; and no shared cache may keep a page with one.
# Rule 4: what all responses of a layer have in common is written when the layer is made.

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._response import AppResponse

from ._ready import Exclude, Ready, headers_of, view_of

Directives: TypeAlias = Mapping[str, str | Sequence[str] | bool | None]
"""
The directives of a policy, each with its sources; True: without any, False or None: not there.
"""
# The same, checked.
Policy: TypeAlias = dict[str, list[str]]

_WEB_POLICY: Final[Directives] = {
    "default-src": "'self'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'self'",
    "object-src": "'none'",
}
_FEW_FEATURES: Final = dict.fromkeys(
    ("camera", "microphone", "geolocation", "payment", "usb"), "()"
)
# Of OWASP's Secure Headers project, without those that no browser knows any more.
_MANY_FEATURES: Final = dict.fromkeys(
    (
        *("accelerometer", "autoplay", "camera", "cross-origin-isolated", "display-capture"),
        *("encrypted-media", "fullscreen", "geolocation", "gyroscope", "keyboard-map"),
        *("magnetometer", "microphone", "midi", "payment", "picture-in-picture"),
        *("publickey-credentials-get", "screen-wake-lock", "sync-xhr", "usb", "web-share"),
        *("xr-spatial-tracking", "clipboard-read", "clipboard-write", "gamepad", "hid"),
        *("idle-detection", "serial", "unload"),
    ),
    "()",
) | {"sync-xhr": "(self)"}

_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "web": {
        "csp": _WEB_POLICY,
        "hsts": "max-age=31536000",
        "frame_options": "SAMEORIGIN",
        "content_type_options": "nosniff",
        "referrer_policy": "strict-origin-when-cross-origin",
        "permissions_policy": _FEW_FEATURES,
        "coop": "same-origin-allow-popups",
        "corp": "same-site",
    },
    "api": {
        "csp": {"default-src": "'none'", "frame-ancestors": "'none'"},
        "hsts": "max-age=31536000",
        "frame_options": "DENY",
        "content_type_options": "nosniff",
        "referrer_policy": "no-referrer",
    },
    "strict": {
        "csp": {
            **_WEB_POLICY,
            "frame-ancestors": "'none'",
            "upgrade-insecure-requests": True,
        },
        "hsts": "max-age=63072000; includeSubDomains",
        "frame_options": "DENY",
        "content_type_options": "nosniff",
        # With no-referrer a site's own form says `Origin: null`, which on plain HTTP is all that
        # there is against cross-site requests.
        "referrer_policy": "strict-origin-when-cross-origin",
        "permissions_policy": _MANY_FEATURES,
        "coop": "same-origin",
        "corp": "same-origin",
        "dns_prefetch_control": "off",
        "cross_domain_policies": "none",
    },
}
_NAMES: Final = {
    "frame_options": b"x-frame-options",
    "content_type_options": b"x-content-type-options",
    "referrer_policy": b"referrer-policy",
    "coop": b"cross-origin-opener-policy",
    "corp": b"cross-origin-resource-policy",
    "coep": b"cross-origin-embedder-policy",
    "dns_prefetch_control": b"x-dns-prefetch-control",
    "cross_domain_policies": b"x-permitted-cross-domain-policies",
}
_ENFORCED: Final = b"content-security-policy"
_REPORTED: Final = b"content-security-policy-report-only"
_HSTS: Final = b"strict-transport-security"

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_DIRECTIVE: Final = re.compile(r"[a-z][a-z0-9-]*")
# Structured Fields (RFC 9651 section 3.1.2): what a member of a dictionary is called.
_KEY: Final = re.compile(r"[a-z*][a-z0-9_.*-]*")
# What is a keyword in quotes and a host without.
_KEYWORDS: Final = frozenset(
    (
        *("self", "none", "unsafe-inline", "unsafe-eval", "strict-dynamic", "unsafe-hashes"),
        *("report-sample", "wasm-unsafe-eval", "inline-speculation-rules"),
    )
)
_NONCE: Final = "'nonce-{}'"
_MOST_HOSTS: Final = 1024
_LARGEST_DOCS: Final = 256 * 1024  # bytes


class CSPNonce:
    """
    The nonce of one response, made when it is first asked for.

    It is in `request.state.csp_nonce`; in a template `nonce="{{ request.state.csp_nonce }}"` is
    enough, in code `str(request.state.csp_nonce)`.
    """

    __slots__ = ("_is_late", "_value")

    def __init__(self) -> None:
        self._value: str | None = None
        self._is_late = False

    @property
    def is_used(self) -> bool:
        """
        Whether anybody has asked for it.
        """
        return self._value is not None

    def __str__(self) -> str:
        if self._value is None:
            if self._is_late:
                raise _errors.late_nonce()
            # CSP level 3 section 7.1: at least 128 bits.
            self._value = secrets.token_urlsafe(18)
        return self._value

    __html__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def _go_out(self, *, needed: bool) -> str | None:
        if needed:
            return str(self)
        self._is_late = self._value is None
        return self._value


class SecurityHeadersMiddleware(Ready):
    """
    Give each response the headers that tell a browser what a page may do.

    A header that the application has set stays as it is. On a WebSocket handshake a refusal has
    them.

    Each header is a keyword: a text sends that, False leaves it out, and None, the default, is what
    the preset says.

    Args:
        app: The inner app.
        preset: `"web"` for pages, `"api"` for what gives no pages, `"strict"`, or None: nothing but
            what is asked for.
        csp: `Content-Security-Policy`. A mapping of directives is put over that of the preset, each
            with a text or a list of sources; True is a directive without any, and False takes one
            out. A text is the whole policy.
        csp_nonce: Whether `request.state.csp_nonce` gives a nonce, and the policy of each HTML page
            names it in `script-src` and `style-src`; or the directives in which it does.
        report_only: Whether the policy is only reported on, and not enforced.
        reporting_endpoints: `Reporting-Endpoints`: names with absolute URLs, for the `report-to` of
            a policy.
        hsts: `Strict-Transport-Security`; over TLS alone, and never for localhost or an address.
        frame_options: `X-Frame-Options`.
        content_type_options: `X-Content-Type-Options`.
        referrer_policy: `Referrer-Policy`.
        permissions_policy: `Permissions-Policy`: a text, or a mapping over that of the preset, from
            features to lists such as `"()"` or `"(self)"`; False takes one out.
        coop: `Cross-Origin-Opener-Policy`.
        corp: `Cross-Origin-Resource-Policy`.
        coep: `Cross-Origin-Embedder-Policy`; in no preset.
        dns_prefetch_control: `X-DNS-Prefetch-Control`.
        cross_domain_policies: `X-Permitted-Cross-Domain-Policies`.
        remove: Names of headers that are taken out of each response. What the server itself adds,
            such as `server`, is the server's to leave out.
        override: Whether these headers take the place of the application's own.
        docs: For which pages the policy allows what FastAPI's documentation loads: `"auto"`, those
            of the application; paths; or False.
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True.

    Raises:
        TypeError: An option is not what it has to be.
    """

    kind = "security_headers"

    def __init__(
        self,
        app: ASGIApp,
        *,
        preset: Literal["web", "api", "strict"] | None = "web",
        csp: Directives | str | Literal[False] | None = None,
        csp_nonce: bool | Collection[str] = False,
        report_only: bool = False,
        reporting_endpoints: Mapping[str, str] | None = None,
        hsts: str | Literal[False] | None = None,
        frame_options: str | Literal[False] | None = None,
        content_type_options: str | Literal[False] | None = None,
        referrer_policy: str | Literal[False] | None = None,
        permissions_policy: Mapping[str, str | Literal[False] | None]
        | str
        | Literal[False]
        | None = None,
        coop: str | Literal[False] | None = None,
        corp: str | Literal[False] | None = None,
        coep: str | Literal[False] | None = None,
        dns_prefetch_control: str | Literal[False] | None = None,
        cross_domain_policies: str | Literal[False] | None = None,
        remove: Collection[str] = ("x-powered-by",),
        override: bool = False,
        docs: Literal["auto", False] | Collection[str] = "auto",
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = True,
    ) -> None:
        if preset is not None and preset not in _PRESETS:
            raise self._bad("preset", preset, f"one of {[*_PRESETS]}, or None")
        self._check_flags(report_only=report_only, override=override)
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)
        base = _PRESETS[preset] if preset is not None else {}
        given = {
            "frame_options": frame_options,
            "content_type_options": content_type_options,
            "referrer_policy": referrer_policy,
            "coop": coop,
            "corp": corp,
            "coep": coep,
            "dns_prefetch_control": dns_prefetch_control,
            "cross_domain_policies": cross_domain_policies,
        }
        plain = []
        for option, value in given.items():
            meant = self._text(option, base.get(option) if value is None else value)
            if meant is not None:
                plain.append((_NAMES[option], meant))
        features = self._features(permissions_policy, base.get("permissions_policy"))
        if features is not None:
            plain.append((b"permissions-policy", features))
        if reporting_endpoints is not None:
            plain.append((b"reporting-endpoints", self._endpoints(reporting_endpoints)))
        self._policy_name = _REPORTED if report_only else _ENFORCED
        policy = self._policy(csp, base.get("csp"))
        lasting = self._text("hsts", base.get("hsts") if hsts is None else hsts)
        if lasting is not None and not re.match(rb'max-age="?\d+', lasting, re.IGNORECASE):
            raise self._bad(
                "hsts", hsts, "a text that begins with `max-age=` and seconds, or False"
            )
        # Here and below: what is sent without TLS, and what is sent over it.
        secure = plain if lasting is None else [*plain, (_HSTS, lasting)]
        self._plain = tuple(plain), tuple(secure)
        self._nonced = self._nonced_directives(csp_nonce)
        upgraded = policy
        if policy is not None and "upgrade-insecure-requests" in policy:
            policy = {**policy}
            del policy["upgrade-insecure-requests"]
        self._policies = policy or {}, upgraded or {}
        self._written = _written(self._policies[0]), _written(self._policies[1])
        self._with_nonce = tuple(map(self._template, self._policies))
        self._added = tuple(
            self._with_policy(is_secure, self._written[is_secure]) for is_secure in (False, True)
        )
        self._removed = self._names("remove", remove)
        # Whose names say that there is more to do than to add.
        self._meant = self._removed | {self._policy_name} | {name for name, _ in secure}
        self._override = override
        self._docs = self._docs_paths(docs)
        self._docs_of: tuple[Any, frozenset[str]] = None, frozenset()
        self._hosts: dict[bytes, bool] = {}

    # ------------------------------------------------------------------ options

    def _text(self, option: str, value: Any) -> bytes | None:
        if value is None or value is False:
            return None
        if not isinstance(value, str) or not value.strip() or not _is_printable(value):
            raise self._bad(option, value, "a text in printable ASCII, False or None")
        return value.encode()

    def _names(self, option: str, names: Any) -> frozenset[bytes]:
        if isinstance(names, str) or not isinstance(names, Collection):
            raise self._bad(option, names, 'names of headers, as in `remove=["x-powered-by"]`')
        for name in names:
            if not isinstance(name, str) or not _TOKEN.fullmatch(name):
                raise self._bad(option, names, f"names of headers, not {name!r}")
        return frozenset(name.lower().encode() for name in names)

    def _docs_paths(self, docs: Any) -> frozenset[str] | None:
        if docs == "auto":
            return None
        if docs is False:
            return frozenset()
        return self._checked_paths("docs", docs, '"auto", paths, or False')

    def _features(self, given: Any, base: Any) -> bytes | None:
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            return self._text("permissions_policy", given)
        features = {**(base or {}), **given}
        parts = []
        for name, value in features.items():
            if value is False or value is None:
                continue
            is_name = isinstance(name, str) and _KEY.fullmatch(name)
            if not is_name or not isinstance(value, str) or not _is_printable(value):
                raise self._bad(
                    "permissions_policy", given, 'features, as in `{"camera": "(self)"}`'
                )
            parts.append(f"{name}={value}")
        return ", ".join(parts).encode() or None

    def _endpoints(self, given: Any) -> bytes:
        if not isinstance(given, Mapping) or not given:
            raise self._bad("reporting_endpoints", given, "a mapping of names to absolute URLs")
        for name, url in given.items():
            if not isinstance(name, str) or not _KEY.fullmatch(name) or not _is_url(url):
                raise self._bad(
                    "reporting_endpoints",
                    given,
                    f"a mapping of names to absolute URLs, not of {name!r} to {url!r}",
                )
        return ", ".join(f'{name}="{url}"' for name, url in given.items()).encode()

    def _policy(self, given: Any, base: Any) -> Policy | None:
        if given is False:
            return None
        if given is None:
            given = {}
        directives: dict[Any, Any] = {}
        if isinstance(given, str):
            for part in filter(None, map(str.split, given.split(";"))):
                # CSP level 3 section 2.2.1: of several the first counts.
                directives.setdefault(part[0].lower(), part[1:])
        elif isinstance(given, Mapping):
            directives = {**(base or {}), **given}
        else:
            raise self._bad("csp", given, "a mapping of directives, a text, False or None")
        policy: Policy = {}
        for name, value in directives.items():
            if value is False or value is None:
                continue
            sources = [] if value is True else value
            sources = sources.split() if isinstance(sources, str) else sources
            if not isinstance(name, str) or not _DIRECTIVE.fullmatch(name):
                raise self._bad("csp", given, f"names of directives, not {name!r}")
            for source in sources:
                self._check_source(given, source)
            policy[name] = list(sources)
        return policy or None

    def _check_source(self, given: Any, source: Any) -> None:
        is_text = isinstance(source, str) and _is_printable(source)
        if not is_text or not source or set(source) & set("; ,"):
            raise self._bad("csp", given, f"sources without spaces, `;` and `,`, not {source!r}")
        if source.lower() in _KEYWORDS or re.match(r"(nonce|sha(256|384|512))-", source.lower()):
            raise self._bad("csp", given, f"written with quotes, \"'{source}'\", or it is a host")

    def _nonced_directives(self, given: Any) -> tuple[str, ...]:
        if isinstance(given, bool):
            return ("script-src", "style-src") if given else ()
        if isinstance(given, str) or not isinstance(given, Collection):
            raise self._bad("csp_nonce", given, "a bool, or names of directives")
        for name in given:
            if not isinstance(name, str) or not name.startswith(("script-src", "style-src")):
                raise self._bad(
                    "csp_nonce", given, f"directives of scripts or styles, not {name!r}"
                )
        return tuple(given)

    def _template(self, policy: Policy) -> list[bytes]:
        """
        Write the policy with a nonce, in the parts between which that belongs.
        """
        policy = {**policy}
        for name in self._nonced:
            sources = policy.get(name, policy.get("default-src"))
            if sources is None:
                continue  # everything is allowed, and stays so
            if "'unsafe-inline'" in sources and name.startswith("style-src"):
                continue  # which a nonce would switch off
            kept = [source for source in sources if source != "'none'"]
            policy[name] = [*kept, _NONCE]
        return _written(policy).split(b"{}")

    # ------------------------------------------------------------------ requests

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Give the response its headers.
        """
        nonce = None
        if self._nonced:
            nonce = conn.state.csp_nonce = CSPNonce()
        is_docs = self._is_docs(conn)
        if is_docs:
            conn.delete_header("accept-encoding")  # the page has to be read
        response = yield
        status = response.status_code
        if status == 101:  # noqa: PLR2004 - the acceptance of a handshake
            return
        scheme = view_of(conn).get("scheme")
        # Whether this is over TLS, to a name of its own.
        is_secure = (scheme == "https" or scheme == "wss") and self._has_name(conn)  # noqa: PLR1714 - quicker
        added = self._added[is_secure]
        headers = response.raw_headers
        if status == 304:  # noqa: PLR2004 - see rule 3
            headers[:] = [pair for pair in headers if not _has_nonce(pair)]
            added = self._plain[is_secure]
        elif is_docs and status == 200 and self._written[is_secure]:  # noqa: PLR2004
            policy = await self._policy_of_docs(response, self._policies[is_secure])
            added = self._with_policy(is_secure, policy)
        elif nonce is not None:
            value = nonce._go_out(needed=_is_page(response))  # noqa: SLF001
            if value is not None:
                _keep_private(response)
                policy = value.encode().join(self._with_nonce[is_secure])
                added = self._with_policy(is_secure, policy)
        there = {name.lower() for name, _ in headers}
        if there.isdisjoint(self._meant):  # mostly: nobody else has said any of it
            headers += added
            return
        dropped = self._removed & there
        if self._override:
            dropped |= {name for name, _ in added} & there
            there -= dropped
        if dropped:
            headers[:] = [pair for pair in headers if pair[0].lower() not in dropped]
        headers.extend([pair for pair in added if pair[0] not in there])

    def _with_policy(self, is_secure: bool, policy: bytes) -> tuple[tuple[bytes, bytes], ...]:  # noqa: FBT001
        plain = self._plain[is_secure]
        return (*plain, (self._policy_name, policy)) if policy else plain

    def _has_name(self, conn: Connection[Any]) -> bool:
        host = b""
        for name, value in headers_of(conn):
            if name == b"host":
                host = value
                break
        known = self._hosts.get(host)
        if known is None:
            if len(self._hosts) >= _MOST_HOSTS:  # somebody makes them up
                self._hosts.clear()
            known = self._hosts[host] = _is_name(host.decode("latin-1"))
        return known

    # ------------------------------------------------------------------ FastAPI's documentation

    def _is_docs(self, conn: Connection[Any]) -> bool:
        paths = self._docs
        if paths is None:
            app = view_of(conn).get("app")
            known, paths = self._docs_of
            if known is not app:
                paths = _docs_of(app)
                self._docs_of = app, paths
        if not paths:
            return False
        scope = view_of(conn)
        path: str = scope["path"]
        root: str = scope.get("root_path") or ""
        return path in paths or (path.startswith(root) and path[len(root) :] in paths)

    async def _policy_of_docs(self, response: AppResponse, policy: Policy) -> bytes:
        """
        Write the policy for a page of documentation: with what that loads, as it is sent.
        """
        if not _is_page(response) or "content-encoding" in response.headers:
            return _written(policy)
        length = response.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > _LARGEST_DOCS:
            return _written(policy)
        page = (await response.read()).decode(response.charset, "replace")
        scripts = [f"'sha256-{_sum(text)}'" for text in _SCRIPT.findall(page) if text.strip()]
        loaded = {
            kind: [origin for url in urls.findall(page) if (origin := _origin(url))]
            for kind, urls in _LOADED.items()
        }
        fonts = ["https://fonts.gstatic.com"] * ("https://fonts.googleapis.com" in loaded["style"])
        made = {
            "default-src": ["'self'"],
            "base-uri": ["'self'"],
            "form-action": ["'self'"],
            "frame-ancestors": policy.get("frame-ancestors", ["'self'"]),
            "object-src": ["'none'"],
            "script-src": ["'self'", *loaded["script"], *scripts],
            # Both pages write styles into elements.
            "style-src": ["'self'", "'unsafe-inline'", *loaded["style"]],
            "font-src": ["'self'", "data:", *fonts],
            "img-src": [
                "'self'",
                "data:",
                *loaded["icon"],
                *["https://cdn.redoc.ly"] * bool(fonts),
            ],
            "worker-src": ["'self'", "blob:"],
        }
        return _written({name: list(dict.fromkeys(sources)) for name, sources in made.items()})


_SCRIPT: Final = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_LOADED: Final = {
    "script": re.compile(r'<script\b[^>]*\bsrc="([^"]+)"'),
    "style": re.compile(r'<link\b(?=[^>]*\brel="stylesheet")[^>]*\bhref="([^"]+)"'),
    "icon": re.compile(r'<link\b(?=[^>]*\brel="shortcut icon")[^>]*\bhref="([^"]+)"'),
}


def _docs_of(app: Any) -> frozenset[str]:
    """
    Give the paths of the documentation of an application, as FastAPI has them.
    """
    names = ("docs_url", "redoc_url", "swagger_ui_oauth2_redirect_url")
    paths = (getattr(app, name, None) for name in names)
    return frozenset(path for path in paths if isinstance(path, str))


def _sum(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _origin(url: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    is_plain = parts.scheme in {"http", "https"} and re.fullmatch(r"[\w.:\[\]-]+", parts.netloc)
    return f"{parts.scheme}://{parts.netloc}" if is_plain else None


# ---------------------------------------------------------------------- headers


def _written(policy: Policy) -> bytes:
    return "; ".join(" ".join((name, *sources)) for name, sources in policy.items()).encode()


def _has_nonce(pair: tuple[bytes, bytes]) -> bool:
    return pair[0].lower() in {_ENFORCED, _REPORTED} and b"'nonce-" in pair[1]


def _is_page(response: AppResponse) -> bool:
    return (response.media_type or "").lower() in {"text/html", "application/xhtml+xml"}


def _keep_private(response: AppResponse) -> None:
    """
    Keep a page with a nonce out of shared caches, which would give it to everybody.
    """
    given = ",".join(response.headers.getlist("cache-control"))
    directives = [part.strip() for part in given.split(",") if part.strip()]
    names = {part.partition("=")[0].lower() for part in directives}
    if names & {"no-store", "private"}:
        return
    kept = [
        part for part in directives if part.partition("=")[0].lower() not in {"public", "s-maxage"}
    ]
    response.headers["cache-control"] = ", ".join(["private", *kept])


def _is_name(host: str) -> bool:
    """
    Whether a `Host` is neither localhost nor an address.
    """
    name = re.sub(r":\d*$", "", host).rstrip(".").lower()
    if not name or name == "localhost" or name.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return True
    return False


def _is_url(value: Any) -> bool:
    if not isinstance(value, str) or not _is_printable(value) or set(value) & set(' "\\'):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return bool(parts.scheme in {"http", "https"} and parts.netloc)


def _is_printable(value: str) -> bool:
    return value.isascii() and value.isprintable()
