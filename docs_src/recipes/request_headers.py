from collections.abc import Awaitable, Callable

from httpmw import Connection, Flow

Find = Callable[[str], Awaitable[str | None]]


def identified(find: Find) -> Callable[[Connection], Flow]:
    """
    Tell the application in `x-user` who asks.

    Args:
        find: Takes the `authorization` header; returns the user's name, or None.
    """

    async def tell_who_asks(conn: Connection) -> Flow:
        conn.delete_header("x-user")  # whatever the client says
        user = await find(conn.headers.get("authorization", ""))
        if user is not None:
            conn.set_header("x-user", user)
        conn.delete_header("authorization")
        yield

    return tell_who_asks
