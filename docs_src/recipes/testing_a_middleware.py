from starlette.responses import JSONResponse, PlainTextResponse

from httpmw import Connection, Flow
from httpmw.testing import run, step


class SoldOutError(Exception):
    pass


async def sold_out_page(conn: Connection) -> Flow:
    try:
        response = yield
    except SoldOutError:
        yield PlainTextResponse("sold out", 410)
        return
    response.headers["cache-control"] = "no-store"


async def test_an_answer_is_not_kept() -> None:
    result = await run(sold_out_page, JSONResponse({"left": 3}))

    assert result.headers["cache-control"] == "no-store"
    assert result.json() == {"left": 3}


async def test_what_is_sold_out_is_gone() -> None:
    result = await run(sold_out_page, SoldOutError())

    assert (result.status, result.text) == (410, "sold out")


async def test_a_stream_is_not_held_back() -> None:
    async with step(sold_out_page) as flow:
        await flow.respond(200)
        await flow.chunk(b"one")
        assert flow.chunks == [b"one"]

        await flow.finish(b"two")
        assert flow.ended
