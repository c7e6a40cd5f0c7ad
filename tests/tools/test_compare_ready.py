"""What `make compare-ready` looks at, of the layers of httpmw alone."""

from __future__ import annotations

import inspect
import logging

import pytest
from starlette.routing import Router

from tools.compare_ready import KINDS, compared, is_ours

# Of an older Starlette the route within a mount is not known.
KEEPS_ROUTES = '"route"' in inspect.getsource(Router)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the lines of refused requests."""
    monkeypatch.setattr(logging.getLogger("httpmw.cross_origin"), "disabled", True)


@pytest.mark.parametrize("name", KINDS)
async def test_ours_is_right_in_every_case(anyio_backend: str, name: str) -> None:
    """Each kind is right in each of its cases."""
    kind = KINDS[name]
    ours = [each for each in kind.contenders if is_ours(each)]
    table = await compared(kind, *ours)

    assert ours
    cells = {
        (case.name, whose): cell
        for case, of in table.items()
        for whose, cell in of.items()
        if KEEPS_ROUTES or (name, case.name) != ("metrics", "in a mounted app")
    }
    assert {key: cell.words for key, cell in cells.items() if not cell.is_right} == {}
