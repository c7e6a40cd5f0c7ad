# In which order the layers stand, and what is said of an order that does harm.
#
# Each layer looks inward when it is made: along `.app`, as Starlette builds from the inside; in a
# `MiddlewareStack`, where each layer has a link further in, the stack shows each order to `check`.

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from starlette.middleware import Middleware

from httpmw import _chain, _errors

Options: TypeAlias = Mapping[str, Any] | bool | None
"""
How a layer is asked for: True, or with its options.
"""


class OrderWarning(UserWarning):
    """
    Layers stand in an order that is known to do harm.
    """


# What must not stand outside of what, and why. The names are those of `kind`.
_HARM: Final[dict[tuple[str, str], str]] = {
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
    ("rate_limit", "rate_limit"): "they have one store and one name, so each request counts twice",
    **{
        (kind, "cors"): "what it refuses has no CORS headers, so a browser hides it from the page"
        for kind in ("cross_origin", "rate_limit", "timeout", "idempotency", "etag")
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
    kind = _kind(layer)
    for inner in _inward(layer):
        _say(layer, kind, inner)


def check(layers: Sequence[object]) -> None:
    """
    Look at all the layers of a stack, the outermost first.
    """
    for place, layer in enumerate(layers):
        kind = _kind(layer)
        for inner in layers[place + 1 :]:
            _say(layer, kind, inner)


_chain.watchers.append(check)


def _say(outer: object, kind: str | None, inner: object) -> None:
    inner_kind = _kind(inner)
    if kind is None or inner_kind is None:
        return
    if kind == "cors" and inner_kind == "cross_origin":
        _say_untrusted(getattr(outer, "allow_origins", ()), inner)
        return
    if (kind, inner_kind) not in _HARM or (kind, inner_kind) in _said:
        return
    if kind == inner_kind == "metrics" and type(outer) is not type(inner):
        return  # for Prometheus and for OpenTelemetry
    if kind == inner_kind == "rate_limit" and _are_apart(outer, inner):
        return
    _said.add((kind, inner_kind))
    warnings.warn(
        _errors.wrong_order(type(outer), type(inner), _HARM[kind, inner_kind]),
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


def _kind(layer: object) -> str | None:
    cls = type(layer)
    name = cls.__module__, cls.__qualname__
    if name == _CORS:
        return "cors"
    if name in _COMPRESSORS:
        return "compression"
    kind = getattr(cls, "kind", None)
    return kind if isinstance(kind, str) else None


def _inward(layer: object) -> Iterator[object]:
    seen = {id(layer)}
    inner = getattr(layer, "app", None)
    while inner is not None and id(inner) not in seen:
        yield inner
        seen.add(id(inner))
        inner = getattr(inner, "app", None)


def recommended(
    *,
    request_id: Options = True,
    access_log: Options = True,
    prometheus: Options = None,
    opentelemetry_metrics: Options = None,
    server_timing: Options = None,
    security_headers: Options = True,
    cors: Mapping[str, Any] | None = None,
    problem_details: Options = True,
    cross_origin: Options = None,
    rate_limit: Options = None,
    timeout: Options = None,
    compression: Options = True,
    idempotency: Options = None,
    etag: Options = True,
) -> list[Middleware]:
    """
    Give the layers in the order in which they belong, the outermost first.

        app = FastAPI(middleware=recommended(access_log={"format": "json"}, prometheus=True))

    Each is asked for with True, or with a mapping of its options; with False or None it is left
    out.

    Args:
        request_id: `RequestIDMiddleware`; by default it is there.
        access_log: `AccessLogMiddleware`; by default it is there.
        prometheus: `PrometheusMiddleware`.
        opentelemetry_metrics: `OpenTelemetryMetricsMiddleware`.
        server_timing: `ServerTimingMiddleware`.
        security_headers: `SecurityHeadersMiddleware`; by default it is there.
        cors: The options of Starlette's `CORSMiddleware`.
        problem_details: `ProblemDetailsMiddleware`; by default it is there.
        cross_origin: `CrossOriginProtectionMiddleware`.
        rate_limit: `RateLimitMiddleware`.
        timeout: `TimeoutMiddleware`.
        compression: `CompressionMiddleware`; by default it is there.
        idempotency: `IdempotencyMiddleware`.
        etag: `ETagMiddleware`; by default it is there.

    Returns:
        A list for `Starlette(middleware=...)`, `FastAPI(middleware=...)` or `MiddlewareStack`.

    Raises:
        TypeError: What is asked for is neither a bool nor a mapping of options.
    """
    return [
        *_asked("RequestIDMiddleware", "request_id", request_id),
        *_asked("AccessLogMiddleware", "access_log", access_log),
        *_asked("PrometheusMiddleware", "prometheus", prometheus),
        *_asked("OpenTelemetryMetricsMiddleware", "opentelemetry_metrics", opentelemetry_metrics),
        *_asked("ServerTimingMiddleware", "server_timing", server_timing),
        *_asked("SecurityHeadersMiddleware", "security_headers", security_headers),
        *_cors(cors),
        *_asked("ProblemDetailsMiddleware", "problem_details", problem_details),
        *_asked("CrossOriginProtectionMiddleware", "cross_origin", cross_origin),
        *_asked("RateLimitMiddleware", "rate_limit", rate_limit),
        *_asked("TimeoutMiddleware", "timeout", timeout),
        *_asked("CompressionMiddleware", "compression", compression),
        *_asked("IdempotencyMiddleware", "idempotency", idempotency),
        *_asked("ETagMiddleware", "etag", etag),
    ]


def _asked(name: str, option: str, options: Options) -> Iterable[Middleware]:
    if options is None or options is False:
        return ()
    if options is not True and not isinstance(options, Mapping):
        raise _errors.bad_option(recommended, option, options, "True or a mapping of its options")
    from httpmw import middleware  # noqa: PLC0415 - loads what is asked for

    return (Middleware(getattr(middleware, name), **({} if options is True else options)),)


def _cors(options: Mapping[str, Any] | None) -> Iterable[Middleware]:
    if options is None:
        return ()
    if not isinstance(options, Mapping):
        raise _errors.bad_option(recommended, "cors", options, "a mapping of its options, or None")
    from starlette.middleware.cors import CORSMiddleware  # noqa: PLC0415 - only where asked for

    return (Middleware(CORSMiddleware, **options),)
