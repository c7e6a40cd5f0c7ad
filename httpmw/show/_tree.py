from __future__ import annotations

from typing import Any

from ._model import Tree
from ._read import read
from ._warn import warnings_of


def tree(app: Any) -> Tree:
    """
    Read an application into a tree.

        assert not tree(app).warnings

    Nothing of the application is run but what builds its layers, as its first event would; so
    afterwards Starlette refuses `add_middleware`, as in any application that has started.

    Args:
        app: A Starlette or FastAPI application, a `MiddlewareStack`, or any other ASGI app.

    Returns:
        Its layers, routers and routes, the outermost first, with warnings; `str()` draws it.

    Raises:
        TypeError: *app* is not callable.
        Exception: Whatever a layer raises when it is made.
    """
    if not callable(app):
        raise TypeError(f"{type(app).__name__} is no ASGI app")
    root = read(app)
    return Tree(root, warnings_of(root))
