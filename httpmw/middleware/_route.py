from __future__ import annotations

import re
from typing import Any

from starlette.requests import HTTPConnection
from starlette.routing import Mount

from httpmw._scope import LayerRequest

from ._ready import view_of

_NAMES = re.compile(r"{(\w+)}")


def route_template(conn: HTTPConnection[Any]) -> str | None:
    """
    Tell which route a request has matched: `/users/{user_id}` for `/users/7`.

    It is for names of metrics, spans and limits, as OpenTelemetry's `http.route` is: of all
    requests there are only as many as there are routes. It begins with the `root_path`, that of
    the server and that of mounts; what a mount serves by itself is `/static/*`.

    To be asked after the first yield: it is the application that finds the route. No route is
    matched again.

    Args:
        conn: The connection, or a request or WebSocket of Starlette.

    Returns:
        The template; None where no route was matched. A Starlette that does not keep the route in
        the scope has one for mounts and for routes of FastAPI only.
    """
    scope = view_of(conn) if isinstance(conn, LayerRequest) else conn.scope
    route: Any = scope.get("route")
    root_path: str = scope.get("root_path", "").rstrip("/")
    # What there was before the first mount.
    server: str = scope.get("app_root_path", root_path).rstrip("/")
    mounted = root_path[len(server) :]
    # FastAPI from 0.137 on keeps an included route as it was declared, and here what
    # `include_router(prefix=...)` makes of it.
    included = (scope.get("fastapi") or {}).get("effective_route_context")
    path: str | None = getattr(included, "path_format", None) or getattr(route, "path_format", None)
    if path is None or isinstance(route, Mount):
        if not mounted:
            return None
        path = "/*"
    if mounted:
        params: dict[str, Any] = scope.get("path_params") or {}
        own = _NAMES.findall(path)
        mounted = _without_values(mounted, {k: v for k, v in params.items() if k not in own})
    return f"{server}{mounted}{path}"


def _without_values(mounted: str, params: dict[str, Any]) -> str:
    """
    Put names of parameters in the place of what a mount has matched: `/tenants/{tenant}`.
    """
    for name, value in params.items():
        segments = mounted.split("/")
        place = next((i for i, each in enumerate(segments) if each and _is(each, value)), None)
        if place is not None:
            segments[place] = f"{{{name}}}"
            mounted = "/".join(segments)
        elif text := str(value):  # a part of a segment, or several of them
            mounted = mounted.replace(text, f"{{{name}}}", 1)
    return mounted


def _is(segment: str, value: Any) -> bool:
    if isinstance(value, str):
        return segment == value
    try:
        return bool(type(value)(segment) == value)  # 007 is 7 to a convertor
    except Exception:  # a convertor's type may be anybody's
        return segment == str(value)
