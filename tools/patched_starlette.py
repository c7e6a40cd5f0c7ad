"""
A pytest plugin that puts every `BaseHTTPMiddleware` of a test suite on the engine of httpmw.
"""

from __future__ import annotations

from httpmw.compat import patch_starlette


def pytest_configure() -> None:
    """
    Patch Starlette before a test is collected.
    """
    patch_starlette()
