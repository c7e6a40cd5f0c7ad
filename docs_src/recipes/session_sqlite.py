import sqlite3
from contextlib import closing

from anyio import to_thread

from httpmw import Connection, Flow

DATABASE = "shop.sqlite3"


def connect() -> sqlite3.Connection:
    # Used by one request, but not by one thread.
    return sqlite3.connect(DATABASE, check_same_thread=False)


async def session(conn: Connection) -> Flow:
    with closing(await to_thread.run_sync(connect)) as db:
        conn.state.db = db
        response = yield
        # Before a byte is sent: a commit that fails is a 500, and never a 200.
        if response.status_code < 400:
            await to_thread.run_sync(db.commit)
        yield response  # a streamed body may still read
