from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast

_Pairs: TypeAlias = Iterable[tuple[str | bytes, str | bytes]]

HeadersLike: TypeAlias = Mapping[str, str] | _Pairs
"""
Headers as a test writes them: a mapping, or pairs where a name is repeated.
"""


def raw_headers(headers: HeadersLike) -> list[tuple[bytes, bytes]]:
    """
    Make of *headers* what ASGI wants: pairs of bytes, the names in lower case.
    """
    pairs = cast(_Pairs, headers.items() if isinstance(headers, Mapping) else headers)
    return [(latin(name).lower(), latin(value)) for name, value in pairs]


def with_host(headers: HeadersLike) -> list[tuple[bytes, bytes]]:
    """
    Add the header that no request is without (RFC 9112 section 3.2).
    """
    raw = raw_headers(headers)
    if not any(name == b"host" for name, _ in raw):
        raw.insert(0, (b"host", b"testserver"))
    return raw


def latin(value: str | bytes) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else value
