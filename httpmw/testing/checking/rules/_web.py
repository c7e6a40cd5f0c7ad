# The scope that HTTP and websockets share.

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from ._rule import SCOPE, Conversation, bad_pairs, rule

_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]+")


class Web(Conversation):
    """
    A conversation that begins with a request line and headers.
    """


@rule(Web, "S03", "server", "HTTP: Connection Scope", SCOPE)
def paths(web: Web, scope: Any) -> Any:
    """`path` and `root_path` are str, `raw_path` is bytes or None; only `path` must be there."""
    return not (
        isinstance(scope.get("path"), str)
        and isinstance(scope.get("root_path", ""), str)
        and isinstance(scope.get("raw_path", b""), bytes | None)
    )


# Optional for websockets. Servers and test clients without it for HTTP are no more.
@rule(Web, "S04", "server", "HTTP: Connection Scope", SCOPE)
def query_string(web: Web, scope: Any) -> Any:
    """`query_string` is bytes."""
    default = b"" if scope["type"] == "websocket" else None
    return not isinstance(scope.get("query_string", default), bytes)


# Names "should be lowercased, but it is not required".
@rule(Web, "S05", "server", "HTTP: Connection Scope", SCOPE)
def request_headers(web: Web, scope: Any) -> Any:
    """The headers of a scope are an iterable of pairs of bytes, without pseudo headers."""
    headers = scope.get("headers")
    if isinstance(headers, Iterator):
        return None  # it can be read once, which is for the app
    return bad_pairs(headers) or any(name.startswith(b":") for name, _ in headers)


@rule(Web, "S06", "server", "HTTP: Connection Scope", SCOPE)
def scheme(web: Web, scope: Any) -> Any:
    """`scheme` is a str that is not empty, where it is given."""
    return not isinstance(scope.get("scheme", "http"), str) or not scope.get("scheme", "http")


@rule(Web, "S07", "server", "HTTP: Connection Scope", SCOPE)
def http_version(web: Web, scope: Any) -> Any:
    """`http_version` is a str such as "1.1" or "2"."""
    version = scope.get("http_version", "1.1")
    return not isinstance(version, str) or not re.fullmatch(r"[1-9](\.\d)?", version)


@rule(Web, "S08", "server", "HTTP: Connection Scope", SCOPE)
def addresses(web: Web, scope: Any) -> Any:
    """`client` and `server` are a host and a port, or None; a unix socket has no port."""
    return not (
        _is_address(scope.get("client"), (int,))
        and _is_address(scope.get("server"), (int, type(None)))
    )


def _is_address(value: Any, port: tuple[type, ...]) -> bool:
    if value is None:
        return True
    if not isinstance(value, (list, tuple)) or len(value) != 2:  # noqa: PLR2004 - a pair
        return False
    return isinstance(value[0], str) and isinstance(value[1], port)


@rule(Web, "S09", "server", "HTTP: Connection Scope", SCOPE)
def method(web: Web, scope: Any) -> Any:
    """The `method` of HTTP is a str in upper case."""
    if scope["type"] != "http":
        return None
    value = scope.get("method")
    return not isinstance(value, str) or not _METHOD.fullmatch(value)


@rule(Web, "S10", "server", "WebSocket: Websocket Connection Scope", SCOPE)
def subprotocols(web: Web, scope: Any) -> Any:
    """The `subprotocols` of a websocket are an iterable of str."""
    offered = scope.get("subprotocols", [])
    return not isinstance(offered, (list, tuple)) or not all(
        isinstance(each, str) for each in offered
    )
