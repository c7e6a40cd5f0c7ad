# The ready-made layers in the order in which they belong.

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from starlette.middleware import Middleware

from httpmw import _errors

Options: TypeAlias = Mapping[str, Any] | bool | None
"""
How a layer is asked for: True, or with its options.
"""


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
    concurrency_limit: Options = None,
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
        concurrency_limit: `ConcurrencyLimitMiddleware`.
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
        *_asked("ConcurrencyLimitMiddleware", "concurrency_limit", concurrency_limit),
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
    # Only what is asked for is loaded; the module of a layer is named as its option.
    module = importlib.import_module(f"._{option}", __package__)
    return (Middleware(getattr(module, name), **({} if options is True else options)),)


def _cors(options: Mapping[str, Any] | None) -> Iterable[Middleware]:
    if options is None:
        return ()
    if not isinstance(options, Mapping):
        raise _errors.bad_option(recommended, "cors", options, "a mapping of its options, or None")
    from starlette.middleware.cors import CORSMiddleware  # noqa: PLC0415 - only where asked for

    return (Middleware(CORSMiddleware, **options),)
