# What is said of an order of layers that does harm.
#
# Each layer looks inward when it is made: along `.app`, as Starlette builds from the inside; in a
# `MiddlewareStack`, where each layer has a link further in, the stack shows each order to `check`.

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from . import _chain, _errors


class OrderWarning(UserWarning):
    """
    Layers stand in an order that is known to do harm.
    """


# What refuses.
_REFUSE: Final = (
    *("cross_origin", "rate_limit", "concurrency_limit", "timeout", "idempotency", "etag"),
)
# What must not stand outside of what, and why. The names are those of `kind`.
HARM: Final[dict[tuple[str, str], str]] = {
    ("problem_details", "access_log"): (
        "an exception that is answered there is logged as one without a response"
    ),
    ("problem_details", "metrics"): (
        "an exception that is answered there is counted as one without a response"
    ),
    ("problem_details", "cors"): (
        "the answers to exceptions have no CORS headers, so a browser hides them from the page"
    ),
    ("access_log", "access_log"): "each request has two lines",
    ("metrics", "metrics"): "each request is counted two times",
    ("etag", "compression"): (
        "the tag is that of the coded bytes, and the same for clients that get them uncoded"
    ),
    ("etag", "idempotency"): (
        "a change that was done, and is sent again with If-Match, is refused with 412 in place of"
        " its answer"
    ),
    ("idempotency", "compression"): "an answer is stored as it was coded for one client",
    ("idempotency", "timeout"): (
        "where the time is over, the key of a request whose thread still runs is let go"
    ),
    ("compression", "compression"): "each response is looked at two times, and coded once",
    ("security_headers", "security_headers"): "what the outer one says is never seen",
    ("timeout", "concurrency_limit"): (
        "where the time is over, a slot is given back whose thread still runs"
    ),
    ("concurrency_limit", "concurrency_limit"): "a request waits for two slots",
    ("rate_limit", "rate_limit"): "they have one store and one name, so each request counts twice",
    **{
        (kind, "cors"): "what it refuses has no CORS headers, so a browser hides it from the page"
        for kind in _REFUSE
    },
}
# What codes responses as well, but is not ours.
_COMPRESSORS: Final = frozenset(
    (
        ("starlette.middleware.gzip", "GZipMiddleware"),
        ("brotli_asgi", "BrotliMiddleware"),
        ("starlette_compress", "CompressMiddleware"),
    )
)
_CORS: Final = ("starlette.middleware.cors", "CORSMiddleware")

CORS_ALLOW: Final = ("Idempotency-Key", "If-Match", "If-None-Match", "X-Request-ID", "traceparent")
"""
What pages of other origins may send for these layers: for `allow_headers=` of `CORSMiddleware`.
"""

CORS_EXPOSE: Final = (
    *("ETag", "Idempotent-Replayed", "Link", "Location", "RateLimit", "RateLimit-Policy"),
    *("Retry-After", "Server-Timing", "X-Request-ID"),
)
"""
What they may read of what these layers answer: for its `expose_headers=`.
"""

# What was said already: applications build their layers again.
_said: Final[set[tuple[str, str]]] = set()


def check_inward(layer: object) -> None:
    """
    Look at what stands inside of *layer*.
    """
    kind = kind_of(layer)
    for inner in inward(layer):
        _say(layer, kind, inner)


def check(layers: Sequence[object]) -> None:
    """
    Look at all the layers of a stack, the outermost first.
    """
    for place, layer in enumerate(layers):
        kind = kind_of(layer)
        for inner in layers[place + 1 :]:
            _say(layer, kind, inner)


_chain.watchers.append(check)


def _say(outer: object, kind: str | None, inner: object) -> None:
    inner_kind = kind_of(inner)
    if kind is None or inner_kind is None:
        return
    if kind == "cors" and inner_kind == "cross_origin":
        _say_untrusted(getattr(outer, "allow_origins", ()), inner)
        return
    if (kind, inner_kind) not in HARM or (kind, inner_kind) in _said:
        return
    if kind == inner_kind == "metrics" and type(outer) is not type(inner):
        return  # for Prometheus and for OpenTelemetry
    if kind == inner_kind == "rate_limit" and _are_apart(outer, inner):
        return
    _said.add((kind, inner_kind))
    warnings.warn(
        _errors.wrong_order(type(outer), type(inner), HARM[kind, inner_kind]),
        OrderWarning,
        stacklevel=4,
    )


def _are_apart(one: Any, other: Any) -> bool:
    """
    Whether two rate limits count in different places.
    """
    return one.store is not other.store or one.name != other.name


def _say_untrusted(origins: Iterable[str], layer: Any) -> None:
    """
    Say of which origins CORS lets pages read what they are then not let do.
    """
    trusted = getattr(layer, "_trusted", ())
    left = [each for each in origins if each != "*" and each.encode() not in trusted]
    if left and ("cors", "cross_origin") not in _said:
        _said.add(("cors", "cross_origin"))
        warnings.warn(_errors.untrusted_origins(type(layer), left), OrderWarning, stacklevel=5)


def kind_of(layer: object) -> str | None:
    """
    Tell what a layer is by the name that `HARM` has for it; None for one that does no harm.
    """
    cls = type(layer)
    name = cls.__module__, cls.__qualname__
    if name == _CORS:
        return "cors"
    if name in _COMPRESSORS:
        return "compression"
    kind = getattr(cls, "kind", None)
    return kind if isinstance(kind, str) else None


def inward(layer: object) -> Iterator[object]:
    """
    Give what stands inside of a layer, as Starlette puts it together.
    """
    seen = {id(layer)}
    inner = getattr(layer, "app", None)
    while inner is not None and id(inner) not in seen:
        yield inner
        seen.add(id(inner))
        inner = getattr(inner, "app", None)
