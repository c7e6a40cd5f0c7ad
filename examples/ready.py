"""
A FastAPI application with the layers that are ready to import, for the second part of the demo.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from httpmw.middleware import metrics_endpoint, recommended

ROWS = "".join(f"{number},tea,2\n" for number in range(1000))

app = FastAPI(
    middleware=recommended(
        access_log={"logger": "examples.access"},
        prometheus={"exclude": ["/metrics"]},
        cross_origin=True,
        timeout={"start": 20},
    )
)
app.add_route("/metrics", metrics_endpoint())


@app.get("/items/{item}")
async def item(item: int) -> dict[str, int]:
    return {"item": item}


@app.post("/items")
async def order() -> dict[str, str]:
    return {"ordered": "tea"}


@app.get("/rows")
async def rows() -> PlainTextResponse:
    return PlainTextResponse(ROWS, media_type="text/csv")


@app.get("/fails")
async def fails() -> None:
    raise RuntimeError("the database is down")
