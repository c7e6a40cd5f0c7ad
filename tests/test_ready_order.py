"""In which order the layers stand that are ready to import, and what is said of a wrong one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse

from httpmw import MiddlewareStack
from httpmw._exchange import runs_as_adapter
from httpmw.middleware import (
    AccessLogMiddleware,
    OrderWarning,
    ProblemDetailsMiddleware,
    RequestIDMiddleware,
    ServerTimingMiddleware,
    _order,
    recommended,
)
from tests.harness import request

ok = PlainTextResponse("ok")
CORS: dict[str, Any] = {"allow_origins": ["https://x.example"]}


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    """Each test hears all warnings, and no other test hears less."""
    before = set(_order._said)
    _order._said.clear()
    yield
    _order._said.clear()
    _order._said.update(before)


def names(layers: list[Middleware]) -> list[str]:
    return [layer.cls.__name__ for layer in layers]


def test_the_order() -> None:
    """All that can be asked for comes in its order, and nothing is said of it."""
    layers = recommended(
        request_id=True,
        access_log={"format": "json"},
        prometheus=True,
        server_timing={"enabled": True},
        cors=CORS,
        problem_details=True,
    )

    assert names(layers) == [
        "RequestIDMiddleware",
        "AccessLogMiddleware",
        "PrometheusMiddleware",
        "ServerTimingMiddleware",
        "CORSMiddleware",
        "ProblemDetailsMiddleware",
    ]
    assert layers[1].kwargs == {"format": "json"}


async def test_what_is_not_asked_for_is_left_out() -> None:
    """By default there are an id, a line and problem details; each can be left out."""
    assert names(recommended()) == [
        "RequestIDMiddleware",
        "AccessLogMiddleware",
        "ProblemDetailsMiddleware",
    ]
    assert recommended(request_id=False, access_log=None, problem_details=False) == []

    app = FastAPI(middleware=recommended())
    server = await request(app, path="/nowhere")
    assert server.status == 404
    assert "x-request-id" in server.headers
    assert server.headers["content-type"] == "application/problem+json"


async def test_the_first_ones_fuse() -> None:
    """Up to CORS they are one layer, and so is what is further in."""
    app = Starlette(middleware=recommended(server_timing=True))
    await request(app, path="/nowhere")

    first = app.middleware_stack.app  # type: ignore[union-attr]
    assert runs_as_adapter(first)
    functions, inner, _ = first._httpmw
    assert len(functions) == 4
    assert not runs_as_adapter(inner)


@pytest.mark.parametrize("options", [{"access_log": "json"}, {"cors": True}, {"request_id": 3}])
def test_what_is_asked_for_is_checked(options: Any) -> None:
    """Neither a bool nor options: the error names what was asked for."""
    [name] = options
    with pytest.raises(TypeError, match=rf"recommended\({name}="):
        recommended(**options)


WRONG = [
    (ProblemDetailsMiddleware, AccessLogMiddleware, "as one without a response"),
    (ProblemDetailsMiddleware, CORSMiddleware, "no CORS headers"),
    (AccessLogMiddleware, AccessLogMiddleware, "two lines"),
]


@pytest.mark.parametrize(("outer", "inner", "words"), WRONG)
def test_a_wrong_order_is_warned_about_once(outer: Any, inner: Any, words: str) -> None:
    """Where the application builds its layers, with the reason, and not again."""
    layers = [Middleware(outer), Middleware(GZipMiddleware), Middleware(inner)]
    app = Starlette(middleware=layers)
    with pytest.warns(OrderWarning, match=words) as caught:
        app.build_middleware_stack()
    assert len(caught) == 1
    assert outer.__name__ in str(caught[0].message)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.build_middleware_stack()


@pytest.mark.parametrize(("outer", "inner", "words"), WRONG)
def test_in_a_stack(outer: Any, inner: Any, words: str) -> None:
    """An edit of a stack that makes a wrong order is warned about."""
    stack = MiddlewareStack(ok, [Middleware(GZipMiddleware), Middleware(inner)])
    with pytest.warns(OrderWarning, match=words):
        stack.add(Middleware(outer))


def test_an_order_that_does_no_harm() -> None:
    """Of all others nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layers in (
            recommended(cors=CORS, server_timing=True),
            [Middleware(AccessLogMiddleware), Middleware(RequestIDMiddleware)],
            [Middleware(CORSMiddleware), Middleware(ProblemDetailsMiddleware)],
            [Middleware(ServerTimingMiddleware), Middleware(AccessLogMiddleware)],
        ):
            Starlette(middleware=layers).build_middleware_stack()
            MiddlewareStack(ok, layers)
