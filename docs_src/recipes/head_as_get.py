from httpmw import Connection, Flow


async def head_as_get(conn: Connection) -> Flow:
    if conn.method == "HEAD":
        conn.scope["method"] = "GET"
    yield
