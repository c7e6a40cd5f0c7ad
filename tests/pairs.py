"""
Of all combinations of a test's settings those in which every two settings meet.

Most faults need one or two settings to show (Kuhn, Kacker and Lei, NIST SP 800-142, section 2.1);
a product of five lists runs each pair dozens of times.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations


def meeting(settings: Sequence[Sequence[Hashable]]) -> list[int]:
    """
    Return the indices of *settings* that are enough for every pair in them, in order.

    Each element has one value for each list of values that was multiplied, in the same order.
    Those that bring the most pairs are taken first; the same *settings* give the same answer.
    """
    pairs = [set(combinations(enumerate(each), 2)) or set(enumerate(each)) for each in settings]
    missing = set[Hashable]().union(*pairs)
    taken: set[int] = set()
    for wanted in range(max(map(len, pairs), default=0), 0, -1):
        for index, each in enumerate(pairs):
            if len(each & missing) >= wanted:
                missing -= each
                taken.add(index)
    return sorted(taken)
