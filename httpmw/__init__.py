"""
HTTP middleware for ASGI that reads top to bottom.
"""

from ._adapter import Flow, HTTPMiddleware, http_middleware
from ._connection import Connection
from ._errors import BodyTooLarge, HTTPMWError, MiddlewareError, NoResponseError
from ._response import AppResponse

__version__ = "0.1.0"

__all__ = [
    "AppResponse",
    "BodyTooLarge",
    "Connection",
    "Flow",
    "HTTPMWError",
    "HTTPMiddleware",
    "MiddlewareError",
    "NoResponseError",
    "http_middleware",
]
