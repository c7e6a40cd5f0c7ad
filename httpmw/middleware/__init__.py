"""
Layers that are ready to import; each name loads the module of its kind, and no other.
"""

# Rule 1: one private module for each kind, with one public class, whose name ends in `Middleware`;
# a subclass of `HTTPMiddleware` that never overrides `__call__`, so that neighbours fuse.
# Rule 2: every option is checked where the layer is made.
# Rule 3: what not everybody has installed is imported by the module that needs it and by no other,
# with an error that names the extra. To import this package loads none of the modules.
# Rule 4: nothing of the core imports this package.

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from httpmw._order import CORS_ALLOW, CORS_EXPOSE, OrderWarning

    from ._access_log import REDACTED_KEYS, AccessLogMiddleware, AccessRecord
    from ._compression import CompressionMiddleware
    from ._concurrency_limit import ConcurrencyLimitMiddleware
    from ._cross_origin import CrossOriginProtectionMiddleware
    from ._etag import ETagMiddleware
    from ._gcra import RateLevel, RatePolicy, RateStore
    from ._gradient import AdaptiveLimit
    from ._idempotency import Idempotency, IdempotencyMiddleware, idempotency
    from ._idempotency_store import Claim, IdempotencyStore
    from ._ids import request_id, trace_id
    from ._inspector import InspectorMiddleware
    from ._limits_store import LimitsStore
    from ._memory_store import MemoryStore
    from ._opentelemetry_metrics import OpenTelemetryMetricsMiddleware
    from ._postgres_store import PostgresStore
    from ._problem_details import Problem, ProblemDetailsMiddleware, problem_responses
    from ._prometheus import PrometheusMiddleware, metrics_endpoint
    from ._rate_limit import RateLimitMiddleware, client_address, rate_limit
    from ._recommended import recommended
    from ._redis_store import RedisStore
    from ._request_id import RequestIDFilter, RequestIDMiddleware, add_request_id
    from ._route import route_template
    from ._security_headers import CSPNonce, SecurityHeadersMiddleware
    from ._server_timing import ServerTiming, ServerTimingMiddleware, timing
    from ._stores import StoreError
    from ._timeout import TimeoutMiddleware

__all__ = [
    "CORS_ALLOW",
    "CORS_EXPOSE",
    "REDACTED_KEYS",
    "AccessLogMiddleware",
    "AccessRecord",
    "AdaptiveLimit",
    "CSPNonce",
    "Claim",
    "CompressionMiddleware",
    "ConcurrencyLimitMiddleware",
    "CrossOriginProtectionMiddleware",
    "ETagMiddleware",
    "Idempotency",
    "IdempotencyMiddleware",
    "IdempotencyStore",
    "InspectorMiddleware",
    "LimitsStore",
    "MemoryStore",
    "OpenTelemetryMetricsMiddleware",
    "OrderWarning",
    "PostgresStore",
    "Problem",
    "ProblemDetailsMiddleware",
    "PrometheusMiddleware",
    "RateLevel",
    "RateLimitMiddleware",
    "RatePolicy",
    "RateStore",
    "RedisStore",
    "RequestIDFilter",
    "RequestIDMiddleware",
    "SecurityHeadersMiddleware",
    "ServerTiming",
    "ServerTimingMiddleware",
    "StoreError",
    "TimeoutMiddleware",
    "add_request_id",
    "client_address",
    "idempotency",
    "metrics_endpoint",
    "problem_responses",
    "rate_limit",
    "recommended",
    "request_id",
    "route_template",
    "timing",
    "trace_id",
]

_MODULES: Final = {
    "AccessLogMiddleware": "_access_log",
    "AccessRecord": "_access_log",
    "AdaptiveLimit": "_gradient",
    "CORS_ALLOW": "httpmw._order",
    "CORS_EXPOSE": "httpmw._order",
    "CSPNonce": "_security_headers",
    "Claim": "_idempotency_store",
    "CompressionMiddleware": "_compression",
    "ConcurrencyLimitMiddleware": "_concurrency_limit",
    "CrossOriginProtectionMiddleware": "_cross_origin",
    "ETagMiddleware": "_etag",
    "Idempotency": "_idempotency",
    "IdempotencyMiddleware": "_idempotency",
    "IdempotencyStore": "_idempotency_store",
    "InspectorMiddleware": "_inspector",
    "LimitsStore": "_limits_store",
    "MemoryStore": "_memory_store",
    "OpenTelemetryMetricsMiddleware": "_opentelemetry_metrics",
    "OrderWarning": "httpmw._order",
    "PostgresStore": "_postgres_store",
    "Problem": "_problem_details",
    "ProblemDetailsMiddleware": "_problem_details",
    "PrometheusMiddleware": "_prometheus",
    "REDACTED_KEYS": "_access_log",
    "RateLevel": "_gcra",
    "RateLimitMiddleware": "_rate_limit",
    "RatePolicy": "_gcra",
    "RateStore": "_gcra",
    "RedisStore": "_redis_store",
    "RequestIDFilter": "_request_id",
    "RequestIDMiddleware": "_request_id",
    "SecurityHeadersMiddleware": "_security_headers",
    "ServerTiming": "_server_timing",
    "ServerTimingMiddleware": "_server_timing",
    "StoreError": "_stores",
    "TimeoutMiddleware": "_timeout",
    "add_request_id": "_request_id",
    "client_address": "_rate_limit",
    "idempotency": "_idempotency",
    "metrics_endpoint": "_prometheus",
    "problem_responses": "_problem_details",
    "rate_limit": "_rate_limit",
    "recommended": "_recommended",
    "request_id": "_ids",
    "route_template": "_route",
    "timing": "_server_timing",
    "trace_id": "_ids",
}


def __getattr__(name: str) -> Any:
    # PEP 562.
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path = module if "." in module else f"{__name__}.{module}"
    value = getattr(importlib.import_module(path), name)
    globals()[name] = value  # the next time it is found without a call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
