from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from httpmw import Connection, Flow

engine = create_async_engine("sqlite+aiosqlite:///shop.sqlite3")
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def session(conn: Connection) -> Flow:
    async with sessions() as db:
        conn.state.db = db
        response = yield
        # Before a byte is sent: a commit that fails is a 500, and never a 200.
        if response.status_code < 400:
            await db.commit()
        yield response  # a streamed body may still read
