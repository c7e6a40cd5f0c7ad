from starlette.routing import Mount

from httpmw import Connection


def route_template(conn: Connection) -> str:
    """
    Return `/users/{user_id}` for `/users/7`, once the inner app has been run.

    What matches no route is "unmatched": its paths are without number.
    """
    route = conn.get("route")
    root_path: str = conn.get("root_path", "").rstrip("/")
    if route is None or isinstance(route, Mount):
        return f"{root_path}/*" if root_path else "unmatched"
    # FastAPI may keep an included route as it was declared, and here what
    # `include_router(prefix=...)` makes of it.
    included = conn.get("fastapi", {}).get("effective_route_context")
    path: str = getattr(included, "path_format", None) or route.path_format
    return root_path + path
