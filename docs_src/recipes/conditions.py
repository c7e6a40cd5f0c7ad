from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware

from httpmw import Connection, Flow, HTTPMiddleware

Condition = Callable[[Connection], bool]


def under(*prefixes: str) -> Condition:
    """
    Whether the path is one of *prefixes*, or below one.
    """
    below = tuple(f"{prefix}/" for prefix in prefixes)
    return lambda conn: f"{conn['path']}/".startswith(below)


def either(*conditions: Condition) -> Condition:
    return lambda conn: any(condition(conn) for condition in conditions)


def unless(condition: Condition) -> Condition:
    return lambda conn: not condition(conn)


def is_preflight(conn: Connection) -> bool:
    return (
        conn.method == "OPTIONS"
        and "access-control-request-method" in conn.headers
    )


async def no_store(conn: Connection) -> Flow:
    response = yield
    response.headers["cache-control"] = "no-store"


async def not_for_robots(conn: Connection) -> Flow:
    response = yield
    response.headers["x-robots-tag"] = "noindex"


def for_logged_in(conn: Connection) -> Flow | None:
    """
    Step aside by returning None: for a choice that the layer itself makes.
    """
    return no_store(conn) if "session" in conn.cookies else None


app = Starlette(
    middleware=[
        Middleware(HTTPMiddleware, dispatch=for_logged_in),
        Middleware(
            HTTPMiddleware,
            dispatch=not_for_robots,
            when=under("/api", "/internal"),
        ),
        Middleware(
            HTTPMiddleware,
            dispatch=no_store,
            when=unless(either(under("/static"), is_preflight)),
        ),
    ],
)
