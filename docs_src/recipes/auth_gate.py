from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException

from httpmw import Connection, Flow

Authenticate = Callable[[str], Awaitable[str | None]]


def gate(
    authenticate: Authenticate, *, public: frozenset[str]
) -> Callable[[Connection], Flow]:
    """
    Let through what is public, and whoever *authenticate* knows by the token.

    Args:
        authenticate: Takes a bearer token; returns the user's name, or None.
        public: The paths that everybody may ask for, exactly as they are.
    """

    async def only_users(conn: Connection) -> Flow:
        # Not `conn.url`: in old Starlettes the `host` header can change its path.
        if conn["path"] in public:
            yield
            return
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        user = await authenticate(token) if scheme.lower() == "bearer" else None
        if user is None:
            raise HTTPException(401, headers={"www-authenticate": "Bearer"})
        conn.state.user = user
        yield

    return only_users
