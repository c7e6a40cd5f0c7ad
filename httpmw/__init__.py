"""
HTTP middleware for ASGI that reads top to bottom.
"""

from ._adapter import Flow, HTTPMiddleware, http_middleware
from ._chain import Layer
from ._connection import Connection
from ._errors import (
    BodyTooLarge,
    DeadlineExceeded,
    HTTPMWError,
    MiddlewareError,
    NoResponseError,
    StackError,
)
from ._response import AppResponse
from .stack import MiddlewareStack

__version__ = "0.1.0"

__all__ = [
    "AppResponse",
    "BodyTooLarge",
    "Connection",
    "DeadlineExceeded",
    "Flow",
    "HTTPMWError",
    "HTTPMiddleware",
    "Layer",
    "MiddlewareError",
    "MiddlewareStack",
    "NoResponseError",
    "StackError",
    "http_middleware",
]
