"""What `make answers` does at length."""

from __future__ import annotations

import logging

import pytest

from tools import answers


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the lines of refused requests."""
    monkeypatch.setattr(logging.getLogger("httpmw"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("httpmw.cross_origin"), "disabled", True)


async def test_random_headers(anyio_backend: str) -> None:
    """Whatever a client says, nothing is raised, no answer is a 500, and a 200 has its bytes."""
    statuses = await answers.headers(150, 0)

    assert {200, 304, 403, 412} <= {*statuses}


async def test_random_bodies(anyio_backend: str) -> None:
    """Each is decoded to what it was."""
    codings = await answers.bodies(100, 0)

    assert {*codings} == {"gzip", "br", "zstd"}
