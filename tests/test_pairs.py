"""Which combinations of its settings a test is run with."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.pairs import meeting

SETTINGS = list(product("ab", range(5), "xyz", [True, False]))


def test_every_two_settings_meet() -> None:
    taken = [SETTINGS[index] for index in meeting(SETTINGS)]

    for first, second in combinations(range(4), 2):
        assert {(each[first], each[second]) for each in taken} == {
            (each[first], each[second]) for each in SETTINGS
        }


def test_few_are_enough() -> None:
    """No fewer than the product of the two longest lists can be."""
    assert 15 <= len(meeting(SETTINGS)) <= 20


@pytest.mark.parametrize("settings", [[], [("a",)], [("a",), ("b",)], [(1, "a"), (2, "a")]])
def test_short_lists_are_left_whole(settings: list[tuple[object, ...]]) -> None:
    assert meeting(settings) == list(range(len(settings)))


def test_combinations_that_are_not_there_are_not_asked_for() -> None:
    assert meeting([("a", 1, "x"), ("b", 2, "x")]) == [0, 1]
