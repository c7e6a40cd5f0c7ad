from __future__ import annotations

from contextvars import ContextVar
from typing import Final

request_id: Final[ContextVar[str | None]] = ContextVar("httpmw.request_id", default=None)
"""
The id of the request that is being served; None outside of one.
"""

trace_id: Final[ContextVar[str | None]] = ContextVar("httpmw.trace_id", default=None)
"""
The id of the trace that the request belongs to, 32 hexadecimal digits; None where there is none.
"""
