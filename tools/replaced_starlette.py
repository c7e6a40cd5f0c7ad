"""
A pytest plugin that has a test suite import `httpmw.compat.BaseHTTPMiddleware` from Starlette.
"""

from __future__ import annotations

import starlette.middleware.base

from httpmw.compat import BaseHTTPMiddleware


def pytest_configure() -> None:
    """
    Replace the class before a test is collected.
    """
    starlette.middleware.base.BaseHTTPMiddleware = BaseHTTPMiddleware  # type: ignore[misc]
