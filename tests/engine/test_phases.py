"""The phases of a response: what follows what, and that it is said in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from httpmw import _phases
from httpmw._phases import EVENTS, INWARD, PASSING, PHASES, TABLE, as_text

PAGE = Path(__file__).parents[2] / "docs" / "how-it-works.md"


def test_event_that_cannot_be_in_a_phase() -> None:
    """It is a fault of httpmw's own, and says which event and which phase."""
    with pytest.raises(AttributeError, match="'PASSING' object has no attribute 'started'"):
        PASSING.started  # noqa: B018 - what follows is asked for


def test_no_phase_is_written_but_by_an_event() -> None:
    """What follows is looked up in the table; a phase by its name stands only at a birth."""
    births = []
    for file in sorted(Path(_phases.__file__).parent.glob("_*.py")):
        for line in file.read_text(encoding="utf-8").splitlines():
            target, _, value = line.strip().partition(" = ")
            if target.endswith(".phase") and ".phase." not in value:
                births.append((file.name, value))

    assert births == [("_exchange.py", "INWARD"), ("_travel.py", "WAITING")]


def test_nothing_leads_back() -> None:
    """Each event leads to a later phase, or says again what is known; from five none leads on."""
    for phase, event, follows in TABLE:
        assert PHASES.index(follows) >= PHASES.index(phase), event

    assert {phase for phase, _, _ in TABLE} == {*PHASES[:4]}


def test_every_phase_is_reached() -> None:
    """Each has an event that leads there, but for the first; and each event is in the table."""
    assert {follows for _, _, follows in TABLE} == {*PHASES} - {INWARD}
    assert {event for _, event, _ in TABLE} == {*EVENTS}


def test_page_shows_the_as_text() -> None:
    """The table of the page is that of the code."""
    assert as_text() in PAGE.read_text(encoding="utf-8")
