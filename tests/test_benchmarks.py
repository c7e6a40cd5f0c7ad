"""
The benchmarks run, and their arms do the work that they claim to do; no time is asserted.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks import grid
from benchmarks.measure import Figure, by_hand, ratio, step
from benchmarks.styles import BODIES, STYLES, layered, receive, request_scope


@pytest.fixture
def anyio_backend():
    """
    The benchmarks are taken on asyncio.
    """
    return "asyncio"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("body", BODIES)
async def test_every_style_sets_its_header_and_leaves_the_rest(style, body):
    """
    With any style around it an application sends its own messages and the one header more.
    """
    bare, styled = [], []

    async def record_bare(message):
        bare.append(message)

    async def record_styled(message):
        styled.append(message)

    await BODIES[body](request_scope(), receive, record_bare)
    await layered(BODIES[body], style, 5)(request_scope(), receive, record_styled)

    expected = [*bare[0]["headers"], (b"x-layer", b"1")]
    assert expected == styled[0]["headers"]
    assert b"".join(m["body"] for m in bare[1:]) == b"".join(m["body"] for m in styled[1:])


async def test_a_coroutine_that_suspends_cannot_be_stepped():
    """
    `step` fails when the event loop would have been needed.
    """
    with pytest.raises(AssertionError, match="suspended"):
        step(asyncio.sleep(0))


@pytest.mark.parametrize("style", ["asgi", "one yield", "two yields"])
async def test_the_styles_stepped_by_hand_never_suspend(style):
    """
    Layers that are measured by hand run a whole request in one step.
    """
    assert await by_hand(layered(BODIES["20 chunks"], style, 5), requests=2) >= 0


def test_a_ratio_compares_what_the_layers_add():
    """
    The time of the bare application is taken off both sides, round by round.
    """
    samples = {"bare": [1.0, 2.0, 1.0], "asgi": [2.0, 3.0, 2.0], "httpmw": [3.0, 4.0, 3.0]}

    figure = ratio(samples, "httpmw", "asgi", "bare")

    assert Figure(2.0, 2.0, 2.0) == figure


async def test_the_grid_prints_every_target_and_writes_every_figure(tmp_path, capsys):
    """
    A quick run prints its tables and targets, and `--json` writes the figure of each arm.
    """
    file = tmp_path / "grid.json"

    code = await grid.main(["--quick", "--json", str(file)])

    printed = capsys.readouterr().out
    series = json.loads(file.read_text())["series"]
    assert 0 == code
    assert all(target.says in printed for target in grid.TARGETS)
    assert [len(s.arms()) for s in grid.SERIES.values()] == [len(s) for s in series.values()]


@pytest.mark.parametrize(("limit", "code"), [(0.0, 1), (1e9, 0)])
async def test_a_missed_target_fails_the_check(monkeypatch, limit, code):
    """
    `--check` exits with 1 when a target is missed, and with 0 when all hold.
    """
    target = grid.Target("it", "by hand", grid.Arm("one yield", 1, "one message"), "asgi", 0, limit)
    monkeypatch.setattr(grid, "TARGETS", [target])

    assert code == await grid.main(["--quick", "--check"])
