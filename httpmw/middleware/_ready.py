# What all layers that are ready to import have in common.

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar, Final, TypeAlias

from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import HTTPMiddleware, Predicate, check_predicate
from httpmw._connection import Connection
from httpmw._handlers import is_plain_callable
from httpmw._order import check_inward
from httpmw._scope import LayerRequest, _headers_of

# The scope to read, and only to read: `conn.scope` makes a copy, which is for who changes it, and
# to read it by `conn[...]` takes its time.
view_of: Final = LayerRequest._view  # noqa: SLF001 - of the package


def headers_of(conn: Connection[Any]) -> list[tuple[bytes, bytes]]:
    """
    Give the headers to read, and only to read, without an object around them.
    """
    return _headers_of(view_of(conn))


Exclude: TypeAlias = Collection[str] | Callable[[Connection[Any]], bool]
"""
Requests that a layer leaves alone: their paths, or a predicate.
"""


class Ready(HTTPMiddleware):
    """
    A layer with options.

    Args:
        app: The inner app.
        when: A predicate on the connection; where it is false, the layer is not there.
        exclude: Paths for which it is not there, as `scope["path"]` has them; or a predicate.
        websocket: Whether it is there for WebSocket handshakes; None: what the class says.
        wanted: A predicate of the class's own.
    """

    # What it is to those that look at the order of layers.
    kind: ClassVar[str]

    def __init__(
        self,
        app: ASGIApp,
        *,
        when: Predicate | None,
        exclude: Exclude,
        websocket: bool | None,
        wanted: Predicate | None = None,
    ) -> None:
        if when is not None:
            check_predicate(when)
        all_of_them = both(both(self._wanted(exclude), when), wanted)
        super().__init__(app, when=all_of_them, websocket=websocket)
        check_inward(self)

    def _wanted(self, exclude: Any) -> Predicate | None:
        """
        Give what says that a request is not left alone; None where none is.
        """
        if callable(exclude):
            self._check_callables(exclude=exclude)
            meant: Callable[[Connection[Any]], bool] = exclude
            return lambda conn: not meant(conn)
        expected = 'paths, as in `exclude=["/health"]`, or a predicate'
        paths = self._checked_paths("exclude", exclude, expected)
        return (lambda conn: view_of(conn)["path"] not in paths) if paths else None

    @classmethod
    def _bad(cls, option: str, value: object, expected: str) -> TypeError:
        return _errors.bad_option(cls, option, value, expected)

    @classmethod
    def _check_callables(cls, **options: object) -> None:
        for name, value in options.items():
            if value is not None and not is_plain_callable(value):
                raise cls._bad(name, value, "a plain function, no `async def`")

    @classmethod
    def _checked_paths(cls, option: str, paths: Any, expected: str) -> frozenset[str]:
        if isinstance(paths, str) or not isinstance(paths, Collection):
            raise cls._bad(option, paths, expected)
        for path in paths:
            if not isinstance(path, str) or not path.startswith("/"):
                raise cls._bad(option, paths, f"paths that begin with a slash, not {path!r}")
        return frozenset(paths)

    @classmethod
    def _check_integer(
        cls, option: str, value: object, least: int, most: int | None, expected: str
    ) -> None:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or value < least or (most is not None and value > most):  # type: ignore[operator]
            raise cls._bad(option, value, expected)

    @classmethod
    def _check_flags(cls, **options: object) -> None:
        for name, value in options.items():
            if not isinstance(value, bool):
                raise cls._bad(name, value, "a bool")


def both(one: Predicate | None, other: Predicate | None) -> Predicate | None:
    """
    Give the predicate that says what both of them say, where there are two.
    """
    if one is None or other is None:
        return one or other
    return lambda conn: one(conn) and other(conn)
