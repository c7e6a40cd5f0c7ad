from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from httpmw import _errors
from httpmw._connection import Connection

Drain: TypeAlias = Mapping[str, float] | bool
"""
How much of an upload is received that is refused: True, False, or `max_size` and `seconds`.
"""

_DEFAULT: Final = {"max_size": 1024 * 1024, "seconds": 1.0}


class Draining:
    """
    How much of an upload is received that is answered without having been read.

    Args:
        owner: The class of the layer.
        drain: Its option `drain=`.
    """

    def __init__(self, owner: type, drain: Drain) -> None:
        self._bounds: dict[str, Any] | None = None
        if isinstance(drain, Mapping):
            self._bounds = {**_DEFAULT, **drain}
            is_known = self._bounds.keys() == _DEFAULT.keys()
            if not is_known or not all(map(_is_bound, self._bounds.values())):
                raise _bad(owner, drain)
        elif not isinstance(drain, bool):
            raise _bad(owner, drain)
        elif drain:
            self._bounds = dict[str, Any](_DEFAULT)

    async def drain(self, conn: Connection[Any]) -> bool:
        """
        Drop the request's body; False where the connection has to end.
        """
        drained = self._bounds is not None and await conn.drain(**self._bounds)
        # From HTTP/2 on a stream ends alone (RFC 9113 section 8.2.2); granian calls 1.0 "1".
        return drained or self._bounds is None or not str(conn.get("http_version")).startswith("1")


def _bad(owner: type, drain: object) -> TypeError:
    expected = "a bool, or a mapping with `max_size` and `seconds`"
    return _errors.bad_option(owner, "drain", drain, expected)


def _is_bound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
