"""All layers of `httpmw.middleware` in 140 random schedules; `make soak ARGS=--ready` runs more."""

from __future__ import annotations

import logging

import pytest

from httpmw.testing import explore
from tests.ready_scenario import BESIDE, ready

SHARDS = [("asyncio", first, 25) for first in range(0, 100, 25)]
SHARDS += [("trio", first, 10) for first in range(0, 40, 10)]


@pytest.mark.parametrize(("backend", "first", "count"), SHARDS)
def test_random_schedules(
    backend: str, first: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request has one line and one observation, nothing stays in flight, no id is mixed up."""
    for name in BESIDE:
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    struck = explore(ready, seeds=range(first, first + count), backend=backend)

    assert struck.total() == count
