"""
HTTP middleware for ASGI that reads top to bottom.
"""

from ._adapter import Dispatch, Flow, HTTPMiddleware, Predicate, http_middleware
from ._chain import Layer, Target
from ._connection import Connection
from ._errors import (
    BodyTooLarge,
    DeadlineExceeded,
    HTTPMWError,
    MiddlewareError,
    NoResponseError,
    ResponseTooLarge,
    StackError,
)
from ._response import AppResponse, Outcome
from .stack import MiddlewareStack

__version__ = "0.1.0"

__all__ = [
    "AppResponse",
    "BodyTooLarge",
    "Connection",
    "DeadlineExceeded",
    "Dispatch",
    "Flow",
    "HTTPMWError",
    "HTTPMiddleware",
    "Layer",
    "MiddlewareError",
    "MiddlewareStack",
    "NoResponseError",
    "Outcome",
    "Predicate",
    "ResponseTooLarge",
    "StackError",
    "Target",
    "http_middleware",
]
